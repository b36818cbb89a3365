"""Which tokens of a long stream a session forgets, so that its cache stays small and positions stay in range.

A session has a budget of frames, of bytes, or of both. It keeps the prompt, which is everything before the first
frame, the last text, and the last frames whole. Older vision tokens leave by policy, in every layer that holds them.
The remaining tokens are renumbered: their positions become consecutive again, and their keys are rotated accordingly.

Shapes: N vision tokens per frame, M tokens of the stream that are cached, at positions 0 .. M-1.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch

from .cache import GrowingTensor, MoDCache
from .configuration_videollm_mod import check_choice
from .containers import check_count, is_whole

POLICIES = ("window", "router")
QUARTER = 4  # a full memory evicts a quarter at once, so that tokens are rarely renumbered
TEXT_SHARE = 6  # a budget of bytes has a sixth each for the prompt, for later text and for pending text
FEWEST_WORDS = 48  # tokens of text that a session must be able to keep
LONGEST_TURN = 256  # tokens of text that may be pending, or as many as the text budget, whichever is more
PROMPT, TEXT, SEPARATOR, VISION = range(4)
FIELDS = ("kinds", "frames", "scores")


class StreamMemory:
    """
    Tracks the tokens that the cache of one stream holds, and decides which of them leave.

    The prompt stays as far as it fits into the budget of text; the rest of it is treated as other text.

    Args:
        max_frames (`int`, *optional*): frames to remember: the cache holds at most the vision tokens of so many
            frames.
        num_frame_tokens (`int`): N.
        policy (`str`): `"window"`: the oldest frames leave. `"router"`: the newer half of the budget is kept whole; of
            older frames the tokens with the lowest LayerExpert scores leave first, so that a frame fades patch by
            patch.
        max_bytes (`int`, *optional*): largest size of the cache; vision tokens get what text does not use.
        token_bytes (`int`): size of a token that every layer holds.
        turn_tokens (`int`): tokens of the longest reply and of what stands around it, whose bytes are kept free.
        frame_text (`int`): tokens of text around a frame, which leave with its last vision token: the separator, or
            the pieces of a family.
        max_text (`int`, *optional*): tokens of text to remember after the prompt, at least 48, of which the oldest
            leave. Text outlives the frames that it was said about. Without it, as many as the vision tokens of
            `max_frames` (at least those of 4 frames); with `max_bytes`, no more than a sixth of the bytes hold.

    Raises:
        `ValueError`: for another policy, no frame, or bytes that hold too little.
    """

    def __init__(
        self,
        max_frames: int | None,
        num_frame_tokens: int,
        policy: str = "window",
        max_bytes: int | None = None,
        token_bytes: int = 1,
        turn_tokens: int = 0,
        frame_text: int = 1,
        max_text: int | None = None,
    ):
        if max_text is not None:
            check_count("`max_cached_text`", max_text, FEWEST_WORDS)
            if max_frames is None and max_bytes is None:
                raise ValueError("`max_cached_text` needs `max_cached_frames` or `max_cached_bytes`")
        self.max_text = max_text
        check_choice("cache_policy", policy, POLICIES)
        self.num_frame_tokens, self.policy = num_frame_tokens, policy
        self.max_bytes, self.token_bytes = max_bytes, token_bytes
        self.turn_tokens = self.first_turn_tokens = turn_tokens
        self.frame_text = frame_text
        self.frame_bytes = (num_frame_tokens + frame_text) * token_bytes
        self.resize(max_frames)
        self.forgotten = 0  # tokens that have left
        # bool [M] for each eviction, which tokens left, for a store that follows the cache; None if there is none
        self.evictions: list[torch.Tensor] | None = None
        # for the token at each position: its kind, the number of its frame (-1: none yet), and its score
        self.kinds = torch.empty(0, dtype=torch.uint8)
        self.frames = torch.empty(0, dtype=torch.long)
        self.scores = torch.empty(0)
        self._growing = {name: GrowingTensor(0) for name in FIELDS}

    def resize(self, max_frames: int | None) -> None:
        """Change the number of frames to remember. Tokens beyond it leave at the next `evict`."""
        budgets = [] if self.max_text is None else [self.max_text]
        if max_frames is not None:
            check_count("`max_cached_frames`", max_frames)
            # for instructions beside a single frame
            budgets = budgets or [max(max_frames, QUARTER) * self.num_frame_tokens]
        if self.max_bytes is not None:
            fewest = self._fewest_bytes + self.turn_tokens * self.token_bytes
            if not is_whole(self.max_bytes) or self.max_bytes < fewest:
                raise ValueError(
                    f"`max_cached_bytes` must be a whole number of at least {fewest} for this model, got "
                    f"{self.max_bytes!r}"
                )
            self.usable_bytes = self.max_bytes - self.turn_tokens * self.token_bytes
            budgets.append(self.usable_bytes // TEXT_SHARE // self.token_bytes)
        self.max_frames, self.text_budget = max_frames, min(budgets)

    @property
    def _fewest_bytes(self) -> int:
        """That a session needs beside a turn."""
        return max(TEXT_SHARE * FEWEST_WORDS * self.token_bytes, QUARTER * QUARTER * self.frame_bytes)

    @property
    def max_more_tokens(self) -> int:
        """By how many tokens a turn may be longer than was said at first."""
        if self.max_bytes is None:
            return self.max_pending  # nothing is pending while the model speaks
        return (self.max_bytes - self._fewest_bytes) // self.token_bytes - self.first_turn_tokens

    def lengthen_turns(self, more: int) -> None:
        """Keep bytes free for turns that are longer by so many tokens, at most `max_more_tokens`."""
        if self.max_bytes is not None:
            self.turn_tokens = max(self.turn_tokens, self.first_turn_tokens + more)
            self.resize(self.max_frames)

    @property
    def max_kv_bytes(self) -> int:
        """Largest size that the cache can reach."""
        if self.max_bytes is not None:
            return self.max_bytes
        # a separator stays as long as any token of its frame
        assert self.max_frames is not None  # a memory has one of both limits
        frames = self.num_frame_tokens if self.policy == "router" else 1  # that may share the tokens of one
        per_frame = self.num_frame_tokens + frames * self.frame_text
        text = 2 * self.text_budget + self.max_pending + self.turn_tokens
        return (self.max_frames * per_frame + text) * self.token_bytes

    @property
    def max_pending(self) -> int:
        """Largest number of pending tokens of text."""
        return self.text_budget if self.max_bytes is not None else max(self.text_budget, LONGEST_TURN)

    def copy(self) -> "StreamMemory":
        """An independent copy, which no store follows. Tensors are shared until one of both changes."""
        other = copy.copy(self)
        other._growing = {name: tensor.share() for name, tensor in self._growing.items()}
        other.evictions = None
        return other

    def record(
        self,
        ids: list[int],
        video_token_id: int,
        separator_token_id: int | None,
        scores: torch.Tensor | None,
        owners: list[int] | None = None,
    ):
        """Record tokens that were added to the cache.

        Args:
            ids (`list[int]`), scores (`[F, N]`, *optional*): the tokens, and the scores of the frames among them.
            owners (`list[int]`, *optional*): for each token which of these frames it stands around, -1 for none; if
                omitted, a separator stands around the frame before it.
        """
        tokens = np.array(ids)  # numpy, since torch takes several times as long for so few
        is_vision, held = tokens == video_token_id, len(self.kinds)
        last = int(self.frames[-1]) if held else -1
        begins = (is_vision.cumsum() - 1) // self.num_frame_tokens
        frames = np.where(begins >= 0, last + 1 + begins, last)
        is_prompt = (frames < 0) & (np.arange(held, held + len(tokens)) < self.text_budget)
        kinds = np.where(is_prompt, PROMPT, TEXT)
        if owners is not None:
            owner = np.array(owners)
            frames = np.where(owner >= 0, last + 1 + owner, frames)
            kinds[owner >= 0] = SEPARATOR
        elif separator_token_id is not None:
            after_vision = np.concatenate(([held > 0 and int(self.kinds[-1]) == VISION], is_vision[:-1]))
            kinds[(tokens == separator_token_id) & after_vision] = SEPARATOR
        kinds[is_vision] = VISION
        worth = np.zeros(len(tokens), np.float32)
        if scores is not None:
            worth[is_vision] = scores.flatten()
        new = {"kinds": kinds.astype(np.uint8), "frames": frames, "scores": worth}
        for name, values in new.items():
            setattr(self, name, self._growing[name].append(getattr(self, name), torch.from_numpy(values)))

    def rollback(self, position: int) -> None:
        """Remove the records of all tokens from `position` on."""
        for name in FIELDS:
            setattr(self, name, getattr(self, name)[:position])

    def free_frames(self, held_bytes: int = 0, pending: int = 0) -> int:
        """Frames that can be added before some have to leave; 0 also when there is too much text.

        Args:
            held_bytes (`int`): of the cache, if the memory is bounded in bytes.
            pending (`int`): tokens of text that come before the next frame.
        """
        counts = np.bincount(self.kinds.numpy(), minlength=VISION + 1)
        if counts[TEXT] + pending > self.text_budget:
            return 0  # pending text counts, since it is fed together with the next frames
        free = []
        if self.max_frames is not None:
            free.append(self.max_frames - -(-int(counts[VISION]) // self.num_frame_tokens))
        if self.max_bytes is not None:
            free.append((self.usable_bytes - held_bytes - pending * self.token_bytes) // self.frame_bytes)
        return max(0, min(free))

    @staticmethod
    def _after(limit: int) -> int:
        """How much is kept when the limit is reached."""
        return limit - max(1, limit // QUARTER)

    def leaving(self, sizes: torch.Tensor | None = None, pending: int = 0) -> torch.Tensor:
        """bool `[M]`: which tokens leave now.

        Args:
            sizes (`int64 [M]`): bytes of each token in the cache; needed with `max_bytes`.
            pending (`int`): tokens of text that come before the next frame.
        """
        is_vision = self.kinds == VISION
        leaving = torch.zeros_like(is_vision)
        text = (self.kinds == TEXT).nonzero().flatten()
        leaving[text[: max(0, len(text) + pending - self._after(self.text_budget))]] = True
        if self.max_frames is not None:
            limit = self.num_frame_tokens * self._after(self.max_frames)
            whole = self.num_frame_tokens * (self.max_frames // 2)
            leaving |= self._leaving_vision(is_vision.long(), limit, whole)
        if self.max_bytes is not None:
            assert sizes is not None
            of_frame = is_vision | (self.kinds == SEPARATOR)
            others = int(sizes[~of_frame & ~leaving].sum()) + pending * self.token_bytes
            limit = self._after(self.usable_bytes) - others
            leaving |= self._leaving_vision(sizes * of_frame, limit, limit // 2)
        stay = self.frames[is_vision & ~leaving].unique()
        return leaving | (self.kinds == SEPARATOR) & ~torch.isin(self.frames, stay)

    def _leaving_vision(self, sizes: torch.Tensor, limit: int, whole: int) -> torch.Tensor:
        """bool `[M]`: vision tokens that leave, so that the others take no more than the limit. Under `"router"` the
        newest frames, up to the size `whole` together, are kept whole. sizes: int64 `[M]`."""
        is_vision, leaving = self.kinds == VISION, torch.zeros_like(self.kinds, dtype=torch.bool)
        held, number = self.frames.unique(return_inverse=True)  # ascending
        of_frame = torch.zeros(len(held), dtype=torch.long).index_add_(0, number, sizes)
        newer = of_frame.flip(0).cumsum(0).flip(0)  # size of a frame and all after it
        if self.policy == "window":
            return is_vision & (newer[number] > limit)
        old = (is_vision & (newer[number] > whole)).nonzero().flatten()
        old = old[self.scores[old].argsort(stable=True)]
        gone_before = sizes[old].cumsum(0) - sizes[old]
        leaving[old[gone_before < sizes.sum() - limit]] = True
        return leaving

    def evict(self, cache: MoDCache, rotary_embedding, pending: int = 0, keep_newest: bool = False) -> None:
        """Remove the tokens that leave now from the cache, and from these records. keep_newest: of the last frame
        nothing leaves, since a question about it comes next and no other frame."""
        if len(self.kinds):  # a long prompt leaves no room for a frame, but there is nothing yet to forget
            sizes = None if self.max_bytes is None else cache.token_bytes()
            leaving = self.forget(sizes, pending, keep_newest)
            cache.forget(leaving, KeyRotation(rotary_embedding))
            if self.evictions is not None:
                self.evictions.append(leaving)

    def forget(self, sizes: torch.Tensor | None = None, pending: int = 0, keep_newest: bool = False) -> torch.Tensor:
        """Remove the tokens that leave now from these records alone. Returns bool `[M]`, which did; for the arguments
        see `leaving` and `evict`."""
        leaving = self.leaving(sizes, pending)
        if keep_newest and len(self.frames):
            leaving &= (self.kinds == TEXT) | (self.frames != self.frames[-1])
        self.forgotten += int(leaving.sum())
        for name in FIELDS:
            setattr(self, name, getattr(self, name)[~leaving])
        return leaving


def frames_in_context(config) -> int:
    """The `max_frames` with which a stream of any length stays within `max_position_embeddings`."""
    per_frame = 2 * config.num_frame_tokens + 1  # its tokens, as many of text, and a separator
    return max(QUARTER, config.text_config.max_position_embeddings // per_frame)


class KeyRotation:
    """Moves keys to earlier positions: rotates each backwards by the difference.

    Args:
        rotary_embedding (`LlamaRotaryEmbedding`): whose angles are proportional to the position.

    Raises:
        `ValueError`: for an embedding whose angles depend on the length.
    """

    def __init__(self, rotary_embedding):
        if rotary_embedding.rope_type in ("dynamic", "longrope"):
            raise ValueError(
                f"`max_cached_frames` needs rotary embeddings that do not depend on the length, got the rope_type "
                f"{rotary_embedding.rope_type!r}"
            )
        self.rotary_embedding = rotary_embedding

    def of_layer(self, layer_idx: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The rotation of a layer's keys, which does nothing in a layer without rotary embeddings."""
        no_rope = getattr(self.rotary_embedding.config, "no_rope_layers", ())
        return (lambda keys, distance: keys) if layer_idx in no_rope else self

    def __call__(self, keys: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """keys `[B, heads, L, head_dim]`, distance int64 `[L]` or `[B, L]` -> keys of the tokens at `position -
        distance`."""
        cos, sin = self.rotary_embedding(keys.float(), distance if distance.dim() == 2 else distance[None])
        scaling = self.rotary_embedding.attention_scaling  # the keys are scaled already
        cos, sin = cos[:, None] / scaling, sin[:, None] / scaling
        first, second = keys.float().chunk(2, dim=-1)
        rotated = keys.float() * cos - torch.cat([-second, first], dim=-1) * sin
        return rotated.to(keys.dtype)


__all__ = ["KeyRotation", "StreamMemory", "frames_in_context"]
