"""From examples to a batch: rows padded on the left, frames of all rows one after the other."""

from dataclasses import dataclass

import torch


@dataclass
class StreamCollator:
    """
    An example is `{"input_ids": list[int], "labels": list[int]}` with its frames, one of `"frames"` (uint8
    `[F, 3, H, W]`, preprocessed on the device by `training.StreamTrainer`), `"pixel_values_videos"` or
    `"video_features"`. Where frames repeat, `"frame_index"` (int64 `[F]`) says which of the example's `"frames"` each
    frame of the stream is. The batch holds `input_ids`, `attention_mask` and `labels`, int64 `[B, T]`, and the frames
    of all rows in row order.
    """

    pad_token_id: int

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        length = max(len(example["input_ids"]) for example in examples)

        def padded(rows: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([[value] * (length - len(row)) + list(row) for row in rows])

        batch = {
            "input_ids": padded([example["input_ids"] for example in examples], self.pad_token_id),
            "attention_mask": padded([[1] * len(example["input_ids"]) for example in examples], 0),
            "labels": padded([example["labels"] for example in examples], -100),
        }
        for name in ("frames", "pixel_values_videos", "video_features"):
            if name in examples[0]:
                batch[name] = torch.cat([example[name] for example in examples])
        if "frame_index" in examples[0]:
            first, indices = 0, []
            for example in examples:
                indices.append(example["frame_index"] + first)
                first += len(example["frames"])
            batch["frame_index"] = torch.cat(indices)
        return batch
