"""The bundled checkpoint and its controls on stand-ins of the field's benchmarks, polled and streamed.

    python -m videollm_mod.benchmarks.world_benchmarks --folder world

`world_items` writes the files of each benchmark in its published schema, `videollm-mod prepare` reads them, and
`videollm-mod evaluate` runs the model. Results, one table and one plot go to `benchmarks/results`; a run that was
stopped continues from what is in `--folder`.

The checkpoint has learned neither letters nor official prompts, so questions stand alone, without what these prompts
say around them. It has not learned yes and no either, so what is polled so fails. The official reading of its answers
is that of letters in words, and means nothing; the strict reading takes an option's text for its letter, and is the
figure. Where a judge is needed, it is a server that compares texts exactly.
"""

import argparse
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ..bench.record import RESULTS, commit, enter, write
from ..data.benchmark_items import Item, Poll, read_items, write_items
from ..data.files import write_whole
from ..data.prepare_benchmarks import prepare_benchmark
from ..evaluation.benchmark_table import table_of
from ..evaluation.evaluate import evaluate
from ..evaluation.options import EvaluateOptions
from .world_items import CLIPS, MAKERS, World

COMMAND = "python -m videollm_mod.benchmarks.world_benchmarks --folder world"  # and `--clips`, if it was given
SHORT = {"ovo-bench": "ovo", "proactivevideoqa": "pauc", "omnimmi-pa": "omnimmi", "livesports-3k": "livesports"}
PROTOCOLS = ("poll", "stream")
COLOURS = {"poll": "tab:gray", "stream": "tab:blue"}
FIGURES = {"ovo": "strict", "streamingbench": "strict", "pauc": "official"}  # in the summary, and by which reading
JUDGED = ("proactivevideoqa", "omnipro", "livesports-3k")
# what an official prompt holds -> the same in few words; of several questions in a prompt the last one is asked
OWN_WORDS = {
    r"Question: (.*)\n+(?:Options:|The answer is:)": "{}",
    r"answer the following question: (.*)\n": "{}",  # OVO-Bench counts,
    r"one step from the whole procedures: \n(.*)\n": "{} Yes or no?",  # asks for a step,
    r"i\.e\. the end of the video\.\n(.*)\n": "{} Can you? Yes or no?",  # and for enough to answer
    r"describes what has just happened": "What happened last?",  # OmniPro narrates
    r'The user asked:\s+"(.*)"': "{}",
    r"^Listen carefully.*\n(.*)": "{}",
}
PORT = 18765  # of the judge, always the same, so that a stopped run can continue


def in_own_words(item: Item) -> Item:
    """An item whose questions stand alone, without the official words around them."""

    def bare(poll: Poll) -> Poll:
        for pattern, words in OWN_WORDS.items():
            if found := list(re.finditer(pattern, poll.text)):
                return replace(poll, text=words.format(*found[-1].groups()))
        return poll

    return replace(item, polls=tuple(map(bare, item.polls)), stream=bare(item.stream))


def verdict(prompt: str) -> str:
    """What a judge says that compares texts exactly."""
    if pair := re.search(r"Ground Truth Answer: (.*)\nPredicted Answer: (.*)", prompt, re.DOTALL):
        return "3" if pair[1] == pair[2] else "2" if pair[1] in pair[2] else "1"
    if pair := re.search(r"what actually happened\): (.*)\n\nModel's prediction: (.*)\n\nRate", prompt, re.DOTALL):
        return json.dumps({"score": 5 if pair[1] == pair[2] else 3 if pair[1] in pair[2] else 1})
    first, second, human = re.findall(r"---\n(.*?)\n-{10}", prompt, re.DOTALL)
    near = [SequenceMatcher(None, text.split(), human.split()).ratio() for text in (first, second)]
    return f"Commentary {'A' if near[0] > near[1] else 'B'} is better aligned with the human commentary"


def judge_exactly(request: dict) -> str:
    """The answer of a judge to a request of chat completions."""
    (part,) = request["messages"][-1]["content"]
    return verdict(part["text"])


@contextmanager
def serve_chats(reply: Callable[[dict], Any], port: int = 0) -> Iterator[str]:
    """An OpenAI-compatible server that answers requests by the text of `reply`, or by another response of FastAPI;
    gives its address."""
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/v1/chat/completions")
    def complete(request: dict):
        content = reply(request)
        if not isinstance(content, str):
            return content
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        fields = {"id": "chat", "object": "chat.completion", "created": int(time.time()), "model": request["model"]}
        return {**fields, "choices": [choice]}

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise OSError(f"the server cannot listen on port {port}")
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


def prepare(world: World, benchmark: str) -> Path:
    """The items of a stand-in, which the reader of the published files has read."""
    path = world.folder / f"{benchmark}.jsonl"
    baseline = world.folder / "baseline.jsonl" if benchmark == "livesports-3k" else None
    prepare_benchmark(benchmark, MAKERS[benchmark](world), world.folder / "videos", path, baseline=baseline)
    write_items(path, map(in_own_words, read_items(path)))
    return path


def run(items: Path, benchmark: str, protocol: str, judge: str, command: str) -> dict:
    options: dict = {"judge": judge, "judge_model": "exact"} if benchmark in JUDGED else {}
    file = items.with_name(f"world_{SHORT.get(benchmark, benchmark)}_{protocol}.json")
    options |= {"benchmark": items, "protocol": protocol, "json": file, "device": "cpu"}
    result = evaluate(EvaluateOptions(**options), command)
    assert result is not None
    return {**result, "commit": commit()}


def figures(name: str, result: dict) -> dict[str, float]:
    """What `summary.json` gets of a result; the controls stand beside it in its source."""
    if name not in FIGURES or (name == "pauc" and result["protocol"] == "poll"):
        return {}
    figure = "world_pauc" if name == "pauc" else f"world_{name}_{result['protocol']}"
    return {figure: result["summary"]["model"][FIGURES[name]]}


def report() -> None:
    """Write one table and one plot of all results that are there."""
    names = [f"world_{SHORT.get(name, name)}" for name in MAKERS]
    files = [RESULTS / f"{name}_{protocol}.json" for name in names for protocol in PROTOCOLS]
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()}
    head = f"<!-- {COMMAND} -->\n\n"
    write_whole(RESULTS / "world_benchmarks.md", head + "\n".join(map(table_of, results.values())))
    plot(results, RESULTS / "world_benchmarks.png")


def plot(results: dict[str, dict], path: Path) -> None:
    """The overall scores of all stand-ins: one panel each, a bar for each row, protocol and reading."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name.rpartition("_")[0] for name in results))
    figure = Figure(figsize=(13, 2.9 * ((len(names) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(names) + 1) // 2, 2, squeeze=False).flatten()
    ways = [(protocol, reading) for protocol in PROTOCOLS for reading in ("official", "strict")]
    for panel, name in zip(panels, names, strict=False):
        summaries = {way: results.get(f"{name}_{way}", {}).get("summary", {}) for way in PROTOCOLS}
        rows = list(dict.fromkeys(row for summary in summaries.values() for row in summary))
        for number, (protocol, reading) in enumerate(ways):
            values = [summaries[protocol].get(row, {}).get(reading) or 0 for row in rows]
            places = [index + 0.2 * (number - 1.5) for index in range(len(rows))]
            style = {"color": COLOURS[protocol], "alpha": 0.45 if reading == "official" else 1.0}
            panel.bar(places, values, 0.19, label=f"{protocol}, {reading}", **style)
        panel.set_xticks(range(len(rows)), rows, rotation=30, ha="right", fontsize=8)
        panel.set(ylim=(0, 105), ylabel="overall score, %", title=name.removeprefix("world_"))
    for panel in panels[len(names) :]:
        panel.axis("off")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for clips, items and what is known so far")
    parser.add_argument("--clips", type=int, default=CLIPS, help="clips of each of three levels")
    parser.add_argument("--benchmarks", nargs="+", default=list(MAKERS), choices=MAKERS)
    given = parser.parse_args()
    world = World(given.folder, given.clips)
    command = COMMAND if given.clips == CLIPS else f"{COMMAND} --clips {given.clips}"
    with serve_chats(judge_exactly, PORT) as judge:
        for benchmark in given.benchmarks:
            items, short = prepare(world, benchmark), SHORT.get(benchmark, benchmark)
            for protocol in PROTOCOLS:
                result = run(items, benchmark, protocol, judge, command)
                write(file := RESULTS / f"world_{short}_{protocol}.json", result)
                enter(file, figures(short, result), command)
    report()


if __name__ == "__main__":
    main()
