"""Builds a VideoLLM-MoD from pretrained models: from a language model and a vision tower (`from_components`), or from
one that reads images already (`from_vlm`).

The given models keep all of their weights. `from_components` adds a connector, the LayerExperts and the embedding of
the placeholder. The LayerExperts are zero at first, so the model computes the same as the given language model for
text, at any keep ratio, and is dense at ratio 1. `from_vlm` adds nothing. At keep ratio 1 its model equals the given
one for images and videos too.
"""

import contextlib
import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.image_processing_base import ImageProcessingMixin

from .configuration_videollm_mod import VISION_MODEL_TYPES, VideoLLMMoDConfig, VideoLLMMoDTextConfig
from .containers import check_count, is_whole
from .conversation import family_frames
from .processing_videollm_mod import VideoLLMMoDProcessor
from .video_processing_videollm_mod import VideoLLMMoDVideoProcessor

TEXT_FIELDS = {field.name for field in dataclasses.fields(VideoLLMMoDTextConfig)}
MOD_OPTIONS = {
    name for name in VideoLLMMoDTextConfig.__annotations__ if name.startswith(("mod_", "vision_", "early_"))
}
FRAME_OPTIONS = {"frame_token_cls", "frame_token_pooled", "stream_loss_weight"}
PIECE_OPTIONS = {"video_token", "frame_separator", "stream_start", "stream_end"}
VLM_OPTIONS = {"frame_token_pooled", "stream_loss_weight", "verify_margin"}
PROMPT_OPTIONS = {"default_query", "frame_separator"}
# Types whose layers ours can compute exactly: Mistral and Qwen without a window, Qwen2 with a zero output bias.
TEXT_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
IMAGE_NEWLINE = "<image_newline>"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def build(
    model_class: type[PreTrainedModel],
    llm,
    vision,
    tokenizer=None,
    gguf_file: str | None = None,
    dtype: str | torch.dtype = "auto",
    pad_to_multiple_of: int | None = None,
    **mod_options,
) -> tuple[PreTrainedModel, VideoLLMMoDProcessor]:
    """See `VideoLLMMoDForConditionalGeneration.from_components`."""
    check_options(mod_options, MOD_OPTIONS | FRAME_OPTIONS | PIECE_OPTIONS)
    if pad_to_multiple_of is not None:
        check_count("`pad_to_multiple_of`", pad_to_multiple_of)
    if isinstance(llm, PreTrainedModel) and tokenizer is None:
        raise ValueError("`tokenizer` is needed if `llm` is a model and not an id or path")
    for name, source in (("llm", llm), ("vision", vision)):  # both before anything is downloaded
        if not isinstance(source, PreTrainedModel):
            check_source(name, source)
    tower_source, vision = vision, load_tower(vision, dtype)
    source, llm = llm, load_language_model(llm, gguf_file, dtype)
    tokenizer = load_tokenizer(tokenizer, source, gguf_file, mod_options.get("video_token", "<v>"))

    options = {name: mod_options[name] for name in FRAME_OPTIONS & set(mod_options)}
    if not getattr(vision.config, "vision_use_head", True) and options.get("frame_token_cls", True):
        raise ValueError(
            "`vision` has no pooling head (`vision_use_head=False`): pass `frame_token_cls=False` (`--no-class-token`)"
        )
    video_token_id = tokenizer.convert_tokens_to_ids(mod_options.get("video_token", "<v>"))
    rows = max(llm.get_input_embeddings().weight.shape[0], len(tokenizer))
    rows += -rows % (pad_to_multiple_of or 1)
    # With equal scores, as at first, a layer keeps the first tokens of a frame. If the last layer is routed, it learns
    # only from the last token of a frame, the only one that predicts: without that token its router would not learn.
    text_options = {"mod_force_keep_last": True}
    text_options |= {name: mod_options[name] for name in MOD_OPTIONS & set(mod_options)}
    frames = VideoLLMMoDConfig(
        vision_config=vision.config.to_dict(), **options
    ).num_frame_tokens  # checked before anything large is made
    processor = VideoLLMMoDProcessor(
        VideoLLMMoDVideoProcessor(**pixel_options(tower_source, vision.config)),
        tokenizer,
        num_frame_tokens=frames,
        **{name: mod_options[name] for name in PIECE_OPTIONS & set(mod_options)},
    )
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = VideoLLMMoDConfig(
        text_config=routed_config(llm.config, vocab_size=rows, **ids, **text_options),
        vision_config=vision.config.to_dict(),
        video_token_id=video_token_id,
        frame_separator_token_id=processor.frame_separator_token_id,
        tie_word_embeddings=llm.config.tie_word_embeddings,
        **ids,
        **options,
    )
    weights = joined_weights(config, llm.state_dict(), vision.state_dict())
    model = model_class.from_pretrained(None, config=config, state_dict=weights, dtype=llm.dtype)
    # the model never says the placeholder, nor new rows without a token
    never = {video_token_id, *range(llm.get_input_embeddings().weight.shape[0], rows)}
    model.generation_config = generation_config_of(llm, never, tokenizer.pad_token_id)
    return model.eval(), processor


def check_options(options: dict, known: set[str]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; options are {', '.join(sorted(known))}")


def generation_config_of(llm, never: set[int], pad_token_id: int):
    """The language model's generation config, with more tokens that are never said."""
    config = copy.deepcopy(llm.generation_config)
    config.suppress_tokens = sorted({*(config.suppress_tokens or ()), *never})
    config.pad_token_id = pad_token_id
    return config


def check_source(name: str, source) -> None:
    """Raise `FileNotFoundError` if the argument `name` is no folder and does not look like an id on the Hub."""
    is_id = re.fullmatch(r"[\w.-]*\w[\w.-]*(/[\w.-]+)?", str(source))
    if not is_id and not Path(source).expanduser().is_dir():
        raise FileNotFoundError(f"`{name}` must be a folder or the id of a model on the Hub: {source} is no folder")


def read_config(name: str, source, **options):
    """The configuration of a checkpoint, the argument `name`.

    Raises:
        `OSError`: if it is no folder and cannot be loaded from the Hub.
    """
    check_source(name, source)
    try:
        return AutoConfig.from_pretrained(source, **options)
    except ValueError as error:  # in several lines
        raise ValueError(
            f"`{name}` {source} has no configuration that transformers can read without code of its own: "
            f"{' '.join(str(error).split())}"
        ) from error
    except OSError as error:
        if Path(source).expanduser().is_dir():
            raise
        raise OSError(
            f"`{name}` {source} is no folder, and cannot be loaded from the Hub; without a network, bring it with `hf "
            f"download {source} --local-dir FOLDER` and pass the folder: {' '.join(str(error).split())}"
        ) from error


def load_language_model(llm, gguf_file: str | None, dtype) -> PreTrainedModel:
    """The causal language model `llm`, loaded if it is an id or path. Raises `ValueError` if Llama layers would not
    compute the same."""
    given = isinstance(llm, PreTrainedModel)
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    config = llm.config if given else read_config("llm", llm, **options)
    check_language_config("`llm`", config)
    if not given:
        return AutoModelForCausalLM.from_pretrained(llm, dtype=dtype, **options)
    if llm.get_output_embeddings() is None:
        raise ValueError(f"`llm` must be a causal language model with its head, got {type(llm).__name__}")
    return llm if dtype == "auto" else copy.deepcopy(llm).to(dtype)


def check_language_config(name: str, config) -> None:
    """Raise `ValueError` if layers of ours would not compute the same, naming the model and the reason."""
    if config.model_type not in TEXT_MODEL_TYPES:
        raise ValueError(
            f"{name} is of the type {config.model_type!r}; supported are {', '.join(TEXT_MODEL_TYPES)}, whose layers "
            "are those of a Llama"
        )
    windowed = config.model_type == "mistral" or getattr(config, "use_sliding_window", False)
    if windowed and getattr(config, "sliding_window", None) is not None:
        raise ValueError(
            f"{name} has a sliding window of {config.sliding_window} tokens, which routed layers do not support"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{name} is quantised; pass it in full precision, and load the built model with `quantization_config`"
        )
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type in ("dynamic", "longrope"):
        raise ValueError(
            f"{name} has rotary embeddings of the rope_type {rope_type!r}, which change with the length of a stream, "
            "while cached keys do not; up to `max_position_embeddings` 'dynamic' equals 'default'"
        )


def load_tower(vision, dtype) -> PreTrainedModel:
    """The vision tower `vision`, loaded if it is an id or path; of a SigLIP or CLIP model, its vision part."""
    given = isinstance(vision, PreTrainedModel)
    config = vision.config if given else read_config("vision", vision)
    config = getattr(config, "vision_config", config)
    check_tower_config("`vision`", config)
    if not given:
        return AutoModel.from_pretrained(vision, config=config, dtype=dtype)
    own = type(AutoModel.from_config(config)) if not hasattr(vision, "vision_model") else None
    return vision if own is not None and isinstance(vision, own) else vision.vision_model


def check_tower_config(name: str, config) -> None:
    """Raise `ValueError` for a tower of another family."""
    if config.model_type not in VISION_MODEL_TYPES:
        raise ValueError(
            f"{name} has a tower of the type {config.model_type!r}; supported are {', '.join(VISION_MODEL_TYPES)} "
            "(SigLIP, SigLIP 2 of fixed resolution, CLIP, and the towers of SmolVLM and Idefics3)"
        )


def load_tokenizer(tokenizer, llm, gguf_file: str | None, video_token: str):
    """A copy of the tokenizer with the placeholder as a special token. Other text is tokenised as before."""
    if tokenizer is None or isinstance(tokenizer, str) or hasattr(tokenizer, "__fspath__"):
        options = {} if gguf_file is None or tokenizer is not None else {"gguf_file": gguf_file}
        tokenizer = AutoTokenizer.from_pretrained(llm if tokenizer is None else tokenizer, **options)
    else:
        tokenizer = copy.deepcopy(tokenizer)
    if not tokenizer.is_fast:
        raise ValueError(f"`tokenizer` must be a fast one, got {type(tokenizer).__name__}")
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if video_token in tokenizer.get_vocab() and video_token not in special:
        raise ValueError(f"`video_token` {video_token!r} is a word of the tokenizer; choose another")
    if video_token not in special:
        words = tokenizer.get_vocab()
        tokenizer.add_special_tokens({"additional_special_tokens": [video_token]}, replace_extra_special_tokens=False)
        taken = [word for word, i in words.items() if i == tokenizer.convert_tokens_to_ids(video_token)]
        if taken:  # the id of a new token is the number of tokens, which is in use if ids have gaps
            raise ValueError(
                f"the ids of `tokenizer` have gaps: `video_token` {video_token!r} would get the id of {taken[0]!r}; "
                "pass one of its special tokens that no text uses as `video_token`"
            )
    tokenizer.chat_template = None  # a folder holds one template, that of the processor
    return tokenizer


def routed_config(config, **options) -> VideoLLMMoDTextConfig:
    values = {name: value for name, value in config.to_dict().items() if name in TEXT_FIELDS - {"model_type"}}
    if config.model_type == "qwen2":
        values |= {"attention_bias": True}
    if config.model_type == "qwen3":
        values |= {"qk_norm": True}
    if config.model_type == "smollm3":
        values |= {"no_rope_layers": [index for index, rope in enumerate(config.no_rope_layers) if not rope]}
    return VideoLLMMoDTextConfig(**{**values, **options})


def joined_weights(config: VideoLLMMoDConfig, llm: dict, vision: dict) -> dict[str, torch.Tensor]:
    """The weights of a causal language model and a tower, under the names of the joined model. New rows of embeddings
    are drawn as in a new model, the connector is left out, and LayerExperts are zero, so that every gate is 1."""
    weights = {f"model.vision_tower.{name}": value for name, value in vision.items()}
    text = config.text_config
    for name, value in llm.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name in ("lm_head.weight", "model.embed_tokens.weight"):
            new = value.new_empty(text.vocab_size - value.shape[0], value.shape[1])
            value = torch.cat([value, new.normal_(std=text.initializer_range)])
        weights[name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name] = value
    for index in range(text.num_hidden_layers):
        prefix = f"model.language_model.layers.{index}"
        if text.attention_bias and f"{prefix}.self_attn.o_proj.bias" not in weights:
            projection = weights[f"{prefix}.self_attn.o_proj.weight"]
            weights[f"{prefix}.self_attn.o_proj.bias"] = projection.new_zeros(projection.shape[0])
        if index in text.routed_layers and text.vision_routing == "mod" and text.mod_selection == "learned":
            weights[f"{prefix}.layer_expert.weight"] = torch.zeros(1, text.hidden_size)
            weights[f"{prefix}.layer_expert.bias"] = torch.zeros(1)
    return weights


def pixel_options(source, config) -> dict:
    """Options of the video processor: those of the tower's checkpoint, else the defaults of its family."""
    stored: dict = {}
    if not isinstance(source, PreTrainedModel):
        with contextlib.suppress(OSError):
            stored, _ = ImageProcessingMixin.get_image_processor_dict(source)
    clip = config.model_type == "clip_vision_model"
    values = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD} if clip else {}
    names = ("image_mean", "image_std", "resample", "rescale_factor")
    values |= {name: stored[name] for name in names if stored.get(name) is not None}
    return {**values, "size": {"height": config.image_size, "width": config.image_size}}


@dataclasses.dataclass(frozen=True)
class Family:
    """Where a model of transformers that reads images keeps its parts, below its attribute `model`.

    Args:
        tower, language (`str`): the vision tower, and the language model without a head.
        connector (`dict`): our names of the connector's layers, and theirs.
        newline (`str`, *optional*): a parameter `[D]` that follows the frames of a video.
    """

    tower: str
    language: str
    connector: dict[str, str]
    newline: str | None = None


MLP = {"linear_1": "multi_modal_projector.linear_1", "linear_2": "multi_modal_projector.linear_2"}
LINEAR = {"linear_1": "connector.modality_projection.proj"}
FAMILIES = {
    "llava": Family("vision_tower", "language_model", MLP),
    "llava_onevision": Family("vision_tower", "language_model", MLP, newline="image_newline"),
    "smolvlm": Family("vision_model", "text_model", LINEAR),
    "idefics3": Family("vision_model", "text_model", LINEAR),
}

# why models of other types, or of types that begin so, cannot be built
UNLIKE = {
    "internvl": "its vision tower is neither SigLIP nor CLIP",
    "qwen": "its frames have any number of patches, and its positions count time, rows and columns",
    "mllama": "its language model sees images by cross-attention",
    "paligemma": "its language model is a Gemma, and its image tokens see each other in both directions",
    "gemma": "its language model is a Gemma, and its image tokens see each other in both directions",
    "video_llava": "its images and videos have towers of their own",
    "llava_next_video": "its frames and images are pooled differently; try LLaVA-OneVision",
    "llava_next": "it always cuts images into tiles, so it has no tokens of a single frame; try LLaVA-OneVision",
    "vipllava": "its projector normalises the features of several layers first",
}


def build_from_vlm(
    model_class: type[PreTrainedModel],
    vlm,
    tokenizer=None,
    processor=None,
    dtype: str | torch.dtype = "auto",
    **options,
) -> tuple[PreTrainedModel, VideoLLMMoDProcessor]:
    """See `VideoLLMMoDForConditionalGeneration.from_vlm`."""
    check_options(options, MOD_OPTIONS | VLM_OPTIONS | PROMPT_OPTIONS)
    given = isinstance(vlm, PreTrainedModel)
    theirs = vlm.config if given else read_config("vlm", vlm)
    frame_options = frame_options_of(theirs)
    if given and vlm.get_output_embeddings() is None:
        raise ValueError(f"`vlm` must have its language-modelling head, got {type(vlm).__name__}")
    family, text = FAMILIES[theirs.model_type], theirs.text_config
    stock = read_processor(None if given else vlm, tokenizer, processor)
    video_token_id = theirs.video_token_id if family.newline else theirs.image_token_id
    tokenizer, newline_id = family_tokenizer(stock.tokenizer, video_token_id, family.newline is not None)
    # without training no token means silence, and no layer knows which tokens it can leave out
    values = {"mod_keep_ratio": 1.0, "mod_selection": "uniform", **options}
    frame_options |= {"speak_rule": "verify"} | {name: values[name] for name in VLM_OPTIONS & set(values)}
    text_options = {name: values[name] for name in MOD_OPTIONS & set(values)}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}

    tiling = image_tiling_of(theirs)

    def config_with(rows: int, tied: bool = False) -> VideoLLMMoDConfig:
        return VideoLLMMoDConfig(
            # the text config may say otherwise than the model does, as it does by default with SmolLM3
            text_config=routed_config(text, vocab_size=rows, tie_word_embeddings=tied, **ids, **text_options),
            vision_config=theirs.vision_config.to_dict(),
            video_token_id=video_token_id,
            image_newline_token_id=newline_id,
            image_token_id=None if tiling is None else theirs.image_token_id,
            image_tiling=tiling,
            frame_separator_token_id=None,
            tie_word_embeddings=tied,
            **ids,
            **frame_options,
        )

    tokens = config_with(max(text.vocab_size, len(tokenizer))).num_frame_tokens  # also checks all options
    processor = family_processor(
        stock, tokenizer, theirs, tokens, {name: options[name] for name in PROMPT_OPTIONS & set(options)}
    )
    if not given:
        vlm = AutoModelForImageTextToText.from_pretrained(vlm, dtype=dtype)
    known = vlm.get_input_embeddings().weight.shape[0]
    tied = vlm.get_output_embeddings().weight is vlm.get_input_embeddings().weight
    config = config_with(max(known, len(tokenizer)), tied)
    weights = family_weights(config, vlm, family)
    dtype = vlm.dtype if dtype == "auto" else dtype
    model = model_class.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    placeholders = {video_token_id, theirs.image_token_id, *({newline_id} - {None})}
    never = {*placeholders, *range(known, config.text_config.vocab_size)}
    model.generation_config = generation_config_of(vlm, never, tokenizer.pad_token_id)
    return model.eval(), processor


def frame_options_of(config) -> dict:
    """Options of `VideoLLMMoDConfig` with which a frame becomes the tokens that the given model makes of it.

    Raises:
        `ValueError`: for a model of another family, or with parts of another family.
    """
    if config.model_type not in FAMILIES:
        others = "its frames are no square grid of SigLIP's or CLIP's patches, or its language model is no Llama"
        why = next((why for name, why in UNLIKE.items() if config.model_type.startswith(name)), others)
        raise ValueError(
            f"`vlm` is of the type {config.model_type!r}; supported are {', '.join(FAMILIES)}. This one cannot be "
            f"built, since {why}"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "`vlm` is quantised; pass it in full precision, and load the built model with `quantization_config`"
        )
    vision = config.vision_config
    check_tower_config("`vlm`", vision)
    check_language_config("the language model of `vlm`", config.text_config)
    if not is_whole(vision.image_size) or not is_whole(vision.patch_size) or vision.num_channels != 3:
        raise ValueError(
            f"`vlm` must have a tower for square images of 3 channels, got {vision.image_size} pixels and "
            f"{vision.num_channels}"
        )
    side = vision.image_size // vision.patch_size
    if config.model_type in ("smolvlm", "idefics3"):
        if side % config.scale_factor:
            raise ValueError(
                f"the `scale_factor` of `vlm`, {config.scale_factor}, must divide its {side} patches a side"
            )
        options = {"connector_type": "linear", "connector_bias": False, "frame_pooling": "pixel_shuffle"}
        return options | {"frame_token_cls": False, "frame_token_pooled": [side // config.scale_factor] * 2}
    has_class = vision.model_type == "clip_vision_model"
    keeps_all = config.vision_feature_select_strategy == "full"
    options = {
        "vision_feature_layer": config.vision_feature_layer,
        "connector_act": config.projector_hidden_act,
        "connector_bias": config.multimodal_projector_bias,
        "frame_token_cls": has_class and keeps_all,
    }
    if config.model_type == "llava":
        return options | {"frame_token_pooled": [side, side], "drop_first_patch": not has_class and not keeps_all}
    if has_class == keeps_all:
        raise ValueError(
            f"`vlm` has a tower of the type {vision.model_type!r} and the strategy "
            f"{config.vision_feature_select_strategy!r}, with which its patches are no square grid"
        )
    return options | {"frame_token_pooled": [(side + 1) // 2] * 2, "frame_pooling": "bilinear"}


def image_tiling_of(config) -> dict | None:
    """How the given model cuts images into tiles whose tokens it joins, as `ImageTiling`; None if it does not."""
    if FAMILIES[config.model_type].newline is None:
        return None
    vision, ratio = config.vision_config, config.vision_aspect_ratio.removeprefix("anyres_max_")
    if not ratio.isdecimal():
        raise ValueError(f"`vlm` must have a `vision_aspect_ratio` such as 'anyres_max_9', got {ratio!r}")
    return {
        "sizes": [list(size) for size in config.image_grid_pinpoints],
        "side": vision.image_size,
        "patches": vision.image_size // vision.patch_size,
        "max_tiles": int(ratio),
    }


@dataclasses.dataclass(frozen=True)
class StockProcessor:
    """What is taken over of the given model's processor: its tokenizer, the options of its image processor and of its
    video processor, and its chat template."""

    tokenizer: Any
    image_options: dict
    video_options: dict
    chat_template: str


def read_processor(vlm, tokenizer, processor) -> StockProcessor:
    """The parts of the processor `processor`, an object, id or path, by default that of `vlm`, an id or path or None.
    Its own class may need packages that are not installed, so its files are read.

    Raises:
        `ValueError`: if there is none, or if it has no chat template.
        `OSError`: if it has no tokenizer or no image processor.
    """
    source = vlm if processor is None else processor
    if source is None and tokenizer is None:
        raise ValueError("`processor` or `tokenizer` is needed if `vlm` is a model and not an id or path")
    image_options, video_options, template, found = {}, {}, None, tokenizer
    if hasattr(source, "tokenizer"):
        image_options, template = source.image_processor.to_dict(), source.chat_template
        if getattr(source, "video_processor", None) is not None:
            video_options = source.video_processor.to_dict()
        found = tokenizer or source.tokenizer
    elif source is not None:
        name = "vlm" if processor is None else "processor"
        check_source(name, source)
        image_options, template = read_image_options(name, source), read_chat_template(source)
        with contextlib.suppress(OSError):
            video_options = VideoLLMMoDVideoProcessor.get_video_processor_dict(source)[0]
        found = tokenizer or source
    if isinstance(found, str) or hasattr(found, "__fspath__"):
        found = read_tokenizer(found)
    template = template or found.chat_template
    if not isinstance(template, str):
        raise ValueError("the processor of `vlm` has no chat template, or several; pass `processor`, with one")
    return StockProcessor(found, image_options, video_options, template)


def read_image_options(name: str, source) -> dict:
    try:
        return ImageProcessingMixin.get_image_processor_dict(source)[0]
    except OSError as error:
        raise OSError(
            f"`{name}` {source} has no image processor; pass `processor`, with the one it belongs to"
        ) from error


def read_chat_template(source) -> str | None:
    try:
        return ProcessorMixin.get_processor_dict(source)[0].get("chat_template")
    except OSError:
        return None  # it may be the tokenizer's


def read_tokenizer(source):
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise OSError(f"{source} has no tokenizer; pass `tokenizer`") from error


def family_tokenizer(tokenizer, video_token_id: int, with_newline: bool):
    """`(tokenizer, id of the newline or None)`: a copy in which the placeholder is a special token, and with a token
    for the newline if there is one."""
    if not tokenizer.is_fast:
        raise ValueError(f"`tokenizer` must be a fast one, got {type(tokenizer).__name__}")
    tokenizer, token = copy.deepcopy(tokenizer), tokenizer.convert_ids_to_tokens(video_token_id)
    if token is None:
        raise ValueError(f"`tokenizer` belongs to another model: it has no token of the id {video_token_id}")
    before = tokenizer.get_vocab()
    special = [token, IMAGE_NEWLINE] if with_newline else [token]
    tokenizer.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    newline_id = tokenizer.convert_tokens_to_ids(IMAGE_NEWLINE) if with_newline else None
    if newline_id in before.values() and IMAGE_NEWLINE not in before:
        raise ValueError(
            f"the ids of `tokenizer` have gaps: {IMAGE_NEWLINE} would get the id {newline_id}, which is taken"
        )
    tokenizer.chat_template = None  # a folder holds one template, that of the processor
    return tokenizer, newline_id


def family_processor(stock: StockProcessor, tokenizer, config, num_frame_tokens: int, options: dict):
    """The processor of the given model's family: its prompts and its pixels.

    Raises:
        `ValueError`: if the tokenizer or the chat template is not that of the family.
    """
    pixels = VideoLLMMoDVideoProcessor(**family_pixels(stock, config))
    processor = VideoLLMMoDProcessor.of_family(
        config.model_type, pixels, tokenizer, stock.chat_template, num_frame_tokens, **options
    )
    expected = config.video_token_id if FAMILIES[config.model_type].newline else config.image_token_id
    if processor.video_token_id != expected:
        raise ValueError(
            f"`tokenizer` belongs to another model: {processor.video_token} is its token "
            f"{processor.video_token_id}, not {expected}"
        )
    return processor


def family_pixels(stock: StockProcessor, config) -> dict:
    """Options of a video processor with which frames and images become what the given model's processor makes of them,
    at the size of its tower."""
    options = family_frames(config.model_type, stock.image_options, stock.video_options)
    options["image_tiling"] = image_tiling_of(config)
    side = config.vision_config.image_size
    if VideoLLMMoDVideoProcessor(**options).frame_size == [side, side]:
        return options
    square = {"height": side, "width": side}
    if options.get("max_image_size"):
        return options | {"max_image_size": {"longest_edge": side}}
    if options.get("do_center_crop"):
        return options | {"size": {"shortest_edge": side}, "crop_size": square}
    return options | {"size": square}


def family_weights(config: VideoLLMMoDConfig, vlm, family: Family) -> dict[str, torch.Tensor]:
    """The weights of a model of this family under the names of ours."""
    parts = vlm.model
    llm = {f"model.{name}": value for name, value in parts.get_submodule(family.language).state_dict().items()}
    llm["lm_head.weight"] = vlm.get_output_embeddings().weight.data
    weights = joined_weights(config, llm, parts.get_submodule(family.tower).state_dict())
    for ours, theirs in family.connector.items():
        for name, value in parts.get_submodule(theirs).state_dict().items():
            weights[f"model.connector.{ours}.{name}"] = value
    if family.newline is not None:
        name = "model.language_model.embed_tokens.weight"
        weights[name] = weights[name].clone()
        weights[name][config.image_newline_token_id] = parts.get_parameter(family.newline).data
    return weights


__all__ = ["build", "build_from_vlm", "read_config"]
