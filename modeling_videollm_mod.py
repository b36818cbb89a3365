"""VideoLLM-MoD (arXiv 2408.16730): a Llama in which most vision tokens skip the routed layers.

`VideoLLMMoDForConditionalGeneration.model` holds the vision tower, the connector and the routed language model
(`modeling_text`).

Shapes: B batch, T tokens of this call, F frames of this call over all rows in row order, N vision tokens per frame,
D hidden size of the language model, M features of a frame before the connector and Dv their size, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.utils import can_return_tuple, logging

from .cache import MoDCache
from .compat import CACHE_NAME, takes_either_cache_name
from .configuration_videollm_mod import HEADLESS_MODEL_TYPES, ImageTiling, VideoLLMMoDConfig, check_keep_ratio
from .containers import IGNORE_INDEX, check_finite
from .modeling_text import (
    VideoLLMMoDCausalLMOutputWithPast,
    VideoLLMMoDModelOutputWithPast,
    VideoLLMMoDPreTrainedModel,
    VideoLLMMoDTextModel,
    valid_tokens,
)
from .recomputing import head_losses
from .routing import LayerExpert, StreamLayout
from .speaking import StreamGenerationMixin
from .static_vision import is_plain, run
from .streaming import StreamingSession

logger = logging.get_logger(__name__)

TAGS = ["custom_code", "video", "streaming", "mixture-of-depths"]  # in the model card that `push_to_hub` writes


class VideoLLMMoDConnector(nn.Module):
    """Vision features `[F, M, Dv]` to token embeddings `[F, N, D]`: two linear layers with an activation between them,
    or one linear layer. With `frame_pooling="bilinear"` the result is pooled from M patches to N tokens."""

    def __init__(self, config: VideoLLMMoDConfig):
        super().__init__()
        self.config, hidden_size, bias = config, config.text_config.hidden_size, config.connector_bias
        self.linear_1 = nn.Linear(config.video_feature_shape[1], hidden_size, bias=bias)
        self.is_mlp = config.connector_type == "mlp"
        if self.is_mlp:
            self.act = ACT2FN[config.connector_act]
            self.linear_2 = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(self, video_features: torch.Tensor) -> torch.Tensor:
        tokens = self.project(video_features)
        return self.pooled(tokens) if self.config.frame_pooling == "bilinear" else tokens

    def project(self, video_features: torch.Tensor) -> torch.Tensor:
        """Features `[..., Dv]` to embeddings `[..., D]`, which are not pooled."""
        dtype = self.linear_1.weight.dtype
        if dtype.is_floating_point:  # quantised weights take any dtype
            video_features = video_features.to(dtype)
        tokens = self.linear_1(video_features)
        return self.linear_2(self.act(tokens)) if self.is_mlp else tokens

    def pooled(self, tokens: torch.Tensor) -> torch.Tensor:
        side, grid = self.config.patches_per_side, tuple(self.config.frame_token_pooled)
        tokens = tokens.transpose(1, 2).unflatten(2, (side, side))
        return nn.functional.interpolate(tokens, size=grid, mode="bilinear").flatten(2).transpose(1, 2)


def join_tiles(tokens: torch.Tensor, newline: torch.Tensor, size, tiling: ImageTiling) -> torch.Tensor:
    """The tokens of an image, `[K, D]`: those of the whole image, and then the rows of its tiles, each with a newline.

    Args:
        tokens (`[1 + tiles, P, D]`), newline (`[D]`), size: height and width of the image in pixels.
    """
    if len(tokens) == 1:
        return torch.cat([tokens[0], newline[None]])
    (rows, columns), side, (above, left) = tiling.grid(*size), tiling.patches, tiling.padding(*size)
    grid = tokens[1:].view(rows, columns, side, side, -1).permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)
    grid = grid[:, above : rows * side - above, left : columns * side - left]
    if tuple(grid.shape[1:]) != (smaller := tiling.token_grid(*size)):
        grid = nn.functional.interpolate(grid[None], smaller, mode="bilinear")[0]
    grid = torch.cat([grid, newline[:, None, None].expand(-1, grid.shape[1], 1)], dim=2)
    return torch.cat([tokens[0], grid.flatten(1).T])


class VideoLLMMoDModel(VideoLLMMoDPreTrainedModel):
    """Vision tower, connector and routed language model, without the language-modelling head."""

    def __init__(self, config: VideoLLMMoDConfig):
        super().__init__(config)
        config.check_frames()
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.connector = VideoLLMMoDConnector(config)
        self.language_model = VideoLLMMoDTextModel._from_config(config.text_config)
        self.add_model_tags(TAGS)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @property
    def keep_ratio(self) -> float:
        """Share of each frame's vision tokens that routed layers keep, in (0, 1]; can be set between calls."""
        return self.config.text_config.mod_keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: float) -> None:
        check_keep_ratio("keep_ratio", value)
        self.config.text_config.mod_keep_ratio = value

    def encode_frames(
        self, pixel_values_videos: torch.Tensor, pixel_attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The output of the vision tower. Its `pooler_output` holds the frames' features before the connector, as
        `video_features` takes them.

        Args:
            pixel_values_videos (`[F, 3, H, W]`): normalised frames.
            pixel_attention_mask (`bool [F, H, W]`, *optional*): False at padding, for the towers of SmolVLM and
                Idefics3, which ignore patches of padding alone.

        Returns:
            `pooler_output` `[F, M, Dv]` with the sizes of `config.video_feature_shape`: the class token (SigLIP
            `pooler_output`, CLIP the first token), then the patches of the features that `vision_feature_layer` names,
            pooled to h x w, row by row. M is N, except with `frame_pooling="bilinear"`, which pools after the
            connector.

        Raises:
            `ValueError`: if the frames are not `[F, 3, H, W]` of the tower's size, or not finite, or if a mask does
                not fit them or the tower.
        """
        vision = self.config.vision_config
        expected = (vision.num_channels, vision.image_size, vision.image_size)
        if pixel_values_videos.dim() != 4 or tuple(pixel_values_videos.shape[1:]) != expected:
            raise ValueError(
                f"`pixel_values_videos` must be [frames, {', '.join(map(str, expected))}], "
                f"got {list(pixel_values_videos.shape)}"
            )
        check_finite("pixel_values_videos", pixel_values_videos)
        if pixel_attention_mask is not None:
            kwargs["patch_attention_mask"] = self._patch_mask(pixel_attention_mask, pixel_values_videos)
        return self.frame_tokens(pixel_values_videos, **kwargs)

    def _patch_mask(self, mask: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """bool `[F, rows, columns]`: which patches have a pixel that is no padding."""
        vision = self.config.vision_config
        if vision.model_type not in HEADLESS_MODEL_TYPES:
            raise ValueError(f"a tower of the type {vision.model_type!r} takes no `pixel_attention_mask`")
        if mask.shape != pixels[:, 0].shape:
            raise ValueError(f"`pixel_attention_mask` must be {list(pixels[:, 0].shape)}, got {list(mask.shape)}")
        return nn.functional.max_pool2d(mask[:, None].float(), vision.patch_size)[:, 0] > 0

    def frame_tokens(self, pixel_values_videos: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """`encode_frames` without checking the frames."""
        pixels, layer = pixel_values_videos.to(self.vision_tower.dtype), self.config.vision_feature_layer
        if layer is None:
            outputs = self.vision_tower(pixels, return_dict=True, **kwargs)
            hidden = outputs.last_hidden_state
        elif not kwargs and is_plain(self.vision_tower):
            # transformers would keep all layers, and leave hooks in the tower, which ends its use in CUDA graphs
            hidden, _ = run(self.vision_tower, pixels, feature_layer=layer)
            outputs = BaseModelOutputWithPooling()
        else:
            outputs = self.vision_tower(pixels, return_dict=True, **{**kwargs, "output_hidden_states": True})
            layers = [layer] if isinstance(layer, int) else layer
            hidden = torch.cat([outputs.hidden_states[index] for index in layers], dim=-1)
            if not kwargs.get("output_hidden_states"):
                outputs.hidden_states = None  # all layers of all frames take much memory
        # before transformers 5.24 a tower without a pooling head has outputs without `pooler_output`
        class_token = getattr(outputs, "pooler_output", None)
        return BaseModelOutputWithPooling(**{**outputs, "pooler_output": self.tokens_of(hidden, class_token)})

    def tokens_of(self, hidden: torch.Tensor, class_token: torch.Tensor | None) -> torch.Tensor:
        """The frames' features `[F, M, Dv]` from the tower's hidden states `[F, P, Dv]` and `pooler_output`."""
        vision, patches, tokens = self.config.vision_config, hidden, []
        if vision.model_type == "clip_vision_model":
            class_token, patches = patches[:, 0], patches[:, 1:]
        if self.config.frame_token_cls:
            if class_token is None:
                raise ValueError(
                    "`frame_token_cls` needs a vision tower with a pooling head, got `vision_use_head=False`"
                )
            tokens.append(class_token[:, None])
        if self.config.frame_token_pooled is not None:
            tokens.append(self._pool(patches)[:, int(self.config.drop_first_patch) :])
        return torch.cat(tokens, dim=1)

    def _pool(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches `[F, P, Dv]` pooled to h x w; with `"bilinear"` the connector does it."""
        side, (height, width) = self.config.patches_per_side, self.config.frame_token_pooled
        if self.config.frame_pooling == "bilinear" or (height, width) == (side, side):
            return patches
        if self.config.frame_pooling == "pixel_shuffle":
            squares = patches.unflatten(1, (height, side // height, width, side // width))
            return squares.transpose(2, 3).flatten(3).flatten(1, 2)
        grid = patches.transpose(1, 2).unflatten(2, (side, side))
        return nn.functional.adaptive_avg_pool2d(grid, (height, width)).flatten(2).transpose(1, 2)

    @can_return_tuple
    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """As `encode_frames`, with `pooler_output` after the connector, `[F, N, D]`."""
        outputs = self.encode_frames(pixel_values_videos, **kwargs)
        outputs.pooler_output = self.connector(outputs.pooler_output)
        return outputs

    def get_image_features(
        self, pixel_values: torch.Tensor, image_sizes: Any, batch_num_images: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The tokens of images that are cut into tiles, `[K, D]`, one image after the other.

        Args:
            pixel_values (`[tiles, 3, H, W]`): normalised, of each image the whole image and then its tiles; or
                `[images, tiles, 3, H, W]`, padded at the end.
            image_sizes (`int64 [images, 2]`): heights and widths in pixels.
            batch_num_images (`int64 [B]`, *optional*): images of each row. Several images of a row are not cut.

        Raises:
            `ValueError`: if the model cuts no images, or the numbers of tiles do not match.
        """
        if self.config.image_tiling is None or image_sizes is None:
            raise ValueError("`pixel_values` need `image_sizes` and `image_tiling`; else give `pixel_values_videos`")
        tiling = ImageTiling(**self.config.image_tiling)
        images = tiling.are_tiled(image_sizes, batch_num_images)
        counts = [tiling.num_frames(*image) for image in images]
        if pixel_values.dim() == 5:
            pixel_values = torch.cat([own[:count] for own, count in zip(pixel_values, counts, strict=True)])
        if len(pixel_values) != sum(counts):
            raise ValueError(f"images and tiles do not match: `pixel_values` holds {len(pixel_values)}, not {counts}")
        tokens = self.connector.project(self.encode_frames(pixel_values).pooler_output)  # type: ignore[arg-type]
        newline_id = torch.full((), int(self.config.image_newline_token_id or 0), device=tokens.device)
        newline = self.get_input_embeddings()(newline_id).to(tokens)
        split = zip(tokens.split(counts), images, strict=True)
        return torch.cat([join_tiles(own, newline, size, tiling) for own, (size, _) in split])

    @takes_either_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: MoDCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        batch_num_images: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        use_cache: bool | None = None,
        layout: StreamLayout | None = None,
        **kwargs,
    ) -> VideoLLMMoDModelOutputWithPast:
        """
        Args:
            input_ids (`int64 [B, T]`) or inputs_embeds (`[B, T, D]`): with N placeholders for each frame. Among
                embeddings a placeholder is found by its own embedding.
            attention_mask (`[B, T]` or `[B, seen + T]`, *optional*): 0 at padding.
            pixel_values_videos (`[F, 3, H, W]`) or video_features (`[F, M, Dv]`): frames of all rows, in row order.
                Without either, placeholders are read as text.
            pixel_values, image_sizes, batch_num_images: images that are cut into tiles, as `get_image_features` takes
                them, or image_features (`[K, D]`), as it returns them.
            cache (`MoDCache`, *optional*): of earlier calls for the same streams. With a `PackedCache` the tokens of
                its streams are one row, and `position_ids` are needed.
            layout (`StreamLayout`, *optional*): the result of `lay_out` for these inputs, if it is known already.

        Raises:
            `ValueError`: if frames and placeholders do not match, a frame is incomplete, or a frame is not finite.
        """
        if layout is None:
            has_frames = pixel_values_videos is not None or video_features is not None
            layout = self.lay_out(input_ids, inputs_embeds, attention_mask, cache, has_frames)
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if pixel_values is not None:
            image_features = self.get_image_features(pixel_values, image_sizes, batch_num_images)
        if image_features is not None:
            is_image = self.tokens_with_id(self.config.image_token_id, input_ids, inputs_embeds)
            embeds = put_images(embeds, is_image, image_features)
        inputs_embeds = self._put_frames(embeds, layout, pixel_values_videos, video_features)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            layout=layout,
            **kwargs,
        )

    def tokens_with_id(
        self, token_id: int | None, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor:
        """bool `[B, T]`: where a token is; among embeddings it is found by its own embedding. None is nowhere."""
        if token_id is None:
            given: Any = input_ids if inputs_embeds is None else inputs_embeds
            return torch.zeros(given.shape[:2], dtype=torch.bool, device=given.device)
        if input_ids is not None and inputs_embeds is None:
            return input_ids == token_id
        if inputs_embeds is not None and input_ids is None:
            embedding = self.get_input_embeddings()(torch.tensor(token_id, device=inputs_embeds.device))
            return (inputs_embeds == embedding).all(-1)
        raise ValueError("give exactly one of `input_ids` and `inputs_embeds`")

    def lay_out(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: MoDCache | None = None,
        has_frames: bool = True,
    ) -> StreamLayout:
        """Where the frames, separators and padding of these inputs are. Without `has_frames` a placeholder is read as
        text, as in other video models of transformers."""
        config = self.config
        is_vision = self.tokens_with_id(config.video_token_id, input_ids, inputs_embeds)
        if not has_frames:
            if (cache is None or cache.get_seq_length() == 0) and is_vision.any():
                logger.warning_once(
                    "placeholders of frames are read as text, since neither `pixel_values_videos` nor "
                    "`video_features` was given"
                )
            is_vision = torch.zeros_like(is_vision)
        valid = None
        if attention_mask is not None and attention_mask.dim() != 4:
            valid = valid_tokens(attention_mask, is_vision, cache)
        is_separator_id = self.tokens_with_id(config.frame_separator_token_id, input_ids, inputs_embeds)
        seen: dict[str, Any] = {
            "frames_seen": getattr(cache, "num_frames", None),
            "after_frame": getattr(cache, "after_frame", None),
        }
        lengths = getattr(cache, "lengths", None)
        if lengths is not None:
            layout = StreamLayout.of(is_vision, is_separator_id, config.num_frame_tokens)
            return layout.of_streams(lengths, is_separator_id, **seen)
        return StreamLayout.of(is_vision, is_separator_id, config.num_frame_tokens, valid=valid, **seen)

    def _put_frames(self, inputs_embeds, layout, pixel_values_videos, video_features) -> torch.Tensor:
        """Replace the embeddings of the placeholders by those of the frames."""
        if pixel_values_videos is not None and video_features is not None:
            raise ValueError("give only one of `pixel_values_videos` and `video_features`")
        name = "video_features" if pixel_values_videos is None else "pixel_values_videos"
        frames = video_features if pixel_values_videos is None else pixel_values_videos
        num_given = 0 if frames is None else frames.shape[0]
        if num_given != layout.num_frames:
            raise ValueError(
                f"frames and placeholders do not match: `{name}` holds {num_given} frames, `input_ids` have "
                f"placeholders for {layout.num_frames} (of {self.config.num_frame_tokens} tokens each)"
            )
        if not num_given:
            return inputs_embeds
        if pixel_values_videos is not None:
            embeds = self.get_video_features(pixel_values_videos, return_dict=True).pooler_output
        else:
            expected = [num_given, *self.config.video_feature_shape]
            if list(video_features.shape) != expected:
                raise ValueError(f"`video_features` must be {expected}, got {list(video_features.shape)}")
            check_finite("video_features", video_features)
            embeds = self.connector(video_features)
        embeds = embeds.flatten(0, 1).to(inputs_embeds)
        # `index_copy` would keep `embeds` for the backward pass
        return inputs_embeds.flatten(0, 1).index_put((layout.frames.flatten(),), embeds).view_as(inputs_embeds)


def put_images(embeds: torch.Tensor, is_image: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
    """Replace the embeddings of the placeholders of images by their tokens."""
    given, count = len(image_features), int(is_image.sum())
    if count != given:
        raise ValueError(f"images and placeholders do not match: {given} tokens of images, {count} placeholders")
    return embeds.masked_scatter(is_image[..., None], image_features.to(embeds))


class VideoLLMMoDForConditionalGeneration(VideoLLMMoDPreTrainedModel, StreamGenerationMixin):
    """The whole model, with the `generate` of transformers (greedy, sampling, beams), and its loss on streams."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = LlamaForCausalLM._tp_plan

    def __init__(self, config: VideoLLMMoDConfig):
        super().__init__(config)
        self.model = VideoLLMMoDModel(config)
        self.vocab_size = config.text_config.vocab_size
        self.lm_head = nn.Linear(config.text_config.hidden_size, self.vocab_size, bias=False)
        # placeholders stand for given frames, so they are never generated
        never = (config.video_token_id, config.image_newline_token_id, config.image_token_id)
        self.generation_config.suppress_tokens = [token for token in never if token is not None]
        self.add_model_tags(TAGS)
        self.post_init()

    @classmethod
    def from_components(cls, llm, vision, **options):
        """Build a model from an existing language model and an existing vision tower.

        For text the new model equals the language model, at any keep ratio; at keep ratio 1 it is dense, since its
        LayerExperts start at zero. With zero weights all scores tie, so until it is trained a routed layer keeps the
        first tokens of each frame: the class token, then the top row of patches. It also keeps the last token, since
        `mod_force_keep_last` is on here by default: without it the router of a routed last layer could not start to
        learn. The connector is new too, so what the model says about frames means nothing before it is trained.

        Args:
            llm: id, path or model: Llama 2, 3, SmolLM2, TinyLlama ..., Mistral without a sliding window, Qwen2.
            vision: id, path or model: SigLIP, SigLIP 2 of fixed resolution or CLIP, whole or the vision tower alone.
            tokenizer (*optional*): id, path or tokenizer of the language model; needed if `llm` is a model.
            gguf_file (`str`, *optional*): the file of `llm` to read.
            dtype (`str` or `torch.dtype`, defaults to `"auto"`): of the new model; by default that of `llm`.
            pad_to_multiple_of (`int`, *optional*): pad the rows of the embeddings, to shard them evenly.
            options: routing of `VideoLLMMoDTextConfig` (`mod_keep_ratio`, `mod_layers`, ...), `frame_token_cls`,
                `frame_token_pooled`, `stream_loss_weight`, and pieces of `VideoLLMMoDProcessor` (`video_token`, ...).

        Returns:
            `(model, processor)`. New weights are drawn from torch's default generator.

        Raises:
            `ValueError`: for a component of another family, or an unknown option.
        """
        from .building import build

        return build(cls, llm, vision, **options)

    @classmethod
    def from_vlm(cls, vlm, tokenizer=None, processor=None, **options):
        """Build a streaming model from a pretrained model that reads images or videos, without any training.

        It keeps all weights. At `mod_keep_ratio=1.0`, the default here, it equals the given model for the same tokens
        and pixels. Nothing is learned for routing, so a smaller ratio keeps evenly spaced tokens
        (`mod_selection="uniform"`), and it speaks by `speak_rule="verify"`.

        Args:
            vlm: id, path or model of LLaVA (1.5, interleave), LLaVA-OneVision, SmolVLM, SmolVLM2 or Idefics3, whose
                language model is a Llama, Mistral without a sliding window, Qwen2, Qwen3 or SmolLM3, and whose tower
                is SigLIP, CLIP, or that of SmolVLM or Idefics3.
            tokenizer, processor (*optional*): id, path or object, by default those of `vlm`; one of them is needed if
                `vlm` is a model.
            dtype (`str` or `torch.dtype`, defaults to `"auto"`): of the new model; by default that of `vlm`.
            options: routing of `VideoLLMMoDTextConfig`; `frame_token_pooled`, `stream_loss_weight` and `verify_margin`
                of `VideoLLMMoDConfig`; `default_query`, what is asked before each narration; `frame_separator`, a text
                of one token that a stream has between frames, with which a LLaVA can learn when to be silent.

        Returns:
            `(model, processor)`.

        Raises:
            `ValueError`: for a model of another family, quantised or with a sliding window, another model's tokenizer,
                a chat template that is missing or cannot be used, or an unknown option.
            `OSError`: if a tokenizer or an image processor is missing. Both come before weights are loaded.
        """
        from .building import build_from_vlm

        return build_from_vlm(cls, vlm, tokenizer, processor, **options)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    @property
    def keep_ratio(self) -> float:
        """Share of each frame's vision tokens that routed layers keep, in (0, 1]; can be set between calls."""
        return self.model.keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: float) -> None:
        self.model.keep_ratio = value

    def encode_frames(self, pixel_values_videos: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        return self.model.encode_frames(pixel_values_videos, **kwargs)

    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    @takes_either_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: MoDCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> VideoLLMMoDCausalLMOutputWithPast:
        """
        As `VideoLLMMoDModel.forward`, and:

        Args:
            labels (`int64 [B, T]`, *optional*): the ids to predict, which are shifted here; -100 is ignored. The loss
                is `sum(w * ce) / count(labels != -100)`, or `/ num_items_in_batch` if the Trainer passes it. `w` is
                `config.stream_loss_weight` where the token decides whether to speak after a frame, else 1. Source:
                VideoLLM-online (arXiv 2406.11816), equation 2. Labels that are already shifted can be given as
                `shift_labels`.
            logits_to_keep (`int` or `int64` indices): compute logits only for that many last tokens, or for tokens
                at these indices; 0 means all.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        if num_items_in_batch is not None and labels is None and shift_labels is None:
            raise ValueError(
                "`num_items_in_batch` came without `labels`: the Trainer's `label_smoothing_factor` and "
                "`compute_loss_func` take them from the model, whose loss shifts and weighs them; leave both out"
            )
        # with labels, placeholders without frames are an error in the data
        has_frames = pixel_values_videos is not None or video_features is not None
        strict = has_frames or labels is not None or shift_labels is not None
        layout = self.model.lay_out(input_ids, inputs_embeds, attention_mask, cache, has_frames=strict)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            pixel_values_videos=pixel_values_videos,
            video_features=video_features,
            image_features=image_features,
            use_cache=use_cache,
            layout=layout,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None and shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]
        loss = logits = None
        if shift_labels is not None:
            offset, decides = self.config.decision_offset or 0, layout.ends_frame
            decides = nn.functional.pad(decides, (offset, 0))[:, : decides.shape[1]]
            loss = self.stream_loss(hidden_states, shift_labels, decides, num_items_in_batch)
        if loss is None or not self.training:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, keep])
        return VideoLLMMoDCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_scores=outputs.router_scores,
            kept_indices=outputs.kept_indices,
            **{CACHE_NAME: outputs.cache},
        )

    def stream_loss(
        self,
        hidden_states: torch.Tensor,
        shift_labels: torch.Tensor,
        decides: torch.Tensor,
        num_items_in_batch: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of `forward`. Logits are computed at labelled positions only.

        Args:
            hidden_states (`[B, T, D]`), shift_labels (`int64 [B, T]`: the id to be predicted at each token),
            decides (`bool [B, T]`: after this token the model speaks or is silent), num_items_in_batch (*optional*):
                number of labels in all micro-batches of a step.
        """
        if shift_labels.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"`labels` must be {list(hidden_states.shape[:2])}, one per token, got {list(shift_labels.shape)}"
            )
        shift_labels = shift_labels.to(hidden_states.device)
        learned = (shift_labels != IGNORE_INDEX).flatten().nonzero().squeeze(-1)
        targets = shift_labels.flatten()[learned]
        hidden_states = hidden_states.flatten(0, 1).index_select(0, learned)
        losses = head_losses(self.lm_head, hidden_states, targets, self.vocab_size)
        weights = torch.where(decides.flatten()[learned], self.config.stream_loss_weight, 1.0)
        if num_items_in_batch is None:
            num_items_in_batch = max(losses.numel(), 1)
        elif isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.to(losses.device).clamp(min=1)  # no NaN without labels
        return (weights * losses).sum() / num_items_in_batch

    def stream(self, processor, **options) -> StreamingSession:
        """A session that watches one stream. `options` are those of `StreamingSession`."""
        return StreamingSession(self, processor, **options)


VideoLLMMoDModel.register_for_auto_class("AutoModel")
VideoLLMMoDForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")


__all__ = [
    "LayerExpert",
    "VideoLLMMoDForConditionalGeneration",
    "VideoLLMMoDModel",
    "VideoLLMMoDPreTrainedModel",
    "VideoLLMMoDTextModel",
]
