"""The HF Trainer for streams: frames are moved as uint8 and preprocessed on the device."""

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from .carried import CarriedStreams, Carrying
from .compat import check_sharded_norms, train_on_one_gpu
from .freezing import frozen_modules
from .keep_ratio import KeepRatioSchedule
from .refused import refuse
from .saving import unsharded

logger = logging.get_logger(__name__)

FRAMES = {"pixel_values_videos", "video_features"}


class StreamTrainer(Trainer):
    """A `Trainer` whose batches may have `frames`, uint8 `[F, 3, H, W]`, instead of `pixel_values_videos`. Frames have
    a quarter of the bytes to copy, and are preprocessed on the model's device.

    It supports one device, DDP and FSDP2. Under FSDP2 every parameter is gathered in its own dtype and computed with
    autocast, as under DDP, because accelerate's policy would round the float32 routers to bfloat16. With
    `reshard_after_forward: false`, which keeps weights whole, frozen weights are never sharded: they lie on every
    device, as under DDP, and nothing waits for them.

    Args:
        video_processor: turns frames into pixel values; needed if batches have `frames`.
        keep_ratio (`KeepRatioSchedule`, *optional*): changes the keep ratio during training.
        eval_collator (*optional*): collator for `evaluate` and `predict`; `data_collator` by default.
        carrying (`Carrying`, *optional*): train with the memory of a bounded session, on batches of a
            `CarriedCollator`. A step then has a backward pass for each span of its streams, and one synchronisation.

    Raises:
        `ValueError`: for arguments that streams do not support (see `refused`), for `compute_loss_func`, and for a
            batch without frames when training on several processes.
    """

    model: torch.nn.Module  # `Trainer.__init__` sets it

    def __init__(
        self,
        model=None,
        args: TrainingArguments | None = None,
        data_collator=None,
        train_dataset=None,
        *rest,
        video_processor=None,
        keep_ratio: KeepRatioSchedule | None = None,
        eval_collator=None,
        carrying: Carrying | None = None,
        **kwargs,
    ):
        args = args or TrainingArguments("tmp_trainer", remove_unused_columns=False)
        refuse(args, isinstance(train_dataset, IterableDataset))
        if args.n_gpu > 1:
            # nn.DataParallel splits batches along dimension 0, which for frames is not the batch dimension
            logger.warning(f"training on one of {args.n_gpu} GPUs; use `torchrun --nproc_per_node N` to train on N")
            train_on_one_gpu(args)
        if args.ddp_broadcast_buffers is None:
            # Buffers are constants. Older versions of torch treat the broadcast as an in-place change of the position
            # ids that the vision tower, which runs before DDP's forward, saves for the backward pass.
            args.ddp_broadcast_buffers = False
        super().__init__(model, args, data_collator, train_dataset, *rest, **kwargs)
        if self.compute_loss_func is not None:
            raise ValueError(
                "`compute_loss_func` is not supported: the model computes the loss, with `stream_loss_weight`"
            )
        self.video_processor, self.keep_ratio, self.eval_collator = video_processor, keep_ratio, eval_collator
        self.carrying = carrying
        if carrying is not None:
            self._check_carrying()
        self.frozen: list[torch.nn.Parameter] = []
        if keep_ratio is not None:
            self.add_callback(keep_ratio)
        if self.is_fsdp_enabled:
            from torch.distributed.fsdp import MixedPrecisionPolicy

            check_sharded_norms(args.max_grad_norm)
            plugin = self.accelerator.state.fsdp_plugin
            plugin.mixed_precision_policy = MixedPrecisionPolicy()
            if plugin.transformer_cls_names_to_wrap is None:
                # `_no_split_modules` also names classes of the text tower, but accelerate requires all to be found
                found = {type(module).__name__ for module in self.model.modules()}
                whole = cast(set[str], self.model._no_split_modules)
                plugin.transformer_cls_names_to_wrap = sorted(found.intersection(whole))
            if not plugin.reshard_after_forward and plugin.ignored_modules is None:
                plugin.ignored_modules = frozen_modules(self.model)  # by name: the plugin outlives the model
        elif self.args.fsdp:
            logger.warning("`fsdp` has no effect: accelerate shards only on GPUs and with several processes")

    def _check_carrying(self) -> None:
        if self.is_fsdp_enabled:
            raise ValueError(
                "`max_cached_frames` does not support FSDP, whose processes would have to take the same number of "
                "windows; use DDP"
            )
        options = self.args.gradient_checkpointing_kwargs
        if isinstance(options, dict) and options.get("use_reentrant"):
            raise ValueError(
                "`max_cached_frames` needs `use_reentrant: false`: reentrant checkpoints pass no gradient back "
                "through the cache"
            )

    def train(self, *args, **kwargs):
        self.frozen = [parameter for parameter in self.model.parameters() if not parameter.requires_grad]
        return super().train(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        for parameter in self.frozen:  # peft makes all parameters that it loads from a checkpoint trainable
            parameter.requires_grad_(False)
        return super().create_optimizer(*args, **kwargs)

    def get_eval_dataloader(self, *args, **kwargs) -> DataLoader:
        with self.evaluating():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args, **kwargs) -> DataLoader:
        with self.evaluating():
            return super().get_test_dataloader(*args, **kwargs)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        collator = self.data_collator
        self.data_collator = self.eval_collator or collator
        try:
            yield
        finally:
            self.data_collator = collator

    def with_pixels(self, inputs: dict) -> dict:
        """Replace `frames` in `inputs` by pixel values, or by features if frames repeat."""
        inputs = dict(inputs)
        frames, index = inputs.pop("frames", None), inputs.pop("frame_index", None)
        if frames is None:
            return inputs
        pixels = self.video_processor(frames.to(self.args.device), return_tensors="pt")["pixel_values_videos"]
        if index is None or self.is_fsdp_enabled:  # FSDP gathers weights only inside the model's forward
            return {**inputs, "pixel_values_videos": pixels if index is None else pixels[index.to(pixels.device)]}
        model = self.accelerator.unwrap_model(self.model)
        features = model.encode_frames(pixels).pooler_output  # repeated frames are encoded once
        return {**inputs, "video_features": features[index.to(features.device)]}

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        stack = super().compute_loss_context_manager()
        if self.is_fsdp_enabled:
            stack.enter_context(self.accelerator.autocast())  # accelerate only does this for unsharded models
        return stack

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.carrying is None:
            return super().training_step(model, inputs, num_items_in_batch)
        streams = self._streams(inputs)
        labels = streams.num_labels if num_items_in_batch is None else num_items_in_batch
        losses = []
        for span in streams.spans:  # processes may have different numbers of them, so only the last one synchronises
            with contextlib.nullcontext() if span is streams.spans[-1] else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, {"streams": streams, "span": span}, labels))
        return torch.stack(losses).sum()

    def _streams(self, inputs: dict) -> CarriedStreams:
        assert self.carrying is not None
        return CarriedStreams(self.accelerator.unwrap_model(self.model), self.carrying, self._prepare_inputs(inputs))

    def compute_loss(self, model, inputs, *args, **kwargs):
        if "streams" in inputs:
            return self._loss_of_span(model, inputs["streams"], inputs["span"], **kwargs)
        inputs = self.with_pixels(inputs)
        if model.training and self.args.world_size > 1 and not FRAMES & inputs.keys():
            raise ValueError(
                "a batch without frames gives no gradients to connector and routers, for which the other processes "
                "would wait: remove examples without frames"
            )
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _loss_of_span(self, model, streams: CarriedStreams, span: range, **kwargs) -> torch.Tensor:
        losses, has_frames = [], False
        for window, inputs in zip(span, streams.span(span), strict=True):
            inputs = self.with_pixels(inputs)
            has_frames |= bool(FRAMES & inputs.keys())
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            streams.add(window, outputs.router_scores, window == span[-1])
            losses.append(loss)
        if not has_frames and self.args.world_size > 1:  # connector and routers need some gradient, as below
            losses += [0 * p.sum() for p in model.parameters() if p.requires_grad]
        return torch.stack(losses).sum()

    def _loss_of_streams(self, model, inputs: dict) -> torch.Tensor:
        """The mean loss of the labels of a batch, without gradients."""
        streams, losses = self._streams(inputs), []
        for span in streams.spans:
            for window, own in zip(span, streams.span(span), strict=True):
                outputs = model(**self.with_pixels(own), num_items_in_batch=streams.num_labels, logits_to_keep=1)
                streams.add(window, outputs.router_scores, True)
                losses.append(outputs.loss)
        return torch.stack(losses).sum()

    def prediction_step(self, model, inputs, prediction_loss_only, *args, **kwargs):
        if self.carrying is not None:
            with torch.no_grad(), self.compute_loss_context_manager():
                return self._loss_of_streams(model, inputs), None, None
        with torch.no_grad(), self.compute_loss_context_manager():
            inputs = self.with_pixels(inputs)
        if prediction_loss_only and "labels" in inputs and "input_ids" in inputs:
            inputs["logits_to_keep"] = 1  # the loss computes its own logits; all of them can take a GiB per stream
        return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        ratio = None if self.keep_ratio is None else self.keep_ratio.last
        if ratio is not None and "loss" in logs:
            logs = {**logs, "keep_ratio": ratio}
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, *args, **kwargs) -> None:
        if not self.is_fsdp_enabled or hasattr(self.model, "peft_config"):
            return super().save_model(output_dir, *args, **kwargs)
        state = self.accelerator.get_state_dict(self.model)
        if self.args.should_save:
            folder = output_dir or cast(str, self.args.output_dir)
            unsharded(self.model, state).save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
