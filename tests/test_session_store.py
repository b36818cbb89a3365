"""Sessions in a shared store: restored bit by bit, wherever their process was killed or paused, and owned by one."""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import stat
from dataclasses import asdict
from functools import partial

import pytest
import torch
from safetensors.torch import load as tensors_of_bytes
from safetensors.torch import save as bytes_of_tensors
from small_data import small_model
from tiny_models import tiny_config
from waiting import killed_in, until

from videollm_mod import StreamPool
from videollm_mod.benchmarks.long_streams import held_scenes
from videollm_mod.serving import event_files, segments, shared_files, store
from videollm_mod.serving.lease import SessionHeld, SessionLost
from videollm_mod.serving.store import SessionStore, manifest_bytes, manifest_content
from videollm_mod.session_state import session_tensors
from videollm_mod.speaking import StreamEvent

BOUNDS = {
    "window": {"max_cached_frames": 6, "max_new_tokens": 2, "speak_threshold": 1.0},
    "router": {"max_cached_frames": 6, "max_new_tokens": 2, "speak_threshold": 1.0, "cache_policy": "router"},
    "no bound": {"max_new_tokens": 2, "speak_threshold": 1.0},
}
SILENT = {"speak_threshold": 0.0}
FRAMES = 18  # of which each three are pushed and saved together


@pytest.fixture(scope="module")
def small():
    """`(model, processor)` whose words do not count."""
    return small_model(0)


@pytest.fixture(scope="module")
def features(small):
    """Those of all frames, with changes between them."""
    return small[0].stream(small[1]).encode(held_scenes(FRAMES // 3, 3, seed=7100))


def watch(session, features, start: int, stop: int) -> list:
    times = [number / 2 for number in range(start, stop)]
    return [frame.event for frame in session.watch_encoded(features[start:stop], times) if frame.event is not None]


def digest(session) -> str:
    """Of every bit that decides how a session goes on."""
    found = hashlib.sha256()
    for name, value in session_tensors(session).items():
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.contiguous().view(torch.uint8).numpy())
    state = session.state.plain_values() | {"seconds": None, "forgotten": session.state.cache.frames_forgotten}
    found.update(json.dumps(state, sort_keys=True).encode())
    return found.hexdigest()


def save(saved, session, events=()):
    """With all events so far, as a server keeps them; how many there are is noted."""
    known = saved.notes.get("events", [])
    known = [*known, *(json.dumps(asdict(event)) for event in events)]
    return saved.save(session, {"events": known}, list(enumerate(known, start=1)))


def events_of(saved) -> list[StreamEvent]:
    """The events of the last save, which is not being written anymore."""
    found = saved.read_events()
    assert found == list(enumerate(saved.notes["events"], start=1))
    return [StreamEvent(**json.loads(text)) for _, text in found]


@pytest.mark.parametrize("place, bound", [*(("folder", bound) for bound in BOUNDS), ("memory", "window")])
def test_restored_sessions_have_the_same_bits(small, features, tmp_path, bound, place):
    """Saved after every three frames, and restored after every ninth: evictions come before, between and after."""
    model, processor = small
    url = str(tmp_path) if place == "folder" else f"memory://{tmp_path}"
    alone, session = (model.stream(processor, **BOUNDS[bound]) for _ in range(2))
    expected, saved = [], SessionStore(url).open("s")
    assert saved.is_new and saved.restore(model, processor) is None
    for start in range(0, FRAMES, 3):
        if start == 6:
            alone.instruct("Narrate what happens.")
            session.instruct("Narrate what happens.")
        expected += watch(alone, features, start, start + 3)
        result = save(saved, session, watch(session, features, start, start + 3)).result()
        assert result.time == (start + 2) / 2
        if start % 9 == 6:
            saved.close()
            saved = SessionStore(url).open("s")
            session = saved.restore(model, processor)
            assert saved.time == session.time == (start + 2) / 2
        assert digest(session) == digest(alone)
        assert events_of(saved) == expected
    assert expected and (bound == "no bound") == (alone.state.cache.frames_forgotten == 0)


def test_routers_fade_segments_and_old_ones_are_written_again(checkpoint, tmp_path, monkeypatch):
    """The files hold what the session remembers, and not much more, after any number of evictions."""
    monkeypatch.setattr(segments, "OLDEST", 2)
    model, processor = checkpoint  # whose frames are larger than what is written about them
    features = model.stream(processor).encode(held_scenes(FRAMES // 3, 3, seed=7100))
    for bound in ("window", "router"):
        files = SessionStore(str(tmp_path / bound))
        session, saved, written = model.stream(processor, **BOUNDS[bound] | SILENT), files.open("s"), 0
        for start in range(FRAMES):
            list(session.watch_encoded(features[start % FRAMES][None]))
            written += saved.save(session).result().num_bytes
            manifest = manifest_content(saved.files.read("manifests/0000000001.json"), "it")
            own = manifest["segments"]
            assert saved.files.names("segments") == sorted(store.Segment(**one).name for one in own)
            assert sum(one["tokens"] for one in own) <= 2 * session.state.cache.seen_tokens
            first, count = manifest["evictions"]
            assert count <= 2 and {first} == {min(one["evictions"] for one in own)}
        state = sum(x.nbytes for name, x in session_tensors(session).items() if not name.startswith("layers"))
        per_frame = session.stats.kv_bytes / session.cache.frame_ends.shape[1]
        assert written < FRAMES * (2.5 * per_frame + 2 * state + 30_000)  # of metadata
        assert digest(files.open("s", force=True).restore(model, processor)) == digest(session)


def test_a_reset_session_and_one_that_was_not_followed_are_saved_whole(small, features, tmp_path):
    model, processor = small
    session, saved = model.stream(processor, **BOUNDS["window"]), SessionStore(str(tmp_path)).open("s")
    watch(session, features, 0, 9)
    saved.save(session).result()
    fork = session.fork()
    assert fork.state.memory.evictions is None  # it would grow forever
    watch(fork, features, 9, 18)
    saved.save(fork).result()
    assert digest(SessionStore(str(tmp_path)).open("s", force=True).restore(model, processor)) == digest(fork)
    saved = SessionStore(str(tmp_path)).open("s", force=True)
    fork.reset()
    saved.save(fork).result()
    assert len(saved.files.names("segments")) == 1
    assert digest(SessionStore(str(tmp_path)).open("s", force=True).restore(model, processor)) == digest(fork)


def test_sessions_of_a_pool_are_saved_with_their_events(small, features, tmp_path):
    """In the middle of a block the stream is settled first; what it said by then is in the save, and comes once."""
    model, processor = small
    frames = held_scenes(4, 3, seed=7100)
    alone = model.stream(processor, **BOUNDS["no bound"]).push(frames)
    pool, saved = StreamPool(model, processor), SessionStore(str(tmp_path)).open("s")
    stream, said = pool.join(**BOUNDS["no bound"]), []
    stream.push(frames)
    while stream.busy:
        said += [event for _, event in pool.tick()] + stream.settle()
        save(saved, stream.session, said[len(saved.notes.get("events", ())) :]).result()
    assert pool.tick() == [] and events_of(saved) == said
    assert [event.time for event in said] == [event.time for event in alone]


def test_notes_stay_until_others_are_given(small, tmp_path):
    session = small[0].stream(small[1])
    for notes in ({"seen": 1}, None, {}):
        saved = SessionStore(str(tmp_path)).open("s", force=True)
        saved.save(session, notes).result()
        assert SessionStore(str(tmp_path)).notes("s") == saved.notes == ({"seen": 1} if notes is None else notes)


# --- killed and paused processes


def go_on(url: str, model, processor, features, shown: str, stop: int = FRAMES, hook=None) -> None:
    """Own a session, and watch from its last save on. What was durable is appended to the file `shown`, as a client
    would see it."""
    saved = SessionStore(url).open("s", force=True)
    session = saved.restore(model, processor) or model.stream(processor, **BOUNDS["window"])
    if hook is not None:
        hook()
    for start in range(session.stats.frames, stop, 3):
        save(saved, session, watch(session, features, start, start + 3)).result()
        with open(shown, "a") as file:
            file.write(json.dumps([session.stats.frames, len(saved.notes["events"])]) + "\n")


@pytest.fixture(scope="module")
def undisturbed(small, features):
    """`({frames: digest after them}, {frames: events up to them}, features)`."""
    session = small[0].stream(small[1], **BOUNDS["window"])
    digests, events = {0: digest(session)}, {0: []}
    for start in range(0, FRAMES, 3):
        events[start + 3] = events[start] + watch(session, features, start, start + 3)
        digests[start + 3] = digest(session)
    assert events[9] and len(events[FRAMES]) > len(events[9])
    return digests, events, features


class HalfWriting:
    """A file that comes to a point in the middle of a write."""

    def __init__(self, come, *arguments):
        self.come, self.file = come, open(*arguments)  # noqa: SIM115

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.come()
        self.file.write(data[len(data) // 2 :])


def come_at_every_file(come) -> None:
    """Call `come()` before each change of a file, and in the middle of each write."""
    shared_files.open = partial(HalfWriting, come)
    for name in ("fsync", "replace", "link", "unlink", "remove"):
        original = getattr(os, name)

        def changed(*arguments, original=original, **options):
            come()
            return original(*arguments, **options)

        setattr(os, name, changed)


def test_wherever_a_process_is_killed_its_session_goes_on(small, undisturbed, tmp_path, monkeypatch):
    """Killed at every change of a file during two saves of the second owner, with evictions in between."""
    monkeypatch.setattr(event_files, "FEWEST", 2)  # so that files of events are taken over, and new ones begun
    digests, events, features = undisturbed
    start, seen, count = tmp_path / "start", set(), 0
    go_on(str(start), *small, features, str(tmp_path / "shown"), stop=6)
    while True:
        count += 1
        url, shown = str(tmp_path / str(count)), tmp_path / f"{count}.shown"
        shown.write_text((tmp_path / "shown").read_text())
        copy(start, url)

        def run(come, url=url, shown=shown):
            go_on(url, *small, features, str(shown), 12, partial(come_at_every_file, come))

        killed = killed_in(run, count)
        last_frames, last_event = json.loads(shown.read_text().splitlines()[-1])
        saved = SessionStore(url).open("s", force=True)
        session = saved.restore(*small)
        frames = session.stats.frames
        assert digest(session) == digests[frames] and last_frames <= frames <= last_frames + 3
        assert saved.time == (frames - 1) / 2
        assert events_of(saved) == events[frames] and len(events[frames]) >= last_event
        if frames not in seen:  # the client sends the later frames again
            seen.add(frames)
            go_on(url, *small, features, str(shown))
            saved = SessionStore(url).open("s", force=True)
            assert events_of(saved) == events[FRAMES]
            assert digest(saved.restore(*small)) == digests[FRAMES]
            manifest = saved.files.read(store.manifest_name(store.manifests(saved.files)[-1]))
            assert files_of(manifest) == [saved.files.names(folder) for folder in ("segments", "events")]
        if not killed:
            break
    assert seen == {6, 9, 12} and count > 20


def files_of(manifest: bytes) -> list[list[str]]:
    """Names of the segments and files of events that a manifest needs."""
    content = manifest_content(manifest, "it")
    segments = sorted(store.Segment(**one).name for one in content["segments"])
    return [segments, sorted(event_files.EventFile(**one).name for one in content["events"]["files"])]


def copy(folder, url: str) -> None:
    for file in folder.rglob("*"):
        if stat.S_ISREG(file.stat().st_mode):
            target = os.path.join(url, file.relative_to(folder))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as out:
                out.write(file.read_bytes())


def is_stopped(process) -> bool:
    with open(f"/proc/{process.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("point", ["segments", "manifests", "after the manifest"])
def test_a_paused_owner_is_fenced_off(small, undisturbed, tmp_path, point):
    """The first process is stopped in the middle of its second save, a second one takes over and saves, and then the
    first one continues: its save is refused, and changes nothing."""
    digests, events, features = undisturbed

    def first() -> None:
        torch.set_num_threads(1)
        saved = SessionStore(str(tmp_path)).open("s")
        session = small[0].stream(small[1], **BOUNDS["window"])
        save(saved, session, watch(session, features, 0, 3)).result()
        write = saved.files.write

        def stopping(name: str, data: bytes) -> None:
            if name.startswith(point):
                signal.raise_signal(signal.SIGSTOP)  # so that this thread stops at once
            write(name, data)
            if point == "after the manifest" and name.startswith("manifests"):
                signal.raise_signal(signal.SIGSTOP)

        saved.files.write = stopping
        future = save(saved, session, watch(session, features, 3, 6))
        try:
            future.result()
        except SessionLost as error:
            assert saved.lost and "generation 1, the owner 2" in str(error)
            try:
                saved.save(session)
            except SessionLost:
                os._exit(7)
        os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=first)
    process.start()
    until(lambda: is_stopped(process) or not process.is_alive(), "the process stopping")
    own = SessionStore(str(tmp_path))
    with pytest.raises(SessionHeld):
        own.open("s")
    saved = own.open("s", force=True)
    session = saved.restore(*small)
    frames = 6 if point == "after the manifest" else 3  # that manifest was written, but never relied on
    assert digest(session) == digests[frames]
    if point == "segments":
        save(saved, session, watch(session, features, frames, frames + 3)).result()
        frames += 3
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 7
    save(saved, session, watch(session, features, frames, frames + 3)).result()
    saved.close()
    again = SessionStore(str(tmp_path)).open("s")
    assert events_of(again) == events[frames + 3]
    assert digest(again.restore(*small)) == digests[frames + 3]


def test_cleaning_up_after_a_save_spares_what_a_new_owner_wrote(small, undisturbed, tmp_path):
    """The first owner is paused between its check and the removal of old files, while another one takes over."""
    digests, events, features = undisturbed
    saved = SessionStore(str(tmp_path)).open("s")
    session = small[0].stream(small[1], **BOUNDS["window"])
    check = saved.lease.check

    def check_and_pause() -> None:
        check()
        taker = SessionStore(str(tmp_path)).open("s", force=True)
        own = taker.restore(*small)
        save(taker, own, watch(own, features, 3, 6)).result()

    saved.lease.check = check_and_pause
    assert save(saved, session, watch(session, features, 0, 3)).result().time == 1.0
    again = SessionStore(str(tmp_path)).open("s", force=True)
    assert digest(again.restore(*small)) == digests[6] and events_of(again) == events[6]


# --- full, unreachable, damaged and malicious stores


def test_after_a_full_disk_the_next_save_holds_everything(small, features, tmp_path, monkeypatch, caplog):
    model, processor = small
    files = SessionStore(str(tmp_path))
    session, saved = model.stream(processor, **BOUNDS["window"]), files.open("s")
    said = watch(session, features, 0, 6)
    save(saved, session, said).result()
    before = saved.files.names("segments")

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for start in range(6, 15, 3):
            new = watch(session, features, start, start + 3)
            said += new
            future = save(saved, session, new)
            with pytest.raises(OSError, match="cannot save session s to .*: .*No space left on device"):
                future.result()
    assert (saved.failures, files.failures, saved.time) == (3, 3, 2.5)
    assert saved.files.names("segments") == before  # nor is there half a file
    warnings = [record.getMessage() for record in caplog.records if "goes on unsaved" in record.getMessage()]
    assert len(warnings) == 1 and "1 failed saves" in warnings[0]
    saved.save(session).result()
    assert (saved.failures, saved.time) == (0, 7.0)
    again = SessionStore(str(tmp_path)).open("s", force=True)
    assert events_of(again) == said and digest(again.restore(model, processor)) == digest(session)


def test_an_unreachable_store_names_itself(small, tmp_path, monkeypatch):
    saved = SessionStore(f"memory://{tmp_path}").open("s")

    def unreachable(*_, **__) -> None:
        raise RuntimeError("no route to host")  # file systems have errors of their own

    with monkeypatch.context() as patched:
        patched.setattr(type(saved.files.fs), "pipe_file", unreachable)
        for call in (saved.renew, saved.save(small[0].stream(small[1])).result):
            with pytest.raises(OSError, match=rf"cannot reach memory://{tmp_path}/s: no route to host"):
                call()
    assert not saved.lost and saved.failures == 1
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        SessionStore(str(tmp_path / "file")).open("s")
    with pytest.raises(ValueError, match="nowhere"):
        SessionStore("nowhere://folder")
    for session_id in ("", "..", "a/b", "a" * 129, "a\n"):
        with pytest.raises(ValueError, match="session id must have 1 to 128 letters"):
            SessionStore(str(tmp_path)).open(session_id)


def test_ended_and_abandoned_sessions_are_removed(small, features, tmp_path):
    model, processor = small
    files = SessionStore(str(tmp_path), lease_seconds=0.0)
    for session_id in ("ended", "abandoned", "damaged", "held"):
        saved = files.open(session_id)
        saved.save(model.stream(processor)).result()
    (tmp_path / "damaged" / "manifests" / "0000000001.json").write_text("{")
    ended = files.open_sessions["ended"]
    ended.delete()
    with pytest.raises(SessionLost, match="not, or no longer, owned"):
        ended.save(model.stream(processor))
    assert not (tmp_path / "ended").exists() and "ended" not in files and "held" in files and ".." not in files
    (tmp_path / "first" / "manifests").mkdir(parents=True)
    (tmp_path / "first" / "manifests" / ".0000000001.json.0.partial").touch()  # its first save has not come to its end
    assert "first" not in files
    files.files.remove("first")
    assert files.session_ids() == ["abandoned", "damaged", "held"]
    owner = SessionStore(str(tmp_path))
    held = owner.open("held")
    assert files.remove_abandoned(3600) == []
    assert owner.remove_abandoned(0) == ["abandoned", "damaged"] and owner.session_ids() == ["held"]
    assert [saved.session_id for saved in files.renew()] == ["abandoned", "damaged", "held"]
    files.open_sessions["held"].delete()  # which belongs to another process now
    assert owner.renew() == [] and held.restore(model, processor) is not None
    SessionStore(str(tmp_path)).open("held", force=True)
    assert owner.renew() == [held] and held.lost


@pytest.fixture(scope="module")
def whole(small, features, tmp_path_factory):
    """A folder with a session of two segments, between which tokens were evicted."""
    folder = tmp_path_factory.mktemp("whole")
    session, saved = small[0].stream(small[1], **BOUNDS["window"]), SessionStore(str(folder)).open("s")
    for start, stop in ((0, 6), (6, 7)):
        save(saved, session, watch(session, features, start, stop)).result()
    saved.close()
    assert len(saved.files.names("segments")) == 2 and saved._written.masks
    return folder


def forge(folder, name: str, tensor=None, segment: int = -1, **values) -> None:
    """Change a tensor of a segment, or values of the manifest's session, and let all checksums fit."""
    path = folder / "s" / "manifests" / "0000000001.json"
    content = manifest_content(path.read_bytes(), "it")
    if tensor is not None:
        own = content["segments"][segment]
        file = folder / "s" / "segments" / store.Segment(**own).name
        tensors = tensors_of_bytes(file.read_bytes())
        assert name in tensors
        tensors[name] = tensor(tensors[name])
        file.write_bytes(bytes_of_tensors(tensors))
        own["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    elif name == "manifest":
        content |= values
    else:
        content["session"][name] |= values
    path.write_bytes(manifest_bytes(content))


FORGED = {
    "position too large": ("layers.0.positions", lambda x: x + 10**6),
    "position negative": ("layers.2.positions", lambda x: x - 10**6),
    "positions twice": ("layers.0.positions", lambda x: x * 0),
    "too few keys": ("layers.1.keys", lambda x: x[:, :, :-1].contiguous()),
    "keys of another size": ("layers.1.keys", lambda x: x[..., :-1].contiguous()),
    "values of another dtype": ("layers.1.values", lambda x: x.double()),
    "frame ends": ("state.frame_ends", lambda x: x + 10**6),
    "next position": ("state.next_position", lambda x: x + 1),
    "memory": ("state.memory.kinds", lambda x: x[:-1].contiguous()),
    "an eviction that is too long": ("state.leaving.0", lambda x: torch.cat([x, ~x, ~x, ~x])),
    "an eviction of another dtype": ("state.leaving.0", lambda x: x.long()),
    "owners of other tokens": ("state.owners", lambda x: x[1:].contiguous()),
    "an eviction too short": ("state.leaving.0", lambda x: x[:3].contiguous()),
}


@pytest.mark.parametrize("how", FORGED)
def test_forged_segments_are_refused(small, whole, tmp_path, how):
    """All checksums fit, but nothing may be used as an index that is out of range."""
    copy(whole, str(tmp_path))
    forge(tmp_path, *FORGED[how])
    with pytest.raises(ValueError, match=r"session s in .* is (damaged or malicious|no saved session)"):
        SessionStore(str(tmp_path)).open("s").restore(*small)


def test_forged_manifests_are_refused(small, whole, tmp_path):
    path, file = tmp_path / "s" / "manifests" / "0000000001.json", "00000000.0000000001.safetensors"
    secret = tmp_path / "secret"
    secret.write_text("secret")
    copy(whole, str(tmp_path))
    content = manifest_content(path.read_bytes(), "it")
    outside = [{**own, "number": "../../secret"} for own in content["segments"]]
    (listed,) = content["events"]["files"]
    cases = [
        ("manifest", {"segments": outside}, "damaged or malicious"),
        ("manifest", {"segments": []}, "damaged or malicious"),
        ("manifest", {"evictions": [0, 10**9]}, "damaged or malicious"),
        ("manifest", {"session": None}, "damaged or malicious"),
        ("manifest", {"notes": 3}, "damaged or malicious"),
        ("manifest", {"events": [1]}, "damaged or malicious"),
        (
            "manifest",
            {"events": {"first": 0, "files": [{**listed, "number": "../../secret"}]}},
            "damaged or malicious",
        ),
        ("manifest", {"notes": [1]}, "damaged or malicious"),
        ("state", {"pending": [10**9]}, "no saved session of this package"),
        ("state", {"pending": ["x"]}, "no saved session of this package"),
        ("options", {"cache_policy": "none"}, "cache_policy"),
    ]
    for name, values, message in cases:
        copy(whole, str(tmp_path))
        forge(tmp_path, name, **values)
        with pytest.raises(ValueError, match=message):
            SessionStore(str(tmp_path)).open("s", force=True).restore(*small)
    text = json.loads((whole / "s" / "manifests" / "0000000001.json").read_bytes())
    for change, message in (
        ({"version": 3}, "has version 3, this package reads the versions 1 and 2"),
        ({"format": "pickle"}, "its format is 'pickle'"),
        ({"content": text["content"] + " "}, "checksum does not fit"),
        ({"content": None}, "no manifest of a session, or damaged"),
    ):
        path.write_text(json.dumps(text | change))
        with pytest.raises(ValueError, match=message):
            SessionStore(str(tmp_path)).open("s", force=True)
    for data in (b"", b"[]", b"\x80\x04N.", b"[" * 100_000, path.read_bytes()[:100]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="no manifest of a session, or damaged"):
            SessionStore(str(tmp_path)).open("s", force=True)
    copy(whole, str(tmp_path))
    segment = tmp_path / "s" / "segments" / file
    data = segment.read_bytes()
    segment.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"the checksum of segment {file} does not fit"):
        SessionStore(str(tmp_path)).open("s", force=True).restore(*small)
    segment.unlink()
    with pytest.raises(FileNotFoundError, match=file):
        SessionStore(str(tmp_path)).open("s", force=True).restore(*small)


def test_sessions_of_other_models_are_refused(small, whole, tmp_path):
    from videollm_mod import VideoLLMMoDForConditionalGeneration

    copy(whole, str(tmp_path))
    with pytest.raises(ValueError, match="session s in .* was saved with another model"):
        SessionStore(str(tmp_path)).open("s").restore(VideoLLMMoDForConditionalGeneration(tiny_config()), small[1])


# --- events


def test_events_are_written_once_or_twice_and_in_few_files(small, tmp_path):
    """As a server keeps 100 of them, over saves that add 0 to 30; restored they are those that were kept."""
    session, saved = small[0].stream(small[1]), SessionStore(str(tmp_path)).open("s")
    events, number, given, written = [], 0, 0, 0
    for save_number in range(60):
        more = save_number * 7 % 31
        number += 10**9 * (save_number == 40)  # as after a crash
        events = [*events, *((number + at, json.dumps({"text": "\u2028\n" * at})) for at in range(1, more + 1))][-100:]
        number, given = number + more, given + more
        before = set(saved.files.names("events"))
        saved.save(session, {}, events).result()
        names = saved.files.names("events")
        content = [saved.files.read(f"events/{name}").decode() for name in names]
        written += sum(text.count("\n") for name, text in zip(names, content, strict=True) if name not in before)
        assert len(names) <= 100 / event_files.FEWEST + 2
        assert sum(text.count("\n") for text in content) <= 100 + event_files.FEWEST + 31
        assert saved.read_events() == events
        if save_number % 20 == 10:
            saved.close()
            saved = SessionStore(str(tmp_path)).open("s")
            assert saved.read_events() == events
            session = saved.restore(*small)
    assert given < written < 4 * given
    saved.save(session).result()
    assert SessionStore(str(tmp_path)).open("s", force=True).read_events() == events
    saved = SessionStore(str(tmp_path)).open("s", force=True)
    session = saved.restore(*small)
    saved.save(session, events=[]).result()
    assert saved.read_events() == [] and saved.files.names("events") == []


def test_a_long_stream_stays_a_small_folder(small, features, tmp_path):
    """A session of bounded memory that keeps 200 events: neither its files nor their bytes grow."""
    model, processor = small
    session, saved = (
        model.stream(processor, **BOUNDS["window"] | SILENT),
        SessionStore(str(tmp_path)).open("s"),
    )
    events, files, sizes = [], [], []
    for number in range(0, 60 * 30, 30):
        list(session.watch_encoded(features[number % FRAMES][None]))
        events = [
            *events,
            *((at, json.dumps({"sequence": at, "filled": "." * 200})) for at in range(number, number + 30)),
        ]
        events = events[-200:]
        saved.save(session, {}, events).result()
        found = [path for path in (tmp_path / "s").rglob("*") if path.is_file()]
        files.append(len(found))
        sizes.append(sum(path.stat().st_size for path in found))
    assert max(files[20:]) <= max(files[:20]) + 1 and max(sizes[20:]) <= 1.1 * max(sizes[:20])
    assert saved.read_events() == events


def test_sessions_saved_by_version_1_go_on(small, features, tmp_path):
    """Their events are in the notes of their manifest."""
    session, saved = small[0].stream(small[1], **BOUNDS["window"]), SessionStore(str(tmp_path)).open("s")
    save(saved, session, watch(session, features, 0, 6)).result()
    saved.close()
    path, own = tmp_path / "s" / "manifests" / "0000000001.json", saved.read_events()
    content = manifest_content(path.read_bytes(), "it")
    del content["events"]
    content["notes"] = {"sequence": own[-1][0], "events": own}
    path.write_bytes(manifest_bytes(content).replace(b'"version": 2', b'"version": 1'))
    saved = SessionStore(str(tmp_path)).open("s")
    assert saved.read_events() == own and saved.notes == {"sequence": own[-1][0]}
    session = saved.restore(*small)
    saved.save(session).result()  # with no word of events
    saved = SessionStore(str(tmp_path)).open("s", force=True)
    assert saved.read_events() == own and digest(saved.restore(*small)) == digest(session)
    assert manifest_content((tmp_path / "s" / "manifests" / "0000000002.json").read_bytes(), "it")["events"]["files"]


@pytest.mark.parametrize("damage", ["bytes", "order", "missing"])
def test_damaged_events_are_refused(small, whole, tmp_path, damage):
    copy(whole, str(tmp_path))
    (file,) = (tmp_path / "s" / "events").iterdir()
    path = tmp_path / "s" / "manifests" / "0000000001.json"
    content = manifest_content(path.read_bytes(), "it")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[::-1]) if damage == "order" else file.read_bytes()[:-1] + b" ")
    if damage == "order":
        assert len(lines) > 1
        content["events"]["files"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        path.write_bytes(manifest_bytes(content))
    elif damage == "missing":
        file.unlink()
    saved = SessionStore(str(tmp_path)).open("s")
    kind = OSError if damage == "missing" else ValueError
    with pytest.raises(kind, match="jsonl" if damage != "order" else "damaged or malicious: .* do not ascend"):
        saved.read_events()
