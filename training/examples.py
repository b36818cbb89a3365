"""The training and validation data of a run."""

import random
from dataclasses import replace
from pathlib import Path

from transformers.utils import logging

from ..data.world_data import WorldCells, WorldData, WorldStreams
from ..data.world_hard import split_seeds
from ..processing_videollm_mod import VideoLLMMoDProcessor

logger = logging.get_logger(__name__)


def check_files(config) -> None:
    """Raise `FileNotFoundError` if a file named in `data` does not exist."""
    for name in ("path", "validation"):
        value = config.data_options.get(name)
        if isinstance(value, str) and not Path(value).is_file():
            raise FileNotFoundError(f"`{name}` of `data` is not a file: {value}")


def held_out_world(data: WorldData, count: int) -> WorldData:
    """The first `count` streams of the world's validation split, with the levels of `data`.

    Raises:
        `ValueError`: if `data` has some of these streams.
    """
    seeds = split_seeds("validation", count)
    training = range(data.first_seed, data.first_seed + data.num_streams)
    if seeds.start < training.stop and training.start < seeds.stop:
        raise ValueError(
            f"`first_seed` and `num_streams` of `world` give the seeds {training.start} to {training.stop - 1}, which "
            f"overlap with the validation seeds {seeds.start} to {seeds.stop - 1}"
        )
    return replace(data, first_seed=seeds.start, num_streams=len(seeds))


def world_splits(config, evaluates: bool) -> dict[str, WorldData]:
    data = config.world_data()
    splits = {"train_dataset": data}
    return splits | {"eval_dataset": held_out_world(data, config.validation)} if evaluates else splits


def vision_datasets(
    config, processor: VideoLLMMoDProcessor, grid: tuple[int, int], evaluates: bool
) -> dict[str, WorldCells]:
    """The `train_dataset` and `eval_dataset` of the vision stage."""
    height = processor.video_processor.size["height"]
    return {name: WorldCells(data, height, grid) for name, data in world_splits(config, evaluates).items()}


def stream_datasets(config, processor: VideoLLMMoDProcessor, evaluates: bool) -> dict:
    """The `train_dataset` and `eval_dataset` of the stream stage.

    Raises:
        `ValueError`, `OSError`: as `data.streams.load_streams`; `ValueError` also for too few videos to hold some out.
    """
    if config.data is None:
        return {name: WorldStreams(data, processor) for name, data in world_splits(config, evaluates).items()}
    from ..data.streams import load_streams

    options = config.data_options
    path, held_out = options.pop("path"), options.pop("validation", None)
    limit = config.stream_stage.get("max_tokens")
    dataset = load_streams(path, processor, max_tokens=limit, **options)
    if options.get("streaming"):
        # The Trainer does not know the length of an epoch, and after the first one would resume in the wrong place.
        dataset = dataset.repeat(None)
    if held_out is None:
        return {"train_dataset": dataset}
    if isinstance(held_out, str):
        options.pop("streaming", None)
        return {
            "train_dataset": dataset,
            "eval_dataset": load_streams(held_out, processor, max_tokens=limit, **options),
        }
    train, evaluation = split_by_video(dataset, held_out, config.seed)
    return {"train_dataset": train, "eval_dataset": evaluation}


def split_by_video(dataset, share: float, seed: int) -> tuple:
    """Hold out a share of a data set's videos, at least one. Returns `(training, validation)`; no video is in both.

    Raises:
        `ValueError`: for a data set of one video.
    """
    columns = dataset.with_format(None)
    sources = [video or features for video, features in zip(columns["video"], columns["features"], strict=True)]
    videos = sorted(set(sources))
    if len(videos) < 2:
        raise ValueError(
            f"`validation` of `data` is {share:g}, but the only video is {videos[0]}: give a file instead"
        )
    random.Random(seed).shuffle(videos)
    held_out = set(videos[: min(max(1, round(share * len(videos))), len(videos) - 1)])
    logger.info(f"{len(held_out)} of {len(videos)} videos are held out for validation")
    indices: dict[bool, list[int]] = {True: [], False: []}
    for index, source in enumerate(sources):
        indices[source in held_out].append(index)
    return dataset.select(indices[False]), dataset.select(indices[True])
