"""LLaVA-OneVision's images: one is cut into tiles whose tokens are joined, several are not. Pixels, ids, scores and
words are those of the stock classes."""

import numpy as np
import pytest
import torch
from comparing import assert_near
from PIL import Image
from stock_vlms import save_vlm, stock_vlm, vlm_tokenizer
from test_family_pixels import grey_levels, picture
from transformers import AutoModelForImageTextToText, LlavaOnevisionProcessor, pipeline
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from videollm_mod.configuration_videollm_mod import ImageTiling, VideoLLMMoDConfig
from videollm_mod.modeling_videollm_mod import VideoLLMMoDForConditionalGeneration

OPTIONS = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
SIDE = 24  # pixels of a tile of the stock models here, of 6 x 6 patches


def sizes_up_to(rows: int, columns: int, side: int = SIDE) -> list[list[int]]:
    return [[side * r, side * c] for r in range(1, rows + 1) for c in range(1, columns + 1)]


CASES = {
    "onevision": {"text": "qwen2", "image_grid_pinpoints": sizes_up_to(3, 3)},
    "scaled down": {"image_grid_pinpoints": sizes_up_to(3, 3), "vision_aspect_ratio": "anyres_max_2", "seed": 1},
    "odd, tied": {
        "text": "qwen2",
        "side": 5,
        "image_grid_pinpoints": sizes_up_to(2, 4, 20),
        "language": {"tie_word_embeddings": True},
    },
    "clip": {
        "tower": "clip_vision_model",
        "vision_feature_select_strategy": "default",
        "image_grid_pinpoints": sizes_up_to(2, 2),
    },
    "layers": {"text": "qwen3", "vision_feature_layer": [-1, -3], "image_grid_pinpoints": [[SIDE, 2 * SIDE]]},
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """The stock model, ours, and its processor, from one folder."""
    folder = save_vlm(tmp_path_factory.mktemp("vlm"), "llava_onevision", **CASES[request.param])
    stock = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return stock, *VideoLLMMoDForConditionalGeneration.from_vlm(folder)


def message(*images, text: str = "What is 12?") -> list[dict]:
    blocks = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": text}]}]


def assert_same_scores(stock, model, inputs, newline_is_given: bool = False) -> None:
    """inputs: of our processor. The stock class takes the same ones, but for its videos."""
    theirs, newline = dict(inputs), model.config.image_newline_token_id
    if newline_is_given:
        ids = inputs["input_ids"]
        theirs["input_ids"] = torch.where(ids == newline, model.config.video_token_id, ids)
        theirs["pixel_values_videos"] = inputs["pixel_values_videos"][None]
    valid = inputs["attention_mask"].bool()
    expected = stock(**theirs).logits[valid]
    logits = model(**inputs).logits[valid][..., : expected.shape[-1]].clone()
    if newline < expected.shape[-1]:  # an unused row of the stock class
        logits[..., newline] = expected[..., newline]
    assert_near(logits, expected)
    assert logits.std() > 0.1
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    said = stock.generate(**theirs, **options, suppress_tokens=model.generation_config.suppress_tokens)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(model.generate(**inputs, **options)[:, length:], said[:, length:])


@pytest.mark.parametrize("size", [(30, 70), (70, 30), (24, 24), (5, 9), (200, 21), (7, 300), (64, 65)], ids=str)
@torch.no_grad()
def test_an_image_of_any_size(pair, size):
    stock, model, processor = pair
    inputs = processor.apply_chat_template(message(picture(*size)), **OPTIONS)
    assert inputs["image_sizes"].tolist() == [list(size)] and "pixel_values_videos" not in inputs
    assert len(inputs["pixel_values"]) > 1
    assert_same_scores(stock, model, inputs)


@torch.no_grad()
def test_several_images_rows_and_videos(pair):
    stock, model, processor = pair
    images = [picture(20 + 9 * index, 60 - 11 * index, index) for index in range(4)]
    several = message(*images[:3])
    inputs = processor.apply_chat_template(several, **OPTIONS)
    assert inputs["batch_num_images"].tolist() == [3] and len(inputs["pixel_values"]) == 3
    assert_same_scores(stock, model, inputs)
    later = [*message(images[0]), {"role": "assistant", "content": "A cat."}, *message(text="Now?")]
    rows = processor.apply_chat_template([later, several, message(images[3])], **OPTIONS)
    assert rows["batch_num_images"].tolist() == [1, 3, 1]
    assert_same_scores(stock, model, rows)
    mixed = message(images[1])
    mixed[0]["content"].insert(0, {"type": "video", "video": np.stack([picture(20, 30, i) for i in range(2)])})
    inputs = processor.apply_chat_template(mixed, **OPTIONS)
    assert len(inputs["pixel_values_videos"]) == 2
    assert_same_scores(stock, model, inputs, newline_is_given=True)


def stock_processor(model, side: int, sizes: list[list[int]], **options) -> LlavaOnevisionProcessor:
    processor = object.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens, processor.vision_feature_select_strategy = model.config.patches_per_side**2, "full"
    processor.image_token, processor.vision_aspect_ratio = "<image>", options.pop("aspect", "anyres_max_9")
    processor.image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side}, image_grid_pinpoints=sizes, **options
    )
    return processor


@pytest.mark.parametrize("images", [[(90, 60)], [(41, 333)], [(700, 10)], [(33, 32)], [(50, 20), (64, 100), (30, 30)]])
@pytest.mark.parametrize("name", ["onevision", "scaled down"])
@torch.no_grad()
def test_pixels_and_placeholders_are_those_of_the_stock_processor(tmp_path, name, images):
    folder = save_vlm(tmp_path, "llava_onevision", **CASES[name])
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(folder)
    own = processor.video_processor
    options = {"image_mean": own.image_mean, "image_std": own.image_std, "resample": own.resample}
    options["aspect"] = CASES[name].get("vision_aspect_ratio", "anyres_max_9")
    theirs = stock_processor(model, SIDE, CASES[name]["image_grid_pinpoints"], **options)
    pictures = [Image.fromarray(picture(*size, seed)) for seed, size in enumerate(images)]
    expected = theirs.image_processor([pictures], return_tensors="pt")
    ours = processor.apply_chat_template(message(*pictures), **OPTIONS)
    tiles = expected["pixel_values"].flatten(0, 1)
    assert ours["pixel_values"].shape == tiles.shape
    assert grey_levels(ours["pixel_values"], tiles, theirs.image_processor) <= 1.001
    assert ours["image_sizes"].tolist() == expected["image_sizes"].tolist() == [list(size) for size in images]
    slots = [theirs.replace_image_token(expected, index).count("<image>") for index in range(len(images))]
    assert int((ours["input_ids"] == model.config.image_token_id).sum()) == sum(slots)
    text = processor.apply_chat_template(message(*pictures), add_generation_prompt=True)
    called = processor(text, images=[pictures], return_tensors="pt")
    assert all(torch.equal(called[key], ours[key]) for key in ours)
    if len(images) > 1:  # not nested, each counts as the only image of its text
        apart, flat = processor(text, images=pictures), theirs.image_processor(pictures)
        assert apart["batch_num_images"].tolist() == list(flat["batch_num_images"])
        slots = [theirs.replace_image_token(flat, index).count("<image>") for index in range(len(images))]
        assert apart["input_ids"][0].count(model.config.image_token_id) == sum(slots)
    padded = {**ours, "pixel_values": expected["pixel_values"]}  # [images, tiles, 3, H, W], as the stock processor
    assert_near(model(**padded).logits, model(**{**ours, "pixel_values": tiles}).logits)


@pytest.mark.parametrize("size", [(1, 1), (384, 384), (1000, 333), (480, 640), (2304, 2304), (3000, 100), (385, 383)])
def test_published_grids(size):
    """The numbers of tokens with the 36 sizes and 27 x 27 patches of the published checkpoints."""
    stock = object.__new__(LlavaOnevisionProcessor)
    stock.num_image_tokens, stock.vision_aspect_ratio = 27 * 27, "anyres_max_9"
    stock.image_processor = LlavaOnevisionImageProcessorPil()
    ours = ImageTiling(stock.image_processor.image_grid_pinpoints, side=384, patches=27, max_tiles=9)
    assert ours.num_tokens(size) == stock._get_number_of_features(*size, 384, 384)
    assert ours.num_tokens(size, is_tiled=False) == 27 * 27 + 1


@torch.no_grad()
def test_generation_keeps_the_images_of_rows_apart():
    """Beams and several sequences repeat rows, and so their images; without a cache the images are read again."""
    stock = stock_vlm("llava_onevision", **CASES["onevision"])
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(stock, vlm_tokenizer("llava_onevision"))
    chats = [message(picture(30, 70)), message(*[picture(20, 20, seed) for seed in (1, 2)])]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "num_beams": 3, "num_return_sequences": 2}
    rows = processor.apply_chat_template(chats, **OPTIONS)
    together = model.generate(**rows, **options)[:, rows["input_ids"].shape[1] :]
    singly = []
    for chat in chats:
        inputs = processor.apply_chat_template(chat, **OPTIONS)
        singly.append(model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :])
        again = model.generate(**inputs, **options, use_cache=False)[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(singly[-1], again)
    assert torch.equal(together, torch.cat(singly))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    given = {**inputs, "inputs_embeds": embeds}
    del given["input_ids"]
    assert torch.equal(model.generate(**given, **options), singly[-1])


@torch.no_grad()
def test_tokens_of_images_enter_every_layer():
    stock = stock_vlm("llava_onevision", **CASES["onevision"])
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(
        stock, vlm_tokenizer("llava_onevision"), mod_keep_ratio=0.2
    )
    inputs = processor.apply_chat_template(message(picture(30, 70)), **OPTIONS)
    cache = model(**inputs).past_key_values
    lengths = {layer.get_seq_length() for layer in cache.layers}
    assert lengths == {inputs["input_ids"].shape[1]}
    assert_same_scores(stock, model, inputs)


def test_the_pipeline_takes_an_image(tmp_path):
    folder = save_vlm(tmp_path / "stock", "llava_onevision", **CASES["onevision"])
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(folder)
    model.save_pretrained(tmp_path / "built")
    processor.save_pretrained(tmp_path / "built")
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(tmp_path / "built")
    again = type(processor).from_pretrained(tmp_path / "built")
    assert again.video_processor.image_tiling == processor.video_processor.image_tiling == model.config.image_tiling
    pipe = pipeline("image-text-to-text", model=model, processor=again)
    options = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    chats = [message(Image.fromarray(picture(30, 70, seed))) for seed in range(2)]
    alone = [pipe(text=chat, **options)[0]["generated_text"] for chat in chats]
    batched = pipe(text=chats, batch_size=2, **options)
    assert [one[0]["generated_text"] for one in batched] == alone
    text = processor.apply_chat_template(chats[1], add_generation_prompt=True)
    assert pipe(images=Image.fromarray(picture(30, 70, 1)), text=text, **options)[0]["generated_text"] == alone[1]


def test_images_that_do_not_fit_are_refused():
    stock = stock_vlm("llava_onevision", **CASES["onevision"])
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(stock, vlm_tokenizer("llava_onevision"))
    inputs = processor.apply_chat_template(message(picture(30, 70)), **OPTIONS)
    fewer = {**inputs, "input_ids": inputs["input_ids"][:, 20:], "attention_mask": None}
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="images and placeholders do not match"):
            call(**fewer)
        with pytest.raises(ValueError, match="images and tiles do not match: `pixel_values` holds 6, not .7."):
            call(**{**inputs, "pixel_values": inputs["pixel_values"][:-1]})
    llava, _ = VideoLLMMoDForConditionalGeneration.from_vlm(stock_vlm("llava"), vlm_tokenizer("llava"))
    for other, given in ((llava, inputs), (model, {**inputs, "image_sizes": None})):
        with pytest.raises(ValueError, match="`pixel_values` need `image_sizes` and `image_tiling`"):
            other(**given)
    with pytest.raises(ValueError, match="would cut frames"):
        processor.apply_chat_template(message(picture(30, 70)), **OPTIONS, truncation=True, max_length=30)
    stock.config.vision_aspect_ratio = "square"
    with pytest.raises(ValueError, match="`vision_aspect_ratio` such as 'anyres_max_9', got 'square'"):
        VideoLLMMoDForConditionalGeneration.from_vlm(stock, vlm_tokenizer("llava_onevision"))
    tiling = model.config.image_tiling
    for changed, error in [
        ({"sizes": [[24, 30]]}, "in multiples of 24 pixels, got"),
        ({"sizes": []}, "in multiples of 24 pixels, got"),
        ({"patches": 5}, "of 24 pixels and 6 tokens a side, as the vision tower has, got 24 and 5"),
        ({"max_tiles": 0}, "`max_tiles` of an image tiling must be a positive integer, got 0"),
        ({"tiles": 2}, "`image_tiling` must hold the arguments of `ImageTiling`"),
    ]:
        with pytest.raises(ValueError, match=error):
            VideoLLMMoDConfig(**{**model.config.to_dict(), "image_tiling": {**tiling, **changed}})
    with pytest.raises(ValueError, match="`image_tiling` needs `image_token_id` and `image_newline_token_id`"):
        VideoLLMMoDConfig(**{**model.config.to_dict(), "image_token_id": None})
