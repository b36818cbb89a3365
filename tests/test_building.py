"""Models built from existing language models and vision towers."""

import json
import random

import numpy as np
import pytest
import torch
from comparing import assert_near
from fresh_process import run_fresh
from stock_models import TOKENIZERS, TOWER, save_language_model, save_tower
from tiny_models import frame_cuts, random_batch, tiny_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from videollm_mod import VideoLLMMoDForConditionalGeneration
from videollm_mod.cache import MoDCache
from videollm_mod.commands import cli

FRAME = {"frame_token_pooled": [2, 2]}
TEXTS = ["She cuts the onion, then", "He sees: [a red cup] <v> 7", "  why?\n\nbecause\u00e9 "]


def build(llm, vision, **options):
    return VideoLLMMoDForConditionalGeneration.from_components(llm=llm, vision=vision, **FRAME | options)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 20, 28, 3), dtype=np.uint8)


@torch.no_grad()
def assert_same_text(model, stock, ids: torch.Tensor) -> None:
    """The logits are close to the language model's, since the head has more rows; the generated words are equal."""
    known = stock.get_input_embeddings().weight.shape[0]
    assert_near(model(input_ids=ids).logits[..., :known], stock(input_ids=ids).logits)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), stock.generate(ids, **options))


@pytest.mark.parametrize(("name", "tied"), [(name, bool(index % 2)) for index, name in enumerate(TOKENIZERS)])
def test_text_logits_match_the_language_model(tmp_path, name, tied):
    llm = save_language_model(tmp_path / "llm", name, tie_word_embeddings=tied)
    model, processor = build(llm, save_tower(tmp_path / "vision"), mod_keep_ratio=0.3)
    stock, words = AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    for text in TEXTS:
        ids = words(text, add_special_tokens=False)["input_ids"]
        assert processor.tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"] == ids
        assert_same_text(model, stock, torch.tensor([ids]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_match_the_chat_template(tmp_path, name):
    llm = save_language_model(tmp_path / "llm", name)
    model, processor = build(llm, save_tower(tmp_path / "vision"))
    messages = [
        {"role": "system", "content": "She sees"},
        {"role": "user", "content": "why <v>?"},
        {"role": "stream", "num_frames": 3},
        {"role": "assistant", "content": "because"},
        {"role": "stream", "num_frames": 1},
    ]
    text = processor.apply_chat_template(messages)
    (ids,) = processor.apply_chat_template(messages, tokenize=True)
    assert processor.tokenizer.decode(ids) == text
    assert ids.count(processor.video_token_id) == 4 * model.config.num_frame_tokens
    assert ids.count(processor.frame_separator_token_id) == 2

    session = model.stream(processor, max_new_tokens=5)
    session.push(frames(3), [0.0, 0.5, 1.0])
    assert session.ask("why?")[0].kind == "answer"
    assert session.stats.frames == 3


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0])
def test_every_router_gets_gradients(tmp_path, ratio):
    """The last layer is routed too, and learns only from a frame's last token."""
    llm, tower = save_language_model(tmp_path / "llm", num_hidden_layers=4), save_tower(tmp_path / "vision")
    model, processor = build(llm, tower, mod_keep_ratio=ratio)
    assert model.config.text_config.routed_layers[-1] == 3 and model.config.text_config.mod_force_keep_last
    messages = [{"role": "stream", "num_frames": 3}, {"role": "assistant", "content": "because"}]
    ids, labels, *_ = processor.encode_conversation(messages)
    pixels = processor.video_processor(torch.from_numpy(frames(3)), return_tensors="pt")["pixel_values_videos"]
    batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels]), "pixel_values_videos": pixels}
    model.train()(**batch).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "layer_expert.weight" in name]
    assert len(gradients) == 2 and all(gradient.abs().max() > 0 for gradient in gradients)
    assert not build(llm, tower, mod_force_keep_last=False)[0].config.text_config.mod_force_keep_last


@pytest.mark.parametrize("kind", ["siglip_vision_model", "clip_vision_model", "siglip", "clip"])
def test_vision_tower_keeps_its_weights(tmp_path, kind):
    """Full models and bare towers, from disk and from memory."""
    llm, path = save_language_model(tmp_path / "llm"), save_tower(tmp_path / "vision", kind)
    whole = AutoModel.from_pretrained(path)
    tower = getattr(whole, "vision_model", whole)
    pixels = torch.randn(2, 3, tower.config.image_size, tower.config.image_size)
    for vision in (path, whole):
        model, processor = build(llm, vision)
        with torch.no_grad():
            expected = (whole.vision_model if kind in ("siglip", "clip") else whole)(pixels)
            actual = model.model.vision_tower(pixels)
        assert torch.equal(actual.last_hidden_state, expected.last_hidden_state)
        assert processor.video_processor.size == {"height": pixels.shape[-1], "width": pixels.shape[-1]}
        assert (processor.video_processor.image_mean[0] == 0.5) == ("siglip" in kind)


def inputs_with_frames(model, processor) -> dict:
    messages = [
        {"role": "user", "content": "why?"},
        {"role": "stream", "content": [{"type": "video", "video": frames(3)}]},
    ]
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")


@torch.no_grad()
def test_new_model_is_dense_at_keep_ratio_1(tmp_path):
    model, processor = build(
        save_language_model(tmp_path / "llm"), save_tower(tmp_path / "vision"), mod_keep_ratio=1.0
    )
    inputs = inputs_with_frames(model, processor)
    torch.manual_seed(1)
    routed = model(**inputs).logits
    model.config.text_config.vision_routing = "full"
    assert_near(model(**inputs).logits, routed)
    model.config.text_config.vision_routing = "mod"
    model.keep_ratio = 0.4  # scores are tied: the first tokens of each frame are kept, and the last one
    kept = model(**inputs, output_router_scores=True).kept_indices[1]
    assert kept.tolist() == [[0, 4]] * 3
    assert (model(**inputs).logits - routed).abs().max() > 1e-3


@pytest.mark.parametrize(
    "kind, options",
    [
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16, "attention_bias": True}),
        ("qwen3", {"head_dim": 8, "num_hidden_layers": 3}),
        ("smollm3", {"no_rope_layers": [1, 0, 0, 1]}),
        ("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    ],
)
def test_llama_like_families_are_supported(tmp_path, kind, options):
    llm = save_language_model(tmp_path / "llm", "no start", kind, **options)
    model, processor = build(llm, save_tower(tmp_path / "vision"))
    stock, ids = AutoModelForCausalLM.from_pretrained(llm), torch.randint(5, 200, (2, 17))
    assert_same_text(model, stock, ids)
    text = model.config.text_config
    assert text.qk_norm == (kind == "qwen3")
    assert list(text.no_rope_layers) == {4: [1, 2], 5: [3]}.get(text.num_hidden_layers, []) * (kind == "smollm3")

    model.save_pretrained(tmp_path / "built")
    again = VideoLLMMoDForConditionalGeneration.from_pretrained(tmp_path / "built")
    assert_same_text(again, stock, ids)
    session = again.stream(processor, max_new_tokens=4, speak_threshold=1.0)  # frames are routed, words cached
    said = [event.text for frame in frames(3) for event in session.push(frame[None])]
    assert len(said) == 3 and session.ask("why?")[0].kind == "answer"


@pytest.mark.parametrize("text", [{"qk_norm": True}, {"no_rope_layers": [0, 3]}])
@pytest.mark.parametrize("seed", range(2))
@torch.no_grad()
def test_streams_in_pieces_equal_one_pass(text, seed):
    """Normalised queries and keys, and layers without rotary embeddings, with routing and a cache."""
    model = tiny_model(seed, **text)
    for name, weight in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.uniform_(weight, 0.3, 2.0)
    _, (row,) = random_batch(model, seed, [4])
    expected, ids, features = model(**row).logits, row["input_ids"], row["video_features"]
    cache, parts, at, seen = MoDCache(model.config), [], 0, 0
    cuts = frame_cuts(ids[0].tolist(), model.config.num_frame_tokens, random.Random(seed))
    for cut in [*cuts, ids.shape[1]]:
        own = ids[:, at:cut]
        count = int((own == model.config.video_token_id).sum()) // model.config.num_frame_tokens
        inputs = {"video_features": features[seen : seen + count]} if count else {}
        if own.shape[1]:
            parts.append(model(input_ids=own, past_key_values=cache, **inputs).logits)
        at, seen = cut, seen + count
    assert_near(torch.cat(parts, dim=1), expected)


def test_spare_vocabulary_rows_and_multiples(tmp_path):
    llm, vision = save_language_model(tmp_path / "llm", spare=10), save_tower(tmp_path / "vision")
    stock, words = AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)
    model, processor = build(llm, vision)
    assert model.lm_head.weight.shape[0] == len(words) + 10
    assert processor.video_token_id == len(words)
    model, _ = build(stock, vision, tokenizer=words, pad_to_multiple_of=64)
    assert model.lm_head.weight.shape[0] % 64 == 0
    assert len(words) == processor.video_token_id  # the given tokenizer is not changed
    assert_same_text(model, stock, torch.randint(5, 200, (1, 9)))


def test_padding_rows_of_the_vocabulary_are_never_generated(tmp_path):
    llm, vision = save_language_model(tmp_path / "llm"), save_tower(tmp_path / "vision")
    model, processor = build(llm, vision, pad_to_multiple_of=64)
    words = len(processor.tokenizer)
    assert model.lm_head.weight.shape[0] > words
    sampler = model.stream(processor).sampler
    logits = torch.zeros(model.lm_head.weight.shape[0])
    logits[words:] = 9.0  # an untrained row may have any score
    logits[processor.video_token_id], logits[7] = 9.0, 1.0
    assert sampler([], logits) == 7


def test_unsupported_components_are_refused(tmp_path):
    llm, vision = save_language_model(tmp_path / "llm"), save_tower(tmp_path / "vision")
    window = save_language_model(tmp_path / "window", kind="mistral", sliding_window=8)
    for arguments, message in [
        ((vision, vision), "`llm` is of the type 'siglip_vision_model'"),
        ((llm, llm), "`vision` has a tower of the type 'llama'"),
        ((window, vision), "sliding window of 8"),
        ((AutoModelForCausalLM.from_pretrained(llm), vision), "`tokenizer` is needed"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(*arguments)
    for options, message in [
        ({"keep": 1}, "unknown option 'keep'"),
        ({"mod_keep_ratio": 0.0}, "`mod_keep_ratio`"),
        ({"pad_to_multiple_of": 0}, "`pad_to_multiple_of`"),
        ({"video_token": "a"}, "`video_token` 'a' is a word"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(llm, vision, **options)


def load_elsewhere(path: str) -> dict:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    references = (
        "processing_videollm_mod.VideoLLMMoDProcessor",
        "modeling_videollm_mod.VideoLLMMoDForConditionalGeneration",
    )
    classes = (get_class_from_dynamic_module(reference, path) for reference in references)  # from the folder
    processor, model = (own.from_pretrained(path) for own in classes)
    with torch.no_grad():
        logits = model(**inputs_with_frames(model, processor)).logits
    return {"logits": logits.tolist(), "ratio": model.keep_ratio, "class": type(model).__module__}


def test_build_command_writes_a_hub_folder(tmp_path, capsys):
    llm, vision = save_language_model(tmp_path / "llm", "metaspace"), save_tower(tmp_path / "vision", "clip")
    output = tmp_path / "built"
    command = ["build", "--llm", str(llm), "--vision", str(vision), "--output", str(output), "--keep-ratio", "0.5"]
    assert cli.main(command) == 0
    assert (output / "building.py").is_file()
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(output)
    from videollm_mod import VideoLLMMoDProcessor

    with torch.no_grad():
        here = model(**inputs_with_frames(model, VideoLLMMoDProcessor.from_pretrained(output))).logits
    there = run_fresh(load_elsewhere, tmp_path / "fresh", output, HF_HUB_OFFLINE="1")
    assert there["ratio"] == 0.5 and there["class"].startswith("transformers_modules")
    assert_near(torch.tensor(there["logits"]), here)
    capsys.readouterr()
    assert cli.main(command) == 2
    assert capsys.readouterr().err == f"error: `output` must be a new or empty folder, got {output}\n"


def test_reply_ends_at_any_eos_token_of_the_language_model(tmp_path):
    """A chat model may have several, but the tokenizer names only one."""
    llm, vision = save_language_model(tmp_path / "llm"), save_tower(tmp_path / "vision")
    stock, words = AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)
    other = words.convert_tokens_to_ids("a")
    stock.generation_config.eos_token_id = [other, words.eos_token_id]
    model, processor = build(stock, vision, tokenizer=words)
    for end in (other, words.eos_token_id):
        session = model.stream(processor, max_new_tokens=8)
        script = iter([words.convert_tokens_to_ids("b"), end])
        session.sampler.processors = lambda ids, scores, script=script: torch.nn.functional.one_hot(
            torch.tensor([next(script)]), scores.shape[-1]
        )
        assert session.ask("why?")[0].text == "b"
        assert session.state.pending == [words.eos_token_id]


def test_quantised_weights_and_dynamic_rope_are_refused(tmp_path):
    llm, vision = save_language_model(tmp_path / "llm"), save_tower(tmp_path / "vision")
    eight_bit = AutoModelForCausalLM.from_pretrained(
        llm, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map={"": "cpu"}
    )
    eight_bit.save_pretrained(tmp_path / "8bit")
    words = AutoTokenizer.from_pretrained(llm)
    for given in (eight_bit, tmp_path / "8bit"):
        with pytest.raises(ValueError, match="`llm` is quantised"):
            build(given, vision, tokenizer=words)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ValueError, match="rope_type 'dynamic', which change with the length"):
        build(save_language_model(tmp_path / "rope", rope_parameters=rope), vision)


def test_gaps_in_the_token_ids_are_refused(tmp_path):
    """A tokenizer's new token gets the number of tokens as its id, even if that id is taken."""
    llm, vision = save_language_model(tmp_path / "llm", spare=1), save_tower(tmp_path / "vision")
    file = tmp_path / "llm" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] += 1
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the ids of `tokenizer` have gaps"):
        build(llm, vision)


def test_build_command_accepts_a_tower_without_pooling_head(tmp_path, capsys):
    llm, vision = save_language_model(tmp_path / "llm"), tmp_path / "vision"
    SiglipVisionModel(SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, vision_use_head=False)).save_pretrained(
        vision
    )
    command = ["build", "--llm", str(llm), "--vision", str(vision), "--output", str(tmp_path / "built")]
    assert cli.main(command) == 2
    assert "no pooling head" in (error := capsys.readouterr().err) and "`--no-class-token`" in error
    assert cli.main([*command, "--no-class-token"]) == 0
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(tmp_path / "built")
    assert model.encode_frames(torch.zeros(1, 3, 32, 32)).pooler_output.shape == (1, 9, TOWER["hidden_size"])
