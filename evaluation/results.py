"""Results of single streams in a JSONL file that processes append to, so that a run that was killed can go on.

The first line says what the results are of; each other line is `{"index": int, ...}`, of one stream.
"""

import fcntl
import json
from pathlib import Path


class Results:
    """
    Args:
        path (`Path`, *optional*): of the file; without one the results are in memory only.
        settings (`dict`): what they are of.

    Attributes:
        done (`dict[int, dict]`): results by the stream's index.

    Raises:
        `ValueError`: if the file holds other things.
    """

    def __init__(self, path: Path | None, settings: dict):
        self.path, self.settings, self.done = path, settings, {}
        if path is None or not path.exists():
            return
        first, *rest = path.read_bytes().split(b"\n")
        if not rest and self._header.startswith(first):  # a process was killed before the first line was whole
            return
        made = (parsed(first) or {}).get("settings")
        if not isinstance(made, dict):
            raise ValueError(f"{path} holds no results of `videollm-mod evaluate`; give another `--json`")
        if made != settings:
            names = [name for name in {**made, **settings} if made.get(name) != settings.get(name)]
            what = "; ".join(f"{name} was {made.get(name)}, is {settings.get(name)}" for name in names)
            raise ValueError(f"{path} holds results of another run: {what}. Remove it, or give another `--json`")
        for line in rest:
            result = parsed(line)
            if result is not None and isinstance(result.get("index"), int):
                self.done.setdefault(result["index"], result)

    @property
    def _header(self) -> bytes:
        return json.dumps({"settings": self.settings}, ensure_ascii=False).encode()

    def begin(self) -> None:
        """Write the first line if there is none; one process of all does."""
        if self.path is not None and not (self.path.exists() and b"\n" in self.path.read_bytes()):
            self.path.write_bytes(self._header + b"\n")

    def add(self, results: list[dict]) -> None:
        """Of streams that went through the model together."""
        new = [result for result in results if result["index"] not in self.done]
        self.done |= {result["index"]: result for result in new}
        if self.path is not None:
            self._append(new)

    def _append(self, values: list[dict]) -> None:
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        with open(self.path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a process was killed while it wrote
                    text = "\n" + text
            file.write(text.encode())
            file.flush()


def parsed(line: bytes) -> dict | None:
    try:
        value = json.loads(line)
    except ValueError:  # also of a line that was cut within a character
        return None
    return value if isinstance(value, dict) else None
