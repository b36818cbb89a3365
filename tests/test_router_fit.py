"""Routers that start from what the loss feels of each token."""

import random

import numpy as np
import pytest
import torch
from tiny_models import random_batch, tiny_model

from videollm_mod.containers import IGNORE_INDEX
from videollm_mod.training.routers import AMPLITUDE, FLOOR, RIDGE, SensitivityFit, initialise_routers


def batches_of(model, seed: int, count: int = 2) -> list[dict]:
    found = []
    for number in range(count):
        batch, _ = random_batch(model, seed + number, [3, 2])
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
        found.append(batch | {"labels": labels.masked_fill(labels == model.config.video_token_id, IGNORE_INDEX)})
    return found


def routed_layers(model) -> dict:
    return {layer.layer_idx: layer for layer in model.model.language_model.layers if layer.layer_expert is not None}


def felt(model, batch: dict, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vision tokens that enter a layer, `[M, D]`, and the slope of the loss, `[M]`, as the layer's output moves from
    what it is to what came in, for each token alone."""
    is_vision, moved, entered = batch["input_ids"] == model.config.video_token_id, [], []

    def move(layer, arguments, keywords, output):
        tokens = arguments[0] if arguments else keywords["hidden_states"]
        moved.append(torch.zeros(*output.shape[:2], 1, dtype=output.dtype, requires_grad=True))
        entered.append(tokens.detach())
        return output + moved[-1] * (tokens - output).detach()

    hook = model.model.language_model.layers[index].register_forward_hook(move, with_kwargs=True)
    (slope,) = torch.autograd.grad(model(**batch).loss, moved)
    hook.remove()
    return entered[0][is_vision], slope[is_vision].squeeze(-1).abs()


@pytest.mark.parametrize("frozen", [False, True])
def test_scores_follow_what_the_loss_feels(frozen):
    seed = random.randrange(10_000)
    model = tiny_model(seed, mod_layers="all").double().train()
    model.requires_grad_(not frozen)
    batches, keep_ratio = batches_of(model, seed), model.keep_ratio
    assert initialise_routers(model, batches) == list(routed_layers(model)) == [0, 1, 2, 3, 4]
    assert model.training and model.keep_ratio == keep_ratio
    assert all(parameter.grad is None for parameter in model.parameters())
    found = {index: layer.layer_expert for index, layer in routed_layers(model).items()}
    fitted = {index: (expert.weight.detach().clone(), expert.bias.detach().clone()) for index, expert in found.items()}
    assert model.config.text_config.mod_gate == "residual"
    model.config.text_config.mod_gate = "none"  # the fit is of the dense model
    model.eval().keep_ratio = 1.0
    for index, (weight, bias) in fitted.items():
        parts = [felt(model, batch, index) for batch in batches]
        tokens = torch.cat([part[0] for part in parts]).numpy()
        target = np.concatenate([(slope / slope.mean() + FLOOR).log().numpy() for _, slope in parts])
        centred = tokens - tokens.mean(0)
        covariance = centred.T @ centred
        ridge = RIDGE * np.diag(covariance).mean() * np.eye(len(covariance))
        best = np.linalg.solve(covariance + ridge, centred.T @ target)
        best *= AMPLITUDE / (centred @ best).std()
        np.testing.assert_allclose(weight[0], best, rtol=1e-4, atol=1e-6)
        scores = tokens @ weight[0].double().numpy() + float(bias)
        assert scores.mean() == pytest.approx(0, abs=1e-5) and scores.std() == pytest.approx(AMPLITUDE, rel=1e-4)


def test_tokens_that_nothing_depends_on_come_last():
    generator = torch.Generator().manual_seed(random.randrange(10_000))
    tokens = torch.randn(200, 6, generator=generator)
    felt = tokens[:, 2] > 0.5
    gradients = torch.where(felt[:, None], torch.randn(200, 6, generator=generator), 0.0)
    fit = SensitivityFit(6, torch.device("cpu"))
    for some in range(0, 200, 50):  # in parts
        fit.add(*(x[some : some + 50] for x in (tokens, tokens + 1, gradients)))
    weight, bias = fit.solve()
    scores = tokens.double() @ weight + bias
    assert weight.abs().argmax() == 2 and scores[felt].min() > scores[~felt].mean()


def test_wrong_models_and_batches_are_named():
    with pytest.raises(ValueError, match="no layer has a LayerExpert"):
        initialise_routers(tiny_model(vision_routing="full"), [])
    model = tiny_model(3, mod_layers="all")
    before = model.model.language_model.layers[1].layer_expert.weight.detach().clone()
    ids = torch.tensor([[0, 8, 9, 10]])
    with pytest.raises(ValueError, match="no frames"):
        initialise_routers(model, [{"input_ids": ids, "labels": ids}])
    with pytest.raises(ValueError, match="no frames"):
        initialise_routers(model, iter([]))
    assert torch.equal(model.model.language_model.layers[1].layer_expert.weight, before) and model.keep_ratio == 0.4
