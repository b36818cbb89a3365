"""Replies are handed out piece by piece, and can be ended early, alone and in a pool."""

from comparing import assert_same_cache
from small_data import small_model
from test_pool import QUESTIONS, images

from videollm_mod import StreamPool
from videollm_mod.speaking import StreamEvent, WatchedFrame


def speaking(**options) -> tuple[StreamPool, object, list]:
    """A pool with a stream that speaks after every frame, and what has come out of it."""
    pool, out = StreamPool(*small_model(0)), []
    stream = pool.join(speak_threshold=1.0, max_new_tokens=8, **options)
    stream.on_output = out.append
    return pool, stream, out


def test_pieces_are_the_texts_of_events():
    pool, stream, out = speaking()
    stream.push(images(0, 3))
    stream.ask(QUESTIONS[0])
    events = [event for _, event in pool.run()]
    texts, said = [""], []
    for each in out:
        if isinstance(each, str):
            texts[-1] += each
        else:
            said.append(each.event if isinstance(each, WatchedFrame) else each)
            texts.append("")
    assert said == events and texts == [event.text for event in events] + [""]
    assert [event.kind for event in events] == ["narration"] * 3 + ["answer"]


def test_watching_alone_yields_frames_only():
    model, processor = small_model(0)
    watched = list(model.stream(processor, speak_threshold=1.0, max_new_tokens=4).watch(images(0, 2)))
    assert all(isinstance(frame, WatchedFrame) and frame.event is not None for frame in watched)


def test_a_hushed_answer_equals_one_that_was_closed():
    pool, stream, out = speaking()
    stream.ask(QUESTIONS[0])
    while sum(isinstance(each, str) for each in out) < 3:
        pool.tick()
    assert stream.hush()
    (event,) = [event for _, event in pool.run()]
    assert event.text == "".join(out[:3]) and isinstance(out[-1], StreamEvent) and not stream.hush()
    model, processor = pool.model, pool.processor
    alone = model.stream(processor, speak_threshold=1.0, max_new_tokens=8)
    pieces = alone.ask_tokens(QUESTIONS[0])
    assert "".join(next(pieces) for _ in range(3)) == event.text
    pieces.close()
    for session in (alone, stream.session):
        session.push(images(1, 1))
    assert_same_cache(stream.session.cache, alone.cache)


def test_a_hushed_narration_stays_part_of_the_stream():
    for rule in ("trained", "verify"):
        pool, stream, out = speaking(speak_rule=rule)
        stream.push(images(0, 2))
        while not out:
            pool.tick()
        stream.hush()
        first, second = (event for _, event in pool.run())
        assert first.text == out[0] and len(second.text) >= len(first.text)
        assert stream.session.stats.frames == 2


def test_a_narration_hushed_before_its_first_token_is_empty():
    pool, stream, out = speaking(speak_rule="verify")
    stream.push(images(0, 1))
    while not stream.hush():
        pool.tick()
    assert [event.text for _, event in pool.run()] == [""] and out[0].event.text == ""
    stream.push(images(1, 2))
    assert len(pool.run()) >= 1 and stream.session.stats.frames == 3
