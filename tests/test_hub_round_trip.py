"""`push_to_hub` to a local hub, then `from_pretrained` in an environment with only the packages of the model card."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bare_environment import bare_python
from fork_server import TORCH, run_forked
from fresh_process import ROOT
from hub_server import serve

from videollm_mod.data.world import world_stream
from videollm_mod.data.world_clip import write_clip

REPO, SEED = "some-one/video.llm-mod", 11
OPTIONAL = ("accelerate", "bitsandbytes", "datasets", "gguf", "gradio", "matplotlib", "peft", "torchvision")


def push(repo: str, *folders: str) -> dict:
    """Push the model and processor of each folder as a commit, and return the hashes."""
    from huggingface_hub import HfApi

    from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor

    commits = []
    for folder in folders:
        model = VideoLLMMoDForConditionalGeneration.from_pretrained(folder)
        VideoLLMMoDProcessor.from_pretrained(folder).push_to_hub(repo, token="hf_any")
        model.push_to_hub(repo, token="hf_any", max_shard_size="8MB")
        commits.append(HfApi().model_info(repo).sha)
    return {"commits": commits}


def use_without_extras(repo: str, revision: str, frames: str, package: str, clip: str, *blocked: str) -> dict:
    """`watch`, then `command_line`."""
    commands = (f"narrate {clip}", f"narrate {clip} --load-in-4bit", "train any.yaml")
    return watch(repo, revision, frames, *blocked) | {"commands": command_line(package, *commands)}


def watch(repo: str, revision: str, frames: str, *blocked: str) -> dict:
    """Load a revision by its id and narrate."""
    import importlib.util

    import numpy as np
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

    there = [name for name in (*blocked, "videollm_mod") if importlib.util.find_spec(name) is not None]
    assert not there, f"this environment has {there}"
    options = {"revision": revision, "trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(repo, **options)
    model = AutoModelForImageTextToText.from_pretrained(repo, dtype="float32", **options)
    session = model.stream(processor)
    frames = np.load(frames)
    said = session.push(frames)
    answer = session.ask("How many objects are there?")[0].text
    write("clip.mp4", frames)
    content = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "What happened last?"}]
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    piped = pipe([{"role": "user", "content": content}], max_new_tokens=16, return_full_text=False)
    messages = {}
    for name, call in {
        "peft": lambda: model.add_adapter(None),
        "bitsandbytes": lambda: AutoModelForImageTextToText.from_pretrained(
            repo, quantization_config={"load_in_4bit": True}, **options
        ),
    }.items():
        try:
            call()
        except (ImportError, ValueError) as error:
            messages[name] = str(error)
    return {
        "said": [[event.time, event.text] for event in said],
        "answer": answer,
        "piped": piped[0]["generated_text"],
        "messages": messages,
    }


def write(path: str, frames) -> None:
    import av

    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=2)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())


def call(python: Path, function, folder: Path, endpoint: str, *arguments: str) -> dict:
    """Call the function in a process of `python` that may only connect to this machine: a new one, unless it is the
    Python of the tests."""
    folder.mkdir()
    own = str(python) == sys.executable
    dropped = "HF_" if own else ("HF_", "PYTHON")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    clean |= {"HOME": str(folder), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    code = f"""
import json, pathlib, runpy, sys
def only_here(event, arguments):
    if event == "socket.connect" and arguments[1][0] != "127.0.0.1":
        raise RuntimeError(f"a connection to {{arguments[1]}}")
sys.addaudithook(only_here)
function = {function.__name__!r}
names = runpy.run_path({str(folder / "functions.py")!r})
pathlib.Path("result.json").write_text(json.dumps(names[function](*{arguments!r})))
"""
    source = "\n".join(inspect.getsource(each) for each in (push, use_without_extras, watch, write, command_line))
    (folder / "functions.py").write_text(source)
    if own:
        process = run_forked([python, "-c", code], cwd=folder, env=clean, preloaded=TORCH)
    else:
        process = subprocess.run([python, "-P", "-c", code], cwd=folder, env=clean, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads((folder / "result.json").read_text())


def command_line(package: str, *commands: str) -> dict:
    """What the commands print without the package's extras."""
    import contextlib
    import io
    import os
    import sys

    os.symlink(package, "videollm_mod")
    sys.path.insert(0, os.getcwd())
    from videollm_mod.commands import cli

    result = {}
    for command in commands:
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as output:
            code = cli.main(command.split())
        result[command] = [code, errors.getvalue(), output.getvalue()]
    return result


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory):
    """`(hub, what was pushed, what was said and printed)`: two commits, the first of which is loaded."""
    from small_data import small_model

    folder = tmp_path_factory.mktemp("round-trip")
    model, processor = small_model()
    model.save_pretrained(folder / "other")
    processor.save_pretrained(folder / "other")
    stream = world_stream(SEED)
    np.save(folder / "frames.npy", stream.frames(fps=2.0))
    clip = write_clip(folder / "clip.mp4", seed=SEED)[0]
    with serve() as (hub, url):
        pushed = call(Path(sys.executable), push, folder / "push", url, REPO, str(ROOT), str(folder / "other"))
        pushing = len(hub.served)
        python = bare_python(folder / "venv")
        arguments = (REPO, pushed["commits"][0], str(folder / "frames.npy"), str(ROOT), str(clip), *OPTIONAL)
        used = call(python, use_without_extras, folder / "used", url, *arguments)
    return hub, pushed, used | {"downloads": hub.served[pushing:]}


def test_requested_revision_narrates(round_trip):
    hub, pushed, watched = round_trip
    first, last = pushed["commits"]
    assert first != last == hub.files(REPO, "main")[0]
    assert [tuple(event) for event in watched["said"]] == world_stream(SEED).narrations
    assert watched["answer"].rstrip(".").lower() in ("no", "none", "zero", "one", "two", "three", "four", "five")
    assert {commit for commit, _ in watched["downloads"]} == {first}
    assert (first, "model-00001-of-00003.safetensors") in watched["downloads"]


def test_pushed_repository_is_complete(round_trip):
    hub, pushed, _ = round_trip
    files = hub.files(REPO, pushed["commits"][0])[1]
    assert {"config.json", "processor_config.json", "tokenizer.json", "README.md", "model.safetensors.index.json"} <= (
        files.keys()
    )
    assert files["modeling_videollm_mod.py"] == (ROOT / "modeling_videollm_mod.py").read_bytes()
    assert b"custom_code" in files["README.md"] and b"library_name: transformers" in files["README.md"]


def test_pipeline_accepts_a_video(round_trip):
    assert round_trip[2]["piped"].strip().endswith(".")


def test_error_names_the_extra_to_install(round_trip):
    messages = round_trip[2]["messages"]
    assert "peft" in messages["peft"].lower() and "install" in messages["peft"].lower()
    assert "pip install" in messages["bitsandbytes"]


def test_commands_run_without_extras_or_name_them(round_trip):
    narrate, four_bit, train = round_trip[2]["commands"].values()
    assert narrate[0] == 0
    assert all(text in narrate[2] for _, text in world_stream(SEED).narrations)
    assert four_bit[:2] == [2, "error: 4-bit weights need bitsandbytes: pip install videollm-mod[quant]\n"]
    assert train[:2] == [2, "error: No module named 'accelerate': pip install videollm-mod[train]\n"]
