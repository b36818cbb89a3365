"""Models built from stock ones that read images: equal to them for the same tokens and pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import assert_near, assert_same_cache
from fresh_process import run_fresh
from stock_models import save_language_model
from stock_vlms import CLASSES, save_vlm, stock_vlm, vlm_tokenizer, with_small_pictures
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLConfig

from videollm_mod import VideoLLMMoDForConditionalGeneration, building, steps, streaming
from videollm_mod.cache import MoDCache
from videollm_mod.commands import cli
from videollm_mod.static_graphs import StaticLanguageModel
from videollm_mod.static_step import PlainOps
from videollm_mod.steps import Feed

LLAVA_CLIP = {"kind": "llava", "tower": "clip_vision_model"}
CASES = {
    "llava 1.5": {**LLAVA_CLIP, "vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
    "llava, class token": {**LLAVA_CLIP, "vision_feature_select_strategy": "full", "side": 5},
    "llava, layers": {**LLAVA_CLIP, "vision_feature_layer": [-1, 1, -3], "language": {"num_hidden_layers": 2}},
    "llava, mistral": {**LLAVA_CLIP, "text": "mistral", "language": {"sliding_window": None}, "side": 3, "seed": 3},
    "interleave": {
        "kind": "llava",
        "text": "qwen2",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision": {"vision_use_head": False},
    },
    "llava, siglip, default": {"kind": "llava", "text": "qwen3", "multimodal_projector_bias": False, "side": 4},
    "llava, siglip, layers": {"kind": "llava", "vision_feature_layer": [0, -2], "projector_hidden_act": "relu"},
    "onevision": {"kind": "llava_onevision", "text": "qwen2", "side": 6, "vision": {"vision_use_head": False}},
    "onevision, odd": {"kind": "llava_onevision", "text": "qwen2", "side": 9, "seed": 1, "spare": 0},
    "onevision, layers": {"kind": "llava_onevision", "text": "qwen3", "side": 5, "vision_feature_layer": [-1, -3]},
    "onevision, tied": {"kind": "llava_onevision", "text": "qwen2", "language": {"tie_word_embeddings": True}},
    "onevision, clip": {
        "kind": "llava_onevision",
        "tower": "clip_vision_model",
        "vision_feature_select_strategy": "default",
    },
    "onevision, one head": {"kind": "llava_onevision", "side": 1, "vision": {"num_attention_heads": 1}},
    "smolvlm": {"kind": "smolvlm", "scale_factor": 2},
    "smolvlm, smollm3": {"kind": "smolvlm", "scale_factor": 3, "text": "smollm3"},
    "smolvlm, 19 a side": {"kind": "smolvlm", "side": 19, "patch": 2, "scale_factor": 1, "seed": 2},
    "smolvlm, 25 a side": {"kind": "smolvlm", "side": 25, "patch": 3, "scale_factor": 5},
    "smolvlm, tied": {"kind": "smolvlm", "side": 12, "scale_factor": 4, "tie_word_embeddings": True},
    "idefics3, tied in words": {"kind": "idefics3", "scale_factor": 2, "language": {"tie_word_embeddings": True}},
    "idefics3": {"kind": "idefics3", "side": 6, "scale_factor": 3},
    "idefics3, 29 a side": {"kind": "idefics3", "side": 29, "patch": 2, "scale_factor": 29, "seed": 4},
}


def built(stock, kind: str, **options):
    return VideoLLMMoDForConditionalGeneration.from_vlm(stock, vlm_tokenizer(kind), **options)


def words(count: int, seed: int) -> list[int]:
    return torch.randint(5, 200, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def prompt(model, counts: list[int], seed: int) -> list[int]:
    """Ids with a group of adjacent frames for each of `counts`, and words around them."""
    ids, frame = words(4, seed), [model.config.video_token_id] * model.config.num_frame_tokens
    for index, count in enumerate(counts):
        ids += frame * count
        if model.config.image_newline_token_id is not None:
            ids.append(model.config.image_newline_token_id)
        ids += words(3, seed + index + 1)
    return ids


def stock_inputs(stock, model, ids: list[int], pixels: torch.Tensor, counts: list[int]) -> dict:
    """The same inputs for the stock class."""
    newline, video = model.config.image_newline_token_id, model.config.video_token_id
    theirs = torch.tensor([[video if token == newline else token for token in ids]])
    if stock.config.model_type == "llava_onevision":
        assert len(set(counts)) == 1, "the stock class takes videos of one length"
        return {"input_ids": theirs, "pixel_values_videos": torch.stack(pixels.split(counts))}
    if stock.config.model_type == "llava":
        return {"input_ids": theirs, "pixel_values": pixels}
    return {"input_ids": theirs, "pixel_values": pixels[None]}


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    """`(stock model, ours)` of a case."""
    stock = stock_vlm(**CASES[request.param])
    return stock, built(stock, CASES[request.param]["kind"])[0]


@pytest.mark.parametrize("counts", [[1], [3], [2, 2]], ids=["one image", "video", "several"])
@torch.no_grad()
def test_logits_and_greedy_words_equal_the_stock_class(pair, counts):
    stock, model = pair
    side = stock.config.vision_config.image_size
    torch.manual_seed(len(counts))
    pixels = torch.randn(sum(counts), 3, side, side)
    ids = prompt(model, counts, seed=7)
    inputs, ours = stock_inputs(stock, model, ids, pixels, counts), {"input_ids": torch.tensor([ids])}
    ours["pixel_values_videos"] = pixels
    expected = stock(**inputs).logits
    logits = model(**ours).logits[..., : expected.shape[-1]].clone()
    newline = model.config.image_newline_token_id
    if newline is not None and newline < expected.shape[-1]:  # an unused row of the stock class
        logits[..., newline] = expected[..., newline]
    assert_near(logits, expected)
    assert logits.std() > 0.1 and expected.diff(dim=1).abs().max() > 0.1

    if len(counts) == 1:
        return  # greedy words follow from logits and the cache: those after several images are enough
    never = model.generation_config.suppress_tokens
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    said = stock.generate(**inputs, **options, suppress_tokens=never)[0, len(ids) :]
    assert torch.equal(model.generate(**ours, **options)[0, len(ids) :], said)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def asked(*media) -> list[dict]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": "What is 12?"}]}]


IMAGE = {"type": "image", "image": picture(30, 70, 0)}
VIDEO = {"type": "video", "video": np.stack([picture(20, 32, i) for i in range(3)])}


def prompt_of(stock, model, inputs, kind: str, media: list[dict]) -> dict:
    """The inputs of the stock class for what our processor made of videos or images."""
    ids, pixels = inputs["input_ids"][0].tolist(), inputs["pixel_values_videos"]
    tiles = kind in ("smolvlm", "idefics3") and media[0] is IMAGE
    assert len(pixels) == (7 if tiles else 1) * len(media) if media[0] is IMAGE else len(pixels) == 3
    frames = [1] * len(media) if media[0] is IMAGE else [3]
    return stock_inputs(stock, model, ids, pixels, frames)


@pytest.mark.parametrize("media", [[IMAGE], [VIDEO], [IMAGE, IMAGE]], ids=["image", "video", "images"])
@pytest.mark.parametrize("name", ["llava 1.5", "interleave", "onevision", "smolvlm", "idefics3"])
@torch.no_grad()
def test_prompts_of_the_family_equal_the_stock_class(tmp_path, name, media):
    """What the processor makes of messages: SmolVLM's tiles and its introduction of a video, OneVision's newline."""
    case = dict(CASES[name])
    kind = case.pop("kind")
    folder = save_vlm(tmp_path, kind, **case)
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(folder)
    stock = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = processor.apply_chat_template(
        asked(*media), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    if "pixel_values" in inputs:  # OneVision's images, which the stock class takes as they are
        expected = stock(**inputs).logits
    else:
        expected = stock(**prompt_of(stock, model, inputs, kind, media)).logits
    logits = model(**inputs).logits[..., : expected.shape[-1]].clone()
    if (newline := model.config.image_newline_token_id) is not None and newline < expected.shape[-1]:
        logits[..., newline] = expected[..., newline]
    assert_near(logits, expected)


@pytest.mark.parametrize("name", ["llava 1.5", "onevision, odd", "smolvlm"])
@pytest.mark.parametrize("keep_ratio", [1.0, 0.3])
@torch.no_grad()
def test_streamed_equals_one_pass(name, keep_ratio):
    stock = stock_vlm(**CASES[name])
    model, _ = built(stock, CASES[name]["kind"], mod_keep_ratio=keep_ratio)
    side, ids = stock.config.vision_config.image_size, prompt(model, [1, 2, 1], seed=3)
    pixels = torch.randn(4, 3, side, side)
    expected = model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels, output_router_scores=True)
    kept = [index.shape[1] for index in expected.kept_indices if index is not None]
    assert len(kept) == len(model.config.text_config.routed_layers)
    assert all(count < model.config.num_frame_tokens for count in kept) == (keep_ratio < 1)
    features, cache, parts = model.encode_frames(pixels).pooler_output, MoDCache(model.config), []
    at = seen = 0
    per_frame, video = model.config.num_frame_tokens, model.config.video_token_id
    ends = [i + 1 for i, token in enumerate(ids) if token == video and ids[: i + 1].count(video) % per_frame == 0]
    for cut in [*ends, len(ids)]:
        own = ids[at:cut]
        count = own.count(video) // per_frame
        inputs = {"video_features": features[seen : seen + count]} if count else {}
        parts.append(model(input_ids=torch.tensor([own]), past_key_values=cache, **inputs).logits)
        at, seen = cut, seen + count
    assert_near(torch.cat(parts, dim=1), expected.logits)
    text = model.config.text_config
    in_full = cache.layers[0].get_seq_length()
    assert in_full == len(ids) and cache.layers[text.routed_layers[0]].get_seq_length() == len(ids) - sum(
        [per_frame * 4 - 4 * kept[0]]
    )


def load_elsewhere(path: str, ids: str) -> dict:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    references = (
        "processing_videollm_mod.VideoLLMMoDProcessor",
        "modeling_videollm_mod.VideoLLMMoDForConditionalGeneration",
    )
    processor, model = (get_class_from_dynamic_module(own, path).from_pretrained(path) for own in references)
    model.eval()
    side = model.config.vision_config.image_size
    with torch.no_grad():
        pixels = torch.linspace(-1, 1, 2 * 3 * side * side).view(2, 3, side, side)
        logits = model(input_ids=torch.tensor([json.loads(ids)]), pixel_values_videos=pixels).logits
    mean = list(processor.video_processor.image_mean)
    return {"logits": logits.tolist(), "class": type(model).__module__, "mean": mean}


@pytest.mark.parametrize("name", ["onevision, odd", "smolvlm, tied"])
def test_build_command_writes_a_hub_folder(tmp_path, capsys, name):
    """A new process with the code in the folder computes the same as the stock class."""
    case = dict(CASES[name])
    kind, tied = case.pop("kind"), "tied" in name
    stock = save_vlm(tmp_path / "stock", kind, **case)
    assert cli.main(["build", "--vlm", str(stock), "--output", str(tmp_path / "built")]) == 0
    assert "parameters" in capsys.readouterr().out
    config = AutoConfig.from_pretrained(tmp_path / "built", trust_remote_code=True)
    assert config.speak_rule == "verify" and config.text_config.mod_keep_ratio == 1.0
    assert config.tie_word_embeddings == tied
    assert (tmp_path / "built" / "building.py").is_file()
    theirs = AutoModelForImageTextToText.from_pretrained(stock).eval()
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(tmp_path / "built")
    ids, side = prompt(model, [2], seed=1), config.vision_config.image_size
    pixels = torch.linspace(-1, 1, 2 * 3 * side * side).view(2, 3, side, side)
    with torch.no_grad():
        expected = theirs(**stock_inputs(theirs, model, ids, pixels, [2])).logits
    there = run_fresh(load_elsewhere, tmp_path / "fresh", tmp_path / "built", json.dumps(ids), HF_HUB_OFFLINE="1")
    logits = torch.tensor(there["logits"])[..., : expected.shape[-1]]
    if (newline := config.image_newline_token_id) is not None and newline < expected.shape[-1]:
        logits[..., newline] = expected[..., newline]
    assert_near(logits, expected)
    assert there["class"].startswith("transformers_modules") and there["mean"] == [0.5, 0.4, 0.3]


def test_a_given_model_stays_as_it_is_and_dtypes_are_kept():
    stock = stock_vlm("llava_onevision", text="qwen2").bfloat16()
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    model, processor = built(
        stock, "llava_onevision", stream_loss_weight=2.0, mod_layers="all", frame_token_pooled=[2, 1]
    )
    assert model.dtype == torch.bfloat16 and model.config.stream_loss_weight == 2.0
    assert model.config.num_frame_tokens == processor.num_frame_tokens == 2
    assert all(torch.equal(value, before[name]) for name, value in stock.state_dict().items())
    assert built(stock, "llava_onevision", dtype=torch.float32)[0].dtype == torch.float32
    vocabulary = processor.tokenizer.get_vocab()
    assert model.config.image_newline_token_id == vocabulary["<image_newline>"]
    image, video = vocabulary["<image>"], vocabulary["<video>"]
    assert {image, video, vocabulary["<image_newline>"]} <= set(model.generation_config.suppress_tokens)


def refused(stock, message: str, *arguments, **options) -> None:
    with pytest.raises((ValueError, OSError), match=message) as error:
        VideoLLMMoDForConditionalGeneration.from_vlm(stock, *arguments, **options)
    assert str(error.value).count("\n") == 0


def test_unsupported_models_are_refused_before_weights_are_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(building.AutoModelForImageTextToText, "from_pretrained", None)  # weights are never asked for
    save_vlm(tmp_path / "smolvlm", "smolvlm")
    save_vlm(tmp_path / "llava", "llava", tower="clip_vision_model")
    capsys.readouterr()

    def changed(source: str, name: str, **fields) -> Path:
        """A folder with the configuration of another one, except for some fields, and without weights."""
        path = tmp_path / name
        path.mkdir()
        config = json.loads((tmp_path / source / "config.json").read_text())
        for key, value in fields.items():
            config[key] = {**config[key], **value} if isinstance(value, dict) and key in config else value
        (path / "config.json").write_text(json.dumps(config))
        return path

    other = tmp_path / "other"
    Qwen2VLConfig().save_pretrained(other)
    refused(other, "`vlm` is of the type 'qwen2_vl'; supported are llava, llava_onevision, smolvlm, idefics3")
    for kind, why in {
        "internvl": "its vision tower is neither SigLIP nor CLIP",
        "qwen2_5_vl": "its positions count time, rows and columns",
        "mllama": "sees images by cross-attention",
        "paligemma": "its language model is a Gemma",
        "gemma3": "its language model is a Gemma",
        "video_llava": "its images and videos have towers of their own",
        "llava_next": "it always cuts images into tiles",
        "llava_next_video": "its frames and images are pooled differently",
        "vipllava": "its projector normalises",
        "idefics2": "no square grid of SigLIP's or CLIP's patches, or its language model is no Llama",
        "unknown": "no configuration that transformers can read",
    }.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind}))
        refused(tmp_path / kind, why)
    llm = save_language_model(tmp_path / "llm")
    refused(llm, "`vlm` is of the type 'llama'")
    quantised = changed(
        "llava", "quantised", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    )
    refused(quantised, "`vlm` is quantised")
    window = {"model_type": "mistral", "sliding_window": 8}
    refused(
        changed("llava", "window", text_config=window), "the language model of `vlm` has a sliding window of 8 tokens"
    )
    refused(
        changed("llava", "text", text_config={"model_type": "gemma"}),
        "the language model of `vlm` is of the type 'gemma'",
    )
    refused(
        changed("llava", "tower", vision_config={"model_type": "dinov2"}), "`vlm` has a tower of the type 'dinov2'"
    )
    refused(changed("smolvlm", "factor", scale_factor=4), "6 patches a side")
    refused(
        changed("smolvlm", "grey", vision_config={"num_channels": 1}), "square images of 3 channels, got 24 pixels"
    )
    refused(changed("smolvlm", "bare"), "`vlm` .*bare has no image processor; pass `processor`")
    without = changed("smolvlm", "without")
    (without / "preprocessor_config.json").write_text((tmp_path / "smolvlm" / "preprocessor_config.json").read_text())
    refused(without, "without has no tokenizer; pass `tokenizer`")
    refused(tmp_path / "a" / "b" / "c", "`vlm` must be a folder or the id of a model on the Hub")
    refused(tmp_path / "smolvlm", "unknown option 'keep'", keep=1)
    refused(tmp_path / "smolvlm", "`mod_keep_ratio` must be a number", mod_keep_ratio=2)
    refused(tmp_path / "smolvlm", "whose side divides the vision tower's 6, got", frame_token_pooled=[4, 4])

    output = tmp_path / "built"
    for arguments, message in [
        (["--vlm", str(llm)], "`vlm` is of the type 'llama'"),
        (["--vlm", str(without), "--llm", str(llm)], "give `--vlm`, or both `--llm` and `--vision`"),
        (["--vision", str(llm)], "give `--vlm`, or both `--llm` and `--vision`"),
        (["--vlm", str(without), "--no-class-token"], "`--no-class-token` goes with `--llm` and `--vision`"),
    ]:
        assert cli.main(["build", *arguments, "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
        assert not output.exists()


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_a_model_of_one_layer(kind):
    """The default `early_exit_layer` is at most the depth."""
    stock = stock_vlm(
        kind, language={"num_hidden_layers": 1}, **({"scale_factor": 2} if kind in ("smolvlm", "idefics3") else {})
    )
    model, _ = built(stock, kind)
    assert model.config.text_config.early_exit_layer == 1
    side, ids = stock.config.vision_config.image_size, prompt(model, [2], seed=2)
    pixels = torch.randn(2, 3, side, side)
    expected = stock(**stock_inputs(stock, model, ids, pixels, [2])).logits
    logits = model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels).logits[..., : expected.shape[-1]]
    known = torch.arange(expected.shape[-1]) != model.config.image_newline_token_id
    assert_near(logits[..., known], expected[..., known])


def test_given_models_need_a_head_and_their_own_tokenizer():
    stock = stock_vlm("smolvlm")
    refused(stock, "`processor` or `tokenizer` is needed")
    refused(stock.model, "`vlm` must have its language-modelling head", vlm_tokenizer("smolvlm"))
    silent = vlm_tokenizer("smolvlm")
    silent.chat_template = None
    refused(stock, "the processor of `vlm` has no chat template", silent)
    stock.config.image_token_id = 5000
    refused(stock, "`tokenizer` belongs to another model: it has no token of the id 5000", vlm_tokenizer("smolvlm"))
    clip = stock_vlm("llava_onevision", tower="clip_vision_model", vision_feature_select_strategy="full")
    refused(clip, "with which its patches are no square grid", vlm_tokenizer("llava_onevision"))
    assert set(building.FAMILIES) == set(CLASSES)


class RecordedFeed(Feed):
    """Every call of the language model, with its tokens."""

    calls: list[tuple[list[int], bool]] = []

    def __init__(self, model, cache, ids, features=None, *arguments, **options):
        super().__init__(model, cache, ids, features, *arguments, **options)
        self.calls.append((ids, features is not None))


@pytest.mark.parametrize("static", [False, True], ids=["model", "static"])
@pytest.mark.parametrize("name", ["llava 1.5", "interleave", "onevision, odd", "smolvlm", "idefics3"])
@torch.no_grad()
def test_the_first_narration_of_a_session_is_the_stock_class_s(monkeypatch, name, static):
    """For the same tokens, in steps and in calls of the model; later ones are equal in both."""
    stock = stock_vlm(**CASES[name])
    model, processor = built(stock, CASES[name]["kind"], default_query="What is 12?")
    with_small_pictures(processor)
    monkeypatch.setattr(RecordedFeed, "calls", [])
    monkeypatch.setattr(streaming, "Feed", RecordedFeed)
    steps_by_torch = StaticLanguageModel(model, PlainOps)
    found = (steps_by_torch, None) if static else (None, None)
    monkeypatch.setattr(steps, "static_language_model", lambda model: found)
    session = model.stream(processor, max_new_tokens=6, speak_threshold=1.0)
    images = np.stack([picture(24, 24, seed) for seed in range(4)])
    first = session.push(images[:1], [0.0])
    ids = [token for own, _ in RecordedFeed.calls[:2] for token in own]
    assert [has_frames for _, has_frames in RecordedFeed.calls[:2]] == [True, False]
    pixels = processor.video_processor(torch.from_numpy(images[:1]), return_tensors="pt")["pixel_values_videos"]
    inputs = stock_inputs(stock, model, ids, pixels, [1])
    never = model.generation_config.suppress_tokens
    said = stock.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0, suppress_tokens=never)[0, -6:]
    said = said[: said.tolist().index(processor.reply_stop_id)] if processor.reply_stop_id in said else said
    assert first[0].text == processor.tokenizer.decode(said, skip_special_tokens=True).strip()
    session.push(images[1:], [0.5, 1.0, 70.0])
    assert bool(steps_by_torch._steps) == static and steps_by_torch.why_not is None
    if static:
        monkeypatch.setattr(steps, "static_language_model", lambda model: (None, None))
        other = model.stream(processor, max_new_tokens=6, speak_threshold=1.0)
        other.push(images, [0.0, 0.5, 1.0, 70.0])
        assert_same_cache(session.cache, other.cache)


@pytest.mark.parametrize("name", ["onevision, odd", "smolvlm"])
@torch.no_grad()
def test_memory_is_bounded(name):
    model, processor = built(stock_vlm(**CASES[name]), CASES[name]["kind"], mod_keep_ratio=0.5)
    session = model.stream(with_small_pictures(processor), max_new_tokens=3, max_cached_frames=4)
    lengths = []
    for number in range(16):
        session.push(picture(24, 24, number)[None], [number / 2])
        lengths.append(session.cache.get_seq_length())
    assert max(lengths[8:]) <= max(lengths[:8]) and session.stats.frames == 16
