"""A short run of `benchmarks/calibrated_routing.py` on a small dense model."""

import json
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
from small_data import small_model

from videollm_mod.benchmarks import calibrated_routing as benchmark
from videollm_mod.calibration.measuring import CONTROLS, LAYER_COUNTS, Measured, Routing


def test_as_dense_counts_what_both_say():
    dense = [{(0.0, "narration", "A"), (1.0, "answer", "B")}, {(0.0, "answer", "C"), (2.0, "narration", "D")}]
    said = [{(0.0, "narration", "A"), (1.0, "answer", "X")}, {(0.5, "answer", "C"), (2.0, "narration", "D")}]
    assert benchmark.as_dense(dense, dense) == 100 and benchmark.as_dense(dense, said) == 50


def test_a_control_takes_no_more_operations_than_what_was_chosen():
    rows = [
        Measured("random", Routing((1,), r, "random"), d, o)
        for r, d, o in [(0.1, 3, 0.5), (0.2, 2, 0.6), (0.4, 1, 0.7)]
    ]
    chosen = Measured("change", Routing((1,), 0.2, "change"), 0, 0.6)
    assert benchmark.nearest_control(rows, "random", chosen) is rows[1]
    assert benchmark.nearest_control(rows, "random layers", chosen) is None


@pytest.mark.parametrize("exact", [0.0, 101.0])
def test_the_figure_is_the_least_share_at_which_answers_stay_exact(exact, tmp_path, monkeypatch):
    model, processor = small_model(5, vision_routing="full")

    def read_stream(model, processor, seed, args) -> benchmark.Stream:
        frames = np.random.default_rng(seed).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        messages = [{"role": "stream", "num_frames": 3}, {"role": "user", "content": "What is there?"}]
        messages.append({"role": "assistant", "content": "A cat."})
        features = model.stream(processor).encode(frames)
        return benchmark.Stream(features, np.arange(3) / benchmark.FPS, messages, [(1.0, "What is there?")])

    monkeypatch.setattr(benchmark, "read_stream", read_stream)
    monkeypatch.setattr(benchmark, "LONGEST", 4)  # a random model does not end its replies
    monkeypatch.setattr(benchmark, "read_clip", partial(benchmark.read_clip, max_new_tokens=4))
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark, "EXACT", exact)
    monkeypatch.setattr(benchmark, "LIMITS", (1e-9, 100.0))
    monkeypatch.setattr("videollm_mod.calibration.measuring.LAYER_COUNTS", 1)
    monkeypatch.setattr("videollm_mod.calibration.measuring.KEEP_RATIOS", (0.2,))
    args = Namespace(level="basic", first_seed=5, calibrate=1, streams=1, questions=1, name="small")
    result = json.loads(json.dumps(benchmark.measure(model, processor, args)))
    (point,) = result["points"]  # no routing is within the first limit
    assert LAYER_COUNTS > 1 and point["limit"] == 100.0 and set(point) == {"limit", "chosen", *CONTROLS}
    assert all(0 <= point[name]["as_dense"] <= 100 for name in ("chosen", *CONTROLS))
    assert result["calibrated_operations_ratio"] == (point["chosen"]["operations"] if exact == 0 else 1.0)
    assert (result["best"] == point) == (exact == 0)
    assert (tmp_path / "calibrated_routing_small.png").read_bytes().startswith(b"\x89PNG")
