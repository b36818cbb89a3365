"""The routed language model: a `LlamaModel` in which only the tokens that the router keeps enter a routed layer.

`routing` chooses these tokens, `cache` holds their keys and values, `recomputing` is about training.

Shapes: B batch, T tokens of this call, F frames of this call over all rows in row order, N vision tokens per frame,
k of them kept, K tokens that enter a routed layer, D hidden size.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    eager_attention_forward,
)

from .cache import MoDCache, PackedCache
from .compat import (
    CACHE_NAME,
    CACHE_NAMES,
    CHECKPOINTING_NAME,
    CHECKPOINTING_RENAMED,
    EitherCacheName,
    capture_outputs,
    check_arguments,
    takes_either_cache_name,
)
from .configuration_videollm_mod import VideoLLMMoDConfig, VideoLLMMoDTextConfig
from .fused import rotate, silu_product
from .recomputing import can_recompute, run_blocks, run_layers, set_recomputing
from .routing import FrameRouter, KeepRatio, LayerExpert, StreamLayout

# Full names, with and without a head around the model. LayerExperts are no plain `nn.Linear`, so none is quantised.
FULL_PRECISION = ["model.vision_tower", "model.connector", "vision_tower", "connector", "lm_head"]
# with `enable_gqa`, torch 2.8 repeats keys on a CPU and then takes its slowest kernel
GROUPS_ON_CPU = torch.__version__ >= "2.9"
LARGEST_MASK = 2**20  # numbers of a mask that is kept from layer to layer


def keeping_precision(quantization_config):
    """A copy of the configuration (an object or a `dict`) that leaves out `FULL_PRECISION`, unless it names modules to
    leave out itself."""
    config = copy.copy(quantization_config)
    values = config if isinstance(config, dict) else vars(config)
    is_bitsandbytes = any("load_in_" in name for name in values)
    name = "llm_int8_skip_modules" if is_bitsandbytes else "modules_to_not_convert"
    if values.get(name) is None and (is_bitsandbytes or name in values):
        values[name] = list(FULL_PRECISION)
    return config


@dataclass
class VideoLLMMoDModelOutputWithPast(EitherCacheName, BaseModelOutputWithPast):
    """
    Args:
        last_hidden_state (`[B, T, D]`).
        cache (`MoDCache`): also under its older name, `past_key_values`.
        router_scores (`tuple`): with `output_router_scores=True`, one entry per layer: float32 `[F, N]`, or None
            where the layer uses no LayerExpert.
        kept_indices (`tuple`): one entry per layer: int64 `[F, k]`, the tokens of each frame that the layer kept,
            ascending, or None where the layer is not routed. With a keep ratio a frame, k is that of the frame that
            keeps most, and -1 fills up the others.
    """

    router_scores: tuple[torch.Tensor | None, ...] | None = None
    kept_indices: tuple[torch.Tensor | None, ...] | None = None


@dataclass
class VideoLLMMoDCausalLMOutputWithPast(EitherCacheName, CausalLMOutputWithPast):
    """
    Args:
        loss (scalar, with `labels`): see `VideoLLMMoDForConditionalGeneration.forward`.
        logits (`[B, T, V]`): None in training mode with labels, which computes only the logits that a label needs.
        cache, hidden_states, attentions, router_scores, kept_indices: as in `VideoLLMMoDModelOutputWithPast`.
    """

    router_scores: tuple[torch.Tensor | None, ...] | None = None
    kept_indices: tuple[torch.Tensor | None, ...] | None = None


def causal_mask(
    config: VideoLLMMoDTextConfig,
    hidden_states: torch.Tensor,
    num_keys: int,
    key_valid: torch.Tensor | None,
    segments: torch.Tensor | None,
):
    """The attention mask, in the form that `config._attn_implementation` takes, for queries at the end of the keys.

    Args:
        hidden_states (`[B, T, D]`): the queries' tokens.
        num_keys (`int`): keys of the layer, with those of this call at the end.
        key_valid (`bool [B, num_keys]`, *optional*): False at padding.
        segments (`int64 [B, T]`, *optional*): the sequence of each token, where sequences are packed.
    """
    batch_size, num_queries = hidden_states.shape[:2]
    implementation, offset = config._attn_implementation, num_keys - num_queries
    if key_valid is None and segments is None and implementation != "eager" and implementation != "flex_attention":
        # `None` means causal from the upper left, which is right only if queries and keys are the same tokens
        if implementation != "sdpa" or num_queries in (1, num_keys):
            return None
        if not torch.is_autocast_enabled(hidden_states.device.type):  # which would not cast the values
            if hidden_states.device.type == "cpu" and num_queries * num_keys <= LARGEST_MASK:
                return lower_right_mask(num_queries, num_keys, hidden_states.dtype)
            return causal_lower_right(num_queries, num_keys)

    def sees(batch_idx, head_idx, query_idx, key_idx):
        allowed = key_idx <= query_idx
        if key_valid is not None:  # padding sees itself, so that no row of the softmax is empty
            allowed = allowed & (key_valid[batch_idx, key_idx] | (key_idx == query_idx))
        if segments is not None:
            allowed = allowed & (segments[batch_idx, query_idx] == segments[batch_idx, key_idx])
        return allowed

    is_flash = "flash" in implementation  # it takes the 2D mask
    return ALL_MASK_ATTENTION_FUNCTIONS[implementation](
        batch_size=batch_size,
        q_length=num_queries,
        kv_length=num_keys,
        q_offset=offset,
        kv_offset=0,
        mask_function=sees,
        attention_mask=key_valid if is_flash else None,
        allow_is_causal_skip=False,
        dtype=hidden_states.dtype,
        config=config,
        device=hidden_states.device,
    )


@functools.lru_cache(2)
@torch.inference_mode(False)  # it may be used with gradients later
def lower_right_mask(num_queries: int, num_keys: int, dtype: torch.dtype) -> torch.Tensor:
    """`causal_lower_right` as a tensor on the CPU, `[num_queries, num_keys]`, which torch would make anew in every
    layer. There are two sizes in a call, of the routed layers and of the others."""
    mask = torch.zeros(num_queries, num_keys, dtype=dtype)
    mask[:, num_keys - num_queries :] = torch.full((num_queries, num_queries), float("-inf"), dtype=dtype).triu(1)
    return mask


def attend_in_groups(module, queries, keys, values, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """transformers' `sdpa` for CPUs, without repeating keys and values for each query head. transformers repeats them
    where there is a mask, since not every GPU kernel takes both; on a CPU copying them takes longer than attention."""
    attended = nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return attended.transpose(1, 2).contiguous(), None


class VideoLLMMoDAttention(LlamaAttention):
    """Llama's attention, and those of Qwen3 (queries and keys are normalised) and SmolLM3 (some layers have no rotary
    embeddings). Where one row holds the tokens of several streams, they share the projections, which read the weights,
    and each stream attends to its own cache."""

    config: VideoLLMMoDTextConfig

    def __init__(self, config: VideoLLMMoDTextConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.has_rope = layer_idx not in config.no_rope_layers
        self.qk_norm = config.qk_norm  # looking something up in a configuration takes as long as a small operation
        if config.qk_norm:
            self.q_norm, self.k_norm = (
                VideoLLMMoDRMSNorm(self.head_dim, eps=config.rms_norm_eps) for _ in ("queries", "keys")
            )

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: MoDCache | PackedCache | None = None,
        lengths: list[int] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """lengths: tokens of each stream in `hidden_states` `[1, T, D]`, for a `PackedCache`."""
        queries, keys, values = self.project(hidden_states, position_embeddings)
        if not isinstance(cache, PackedCache):
            attended, weights = self.attend_to(queries, keys, values, attention_mask, cache=cache, **kwargs)
            return self.o_proj(attended), weights
        parts = []
        split = zip(
            cache.layers[self.layer_idx].layers,
            *(tensor.split(lengths, dim=2) for tensor in (queries, keys, values)),
            hidden_states.split(lengths, dim=1),
            strict=True,
        )
        for own_cache, own_queries, own_keys, own_values, own in split:
            if own.shape[1] == 0:
                continue
            all_keys, all_values = own_cache.update(own_keys, own_values)
            mask = causal_mask(self.config, own, all_keys.shape[2], None, None)
            parts.append(self.attend_to(own_queries, all_keys, all_values, mask, **kwargs)[0])
        return self.o_proj(torch.cat(parts, dim=1)), None

    def attend(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`forward` of one stream a row, without the output projection: `[B, T, heads * head_dim]`, and the attention
        weights if there are any."""
        return self.attend_to(*self.project(hidden_states, position_embeddings), attention_mask, **kwargs)

    def attend_to(
        self, queries, keys, values, attention_mask=None, cache: MoDCache | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention to these keys and to those of the cache, to which they are added."""
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer_idx)
        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if implementation == "sdpa" and attention_mask is not None and queries.device.type == "cpu" and GROUPS_ON_CPU:
            attend = attend_in_groups
        dropout = self.attention_dropout if self.training else 0.0
        options = {"dropout": dropout, "scaling": self.scaling, **kwargs}
        attended, weights = attend(self, queries, keys, values, attention_mask, **options)
        return attended.flatten(2), weights

    def project(
        self, hidden_states: torch.Tensor, position_embeddings
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, `[B, heads, T, head_dim]`."""
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        queries, keys, values = (
            projection(hidden_states).view(shape) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries, keys = self.normalised(queries, keys)
        if self.has_rope:
            queries, keys = rotate(queries, keys, *position_embeddings)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def normalised(self, queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys `[..., head_dim]` as they are rotated."""
        return (self.q_norm(queries), self.k_norm(keys)) if self.qk_norm else (queries, keys)


class VideoLLMMoDMLP(LlamaMLP):
    """Llama's MLP, with the activation and the down projection as a method of their own."""

    def __init__(self, config: VideoLLMMoDTextConfig):
        super().__init__(config)
        self.is_silu = config.hidden_act == "silu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.gate_proj(x), self.up_proj(x))

    def down(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu_product(gate, up) if self.is_silu else self.act_fn(gate) * up)


class VideoLLMMoDRMSNorm(LlamaRMSNorm):
    """Llama's norm in one kernel, which keeps only its input for the backward pass."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight, device = self.weight, hidden_states.device.type
        if hidden_states.dtype != weight.dtype:
            return super().forward(hidden_states)
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return nn.functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)
        return nn.functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)


class VideoLLMMoDDecoderLayer(LlamaDecoderLayer):
    """A Llama decoder layer. If it is routed, only the tokens that the router chooses enter its two blocks."""

    self_attn: VideoLLMMoDAttention
    mlp: VideoLLMMoDMLP
    recompute = "none"  # see `recomputing`, which also sets `checkpoint`
    checkpoint: Callable[..., torch.Tensor]

    def __init__(self, config: VideoLLMMoDTextConfig, layer_idx: int):
        # not LlamaDecoderLayer's own `__init__`, which would build and initialise another attention
        super(LlamaDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = VideoLLMMoDAttention(config, layer_idx)
        self.mlp = VideoLLMMoDMLP(config)
        self.input_layernorm = VideoLLMMoDRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = VideoLLMMoDRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.config, self.layer_idx = config, layer_idx
        learned = config.vision_routing == "mod" and config.mod_selection == "learned"
        self.layer_expert = LayerExpert(config.hidden_size) if learned and layer_idx in config.routed_layers else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: MoDCache | PackedCache | None = None,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        router: FrameRouter,
        segments: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`[B, T, D]`).
            attention_mask (4D, *optional*): the caller's own mask, used as it is.
            position_ids (`int64 [B, T]`), position_embeddings (cosine and sine, `[B, T, head_dim]`): of all T tokens.
            router (`FrameRouter`): of this call.
            segments (`int64 [B, T]`, *optional*): for packed sequences.
        """
        route, entered, valid, lengths = None, hidden_states, router.layout.valid, router.layout.lengths
        if router.routes(self.layer_idx):
            route = router(self.layer_idx, self.layer_expert, hidden_states)
            if route.index.numel() == 0:
                return hidden_states  # every token skips this layer
            entered, tokens = route.enter(hidden_states)
            valid, lengths = route.valid, route.lengths
            position_embeddings = route.gather(position_embeddings[0]), route.gather(position_embeddings[1])
            position_ids = None if cache is None or position_ids is None else route.gather(position_ids)
            segments = None if segments is None else route.gather(segments)
        router.watch(self, hidden_states)

        arguments = {
            "attention_mask": self._mask(entered, attention_mask, cache, position_ids, valid, lengths, segments),
            # flash attention takes gaps between positions for the borders of packed sequences
            "position_ids": position_ids if route is None else None,
            "position_embeddings": position_embeddings,
            **kwargs,
        }
        if self.training and can_recompute(cache):
            processed = run_blocks(self, entered, cache=cache, **arguments)
        else:
            processed = self.attention_block(entered, cache=cache, lengths=lengths, **arguments)
            processed = self.mlp_block(processed)

        return processed if route is None else route.scatter(tokens, entered, processed)

    def attention_block(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]

    def mlp_block(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    def _mask(self, entered, attention_mask, cache, position_ids, valid, lengths, segments) -> torch.Tensor | None:
        """Record in the cache the positions of the tokens that enter, and return their attention mask."""
        if lengths is not None:  # each stream has its own mask
            cache.layers[self.layer_idx].record(position_ids, lengths)
            return attention_mask
        num_keys = entered.shape[1]
        if cache is not None:
            layer_cache = cache.layers[self.layer_idx]
            num_keys += layer_cache.get_seq_length()
            valid = layer_cache.record(position_ids, valid)
        if attention_mask is None:
            attention_mask = causal_mask(self.config, entered, num_keys, valid, segments)
        return attention_mask


class VideoLLMMoDPreTrainedModel(LlamaPreTrainedModel):
    """Quantisation while loading applies to the layers of the language model only, unless its configuration lists the
    modules to leave out."""

    config: VideoLLMMoDConfig  # type: ignore[assignment]  # LlamaPreTrainedModel annotates Llama's
    base_model_prefix = "model"
    input_modalities = ["video", "text"]
    _no_split_modules = ["VideoLLMMoDDecoderLayer"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _can_compile_fullgraph = False
    _can_record_outputs = {"hidden_states": VideoLLMMoDDecoderLayer, "attentions": LlamaAttention}

    @classmethod
    def from_pretrained(cls, *args, quantization_config=None, **kwargs):
        if quantization_config is not None:
            quantization_config = keeping_precision(quantization_config)
        return super().from_pretrained(*args, quantization_config=quantization_config, **kwargs)

    def activation_checkpointing_enable(  # type: ignore[override]  # the options in `kwargs` differ between releases
        self, activation_checkpointing_kwargs: dict | None = None, **kwargs
    ) -> None:
        """As in transformers, whose older releases call it `gradient_checkpointing_enable`, with one more option:
        `activation_checkpointing_kwargs` may say what to `recompute`, see `recomputing`.

        Raises:
            `ValueError`: for an unknown choice, or together with reentrant checkpointing.
        """
        options = dict(activation_checkpointing_kwargs or {})
        recompute = options.pop("recompute", None)
        if recompute is not None and options.get("use_reentrant"):
            raise ValueError("`recompute` needs `use_reentrant=False`")
        options.setdefault("use_reentrant", False)
        enable = getattr(super(), f"{CHECKPOINTING_NAME}_enable")
        enable(options, **kwargs)
        set_recomputing(self._decoder_layers(), options, recompute)

    def activation_checkpointing_disable(self) -> None:
        getattr(super(), f"{CHECKPOINTING_NAME}_disable")()
        set_recomputing(self._decoder_layers(), {}, None)

    if not CHECKPOINTING_RENAMED:

        def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
            self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

        def gradient_checkpointing_disable(self) -> None:
            self.activation_checkpointing_disable()

    def _decoder_layers(self) -> list[VideoLLMMoDDecoderLayer]:
        return [module for module in self.modules() if isinstance(module, VideoLLMMoDDecoderLayer)]


class VideoLLMMoDTextModel(VideoLLMMoDPreTrainedModel, LlamaModel):
    """A `LlamaModel` with routed layers and a `MoDCache`. Without frames it is a plain Llama in every mode."""

    config: VideoLLMMoDTextConfig  # type: ignore[assignment]  # the other models have the whole configuration
    input_modalities = ["text"]

    def __init__(self, config: VideoLLMMoDTextConfig):
        config.check_routing()
        # not LlamaModel's own `__init__`, which would build and initialise other layers
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [VideoLLMMoDDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = VideoLLMMoDRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        if any(layer.layer_expert is not None for layer in self.layers):
            self._keep_in_fp32_modules_strict = {"layer_expert"}  # models that contain this one take it over
        self.post_init()

    @takes_either_cache_name
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: MoDCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        layout: StreamLayout | None = None,
        output_router_scores: bool = False,
        keep_ratio: KeepRatio | None = None,
        **kwargs,
    ) -> VideoLLMMoDModelOutputWithPast:
        """
        Args:
            input_ids (`int64 [B, T]`) or inputs_embeds (`[B, T, D]`): exactly one of them.
            attention_mask (`[B, T]` or `[B, seen + T]`, *optional*): 0 at padding. A 4D mask if no layer is routed.
            position_ids (`int64 [B, T]` or `[1, T]`, *optional*): of these tokens; if omitted they continue the cache.
            cache (`MoDCache`, *optional*): of earlier calls for the same streams.
            layout (`StreamLayout`, *optional*): where the frames are; if omitted, every token is text.
            keep_ratio (`float`, *optional*): of this call, in [0, 1]; `config.mod_keep_ratio` if omitted. At 0 all
                vision tokens skip the routed layers. It may be a list or a tensor with one ratio for each frame, in
                the order of the frames.
        """
        check_arguments(kwargs, self.config._attn_implementation)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of `input_ids` and `inputs_embeds`")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if cache is not None and not hasattr(cache, "advance"):
            raise ValueError(
                f"`cache` must be a MoDCache, got {type(cache).__name__}: routed layers hold different tokens, and "
                "only a MoDCache knows which"
            )
        own_mask = attention_mask if attention_mask is not None and attention_mask.dim() == 4 else None
        if layout is None:
            layout = text_layout(inputs_embeds, None if own_mask is not None else attention_mask, cache)
        segments = None
        if attention_mask is None and cache is None:
            layout, segments = packed_segments(layout, position_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        recomputes = self.training and self.gradient_checkpointing and torch.is_grad_enabled()
        # packed sequences are not one stream, and recomputing would add to a cache twice
        if use_cache and cache is None and segments is None and not recomputes:
            cache = MoDCache(self.config)
        position_ids = next_positions(position_ids, layout, cache)
        router = FrameRouter(layout, self.config, keep_ratio, cache)
        if own_mask is not None and any(router.routes(layer_idx) for layer_idx in range(len(self.layers))):
            raise ValueError("`attention_mask` must be 2D where layers are routed, got a 4D mask")
        if cache is not None:
            cache.advance(position_ids, layout.valid, layout.ends_frame if layout.num_frames else None)

        hidden_states = run_layers(
            self.layers[: self.config.num_hidden_layers],
            inputs_embeds,
            recomputes=recomputes and can_recompute(cache),
            attention_mask=own_mask,
            position_ids=position_ids,
            cache=cache,
            position_embeddings=self.rotary_emb(inputs_embeds, position_ids=position_ids),
            use_cache=use_cache,
            router=router,
            segments=segments,
            **kwargs,
        )
        layers = range(len(self.layers))
        named_cache: dict[str, Any] = {CACHE_NAME: cache}
        return VideoLLMMoDModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            router_scores=tuple(router.scores.get(i) for i in layers) if output_router_scores else None,
            kept_indices=tuple(router.kept.get(i) for i in layers) if output_router_scores else None,
            **named_cache,
        )


def text_layout(tokens: torch.Tensor, attention_mask: torch.Tensor | None, cache: MoDCache | None) -> StreamLayout:
    """The layout of `tokens` `[B, T, ...]` without frames."""
    nowhere = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return StreamLayout.of(nowhere, nowhere, num_frame_tokens=1, valid=valid_tokens(attention_mask, tokens, cache))


def valid_tokens(
    attention_mask: torch.Tensor | None, tokens: torch.Tensor, cache: MoDCache | None
) -> torch.Tensor | None:
    """bool `[B, T]`, False at padding among this call's `tokens` `[B, T, ...]`; None if there is no padding."""
    if attention_mask is None:
        return None
    batch_size, length = tokens.shape[:2]
    seen = 0 if cache is None else cache.get_seq_length()
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch_size or attention_mask.shape[1] < length:
        raise ValueError(
            f"`attention_mask` must be [{batch_size}, {length}] or, with the tokens seen so far, "
            f"[{batch_size}, {seen + length}], got {list(attention_mask.shape)}"
        )
    valid = attention_mask[:, -length:].to(device=tokens.device, dtype=torch.bool)
    return None if valid.all() else valid


def packed_segments(
    layout: StreamLayout, position_ids: torch.Tensor | None
) -> tuple[StreamLayout, torch.Tensor | None]:
    """The layout of rows that may hold several sequences, and int64 `[B, T]`, the number of each token's sequence;
    None if each row is one sequence. A sequence begins where positions do not increase by one."""
    if position_ids is None:
        return layout, None
    starts = position_ids.expand(len(layout.is_text), -1).diff(dim=1) != 1
    if not starts.any():
        return layout, None
    segments = nn.functional.pad(starts.long().cumsum(1), (1, 0))
    return layout.of_segments(segments) if layout.num_frames else layout, segments


def next_positions(position_ids: torch.Tensor | None, layout: StreamLayout, cache: MoDCache | None) -> torch.Tensor:
    """int64 `[B, T]`: positions that continue from the cache and do not count padding."""
    batch_size, length = layout.is_text.shape
    if position_ids is not None:
        return position_ids.expand(batch_size, -1)
    if layout.valid is None:
        positions = torch.arange(length, device=layout.is_text.device).expand(batch_size, -1)
    else:
        positions = (layout.valid.long().cumsum(1) - 1).clamp(min=0)
    if cache is not None and cache.next_position is not None:
        positions = positions + cache.next_position.to(positions.device)[:, None]
    return positions


__all__ = [
    "VideoLLMMoDCausalLMOutputWithPast",
    "VideoLLMMoDDecoderLayer",
    "VideoLLMMoDModelOutputWithPast",
    "VideoLLMMoDPreTrainedModel",
    "VideoLLMMoDTextModel",
]
