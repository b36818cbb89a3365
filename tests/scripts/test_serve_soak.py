"""Each part of the soak of a server (`benchmarks/serve_soak.py`), played once or a few times."""

import asyncio
import random

import pytest
from running_servers import serving
from waiting import PATIENCE, until

from videollm_mod.benchmarks import serve_soak
from videollm_mod.benchmarks.serve_soak_parts import PARTS, Crowd, Script


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    limits = {"message_bytes": 2**20, "idle_seconds": PATIENCE}
    with serving(checkpoint, serve_soak.KEYS, limits, saved=tmp_path_factory.mktemp("saved")) as running:
        yield running


@pytest.fixture(scope="module")
def script(server):
    crowd, script = Crowd(server.url, serve_soak.KEYS), Script(40)
    asyncio.run(crowd.learn(script))
    assert len(script.expected) > len(script.frames)
    return script


@pytest.mark.parametrize("part", PARTS)
def test_a_part_finds_nothing_wrong_and_leaves_nothing_behind(server, script, part, monkeypatch):
    if part == "linger":  # nobody else needs an answer meanwhile
        monkeypatch.setattr("videollm_mod.serving.server.REQUEST_SECONDS", 0.1)
        monkeypatch.setattr("videollm_mod.serving.body_limit.PART_SECONDS", 0.1)
    crowd = Crowd(server.url, serve_soak.KEYS, pace=0.05)
    crowd.scripts = [script]

    async def play() -> None:
        await asyncio.gather(*(crowd.play(part, random.Random(seed)) for seed in range(2)))

    asyncio.run(asyncio.wait_for(play(), PATIENCE))
    assert not crowd.problems and crowd.done[part] == 2
    assert crowd.exact == (2 if part in ("behave", "come_back", "over_http") else 0)
    registry = server.registry
    until(lambda: not registry.sessions and not registry.engine.streams, "the end of all sessions")


def test_a_session_that_gets_other_events_is_found(server, script):
    crowd = Crowd(server.url, serve_soak.KEYS)
    other = Script(40)
    other.expected = [*script.expected[:-1], ("completed", "answer", "99.0")]
    crowd.scripts = [other]
    asyncio.run(asyncio.wait_for(crowd.play("behave", random.Random(0)), PATIENCE))
    assert list(crowd.problems) == [("behave", "the events are not those that the session gets alone")]


def test_growth_and_lines_of_the_log_are_found():
    flat, grown = ([{"rss_bytes": 100 + step * index} for index in range(30)] for step in (0, 10))
    assert serve_soak.growth(flat, "rss_bytes") == 1.0 and serve_soak.growth(grown, "rss_bytes") > serve_soak.GROWTH
    log = "note: sessions are not saved\nWARNING:  Invalid HTTP request received.\nERROR:    Exception in ASGI\n"
    assert serve_soak.unexpected(log) == ["ERROR:    Exception in ASGI"]
