"""The loss of what is said, with a bounded memory and without, and the cost of a step."""

import numpy as np
import pytest
import torch
from small_data import small_model

from videollm_mod.benchmarks import carried_cost, carried_loss
from videollm_mod.data.turns import encode_example
from videollm_mod.data.world import conversation, world_stream
from videollm_mod.training.carried import Carrying


@pytest.fixture(scope="module")
def small():
    return small_model(0)


@pytest.fixture(scope="module")
def example(small):
    model, processor = small
    stream = world_stream(3, "basic")
    found = encode_example(conversation(stream, 2.0, 3), processor)
    frames = torch.from_numpy(stream.drawn(32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        pixels = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
        return {**found, "video_features": model.encode_frames(pixels).pooler_output[stream.shown(2.0)]}


def test_each_label_is_of_one_kind(small, example):
    labels = [i for i, label in enumerate(example["labels"]) if label >= 0]
    assert sorted(i for spans in carried_loss.kinds_of(example).values() for span in spans for i in span) == labels
    losses, _ = carried_loss.scores(*small, example, bounded=False)
    given = {"input_ids": torch.tensor([example["input_ids"]]), "labels": torch.tensor([example["labels"]])}
    expected = small[0](**given, video_features=example["video_features"]).loss
    assert losses[np.array(labels) - 1].mean() == pytest.approx(expected.item(), rel=1e-4)


def test_a_bound_changes_the_loss_when_it_is_reached_and_not_before(small, example, monkeypatch):
    everything, _ = carried_loss.scores(*small, example, bounded=False)
    for frames, same in ((100, True), (5, False)):
        monkeypatch.setattr(carried_loss, "BOUND", Carrying(frames))
        bounded, _ = carried_loss.scores(*small, example, bounded=True)
        assert np.allclose(bounded[:60], everything[:60], rtol=1e-3, atol=1e-4)
        assert np.allclose(bounded, everything, rtol=1e-3, atol=1e-4) == same


def test_a_step_takes_as_many_windows_as_the_bound_asks_for(small, example, monkeypatch):
    model, processor = small
    model.train()
    assert carried_cost.take_step(model, processor, "whole", example) == 1
    whole = model.lm_head.weight.grad.clone()
    for frames, fits in ((100, True), (5, False)):
        monkeypatch.setattr(carried_cost, "BOUND", Carrying(frames))
        model.zero_grad()
        assert (carried_cost.take_step(model, processor, "carried", example) == 1) == fits
        assert torch.allclose(model.lm_head.weight.grad, whole, rtol=1e-3, atol=1e-5) == fits
    model.eval()
