"""Training with the memory of a bounded session in force: it equals a session that watches frame by frame."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from comparing import PROBABILITY, assert_near, assert_near_gradients
from small_data import said, small_model, write_lines, write_video
from training_configs import STAGE
from transformers import TrainingArguments

from videollm_mod.data.turns import encode_example
from videollm_mod.data.world import conversation, world_stream
from videollm_mod.data.world_data import WorldData, WorldStreams
from videollm_mod.memory import POLICIES
from videollm_mod.training.carried import CarriedCollator, CarriedStreams, Carrying, evictions
from videollm_mod.training.config import TrainingConfig
from videollm_mod.training.saving import save
from videollm_mod.training.train import train
from videollm_mod.training.trainer import StreamTrainer

SEEDS = (3, 5)  # streams of 16 and 20 frames, with narrations and questions


class Teacher:
    """In place of a session's sampler: says what it is told, and records the scores of what it says."""

    generator = None

    def __init__(self, sampler, said: list[int]):
        self.ends, self.said, self.scores = sampler.ends, said, []

    def __call__(self, said: list[int], logits: torch.Tensor) -> int:
        self.scores.append(logits.float().log_softmax(-1))
        return self.said[len(said)]


def watched(model, processor, messages: list[dict], frames, **options) -> tuple[list[float], torch.Tensor]:
    """What a session that is pushed frame by frame thinks of a conversation: P(silence) after each frame, and the log
    probabilities of all tokens where it says something."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    session, silence, scores, done = model.stream(processor, system_prompt=system, **options), [], [], 0
    messages = messages[system is not None :]
    for message, following in zip(messages, [*messages[1:], {"role": None}], strict=True):
        speaks = following["role"] == "assistant"
        if speaks:
            said = processor.encode_text(following["content"]) + processor.reply_end_ids
            session.sampler = Teacher(session.sampler, said)
        if message["role"] == "user":
            session.ask(message["content"]) if speaks else session.instruct(message["content"])
        for index in range(message.get("num_frames", 0)):
            now = speaks and index + 1 == message["num_frames"]
            session.speak_threshold = 2.0 if now else 0.0  # speaks in any case, or in no case
            (frame,) = session.watch(frames[done][None])
            assert (frame.event is not None) == now
            silence.append(frame.silence_probability)
            done += 1
        if speaks:
            scores += session.sampler.scores
    return silence, torch.stack(scores), session


def example_of(processor, seed: int, num_questions: int = 3) -> tuple[list[dict], dict]:
    stream = world_stream(seed)
    messages = conversation(stream, 2.0, num_questions)
    frames = torch.from_numpy(stream.frames(2.0, 32)).permute(0, 3, 1, 2)
    return messages, {**encode_example(messages, processor, stream.frame_times(2.0)), "frames": frames}


def encoded(model, processor, batch: dict) -> dict:
    """The batch with features in place of frames."""
    frames = batch.pop("frames").frames
    pixels = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
    with torch.no_grad():
        return {**batch, "video_features": model.encode_frames(pixels).pooler_output}


def collated(model, processor, carrying: Carrying, examples: list[dict]) -> dict:
    collate = CarriedCollator(processor.tokenizer.pad_token_id, processor=processor, carrying=carrying)
    return encoded(model, processor, collate(examples))


@torch.no_grad()
def logits_of(model, streams: CarriedStreams) -> list[torch.Tensor]:
    """`[T, V]` for each stream of a batch: the logits of its windows, joined."""
    found: list[list[torch.Tensor]] = [[] for _ in streams.windows]
    for span in streams.spans:
        for window, inputs in zip(span, streams.span(span), strict=True):
            outputs = model(**inputs)
            for row, logits in zip(streams.rows, outputs.logits, strict=True):
                start, stop = streams.windows[row][window]
                found[row].append(logits[len(logits) - (stop.token - start.token) :])
            streams.add(window, outputs.router_scores, window == span[-1])
    return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize(
    ("policy", "bound", "text"),
    [
        ("window", 6, {}),
        ("router", 3, {}),
        ("router", 5, {"mod_layers": "all"}),
        ("window", 7, {"no_rope_layers": [2], "mod_selection": "random"}),
        ("window", 4, {"mod_selection": "difference"}),
    ],
)
def test_windows_equal_a_session_frame_by_frame(policy, bound, text):
    """Streams of unequal length in one batch, each beside a real session with the same bound."""
    model, processor = small_model(0, **text)
    examples = [example_of(processor, seed) for seed in SEEDS]
    carrying = Carrying(bound, policy, max_cached_text=48 if bound == 3 else None)
    streams = CarriedStreams(model, carrying, collated(model, processor, carrying, [x for _, x in examples]))
    found = logits_of(model, streams)
    separator = processor.frame_separator_token_id
    for (messages, example), logits in zip(examples, found, strict=True):
        options = {"max_cached_frames": bound, "cache_policy": policy, "max_cached_text": carrying.max_cached_text}
        silence, scores, session = watched(model, processor, messages, example["frames"], **options)
        assert session.cache.frames_forgotten or policy == "router"
        assert session.stats.tokens > session.cache.get_seq_length()
        turns = example["turns"]
        ends = [start + processor.num_frame_tokens - 1 for turn in turns for start in turn.frames]
        own = logits.float().log_softmax(-1)
        assert_near(own[ends, separator].exp().tolist(), silence, PROBABILITY)
        header = len(processor.assistant_header_ids)
        said = [i - 1 for turn in turns if turn.role == "assistant" for i in range(turn.start + header, turn.stop)]
        assert_near(own[said], scores, PROBABILITY)


def gradients(model, streams: CarriedStreams) -> dict:
    model.zero_grad()
    for span in streams.spans:
        loss = 0.0
        for window, inputs in zip(span, streams.span(span), strict=True):
            outputs = model(**inputs, num_items_in_batch=streams.num_labels)
            streams.add(window, outputs.router_scores, window == span[-1])
            loss = loss + outputs.loss
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def small():
    return small_model(1)


def streams_of(small, carrying: Carrying, seeds=SEEDS) -> CarriedStreams:
    model, processor = small
    examples = [example_of(processor, seed)[1] for seed in seeds]
    return CarriedStreams(model, carrying, collated(model, processor, carrying, examples))


def test_gradients_equal_those_of_whole_streams_while_nothing_leaves(small):
    model, _ = small
    carrying = Carrying(200)
    streams = streams_of(small, carrying)
    assert [len(windows) for windows in streams.windows] == [1, 1]
    batch = {name: value for name, value in streams.batch.items() if name not in ("evictions", "leaves")}
    model.train()
    model.zero_grad()
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert_near_gradients(gradients(model, streams), expected)


@pytest.fixture(scope="module")
def plain_gradients(small):
    small[0].train()
    return {policy: gradients(small[0], streams_of(small, Carrying(6, policy, 2))) for policy in POLICIES}


@pytest.mark.parametrize(
    ("recompute", "policy"),
    [("layer", "router"), ("pairs", "window"), ("entered", "window"), ("attention", "router"), ("mlp", "window"),
     ("activation", "window")],
)  # fmt: skip
def test_checkpoints_give_the_same_gradients(small, plain_gradients, recompute, policy):
    """With gradients that flow back over several windows."""
    model, _ = small
    model.train()
    carrying = Carrying(6, policy, backprop_windows=2)
    model.activation_checkpointing_enable({"recompute": recompute})
    try:
        found = gradients(model, streams_of(small, carrying))
    finally:
        model.activation_checkpointing_disable()
    assert_near_gradients(found, plain_gradients[policy])


def trained(small, tmp_path, carrying: Carrying, **options) -> tuple[list[float], dict]:
    """Losses and weights of two steps on four streams of unequal length."""
    model, processor = copy.deepcopy(small[0]).train(), small[1]
    data = WorldStreams(WorldData(num_streams=4), processor)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, optim="sgd", learning_rate=1e-2, remove_unused_columns=False, use_cpu=True,
        report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True, prediction_loss_only=True, **options,
    )  # fmt: skip
    collate = CarriedCollator(processor.tokenizer.pad_token_id, processor=processor, carrying=carrying)
    trainer = StreamTrainer(
        model, arguments, collate, data, data, video_processor=processor.video_processor, carrying=carrying
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return [*losses, trainer.evaluate()["eval_loss"]], {n: p.detach() for n, p in model.named_parameters()}


def test_the_trainer_learns_the_same_however_a_step_is_cut(small, tmp_path):
    """Four streams at once and one by one, and in half precision; and all of it is learned."""
    carrying = Carrying(8, "router")
    whole, weights = trained(small, tmp_path, carrying, per_device_train_batch_size=4)
    single, others = trained(
        small, tmp_path, carrying, per_device_train_batch_size=1, gradient_accumulation_steps=4,
        per_device_eval_batch_size=4, gradient_checkpointing=True,
    )  # fmt: skip
    assert_near(single, whole)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, atol=1e-5, rtol=1e-4)
    assert whole[1] < whole[0] > whole[2]
    half, _ = trained(small, tmp_path, carrying, per_device_train_batch_size=4, bf16=True)
    assert half == pytest.approx(whole, rel=2e-2) and half != whole


def test_videos_of_unequal_length_train_whole(small, tmp_path):
    """`videollm-mod train` on a file of videos: nothing is cut, and its loss is that of the streams unbounded while
    all of it fits."""
    lines = []
    for index, count in enumerate((12, 30)):
        video = write_video(tmp_path / f"{index}.mp4", count, fps=2, seed=index)
        turns = [said(time, "A red circle appears.") for time in range(1, count // 2, 3)]
        lines.append({"video": str(video), "fps": 2.0, "turns": [*turns, said(count / 2 - 1, "What?", "user")]})
    data = str(write_lines(tmp_path / "streams.jsonl", lines))
    save(*small, tmp_path / "base", torch.float32)
    losses = {}
    for bound in (None, 6, 100):
        stage = {**STAGE, "max_steps": 1, "save_strategy": "no"} | ({"max_cached_frames": bound} if bound else {})
        config = TrainingConfig(str(tmp_path / f"run{bound}"), str(tmp_path / "base"), data=data, stream_stage=stage)
        train(config)
        (losses[bound],) = (
            log["loss"]
            for log in json.loads((tmp_path / f"run{bound}/stream/trainer_state.json").read_text())["log_history"]
            if "loss" in log
        )
    assert losses[100] == pytest.approx(losses[None], rel=1e-4) != pytest.approx(losses[6], rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"max_cached_frames": 0}, "`max_cached_frames` must be a whole number of at least 1, got 0"),
        ({"max_cached_frames": 8, "cache_policy": "lru"}, "`cache_policy` must be one of 'window', 'router', got"),
        ({"max_cached_frames": 8, "backprop_windows": 0}, "`backprop_windows` must be a whole number of at least 1"),
        ({"max_cached_frames": 8, "max_cached_text": 8}, "`max_cached_text` must be .* at least 48, got 8"),
        ({"max_cached_text": 100}, "`max_cached_text` needs `max_cached_frames`"),
        ({"max_cached_frames": 8, "max_tokens": 99}, "`max_tokens` cannot be used with `max_cached_frames`"),
        ({"max_cached_frames": 8, "packing": True}, "`packing` cannot be used with `max_cached_frames`"),
    ],
)
def test_wrong_options_of_a_stage_are_named(tmp_path, stage, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(str(tmp_path), ".", stream_stage=stage).check()


def test_what_cannot_carry_a_memory_is_refused(small, tmp_path):
    model, processor = small
    arguments = TrainingArguments(
        str(tmp_path), remove_unused_columns=False, report_to=[], gradient_checkpointing_kwargs={"use_reentrant": True}
    )
    with pytest.raises(ValueError, match="`max_cached_frames` needs `use_reentrant: false`"):
        StreamTrainer(model, arguments, carrying=Carrying(8))
    family = copy.copy(processor)
    family.sequence = replace(processor.sequence, one_turn=True)
    with pytest.raises(ValueError, match="`max_cached_frames` in training needs this package's own sequence"):
        evictions(example_of(processor, 3)[1], family, Carrying(8).memory(5))


def test_gradients_flow_back_through_the_cache_over_a_span_and_no_further(small):
    """What is said last depends on the first window if nothing is detached; the graph ends where a span does."""
    model, _ = small
    model.train()
    reached = {}
    for windows in (2, 100):
        streams = streams_of(small, Carrying(6, backprop_windows=windows), SEEDS[:1])
        features = streams.batch["video_features"].requires_grad_()
        assert len(streams.windows[0]) > 4
        for span in streams.spans:
            for window, inputs in zip(span, streams.span(span), strict=True):
                outputs = model(**inputs)
                streams.add(window, outputs.router_scores, window == span[-1])
        outputs.loss.backward()
        reached[windows] = features.grad.flatten(1).norm(dim=1) > 0
        last = streams.windows[0][streams.spans[-1].start][0].frame
    assert not reached[2][:last].any() and reached[2][last:].any()
    assert reached[100][:6].any()
