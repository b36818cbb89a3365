"""How the model speaks: whether it does after a frame, and with which tokens.

After each frame the session computes how probable silence is, and below a threshold the model speaks:

- `"trained"`: the model has learned to predict the frame separator for silence. In the prompts of another family this
  is the first token of what opens the next frame, where a reply to the last one would differ.
- `"verify"`, which needs no training: the session scores the last narration as if the model said it now. Its gap is
  the largest difference, over its tokens, between the log probability of the best token and that of the token that was
  said. P(silence) is `exp(-gap)`: a gap of 0 means that greedy decoding would say the same again. Before the first
  narration P(silence) is 0.

Each watched frame has at most one event, which holds what the model said after it.

`TokenSampler` chooses the tokens of a session's replies. Stock `generate` needs to know which frames belong to which
row, which cache holds them, and which generation modes routed layers do not support. Only public parts of
`GenerationMixin` are overridden.

Shapes: V vocabulary, B rows, F frames of all rows in row order, P frames of a padded row, H and W pixels, N vision
tokens per frame, k of them kept.
"""

import copy
import math
import warnings
from dataclasses import dataclass, field
from typing import cast

import torch
from transformers import BatchFeature, GenerationConfig, GenerationMixin, LogitsProcessorList

from .cache import MoDCache
from .compat import CACHE_NAME, rename_cache
from .configuration_videollm_mod import VideoLLMMoDConfig
from .containers import is_number
from .sequence import DEFAULT_THRESHOLD, NO_SILENCE

# options that a stream does not support, with the value that means unused
UNSUPPORTED = {"guidance_scale": 1, "stop_strings": None, "max_time": None, "penalty_alpha": 0}
FRAMES = ("pixel_values_videos", "video_features")
IMAGES = ("pixel_values", "image_sizes", "batch_num_images")
_DRAFTS = "drafts can come from an `assistant_model`, or from the prompt (`prompt_lookup_num_tokens`)"
_ELSEWHERE = "its code is not part of transformers, and not made for layers that hold different tokens"
REFUSED = {
    "assistant_early_exit": _DRAFTS,
    "use_mtp": _DRAFTS,
    "speculation_type": _DRAFTS,
    "penalty_alpha": _ELSEWHERE,
    "dola_layers": _ELSEWHERE,
    "constraints": _ELSEWHERE,
    "force_words_ids": _ELSEWHERE,
    "prefill_chunk_size": "a chunk could cut a frame; a long stream is fed in parts by `model.stream`",
}
PAGED = (
    "continuous batching is not supported: its pages hold the same tokens for every layer, and routed layers hold "
    "different ones; `generate` takes padded batches, and `StreamPool` many streams at once"
)


def default_threshold(speak_rule: str, verify_margin: float) -> float:
    """The threshold of P(silence) where none is given: `DEFAULT_THRESHOLD`, or for `"verify"` the one below which the
    gap is larger than the margin. verify_margin: in nats."""
    return math.exp(-verify_margin) if speak_rule == "verify" else DEFAULT_THRESHOLD


def learn_silence(model, processor) -> None:
    """Make `"trained"` the rule of a model that is being trained on streams, or has been, and is saved. A model of
    this package's own sequence has this rule from the beginning.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`): one of `from_vlm` gets a `frame_separator_token_id`, which says
            that it has learned when to be silent.
        processor (`VideoLLMMoDProcessor`): of the model.

    Raises:
        `ValueError`: if no token can mean silence in the family's prompts.
    """
    if processor.frame_separator_token_id is None:
        raise ValueError(NO_SILENCE)
    config = model.config
    if config.frame_separator_token_id is None:
        config.decision_offset = processor.decision_offset
        config.frame_separator_token_id, config.speak_rule = processor.frame_separator_token_id, "trained"


def silence_probability(logits: torch.Tensor, separator_token_id: int) -> torch.Tensor:
    """Probability that the token after a frame is the frame separator, which means silence.

    Args:
        logits (`[..., V]`): of a frame's last token.
        separator_token_id (`int`): `config.frame_separator_token_id`.

    Returns:
        float32 `[...]`.
    """
    return logits.float().softmax(-1)[..., separator_token_id]


def speaks(silence: torch.Tensor, threshold: float) -> torch.Tensor:
    """bool `[...]`: speak unless silence is at least as probable as the threshold (VideoLLM-online, section 3.3)."""
    return silence < threshold


def check_threshold(name: str, value: float) -> None:
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value!r}")


@dataclass
class Reply:
    """What the model said, in tokens.

    Args:
        ids (`list[int]`): its tokens, without the one that ends it.
        ended (`bool`): the model ended it; otherwise it was cut off at the limit of new tokens.
        gaps (`list[float]`): for each token, and for the end if there is one, how much less probable it was than the
            best token when it was said, in nats. Empty where all are 0, as in greedy decoding.
    """

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    gaps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class StreamEvent:
    """Something the model said.

    Args:
        time (`float`): of the last frame before it, in seconds.
        kind (`str`): `"narration"` for what the model said on its own, `"answer"` for the reply to a question.
        text (`str`): what it said.
        query (`str`, *optional*): the last question or instruction.
        silence_probability (`float`, *optional*): P(silence) after that frame, 0 for the first narration under the
            rule `"verify"`; None for answers.
    """

    time: float
    kind: str
    text: str
    query: str | None = None
    silence_probability: float | None = None


@dataclass(frozen=True)
class WatchedFrame:
    """The result of watching one frame.

    Args:
        time (`float`): of the frame, in seconds.
        silence_probability (`float`): P(silence) after it.
        kept (`tuple`): for each layer the indices of the frame's N tokens that it kept, int64 `[k]`, ascending; None
            for a layer that keeps all tokens by design.
        event (`StreamEvent`, *optional*): what the model said after it.
    """

    time: float
    silence_probability: float
    kept: tuple[torch.Tensor | None, ...]
    event: StreamEvent | None = None


def check_options(*sources: dict) -> None:
    """Raise `ValueError` for an option of `generate` that is not supported. sources: options by name; earlier ones
    override later ones."""
    options = {name: value for source in reversed(sources) for name, value in source.items() if value is not None}
    if options.get("cache_implementation") == "paged":
        raise ValueError(PAGED)
    for name, why in REFUSED.items():
        if options.get(name):
            raise ValueError(f"`generate` with `{name}` is not supported by this model: {why}")
    if (options.get("num_beam_groups") or 1) > 1:
        raise ValueError(f"`generate` with `num_beam_groups` is not supported by this model: {_ELSEWHERE}")


def without_cache(generation_config: GenerationConfig) -> GenerationConfig:
    """The same configuration for a cache that is passed to `generate`."""
    generation_config = copy.deepcopy(generation_config)
    generation_config.cache_implementation = None
    return generation_config


class StreamInputs(BatchFeature):
    """The inputs that a processor makes from conversations.

    A pipeline adds the chat that they were made from as `text`, and batches several chats by padding the second
    dimension of their inputs. So when `text` is added, frames `[F, 3, H, W]` become a row `[1, F, 3, H, W]`, and the
    tiles of images one vector `image_tiles`, which it only joins. `generate` accepts both and `forward` does not.
    """

    def __setitem__(self, name: str, value) -> None:
        super().__setitem__(name, value)
        frames = self.get("pixel_values_videos")
        if name == "text" and isinstance(frames, torch.Tensor) and frames.ndim == 4:
            super().__setitem__("pixel_values_videos", frames[None])
        if name == "text" and isinstance(self.get("pixel_values"), torch.Tensor):
            super().__setitem__("image_tiles", self.pop("pixel_values").flatten())


def frames_of_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Frames `[F, 3, H, W]` of rows `[B, P, 3, H, W]` that are padded on the left; row `i` holds `counts[i]` frames.

    Raises:
        `ValueError`: if the number of rows differs, or a row is too short.
    """
    if len(rows) != len(counts) or max(counts, default=0) > rows.shape[1]:
        raise ValueError(
            f"frames and placeholders do not match: `pixel_values_videos` holds {len(rows)} rows of {rows.shape[1]} "
            f"frames, the rows have placeholders for {counts}"
        )
    return torch.cat([row[len(row) - count :] for row, count in zip(rows, counts, strict=True)])


class FramesOfRows:
    """The frames of a batch, grouped by row. For beams and several sequences `generate` repeats tensors along
    dimension 0, which would mix up the frames of rows; it does not touch other objects.

    Args:
        frames (`[F, ...]`): of all rows, in row order; or the tokens of their images.
        counts (`list[int]`): how many of them each row has.
    """

    def __init__(self, frames: torch.Tensor, counts: list[int]):
        self.frames, self.counts = frames, counts

    def of_batch(self, batch_size: int) -> torch.Tensor:
        """`[F', ...]`: frames of a batch that repeats each row `batch_size / rows` times in succession."""
        repeats = batch_size // len(self.counts)
        if repeats == 1:
            return self.frames
        return torch.cat([block for block in self.frames.split(self.counts) for _ in range(repeats)])


class StreamGenerationMixin(GenerationMixin):
    """`GenerationMixin` for rows of text with frames, and a `MoDCache`."""

    config: VideoLLMMoDConfig

    def generate(self, inputs=None, generation_config=None, *args, **kwargs):
        """As `GenerationMixin.generate`, for `input_ids` or `inputs_embeds` with placeholders and the frames of all
        rows, `pixel_values_videos` or `video_features`. `pixel_values_videos` may also be `[B, P, 3, H, W]`, padded on
        the left as pipelines do. Images that are cut into tiles are given as in `VideoLLMMoDModel.forward`. The cache
        can be passed as `cache` or `past_key_values`.

        Raises:
            `ValueError`: if frames and placeholders do not match, or for an option that routed layers do not support,
                naming it.
        """
        kwargs = rename_cache(kwargs, CACHE_NAME)
        if isinstance(ratio := kwargs.get("keep_ratio"), list | tuple | torch.Tensor):
            raise ValueError(f"`keep_ratio` of `generate` must be one number, got a {type(ratio).__name__.lower()}")
        config = self.generation_config if generation_config is None else generation_config
        options = [kwargs, config.to_dict(), self.generation_config.to_dict()]
        check_options(*options)
        model = self
        if kwargs.get(CACHE_NAME) is None and kwargs.get("use_cache", config.use_cache) is not False:
            named = [source.get("cache_implementation") for source in options]
            implementation = next(filter(None, named), None)
            kwargs.pop("cache_implementation", None)
            if implementation not in (None, "dynamic", "offloaded"):
                raise ValueError(
                    f'`cache_implementation` must be "dynamic" or "offloaded", got {implementation!r}: routed layers '
                    "hold different tokens, which only a MoDCache can do"
                )
            # transformers refuses it beside a cache, also in the model's own configuration, which fills gaps
            if generation_config is not None:
                generation_config = without_cache(generation_config)
            if self.generation_config.cache_implementation is not None:
                model = copy.copy(self)  # the same weights
                model.generation_config = without_cache(self.generation_config)
            kwargs[CACHE_NAME] = MoDCache(self.config, offloading=implementation == "offloaded")
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        cache = kwargs.get(CACHE_NAME)
        seen = 0 if cache is None else cache.get_seq_length()  # the cache holds the frames of these columns
        for name in FRAMES:
            if isinstance(kwargs.get(name), torch.Tensor):
                kwargs[name] = self._of_rows(name, kwargs[name], input_ids, kwargs.get("inputs_embeds"), seen)
        images = {name: kwargs.pop(name) for name in IMAGES if name in kwargs}
        if (tiles := kwargs.pop("image_tiles", None)) is not None:
            side = self.config.vision_config.image_size
            images["pixel_values"] = tiles.view(-1, self.config.vision_config.num_channels, side, side)
        if images.get("pixel_values") is not None:
            with torch.no_grad():
                features = self.model.get_image_features(**images)  # type: ignore[attr-defined]
            counts = self._count(self.config.image_token_id, input_ids, kwargs.get("inputs_embeds"), seen)
            if sum(counts) != len(features):
                raise ValueError(
                    f"images and placeholders do not match: {len(features)} tokens of images, {counts} placeholders"
                )
            kwargs["image_features"] = FramesOfRows(features, counts)
        return super(StreamGenerationMixin, model).generate(inputs, generation_config, *args, **kwargs)

    def _count(self, token_id, input_ids, inputs_embeds, seen: int) -> list[int]:
        """How many tokens of this id each row holds after those that the cache has `seen`."""
        has_ids = input_ids is not None and input_ids.numel() > 0
        found = self.model.tokens_with_id(  # type: ignore[attr-defined]  # the class with this mixin has it
            token_id, input_ids if has_ids else None, None if has_ids else inputs_embeds
        )
        return found[:, seen:].sum(1).tolist()

    def _of_rows(self, name: str, frames: torch.Tensor, input_ids, inputs_embeds, seen: int) -> FramesOfRows:
        tokens = self._count(self.config.video_token_id, input_ids, inputs_embeds, seen)
        counts = [count // self.config.num_frame_tokens for count in tokens]
        if name == "pixel_values_videos" and frames.dim() == 5:
            frames = frames_of_rows(frames, counts)
        if sum(counts) != len(frames):
            raise ValueError(
                f"frames and placeholders do not match: `{name}` holds {len(frames)} frames, the rows have "
                f"placeholders for {counts}"
            )
        return FramesOfRows(frames, counts)

    def init_continuous_batching(self, *args, **kwargs):
        raise ValueError(PAGED)

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, is_first_iteration=False, **kwargs):
        cache = kwargs.get(CACHE_NAME)
        if cache is not None and cache.get_seq_length() == 0 and inputs_embeds is None:
            is_first_iteration = True  # assisted decoding does not set it, and an empty cache needs the frames
        # after the prefill the cache holds the frames
        needs_frames = is_first_iteration or not kwargs.get("use_cache", True)
        for name in (*FRAMES, "image_features"):
            frames = kwargs.pop(name, None)
            if frames is not None and needs_frames:
                batch_size = len(input_ids if inputs_embeds is None else inputs_embeds)
                kwargs[name] = frames.of_batch(batch_size) if hasattr(frames, "of_batch") else frames
        return super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )


class TokenSampler:
    """
    Chooses tokens one at a time, with the score processors of transformers' `generate`. They see only the tokens of
    the reply, so a repetition penalty ignores earlier narrations.

    Args:
        model, processor: of the session.
        generation_config (`GenerationConfig`, *optional*): greedy if omitted. The sampler draws from its own
            generator, seeded by torch's default one, so that a copy draws the same tokens.

    Attributes:
        ends (`frozenset[int]`): tokens that end a reply: the tokenizer's end of sequence, what the chat template puts
            after a reply, and those of the model's `generation_config`, of which a chat model may have several.

    Raises:
        `ValueError`: for another type, beams, several sequences, or an option that needs more than scores.
    """

    def __init__(self, model, processor, generation_config: GenerationConfig | None = None):
        # the model never says a placeholder, nor a row that only pads the vocabulary
        never = {processor.video_token_id, *(model.generation_config.suppress_tokens or ())}
        self.suppressed = torch.tensor(sorted(never), device=model.device)
        eos = processor.tokenizer.eos_token_id
        others = model.generation_config.eos_token_id
        self.ends = frozenset(
            [
                eos,
                processor.reply_stop_id,
                *(others if isinstance(others, list) else [eos if others is None else others]),
            ]
        )
        self._end_ids = torch.tensor(sorted(self.ends), device=model.device)
        self.processors, self.generator = None, None
        if generation_config is None:
            return
        if not isinstance(generation_config, GenerationConfig):
            raise ValueError(f"`generation_config` must be a GenerationConfig, got {generation_config!r}")
        if (generation_config.num_beams or 1) != 1 or (generation_config.num_return_sequences or 1) != 1:
            raise ValueError(
                "`generation_config` must have one beam and one sequence: a stream continues from one reply"
            )
        for name, plain in UNSUPPORTED.items():
            if getattr(generation_config, name, None) not in (None, plain):
                value = getattr(generation_config, name)
                raise ValueError(f"`generation_config.{name}` is not supported in a stream, got {value!r}")
        options = copy.deepcopy(generation_config)
        options.eos_token_id = sorted(self.ends)
        options.pad_token_id = processor.tokenizer.pad_token_id
        self.processors = score_processors(model, options)
        if generation_config.do_sample:
            self.generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))

    def copy(self) -> "TokenSampler":
        """An independent sampler that draws the same tokens as this one."""
        other = copy.copy(self)
        if self.generator is not None:
            other.generator = torch.Generator()
            other.generator.set_state(self.generator.get_state())
        return other

    def __call__(self, said: list[int], logits: torch.Tensor) -> int:
        """The next token of a reply whose tokens so far are `said`. logits: `[V]` of any dtype.

        Raises:
            `ValueError`: if they are not finite, as with damaged weights.
        """
        logits = logits.float()
        if not logits.isfinite().all():
            raise ValueError("the model's scores are not finite numbers: its weights hold nan or infinity")
        logits[self.suppressed] = -torch.inf
        if self.processors is None:
            return int(logits.argmax())
        said_ids = torch.tensor([said], dtype=torch.long, device=logits.device)
        scores = self.processors(cast(torch.LongTensor, said_ids), logits[None])[0]
        if self.generator is None:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self.generator))

    def gaps(self, reply: Reply, logits: torch.Tensor) -> torch.Tensor:
        """How much less probable each token of a reply is than the best one. Greedy decoding counts its score
        processors in; sampling does not, since they remove most tokens.

        Args:
            reply: what was said.
            logits (`[R, V]`): before each token of the reply and, if it was ended, before its end.

        Returns:
            float32 `[R]`, in nats, at least 0; nan where logits are not finite.
        """
        scores = logits.float().index_fill(1, self.suppressed, -torch.inf)
        ids = torch.tensor([reply.ids], dtype=torch.long, device=scores.device)
        if self.processors is not None and self.generator is None:
            said = [cast(torch.LongTensor, ids[:, :count]) for count in range(len(scores))]
            rows = [self.processors(own, row[None]) for own, row in zip(said, scores, strict=True)]
            scores = torch.cat(rows)
        own = scores[: ids.shape[1]].gather(1, ids.T)[:, 0]
        if reply.ended:  # by any of the tokens that end a reply
            own = torch.cat([own, scores[-1:, self._end_ids].amax(1)])
        return scores.amax(1) - own

    def largest_gap(self, reply: Reply, logits: torch.Tensor) -> torch.Tensor:
        """float32 `[]`: the largest of `gaps`, each less the gap that there was when the token was said."""
        gaps = self.gaps(reply, logits)
        if reply.gaps:
            gaps = (gaps - torch.tensor(reply.gaps, device=gaps.device)).clamp(min=0)
        return gaps.amax()


def score_processors(model, generation_config: GenerationConfig) -> LogitsProcessorList:
    """The score processors that `generate` makes from a configuration for text without a prompt. A custom generation
    method returns them."""

    def hand_out(model, input_ids, logits_processor, *args, **kwargs):
        return logits_processor

    alone = copy.copy(model)  # the same weights
    alone.generation_config = generation_config  # without the options of the model's own
    no_prompt = torch.zeros(1, 1, model.config.text_config.hidden_size, dtype=model.dtype, device=model.device)
    with warnings.catch_warnings(action="ignore"):  # of a missing prompt, and of lengths, which the session limits
        return alone.generate(inputs_embeds=no_prompt, generation_config=generation_config, custom_generate=hand_out)


__all__ = [
    "Reply",
    "StreamEvent",
    "StreamGenerationMixin",
    "StreamInputs",
    "TokenSampler",
    "WatchedFrame",
    "check_threshold",
    "default_threshold",
    "learn_silence",
    "silence_probability",
    "speaks",
]
