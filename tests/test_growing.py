"""A cache that grows in place equals one that is concatenated at every step, whatever is done to it."""

import random

import pytest
import torch
from comparing import assert_near, assert_same_cache
from tiny_models import ROUTINGS, random_batch, tiny_model

from videollm_mod.cache import BUCKET, GrowingTensor, MoDCache


@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_any_sequence_of_changes_equals_concatenation(seed):
    """Tensors are extended, shortened, shared and replaced at random; no owner changes another owner's tensor."""
    rng, dim = random.Random(seed), seed % 3
    held = [(GrowingTensor(dim), None, None)]  # what each owner has, and what it should have
    for step in range(120):
        index = rng.randrange(len(held))
        tensor, view, expected = held[index]
        action = rng.choice(["append"] * 5 + ["shorten", "share", "replace"])
        if view is None or action == "append":
            shape = [2, 3, 4]
            shape[dim] = rng.choice([0, 1, 11, 70])
            new = torch.randn(shape)
            view = tensor.append(view, new.clone())
            expected = new if expected is None else torch.cat([expected, new], dim)
        elif action == "shorten":
            length = rng.randint(0, view.shape[dim])
            view, expected = tensor.shorten(view, length), expected.narrow(dim, 0, length)
        elif action == "share" and len(held) < 5:
            held.append((tensor.share(), view, expected))
        elif action == "replace":
            view = expected = torch.randn_like(view)
        held[index] = (tensor, view, expected)
        for _, own, wanted in held:
            assert own is None or torch.equal(own, wanted), step


@torch.no_grad()
def test_frames_are_written_in_place():
    tensor, held, moves = GrowingTensor(1), None, 0
    for _ in range(400):
        before = tensor.buffer
        held = tensor.append(held, torch.ones(1, 11))
        moves += tensor.buffer is not before
    assert held.shape == (1, 4400) and held.data_ptr() == tensor.buffer.data_ptr()
    assert moves < 40 and tensor.buffer.shape[1] < 4400 * 9 / 8 + 2 * BUCKET


@pytest.mark.parametrize("name", ["learned", "full", "early exit", "layer skip"])
def test_forks_and_rollbacks_do_not_affect_each_other(name):
    """Copies of a cache continue with different streams, each as if it were alone."""
    model = tiny_model(1, **ROUTINGS[name])
    calls = [random_batch(model, seed, [2])[1][0] for seed in range(6)]
    rng = random.Random(name)

    def run(cache: MoDCache, path: list[int]) -> None:
        for index in path:
            model(**calls[index], past_key_values=cache)

    with torch.no_grad():
        branches = [(MoDCache(model.config), [])]
        run(branches[0][0], [0])
        branches[0][1].append(0)
        for _ in range(12):
            cache, path = rng.choice(branches)
            if rng.random() < 0.4:
                branches.append((cache.copy(), list(path)))
            elif rng.random() < 0.3 and len(path) > 1:
                length = calls[path.pop()]["input_ids"].shape[1]
                cache.rollback(cache.get_seq_length() - length)
            else:
                path.append(rng.randrange(6))
                run(cache, path[-1:])
        for cache, path in branches:
            alone = MoDCache(model.config)
            run(alone, path)
            assert_same_cache(cache, alone)


def test_gradients_flow_through_a_cache():
    model = tiny_model(2).train()
    _, (first,) = random_batch(model, 2, [2])
    _, (second,) = random_batch(model, 3, [1])
    gradients = []
    for whole in (True, False):
        model.zero_grad()
        if whole:
            both = {name: torch.cat([first[name], second[name]], int(name == "input_ids")) for name in first}
            logits = model(**both).logits[:, first["input_ids"].shape[1] :]
        else:
            cache = MoDCache(model.config)
            model(**first, past_key_values=cache)
            logits = model(**second, past_key_values=cache).logits
        logits.logsumexp(-1).sum().backward()
        gradients.append(model.model.language_model.layers[0].self_attn.k_proj.weight.grad.clone())
    assert_near(*gradients)
