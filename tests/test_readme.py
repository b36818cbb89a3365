"""The README's Python runs as it stands, one block after the other, in a folder with a video and the repository."""

import contextlib
import io
import json
import re
import shlex
import shutil

from fresh_process import ROOT
from media_servers import FileServer
from video_files import moving, write_video

from videollm_mod import cli
from videollm_mod.data.world_clip import write_clip


def blocks() -> list[str]:
    """Those that need no server: tests/test_space.py runs the one that does."""
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return [block for block in found if "gradio_client" not in block]


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    write_clip(tmp_path / "video.mp4", seed=3)
    monkeypatch.chdir(tmp_path)
    camera = FileServer(write_video(tmp_path / "a.ts", moving(40, 48, 64), "mpeg2video", fps=20), rounds=100)
    replaced = {
        'repo = "."': f"repo = {str(ROOT)!r}",
        "rtsp://camera/stream": f"{camera.url}/loop",
        "frame.time > 60": "frame.time > 1",
    }
    names, printed = {}, io.StringIO()
    assert len(blocks()) >= 5
    with contextlib.redirect_stdout(printed):
        for block in blocks():
            for old, new in replaced.items():
                block = block.replace(old, new)
            exec(block, names)
    camera.close()
    from videollm_mod.data.world import world_stream

    for time, text in world_stream(4242).narrations:
        assert f"{time:5.1f} s  {text}" in printed.getvalue()
    assert f"\n{world_stream(4242).narrations[-1][1]}\ncache: " in printed.getvalue()  # what happened last


def test_the_commands_exist(tmp_path):
    """Each `make` target and each `videollm-mod` command line of the README, its options too."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z]+)", text))
    assert targets >= {"demo", "test", "lint"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    shell = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S))
    lines = re.findall(r"videollm-mod (narrate [^|#\n]*)", shell)
    assert len(lines) == 6
    for line in lines:
        arguments = [str(tmp_path / word) if word.startswith("VIDEO") else word for word in shlex.split(line)]
        if line.split()[1] == "VIDEO":
            shutil.copy(write_clip(tmp_path / "clip.mp4", seed=3)[0], tmp_path / "VIDEO")
            assert cli.main(arguments) == 0
    assert (tmp_path / "VIDEO.srt").stat().st_size > 0 and (tmp_path / "VIDEO.overlay.mp4").stat().st_size > 0


def test_fine_tuning_runs_as_its_readme_says(tmp_path, monkeypatch, capsys):
    """All commands in order, with fewer steps; what was learned by heart in 200 is told in the closing commands."""
    folder = tmp_path / "examples" / "own_videos"
    shutil.copytree(ROOT / "examples" / "own_videos", folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    config = (folder / "finetune.yaml").read_text(encoding="utf-8")
    for old, new in (("max_steps: 200", "max_steps: 2\n  use_cpu: true"), ("model: ../..", f"model: {ROOT}")):
        assert old in config
        config = config.replace(old, new)
    (folder / "finetune.yaml").write_text(config, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    text = (folder / "README.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).splitlines()
    assert {line.split()[1] for line in lines[2:]} == {"world", "validate", "extract", "train", "merge", "narrate"}
    for line in lines:
        command, *arguments = [str(ROOT) if word == "../.." else word for word in shlex.split(line, comments=True)]
        if command == "cd":
            monkeypatch.chdir(arguments[0])
        elif command == "mkdir":
            (folder / arguments[-1]).mkdir()
        else:
            assert cli.main(arguments) == 0, line
    assert (folder / "merged" / "model.safetensors").exists()
    assert "One." in capsys.readouterr().out  # the answer to the question, which the nano knows anyway


def test_the_table_of_the_nano_is_that_of_the_committed_results():
    def result(name: str):
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())

    def cells(begin: str) -> list[str]:
        line = next(line for line in lines if line.startswith(f"| {begin}"))
        return [cell.strip() for cell in line.strip("|").split("|")[1:]]

    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    summaries = [result(name)["summary"] for name in ("world_basic", "nano_hard_small", "nano_hard")]
    later = [result(f"nano_later_{level}")["summary"] for level in ("basic", "hard_small", "hard")]
    for begin, cell in (
        ("narrations exact", "{exact:.2f} % of {narrations:,}"),
        ("the same, of 300 streams", "{exact:.2f} % of {narrations:,}"),
        ("false narrations", "{false:.2f} %"),
        ("time between", "{time_diff:.2f} s"),
        ("questions answered", "{right:.1f} % of {questions}"),
    ):
        shown = later if begin.startswith("the same") else summaries
        assert cells(begin) == [cell.format(**summary) for summary in shown]
    tasks = {(x["data"]["level"], x["task"]): x["summary"] for x in result("nano_tasks")}
    named, right, distances = ("step", "task", "next", "procedure", "procedure+", "keystep"), [], []
    for level in ("hard_small", "hard"):
        right.append([tasks[f"{level}_tasks", task]["to_the_letter"] for task in named])
        distances.append(
            ", ".join(f"{tasks[f'{level}_tasks', 'lta'][f'ed_{kind}']:.3f}" for kind in ("verb", "noun", "action"))
        )
    assert right[0] == [100.0] * 6
    assert cells("`step`") == ["", "100 % each", ", ".join(f"{x:g}" for x in right[1]) + " %"]
    assert cells("`lta`") == ["", *distances]


def test_the_card_says_what_the_hub_reads():
    from huggingface_hub import ModelCard

    card = ModelCard.load(ROOT / "README.md").data
    assert (card.library_name, card.pipeline_tag, card.license) == ("transformers", "video-text-to-text", "apache-2.0")
    assert "custom_code" in card.tags


def test_the_notebook_runs_from_top_to_bottom(monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT / "examples")
    cells = json.loads((ROOT / "examples" / "narrate.ipynb").read_text(encoding="utf-8"))["cells"]
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in cells:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                exec("".join(cell["source"]), names)
    from videollm_mod.data.world import world_stream

    narrations = world_stream(4242).narrations
    assert all(f"{time:5.1f} s  {text}" in printed.getvalue() for time, text in narrations)
    assert f"What happened last? {narrations[-1][1]}" in printed.getvalue()
    names["figure"].savefig(io.BytesIO())
    assert all(len(panel.images) == 1 and panel.images[0].get_array().std() > 0.02 for panel in names["panels"])
