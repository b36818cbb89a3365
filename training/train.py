"""`videollm-mod train CONFIG.yaml`: first the vision tower learns to name what it sees, then the model the streams.

The same file runs on one device, and with `torchrun` or `accelerate launch` on many.
"""

from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import TrainerState, TrainingArguments, set_seed
from transformers.utils import logging

from ..data.augmentation import ReplyAugmentation
from ..data.collator import StreamCollator
from ..data.world_data import WorldCells, WorldData, WorldStreams, collate_cells
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor
from .adapters import LoraOptions, add_lora, four_bit
from .config import TrainingConfig, last_checkpoint, stage_arguments
from .curves import draw_curves
from .freezing import freeze_unreached
from .initialise import initialise
from .keep_ratio import KeepRatioSchedule
from .saving import save, unsharded
from .trainer import StreamTrainer
from .vision_stage import CellNamer

logger = logging.get_logger(__name__)


def load(
    config: TrainingConfig, device: torch.device | None = None
) -> tuple[VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor]:
    """The model and processor to start from: in float32, or where the weights stay frozen in `config.dtype`, or in
    4 bit on `device`."""
    if isinstance(config.model, dict):
        return initialise(config.model, WorldData(**config.world).texts(), config.vocab_size, config.seed)
    path = Path(config.model).expanduser()
    if config.model.startswith((".", "/", "~")) and not path.is_dir():
        raise FileNotFoundError(f"`model` is no folder: {config.model}")
    source = str(path.resolve()) if path.is_dir() else config.model  # an adapter notes where its base lies
    options = {"dtype": torch.float32 if config.lora is None else getattr(torch, config.dtype)}
    if config.quantize:
        options |= {"quantization_config": four_bit(), "device_map": {"": device}}
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(source, **options)
    return model, VideoLLMMoDProcessor.from_pretrained(source)


def streams(config: TrainingConfig, processor: VideoLLMMoDProcessor):
    """The data set of the stream stage."""
    if config.data is None:
        return WorldStreams(WorldData(**config.world), processor)
    from ..data.streams import load_streams

    data = {"path": config.data} if isinstance(config.data, str) else config.data
    dataset = load_streams(**data, processor=processor, max_tokens=config.stream_stage.get("max_tokens"))
    # The Trainer does not know how long a pass over it is, and would resume in the wrong place after the first.
    return dataset.repeat(None) if data.get("streaming") else dataset


def run_stage(trainer: StreamTrainer) -> None:
    """Train, from the last checkpoint if there is one; leaves `trainer_state.json` and `curves.png`."""
    folder = Path(trainer.args.output_dir)
    last = last_checkpoint(folder)
    state = last and TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
    if state and state.global_step >= trainer.args.max_steps > 0 and not trainer.is_fsdp_enabled:
        trainer._load_from_checkpoint(last)  # resumed, a finished run would take one step more
        trainer.state = state
    else:
        trainer.train(resume_from_checkpoint=last)
    trainer.save_state()
    if trainer.is_world_process_zero():
        try:
            draw_curves({folder.name: trainer.state.log_history}, folder / "curves.png")
        except ImportError:
            logger.warning("no curves.png: drawing it needs matplotlib (pip install matplotlib)")


def run_vision_stage(config: TrainingConfig, arguments: TrainingArguments, model, processor) -> None:
    """Teach `model`'s tower, or load what this stage has taught it in an earlier run."""
    tower, done = model.model.vision_tower, Path(config.output_dir) / "vision" / "tower.safetensors"
    if done.exists():
        tower.load_state_dict(load_file(done))
        return
    grid = model.config.frame_token_pooled
    if grid is None:
        raise ValueError("`vision_stage` names what is in pooled cells: set `frame_token_pooled` or leave it out")
    cells = WorldCells(WorldData(**config.world), processor.video_processor.size["height"], grid)
    freeze_unreached(model, given_features=False)
    trainer = StreamTrainer(
        model=CellNamer(model),
        args=arguments,
        train_dataset=cells,
        data_collator=collate_cells,
        video_processor=processor.video_processor,
    )
    if trainer.is_fsdp_enabled:
        raise ValueError("`vision_stage` is not sharded: run it without FSDP, then the rest with it")
    run_stage(trainer)
    if PartialState().is_main_process:
        partial = done.with_suffix(".partial")  # a killed run leaves no half-written tower under the final name
        save_file({name: value.cpu() for name, value in tower.state_dict().items()}, partial)
        partial.replace(done)


def run_stream_stage(config: TrainingConfig, arguments: TrainingArguments, model, processor) -> StreamTrainer:
    """Teach `model` the streams."""
    dataset = streams(config, processor)
    given_features = "video_features" in next(iter(dataset))
    model.model.vision_tower.requires_grad_(not config.freeze_vision_tower)
    if config.lora is not None:
        train_tower = not (config.freeze_vision_tower or given_features)
        model = add_lora(model, LoraOptions(**config.lora), train_tower)
    freeze_unreached(model, given_features)
    options = config.stream_stage
    schedule = KeepRatioSchedule(
        options.get("keep_ratio_warmup_steps", 0), options.get("elastic_keep_ratio"), config.seed
    )
    trainer = StreamTrainer(
        model=model.train(),
        args=arguments,
        train_dataset=dataset,
        data_collator=StreamCollator(
            processor.tokenizer.pad_token_id,
            processor,
            options.get("max_tokens"),
            options.get("packing", False),
            ReplyAugmentation(processor, config.augmentation, config.seed) if config.augmentation else None,
        ),
        processing_class=processor,
        video_processor=processor.video_processor,
        keep_ratio=schedule if schedule.warmup_steps or schedule.elastic else None,
    )
    if config.quantize and trainer.is_fsdp_enabled:
        raise ValueError("`quantize` and FSDP do not go together: weights in 4 bit cannot be sharded; use DDP")
    run_stage(trainer)
    return trainer


def write_final(config: TrainingConfig, trainer: StreamTrainer | None, model, processor) -> Path:
    """Write `final/`: the adapter, or the checkpoint in `config.dtype`."""
    final = Path(config.output_dir) / "final"
    if trainer is not None and config.lora is not None:
        trainer.save_model(str(final))
        return final
    if trainer is not None and trainer.is_fsdp_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model)  # gathered by all, held by the first
        model = unsharded(trainer.model, state) if trainer.is_world_process_zero() else None
    if PartialState().is_main_process:
        save(model, processor, final, getattr(torch, config.dtype))
    return final


def train(config: TrainingConfig) -> Path:
    """Run the stages of `config` and return the folder of the finished checkpoint or adapter.

    Run again after an interruption, it goes on from the last checkpoint of the stage that was cut off.
    """
    set_seed(config.seed)
    # everything that can be wrong is found here, before a stage has run
    config.check()
    if config.data is None:
        WorldData(**config.world)
    vision_arguments, stream_arguments = config.arguments("vision"), config.arguments("stream")
    model, processor = load(config, stream_arguments and stream_arguments.device)

    if vision_arguments is not None:
        run_vision_stage(config, vision_arguments, model, processor)
        PartialState().wait_for_everyone()
    trainer = None
    if stream_arguments is not None:
        trainer = run_stream_stage(config, stream_arguments, model, processor)
    final = write_final(config, trainer, model, processor)
    PartialState().wait_for_everyone()
    return final


__all__ = ["TrainingConfig", "last_checkpoint", "stage_arguments", "train"]
