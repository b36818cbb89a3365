"""Configuration of VideoLLM-MoD: the routed Llama (`text_config`), the vision tower, and what joins them.

Only options are stored; everything derived from them (tokens per frame, indices of routed layers, tokens kept) is
computed.
"""

import math
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from .containers import is_number, is_whole, shown

# Fields of several types are `Any` below and are checked here, since `strict` writes one sentence per type.
VISION_ROUTINGS = ("mod", "full", "early_exit", "layer_skip")
MOD_LAYERS = ("interleaved", "all", "all_deep", "interleaved_deep")
TRAINING_FREE = ("change", "difference")
MOD_SELECTIONS = ("learned", *TRAINING_FREE, "uniform", "random")
MOD_GATES = ("residual", "output", "none")
SPEAK_RULES = ("trained", "verify")
FRAME_POOLINGS = ("average", "bilinear", "pixel_shuffle")
CONNECTOR_TYPES = ("mlp", "linear")
# the towers of SmolVLM and Idefics3 are SigLIP without a pooling head, with position ids of their own
HEADLESS_MODEL_TYPES = ("smolvlm_vision", "idefics3_vision")
VISION_MODEL_TYPES = ("siglip_vision_model", "clip_vision_model", *HEADLESS_MODEL_TYPES)
AUTO_MAP = {
    "AutoConfig": "configuration_videollm_mod.VideoLLMMoDConfig",
    "AutoModel": "modeling_videollm_mod.VideoLLMMoDModel",
    "AutoModelForCausalLM": "modeling_videollm_mod.VideoLLMMoDForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_videollm_mod.VideoLLMMoDForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_videollm_mod.VideoLLMMoDForConditionalGeneration",
    "AutoProcessor": "processing_videollm_mod.VideoLLMMoDProcessor",
    "AutoVideoProcessor": "video_processing_videollm_mod.VideoLLMMoDVideoProcessor",
}
# larger numbers in a file are an error, and would use all memory
MAX_LAYERS = 1000
MAX_FRAME_TOKENS = 10_000


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_keep_ratio(name: str, value: float) -> None:
    """Raise `ValueError` unless `value` is a number in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise ValueError(f"`{name}` must be a number in (0, 1], got {value!r}")


def check_keep_ratio_range(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a list of two ratios in (0, 1], the lower one first."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"`{name}` must be [low, high], got {value!r}")
    for ratio in value:
        check_keep_ratio(name, ratio)
    if value[0] > value[1]:
        raise ValueError(f"`{name}` must be [low, high] with low <= high, got {value}")


def check_margin(name: str, value: float) -> None:
    """Raise `ValueError` unless `value` is a finite number >= 0."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a number of nats from 0 on, got {value!r}")


def num_kept_tokens(keep_ratio: float, num_frame_tokens: int) -> int:
    """Vision tokens of a frame that a routed layer keeps: `k = max(1, ceil(round(r * n, 6)))`.

    Rounding first keeps `0.2 * 50 = 10.000000000000002` at 10.
    """
    return max(1, math.ceil(round(keep_ratio * num_frame_tokens, 6)))


@dataclass(frozen=True)
class ImageTiling:
    """
    How an image becomes tiles, and how many tokens these have, as in LLaVA-OneVision and LLaVA-NeXT. The image is
    stretched to one square, the whole image, and also scaled to the best of several sizes, padded, and cut into square
    tiles. Tokens of the padding are left out, and a newline follows each row of tokens.

    Args:
        sizes (`list[[height, width]]`): in pixels, multiples of `side`.
        side (`int`): pixels along each side of a tile.
        patches (`int`): tokens along each side of a tile.
        max_tiles (`int`, *optional*): if the tokens would be more than 1.21 times those of this many tiles, they are
            scaled down to these.

    Raises:
        `ValueError`: for a value that is not allowed.
    """

    sizes: Any
    side: int
    patches: int
    max_tiles: int | None = None

    def __post_init__(self):
        for name in ("side", "patches", "max_tiles"):
            value = getattr(self, name)
            if (value is not None or name != "max_tiles") and (not is_whole(value) or value < 1):
                raise ValueError(f"`{name}` of an image tiling must be a positive integer, got {value!r}")
        pairs = [list(size) for size in self.sizes if isinstance(size, list | tuple) and len(size) == 2]
        fits = all(is_whole(x) and x > 0 and x % self.side == 0 for pair in pairs for x in pair)
        if not pairs or len(pairs) < len(self.sizes) or not fits:
            raise ValueError(
                f"`sizes` of an image tiling must be [height, width] in multiples of {self.side} pixels, got "
                f"{shown(self.sizes)}"
            )

    def best_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that shows most pixels of an image of this size, and of these the one with the least padding."""

        def quality(size) -> tuple[int, int]:
            scale = min(size[1] / width, size[0] / height)
            used = min(int(width * scale) * int(height * scale), width * height)
            return used, used - size[0] * size[1]

        return tuple(max(self.sizes, key=quality))

    @staticmethod
    def are_tiled(image_sizes, batch_num_images) -> list[tuple[tuple[int, int], bool]]:
        """Height and width of each image, and whether it is cut: several images of a row are not.

        Args:
            image_sizes (`int [images, 2]`), batch_num_images (`int [B]` or `None`): images of each row, by default 1.
        """
        sizes = [(int(height), int(width)) for height, width in image_sizes]
        rows = [1] * len(sizes) if batch_num_images is None else [int(count) for count in batch_num_images]
        return list(zip(sizes, [count == 1 for count in rows for _ in range(count)], strict=True))

    def num_frames(self, size: tuple[int, int], is_tiled: bool = True) -> int:
        """Tiles of an image of this height and width, and the whole image."""
        return 1 + math.prod(self.grid(*size)) if is_tiled else 1

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tiles of an image of this size."""
        rows, columns = (size // self.side for size in self.best_size(height, width))
        return rows, columns

    def padding(self, height: int, width: int) -> tuple[int, int]:
        """Rows of tokens that are left out above and below, and columns on the left and on the right."""
        rows, columns = (count * self.patches for count in self.grid(height, width))
        if width / height > columns / rows:
            return (rows - int(round(height * (columns / width), 7))) // 2, 0
        return 0, (columns - int(round(width * (rows / height), 7))) // 2

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of all tiles, without newlines."""
        cut = zip(self.grid(height, width), self.padding(height, width), strict=True)
        rows, columns = (count * self.patches - 2 * padding for count, padding in cut)
        ratio = 0.0 if self.max_tiles is None else math.sqrt(rows * columns / (self.max_tiles * self.patches**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def num_tokens(self, size: tuple[int, int], is_tiled: bool = True) -> int:
        """Tokens of an image of this height and width, with newlines."""
        rows, columns = self.token_grid(*size) if is_tiled else (1, 0)
        return self.patches**2 + rows * (columns + 1)


@strict
class VideoLLMMoDTextConfig(LlamaConfig):
    r"""
    A `LlamaConfig` with mixture-of-depths routing of vision tokens.

    Args:
        vision_routing (`str`): how vision tokens pass through the layers. `"mod"`: in the layers of `mod_layers` only
            the selected tokens of each frame do; `"full"`: all tokens, all layers; `"early_exit"`: from
            `early_exit_layer` on, vision tokens and frame separators are skipped; `"layer_skip"`: the same in odd
            layers.
        mod_layers (`str` or `list[int]`): which layers route under `"mod"`. `"interleaved"`: odd indices (the paper's
            choice, section 3.3); `"all"`; `"all_deep"`: index >= 2; `"interleaved_deep"`: odd and >= 3; or indices.
        mod_keep_ratio (`float`): share of each frame's vision tokens that a routed layer keeps, in (0, 1].
        mod_keep_ratio_range (`[low, high]`, *optional*): ratios that the model was trained with, so that a server may
            lower the ratio under load.
        mod_selection (`str`): which vision tokens of a frame a routed layer keeps. `"learned"`: those with the highest
            scores of the layer's LayerExpert. The other values need no training and use no gate. `"change"`: the
            tokens that the layer before changed most; `"difference"`: those that differ most from the same token of
            the frame before; layer 0 cannot route by either. `"uniform"` and `"random"`: baselines that ignore the
            tokens.
        mod_gate (`str`): how a kept token's score enters its output, `"residual"`, `"output"` or `"none"`.
        mod_force_keep_last (`bool`): always keep the last token of a frame, whose output decides whether to speak.
            Without it, a router in the last layer learns only from frames whose last token it keeps.
        mod_seed (`int`): seed of `mod_selection="random"`.
        early_exit_layer (`int`, *optional*): first layer that skips vision tokens under `vision_routing="early_exit"`;
            2 if omitted, or the number of layers if that is less.
        qk_norm (`bool`): normalise queries and keys per head, with an RMS norm before the rotary embeddings, as Qwen3.
        no_rope_layers (`list[int]`): indices of the layers without rotary embeddings, as SmolLM3 has them. (SmolLM3's
            own field of this name is a list with a 0 for each of these layers.)

    Raises:
        `ValueError`: for a value that is not allowed, naming it.
        `huggingface_hub.errors.StrictDataclassError`: for a value of another type, as in all configurations.
    """

    model_type = "videollm_mod_text"
    base_config_key = "text_config"

    vision_routing: str = "mod"
    mod_layers: Any = "interleaved"
    mod_keep_ratio: Any = 0.2
    mod_keep_ratio_range: Any = None
    mod_selection: str = "learned"
    mod_gate: str = "residual"
    mod_force_keep_last: bool = False
    mod_seed: int = 0
    early_exit_layer: Any = None
    qk_norm: bool = False
    no_rope_layers: Any = ()

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.early_exit_layer is None:
            self.early_exit_layer = min(2, self.num_hidden_layers)
        self.check_routing()

    def check_routing(self) -> None:
        """Raise `ValueError` for routing options out of range. Called again when a model is built, since attributes
        may have been set."""
        check_choice("vision_routing", self.vision_routing, VISION_ROUTINGS)
        check_choice("mod_selection", self.mod_selection, MOD_SELECTIONS)
        check_choice("mod_gate", self.mod_gate, MOD_GATES)
        check_keep_ratio("mod_keep_ratio", self.mod_keep_ratio)
        if self.mod_keep_ratio_range is not None:
            check_keep_ratio_range("mod_keep_ratio_range", self.mod_keep_ratio_range)
        if not 1 <= self.num_hidden_layers <= MAX_LAYERS:
            raise ValueError(f"`num_hidden_layers` must be in [1, {MAX_LAYERS}], got {self.num_hidden_layers}")
        if not is_whole(self.early_exit_layer) or not 0 <= self.early_exit_layer <= self.num_hidden_layers:
            raise ValueError(
                f"`early_exit_layer` must be in [0, {self.num_hidden_layers}], got {self.early_exit_layer}"
            )
        if not 0 <= self.mod_seed < 2**62:
            raise ValueError(f"`mod_seed` must be in [0, 2**62), got {self.mod_seed}")
        self._check_layers("no_rope_layers", "a list of layers")
        if isinstance(self.mod_layers, str):
            check_choice("mod_layers", self.mod_layers, MOD_LAYERS)
        else:
            self._check_layers("mod_layers", f"one of {', '.join(map(repr, MOD_LAYERS))} or a list of layers")

        if self.vision_routing == "mod" and self.mod_selection in TRAINING_FREE and 0 in self.routed_layers:
            raise ValueError(
                f"`mod_layers` must not hold layer 0 with mod_selection={self.mod_selection!r}, which scores tokens "
                f"by an earlier layer, got {self.mod_layers!r}"
            )

    def _check_layers(self, name: str, allowed: str) -> None:
        indices = getattr(self, name)
        if not isinstance(indices, list | tuple):
            raise ValueError(f"`{name}` must be {allowed}, got {indices!r}")
        for index in indices:
            if not is_whole(index) or not 0 <= index < self.num_hidden_layers:
                raise ValueError(
                    f"`{name}` must hold layer indices in [0, {self.num_hidden_layers}), got {index!r} in "
                    f"{list(indices)}"
                )

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """Indices of the layers that `mod_layers` names, ascending."""
        step_from = {"interleaved": (1, 2), "all": (0, 1), "all_deep": (2, 1), "interleaved_deep": (3, 2)}
        if isinstance(self.mod_layers, str):
            first, step = step_from[self.mod_layers]
            return tuple(range(first, self.num_hidden_layers, step))
        return tuple(sorted(set(self.mod_layers)))


@strict
class VideoLLMMoDConfig(PreTrainedConfig):
    r"""
    Args:
        domain (`str`, *optional*): the only thing that the model has learned to see, such as `"procedural world"`, or
            None. The demo and the Space let such a model speak about clips of its domain only.
        text_config (`VideoLLMMoDTextConfig` or `dict`): the routed Llama.
        vision_config (`SiglipVisionConfig`, `CLIPVisionConfig`, `SmolVLMVisionConfig`, `Idefics3VisionConfig` or
            `dict`): the vision tower; SigLIP-L/16 at 384 pixels when omitted.
        vision_feature_layer (`int`, `list[int]` or `None`): which features of the tower a frame is made of. `None`:
            its `last_hidden_state`, after the final norm; otherwise its `hidden_states` at this index, or at these,
            concatenated along the channels. Index 0 is the embeddings, and -1 comes before SigLIP's final norm.
        frame_token_cls (`bool`): a frame starts with its class token (SigLIP `pooler_output`, CLIP the first token).
        frame_token_pooled (`[h, w]` or `None`): grid to which a frame's patches are pooled, at most theirs. A grid of
            the same size is not pooled at all.
        frame_pooling (`str`): how patches are pooled. `"average"`: adaptive average; `"bilinear"`: bilinear
            interpolation of the connector's output, as LLaVA-OneVision; `"pixel_shuffle"`: each square of patches is
            concatenated along the channels, as SmolVLM and Idefics3.
        drop_first_patch (`bool`): leave out the first patch, as LLaVA's strategy `"default"` does with a SigLIP tower,
            which has no class token to drop.
        connector_type (`str`): `"mlp"`: two linear layers with an activation between them; `"linear"`: one.
        connector_bias (`bool`): whether these layers have a bias.
        connector_act (`str`): the activation, a name that transformers knows.
        video_token_id (`int`): id of the placeholder for one vision token.
        frame_separator_token_id (`int` or `None`): id of the token between two frames of a stream; predicting it after
            a frame means to stay silent. `None`: the model has not learned when to be silent.
        decision_offset (`int`, *optional*): of a model with the prompts of another family that has learned when to be
            silent: how many tokens of text stand between a frame and the token that predicts silence or speech.
        image_newline_token_id (`int`, *optional*): id of the token whose embedding is LLaVA-OneVision's
            `image_newline`, which follows the last frame of a video.
        image_token_id (`int`, *optional*): id of the placeholder for one token of an image that is cut into tiles.
            These tokens enter every layer, like text.
        image_tiling (`dict`, *optional*): how images are cut, the arguments of `ImageTiling`. `None`: an image is a
            frame.
        stream_loss_weight (`float`): weight of the loss at the last token of each frame, where the model learns
            whether to speak.
        speak_rule (`str`): how sessions decide when to speak, unless told otherwise. `"trained"`: the model has
            learned to predict the frame separator for silence; `"verify"`: it speaks when its last narration no longer
            holds, which needs no training. See `speaking`.
        verify_margin (`float`): in nats, >= 0. Under `"verify"` the last narration holds as long as no token of it is
            less probable than the best one by more than this.

    Raises:
        `ValueError`: for a value that is not allowed, naming it.
    """

    model_type = "videollm_mod"
    sub_configs = {"text_config": VideoLLMMoDTextConfig, "vision_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values", "cache", "router_scores", "kept_indices"]

    text_config: Any = None
    vision_config: Any = None
    vision_feature_layer: Any = None
    frame_token_cls: bool = True
    frame_token_pooled: Any = (3, 3)
    frame_pooling: str = "average"
    drop_first_patch: bool = False
    connector_type: str = "mlp"
    connector_bias: bool = True
    connector_act: str = "gelu"
    video_token_id: int = 3
    frame_separator_token_id: int | None = 4
    decision_offset: int | None = None
    image_newline_token_id: int | None = None
    image_token_id: int | None = None
    image_tiling: dict[str, Any] | None = None
    stream_loss_weight: Any = 1.0
    speak_rule: str = "trained"
    verify_margin: Any = 0.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    domain: str | None = None

    def __post_init__(self, **kwargs):
        for name in self.sub_configs:
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict | PreTrainedConfig):
                raise ValueError(f"`{name}` must be a configuration or its fields as a dict, got {value!r}")
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = VideoLLMMoDTextConfig(**(self.text_config or {}))
        if not isinstance(self.vision_config, PreTrainedConfig):
            options = dict(
                self.vision_config
                or {
                    "model_type": "siglip_vision_model",
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 16,
                    "image_size": 384,
                    "patch_size": 16,
                }
            )
            vision_model_type = options.pop("model_type", "siglip_vision_model")
            check_choice("vision_config.model_type", vision_model_type, VISION_MODEL_TYPES)
            self.vision_config = AutoConfig.for_model(vision_model_type, **options)
        # Embeddings are tied if either config says so; a Llama keeps this option in the text config.
        self.tie_word_embeddings = self.tie_word_embeddings or bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)
        self.check_frames()
        self.check_speaking()

    def check_frames(self) -> None:
        """Raise `ValueError` for frame options out of range. Called again when a model is built."""
        check_choice("vision_config.model_type", self.vision_config.model_type, VISION_MODEL_TYPES)
        check_choice("frame_pooling", self.frame_pooling, FRAME_POOLINGS)
        check_choice("connector_type", self.connector_type, CONNECTOR_TYPES)
        if self.connector_act not in ACT2FN:
            raise ValueError(f"`connector_act` must be an activation of transformers, got {self.connector_act!r}")
        self._check_grid()
        self._check_features()
        self._check_token_ids()
        self._check_tiling()
        weight = self.stream_loss_weight
        if not is_number(weight) or not 0 <= weight < math.inf:
            raise ValueError(f"`stream_loss_weight` must be finite and >= 0, got {weight!r}")

    def _check_grid(self) -> None:
        """Raise `ValueError` unless the tower's patches can be pooled to `frame_token_pooled`."""
        pooled, pooling = self.frame_token_pooled, self.frame_pooling
        if pooled is not None and (
            not isinstance(pooled, list | tuple) or len(pooled) != 2 or any(not is_whole(x) or x < 1 for x in pooled)
        ):
            raise ValueError(f"`frame_token_pooled` must be two positive integers [h, w] or None, got {pooled}")
        if pooled is None and not self.frame_token_cls:
            raise ValueError("a frame needs tokens: set `frame_token_cls=True` or `frame_token_pooled=[h, w]`")
        if self.num_frame_tokens > MAX_FRAME_TOKENS:
            raise ValueError(
                f"a frame can have at most {MAX_FRAME_TOKENS} tokens, `frame_token_pooled={pooled}` makes "
                f"{self.num_frame_tokens}"
            )
        for name in ("image_size", "patch_size"):
            if not is_whole(getattr(self.vision_config, name)):
                raise ValueError(f"`vision_config.{name}` must be one number, since frames are square")
        side, grid = self.patches_per_side, list(pooled or ())
        if pooled is not None and max(pooled) > side:
            raise ValueError(f"`frame_token_pooled` must be at most the vision tower's {[side, side]}, got {pooled}")
        if pooling != "average" and (pooled is None or self.frame_token_cls):
            raise ValueError(f"`frame_pooling={pooling!r}` needs `frame_token_pooled` and `frame_token_cls=False`")
        if pooling == "pixel_shuffle" and (grid[0] != grid[1] or side % grid[0]):
            raise ValueError(
                f"`frame_pooling='pixel_shuffle'` needs a square `frame_token_pooled` whose side divides the vision "
                f"tower's {side}, got {pooled}"
            )
        if self.drop_first_patch and (
            pooling != "average" or self.frame_token_cls or grid != [side, side] or side == 1
        ):
            raise ValueError(
                f"`drop_first_patch` needs `frame_pooling='average'`, `frame_token_cls=False` and "
                f"`frame_token_pooled={[side, side]}`, all patches of the tower"
            )

    def _check_features(self) -> None:
        """Raise `ValueError` unless the tower has the features of `vision_feature_layer` and `frame_token_cls`."""
        layers, depth = self.vision_feature_layer, self.vision_config.num_hidden_layers
        listed = list(layers) if isinstance(layers, list | tuple) else [layers]
        in_range = all(is_whole(x) and -depth - 1 <= x <= depth for x in listed)
        if layers is not None and not (listed and in_range):
            raise ValueError(
                f"`vision_feature_layer` must be None, or one or several of the tower's hidden states in "
                f"[{-depth - 1}, {depth}], got {layers!r}"
            )
        if self.frame_token_cls and self.vision_config.model_type in HEADLESS_MODEL_TYPES:
            raise ValueError(
                f"a tower of the type {self.vision_config.model_type!r} has no class token: set "
                "`frame_token_cls=False` (`--no-class-token`)"
            )
        if self.frame_token_cls and layers is not None and self.vision_config.model_type != "clip_vision_model":
            raise ValueError(
                "`vision_feature_layer` with `frame_token_cls=True` needs a CLIP tower: SigLIP makes its class token "
                "of the last layer"
            )

    def _check_token_ids(self) -> None:
        """Raise `ValueError` unless the ids of special tokens are in the vocabulary and differ."""
        taken: dict[int, str] = {}
        for name in ("video_token_id", "frame_separator_token_id", "image_newline_token_id", "image_token_id"):
            value = getattr(self, name)
            if value is None and name != "video_token_id":
                continue
            if not 0 <= value < self.text_config.vocab_size:
                raise ValueError(f"`{name}` must be in [0, vocab_size={self.text_config.vocab_size}), got {value}")
            if value in taken:
                raise ValueError(f"`{taken[value]}` and `{name}` must differ, both are {value}")
            taken[value] = name

    def _check_tiling(self) -> None:
        """Raise `ValueError` unless images can be cut as `image_tiling` says."""
        if self.image_tiling is None:
            return
        try:
            tiling, vision = ImageTiling(**self.image_tiling), self.vision_config
        except TypeError as error:
            raise ValueError(f"`image_tiling` must hold the arguments of `ImageTiling`: {error}") from error
        if self.image_token_id is None or self.image_newline_token_id is None:
            raise ValueError("`image_tiling` needs `image_token_id` and `image_newline_token_id`")
        if (tiling.side, tiling.patches) != (vision.image_size, self.patches_per_side):
            raise ValueError(
                f"`image_tiling` must have tiles of {vision.image_size} pixels and {self.patches_per_side} tokens a "
                f"side, as the vision tower has, got {tiling.side} and {tiling.patches}"
            )

    def check_speaking(self) -> None:
        """Raise `ValueError` for a rule of speaking that does not exist, or a margin out of range."""
        check_choice("speak_rule", self.speak_rule, SPEAK_RULES)
        check_margin("verify_margin", self.verify_margin)
        if self.decision_offset is not None and (not is_whole(self.decision_offset) or self.decision_offset < 0):
            raise ValueError(f"`decision_offset` must be None or a whole number >= 0, got {self.decision_offset!r}")
        if self.speak_rule == "trained" and self.frame_separator_token_id is None:
            raise ValueError("`speak_rule='trained'` needs a `frame_separator_token_id`; without one use 'verify'")

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, with every Auto class mapped to the code that is saved beside the weights. transformers
        maps only the class being saved, and leaves the others mapped to the repository that they came from."""
        self.auto_map = dict(AUTO_MAP)
        return super().save_pretrained(save_directory, **kwargs)

    @property
    def patches_per_side(self) -> int:
        """Patches of a frame along each side."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def num_frame_tokens(self) -> int:
        """Vision tokens per frame in the language model, `N = 1 + h * w` with a class token."""
        own = self.__dict__  # every step asks, and transformers takes microseconds for an attribute of a config
        height, width = own["frame_token_pooled"] or (0, 0)
        return int(own["frame_token_cls"]) + height * width - int(own["drop_first_patch"])

    @property
    def video_feature_shape(self) -> tuple[int, int]:
        """`(M, Dv)`: the number of features per frame before the connector, and their size. M is the number of vision
        tokens, except that `frame_pooling="bilinear"` pools after the connector."""
        layers, pooling = self.vision_feature_layer, self.frame_pooling
        size = self.vision_config.hidden_size * (len(layers) if isinstance(layers, list | tuple) else 1)
        if pooling == "pixel_shuffle":
            size *= (self.patches_per_side // self.frame_token_pooled[0]) ** 2
        return self.patches_per_side**2 if pooling == "bilinear" else self.num_frame_tokens, size


VideoLLMMoDConfig.register_for_auto_class()

__all__ = ["ImageTiling", "VideoLLMMoDConfig", "VideoLLMMoDTextConfig"]
