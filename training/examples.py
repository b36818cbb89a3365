"""What a run learns from, and what it is validated on."""

import random
from dataclasses import replace
from pathlib import Path

from transformers.utils import logging

from ..data.world_data import WorldCells, WorldData, WorldStreams
from ..data.world_hard import split_seeds
from ..processing_videollm_mod import VideoLLMMoDProcessor

logger = logging.get_logger(__name__)


def check_files(config) -> None:
    """Raise `FileNotFoundError` for a file that `data` names and that is not there."""
    for name in ("path", "validation"):
        value = config.data_options.get(name)
        if isinstance(value, str) and not Path(value).is_file():
            raise FileNotFoundError(f"`{name}` of `data` is no file: {value}")


def held_out_world(data: WorldData, count: int) -> WorldData:
    """The first `count` streams of the world's validation split, of the levels in `data`.

    Raises:
        `ValueError`: if some of them are in `data` too.
    """
    seeds = split_seeds("validation", count)
    learned = range(data.first_seed, data.first_seed + data.num_streams)
    if seeds.start < learned.stop and learned.start < seeds.stop:
        raise ValueError(
            f"`first_seed` and `num_streams` of `world` give the seeds {learned.start} to {learned.stop - 1}, some of "
            f"which are for validation, {seeds.start} to {seeds.stop - 1}"
        )
    return replace(data, first_seed=seeds.start, num_streams=len(seeds))


def worlds(config, evaluates: bool) -> dict[str, WorldData]:
    data = config.world_data()
    sets = {"train_dataset": data}
    return sets | {"eval_dataset": held_out_world(data, config.validation)} if evaluates else sets


def cells(config, processor: VideoLLMMoDProcessor, grid: tuple[int, int], evaluates: bool) -> dict[str, WorldCells]:
    """The data sets of the vision stage, by the names of the Trainer's arguments."""
    height = processor.video_processor.size["height"]
    return {name: WorldCells(data, height, grid) for name, data in worlds(config, evaluates).items()}


def streams(config, processor: VideoLLMMoDProcessor, evaluates: bool) -> dict:
    """The data sets of the stream stage, by the names of the Trainer's arguments.

    Raises:
        `ValueError`, `OSError`: for files that `data.streams.load_streams` does not take, too few videos to hold some
            out.
    """
    if config.data is None:
        return {name: WorldStreams(data, processor) for name, data in worlds(config, evaluates).items()}
    from ..data.streams import load_streams

    options = config.data_options
    path, held_out = options.pop("path"), options.pop("validation", None)
    limit = config.stream_stage.get("max_tokens")
    dataset = load_streams(path, processor, max_tokens=limit, **options)
    if options.get("streaming"):
        # The Trainer does not know how long a pass over it is, and would resume in the wrong place after the first.
        dataset = dataset.repeat(None)
    if held_out is None:
        return {"train_dataset": dataset}
    if isinstance(held_out, str):
        options.pop("streaming", None)
        return {
            "train_dataset": dataset,
            "eval_dataset": load_streams(held_out, processor, max_tokens=limit, **options),
        }
    learned, held_out = parted(dataset, held_out, config.seed)
    return {"train_dataset": learned, "eval_dataset": held_out}


def parted(dataset, share: float, seed: int) -> tuple:
    """`dataset` without and with a share of its videos, at least one; no video is on both sides.

    Raises:
        `ValueError`: for a data set of one video.
    """
    columns = dataset.with_format(None)
    sources = [video or features for video, features in zip(columns["video"], columns["features"], strict=True)]
    videos = sorted(set(sources))
    if len(videos) < 2:
        raise ValueError(f"`validation` of `data` is a share, {share:g}, of the videos, but there is only {videos[0]}")
    random.Random(seed).shuffle(videos)
    held_out = set(videos[: min(max(1, round(share * len(videos))), len(videos) - 1)])
    logger.info(f"{len(held_out)} of {len(videos)} videos are held out for validation")
    sides = {True: [], False: []}
    for index, source in enumerate(sources):
        sides[source in held_out].append(index)
    return dataset.select(sides[False]), dataset.select(sides[True])
