"""The rules that are compared with `verify`: each decides as its definition says."""

import json
import math

import pytest
import torch
from small_data import small_model

from videollm_mod.benchmarks import verify_rules
from videollm_mod.benchmarks.sight_routing import Watched
from videollm_mod.calibration.clips import run_abreast
from videollm_mod.speaking import Reply

TIMES = [0.0, 0.5, 1.0, 1.5]


class Stream:
    def frame_times(self, fps: float) -> torch.Tensor:
        return torch.tensor(TIMES)


def narrations(built, features, work, **options) -> list[float]:
    """The times of what is narrated."""
    session = built[0].stream(built[1], speak_rule="verify", max_new_tokens=4, **options)
    own = Watched(Stream(), features, [("", "")] * len(TIMES))
    return [event.time for event in run_abreast([work(session, own, False)])[0]]


def test_perplexity_is_compared_with_that_when_it_was_said():
    """Under the same logits nothing has grown; a token that was certain and is now as likely as the others has."""
    model, processor = small_model(5)
    sampler = verify_rules.PerplexitySampler(model, processor)
    logits = torch.randn(4, model.config.text_config.vocab_size, generator=torch.Generator().manual_seed(1))
    said: list[int] = []
    for row in logits[:3].clone():
        said.append(sampler(said, row))
    reply = Reply(said)
    assert float(sampler.largest_gap(reply, logits[:3])) == pytest.approx(0, abs=1e-5)
    flat = torch.zeros_like(logits[:3])
    before = logits[:3].log_softmax(-1)[range(3), said].mean()
    expected = float(before) + math.log(logits.shape[1])
    assert float(sampler.largest_gap(reply, flat)) == pytest.approx(expected, rel=1e-5) and expected > 0


def test_the_rule_by_picture_speaks_when_features_are_far_from_those_of_the_last_narration():
    built = small_model(5)
    features = torch.randn(4, *built[0].config.video_feature_shape, generator=torch.Generator().manual_seed(2))
    features[1] = features[0] + 1e-3 * features[1]
    features[3] = features[2]
    work = lambda margin: lambda *given: verify_rules.by_picture(margin, *given)  # noqa: E731
    assert narrations(built, features, work(0.1)) == [0.0, 1.0]
    assert narrations(built, features, work(3.0)) == [0.0]
    assert narrations(built, features, work(-1.0)) == TIMES


def test_the_best_margin_of_validation_streams_is_scored_on_test_streams(tmp_path, monkeypatch):
    f1 = {("gap", 1.0): 90.0, ("perplexity", 0.1): 80.0, ("picture", 0.03): 70.0}

    asked = []

    def narrate(built, streams, rule, margin, remembered) -> dict:
        asked.append((streams, rule, margin))
        return {"rule": rule, "margin": margin, "f1": f1.get((rule, margin), 0.0), "false_per_minute": 1.0}

    monkeypatch.setattr(verify_rules, "narrate", narrate)
    monkeypatch.setattr(verify_rules, "build", lambda *given: given)
    monkeypatch.setattr(verify_rules, "encode", lambda built, streams: streams)
    monkeypatch.setattr(verify_rules, "streams_of", lambda split, count: split)
    results = []
    for name in ("a", "b"):
        results.append(tmp_path / f"sight_{name}.json")
        results[-1].write_text(json.dumps({"model": name, "chosen": {"query": "?", "remembered": 1, "margin": 2.0}}))
    options = ["--models", tmp_path, "--json", tmp_path / "rules.json", "--plot", tmp_path / "rules.png"]
    verify_rules.main([*map(str, [*results, *options])])
    found = json.loads((tmp_path / "rules.json").read_text())
    assert [(row["rule"], row["margin"]) for row in found["models"][0]["test"]] == [*f1]
    assert [model["model"] for model in found["models"]] == ["a", "b"]
    assert [pair for *pair, _ in asked if pair[0] == "test"] == 2 * [["test", rule] for rule in verify_rules.MARGINS]
    assert (tmp_path / "rules.png").read_bytes().startswith(b"\x89PNG")
