"""How soon the Space speaks, and how many visitors it can serve, on this machine with the bundled checkpoint.

    python -m videollm_mod.benchmarks.space_load

The Space runs in a process of its own, as `make space` starts it. Visitors in headless Chromium, one after the other,
start an example whose first event is due 0.5 s after its beginning. Then four visitors at once each watch a stream as
fast as the server allows, narrations included; a page that plays a video requests 2 frames per second.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

from ..bench.record import summarise, surroundings, write_result

ROOT = Path(__file__).resolve().parent.parent
SEEDS = range(201, 205)


def start(visitors: int) -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    environment["VIDEOLLM_MOD_RUNNING"] = str(visitors)
    process = subprocess.Popen([sys.executable, ROOT / "space_app" / "app.py"], env=environment)
    url, end = f"http://127.0.0.1:{port}/", time.monotonic() + 180
    while True:
        try:
            urlopen(f"{url}about.json").read()
            return process, url
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.2)


# runs in the page: seconds from the click to the picture with the first words
MEASURE = """() => new Promise((done) => {
  const pressed = performance.now();
  new MutationObserver((changes, observer) => {
    if (!document.querySelector("#log li")) return;
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => done((performance.now() - pressed) / 1000)));
  }).observe(document.getElementById("log"), { childList: true });
  document.getElementById("start").click();
})"""


def first_event(url: str, rounds: int) -> list[float]:
    """Seconds from the click on start to the first words in the page, for one new visitor after the other."""
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(rounds):
            page = browser.new_page()
            page.goto(url)
            page.wait_for_selector("html[data-ready]")
            seconds.append(page.evaluate(MEASURE))
            page.click("#stop")
            page.close()
        browser.close()
    return seconds


def call(url: str, name: str, *data):
    body = json.dumps({"data": data}).encode()
    request = Request(f"{url}gradio_api/run/{name}", body, {"Content-Type": "application/json"})
    return json.load(urlopen(request))["data"][0]


def watch(url: str, seed: int, compare: bool) -> float:
    """Frames per second of one visitor's whole stream, narrations included."""
    clip = call(url, "choose", "scene", seed, "")["clip"]
    options = {"compare": compare, "instruction": "Narrate what happens."}
    begin = time.perf_counter()
    view, frames = call(url, "begin", clip, options), 0
    while not view["over"]:
        view = call(url, "advance", view["stream"], 1e9, options, {}, None)
        frames = len(view["lanes"]["mod"]["frames"])
    return frames / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    command = f"python -m videollm_mod.benchmarks.space_load --rounds {rounds}"
    process, url = start(len(SEEDS))
    try:
        load_before = os.getloadavg()[0]
        first = first_event(url, rounds)
        together = {}
        for compare in (False, True):
            together["beside the dense model" if compare else "alone"] = runs = []
            for _ in range(rounds):
                with ThreadPoolExecutor(len(SEEDS)) as pool:
                    runs.append(list(pool.map(lambda seed: watch(url, seed, compare), SEEDS)))  # noqa: B023
    finally:
        process.terminate()
        process.wait()
    slowest = {name: [min(run) for run in runs] for name, runs in together.items()}
    result = {
        "command": command,
        **surroundings("gradio", "playwright"),
        "load_of_the_machine_before": load_before,
        "niceness": os.nice(0),  # negative if other programs ran at the same time
        "first_event_seconds": first,
        "first_event_is_due_after_seconds": 0.5,
        "frames_per_second_of_each_of_4_visitors": together,
        "slowest_of_4_visitors": slowest,
    }
    path = write_result("space_load", result)
    figures = {
        "space_first_event_s": statistics.median(first),
        "space_4_visitors_min_fps": statistics.median(slowest["beside the dense model"]),
    }
    for name, value in figures.items():
        summarise(name, round(value, 2), f"benchmarks/results/{path.name}", command)
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
