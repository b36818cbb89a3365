"""The README's Python runs as it stands, one block after the other, in a folder with a video and the repository."""

import contextlib
import io
import re

import pytest
from fresh import ROOT

from videollm_mod.data.world_clip import write_clip


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    write_clip(tmp_path / "video.mp4", seed=3)
    monkeypatch.chdir(tmp_path)
    names, printed = {}, io.StringIO()
    assert len(blocks()) >= 2
    with contextlib.redirect_stdout(printed):
        for block in blocks():
            exec(block.replace('repo = "."', f"repo = {str(ROOT)!r}"), names)
    from videollm_mod.data.world import world_stream

    for time, text in world_stream(4242).narrations:
        assert f"{time:5.1f} s  {text}" in printed.getvalue()


@pytest.mark.parametrize("number", ["99.7 % of 2,719", "0.3 %", "0.0 s", "94.8 % of 500"])
def test_numbers_come_from_the_committed_result(number):
    import json

    result = json.loads((ROOT / "benchmarks" / "results" / "world_basic.json").read_text())
    summary = result["summary"]
    shown = [
        f"{summary['exact']:.1f} % of {summary['narrations']:,}",
        f"{summary['false']:.1f} %",
        f"{summary['time_diff']:.1f} s",
        f"{summary['right']:.1f} % of {summary['questions']}",
    ]
    assert number in shown
    assert number in (ROOT / "README.md").read_text(encoding="utf-8")
