"""Builds a VideoLLM-MoD from a pretrained language model and a pretrained vision tower: `from_components`.

The language model keeps all of its weights; only the connector, the LayerExperts and the embedding of the placeholder
are new. The LayerExperts are zero at first: then the model computes the same as the given language model for text, at
any keep ratio, and is dense at ratio 1.
"""

import copy
import dataclasses
import re
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from .configuration_videollm_mod import VISION_MODEL_TYPES, VideoLLMMoDConfig, VideoLLMMoDTextConfig
from .containers import check_count
from .processing_videollm_mod import VideoLLMMoDProcessor
from .video_processing_videollm_mod import VideoLLMMoDVideoProcessor

TEXT_FIELDS = {field.name for field in dataclasses.fields(VideoLLMMoDTextConfig)}
MOD_OPTIONS = set(VideoLLMMoDTextConfig.__annotations__) - {
    "model_type",
    "base_config_key",
    "qk_norm",
    "no_rope_layers",
}
FRAME_OPTIONS = {"frame_token_cls", "frame_token_pooled", "stream_loss_weight"}
PIECE_OPTIONS = {"video_token", "frame_separator", "stream_start", "stream_end"}
# Types whose layers ours can compute exactly: Mistral and Qwen without a window, Qwen2 with a zero output bias.
TEXT_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
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
    unknown = sorted(set(mod_options) - MOD_OPTIONS - FRAME_OPTIONS - PIECE_OPTIONS)
    if unknown:
        known = ", ".join(sorted(MOD_OPTIONS | FRAME_OPTIONS | PIECE_OPTIONS))
        raise ValueError(f"unknown option {unknown[0]!r}; options are {known}")
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
    model = model_class.from_pretrained(
        None, config=config, state_dict=joined_weights(config, llm, vision), dtype=llm.dtype
    )
    # the model never says the placeholder, nor new rows without a token
    never = {video_token_id, *range(llm.get_input_embeddings().weight.shape[0], rows)}
    model.generation_config = generation_config_of(llm, never, tokenizer.pad_token_id)
    return model.eval(), processor


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
    except OSError as error:
        if Path(source).expanduser().is_dir():
            raise
        raise OSError(f"`{name}` {source} is no folder, and cannot be loaded from the Hub: {error}") from error


def load_language_model(llm, gguf_file: str | None, dtype) -> PreTrainedModel:
    """The causal language model `llm`, loaded if it is an id or path. Raises `ValueError` if Llama layers would not
    compute the same."""
    given = isinstance(llm, PreTrainedModel)
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    config = llm.config if given else read_config("llm", llm, **options)
    if config.model_type not in TEXT_MODEL_TYPES:
        raise ValueError(
            f"`llm` is of the type {config.model_type!r}; supported are {', '.join(TEXT_MODEL_TYPES)}, whose layers "
            "are those of a Llama"
        )
    windowed = config.model_type == "mistral" or getattr(config, "use_sliding_window", False)
    if windowed and getattr(config, "sliding_window", None) is not None:
        raise ValueError(
            f"`llm` has a sliding window of {config.sliding_window} tokens, which routed layers do not support"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "`llm` is quantised; pass it in full precision, and load the built model with `quantization_config`"
        )
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type in ("dynamic", "longrope"):
        raise ValueError(
            f"`llm` has rotary embeddings of the rope_type {rope_type!r}, which change with the length of a stream, "
            "while cached keys do not; up to `max_position_embeddings` 'dynamic' equals 'default'"
        )
    if not given:
        return AutoModelForCausalLM.from_pretrained(llm, dtype=dtype, **options)
    if llm.get_output_embeddings() is None:
        raise ValueError(f"`llm` must be a causal language model with its head, got {type(llm).__name__}")
    return llm if dtype == "auto" else copy.deepcopy(llm).to(dtype)


def load_tower(vision, dtype) -> PreTrainedModel:
    """The vision tower `vision`, loaded if it is an id or path; of a SigLIP or CLIP model, its vision part."""
    given = isinstance(vision, PreTrainedModel)
    config = vision.config if given else read_config("vision", vision)
    config = getattr(config, "vision_config", config)
    if config.model_type not in VISION_MODEL_TYPES:
        raise ValueError(
            f"`vision` has a tower of the type {config.model_type!r}; supported are {', '.join(VISION_MODEL_TYPES)} "
            "(SigLIP, SigLIP 2 of fixed resolution, CLIP)"
        )
    if not given:
        return AutoModel.from_pretrained(vision, config=config, dtype=dtype)
    own = type(AutoModel.from_config(config)) if not hasattr(vision, "vision_model") else None
    return vision if own is not None and isinstance(vision, own) else vision.vision_model


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


def joined_weights(config: VideoLLMMoDConfig, llm, vision) -> dict[str, torch.Tensor]:
    """The weights of both under the names of the joined model. New rows of embeddings are drawn as in a new model, the
    connector is left out, and LayerExperts are zero, so that every gate is 1."""
    weights = {f"model.vision_tower.{name}": value for name, value in vision.state_dict().items()}
    text = config.text_config
    for name, value in llm.state_dict().items():
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
    clip = config.model_type == "clip_vision_model"
    values = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD} if clip else {}
    if not isinstance(source, PreTrainedModel):
        try:
            stored, _ = ImageProcessingMixin.get_image_processor_dict(source)
        except OSError:
            stored = {}
        names = ("image_mean", "image_std", "resample", "rescale_factor")
        values |= {name: stored[name] for name in names if stored.get(name) is not None}
    return {**values, "size": {"height": config.image_size, "width": config.image_size}}


__all__ = ["build", "read_config"]
