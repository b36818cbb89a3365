"""Leases: one owner of a session at a time, among real processes too."""

import multiprocessing
import socket
import threading
from collections import Counter
from functools import partial

import pytest

from videollm_mod.serving.lease import Lease, SessionHeld, SessionLost, current_claim, generations, has_died
from videollm_mod.serving.shared_files import SharedFolder
from videollm_mod.serving.store import SavedSession, SessionStore

LONG = 3600  # seconds, in which a lease expires on no machine, however busy


@pytest.fixture(params=["folder", "memory"])
def files(request, tmp_path):
    """The files of a session, in a local folder or in the memory of this process."""
    return SharedFolder(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path}").folder("s")


def test_one_owner_at_a_time(files):
    assert current_claim(files) is None
    first = Lease.acquire(files, "first", LONG)
    with pytest.raises(SessionHeld, match=r"held by first for another \d+\.\d seconds"):
        Lease.acquire(files, "second", LONG)
    first.check()
    first.release()
    second = Lease.acquire(files, "second", LONG)
    assert (first.generation, second.generation, current_claim(files).owner) == (1, 2, "second")
    for call in (first.check, first.renew):
        with pytest.raises(SessionLost, match="this process has generation 1, the owner 2"):
            call()
    first.release()  # changes nothing for the owner
    second.renew()
    assert current_claim(files).seconds_left > LONG / 2


def test_expired_or_forced_leases_are_taken_over(files):
    late = Lease.acquire(files, "late", 0.0)
    taker = Lease.acquire(files, "taker", LONG)
    with pytest.raises(SessionLost):
        late.renew()
    by_force = Lease.acquire(files, "by force", LONG, force=True)
    with pytest.raises(SessionLost):
        taker.check()
    by_force.remove_older()
    assert generations(files) == [3]
    by_force.renew()


def test_renewing_prevents_expiry(files):
    lease = Lease.acquire(files, "owner", 0.0)
    lease.seconds = LONG
    lease.renew()
    with pytest.raises(SessionHeld):
        Lease.acquire(files, "other", LONG)


def test_a_former_owner_cannot_take_an_old_generation(files, monkeypatch):
    """It looked at the leases before two others took over, and the last of them removed the older files."""
    with monkeypatch.context() as patched:
        patched.setattr("videollm_mod.serving.lease.current_claim", lambda files: None)
        Lease.acquire(files, "one", 0.0).release()
    two = Lease.acquire(files, "two", LONG)
    two.remove_older()
    monkeypatch.setattr("videollm_mod.serving.lease.current_claim", lambda files: None)
    with pytest.raises(SessionHeld, match="at the same moment"):
        Lease.acquire(files, "slow", LONG)
    two.check()


def test_unreadable_and_deleted_leases(files):
    files.write("leases/0000000004", b"\xff{")
    lease = Lease.acquire(files, "owner", LONG)
    assert lease.generation == 5
    files.remove("")
    with pytest.raises(SessionLost, match="has been deleted"):
        lease.check()


@pytest.mark.parametrize("owner", ["", "first", "a:b", f"{socket.gethostname()}:1:0", "elsewhere:4194304:0"])
def test_only_who_is_known_to_be_dead_is_called_dead(owner):
    assert not has_died(owner)


def test_the_dead_of_this_machine_are_known():
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    assert has_died(f"{socket.gethostname()}:{process.pid}:0")


@pytest.mark.parametrize("give_back", [SavedSession.close, SavedSession.delete])
def test_a_session_that_was_given_back_is_not_renewed(tmp_path, give_back):
    """While the leases of all sessions are being renewed, before and in the middle of its own turn."""
    store = SessionStore(str(tmp_path))
    before, midway = store.open("before"), store.open("midway")
    giving, check = threading.Thread(target=give_back, args=[midway]), midway.lease.check

    def check_and_pause() -> None:
        midway.lease.check = check
        check()
        give_back(before)
        giving.start()
        giving.join(0.2)  # which is time to do it

    store.open_sessions = {"midway": midway, "before": before}
    midway.lease.check = check_and_pause
    assert store.renew() == []
    giving.join()
    other = SessionStore(str(tmp_path))
    assert [other.open(name).is_new for name in ("before", "midway")] == [True, True]


def race(url: str, name: str, rounds: int, barrier, won) -> None:
    for number in range(rounds):
        barrier.wait()
        try:
            won.put((number, Lease.acquire(SharedFolder(url).folder(str(number)), name, LONG).generation))
        except SessionHeld:
            continue


def test_of_many_processes_one_gets_the_session(tmp_path):
    context, rounds, count = multiprocessing.get_context("fork"), 25, 4
    barrier, won = context.Barrier(count), context.SimpleQueue()
    runs = [partial(race, str(tmp_path), f"process {number}", rounds, barrier, won) for number in range(count)]
    processes = [context.Process(target=run) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert Counter(iter(lambda: None if won.empty() else won.get(), None)) == Counter((n, 1) for n in range(rounds))
    assert [SharedFolder(str(tmp_path)).names(f"{n}/leases") for n in range(rounds)] == [["0000000001"]] * rounds
