"""`videollm-mod extract`: compute the features of each video once, and write them to files for training.

Each file is written atomically and named after its video and rate, so an interrupted run resumes with the videos that
have no file yet. Several processes split the videos among them; the index and the new JSONL file are written last.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor
from .features import model_fingerprint, read_metadata, write_features
from .files import PARTIAL, write_whole, written_whole
from .frames import iter_frames
from .jsonl import check, iter_lines, missing_error, missing_media
from .processes import process_state
from .stream_checks import media_of

INDEX = "index.json"


@dataclass(frozen=True)
class Job:
    """The frames of one video at one rate. `video` is its name in the JSONL file, `path` its absolute path or URL."""

    video: str
    fps: float
    path: str

    @property
    def name(self) -> str:
        """Name of the file with the features, independent of the output folder."""
        digest = hashlib.sha256(json.dumps([self.video, self.fps]).encode()).hexdigest()
        return f"{Path(self.video).stem}-{digest[:8]}.safetensors"

    @property
    def video_bytes(self) -> int | None:
        return None if "://" in self.path else Path(self.path).stat().st_size


def job_of(stream: dict, folder: Path, fps: float) -> Job:
    """The job of a line; `fps` is the rate for a line without one."""
    return Job(stream["video"], float(stream.get("fps", fps)), media_of(stream, folder)[1])


def is_done(file: Path, job: Job, fingerprint: str) -> bool:
    """Whether `file` holds the features of a job.

    Raises:
        `ValueError`: if another model made it.
    """
    try:
        metadata = read_metadata(file)
    except (FileNotFoundError, ValueError):
        return False
    if metadata["fingerprint"] != fingerprint:
        raise ValueError(f"{file} was made by another vision tower or preprocessing; give another `--output`")
    return (metadata["video"], metadata["fps"], metadata["video_bytes"]) == (job.video, job.fps, job.video_bytes)


def encode(model, processor, job: Job, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield features `[f, N, Dv]` of a video's frames, with `f <= batch_size`."""
    for frames in iter_frames(job.path, job.fps, processor.video_processor, batch_size=batch_size):
        pixels = processor.video_processor(frames.to(device), return_tensors="pt")["pixel_values_videos"]
        yield model.encode_frames(pixels).pooler_output.cpu()


@torch.inference_mode()
def extract(jsonl: str | Path, model: str | Path, output: str | Path, batch_size: int = 64) -> Path:
    """Write the features of all videos of a JSONL file. Call it again to resume an interrupted run.

    Under `accelerate launch` or `torchrun` the videos are split over processes and machines, which must all see the
    folder `output`.

    Args:
        jsonl: path of the streams, see `data.jsonl`; every line must have `video`.
        model: path or id of a checkpoint. Only its vision tower is moved to the device.
        output: a folder, created if it does not exist. It gets one safetensors file per video and rate
            (`data.features`), `index.json` (file name -> metadata), and a JSONL file with the name of `jsonl` that
            uses the features.
        batch_size (`int`): number of frames encoded together.

    Returns:
        The path of the new JSONL file.

    Raises:
        `ValueError`: for faults in the JSONL file, before anything is written, and if `output` holds features of
            another model.
        `OSError`: for files that cannot be read or written.
    """
    jsonl, output = Path(jsonl), Path(output)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
    check(jsonl)
    if gone := missing_media(jsonl):
        raise missing_error(jsonl, gone)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"the folder of the output does not exist: {output.parent}")
    if output.resolve() == jsonl.parent.resolve():
        raise ValueError(f"`output` must not be the folder of {jsonl}, because the result has the same name")
    streams = [stream for _, stream, _ in iter_lines(jsonl)]
    for number, stream in enumerate(streams, start=1):
        if "video" not in stream:
            raise ValueError(f"{jsonl}:{number}: the line has `features` already, but no `video` to extract them from")

    state = process_state()
    processor = VideoLLMMoDProcessor.from_pretrained(model)
    loaded = VideoLLMMoDForConditionalGeneration.from_pretrained(model, dtype="auto").eval()
    fingerprint = model_fingerprint(loaded, processor.video_processor)
    loaded.model.vision_tower.to(state.device)
    line_jobs = [job_of(stream, jsonl.parent, processor.video_processor.fps) for stream in streams]
    jobs = sorted(set(line_jobs), key=lambda job: job.name)
    output.mkdir(exist_ok=True)

    own = jobs[state.process_index :: state.num_processes]
    todo = [job for job in own if not is_done(output / job.name, job, fingerprint)]
    show = {"desc": "videos", "total": len(own), "initial": len(own) - len(todo)}
    for job in tqdm(todo, disable=not state.is_local_main_process, **show):
        features = torch.cat(list(encode(loaded, processor, job, batch_size, state.device)))
        num_frames, num_frame_tokens, hidden_size = features.shape
        metadata = {"video": job.video, "video_bytes": job.video_bytes, "fps": job.fps, "fingerprint": fingerprint}
        metadata |= {"num_frames": num_frames, "num_frame_tokens": num_frame_tokens, "hidden_size": hidden_size}
        write_features(output / job.name, features, metadata)

    state.wait_for_everyone()
    result = output / jsonl.name
    if state.is_main_process:
        finish(output, result, jobs, streams, line_jobs)
    state.wait_for_everyone()
    return result


def finish(output: Path, result: Path, jobs: list[Job], streams: list[dict], line_jobs: list[Job]) -> None:
    """Write the index and the JSONL file, and remove partial files of interrupted runs."""
    index = {job.name: read_metadata(output / job.name) for job in jobs}
    write_whole(output / INDEX, json.dumps(index, indent=1, sort_keys=True) + "\n")
    with written_whole(result) as partial, open(partial, "w", encoding="utf-8") as file:
        for stream, job in zip(streams, line_jobs, strict=True):
            rest = {name: value for name, value in stream.items() if name != "video"}
            line = {"features": job.name, **rest, "fps": job.fps}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    for partial in output.glob(f"*{PARTIAL}"):
        partial.unlink()
