"""`videollm-mod train CONFIG.yaml`: first the vision tower learns to name what it sees, then the model the streams."""

import json
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments, set_seed
from transformers.utils import logging

from ..configuration_videollm_mod import VideoLLMMoDConfig, VideoLLMMoDTextConfig
from ..data.collator import StreamCollator
from ..data.world_data import WorldCells, WorldData, WorldStreams, collate_cells
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor
from .curves import draw_curves
from .initialise import initialise
from .trainer import StreamTrainer
from .vision_stage import CellNamer

logger = logging.get_logger(__name__)

TYPES = {
    "output_dir": (str,),
    "model": (dict, str),
    "vocab_size": (int,),
    "world": (dict,),
    "vision_stage": (dict, type(None)),
    "stream_stage": (dict, type(None)),
    "dtype": (str,),
    "seed": (int,),
}


@dataclass
class TrainingConfig:
    """
    Args:
        output_dir (`str`): gets `vision/` and `stream/` with the Trainer's checkpoints, and `final/`, the checkpoint.
        model (`dict` or `str`): options of `VideoLLMMoDConfig` for a new model, or the path or id of a checkpoint.
        vocab_size (`int`): tokens at most of a new model's tokenizer.
        world (`dict`): fields of `WorldData`.
        vision_stage, stream_stage (`dict` or None): fields of `transformers.TrainingArguments`; None leaves the stage
            out. `freeze_vision_tower: true` in the stream stage keeps the tower as it is.
        dtype (`str`): of the checkpoint that is written.
        seed (`int`): of weights and data order.
    """

    output_dir: str
    model: dict | str
    vocab_size: int = 1000
    world: dict = field(default_factory=dict)
    vision_stage: dict | None = None
    stream_stage: dict | None = field(default_factory=dict)
    dtype: str = "bfloat16"
    seed: int = 0

    @classmethod
    def load(cls, path: str | Path) -> "TrainingConfig":
        """Read a YAML file.

        Raises:
            `ValueError`: if it is no mapping, lacks a field or has an unknown one.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} must be a mapping, got {type(content).__name__}")
        if missing := {"output_dir", "model"} - content.keys():
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
        check_names(str(path), content, field_names(cls))
        for name, types in TYPES.items():
            value = content.get(name)
            if name in content and (not isinstance(value, types) or isinstance(value, bool)):
                wanted = " or ".join(t.__name__ for t in types)
                raise ValueError(f"`{name}` of {path} must be of the type {wanted}, got {value!r}")
        arguments = field_names(TrainingArguments)
        check_names(f"`world` of {path}", content.get("world"), field_names(WorldData))
        check_names(f"`vision_stage` of {path}", content.get("vision_stage"), arguments)
        check_names(f"`stream_stage` of {path}", content.get("stream_stage"), {*arguments, "freeze_vision_tower"})
        if isinstance(content["model"], dict):
            check_model(f"`model` of {path}", content["model"])
        dtype = getattr(torch, content.get("dtype", cls.dtype), None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"`dtype` of {path} must name a floating-point type of torch, got {content['dtype']!r}")
        return cls(**content)


def check_model(where: str, options: dict) -> None:
    """Raise `ValueError` unless `options` make a configuration of a new model."""
    vision = options.get("vision_config") or {}
    if not isinstance(options.get("text_config"), dict) or not isinstance(vision, dict):
        raise ValueError(f"{where} must hold the mappings `text_config` and `vision_config`, got {options!r}")
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
    """Raise `ValueError` for options that nobody reads, naming what may have been meant."""
    for name in sorted(map(str, (options or {}).keys() - known)):
        like = get_close_matches(name, known, n=3) or sorted(known)[:12]
        raise ValueError(f"{where} has the unknown field {name!r}; did you mean {', '.join(like)}?")


def load(config: TrainingConfig) -> tuple[VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor]:
    """The model and processor to start from, in float32."""
    if isinstance(config.model, str):
        if config.model.startswith((".", "/", "~")) and not Path(config.model).expanduser().is_dir():
            raise FileNotFoundError(f"`model` is no folder: {config.model}")
        model = VideoLLMMoDForConditionalGeneration.from_pretrained(config.model, dtype=torch.float32)
        return model, VideoLLMMoDProcessor.from_pretrained(config.model)
    return initialise(config.model, WorldData(**config.world).texts(), config.vocab_size, config.seed)


def stage_arguments(config: TrainingConfig, name: str, options: dict) -> TrainingArguments:
    defaults = {
        "output_dir": str(Path(config.output_dir) / name),
        "seed": config.seed,
        "report_to": [],
        "remove_unused_columns": False,
        "save_strategy": "steps",
        "save_steps": 0.25,
        "save_total_limit": 1,
        "logging_steps": 20,
    }
    options = dict(options)
    for f in fields(TrainingArguments):
        # YAML reads `1e-3` as a string, and TrainingArguments would only notice in the optimizer
        if isinstance(options.get(f.name), str) and isinstance(f.default, float):
            try:
                options[f.name] = float(options[f.name])
            except ValueError as error:
                raise ValueError(f"`{f.name}` of `{name}_stage` must be a number, got {options[f.name]!r}") from error
    try:
        return TrainingArguments(**{**defaults, **options})
    except TypeError as error:
        raise ValueError(f"`{name}_stage`: {error}") from error


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint of a stage that was written to its end: the Trainer's state is what it writes last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return str(checkpoint)
        except (OSError, ValueError):
            continue
    return None


def run_stage(trainer: StreamTrainer) -> None:
    """Train, from the last checkpoint if there is one; leaves `trainer_state.json` and `curves.png`."""
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_state()
    if trainer.is_world_process_zero():
        try:
            draw_curves({folder.name: trainer.state.log_history}, folder / "curves.png")
        except ImportError:
            logger.warning("no curves.png: drawing it needs matplotlib (pip install matplotlib)")


def train(config: TrainingConfig) -> Path:
    """Run the stages of `config` and return the folder of the finished checkpoint.

    Run again after an interruption, it goes on from the last checkpoint of the stage that was cut off.
    """
    set_seed(config.seed)
    # everything that can be wrong is found here, before a stage has run
    data, output = WorldData(**config.world), Path(config.output_dir)
    vision_arguments = stream_arguments = None
    if config.vision_stage is not None:
        vision_arguments = stage_arguments(config, "vision", config.vision_stage)
    if config.stream_stage is not None:
        options = dict(config.stream_stage)
        freeze = options.pop("freeze_vision_tower", False)
        if not isinstance(freeze, bool):
            raise ValueError(f"`freeze_vision_tower` must be true or false, got {freeze!r}")
        stream_arguments = stage_arguments(config, "stream", options)
    model, processor = load(config)
    tower = model.model.vision_tower

    if vision_arguments is not None:
        done = output / "vision" / "tower.safetensors"
        if done.exists():
            tower.load_state_dict(load_file(done))
        else:
            grid = model.config.frame_token_pooled
            if grid is None:
                raise ValueError(
                    "`vision_stage` names what is in pooled cells: set `frame_token_pooled` or leave it out"
                )
            cells = WorldCells(data, processor.video_processor.size["height"], grid)
            trainer = StreamTrainer(
                model=CellNamer(model, cells.num_kinds),
                args=vision_arguments,
                train_dataset=cells,
                data_collator=collate_cells,
                video_processor=processor.video_processor,
            )
            run_stage(trainer)
            partial = done.with_suffix(".partial")  # a killed run leaves no half-written tower under the final name
            save_file({name: value.cpu() for name, value in tower.state_dict().items()}, partial)
            partial.replace(done)

    if stream_arguments is not None:
        tower.requires_grad_(not freeze)
        trainer = StreamTrainer(
            model=model.train(),
            args=stream_arguments,
            train_dataset=WorldStreams(data, processor),
            data_collator=StreamCollator(processor.tokenizer.pad_token_id),
            processing_class=processor,
            video_processor=processor.video_processor,
        )
        run_stage(trainer)

    final = output / "final"
    if PartialState().is_main_process:
        save(model, processor, final, getattr(torch, config.dtype))
    return final


def save(model, processor, folder: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint in `dtype`, LayerExperts in float32."""
    routers = {name: p.detach().clone() for name, p in model.named_parameters() if "layer_expert" in name}
    model.to(dtype)
    for name, value in routers.items():
        model.get_parameter(name).data = value
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
