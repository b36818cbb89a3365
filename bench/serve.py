"""`videollm-mod bench serve`: how many live streams a server holds, how soon it answers, and what it costs beside the
pool that it is built on.

The server runs in a process of its own, and its clients in others. Each session begins with frames in its cache, sends
JPEGs at a fixed rate, and the model speaks after some of them. The number of sessions doubles until the server does
not hold them: until the p95 of the time from frame to decision is above 0.5 s, or a frame is dropped. Then the largest
number in between is searched.
"""

import json as json_module
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.request import Request, urlopen

from tqdm import tqdm

from .geometries import config_values
from .record import enter, header, write
from .serve_clients import Clients, Seen

LIMIT = 0.5  # seconds of p95 from frame to decision that a server holds
SECONDS_BETWEEN_NARRATIONS = 10.0
WARM = 4.0  # seconds before a measurement, in which graphs are captured
STREAMS = 8  # of the comparison with the pool
FIRST_FRAMES = 12  # of each stream in the first turn of the comparison
SECONDS_OF_A_TURN = 3.0  # about, of the others
WAITING = 4  # frames of a session that may wait: a camera's older ones are of no use
IN_FLIGHT = (1, 2, 4)  # frames that a client of the comparison has sent and not seen answered
START = (8, 32)  # sessions to begin with: of small models, of large ones
CHOSEN = 2  # of these: the next frame waits when the one before is watched, as in the pool


class BenchedServer:
    """A server process of `serve_server`.

    Raises:
        `ChildProcessError`: if it does not start.
    """

    def __init__(self, **options):
        self._options, self._script = options, {}  # type: dict, dict
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", f"{__package__}.serve_server", json_module.dumps(self._options)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise ChildProcessError("the server did not start")
        self.about = json_module.loads(line)
        self.url = self.about.pop("url")

    def restart(self) -> None:
        """Begin anew, as after running out of memory: such a server may have given up its graphs."""
        self.stop()
        self._start()
        self.script(**self._script)

    def script(self, **arguments) -> None:
        """See `Bench.script`."""
        self._script = arguments
        self.call("script", **arguments)

    def call(self, name: str, **arguments) -> dict:
        body = json_module.dumps(arguments).encode()
        request = Request(f"{self.url}/bench/{name}", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=600) as answer:
            return json_module.load(answer)

    @contextmanager
    def clocked(self) -> Iterator[dict]:
        """What the server's clocks counted within the block, in the dictionary once it is over."""
        found: dict = {}
        before = self.call("clocks")
        yield found
        after = self.call("clocks")
        found |= {name: after[name] - before.get(name, 0) for name in after if name != "peak_bytes"}
        found["peak_bytes"] = after["peak_bytes"]

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def milliseconds(seconds: list[float], share: float) -> float | None:
    """A quantile; None of nothing."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else None


def live_row(seen: list[list[Seen]], errors: list[str], start: float, end: float) -> dict:
    """What all clients saw of the frames that were due between two times."""
    frames = [each for own in seen for each in own if start <= each.due < end]
    answered = [each for each in frames if each.decided is not None]
    latencies = [each.decided - each.due for each in frames if each.decided is not None and each.status != "dropped"]
    spoken = [each.spoken - each.due for each in frames if each.spoken is not None]
    dropped = sum(each.status == "dropped" for each in frames)
    ratios = [each.keep_ratio for each in answered if each.keep_ratio is not None]
    return {
        "frames": len(frames),
        "p50_ms": milliseconds(latencies, 0.5),
        "p95_ms": milliseconds(latencies, 0.95),
        "max_ms": milliseconds(latencies, 1.0),
        "narrations": len(spoken),
        "first_delta_p50_ms": milliseconds(spoken, 0.5),
        "first_delta_p95_ms": milliseconds(spoken, 0.95),
        "dropped": dropped,
        "dropped_share": round(dropped / max(1, len(frames)), 4),
        "unanswered": len(frames) - len(answered),
        "keep_ratio": round(statistics.fmean(ratios), 4) if ratios else None,
        "sent_late_p95_ms": milliseconds([each.sent - each.due for each in frames], 0.95),
        "errors": sorted(set(errors))[:5],
    }


def holds(row: dict) -> bool:
    """Whether the server held this number of sessions."""
    broken = row["dropped"] or row["unanswered"] or row["errors"] or row["p95_ms"] is None
    return not broken and row["p95_ms"] <= 1000 * LIMIT


def search(measure: Callable[[int], bool | None], start: int) -> int:
    """The largest number that holds, to about an eighth; 0 if none does.

    Args:
        measure (`Callable`): says whether a number holds, or None when there is no time left.
    """
    good, bad, count = 0, None, start
    while bad is None or bad - good > max(1, good // 8):
        held = measure(count)
        if held is None:
            return good
        good, bad = (count, bad) if held else (good, count)
        count = 2 * good if bad is None else (good + bad) // 2
    return good


def client_processes() -> int:
    """Few beside the server on a small machine; a process can send some hundred frames a second."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


class Measurements:
    """Measures, prints and writes row by row.

    Args:
        url (`str`, *optional*): of a server that somebody else has started.
        server (`BenchedServer`, *optional*): the own one.
        json (`Path`, *optional*), result (`dict`): the file and its content, of which `rows` grow.
        end (`float`): no row is started after this time of `perf_counter`.
    """

    def __init__(self, url: str | None, server: BenchedServer | None, json: Path | None, result: dict, end: float):
        self._url, self.server, self.json, self.result, self.end = url, server, json, result, end
        self.processes = client_processes()

    @property
    def url(self) -> str:
        return self.server.url if self._url is None else self._url  # type: ignore[union-attr]

    @property
    def over(self) -> bool:
        return time.perf_counter() > self.end

    def add(self, row: dict) -> None:
        self.result["rows"].append(row)
        shown = {name: value for name, value in row.items() if not isinstance(value, dict)}
        tqdm.write(" ".join(f"{name}={value}" for name, value in shown.items()))
        write(self.json, self.result)

    def live(self, sessions: int, fps: float, seconds: float, before: int, **about) -> bool | None:
        """A row of so many sessions; returns whether the server held them."""
        if self.over:
            return None
        row = {"name": "live", "sessions": sessions, "offered_fps": sessions * fps, **about}
        frames = round((WARM + seconds) * fps)
        options = {"url": self.url, "size": self.result["size"], "fps": fps, "frames": frames, "before": before}
        spent: dict = {}
        try:
            clients = Clients(self.processes, sessions, **options)
            with nullcontext(spent) if self.server is None else self.server.clocked() as spent:
                start = clients.start() + WARM
                row |= live_row(*clients.results(), start, start + seconds)
        except OSError as error:
            row |= live_row([], [str(error)], 0.0, 0.0)
        row |= {"spent": rounded(spent), "holds": holds(row)}
        self.add(row)
        if row["errors"] and self.server is not None:
            self.server.restart()
        return row["holds"]

    def live_or_again(self, *arguments, **about) -> bool | None:
        """As `live`. A row that took all frames, but too late, is measured once more: the machine may have paused."""
        held = self.live(*arguments, **about)
        again = held is False and not self.result["rows"][-1]["errors"]
        return self.live(*arguments, **about) if again else held

    def broken(self, ratio: str) -> list[int]:
        """Numbers of sessions whose frames the server took, but too late."""
        rows = [row for row in self.result["rows"] if row["name"] == "live" and row["ratio"] == ratio]
        return [row["sessions"] for row in rows if not row["holds"] and not row["errors"]]

    def flood(self, frames: int, warm: int, in_flight: int) -> dict:
        """Frames a second of clients that send as soon as they are answered, and where the server spent its time."""
        assert self.server is not None
        options = {"url": self.url, "size": self.result["size"], "fps": 2.0, "frames": frames, "before": warm}
        clients = Clients(self.processes, STREAMS, in_flight=in_flight, **options)
        with self.server.clocked() as spent:
            clients.start()
            seen, errors = clients.results()
        watched = [each for own in seen for each in own if each.status == "watched"]
        if errors or len(watched) < STREAMS * frames:
            raise ChildProcessError(f"{len(watched)} of {STREAMS * frames} frames were watched: {errors[:1]}")
        seconds = max(each.decided or 0.0 for each in watched) - min(each.sent for each in watched)
        return {"seconds": seconds, "frames_per_second": len(watched) / seconds, "spent": rounded(spent)}


def rounded(values: dict) -> dict:
    return {name: round(value, 4) for name, value in values.items()}


def breakdown(seconds: float, spent: dict) -> dict:
    """Milliseconds of each frame of a flood: in the engine's thread, which the model's steps take most of, and beside
    it. `decode` is that of one of several threads."""
    frames = max(1, spent.get("frames", 0))
    ticks, engine_cpu, tick_cpu = spent["tick_s"], spent["engine_cpu_s"], spent["tick_cpu_s"]
    parts = {
        "all": seconds,
        "steps": ticks,
        "around steps, CPU": engine_cpu - tick_cpu,
        "no step": seconds - ticks,
        "decode": spent["decode_s"],
        "decode, CPU": spent["decode_cpu_s"],
        "event loop, CPU": spent["loop_cpu_s"],
        "steps, CPU": tick_cpu,
        "from queue to decision": spent["frame_s"],
    }
    found = {name: round(1000 * value / frames, 3) for name, value in parts.items()}
    return {
        **found,
        "frames_per_step": round(frames / max(1, spent["ticks"]), 2),
        "captures": spent.get("captures", 0),
    }


def overhead(bench: Measurements, repeats: int) -> dict[str, float]:
    """The pool alone and the server with its clients, in turns; returns their frames a second as shares of the
    pool's."""
    server = bench.server
    assert server is not None
    server.script(every=0)
    ways = {"pool": 0} | {f"server, {count} in flight": count for count in IN_FLIGHT}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    parts: dict[str, list[dict]] = {way: [] for way in ways}
    frames = FIRST_FRAMES
    for turn in tqdm(range(1 + repeats), desc="turns", leave=False):  # the first is not counted
        if bench.over and turn > 1:
            break
        for way, in_flight in ways.items():
            if not in_flight:
                found = server.call("pool", streams=STREAMS, frames=frames, warm=max(4, frames // 8))
            else:
                found = bench.flood(frames, max(4, frames // 8), in_flight)
            if turn:
                rates[way].append(round(found["frames_per_second"], 2))
            if turn and in_flight:
                parts[way].append(breakdown(found["seconds"], found["spent"]))
            if not turn and not in_flight:
                chosen = max(FIRST_FRAMES, round(SECONDS_OF_A_TURN * found["frames_per_second"] / STREAMS))
        frames = chosen
    shares = {way: statistics.median(own) / statistics.median(rates["pool"]) for way, own in rates.items()}
    for way, own in rates.items():
        row = {"name": "overhead", "way": way, "streams": STREAMS, "frames": frames, "of_pool": round(shares[way], 4)}
        row |= {"frames_per_second": statistics.median(own), "all_frames_per_second": own}
        if parts[way]:
            middle = {name: statistics.median(part[name] for part in parts[way]) for name in parts[way][0]}
            row["ms_per_frame"] = middle
            tqdm.write(f"{way}, ms per frame: {middle}")
        bench.add(row)
    return shares


def bench(
    geometry: str,
    json: Path | None,
    device: str,
    minutes: float,
    url: str | None,
    fps: float,
    seconds: float,
    held: int,
    sessions: list[int] | None,
    keep_ratio_range: list[float] | None,
    repeats: int,
) -> None:
    """Compare with the pool, then raise the number of sessions until the server breaks.

    Args:
        json (`Path`, *optional*): result file, written after every row.
        minutes (`float`): no row is started after this time.
        url (`str`, *optional*): of a running server, instead of one with random weights.
        fps (`float`): frames a second of each session.
        seconds (`float`): that a row is measured.
        held (`int`): frames in each session's cache at first.
        sessions (`list[int]`, *optional*): numbers of sessions to measure; searched if omitted.
        keep_ratio_range (`list[float]`, *optional*): within which the keep ratio follows the load when the search is
            repeated.
        repeats (`int`): turns of the comparison.

    Raises:
        `ChildProcessError`: if the server does not start, or fails.
    """
    end = time.perf_counter() + 60 * minutes
    about: dict = {"geometry": geometry, "device": device, "fps": fps, "seconds": seconds, "limit_s": LIMIT}
    about |= {"max_waiting_frames": WAITING, "load_of_the_machine_before": os.getloadavg()[0]}
    result: dict = {**header(), **about, "rows": []}
    server = None
    if url is None:
        server = BenchedServer(geometry=geometry, device=device, held=held, waiting=WAITING)
        result |= {**server.about, "filled_by": "forks of one session that has watched them"}
    else:
        size = config_values(geometry)["vision_config"]["image_size"] if geometry == "nano" else 384
        result |= {"held": held, "size": size, "filled_by": "frames sent as fast as they are answered"}
    tqdm.write(" ".join(f"{name}={result[name]}" for name in ("geometry", "device", "held", "size")))
    try:
        rows = Measurements(url, server, json, result, end)
        result["client_processes"] = rows.processes
        if server is not None:
            result["overhead"] = overhead(rows, repeats)
        for ratios in ([], keep_ratio_range) if keep_ratio_range else ([],):
            if server is not None:
                limits = dict(zip(("low", "high"), ratios, strict=False))
                server.script(every=round(SECONDS_BETWEEN_NARRATIONS * fps), **limits)
            ratio = "follows the load" if ratios else "fixed"

            def measure(count: int) -> bool | None:
                return rows.live_or_again(count, fps, seconds, 0 if server else held, ratio=ratio)  # noqa: B023

            if rows.over:
                break
            if sessions:
                most = max((count for count in sessions if measure(count)), default=0)
            else:
                most = search(measure, START[geometry == "llama3-8b"])
                if broken := rows.broken(ratio):  # how it looks when much more is asked
                    measure(2 * max(broken))
            result["largest"] = {**result.get("largest", {}), ratio: most}
            tqdm.write(f"keep ratio {ratio}: the server holds {most} sessions of {fps:g} frames/s")
    finally:
        if server is not None:
            server.stop()
    if not result["rows"]:
        raise ValueError(f"no row was started within --minutes {minutes:g}")
    write(json, result)
    enter(json, figures(result), result["command"])
    if json is not None:
        from .serve_plot import plot

        print(plot(result, json.with_suffix(".png")))


def figures(result: dict) -> dict[str, float]:
    """The figures for the summary."""
    found: dict[str, float] = {}
    if "overhead" in result and result["geometry"] == "llama3-8b":
        found["serve_overhead"] = round(1 - result["overhead"][f"server, {CHOSEN} in flight"], 4)
    if result["geometry"] == "llama3-8b" and "largest" in result:
        found["serve_h200_sessions"] = result["largest"]["fixed"]
    elif result["geometry"] == "nano" and result["device"] == "cpu" and "largest" in result:
        found["serve_sessions_2_cores"] = result["largest"]["fixed"]
    return found


__all__ = ["bench"]
