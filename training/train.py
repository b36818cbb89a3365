"""`videollm-mod train CONFIG.yaml`: first train the vision tower to classify what it sees, then the model on streams.

The same configuration runs on one device, and on several with `torchrun` or `accelerate launch`.
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerState, TrainingArguments, set_seed
from transformers.utils import logging

from ..data.augmentation import ReplyAugmentation
from ..data.collator import StreamCollator
from ..data.files import written_whole
from ..data.world_data import collate_cells
from ..loading.quantisation import four_bit
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor
from ..speaking import learn_silence
from .adapters import LoraOptions, add_lora
from .arguments import check_hub_access, stage_arguments
from .carried import CarriedCollator
from .config import TrainingConfig, last_checkpoint
from .curves import draw_curves
from .examples import check_files, stream_datasets, vision_datasets
from .freezing import freeze_unreached
from .initialise import initialise
from .keep_ratio import KeepRatioSchedule
from .record import RunRecord
from .saving import load_weights, save, unsharded
from .trainer import StreamTrainer
from .vision_stage import CellClassifier

logger = logging.get_logger(__name__)


def load(
    config: TrainingConfig, device: torch.device | None = None
) -> tuple[VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor]:
    """The initial model and processor. Weights are in float32; with `lora` they are in `config.dtype`, or in 4 bit on
    `device` if `quantize`."""
    if isinstance(config.model, dict):
        return initialise(config.model, config.world_data().texts(), config.vocab_size, config.seed)
    path = Path(config.model).expanduser()
    if config.model.startswith((".", "/", "~")) and not path.is_dir():
        raise FileNotFoundError(f"`model` is not a folder: {config.model}")
    source = str(path.resolve()) if path.is_dir() else config.model  # an adapter stores the path of its base
    options = {"dtype": torch.float32 if config.lora is None else getattr(torch, config.dtype)}
    if config.quantize:
        options |= {"quantization_config": four_bit(), "device_map": {"": device}}
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(source, **options)
    if config.data is not None:
        model.config.domain = None  # what it learns now is the user's
    processor = VideoLLMMoDProcessor.from_pretrained(source)
    if config.stream_stage is not None:
        learn_silence(model, processor)
    return model, processor


def finished_stage(folder: Path, arguments: TrainingArguments) -> tuple[TrainerState, Path] | None:
    """The final `TrainerState` of a finished stage and the checkpoint with its final weights; None if the stage is not
    finished, or the checkpoint was not kept."""
    last = last_checkpoint(folder)
    if last is None:
        return None
    saved = TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
    try:  # written at the end of a stage, even if it stopped early
        state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    except (OSError, ValueError, TypeError):
        state = saved
        if not state.global_step >= state.max_steps > 0:
            return None
    if arguments.load_best_model_at_end and state.best_model_checkpoint is not None:
        best = folder / Path(state.best_model_checkpoint).name  # the folder may have been moved
        return (state, best) if best.is_dir() else None
    return (state, Path(last)) if saved.global_step == state.global_step else None


def run_stage(trainer: StreamTrainer) -> None:
    """Train from the last checkpoint, if there is one. Writes `trainer_state.json` and `curves.png`."""
    folder = Path(cast(str, trainer.args.output_dir))  # `TrainingArguments` sets one if none is given
    finished = None if trainer.is_fsdp_enabled else finished_stage(folder, trainer.args)
    if finished is not None:  # resuming a finished stage would train for one more step
        trainer.state, weights = finished
        load_weights(trainer.model, weights)
    else:
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_state()
    if trainer.is_world_process_zero():
        try:
            draw_curves({folder.name: trainer.state.log_history}, folder / "curves.png")
        except ImportError:
            logger.warning("curves.png is not drawn: it needs matplotlib (pip install matplotlib)")


def evaluates(arguments: TrainingArguments) -> bool:
    return arguments.eval_strategy != "no" or arguments.eval_on_start


def early_stopping(config: TrainingConfig, name: str) -> list[EarlyStoppingCallback]:
    stopping = config.early_stopping(name)
    return [] if stopping is None else [EarlyStoppingCallback(*stopping)]


def run_vision_stage(config: TrainingConfig, arguments: TrainingArguments, model, processor) -> None:
    """Train the vision tower of `model`, or load it if an earlier run has finished this stage."""
    tower, done = model.model.vision_tower, Path(config.output_dir) / "vision" / "tower.safetensors"
    if done.exists():
        tower.load_state_dict(load_file(done))
        return
    grid = model.config.frame_token_pooled
    if grid is None:
        raise ValueError("`vision_stage` classifies pooled cells: set `frame_token_pooled`, or remove the stage")
    freeze_unreached(model, given_features=False)
    datasets = vision_datasets(config, processor, grid, evaluates(arguments))
    trainer = StreamTrainer(
        model=CellClassifier(model),
        args=arguments,
        data_collator=collate_cells,
        train_dataset=datasets["train_dataset"],
        eval_dataset=datasets.get("eval_dataset"),
        video_processor=processor.video_processor,
        callbacks=early_stopping(config, "vision"),
    )
    if trainer.is_fsdp_enabled:
        raise ValueError("`vision_stage` does not support FSDP: run it without, then the stream stage with FSDP")
    run_stage(trainer)
    if PartialState().is_main_process:
        with written_whole(done) as partial:
            save_file({name: value.cpu() for name, value in tower.state_dict().items()}, partial)


def run_stream_stage(config: TrainingConfig, arguments: TrainingArguments, model, processor) -> StreamTrainer:
    """Train `model` on streams."""
    datasets = stream_datasets(config, processor, evaluates(arguments))
    given_features = "video_features" in next(iter(datasets["train_dataset"]))
    model.model.vision_tower.requires_grad_(not config.freeze_vision_tower)
    if config.lora is not None:
        train_tower = not (config.freeze_vision_tower or given_features)
        model = add_lora(model, LoraOptions(**config.lora), train_tower)
    freeze_unreached(model, given_features)
    options = config.stream_stage or {}
    if options.get("elastic_keep_ratio") is not None:
        model.config.text_config.mod_keep_ratio_range = list(options["elastic_keep_ratio"])  # for whoever serves it
    schedule = KeepRatioSchedule(
        options.get("keep_ratio_warmup_steps", 0), options.get("elastic_keep_ratio"), config.seed
    )
    collator = StreamCollator(
        processor.tokenizer.pad_token_id,
        options.get("max_tokens"),
        options.get("packing", False),
        ReplyAugmentation(processor, config.augmentation, config.seed) if config.augmentation else None,
    )
    if config.carrying is not None:
        collator = CarriedCollator(**vars(collator), processor=processor, carrying=config.carrying)
    trainer = StreamTrainer(
        model=model.train(),
        args=arguments,
        data_collator=collator,
        eval_collator=replace(collator, augmentation=None),
        processing_class=processor,
        video_processor=processor.video_processor,
        keep_ratio=schedule if schedule.warmup_steps or schedule.elastic else None,
        carrying=config.carrying,
        callbacks=early_stopping(config, "stream"),
        **datasets,
    )
    if config.quantize and trainer.is_fsdp_enabled:
        raise ValueError("`quantize` does not support FSDP, which cannot shard 4-bit weights; use DDP")
    run_stage(trainer)
    return trainer


def write_final(config: TrainingConfig, trainer: StreamTrainer | None, model, processor) -> Path:
    """Write `final/`: the adapter, or the checkpoint in `config.dtype`."""
    final = Path(config.output_dir) / "final"
    if trainer is not None and config.lora is not None:
        trainer.save_model(str(final))
        return final
    if trainer is not None and trainer.is_fsdp_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model)  # a collective call; only the main process gets it
        model = unsharded(trainer.model, state) if trainer.is_world_process_zero() else None
    if PartialState().is_main_process:
        save(model, processor, final, getattr(torch, config.dtype))
    return final


def train(config: TrainingConfig) -> Path:
    """Run the stages of `config`, and return the folder of the final checkpoint or adapter.

    Call it again after an interruption to resume from the last checkpoint. Finished stages are not run again.

    Raises:
        `ValueError`: before anything is loaded, for a wrong configuration, or an `output_dir` that holds a run with
            another one.
    """
    set_seed(config.seed)
    config.check()
    check_files(config)
    vision_arguments, stream_arguments = config.arguments("vision"), config.arguments("stream")
    record = RunRecord(config)
    if record.finished:
        if PartialState().is_main_process:
            logger.warning(f"the run in {config.output_dir} is finished: there is nothing to train")
        return record.final
    for arguments in (vision_arguments, stream_arguments):
        check_hub_access(arguments)
    model, processor = load(config, None if stream_arguments is None else stream_arguments.device)
    PartialState().wait_for_everyone()  # until every process has read the record
    if PartialState().is_main_process:
        record.write()

    if vision_arguments is not None:
        run_vision_stage(config, vision_arguments, model, processor)
        PartialState().wait_for_everyone()
    trainer = None
    if stream_arguments is not None:
        trainer = run_stream_stage(config, stream_arguments, model, processor)
    final = write_final(config, trainer, model, processor)
    if PartialState().is_main_process:
        record.write(finished=True)
    PartialState().wait_for_everyone()
    return final


__all__ = ["TrainingConfig", "last_checkpoint", "stage_arguments", "train"]
