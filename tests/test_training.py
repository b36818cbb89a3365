"""The loss, its gradients, and the HF Trainer."""

import pytest
import torch
from comparing import assert_near, assert_near_gradients
from short_training import check_accumulation, fit, stream_labels
from tiny_models import ROUTINGS, VIDEO, random_batch, tiny_model
from torch.nn.functional import cross_entropy


@pytest.mark.parametrize("weight", [0.5, 1, 3])
@pytest.mark.parametrize("name", ["full", "learned", "early exit"])
def test_loss_equals_that_of_videollm_online(weight, name):
    """VideoLLM-online's loss on its labels, which are shifted already, with all logits."""
    model = tiny_model(0, **ROUTINGS[name])
    model.config.stream_loss_weight = weight
    batch, _ = random_batch(model, 0, [3, 0, 2])
    labels = stream_labels(batch, 0)
    shifted = torch.full_like(labels, -100)
    shifted[:, :-1] = labels[:, 1:]
    logits = model(**batch).logits
    at_vision = (batch["input_ids"] == VIDEO).flatten()
    weights = at_vision * weight + ~at_vision
    losses = cross_entropy(logits.flatten(0, 1), shifted.flatten(), reduction="none") * weights
    expected = losses.sum() / (shifted >= 0).sum()
    assert_near(model(**batch, labels=labels).loss, expected)
    assert_near(model(**batch, shift_labels=shifted).loss, expected)
    assert torch.equal(model(**batch, labels=labels).logits, logits)
    assert_near(model(**batch, labels=labels, num_items_in_batch=7).loss, expected * (shifted >= 0).sum() / 7)


def test_no_labels_give_no_loss():
    model = tiny_model(1).train()
    batch, _ = random_batch(model, 1, [2])
    out = model(**batch, labels=torch.full_like(batch["input_ids"], -100))
    assert out.loss == 0
    out.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_labels_of_wrong_length_give_a_clear_error():
    model = tiny_model(1)
    batch, _ = random_batch(model, 1, [1])
    with pytest.raises(ValueError, match=r"`labels` must be \[1, \d+\], one per token, got \[1, 3\]"):
        model(**batch, labels=batch["input_ids"][:, :3])


def test_training_computes_only_logits_with_labels(monkeypatch):
    model = tiny_model(2).train()
    batch, _ = random_batch(model, 2, [3, 1])
    labels = stream_labels(batch, 2)
    widths = []
    monkeypatch.setattr(
        model.lm_head,
        "forward",
        lambda x: widths.append(x.shape[:-1].numel()) or torch.nn.functional.linear(x, model.lm_head.weight),
    )
    assert model(**batch, labels=labels).logits is None
    assert widths == [int((labels != -100).sum())]


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_equal_plain_ones(name, reentrant):
    model = tiny_model(3, **ROUTINGS[name]).train()
    batch, _ = random_batch(model, 3, [2, 1])
    labels = stream_labels(batch, 3)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        model(**batch, labels=labels, use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert_near_gradients(gradients[1], gradients[0])


@pytest.mark.parametrize("name", ["learned", "output gate", "keep all", "keep last", "all layers"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_router_learns(name, checkpointing):
    model = tiny_model(4, **ROUTINGS[name]).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch, _ = random_batch(model, 4, [12, 12])  # a kept token has an effect only if a later layer keeps it too
    model(**batch, labels=stream_labels(batch, 4)).loss.backward()
    routers = {n: p for n, p in model.named_parameters() if "layer_expert" in n}
    assert len(routers) == 2 * len(model.config.text_config.routed_layers)
    for parameter_name, router in routers.items():
        assert router.grad is not None, parameter_name
        assert router.grad.abs().max() > 0, parameter_name


def last_layer_gradient(model, seed: int) -> tuple[bool, float]:
    """Whether the last layer keeps the last token of any frame, and the largest entry of its router's gradient."""
    batch, _ = random_batch(model, seed, [2])
    out = model(**batch, labels=stream_labels(batch, seed), output_router_scores=True)
    model.zero_grad()
    out.loss.backward()
    last = max(model.config.text_config.routed_layers)
    gradients = {layer: expert.weight.grad.abs().max().item() for layer, expert in routers_of(model).items()}
    assert all(gradient > 0 for layer, gradient in gradients.items() if layer != last)
    kept = out.kept_indices[last] == model.config.num_frame_tokens - 1
    return bool(kept.any()), gradients[last]


def routers_of(model) -> dict[int, torch.nn.Module]:
    layers = model.model.language_model.layers
    return {index: layers[index].layer_expert for index in model.config.text_config.routed_layers}


def test_last_layers_router_learns_from_frames_whose_last_token_it_keeps():
    """After the last layer tokens no longer interact, and only the last token of a frame predicts anything. So a
    gradient of exactly 0, because no such token was kept, is due to routing, not to LoRA or 4 bit."""
    found = {True: [], False: []}
    for seed in range(24):
        model = tiny_model(seed, num_hidden_layers=4).train()
        for router in routers_of(model).values():
            torch.nn.init.normal_(router.weight, std=0.05)  # beyond scores of about 9, tanh has no slope in float32
        kept, gradient = last_layer_gradient(model, seed)
        found[kept].append(gradient)
    assert len(found[False]) > 2 and not any(found[False])
    assert len(found[True]) > 2 and all(found[True])


@pytest.mark.parametrize("options", [{"mod_force_keep_last": True}, {"mod_keep_ratio": 1.0}])
def test_zero_initialised_router_needs_the_last_token_kept(options):
    """As in newly built models: ties go to the lower index, never to the last token."""
    for given in ({}, options):
        model = tiny_model(1, num_hidden_layers=4, **given).train()
        for router in routers_of(model).values():
            torch.nn.init.zeros_(router.weight)
            torch.nn.init.zeros_(router.bias)
        kept, gradient = last_layer_gradient(model, 1)
        assert kept == (gradient > 0) == bool(given)


def test_router_without_gate_gets_no_gradient():
    model = tiny_model(5, mod_gate="none").train()
    batch, _ = random_batch(model, 5, [3])
    model(**batch, labels=stream_labels(batch, 5)).loss.backward()
    assert all(p.grad is None for n, p in model.named_parameters() if "layer_expert" in n)


def test_accumulating_four_batches_equals_one_batch_of_four(tmp_path):
    check_accumulation(tmp_path, lambda: tiny_model(6))


def test_trainer_learns_and_evaluates(tmp_path):
    model = tiny_model(7)
    trainer = fit(
        tmp_path, model, per_device_train_batch_size=4, num_train_epochs=15, logging_steps=2, learning_rate=1e-2
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] < losses[0]
