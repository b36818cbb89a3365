"""The measurement of killed servers (`benchmarks/serve_resume.py`), for a few seconds."""

import asyncio

from fork_server import ForkedProcess, command
from waiting import PATIENCE

from videollm_mod.benchmarks import serve_resume


class Forked(serve_resume.Process):
    def __init__(self, store: str, arguments: list[str]):
        self.process = ForkedProcess(command("serve", "--port", "0", "--store", store, *arguments))


def test_servers_that_are_killed_lose_and_double_nothing(monkeypatch):
    """Clients of both kinds, at random moments, each time continued by the other server."""
    monkeypatch.setattr(serve_resume, "Process", Forked)
    measured = serve_resume.measure(2, 2, 8.0, 11, ["--save-seconds", "0.25"], 1.0)
    found = asyncio.run(asyncio.wait_for(measured, PATIENCE))
    assert len(found["resume_s"]) == 4
    for one in found["clients"]:
        assert one["events"] > 20 and one["lost"] == one["doubled"] == one["differing"] == []
