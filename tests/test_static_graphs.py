"""Any change of what a graph depends on is noticed, and its end too."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from tiny_models import tiny_model

from videollm_mod.static_graphs import has_own_forward
from videollm_mod.static_ops import PlainOps
from videollm_mod.static_step import FastLanguageModel
from videollm_mod.static_vision import FastVision


def parts(model) -> dict:
    """Of either kind of graph: what knows whether it is current, and modules that it depends on, by owner and name."""
    language, tower = model.model.language_model, model.model.vision_tower
    of_language = [(model, "lm_head"), (model.model, "language_model"), (model.model, "connector")]
    of_language += [(language.layers[1], "mlp"), (language.layers[2].self_attn, "q_proj"), (language, "norm")]
    of_tower = [(model.model, "vision_tower")]
    of_tower += [(own, name) for own in list(tower.modules())[-6:] for name in own._modules]
    return {"language": (FastLanguageModel(model, PlainOps), of_language), "vision": (FastVision(model), of_tower)}


@pytest.mark.parametrize("kind", ["language", "vision"])
def test_changes_are_noticed(kind):
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
def test_a_weight_that_is_gone_is_noticed(kind):
    model = tiny_model(6)
    graphs, places = parts(model)[kind]
    owner, name = places[-1]
    part = next(part for part in getattr(owner, name).modules() if part._parameters)
    del part._parameters[next(iter(part._parameters))]
    assert not graphs.is_current
