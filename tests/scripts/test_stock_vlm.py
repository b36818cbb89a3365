"""Stock image models that learn from single pictures of the world: their pictures, conversations and scores."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, LlamaConfig

from videollm_mod.benchmarks import stock_vlm
from videollm_mod.benchmarks.stock_vlm_data import (
    IGNORED,
    QUESTIONS,
    SEE,
    Conversations,
    Scene,
    Writer,
    cells,
    collate,
    describe,
    draw,
)
from videollm_mod.benchmarks.stock_vlm_families import FAMILIES, IMAGE, load
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_basic import KINDS, Thing


def scenes_of(seeds: range) -> list[Scene]:
    streams = [world_stream(seed) for seed in seeds]
    return [Scene.of(event.things, stream.background) for stream in streams for event in stream.events]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    family = FAMILIES[request.param]()
    family.learn_words(stock_vlm.example_texts(family, 100))
    return family


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    path = tmp_path_factory.mktemp(family.name)
    family.save(family.new_model(width=64, layers=1), path)
    return path


def test_pictures_and_cells_are_those_of_the_world():
    streams = [world_stream(seed) for seed in range(40, 60)]
    array = torch.from_numpy(np.stack([scene.array for scene in scenes_of(range(40, 60))]))
    drawn = torch.from_numpy(np.concatenate([stream.drawn(96) for stream in streams])).permute(0, 3, 1, 2)
    assert torch.equal(draw(array), drawn)
    states = torch.from_numpy(np.concatenate([stream.states() for stream in streams])).flatten(1, 2) > 0
    assert torch.equal(cells(array), torch.where(states.any(-1), states.int().argmax(-1), len(KINDS)))


def test_descriptions_name_all_things_in_one_order():
    things = [Thing(*name.split(), 0.5, 0.5, 0.1) for name in ("blue circle", "white cross", "red square")]
    assert describe(()) == "Nothing."
    assert describe((things[0],)) == "A blue circle."
    assert describe((things[0], things[2])) == describe((things[2], things[0])) == "A red square and a blue circle."
    assert describe(tuple(things)) == "A red square, a blue circle and a white cross."


def test_rows_are_what_the_chat_template_writes(family):
    scenes, rng, row, messages = scenes_of(range(3)), random.Random(2), Writer(family), []
    for count, question in ((2, SEE), (0, "Where is the red cross?"), (1, "How many objects are there?")):
        rng.random = lambda: 0.0  # SmolVLM writes images, not frames of a video
        row.turn(rng, scenes[:count], "see", question, "A red cross.")
        parts = [{"type": "image"}] * count + [{"type": "text", "text": question}]
        messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": "A red cross."}]
    text = family.tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
    text = text.replace(IMAGE, family.image)
    assert row.ids == family.tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = family.tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert family.tokenizer.decode(row.ids).startswith(prompt.replace(IMAGE, family.image))
    learned = [token for token, label in zip(row.ids, row.labels, strict=True) if label != IGNORED]
    assert learned == 3 * family.reply_ids("A red cross.")
    ends = [row.ids[reply.start : reply.end] for reply in row.replies]
    assert ends == 3 * [family.reply_ids("A red cross.")]
    assert [(reply.shown, reply.images) for reply in row.replies] == [(2, 2), (0, 2), (1, 3)]


def test_times_of_frames_are_written_as_stock_does():
    family = FAMILIES["smolvlm"]()
    pieces = {family.user(random.Random(seed), 2, SEE, first=True)[1][:12] for seed in range(8)}
    assert pieces == {"\nFrame from ", "<fake_token_"}


def test_stock_classes_load_a_folder_and_make_the_same_pixels(family, folder):
    model, tokenizer = AutoModelForImageTextToText.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == {"llava": "Llava", "smolvlm": "SmolVLM"}[family.name] + "ForConditionalGeneration"
    assert model.dtype == torch.bfloat16
    assert tokenizer.chat_template == family.template
    assert tokenizer(SEE)["input_ids"] == family.tokenizer(SEE)["input_ids"]
    frames = world_stream(5).drawn(96)[-2:]
    images = [Image.fromarray(frame) for frame in frames]
    pixels = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    own = family.pixel_values(torch.from_numpy(frames).permute(0, 3, 1, 2))
    torch.testing.assert_close(pixels.reshape(own.shape), own)


def test_images_enter_as_in_the_stock_forward(family):
    model = family.new_model(width=64, layers=1).eval()
    batch = next(iter(Conversations(family, "conversation", 7, tokens=600, length=300)))
    with torch.no_grad():
        own = stock_vlm.answer(model, family, batch).logits
        pixels = family.pixel_values(draw(batch.scenes))
        stock = model(input_ids=batch.input_ids, pixel_values=pixels).logits
    torch.testing.assert_close(own, stock)


def test_exact_answers_are_those_of_greedy_decoding(family, folder):
    model, _ = load(folder, dtype=torch.float32)
    scenes = scenes_of(range(8, 10))[:6]
    rows = [Writer(family) for _ in scenes]
    for row, scene in zip(rows, scenes, strict=True):
        row.turn(random.Random(0), [scene], "see", SEE, "")
    prompt = collate(rows, family.pad_token_id)
    start = int(prompt.replies[0, 1])
    for row, scene in zip(rows, scenes, strict=True):
        said = model.generate(
            input_ids=torch.tensor([row.ids[:start]]), max_new_tokens=5, do_sample=False,
            pixel_values=family.pixel_values(draw(torch.from_numpy(scene.array)[None])),
        )[0, start:].tolist()  # fmt: skip
        row.ids[start:], row.labels[start:] = said, said
        row.replies[0] = row.replies[0]._replace(end=start + len(said))
    assert stock_vlm.exact_answers(model, family, [collate(rows, family.pad_token_id)])["see"] == 100
    for row in rows[:3]:
        row.labels[-1] += 1
    result = stock_vlm.exact_answers(model, family, [collate(rows, family.pad_token_id)])
    assert result["see"] == result["see_by_images_of_turn"][1] == 50
    assert result["what"] is None


def test_conversations_have_independent_pictures_and_true_answers(family):
    for variant in stock_vlm.VARIANTS:
        batches = list(itertools.islice(Conversations(family, variant, 11, tokens=2500, length=700), 2))
        for batch in batches:
            images = (batch.input_ids == family.tokenizer.convert_tokens_to_ids(IMAGE)).sum()
            assert images == len(batch.scenes) * family.image_tokens
            for row, start, end, question, shown, _ in batch.replies.tolist():
                assert torch.equal(batch.labels[row, start:end], batch.input_ids[row, start:end])
                assert shown <= 1 or variant == "conversation"
                assert family.tokenizer.decode(batch.input_ids[row, end - 1]) in family.special
                assert 0 <= question < len(QUESTIONS)
        assert not torch.equal(batches[0].scenes[:4], batches[1].scenes[:4])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the run needs Muon, of torch 2.9")
def test_a_short_run(tmp_path):
    size = {"seconds": "1", "tokens": "900", "width": "64", "layers": "1", "checked": "1", "workers": "0"}
    options = {**size, "variant": "single", "device": "cpu", "output": str(tmp_path)}
    stock_vlm.main([word for name, value in options.items() for word in (f"--{name}", value)])
    result = json.loads((tmp_path / "llava_single.json").read_text())
    assert {entry["stage"] for entry in result["log"]} == {"vision", "answers"}
    assert set(result["test"]) == set(stock_vlm.VARIANTS)
    assert (tmp_path / "llava_single.tar").stat().st_size > 100_000
    model, family = load(tmp_path / "llava_single")
    assert family.name == "llava" and model.dtype == torch.bfloat16


def test_load_refuses_other_families(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be of llava or smolvlm, got 'llama'"):
        load(tmp_path)
