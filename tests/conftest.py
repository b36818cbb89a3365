"""Set-up of every test: nothing may reach a model hub, and random numbers start from one seed."""

import atexit
import functools
import gc
import os
import signal
import tempfile

import pytest

# Models this small gain nothing from a second thread, and beside other programs they wait for it most of the time.
# `TEST_THREADS=2 make test` tries other roundings: with more threads sums are taken in other parts.
THREADS = (os.environ.get("TEST_THREADS") or os.environ.get("OMP_NUM_THREADS") or "1").split(",")[0]
# Files that take longest start first, so that the processes which share the files end together.
LONGEST = (
    *("space_browser", "live", "vlm", "memory", "benchmark_run", "camera_example", "pool", "narrate", "narrate_truth"),
    *("security", "space", "modeling", "evaluate", "space_remote", "calibration", "static_step", "distributed"),
    *("family_sessions", "space_app", "train_command", "recomputing", "docs", "verify", "family_learning"),
    *("auto_classes", "noise", "hub_round_trip", "bench_serve", "finetune", "narrate_errors", "arguments", "building"),
    *("hub", "checkpoint", "session", "family_pixels", "session_store", "demo", "packaging", "generation", "metrics"),
    *("cache", "faults", "placement", "narrate_endings", "teacher_forced", "readme", "bench", "training", "skipped"),
    *("benchmark_servers", "image_tiles", "seeking", "bench_stream", "quantisation", "extract", "adapter_folders"),
)
gc.disable()  # until the tests begin: libraries make a million objects when they are imported
# A shell's background jobs ignore Ctrl-C, and so would the commands that tests start and break off.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Registered first, and so called last: nobody reads this process's exit code, and freeing every object that many
    # tests leave takes Python seconds, while all wait for the last process.
    atexit.register(os._exit, 0)

# huggingface_hub and transformers read theirs when they are first imported, which is after this file.
_hf_home = tempfile.TemporaryDirectory(prefix="hf-home-")
atexit.register(_hf_home.cleanup)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "True",  # as gradio sets it in this process, and the fork server reads it once
    "HF_HOME": _hf_home.name,
    "HF_MODULES_CACHE": os.path.join(_hf_home.name, "modules"),
    "OMP_NUM_THREADS": THREADS,  # for the processes that tests start
}


def pytest_xdist_auto_num_workers():
    """One process more than cores, since tests wait for browsers, servers and the clock too."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else None


@functools.cache
def set_up_libraries():
    import hypothesis
    import torch

    torch.set_num_threads(int(THREADS))
    hypothesis.settings.register_profile("tests", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("tests")


def pytest_collectstart():
    set_up_libraries()  # not in the process that hands the tests out, whose imports all others would wait for


def pytest_collection_modifyitems(items):
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_sessionfinish():
    gc.freeze()  # pytest collects garbage ten times before it ends; what tests have left is millions of objects


@pytest.fixture(autouse=True)
def seed():
    import torch

    # `torch.manual_seed` formats the stack for a GPU that is not there, which takes as long as a small test
    torch.manual_seed(0) if torch.cuda.is_available() else torch.default_generator.manual_seed(0)


@pytest.fixture
def without_curves(monkeypatch):
    """`train` draws no curves, which takes as long as a few steps."""
    monkeypatch.setattr("videollm_mod.training.train.draw_curves", lambda *_: None)


@pytest.fixture(scope="module")
def checkpoint():
    """`(model, processor)` that the repository carries, in float32."""
    import torch
    from fresh_process import ROOT

    from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor

    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval()
    return model, VideoLLMMoDProcessor.from_pretrained(ROOT)


@pytest.fixture(scope="module")
def narrator():
    """`(model, processor)` of `tests/tiny_world`, in float32, for tests that do not ask whether what it says is right.
    It speaks at the right times, mostly, and ends its sentences."""
    import torch
    from fresh_process import TINY_WORLD

    from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor

    model = VideoLLMMoDForConditionalGeneration.from_pretrained(TINY_WORLD, dtype=torch.float32).eval()
    return model, VideoLLMMoDProcessor.from_pretrained(TINY_WORLD)


@pytest.fixture
def run(monkeypatch, capfd, checkpoint):
    """Call `videollm-mod narrate` in this process: `(exit code, lines of standard output, standard error)`."""
    from videollm_mod.commands import cli
    from videollm_mod.loading import checkpoint as loading

    def load(model, device, **_):
        loading.choose_device(device)
        monkeypatch.setattr(checkpoint[0].config, "domain", None)  # or it notes about most clips what it has not seen
        return checkpoint

    def call(*arguments, own_checkpoint=True):
        if own_checkpoint:
            monkeypatch.setattr(loading, "load_checkpoint", load)
        capfd.readouterr()  # drop what encoders printed while the test made its videos
        try:
            code = cli.main(["narrate", *map(str, arguments)])
        except SystemExit as exit_:
            code = exit_.code
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    return call


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The path of a clip of the world, of seed 60."""
    from videollm_mod.data.world_clip import write_clip

    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seed=60)[0]
