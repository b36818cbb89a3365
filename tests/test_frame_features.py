"""How the patches of a frame become tokens: equal to the stock classes of LLaVA-OneVision, SmolVLM and Idefics3."""

import pytest
import torch
from comparing import assert_near
from tiny_models import VISION, random_batch, tiny_config, tiny_model
from transformers import (
    Idefics3Config,
    Idefics3Model,
    LlavaOnevisionConfig,
    LlavaOnevisionModel,
    SmolVLMConfig,
    SmolVLMModel,
)

from videollm_mod.configuration_videollm_mod import VideoLLMMoDConfig
from videollm_mod.modeling_videollm_mod import VideoLLMMoDModel

TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOWER = VISION["siglip_vision_model"]


def randomised(model, seed: int):
    torch.manual_seed(seed)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def as_ours(stock, connector: dict, **options) -> VideoLLMMoDModel:
    """Our model of the stock tower and the stock connector, whose parts are named by `connector`."""
    tower = getattr(stock, "vision_tower", None) or stock.vision_model
    config = VideoLLMMoDConfig(
        text_config=TEXT, vision_config=tower.config.to_dict(), frame_token_cls=False, **options
    )
    model = VideoLLMMoDModel(config).eval()
    model.vision_tower.load_state_dict(tower.state_dict())
    model.connector.load_state_dict({name: part.state_dict()["weight"] for name, part in connector.items()})
    return model


@pytest.mark.parametrize("config_class, model_class", [(SmolVLMConfig, SmolVLMModel), (Idefics3Config, Idefics3Model)])
@pytest.mark.parametrize("side, factor", [(6, 2), (12, 3), (19, 1), (25, 5), (8, 4)])
@torch.no_grad()
def test_pixel_shuffle_equals_stock(config_class, model_class, side, factor):
    vision = {**TOWER, "image_size": 4 * side, "patch_size": 4}
    text = {"model_type": "llama", "pad_token_id": 0, **TEXT}
    config = config_class(text_config=text, vision_config=vision, scale_factor=factor, image_token_id=3)
    stock = randomised(model_class(config), side)
    model = as_ours(
        stock,
        {"linear_1.weight": stock.connector.modality_projection.proj},
        frame_token_pooled=[side // factor] * 2,
        frame_pooling="pixel_shuffle",
        connector_type="linear",
        connector_bias=False,
    )
    pixels = torch.randn(3, 3, 4 * side, 4 * side)
    expected = stock.get_image_features(pixels[None]).pooler_output
    assert_near(model.get_video_features(pixels).pooler_output, torch.stack(list(expected)).view(3, -1, 32))
    assert model.encode_frames(pixels).pooler_output.shape[1:] == model.config.video_feature_shape

    mask = torch.zeros(3, 4 * side, 4 * side, dtype=torch.bool)
    for own, (rows, columns) in zip(mask, [(4 * side, 9), (5, 4 * side), (4 * side - 4, 4 * side - 3)], strict=True):
        own[:rows, :columns] = True
    expected = stock.get_image_features(pixels[None], mask[None]).pooler_output
    actual = model.get_video_features(pixels, pixel_attention_mask=mask).pooler_output
    assert_near(actual, torch.stack(list(expected)).view(3, -1, 32))


@pytest.mark.parametrize("side", [2, 5, 6, 9])
@pytest.mark.parametrize("layers", [-1, [0, -2]])
@torch.no_grad()
def test_bilinear_pooling_equals_stock(side, layers):
    vision = {"model_type": "siglip_vision_model", **TOWER, "image_size": 4 * side, "patch_size": 4}
    text = {"model_type": "qwen2", **TEXT}
    options = {"vision_feature_layer": layers, "projector_hidden_act": "gelu", "multimodal_projector_bias": False}
    config = LlavaOnevisionConfig(
        text_config=text, vision_config=vision, image_token_index=3, video_token_index=4, **options
    )
    stock = randomised(LlavaOnevisionModel(config), side)
    projector = stock.multi_modal_projector
    model = as_ours(
        stock,
        {"linear_1.weight": projector.linear_1, "linear_2.weight": projector.linear_2},
        vision_feature_layer=layers,
        frame_token_pooled=[-(-side // 2)] * 2,
        frame_pooling="bilinear",
        connector_bias=False,
    )
    pixels = torch.randn(3, 3, 4 * side, 4 * side)
    tokens = 3 * (-(-side // 2)) ** 2  # some releases add the newline of the video here
    expected = stock.get_video_features(pixels[None]).pooler_output[0, :tokens].view(3, -1, 32)
    assert_near(model.get_video_features(pixels).pooler_output, expected)
    assert not any(part._forward_hooks for part in model.vision_tower.modules())  # graphs are captured without
    assert model.encode_frames(pixels).pooler_output.shape[1:] == model.config.video_feature_shape
    outputs = model.encode_frames(pixels, output_hidden_states=True)  # by the tower itself
    assert len(outputs.hidden_states) == 3
    assert_near(model.train().get_video_features(pixels).pooler_output, expected)


@torch.no_grad()
def test_first_patch_is_dropped():
    config = tiny_config(pooled=(3, 3), cls=False)
    whole = tiny_model(1, config).eval()
    config.drop_first_patch = True
    pixels = torch.randn(2, 3, 24, 24)
    features = whole.encode_frames(pixels).pooler_output
    assert features.shape == (2, 8, 16)
    config.drop_first_patch = False
    assert_near(features, whole.encode_frames(pixels).pooler_output[:, 1:])


def test_wrong_masks_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="'siglip_vision_model' takes no `pixel_attention_mask`"):
        model.model.encode_frames(torch.zeros(1, 3, 24, 24), pixel_attention_mask=torch.ones(1, 24, 24))
    vision = {"model_type": "smolvlm_vision", **TOWER}
    model = VideoLLMMoDModel(VideoLLMMoDConfig(text_config=TEXT, vision_config=vision, frame_token_cls=False))
    with pytest.raises(ValueError, match=r"`pixel_attention_mask` must be \[1, 24, 24\], got \[1, 8, 8\]"):
        model.encode_frames(torch.zeros(1, 3, 24, 24), pixel_attention_mask=torch.ones(1, 8, 8))


@torch.no_grad()
def test_without_a_separator_its_former_id_is_text():
    """Frames follow each other without one, and ids of text mean nothing to the layout."""
    config = tiny_config(mod_keep_ratio=0.4)
    config.frame_separator_token_id, config.image_newline_token_id = None, 9
    model = tiny_model(0, config)
    assert model.generation_config.suppress_tokens == [3, 9]
    batch, _ = random_batch(model, 0, [3])
    layout = model.model.lay_out(batch["input_ids"])
    assert layout.num_frames == 3 and not layout.is_separator.any()
    assert model(**batch).logits.isfinite().all()
