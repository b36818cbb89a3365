"""Stock `generate` on streams: a batch equals its rows, frames stay with their row, wide beams search exhaustively."""

import itertools

import numpy as np
import pytest
import torch
from small_data import small_model
from tiny_models import EOS, PAD, ROUTINGS, VIDEO, random_batch, tiny_model
from transformers import GenerationConfig, pipeline

from videollm_mod.cache import MoDCache

NEW = 6


def generate(model, inputs, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD, **options}
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


def greedy_without_cache(model, inputs) -> list[int]:
    """Token by token, with a full pass over the stream for each."""
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
def test_greedy_batch_with_padding_equals_rows_step_by_step(name):
    model = tiny_model(list(ROUTINGS).index(name), **ROUTINGS[name])
    batch, rows = random_batch(model, 1, [2, 0, 3])
    together = generate(model, batch)
    for index, row in enumerate(rows):
        expected = greedy_without_cache(model, row)
        assert generate(model, row)[0].tolist()[: len(expected)] == expected
        assert together[index].tolist()[: len(expected)] == expected


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_beam_search_with_padding_equals_beam_search_per_row(pixels, seed):
    model = tiny_model(seed)
    batch, rows = random_batch(model, seed, [2, 0, 3], pixels=pixels)
    options = {"num_beams": 3, "num_return_sequences": 2, "min_new_tokens": NEW}
    together = generate(model, batch, **options)
    for index, row in enumerate(rows):
        assert torch.equal(together[2 * index : 2 * index + 2], generate(model, row, **options))


def test_wide_beam_search_finds_the_most_probable_continuation():
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


def test_num_return_sequences_keep_the_frames_of_each_row():
    """With a temperature close to zero, every sample is the greedy continuation of its row."""
    model = tiny_model(5)
    batch, rows = random_batch(model, 5, [3, 1, 0])
    samples = generate(model, batch, do_sample=True, temperature=1e-4, num_return_sequences=3)
    for index, row in enumerate(rows):
        expected = generate(model, row)[0].tolist()
        for sample in samples[3 * index : 3 * index + 3].tolist():
            assert sample[: len(expected)] == expected


def test_sampling_is_reproducible_and_never_generates_a_placeholder():
    model = tiny_model(6)
    _, (row,) = random_batch(model, 6, [1])
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append(generate(model, row, do_sample=True, temperature=5.0, max_new_tokens=200, eos_token_id=-1))
    assert torch.equal(*texts)
    assert VIDEO not in texts[0]
    assert len(texts[0].unique()) > 30


def test_generation_without_cache_with_offloading_and_with_own_cache():
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


def test_generation_continues_from_a_cache():
    """An answer, more frames and a second answer equal one prompt with all of it."""
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


def test_prompt_lookup_rolls_back_the_cache():
    """Assisted decoding feeds guesses and removes the wrong ones; the text remains the greedy one."""
    model = tiny_model(9)
    _, (row,) = random_batch(model, 9, [3])
    row["input_ids"] = torch.cat([row["input_ids"], torch.tensor([[20, 21, 22, 23, 20, 21]])], dim=1)
    expected = generate(model, row, max_new_tokens=20)
    assert torch.equal(generate(model, row, max_new_tokens=20, prompt_lookup_num_tokens=3), expected)


def test_beam_search_needs_the_frames_of_the_placeholders():
    model = tiny_model(10)
    batch, _ = random_batch(model, 10, [2, 1])
    batch["video_features"] = batch["video_features"][:2]
    with pytest.raises(ValueError, match=r"`video_features` holds 2 frames, the rows have placeholders for \[2, 1\]"):
        generate(model, batch, num_beams=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"assistant_early_exit": 2}, "`assistant_early_exit` is not supported.*`assistant_model`"),
        ({"use_mtp": True}, "`use_mtp` is not supported"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "`penalty_alpha` is not supported"),
        ({"dola_layers": "low", "trust_remote_code": True}, "`dola_layers` is not supported"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "`num_beam_groups` is not supported"),
        ({"num_beams": 4, "force_words_ids": [[20]]}, "`force_words_ids` is not supported"),
        ({"prefill_chunk_size": 4}, "`prefill_chunk_size` is not supported"),
        ({"cache_implementation": "paged"}, "continuous batching is not supported"),
    ],
)
def test_options_unsupported_by_routed_layers_are_refused(options, sentence):
    model = tiny_model(11)
    _, (row,) = random_batch(model, 11, [2])
    with pytest.raises(ValueError, match=sentence):
        generate(model, row, **options)
    if set(options) <= {"assistant_early_exit", "prefill_chunk_size"}:  # also in a configuration
        config = GenerationConfig(**options, max_new_tokens=2)
        with pytest.raises(ValueError, match=sentence):
            model.generate(**row, generation_config=config)


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": NEW}, {"generation_config": GenerationConfig(max_new_tokens=NEW)}]
)
def test_generation_config_may_name_the_cache(options):
    model = tiny_model(12)
    _, (row,) = random_batch(model, 12, [2])
    expected = model.generate(**row, **options)
    model.generation_config.cache_implementation = "dynamic"
    assert torch.equal(model.generate(**row, **options), expected)
    assert model.generation_config.cache_implementation == "dynamic"
    model.generation_config.cache_implementation = "static"
    with pytest.raises(ValueError, match='"dynamic" or "offloaded", got \'static\''):
        model.generate(**row, **options)


def test_continuous_batching_is_refused():
    model = tiny_model(12)
    with pytest.raises(ValueError, match="continuous batching is not supported.*`StreamPool`"):
        model.generate_batch([[0, 20, 21]], generation_config=GenerationConfig(max_new_tokens=2))
    with pytest.raises(ValueError, match="continuous batching is not supported"):
        model.init_continuous_batching()


def test_assisted_generation_equals_plain_generation():
    model = tiny_model(13)
    _, (row,) = random_batch(model, 13, [3])
    expected = generate(model, row, max_new_tokens=12)
    for seed in (13, 14):  # one that is always right, and one that is almost never right
        assert torch.equal(generate(model, row, max_new_tokens=12, assistant_model=tiny_model(seed)), expected)


def test_guidance_equals_full_passes():
    model = tiny_model(15)
    batch, rows = random_batch(model, 15, [2, 1])
    scale, together = 1.5, generate(model, batch, guidance_scale=1.5, eos_token_id=-1)
    for row, found in zip(rows, together.tolist(), strict=True):
        row, free = dict(row), row["input_ids"][:, -1:]  # the unguided prompt is the last token alone
        for token in found:
            guided, unguided = (
                model(**inputs, use_cache=False).logits[0, -1].float().log_softmax(-1)
                for inputs in (row, {"input_ids": free})
            )
            scores = unguided + scale * (guided - unguided)
            scores[VIDEO] = -torch.inf
            assert scores[token] > scores.max() - 1e-3
            new = torch.tensor([[token]])
            row["input_ids"], free = torch.cat([row["input_ids"], new], 1), torch.cat([free, new], 1)


def test_pipeline_batches_chats_with_videos_of_different_lengths():
    model, processor = small_model()
    pipe = pipeline("image-text-to-text", model=model, processor=processor)

    def chat(*lengths: int) -> list[dict]:
        videos = [np.random.default_rng(n).integers(0, 256, (n, 32, 40, 3), dtype=np.uint8) for n in lengths]
        return [
            *({"role": "stream", "content": [{"type": "video", "video": video}]} for video in videos),
            {"role": "user", "content": "What happens?"},
        ]

    chats = [chat(3), chat(1), chat(4, 2), chat(2), chat(2)]
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    expected = [pipe(one, **options)[0]["generated_text"] for one in chats]
    assert len(set(expected)) > 1
    for size in (1, 2, 3):
        found = pipe(chats, batch_size=size, **options)
        assert [said["generated_text"] for (said,) in found] == expected
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["pixel_values_videos"].shape == (14, 3, 32, 32)
    rows = torch.zeros(5, 3, 3, 32, 32)  # where the third has six frames
    with pytest.raises(ValueError, match=r"5 rows of 3 frames, the rows have placeholders for \[3, 1, 6, 2, 2\]"):
        model.generate(**{**inputs, "pixel_values_videos": rows}, max_new_tokens=1)
