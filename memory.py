"""What a session forgets of a long stream, so that its cache stays small and its positions within the trained range.

A session has a budget of frames, of bytes, or of both. The prompt, which is all that comes before the first frame, and
the last text stay. Of the frames a session keeps the
last ones whole; older vision tokens leave by policy, in every layer that holds them. What stays moves together: its
positions become consecutive again, and its keys are turned by the difference.

Shapes: N vision tokens per frame, M tokens of the stream that are cached, at positions 0 .. M-1.
"""

import copy

import torch

from .cache import MoDCache
from .configuration_videollm_mod import check_choice

POLICIES = ("window", "router")
ROOM = 4  # a full memory lets go of its `ROOM`-th part at once: what stays is moved rarely
TEXT_SHARE = 6  # of a budget of bytes, a sixth each for the prompt, for text and for what is about to be read
FEWEST_WORDS = 48  # tokens of text that a session must be able to keep
LONGEST_TURN = 256  # tokens of text that may come at once, or as many as a session keeps of it, if these are more
PROMPT, TEXT, SEPARATOR, VISION = range(4)
FIELDS = ("kinds", "frames", "scores")


class StreamMemory:
    """
    Keeps account of the tokens that the cache of one stream holds, and lets some of them leave.

    The prompt stays, as far as it fits into the budget of text; beyond that it is text as any other.

    Args:
        max_frames (`int`, *optional*): frames whose vision tokens the cache may hold, or as many tokens under
            `"router"`; and as many tokens of text after the prompt, of which the oldest leave.
        num_frame_tokens (`int`): N.
        policy (`str`): `"window"`: the oldest frames leave. `"router"`: the latter half of what may stay stays whole;
            of what is older, the tokens that the LayerExperts scored lowest leave first, so a frame fades patch by
            patch.
        max_bytes (`int`, *optional*): what the cache may take at any time; the vision tokens get what the text leaves.
        token_bytes (`int`): of a token that every layer holds.
        turn_tokens (`int`): the longest turn that the model may speak after a frame, for which room is kept.

    Raises:
        `ValueError`: for another policy, fewer than 4 frames, or bytes that hold too little.
    """

    def __init__(
        self,
        max_frames: int | None,
        num_frame_tokens: int,
        policy: str = "window",
        max_bytes: int | None = None,
        token_bytes: int = 1,
        turn_tokens: int = 0,
    ):
        check_choice("cache_policy", policy, POLICIES)
        self.num_frame_tokens, self.policy = num_frame_tokens, policy
        self.max_bytes, self.token_bytes, self.turn_tokens = max_bytes, token_bytes, turn_tokens
        self.frame_bytes = (num_frame_tokens + 1) * token_bytes  # with the separator before it
        self.resize(max_frames)
        self.forgotten = 0  # tokens that have left
        # of the token at each position: what it is, the number of its frame (-1: none yet), and its score
        self.kinds = torch.empty(0, dtype=torch.uint8)
        self.frames = torch.empty(0, dtype=torch.long)
        self.scores = torch.empty(0)

    def resize(self, max_frames: int | None) -> None:
        """Hold another number of frames; what is too much leaves when room is next made."""
        budgets = []
        if max_frames is not None:
            if isinstance(max_frames, bool) or not isinstance(max_frames, int) or max_frames < ROOM:
                raise ValueError(f"`max_cached_frames` must be a whole number of at least {ROOM}, got {max_frames!r}")
            budgets.append(max_frames * self.num_frame_tokens)
        if self.max_bytes is not None:
            fewest = max(TEXT_SHARE * FEWEST_WORDS * self.token_bytes, ROOM * ROOM * self.frame_bytes)
            fewest += self.turn_tokens * self.token_bytes
            if isinstance(self.max_bytes, bool) or not isinstance(self.max_bytes, int) or self.max_bytes < fewest:
                raise ValueError(
                    f"`max_cached_bytes` must be a whole number of at least {fewest} for this model, got "
                    f"{self.max_bytes!r}"
                )
            self.usable_bytes = self.max_bytes - self.turn_tokens * self.token_bytes
            budgets.append(self.usable_bytes // TEXT_SHARE // self.token_bytes)
        self.max_frames, self.text_budget = max_frames, min(budgets)

    @property
    def most_bytes(self) -> int:
        """What the cache takes at most."""
        if self.max_bytes is not None:
            return self.max_bytes
        # a separator stays with the last token of its frame, of text the prompt and the turns
        per_frame = self.num_frame_tokens + (self.num_frame_tokens if self.policy == "router" else 1)
        text = 2 * self.text_budget + self.most_pending + self.turn_tokens
        return (self.max_frames * per_frame + text) * self.token_bytes

    @property
    def most_pending(self) -> int:
        """Tokens of text that may wait to be read together with what comes next."""
        return self.text_budget if self.max_bytes is not None else max(self.text_budget, LONGEST_TURN)

    def copy(self) -> "StreamMemory":
        """Another account of the same; nothing here writes into a tensor."""
        return copy.copy(self)

    def record(self, ids: torch.Tensor, video_token_id: int, separator_token_id: int, scores: torch.Tensor | None):
        """Note tokens that the cache has taken in. ids: int64 `[T]`; scores: of the frames among them, `[F, N]`."""
        is_vision = ids == video_token_id
        last = int(self.frames[-1]) if len(self.frames) else -1
        begins = is_vision.long().cumsum(0).sub(1).div(self.num_frame_tokens, rounding_mode="floor")
        frames = torch.where(begins >= 0, last + 1 + begins, last)
        before = (self.kinds[-1:] == VISION) if len(self.kinds) else torch.zeros(1, dtype=torch.bool)
        after_vision = torch.cat([before, is_vision[:-1]])
        position = torch.arange(len(ids)) + len(self.kinds)
        kinds = torch.where((frames < 0) & (position < self.text_budget), PROMPT, TEXT)
        kinds = torch.where((ids == separator_token_id) & after_vision, SEPARATOR, kinds)
        kinds = torch.where(is_vision, VISION, kinds).to(torch.uint8)
        worth = torch.zeros(len(ids))
        if scores is not None:
            worth[is_vision] = scores.flatten()
        self.kinds, self.frames = torch.cat([self.kinds, kinds]), torch.cat([self.frames, frames])
        self.scores = torch.cat([self.scores, worth])

    def rollback(self, position: int) -> None:
        """Forget that tokens from `position` on were ever taken in."""
        for name in FIELDS:
            setattr(self, name, getattr(self, name)[:position])

    def room(self, held_bytes: int = 0, pending: int = 0) -> int:
        """Frames that may come before some have to leave; 0 too where there is too much text.

        Args:
            held_bytes (`int`): of the cache.
            pending (`int`): tokens of text that come before the next frame.
        """
        if int((self.kinds == TEXT).sum()) + pending > self.text_budget:
            return 0  # what is pending counts: it comes with the next frame, and others may be fed together with that
        rooms = []
        if self.max_frames is not None:
            rooms.append(self.max_frames - -(-int((self.kinds == VISION).sum()) // self.num_frame_tokens))
        if self.max_bytes is not None:
            rooms.append((self.usable_bytes - held_bytes - pending * self.token_bytes) // self.frame_bytes)
        return max(0, min(rooms))

    @staticmethod
    def _after(limit: int) -> int:
        """How much stays of what has reached its limit."""
        return limit - max(1, limit // ROOM)

    def leaving(self, sizes: torch.Tensor | None = None, pending: int = 0) -> torch.Tensor:
        """bool `[M]`: which tokens leave now.

        Args:
            sizes (`int64 [M]`): bytes that each token takes in the cache; needed with `max_bytes`.
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
            of_frame = is_vision | (self.kinds == SEPARATOR)
            others = int(sizes[~of_frame & ~leaving].sum()) + pending * self.token_bytes
            limit = self._after(self.usable_bytes) - others
            leaving |= self._leaving_vision(sizes * of_frame, limit, limit // 2)
        stay = self.frames[is_vision & ~leaving].unique()
        return leaving | (self.kinds == SEPARATOR) & ~torch.isin(self.frames, stay)

    def _leaving_vision(self, sizes: torch.Tensor, limit: int, whole: int) -> torch.Tensor:
        """bool `[M]`: vision tokens that leave, so that what stays has no more than the limit; under `"router"` the
        newest frames of size `whole` together stay as they are. sizes: int64 `[M]`."""
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

    def make_room(self, cache: MoDCache, rotary_embedding, pending: int = 0) -> None:
        """Let tokens leave the cache, and this account."""
        sizes = None if self.max_bytes is None else cache.token_bytes()
        leaving = self.leaving(sizes, pending)
        cache.forget(leaving, KeyTurner(rotary_embedding))
        self.forgotten += int(leaving.sum())
        for name in FIELDS:
            setattr(self, name, getattr(self, name)[~leaving])


def frames_in_context(config) -> int:
    """The `max_frames` with which a stream stays within `max_position_embeddings`, whatever its length."""
    per_frame = 2 * config.num_frame_tokens + 1  # its tokens, as many of text, and a separator
    return max(ROOM, config.text_config.max_position_embeddings // per_frame)


class KeyTurner:
    """Moves keys to earlier positions: turns each by its difference, against the sense of the rotary embedding.

    Args:
        rotary_embedding (`LlamaRotaryEmbedding`): whose angles are proportional to the position.

    Raises:
        `ValueError`: for an embedding whose angles depend on the length.
    """

    def __init__(self, rotary_embedding):
        if rotary_embedding.rope_type in ("dynamic", "longrope"):
            raise ValueError(
                f"`max_cached_frames` needs rotary embeddings that are the same at any length, got the rope_type "
                f"{rotary_embedding.rope_type!r}"
            )
        self.rotary_embedding = rotary_embedding

    def __call__(self, keys: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """keys `[B, heads, L, head_dim]`, distance int64 `[L]` -> keys of the tokens at `position - distance`."""
        cos, sin = self.rotary_embedding(keys.float(), distance[None])
        scaling = self.rotary_embedding.attention_scaling  # once is enough
        cos, sin = cos[:, None] / scaling, sin[:, None] / scaling
        first, second = keys.float().chunk(2, dim=-1)
        turned = keys.float() * cos - torch.cat([-second, first], dim=-1) * sin
        return turned.to(keys.dtype)


__all__ = ["KeyTurner", "StreamMemory", "frames_in_context"]
