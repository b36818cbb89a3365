"""Self-conditioned narration of many streams at once: all advance frame by frame in lockstep, without a cache.

Every forward pass runs over whole sequences, so this code shares nothing with `StreamingSession`. The tests compare
the two.
"""

from collections.abc import Callable

import torch

from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..sequence import DEFAULT_THRESHOLD
from ..speaking import silence_probability, speaks

Said = list[tuple[int, tuple[int, ...]]]  # (frame, tokens of the reply without the end-of-sequence token)


class Sequences:
    """The tokens of many streams so far, one row each.

    Args:
        model, processor, frames_of, num_frames: as of `narrate_in_lockstep`.
        longest (`int`): tokens that a frame and what is said after it take at most.
    """

    def __init__(self, model, processor, frames_of: Callable, num_frames: torch.Tensor, longest: int):
        self.model, self.frames_of = model, frames_of
        size = (len(num_frames), 1 + int(num_frames.max()) * longest)
        self.ids = torch.full(size, processor.tokenizer.eos_token_id, device=num_frames.device)
        self.ids[:, 0] = processor.tokenizer.bos_token_id
        self.lengths = torch.ones_like(num_frames)

    def append(self, streams: torch.Tensor, tokens: torch.Tensor | list[int]) -> None:
        """Append the same tokens `[L]` to all of `streams`, or a row of `[R, L]` to each."""
        tokens = torch.as_tensor(tokens, device=self.ids.device)
        columns = self.lengths[streams, None] + torch.arange(tokens.shape[-1], device=self.ids.device)
        self.ids[streams[:, None], columns] = tokens.expand(len(streams), -1)
        self.lengths[streams] += tokens.shape[-1]

    def next_logits(self, streams: torch.Tensor, seen: int) -> torch.Tensor:
        """Logits `[R, V]` at the end of each sequence, which holds `seen` frames. Tokens after the end have no
        effect."""
        ends = self.lengths[streams]
        hidden = self.model.model(
            input_ids=self.ids[streams, : int(ends.max())],
            pixel_values_videos=self.frames_of(streams, seen),
            use_cache=False,
        ).last_hidden_state
        return self.model.lm_head(hidden[torch.arange(len(streams), device=self.ids.device), ends - 1])

    def reply(self, streams: torch.Tensor, seen: int, eos: int, max_reply: int) -> dict[int, tuple[int, ...]]:
        """Let the model speak in each of `streams` until it ends its turn, or after `max_reply` tokens. Returns the
        tokens that each stream said."""
        said: dict[int, list[int]] = {stream: [] for stream in streams.tolist()}
        for _ in range(max_reply):
            if not len(streams):
                break
            tokens = self.next_logits(streams, seen).argmax(-1)
            self.append(streams, tokens[:, None])
            for stream, token in zip(streams.tolist(), tokens.tolist(), strict=True):
                said[stream].append(token)
            streams = streams[tokens != eos]
        self.append(streams, [eos])  # cut off
        return {stream: tuple(token for token in own if token != eos) for stream, own in said.items()}


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
    frame, speak = processor.frame_ids, processor.stream_end_ids + processor.assistant_header_ids
    longest = max(len(processor.stream_start_ids), 1) + len(frame) + len(speak) + max_reply + 1
    sequences = Sequences(model, processor, frames_of, num_frames, longest)
    in_stream = torch.zeros_like(num_frames, dtype=torch.bool)
    said: list[Said] = [[] for _ in num_frames]
    for index in range(int(num_frames.max())):
        live = num_frames > index
        sequences.append((live & in_stream).nonzero()[:, 0], [processor.frame_separator_token_id])
        sequences.append((live & ~in_stream).nonzero()[:, 0], processor.stream_start_ids)
        live = live.nonzero()[:, 0]
        sequences.append(live, frame)
        in_stream[live] = True
        silence = silence_probability(sequences.next_logits(live, index + 1), processor.frame_separator_token_id)
        speaking = live[speaks(silence, threshold)]
        in_stream[speaking] = False
        sequences.append(speaking, speak)
        replies = sequences.reply(speaking, index + 1, processor.tokenizer.eos_token_id, max_reply)
        for stream, reply in replies.items():
            said[stream].append((index, reply))
    return said
