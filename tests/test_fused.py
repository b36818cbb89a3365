"""The fused operations of a training step equal plain torch, in the forward and the backward pass.

The code around the kernels is tested everywhere, with kernels written in torch; the kernels themselves on a GPU, or in
Triton's interpreter (`TRITON_INTERPRET=1`)."""

import os
from unittest import mock

import pytest
import torch
from gradients import assert_same, enable, loss_and_gradients, trainable
from tiny_models import ROUTINGS
from transformers.models.llama.modeling_llama import rotate_half

from videollm_mod import fused, routing
from videollm_mod.recomputing import CHOICES
from videollm_mod.training.adapters import LoraOptions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class TorchKernels:
    """`fused.Kernels` in torch."""

    @staticmethod
    def silu_product(gate, up):
        return gate * gate.sigmoid() * up

    @staticmethod
    def silu_gradients(gate, up, grad):
        sigmoid = gate.sigmoid()
        return grad * up * sigmoid * (1 + gate * (1 - sigmoid)), grad * gate * sigmoid

    @staticmethod
    def rotate(queries, keys, cos, sin, back=False):
        sin = -sin if back else sin
        return tuple(x * cos[:, :, None] + rotate_half(x) * sin[:, :, None] for x in (queries, keys))

    @staticmethod
    def scores(x, rows, weight, bias):
        return (x[rows].float() * weight).sum(-1) + bias

    @staticmethod
    def scatter_rows(tokens, rows, x):
        return tokens.index_copy(0, rows, x)

    @staticmethod
    def scatter(tokens, entered, processed, targets, numbers, factors):
        out, gated, held = tokens.clone(), numbers >= 0, targets >= 0
        made = processed.clone()
        of_y, of_x = factors[:2, numbers[gated], None]
        made[gated] = (of_y * processed[gated] + of_x * entered[gated]).to(made.dtype)
        out[targets[held]] = made[held]
        return out

    @staticmethod
    def scatter_gradients(grad, entered, kept, weight, targets, numbers, factors):
        gated, dy = numbers >= 0, (grad[targets.clamp(min=0)] * (targets >= 0)[:, None]).float()
        number, d_scores, dx = numbers[gated], torch.empty_like(factors[0]), torch.zeros_like(dy)
        of_y, of_x, slope_y, slope_x = factors[:, number, None]
        own = (dy[gated] * (slope_y * kept[number] + slope_x * entered[gated])).sum(1)
        d_scores[number] = own
        dx[gated] = of_x * dy[gated] + own[:, None] * weight
        dy[gated] = of_y * dy[gated]
        return dx.to(grad.dtype), dy.to(grad.dtype), d_scores


@pytest.fixture(params=["torch", "triton"])
def kernels(request, monkeypatch):
    """Has the fused operations use these kernels. Returns the names of called kernels, and a switch for them."""
    if request.param == "torch":
        own = TorchKernels
    else:
        if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("no GPU")
        pytest.importorskip("triton")
        own = fused.Kernels
    called = []

    class Counted:
        def __getattr__(self, name):
            called.append(name)
            return getattr(own, name)

    def use(active: bool = True) -> None:
        for module in (fused, routing):
            monkeypatch.setattr(module, "kernels_for", lambda *tensors: counted if active else None)

    counted = Counted()
    monkeypatch.setattr(fused, "_kernels", lambda: counted)
    use()
    return called, use


def compare(function, inputs, kernels, **tolerance) -> None:
    """Compare `function(*inputs)` and its gradients with and without kernels."""
    called, use = kernels
    made = []
    for active in (True, False):
        use(active)
        values = [value.detach().requires_grad_() for value in inputs]
        out = function(*values)
        torch.manual_seed(1)
        weights = [torch.randn_like(value) for value in out]
        made.append([*out, *torch.autograd.grad(out, values, weights)])
        assert bool(called) == active
        called.clear()
    for got, expected in zip(*made, strict=True):
        torch.testing.assert_close(got, expected, **tolerance)


TOLERANCES = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 4e-2}}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (2, 3, 1500)])
def test_silu_product(kernels, shape, dtype):
    torch.manual_seed(sum(shape))
    inputs = [torch.randn(shape, dtype=dtype, device=DEVICE) for _ in range(2)]
    compare(lambda gate, up: [fused.silu_product(gate, up)], inputs, kernels, **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("batch", "rows", "heads", "groups", "head_dim"), [(2, 2, 4, 2, 16), (2, 1, 3, 1, 24)])
def test_rotate(kernels, batch, rows, heads, groups, head_dim, dtype):
    torch.manual_seed(heads)
    angles = torch.randn(rows, 5, head_dim // 2, device=DEVICE).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    inputs = [torch.randn(batch, 5, count, head_dim, dtype=dtype, device=DEVICE) for count in (heads, groups)]
    compare(lambda q, k: fused.rotate(q, k, cos, sin), inputs, kernels, **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_scores_and_scatter_rows(kernels, dtype):
    torch.manual_seed(3)
    x, new = (torch.randn(count, 1100, dtype=dtype, device=DEVICE) for count in (40, 24))
    rows = torch.randperm(40, device=DEVICE)[:24]
    expert = routing.LayerExpert(1100).to(DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(expert(x, rows.view(6, 4)), expert(x)[rows].view(6, 4), rtol=1e-5, atol=1e-5)
    assert torch.equal(fused.scatter_rows(x, rows, new), x.index_copy(0, rows, new))
    assert kernels[0] == ["scores", "scatter_rows"]


@pytest.mark.parametrize("name", ["learned", "output gate", "all layers", "full"])
def test_whole_training_steps(kernels, name):
    """With two rows of different lengths, so that there are empty slots."""
    called, use = kernels
    model, batch = trainable(3, LoraOptions(r=4, alpha=8), **ROUTINGS[name])
    model, batch = model.to(DEVICE), {key: value.to(DEVICE) for key, value in batch.items()}
    use(False)
    plain = loss_and_gradients(model, batch)
    use()
    for choice in CHOICES:
        enable(model, choice)
        called.clear()
        assert_same(loss_and_gradients(model, batch), plain)
        assert {"rotate", "silu_product", "silu_gradients"} <= set(called)
        assert ({"scores", "scatter", "scatter_gradients"} <= set(called)) == (name != "full")


def test_kernels_that_do_not_run_are_not_used(monkeypatch):
    """For example where Triton finds no C compiler, or where there is no Triton."""
    launch = mock.Mock()
    monkeypatch.setattr(fused.Kernels, "silu_product", launch)
    monkeypatch.setattr(fused.torch, "ones", lambda *sizes, device: torch.zeros(*sizes))
    found = []
    for triton, error in ((mock.Mock(), None), (mock.Mock(), RuntimeError("Failed to find C compiler")), (None, None)):
        monkeypatch.setattr(fused, "triton", triton)
        launch.side_effect = error
        fused._kernels.cache_clear()
        found.append(fused._kernels())
    fused._kernels.cache_clear()
    assert found == [fused.Kernels, None, None] and launch.call_count == 2
