"""Stock `generate` on streams: batches are their rows, frames follow their row, beams are an exhaustive search."""

import itertools

import pytest
import torch
from tiny import EOS, PAD, ROUTINGS, VIDEO, random_batch, tiny_model

from videollm_mod.cache_videollm_mod import MoDCache

NEW = 6


def generate(model, inputs, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD, **options}
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


def greedy_without_cache(model, inputs) -> list[int]:
    """One token after the other, the whole stream fed anew each time."""
    inputs = dict(inputs)
    new = []
    for _ in range(NEW):
        logits = model(**inputs, use_cache=False).logits[0, -1]
        logits[VIDEO] = -torch.inf
        new.append(int(logits.argmax()))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[new[-1]]])], dim=1)
        if new[-1] == EOS:
            break
    return new


@pytest.mark.parametrize("name", ROUTINGS)
def test_greedy_on_a_padded_batch_is_each_row_step_by_step(name):
    model = tiny_model(list(ROUTINGS).index(name), **ROUTINGS[name])
    batch, rows = random_batch(model, 1, [2, 0, 3])
    together = generate(model, batch)
    for index, row in enumerate(rows):
        expected = greedy_without_cache(model, row)
        assert generate(model, row)[0].tolist()[: len(expected)] == expected
        assert together[index].tolist()[: len(expected)] == expected


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_beams_on_a_padded_batch_are_beams_on_each_row(pixels, seed):
    model = tiny_model(seed)
    batch, rows = random_batch(model, seed, [2, 0, 3], pixels=pixels)
    options = {"num_beams": 3, "num_return_sequences": 2, "min_new_tokens": NEW}
    together = generate(model, batch, **options)
    for index, row in enumerate(rows):
        assert torch.equal(together[2 * index : 2 * index + 2], generate(model, row, **options))


def test_wide_beams_find_the_most_probable_continuation():
    model = tiny_model(4)
    _, (row,) = random_batch(model, 4, [2])
    allowed = [t for t in range(60) if t not in (VIDEO, EOS)]

    def log_probabilities(words):
        ids = torch.cat([row["input_ids"], torch.tensor([words], dtype=torch.long)], dim=1)
        logits = model(**{**row, "input_ids": ids}).logits[0, -1].detach()
        logits[[VIDEO, EOS]] = -torch.inf
        return logits.log_softmax(-1)

    first = log_probabilities([])
    second = {a: log_probabilities([a]) for a in allowed}
    scores = {(a, b): float(first[a] + second[a][b]) for a, b in itertools.product(allowed, allowed)}
    beams = generate(
        model, row, num_beams=len(allowed), max_new_tokens=2, suppress_tokens=[VIDEO, EOS], length_penalty=0.0
    )
    found, expected = tuple(beams[0].tolist()), max(scores, key=scores.get)
    assert scores[found] == pytest.approx(scores[expected], abs=1e-4)


def test_num_return_sequences_keep_each_rows_frames():
    """With near-zero temperature every sample is the greedy continuation of its own row."""
    model = tiny_model(5)
    batch, rows = random_batch(model, 5, [3, 1, 0])
    samples = generate(model, batch, do_sample=True, temperature=1e-4, num_return_sequences=3)
    for index, row in enumerate(rows):
        expected = generate(model, row)[0].tolist()
        for sample in samples[3 * index : 3 * index + 3].tolist():
            assert sample[: len(expected)] == expected


def test_sampling_is_reproducible_and_never_says_a_placeholder():
    model = tiny_model(6)
    _, (row,) = random_batch(model, 6, [1])
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append(generate(model, row, do_sample=True, temperature=5.0, max_new_tokens=200, eos_token_id=-1))
    assert torch.equal(*texts)
    assert VIDEO not in texts[0]
    assert len(texts[0].unique()) > 30


def test_without_cache_and_with_offloading_flag_and_own_cache():
    model = tiny_model(7)
    batch, _ = random_batch(model, 7, [2, 1])
    expected = generate(model, batch)
    assert torch.equal(generate(model, batch, use_cache=False), expected)
    assert torch.equal(generate(model, batch, past_key_values=MoDCache(model.config)), expected)
    features = batch.pop("video_features")
    embeds = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(
        model.generate(
            inputs_embeds=embeds,
            attention_mask=batch["attention_mask"],
            video_features=features,
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=PAD,
        ),
        expected,
    )


def test_generation_goes_on_from_a_cache():
    """A first answer, then more frames, then a second answer: as one prompt that holds all of it."""
    model = tiny_model(8)
    (_, (first,)), (_, (second,)) = random_batch(model, 80, [2]), random_batch(model, 81, [1])
    out = model.generate(**first, max_new_tokens=3, min_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat([out.sequences, second["input_ids"]], dim=1)
    went_on = generate(
        model,
        {"input_ids": ids, "video_features": second["video_features"]},
        past_key_values=out.past_key_values,
    )
    at_once = {"input_ids": ids, "video_features": torch.cat([first["video_features"], second["video_features"]])}
    assert torch.equal(went_on, generate(model, at_once))


def test_prompt_lookup_rolls_the_cache_back():
    """Assisted decoding feeds guesses and crops the wrong ones off: the text stays the greedy one."""
    model = tiny_model(9)
    _, (row,) = random_batch(model, 9, [3])
    row["input_ids"] = torch.cat([row["input_ids"], torch.tensor([[20, 21, 22, 23, 20, 21]])], dim=1)
    expected = generate(model, row, max_new_tokens=20)
    assert torch.equal(generate(model, row, max_new_tokens=20, prompt_lookup_num_tokens=3), expected)


def test_beams_need_the_frames_of_their_placeholders():
    model = tiny_model(10)
    batch, _ = random_batch(model, 10, [2, 1])
    batch["video_features"] = batch["video_features"][:2]
    with pytest.raises(ValueError, match=r"`video_features` holds 2 frames, the rows have placeholders for \[2, 1\]"):
        generate(model, batch, num_beams=2)
