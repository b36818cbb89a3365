"""The speaking rule, against the predecessor's decision written out as its public code makes it."""

import pytest
import torch
from tiny_models import SEPARATOR, random_batch, tiny_model

from videollm_mod.speaking import silence_probability, speaks


@pytest.mark.parametrize("seed", range(3))
def test_decisions_are_the_predecessors(seed):
    """VideoLLM-online: the separator's score is set to zero below the threshold, then the best token decides."""
    model = tiny_model(seed, vision_routing="full")
    _, (row,) = random_batch(model, seed, [6])
    logits = model(**row).logits[0]
    logits = logits[model.model.lay_out(row["input_ids"]).ends_frame[0]]
    logits[::2, SEPARATOR] += 12  # some frames that stay silent
    for threshold in (0.5, 0.725, 0.999):
        scores = logits.softmax(-1)
        silence = scores[:, SEPARATOR].clone()
        scores[scores[:, SEPARATOR] < threshold, SEPARATOR] = 0
        expected = scores.argmax(-1) != SEPARATOR
        assert (silence - threshold).abs().min() > 1e-4  # so that the last bit does not decide
        assert torch.equal(speaks(silence_probability(logits, SEPARATOR), threshold), expected)
    assert expected.any()


def test_silence_at_the_threshold():
    assert speaks(torch.tensor([0.7, 0.725, 0.73]), 0.725).tolist() == [True, False, False]
    silence = silence_probability(torch.zeros(2, 3, 60, dtype=torch.bfloat16), SEPARATOR)
    assert silence.dtype == torch.float32
    torch.testing.assert_close(silence, torch.full((2, 3), 1 / 60))
