"""Processes that start after torch has run: the package never forks, and the docs tell users how to fork safely."""

import os
import re
import sys

from fork_server import TORCH, run_forked
from fresh_process import ROOT

FORKS = re.compile(r"""(get_context|set_start_method)\(["']fork|multiprocessing_context=["']fork|\bos\.fork(pty)?\(""")
MAPPED = f"""
import torch
from datasets import Dataset
from videollm_mod import VideoLLMMoDProcessor

processor = VideoLLMMoDProcessor.from_pretrained({str(ROOT)!r})

def count(example):
    torch.set_num_threads(1)
    frames = torch.zeros(4, 3, 480, 640, dtype=torch.uint8)
    return {{"count": len(processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"])}}

count({{}})
torch.set_num_threads(2)
torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # starts threads, which a fork does not copy
dataset = Dataset.from_dict({{"a": [0, 1]}}).map(count, num_proc=2, load_from_cache_file=False)
assert dataset["count"][:] == [4, 4]
"""


def test_map_with_a_function_of_the_docs_does_not_hang(tmp_path):
    assert "should begin with `torch.set_num_threads(1)`" in " ".join(
        (ROOT / "docs" / "how-to" / "fine-tuning.md").read_text().split()
    )
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": ""}
    done = run_forked([sys.executable, "-c", MAPPED], env=environment, preloaded=TORCH, timeout=240)
    assert done.returncode == 0, done.stderr


def test_package_never_forks():
    of_tests = {ROOT / name for name in ("tests", ".venv", "build")}
    files = [path for path in ROOT.rglob("*.py") if of_tests.isdisjoint(path.parents)]
    assert len(files) > 50
    assert [str(path) for path in files if FORKS.search(path.read_text(encoding="utf-8"))] == []
