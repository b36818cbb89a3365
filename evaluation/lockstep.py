"""Self-conditioned narration of many streams at once: all advance frame by frame in lockstep, without a cache.

Every forward pass runs over whole sequences, so this code shares nothing with `StreamingSession`. The tests compare
the two.
"""

from collections.abc import Callable

import torch

from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..speaking import DEFAULT_THRESHOLD, silence_probability, speaks

Said = list[tuple[int, tuple[int, ...]]]  # (frame, tokens of the reply without the end-of-sequence token)


@torch.no_grad()
def narrate_in_lockstep(
    model: VideoLLMMoDForConditionalGeneration,
    processor,
    frames_of: Callable[[torch.Tensor, int], torch.Tensor],
    num_frames: torch.Tensor,
    threshold: float = DEFAULT_THRESHOLD,
    max_reply: int = 32,
) -> list[Said]:
    """What a model says about streams without instructions, decoded greedily.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`): in eval mode.
        processor (`VideoLLMMoDProcessor`)
        frames_of (`callable`): `(streams int64 [R], count)` -> pixel values `[R * count, 3, H, W]` of the
            first `count` frames of those streams.
        num_frames (int64 `[S]`): number of frames of each stream, on the model's device.
        threshold (`float`): the model speaks when P(silence) is below this.
        max_reply (`int`): maximum number of tokens of a narration.
    """
    bos, eos = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    frame, speak = processor.frame_ids, processor.stream_end_ids + processor.assistant_header_ids
    longest = max(len(processor.stream_start_ids), 1) + len(frame) + len(speak) + max_reply + 1
    ids = torch.full((len(num_frames), 1 + int(num_frames.max()) * longest), eos, device=num_frames.device)
    ids[:, 0] = bos
    lengths = torch.ones_like(num_frames)
    in_stream = torch.zeros_like(num_frames, dtype=torch.bool)
    said: list[Said] = [[] for _ in num_frames]

    def append(streams: torch.Tensor, tokens: torch.Tensor | list[int]) -> None:
        """Append the same tokens `[L]` to all of `streams`, or a row of `[R, L]` to each."""
        tokens = torch.as_tensor(tokens, device=ids.device)
        columns = lengths[streams, None] + torch.arange(tokens.shape[-1], device=ids.device)
        ids[streams[:, None], columns] = tokens.expand(len(streams), -1)
        lengths[streams] += tokens.shape[-1]

    def next_logits(streams: torch.Tensor, seen: int) -> torch.Tensor:
        """Logits `[R, V]` at the end of each sequence. Tokens to the right of it have no effect."""
        ends = lengths[streams]
        hidden = model.model(
            input_ids=ids[streams, : int(ends.max())],
            pixel_values_videos=frames_of(streams, seen),
            use_cache=False,
        ).last_hidden_state
        return model.lm_head(hidden[torch.arange(len(streams), device=ids.device), ends - 1])

    for index in range(int(num_frames.max())):
        live = num_frames > index
        append((live & in_stream).nonzero()[:, 0], [processor.frame_separator_token_id])
        append((live & ~in_stream).nonzero()[:, 0], processor.stream_start_ids)
        live = live.nonzero()[:, 0]
        append(live, frame)
        in_stream[live] = True
        silence = silence_probability(next_logits(live, index + 1), processor.frame_separator_token_id)
        speaking = live[speaks(silence, threshold)]
        in_stream[speaking] = False
        append(speaking, speak)
        replies: dict[int, list[int]] = {stream: [] for stream in speaking.tolist()}
        for _ in range(max_reply):
            if not len(speaking):
                break
            tokens = next_logits(speaking, index + 1).argmax(-1)
            append(speaking, tokens[:, None])
            for stream, token in zip(speaking.tolist(), tokens.tolist(), strict=True):
                replies[stream].append(token)
            speaking = speaking[tokens != eos]
        append(speaking, [eos])  # cut off
        for stream, reply in replies.items():
            said[stream].append((index, tuple(token for token in reply if token != eos)))
    return said
