"""When graphs are captured, kept and dropped, and that any change of what they depend on is noticed."""

from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from tiny_models import tiny_model

from videollm_mod.cache import MoDCache
from videollm_mod.static_graphs import (
    Graph,
    Graphs,
    ModelGuard,
    StaticLanguageModel,
    StepsUnavailable,
    has_own_forward,
)
from videollm_mod.static_step import PlainOps
from videollm_mod.static_vision import StaticVision


def parts(model) -> dict:
    """For each kind of graph: its owner, which knows whether it is current, and the modules it depends on."""
    language, tower = model.model.language_model, model.model.vision_tower
    of_language = [(model, "lm_head"), (model.model, "language_model"), (model.model, "connector")]
    of_language += [(language.layers[1], "mlp"), (language.layers[2].self_attn, "q_proj"), (language, "norm")]
    of_tower = [(model.model, "vision_tower")]
    of_tower += [(own, name) for own in list(tower.modules())[-6:] for name in own._modules]
    return {"language": (StaticLanguageModel(model, PlainOps), of_language), "vision": (StaticVision(model), of_tower)}


@pytest.mark.parametrize("kind", ["language", "vision"])
def test_changes_of_the_model_are_noticed(kind):
    model = tiny_model(5)
    graphs, places = parts(model)[kind]
    assert graphs.is_current and len(places) > 3
    for owner, name in places:
        module = getattr(owner, name)
        setattr(owner, name, torch.nn.Identity())
        assert not graphs.is_current
        setattr(owner, name, module)
        assert graphs.is_current
        for register in (module.register_forward_hook, module.register_forward_pre_hook):
            hook = register(lambda *_: None)
            assert not graphs.is_current
            hook.remove()
            assert graphs.is_current
        add_hook_to_module(module, ModelHook())
        assert not graphs.is_current and has_own_forward(module)
        remove_hook_from_module(module)
        assert not has_own_forward(module)
        vars(module).pop("forward")  # what accelerate leaves there, the class's own
        assert graphs.is_current
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is None:
                    continue
                kept, weight.data = weight.data, weight.data.clone()
                assert not graphs.is_current
                weight.data = kept
                assert graphs.is_current
                part._parameters[name] = torch.nn.Parameter(weight.data.clone())
                assert not graphs.is_current
                part._parameters[name] = None
                assert not graphs.is_current
                part._parameters[name] = weight
                assert graphs.is_current


@pytest.mark.parametrize("kind", ["language", "vision"])
def test_a_removed_weight_is_noticed(kind):
    model = tiny_model(6)
    graphs, places = parts(model)[kind]
    owner, name = places[-1]
    part = next(part for part in getattr(owner, name).modules() if part._parameters)
    del part._parameters[next(iter(part._parameters))]
    assert not graphs.is_current


class Weight(torch.nn.Parameter):
    """As weights of bitsandbytes, which have a say in every operation."""

    asked = mock.Mock()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.asked(function)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_weights_are_looked_at_without_asking_their_class():
    """It takes several times as long, at every step."""
    model = tiny_model(5)
    linear = model.model.language_model.layers[1].mlp.up_proj
    linear.weight = Weight(linear.weight.data)
    guard = StaticLanguageModel(model, PlainOps)._guard
    Weight.asked.reset_mock()
    assert guard.holds() and not Weight.asked.called
    linear.weight.data = linear.weight.data.clone()
    assert not guard.holds()


def graphs_without_cuda(most: int, device: str = "cpu") -> Graphs:
    """`Graphs` whose capture runs the function once."""
    graphs = Graphs(most, torch.device(device))
    graphs._capture = lambda function, inputs: Graph(
        [mock.Mock(), mock.Mock()], inputs, function(*inputs, mock.Mock())
    )
    return graphs


def test_a_graph_is_captured_the_second_time_and_kept_while_in_use():
    graphs = graphs_without_cuda(most=2)

    def use(key) -> bool:
        """Whether this captured a graph."""
        if graphs.get(key) is not None or not graphs.is_due(key):
            return False
        return graphs.capture(key, lambda cut: key) is not None

    assert [use(key) for key in "aabbaac"] == [False, True, False, True, False, False, False]
    assert graphs.keys == ["b", "a"]
    assert use("c") and graphs.keys == ["a", "c"]  # the least recently used one is dropped
    assert [use("b"), use("b")] == [False, True] and graphs.keys == ["c", "b"]  # and captured as if it were new
    graphs.drop("b")
    assert graphs.get("b") is None and not graphs.is_due("b") and graphs.is_due("b")


def test_a_graph_is_replayed_on_its_own_tensors():
    own = torch.zeros(3)
    graph = graphs_without_cuda(most=1).capture("key", lambda x, cut: (x,), own)
    (output,) = graph(torch.arange(3))
    assert output is own and own.tolist() == [0, 1, 2]
    assert [part.replay.call_count for part in graph._parts] == [1, 1]
    with pytest.raises(StepsUnavailable):  # before the last part
        graph(torch.arange(3), check=mock.Mock(side_effect=StepsUnavailable))
    assert [part.replay.call_count for part in graph._parts] == [2, 1]


def test_a_graph_is_captured_in_parts(monkeypatch):
    """Each part ends where the function says so, after one call outside of a graph."""
    log, made = [], [mock.Mock(), mock.Mock()]

    @contextmanager
    def capturing(part, *options):
        log.append(("begin", made.index(part)))
        yield
        log.append(("end", made.index(part)))

    def function(x, cut):
        log.append("first")
        cut()
        log.append("second")
        return (x,)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: mock.Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", mock.Mock(side_effect=made))
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    graphs = Graphs(1, torch.device("cuda"))
    graphs._pool_and_stream = ("pool", mock.Mock())
    graph = graphs.capture("key", function, torch.zeros(2))
    parts = [("begin", 0), "first", ("end", 0), ("begin", 1), "second", ("end", 1)]
    assert log == ["first", "second", *parts] and graph._parts == made and graphs.why_not is None


@torch.no_grad()
def test_weights_of_the_last_part_are_looked_at_while_the_first_is_at_work(monkeypatch):
    model, parts = tiny_model(5), [mock.Mock(), mock.Mock()]
    language = model.model.language_model
    fast = StaticLanguageModel(model, PlainOps)
    fast._guard_of_first = ModelGuard([], [language.layers[0]])  # as with graphs
    monkeypatch.setattr(fast._graphs, "get", lambda key: Graph(parts, (), None))
    cache = MoDCache(model.config)
    fast.feed(cache, [7], None, None)
    language.layers[-1].mlp.up_proj.weight.data = language.layers[-1].mlp.up_proj.weight.data.clone()
    assert fast.may_run
    with pytest.raises(StepsUnavailable, match="the model has changed"):
        fast.feed(cache, [7], None, None)
    assert [part.replay.call_count for part in parts] == [2, 1] and not fast.may_run
    fast = StaticLanguageModel(model, PlainOps)
    fast._guard_of_first = ModelGuard([], [language.layers[0]])
    language.layers[0].mlp.up_proj.weight.data = language.layers[0].mlp.up_proj.weight.data.clone()
    assert not fast.may_run


def test_what_cannot_be_captured_is_not_tried_again():
    graphs = graphs_without_cuda(most=2)
    assert not graphs.is_due("key") and graphs.is_due("key")
    assert graphs.capture("key", mock.Mock(side_effect=RuntimeError("no memory\nat all"))) is None
    assert graphs.why_not == "a graph cannot be captured: RuntimeError: no memory"
    assert not graphs.is_due("key") and graphs.keys == []
    with pytest.raises(TypeError):  # a fault of the function, not of capturing
        graphs.capture("key", mock.Mock(side_effect=TypeError))


def test_a_stream_waits_for_the_last_use_on_another(monkeypatch):
    graphs, log = graphs_without_cuda(most=1, device="cuda"), []

    def stream(name: str):
        own = mock.Mock(wait_stream=lambda other: log.append((name, "waits for", other.own_name)))
        own.own_name = name
        return own

    streams = {name: stream(name) for name in ("first", "second")}
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    for name in ("first", "second", "second"):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda name=name: streams[name])
        with pytest.raises(ValueError), graphs.exclusive():
            log.append((name, "works"))
            raise ValueError
    assert log == [
        ("first", "works"),
        ("second", "waits for", "first"),
        ("second", "works"),
        ("second", "works"),
    ]
