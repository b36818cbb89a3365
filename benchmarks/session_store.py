"""What it costs to keep a session in a store, in two ways: segments of its cache, or a log of what it was fed.

    python -m videollm_mod.benchmarks.session_store --geometry llama3-8b

A session with room for `--held` frames watches `--frames` frames, so that it evicts some, and is saved after every
`--every` of them. `segments` is the way of `serving/store.py`. `log` writes the features of the frames, and feeds them
again to resume: `log, all frames` those of the whole stream, without which the keys of the remaining tokens cannot be
computed, and `log, held frames` only those that the session still remembers. Each way is compared with the session
that was never interrupted: its cache, and P(silence) after the frames that follow. Weights and features are random,
which does not change what a frame costs; the session never speaks.
"""

import argparse
import tempfile
import time

import torch
from safetensors.torch import load as tensors_of_bytes
from safetensors.torch import save as bytes_of_tensors

from ..bench.geometries import NAMES
from ..bench.record import commit, summarise, surroundings, write_result
from ..bench.watching import build, synchronise
from ..serving.shared_files import SharedFolder
from ..serving.store import SessionStore
from ..session_state import session_tensors

AFTER = 16  # frames that follow, after which decisions are compared


class FeatureLog:
    """The features of every frame of a stream, in files of a shared folder."""

    def __init__(self, url: str):
        self.files, self.count = SharedFolder(url), 0

    def append(self, features: torch.Tensor) -> int:
        """Write features `[F, M, Dv]`; returns how many bytes."""
        data = bytes_of_tensors({"features": features.cpu()})
        self.files.write(f"{self.count:08d}.safetensors", data)
        self.count += 1
        return len(data)

    def read(self, device: torch.device, last: int | None = None) -> torch.Tensor:
        """The features of all frames, or of the last ones."""
        parts = [tensors_of_bytes(self.files.read(name))["features"] for name in self.files.names()]
        features = torch.cat(parts)
        return (features if last is None else features[-last:]).to(device)


def features_of(model, count: int) -> torch.Tensor:
    return torch.randn((count, *model.config.video_feature_shape), device=model.device, dtype=model.dtype)


def watch(session, features: torch.Tensor) -> list[float]:
    return [frame.silence_probability for frame in session.watch_encoded(features)]


def differences(session, other, silence: list[float], other_silence: list[float]) -> dict:
    """How far another session is from one: tokens that its layers hold and the other's do not, values of the cache as
    a share of the largest, and log P(silence) after the next frames."""
    one, two = session_tensors(session), session_tensors(other)
    layers = [index for index, layer in enumerate(session.cache.layers) if layer.is_initialized]
    missing = total = 0
    largest = 0.0
    for index in layers:
        held, its = (tensors[f"layers.{index}.positions"][0] for tensors in (one, two))
        shared, its_shared = torch.isin(held, its), torch.isin(its, held)
        missing, total = missing + int((~shared).sum()), total + len(held)
        for name in ("keys", "values"):
            values, its_values = one[f"layers.{index}.{name}"], two[f"layers.{index}.{name}"]
            apart = (values[:, :, shared] - its_values[:, :, its_shared]).abs().max() / values.abs().max()
            largest = max(largest, float(apart))
    logs = torch.tensor([silence, other_silence], dtype=torch.float64).log()
    return {
        "same_bits": one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one),
        "share_of_other_tokens": round(missing / total, 5),
        "largest_difference": largest,
        "largest_difference_of_log_silence": float((logs[0] - logs[1]).abs().max()),
    }


def spread(seconds: list[float]) -> dict:
    ordered = sorted(1000 * x for x in seconds)
    return {"p50_ms": round(ordered[len(ordered) // 2], 3), "p95_ms": round(ordered[int(0.95 * len(ordered))], 3)}


def record(model, session, saved, log: FeatureLog, args) -> dict:
    """Watch and save in both ways; returns what writing costs."""
    costs: dict[str, dict[str, list]] = {
        way: {"snapshot": [], "write": [], "bytes": []} for way in ("segments", "log")
    }
    for _ in range(0, args.frames, args.every):
        features = features_of(model, args.every)
        watch(session, features)
        synchronise(model.device)
        start = time.perf_counter()
        future = saved.save(session)
        costs["segments"]["snapshot"].append(time.perf_counter() - start)
        costs["segments"]["bytes"].append(future.result().num_bytes)
        costs["segments"]["write"].append(future.result().seconds)
        start = time.perf_counter()
        costs["log"]["bytes"].append(log.append(features))
        costs["log"]["write"].append(time.perf_counter() - start)
        costs["log"]["snapshot"].append(0.0)
    found = {}
    for way, own in costs.items():
        frames = len(own["bytes"]) * args.every
        found[way] = {
            "bytes_per_frame": round(sum(own["bytes"]) / frames),
            "bytes_per_second": round(sum(own["bytes"]) / frames * args.fps),
            "largest_save_bytes": max(own["bytes"]),
            "snapshot": spread(own["snapshot"][1:]),
            "write": spread(own["write"][1:]),
        }
    return found


def resume(model, processor, session, url: str, log: FeatureLog, options: dict) -> dict:
    """Resume in each way, and compare with the session that goes on."""
    held = session.cache.frame_ends.shape[1]
    following = features_of(model, AFTER)

    def from_store():
        return SessionStore(f"{url}/segments").open("session", force=True).restore(model, processor)

    def replayed(last: int | None):
        other = model.stream(processor, **options)
        watch(other, log.read(model.device, last))
        return other

    ways = {
        "segments": from_store,
        "log, all frames": lambda: replayed(None),
        "log, held frames": lambda: replayed(held),
    }
    goes_on = session.fork()
    silence = [watch(goes_on, own[None])[0] for own in following]
    found = {}
    for name, way in ways.items():
        synchronise(model.device)
        start = time.perf_counter()
        other = way()
        synchronise(model.device)
        seconds = time.perf_counter() - start
        continued = other.fork()
        its_silence = [watch(continued, own[None])[0] for own in following]
        found[name] = {"resume_s": round(seconds, 3), **differences(session, other, silence, its_silence)}
        print(name, found[name], flush=True)
        del other, continued
    return found


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="nano", choices=NAMES)
    parser.add_argument("--held", type=int, default=600, help="frames to remember")
    parser.add_argument("--frames", type=int, default=1000, help="frames to watch")
    parser.add_argument("--every", type=int, default=10, help="frames between two saves")
    parser.add_argument("--fps", type=float, default=2.0, help="frames per second of the stream, for bytes a second")
    parser.add_argument("--url", help="of the store; a temporary folder if omitted")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    model, processor = build(args.geometry, torch.device(args.device))
    options = {"max_cached_frames": args.held, "speak_threshold": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        url = args.url or folder
        session, log = model.stream(processor, **options), FeatureLog(f"{url}/log")
        store = SessionStore(f"{url}/segments")
        saved = store.open("session")
        ways = record(model, session, saved, log, args)
        for name, own in ways.items():
            print(name, own, flush=True)
        resumed = resume(model, processor, session, url, log, options)
        stored = sum(segment.tokens for segment in saved._written.segments) / session.cache.seen_tokens
        saved.delete()
        log.files.remove("")
    ratio = ways["segments"]["bytes_per_second"] / ways["log"]["bytes_per_second"]
    print(f"segments write {ratio:.1f} times the bytes of a log", flush=True)
    command = f"python -m videollm_mod.benchmarks.session_store --geometry {args.geometry}"
    sizes = {name: getattr(args, name) for name in ("geometry", "held", "frames", "every", "fps", "device")}
    about = {"kv_bytes": session.stats.kv_bytes, "stored_tokens_per_held": round(stored, 3), "bytes_ratio": ratio}
    result = {"command": command, "commit": commit(), **surroundings("fsspec"), **sizes, **about}
    result |= {"saving": ways, "resuming": resumed}
    path = write_result(f"session_store_{args.geometry.replace('-', '_')}", result)
    if args.geometry == "llama3-8b":
        source = f"benchmarks/results/{path.name}"
        summarise("session_resume_s", resumed["segments"]["resume_s"], source, command)
        summarise("session_bytes_per_second", ways["segments"]["bytes_per_second"], source, command)
    return result


if __name__ == "__main__":
    main()
