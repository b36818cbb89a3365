"""How far a routed model is from the dense one, and which routing costs least.

The divergence of a routing is the mean, over all words and silences that the dense model predicts, of
KL(dense || routed) in nats. The layers are ranked as in ShortV (arXiv 2504.00502): by the divergence when the vision
tokens skip one layer. Here they have no keys and values in that layer either, as in a routed layer.

The divergence is measured in one pass over a clip's conversation. What it means for the decisions of a session is
measured by `following`, for the routings that no other one beats in both divergence and operations.

Shapes: P predictions of a clip, V vocabulary.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import ceil, inf

import torch
from tqdm import tqdm

from ..configuration_videollm_mod import TRAINING_FREE, num_kept_tokens
from ..evaluation.operations import forward_operations
from .clips import Clip, run_abreast, watch, watching
from .following import Changes, Follower

FREE_SELECTIONS = (*TRAINING_FREE, "uniform")  # to choose from
CONTROLS = ("random", "random layers")  # to compare with; random layers keep tokens by "uniform"
CLIPS_AT_ONCE = 16
KEEP_RATIOS = (0.1, 0.2, 0.4, 0.7)
LAYER_COUNTS = 6  # different numbers of routed layers that are measured


@dataclass(frozen=True)
class Routing:
    """Which layers route, the share of vision tokens that they keep, and `mod_selection`."""

    layers: tuple[int, ...]
    keep_ratio: float
    selection: str

    @property
    def options(self) -> dict:
        """Of `VideoLLMMoDTextConfig`."""
        return {
            "vision_routing": "mod",
            "mod_layers": list(self.layers),
            "mod_keep_ratio": self.keep_ratio,
            "mod_selection": self.selection,
            "mod_gate": "none",
            "mod_force_keep_last": False,
        }


@dataclass(frozen=True)
class Measured:
    """A routing with its divergence (nats), its operations as a share of the dense model's, and what it changes, if
    that was measured. `name` is the selection, or one of `CONTROLS`."""

    name: str
    routing: Routing
    divergence: float
    operations: float
    changes: Changes | None = None

    def as_dict(self) -> dict:
        found = {
            "name": self.name,
            **asdict(self.routing),
            "divergence": self.divergence,
            "operations": self.operations,
        }
        return found if self.changes is None else found | {"decisions": self.changes.as_dict()}


@contextmanager
def routed(model, routing: Routing | None) -> Iterator[None]:
    """Route so in the body of this `with`; dense if None."""
    text, options = model.config.text_config, {"vision_routing": "full"} if routing is None else routing.options
    before = {name: getattr(text, name) for name in options}
    try:
        for name, value in options.items():
            setattr(text, name, value)
        text.check_routing()
        yield
    finally:
        for name, value in before.items():
            setattr(text, name, value)


@torch.no_grad()
def log_probabilities(model, clip: Clip, keep_ratio: float | None = None) -> torch.Tensor:
    """float32 `[P, V]` of what the model predicts on a clip."""
    output = model(
        input_ids=clip.ids,
        video_features=clip.features,
        logits_to_keep=clip.read_at,
        use_cache=False,
        keep_ratio=keep_ratio,
    )
    return output.logits[0].float().log_softmax(-1)


class Divergence:
    """
    Measures routings against the dense model on clips.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), clips (`list[Clip]`).
    """

    def __init__(self, model, clips: list[Clip]):
        self.model, self.clips = model, clips
        with routed(model, None):
            self.dense = [log_probabilities(model, clip) for clip in clips]
        self.predictions = sum(map(len, self.dense))

    def __call__(self, routing: Routing, keep_ratio: float | None = None) -> float:
        """Mean KL(dense || routed) in nats. keep_ratio: in place of the routing's; it may be 0."""
        total = 0.0
        with routed(self.model, routing):
            for clip, dense in zip(self.clips, self.dense, strict=True):
                found = log_probabilities(self.model, clip, keep_ratio)
                total += float((dense.exp() * (dense - found)).sum(dtype=torch.float64))
        return max(0.0, total / self.predictions)

    def operations(self, routing: Routing) -> float:
        """Operations of the language model's layers on the clips, as a share of the dense model's."""
        config = self.model.config
        skipped = config.num_frame_tokens - num_kept_tokens(routing.keep_ratio, config.num_frame_tokens)
        counts = [0.0, 0.0]
        for clip in self.clips:
            length = clip.ids.shape[1]
            entered = length - skipped * len(clip.features)
            for index, layers in enumerate((0, len(routing.layers))):
                counts[index] += forward_operations(config.text_config, length, entered, layers)
        return counts[1] / counts[0]

    def measured(self, name: str, routing: Routing) -> Measured:
        return Measured(name, routing, self(routing), self.operations(routing))

    def followed(self, row: Measured) -> Measured:
        """The row with what its routing changes."""
        found = Changes()
        with routed(self.model, row.routing):
            for first in range(0, len(self.clips), CLIPS_AT_ONCE):
                clips = self.clips[first : first + CLIPS_AT_ONCE]
                followers = [Follower(clip.lead) for clip in clips]
                works = [
                    watching(own, clip.features, clip.times, clip.questions)
                    for own, clip in zip(followers, clips, strict=True)
                ]
                for own, events in zip(followers, run_abreast(works), strict=True):
                    found += own.changes(events)
        return replace(row, changes=found)

    def ranked_layers(self) -> dict[int, float]:
        """`{layer: divergence when all vision tokens skip it}`, the layer that matters least first."""
        layers = range(self.model.config.text_config.num_hidden_layers)
        found = {
            layer: self(Routing((layer,), 1.0, "uniform"), keep_ratio=0.0) for layer in progress(layers, "layers")
        }
        return dict(sorted(found.items(), key=lambda item: item[1]))


def progress(items, name: str):
    """A bar on standard error, if that is a terminal."""
    return tqdm(items, desc=name, disable=None, dynamic_ncols=True)


def candidates(
    ranked: list[int], num_frame_tokens: int, seed: int = 0, keep_ratios: Iterable[float] | None = None
) -> list[tuple[str, Routing]]:
    """The routings to measure: the layers that matter least, for several numbers of layers and keep ratios, with each
    selection; and as many layers drawn at random. Layer 0 never routes, since scores need a layer before.

    Args:
        ranked (`list[int]`): all layers, the one that matters least first.
        num_frame_tokens (`int`), seed (`int`): of the random layers.
        keep_ratios: to measure, `KEEP_RATIOS` if omitted.
    """
    keep_ratios = KEEP_RATIOS if keep_ratios is None else keep_ratios
    ranked = [layer for layer in ranked if layer != 0]
    shuffled = random.Random(seed).sample(ranked, len(ranked))
    parts = range(1, LAYER_COUNTS + 1)
    counts = sorted({1, *(ceil(len(ranked) * part / LAYER_COUNTS) for part in parts)}) if ranked else []
    ratios = {num_kept_tokens(ratio, num_frame_tokens): ratio for ratio in sorted(keep_ratios, reverse=True)}
    ratios.pop(num_frame_tokens, None)  # nothing would be skipped
    found = []
    for name in (*FREE_SELECTIONS, *CONTROLS):
        order, selection = (shuffled, "uniform") if name == "random layers" else (ranked, name)
        for count in counts:
            layers = tuple(sorted(order[:count]))
            found += [(name, Routing(layers, ratio, selection)) for ratio in sorted(ratios.values())]
    return found


def best(rows: list[Measured]) -> list[Measured]:
    """The rows to choose from of which no other one has fewer operations and no larger divergence, from the most
    operations to the least."""
    found: list[Measured] = []
    for row in sorted(rows, key=lambda row: (row.operations, row.divergence)):
        if row.name in FREE_SELECTIONS and (not found or row.divergence < found[-1].divergence):
            found.append(row)
    return found[::-1]


def choose(rows: list[Measured], budget: str, limit: float) -> Measured:
    """The routing of least operations within a limit of the `"changed"` share of replies or of the `"divergence"`, or
    of least divergence within a share of `"operations"`.

    Raises:
        `ValueError`: if none is within the limit.
    """
    rows = [row for row in rows if row.name in FREE_SELECTIONS and (budget != "changed" or row.changes is not None)]
    if not rows:
        raise ValueError("there is nothing to route: the model has one layer, or frames of one token")
    costs: dict[str, Callable[[Measured], float]] = {
        "changed": lambda row: row.changes.share if row.changes is not None else inf,
        "divergence": lambda row: row.divergence,
        "operations": lambda row: row.operations,
    }
    cost, other = costs[budget], costs["divergence" if budget == "operations" else "operations"]
    within = [row for row in rows if cost(row) <= limit]
    if not within:
        least = min(map(cost, rows))
        raise ValueError(
            {
                "changed": f"no routing changes at most {limit:.2g} of the replies, the least is {least:.2g}",
                "divergence": f"no routing has a divergence of at most {limit:g} nats, the least is {least:.2g}",
                "operations": f"no routing takes at most {limit:g} of the dense operations, the least is {least:.2f}",
            }[budget]
        )
    return min(within, key=lambda row: (other(row), cost(row)))


def exact_answers(model, processor, clips: list[Clip], routing: Routing, **options) -> list[bool]:
    """For each narration and answer of the dense model, whether the routed model says the same at the same time.
    options: of `StreamingSession`."""
    same = []
    with routed(model, routing):
        for clip in progress(clips, "answers"):
            session = model.stream(processor, **options)
            events = watch(session, clip.features, clip.times, clip.questions)
            said = [(event.time, event.kind, event.text) for event in events]
            same += [(event.time, event.kind, event.text) in said for event in clip.events]
    return same


__all__ = ["Divergence", "Measured", "Routing", "best", "candidates", "choose", "exact_answers", "progress", "routed"]
