"""Answers to recorded conversations with videos and images, several at a time, after the processor's own prompts.

Shapes: F frames, H and W pixels, N vision tokens per frame, Dv hidden size of the vision tower.
"""

import math
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from ..containers import check_count, check_fps, is_number, source_name, video_duration
from ..decoding import iter_video_frames, measured_duration
from .encoding import BATCH_SIZE

MAX_FRAMES = 256  # of all videos of a conversation, if not said otherwise
AROUND_TEXT = 16  # tokens that a prompt puts around a message, at most
SHARE_OF_ANSWER = 8  # an answer may take at least this part of the context, however many frames there are


@dataclass
class Answered:
    """An answer as text, and the tokens of the prompt and of the answer."""

    text: str
    prompt_tokens: int
    tokens: int


@dataclass
class Clip:
    """A part of a video, in seconds after its start. Frames at `start` and at `end` belong to it."""

    source: Any
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        given = (self.start, 0.0 if self.end is None else self.end)
        if not all(is_number(value) and math.isfinite(value) and value >= 0 for value in given):
            raise ValueError(f"`start` and `end` of a clip must be seconds from 0 on, got {self.start} and {self.end}")
        if self.end is not None and self.end < self.start:
            raise ValueError(f"a clip must end after its start, got {self.start} to {self.end} s")

    def frames(self, fps: float, max_frames: int) -> tuple[np.ndarray, float]:
        """Its frames, uint8 `[F, H, W, 3]`, and their rate: `fps`, or less if there would be more than `max_frames`.

        Raises:
            `OSError`, `ValueError`: as `iter_video_frames`, and if no frame is in the clip.
        """
        end = math.inf if self.end is None else self.end
        if (end - self.start) * fps >= max_frames:
            end = min(end, video_duration(self.source) or measured_duration(self.source))
            fps = min(fps, max_frames / max(end - self.start, 1e-6))
        first, last = math.ceil(self.start * fps - 1e-6), end + 1e-6
        images = []
        for image, _ in takewhile(lambda frame: frame[1] <= last, iter_video_frames(self.source, fps, first)):
            images.append(image)
            if len(images) == max_frames:
                break
        if not images:
            raise ValueError(f"no frame of {source_name(self.source)} is between {self.start:g} and {end:g} s")
        return np.stack(images), fps


class Recorded:
    """
    Answers conversations.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        fps (`float`, *optional*): frames per second of videos; the processor's by default.
        max_frames (`int`): of all videos of a conversation. Videos are sampled at a lower rate where these, or the
            model's context, would not hold their frames.

    Raises:
        `ValueError`: for a number out of range.
    """

    def __init__(self, model, processor, fps: float | None = None, max_frames: int = MAX_FRAMES):
        self.model, self.processor = model, processor
        self.fps = processor.video_processor.fps if fps is None else fps
        check_fps("`fps`", self.fps)
        check_count("`max_num_frames`", max_frames)
        self.max_frames = max_frames
        self.context = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def answer(
        self, conversations: list[list[dict]], max_new_tokens: int, until: tuple[str, ...] = (), **options
    ) -> list[Answered]:
        """
        Args:
            conversations: messages as for `apply_chat_template`, whose content is a list. A video block holds a
                `Clip`, or frames that were sampled already.
            max_new_tokens (`int`): of one answer; fewer if the context ends before.
            until (`tuple[str, ...]`): texts before the first of which an answer ends.
            options: of `generate`; greedy without them.

        Raises:
            `ValueError`, `OSError`: for messages or media that cannot be used, or a prompt longer than the context.
        """
        metadata: list[dict] = []
        loaded = [self._load(messages, max_new_tokens, metadata) for messages in conversations]
        inputs = self.processor.apply_chat_template(
            loaded,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            **({"video_metadata": metadata} if metadata else {}),
        ).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        if length >= self.context:
            raise ValueError(
                f"a prompt has {length} tokens, and the model's context is {self.context}: set a smaller "
                "`max_num_frames`, or give a shorter text"
            )
        pixels = inputs.pop("pixel_values_videos", None)
        if pixels is not None:  # in parts, since a vision tower needs much memory for many frames
            parts = [self.model.encode_frames(part).pooler_output for part in pixels.split(BATCH_SIZE)]
            inputs["video_features"] = torch.cat(parts)
        output = self.model.generate(
            **inputs,
            max_new_tokens=min(max_new_tokens, self.context - length),
            eos_token_id=self.processor.reply_stop_id,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            **{"do_sample": False, **options},
        )
        counts = inputs["attention_mask"].sum(1).tolist()
        return [self._answered(ids, until, count) for ids, count in zip(output[:, length:], counts, strict=True)]

    def _answered(self, ids: torch.Tensor, until: tuple[str, ...], prompt_tokens: int) -> Answered:
        text = self.processor.decode(ids, skip_special_tokens=True).strip()
        for stop in until:
            text = text.partition(stop)[0]
        ends = (ids == self.processor.reply_stop_id).nonzero()
        return Answered(text.strip(), prompt_tokens, int(ends[0]) + 1 if len(ends) else len(ids))

    def _load(self, messages: list[dict], max_new_tokens: int, metadata: list[dict]) -> list[dict]:
        """The messages with frames in the place of clips, whose metadata is added to `metadata`."""
        blocks = [block for message in messages for block in message["content"]]
        videos, pictures = (sum(block["type"] == kind for block in blocks) for kind in ("video", "image"))
        text = sum(len(self.processor.encode_text(block["text"])) for block in blocks if block["type"] == "text")
        room = self.context - text - AROUND_TEXT * len(messages)
        room -= min(max_new_tokens, self.context // SHARE_OF_ANSWER)
        fitting = room // (self.processor.num_frame_tokens + self.processor.frame_text_tokens) - pictures
        share = max(1, min(self.max_frames, fitting) // max(1, videos))

        def load(block: dict) -> dict:
            if block["type"] != "video":
                return block
            frames, fps = block["video"], self.fps
            if isinstance(frames, Clip):
                frames, fps = frames.frames(fps, share)
            known = {"fps": fps, "frames_indices": list(range(len(frames))), "total_num_frames": len(frames)}
            metadata.append({**known, "duration": len(frames) / fps})
            return {**block, "video": frames}

        return [{**message, "content": [load(block) for block in message["content"]]} for message in messages]


__all__ = ["MAX_FRAMES", "Answered", "Clip", "Recorded"]
