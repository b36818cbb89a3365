"""Streams in step say what each says in a session of its own."""

from types import SimpleNamespace

import pytest
import torch

from videollm_mod.benchmarks import world_rows
from videollm_mod.benchmarks.world_scores import self_conditioned, true_narrations
from videollm_mod.data.world_hard import SPLITS
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_streams import FPS, Streams, encoded_streams, normalised_sprites, pixels
from videollm_mod.evaluation.lockstep import narrate_in_step


@pytest.mark.parametrize("row", ["dense", "mod", "random", "layer_skip", "class_token"])
def test_in_step_is_what_sessions_say(row, tmp_path):
    torch.manual_seed(hash(row) % 100)
    args = SimpleNamespace(layers=3, hidden=32, seed=hash(row) % 100)
    model, processor = world_rows.build(row, "hard_small", args)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    bank, seeds = normalised_sprites(processor, "cpu"), range(SPLITS["validation"], SPLITS["validation"] + 4)
    streams = [world_stream(seed, "hard_small") for seed in seeds]
    codes = [torch.from_numpy(stream.codes()[stream.shown(FPS)]) for stream in streams]
    padded = torch.nn.utils.rnn.pad_sequence(codes, batch_first=True)
    num_frames = torch.tensor([len(frames) for frames in codes])
    spoke = 0
    for threshold in (0.001, 0.02):
        in_step = narrate_in_step(
            model, processor, lambda some, count: pixels(bank, padded[some, :count]), num_frames, threshold, max_reply=5
        )
        for stream, said in zip(streams, in_step, strict=True):
            session = model.stream(processor, speak_threshold=threshold, max_new_tokens=5)
            frames = torch.from_numpy(stream.frames(FPS, 24)).permute(0, 3, 1, 2)
            events = session.push(frames, stream.frame_times(FPS).tolist())
            assert [(event.time, event.text) for event in events] == [
                (index / FPS, processor.decode(tokens, skip_special_tokens=True).strip()) for index, tokens in said
            ]
            spoke += len(said)
    assert 0 < spoke < 2 * int(num_frames.sum())
