"""Narrations made wrong on purpose, so that the model looks at the frames and not only at what it said before.

After VideoLLM-online (arXiv 2406.11816) and its released code, which alters one narration per conversation.
"""

import random
from dataclasses import dataclass

from ..containers import IGNORE_INDEX
from ..conversation import Turn
from ..processing_videollm_mod import VideoLLMMoDProcessor
from .turns import check_turns

Part = tuple[list[int], list[int]]  # tokens and labels
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
        between = self.processor.between_frames_ids
        to_decision = self.processor.num_frame_tokens + self.processor.decision_offset  # from the start of a frame
        decision = before.frames[-1] + to_decision  # the first token after the last frame before the narration
        begin = after.start + len(self.processor.start_stream_ids)  # of the first frame after it

        def part(start: int, stop: int, learn: bool = True) -> Part:
            return input_ids[start:stop], labels[start:stop] if learn else [IGNORE_INDEX] * (stop - start)

        separator = (between, [IGNORE_INDEX] * len(between))
        first, end = part(before.start, decision), part(decision, before.stop, learn=False)
        said, follows = part(reply.start, reply.stop), part(after.stop, len(labels))
        decides = [] if end[0] else [IGNORE_INDEX]  # in a family's sequence the reply begins with the decision
        parts: list[tuple[str, list[Part]]]
        if kind == "shift":
            moved = after.frames[0] + to_decision
            said = (said[0], decides + said[1][len(decides) :])
            rest = part(moved + len(between), after.stop)
            if not between:  # then the next frame begins with the decision
                rest = (rest[0], [IGNORE_INDEX, *rest[1][1:]])
            parts = [
                ("stream", [first, separator, part(begin, moved, learn=False), end]),
                ("assistant", [said]),
                ("stream", [part(after.start, begin), rest]),
            ]
        else:
            if not input_ids[after.frames[-1] + to_decision : after.stop]:
                follows = (follows[0], decides + follows[1][len(decides) :])
            if kind == "replace":
                others = {tuple(input_ids[turns[i].start : turns[i].stop]) for i in narrations(turns, labels)}
                other = list(rng.choice(sorted(others - {tuple(said[0])})))
                decided = [IGNORE_INDEX] * len(other)
                if decides and said[1][0] != IGNORE_INDEX:
                    decided[0] = other[0]
                parts = [
                    ("stream", [part(before.start, before.stop)]),
                    ("assistant", [(other, decided)]),
                    ("stream", [part(after.start, after.stop, learn=False)]),
                ]
            else:
                parts = [("stream", [first, separator, part(begin, after.stop, learn=False)])]
        ids, learned, placed = input_ids[: before.start], labels[: before.start], turns[: index - 1]
        for role, pieces in parts:
            start = len(ids)
            for own_ids, own_labels in pieces:
                ids, learned = ids + own_ids, learned + own_labels
            placed = [*placed, Turn(role, start, len(ids), self.frames_in(ids, start, like=before.frames))]
        placed += [turn.moved(len(ids) - after.stop) for turn in turns[index + 2 :]]
        return {**example, "input_ids": ids + follows[0], "labels": learned + follows[1], "turns": placed}

    def frames_in(self, ids: list[int], start: int, like: range | tuple[int, ...]) -> range | tuple[int, ...]:
        """Where the frames of `ids` begin from `start` on; `like`: as in `Turn`."""
        video, count = self.processor.video_token_id, self.processor.num_frame_tokens
        found = [place for place in range(start, len(ids)) if ids[place] == video][::count]
        if isinstance(like, tuple):
            return tuple(found)
        return range(found[0], found[-1] + like.step, like.step) if found else range(0)


def narrations(turns: list[Turn], labels: list[int]) -> list[int]:
    """Indices of the learned replies that stand between two streams."""
    return [
        index
        for index in range(1, len(turns) - 1)
        if [turn.role for turn in turns[index - 1 : index + 2]] == ["stream", "assistant", "stream"]
        and any(label != IGNORE_INDEX for label in labels[turns[index].start + 1 : turns[index].stop])
    ]
