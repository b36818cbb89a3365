"""Training on streams in the prompts of other families: what is learned is what a session feeds, and where it
decides."""

import copy
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from comparing import assert_near
from stock_vlms import save_vlm

from videollm_mod import StreamPool, VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.containers import IGNORE_INDEX
from videollm_mod.data.augmentation import ReplyAugmentation
from videollm_mod.data.turns import encode_example
from videollm_mod.data.windows import windows
from videollm_mod.evaluation.teacher_forced_model import teacher_forced
from videollm_mod.speaking import learn_silence

KINDS = {
    "llava": {"tower": "clip_vision_model"},
    "llava_onevision": {"side": 6},
    "smolvlm": {"scale_factor": 2},
    "idefics3": {"side": 6, "scale_factor": 3},
}
SEPARATORS = {"llava": {"frame_separator": ","}, "llava_onevision": {"frame_separator": ";"}}


@pytest.fixture(scope="module", params=KINDS)
def built(request, tmp_path_factory):
    """`(model, processor)` of a family that has learned when to be silent, as far as its configuration says."""
    folder = save_vlm(tmp_path_factory.mktemp("vlm"), request.param, **KINDS[request.param])
    options = SEPARATORS.get(request.param, {})
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(folder, **options)
    with pytest.raises(ValueError, match="`speak_rule` must be 'verify' for this model"):
        model.stream(processor, speak_rule="trained")
    learn_silence(model, processor)
    return model, processor


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)


def pixels_of(processor, count: int) -> torch.Tensor:
    return processor.video_processor(frames(count), return_tensors="pt")["pixel_values_videos"]


class Script:
    """Stands for the model's choices in a session: what it says, token by token."""

    generator = None

    def __init__(self, processor, replies: list[str]):
        self.ends = {processor.reply_stop_id}
        self.replies = [[*processor.encode_text(x, processor.sequence.reply_prefix), *self.ends] for x in replies]

    def __call__(self, said: list[int], logits: torch.Tensor) -> int:
        token = self.replies[0][len(said)]
        if token in self.ends:
            self.replies.pop(0)
        return token


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name it."},
    {"role": "stream", "num_frames": 3},
    {"role": "assistant", "content": "A cat."},
    {"role": "stream", "num_frames": 2},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Er."},
    {"role": "stream", "num_frames": 1},
    {"role": "assistant", "content": "A dog."},
    {"role": "stream", "num_frames": 1},
    {"role": "user", "content": "Count it."},
    {"role": "stream", "num_frames": 2},
    {"role": "assistant", "content": "A cat again."},
    {"role": "stream", "num_frames": 3},
]
TIMES = [0.0, 0.5, 59.9, 60.0, 61.5, 62.0, 62.5, 63.0, 600.0, 3599.0, 3600.0, 7200.5]
SPEAKS = (2, 5, 8)  # frames after which the model narrates


@torch.no_grad()
def test_a_session_feeds_what_was_learned(built):
    """Ids, times included, and P(silence) where the labels say silence or speech: streamed equals one pass."""
    model, processor = built
    messages = MESSAGES if processor.sequence.system_start is not None else MESSAGES[1:]
    said = [x["content"] for x in messages if x["role"] == "assistant"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    session = model.stream(processor, system_prompt=system, max_new_tokens=40)
    session.sampler, fed, silence = Script(processor, said), [], []
    feed, own_silence = session._feed, session._silence

    def recorded(ids, *arguments):
        fed.append((session.cache.get_seq_length(), ids))
        return (yield from feed(ids, *arguments))

    def scripted(result):
        first, found = session.stats.frames, own_silence(result)
        for index, value in enumerate(found.tolist(), first):
            silence[index:] = [value]
        return torch.tensor([0.0 if index in SPEAKS else 1.0 for index in range(first, first + len(found))])

    session._feed, session._silence = recorded, scripted
    done, pushed = 0, torch.from_numpy(frames(12))
    for message, following in pairwise([*messages[system is not None :], None]):
        if message["role"] == "stream":
            count = message["num_frames"]
            session.push(pushed[done : done + count], TIMES[done : done + count])
            done += count
        elif message["role"] == "user" and following["role"] == "assistant":
            session.ask(message["content"])
        elif message["role"] == "user":
            session.instruct(message["content"])
    ids: list[int] = []
    for start, block in fed:  # what was rolled back is fed again
        ids[start:] = block
    ids = ids[: session.cache.get_seq_length()]
    example = encode_example(messages, processor, TIMES)
    assert example["input_ids"] == [*ids, processor.frame_separator_token_id]

    labels, offset = example["labels"], processor.num_frame_tokens + processor.decision_offset
    places = [first + offset for turn in example["turns"] for first in turn.frames]
    separator = processor.frame_separator_token_id
    decided = {index: labels[place] for index, place in enumerate(places) if labels[place] != IGNORE_INDEX}
    assert [index for index, label in decided.items() if label != separator] == list(SPEAKS)
    assert set(range(12)) - decided.keys() == {4, 6}  # a question and an instruction interrupt the stream there
    assert all(label == example["input_ids"][places[index]] for index, label in decided.items())
    logits = model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels_of(processor, 12)).logits[0]
    expected = logits.softmax(-1)[torch.tensor(places) - 1, separator]
    assert_near(torch.tensor(silence), expected)
    replies = [(turn.start, turn.stop) for turn in example["turns"] if turn.role == "assistant"]
    for start, stop in replies:  # and the end of each reply, even where the template writes none
        assert processor.reply_stop_id in labels[start + 1 : stop + 1]


@torch.no_grad()
def test_blocks_single_frames_and_pools_say_the_same(built):
    model, processor = built
    watched = list(model.stream(processor, speak_threshold=0.0).watch(frames(8)))
    values = sorted(frame.silence_probability for frame in watched)
    options = {"speak_threshold": (values[3] + values[4]) / 2, "max_new_tokens": 3}

    def seen(events):
        return [(event.time, event.text) for event in events]

    block = seen(model.stream(processor, **options).push(frames(8)))
    session = model.stream(processor, **options)
    assert seen(event for frame in frames(8) for event in session.push(frame)) == block
    assert block and session.speak_rule == "trained"
    bounded = model.stream(processor, max_cached_frames=200, **options)
    assert seen(bounded.push(frames(8))) == block
    pool = StreamPool(model, processor)
    members = [pool.join(**options) for _ in range(2)]
    for member in members:
        member.push(frames(8))
    events = list(pool.run())
    for member in members:
        assert seen(event for own, event in events if own is member) == block


@torch.no_grad()
def test_teacher_forced_decisions_are_those_of_the_session(built):
    model, processor = built
    messages = MESSAGES if processor.sequence.system_start is not None else MESSAGES[1:]
    timed, left = [], list(TIMES)
    for message in messages:
        count = message.get("num_frames", 0)
        timed.append({**message, "times": left[:count]} if count else message)
        left = left[count:]
    features = model.encode_frames(pixels_of(processor, 12)).pooler_output
    (stream,) = teacher_forced(model, processor, [timed], [features], threshold=0.0)
    ids = processor.encode_conversation(timed).input_ids
    logits = model(input_ids=torch.tensor([ids]), video_features=features).logits[0]
    example = encode_example(messages, processor, TIMES)
    offset = processor.num_frame_tokens + processor.decision_offset
    places = [first + offset for turn in example["turns"] for first in turn.frames]
    learned = [index for index in range(9) if index not in (4, 6)]  # frames after the last reply are ignored
    expected = logits.softmax(-1)[torch.tensor([places[i] - 1 for i in learned]), processor.frame_separator_token_id]
    assert_near(torch.tensor(stream.silence), expected)
    assert stream.speak == [index in SPEAKS for index in learned]
    assert len(stream.turns) == 4 and len(stream.exact) == 3


def test_altered_narrations_are_those_of_the_altered_conversation(built):
    _, processor = built
    texts = ["A cat.", "A dog.", "Er."]
    messages = [{"role": "user", "content": "Name it."}]
    for count, text in zip((2, 3, 2), texts, strict=True):
        messages += [{"role": "stream", "num_frames": count}, {"role": "assistant", "content": text}]
    messages.append({"role": "stream", "num_frames": 2})
    example, times = encode_example(messages, processor), [index / processor.video_processor.fps for index in range(9)]
    reply = next(i for i, turn in enumerate(example["turns"]) if turn.role == "assistant")

    def streams(*counts: int, said: list[str]) -> dict:
        altered = [messages[0]]
        for count, text in zip(counts, [*said, None], strict=True):
            altered.append({"role": "stream", "num_frames": count})
            altered += [{"role": "assistant", "content": text}] if text else []
        return encode_example(altered, processor, times)

    augmentation, rng = ReplyAugmentation(processor), random.Random(0)
    expected = {
        "shift": (streams(3, 2, 2, 2, said=texts), {1, 2}),
        "remove": (streams(5, 2, 2, said=texts[1:]), {1, 2, 3, 4}),
    }
    expected["replace"] = (None, {2, 3, 4})
    offset = processor.num_frame_tokens + processor.decision_offset
    for kind, (same, unlearned) in expected.items():
        altered = augmentation.alter(example, kind, reply, rng)
        places = [first + offset for turn in altered["turns"] for first in turn.frames]
        assert {i for i, place in enumerate(places) if altered["labels"][place] == IGNORE_INDEX} == unlearned
        if same is not None:
            assert altered["input_ids"] == same["input_ids"]
            assert altered["turns"] == same["turns"]
            others = [i for i in range(len(same["labels"])) if i not in places]
            assert [altered["labels"][i] for i in others] == [same["labels"][i] for i in others]
        else:
            turn = altered["turns"][reply]
            assert processor.encode_text("Er.")[-1] in altered["input_ids"][turn.start : turn.stop] or "A dog." in str(
                processor.decode(altered["input_ids"][turn.start : turn.stop])
            )
            assert all(label == IGNORE_INDEX for label in altered["labels"][turn.start + 1 : turn.stop])
    assert augmentation(example)["input_ids"] != example["input_ids"]


def test_windows_hold_so_many_tokens(built):
    _, processor = built
    turns = [{"time": 0.0, "role": "user", "content": "Name it, please, and be exact about it."}]
    turns += [{"time": 2.0 * i + 1, "role": "assistant", "content": f"A cat {i}."} for i in range(20)]
    stream = {"line": 1, "turns": turns, "fps": 2.0}
    from videollm_mod.data.timeline import conversation

    learned = 0
    step = processor.num_frame_tokens + processor.frame_text_tokens
    limit = 16 * step
    for line in windows(stream, 2.0, limit, processor, num_frames=90):
        times = np.arange(round(line["start"] * 2), round(line["end"] * 2)) / 2
        example = encode_example(conversation(line["turns"], times, line["opening"]), processor, times)
        assert len(example["input_ids"]) <= limit + 1  # and the silence after the last frame
        learned += 1
    assert learned > 3


def test_the_loss_weighs_decisions(built):
    model, processor = built
    model = copy.deepcopy(model)
    example = encode_example(MESSAGES[1:], processor, TIMES)
    batch = {"input_ids": torch.tensor([example["input_ids"]]), "pixel_values_videos": pixels_of(processor, 12)}
    labels = torch.tensor([example["labels"]])
    offset = processor.num_frame_tokens + processor.decision_offset
    places = [first + offset for turn in example["turns"] for first in turn.frames]
    rest = labels.clone()
    rest[0, places] = IGNORE_INDEX
    with torch.no_grad():
        count, others = int((labels != IGNORE_INDEX).sum()), int((rest != IGNORE_INDEX).sum())
        whole, left = model(**batch, labels=labels).loss * count, model(**batch, labels=rest).loss * others
        model.config.stream_loss_weight = 3.0
        assert_near(model(**batch, labels=labels).loss * count, 3 * whole - 2 * left)


def test_a_family_without_a_token_for_silence_is_refused(tmp_path):
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(save_vlm(tmp_path / "vlm", "llava"))
    for attempt in (lambda: learn_silence(model, processor), lambda: encode_example(MESSAGES[1:], processor)):
        with pytest.raises(
            ValueError, match=r"frames follow each other directly; .*from_vlm\(..., frame_separator=','\)"
        ):
            attempt()
    with pytest.raises(ValueError, match="`frame_separator` 'so it goes' must be one token of the vocabulary"):
        VideoLLMMoDForConditionalGeneration.from_vlm(tmp_path / "vlm", frame_separator="so it goes")


def test_the_learned_rule_is_saved(built, tmp_path):
    model, processor = built
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = VideoLLMMoDForConditionalGeneration.from_pretrained(tmp_path)
    session = again.stream(VideoLLMMoDProcessor.from_pretrained(tmp_path))
    assert (session.speak_rule, session.speak_threshold) == ("trained", 0.725)
    assert again.config.decision_offset == processor.decision_offset
