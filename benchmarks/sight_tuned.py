"""A stock image model narrates the world before and after it is trained on streams.

    python -m videollm_mod.benchmarks.sight_tuned runs/stock_vlm/smolvlm_conversation --output runs/tuned --steps 600

Before, it narrates by `speak_rule="verify"`; afterwards by what it has learned. Both name what is in view, and are
scored on the same unseen streams as in `sight`.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import TrainingArguments, set_seed

from videollm_mod import VideoLLMMoDForConditionalGeneration

from ..bench.record import surroundings
from ..data.collator import StreamCollator
from ..data.frames import input_size
from ..data.turns import encode_example
from ..data.world import world_stream
from ..speaking import learn_silence
from ..training.trainer import StreamTrainer
from .sight import FPS, streams_of
from .sight_routing import Watched, encode, watch
from .sight_scores import changes


class NamedStreams(torch.utils.data.Dataset):
    """Streams of the world, in which every change of what is in view is narrated by its names; see `WorldStreams`."""

    def __init__(self, processor, first_seed: int, count: int):
        self.processor, self.first_seed, self.count = processor, first_seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        stream = world_stream(self.first_seed + range(self.count)[index])
        times, messages, done = stream.frame_times(FPS), [], 0
        for changed, text in changes(stream):
            seen = min(int(np.searchsorted(times, changed)) + 1, len(times))
            if seen > done:  # else the next change is in view already
                messages += [{"role": "stream", "num_frames": seen - done}, {"role": "assistant", "content": text}]
            messages[-1]["content"], done = text, seen
        if done < len(times):
            messages.append({"role": "stream", "num_frames": len(times) - done})
        return {
            **encode_example(messages, self.processor, times),
            "frames": torch.from_numpy(stream.drawn(input_size(self.processor.video_processor)[0])).movedim(-1, 1),
            "frame_index": torch.from_numpy(stream.shown(FPS)),
        }


def scores(model, processor, streams: list[Watched], **options) -> dict:
    started = time.perf_counter()
    summary = watch((model.eval(), processor), streams, asks=False, **options).summary()
    return {"speak_rule": model.config.speak_rule, **options, **summary, "took": round(time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vlm", help="a model of `stock_vlm`")
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained model and `tuned.json`")
    parser.add_argument("--frame-separator", default="", help="needed for LLaVA")
    parser.add_argument("--margin", type=float, default=1.0, help="of `verify`, in nats")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.725, 0.9])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--streams", type=int, default=100, help="to score on")
    parser.add_argument("--workers", type=int, default=3)
    args = parser.parse_args()
    set_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(
        args.vlm, dtype=torch.float32, frame_separator=args.frame_separator, verify_margin=args.margin
    )
    model = model.to(device).eval()
    unseen = encode((model, processor), streams_of("test", args.streams))  # the tower is frozen
    rows = [scores(model, processor, unseen)]
    print(json.dumps(rows[-1]), flush=True)

    learn_silence(model, processor)
    data = NamedStreams(processor, 1_000_000_000, args.steps * args.batch)
    arguments = TrainingArguments(
        str(args.output / "run"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=args.rate,
        lr_scheduler_type="cosine",
        warmup_steps=args.steps // 20,
        bf16=device == "cuda",
        dataloader_num_workers=args.workers,
        logging_steps=max(1, args.steps // 20),
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
    )
    model.model.vision_tower.requires_grad_(False)
    collator = StreamCollator(processor.tokenizer.pad_token_id)
    trainer = StreamTrainer(model.train(), arguments, collator, data, video_processor=processor.video_processor)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    for threshold in args.thresholds:
        rows.append(scores(model, processor, unseen, speak_threshold=threshold))
        print(json.dumps(rows[-1]), flush=True)
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    given = [Path(part).name if "/" in part else part for part in sys.argv[1:]]
    result = {"command": shlex.join(["python", "-m", "videollm_mod.benchmarks.sight_tuned", *given])}
    result |= {"scores": rows, "losses": losses, "training_seconds": round(seconds), **surroundings()}
    (args.output / "tuned.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
