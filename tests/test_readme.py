"""README.md and the examples: snippets and commands run, and the numbers are those of the results."""

import contextlib
import io
import json
import re
import shlex
import shutil

import pytest
from fresh_process import ROOT
from pages import command_lines, python_blocks, run_blocks, text_of
from PIL import Image
from small_data import write_video
from stock_vlms import save_vlm

from videollm_mod.commands import cli
from videollm_mod.data.world import world_stream
from videollm_mod.narration.sight import COMMANDS

README = ROOT / "README.md"
CLIP = ROOT / "media" / "world.mp4"


def result(name: str):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_snippet_runs(tmp_path, monkeypatch):
    (tmp_path / "media").mkdir()
    shutil.copy(CLIP, tmp_path / "media")
    monkeypatch.chdir(tmp_path)
    assert [note for note, _ in python_blocks(README)] == [None]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_blocks(README, {}, {'repo = "."': f"repo = {str(ROOT)!r}"})
    assert f"```\n\n```\n{printed.getvalue()}```\n" in text_of(README)
    assert all(f"{time:5.1f} s  {text}\n" in printed.getvalue() for time, text in world_stream(7).narrations)


def test_commands_run(tmp_path, monkeypatch, capsys):
    """From a pretrained model to a narrated clip; a tiny model takes the place of SmolVLM2."""
    demo, *commands = command_lines(README)
    assert demo == "demo"  # tests/test_demo.py runs it
    assert ["pip install .", *(f"videollm-mod {line}" for line in commands)] == list(COMMANDS)
    monkeypatch.chdir(tmp_path)
    stock = tmp_path / shlex.split(commands[0])[2]
    stock.mkdir(parents=True)
    save_vlm(stock, "smolvlm", scale_factor=2)
    write_video(tmp_path / "clip.mp4", 8)
    for line in commands:
        assert cli.main(shlex.split(line)) == 0
    assert re.search(r"^     0\.0 s  ", capsys.readouterr().out, re.M)


def test_without_a_network_the_build_says_what_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    build = shlex.split(command_lines(README)[1])
    assert cli.main(build) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and build[2] in error
    assert not (tmp_path / "smolvlm2").exists()


def test_it_is_short_and_in_order():
    text = text_of(README)
    assert len(text.splitlines()) <= 220
    assert re.findall(r"^## (.*)$", text, re.M) == [
        "Why",
        "Install",
        "Load, watch, ask",
        "Results",
        "More",
        "How it works",
        "Limitations",
        "Documentation",
        "Licence and citation",
    ]
    tables = re.findall(r"^\| --- .*\n((?:\|.*\n)+)", text[: text.index("## More")], re.M)
    assert len(tables) == 1 and len(tables[0].splitlines()) <= 8


def test_picture_moves_and_is_small():
    """Made by `make picture`."""
    (path,) = (ROOT / name for name in re.findall(r"\((docs/images/\S+\.webp)\)", text_of(README)))
    assert path.stat().st_size < 3 * 2**20
    with Image.open(path) as picture:
        assert picture.n_frames == 30


def rows(of: str, **wanted) -> list[dict]:
    return [row for row in result(of)["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def numbers() -> dict[str, str]:
    """Begin of a row or bullet of the README -> what the results say there."""
    figures = {name: entry["value"] for name, entry in result("summary").items()}
    summaries = [result(name)["summary"] for name in ("world_basic", "nano_hard_small", "nano_hard")]
    held = [
        next(row["p50_ms"] for row in rows("stream_llama3_8b", name="language", way=way, held=600))
        for way in ("mod", "dense")
    ]
    recorded = [
        next(row["per_second"] for row in rows("offline_llama3_8b", name="offline", way=way, tokens=10))
        for way in ("mod", "dense")
    ]
    training = [figures[f"train_time_like_for_like_{size}"] for size in ("1200x10", "600x50")]
    mod = re.search(r"^\| `mod` \|.*?\| (\d+\.\d+) \| [-+]", world_tables("hard"), re.M)[1]
    deep = re.search(r"^\| `mod_interleaved_deep`: interleaved_deep \| (\d+\.\d+) \|", world_tables("hard"), re.M)[1]
    return {
        "- **Small cache.**": f" {figures['cache_ratio_10']:.3f} of the bytes",
        "- **Faster training.**": f" {training[0]:.3f} of the time",
        "- **Live.**": f" {figures['event_latency_s']:.2f} s in the median",
        "- **No end.**": f" {figures['stream_growth_time']:.3f} times",
        "| narrations exact": " / ".join(f"{summary['exact']:.2f}" for summary in summaries) + " %",
        "| questions answered": " / ".join(f"{summary['right']:.1f}" for summary in summaries) + " %",
        "| models of 4 layers: exact, dense": (
            f"{figures['world_dense_exact']:.2f} / {mod} / {figures['world_random_exact']:.2f} %"
        ),
        "| models of 4 layers: exact, routed in the last": f"{deep} %",
        "| cache of a frame": f"{figures['cache_ratio_10']:.3f} / {figures['cache_ratio_50']:.3f}",
        "| LoRA step": " / ".join(f"{ratio:.3f}" for ratio in training),
        "| one live frame": " / ".join(f"{ms:.2f}" for ms in held) + " ms",
        "| recorded frames": " / ".join(f"{rate:,.0f}" for rate in recorded),
    }


def world_tables(level: str) -> str:
    """The part of a level."""
    text = text_of(ROOT / "benchmarks" / "results" / "world_tables.md")
    return text.partition(f"## `{level}`:")[2].partition("\n## ")[0]


@pytest.mark.parametrize("begin", list(numbers()))
def test_numbers_are_those_of_the_results(begin):
    (paragraph,) = re.findall(rf"^{re.escape(begin)}.*(?:\n  .*)*", text_of(README), re.M)
    assert numbers()[begin] in " ".join(paragraph.split())


def test_speed_is_that_of_the_results():
    """A few cells of docs/benchmarks/speed.md."""
    text = text_of(ROOT / "docs" / "benchmarks" / "speed.md")
    text_of_weights = text_of(ROOT / "docs" / "how-to" / "quantisation.md")
    for weights, suffix in (("bf16", ""), ("fp8", "_fp8"), ("nf4", "_nf4")):
        name = f"stream_llama3_8b{suffix}"
        cells = []
        for way in ("mod", "dense"):
            held = [rows(name, name="language", way=way, held=count)[0]["p50_ms"] for count in (100, 600, 3000)]
            cells.append(" / ".join(f"{ms:.2f}" for ms in held))
        assert f"| {' | '.join(cells)} | [`{weights}`]" in text
        size = f"{result(name)['weight_bytes'] / 1e9:.2f} GB"
        assert f"| {size} | {cells[0]} | [`{weights}`]" in text_of_weights
    figures = {name: entry["value"] for name, entry in result("summary").items()}
    for begin, name in (
        ("time, like for like", "train_time_like_for_like"),
        (
            "time, relative to all logits with the layers of transformers and peft, in no more memory",
            "train_time_vs_dense",
        ),
    ):
        cells = " | ".join(f"{figures[f'{name}_{size}']:.3f}" for size in ("1200x10", "600x50"))
        assert f"| {begin} | {cells} |" in text


def test_commands_of_own_videos_run(tmp_path, monkeypatch, capsys):
    """All commands of examples/own_videos/README.md in order, with one training step instead of 200."""
    folder = tmp_path / "examples" / "own_videos"
    shutil.copytree(ROOT / "examples" / "own_videos", folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    config = (folder / "finetune.yaml").read_text(encoding="utf-8")
    fewer = "max_steps: 1\n  per_device_train_batch_size: 1\n  use_cpu: true"
    for old, new in (("max_steps: 200", fewer), ("model: ../..", f"model: {ROOT}")):
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
    assert "One." in capsys.readouterr().out  # the answer, which the checkpoint knows without training


def test_table_of_the_checkpoint_is_that_of_its_results():
    def cells(begin: str) -> list[str]:
        line = next(line for line in lines if line.startswith(f"| {begin}"))
        return [cell.strip() for cell in line.strip("|").split("|")[1:]]

    lines = text_of(ROOT / "docs" / "benchmarks" / "checkpoint.md").splitlines()
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


def test_card_has_what_the_hub_reads():
    from huggingface_hub import ModelCard

    card = ModelCard.load(ROOT / "README.md").data
    assert (card.library_name, card.pipeline_tag, card.license) == ("transformers", "video-text-to-text", "apache-2.0")
    assert "custom_code" in card.tags


def test_notebook_runs(monkeypatch):
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
