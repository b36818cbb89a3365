"""Frames are encoded in one place, whoever watches them: `static_vision.encode`, which has the tower's CUDA graphs."""

import pytest
import torch
from comparing import assert_near, assert_same_events
from picture_source import Pictures
from space_servers import models

from videollm_mod import steps
from videollm_mod.data.world import world_stream
from videollm_mod.sources.live import LiveWatch
from videollm_mod.space import clips
from videollm_mod.space.lane import Controls
from videollm_mod.space.stream import Stream


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many frames each call encoded."""
    counts, encode = [], steps.encode

    def count(model, pixels):
        counts.append(len(pixels))
        return encode(model, pixels)

    monkeypatch.setattr(steps, "encode", count)
    return counts


@pytest.mark.parametrize("how", ["push", "encode", "live"])
def test_sessions_and_live_sources_encode_each_frame_once(checkpoint, encoded, how):
    frames = world_stream(31).frames(height=96)[:7]
    expected = checkpoint[0].stream(checkpoint[1]).push(frames)
    assert sum(encoded) == len(frames)
    encoded.clear()
    session, said = checkpoint[0].stream(checkpoint[1]), []
    if how == "push":
        said = session.push(frames)
    elif how == "encode":
        said = [watched.event for watched in session.watch_encoded(session.encode(frames))]
    else:
        with LiveWatch(session, Pictures(frames), "wait") as live:
            said = [watched.event for _, watched in live]
        assert live.stats["encode_seconds"] > 0
    assert sum(encoded) == len(frames)
    assert_same_events([event for event in said if event is not None], expected)


def test_two_models_of_the_space_share_what_was_encoded(encoded, tmp_path):
    stream = Stream("id", models(), clips.scene("clip", tmp_path, 12), Controls(), compare=True)
    for seconds in (0.0, 0.5, 2.0):
        stream.advance(seconds)
    seen = [len(lane.seen) for lane in stream.lanes.values()]
    assert seen == [5, 5] and encoded == [1, 1, 3]


def test_encoding_leaves_the_session_as_it_is(checkpoint):
    model, processor = checkpoint
    frames = torch.from_numpy(world_stream(32).frames(height=96)[:3]).movedim(-1, 1)
    session = model.stream(processor)
    features = session.encode(frames)
    with torch.no_grad():
        assert_near(features, model.encode_frames(processor.video_processor.to_pixels(frames)).pooler_output)
    assert session.stats.frames == 0 and session.stats.seconds["vision"] == 0 and not features.requires_grad
    with pytest.raises(ValueError, match="must be"):
        session.encode(torch.zeros(3, 5))
    for wrong in (features[:, :-1], features[0], features.tolist()):
        with pytest.raises(ValueError, match="`features` must be a tensor"):
            session.watch_encoded(wrong)
