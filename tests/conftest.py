"""Set-up of every test: nothing may reach a model hub, and random numbers start from one seed."""

import os
import signal
import tempfile

import hypothesis
import pytest
import torch

# Models this small gain nothing from a second thread, and beside other programs they wait for it most of the time.
# `TEST_THREADS=2 make test` tries other roundings: with more threads sums are taken in other parts.
THREADS = (os.environ.get("TEST_THREADS") or os.environ.get("OMP_NUM_THREADS") or "1").split(",")[0]
# A shell's background jobs ignore Ctrl-C, and so would the commands that tests start and break off.
signal.signal(signal.SIGINT, signal.default_int_handler)

# huggingface_hub and transformers read theirs when they are first imported, which is after this file.
_hf_home = tempfile.TemporaryDirectory(prefix="hf-home-")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HOME": _hf_home.name,
    "HF_MODULES_CACHE": os.path.join(_hf_home.name, "modules"),
    "OMP_NUM_THREADS": THREADS,  # for the processes that tests start
}
torch.set_num_threads(int(THREADS))

hypothesis.settings.register_profile("tests", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def checkpoint():
    """`(model, processor)` that the repository carries, in float32."""
    from fresh_process import ROOT

    from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor

    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval()
    return model, VideoLLMMoDProcessor.from_pretrained(ROOT)
