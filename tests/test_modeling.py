"""The routed forward against a naive one, against stock Llama, and against itself in pieces and in batches."""

import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch
from comparing import assert_near, assert_near_gradients
from naive_forward import naive_forward
from tiny_models import (
    FIRST_WORD,
    PAD,
    ROUTINGS,
    SEPARATOR,
    VIDEO,
    frame_cuts,
    random_batch,
    run_in_pieces,
    tiny_config,
    tiny_model,
)
from torch.nn.attention.bias import causal_lower_right
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from videollm_mod import MoDCache, modeling_text, modeling_videollm_mod
from videollm_mod.configuration_videollm_mod import VideoLLMMoDTextConfig
from videollm_mod.modeling_text import attend_in_groups
from videollm_mod.modeling_videollm_mod import VideoLLMMoDForConditionalGeneration


def stock_llama(model) -> LlamaForCausalLM:
    """A `LlamaForCausalLM` with the model's text weights."""
    fields = LlamaConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    text = model.config.text_config.to_dict()
    llama = LlamaForCausalLM(LlamaConfig(**{key: text[key] for key in fields if key in text})).eval()
    state = {
        name.removeprefix("model.language_model."): value
        for name, value in model.state_dict().items()
        if name.startswith("model.language_model.") and "layer_expert" not in name
    }
    llama.model.load_state_dict(state)
    llama.lm_head.load_state_dict(model.lm_head.state_dict())
    return llama


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_forward_and_gradients_match_a_naive_forward(name, seed):
    seed += 10 * list(ROUTINGS).index(name)
    shape = random.Random(seed).choice([{}, {"pooled": (1, 2), "cls": False}, {"pooled": (3, 2)}, {"pooled": None}])
    model = tiny_model(seed, num_hidden_layers=4, **shape, **ROUTINGS[name])
    rng = random.Random(seed)
    _, (row,) = random_batch(model, seed, [rng.randint(1, 3)])
    ratios = None if seed % 2 else [rng.choice((0.1, 0.2, 0.5, 1.0)) for _ in row["video_features"]]
    out = model(**row, output_router_scores=True, keep_ratio=ratios)
    expected, kept = naive_forward(model, row["input_ids"][0].tolist(), row["video_features"], ratios)
    assert_near(out.logits[0], expected)
    for layer_idx, indices in enumerate(out.kept_indices):
        assert (indices is None) == (layer_idx not in kept)
        if indices is not None:
            most = max(map(len, kept[layer_idx]))
            assert indices.tolist() == [[*own, *[-1] * (most - len(own))] for own in kept[layer_idx]]

    parameters, probe = dict(model.named_parameters()), torch.randn_like(expected)

    def gradients(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.autograd.grad((logits * probe).sum(), list(parameters.values()), materialize_grads=True)
        return dict(zip(parameters, found, strict=True))

    assert_near_gradients(gradients(out.logits[0]), gradients(expected))


@pytest.mark.parametrize("seed", range(3))
def test_without_routing_the_model_equals_stock_llama(seed):
    """With its own embeddings fed to a stock Llama, the dense model is that Llama."""
    model = tiny_model(seed, vision_routing="full", tie_word_embeddings=bool(seed % 2))
    llama = stock_llama(model)
    batch, _ = random_batch(model, seed, [2, 0, 3])
    layout = model.model.lay_out(batch["input_ids"])
    embeds = model.model._put_frames(
        model.get_input_embeddings()(batch["input_ids"]), layout, None, batch["video_features"]
    )
    expected = llama(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    logits = model(**batch).logits
    mask = batch["attention_mask"].bool()
    assert_near(logits[mask], expected[mask])


@pytest.mark.parametrize("name", ROUTINGS)
def test_text_only_equals_stock_llama(name):
    model = tiny_model(3, **ROUTINGS[name])
    llama = stock_llama(model)
    batch, _ = random_batch(model, 3, [0, 0, 0])
    mask = batch["attention_mask"].bool()
    out, expected = model(**batch), llama(**batch)
    assert_near(out.logits[mask], expected.logits[mask])
    greedy = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [VIDEO], "pad_token_id": PAD}
    assert torch.equal(model.generate(**batch, **greedy), llama.generate(**batch, **greedy))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["learned", "random", "layer skip", "change", "difference"])
def test_packed_sequences_do_not_see_each_other(implementation, name):
    """Positions that restart mark packed sequences, as in stock Llama, in routed layers too."""
    model = tiny_model(4, **ROUTINGS[name])
    model.set_attn_implementation(implementation)
    _, rows = random_batch(model, 4, [2, 0, 1])
    lengths = [row["input_ids"].shape[1] for row in rows]
    packed = model(
        input_ids=torch.cat([row["input_ids"] for row in rows], dim=1),
        video_features=torch.cat([row["video_features"] for row in rows if "video_features" in row]),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        use_cache=False,
    ).logits
    alone = torch.cat([model(**row).logits for row in rows], dim=1)
    assert_near(packed, alone)


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padded_batch_equals_each_row_alone(name, implementation):
    seed = list(ROUTINGS).index(name)
    model = tiny_model(seed, **ROUTINGS[name])
    model.set_attn_implementation(implementation)
    batch, rows = random_batch(model, seed, [2, 0, 4, 1])
    logits = model(**batch).logits
    for index, row in enumerate(rows):
        expected = model(**row).logits[0]
        assert_near(logits[index, -len(expected) :], expected)


def test_a_frame_under_padding_is_ignored():
    model = tiny_model(5)
    _, (row,) = random_batch(model, 5, [3])
    ids = row["input_ids"]
    first = int((ids[0] == VIDEO).nonzero()[0])
    cut = first + model.config.num_frame_tokens  # hide the prompt and the first frame
    mask = torch.ones_like(ids)
    mask[:, :cut] = 0
    hidden = model(**row, attention_mask=mask).logits[:, cut:]
    expected = model(input_ids=ids[:, cut:], video_features=row["video_features"][1:]).logits
    assert_near(hidden, expected)


@pytest.mark.parametrize("vision", ["siglip_vision_model", "clip_vision_model"])
@pytest.mark.parametrize("pooled, cls", [((2, 2), True), (None, True), ((3, 1), False)])
def test_pixels_equal_their_features(vision, pooled, cls):
    model = tiny_model(6, vision=vision, pooled=pooled, cls=cls)
    batch, _ = random_batch(model, 6, [2, 1], pixels=True)
    features = model.encode_frames(batch["pixel_values_videos"]).pooler_output
    assert features.shape == (3, model.config.num_frame_tokens, 16)
    expected = model(**batch).logits
    del batch["pixel_values_videos"]
    assert_near(model(**batch, video_features=features).logits, expected)
    tokens = model.get_video_features(torch.randn(1, 3, *[model.config.vision_config.image_size] * 2)).pooler_output
    assert tokens.shape == (1, model.config.num_frame_tokens, 32)


def test_frame_tokens_are_class_token_then_pooled_patches():
    model = tiny_model(7, pooled=(3, 3))
    pixels = torch.randn(2, 3, 24, 24)
    tower = model.model.vision_tower(pixels)
    features = model.encode_frames(pixels).pooler_output
    torch.testing.assert_close(features[:, 0], tower.pooler_output)
    torch.testing.assert_close(features[:, 1:], tower.last_hidden_state)  # 3 x 3 patches, pooled to 3 x 3
    model = tiny_model(7, pooled=(1, 1), vision="clip_vision_model")
    tower = model.model.vision_tower(torch.ones(1, 3, 16, 16)).last_hidden_state
    features = model.encode_frames(torch.ones(1, 3, 16, 16)).pooler_output
    torch.testing.assert_close(features[0, 0], tower[0, 0])
    torch.testing.assert_close(features[0, 1], tower[0, 1:].mean(0))


def test_placeholders_without_frames_are_text_with_a_warning(monkeypatch):
    model, warnings = tiny_model(8), []
    monkeypatch.setattr(modeling_videollm_mod.logger, "warning_once", warnings.append)
    model(input_ids=torch.tensor([[FIRST_WORD]]))
    assert not warnings
    ids = torch.tensor([[FIRST_WORD, VIDEO, SEPARATOR, VIDEO, VIDEO]])
    assert_near(model(input_ids=ids).logits, stock_llama(model)(input_ids=ids).logits)
    assert len(warnings) == 1 and "read as text" in warnings[0]


def test_a_mask_may_hide_part_of_a_frame():
    """No token sees hidden vision tokens, in routed layers either; the selection of the frame stays the same."""
    for name in ("full", "keep all"):
        model = tiny_model(8, **ROUTINGS[name])
        _, (row,) = random_batch(model, 8, [2])
        mask = torch.ones_like(row["input_ids"])
        hidden = (row["input_ids"][0] == VIDEO).nonzero()[[1, 2, 8], 0]
        mask[0, hidden] = 0
        changed = {**row, "video_features": row["video_features"].clone()}
        changed["video_features"][0, 1:3] = 9.0
        changed["video_features"][1, 3] = 9.0
        seen = mask[0].bool()
        assert_near(
            model(**changed, attention_mask=mask).logits[:, seen], model(**row, attention_mask=mask).logits[:, seen]
        )


def test_embeddings_equal_their_ids():
    model = tiny_model(8)
    batch, _ = random_batch(model, 8, [2, 1])
    ids = batch.pop("input_ids")
    expected = model(input_ids=ids, **batch).logits
    assert_near(model(inputs_embeds=model.get_input_embeddings()(ids), **batch).logits, expected)


def test_a_zero_router_at_keep_ratio_one_is_dense():
    """With the gate `residual` and zero weight and bias. Text with no frame before it is dense at any ratio."""
    model, dense = tiny_model(9, mod_keep_ratio=1), tiny_model(9, vision_routing="full")
    dense.load_state_dict(model.state_dict(), strict=False)
    for layer in model.model.language_model.layers:
        if layer.layer_expert is not None:
            torch.nn.init.zeros_(layer.layer_expert.weight)
            torch.nn.init.zeros_(layer.layer_expert.bias)
    batch, _ = random_batch(model, 9, [2, 3])
    mask = batch["attention_mask"].bool()
    assert_near(model(**batch).logits[mask], dense(**batch).logits[mask])


@pytest.mark.parametrize("name", [name for name in ROUTINGS if name != "learned"])
def test_every_option_changes_the_output(name):
    model = tiny_model(10, num_hidden_layers=6)
    batch, _ = random_batch(model, 10, [3])
    other = tiny_model(10, num_hidden_layers=6, **ROUTINGS[name])
    other.load_state_dict(model.state_dict(), strict=False)
    for layer, like in zip(other.model.language_model.layers, model.model.language_model.layers, strict=True):
        if layer.layer_expert is not None and like.layer_expert is None:
            torch.nn.init.normal_(layer.layer_expert.weight)
    assert (model(**batch).logits - other(**batch).logits).abs().max() > 1e-2


def test_the_random_control_depends_on_its_seed():
    models = [tiny_model(11, mod_selection="random", mod_seed=seed) for seed in (0, 0, 1)]
    batch, _ = random_batch(models[0], 11, [4])
    kept = [model(**batch, output_router_scores=True).kept_indices[1] for model in models]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_keep_ratio_can_be_set_at_run_time():
    model = tiny_model(12, pooled=(3, 3))
    batch, _ = random_batch(model, 12, [2])
    counts = []
    for ratio in (0.1, 0.2, 0.5, 1):
        model.keep_ratio = ratio
        assert model.model.keep_ratio == ratio
        out = model(**batch, output_router_scores=True)
        assert out.router_scores[0] is None
        assert out.router_scores[1].shape == (2, 10)
        assert out.router_scores[1].dtype == torch.float32
        counts.append(out.kept_indices[1].shape[1])
    assert counts == [1, 2, 5, 10]
    for ratio in (0, -1, 1.01, float("nan"), "half", True, None):
        with pytest.raises(ValueError, match="keep_ratio"):
            model.keep_ratio = ratio
    assert model.keep_ratio == 1


@torch.no_grad()
def test_each_frame_of_a_batch_can_have_its_own_keep_ratio():
    """A batch with padding equals its rows. Ratios that keep equally many tokens are one ratio."""
    model = tiny_model(14)
    batch, rows = random_batch(model, 14, [3, 0, 2])
    ratios = [1.0, 0.2, 0.0, 0.1, 0.5]
    out = model(**batch, keep_ratio=ratios, output_router_scores=True)
    assert_near(model(**batch, keep_ratio=torch.tensor(ratios)).logits, out.logits)
    assert [(frame >= 0).sum().item() for frame in out.kept_indices[1]] == [5, 1, 0, 1, 3]
    for index, (row, own) in enumerate(zip(rows, ([1.0, 0.2, 0.0], [], [0.1, 0.5]), strict=True)):
        logits = model(**row, keep_ratio=own).logits[0]
        assert_near(out.logits[index, -len(logits) :], logits)
    same = model(**batch, keep_ratio=[0.3, 0.4, 0.35, 0.21, 0.4], output_router_scores=True)
    assert same.kept_indices[1].shape == (5, 2)
    assert_near(same.logits, model(**batch, keep_ratio=0.4).logits)
    for wrong, message in (
        (ratios[:-1], "`keep_ratio` must be one number, or one for each of 5 frames, got 4 ratios"),
        (torch.ones(5, 1), r"one for each of 5 frames, got a tensor \[5, 1\]"),
        (torch.tensor(0.5), r"got a tensor \[\]"),
        ([*ratios[:-1], 1.5], r"`keep_ratio` must be a number in \(0, 1\], got 1.5"),
        ([*ratios[:-1], None], "got None"),
        ("half", "got 'half'"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**batch, keep_ratio=wrong)
    with pytest.raises(ValueError, match="`keep_ratio` of `generate` must be one number, got a list"):
        model.generate(**batch, keep_ratio=ratios, max_new_tokens=1)


def test_scores_stay_float32_in_half_precision():
    model = tiny_model(13).to(torch.bfloat16)
    batch, _ = random_batch(model, 13, [2])
    assert model(**batch, output_router_scores=True).router_scores[1].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tiny_model(13)(**batch, output_router_scores=True)
    assert out.router_scores[1].dtype == torch.float32


@torch.no_grad()
def test_a_float32_model_continues_a_cache_under_autocast():
    """There rotary embedding makes queries float32 and leaves values as they are."""
    model = tiny_model(13, mod_keep_ratio=1.0)
    _, (row,) = random_batch(model, 13, [4])
    cuts = frame_cuts(row["input_ids"][0].tolist(), model.config.num_frame_tokens, random.Random(13))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pieces = run_in_pieces(model, row, cuts, MoDCache(model.config))
        whole = model(**row).logits[0]
    assert (pieces - whole).norm() < 3e-2 * whole.norm()


@pytest.mark.parametrize("masked", ["lower right", "padding"])
def test_grouped_attention_equals_repeated_keys(masked):
    for seed in range(20):
        torch.manual_seed(seed)
        ranges = (1, 4), (1, 4), (2, 9), (9, 90)
        groups, share, queries, keys = (int(torch.randint(low, high, ())) for low, high in ranges)
        size = (2, groups, keys, 16)
        states = torch.randn(2, groups * share, queries, 16), torch.randn(size), torch.randn(size)
        mask = torch.ones(2, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
        if masked == "padding":
            mask[1, :, :, : keys // 2] = False
        else:
            mask = causal_lower_right(queries, keys)
        module = SimpleNamespace(num_key_value_groups=share, is_causal=True)
        found, expected = (
            attend(module, *states, mask, scaling=0.3)[0] for attend in (attend_in_groups, sdpa_attention_forward)
        )
        assert found.is_contiguous()
        assert_near(found, expected)


@torch.no_grad()
def test_old_torch_uses_transformers_attention_on_a_cpu(monkeypatch):
    model, calls = tiny_model(15), []
    ids, mask = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 1, 1, 1]])
    monkeypatch.setattr(
        modeling_text,
        "attend_in_groups",
        lambda *args, **kw: calls.append(1) or attend_in_groups(*args, **kw),
    )
    made = []
    for has_groups in (True, False):
        monkeypatch.setattr(modeling_text, "GROUPS_ON_CPU", has_groups)
        made.append(model(input_ids=ids, attention_mask=mask).logits)
        assert bool(calls) == has_groups
        calls.clear()
    torch.testing.assert_close(*made)


def test_outputs_as_tuple_with_hidden_states_and_attentions():
    model = tiny_model(14)
    model.set_attn_implementation("eager")
    batch, _ = random_batch(model, 14, [2])
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    length, layers = batch["input_ids"].shape[1], model.config.text_config.num_hidden_layers
    assert [tuple(x.shape) for x in out.hidden_states] == [(1, length, 32)] * (layers + 1)
    assert len(out.attentions) == layers
    routed = length - 2 * model.config.num_frame_tokens + 2 * 2
    assert [x.shape[-1] for x in out.attentions] == [length, routed] * 2 + [length]
    as_tuple = model(**batch, return_dict=False)
    assert torch.equal(as_tuple[0], out.logits)


# -- input that is wrong ----------------------------------------------------------------------------------------------


def test_frames_and_placeholders_must_match():
    model = tiny_model(15)
    batch, _ = random_batch(model, 15, [2])
    features = batch.pop("video_features")
    with pytest.raises(ValueError, match=r"holds 0 frames.*placeholders for 2"):
        model(**batch, labels=batch["input_ids"])
    with pytest.raises(ValueError, match=r"holds 0 frames.*placeholders for 2"):
        model(**batch, video_features=features[:0])
    with pytest.raises(ValueError, match=r"`video_features` holds 1 frames.*placeholders for 2"):
        model(**batch, video_features=features[:1])
    with pytest.raises(ValueError, match=r"`video_features` must be \[2, 5, 16\], got \[2, 4, 16\]"):
        model(**batch, video_features=features[:, :4])
    with pytest.raises(ValueError, match="only one of `pixel_values_videos` and `video_features`"):
        model(**batch, video_features=features, pixel_values_videos=torch.zeros(2, 3, 24, 24))
    with pytest.raises(ValueError, match=r"`pixel_values_videos` must be \[frames, 3, 24, 24\], got \[2, 3, 8, 8\]"):
        model(**batch, pixel_values_videos=torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_frames_must_be_finite(value):
    model = tiny_model(16)
    batch, _ = random_batch(model, 16, [3])
    batch["video_features"][1, 2, 3] = value
    with pytest.raises(ValueError, match=r"`video_features` must be finite.*frames \[1\] of 3"):
        model(**batch)
    pixels = torch.zeros(3, 3, 24, 24)
    pixels[2, 0, 0, 0] = value
    del batch["video_features"]
    with pytest.raises(ValueError, match=r"`pixel_values_videos` must be finite.*frames \[2\] of 3"):
        model(**batch, pixel_values_videos=pixels)


@pytest.mark.parametrize("ids", [[7] + [VIDEO] * 4, [VIDEO] * 6, [VIDEO] * 3 + [SEPARATOR] + [VIDEO] * 2])
def test_a_call_must_not_end_inside_a_frame(ids):
    with pytest.raises(ValueError, match="`input_ids` break inside a frame: a frame is 5 consecutive"):
        tiny_model(17)(input_ids=torch.tensor([ids]), video_features=torch.zeros(1, 5, 16))


def test_a_frame_must_not_spread_over_rows():
    ids = torch.tensor([[FIRST_WORD] * 4 + [VIDEO] * 2, [VIDEO] * 3 + [FIRST_WORD] * 3])
    with pytest.raises(ValueError, match=r"break inside a frame.*\[2, 3\]"):
        tiny_model(17)(input_ids=ids, video_features=torch.zeros(1, 5, 16))


def test_other_wrong_arguments_are_refused():
    model = tiny_model(18)
    ids = torch.tensor([[FIRST_WORD, FIRST_WORD]])
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        model()
    with pytest.raises(ValueError, match=r"`attention_mask` must be \[1, 2\]"):
        model(input_ids=ids, attention_mask=torch.ones(1, 1))
    from transformers import DynamicCache

    with pytest.raises(ValueError, match="`cache` must be a MoDCache, got DynamicCache"):
        model(input_ids=ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match='`cache_implementation` must be "dynamic" or "offloaded"'):
        model.generate(input_ids=ids, cache_implementation="static", max_new_tokens=2)
    dense = tiny_model(18, vision_routing="full")
    dense.config.text_config.vision_routing = "mod"
    batch, _ = random_batch(dense, 18, [1])
    with pytest.raises(ValueError, match="layer 1 has no LayerExpert"):
        dense(**batch)


def test_building_the_model_checks_options_again():
    config = tiny_config()
    config.text_config.mod_keep_ratio = 2.0
    with pytest.raises(ValueError, match=r"`mod_keep_ratio` must be a number in \(0, 1\], got 2.0"):
        VideoLLMMoDForConditionalGeneration(config)
    config = tiny_config()
    config.frame_token_pooled = [0, 3]
    with pytest.raises(ValueError, match="`frame_token_pooled`"):
        VideoLLMMoDForConditionalGeneration(config)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mod_keep_ratio": 0}, r"`mod_keep_ratio` must be a number in \(0, 1\], got 0"),
        ({"mod_keep_ratio": 1.5}, "`mod_keep_ratio`.*1.5"),
        ({"mod_keep_ratio_range": 0.5}, r"^`mod_keep_ratio_range` must be \[low, high\], got 0.5$"),
        ({"mod_keep_ratio_range": [0.5, 0.2]}, r"^`mod_keep_ratio_range` must be \[low, high\] with low <= high"),
        ({"mod_layers": [0, 5]}, r"`mod_layers` must hold layer indices in \[0, 5\), got 5 in \[0, 5\]"),
        ({"mod_layers": [-1]}, "`mod_layers`.*-1"),
        ({"no_rope_layers": [5]}, r"`no_rope_layers` must hold layer indices in \[0, 5\), got 5 in \[5\]"),
        ({"no_rope_layers": "all"}, "^`no_rope_layers` must be a list of layers, got 'all'$"),
        ({"mod_layers": 3}, "^`mod_layers` must be one of 'interleaved', .* or a list of layers, got 3$"),
        ({"mod_keep_ratio": "x"}, r"^`mod_keep_ratio` must be a number in \(0, 1\], got 'x'$"),
        ({"mod_layers": "odd"}, "`mod_layers` must be one of 'interleaved'.*got 'odd'"),
        ({"mod_gate": "relu"}, "`mod_gate` must be one of 'residual', 'output', 'none', got 'relu'"),
        ({"mod_selection": "best"}, "`mod_selection` must be one of.*got 'best'"),
        ({"vision_routing": "moe"}, "`vision_routing` must be one of.*got 'moe'"),
        ({"early_exit_layer": 6}, r"`early_exit_layer` must be in \[0, 5\], got 6"),
    ],
)
def test_wrong_routing_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VideoLLMMoDTextConfig(num_hidden_layers=5, **options)


GRID = {"frame_token_cls": False, "frame_token_pooled": [2, 2]}
UNTRAINED = {"frame_separator_token_id": None, "speak_rule": "verify"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frame_token_pooled": [3]}, "`frame_token_pooled` must be two positive integers"),
        ({"frame_token_pooled": 3}, r"^`frame_token_pooled` must be two positive integers \[h, w\] or None, got 3$"),
        (
            {"frame_token_pooled": [2, 5]},
            r"`frame_token_pooled` must be at most the vision tower's \[3, 3\], got \[2, 5",
        ),
        ({"stream_loss_weight": "2"}, "^`stream_loss_weight` must be finite and >= 0, got '2'$"),
        ({"text_config": 3}, "^`text_config` must be a configuration or its fields as a dict, got 3$"),
        (
            {"vision_config": "siglip"},
            "^`vision_config` must be a configuration or its fields as a dict, got 'siglip'$",
        ),
        ({"frame_token_pooled": [100, 101]}, "a frame can have at most 10000 tokens"),
        ({"frame_token_pooled": None, "frame_token_cls": False}, "a frame needs tokens"),
        ({"video_token_id": 60}, r"`video_token_id` must be in \[0, vocab_size=60\), got 60"),
        ({"frame_separator_token_id": 3}, "must differ, both are 3"),
        ({"stream_loss_weight": -1}, "`stream_loss_weight` must be finite and >= 0, got -1"),
        ({"speak_rule": "always"}, "`speak_rule` must be one of 'trained', 'verify', got 'always'"),
        ({"verify_margin": -0.1}, "`verify_margin` must be a number of nats from 0 on, got -0.1"),
        ({"verify_margin": math.inf}, "`verify_margin` must be a number of nats from 0 on, got inf"),
        ({"verify_margin": "1"}, "^`verify_margin` must be a number of nats from 0 on, got '1'"),
        ({"vision_config": {"model_type": "vit"}}, "`vision_config.model_type` must be one of.*got 'vit'"),
        ({"frame_separator_token_id": None}, "`speak_rule='trained'` needs a `frame_separator_token_id`"),
        ({"frame_pooling": "max"}, "`frame_pooling` must be one of 'average'.*got 'max'"),
        ({"frame_pooling": "bilinear"}, "`frame_pooling='bilinear'` needs `frame_token_pooled` and"),
        ({"frame_pooling": "pixel_shuffle", **GRID}, "whose side divides the vision tower's 3, got \\[2, 2\\]"),
        ({"drop_first_patch": True, **GRID}, r"`drop_first_patch` needs .* `frame_token_pooled=\[3, 3\]`"),
        ({"vision_feature_layer": 3, **GRID}, r"`vision_feature_layer` must be None, .* \[-3, 2\], got 3$"),
        ({"vision_feature_layer": [0, -4], **GRID}, r"`vision_feature_layer` .* got \[0, -4\]$"),
        ({"vision_feature_layer": [], **GRID}, r"`vision_feature_layer` .* got \[\]$"),
        ({"vision_feature_layer": "last", **GRID}, "`vision_feature_layer` .* got 'last'$"),
        ({"vision_feature_layer": -2}, "SigLIP makes its class token of the last layer"),
        ({"connector_type": "conv"}, "`connector_type` must be one of 'mlp', 'linear', got 'conv'"),
        ({"connector_act": "sin"}, "`connector_act` must be an activation of transformers, got 'sin'"),
        ({"image_newline_token_id": 4}, "`frame_separator_token_id` and `image_newline_token_id` must differ"),
        ({"image_newline_token_id": -1}, r"`image_newline_token_id` must be in \[0, vocab_size=60\), got -1"),
        ({"vision_config": {"model_type": "smolvlm_vision"}}, "'smolvlm_vision' has no class token"),
        (
            {"vision_config": {"model_type": "smolvlm_vision", "image_size": [8, 8]}, **GRID},
            "`vision_config.image_size` must be one number",
        ),
    ],
)
def test_wrong_frame_options_are_named(options, message):
    fields = tiny_config().to_dict() | copy.deepcopy(options)
    fields.pop("model_type")
    with pytest.raises(ValueError, match=message):
        type(tiny_config())(**fields)


@pytest.mark.parametrize(
    "options, tokens, shape",
    [
        ({"frame_token_pooled": [2, 2]}, 5, (5, 16)),
        ({**GRID, "frame_pooling": "bilinear"}, 4, (9, 16)),
        ({**GRID, "frame_token_pooled": [1, 1], "frame_pooling": "pixel_shuffle"}, 1, (1, 144)),
        ({**GRID, "frame_token_pooled": [3, 3], "drop_first_patch": True}, 8, (8, 16)),
        ({**GRID, "vision_feature_layer": [0, -1], **UNTRAINED}, 4, (4, 32)),
    ],
)
def test_frame_options_say_the_shape_of_the_features(options, tokens, shape):
    fields = tiny_config().to_dict() | options
    fields.pop("model_type")
    config = type(tiny_config())(**fields)
    assert (config.num_frame_tokens, config.video_feature_shape) == (tokens, shape)
    again = type(config).from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
