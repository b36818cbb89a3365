"""What `torchrun --standalone --nproc-per-node 2` does, with workers that are forked, so that they need not import
torch."""

import os
import subprocess
import sys

from fork_server import run_forked, run_main


def torchrun(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run a script, or a module after `-m`, in two processes with one thread each, which `torchrun` sets too."""
    return run_forked([sys.executable, __file__, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


if __name__ == "__main__":
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    standalone = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(**standalone, nproc_per_node=2, run_id="test", start_method="fork", max_restarts=0)
    elastic_launch(config, run_main)(sys.argv[1:])
