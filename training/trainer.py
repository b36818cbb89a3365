"""The HF Trainer for streams: frames travel as uint8 and become pixel values on the device."""

import contextlib

import torch
from transformers import Trainer
from transformers.utils import logging

from .keep_ratio import KeepRatioSchedule
from .saving import unsharded

logger = logging.get_logger(__name__)


class StreamTrainer(Trainer):
    """A `Trainer` whose batches may hold `frames`, uint8 `[F, 3, H, W]`, instead of `pixel_values_videos`: a quarter
    of the bytes to copy, and the preprocessing is done where the model is.

    It runs on one device, under DDP and under FSDP2. Under FSDP2 every parameter is gathered in its own dtype and
    autocast does the arithmetic, as under DDP: accelerate's policy would round the float32 routers to bfloat16.

    Args:
        video_processor: turns frames into pixel values; needed where batches hold `frames`.
        keep_ratio (`KeepRatioSchedule`, *optional*): of the run.

    Raises:
        `ValueError`: in training on several processes, for a batch without frames.
    """

    def __init__(self, *args, video_processor=None, keep_ratio: KeepRatioSchedule | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.video_processor, self.keep_ratio = video_processor, keep_ratio
        if keep_ratio is not None:
            self.add_callback(keep_ratio)
        if self.args.n_gpu > 1:
            # nn.DataParallel cuts batches along dimension 0, where the frames of all rows lie one after the other
            logger.warning(f"training on one GPU of {self.args.n_gpu}; `torchrun --nproc_per_node N` takes N")
            self.args._n_gpu = 1
            self._train_batch_size = self.args.train_batch_size
        if self.is_fsdp_enabled:
            from torch.distributed.fsdp import MixedPrecisionPolicy

            plugin = self.accelerator.state.fsdp_plugin
            plugin.mixed_precision_policy = MixedPrecisionPolicy()
            if plugin.transformer_cls_names_to_wrap is None:
                # transformers names the text tower's classes too, and accelerate insists on finding all
                found = {type(module).__name__ for module in self.model.modules()}
                plugin.transformer_cls_names_to_wrap = sorted(found.intersection(self.model._no_split_modules))
        elif self.args.fsdp:
            logger.warning("`fsdp` has no effect: accelerate shards on GPUs only, and between several processes")

    def _prepare_inputs(self, inputs: dict) -> dict[str, torch.Tensor]:
        inputs = super()._prepare_inputs(inputs)
        frames, index = inputs.pop("frames", None), inputs.pop("frame_index", None)
        if frames is None:
            return inputs
        pixels = self.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
        if index is None or self.is_fsdp_enabled:  # sharded weights exist only within the model's forward
            return {**inputs, "pixel_values_videos": pixels if index is None else pixels[index]}
        model = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():  # frames that repeat are encoded once
            features = model.encode_frames(pixels).pooler_output
        return {**inputs, "video_features": features[index]}

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        stack = super().compute_loss_context_manager()
        if self.is_fsdp_enabled:
            stack.enter_context(self.accelerator.autocast())  # accelerate does so for what it does not shard
        return stack

    def compute_loss(self, model, inputs, *args, **kwargs):
        given = {"pixel_values_videos", "video_features"} & inputs.keys()
        if model.training and self.args.world_size > 1 and not given:
            raise ValueError(
                "a batch without frames leaves connector and routers without gradients, for which the other processes "
                "wait: leave examples without frames out"
            )
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self.keep_ratio is not None and "loss" in logs:
            logs = {**logs, "keep_ratio": self.keep_ratio.last}
        super().log(logs, *args, **kwargs)

    def _load_from_checkpoint(self, *args, **kwargs) -> None:
        trained = {name: p.requires_grad for name, p in self.model.named_parameters()}
        super()._load_from_checkpoint(*args, **kwargs)
        for name, parameter in self.model.named_parameters():  # peft makes all that it loads trainable
            parameter.requires_grad_(trained[name])

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.is_fsdp_enabled or hasattr(self.model, "peft_config"):
            return super()._save(output_dir, state_dict)
        if self.args.should_save:
            unsharded(self.model, state_dict).save_pretrained(output_dir)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output_dir)
