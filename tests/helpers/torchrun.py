"""
What `torchrun --standalone --nproc-per-node 2` does, with workers that are forked, so that they need not import torch.
Start it with `fork_server.py`: `run_forked([*TORCHRUN, SCRIPT, ...])` or `run_forked([*TORCHRUN, "-m", MODULE, ...])`.
"""

import sys

from fork_server import run_main

TORCHRUN = [sys.executable, __file__]

if __name__ == "__main__":
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    standalone = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(**standalone, nproc_per_node=2, run_id="test", start_method="fork", max_restarts=0)
    elastic_launch(config, run_main)(sys.argv[1:])
