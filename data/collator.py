"""The collator: examples become a batch whose rows are padded on the left, or packed."""

from dataclasses import dataclass
from typing import Any

import torch

from ..containers import IGNORE_INDEX, check_count
from .augmentation import ReplyAugmentation
from .turns import check_turns, clip

FRAMES = ("frames", "pixel_values_videos", "video_features")


@dataclass
class StreamCollator:
    """
    An example is `{"input_ids": list[int], "labels": list[int], "turns": list[Turn]}` with its frames, which are one
    of `"frames"` (uint8 `[F, 3, H, W]`, preprocessed on the device by `training.StreamTrainer`),
    `"pixel_values_videos"` or `"video_features"`. `turns` are needed only with `max_tokens` or `augmentation`. If
    frames repeat, `"frame_index"` (int64 `[F]`) maps each frame of the stream to one of the example's `"frames"`.

    The batch holds `input_ids`, `attention_mask` and `labels`, int64 `[B, T]`, and the frames of all rows in row
    order. With `packing`, `position_ids` replace `attention_mask`: they restart at 0 with each sequence, which is how
    the model tells the sequences of a row apart.

    Args:
        pad_token_id (`int`).
        max_tokens (`int`, *optional*): maximum number of tokens in a row. Longer examples are truncated at the end,
            at whole turns and whole frames (`turns.clip`). `load_streams` with the same `max_tokens` makes none.
        packing (`bool`): put several examples into a row. With `max_tokens` they are packed first fit, the longest
            first; without it they all go into one row.
        augmentation (`ReplyAugmentation`, *optional*): alters narrations before examples are truncated.

    Raises:
        `ValueError`: if `max_tokens` is not a positive integer, or too small for an example.
    """

    pad_token_id: int
    max_tokens: int | None = None
    packing: bool = False
    augmentation: ReplyAugmentation | None = None

    def __post_init__(self):
        if self.max_tokens is not None:
            check_count("`max_tokens`", self.max_tokens)

    def __call__(self, examples: list[dict]) -> dict[str, Any]:
        return self.collate([self.prepare(example) for example in examples])

    def collate(self, examples: list[dict]) -> dict[str, Any]:
        """The batch of examples that are prepared."""
        rows = self.group_rows(examples)
        batch = self.pack(rows) if self.packing else self.pad(rows)
        examples = [example for row in rows for example in row]
        for name in FRAMES:
            if name in examples[0]:
                batch[name] = torch.cat([example[name] for example in examples])
        if "frame_index" in examples[0]:
            first, indices = 0, []
            for example in examples:
                indices.append(example["frame_index"] + first)
                first += len(example["frames"])
            batch["frame_index"] = torch.cat(indices)
        return batch

    def prepare(self, example: dict) -> dict:
        """A copy of an example, augmented and truncated."""
        example = {**example, "input_ids": list(example["input_ids"]), "labels": list(example["labels"])}
        if self.augmentation is not None:
            example = self.augmentation(example)
        if self.max_tokens is not None and len(example["input_ids"]) > self.max_tokens:
            check_turns(example)
            tokens, num_frames = clip(example["turns"], self.max_tokens)
            example |= {name: example[name][:tokens] for name in ("input_ids", "labels")}
            if "frame_index" in example:
                used, example["frame_index"] = example["frame_index"][:num_frames].unique(return_inverse=True)
                example["frames"] = example["frames"][used]
            else:
                example |= {name: example[name][:num_frames] for name in FRAMES if name in example}
        # nothing predicts the first token of an example, but in a packed row the previous example precedes it
        example["labels"][:1] = [IGNORE_INDEX] * len(example["labels"][:1])
        return example

    def group_rows(self, examples: list[dict]) -> list[list[dict]]:
        """The examples of each row, packed first fit with the longest first."""
        if not self.packing:
            return [[example] for example in examples]
        if self.max_tokens is None:
            return [examples]
        rows: list[list[dict]] = []
        left: list[int] = []  # free tokens of each row
        for example in sorted(examples, key=lambda example: len(example["input_ids"]), reverse=True):
            length = len(example["input_ids"])
            place = next((index for index, free in enumerate(left) if length <= free), len(rows))
            if place == len(rows):
                rows.append([])
                left.append(self.max_tokens)
            rows[place].append(example)
            left[place] -= length
        return rows

    def pad(self, rows: list[list[dict]]) -> dict[str, torch.Tensor]:
        length = max(len(example["input_ids"]) for (example,) in rows)

        def left_pad(values: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([[value] * (length - len(row)) + row for row in values])

        return {
            "input_ids": left_pad([example["input_ids"] for (example,) in rows], self.pad_token_id),
            "attention_mask": left_pad([[1] * len(example["input_ids"]) for (example,) in rows], 0),
            "labels": left_pad([example["labels"] for (example,) in rows], IGNORE_INDEX),
        }

    def pack(self, rows: list[list[dict]]) -> dict[str, torch.Tensor]:
        """Padding is on the right, as one more sequence of the row."""
        length = max(sum(len(example["input_ids"]) for example in row) for row in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
        for row in rows:
            padding = length - sum(len(example["input_ids"]) for example in row)
            lengths = [*(len(example["input_ids"]) for example in row), padding]
            ids = [token for example in row for token in example["input_ids"]]
            labels = [label for example in row for label in example["labels"]]
            batch["input_ids"].append(ids + [self.pad_token_id] * padding)
            batch["labels"].append(labels + [IGNORE_INDEX] * padding)
            batch["position_ids"].append([position for count in lengths for position in range(count)])
        return {name: torch.tensor(values) for name, values in batch.items()}
