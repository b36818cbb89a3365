"""Read thousands of damaged files to their ends: videos in several containers, JSONL files and saved sessions.

    python -m videollm_mod.benchmarks.fuzz --cases 2400

Separate processes read the files, with limits on memory and on the time per case. A case fails if it raises an error
other than the two that name bad input, if the process dies, if it takes too long, if memory runs out, or if memory is
not released.
"""

import argparse
import collections
import ctypes
import gc
import itertools
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from videollm_mod.bench.record import RESULTS, summarise, surroundings, write_result

SECONDS = 60.0  # per case; an intact file takes less than one
MEMORY = 3 * 2**30  # bytes of address space beyond what the checkpoint and torch take
GROWTH = 16 * 2**20  # bytes from the first half of a process's cases to the second

sys.path.append(str(RESULTS.parent.parent / "tests" / "helpers"))


def resident() -> int:
    """Resident memory in bytes, after free memory was returned to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def worker(connection, folder: str) -> None:
    """Read the cases whose numbers arrive, until None. Answer each with its outcome and the resident memory."""
    import torch
    from damaged_files import read_case, write_case

    from videollm_mod.loading.checkpoint import load_checkpoint
    from videollm_mod.narration.narrate import quiet_decoder

    quiet_decoder()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(device="cpu")
    originals = sorted(Path(folder).glob("originals/*.*"))
    own = Path(tempfile.mkdtemp(dir=folder))
    (own / "plain.mp4").write_bytes((Path(folder) / "originals" / "plain.mp4").read_bytes())  # the JSONL names it
    space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (space + MEMORY, space + MEMORY))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 -- progress bars
    connection.send("ready")
    while (number := connection.recv()) is not None:
        path = write_case(number, originals, own)
        try:
            outcome = read_case(path, *checkpoint)
        except MemoryError as error:
            outcome = f"memory: {error}"
        except BaseException:
            outcome = f"traceback: {traceback.format_exc()}"
        connection.send((path.name, outcome, resident()))


class Slot:
    """A process that is restarted whenever it dies or takes too long."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None
        self.held: list[list[int]] = []  # memory after each case, of each process

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=worker, args=(theirs, str(self.folder)), daemon=True)
        self.process.start()
        theirs.close()
        assert self.connection.recv() == "ready"
        self.held.append([])

    def run(self, number: int) -> tuple[str, str]:
        if self.process is None:
            self.start()
        try:
            self.connection.send(number)
            if self.connection.poll(SECONDS):
                name, outcome, held = self.connection.recv()
                self.held[-1].append(held)
                return name, outcome
            outcome = "hang"
        except (EOFError, OSError):
            outcome = "crash"
        self.process.kill()
        self.process.join()
        self.process = None
        return "?", outcome

    def growth(self) -> int:
        """Growth in bytes from the first to the second half of the cases of its longest process, without the first
        20."""
        held = max(self.held, key=len, default=[])[20:]
        half = len(held) // 2
        return round(sum(held[half:]) / max(1, len(held) - half) - sum(held[:half]) / max(1, half)) if half else 0


def main(cases: int, first: int, processes: int) -> None:
    from damaged_files import write_originals
    from tqdm import tqdm

    from videollm_mod.loading.checkpoint import load_checkpoint

    outcomes, failures = collections.defaultdict(collections.Counter), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "originals").mkdir()
        write_originals(folder / "originals", *load_checkpoint(device="cpu"))
        numbers, bar = itertools.count(first), tqdm(total=cases, unit="case", disable=None)
        slots = [Slot(folder) for _ in range(processes)]

        def work(slot: Slot) -> None:
            while (number := next(numbers)) < first + cases:
                file, outcome = slot.run(number)
                kind, _, detail = outcome.partition(":")
                outcomes[file][kind] += 1
                if kind not in ("read", "refused"):
                    failures.append({"case": number, "file": file, "outcome": kind, "detail": detail.strip()[-1500:]})
                bar.update()

        threads = [threading.Thread(target=work, args=(slot,)) for slot in slots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for slot in slots:
            if slot.process is not None:
                slot.connection.send(None)
                slot.process.join()
    growth = [slot.growth() for slot in slots]
    grown = [value for value in growth if value > GROWTH]
    command = f"python -m videollm_mod.benchmarks.fuzz --cases {cases}"
    result = {
        "what": __doc__.splitlines()[0],
        "command": command,
        **surroundings("av", "safetensors"),
        "limits": {"seconds": SECONDS, "bytes": MEMORY, "growth_bytes": GROWTH},
        "cases": cases,
        "failures": failures,
        "growth_bytes": growth,
        "outcomes": {file: dict(counts) for file, counts in sorted(outcomes.items())},
    }
    source = f"benchmarks/results/{write_result('fuzz', result).name}"
    summarise("fuzz_cases", cases, source, command)
    summarise("fuzz_failures", len(failures) + len(grown), source, command)
    print(f"{cases} cases, {len(failures)} failures, growth of memory in bytes: {growth}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2400)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    main(**vars(parser.parse_args()))
