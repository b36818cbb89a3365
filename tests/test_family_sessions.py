"""Streams of models that were built from pretrained ones: a session equals one pass over the processor's conversation,
and its memory stays within its bounds."""

import numpy as np
import pytest
import torch
from comparing import assert_near
from PIL import Image
from stock_vlms import save_vlm
from test_generation import small_model
from transformers import pipeline

from videollm_mod.modeling_videollm_mod import VideoLLMMoDForConditionalGeneration

KINDS = {"llava": {"tower": "clip_vision_model"}, "llava_onevision": {"side": 6}, "smolvlm": {"scale_factor": 2}}
KINDS["idefics3"] = {"side": 6, "scale_factor": 3}


@pytest.fixture(scope="module", params=KINDS)
def built(request, tmp_path_factory):
    folder = save_vlm(tmp_path_factory.mktemp("vlm"), request.param, **KINDS[request.param])
    return VideoLLMMoDForConditionalGeneration.from_vlm(folder)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)


def words_of(session, event) -> dict:
    return {"role": "assistant", "content": event.text}


@torch.no_grad()
def test_a_session_is_one_pass_over_its_conversation(built):
    model, processor = built
    session = model.stream(processor, max_new_tokens=4)
    session.instruct("Name it.")
    fed: list[int] = []
    record = session._feed

    def feed(ids, *arguments):
        fed.extend(ids)
        return record(ids, *arguments)

    session._feed = feed
    events = session.push(frames(1)) + session.ask("Why?") + session.push(frames(2, 1))
    assert events[0].kind == "narration" and events[0].query == "Name it." and events[1].query == "Why?"
    assert session.query == "Name it."
    end = session.cache.get_seq_length()
    expected = processor.start_ids() + processor.start_stream_ids + processor.frame_ids_at(0.0)
    expected += processor.reply_start_ids(True, "Name it.")
    assert fed[: len(expected)] == expected and len(fed) == end
    expected = processor.question_ids("Why?", False) + processor.reply_start_ids(False)
    assert expected == next(
        fed[i : i + len(expected)] for i in range(len(fed)) if fed[i : i + len(expected)] == expected
    )
    pixels = torch.cat([processor.video_processor(x)["pixel_values_videos"] for x in (frames(1), frames(2, 1))])
    whole = model(input_ids=torch.tensor([fed]), pixel_values_videos=pixels).logits[0, -1]
    last = model(input_ids=torch.tensor([processor.reply_start_ids(True)]), cache=session.fork().cache).logits[0, -1]
    again = model(input_ids=torch.tensor([fed + processor.reply_start_ids(True)]), pixel_values_videos=pixels)
    assert_near(last, again.logits[0, -1])
    assert whole.isfinite().all()


@torch.no_grad()
def test_memory_stays_within_bytes(built):
    model, processor = built
    smallest = None
    try:
        model.stream(processor, max_cached_bytes=1, max_new_tokens=4)
    except ValueError as error:
        smallest = int(str(error).split("at least ")[1].split()[0])
    session = model.stream(processor, max_cached_bytes=smallest, max_new_tokens=4)
    for seed in range(13):
        session.push(frames(2, seed))
        assert session.stats.kv_bytes <= smallest
        if seed == 9:
            session.instruct("Say " + "a " * 10)
    with pytest.raises(ValueError, match="`text` is too long for a bounded session"):
        session.instruct("a " * 100)
    assert session.stats.frames == 26 > len(set(session.state.memory.frames.tolist()))
    kinds, owners = session.state.memory.kinds, session.state.memory.frames
    seen = set(owners[kinds == 3].tolist())
    assert set(owners[kinds == 2].tolist()) <= seen  # what stood around a frame left with it


@pytest.mark.parametrize("bounds", [{"max_cached_bytes": 4}, {"max_cached_frames": 3}], ids=["bytes", "frames"])
@torch.no_grad()
def test_a_long_instruction_takes_room_from_older_frames(built, bounds, tmp_path):
    model, processor = built
    if "max_cached_bytes" in bounds:
        with pytest.raises(ValueError) as error:
            model.stream(processor, max_cached_bytes=1, max_new_tokens=4)
        bounds = {"max_cached_bytes": 4 * int(str(error.value).split("at least ")[1].split()[0])}
    session = model.stream(processor, max_new_tokens=4, **bounds)
    limit = session.max_kv_bytes
    session.push(frames(2))
    long = "Name " + "a" * 150
    session.instruct(long)
    assert session.push(frames(1, 1))[0].query == long
    session.save(tmp_path / "session")
    other = type(session).load(tmp_path / "session", model, processor)
    assert other.state.memory.turn_tokens == session.state.memory.turn_tokens
    for one in (session, other):
        for seed in range(4):
            one.push(frames(2, seed))
            assert one.stats.kv_bytes <= limit == one.max_kv_bytes
    with pytest.raises(ValueError, match="`text` is too long for a bounded session: it has [0-9]+ tokens more"):
        session.instruct("b" * 15000)
    assert session.query == long


@torch.no_grad()
def test_a_frame_may_be_a_picture(built):
    model, processor = built
    picture = frames(1)[0]
    pushed = []
    for given in (picture, Image.fromarray(picture), torch.from_numpy(picture), picture[None]):
        session = model.stream(processor, max_new_tokens=4)
        pushed.append([(e.time, e.text, e.silence_probability) for e in session.push(given)])
        assert session.stats.frames == 1
    assert all(events == pushed[0] for events in pushed)


def described(model, processor, *media, text: str) -> tuple[str, ...]:
    """What the pipeline says of images: in a chat, and beside a text with slots."""
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    blocks = [{"type": "image", "image": medium} for medium in media]
    chat = [{"role": "user", "content": [*blocks, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    said = [
        pipe(text=chat, **options),
        pipe(images=list(media), text=prompt, **options),
    ]
    return tuple(one[0]["generated_text"] for one in said)


def test_the_pipeline_takes_images(built):
    model, processor = built
    # beside a text several images of OneVision are cut into tiles, as by the stock processor, in a chat they are not
    media = [Image.fromarray(picture) for picture in frames(2 if model.config.image_tiling is None else 1)]
    chat, of_text = described(model, processor, *media, text="What is it?")
    assert chat == of_text
    assert pipeline("image-text-to-text", model=model, processor=processor)(
        images=media[:1], text=processor.image_slot + " It", max_new_tokens=2, return_full_text=False
    )


def test_this_package_s_own_sequence_takes_images(tmp_path):
    """An image is a stream of one frame."""
    model, processor = small_model()
    picture = frames(1)[0]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}

    def inputs(block: dict) -> dict:
        return processor.apply_chat_template(
            [{"role": "user", "content": [block, {"type": "text", "text": "What?"}]}], **options
        )

    expected = inputs({"type": "video", "video": picture[None]})
    for source in (picture, Image.fromarray(picture), str(tmp_path / "picture.png"), torch.from_numpy(picture)):
        found = inputs({"type": "image", "image": source})
        assert torch.equal(found["input_ids"], expected["input_ids"])
        assert torch.equal(found["pixel_values_videos"], expected["pixel_values_videos"])
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        add_generation_prompt=True,
    )
    called = processor(text, images=Image.fromarray(picture), return_tensors="pt")
    assert torch.equal(called["input_ids"], expected["input_ids"])
    assert torch.equal(called["pixel_values_videos"], expected["pixel_values_videos"])
    said = described(model, processor, Image.fromarray(picture), text="What?")
    assert len(set(said)) == 1
