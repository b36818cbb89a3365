"""Streams in lockstep say the same as single sessions."""

import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from videollm_mod.benchmarks import world_rows
from videollm_mod.benchmarks.world_scores import exact_narrations, self_conditioned
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_hard import SPLITS
from videollm_mod.data.world_streams import FPS, Streams, encoded_streams, normalised_sprites, pixels
from videollm_mod.evaluation.lockstep import narrate_in_lockstep


@pytest.mark.parametrize("row", ["dense", "mod", "random", "layer_skip", "class_token"])
def test_lockstep_equals_sessions(row, tmp_path):
    seed = zlib.crc32(row.encode()) % 100
    torch.manual_seed(seed)
    args = SimpleNamespace(layers=3, hidden=32, seed=seed)
    model, processor = world_rows.build(row, "hard_small", args)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    bank, seeds = normalised_sprites(processor, "cpu"), range(SPLITS["validation"], SPLITS["validation"] + 3)
    streams = [world_stream(seed, "hard_small") for seed in seeds]
    codes = [torch.from_numpy(stream.codes()[stream.shown(FPS)]) for stream in streams]
    padded = torch.nn.utils.rnn.pad_sequence(codes, batch_first=True)
    num_frames = torch.tensor([len(frames) for frames in codes])
    spoke = 0
    for threshold in (0.001, 0.02):
        in_step = narrate_in_lockstep(
            model,
            processor,
            lambda some, count: pixels(bank, padded[some, :count]),
            num_frames,
            threshold=threshold,
            max_reply=5,
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


class Knows(torch.nn.Module):
    """A model that knows the next token of every stream."""

    def __init__(self, rows: list[list[int]], vocab_size: int):
        super().__init__()
        self.rows, self.vocab_size, self.lm_head = rows, vocab_size, torch.nn.Identity()

    def model(self, input_ids, **_):
        return SimpleNamespace(last_hidden_state=self(input_ids).logits)

    def forward(self, input_ids, **_):
        following = torch.zeros_like(input_ids)
        for index, ids in enumerate(input_ids.tolist()):
            shared = [int(np.cumprod([a == b for a, b in zip(ids, row, strict=False)]).sum()) for row in self.rows]
            common, row = max(zip(shared, self.rows, strict=True))
            following[index, :common] = torch.tensor([*row, row[-1]][1 : common + 1])
        return SimpleNamespace(logits=50.0 * torch.nn.functional.one_hot(following, self.vocab_size).float())


def test_perfect_model_gets_full_scores(tmp_path):
    _, processor = world_rows.build("dense", "hard_small", SimpleNamespace(layers=2, hidden=32, seed=0))
    groups = encoded_streams("hard_small", "validation", 6, processor, tmp_path)
    streams = Streams(groups, 10, processor.video_token_id, "cpu")
    rows = [row.tolist() for group in streams.groups for row in group[0]]
    bank = normalised_sprites(processor, "cpu")
    oracle = Knows(rows, len(processor.tokenizer))
    assert exact_narrations(oracle, streams, bank, processor)["exact"] == 100
    for group in groups[:2]:  # one at a time, since streams have the same beginning
        streams = Streams([[part[:1] for part in group]], 10, processor.video_token_id, "cpu")
        oracle = Knows(streams.groups[0][0].tolist(), len(processor.tokenizer))
        scores = self_conditioned(oracle, streams, bank, processor)
        assert (scores["f1"], scores["worded_f1"], scores["exact"]) == (100, 100, 100)
        assert scores["said"] == scores["true"] == 8
