"""The server that `videollm-mod bench serve` measures, in a process of its own: the application of `videollm-mod
serve` with a model of random weights, and with routes that only this module has.

- Every session begins as a fork of one session that has watched frames.
- Random weights speak at random, so the benchmark says when: `ScriptedSession` computes P(silence) as always, and then
  replaces it.
- `POST /bench/...` runs the pool without the server, chooses the script, and reads clocks.

It reads one JSON object, the arguments of `Bench`, from its arguments.
"""

import json
import sys
from collections import defaultdict
from contextlib import contextmanager
from itertools import count
from time import monotonic, process_time, thread_time
from typing import Any

from ..commands.threads import share_cores

share_cores()

import numpy as np  # noqa: E402
import torch  # noqa: E402  # threads are chosen before
from fastapi import Body, FastAPI  # noqa: E402

from ..memory import frames_in_context  # noqa: E402
from ..serving import realtime_session  # noqa: E402
from ..serving.keys import Keys  # noqa: E402
from ..serving.limits import Limits  # noqa: E402
from ..serving.listening import listen  # noqa: E402
from ..serving.load import KeepRatioControl  # noqa: E402
from ..serving.pool import StreamPool  # noqa: E402
from ..serving.server import Server, make_app  # noqa: E402
from ..static_graphs import Graphs  # noqa: E402
from ..steps import FeedResult  # noqa: E402
from ..streaming import StreamingSession  # noqa: E402
from .serve_clients import pictures  # noqa: E402
from .watching import build, synchronise  # noqa: E402

WORDS = 12  # tokens of a narration
BLOCK = 32  # frames at once that the first session watches
MANY = 2**20  # more than any benchmark reaches


class ScriptedSession(StreamingSession):
    """Speaks after every `every`-th frame and is silent otherwise; never speaks if `every` is 0.

    `shift` moves the frames after which it speaks, so that sessions do not all speak at the same time.
    """

    every = shift = 0

    def _silence(self, fed: FeedResult) -> torch.Tensor:
        silence = super()._silence(fed)
        first = self.state.counts["frames"] + self.shift + 1
        speaks = [self.every > 0 and (first + index) % self.every == 0 for index in range(len(silence))]
        return torch.where(torch.tensor(speaks), 0.0, 1.0)


class Bench:
    """
    Args:
        geometry (`str`), device (`str`): of the model.
        held (`int`): frames that each session has watched before it begins, at most as many as the model remembers.
        waiting (`int`): frames of one session that may wait.
    """

    def __init__(self, geometry: str, device: str, held: int, waiting: int):
        self.model, self.processor = build(geometry, torch.device(device))
        size = self.model.config.vision_config.image_size
        remembers = frames_in_context(self.model.config)
        options: dict[str, Any] = {"max_cached_frames": remembers, "max_new_tokens": WORDS, "speak_threshold": 0.5}
        self.first = ScriptedSession(self.model, self.processor, **options)
        self.frames = pictures(size)
        for start in range(0, min(held, remembers), BLOCK):
            count_now = min(BLOCK, min(held, remembers) - start)
            self.first.push(np.stack([self.frames[index % len(self.frames)] for index in range(count_now)]))
        limits = Limits(sessions=MANY, frames_per_second=MANY, waiting_frames=waiting)
        self.app: FastAPI = make_app(self.model, self.processor, geometry, limits, Keys(()), options=options)
        self.engine = self.app.state.registry.engine
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.every, self._numbers = 0, count()
        self._instrument()
        self.app.post("/bench/clocks")(self.clocks)
        self.app.post("/bench/pool")(self.pool)
        self.app.post("/bench/script")(self.script)

    def about(self) -> dict:
        """What a client has to know."""
        return {"held": self.first.stats.frames, "kv_bytes": self.first.stats.kv_bytes, "size": len(self.frames[0])}

    def fork(self) -> ScriptedSession:
        session: Any = self.first.fork()
        session.every = self.every
        session.shift = int(next(self._numbers) * 0.618 * self.every)  # spreads any number of sessions evenly
        return session

    def _instrument(self) -> None:
        """Begin sessions as forks, and count where time goes."""
        engine, open_stream, watched = self.engine, self.engine.open, self.engine.metrics.watched

        def count_watched(seconds: float) -> None:
            self.spent["frames"] += 1
            self.spent["frame_s"] += seconds
            watched(seconds)

        engine.open = lambda receive, make: open_stream(receive, self.fork)
        engine.metrics.watched = count_watched
        engine.pool.tick = self._counted("tick", engine.pool.tick)
        realtime_session.decode_image = self._counted("decode", realtime_session.decode_image)
        Graphs.capture = self._counted("capture", Graphs.capture)  # type: ignore[method-assign]

    def _counted(self, name: str, function):
        def counted(*args, **kwargs):
            with self._clock(name):
                return function(*args, **kwargs)

        return counted

    @contextmanager
    def _clock(self, name: str):
        wall, cpu = monotonic(), thread_time()
        try:
            yield
        finally:
            self.spent[f"{name}s"] += 1
            self.spent[f"{name}_s"] += monotonic() - wall
            self.spent[f"{name}_cpu_s"] += thread_time() - cpu

    async def clocks(self) -> dict:
        """Seconds so far: of the process, of the event loop's thread, of the engine's thread, and what was counted."""
        cpu = {"process_cpu_s": process_time(), "loop_cpu_s": thread_time()}
        cpu["engine_cpu_s"] = await self.engine.call(thread_time)
        device = self.model.device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return {"wall_s": monotonic(), **cpu, **self.spent, "peak_bytes": peak}

    async def script(self, every: int = Body(), low: float = Body(0.0), high: float = Body(0.0)) -> dict:
        """Let new sessions speak after every so many frames, and the keep ratio follow the load within a range, if
        there is one."""

        def change() -> None:
            own = self.engine._own_ratio
            self.engine.control = KeepRatioControl(low or own, high or own, self.model.config.num_frame_tokens)

        self.every = every
        await self.engine.call(change)
        return {}

    async def pool(self, streams: int = Body(), frames: int = Body(), warm: int = Body()) -> dict:
        """Let a pool watch frames of several streams in the engine's thread, each as soon as the one before is
        watched, with nothing else to do."""
        return await self.engine.call(lambda: self._watch_in_pool(streams, frames, warm))

    def _watch_in_pool(self, streams: int, frames: int, warm: int) -> dict[str, Any]:
        pool = StreamPool(self.model, self.processor)
        members = [pool.join(self.fork()) for _ in range(streams)]
        seconds = 0.0
        for start, stop in ((0, warm), (warm, warm + frames)):
            synchronise(self.model.device)
            begin = monotonic()
            for index in range(start, stop):
                for number, member in enumerate(members):
                    member.push(self.frames[(number + index) % len(self.frames)][None])
                while any(member.busy for member in members):
                    pool.tick()
            synchronise(self.model.device)
            seconds = monotonic() - begin
        return {"seconds": seconds, "frames": streams * frames, "frames_per_second": streams * frames / seconds}


def main() -> None:
    bench = Bench(**json.loads(sys.argv[1]))
    with listen("127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        about = json.dumps({"url": url, **bench.about()})
        registry = bench.app.state.registry
        registry.on_prepared = lambda done, total: print(about, flush=True) if done == total else None
        Server(bench.app, registry.limits.message_bytes).run(sockets=[listening])


if __name__ == "__main__":
    main()
