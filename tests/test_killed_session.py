"""A process that is killed in the middle of its streams: what it saved goes on like an undisturbed session."""

import json
import random
import signal
import sys

import torch
from fork_server import ForkedProcess
from fresh_process import ROOT, TINY_WORLD

from videollm_mod import StreamingSession, StreamPool, VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.benchmarks.long_streams import held_scenes

WATCHES_UNTIL_KILLED = """
import json, os, signal, sys, threading
sys.path += {tests!r}
from test_killed_session import load, SCENES
from videollm_mod import StreamPool
model, processor = load()
pool = StreamPool(model, processor)
streams = [pool.join(max_cached_frames=8, cache_policy=policy) for policy in ("window", "router")]
said = [[], []]
for index in range(len(SCENES)):
    if index == int(sys.argv[2]):
        threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()
    for stream in streams:
        stream.push(SCENES[index : index + 1])
    for stream, event in pool.run():
        said[streams.index(stream)].append([event.time, event.text])
    for number, stream in enumerate(streams):
        path = f"{{sys.argv[1]}}/{{number}}"
        stream.save(path)
        with open(path + ".part", "w") as file:
            json.dump([stream.session.stats.frames, said[number]], file)
        os.replace(path + ".part", path + ".json")
signal.pause()
"""
SCENES = held_scenes(4, 6, seed=7100)


def load():
    torch.set_num_threads(1)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(TINY_WORLD, dtype=torch.float32).eval()
    return model, VideoLLMMoDProcessor.from_pretrained(TINY_WORLD)


def test_session_killed_and_restored_says_the_same(tmp_path):
    """Two streams of a pool are saved after every frame, and the process is killed at any moment, even during a save.
    The saved files are complete, and continue like an undisturbed session."""
    rng = random.Random()  # wherever it is killed, the saved file must be complete
    code = WATCHES_UNTIL_KILLED.format(tests=[str(ROOT / "tests"), str(ROOT / "tests" / "helpers")])
    moment = (str(rng.randint(8, len(SCENES) - 5)), str(rng.uniform(0, 0.2)))  # a frame, and seconds after it
    process = ForkedProcess([sys.executable, "-c", code, tmp_path, *moment])
    assert process.wait() == -signal.SIGKILL
    model, processor = load()
    pool, said = StreamPool(model, processor), {}
    for number, policy in enumerate(("window", "router")):
        session = StreamingSession.load(tmp_path / str(number), model, processor)
        frames, events = json.loads((tmp_path / f"{number}.json").read_text())
        assert session.stats.frames - frames in (0, 1)  # killed between saving the session and the notes
        stream = pool.join(session)
        if session.stats.frames < len(SCENES):
            stream.push(SCENES[session.stats.frames :])
        said[stream] = (policy, session.stats.frames, events)
    rest = pool.run()
    for stream, (policy, frames, events) in said.items():
        session = model.stream(processor, max_cached_frames=8, cache_policy=policy)
        expected = [[event.time, event.text] for event in session.push(SCENES)]
        own = [[event.time, event.text] for who, event in rest if who is stream]
        assert own == [event for event in expected if event[0] >= frames / 2]
        assert events == [event for event in expected if event[0] < frames / 2][: len(events)]
        assert expected
