"""What differs between releases of transformers, such as the cache's name, and what they do not document."""

import importlib.util
import inspect
import sys

import pytest
import torch
from fresh_process import ROOT
from tiny_models import FIRST_WORD, random_batch, tiny_model
from transformers import GenerationMixin, __version__
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import ProcessorMixin

from videollm_mod import MoDCache, modeling_text
from videollm_mod.compat import CACHE_NAME, CACHE_NAMES, ProcessorWithoutTorchvision

HERE = f"transformers {__version__}"


def parts_of(model, row):
    """The three models that take a cache, each with its inputs."""
    embeds = model.get_input_embeddings()(row["input_ids"])
    return [(model, row), (model.model, row), (model.model.language_model, {"inputs_embeds": embeds})]


@pytest.mark.parametrize("part", range(3))
def test_the_cache_has_both_names(part):
    model = tiny_model(part)
    _, (row,) = random_batch(model, part, [3])
    model, inputs = parts_of(model, row)[part]
    word = {"input_ids": torch.tensor([[FIRST_WORD]])}
    results = []
    for name in CACHE_NAMES:
        output = model(**inputs, **{name: MoDCache(model.config)})
        for other in CACHE_NAMES:
            assert other in output and getattr(output, other) is output[other] is output.get(other) is output[name]
        results.append(model(**word, **{name: output[name]})[0])
        assert output[name].get_seq_length() == row["input_ids"].shape[1] + 1
    assert torch.equal(*results)
    assert sum(isinstance(value, MoDCache) for value in output.to_tuple()) == 1
    output.past_key_values = None
    assert output.cache is None
    with pytest.raises(ValueError, match="only one of `cache` and `past_key_values`"):
        model(**word, **{name: MoDCache(model.config) for name in CACHE_NAMES})


def test_generation_takes_and_returns_the_cache_by_both_names():
    model = tiny_model(3)
    _, (row,) = random_batch(model, 3, [2])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    expected = model.generate(**row, **options).sequences
    for name in CACHE_NAMES:
        cache = MoDCache(model.config)
        output = model.generate(**row, **options, **{name: cache})
        assert torch.equal(output.sequences, expected) and output[CACHE_NAME] is cache
        assert cache.get_seq_length() == expected.shape[1] - 1


@pytest.mark.parametrize("part", range(3))
def test_arguments_that_nothing_reads_are_refused(part):
    model = tiny_model(part)
    _, (row,) = random_batch(model, part, [1])
    model, inputs = parts_of(model, row)[part]
    expected = model(**inputs)[0]
    for name in ("past_key_value", "mems", "pixel_value", "keep_rato"):
        with pytest.raises(ValueError, match=f"nothing reads: `{name}`"):
            model(**inputs, **{name: torch.zeros(1)})
        assert torch.equal(model(**inputs, **{name: None})[0], expected)
    output = model(**inputs, output_hidden_states=True, output_attentions=False, return_dict=True, is_causal=True)
    assert torch.equal(output[0], expected) and output.hidden_states is not None


def test_a_cache_given_in_training_is_updated_once():
    model = tiny_model(4).train()
    _, (row,) = random_batch(model, 4, [2])
    expected = model(**row, cache=(cache := MoDCache(model.config))).logits
    model.activation_checkpointing_enable()
    other = MoDCache(model.config)
    assert torch.equal(model(**row, past_key_values=other).logits, expected)
    for layer, same in zip(other.layers, cache.layers, strict=True):
        assert torch.equal(layer.positions, same.positions)


def test_checkpointing_has_both_names():
    model = tiny_model(5).train()
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        if not hasattr(model, f"{name}_enable"):
            continue  # gone in transformers 6
        getattr(model, f"{name}_enable")({"recompute": "mlp"})
        assert {layer.recompute for layer in model.model.language_model.layers} == {"mlp"}
        getattr(model, f"{name}_disable")()
        assert {layer.recompute for layer in model.model.language_model.layers} == {"none"}


@pytest.mark.parametrize("owner", [CausalLMOutputWithPast, GenerationMixin])
def test_transformers_still_names_the_cache_as_assumed(owner):
    """Outputs have it as a field, and `prepare_inputs_for_generation` as an argument."""
    if owner is GenerationMixin:
        names = inspect.signature(owner.prepare_inputs_for_generation).parameters
    else:
        names = owner.__dataclass_fields__
    assert CACHE_NAME in names, f"{HERE} does not name the cache in {owner.__name__} `{CACHE_NAME}` as elsewhere"


def test_a_release_without_a_required_part_is_named(monkeypatch):
    """If a name is missing, importing the package says so."""

    def load_again() -> None:
        spec = importlib.util.spec_from_file_location("compat_again", ROOT / "compat.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    load_again()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers.utils.output_capturing", None)
        with pytest.raises(ImportError, match=f"{HERE} has no `capture_outputs`"):
            load_again()
    monkeypatch.setattr("dataclasses.fields", lambda _: ())
    with pytest.raises(ImportError, match=f"outputs of {HERE} name the cache neither `cache` nor `past_key_values`"):
        load_again()


def test_transformers_still_captures_hidden_states():
    model = tiny_model(6)
    _, (row,) = random_batch(model, 6, [1])
    output = model(**row, output_hidden_states=True)
    layers = len(model.model.language_model.layers)
    assert output.hidden_states is not None and len(output.hidden_states) == layers + 1, (
        f"{HERE} no longer fills `hidden_states` from `_can_record_outputs` and `capture_outputs`"
    )


def test_transformers_still_sets_gradient_checkpointing_on_layers(monkeypatch):
    """`set_recomputing` reads it from the layer's `gradient_checkpointing`."""
    told = []
    monkeypatch.setattr(
        modeling_text,
        "set_recomputing",
        lambda layers, *_: told.extend(layer.gradient_checkpointing for layer in layers),
    )
    model = tiny_model(7)
    model.activation_checkpointing_enable()
    assert told and all(told), f"{HERE} no longer sets `gradient_checkpointing` on layers"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check_argument_for_proper_class", ("argument_name", "argument")),
        ("_get_arguments_from_pretrained", ("pretrained_model_name_or_path", "processor_dict")),
        ("_load_tokenizer_from_pretrained", ("sub_processor_type", "pretrained_model_name_or_path")),
        ("_merge_kwargs", ("tokenizer_init_kwargs",)),
    ],
)
def test_transformers_processors_still_have(name, arguments):
    """`ProcessorWithoutTorchvision` overrides the first two of these, and calls the others."""
    method = getattr(ProcessorMixin, name, None)
    assert method is not None, f"transformers' ProcessorMixin has no `{name}` any more: see compat.py"
    missing = set(arguments) - inspect.signature(method).parameters.keys()
    assert not missing, f"`ProcessorMixin.{name}` takes no `{', '.join(missing)}` any more: see compat.py"


def test_a_processor_is_checked_and_loaded_by_its_own_class(checkpoint, monkeypatch):
    """transformers still calls the methods that are overridden."""
    _, processor = checkpoint
    asked = []
    for name in ("check_argument_for_proper_class", "_get_arguments_from_pretrained"):
        own = getattr(ProcessorWithoutTorchvision, name)
        plain = getattr(own, "__func__", own)

        def noted(self, *arguments, _name=name, _plain=plain, **options):
            asked.append(_name)
            return _plain(self, *arguments, **options)

        monkeypatch.setattr(ProcessorWithoutTorchvision, name, classmethod(noted) if own is not plain else noted)
    type(processor).from_pretrained(ROOT)
    assert asked == ["_get_arguments_from_pretrained", *["check_argument_for_proper_class"] * 2], (
        "transformers no longer asks these methods of a processor: see compat.py"
    )
    with pytest.raises(TypeError, match="`video_processor` must be a VideoLLMMoDVideoProcessor, got str"):
        type(processor)("none", processor.tokenizer)
