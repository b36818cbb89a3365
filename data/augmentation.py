"""Narrations made wrong on purpose, so that the model looks at the frames and not only at what it said before.

After VideoLLM-online (arXiv 2406.11816) and its released code, which alters one narration per conversation.
"""

import random
from dataclasses import dataclass
from typing import Any

from ..containers import IGNORE_INDEX
from ..conversation import Turn
from ..processing_videollm_mod import VideoLLMMoDProcessor
from .turns import check_turns

KINDS = ("shift", "replace", "remove")


@dataclass
class ReplyAugmentation:
    """
    Alters one narration in some of the examples; never the last one, since nothing depends on it:

    - `"shift"`: it comes one frame late. Whether to speak is not learned at the frame where it belongs, nor at the one
      where it now stands. The narration itself is learned, since it is true of the frames before it.
    - `"replace"`: another narration of the stream takes its place. It is not learned, nor is the silence after it.
    - `"remove"`: the stream continues without it. Whether to speak is not learned from the frame where it belongs up
      to the next turn.

    Frames are not changed. The draws depend only on `seed`, `epoch` and the tokens of the example, so a resumed run
    and any number of processes draw the same. Set `epoch` to draw anew.

    Args:
        processor (`VideoLLMMoDProcessor`): the one that made the examples.
        probability (`float`): share of examples that are altered, in [0, 1].
        seed, epoch (`int`).

    Raises:
        `ValueError`: for a probability out of range.
    """

    processor: VideoLLMMoDProcessor
    probability: float = 1.0
    seed: int = 0
    epoch: int = 0

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"`probability` must be in [0, 1], got {self.probability!r}")

    def __call__(self, example: dict) -> dict:
        """The example, with `input_ids`, `labels` and `turns` altered or as they are.

        Raises:
            `ValueError`: if it has no `turns`.
        """
        check_turns(example)
        input_ids, labels, turns = (example[name] for name in ("input_ids", "labels", "turns"))
        rng = random.Random(f"{self.seed}/{self.epoch}/{','.join(map(str, input_ids))}")
        if rng.random() >= self.probability:
            return example
        found = narrations(turns, labels)
        options = [
            (kind, index)
            for index in found[:-1]
            for kind in KINDS
            if kind != "shift" or len(turns[index + 1].frames) > 1
        ]
        if len({tuple(input_ids[turns[i].start : turns[i].stop]) for i in found}) < 2:
            options = [(kind, index) for kind, index in options if kind != "replace"]
        return self.alter(example, *rng.choice(options), rng) if options else example

    def alter(self, example: dict, kind: str, index: int, rng: random.Random) -> dict:
        """Alter the narration that is turn `index` of an example."""
        input_ids, labels, turns = (example[name] for name in ("input_ids", "labels", "turns"))
        before, reply, after = turns[index - 1 : index + 2]
        first, second = self.decisions(before, labels), self.decisions(after, labels)
        end = input_ids[after.frames.stop - 1 : after.stop]
        said = cut_out(example, reply)
        if kind == "shift":
            parts = [
                self.stream([*first[:-1], False, False], self.processor.stream_end_ids),
                said,
                self.stream(second[1:], end),
            ]
        elif kind == "replace":
            others = {tuple(input_ids[turns[i].start : turns[i].stop]) for i in narrations(turns, labels)}
            other = list(rng.choice(sorted(others - {tuple(said[0])})))
            parts = [
                cut_out(example, before),
                (other, [IGNORE_INDEX] * len(other), Turn("assistant", 0, len(other))),
                self.stream([False] * len(second), end),
            ]
        else:
            parts = [self.stream([*first[:-1], False, *[False] * len(second)], end)]
        ids, learned, placed = input_ids[: before.start], labels[: before.start], turns[: index - 1]
        for part_ids, part_labels, turn in parts:
            placed = [*placed, turn.moved(len(ids))]
            ids, learned = ids + part_ids, learned + part_labels
        placed += [turn.moved(len(ids) - after.stop) for turn in turns[index + 2 :]]
        ids, learned = ids + input_ids[after.stop :], learned + labels[after.stop :]
        return {**example, "input_ids": ids, "labels": learned, "turns": placed}

    def decisions(self, turn: Turn, labels: list[int]) -> list[bool]:
        """For each frame of a stream, whether the token after it is learned."""
        places = [start + self.processor.num_frame_tokens for start in turn.frames]
        return [place < turn.stop and labels[place] != IGNORE_INDEX for place in places]

    def stream(self, learned: list[bool], end: list[int]) -> tuple[list[int], list[int], Turn]:
        """Tokens, labels and turn of a stream with as many frames as `learned`, which says whether the token after
        each is learned, and with the tokens `end` after the last."""
        processor: Any = self.processor
        ids: list[int] = []
        labels: list[int] = []
        for index, learn in enumerate(learned):
            after = [processor.frame_separator_token_id] if index + 1 < len(learned) else end
            piece = (processor.stream_start_ids if index == 0 else []) + processor.frame_ids
            ids += piece + after
            labels += [IGNORE_INDEX] * len(piece)
            labels += [token if learn and place == 0 else IGNORE_INDEX for place, token in enumerate(after)]
        first, step = len(processor.stream_start_ids), processor.num_frame_tokens + 1
        return ids, labels, Turn("stream", 0, len(ids), range(first, first + len(learned) * step, step))


def cut_out(example: dict, turn: Turn) -> tuple[list[int], list[int], Turn]:
    """Tokens and labels of a turn, and the turn as it stands in them."""
    span = slice(turn.start, turn.stop)
    return example["input_ids"][span], example["labels"][span], turn.moved(-turn.start)


def narrations(turns: list[Turn], labels: list[int]) -> list[int]:
    """Indices of the learned replies that stand between two streams."""
    return [
        index
        for index in range(1, len(turns) - 1)
        if [turn.role for turn in turns[index - 1 : index + 2]] == ["stream", "assistant", "stream"]
        and labels[turns[index].start] != IGNORE_INDEX
    ]
