"""`videollm-mod bench serve`: real servers and clients, with few frames."""

import json
import socket
import sys
from collections import Counter
from subprocess import PIPE
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fork_server import ForkedProcess
from running_servers import serving
from waiting import PATIENCE

from videollm_mod.bench import serve, serve_clients
from videollm_mod.bench.serve_clients import Client, Clients, Job, Seen, jpeg, pictures
from videollm_mod.bench.serve_server import WORDS, ScriptedSession
from videollm_mod.bench.watching import build
from videollm_mod.commands import cli


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """Servers and clients are processes that start at once; clients wait for the last answers of a slow machine."""
    patient = f"from videollm_mod.bench import serve_clients as own; own.PATIENCE = {PATIENCE}; own.main()"

    def start(command, stdin=None, **_) -> ForkedProcess:
        python, *module, options = command
        own = ["-c", patient] if module[-1].endswith("serve_clients") else module
        return ForkedProcess([python, *own, options], stdin=stdin)

    for module in (serve, serve_clients):
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(Popen=start, PIPE=PIPE))


@pytest.fixture
def few(monkeypatch):
    """Constants with which a benchmark takes a few seconds, and a slow machine holds as much as another."""
    changed = {"WARM": 0.5, "STREAMS": 2, "IN_FLIGHT": (2,), "FIRST_FRAMES": 2, "SECONDS_OF_A_TURN": 0.0}
    changed |= {"LIMIT": PATIENCE, "WAITING": 256}
    for name, value in {**changed, "SECONDS_BETWEEN_NARRATIONS": 1.0}.items():
        monkeypatch.setattr(serve, name, value)


def test_a_server_is_measured_and_compared_with_its_pool(few, tmp_path, capsys):
    path = tmp_path / "serve.json"
    options = ["--geometry", "nano", "--device", "cpu", "--held", "4", "--fps", "4", "--seconds", "2"]
    more = ["--repeats", "1", "--sessions", "1", "2", "--keep-ratio-range", "0.1", "0.4", "--json", str(path)]
    assert cli.main(["bench", "serve", *options, *more]) == 0
    assert str(path.with_suffix(".png")) in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert result["held"] == 4 and result["size"] == 96 and {"commit", "command", "machine"} <= result.keys()
    pool, server = (row for row in result["rows"] if row["name"] == "overhead")
    assert (pool["way"], server["way"]) == ("pool", "server, 2 in flight") and pool["of_pool"] == 1
    ratio = server["frames_per_second"] / pool["frames_per_second"]
    assert result["overhead"][server["way"]] == pytest.approx(ratio, rel=0.01)
    assert server["ms_per_frame"]["all"] >= server["ms_per_frame"]["steps"] > 0 < server["ms_per_frame"]["decode"]
    live = [row for row in result["rows"] if row["name"] == "live"]
    assert [(row["sessions"], row["ratio"]) for row in live] == [
        (count, ratio) for ratio in ("fixed", "follows the load") for count in (1, 2)
    ]
    for row in live:
        assert row["frames"] == row["sessions"] * 8 and not row["unanswered"] and not row["errors"]
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["max_ms"] and row["narrations"] >= row["sessions"]
        assert row["spent"]["frames"] == row["sessions"] * 10 and row["spent"]["ticks"] > 10
    assert {row["keep_ratio"] for row in live if row["ratio"] == "fixed"} == {0.2}
    assert all(0.1 <= row["keep_ratio"] <= 0.4 for row in live if row["ratio"] != "fixed")
    assert serve.figures(result).keys() == {"serve_sessions_2_cores"}
    assert serve.figures({**result, "geometry": "llama3-8b", "overhead": {"server, 2 in flight": 0.9}}) == {
        "serve_h200_sessions": result["largest"]["fixed"],
        "serve_overhead": 0.1,
    }


def test_a_running_server_is_filled_with_frames_first(few, checkpoint, capsys):
    with serving(checkpoint) as running:
        url = ["--url", running.url, "--geometry", "nano", "--device", "cpu", "--held", "3"]
        assert cli.main(["bench", "serve", *url, "--seconds", "1", "--fps", "2", "--sessions", "1"]) == 0
        assert "name=live sessions=1 offered_fps=2.0 ratio=fixed frames=2 " in capsys.readouterr().out
        assert running.registry.metrics.registry.get_sample_value("videollm_mod_frames_received_total") == 3 + 3


def test_a_refusal_is_told(checkpoint):
    with serving(checkpoint, limits={"sessions": 1}) as running:
        options = {"url": running.url, "size": 96, "fps": 2.0, "frames": 1}
        with pytest.raises(ChildProcessError, match="1 sessions are open, the limit of this server"):
            Clients(1, 2, **options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ChildProcessError, match="Connect call failed"):
            Clients(1, 1, **{**options, "url": f"http://127.0.0.1:{free.getsockname()[1]}"})


def test_a_server_that_does_not_start_is_an_error(capsys, monkeypatch):
    monkeypatch.setattr(serve.subprocess, "Popen", lambda *_, **__: ForkedProcess([sys.executable, "-c", ""]))
    assert cli.main(["bench", "serve", "--geometry", "tiny", "--device", "cpu"]) == 2
    assert "the server did not start" in capsys.readouterr().err


@torch.no_grad()
def test_the_script_says_when_to_speak():
    """The same in blocks and frame by frame; each narration has the same number of tokens."""
    model, processor = build("nano", torch.device("cpu"))
    frames = np.stack(pictures(96, 3))[[0, 1, 2, 0, 1, 2, 0]]
    found = []
    for size in (1, 7):
        session = ScriptedSession(model, processor, speak_threshold=0.5, max_new_tokens=WORDS)
        session.every, session.shift = 3, 1
        session = session.fork()
        watched = [each for start in range(0, 7, size) for each in session.watch(frames[start : start + size])]
        found.append([each.event is not None for each in watched])
        words = [processor.tokenizer.encode(each.event.text) for each in watched if each.event is not None]
        assert session.stats.narrations == 2 and all(words)
    assert found == [[False, True, False, False, True, False, False]] * 2
    session.every = 0
    assert session.push(frames) == []


def test_what_clients_see_becomes_a_row():
    frames = [Seen(1.0, 1.01, 1.1, None, "watched", 0.2), Seen(2.0, 2.0, 2.4, 2.5, "watched", 0.2)]
    frames += [Seen(3.0, 3.0, 3.1, None, "dropped", 0.1), Seen(4.0, 4.0), Seen(9.0, 9.0)]
    row = serve.live_row([frames[:2], frames[2:]], [], 0.5, 5.0)
    assert (row["frames"], row["dropped"], row["unanswered"], row["narrations"]) == (4, 1, 1, 1)
    assert (row["p50_ms"], row["p95_ms"], row["first_delta_p95_ms"]) == (400.0, 400.0, 500.0)
    assert row["keep_ratio"] == pytest.approx(0.5 / 3, abs=1e-4) and row["dropped_share"] == 0.25
    good = {**row, "dropped": 0, "unanswered": 0}
    assert serve.holds(good) and not serve.holds(row) and not serve.holds({**good, "unanswered": 1})
    assert not serve.holds({**good, "p95_ms": 501.0}) and not serve.holds({**good, "errors": ["no memory"]})
    assert not serve.holds(serve.live_row([], ["no memory"], 0.0, 1.0))


def test_a_number_that_failed_is_measured_once_more(monkeypatch):
    rows = serve.Measurements("", None, None, {"rows": []}, 0.0)
    answers: list = []

    def live(count, **about):
        held, errors = answers.pop(0)
        rows.result["rows"].append({"errors": errors})
        return held

    monkeypatch.setattr(rows, "live", live)
    for given, expected in (
        ([(True, [])], True),
        ([(False, []), (True, [])], True),
        ([(False, []), (False, [])], False),
        ([(False, ["no memory"])], False),
        ([(None, [])], None),
    ):
        answers[:] = given
        assert rows.live_or_again(4, ratio="fixed") is expected and not answers


def test_a_narration_is_the_decision_of_its_frame():
    client = Client(Job("", [0], 96, 2.0, 1), 0, None)
    client.frames = {1.5: Seen(0.0, 0.0)}
    client._open = 1
    response = {"id": "resp_1", "metadata": {"kind": "narration", "time": "1.5"}}
    client.take({"type": "response.created", "response": response}, 0.2)
    for now in (0.3, 0.4):
        client.take({"type": "response.output_text.delta", "response_id": "resp_1"}, now)
    client.take(
        {"type": "input_video_frame.acknowledged", "timestamp": 1.5, "status": "watched", "keep_ratio": 0.2}, 0.9
    )
    assert client.frames[1.5] == Seen(0.0, 0.0, 0.2, 0.3, "watched", 0.2) and not client._open


@pytest.mark.parametrize("largest", [0, 1, 5, 23, 160])
def test_the_search_finds_about_the_largest_number(largest):
    asked = []
    found = serve.search(lambda count: (asked.append(count), count <= largest)[1], 4)
    assert found <= largest <= found + max(1, found // 8)
    assert max(Counter(asked).values()) == 1 and max(asked) <= 4 * max(2, largest)
    assert serve.search(lambda count: None, 4) == 0


def test_pictures_compress_as_those_of_a_camera_do():
    sizes = [len(jpeg(frame)) for frame in pictures(384, 2)]
    assert all(20_000 < size < 60_000 for size in sizes)
    assert serve_clients.pictures(24, 1)[0].shape == (24, 24, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--sessions", "2", "0"], "--sessions must be at least 1, got 0"),
        (["--fps", "0"], "--fps must be a number above 0, got 0"),
        (["--seconds", "inf"], "--seconds must be a number above 0, got inf"),
        (["--held", "0"], "--held must be at least 1, got 0"),
        (["--keep-ratio-range", "0.5", "0.2"], "--keep-ratio-range must be a lower and a higher share in (0, 1]"),
    ],
)
def test_invalid_options_are_named(options, message, capsys):
    assert cli.main(["bench", "serve", "--geometry", "nano", "--device", "cpu", *options]) == 2
    assert message in capsys.readouterr().err
