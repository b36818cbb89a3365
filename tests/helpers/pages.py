"""The pages that people read, and their code blocks."""

import ast
import importlib
import re
from pathlib import Path

from fresh_process import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PYTHON = re.compile(r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```python\n(?P<code>.*?)^```", re.M | re.S)
NOT_RUN = re.compile(r"not run: needs (a camera|a GPU|a network)|run by tests/test_\w+\.py: .*")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def python_blocks(page: Path) -> list[tuple[str | None, str]]:
    """`(note, code)` of each; the note is a comment in the line above, which says why the block is not run."""
    return [(match["note"], match["code"]) for match in PYTHON.finditer(text_of(page))]


def run_blocks(page: Path, names: dict, replaced: dict[str, str] | None = None) -> None:
    """Run the Python blocks of a page, one after the other, in one namespace. A block with a note is compiled, and
    what it imports is looked up."""
    for note, code in python_blocks(page):
        for old, new in (replaced or {}).items():
            code = code.replace(old, new)
        compiled = compile(code, str(page), "exec")
        if note is None:
            exec(compiled, names)
        else:
            assert NOT_RUN.fullmatch(note), f"{page}: {note}"
            check_imports(code)


def check_imports(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)


def command_lines(page: Path) -> list[str]:
    """Each line of the shell blocks that runs `videollm-mod`, from that word on, without comments and pipes."""
    shell = "\n".join(re.findall(r"^```bash\n(.*?)^```", text_of(page), re.M | re.S))
    found = re.findall(r"videollm-mod ([^|\n]*)", shell.replace("\\\n", ""))
    return [re.sub(r" +#.*", "", line).strip() for line in found]
