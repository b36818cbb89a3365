"""Batches: packed rows equal separate rows; truncation and augmentation equal encoding the changed conversation."""

import random
from itertools import pairwise

import pytest
import torch
from small_data import small_model

from videollm_mod.data.augmentation import ReplyAugmentation
from videollm_mod.data.collator import StreamCollator
from videollm_mod.data.turns import clip, encode_example

WORDS = ["A red square appears.", "It leaves.", "The blue cross moves to the top.", "Nothing, at all [yet]."]


@pytest.fixture(scope="module")
def model_and_processor():
    return small_model()


@pytest.fixture(scope="module")
def processor(model_and_processor):
    return model_and_processor[1]


def random_messages(rng: random.Random, turns: int = 6) -> list[dict]:
    """Turns in any order, without two streams in a row, which would be one stream."""
    messages = [{"role": "system", "content": rng.choice(WORDS)}] if rng.random() < 0.5 else []
    for _ in range(turns):
        roles = (
            ["user", "assistant"] if messages and messages[-1]["role"] == "stream" else ["user", "stream", "stream"]
        )
        role = rng.choice(roles)
        if role == "stream":
            messages.append({"role": role, "num_frames": rng.randint(1, 5)})
        else:
            messages.append({"role": role, "content": rng.choice(WORDS)})
    return messages


def narrated(rng: random.Random, replies: int = 4) -> list[dict]:
    """Streams with different narrations between them."""
    messages = [{"role": "user", "content": "Narrate."}]
    for index in range(replies):
        messages.append({"role": "stream", "num_frames": rng.randint(1, 4)})
        messages.append({"role": "assistant", "content": f"{rng.choice(WORDS)} {index}"})
    return [*messages, {"role": "stream", "num_frames": rng.randint(1, 3)}]


def example_of(messages: list[dict], processor) -> dict:
    num_frames = sum(message.get("num_frames", 0) for message in messages)
    return {**encode_example(messages, processor), "video_features": torch.randn(num_frames, 5, 16)}


@pytest.mark.parametrize("seed", range(30))
def test_spans_of_turns_and_frames(processor, seed):
    messages = random_messages(random.Random(seed))
    input_ids, _, turns = encode_example(messages, processor).values()
    assert [turn.role for turn in turns] == [message["role"] for message in messages]
    assert [len(turn.frames) for turn in turns] == [message.get("num_frames", 0) for message in messages]
    assert [turn.start for turn in turns] == [1, *[turn.stop for turn in turns[:-1]]]
    assert turns[-1].stop == len(input_ids)
    starts = [start for turn in turns for start in turn.frames]
    placeholders = [place for place, token in enumerate(input_ids) if token == processor.video_token_id]
    assert placeholders == [start + i for start in starts for i in range(processor.num_frame_tokens)]
    for turn, message in zip(turns, messages, strict=True):
        own = input_ids[turn.start : turn.stop]
        if turn.role == "stream":  # an open one ends with a separator, as silence is learned after its last frame
            end = processor.stream_end_ids if turn.stop < len(input_ids) else [processor.frame_separator_token_id]
            assert own[: len(processor.stream_start_ids)] == processor.stream_start_ids
            assert input_ids[turn.frames[-1] + processor.num_frame_tokens : turn.stop] == end
        else:
            assert message["content"] in processor.decode(own)


def test_silence_after_the_last_frame_has_a_label(processor):
    messages = [{"role": "stream", "num_frames": 2}]
    input_ids, labels, _ = encode_example(messages, processor).values()
    assert input_ids == [*processor.encode_conversation(messages)[0], processor.frame_separator_token_id]
    assert labels[-1] == processor.frame_separator_token_id
    said = [*messages, {"role": "assistant", "content": "It leaves."}]
    input_ids, labels, _, turns = processor.encode_conversation(said)
    assert encode_example(said, processor) == {"input_ids": input_ids, "labels": labels, "turns": turns}


def cut_messages(messages: list[dict], frames: int, replies: int) -> list[dict]:
    """The first turns with the given numbers of frames and other turns."""
    kept = []
    for message in messages:
        if message["role"] == "stream":
            if frames:
                kept.append({**message, "num_frames": min(frames, message["num_frames"])})
            if frames < message["num_frames"]:
                return kept
            frames -= message["num_frames"]
        elif replies:
            kept.append(message)
            replies -= 1
        else:
            return kept
    return kept


@pytest.mark.parametrize("seed", range(12))
def test_truncated_sequence_equals_encoding_of_truncated_messages(processor, seed):
    messages = random_messages(random.Random(seed))
    messages.append({"role": "stream", "num_frames": 3})
    example = example_of(messages, processor)
    all_frames, texts = len(example["video_features"]), sum(m["role"] != "stream" for m in messages)
    # all places that cut no turn and no frame, by brute force
    prefixes = {}
    for frames in range(all_frames + 1):
        for replies in range(texts + 1):
            kept = cut_messages(messages, frames, replies)
            if kept and sum(m.get("num_frames", 0) for m in kept) == frames:
                # a stream loses its end together with the turn after it, so the decision to speak there has no label
                parted = kept[-1] == messages[len(kept) - 1] and len(kept) < len(messages)
                whole = encode_example(kept, processor)
                row = processor.encode_conversation(kept)[:2] if parted else (whole["input_ids"], whole["labels"])
                input_ids, labels = row
                prefixes[len(input_ids)] = frames, input_ids, labels
    smallest = min(length for length, (frames, _, _) in prefixes.items() if frames)
    for max_tokens in range(smallest, len(example["input_ids"]) + 2):
        length = max(length for length in prefixes if length <= max_tokens)
        frames, input_ids, labels = prefixes[length]
        assert clip(example["turns"], max_tokens) == (length, frames)
        batch = StreamCollator(0, max_tokens)([example])
        assert batch["input_ids"].tolist() == [input_ids]
        assert batch["labels"].tolist() == [labels]
        assert torch.equal(batch["video_features"], example["video_features"][:frames])
    with pytest.raises(ValueError, match=f"`max_tokens` must be at least {smallest} .*, got {smallest - 1}"):
        clip(example["turns"], smallest - 1)


ROUTINGS = {
    "mod": {},
    "random": {"mod_selection": "random", "mod_layers": "all"},
    "early exit": {"vision_routing": "early_exit", "early_exit_layer": 2},
    "full": {"vision_routing": "full"},
}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_packed_rows_equal_separate_rows(routing, seed):
    model, processor = small_model(seed, **ROUTINGS[routing])
    rng = random.Random(seed)
    examples = [example_of(random_messages(rng, turns=rng.randint(2, 6)), processor) for _ in range(5)]
    longest = max(len(example["input_ids"]) for example in examples)
    pad = processor.tokenizer.pad_token_id
    alone = [StreamCollator(pad)([example]) for example in examples]
    total = sum(int((row["labels"] != -100).sum()) for row in alone)
    with torch.no_grad():
        logits = {tuple(row["input_ids"][0].tolist()): model(**row).logits[0] for row in alone}
        expected = sum(model(**row, num_items_in_batch=total).loss for row in alone)
        for options in ({}, {"max_tokens": longest}, {"max_tokens": longest + 40}):
            batch = StreamCollator(pad, packing=True, **options)(examples)
            assert "attention_mask" not in batch
            assert int((batch["labels"] != -100).sum()) == total
            out = model(**batch)
            torch.testing.assert_close(out.loss, expected, rtol=1e-4, atol=1e-5)
            found = 0
            for row, positions in enumerate(batch["position_ids"].tolist()):
                starts = [*(i for i, position in enumerate(positions) if position == 0), len(positions)]
                for start, stop in pairwise(starts):
                    ids = tuple(batch["input_ids"][row, start:stop].tolist())
                    if set(ids) != {pad}:
                        torch.testing.assert_close(out.logits[row, start:stop], logits[ids], rtol=1e-3, atol=1e-4)
                        found += 1
            assert found == len(examples)
            assert batch["input_ids"].shape[1] <= options.get("max_tokens", 10**6)
        padded = StreamCollator(pad)(examples)
        torch.testing.assert_close(model(**padded).loss, expected, rtol=1e-4, atol=1e-5)


def test_first_token_of_an_example_has_no_label(processor):
    """In a padded or packed row, something precedes it that would otherwise learn to predict it."""
    example = {"input_ids": [9, 10], "labels": [9, 10], "video_features": torch.zeros(0, 5, 16)}
    longer = {**example, "input_ids": [9, 10, 11], "labels": [9, 10, 11]}
    assert StreamCollator(2)([example, longer])["labels"].tolist() == [[-100, -100, 10], [-100, 10, 11]]
    packed = StreamCollator(2, packing=True)([example, longer])
    assert packed["labels"].tolist() == [[-100, 10, -100, 10, 11]]
    assert packed["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert example["labels"] == [9, 10]


def test_repeated_frames_are_truncated_and_packed_by_index(processor):
    messages = [{"role": "stream", "num_frames": 6}, {"role": "assistant", "content": "Done."}]
    input_ids, labels, _, turns = processor.encode_conversation(messages)
    frames = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    index = torch.tensor([3, 1, 1, 0, 2, 2])
    example = {"input_ids": input_ids, "labels": labels, "turns": turns, "frames": frames, "frame_index": index}
    length = len(encode_example([{"role": "stream", "num_frames": 3}], processor)["input_ids"])
    short = {**example, "input_ids": input_ids[:length], "labels": labels[:length], "frame_index": index[:3]}
    batch = StreamCollator(2, length)([example, example])
    assert torch.equal(batch["frames"][batch["frame_index"]], torch.cat([frames[[3, 1, 1]]] * 2))
    assert len(batch["frames"]) == 4
    packed = StreamCollator(2, packing=True)([short, example])
    assert torch.equal(packed["frames"][packed["frame_index"]], torch.cat([frames[[3, 1, 1]], frames[index]]))


@pytest.mark.parametrize("seed", range(40))
def test_augmented_examples_equal_encodings_of_altered_conversations(processor, seed):
    rng = random.Random(seed)
    messages = narrated(rng)
    example = example_of(messages, processor)
    augmentation = ReplyAugmentation(processor, seed=seed)
    index = rng.randrange(2, len(messages) - 3, 2)  # a narration that is not the last
    before, reply, after = messages[index - 1 : index + 2]
    assert reply["role"] == "assistant"
    head, tail = messages[: index - 1], messages[index + 2 :]
    a, b = before["num_frames"], after["num_frames"]
    others = [m for m in messages if m["role"] == "assistant" and m is not reply]

    def stream(count: int, learn) -> dict:
        return {"role": "stream", "num_frames": count, "learn": learn}

    altered = {
        "shift": [[stream(a + 1, a - 1), reply, stream(b - 1, True)]] if b > 1 else [],
        "replace": [[before, {**other, "learn": False}, stream(b, False)] for other in others],
        "remove": [[stream(a + b, a - 1)]],
    }
    for kind, conversations in altered.items():
        if conversations:
            result = augmentation.alter(example, kind, index, rng)
            assert result.pop("video_features") is example["video_features"]
            expected = [encode_example([*head, *middle, *tail], processor) for middle in conversations]
            assert result in expected, kind


def test_augmentation_alters_one_narration_deterministically(processor):
    rows = [encode_example(narrated(random.Random(seed)), processor) for seed in range(60)]
    altered = [ReplyAugmentation(processor)(row) for row in rows]
    assert all(one != other for one, other in zip(altered, rows, strict=True))
    assert altered == [ReplyAugmentation(processor)(row) for row in rows]
    assert altered != [ReplyAugmentation(processor, epoch=1)(row) for row in rows]
    assert altered != [ReplyAugmentation(processor, seed=1)(row) for row in rows]
    for (ids, labels, turns), (old, *_) in zip(map(dict.values, altered), map(dict.values, rows), strict=True):
        assert turns[-1].stop == len(ids)
        assert ids.count(processor.video_token_id) == old.count(processor.video_token_id)
        assert len(ids) == len(labels)
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    replies = [sum(turn.role == "assistant" for turn in row["turns"]) for row in altered]
    assert 10 < replies.count(3) < 50 and replies.count(3) + replies.count(4) == 60
    share = sum(ReplyAugmentation(processor, 0.3)(row) != row for row in rows)
    assert 5 < share < 35
    assert all(ReplyAugmentation(processor, 0.0)(row) == row for row in rows)
    batch = StreamCollator(2, augmentation=ReplyAugmentation(processor))(
        [example_of(narrated(random.Random(0)), processor)]
    )
    assert batch["input_ids"].tolist() == [altered[0]["input_ids"]]


def test_single_narration_is_not_altered(processor):
    row = encode_example(narrated(random.Random(0), replies=1), processor)
    assert ReplyAugmentation(processor)(row) == row


def test_examples_without_turns_are_neither_cut_nor_altered(processor):
    example = example_of(narrated(random.Random(0)), processor)
    del example["turns"]
    assert StreamCollator(2, max_tokens=10_000)([example])["input_ids"].tolist() == [example["input_ids"]]
    for options in ({"max_tokens": 50}, {"augmentation": ReplyAugmentation(processor)}):
        with pytest.raises(ValueError, match="needs its `turns`"):
            StreamCollator(2, **options)([example])


def test_wrong_options_give_a_clear_error(processor):
    for value in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match=f"`max_tokens` must be a whole number of at least 1, got {value}"):
            StreamCollator(2, max_tokens=value)
    with pytest.raises(ValueError, match=r"`probability` must be in \[0, 1\], got 1.5"):
        ReplyAugmentation(processor, 1.5)
