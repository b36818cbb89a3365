"""lmms-eval itself runs the checkpoint: its scores are those of `videollm-mod evaluate`, for chat and simple tasks,
in batches, rounds and processes, and after it was killed.

`make test-lmms-eval` runs this file in an environment with lmms-eval.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

lmms_eval = pytest.importorskip(
    "lmms_eval", reason="needs lmms-eval, in an environment of its own: make test-lmms-eval"
)

from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.models import get_model, get_model_manifest  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402
from lmms_tasks import write_tasks  # noqa: E402
from running_servers import serving  # noqa: E402

from videollm_mod.evaluation.evaluate import EvaluateOptions, evaluate  # noqa: E402
from videollm_mod.evaluation.recorded import Recorded  # noqa: E402

pytestmark = pytest.mark.lmms_eval


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def manager(folder) -> TaskManager:
    return TaskManager("ERROR", include_path=str(folder))


@pytest.fixture(scope="module")
def own(folder) -> dict:
    """What `videollm-mod evaluate` finds: its summary, and what was said about each document."""
    result = evaluate(EvaluateOptions(task="step", data=folder / "step.jsonl", json=folder / "own.json", device="cpu"))
    lines = (folder / "own.streams.jsonl").read_text().splitlines()[1:]
    said = {line["index"]: line["said"][0] for line in map(json.loads, lines)}
    return {"right": result["summary"]["to_the_letter"] / 100, "said": [said[index] for index in sorted(said)]}


@pytest.fixture
def run(manager):
    """Evaluate with lmms-eval: the score of the task `world_NAME`, and its samples in the order of documents."""

    def run(name: str, model: str = "videollm_mod", metric: str = "exact_match", **options):
        options = {"batch_size": 3, "device": "cpu", "bootstrap_iters": 0, "task_manager": manager} | options
        results = simple_evaluate(model=model, tasks=[f"world_{name}"], **options)
        samples = sorted(results["samples"][f"world_{name}"], key=lambda sample: sample["doc_id"])
        return results["results"][f"world_{name}"][f"{metric},none"], samples

    return run


def said_in(samples: list[dict]) -> list:
    return [sample["filtered_resps"][0] for sample in samples]


def test_entry_point_names_the_model_without_importing_it():
    assert get_model_manifest("videollm-mod").model_id == "videollm_mod"
    code = (
        "import sys, lmms_eval.models as m; m.get_model_manifest('videollm_mod'); print('transformers' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False\n"
    assert not get_model("videollm_mod").is_simple and get_model("videollm_mod", force_simple=True).is_simple


def test_chat_task_scores_as_evaluate_does(run, own):
    score, samples = run("step")
    assert said_in(samples) == own["said"]
    assert score == own["right"]
    assert 0 < score < 1  # the documents are such that an answer to other frames is wrong
    assert all(
        counts["output_tokens"] and counts["input_tokens"] for (counts,) in (s["token_counts"] for s in samples)
    )


def test_simple_task_needs_no_conversation(run, own):
    """The checkpoint knows what to do without the instruction."""
    score, samples = run("step", force_simple=True)
    assert score == own["right"]
    assert said_in(samples) == said_in(run("step", force_simple=True, batch_size=1)[1])


@pytest.mark.parametrize("force_simple", [False, True])
def test_rounds_have_frames_of_their_own(run, folder, own, force_simple):
    score, samples = run("rounds", metric="right", force_simple=force_simple)
    first, last = own["said"][::2], own["said"][1::2]
    expected = [[f"0: {one}", f"1: {other}"] for one, other in zip(first, last, strict=True)]
    assert said_in(samples)[::2] == said_in(samples)[1::2] == expected
    assert score == 1.0


def test_cached_answers_are_not_computed_again(run, monkeypatch, tmp_path):
    first, samples = run("step", use_cache=str(tmp_path))
    monkeypatch.setattr(Recorded, "answer", lambda *_, **__: pytest.fail("a cached answer was computed again"))
    again, cached = run("step", use_cache=str(tmp_path))
    assert (again, said_in(cached)) == (first, said_in(samples))


# evaluates until the sixth document, and waits there
UNTIL_KILLED = """
import signal, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from videollm_mod.evaluation.recorded import Recorded
folder, cache = sys.argv[1:]
answer, asked = Recorded.answer, []
def answer_until_killed(self, conversations, *arguments, **options):
    asked.extend(conversations)
    if len(asked) == 6:
        print("here", flush=True)
        signal.pause()
    return answer(self, conversations, *arguments, **options)
Recorded.answer = answer_until_killed
manager = TaskManager("ERROR", include_path=folder)
options = {"use_cache": cache, "batch_size": 1, "device": "cpu", "task_manager": manager}
simple_evaluate("videollm_mod", tasks=["world_step"], **options)
"""


def test_killed_run_continues(run, folder, own, monkeypatch, tmp_path):
    """lmms-eval stores each answer when it comes. With the same run id it finds those of a run that was killed."""
    monkeypatch.setenv("LMMS_CACHE_RUN_ID", "mine")
    command = [sys.executable, "-c", UNTIL_KILLED, folder, tmp_path]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        assert "here\n" in process.stdout, "it ended before the sixth document"
        process.kill()
    answer, asked = Recorded.answer, []
    monkeypatch.setattr(Recorded, "answer", lambda self, *a, **k: (asked.extend(a[0]), answer(self, *a, **k))[1])
    score, samples = run("step", use_cache=str(tmp_path))
    assert len(asked) == len(samples) - 5
    assert (score, said_in(samples)) == (own["right"], own["said"])


def test_lmms_evals_own_client_of_the_server(run, checkpoint):
    """The model `openai` of lmms-eval, asking `videollm-mod serve`, says what the plugin says."""
    key = "a-key-for-tests-0123456789"
    with serving(checkpoint, keys=(key,)) as server:
        arguments = f"base_url={server.url}/v1,api_key={key},model=nano,num_concurrent=2,max_retries=1"
        asked = {"model": "openai", "model_args": arguments, "device": None}
        for force_simple in (False, True):
            _, served = run("images", **asked, force_simple=force_simple)
            assert said_in(served) == said_in(run("images", force_simple=force_simple)[1])
            assert all(sample["token_counts"][0]["input_tokens"] > 0 for sample in served)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("step", {"model_args": "nframes=8"}, "are pretrained, dtype, fps, max_num_frames, .*, got nframes"),
        ("step", {"batch_size": "auto"}, "`--batch_size` must be a whole number of at least 1, got 'auto'"),
        ("step", {"model_args": "dtype=float8"}, "`dtype` must be one of auto, float32, .*, got 'float8'"),
        ("step", {"model_args": "fps=0"}, "`fps` must be a finite number > 0, got 0"),
        ("step", {"model_args": "max_num_frames=0"}, "`max_num_frames` must be a whole number of at least 1, got 0"),
        ("sound", {}, "world_sound, document 0: .*hears nothing"),
        ("damaged", {}, "world_damaged, document 0, 1, 2: .*damaged.mp4"),
    ],
)
def test_errors_name_what_is_wrong(run, name, options, message):
    with pytest.raises(ValueError, match=message):
        run(name, **options)


def test_tasks_that_compare_probabilities_are_refused(run):
    with pytest.raises(NotImplementedError, match="needs `output_type: generate_until`"):
        run("choices", force_simple=True)


def command(folder: Path, *launcher: str) -> tuple[str, dict]:
    """Run the command of lmms-eval: what it prints, and its result."""
    output = folder / "-".join(["output", *launcher[-2:]])
    arguments = ["--model", "videollm_mod", "--tasks", "world_step", "--include_path", folder, "--output_path", output]
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "ACCELERATE_USE_CPU": "1"}
    process = subprocess.run(
        [sys.executable, "-m", *launcher, "lmms_eval", *map(str, arguments), "--batch_size", "2", "--log_samples"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    (file,) = output.glob("**/*_results.json")
    return process.stdout, json.loads(file.read_text())["results"]["world_step"]


def test_command_in_one_and_in_two_processes(folder, own):
    printed, alone = command(folder)
    assert "exact_match" in printed and "videollm_mod" in printed
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    _, shared = command(folder, *launcher, "--mixed_precision", "no", "--dynamo_backend", "no", "-m")
    assert alone["exact_match,none"] == shared["exact_match,none"] == own["right"]
