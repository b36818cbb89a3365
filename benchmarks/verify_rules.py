"""Rules that decide without training when to speak, on streams of the world: F1 of narrations over each rule's margin.

    python -m videollm_mod.benchmarks.verify_rules MODEL --query "What do you see?" --json verify_rules.json

MODEL is a folder that `videollm-mod build --vlm` wrote. Scores are those of `sight_scores`. The rules:

- `gap`, the product's: the largest gap between a token of the last narration and the best one is above the margin;
- `perplexity`, as LiveStar (arXiv 2511.05299) decides: the logarithm of the last narration's perplexity has grown by
  more than the margin since it was said;
- `picture`, without the language model: the cosine distance of the frame's features to those of the last frame that
  was narrated is above the margin.
"""

import argparse
import math
import shlex
import sys
from pathlib import Path

import torch

from ..bench.record import commit, surroundings, write
from ..data.world import world_stream
from ..data.world_hard import split_seeds
from ..generation import TokenSampler
from ..loading.checkpoint import load_checkpoint
from ..speaking import Reply
from .sight_scores import Counts, changes, score

FPS = 2.0
MARGINS = {
    "gap": (0.0, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0),
    "perplexity": (0.0, 0.01, 0.02, 0.04, 0.1, 0.2, 0.5, 1.0),
    "picture": (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
}


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
        tokens = [*reply.ids, *([self._end_ids[scores[-1, self._end_ids].argmax()]] if reply.ended else [])]
        now = scores[range(len(tokens)), tokens].mean()
        return (sum(self.said) / len(self.said) - now).clamp(min=0)


def narrate(model, processor, stream, features: torch.Tensor, rule: str, margin: float, args) -> Counts:
    """The counts of one stream, whose frames are encoded."""
    session = model.stream(
        processor,
        speak_rule="verify",
        speak_threshold=math.exp(-margin) if rule != "picture" else 1.0,
        max_cached_frames=args.remember,
        max_new_tokens=args.reply,
    )
    if rule == "perplexity":
        session.sampler = PerplexitySampler(model, processor)
    if args.query:
        session.instruct(args.query)
    said, narrated = [], None
    for index, time in enumerate(stream.frame_times(FPS).tolist()):
        if rule == "picture":
            seen = features[index].float().flatten()
            far = narrated is None or 1 - torch.cosine_similarity(seen, narrated, dim=0) > margin
            session.speak_threshold = 1.0 if far else 0.0
            if far:
                narrated, session.state.narration = seen, None  # nothing to verify: it speaks
        (watched,) = session.watch_encoded(features[index : index + 1], [time])
        if watched.event is not None:
            said.append((time, watched.event.text.strip()))
    return score(changes(stream), said, stream.seconds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--query", help="the instruction that opens each stream")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--remember", type=int, default=None, metavar="FRAMES")
    parser.add_argument("--reply", type=int, default=40, help="most tokens of a narration")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    model, processor = load_checkpoint(str(args.model), device=args.device)
    streams = [world_stream(seed) for seed in split_seeds("test", args.streams)]
    encoder = model.stream(processor, speak_rule="verify")
    features = [encoder.encode(stream.frames(FPS)) for stream in streams]
    command = shlex.join(["python", "-m", "videollm_mod.benchmarks.verify_rules", *(argv or sys.argv[1:])])
    result = {"what": __doc__.splitlines()[0], "command": command, "commit": commit(), **surroundings(), "rows": []}
    for rule, margins in MARGINS.items():
        for margin in margins:
            counts = Counts()
            for stream, own in zip(streams, features, strict=True):
                counts += narrate(model, processor, stream, own, rule, margin, args)
            result["rows"].append({"rule": rule, "margin": margin, **counts.summary()})
            print(result["rows"][-1], flush=True)
            write(args.json, result)


if __name__ == "__main__":
    main()
