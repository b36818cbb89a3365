"""How many decisions of a session another routing changes: whether to speak after a frame, and each word of a reply.

A `Leader` is the session of the dense model, which notes what it does. A `Follower` watches the same clip with the
same prompts and memory, but routed. It speaks after the same frames in the same words, and notes what it would have
done by itself. So each decision is compared after the same past, and one change is counted once.

Shapes: V vocabulary, F frames.
"""

from dataclasses import dataclass, field, fields

import torch

from ..session_state import OPTIONS
from ..speaking import StreamEvent, TokenSampler, speaks
from ..streaming import StreamingSession


@dataclass
class Changes:
    """
    Decisions of a leader, and how many of them its follower would make otherwise.

    Args:
        frames (`int`): after which the model decides whether to speak; `spoken` counts the other decisions.
        words (`int`): tokens of replies, with those that end them; `other_words` counts the other ones.
        replies (`int`): of the leader; `other_replies` counts those with another word, and narrations that the
            follower would not begin.
        added (`int`): narrations that only the follower would begin.
        divergences (`list[float]`): KL(leader || follower) of each word, in nats.
    """

    frames: int = 0
    spoken: int = 0
    words: int = 0
    other_words: int = 0
    replies: int = 0
    other_replies: int = 0
    added: int = 0
    divergences: list[float] = field(default_factory=list)

    def __add__(self, other: "Changes") -> "Changes":
        return Changes(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def share(self) -> float:
        """Of all replies that one of both gives, the share that the other one does not give after the same frame in
        the same words."""
        total = self.replies + self.added
        return (self.other_replies + self.added) / total if total else 0.0

    def as_dict(self) -> dict:
        """The share and the counts, and of the divergences the 99th percentile and the largest one."""
        counts = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "divergences"}
        ordered = sorted(self.divergences) or [0.0]
        tail = {"percentile_99": ordered[int(0.99 * (len(ordered) - 1))], "largest": ordered[-1]}
        return {"share": self.share, **counts, **tail}


class NotingSampler(TokenSampler):
    """Notes, for each reply in order, its tokens and their log probabilities, float32 `[V]`."""

    def __init__(self, model, processor):
        super().__init__(model, processor)
        self.tokens: list[list[int]] = []
        self.scores: list[list[torch.Tensor]] = []

    def __call__(self, said: list[int], logits: torch.Tensor) -> int:
        scores = logits.float().log_softmax(-1)  # first, since the call below changes logits
        token = super().__call__(said, logits)
        if not said:  # a reply begins
            self.tokens.append([])
            self.scores.append([])
        self.tokens[-1].append(token)
        self.scores[-1].append(scores)
        return token


class FollowingSampler(TokenSampler):
    """Says what a leader has said. Notes for each reply which words it would have chosen otherwise, and all
    divergences."""

    def __init__(self, model, processor, lead: NotingSampler):
        super().__init__(model, processor)
        self.lead = lead
        self.others: list[list[bool]] = []
        self.divergences: list[torch.Tensor] = []

    def __call__(self, said: list[int], logits: torch.Tensor) -> int:
        scores = logits.float().log_softmax(-1)
        own = super().__call__(said, logits)
        if not said:
            self.others.append([])
        reply = len(self.others) - 1
        expected, token = self.lead.scores[reply][len(said)], self.lead.tokens[reply][len(said)]
        self.others[-1].append(own != token)
        self.divergences.append((expected.exp() * (expected - scores)).sum())
        return token


class Leader(StreamingSession):
    """A greedy session that notes P(silence) after each frame, and its replies. Arguments: of `StreamingSession`."""

    def __init__(self, model, processor, **options):
        super().__init__(model, processor, **options)
        self.silence: list[float] = []
        self.said = self.sampler = NotingSampler(model, processor)

    @property
    def spoke(self) -> list[bool]:
        """After each frame."""
        return speaks(torch.tensor(self.silence, dtype=torch.float64), self.speak_threshold).tolist()

    def _silence(self, fed) -> torch.Tensor:
        silence = super()._silence(fed)
        self.silence[self.state.counts["frames"] :] = silence.tolist()  # frames that were rolled back come anew
        return silence


class Follower(Leader):
    """A session with the options of a leader that does what the leader did, and notes what it would have done."""

    def __init__(self, lead: Leader):
        super().__init__(lead.model, lead.processor, **{name: getattr(lead, name) for name in OPTIONS})
        self.lead = lead
        self.words = self.sampler = FollowingSampler(lead.model, lead.processor, lead.said)

    def _silence(self, fed) -> torch.Tensor:
        silence, first = super()._silence(fed), self.state.counts["frames"]
        spoke = torch.tensor(self.lead.spoke[first : first + len(silence)])
        return torch.where(spoke, -1.0, 2.0)  # below and above every threshold

    def changes(self, events: list[StreamEvent]) -> Changes:
        """After all frames and questions of the leader. events: what was said."""
        expected, own = self.lead.spoke, self.spoke
        begun = iter([mine for mine, theirs in zip(own, expected, strict=True) if theirs])
        found = Changes(
            frames=len(own),
            spoken=sum(mine != theirs for mine, theirs in zip(own, expected, strict=True)),
            replies=len(events),
            added=sum(mine and not theirs for mine, theirs in zip(own, expected, strict=True)),
        )
        for event, others in zip(events, self.words.others, strict=True):
            kept = next(begun) if event.kind == "narration" else True
            found.other_replies += not kept or any(others)
            found.words += len(others)
            found.other_words += sum(others)
        found.divergences = torch.stack(self.words.divergences).tolist() if found.words else []
        return found


__all__ = ["Changes", "Follower", "Leader"]
