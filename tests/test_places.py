"""What a step remembers of a cache from the previous step equals what it would find by inspecting every layer."""

import copy
import random
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from comparing import assert_same_cache
from tiny_models import ROUTINGS, SEPARATOR, START, VIDEO, tiny_model

from videollm_mod.cache import BUCKET, GrowingTensor, MoDCache, Places
from videollm_mod.memory import KeyRotation
from videollm_mod.static_graphs import StaticLanguageModel
from videollm_mod.static_step import PlainOps

HEADS, DTYPE, DEVICE = (2, 8), torch.float32, torch.device("cpu")


def frames_of(model, rng: random.Random, count: int) -> tuple[list[int], torch.Tensor]:
    ids = ([rng.choice((START, SEPARATOR))] + [VIDEO] * model.config.num_frame_tokens) * count
    return ids, torch.randn(count, model.config.num_frame_tokens, model.config.vision_config.hidden_size)


class Watched(StaticLanguageModel):
    """Counts the steps that remember all places, and compares each table with the layers."""

    known = 0

    def _forward(self, step):
        for number, cache in enumerate(step._caches):
            rows = step.table[:, number].tolist()
            base = cache.seen_tokens - number * step.shape.tokens
            for row, layer, added in zip(rows, cache.layers, step._added[:, number].tolist(), strict=True):
                tensors = [layer.growing[name] for name in ("keys", "values", "positions")]
                held = [layer.keys, layer.values, layer.positions]
                assert all(own is tensor.view for own, tensor in zip(held, tensors, strict=True))
                addresses = [tensor.buffer.data_ptr() for tensor in tensors]
                capacity, length = tensors[0].buffer.shape[2], layer.get_seq_length()
                assert row == [*addresses, length, capacity, base, added, 0] and length + added <= capacity
                assert length >= max(tensor.shared for tensor in tensors)
            self.known += step._places[number] is getattr(cache._places, "table", None)
        super()._forward(step)


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_any_interleaving_of_steps_and_other_changes(seed):
    """Streams in static steps, alone and together, with rollbacks, forks, copies, eviction, the model's own calls and
    inference mode in between, are compared with caches that only the model's calls fill."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    names = [name for name in ("learned", "full", "difference") if name in ROUTINGS]
    model = tiny_model(seed, **ROUTINGS[names[seed % len(names)]])
    fast = Watched(model, PlainOps)
    rotation = KeyRotation(model.model.language_model.rotary_emb)
    pairs = [(MoDCache(model.config), MoDCache(model.config)) for _ in range(3)]

    def by_the_model(cache, ids, features):
        inputs = {} if features is None else {"video_features": features}
        model(input_ids=torch.tensor([ids]), past_key_values=cache, **inputs)

    for _ in range(40):
        chosen = rng.sample(pairs, rng.choice((1, 1, 1, 2, 3)))
        action = rng.choice(["step"] * 8 + ["model", "rollback", "fork", "deepcopy", "forget", "inference", "clear"])
        cache, expected = chosen[0]
        end = cache.get_seq_length()
        if action in ("step", "inference"):
            count = rng.choice((1, 1, 1, 2))
            fed = [(*pair, *frames_of(model, rng, count)) for pair in chosen]
            if rng.random() < 0.2:
                fed = [(*pair, [START] * rng.choice((1, 3, 20)), None) for pair in chosen]
            for _, other, ids, features in fed:
                by_the_model(other, ids, features)
            with torch.inference_mode() if action == "inference" else nullcontext():
                fast.feed_together([(own, ids, features) for own, _, ids, features in fed], None)
        elif action == "model":
            ids, features = frames_of(model, rng, 1)
            for own in chosen[0]:
                by_the_model(own, ids, features)
        elif action == "rollback" and end:
            position = rng.choice((end, end - 1, rng.randint(0, end)))
            cache.rollback(position), expected.rollback(position)
        elif action in ("fork", "deepcopy") and len(pairs) < 6:
            make = MoDCache.copy if action == "fork" else copy.deepcopy
            pairs.append((make(cache), copy.deepcopy(expected)))
            rng.shuffle(pairs)
        elif action == "forget" and end:
            leaving = torch.rand(end) < 0.3
            cache.forget(leaving, rotation), expected.forget(leaving, rotation)
        elif action == "clear":
            cache.reset(), expected.reset()
        for own, other in pairs:
            if other.next_position is not None:
                assert_same_cache(own, other)
            else:
                assert own.seen_tokens == 0
    assert fast.known > 5


def new_cache(layers: int = 2) -> tuple[MoDCache, np.ndarray]:
    """A cache with 3 tokens that remembers their places."""
    cache = MoDCache(mock.Mock(**{"get_text_config.return_value": mock.Mock(num_hidden_layers=layers)}))
    counts = np.full(layers, 3)
    cache.lengthen(cache.reserve(counts, HEADS, DTYPE, DEVICE), counts)
    cache.advance_stream(3, range(0), DEVICE)
    return cache, counts


def test_remembered_places_are_dropped_on_any_change():
    def replace(name):
        return lambda layer: setattr(layer, name, getattr(layer, name).clone())

    changes = [lambda layer, n=name: replace(n)(layer) for name in ("keys", "values", "positions")]
    changes += [
        lambda layer: layer.shorten(2),
        lambda layer: layer.lengthen(1),
        lambda layer: layer.reset(),
        lambda layer: layer.offload() if torch.cuda.is_available() else layer._drop_buffers(),
        lambda layer: layer.select_rows(torch.tensor([0])),
        lambda layer: layer.record(torch.tensor([[5]]), None),
        lambda layer: layer.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8)),
        lambda layer: layer.reserve(10 * BUCKET, HEADS, DTYPE, DEVICE),
    ]
    for change in changes:
        for number in range(2):
            cache, counts = new_cache()
            assert cache._places.fit(cache.layers, counts)
            with torch.no_grad():
                change(cache.layers[number])
            assert not cache._places.fit(cache.layers, counts)
    cache, counts = new_cache()
    free = BUCKET - 3
    assert cache._places.fit(cache.layers, np.full(2, free))
    assert not cache._places.fit(cache.layers, np.array([free, free + 1]))
    for other in (cache.copy(), copy.deepcopy(cache)):
        assert other._places is None or not other._places.fit(other.layers, counts)
    cache.reset()
    assert cache._places is None


def test_a_step_makes_no_views(monkeypatch):
    """They are made when they are read, of all that was written since."""
    model, views, lengthen = tiny_model(0), [], GrowingTensor.lengthen
    fast, cache = StaticLanguageModel(model, PlainOps), MoDCache(model.config)
    rng = random.Random(0)
    with torch.no_grad():
        fast.feed(cache, *frames_of(model, rng, 1), None)
        monkeypatch.setattr(GrowingTensor, "lengthen", lambda *own: views.append(own) or lengthen(*own))
        for _ in range(3):
            fast.feed(cache, *frames_of(model, rng, 1), None)
    assert not views and cache.num_bytes and not views
    count = model.config.num_frame_tokens + 1
    assert cache.layers[0].keys.shape[2] == cache.layers[0].positions.shape[1] == 4 * count and len(views) == 3
    assert cache.next_position.tolist() == [4 * count] and cache.num_frames.tolist() == [4]
    assert cache.num_bytes == sum(own.nbytes for layer in cache.layers for own in (layer.keys, layer.values))


def test_remembered_places_hold_no_tensor():
    places = Places(np.zeros((2, 5), np.int64))
    assert not any(isinstance(value, torch.Tensor) for value in vars(places).values())
    with torch.inference_mode():
        places = Places(np.zeros((0, 5), np.int64))
        assert places.fit([], np.zeros(0, np.int64))
    assert not places.fit([], np.zeros(0, np.int64))
