"""The run against the clock: how many steps fit, and scores of a checkpoint as the sessions' own."""

import json
from argparse import Namespace

import pytest
import yaml
from fresh import ROOT

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.benchmarks.nano_run import LOGGED, Run, Training
from videollm_mod.benchmarks.nano_scores import narrations, question, right
from videollm_mod.data.world import world_stream

STEPS = 1000


class Logged:
    """A training that made steps at a constant speed, and one slow one at its start."""

    def __init__(self, run: Run, steps: int, seconds_a_step: float):
        self.losses = [run.started + 30 + step * seconds_a_step for step in range(LOGGED, steps + 1, LOGGED)]
        self.losses[0] += 7

    seconds_a_step = Training.seconds_a_step


@pytest.fixture
def run(tmp_path, monkeypatch):
    config = yaml.safe_load((ROOT / "training" / "configs" / "nano_levels.yaml").read_text())
    config["output_dir"] = str(tmp_path / "nano")
    config["stream_stage"] |= {"max_steps": STEPS, "keep_ratio_warmup_steps": 400, "warmup_steps": 100}
    path = tmp_path / "nano.yaml"
    path.write_text(yaml.safe_dump(config))
    run = Run(
        Namespace(config=path, output=tmp_path / "out", seconds=500, scoring_seconds=70, command="", processes=1)
    )
    (tmp_path / "nano" / "vision").mkdir(parents=True)
    (tmp_path / "nano" / "vision" / "tower.safetensors").touch()
    run.checkpoint, run.begun = 0, "stream"
    monkeypatch.setattr(Run, "seconds", property(lambda self: self.now))
    return run


@pytest.mark.parametrize(("speed", "expected"), [(0.3, None), (0.4, None), (0.5, "fewer"), (0.2, "more")])
def test_a_stage_begins_again_only_where_its_steps_do_not_fit(run, speed, expected):
    """430 seconds are for training, of which 30 were the start; beginning again costs another start."""
    training = Logged(run, 200, speed)
    run.now = 30 + 200 * speed
    steps = run.steps_that_fit(training)
    if expected is None:
        assert steps is None
        return
    assert steps == pytest.approx(0.95 * (430 - run.now - 35) / speed, abs=1)
    assert (steps > STEPS) == (expected == "more")
    run.replan(steps)
    stage = run.config["stream_stage"]
    assert stage["max_steps"] == pytest.approx(steps, abs=1)
    assert stage["keep_ratio_warmup_steps"] == pytest.approx(0.4 * steps, abs=1)
    assert stage["warmup_steps"] == pytest.approx(0.1 * steps, abs=1)


def test_few_losses_tell_nothing(run):
    run.now = 100
    assert run.steps_that_fit(Logged(run, 160, 5.0)) is None


def test_what_was_saved_is_kept(run):
    """Too slow in the middle: it goes on from the last checkpoint, with fewer steps altogether."""
    checkpoint = run.folder / "stream" / "checkpoint-500"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({}))
    run.now = 30 + 600 * 0.5
    steps = run.steps_that_fit(Logged(run, 600, 0.5))
    assert steps == 500 + int(0.95 * (430 - run.now - 35) / 0.5) < STEPS
    run.now = 30 + 600 * 0.32
    assert run.steps_that_fit(Logged(run, 600, 0.32)) is None
    run.now = 230  # 200 seconds left for 230 seconds' steps: late, but not worth what would be lost
    assert run.steps_that_fit(Logged(run, 600, 0.575)) is None


def test_a_checkpoint_that_knows_the_world_scores_so():
    """That streams narrated side by side say what sessions say is for `test_lockstep.py` to show."""
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype="float32").eval()
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    shortest = min(range(100), key=lambda seed: (world_stream(seed).seconds, len(world_stream(seed).narrations)))
    found = narrations(model, processor, "basic", range(shortest, shortest + 1))
    assert found["narrations"] == len(world_stream(shortest).narrations) > 0
    assert found["exact"] > 50 and found["false"] < 50
    examples = [question(processor, "basic", seed) for seed in range(50, 54)]
    assert right(model, processor, examples) >= 50
    wrong = [([*messages[:-1], {"role": "assistant", "content": "No."}], frames) for messages, frames in examples]
    assert right(model, processor, wrong) == 0
