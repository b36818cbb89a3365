"""Events are numbered; readers come back after any of them, and one that falls behind is told."""

import asyncio
import itertools

import pytest

from videollm_mod.serving import event_log
from videollm_mod.serving.event_log import EventLog, FellBehind


def filled(count: int, keep: int = 4) -> EventLog:
    log = EventLog("x", keep)
    for index in range(count):
        log.add({"type": "t", "index": index})
    return log


async def read(log: EventLog, after: int) -> list[int]:
    return [number async for number, _ in log.follow(after)]


def test_readers_get_what_comes_after_the_event_that_they_have_seen():
    async def run():
        log = filled(3)
        readers = [asyncio.create_task(read(log, after)) for after in (0, 2, 3)]
        await asyncio.sleep(0)
        log.add({"type": "t"})
        log.close()
        return [await reader for reader in readers]

    assert asyncio.run(run()) == [[1, 2, 3, 4], [3, 4], [4]]


def test_a_reader_that_comes_too_late_is_told_what_is_gone():
    log = filled(6)
    assert log.forgotten == 2 and [number for number, _ in log.after(2)] == [3, 4, 5, 6]
    with pytest.raises(FellBehind, match="events 2 to 2 are not kept anymore"):
        log.after(1)


def test_a_reader_that_is_too_slow_is_told_while_it_is_busy():
    async def run():
        log, behind = filled(2), asyncio.Event()
        following = log.follow(0, behind)
        assert (await anext(following))[0] == 1
        for _ in range(3):
            log.add({"type": "t"})
        assert not behind.is_set()  # events 2 to 5 are kept
        log.add({"type": "t"})
        assert behind.is_set()
        with pytest.raises(FellBehind):
            await anext(following)

    asyncio.run(run())


def test_a_reader_that_catches_up_lets_others_in_between():
    """Otherwise nothing tells it that its client has gone, and it writes to a connection that is lost."""

    async def run() -> list[int]:
        log, turns, seen = filled(4), 0, []

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(take_turns())
        log.close()
        async for _ in log.follow(0):
            seen.append(turns)
        other.cancel()
        return seen

    seen = asyncio.run(run())
    assert len(seen) == 4 and all(later > before for before, later in itertools.pairwise(seen))


def test_large_events_are_kept_for_less_long(monkeypatch):
    """Also by a log that is restored, and the last one in any case."""
    monkeypatch.setattr(event_log, "MAX_BYTES", 1000)
    log = filled(0, keep=100)
    for size in (300, 300, 300, 10, 2000):
        log.add({"type": "x" * size})
        last = [number for number, _ in log.kept]
        assert last[-1] == log.last and (sum(len(text) for _, text in log.kept) <= 1000 or len(last) == 1)
    assert last == [5] and log.forgotten == 4
    log.add({"type": "t"})
    assert [number for number, _ in log.kept] == [6]
    old = filled(40, keep=100)
    assert EventLog("x", 100, old.kept, old.last).kept == old.kept == list(old.kept)[-len(old.kept) :]
    assert 1 < len(old.kept) < 40


def test_a_restored_log_goes_on_with_its_numbers():
    old = filled(6)
    log = EventLog("x", 4, old.kept, old.last)
    event = log.add({"type": "t"})
    assert (event["sequence"], event["event_id"]) == (7, "event_x_7")
    assert log.forgotten == 3
