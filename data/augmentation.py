"""Narrations made wrong on purpose, so that the model looks at the frames and not only at what it said before.

After VideoLLM-online (arXiv 2406.11816) and its released code, which alters one narration a conversation.
"""

import random
from dataclasses import dataclass

from .turns import REPLY, STREAM, Turn, read_turns

IGNORE_INDEX = -100
KINDS = ("shift", "replace", "remove")


@dataclass
class ReplyAugmentation:
    """
    Alters one narration in some of the examples, never the last one, on which nothing would depend any more:

    - `"shift"`: it comes one frame late. Whether to speak is not learned at the frame where it belongs and at the one
      where it now stands; the narration, true of what has been seen, is.
    - `"replace"`: another narration of the stream stands in its place. It is not learned, nor is the silence after it.
    - `"remove"`: the frames go on without it. Whether to speak is not learned from the frame where it belongs to the
      next turn.

    Frames stay as they are. What is drawn depends on `seed`, `epoch` and the example's tokens alone: the same in a
    resumed run and for any number of processes. Set `epoch` to draw anew.

    Args:
        processor (`VideoLLMMoDProcessor`): that made the examples.
        probability (`float`): share of examples that are altered, in [0, 1].
        seed, epoch (`int`).

    Raises:
        `ValueError`: for a probability out of range.
    """

    processor: object
    probability: float = 1.0
    seed: int = 0
    epoch: int = 0

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"`probability` must be in [0, 1], got {self.probability!r}")

    def __call__(self, input_ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """The tokens and labels of an example, altered or as they are."""
        rng = random.Random(f"{self.seed}/{self.epoch}/{','.join(map(str, input_ids))}")
        if rng.random() >= self.probability:
            return input_ids, labels
        turns = read_turns(input_ids, self.processor)
        options = [
            (kind, index)
            for index in narrations(turns, labels)[:-1]
            for kind in KINDS
            if kind != "shift" or turns[index + 1].num_frames > 1
        ]
        others = {tuple(input_ids[turns[i].start : turns[i].stop]) for i in narrations(turns, labels)}
        if len(others) < 2:
            options = [(kind, index) for kind, index in options if kind != "replace"]
        if not options:
            return input_ids, labels
        return self.alter(input_ids, labels, turns, *rng.choice(options), rng)

    def alter(
        self, input_ids: list[int], labels: list[int], turns: list[Turn], kind: str, index: int, rng: random.Random
    ) -> tuple[list[int], list[int]]:
        """Alter the narration that is `turns[index]`."""
        before, reply, after = turns[index - 1 : index + 2]
        head, tail = slice(0, before.start), slice(after.stop, None)
        said, said_labels = input_ids[reply.start : reply.stop], labels[reply.start : reply.stop]
        first, second = self.decisions(before, labels), self.decisions(after, labels)
        end = input_ids[after.stop - after.end : after.stop]
        if kind == "shift":
            parts = [
                self.stream([*first[:-1], False, False], self.processor.stream_end_ids),
                (said, said_labels),
                self.stream(second[1:], end),
            ]
        elif kind == "replace":
            others = {tuple(input_ids[turns[i].start : turns[i].stop]) for i in narrations(turns, labels)}
            other = rng.choice(sorted(others - {tuple(said)}))
            parts = [
                (input_ids[before.start : before.stop], labels[before.start : before.stop]),
                (list(other), [IGNORE_INDEX] * len(other)),
                self.stream([False] * len(second), end),
            ]
        else:
            parts = [self.stream([*first[:-1], False, *[False] * len(second)], end)]
        return (
            input_ids[head] + [token for ids, _ in parts for token in ids] + input_ids[tail],
            labels[head] + [label for _, row in parts for label in row] + labels[tail],
        )

    def decisions(self, turn: Turn, labels: list[int]) -> list[bool]:
        """Of each frame of a stream, whether the token after it is learned."""
        step = 1 + self.processor.num_frame_tokens
        first = turn.start + len(self.processor.stream_start_ids) + step - 1
        places = range(first, first + turn.num_frames * step, step)
        return [place < turn.stop and labels[place] != IGNORE_INDEX for place in places]

    def stream(self, learned: list[bool], end: list[int]) -> tuple[list[int], list[int]]:
        """Tokens and labels of a stream with as many frames as `learned`, which says what is learned after each, and
        with the tokens `end` after the last."""
        processor, ids, labels = self.processor, [], []
        for index, learn in enumerate(learned):
            after = [processor.frame_separator_token_id] if index + 1 < len(learned) else end
            piece = (processor.stream_start_ids if index == 0 else []) + processor.frame_ids
            ids += piece + after
            labels += [IGNORE_INDEX] * len(piece)
            labels += [token if learn and place == 0 else IGNORE_INDEX for place, token in enumerate(after)]
        return ids, labels


def narrations(turns: list[Turn], labels: list[int]) -> list[int]:
    """Indices of the learned replies that stand between two streams."""
    return [
        index
        for index in range(1, len(turns) - 1)
        if [turn.kind for turn in turns[index - 1 : index + 2]] == [STREAM, REPLY, STREAM]
        and labels[turns[index].start] != IGNORE_INDEX
    ]
