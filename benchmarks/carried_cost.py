"""What a training step costs on a stream of minutes: whole, and in windows with the memory of a bounded session.

    OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.carried_cost

The bundled model takes a step, forward and backward, on one stream of each length. Each case has a process of its own:
its seconds are those of the processor, so that other programs do not count, and its memory is the largest of the
process beyond what it had before the step.
"""

import argparse
import json
import resource
import time
from multiprocessing import get_context

import torch

from ..bench.record import surroundings, write_result
from ..data.collator import StreamCollator
from ..data.turns import encode_example
from ..data.world import conversation, world_stream
from ..training.carried import CarriedCollator, CarriedStreams, Carrying
from .long_streams import nano

LENGTHS = (60, 120, 240, 480)  # seconds
FPS, QUESTIONS = 2.0, 8
BOUND = Carrying(24, max_cached_text=480)
WAYS = ("whole", "carried")


def stream_of(seconds: int):
    """The stream of about this length, of the first that there are."""
    return min((world_stream(seed, "minutes") for seed in range(300)), key=lambda x: abs(x.seconds - seconds))


def take_step(model, processor, way: str, example: dict) -> int:
    """Returns the number of windows."""
    pad = processor.tokenizer.pad_token_id
    if way == "whole":
        model(**StreamCollator(pad)([example])).loss.backward()
        return 1
    batch = CarriedCollator(pad, processor=processor, carrying=BOUND)([example])
    streams = CarriedStreams(model, BOUND, batch)
    for span in streams.spans:
        losses = []
        for window, inputs in zip(span, streams.span(span), strict=True):
            outputs = model(**inputs, num_items_in_batch=streams.num_labels)
            streams.add(window, outputs.router_scores, window == span[-1])
            losses.append(outputs.loss)
        torch.stack(losses).sum().backward()
    return len(streams.windows[0])


def measure(job: tuple[str, int]) -> dict:
    way, seconds = job
    model, processor = nano()
    stream = stream_of(seconds)
    example = encode_example(conversation(stream, FPS, QUESTIONS), processor)
    pixels = torch.from_numpy(stream.drawn()).permute(0, 3, 1, 2)
    with torch.no_grad():
        seen = processor.video_processor(pixels, return_tensors="pt")["pixel_values_videos"]
        features = model.encode_frames(seen).pooler_output[torch.from_numpy(stream.shown(FPS))]
    model.train().model.vision_tower.requires_grad_(False)
    example["video_features"] = features
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    windows = take_step(model, processor, way, example)
    passed = time.process_time() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    return {
        "way": way,
        "seconds_of_stream": stream.seconds,
        "frames": len(features),
        "tokens": len(example["input_ids"]),
        "windows": windows,
        "ms_per_frame": round(1000 * passed / len(features), 2),
        "mib": round(grown / 1024),
    }


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    rows = []
    for seconds in LENGTHS:
        for way in WAYS:
            with get_context("spawn").Pool(1) as pool:  # memory is measured from a fresh process
                rows.append(pool.apply(measure, ((way, seconds),)))
            print(json.dumps(rows[-1]), flush=True)
    bound = {name: getattr(BOUND, name) for name in ("max_cached_frames", "max_cached_text", "backprop_windows")}
    command = "OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.carried_cost"
    write_result("carried_cost", {"command": command, **surroundings(), "bound": bound, "rows": rows})


if __name__ == "__main__":
    main()
