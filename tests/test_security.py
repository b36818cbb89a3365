"""The promises of SECURITY.md, checked in separate processes."""

import base64
import inspect
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from damaged_files import read_case, write_case, write_originals
from fork_server import run_forked
from fresh_process import ROOT, run_fresh
from hypothesis import example, given, settings
from hypothesis import strategies as st
from media_servers import FileServer
from video_files import moving, write_video
from waiting import PATIENCE

from videollm_mod import StreamingSession
from videollm_mod.commands import cli
from videollm_mod.containers import plain_float, shown, source_name
from videollm_mod.conversation import MAX_TEXT
from videollm_mod.decoding import iter_video_frames
from videollm_mod.narration.options import NarrateOptions, Query
from videollm_mod.session_state import VERSION
from videollm_mod.sources.source import open_live

NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "urllib.Request")
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
WRITING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


def watched() -> dict[str, list]:
    """Record the side effects of this process: events of the kinds above, and the files it opens."""
    seen = {"events": [], "read": [], "written": []}

    def hook(event: str, arguments: tuple) -> None:
        if event in NETWORK + PROCESSES + WRITING:
            seen["events"].append([event, repr(arguments)])
        elif event == "open" and isinstance(arguments[0], str | bytes):
            mode, flags = arguments[1] or "", arguments[2] or 0
            writes = any(letter in mode for letter in "wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            seen["written" if writes else "read"].append(os.fsdecode(arguments[0]))

    sys.addaudithook(hook)
    return seen


def import_classes() -> dict:
    sys.dont_write_bytecode = True
    import numpy  # noqa: F401
    import tokenizers  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from transformers import LlamaForCausalLM, SiglipVisionModel  # noqa: F401

    seen = watched()
    import videollm_mod

    for name in videollm_mod.__all__:
        getattr(videollm_mod, name)
    from videollm_mod.narration import narrate  # noqa: F401
    from videollm_mod.sources import live, source  # noqa: F401

    return {**seen, "home": str(Path(videollm_mod.__file__).parent)}


def test_importing_opens_only_its_own_files(tmp_path):
    lines = [f"{name} = {globals()[name]}" for name in ("NETWORK", "PROCESSES", "WRITING")]
    lines += ["import json, os, sys", inspect.getsource(watched), "sys.dont_write_bytecode, seen = True, watched()"]
    lines += [
        "import videollm_mod",
        "home = os.path.dirname(videollm_mod.__file__)",
        "lazy = 'torch' not in sys.modules",
    ]
    lines += ["print(json.dumps({**seen, 'home': home, 'lazy': lazy}))"]
    command = [sys.executable, "-P", "-c", "\n".join(lines)]
    result = json.loads(subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout)
    library = str(Path(json.__file__).parents[1])
    assert result["events"] == [] and result["written"] == [] and result["lazy"]
    outside = [path for path in result["read"] if not path.startswith((result["home"], library))]
    assert outside == []


def test_importing_classes_opens_only_code(tmp_path):
    result = run_fresh(import_classes, tmp_path / "classes")
    assert result["written"] == []
    assert [event for event in result["events"] if event[0] in NETWORK] == []
    homes = (
        result["home"],
        str(Path(json.__file__).parents[1]),
        str(Path(torch.__file__).parents[1]),
        "/proc",
        "/sys",
    )
    assert [path for path in result["read"] if not path.startswith(homes)] == []
    assert any(path.startswith(result["home"]) for path in result["read"])


def narrate_a_secret(clip: str, output: str) -> dict:
    import io

    log = io.StringIO()
    logging.basicConfig(stream=log, level=logging.DEBUG)
    sys.dont_write_bytecode = True
    seen = watched()
    from videollm_mod.commands import cli

    code = cli.main(["narrate", clip, "--query", "Where is my wife's passport 4711?@1", "--output", output])
    return {**seen, "code": code, "log": log.getvalue()}


def test_frames_and_texts_are_not_logged(tmp_path):
    clip, output = write_video(tmp_path / "a.mkv", moving(30, 48, 64), "mjpeg"), tmp_path / "out.jsonl"
    result = run_fresh(narrate_a_secret, tmp_path / "process", clip, output, HF_HUB_OFFLINE="1")
    assert result["code"] == 0 and "passport 4711" in output.read_text()
    answers = [event["text"] for event in map(json.loads, output.read_text().splitlines()) if "text" in event]
    for secret in ("passport", "4711", *filter(None, answers)):
        assert secret not in result["log"]
    written = [path for path in result["written"] if not path.startswith(("/dev/", "/proc/"))]
    assert written == [str(output)]
    assert [event for event in result["events"] if event[0] in NETWORK] == []
    kept = [path for path in (tmp_path / "process").rglob("*") if path.is_file()]
    assert [path.name for path in kept] == ["result.json"]


# --- addresses

SECRET = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8).map("5ecret{}4711".format)
PLAIN = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)


@st.composite
def addresses(draw) -> str:
    """URLs with secrets wherever cameras and servers accept them: user and password, folders, query."""
    login = draw(st.sampled_from(["", f"{draw(PLAIN)}:{draw(SECRET)}@", f"{draw(SECRET)}:{draw(SECRET)}@"]))
    folders = draw(
        st.sampled_from(["", f"/{draw(PLAIN)}/{draw(SECRET)}", f"/user={draw(PLAIN)}_password={draw(SECRET)}"])
    )
    if login:
        folders = folders.replace("@", "")
    name = draw(st.sampled_from(["", "/1.ts", "/stream", "/a%20b.m3u8"]))
    query = draw(st.sampled_from(["", f"?password={draw(SECRET)}", f"?channel=1&token={draw(SECRET)}#t=1", "?a=b@c"]))
    port = draw(st.sampled_from(["", ":9"]))
    return f"{draw(st.sampled_from(['nosuch', 'NoSuch+x']))}://{login}127.0.0.1{port}{folders}{name}{query}"


@settings(max_examples=15)
@given(addresses())
@example("nosuch://admin:5ecret@4711@host/x")
@example("nosuch://admin:5ec/ret@4711@host/x")
@example("nosuch://admin:5ecret?4711@host/x")
@example("nosuch://ad/min:5ecret#4711@host/x")
@example("nosuch://5ecret#4711:5ecret4711@127.0.0.1")
@example("nosuch://host:80/get/5ecret4711")
@example("nosuch://user:5ecret[4711@host/x")
@example("nosuch:/user:5ecret4711@host/x")
@example("crypto:nosuch://user:5ecret4711@host/x")
def test_secrets_in_urls_are_not_shown(address):
    """Neither in errors of commands nor of Python, whether or not the URL can be opened."""
    shown_texts = [source_name(address), shown(address), shown({"type": "video", "url": address})]
    for arguments in (
        ["narrate", address],
        ["narrate", "a.mp4", address],
        ["narrate", "a.mp4", f"--fps={address}"],
        ["narrate", "a.mp4", "--output", address],
        ["narrate", "a.mp4", "--model", address],
        ["validate", address],
    ):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = cli.main(arguments)
            except SystemExit as end:
                code = end.code
        assert code == 2 and err.getvalue().startswith("error: ")
        shown_texts += [out.getvalue(), err.getvalue()]
    try:
        next(iter_video_frames(address))
    except (ValueError, OSError) as error:
        shown_texts.append("".join(traceback.format_exception(error)).split("next(iter_video_frames(address))")[1])
    assert [text for text in shown_texts if "5ec" in text or "711" in text] == []


def test_lost_stream_shows_no_secret(tmp_path, monkeypatch):
    """The stream is lost after it was opened; PyAV's errors contain the full URL."""
    monkeypatch.setattr("videollm_mod.sources.source.TIMEOUT", float(PATIENCE))
    path = write_video(tmp_path / "a.ts", moving(100, 48, 64), "mpeg2video", fps=20)
    server = FileServer(path, rounds=1)
    address = f"{server.url}/loop".replace("http://", "http://me:5ecret4711@")
    live = open_live(address, 5.0, reconnect=False)
    live.paced = False
    with pytest.raises(OSError, match="the connection broke off") as caught:
        list(live)
    assert "Basic " + base64.b64encode(b"me:5ecret4711").decode() in server.logins
    server.close()
    for text in (live.name, str(caught.value)):
        assert "5ecret" not in text and "me:" not in text
    live = open_live(address, 5.0)
    live._came, live.give_up_after = True, 0.0  # it existed before
    with pytest.raises(OSError, match="did not come back") as caught:
        list(live)
    assert "5ecret" not in str(caught.value) and "me:" not in str(caught.value)


# --- what users type


def test_texts_are_bounded_and_valid_unicode(checkpoint):
    model, processor = checkpoint
    session = model.stream(processor)
    for long in (session.ask, session.instruct, lambda text: model.stream(processor, system_prompt=text)):
        with pytest.raises(ValueError, match=f"must have at most {MAX_TEXT} characters, got 1048576"):
            long("a" * 2**20)
        with pytest.raises(ValueError, match="must be text in UTF-8, got 'caf"):
            long("caf\udce9")
        with pytest.raises(ValueError, match="a string that is not empty") as caught:
            long(" " * 2**20)
        assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="at most 20000 characters"):
        messages = [{"role": "user", "content": "a" * (MAX_TEXT + 1)}, {"role": "stream", "num_frames": 1}]
        processor.apply_chat_template(messages, tokenize=True)
    with pytest.raises(ValueError, match="a `--query` must have at most 20000 characters, got 1048576"):
        NarrateOptions(source="x", queries=["a" * 2**20]).check()
    assert session.stats.tokens == 0 and session.query is None


def test_numbers_have_only_ascii_digits(capfd, tmp_path):
    assert Query.parse("What?@1_0") == Query("What?@1_0") and Query.parse("What?@\u0661") == Query("What?@\u0661")
    assert plain_float("1e-3") == 0.001
    for arguments in (["--fps", "1_0"], ["--threshold", "0_1"], ["--max-cached-frames", "2_4"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["narrate", "x", *arguments])
        assert caught.value.code == 2 and "invalid" in capfd.readouterr().err


def test_query_that_is_not_utf8_gives_a_clear_error():
    command = [sys.executable, "-m", "videollm_mod.commands.cli", "narrate", "x", "--query", b"caf\xe9?@2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: a `--query` must be text in UTF-8, got 'caf\\udce9?'\n"


def test_message_cannot_control_the_terminal(capfd):
    assert cli.main(["narrate", "\x1b[2J\x07no\nsuch" + "x" * 5000]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: there is no video \\x1b[2J\\x07no such") and len(err) < 1100 and err.count("\n") == 1


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_import_is_deferred(number, code, tmp_path, monkeypatch):
    (tmp_path / "fragile_extension.py").write_text(
        f"import signal\ntry:\n    signal.raise_signal({int(number)})\nexcept BaseException:\n    raise TypeError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fragile_extension", raising=False)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def dispatch(argv):
        import fragile_extension  # noqa: F401

        time.sleep(60)

    monkeypatch.setattr(cli, "dispatch", dispatch)
    try:
        ended = cli.main([])
    except SystemExit as end:
        ended = end.code
    assert ended == code and "fragile_extension" in sys.modules
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]


def test_importing_program_can_be_interrupted(tmp_path, monkeypatch):
    (tmp_path / "imported_program.py").write_text("from videollm_mod.commands import cli\nended = cli.main([])\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "dispatch", lambda argv: (signal.raise_signal(signal.SIGINT), time.sleep(60)))
    import imported_program

    assert imported_program.ended == 130


def test_thread_can_run_a_command(monkeypatch):
    monkeypatch.setattr(cli, "dispatch", lambda argv: 7)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cli.main, []).result() == 7


def test_ignored_interrupt_stays_ignored(monkeypatch):
    """As under nohup, or in a script's background."""
    monkeypatch.setattr(cli, "dispatch", lambda argv: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cli.main([])
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_program_ends_at_once_while_a_command_imports_what_it_needs(tmp_path):
    (tmp_path / "library.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nopen('went_on', 'w').close()\n"
    )
    code = "import sys; from videollm_mod.commands import cli, narrate; sys.argv[1:] = ['narrate', 'x']; "
    code += (
        "exec(compile('def run(options):\\n    import library', narrate.__file__, 'exec'), vars(narrate)); cli.main()"
    )
    done = run_forked([sys.executable, "-c", code], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "") and not (tmp_path / "went_on").exists()


def test_early_interrupt_prints_nothing():
    rng = random.Random(3)
    code = "import sys; from videollm_mod.commands.cli import main; print(flush=True); sys.exit(main())"
    command = [sys.executable, "-c", code, "narrate", ROOT / "media" / "world.mp4"]
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()  # the command has started
        time.sleep(rng.uniform(0.05, 0.8))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode in (130, -signal.SIGINT) and err == ""


# --- damaged files


def test_damaged_files_are_read_or_refused(checkpoint, tmp_path):
    """A few cases of `benchmarks/fuzz.py`, different from those it reads."""
    (tmp_path / "originals").mkdir()
    (tmp_path / "plain.mp4").write_bytes(b"")
    originals = sorted(write_originals(tmp_path / "originals", *checkpoint))
    outcomes = []
    for number in range(10**6, 10**6 + 30):
        path = write_case(number, originals, tmp_path)
        outcomes.append(read_case(path, *checkpoint).split(":")[0])
    assert {"read", "refused"} == set(outcomes)
    for original in originals:  # undamaged they are read
        if original.suffix != ".jsonl":
            (tmp_path / original.name).write_bytes(original.read_bytes())
            assert read_case(tmp_path / original.name, *checkpoint) == "read"


def test_forged_session_file_is_refused(checkpoint, tmp_path):
    session = checkpoint[0].stream(checkpoint[1])
    session.push(moving(2, 48, 64))
    content = session.save(tmp_path / "a.safetensors").read_bytes()
    for old, new in (
        (f'"version":"{VERSION}"'.encode(), b'"version":"9"'),
        (b"window", b"router"),
        (b"videollm-mod s", b"videollm-mod x"),
    ):
        assert old in content
        (tmp_path / "b.safetensors").write_bytes(content.replace(old, new))
        with pytest.raises(ValueError, match="b.safetensors"):
            StreamingSession.load(tmp_path / "b.safetensors", *checkpoint)
