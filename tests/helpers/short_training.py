"""Random streams with labels, and short Trainer runs on them, for several test files."""

import random

import torch
from tiny_models import END, EOS, SEPARATOR, VIDEO, random_batch
from transformers import Trainer, TrainingArguments


def stream_labels(batch: dict, seed: int) -> torch.Tensor:
    """Labels of the token after each frame and of some words; -100 elsewhere."""
    ids, rng = batch["input_ids"], random.Random(seed)
    labels = torch.full_like(ids, -100)
    for row, column in batch["attention_mask"].nonzero().tolist():
        token = int(ids[row, column])
        after_frame = column and int(ids[row, column - 1]) == VIDEO and token in (SEPARATOR, END)
        if after_frame or (token not in (VIDEO, SEPARATOR, END) and rng.random() < 0.5):
            labels[row, column] = token
    labels[:, 0] = -100  # nothing predicts the first token
    return labels


class Streams(torch.utils.data.Dataset):
    def __init__(self, model, count: int = 8, pixels: bool = False):
        self.rows = []
        for seed in range(count):
            batch, (row,) = random_batch(model, seed, [1 + seed % 3], pixels)
            self.rows.append({**row, "labels": stream_labels(batch, seed)})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def collate(rows: list[dict]) -> dict:
    """Pad on the left; concatenate frames in row order."""
    length = max(row["input_ids"].shape[1] for row in rows)
    pad = lambda x, value: torch.nn.functional.pad(x, (length - x.shape[1], 0), value=value)  # noqa: E731
    frames = "pixel_values_videos" if "pixel_values_videos" in rows[0] else "video_features"
    return {
        "input_ids": torch.cat([pad(row["input_ids"], EOS) for row in rows]),
        "attention_mask": torch.cat([pad(torch.ones_like(row["input_ids"]), 0) for row in rows]),
        "labels": torch.cat([pad(row["labels"], -100) for row in rows]),
        frames: torch.cat([row[frames] for row in rows]),
    }


def fit(
    tmp_path, model, kind: type[Trainer] = Trainer, given: dict | None = None, pixels: bool = False, **options
) -> Trainer:
    """Train `model` on `Streams` with a Trainer class, which gets `given` as additional arguments."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        **{"logging_steps": 1, **options},
    )
    model.train()
    streams = Streams(model, pixels=pixels)
    trainer = kind(model=model, args=arguments, train_dataset=streams, data_collator=collate, **(given or {}))
    trainer.train()
    return trainer


def check_accumulation(tmp_path, make_model, kind: type[Trainer] = Trainer, **options) -> None:
    """Steps of one batch of four, and of four batches of one accumulated, have the same losses and end in the same
    weights, which have moved. `make_model()` gives the same model each time."""
    runs = []
    for size, accumulation in [(4, 1), (1, 4)]:
        model = make_model()
        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 3}
        trainer = fit(tmp_path, model, kind, learning_rate=1e-2, optim="sgd", **steps, **options)
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        runs.append((torch.tensor(losses), {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(*(losses for losses, _ in runs), rtol=1e-5, atol=0)
    start = {n: p.detach() for n, p in make_model().named_parameters()}
    for name, value in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: n + m)
    assert max((value - start[name]).abs().max() for name, value in runs[0][1].items()) > 1e-3
