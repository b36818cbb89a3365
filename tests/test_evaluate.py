"""`videollm-mod evaluate`: every task on files of `videollm-mod prepare` and on the world, with equal results for
other batch sizes, several processes, and after interruptions."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import assert_near
from fresh_process import ROOT
from safetensors.torch import load_file, save_file
from small_data import said, small_model, write_lines, write_video
from torchrun import torchrun
from waiting import PATIENCE, killed_in

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.commands import cli
from videollm_mod.data.prepare import DATASETS, prepare
from videollm_mod.evaluation import evaluate as evaluation
from videollm_mod.evaluation import tasks
from videollm_mod.evaluation.answering import answers
from videollm_mod.evaluation.evaluate import EvaluateOptions, evaluate, read_categories
from videollm_mod.evaluation.fingerprint import fingerprint_of
from videollm_mod.evaluation.free_running import watch
from videollm_mod.evaluation.results import Results, parse_line
from videollm_mod.evaluation.sources import JsonlSource, WorldSource

SAID = [{"time": 0.5 + i, "text": f"The {thing} leaves."} for i, thing in enumerate(("red circle", "cross"))]
NARRATIONS = {f"v{i}": {"x": SAID} for i in range(3)}
STEPS = [{"id": str(i), "segment": [i, i + 1], "label": label} for i, label in enumerate(("cut it", "stir", "cut it"))]
VIDEO = {"duration": 4.0, "class": "CutAnApple", "subset": "testing", "annotation": STEPS}
ACTION = {"video_uid": "v0", "clip_uid": "c", "clip_parent_start_sec": 0.0}
KEYSTEPS = [{"start_time": i, "end_time": i + 1, "step_name": name} for i, name in enumerate(("Cut", "Stir", "Pour"))]
ANNOTATIONS = {
    "ego4d": {
        "narration": NARRATIONS,
        "lta": {
            "clips": [
                ACTION
                | {"action_idx": i, "verb": "take_(grab)", "noun": f"cup{i}", "action_clip_start_sec": 0.1 * i}
                | {"action_clip_end_sec": 0.1 * i + 0.5}
                for i in range(30)
            ]
        },
    },
    "goalstep": {
        "narration": {
            "videos": [
                {"video_uid": f"v{i}", "segments": [{"start_time": 1.0, "end_time": 2.0, "step_description": "cut"}]}
                for i in range(2)
            ]
        },
        "chat": [
            {
                "video_uid": "v0",
                "conversation": [
                    {"role": "assistant", "time": 0.5, "content": "It cuts."},
                    {"role": "user", "time": 2.0, "content": "What is left?"},
                    {"role": "assistant", "time": 2.0, "content": "Nothing."},
                ],
            }
        ],
    },
    "coin": {task: {"database": {f"v{i}": VIDEO for i in range(2)}} for task in DATASETS["coin"]},
    "egoexo4d": {"keystep": {"annotations": {f"v{i}": {"segments": KEYSTEPS} for i in range(2)}}},
}
PREPARED = [(dataset, task) for dataset, of_task in ANNOTATIONS.items() for task in of_task]


def test_every_task_of_prepare_can_be_evaluated():
    assert {(dataset, task) for dataset, of_task in DATASETS.items() for task in of_task} == set(PREPARED)
    assert {task for _, task in PREPARED} == set(tasks.TASKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with short replies, videos, and a file of `prepare` for each task."""
    folder = tmp_path_factory.mktemp("evaluate")
    model, processor = small_model(seed=4)
    model.lm_head.weight.data[processor.tokenizer.eos_token_id] *= 3  # replies end after some tokens
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for i in range(3):
        write_video(folder / "videos" / f"v{i}.mp4", num_frames=16 + i, seed=i)
    for dataset, task in PREPARED:
        (folder / "annotations.json").write_text(json.dumps(ANNOTATIONS[dataset][task]))
        prepare(dataset, folder / "annotations.json", task, folder / "videos", folder / f"{dataset}_{task}.jsonl")
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The checkpoint may not end a reply by itself."""
    for task in tasks.ANSWERING:
        monkeypatch.setitem(tasks.MAX_NEW_TOKENS, task, 6)


def run(folder: Path, *arguments: str, model: str | None = None) -> None:
    given = [str(argument) for argument in arguments]
    assert cli.main(["evaluate", "--model", str(model or folder / "model"), *given]) == 0


def streams(file: Path) -> list[dict]:
    """Results of single streams, in order, without truncated lines."""
    lines = map(parse_line, file.with_suffix(".streams.jsonl").read_bytes().splitlines()[1:])
    return sorted(filter(None, lines), key=lambda line: line["index"])


@pytest.mark.parametrize("dataset, task", PREPARED)
def test_every_task_runs_on_a_file(folder, dataset, task, tmp_path, capsys):
    data, file = folder / f"{dataset}_{task}.jsonl", tmp_path / "out.json"
    run(folder, "--task", task, "--data", data, "--json", file, "--batch-size", 2)
    result, found = json.loads(file.read_text()), streams(file)
    assert json.loads(capsys.readouterr().out) == result["summary"]
    assert result["summary"]["streams"] == len(found) == len(data.read_text().splitlines())
    assert result["versions"]["torch"] and result["task"] == task
    if task in tasks.STREAMING:
        assert result["summary"]["lm_ppl"] > 1 and 0 <= result["summary"]["time_diff"] < 9
        return
    # answers of batches equal answers of single streams
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(folder / "model").eval()
    processor = VideoLLMMoDProcessor.from_pretrained(folder / "model")
    source = JsonlSource(data, task)
    source.open(model, processor)
    for line in found:
        example = source[line["index"]]
        features = evaluation.encode(model, processor, example.frames)
        count = tasks.CANDIDATES.get(task, 1)
        assert [line["said"]] == answers(model, processor, [example.messages[:-1]], [features], count, 6)
        assert len(line["said"]) == count and line["true"] == example.messages[-1]["content"]


CATEGORIES = {"step": 80, "procedure+": 80, "keystep": 120}


@pytest.mark.parametrize("task", ["step", "procedure+", "lta", "keystep"])
def test_tasks_of_the_hard_level_run(folder, task, tmp_path):
    file = tmp_path / "out.json"
    run(folder, "--task", task, "--level", "hard_small", "--streams", 3, "--split", "test", "--json", file)
    result = json.loads(file.read_text())
    assert result["data"] == {"level": "hard_small_tasks", "seeds": [200_000_000, 200_000_003]}
    assert result["summary"].get("categories") == CATEGORIES.get(task)
    source = WorldSource("hard_small", task, "test", count=3)
    assert [line["question"] for line in streams(file)] == [source._stream(i).examples()[task][1] for i in range(3)]


def test_true_answers_get_full_scores():
    true = ["1. Cut it. 2. Stir it.", "1. Pour. 2. Cut it. 3. Stir it."]
    results = [{"true": text, "said": [text]} for text in true]
    assert tasks.summarise_answers("procedure", results, None)["summary"]["top1"] == 100
    results[1]["said"] = ["1. Pour. 2. Stir it. 3. Stir at."]  # the second is wrong, the third is close enough
    assert tasks.summarise_answers("procedure", results, None, ["1. Peel. 2. Rest."])["summary"]["categories"] == 5
    summary = tasks.summarise_answers("procedure", results, ["peel"])["summary"]
    assert summary == {"streams": 2, "answers": 5, "categories": 4, "top1": 80, "to_the_letter": 50}
    lists = [{"true": "1. take cup 2. put cup", "said": ["1. take cup 2. put cup", "nothing"]}]
    ed = tasks.summarise_answers("lta", lists, None)["summary"]
    assert ed == {"streams": 1, "ed_verb": 0, "ed_noun": 0, "ed_action": 0}


def test_bundled_checkpoint_is_exact_on_the_world(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # without Java, since METEOR starts slowly
    forced, free = tmp_path / "forced.json", tmp_path / "free.json"
    world = ["--task", "narration", "--first-seed", 700_000]
    run(tmp_path, *world, "--streams", 3, "--json", forced, "--plot", tmp_path / "sweep.png", model=ROOT)
    run(tmp_path, *world, "--streams", 1, "--json", free, "--self-conditioned", model=ROOT)
    forced_result, free_result = (json.loads(file.read_text()) for file in (forced, free))
    assert forced_result["summary"]["exact"] >= 95 and forced_result["summary"]["lm_ppl"] < 1.1
    assert forced_result["speaking"]["calibration"]["expected_calibration_error"] < 0.05
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    summary = free_result["summary"]
    assert summary["exact"] >= 95 and summary["f1"] >= 95 and summary["rouge_l"] >= 95
    assert summary["meteor"] is None and "needs Java" in free_result["note"]
    # a single session says the same
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval()
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    source = WorldSource("basic", "narration", "validation", 700_000, 1)
    source.open(model, processor)
    line, expected = streams(free)[0], source[0]
    watched = watch(model, processor, expected.messages, expected.frames, expected.times)
    assert line["said"] == [list(pair) for pair in watched.said]
    assert line["end"] == expected.times[-1] + 0.5


def test_features_and_frames_give_the_same_results(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    data = folder / "ego4d_narration.jsonl"
    assert cli.main(["extract", str(data), "--model", str(folder / "model"), "--output", str(tmp_path / "f")]) == 0
    for index, options in enumerate(([], ["--self-conditioned", "--streams", "1"])):
        files = [tmp_path / f"{index}{name}.json" for name in ("videos", "features")]
        for file, path in zip(files, (data, tmp_path / "f" / data.name), strict=True):
            run(folder, "--task", "narration", "--data", path, "--json", file, *options)
        frames, features = (json.loads(file.read_text())["summary"] for file in files)
        assert features == {name: value and pytest.approx(value, rel=1e-4) for name, value in frames.items()}
    assert frames["said"] > 0


def test_two_processes_give_the_results_of_one(folder, tmp_path):
    arguments = ["--task", "narration", "--streams", "7", "--batch-size", "2", "--json"]
    run(folder, *arguments, tmp_path / "one.json")
    command = ["-m", "videollm_mod.commands.cli", "evaluate", "--model", folder / "model", *arguments]
    process = torchrun(*command, tmp_path / "two.json", cwd=tmp_path, timeout=PATIENCE)
    assert process.returncode == 0, process.stdout + process.stderr
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert two["processes"] == 2 and "streams of process 1 of 2: 100%" in process.stderr
    # other streams share a batch, so padding changes how sums are rounded
    for name in ("summary", "speaking"):
        assert_near(two[name], one[name], name=name)
    assert_near(streams(tmp_path / "two.json"), streams(tmp_path / "one.json"))


def run_until_killed(options: EvaluateOptions, count: int) -> bool:
    """Evaluate in a process that is killed when it has written half of its `count`-th line; whether it came so far."""

    def go(come):
        append = Results._append

        def append_slowly(results: Results, values: list[dict]) -> None:
            size = results.path.stat().st_size
            with open(results.path, "ab") as file:
                file.write(json.dumps(values[0]).encode()[:40])
            come()
            os.truncate(results.path, size)
            append(results, values)

        Results._append = append_slowly
        evaluate(options)

    return killed_in(go, count)


def test_run_killed_while_writing_resumes_to_the_same_result(folder, tmp_path):
    given = {"task": "narration", "model": str(folder / "model"), "streams": 12, "batch_size": 1}
    evaluate(EvaluateOptions(**given, json=tmp_path / "whole.json"))
    rng, file, kept, kills = random.Random(5), tmp_path / "cut.json", 0, 0
    while run_until_killed(EvaluateOptions(**given, json=file), rng.randint(1, 5)):
        kills += 1
        assert not file.exists()
        assert len(streams(file)) >= kept
        kept = len(streams(file))
    assert kills >= 2 and kept > 2
    one, other = (json.loads(path.read_text()) for path in (tmp_path / "whole.json", file))
    assert_near(other, one)
    assert_near(streams(file), streams(tmp_path / "whole.json"))


def test_results_survive_a_truncated_line(tmp_path):
    path, settings = tmp_path / "a.streams.jsonl", {"task": "x", "ä": 1}
    results = Results(path, settings)
    results.begin()
    lines = [{"index": index, "said": "ä" * index} for index in range(4)]
    results.add(lines)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = Results(path, settings)
        assert (
            list(again.done.values())
            == lines[: max(0, whole[:cut].count(b"\n") - 1 + (whole[cut - 1 : cut + 1] == b"}\n"))]
        )
        again.begin()
        again.add([line for line in lines if line["index"] not in again.done])
        assert [line for _, line in sorted(Results(path, settings).done.items())] == lines


def test_finished_results_are_reused_and_other_settings_refused(folder, tmp_path, monkeypatch, capsys):
    file = tmp_path / "out.json"
    arguments = ["--task", "step", "--data", folder / "coin_step.jsonl", "--json", file]
    run(folder, *arguments)
    before = file.with_suffix(".streams.jsonl").read_bytes()
    monkeypatch.setattr(evaluation, "evaluate_batch", lambda *_: pytest.fail("it was done already"))
    file.unlink()
    run(folder, *arguments)
    assert file.exists() and file.with_suffix(".streams.jsonl").read_bytes() == before
    capsys.readouterr()
    assert cli.main(["evaluate", "--model", str(folder / "model"), *map(str, arguments), "--keep-ratio", "1"]) == 2
    assert "another run: keep_ratio was None, is 1.0. Remove it" in capsys.readouterr().err
    assert file.with_suffix(".streams.jsonl").read_bytes() == before


def test_categories_and_taxonomies_are_read(folder, tmp_path):
    (tmp_path / "steps.txt").write_text("cut it\nstir\npeel\n\n")
    run(folder, "--task", "step", "--data", folder / "coin_step.jsonl", "--json", tmp_path / "a.json",
        "--categories", tmp_path / "steps.txt")  # fmt: skip
    assert json.loads((tmp_path / "a.json").read_text())["summary"]["categories"] == 3
    taxonomy = {"verbs": ["take_(grab)", "put_(place)"], "nouns": [f"cup{i}" for i in range(30)]}
    (tmp_path / "taxonomy.json").write_text(json.dumps(taxonomy))
    assert read_categories(tmp_path / "taxonomy.json", "lta").verbs == ["take", "put"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "stepp"], "`--task` must be one of narration, chat, step"),
        (["--task", "step"], "the level 'basic' has the tasks narration, got 'step'"),
        (["--task", "narration", "--level", "hard_tasks"], "has the tasks step, task, next"),
        (["--task", "narration", "--level", "harder"], "`--level` must be one of 'basic', 'hard'"),
        (["--task", "narration", "--split", "dev"], "`split` must be one of 'train', 'validation', 'test', got 'dev'"),
        (["--task", "narration", "--streams", "0"], "`--streams` must be at least 1, got 0"),
        (["--task", "narration", "--questions", "99"], "`num_questions` must be in"),
        (["--task", "narration", "--model", "nowhere/at/all"], "`--model` must be a folder with a checkpoint"),
        (["--task", "narration", "--model", "{empty}"], "`--model` holds no checkpoint"),
        (["--task", "narration", "--json", "no/where.json"], "the folder of `--json` does not exist"),
        (["--task", "narration", "--plot", "a.txt"], "the file name of a plot must end in"),
        (["--task", "narration", "--self-conditioned", "--plot", "a.png"], "`--plot` shows the decisions to speak"),
        (["--task", "step", "--self-conditioned"], "`--self-conditioned` is for the tasks narration and chat"),
        (["--task", "narration", "--threshold", "2"], "`--threshold` must be in [0, 1]"),
        (["--task", "narration", "--categories", "a"], "`--categories` is for tasks with an answer"),
        (["--task", "step", "--data", "{empty}/none.jsonl"], "none.jsonl: no such file"),
        (["--task", "step", "--data", "{folder}/empty.jsonl"], "1 fault in"),
        (["--task", "step", "--data", "{folder}/coin_step.jsonl", "--level", "hard"], "`--level` is of the world"),
        (["--task", "next", "--data", "{folder}/coin_step.jsonl"], "coin_step.jsonl:1: the stream was prepared for"),
        (["--task", "procedure", "--data", "{folder}/coin_procedure+.jsonl"], "for the task 'procedure+', not"),
        (["--task", "step", "--data", "{folder}/own.jsonl"], "own.jsonl:1: the task 'step' needs a question with"),
        (["--task", "lta", "--data", "{folder}/own_step.jsonl"], "needs a numbered list as its answer, got 'Cut.'"),
        (["--task", "narration", "--data", "{folder}/silent.jsonl"], "silent.jsonl has no replies"),
        (["--task", "narration", "--data", "{folder}/gone.jsonl"], "1 missing file,"),
        (["--task", "step", "--level", "hard", "--categories", "{folder}/empty.jsonl"], "holds no categories"),
        (
            ["--task", "lta", "--data", "{folder}/ego4d_lta.jsonl", "--categories", "{folder}/own.jsonl"],
            "is not a taxonomy",
        ),
        (
            ["--task", "lta", "--data", "{folder}/ego4d_lta.jsonl", "--categories", "{folder}/words.json"],
            "is not a taxonomy",
        ),
        (["--task", "lta", "--data", "{folder}/no_action.jsonl"], "no_action.jsonl:1: the answer '1. ,' names no"),
        (["--task", "step", "--data", "{folder}/coin_step.jsonl", "--categories", "{folder}/latin.txt"], "not UTF-8"),
        (
            ["--task", "step", "--data", "{folder}/coin_step.jsonl", "--categories", "{folder}/fruit.txt"],
            "`--categories` lacks 2 of the true answers, such as 'cut it'",
        ),
        (
            ["--task", "step", "--data", "{folder}/coin_step.jsonl", "--json", "{folder}/fruit.txt"],
            "fruit.txt, which is no result",
        ),
        (
            ["--task", "step", "--data", "{folder}/own_step.jsonl", "--json", "{folder}/own_step.jsonl"],
            "own_step.jsonl, which is no result",
        ),
        (["--task", "narration", "--json", "{folder}/model/config.json"], "config.json, which is no result"),
        (["--task", "narration", "--json", "a.png", "--plot", "a.png"], "`--json` and `--plot` are the same file"),
        (["--task", "narration", "--first-seed", "1", "--split", "test"], "does not go with `--split`"),
        (["--task", "narration", "--json", "{folder}/theirs.json"], "theirs.streams.jsonl does not hold results"),
    ],
)
def test_wrong_arguments_give_a_clear_error(folder, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "load_checkpoint", lambda *_, **__: pytest.fail("the model was loaded"))
    video = {"video": "videos/v0.mp4"}
    (folder / "empty.jsonl").write_text("")
    write_lines(folder / "own.jsonl", [{**video, "turns": [said(0.5, "a"), said(1.0, "b")]}])
    write_lines(folder / "own_step.jsonl", [{**video, "turns": [said(0, "Which?", "user"), said(3.0, "Cut.")]}])
    write_lines(folder / "no_action.jsonl", [{**video, "turns": [said(0, "Next?", "user"), said(3.0, "1. ,")]}])
    (folder / "words.json").write_text('{"verbs": "abc", "nouns": "xyz"}')
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "fruit.txt").write_text("banana\napple\n")
    (folder / "theirs.streams.jsonl").write_text('{"video": "videos/v0.mp4"}')  # one line without a line break
    write_lines(folder / "silent.jsonl", [{**video, "turns": [said(0, "Narrate.", "user")]}])
    write_lines(folder / "gone.jsonl", [{"video": "no.mp4", "turns": [said(0, "a")]}])
    arguments = [argument.format(folder=folder, empty=tmp_path) for argument in arguments]
    if "--model" not in arguments:
        arguments += ["--model", str(folder / "model")]
    assert cli.main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_damaged_video_is_named_and_results_so_far_are_kept(folder, tmp_path, capsys):
    lines = [json.loads(line) for line in (folder / "coin_step.jsonl").read_text().splitlines()[:3]]
    (folder / "videos" / "bad.mp4").write_bytes((folder / "videos" / "v0.mp4").read_bytes()[:300])
    lines[2]["video"] = "videos/bad.mp4"
    write_lines(folder / "damaged.jsonl", lines)
    file = tmp_path / "out.json"
    arguments = ["--task", "step", "--data", folder / "damaged.jsonl", "--json", file, "--batch-size", 1]
    assert cli.main(["evaluate", "--model", str(folder / "model"), *map(str, arguments)]) == 2
    assert "damaged.jsonl:3: " in capsys.readouterr().err
    assert len(streams(file)) == 2 and not file.exists()


def test_questions_are_asked_and_instructions_passed_on(folder):
    model, processor = small_model(seed=4)
    frames = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    messages = [
        {"role": "user", "content": "Narrate what happens."},
        {"role": "stream", "num_frames": 2},
        {"role": "assistant", "content": "A"},
        {"role": "stream", "num_frames": 2},
        {"role": "user", "content": "Tell me what you see."},
        {"role": "stream", "num_frames": 1},
        {"role": "user", "content": "What happened last?"},
        {"role": "assistant", "content": "B"},
        {"role": "stream", "num_frames": 1},
    ]
    watched = watch(model, processor, messages, frames, np.arange(6) / 2, speak_threshold=0.0, max_new_tokens=4)
    assert watched.true == [(0.5, "A")] and watched.said == []
    ((question, true, answer),) = watched.questions
    assert (question, true) == ("What happened last?", "B")
    session = model.stream(processor, speak_threshold=0.0, max_new_tokens=4)
    session.instruct("Narrate what happens.")
    session.push(frames[:4])
    session.instruct("Tell me what you see.")
    session.push(frames[4:5])
    assert session.ask("What happened last?")[0].text == answer


def test_frames_after_the_answer_are_not_watched(folder, tmp_path):
    """A video may continue after the answer, with or without `end`."""
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(folder / "model").eval()
    processor = VideoLLMMoDProcessor.from_pretrained(folder / "model")
    turns = [said(3.0, "What is the step?", "user"), said(3.0, "Cut it.")]
    video = {"video": str(folder / "videos" / "v0.mp4"), "fps": 2.0, "turns": turns}
    write_lines(tmp_path / "own.jsonl", [video, {**video, "end": 3.0}])
    source = JsonlSource(tmp_path / "own.jsonl", "step")
    source.open(model, processor)
    long, cut = source[0], source[1]
    assert len(long.frames) == len(long.times) == sum(x.get("num_frames", 0) for x in long.messages) < 12
    assert len(cut.frames) <= len(long.frames) and torch.equal(cut.frames, long.frames[: len(cut.frames)])
    assert long.messages[-1]["role"] == "assistant"
    run(folder, "--task", "step", "--data", tmp_path / "own.jsonl", "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["top1"] is None  # of one category


def test_results_are_refused_after_a_change_of_weights_or_videos(folder, tmp_path, capsys):
    """A changed tensor in the middle of a file, or another video with the same name, is another run."""
    shutil.copytree(folder / "model", tmp_path / "model")
    data = tmp_path / "own.jsonl"
    shutil.copy(folder / "videos" / "v0.mp4", tmp_path / "v.mp4")
    write_lines(data, [{"video": "v.mp4", "turns": [said(0.5, "It cuts.")]}])
    command = ["--task", "narration", "--data", data, "--json", tmp_path / "out.json"]
    run(folder, *command, model=tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = sorted(weights)[len(weights) // 2]
    weights[name] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert cli.main(["evaluate", "--model", str(tmp_path / "model"), *map(str, command)]) == 2
    assert "another run: model was" in capsys.readouterr().err
    weights[name] -= 1
    shutil.copy(folder / "videos" / "v1.mp4", tmp_path / "v.mp4")
    assert cli.main(["evaluate", "--model", str(folder / "model"), *map(str, command)]) == 2
    assert "another run: data was" in capsys.readouterr().err


def test_missing_measurements_are_none(folder, tmp_path, capsys):
    write_lines(
        tmp_path / "own.jsonl", [{"video": str(folder / "videos" / "v0.mp4"), "turns": [said(99, "It cuts.")]}]
    )
    run(folder, "--task", "narration", "--data", tmp_path / "own.jsonl", "--self-conditioned", "--threshold", "0")
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["narrations"] == 1 and summary["time_diff"] is None and summary["right"] is None
    assert "own.jsonl:1: the turns at [99] s are after the end" in printed.err


def test_every_byte_of_the_weights_counts(tmp_path):
    weights = bytearray(3 << 20)
    (tmp_path / "model.safetensors").write_bytes(weights)
    before = fingerprint_of(str(tmp_path))
    assert before == fingerprint_of(str(tmp_path))
    weights[len(weights) // 2] = 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert before != fingerprint_of(str(tmp_path))
