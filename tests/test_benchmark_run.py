"""`videollm-mod evaluate --benchmark`: both protocols and the controls, with equal results after kills and for several
processes."""

import json
from pathlib import Path

import pytest
from comparing import assert_same_cache
from fresh_process import ROOT, TINY_WORLD
from small_data import small_model, write_video
from torchrun import torchrun
from waiting import PATIENCE, killed_in

from videollm_mod.commands import cli
from videollm_mod.data.benchmark_items import Item, Poll, write_items
from videollm_mod.evaluation import benchmark_run
from videollm_mod.evaluation.benchmark_rows import Items
from videollm_mod.evaluation.benchmarks import BENCHMARKS, Outcome
from videollm_mod.evaluation.evaluate import EvaluateOptions, evaluate
from videollm_mod.evaluation.protocols import REFUSAL, run
from videollm_mod.evaluation.results import Results, parse_line
from videollm_mod.evaluation.session_view import SessionModel
from videollm_mod.evaluation.video_window import frames_between, spaced
from videollm_mod.streaming import StreamingSession

CLIP = str(ROOT / "media" / "world.mp4")
TOLD = [(turn["time"], turn["content"]) for turn in json.loads(Path(CLIP).with_suffix(".jsonl").read_text())["turns"]]
OVO = BENCHMARKS["ovo-bench"]
OPTIONS = ("The circle.", "The cross.", "Nothing.")


def choice(name: str, video: str, time: float, text: str = "What is left?") -> Item:
    poll, group = Poll(time, text), "Real-Time Visual Perception"
    return Item("ovo-bench", name, group, "OJR", video, "choice", (poll,), poll, time, {"answer": "B"}, OPTIONS)


def forward(name: str, video: str, times: tuple[float, ...], asked: float = 1.0) -> Item:
    polls = tuple(Poll(time, "Is it there? Yes or no.") for time in times)
    truth = {"types": [0, *[1] * (len(times) - 1)], "clue_time": times[0], "answer": "It is."}
    stream, group = Poll(asked, "Tell me what you see."), "Forward Active Responding"
    return Item("ovo-bench", name, group, "CRR", video, "yes-no", polls, stream, times[-1], truth)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with short replies, videos of 4 seconds, and items about them."""
    folder = tmp_path_factory.mktemp("benchmark")
    model, processor = small_model(seed=4)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for index in range(2):
        write_video(folder / f"v{index}.mp4", num_frames=16, seed=index)
    items = [choice("a", "v0.mp4", 2.0), choice("b", "v1.mp4", 4.0), forward("c", "v0.mp4", (1.0, 2.0, 3.5))]
    write_items(folder / "ovo.jsonl", items)
    return folder


TOKENS = 3  # of a reply of the checkpoint of `folder`, which never ends one by itself


@pytest.fixture(autouse=True)
def short(request, monkeypatch):
    monkeypatch.setattr(type(OVO), "max_new_tokens", TOKENS if "folder" in request.fixturenames else 24)


@pytest.fixture
def watched(monkeypatch) -> list[list[float]]:
    """The times of the frames that each session has watched."""
    sessions: dict[int, list[float]] = {}
    alive, watch = [], StreamingSession.watch

    def noting(session, frames, times):
        alive.append(session)  # so that no other gets its id
        for frame in watch(session, frames, times):
            sessions.setdefault(id(session), []).append(frame.time)
            yield frame

    monkeypatch.setattr(StreamingSession, "watch", noting)
    return sessions.values()  # type: ignore[return-value]


@pytest.fixture(scope="module")
def nano(checkpoint):
    return SessionModel(*checkpoint, threshold=None, keep_ratio=None)


@pytest.fixture(scope="module")
def tiny(narrator):
    return SessionModel(*narrator, threshold=None, keep_ratio=None)


def evaluated(folder: Path, out: Path, protocol: str, *more: str, items: str = "ovo.jsonl") -> dict:
    given = ["--benchmark", folder / items, "--protocol", protocol, "--json", out, *more]
    if not {"--model", "--endpoint", "--stock"} & set(map(str, more)):
        given += ["--model", folder / "model"]
    assert cli.main(["evaluate", *map(str, given)]) == 0
    return json.loads(out.read_text())


def lasting(result: dict) -> dict:
    """A result without what differs from run to run."""
    dropped = ("command", "processes")
    kept = {name: value for name, value in result.items() if name not in dropped}
    for of_row in kept["outcomes"].values():
        for outcome in of_row:
            outcome["cost"]["seconds"] = None
    for of_row in kept["scores"].values():
        of_row["cost"]["seconds"] = None
    return kept


def test_frames_of_a_question_are_those_up_to_it():
    assert frames_between(0.0, 2.0, 2.0, 100) == range(5)  # also the one at its second
    assert frames_between(1.0, 2.2, 2.0, 100) == range(2, 5)
    assert frames_between(0.3, 0.4, 2.0, 100) == range(0, 1)  # the one on screen
    assert frames_between(0.0, 90.0, 2.0, 10) == range(10)
    assert frames_between(80.0, 90.0, 2.0, 10) == range(9, 10)
    assert frames_between(0.1 * 3, 0.1 * 6, 10.0, 100) == range(3, 7)  # in spite of rounding
    assert list(spaced(range(10, 20), 4)) == [10, 13, 16, 19] and spaced(range(3), 5) == range(3)
    assert list(spaced(range(10), 1)) == [9]


def test_polls_in_forks_of_a_session_equal_polls_asked_anew(tiny):
    questions = ["How many objects are there?", "What happened last?"]
    view, answers = tiny.view(CLIP, 24), []
    for stop in (4, 13, 25):
        for question in questions:
            anew = tiny.view(CLIP, 24)
            answers.append(view.answer(range(stop), question))
            assert anew.answer(range(stop), question) == answers[-1]
        assert_same_cache(view._session.cache, anew._session.cache)
        assert anew.cost.frames == stop
    assert len(set(answers)) >= 3
    assert view.cost.frames == 25  # each once
    assert view.cost.peak_cache_bytes >= anew.cost.peak_cache_bytes > 0
    again = view.answer(range(2, 8), questions[0])  # from another second on: not a part of what it has seen
    assert again == tiny.view(CLIP, 24).answer(range(2, 8), questions[0])


def test_a_stream_is_watched_once_and_asked_once(nano, watched):
    item = forward("a", CLIP, (5.0, 12.0), asked=4.0)
    outcome = run(nano, OVO, item, CLIP, "stream")
    (times,) = watched
    assert times == [index / 2 for index in range(25)]
    assert [(one["time"], one["text"]) for one in outcome.said] == [each for each in TOLD if 4 <= each[0] <= 12]
    assert {one["kind"] for one in outcome.said} == {"narration"} and outcome.answers == []
    assert outcome.cost["frames"] == len(times) and outcome.cost["tokens"] > 10 * len(times)
    # a question that nothing follows is answered, and what was said before it does not count
    item = choice("b", CLIP, 8.0, "How many objects are there?")
    outcome = run(nano, OVO, item, CLIP, "stream")
    assert outcome.said == [{"time": 8.0, "text": "Three.", "kind": "answer"}]
    assert outcome.cost["tokens"] > run(nano, OVO, item, CLIP, "poll").cost["tokens"] + 20  # it spoke before that


def test_a_question_that_a_poll_takes_is_no_longer_too_long_in_a_stream(tiny):
    """As that of StreamingBench's questions in sequence, which holds those before it."""
    question = "What happened before the last thing that happened there? " * 26
    with pytest.raises(ValueError, match="`question` is too long for a bounded session"):
        tiny.view(CLIP, 4)._new(tiny.most_frames).ask(question)
    for frames in (range(4), range(0)):
        ((time, text),) = tiny.view(CLIP, 4).stream(frames, range(0), question)
        assert time == (1.5 if frames else 0.0) and text
    assert text == tiny.view(CLIP, 4).answer(range(0), question)


def test_polls_see_the_same_frames_as_the_stream(tiny, watched):
    item = forward("a", CLIP, (3.0, 5.0, 6.0))
    for seconds, first in ((None, 0.0), (2.0, 1.0)):
        watched_before = len(watched)
        outcome = run(tiny, OVO, item, CLIP, "poll", context_seconds=seconds)
        sessions = list(watched)[watched_before:]
        assert [answer["time"] for answer in outcome.answers] == [3.0, 5.0, 6.0]
        assert sessions[0][0] == first and sessions[-1][-1] == 6.0
        spans = [(times[0], times[-1]) for times in sessions]
        assert spans == ([(0.0, 6.0)] if seconds is None else [(1.0, 3.0), (3.0, 5.0), (4.0, 6.0)])


def test_last4_sees_four_frames_and_blind_none(tiny, watched):
    for protocol in ("poll", "stream"):
        run(tiny, OVO, choice("a", CLIP, 8.0), CLIP, protocol, "last4")
    assert list(watched) == [[6.5, 7.0, 7.5, 8.0]] * 2
    item = forward("b", CLIP, (7.0, 8.0), asked=6.0)
    run(tiny, OVO, item, CLIP, "stream", "last4")
    assert list(watched)[2:] == [[end - 1.5, end - 1.0, end - 0.5, end] for end in (6.0, 6.5, 7.0, 7.5, 8.0)]
    before = len(watched)
    for protocol in ("poll", "stream"):
        outcome = run(tiny, OVO, choice("c", CLIP, 8.0), CLIP, protocol, "blind")
        assert len(outcome.answers + outcome.said) == 1
        assert outcome.cost["frames"] == 0
    assert run(tiny, OVO, item, CLIP, "stream", "blind").said == []
    assert len(watched) == before


def test_always_speaks_after_each_frame(tiny):
    item = forward("a", CLIP, (5.0, 8.0), asked=6.0)
    outcome = run(tiny, OVO, item, CLIP, "stream", "always")
    assert [one["time"] for one in outcome.said] == [6.0, 6.5, 7.0, 7.5, 8.0]
    polled = run(tiny, OVO, item, CLIP, "poll", "always")
    assert [answer["text"] for answer in polled.answers] == ["Yes", "Yes"] and polled.cost["frames"] == 0


def test_dense_keeps_all_tokens(nano):
    item = choice("a", CLIP, 8.0)
    routed, dense = (run(nano, OVO, item, CLIP, "poll", control) for control in (None, "dense"))
    session = nano.model.stream(nano.processor, keep_ratio=1.0, speak_threshold=0.0)
    list(session.watch(CLIP))
    assert session.stats.kv_bytes == session.stats.kv_bytes_if_dense
    share = session.stats.kv_bytes / session.stats.frames
    assert dense.cost["peak_cache_bytes"] > share * 17 > routed.cost["peak_cache_bytes"]
    assert not SessionModel(nano.model, nano.processor, None, keep_ratio=1.0).routes


def test_fixed_rows_need_no_model(folder):
    items = Items(folder / "ovo.jsonl", None)
    assert items.constants() == ["A", "B", "C", "Yes", "No"]
    silent, refused = (items.fixed(row, items.items[0], "poll") for row in ("silent", "no-answer"))
    assert [silent.answers[0]["text"], refused.answers[0]["text"]] == ["", REFUSAL]
    assert items.fixed("silent", items.items[2], "stream").said == []
    yes = items.fixed("constant Yes", items.items[2], "poll")
    assert [answer["text"] for answer in yes.answers] == ["Yes"] * 3
    assert items.fixed("constant Yes", items.items[0], "poll").answers[0]["text"] == ""
    letter = items.fixed("constant B", items.items[0], "stream")
    assert letter.said == [{"time": 2.0, "text": "B", "kind": "answer"}]
    assert OVO.score(items.items[0], letter, "stream")["official"] == 1


@pytest.mark.parametrize("protocol", ["poll", "stream"])
def test_a_model_and_its_controls_become_one_table(folder, tmp_path, protocol, capsys):
    files = [tmp_path / name for name in ("a.json", "a.md", "a.png")]
    result = evaluated(folder, files[0], protocol, "--table", files[1], "--plot", files[2])
    rows = ["model", "always", "last4", "blind", "dense", "silent", "no-answer"]
    rows += [f"constant {text}" for text in ("A", "B", "C", "Yes", "No")]
    assert list(result["scores"]) == list(result["summary"]) == list(result["outcomes"]) == rows
    table = files[1].read_text()
    assert f"| score | {' | '.join(rows)} |" in table and table in capsys.readouterr().out
    assert files[2].read_bytes().startswith(b"\x89PNG")
    # everything that is needed to run it again, and to score it again
    assert result["versions"]["torch"] and result["data"]["items"] == len(result["items"]) == 3
    assert result["fps"] == 2.0 and result["decoding"] == {"greedy": True} and result["max_new_tokens"] == TOKENS
    items = Items(folder / "ovo.jsonl", None).items
    for row in rows:
        scores = [
            OVO.score(item, Outcome(**outcome), protocol)
            for item, outcome in zip(items, result["outcomes"][row], strict=True)
        ]
        again = json.loads(json.dumps(OVO.summarise(items, scores)))
        assert {name: result["scores"][row][name] for name in again} == again
    # where a control changes nothing, the outcome is the model's
    assert result["outcomes"]["always"][0] == result["outcomes"]["model"][0]


def test_chosen_controls_are_run_and_what_is_known_is_reused(folder, tmp_path, monkeypatch):
    out = tmp_path / "a.json"
    assert list(evaluated(folder, out, "poll", "--control", "none")["scores"]) == ["model"]
    first = lasting(json.loads(out.read_text()))
    result = evaluated(folder, out, "poll", "--control", "silent", "blind")
    assert list(result["scores"]) == ["model", "blind", "silent"]
    assert lasting(result)["outcomes"]["model"] == first["outcomes"]["model"]
    monkeypatch.setattr(benchmark_run, "run", lambda *_: pytest.fail("it was done already"))
    assert lasting(evaluated(folder, out, "poll", "--control", "silent", "blind")) == lasting(result)


def outcomes(file: Path) -> dict[int, dict]:
    lines = map(parse_line, file.with_suffix(".streams.jsonl").read_bytes().splitlines()[1:])
    return {line["index"]: line for line in filter(None, lines)}


def test_a_killed_run_resumes_to_the_same_result(folder, tmp_path):
    given = {"benchmark": folder / "ovo.jsonl", "protocol": "stream", "model": str(folder / "model")}
    evaluate(EvaluateOptions(**given, json=tmp_path / "whole.json"))
    file, kills = tmp_path / "cut.json", 0

    def go(come):
        append = Results._append

        def append_and_come(results: Results, values: list[dict]) -> None:
            append(results, values)
            come()

        Results._append = append_and_come
        evaluate(EvaluateOptions(**given, json=file))

    while killed_in(go, 4):
        kills += 1
        assert not file.exists() and len(outcomes(file)) == 4 * kills
    assert kills >= 2
    whole, cut = (lasting(json.loads(path.read_text())) for path in (tmp_path / "whole.json", file))
    assert whole == cut


def test_two_processes_give_the_result_of_one(tmp_path):
    """With a checkpoint whose replies end by themselves."""
    items = [choice(text, CLIP, time, text) for time, text in ((1.0, "How many objects are there?"), (2.0, "What?"))]
    write_items(tmp_path / "ovo.jsonl", [*items, forward("c", CLIP, (1.5, 2.0), asked=1.0)])
    given = ["--protocol", "stream", "--control", "last4"]
    one = evaluated(tmp_path, tmp_path / "one.json", *given[1:], "--model", TINY_WORLD)
    command = ["-m", "videollm_mod.commands.cli", "evaluate", "--benchmark", tmp_path / "ovo.jsonl", *given]
    command += ["--model", TINY_WORLD, "--json"]
    process = torchrun(*command, tmp_path / "two.json", cwd=tmp_path, timeout=PATIENCE)
    assert process.returncode == 0, process.stdout + process.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["processes"] == 2 and "items of process 1 of 2: 100%" in process.stderr
    assert lasting(two) | {"max_new_tokens": 24} == lasting(one)


OVO_POLL = ["--benchmark", "{ovo}", "--protocol", "poll"]
JUDGE = ["--judge", "http://x/v1", "--judge-model", "m"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--protocol", "poll"], "give `--task` or `--benchmark`"),
        (OVO_POLL[:2], "needs `--protocol poll` or `--protocol stream`"),
        ([*OVO_POLL, "--task", "step"], "`--task` does not go with `--benchmark`"),
        (["--task", "step", "--endpoint", "http://x/v1"], "`--endpoint` does not go with `--task`"),
        ([*OVO_POLL, "--control", "none", "blind"], "goes with no other"),
        ([*OVO_POLL, "--endpoint", "x/v1"], "`--endpoint` must begin with http"),
        ([*OVO_POLL, "--endpoint", "http://x/v1"], "needs `--endpoint-model`"),
        ([*OVO_POLL, "--endpoint", "http://a:b@x/v1", "--endpoint-model", "m"], "must hold no password"),
        ([*OVO_POLL, "--judge-model", "m"], "`--judge-model` needs `--judge`"),
        ([*OVO_POLL, *JUDGE, "--judge-key-env", "NO_SUCH"], "the environment variable NO_SUCH is not set"),
        ([*OVO_POLL, "--stock", "{folder}"], "there is no config.json in"),
        ([*OVO_POLL, "--fps", "1"], "`--fps` is for `--endpoint` and `--stock`"),
        ([*OVO_POLL, "--context-seconds", "0"], "must be a finite number > 0"),
        (["--benchmark", "{folder}/gone.jsonl", *OVO_POLL[2:]], "names 1 missing file"),
        (["--benchmark", "{folder}/two.jsonl", *OVO_POLL[2:]], "got omnipro, ovo-bench"),
        (["--benchmark", "{folder}/own.jsonl", *OVO_POLL[2:]], "own.jsonl:1: "),
    ],
)
def test_wrong_arguments_give_a_clear_error(folder, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_run, "load_model", lambda *_: pytest.fail("the model was loaded"))
    write_items(folder / "gone.jsonl", [choice("a", "no.mp4", 1.0)])
    other = choice("b", "v0.mp4", 1.0)
    write_items(folder / "two.jsonl", [choice("a", "v0.mp4", 1.0), Item(**{**vars(other), "benchmark": "omnipro"})])
    (folder / "own.jsonl").write_text('{"benchmark": "ovo-bench"}\n')
    given = [each.format(ovo=folder / "ovo.jsonl", folder=folder) for each in arguments]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_controls_that_do_not_apply_are_refused(folder, tmp_path, capsys):
    write_items(folder / "plain.jsonl", [choice("a", "v0.mp4", 1.0)])
    given = ["--benchmark", folder / "plain.jsonl", "--protocol", "stream", "--model", folder / "model"]
    for control, why in (("always", "nothing asks when to speak"), ("dense", "the model routes nothing")):
        more = ["--control", control, "--keep-ratio", "1"]
        assert cli.main(["evaluate", *map(str, [*given, *more])]) == 2
        assert f"`--control {control}` does not apply: {why}" in capsys.readouterr().err


def test_a_damaged_video_is_named_and_what_was_found_is_kept(folder, tmp_path, capsys):
    (folder / "bad.mp4").write_bytes((folder / "v0.mp4").read_bytes()[:300])
    write_items(folder / "damaged.jsonl", [choice("a", "v0.mp4", 1.0), choice("b", "bad.mp4", 1.0)])
    out = tmp_path / "a.json"
    given = ["--benchmark", folder / "damaged.jsonl", "--protocol", "poll", "--model", folder / "model", "--json", out]
    assert cli.main(["evaluate", *map(str, given)]) == 2
    assert "damaged.jsonl, item b: " in capsys.readouterr().err
    assert len(outcomes(out)) == 1 and not out.exists()


def test_the_bundled_checkpoint_is_found_without_a_folder(folder):
    assert benchmark_run.about_model(EvaluateOptions()) == benchmark_run.about_model(EvaluateOptions(model=str(ROOT)))
