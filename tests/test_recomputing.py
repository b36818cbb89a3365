"""Losses and gradients do not depend on what training recomputes, or on the chunks of the loss."""

import gc

import pytest
import torch
from comparing import assert_near
from gradients import assert_same, enable, loss_and_gradients, trainable
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from short_training import stream_labels
from tiny_models import ROUTINGS, random_batch, tiny_model
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from videollm_mod import recomputing
from videollm_mod.recomputing import CHOICES
from videollm_mod.training.adapters import LoraOptions, add_lora
from videollm_mod.training.lora_linear import LoraLinear

MIXED = {"pairs": 2, "attention": 1, "activation": 1, "none": 1}


def depth(recompute) -> dict[str, int]:
    """As many layers as a mixture names; otherwise a pair, one that is left over, and routed ones between others."""
    return {"num_hidden_layers": 5 if recompute == MIXED else 3}


# with and without routed layers; each of the other routings with some of the choices
ROUTED = [(recompute, routing) for recompute in [*CHOICES, MIXED] for routing in ("learned", "full")]
ROUTED += [*zip([*CHOICES, MIXED], ("output gate", "all layers", "early exit") * 3, strict=False)]


@pytest.mark.parametrize(("recompute", "routing"), ROUTED, ids=str)
def test_gradients_equal_those_without_recomputing(recompute, routing, monkeypatch):
    monkeypatch.setattr(recomputing, "CHUNK_TOKENS", 7)
    seed = CHOICES.index(recompute) if recompute in CHOICES else 9
    model, batch = trainable(seed, **ROUTINGS[routing], **depth(recompute), attention_dropout=0.2)
    plain = loss_and_gradients(model, batch)
    enable(model, recompute)
    assert_same(loss_and_gradients(model, batch), plain)
    assert_same(loss_and_gradients(model, batch, use_cache=True), plain)
    model.gradient_checkpointing_disable()
    assert_same(loss_and_gradients(model, batch), plain, tolerance=0)


@pytest.mark.parametrize(
    ("recompute", "dropout"), [*((each, 0.3) for each in (*CHOICES, MIXED)), (MIXED, 0.0)], ids=str
)
def test_gradients_of_adapters_equal_those_without_recomputing(recompute, dropout):
    model, batch = trainable(11, LoraOptions(r=4, alpha=8, dropout=dropout), **depth(recompute))
    plain = loss_and_gradients(model, batch)
    enable(model, recompute)
    assert_same(loss_and_gradients(model, batch), plain)


ORDERED = ("activation", "mlp", "attention", "entered")


def operations(model, batch, recompute) -> int:
    enable(model, recompute)
    in_place = {torch.ops.aten.addmm_: lambda added, a, b, *args, **kwargs: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        loss_and_gradients(model, batch, use_cache=False)
    run = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    return sum(count for name, count in run.items() if name.split(".")[-1] in ("mm", "addmm", "addmm_"))


def test_the_last_product_is_not_recomputed(monkeypatch):
    """No gradient needs it, and in an MLP it is a third of the work."""
    monkeypatch.setattr(recomputing, "CHUNK_TOKENS", 7)
    model, batch = trainable(5, LoraOptions(r=2, alpha=4), vision_routing="full", num_hidden_layers=2)
    text, tokens = model.config.text_config, batch["input_ids"].numel()
    hidden, inner, heads = text.hidden_size, text.intermediate_size, text.num_key_value_heads * text.head_dim
    done = {choice: operations(model, batch, choice) for choice in ("none", *ORDERED)}

    def adapter(inputs: int, outputs: int) -> int:
        return 2 * tokens * 2 * (inputs + outputs)

    def linear(inputs: int, outputs: int) -> int:
        return 2 * tokens * inputs * outputs + adapter(inputs, outputs)

    layers = text.num_hidden_layers
    narrow = 2 * tokens * 2 * inner
    assert done["activation"] - done["none"] == layers * narrow
    assert done["mlp"] - done["activation"] == layers * 2 * linear(hidden, inner)
    projections = 2 * linear(hidden, hidden) + 2 * linear(hidden, heads)
    assert done["attention"] - done["mlp"] == layers * projections
    assert done["entered"] == done["attention"]  # attention itself is no such product


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chunked_loss_equals_the_whole_one(seed, dtype, monkeypatch):
    torch.manual_seed(seed)
    rows, hidden, vocabulary = 37, 16, 50
    head = nn.Linear(hidden, vocabulary, bias=False, dtype=dtype)
    states = torch.randn(rows, hidden, dtype=dtype, requires_grad=True)
    targets, weights = torch.randint(vocabulary, (rows,)), torch.rand(rows)
    expected = cross_entropy(head(states).float(), targets, reduction="none")
    wanted = torch.autograd.grad((expected * weights).sum(), [states, head.weight])
    monkeypatch.setattr(recomputing, "CHUNK_LOGITS", 8 * vocabulary)
    sizes = []
    head.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    losses = recomputing.head_losses(head, states, targets, vocabulary)
    # eight rows at once may be rounded elsewhere than 37: by a unit of the last place of each dtype
    assert sizes == [8, 8, 8, 8, 5]
    assert_near(losses, expected, 1e-5 if dtype == torch.float32 else 1e-2)
    got = torch.autograd.grad((losses * weights).sum(), [states, head.weight])
    # a sum over chunks is rounded to the gradient's dtype once a chunk
    for value, reference in zip(got, wanted, strict=True):
        error = (value - reference).float().norm() / reference.float().norm()
        assert error < (1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_the_model_in_chunks_equals_the_whole_one(seed, monkeypatch):
    model, batch = trainable(seed, LoraOptions(r=4, alpha=8))
    plain = loss_and_gradients(model, batch)
    monkeypatch.setattr(recomputing, "CHUNK_LOGITS", 3 * model.config.text_config.vocab_size)
    assert_same(loss_and_gradients(model, batch), plain)


class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 9), nn.Linear(9, 5, bias=False)

    def forward(self, x):
        return self.two(self.one(x).tanh())


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"lora_dropout": 0.5}, {"use_rslora": True}], ids=str)
@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6)])
def test_lora_linear_equals_pefts_layer(options, shape):
    torch.manual_seed(0)
    model = get_peft_model(
        Biased(), LoraConfig(r=3, target_modules=["one", "two"], init_lora_weights=False, **options)
    )
    x = torch.randn(shape, requires_grad=True)

    def run(layer: type):
        for module in model.modules():
            if isinstance(module, Linear):
                module.__class__ = layer
        torch.manual_seed(1)
        out = model(x)
        inputs = [x, *(p for p in model.parameters() if p.requires_grad)]
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    for got, expected in zip(run(LoraLinear), run(Linear), strict=True):
        assert_near(got, expected)
    with model.disable_adapter():
        out = model(x)
    model.merge_adapter()
    assert (model(x) - out).abs().max() > 0.01


@pytest.mark.parametrize(
    ("recompute", "message"),
    [("all", "must be one of pairs, entered, .*, got 'all'"), ({"layer": 2, "mlp": 2}, "the choices of 5 layers")],
)
def test_unknown_choices_are_named(recompute, message):
    with pytest.raises(ValueError, match=message):
        enable(tiny_model(0), recompute)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        tiny_model(0).gradient_checkpointing_enable({"use_reentrant": True, "recompute": "mlp"})


def test_the_vision_tower_recomputes_as_transformers_says():
    model = tiny_model(0).train()
    batch, _ = random_batch(model, 0, [2], pixels=True)
    enable(model, "mlp")
    layers, runs = model.model.vision_tower.encoder.layers, []
    for layer in layers:
        layer.self_attn.register_forward_hook(lambda *_: runs.append(1))
    loss_and_gradients(model, {**batch, "labels": stream_labels(batch, 0)})
    assert len(runs) == 2 * len(layers)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_recomputed_is_not_kept(seed):
    """Three layers share two results. Neither these nor views of them are kept, and gradients stay the same."""
    torch.manual_seed(seed)
    norm = nn.LayerNorm(6)
    maps = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    x = torch.randn(2, 5, 6, requires_grad=True)
    calls = []

    def halves(x):
        calls.append(x)
        return norm(x).chunk(2, dim=-1)  # of one storage

    def result(first, second):
        return sum((one(first.transpose(0, 1)) * one(second).tanh().transpose(0, 1)).sum() for one in maps)

    inputs = [x, *norm.parameters(), *maps.parameters()]
    expected = torch.autograd.grad(result(*halves(x)), inputs)
    for repeat in range(2):
        calls.clear()
        with recomputing.recomputed(halves, x) as made:
            loss = result(*made)
        for again in (True, False):  # the graph may be used twice
            got = torch.autograd.grad(loss, inputs, retain_graph=again)
            for value, reference in zip(got, expected, strict=True):
                assert_near(value, reference)
        assert len(calls) == 3, repeat


def without_padding(model, batch) -> dict[str, torch.Tensor]:
    """The first row of a batch, which is its longest, without a mask."""
    whole = {name: batch[name][:1] for name in ("input_ids", "labels")}
    frames = int((whole["input_ids"] == model.config.video_token_id).sum()) // model.config.num_frame_tokens
    return {**whole, "video_features": batch["video_features"][:frames]}


@pytest.mark.parametrize("routing", ["learned", "full"])
def test_attention_without_a_mask_is_kept_without_a_checkpoint(routing, monkeypatch):
    model, batch = trainable(4, LoraOptions(r=4, alpha=8), **ROUTINGS[routing])
    whole = without_padding(model, batch)
    plain = loss_and_gradients(model, whole)
    monkeypatch.setattr(recomputing, "with_attention_kept", None)
    enable(model, "attention")
    assert_same(loss_and_gradients(model, whole), plain)


@pytest.mark.parametrize("recompute", CHOICES)
@pytest.mark.parametrize("padding", [True, False])
def test_recomputing_uses_the_autocast_of_the_forward_pass(recompute, padding):
    """As in the Trainer: frozen weights in bfloat16, adapters in float32, the backward pass outside of autocast."""
    model, batch = trainable(6, **depth(recompute))
    model = add_lora(model.bfloat16(), LoraOptions(r=4, alpha=8)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
        if "lora_" in name:
            assert parameter.dtype == torch.float32
    batch = batch if padding else without_padding(model, batch)

    def run():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = run()
    enable(model, recompute)
    got = run()
    assert_near(got[0], plain[0], 1e-3)  # in bfloat16, whose roundings fall otherwise where pieces are computed
    assert got[1].keys() == plain[1].keys()
    norm = sum(value.square().sum() for value in plain[1].values()) ** 0.5
    assert sum((got[1][name] - value).square().sum() for name, value in plain[1].items()) ** 0.5 < 0.02 * norm


class Made(TorchDispatchMode):
    """All storages that operations allocate, also those that only a graph holds, except those of `others`."""

    def __init__(self, others):
        super().__init__()
        self.others = {StorageWeakRef(tensor.untyped_storage()) for tensor in others}
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = StorageWeakRef(tensor.untyped_storage())
                if storage not in self.others:
                    self.storages[storage.cdata] = storage, tensor.untyped_storage().nbytes()
        return out

    def live_bytes(self) -> int:
        return sum(size for storage, size in self.storages.values() if not storage.expired())


# every pair of the three, not every combination
STEPS = [
    (recompute, adapted, adapted == bool(index % 2))
    for index, recompute in enumerate([*CHOICES, MIXED])
    for adapted in (True, False)
]


@pytest.mark.parametrize(("recompute", "adapted", "padding"), STEPS, ids=str)
def test_no_tensor_outlives_its_step(recompute, adapted, padding, monkeypatch):
    """Nor a step that ends before its backward pass, as when memory runs out. Without the garbage collector."""
    monkeypatch.setattr(recomputing, "CHUNK_TOKENS", 7)
    model, batch = trainable(7, **depth(recompute))
    if adapted:  # in the dtype of their layers, so that they compute as `LoraLinear` does
        model = add_lora(model, LoraOptions(r=4, alpha=8)).train()
    batch = batch if padding else without_padding(model, batch)
    enable(model, recompute)
    made = Made([*model.parameters(), *model.buffers(), *batch.values()])
    gc.collect()
    gc.disable()
    try:
        for ends_early in (False, False, True):
            with made:
                loss = model(**batch, use_cache=False).loss
                if not ends_early:
                    loss.backward()
            assert made.live_bytes() > 0
            del loss
            model.zero_grad(set_to_none=True)
            assert made.live_bytes() == 0
    finally:
        gc.enable()
