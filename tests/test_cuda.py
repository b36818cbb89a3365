"""On a GPU: the equalities of the CPU tests in float32, and bfloat16 close to float32. Skipped where there is none."""

import random

import pytest
import torch
from tiny import EOS, PAD, ROUTINGS, frame_cuts, random_batch, run_in_pieces, tiny_model

from videollm_mod.cache_videollm_mod import MoDCache

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def to_cuda(inputs: dict) -> dict:
    return {name: value.cuda() for name, value in inputs.items()}


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    value, expected = value.float().cpu(), expected.float().cpu()
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ROUTINGS)
def test_float32_in_batches_and_pieces_is_the_cpu(name):
    seed = list(ROUTINGS).index(name)
    model = tiny_model(seed, **ROUTINGS[name])
    batch, rows = random_batch(model, seed, [4, 0, 2])
    with torch.no_grad():
        expected = [model(**row).logits for row in rows]
        model.cuda()
        together = model(**to_cuda(batch)).logits
        for index, row in enumerate(rows):
            length = expected[index].shape[1]
            assert relative_error(together[index, -length:], expected[index][0]) < 1e-4
            cuts = frame_cuts(row["input_ids"][0].tolist(), model.config.num_frame_tokens, random.Random(seed))
            pieces = run_in_pieces(model, to_cuda(row), cuts, MoDCache(model.config))
            assert relative_error(pieces, expected[index]) < 1e-4


@pytest.mark.parametrize("name", ROUTINGS)
def test_bfloat16_is_near_float32(name):
    """With the same tokens kept: near-ties are decided by the controls, or by keeping all."""
    options = ROUTINGS[name]
    if options.get("mod_selection", "learned") == "learned":
        options = {**options, "mod_keep_ratio": 1.0}
    # heads of 64, so that the flash kernels take part
    model = tiny_model(1, **options, hidden_size=256, intermediate_size=256, initializer_range=0.05).cuda()
    _, (row,) = random_batch(model, 1, [6])
    row = to_cuda(row)
    with torch.no_grad():
        expected = model(**row).logits
        model.to(torch.bfloat16)
        row["video_features"] = row["video_features"].bfloat16()
        assert relative_error(model(**row).logits, expected) < 3e-2
        cuts = frame_cuts(row["input_ids"][0].tolist(), model.config.num_frame_tokens, random.Random(1))
        assert relative_error(run_in_pieces(model, row, cuts, MoDCache(model.config)), expected) < 3e-2


def test_generation_with_and_without_offloading_is_the_cpu():
    model = tiny_model(2)
    batch, _ = random_batch(model, 2, [3, 1])
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "eos_token_id": EOS}
    expected = model.generate(**batch, **options)
    model.cuda()
    for implementation in ("dynamic", "offloaded"):
        text = model.generate(**to_cuda(batch), **options, cache_implementation=implementation)
        assert torch.equal(text.cpu(), expected)


def test_gradients_are_the_cpus():
    model = tiny_model(3).train()
    batch, _ = random_batch(model, 3, [3, 2])
    gradients = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        inputs = {name: value.to(device) for name, value in batch.items()}
        model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == PAD, -100)).loss.backward()
        gradients.append({n: p.grad.cpu().clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: n + m)
