"""When the model speaks, and the session that feeds it a stream: frames in, events out.

After each frame the model says how probable silence is; below a threshold it speaks. What it has said and what it was
asked is part of the stream from then on.

Shapes: F frames, H and W pixels, N vision tokens per frame, Dv hidden size of the vision tower, V vocabulary.
"""

import math
from dataclasses import dataclass
from numbers import Real

import torch

from .cache_videollm_mod import MoDCache

FRAMES_AT_ONCE = 16  # frames of one push that go through the model together


def silence_probability(logits: torch.Tensor, separator_token_id: int) -> torch.Tensor:
    """Probability of the frame separator, which means to stay silent, as the token after a frame.

    Args:
        logits (`[..., V]`): of a frame's last token.
        separator_token_id (`int`): `config.frame_separator_token_id`.

    Returns:
        float32 `[...]`.
    """
    return logits.float().softmax(-1)[..., separator_token_id]


def speaks(silence: torch.Tensor, threshold: float) -> torch.Tensor:
    """bool `[...]`: speak unless silence is at least as probable as the threshold (VideoLLM-online, section 3.3)."""
    return silence < threshold


@dataclass(frozen=True)
class StreamEvent:
    """Something the model said.

    Args:
        time (`float`): of the last frame before it, in seconds.
        kind (`str`): `"narration"`, said by itself, or `"answer"`, said because it was asked.
        text (`str`): what it said.
        query (`str`, *optional*): the question or instruction that was current.
        silence_probability (`float`, *optional*): of that frame; None for answers.
    """

    time: float
    kind: str
    text: str
    query: str | None = None
    silence_probability: float | None = None


def check_text(name: str, text: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`{name}` must be a string that is not empty, got {text!r}")


class StreamingSession:
    """
    One stream watched by a model: push frames as they come, ask whenever you like.

    The sequence is the processor's: what is pushed, asked and said in a session is one conversation, and the session's
    cache is that of the same conversation in one pass.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        system_prompt (`str`, *optional*): what stands before everything.
        speak_threshold (`float`): in [0, 1]; the model speaks after a frame where silence is less probable than this.
        max_new_tokens (`int`): tokens of one narration or answer at most.

    Raises:
        `ValueError`: for an argument out of range.
    """

    def __init__(self, model, processor, system_prompt=None, speak_threshold=0.725, max_new_tokens=64):
        if isinstance(speak_threshold, bool) or not isinstance(speak_threshold, Real) or not 0 <= speak_threshold <= 1:
            raise ValueError(f"`speak_threshold` must be in [0, 1], got {speak_threshold!r}")
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be a whole number of at least 1, got {max_new_tokens!r}")
        self.model, self.processor = model, processor
        self.speak_threshold, self.max_new_tokens = speak_threshold, max_new_tokens
        self.cache = MoDCache(model.config)
        self.query: str | None = None
        self.time: float | None = None  # seconds, of the last frame
        self._in_stream = False
        bos = processor.tokenizer.bos_token_id
        self._pending = [] if bos is None else [bos]  # ids that the model has yet to read
        if system_prompt is not None:
            check_text("system_prompt", system_prompt)
            self._pending += processor.encode_text(system_prompt, prefix="") + processor.system_end_ids

    def instruct(self, text: str) -> None:
        """Put a user's turn into the stream that asks for no answer now, such as what to narrate."""
        check_text("text", text)
        self._close_stream()
        self._pending += self.processor.user_header_ids + self.processor.encode_text(text)
        self.query = text

    def ask(self, question: str) -> list[StreamEvent]:
        """Ask after the last frame, and get the answer; its time is 0 where there was no frame yet."""
        self.instruct(question)
        return [StreamEvent(self.time or 0.0, "answer", self._reply(), question)]

    @torch.no_grad()
    def push(self, frames, times: list[float] | None = None) -> list[StreamEvent]:
        """Let the model see frames, and speak after any of them.

        Args:
            frames (uint8 `[F, H, W, 3]` or `[F, 3, H, W]`): array or tensor.
            times (`list[float]`, *optional*): of the frames, in seconds; from the last one on at the processor's fps
                if omitted.

        Returns:
            What was said, in order.

        Raises:
            `ValueError`: for frames of another shape, or times that do not fit them or go back.
        """
        video_processor = self.processor.video_processor
        frames = video_processor.load_video(frames, do_sample_frames=False).to(self.model.device)
        times = self._check_times(times, len(frames))
        pixels = video_processor(frames, return_tensors="pt", input_data_format="channels_first")[
            "pixel_values_videos"
        ]
        features = self.model.encode_frames(pixels).pooler_output
        events, done = [], 0
        while done < len(frames):
            silence = self._watch(features[done : done + FRAMES_AT_ONCE])
            spoken = speaks(silence, self.speak_threshold).nonzero().flatten().tolist()
            watched = spoken[0] + 1 if spoken else len(silence)
            self._forget_frames(len(silence) - watched)
            done += watched
            self.time = times[done - 1]
            if spoken:
                self._close_stream()
                events.append(
                    StreamEvent(self.time, "narration", self._reply(), self.query, float(silence[spoken[0]]))
                )
        return events

    def _check_times(self, times, num_frames: int) -> list[float]:
        if times is None:
            step = 1 / self.processor.video_processor.fps
            first = 0.0 if self.time is None else self.time + step
            return [first + step * index for index in range(num_frames)]
        times = [float(time) for time in times]
        if len(times) != num_frames:
            raise ValueError(f"`times` must hold one time a frame, got {len(times)} for {num_frames} frames")
        before = [-math.inf if self.time is None else self.time, *times]
        for index, (earlier, time) in enumerate(zip(before, times, strict=False)):
            if not math.isfinite(time) or time < earlier:
                raise ValueError(
                    f"`times` must be finite seconds that do not go back, got {time} at index {index} after {earlier}"
                )
        return times

    def _watch(self, features: torch.Tensor) -> torch.Tensor:
        """Feed frames `[F, N, Dv]` with the separators between them; the probability of silence after each, `[F]`."""
        processor, frame_ids = self.processor, self.processor.frame_ids
        opening = [processor.frame_separator_token_id] if self._in_stream else processor.stream_start_ids
        ids = self._pending + opening + frame_ids
        for _ in range(1, len(features)):
            ids += [processor.frame_separator_token_id, *frame_ids]
        last = len(ids) - 1 - (len(frame_ids) + 1) * torch.arange(len(features) - 1, -1, -1, device=features.device)
        logits = self._feed(ids, video_features=features, logits_to_keep=last)
        self._pending, self._in_stream = [], True
        return silence_probability(logits, processor.frame_separator_token_id)

    def _forget_frames(self, count: int) -> None:
        """Take back the last frames, and the separators before them."""
        if count:
            self.cache.rollback(self.cache.next_position - count * (len(self.processor.frame_ids) + 1))

    def _close_stream(self) -> None:
        if self._in_stream:
            self._pending += self.processor.stream_end_ids
        self._in_stream = False

    @torch.no_grad()
    def _reply(self) -> str:
        """Let the model speak, one most probable token after the other, until it ends its turn."""
        eos = self.processor.tokenizer.eos_token_id
        ids, said = self._pending + self.processor.assistant_header_ids, []
        while True:
            logits = self._feed(ids, logits_to_keep=1)[-1]
            logits[self.processor.video_token_id] = -torch.inf
            token = int(logits.argmax())
            if token == eos or len(said) == self.max_new_tokens:
                break
            said.append(token)
            ids = [token]
        self._pending = [eos]  # a reply that was cut off ends here too
        return self.processor.decode(said, skip_special_tokens=True).strip()

    def _feed(self, ids: list[int], **inputs) -> torch.Tensor:
        """Logits `[T, V]` of tokens that follow all that was fed before."""
        input_ids = torch.tensor([ids], device=self.model.device)
        return self.model(input_ids=input_ids, past_key_values=self.cache, **inputs).logits[0]


__all__ = ["StreamEvent", "StreamingSession", "silence_probability", "speaks"]
