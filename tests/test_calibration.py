"""Calibration: what is measured equals what sessions do, and what is written is what was measured."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_data import small_model, write_video
from torch.utils.flop_counter import FlopCounterMode

from videollm_mod.calibration import calibrate as command
from videollm_mod.calibration.clips import messages_of, read_clip, watch
from videollm_mod.calibration.following import Changes, Follower, Leader
from videollm_mod.calibration.measuring import (
    CONTROLS,
    FREE_SELECTIONS,
    Divergence,
    Measured,
    Routing,
    best,
    candidates,
    choose,
    exact_answers,
    log_probabilities,
    routed,
)
from videollm_mod.calibration.report import table
from videollm_mod.commands import cli
from videollm_mod.evaluation.operations import forward_operations
from videollm_mod.loading.checkpoint import load_checkpoint
from videollm_mod.session_state import OPTIONS as SESSION_OPTIONS
from videollm_mod.speaking import StreamEvent

QUESTION = "How many objects are there?"
OPTIONS = {"speak_threshold": 0.9, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def checkpoint():
    return small_model(5, vision_routing="full")


@pytest.fixture(scope="module")
def clips(checkpoint):
    model, processor = checkpoint
    found = []
    for seed, count in enumerate((5, 7)):
        frames = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        features = model.stream(processor).encode(frames)
        times = [index / 2 for index in range(count)]
        questions = [(1.0, QUESTION), (times[-1], "And now?")]
        found.append(read_clip(model, processor, f"clip {seed}", features, times, questions, **OPTIONS))
    return found


def test_messages_tell_what_was_shown_asked_and_said():
    events = [
        StreamEvent(0.5, "narration", "A"),
        StreamEvent(1.0, "answer", "B", "Q"),
        StreamEvent(1.0, "narration", ""),
    ]
    assert messages_of(events, [0.0, 0.5, 1.0, 1.5]) == [
        {"role": "stream", "num_frames": 2},
        {"role": "assistant", "content": "A"},
        {"role": "stream", "num_frames": 1},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "B"},
        {"role": "stream", "num_frames": 1},
    ]


def test_a_clip_holds_what_a_session_predicts(checkpoint, clips):
    """Up to the first reply, its conversation in one pass has the probabilities of silence that a session found."""
    model, processor = checkpoint
    for clip in clips:
        assert {event.kind for event in clip.events} == {"answer", "narration"}
        assert [event.query for event in clip.events if event.kind == "answer"] == [QUESTION, "And now?"]
    features, times = clips[1].features, clips[1].times
    clip = read_clip(model, processor, "clip", features, times, [(times[-1], QUESTION)], speak_threshold=0.0)
    decisions = clip.ids[0, clip.read_at] == processor.video_token_id
    found = log_probabilities(model, clip).exp()[decisions, processor.frame_separator_token_id].tolist()
    session = model.stream(processor, speak_threshold=0.0)
    expected = [frame.silence_probability for frame in session.watch_encoded(features, times)]
    assert found == pytest.approx(expected[:-1], rel=1e-3)  # after the last frame comes the question
    assert not decisions.all()


def test_divergence_is_that_of_the_distributions(checkpoint, clips):
    """And none where every token is kept."""
    model, _ = checkpoint
    divergence = Divergence(model, clips)
    assert divergence(Routing((1, 3), 1.0, "change")) < 1e-6
    routing, total = Routing((1, 2), 0.4, "difference"), 0.0
    for clip in clips:
        with torch.no_grad():
            inputs = {"input_ids": clip.ids, "video_features": clip.features}
            dense = model(**inputs).logits[0, clip.read_at].double().softmax(-1)
            with routed(model, routing):
                other = model(**inputs).logits[0, clip.read_at].double().softmax(-1)
        total += float(torch.nn.functional.kl_div(other.log(), dense, reduction="sum"))
    assert divergence(routing) == pytest.approx(total / divergence.predictions, rel=1e-3) and total > 1e-3
    assert model.config.text_config.vision_routing == "full" and model.config.text_config.mod_selection == "learned"


def test_a_layer_that_does_nothing_to_vision_tokens_comes_first(clips):
    model, _ = small_model(5, vision_routing="full")
    layer = model.model.language_model.layers[2]
    torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    ranked = Divergence(model, clips).ranked_layers()
    assert next(iter(ranked)) == 2 and ranked[2] < 1e-6 < min(ranked[layer] for layer in (0, 1, 3))


@torch.no_grad()
def test_a_keep_ratio_of_0_skips_a_layer_as_early_exit_does(checkpoint, clips):
    """In the last layer, of a stream without separators, which early exit skips too."""
    model, processor = checkpoint
    ids = processor.encode_conversation([{"role": "stream", "num_frames": 1}, {"role": "user", "content": QUESTION}])
    inputs = {"input_ids": torch.tensor([ids.input_ids]), "video_features": clips[0].features[:1]}
    with routed(model, Routing((3,), 1.0, "uniform")):
        found = model(**inputs, keep_ratio=0).logits
    text = model.config.text_config
    text.vision_routing, text.early_exit_layer = "early_exit", 3
    try:
        torch.testing.assert_close(found, model(**inputs).logits)
    finally:
        text.vision_routing, text.early_exit_layer = "full", 2


def test_counted_operations_are_the_executed_ones(checkpoint, clips):
    model, _ = checkpoint
    text, clip, routing = model.config.text_config, clips[0], Routing((1, 3), 0.4, "uniform")

    def products(routing) -> float:
        with FlopCounterMode(display=False) as counter, routed(model, routing), torch.no_grad():
            model.model.language_model(
                inputs_embeds=torch.zeros(*clip.ids.shape, text.hidden_size), layout=model.model.lay_out(clip.ids)
            )
        run = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
        return run["aten.mm"] + run.get("aten.addmm", 0)

    length, entered = clip.ids.shape[1], clip.ids.shape[1] - 3 * len(clip.features)
    # the counter sees attention on some devices only, and rotary angles as a batched product in some releases
    attention = 2 * text.hidden_size * (2 * length**2 + 2 * entered**2)
    assert forward_operations(text, length, entered, 2) - attention == products(routing)
    dense = forward_operations(text, length, length, 0)
    assert dense - 2 * text.hidden_size * 4 * length**2 == products(None)
    share = Divergence(model, [clip]).operations(routing)
    assert share == pytest.approx(forward_operations(text, length, entered, 2) / dense)


def test_the_same_number_of_layers_is_tried_by_each_way_of_choosing():
    tried = candidates([3, 0, 1, 2, 4], num_frame_tokens=5)
    by_name = {name: [r for own, r in tried if own == name] for name in (*FREE_SELECTIONS, *CONTROLS)}
    shapes = [[(len(r.layers), r.keep_ratio) for r in own] for own in by_name.values()]
    assert all(own == shapes[0] for own in shapes) and len(shapes[0]) == 4 * 3
    assert not any(0 in r.layers for _, r in tried)
    assert [r.layers for r in by_name["change"] if r.keep_ratio == 0.1] == [(3,), (1, 3), (1, 2, 3), (1, 2, 3, 4)]
    assert {r.selection for r in by_name["random layers"]} == {"uniform"}
    assert candidates([0], 5) == candidates([1, 0], 1) == []


def test_the_cheapest_or_the_nearest_within_the_budget_is_chosen():
    rows = [
        Measured(name, Routing((index,), 0.2, "uniform"), divergence, operations)
        for index, (name, divergence, operations) in enumerate(
            [("change", 0.3, 0.5), ("uniform", 0.1, 0.7), ("difference", 0.2, 0.7), ("random", 0.0, 0.1)]
        )
    ]
    assert choose(rows, "divergence", 0.2) is rows[1] and choose(rows, "divergence", 0.5) is rows[0]
    assert choose(rows, "operations", 0.8) is rows[1] and choose(rows, "operations", 0.6) is rows[0]
    assert best(rows) == [rows[1], rows[0]]  # the one by "difference" has the operations of a nearer one
    with pytest.raises(ValueError, match="no routing has a divergence of at most 0.05 nats, the least is 0.1"):
        choose(rows, "divergence", 0.05)
    with pytest.raises(ValueError, match="no routing takes at most 0.4 of the dense operations, the least is 0.50"):
        choose(rows, "operations", 0.4)
    with pytest.raises(ValueError, match="nothing to route"):
        choose(rows[3:], "divergence", 1.0)
    rows[0] = replace(rows[0], changes=Changes(replies=10, other_replies=2))
    rows[1] = replace(rows[1], changes=Changes(replies=8, other_replies=1, added=2))
    assert choose(rows, "changed", 0.3) is rows[0] and choose(rows, "changed", 0.25) is rows[0]
    with pytest.raises(ValueError, match="no routing changes at most 0.1 of the replies, the least is 0.2"):
        choose(rows, "changed", 0.1)


def test_the_table_reaches_from_most_to_least_operations():
    costs = {"change": (0.1, 0.9), "uniform": (0.25, 0.5), "random": (0.2, 0.7)}
    rows = [Measured(name, Routing((1,), 0.2, "uniform"), *cost) for name, cost in costs.items()]
    head, *lines = table(rows, columns=3).splitlines()
    assert head.split()[3:] == ["at", "90.0%", "at", "70.0%", "at", "50.0%"]
    cells = {line[:26].strip(): line[26:].split() for line in lines}
    assert cells["change"] == ["0.1000", "-", "-"] and cells["uniform"] == ["0.2500"] * 3
    assert cells["random"] == ["0.2000", "0.2000", "-"] and cells["difference"] == ["-"] * 3


def test_exact_answers_are_those_of_the_dense_model(checkpoint, clips):
    model, processor = checkpoint
    assert all(exact_answers(model, processor, clips, Routing((1,), 1.0, "change"), **OPTIONS))
    routing = Routing((1, 2, 3), 0.2, "uniform")
    with routed(model, routing):
        said = [watch(model.stream(processor, **OPTIONS), c.features, c.times, c.questions) for c in clips]
    said = [{(event.time, event.kind, event.text) for event in events} for events in said]
    expected = [(e.time, e.kind, e.text) in own for clip, own in zip(clips, said, strict=True) for e in clip.events]
    assert exact_answers(model, processor, clips, routing, **OPTIONS) == expected and not all(expected)


@pytest.fixture(params=["trained", "verify"])
def ruled(request, checkpoint, clips):
    """A clip whose leader speaks by one of the rules, and remembers three frames."""
    own, options = clips[1], OPTIONS | {"speak_rule": request.param, "max_cached_frames": 3}
    clip = read_clip(*checkpoint, "clip", own.features, own.times, own.questions, **options)
    options["speak_threshold"] = sorted(clip.lead.silence)[-2]  # so that it does not speak after every frame
    clip = read_clip(*checkpoint, "clip", own.features, own.times, own.questions, **options)
    assert 0 < sum(clip.lead.spoke) < len(own.times)
    return clip


def follow(clip) -> tuple[Follower, list[StreamEvent]]:
    follower = Follower(clip.lead)
    return follower, watch(follower, clip.features, clip.times, clip.questions)


def essence(events: list[StreamEvent]) -> list[tuple]:
    return [(event.time, event.kind, event.text) for event in events]


def test_a_dense_follower_changes_nothing(ruled):
    follower, events = follow(ruled)
    assert essence(events) == essence(ruled.events)
    assert follower.silence == pytest.approx(ruled.lead.silence, abs=1e-5)
    found = follower.changes(events)
    assert (found.spoken, found.other_words, found.other_replies, found.added, found.share) == (0, 0, 0, 0, 0)
    assert found.frames == len(ruled.times) and found.replies == len(ruled.events)
    assert found.words == len(found.divergences) == sum(map(len, ruled.lead.said.tokens)) > found.replies
    assert max(found.divergences) < 1e-5


def test_a_follower_says_what_its_leader_said_and_notes_what_it_would_do(checkpoint, ruled):
    """Up to the first change that is what the routed model does by itself."""
    model, processor = checkpoint
    with routed(model, Routing((1, 2, 3), 0.2, "uniform")):
        follower, events = follow(ruled)
        alone = Leader(model, processor, **{name: getattr(ruled.lead, name) for name in SESSION_OPTIONS})
        said = watch(alone, ruled.features, ruled.times, ruled.questions)
    assert essence(events) == essence(ruled.events)
    found = follower.changes(events)
    same = sum(own == other for own, other in zip(essence(said), essence(ruled.events), strict=False))
    assert same < len(events) and found.other_replies + found.added > 0
    decisions = zip(ruled.times, alone.spoke, ruled.lead.spoke, strict=True)
    changed = [time for time, own, other in decisions if own != other]
    told = [e.time for e, other in zip(events, said, strict=False) if essence([e]) != essence([other])]
    until = sum(time <= min(changed + told) for time in ruled.times)
    assert follower.silence[:until] == pytest.approx(alone.silence[:until], rel=1e-3)
    mine, theirs = follower.spoke, ruled.lead.spoke
    assert found.spoken == sum(own != other for own, other in zip(mine, theirs, strict=True))
    assert found.added == sum(own and not other for own, other in zip(mine, theirs, strict=True))
    assert found.other_words == sum(map(sum, follower.words.others)) and max(found.divergences) > 1e-3
    missed = [own for own, other in zip(mine, theirs, strict=True) if other]
    narrated = [others for e, others in zip(events, follower.words.others, strict=True) if e.kind == "narration"]
    answers = [others for e, others in zip(events, follower.words.others, strict=True) if e.kind == "answer"]
    changed = sum(not own or any(others) for own, others in zip(missed, narrated, strict=True))
    assert found.other_replies == changed + sum(map(any, answers))
    assert found.share == (found.other_replies + found.added) / (len(events) + found.added)


@pytest.fixture
def folder(checkpoint, tmp_path):
    for part in checkpoint:
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shallow(tmp_path):
    """The folder of a model of two layers, for which few routings are tried."""
    for part in small_model(5, vision_routing="full", num_hidden_layers=2):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    base = tmp_path_factory.mktemp("videos")
    return [str(write_video(base / f"{seed}.mp4", 8, fps=2, seed=seed)) for seed in range(2)]


def run(folder, *arguments) -> int:
    return cli.main(["calibrate", "--model", str(folder), "--device", "cpu", *map(str, arguments)])


def test_the_command_writes_what_it_has_measured(folder, videos, tmp_path, capsys):
    before = json.loads((folder / "config.json").read_text())
    report, plot = tmp_path / "report.json", tmp_path / "plot.png"
    options = [
        "--operations",
        "0.97",
        "--question",
        QUESTION,
        "--threshold",
        "0",
        "--frames",
        "6",
        "--json",
        report,
        "--plot",
        plot,
    ]
    assert run(folder, *videos, *options) == 0
    out, found = capsys.readouterr().out, json.loads(report.read_text())
    chosen, config = found["chosen"], json.loads((folder / "config.json").read_text())
    routing = {"vision_routing": "mod", "mod_gate": "none", "mod_force_keep_last": False}
    routing |= {"mod_layers": chosen["layers"], "mod_keep_ratio": chosen["keep_ratio"]}
    routing["mod_selection"] = chosen["selection"]
    assert config == before | {"text_config": before["text_config"] | routing}
    assert chosen["operations"] <= 0.97 and chosen in found["rows"]
    assert found["frames"] == 12 and all(len(said) for said in found["said"])
    assert {row["name"] for row in found["rows"]} == {*FREE_SELECTIONS, *CONTROLS}
    assert sorted(row["layer"] for row in found["layers"]) == [0, 1, 2, 3]
    assert f"divergence from it: {chosen['divergence']:.4f} nats" in out and str(folder / "config.json") in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    model, processor = load_checkpoint(folder, device="cpu")
    frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    kept = next(model.stream(processor).watch(frames)).kept
    assert [index for index, tokens in enumerate(kept) if tokens is not None] == chosen["layers"]


def test_a_copy_leaves_the_model_as_it_was(shallow, videos, tmp_path):
    before = (shallow / "config.json").read_bytes()
    options = ["--operations", "0.98", "--threshold", "0", "--question", QUESTION, "--frames", "3"]
    assert run(shallow, videos[0], *options, "--output", tmp_path / "copy") == 0
    assert (shallow / "config.json").read_bytes() == before
    copied = tmp_path / "copy"
    assert json.loads((copied / "config.json").read_text())["text_config"]["vision_routing"] == "mod"
    assert {file.name for file in copied.iterdir()} == {file.name for file in shallow.iterdir()}
    load_checkpoint(copied, device="cpu")


def test_a_budget_that_is_out_of_reach_changes_nothing_and_leaves_a_report(shallow, videos, tmp_path, capsys):
    before = (shallow / "config.json").read_bytes()
    report = tmp_path / "report.json"
    assert run(shallow, videos[0], "--frames", "1", "--divergence", "1e-9", "--json", report) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no routing has a divergence of at most 1e-09 nats") and error.count("\n") == 1
    assert (shallow / "config.json").read_bytes() == before and "chosen" not in json.loads(report.read_text())


def test_trained_routing_needs_force(videos, tmp_path, capsys):
    for part in small_model(6, num_hidden_layers=2):
        part.save_pretrained(tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    options = [videos[0], "--frames", "2", "--operations", "0.98", "--threshold", "0", "--question", QUESTION]
    assert run(tmp_path / "model", *options) == 2
    error = capsys.readouterr().err
    assert "is trained (model.language_model.layers.1.layer_expert.weight)" in error and "--force" in error
    assert (tmp_path / "model" / "config.json").read_bytes() == before
    assert run(tmp_path / "model", *options, "--force") == 0
    model, _ = load_checkpoint(tmp_path / "model", device="cpu")
    assert model.config.text_config.mod_selection in FREE_SELECTIONS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--divergence", "0"], "`--divergence` must be a number above 0, got 0"),
        (["--divergence", "nan"], "`--divergence` must be a number above 0, got nan"),
        (["--operations", "1"], "`--operations` must be a share between 0 and 1, got 1"),
        (["--operations", "0.5", "--divergence", "1"], "`--divergence` and `--operations` are 2 budgets; give one"),
        (["--changed", "1"], "`--changed` must be a share of at least 0 and below 1, got 1"),
        (["--frames", "0"], "`--frames` must be at least 1, got 0"),
        (["--question", " "], "`--question` must not be empty"),
        (["--output", "{model}"], "`--output` must be a new or empty folder"),
        (["--output", "nowhere/model"], "the folder of `--output` does not exist: nowhere"),
        (["--json", "nowhere/x.json"], "the folder of `--json` does not exist: nowhere"),
        (["--plot", "x.txt"], "the file name of a plot must end in .png"),
        (["--json", "{clip}"], "`--json` would overwrite the source"),
        (["missing.mp4"], "there is no video missing.mp4"),
        (["--device", "tpu"], "`--device` must be auto, cpu, mps, cuda or cuda:N"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(folder, videos, options, message, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_checkpoint", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    given = [option.format(model=folder, clip=videos[0]) for option in options]
    assert run(folder, videos[0], *given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_model_on_the_hub_and_an_adapter_need_another_way(videos, tmp_path, capsys):
    assert run("someone/model", videos[0]) == 2
    assert "someone/model is on the Hub: give `--output`" in capsys.readouterr().err
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')
    assert run(tmp_path, videos[0]) == 2
    assert "is an adapter: put it into its model first, with `videollm-mod merge`" in capsys.readouterr().err


def test_a_silent_model_has_to_be_asked(folder, videos, capsys):
    assert run(folder, videos[0], "--frames", "2", "--threshold", "0") == 2
    assert f"the model says nothing about {videos[0]}; ask it something with `--question`" in capsys.readouterr().err
