"""`videollm-mod extract`: the features of each video, computed once, in files that training reads instead.

Every file is written whole and named after its video and rate, so a run that was killed goes on with the videos that
have no file yet. Processes share videos out by their number; the last thing to be written is what depends on them all.
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
from .features import fingerprint, read_about, write_features
from .files import PARTIAL, write_whole, written_whole
from .frames import iter_frames
from .jsonl import check, iter_lines, missing_error, missing_media
from .processes import process_state
from .stream_checks import media_of

INDEX = "index.json"


@dataclass(frozen=True)
class Job:
    """The frames of one video at one rate. `video` as the JSONL file names it, `path` as seen from anywhere."""

    video: str
    fps: float
    path: str

    @property
    def name(self) -> str:
        """Of the file that gets the features, the same wherever it is written."""
        digest = hashlib.sha256(json.dumps([self.video, self.fps]).encode()).hexdigest()
        return f"{Path(self.video).stem}-{digest[:8]}.safetensors"

    @property
    def video_bytes(self) -> int | None:
        return None if "://" in self.path else Path(self.path).stat().st_size


def job_of(stream: dict, folder: Path, fps: float) -> Job:
    """The job of a line; `fps` where the line has none."""
    return Job(stream["video"], float(stream.get("fps", fps)), media_of(stream, folder)[1])


def is_done(file: Path, job: Job, made_by: str) -> bool:
    """Whether `file` holds the features of a job.

    Raises:
        `ValueError`: if another model made it.
    """
    try:
        about = read_about(file)
    except (FileNotFoundError, ValueError):
        return False
    if about["fingerprint"] != made_by:
        raise ValueError(f"{file} was made by another vision tower or preprocessing; give another `--output`")
    return (about["video"], about["fps"], about["video_bytes"]) == (job.video, job.fps, job.video_bytes)


def encode(model, processor, job: Job, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Features `[f, N, Dv]` of a video's frames, `f <= batch_size` at a time."""
    for frames in iter_frames(job.path, job.fps, processor.video_processor, at_once=batch_size):
        pixels = processor.video_processor(frames.to(device), return_tensors="pt")["pixel_values_videos"]
        yield model.encode_frames(pixels).pooler_output.cpu()


@torch.inference_mode()
def extract(jsonl: str | Path, model: str | Path, output: str | Path, batch_size: int = 64) -> Path:
    """Write the features of all videos of a JSONL file. Run again, it does what is left to do.

    Under `accelerate launch` or `torchrun` the videos are shared out over processes and machines; `output` must then
    be a folder that all of them see.

    Args:
        jsonl: of the streams, see `data.jsonl`; all its lines have `video`.
        model: path or id of a checkpoint. Only its vision tower goes to the device.
        output: a folder, made if need be. It gets one safetensors file a video and rate (`data.features`),
            `index.json` (file name -> what it holds), and a JSONL file of the same name as `jsonl` that uses them.
        batch_size (`int`): frames that are encoded together.

    Returns:
        The path of the new JSONL file.

    Raises:
        `ValueError`: for faults in the JSONL file, before anything is written; if `output` holds another model's
            features.
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
        raise ValueError(f"`output` must be another folder than that of {jsonl}, whose name the result has")
    streams = [stream for _, stream, _ in iter_lines(jsonl)]
    for number, stream in enumerate(streams, start=1):
        if "video" not in stream:
            raise ValueError(f"{jsonl}:{number}: it has `features` already, and no video to take them from")

    state = process_state()
    processor = VideoLLMMoDProcessor.from_pretrained(model)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(model, dtype="auto").eval()
    made_by = fingerprint(model, processor.video_processor)
    model.model.vision_tower.to(state.device)
    of_line = [job_of(stream, jsonl.parent, processor.video_processor.fps) for stream in streams]
    jobs = sorted(set(of_line), key=lambda job: job.name)
    output.mkdir(exist_ok=True)

    own = jobs[state.process_index :: state.num_processes]
    todo = [job for job in own if not is_done(output / job.name, job, made_by)]
    show = {"desc": "videos", "total": len(own), "initial": len(own) - len(todo)}
    for job in tqdm(todo, disable=not state.is_local_main_process, **show):
        features = torch.cat(list(encode(model, processor, job, batch_size, state.device)))
        num_frames, num_frame_tokens, hidden_size = features.shape
        about = {"video": job.video, "video_bytes": job.video_bytes, "fps": job.fps, "fingerprint": made_by}
        about |= {"num_frames": num_frames, "num_frame_tokens": num_frame_tokens, "hidden_size": hidden_size}
        write_features(output / job.name, features, about)

    state.wait_for_everyone()
    result = output / jsonl.name
    if state.is_main_process:
        finish(output, result, jobs, streams, of_line)
    state.wait_for_everyone()
    return result


def finish(output: Path, result: Path, jobs: list[Job], streams: list[dict], of_line: list[Job]) -> None:
    """Write the index and the JSONL file that uses it; remove what killed runs left half-written."""
    index = {job.name: read_about(output / job.name) for job in jobs}
    write_whole(output / INDEX, json.dumps(index, indent=1, sort_keys=True) + "\n")
    with written_whole(result) as partial, open(partial, "w", encoding="utf-8") as file:
        for stream, job in zip(streams, of_line, strict=True):
            rest = {name: value for name, value in stream.items() if name != "video"}
            line = {"features": job.name, **rest, "fps": job.fps}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    for partial in output.glob(f"*{PARTIAL}"):
        partial.unlink()
