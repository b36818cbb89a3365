"""Randomly damaged files (videos in several containers, JSONL, saved sessions), and code that reads them.

A case is determined by its number. Reading it must succeed, or fail with one clear error.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from video_files import moving, write_video

from videollm_mod import StreamingSession
from videollm_mod.containers import MediaLimits
from videollm_mod.data.jsonl import read_streams, validate
from videollm_mod.narration.narrate import narrate
from videollm_mod.narration.options import NarrateOptions

VIDEOS = {
    "plain.mp4": ("libx264", {}),
    "fragments.mp4": ("libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "index_first.mov": ("mjpeg", {"movflags": "faststart"}),
    "sound.mp4": ("mpeg4", {"audio": "aac"}),
    "turned.mkv": ("mjpeg", {"times": [0, 0.1, 0.9, 1.5, 1.55, 3.0, 3.1, 4.2]}),
    "a.webm": ("libvpx-vp9", {}),
    "b.webm": ("libvpx", {"seekable": False}),
    "a.avi": ("mpeg4", {}),
    "a.ts": ("mpeg2video", {"fps": 25}),
    "a.flv": ("flv1", {}),
    "a.gif": ("gif", {}),
    "raw.mkv": ("ffv1", {}),
}
LIMITS = MediaLimits(frames=60, hold=30.0)  # so that a case is quick whatever duration a video states
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


def write_originals(folder: Path, model, processor) -> list[Path]:
    """Write the intact files that cases are made from."""
    videos = [
        write_video(folder / name, moving(8, 48, 64, seed=index), codec, **options)
        for index, (name, (codec, options)) in enumerate(VIDEOS.items())
    ]
    turns = [{"time": index / 2, "role": "assistant", "content": f"Something {index} happens."} for index in range(5)]
    line = json.dumps({"video": "plain.mp4", "fps": 2.0, "turns": [{**turns[0], "role": "system"}, *turns]})
    (folder / "streams.jsonl").write_text("\n".join([line] * 4) + "\n", encoding="utf-8")
    sessions = []
    for name, options in {"bounded": {"max_cached_frames": 4}, "whole": {}}.items():
        session = model.stream(processor, system_prompt="Watch.", **options)
        session.push(moving(6, 48, 64))
        session.ask("What is there?")
        sessions.append(session.save(folder / f"{name}.safetensors"))
    return [*videos, folder / "streams.jsonl", *sessions, sessions[0]]


def damage(content: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, mostly in the headers."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16, 64])):
        near = rng.choice([64, 512, 4096, len(content)])
        at = rng.randrange(max(1, min(near, len(content))))
        if rng.random() < 0.25:
            at = max(0, len(content) - 1 - at)
        kind = rng.randrange(7)
        if kind == 0:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif kind in (1, 2):
            width = rng.choice([1, 2, 4, 8])
            value = rng.choice(EXTREMES) % 256**width
            content[at : at + width] = value.to_bytes(width, rng.choice(["big", "little"]))
        elif kind == 3:
            del content[at : at + rng.choice([1, 4, 100, 5000])]
        elif kind == 4:
            content[at:at] = content[at : at + rng.choice([1, 8, 300])] * rng.choice([1, 3])
        elif kind == 5:
            content[at:at] = rng.randbytes(rng.choice([1, 16, 2000]))
        elif rng.random() < 0.3:
            del content[at:]
    return bytes(content)


def write_case(number: int, originals: list[Path], folder: Path) -> Path:
    """Write the damaged file of a case; its name tells the original."""
    rng = random.Random(number)
    original = originals[number % len(originals)]
    path = folder / original.name
    path.write_bytes(damage(original.read_bytes(), rng))
    return path


def read_case(path: Path, model, processor) -> str:
    """Read a case's file. Returns "read", or "refused" with the reason; any other error is a failure.

    Raises:
        `MemoryError`: also if FFmpeg could not allocate memory.
    """
    try:
        if path.suffix == ".jsonl":
            validate(path)
            for _ in read_streams(path):
                pass
        elif path.suffix == ".safetensors":
            session = StreamingSession.load(path, model, processor)
            session.push(np.zeros((1, 48, 64, 3), np.uint8), [1e6])
            session.ask("What is there?")
        else:
            output = path.with_name("out.jsonl")
            options = NarrateOptions(
                str(path), output=output, limits=LIMITS, queries=["What is there?@1"], threshold=0.0
            )
            narrate(options, load=lambda _: (model, processor))
            assert all(json.loads(line) for line in output.read_text(encoding="utf-8").splitlines())
    except (ValueError, OSError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        return f"refused: {error}"
    return "read"
