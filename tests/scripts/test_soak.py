"""A short run of the soak test (`benchmarks/soak.py`)."""

from videollm_mod.benchmarks import soak
from videollm_mod.benchmarks.long_streams import nano


def test_soak_in_one_or_two_parts(tmp_path, monkeypatch):
    """All kinds of events occur, and an interrupted and resumed run ends in the same state."""
    monkeypatch.setattr(soak, "CHANCES", {**dict.fromkeys(soak.CHANCES, 0.4), "one_by_one": 0.15})
    parts = soak.Soak(*nano(), tmp_path / "parts")
    parts.run(90, row_every=30)
    going_on = soak.Soak(parts.model, parts.processor, tmp_path / "parts").run(180, row_every=30)
    whole = soak.Soak(parts.model, parts.processor, tmp_path / "whole").run(180, row_every=30)
    for name in ("step", "frames", "time", "narrations", "answers", "done", "checked_events"):
        assert going_on[name] == whole[name]
    assert whole["frames"] == 180 and all(whole["done"].values()) and whole["narrations"] and whole["answers"]
