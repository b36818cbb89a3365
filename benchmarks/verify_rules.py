"""Rules that decide without training when to speak, on streams of the world: F1 and false narrations of each.

    python -m videollm_mod.benchmarks.verify_rules benchmarks/results/sight_*.json --models runs/stock_vlm \\
        --json verify_rules.json --plot verify_rules.png

The models are those of `sight`, with the instruction and the memory that were chosen there. Each rule's margin is the
one of the highest F1 on validation streams, and is scored on test streams. The rules:

- `gap`, the product's: the largest gap between a token of the last narration and the best one is above the margin;
- `perplexity`, as LiveStar (arXiv 2511.05299) decides: the logarithm of the last narration's perplexity has grown by
  more than the margin since it was said;
- `picture`, without the language model: the cosine distance of the frame's features to those of the last frame that
  was narrated is above the margin.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path

import torch

from ..bench.record import surroundings, write
from ..speaking import Reply, StreamEvent, TokenSampler, WatchedFrame
from ..steps import Step
from .sight import best_of, build, streams_of
from .sight_routing import FPS, Watched, encode, watch
from .sight_routing import watching as plain

MARGINS = {
    "gap": (0.0, 0.3, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0),
    "perplexity": (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
    "picture": (0.0, 0.001, 0.003, 0.01, 0.03, 0.1),
}
LABELS = {"gap": "largest gap", "perplexity": "perplexity", "picture": "distance of features"}


class PerplexitySampler(TokenSampler):
    """Compares the mean log probability of a narration with that when it was said, in place of its largest gap."""

    def __init__(self, model, processor):
        super().__init__(model, processor)
        self.said: list[float] = []  # log probability of each token of the last reply, and of its end

    def __call__(self, said: list[int], logits: torch.Tensor) -> int:
        scores = logits.float().log_softmax(-1)  # first, since the call below changes logits
        token = super().__call__(said, logits)
        self.said = [*(self.said if said else ()), float(scores[token])]
        return token

    def largest_gap(self, reply: Reply, logits: torch.Tensor) -> torch.Tensor:
        scores = logits.float().log_softmax(-1)
        tokens = [*reply.ids, *([int(self._end_ids[scores[-1, self._end_ids].argmax()])] if reply.ended else [])]
        now = scores[range(len(tokens)), tokens].mean()
        return (sum(self.said) / len(self.said) - now).clamp(min=0)


def by_perplexity(session, own: Watched, asks: bool) -> Generator[Step | StreamEvent]:
    session.sampler = PerplexitySampler(session.model, session.processor)
    yield from plain(session, own, asks)


def by_picture(margin: float, session, own: Watched, asks: bool) -> Generator[Step | StreamEvent]:
    narrated = None
    for index, time in enumerate(own.stream.frame_times(FPS).tolist()):
        seen = own.features[index].float().flatten()
        far = narrated is None or float(1 - torch.cosine_similarity(seen, narrated, dim=0)) > margin
        session.speak_threshold = 1.0 if far else 0.0
        if far:
            narrated, session.state.narration = seen, None  # nothing to verify: it speaks
        for item in session.watching((own.features[index : index + 1], [time])):
            if isinstance(item, Step):
                yield item
            elif isinstance(item, WatchedFrame) and item.event is not None:
                yield item.event


def narrate(built, streams: list[Watched], rule: str, margin: float, remembered: int | None) -> dict:
    """The scores of a rule."""
    work = {"gap": plain, "perplexity": by_perplexity, "picture": partial(by_picture, margin)}[rule]
    options = {"speak_threshold": math.exp(-margin), "max_cached_frames": remembered}
    return {"rule": rule, "margin": margin, **watch(built, streams, asks=False, work=work, **options).summary()}


def measure(built, trying: list[Watched], testing: list[Watched], remembered: int | None) -> dict:
    """The scores of each rule on validation streams, and those of its best margin on test streams."""
    found: dict = {"validation": [], "test": []}
    for rule, margins in MARGINS.items():
        rows = [narrate(built, trying, rule, margin, remembered) for margin in margins]
        found["validation"] += rows
        found["test"].append(narrate(built, testing, rule, best_of(rows)["margin"], remembered))
        print(json.dumps(found["test"][-1]), flush=True)
    return found


def plot(models: list[dict], path: Path) -> None:
    """F1 against false narrations, a curve for each rule; the best margin on test streams is hollow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(models), 3.6), layout="constrained")
    for axis, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        styles = (("o", "#1b6ca8"), ("s", "#c4572e"), ("^", "#3c9a5f"))
        for (rule, label), (marker, colour) in zip(LABELS.items(), styles, strict=True):
            for split, line in (("validation", "-"), ("test", "")):
                rows, tested = [row for row in model[split] if row["rule"] == rule], split == "test"
                across, down = [row["false_per_minute"] for row in rows], [row["f1"] for row in rows]
                fill = {"color": colour, "markerfacecolor": "none" if tested else colour, "alpha": 0.7}
                axis.plot(
                    across, down, marker + line, markersize=11 if tested else 5, label=f"{label}, {split}", **fill
                )
        axis.set(title=model["model"], xlabel="false narrations per minute", ylabel="F1 of narrations, %")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files of `sight measure`")
    parser.add_argument("--models", type=Path, required=True, help="folder of the models of stock_vlm")
    parser.add_argument("--streams", type=int, default=32, help="of each split (default: 32)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args(argv)
    given = [Path(part).name if "/" in part else part for part in (sys.argv[1:] if argv is None else argv)]
    command = shlex.join(["python", "-m", "videollm_mod.benchmarks.verify_rules", *given])
    result = {"command": command, **surroundings(), "streams": args.streams, "models": []}
    for path in args.results:
        sight = json.loads(path.read_text(encoding="utf-8"))
        chosen = sight["chosen"]
        built = build(args.models / sight["model"], args.device, chosen["query"])
        trying, testing = (encode(built, streams_of(split, args.streams)) for split in ("validation", "test"))
        found = measure(built, trying, testing, chosen["remembered"])
        result["models"].append({"model": sight["model"], **chosen, **found})
        write(args.json, result)
    if args.plot is not None:
        plot(result["models"], args.plot)


if __name__ == "__main__":
    main()
