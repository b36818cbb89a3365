"""The configuration of a training run: the YAML file of `videollm-mod train`, checked before anything runs."""

import json
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainingArguments

from ..configuration_videollm_mod import VideoLLMMoDConfig, VideoLLMMoDTextConfig, check_keep_ratio_range
from ..containers import check_count, is_number
from ..data.world_data import WorldData
from .adapters import LoraOptions
from .arguments import stage_arguments
from .carried import Carrying

TYPES = {
    "output_dir": (str,),
    "model": (dict, str),
    "vocab_size": (int,),
    "world": (dict,),
    "data": (dict, str),
    "lora": (dict, type(None)),
    "quantize": (str, type(None)),
    "vision_stage": (dict, type(None)),
    "stream_stage": (dict, type(None)),
    "dtype": (str,),
    "seed": (int,),
}
DATA_FIELDS = {"path": str, "streaming": bool, "missing": str, "strict": bool, "validation": str | float}
VALIDATION_STREAMS = 200  # of the world, by default
STOPPING_OPTIONS = {"early_stopping_patience", "early_stopping_threshold"}
COLLATOR_OPTIONS = {"max_tokens", "packing", "augmentation"}
CARRYING_OPTIONS = {"max_cached_frames", "max_cached_text", "cache_policy", "backprop_windows"}
KEEP_RATIO_OPTIONS = {"keep_ratio_warmup_steps", "elastic_keep_ratio"}
STREAM_OPTIONS = {
    "freeze_vision_tower", *KEEP_RATIO_OPTIONS, *COLLATOR_OPTIONS, *CARRYING_OPTIONS, *STOPPING_OPTIONS
}  # fmt: skip


@dataclass
class TrainingConfig:
    """
    Args:
        output_dir (`str`): folder of the run. It gets `vision/` and `stream/` with the Trainer's checkpoints, and
            `final/` with the checkpoint, or with the adapter if `lora` is set (`videollm-mod merge` merges it).
        model (`dict` or `str`): options of `VideoLLMMoDConfig` for a new model, or the path or id of a checkpoint.
        vocab_size (`int`): maximum number of tokens of a new model's tokenizer.
        world (`dict`): fields of `WorldData`, the training data unless `data` is given. `validation` is the number of
            validation streams, which have other seeds; 200 by default.
        data (`str` or `dict`): a JSONL file of your own streams, or `{path, streaming, missing, strict}` as for
            `data.streams.load_streams`, and `validation`: another JSONL file, or the share of the videos to hold out,
            in (0, 1).
        lora (`dict`, *optional*): fields of `LoraOptions`; `{}` means the defaults. Without it, train all weights.
        quantize (`str`, *optional*): `4bit` quantises the language model's layers to NF4 (QLoRA); needs `lora`.
        vision_stage, stream_stage (`dict` or None): fields of `transformers.TrainingArguments`; None skips the stage.
            With `validation`, a stage evaluates four times by default. It stops early after `early_stopping_patience`
            (`int`) evaluations that do not improve the loss by `early_stopping_threshold`, and ends with the best
            checkpoint if `load_best_model_at_end`. The stream stage has more options:

            - `freeze_vision_tower` (`bool`): do not train the vision tower; true by default with `lora`,
            - `max_tokens` (`int`) of a row, `packing` (`bool`): see `StreamCollator`; your own streams are cut into
              several if they are longer, see `data.windows`,
            - `max_cached_frames`, `max_cached_text`, `backprop_windows` (`int`), `cache_policy` (`str`): train whole
              streams with the memory of a bounded session, see `Carrying`; not with `max_tokens` or `packing`,
            - `augmentation` (`float`): share of streams with an altered narration, see `ReplyAugmentation`,
            - `keep_ratio_warmup_steps` (`int`) and `elastic_keep_ratio` (`[low, high]`): see `KeepRatioSchedule`.
        dtype (`str`): dtype of the final checkpoint; with `lora`, of the frozen weights.
        seed (`int`): seed of weights, data order and random keep ratios.
    """

    output_dir: str
    model: dict | str
    vocab_size: int = 1000
    world: dict = field(default_factory=dict)
    data: dict | str | None = None
    lora: dict | None = None
    quantize: str | None = None
    vision_stage: dict | None = None
    stream_stage: dict | None = field(default_factory=dict)
    dtype: str = "bfloat16"
    seed: int = 0

    @classmethod
    def load(cls, path: str | Path) -> "TrainingConfig":
        """Read a YAML file.

        Raises:
            `ValueError`: if it is not a mapping, or has missing, unknown or wrong fields.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} must be a mapping, got {type(content).__name__}")
        if missing := {"output_dir", "model"} - content.keys():
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
        check_names(str(path), content, field_names(cls))
        for name, types in TYPES.items():
            value = content.get(name)
            if name in content and (not isinstance(value, types) or isinstance(value, bool)):
                wanted = " or ".join(t.__name__ for t in types)
                raise ValueError(f"`{name}` of {path} must be of type {wanted}, got {value!r}")
        arguments = field_names(TrainingArguments)
        check_names(f"`world` of {path}", content.get("world"), {*field_names(WorldData), "validation"})
        check_names(f"`lora` of {path}", content.get("lora"), field_names(LoraOptions))
        check_names(f"`vision_stage` of {path}", content.get("vision_stage"), {*arguments, *STOPPING_OPTIONS})
        check_names(f"`stream_stage` of {path}", content.get("stream_stage"), {*arguments, *STREAM_OPTIONS})
        if isinstance(content["model"], dict):
            check_model(f"`model` of {path}", content["model"])
        dtype = getattr(torch, content.get("dtype", cls.dtype), None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"`dtype` of {path} must be a floating-point dtype of torch, got {content['dtype']!r}")
        config = cls(**content)
        config.check()
        return config

    def check(self) -> None:
        """Raise `ValueError` for values that are wrong or exclude each other."""
        self._check_data()
        self._check_combinations()
        if self.lora is not None:
            LoraOptions(**self.lora)
        for name in ("vision", "stream"):
            self._check_early_stopping(name)
        self._check_stream_stage(self.stream_stage or {})

    def _check_data(self) -> None:
        check_count("`validation` of `world`", self.world.get("validation", 1))
        if self.data is None:
            self.world_data()
        if not isinstance(self.data, dict):
            return
        check_names("`data`", self.data, set(DATA_FIELDS))
        for name, value in self.data.items():
            if not isinstance(value, DATA_FIELDS[name]):
                wanted = getattr(DATA_FIELDS[name], "__name__", "str or float")
                raise ValueError(f"`{name}` of `data` must be of type {wanted}, got {value!r}")
        if "path" not in self.data:
            raise ValueError("`data` lacks path, the JSONL file")
        share = self.data.get("validation")
        if isinstance(share, float) and not 0 < share < 1:
            raise ValueError(f"`validation` of `data` must be a file or a share in (0, 1), got {share!r}")
        if isinstance(share, float) and self.data.get("streaming"):
            raise ValueError(
                "`validation` of `data` must be a file if `streaming` is set: the number of videos is unknown"
            )

    def _check_combinations(self) -> None:
        if self.data is not None and self.world:
            raise ValueError("give only one of `data` and `world`")
        if self.quantize not in (None, "4bit"):
            raise ValueError(f"`quantize` must be '4bit', got {self.quantize!r}")
        if self.quantize is not None and self.lora is None:
            raise ValueError("`quantize` needs `lora`: 4-bit weights cannot be trained")
        for name in ("lora", "data"):
            if getattr(self, name) is not None and isinstance(self.model, dict):
                raise ValueError(f"`{name}` needs a checkpoint as `model`, got options of a new model")
            if getattr(self, name) is not None and self.vision_stage is not None:
                raise ValueError(f"`vision_stage` trains a new model on the world, and cannot be used with `{name}`")

    def _check_early_stopping(self, name: str) -> None:
        patience, threshold = self.early_stopping(name) or (1, 0.0)
        check_count("`early_stopping_patience`", patience)
        if not is_number(threshold) or not threshold >= 0:
            raise ValueError(f"`early_stopping_threshold` must be a number of at least 0, got {threshold!r}")

    def _check_stream_stage(self, stage: dict) -> None:
        for name in ("freeze_vision_tower", "packing"):
            value = stage.get(name, False)
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` must be true or false, got {value!r}")
        check_count("`keep_ratio_warmup_steps`", stage.get("keep_ratio_warmup_steps", 0), 0)
        if stage.get("max_tokens") is not None:
            check_count("`max_tokens`", stage["max_tokens"])
        carrying = self.carrying
        for name in ("max_tokens", "packing") if carrying else ():
            if stage.get(name):
                raise ValueError(f"`{name}` cannot be used with `max_cached_frames`, with which streams stay whole")
        share = self.augmentation
        if not is_number(share) or not 0 <= share <= 1:
            raise ValueError(f"`augmentation` must be in [0, 1], got {share!r}")
        if stage.get("elastic_keep_ratio") is not None:
            check_keep_ratio_range("elastic_keep_ratio", stage["elastic_keep_ratio"])

    @property
    def freeze_vision_tower(self) -> bool:
        return (self.stream_stage or {}).get("freeze_vision_tower", self.lora is not None)

    @property
    def augmentation(self) -> float:
        return (self.stream_stage or {}).get("augmentation", 0.0)

    @property
    def carrying(self) -> Carrying | None:
        """The bounded memory with which the stream stage trains; None without a bound."""
        options = {name: value for name, value in (self.stream_stage or {}).items() if name in CARRYING_OPTIONS}
        if options and "max_cached_frames" not in options:
            raise ValueError(f"`{sorted(options)[0]}` needs `max_cached_frames`")
        return Carrying(**options) if options else None

    def world_data(self) -> WorldData:
        return WorldData(**{name: value for name, value in self.world.items() if name != "validation"})

    @property
    def data_options(self) -> dict:
        """`data` as a mapping."""
        return {"path": self.data} if isinstance(self.data, str) else dict(self.data or {})

    @property
    def validation(self) -> str | float | int | None:
        """The validation data: a file, a share of the videos in `data`, or a number of streams of the world."""
        own = self.world if self.data is None else self.data_options
        return own.get("validation", VALIDATION_STREAMS if self.data is None else None)

    @property
    def has_validation(self) -> bool:
        """Whether the configuration sets `validation`, so that stages evaluate by default."""
        return "validation" in (self.world if self.data is None else self.data_options)

    def early_stopping(self, name: str) -> tuple[int, float] | None:
        """`(patience, threshold)` of a stage, or None if it does not stop early."""
        stage = getattr(self, f"{name}_stage") or {}
        if not STOPPING_OPTIONS & stage.keys():
            return None
        return stage.get("early_stopping_patience", 1), stage.get("early_stopping_threshold", 0.0)

    def arguments(self, name: str) -> TrainingArguments | None:
        """The `TrainingArguments` of the stage `name` (`vision` or `stream`), or None if it is skipped."""
        options = getattr(self, f"{name}_stage")
        if options is None:
            return None
        return stage_arguments(self, name, {k: v for k, v in options.items() if k not in STREAM_OPTIONS})


def check_model(where: str, options: dict) -> None:
    """Raise `ValueError` unless `options` are valid for a new model."""
    vision = options.get("vision_config") or {}
    if not isinstance(options.get("text_config"), dict) or not isinstance(vision, dict):
        raise ValueError(f"{where} must have the mappings `text_config` and `vision_config`, got {options!r}")
    check_names(where, options, field_names(VideoLLMMoDConfig))
    check_names(f"`text_config` in {where}", options["text_config"], field_names(VideoLLMMoDTextConfig))
    try:
        config = VideoLLMMoDConfig(**options)
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
    check_names(f"`vision_config` in {where}", vision, {"model_type", *field_names(type(config.vision_config))})


def field_names(cls: type) -> set[str]:
    return {f.name for f in fields(cls)}


def check_names(where: str, options: dict | None, known: set[str]) -> None:
    """Raise `ValueError` for unknown options, with a suggestion."""
    for name in sorted(map(str, (options or {}).keys() - known)):
        like = get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known if len(known) < 20 else ())
        raise ValueError(
            f"{where} has the unknown field {name!r}" + (f"; did you mean {', '.join(like)}?" if like else "")
        )


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint of a stage. The Trainer writes its state last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return str(checkpoint)
        except (OSError, ValueError):
            continue
    return None
