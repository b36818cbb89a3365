"""What it costs a server to save its sessions: bytes and files of a long session, and how long its streams wait.

    python -m videollm_mod.benchmarks.serve_saving

Sessions of the bundled checkpoint watch streams of the world, without a word, and are saved to a folder. In the first
part one session of bounded memory watches `--frames` frames, whose features are computed once. It is saved with its
last 1,024 events after every 10 frames, as after 5 seconds of 2 frames/s. Bytes are those of the files that a save has
written or replaced. In the second part a server in this process gets `--sessions` streams of JPEGs with 2 frames/s
each, whose log of events is full. They are saved every 5 seconds. It measures how long a save, and all saves between
two ticks, take the engine's thread; how long another thread writes; and the latency of frames while a save is made or
written, and else.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ..bench.record import commit, surroundings, write_result
from ..data.world import world_stream
from ..loading.checkpoint import load_checkpoint
from ..serving.event_log import EventLog
from ..serving.keys import Keys
from ..serving.limits import Limits
from ..serving.server import make_app
from ..serving.store import SessionStore
from ..speaking import WatchedFrame
from .serve_resume import jpeg

EVERY, FPS, HELD = 10, 2.0, 33  # frames between two saves; a second; that a session remembers
OWNER, INSTRUCTIONS = "", "Narrate the scene."
KINDS = ("segments", "events", "manifests")  # of files: tokens, events, and everything else
QUIET = 1e9  # seconds between two saves that the server makes by itself


def images(seed: int):
    """JPEGs of streams of the world, again and again."""
    return itertools.cycle(
        [jpeg(image) for number in range(4) for image in world_stream(seed=seed + number).frames(FPS)]
    )


def contents(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Name, inode, time and size of each file."""
    stats = {str(path): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (found.st_ino, found.st_mtime_ns, found.st_size) for name, found in stats.items()}


def spread(values: list[float], scale: float = 1.0, digits: int = 3) -> dict:
    ordered = sorted(scale * value for value in values)
    if not ordered:
        return {"count": 0}
    return {
        "count": len(ordered),
        "p50": round(ordered[len(ordered) // 2], digits),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], digits),
        "largest": round(ordered[-1], digits),
    }


async def opened(registry, folder: Path, count: int) -> list:
    found = [await registry.open(OWNER) for _ in range(count)]
    for session in found:
        session.is_kept = True
        options = {"instructions": INSTRUCTIONS, "speak_threshold": 0.0}
        await session.receive(json.dumps({"type": "session.update", "session": options}))
    return found


def application(model, processor, folder: str, save_seconds: float):
    limits = Limits(frames_per_second=1e6, waiting_frames=256)
    options = {"max_cached_frames": HELD}
    own = {"saved": folder, "save_seconds": save_seconds, "lease_seconds": QUIET}
    return make_app(model, processor, "nano", limits, Keys(), options=options, **own).state.registry


def long_session(model, processor, frames: int) -> dict:
    """Bytes and files of one session over its saves."""
    session = model.stream(processor, max_cached_frames=HELD, speak_threshold=0.0)
    session.instruct(INSTRUCTIONS)
    pictures = [picture for number in range(4) for picture in world_stream(seed=8600 + number).frames(FPS)]
    features, log, rows = session.encode(np.stack(pictures)), EventLog("sessionxyz", Limits.kept_events), []
    with tempfile.TemporaryDirectory() as folder:
        saved = SessionStore(folder).open("session")
        before = contents(Path(folder))
        for _ in range(Limits.kept_events):  # the log is full from the beginning
            log.add(acknowledgement(WatchedFrame(0.0, 0.123456789, ())))
        for done in range(0, frames, EVERY):
            at = [index % len(features) for index in range(done, done + EVERY)]
            for watched in session.watch_encoded(features[at]):
                log.add(acknowledgement(watched))
            saved.save(session, {"sequence": log.last}, log.kept).result()
            after = contents(Path(folder))
            new = {name: size for name, (*at, size) in after.items() if before.get(name) != (*at, size)}
            kinds = {kind: sum(size for name, size in new.items() if f"/{kind}/" in name) for kind in KINDS}
            rows.append({**kinds, "files": len(after), "bytes": sum(size for *_, size in after.values())})
            before = after
    full = rows[len(rows) // 2 :]  # the log of events and the memory are full
    return {
        "frames": frames,
        "events": log.last,
        "events_kept": len(log.kept),
        "bytes_of_kept_events": sum(len(text) for _, text in log.kept),
        "kv_bytes": session.stats.kv_bytes,
        "bytes_per_save": {kind: spread([row[kind] for row in full], digits=0) for kind in KINDS},
        "bytes_per_second": {kind: round(statistics.fmean(row[kind] for row in full) * FPS / EVERY) for kind in KINDS},
        "files": spread([row["files"] for row in rows], digits=0),
        "folder_bytes": spread([row["bytes"] for row in full], digits=0),
        "by_save": [[row["files"], row["bytes"]] for row in rows[:: max(1, len(rows) // 50)]],
    }


def acknowledgement(watched) -> dict:
    """As a server writes it."""
    return {
        "type": "input_video_frame.acknowledged",
        "timestamp": watched.time,
        "status": "watched",
        "reason": None,
        "client_event_id": "frame_1234",
        "silence_probability": watched.silence_probability,
        "waiting": 0,
        "dropped": 0,
        "keep_ratio": 0.5,
    }


async def many_sessions(model, processor, sessions: int, seconds: float, save_seconds: float) -> dict:
    """How long the engine's thread works for saves, and how frames fare meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        registry = application(model, processor, folder, save_seconds)
        registry.start()
        own = await opened(registry, Path(folder), sessions)
        begun = time.monotonic()
        takes: list[tuple[float, float, float]] = []
        writes: list[tuple[float, float, float]] = []
        frames: list[tuple[float, float]] = []
        for session in own:
            while len(session.log.kept) < session.limits.kept_events:
                session._acknowledge(("frame", 0.0, None), "watched", silence=0.5)
            watch_saves(registry._savings[session.id].saved, takes, writes)
        await asyncio.gather(*(feed(session, 8600 + 50 * at, seconds, frames) for at, session in enumerate(own)))
        fill = begun + seconds / 4
        busy = joined([each[:2] for each in takes if each[0] > fill])
        await registry.stop()
    saves = [(start, end) for start, end, _ in takes + writes if start > fill]
    latency: dict[bool, list[float]] = {True: [], False: []}
    for due, seen in frames:
        if due > fill:
            latency[any(due < end and start < seen for start, end in saves)].append(seen - due)
    return {
        "sessions": sessions,
        "seconds": seconds,
        "save_seconds": save_seconds,
        "saves": len([start for start, *_ in takes if start > fill]),
        "engine_ms_per_save": spread([end - start for start, end, _ in takes if start > fill], 1000),
        "engine_cpu_ms_per_save": spread([cpu for start, _, cpu in takes if start > fill], 1000),
        "engine_ms_between_ticks": spread(busy, 1000),
        "writer_ms_per_save": spread([end - start for start, end, _ in writes if start > fill], 1000),
        "writer_cpu_ms_per_save": spread([cpu for start, _, cpu in writes if start > fill], 1000),
        "latency_ms_beside_saves": spread(latency[True], 1000, 1),
        "latency_ms_else": spread(latency[False], 1000, 1),
    }


def watch_saves(saved, takes: list, writes: list) -> None:
    """Note when `take` and `_write` of a saved session run."""
    for name, times in (("take", takes), ("_write", writes)):
        function = getattr(saved, name)

        def timed(*arguments, function=function, times=times):
            start, cpu = time.monotonic(), time.thread_time()
            try:
                return function(*arguments)
            finally:
                times.append((start, time.monotonic(), time.thread_time() - cpu))

        setattr(saved, name, timed)


def joined(spans: list[tuple[float, float]], apart: float = 0.001) -> list[float]:
    """The seconds of work in spans that follow each other at once."""
    found: list[float] = []
    last = -1.0
    for start, end in sorted(spans):
        if start - last < apart:
            found[-1] += end - start
        else:
            found.append(end - start)
        last = end
    return found


async def feed(session, seed: int, seconds: float, frames: list[tuple[float, float]]) -> None:
    """Frames at their times; notes when each was due, and when its acknowledgement came."""
    begun, coming, due = time.monotonic(), images(seed), {}
    reading = asyncio.create_task(read(session, due, frames))
    for index in range(round(seconds * FPS)):
        due[index / FPS] = begun + index / FPS
        await asyncio.sleep(max(0.0, due[index / FPS] - time.monotonic()))
        await session.append(next(coming), index / FPS)
    await session.commit()
    while due:
        await asyncio.sleep(0.01)
    reading.cancel()


async def read(session, due: dict[float, float], frames: list[tuple[float, float]]) -> None:
    async for _, text in session.log.follow(session.log.last):
        event = json.loads(text)
        if event["type"] == "input_video_frame.acknowledged" and event["status"] == "watched":
            frames.append((due.pop(event["timestamp"]), time.monotonic()))


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=5000, help="of the long session")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="of the many sessions; the first quarter is left out"
    )
    parser.add_argument("--save-seconds", type=float, default=5.0, help="of the many sessions")
    parser.add_argument("--json", type=Path, help="benchmarks/results/serve_saving.json if omitted")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, processor = load_checkpoint(device="cpu")
    command = f"python -m videollm_mod.benchmarks.serve_saving --frames {args.frames} --sessions {args.sessions}"
    command += f" --seconds {args.seconds:g} --save-seconds {args.save_seconds:g}"
    load = {"load_of_the_machine_before": os.getloadavg()[0]}
    result = {"command": command, "commit": commit(), **surroundings("fsspec"), **load}
    one = long_session(model, processor, args.frames) if args.frames else None
    sizes = args.sessions, args.seconds, args.save_seconds
    many = asyncio.run(many_sessions(model, processor, *sizes)) if args.sessions else None
    result |= {"long": one, "many": many}
    if args.json is None:
        write_result("serve_saving", result)
    else:
        args.json.write_text(json.dumps(result, indent=1))
    print(json.dumps({"long": one, "many": many}, indent=1))
    return result


if __name__ == "__main__":
    main()
