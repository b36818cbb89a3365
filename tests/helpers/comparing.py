"""Compare results of different kernels: floats within a stated tolerance, everything else exactly.

Sums are rounded differently in another batch, in pieces, with other threads and on another processor. A matrix product
then differs by a few units in the last place, 1e-7 of its largest terms in float32, and the layers of the models here
turn this into up to 2e-5 (measured with 1e-6 of noise on every product). Real faults change results far more: one
wrong word in the prompt by 8 % of a probability, one wrong position by 30 % of the largest logit.
"""

from dataclasses import is_dataclass

import pytest
import torch

TOLERANCE = 1e-4  # of the largest value of a tensor, since what cancels out leaves the rounding of what there was
PROBABILITY = 1e-3  # of a probability: it moves by as much as its logit, and logits are some tens


def assert_near(found, expected, tolerance: float = TOLERANCE, name: str = "value") -> None:
    """Tensors, numbers, and what lists, dicts and dataclasses hold of them: equal, or near where it is a float.

    Args:
        tolerance (`float`): the largest difference, as a share of the largest finite value of the expected tensor,
            or of the expected number.
    """
    if isinstance(expected, torch.Tensor) and expected.is_floating_point():
        finite = expected.detach()[expected.isfinite()].abs()
        most = tolerance * finite.max().item() if finite.numel() else 0.0
        torch.testing.assert_close(
            found, expected, atol=most, rtol=0, equal_nan=True, msg=lambda text: f"{name}: {text}"
        )
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), f"{name}: {found} is not {expected}"
    elif type(found) is not type(expected):
        pytest.fail(f"{name}: {found!r} is not {expected!r}")
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            assert_near(found[key], value, tolerance, f"{name}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), f"{name}: {found!r} is not {expected!r}"
        for index, (own, value) in enumerate(zip(found, expected, strict=True)):
            assert_near(own, value, tolerance, f"{name}[{index}]")
    elif is_dataclass(expected):
        assert_near(vars(found), vars(expected), tolerance, name)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, nan_ok=True), name
    else:
        assert found == expected, name


def assert_near_gradients(found: dict, expected: dict, tolerance: float = TOLERANCE) -> None:
    """Gradients by name, each within a share of its largest value, and of a hundredth of that of the largest of all: a
    small one, such as of a router whose gate is saturated, holds the rounding of the others."""
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        most = tolerance * (gradient.abs().max().item() + largest / 100)
        torch.testing.assert_close(
            found[name], gradient, atol=most, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_near_weights(found: dict, expected: dict) -> None:
    """Weights by name, of runs of few steps, within a fiftieth of one step of 1e-3; but for biases of keys. Those add
    the same to all scores of a query, so that their gradient is rounding alone, and Adam makes whole steps of it."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(
                found[name], value, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


def assert_same_events(events, expected, probability: float = PROBABILITY) -> None:
    """Events have the same times, kinds, words and queries, and probabilities of silence within a share of them."""
    told = [[(event.time, event.kind, event.text, event.query) for event in some] for some in (events, expected)]
    assert told[0] == told[1]
    silence = [[event.silence_probability for event in some] for some in (events, expected)]
    assert_near(*silence, probability, "silence_probability")


def assert_same_cache(cache, *others, near=assert_near) -> None:
    """Caches hold the same tokens at the same positions, and their keys and values are `near`."""
    for other in others:
        assert cache.seen_tokens == other.seen_tokens
        for name in ("next_position", "num_frames", "after_frame", "frame_ends"):
            assert torch.equal(getattr(cache, name), getattr(other, name)), name
    for layer, *same in zip(cache.layers, *(other.layers for other in others), strict=True):
        assert all(layer.get_seq_length() == other.get_seq_length() for other in same)
        if layer.get_seq_length():
            assert all(torch.equal(layer.positions, other.positions) for other in same)
            near(layer.keys, *(other.keys for other in same))
            near(layer.values, *(other.values for other in same))
