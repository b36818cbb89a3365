"""Train each given YAML configuration in one of several CPU processes; run by tests/test_distributed.py."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from videollm_mod.training import train as training
from videollm_mod.training.config import TrainingConfig

_init = AcceleratorState.__init__


def _shard_on_cpu(self, *args, fsdp_plugin=None, **kwargs):
    """accelerate enables FSDP only on GPUs, but it works on CPUs too."""
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = self.distributed_type


class Observer(TrainerCallback):
    """Records which parameters are sharded, and the gradients of the routers."""

    def __init__(self):
        self.routers, self.sharded, self.frozen_sharded, self.dtypes = {}, set(), set(), set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.sharded.add(isinstance(parameter, DTensor))
                self.dtypes.add(str(parameter.dtype))
            else:
                self.frozen_sharded.add(isinstance(parameter, DTensor))
            if parameter.requires_grad and "layer_expert" in name:
                gradient = parameter.grad
                gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                self.routers[name] = max(self.routers.get(name, 0.0), gradient.abs().max().item())


if __name__ == "__main__":
    AcceleratorState.__init__ = _shard_on_cpu
    training.draw_curves = lambda *_: None  # which takes as long as the steps
    for path in map(Path, sys.argv[1:]):
        observer = Observer()

        class ObservedTrainer(training.StreamTrainer):
            def __init__(self, *args, observer=observer, **kwargs):
                super().__init__(*args, **kwargs)
                self.add_callback(observer)

        training.StreamTrainer, plain = ObservedTrainer, training.StreamTrainer
        folder = training.train(TrainingConfig.load(path))
        training.StreamTrainer = plain
        seen = {"routers": observer.routers}
        seen |= {name: sorted(getattr(observer, name)) for name in ("sharded", "frozen_sharded", "dtypes")}
        (folder.parent / f"seen.{path.stem}.{PartialState().process_index}.json").write_text(json.dumps(seen))
