"""Results of single streams in a JSONL file that all processes append to, so that an interrupted run can be resumed.

The first line has the settings of the run; each other line is `{"index": int, ...}`, the result of one stream.
"""

import fcntl
import json
from pathlib import Path


class Results:
    """
    Args:
        path (`Path`, *optional*): the file; without it, results are only held in memory.
        settings (`dict`): settings of the run.

    Attributes:
        done (`dict[int, dict]`): index of a stream -> its result.

    Raises:
        `ValueError`: if the file holds something else.
    """

    def __init__(self, path: Path | None, settings: dict):
        self.path, self.settings = path, settings
        self.done: dict[int, dict] = {}
        if path is None or not path.exists():
            return
        first, *rest = path.read_bytes().split(b"\n")
        if not rest and self._header.startswith(first):  # interrupted while the first line was written
            return
        before = (parse_line(first) or {}).get("settings")
        if not isinstance(before, dict):
            raise ValueError(f"{path} does not hold results of `videollm-mod evaluate`; give another `--json`")
        if before != settings:
            names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            what = "; ".join(f"{name} was {before.get(name)}, is {settings.get(name)}" for name in names)
            raise ValueError(f"{path} holds results of another run: {what}. Remove it, or give another `--json`")
        for line in rest:
            result = parse_line(line)
            if result is not None and isinstance(result.get("index"), int):
                self.done.setdefault(result["index"], result)

    @property
    def _header(self) -> bytes:
        return json.dumps({"settings": self.settings}, ensure_ascii=False).encode()

    def begin(self) -> None:
        """Write the first line if it is missing. Only the main process calls this."""
        if self.path is not None and not (self.path.exists() and b"\n" in self.path.read_bytes()):
            self.path.write_bytes(self._header + b"\n")

    def add(self, results: list[dict]) -> None:
        """Add the results of a batch."""
        new = [result for result in results if result["index"] not in self.done]
        self.done |= {result["index"]: result for result in new}
        self._append(new)

    def _append(self, values: list[dict]) -> None:
        if self.path is None:
            return
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        with open(self.path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a process was interrupted while it wrote
                    text = "\n" + text
            file.write(text.encode())
            file.flush()


def parse_line(line: bytes) -> dict | None:
    try:
        value = json.loads(line)
    except ValueError:  # includes invalid UTF-8, from a line cut within a character
        return None
    return value if isinstance(value, dict) else None
