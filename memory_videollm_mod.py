"""What a session forgets of a long stream, so that its cache stays small and its positions within the trained range.

The prompt, which is all that comes before the first frame, and the last text stay. Of the frames a session keeps the
last ones whole; older vision tokens leave by policy, in every layer that holds them. What stays moves together: its
positions become consecutive again, and its keys are turned by the difference.

Shapes: N vision tokens per frame, M tokens of the stream that are cached, at positions 0 .. M-1.
"""

import copy

import torch

from .cache_videollm_mod import MoDCache
from .configuration_videollm_mod import check_choice

POLICIES = ("window", "router")
ROOM = 4  # a full memory lets go of its `ROOM`-th part at once: what stays is moved rarely
PROMPT, TEXT, SEPARATOR, VISION = range(4)
FIELDS = ("kinds", "frames", "scores")


class StreamMemory:
    """
    Keeps account of the tokens that the cache of one stream holds, and lets some of them leave.

    Args:
        max_frames (`int`): frames whose vision tokens the cache may hold, or as many tokens under `"router"`; and as
            many tokens of text after the prompt, of which the oldest leave.
        num_frame_tokens (`int`): N.
        policy (`str`): `"window"`: the oldest frames leave. `"router"`: the last half of `max_frames` stays whole; of
            what is older, the tokens that the LayerExperts scored lowest leave first, so a frame fades patch by patch.

    Raises:
        `ValueError`: for another policy, or fewer than 4 frames.
    """

    def __init__(self, max_frames: int, num_frame_tokens: int, policy: str = "window"):
        check_choice("cache_policy", policy, POLICIES)
        self.num_frame_tokens, self.policy = num_frame_tokens, policy
        self.resize(max_frames)
        self.forgotten = 0  # tokens that have left
        # of the token at each position: what it is, the number of its frame (-1: none yet), and its score
        self.kinds = torch.empty(0, dtype=torch.uint8)
        self.frames = torch.empty(0, dtype=torch.long)
        self.scores = torch.empty(0)

    def resize(self, max_frames: int) -> None:
        """Hold another number of frames; what is too much leaves when room is next made."""
        if isinstance(max_frames, bool) or not isinstance(max_frames, int) or max_frames < ROOM:
            raise ValueError(f"`max_cached_frames` must be a whole number of at least {ROOM}, got {max_frames!r}")
        self.max_frames, self.text_budget = max_frames, max_frames * self.num_frame_tokens

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
        kinds = torch.where(frames < 0, PROMPT, TEXT)
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

    @property
    def room(self) -> int:
        """Frames that may come before some have to leave; 0 too where there is too much text."""
        if int((self.kinds == TEXT).sum()) > self.text_budget:
            return 0
        return self.max_frames - -(-int((self.kinds == VISION).sum()) // self.num_frame_tokens)

    @staticmethod
    def _after(limit: int) -> int:
        """How much stays of what has reached its limit."""
        return limit - max(1, limit // ROOM)

    def leaving(self) -> torch.Tensor:
        """bool `[M]`: which tokens leave now."""
        is_vision = self.kinds == VISION
        held = self.frames[is_vision].unique()  # ascending
        goal = self._after(self.max_frames)
        leaving = torch.zeros_like(is_vision)
        if self.policy == "window":
            stay = held[-goal:]
            leaving[is_vision] = ~torch.isin(self.frames[is_vision], stay)
        else:
            excess = int(is_vision.sum()) - goal * self.num_frame_tokens
            old = (is_vision & ~torch.isin(self.frames, held[-(self.max_frames // 2) :])).nonzero().flatten()
            order = self.scores[old].argsort(stable=True)
            leaving[old[order[: max(0, excess)]]] = True
        stay = self.frames[is_vision & ~leaving].unique()
        leaving |= (self.kinds == SEPARATOR) & ~torch.isin(self.frames, stay)
        text = (self.kinds == TEXT).nonzero().flatten()
        leaving[text[: max(0, len(text) - self._after(self.text_budget))]] = True
        return leaving

    def make_room(self, cache: MoDCache, rotary_embedding) -> None:
        """Let tokens leave the cache, and this account."""
        leaving = self.leaving()
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
