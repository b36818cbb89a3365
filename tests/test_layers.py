"""Modules import each other in one direction, along the layers that `docs/architecture.md` states."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from fresh_process import ROOT

PACKAGE = "videollm_mod"
TABLE = ROOT / "docs" / "architecture.md"


@cache
def modules(root: Path = ROOT) -> dict[str, str]:
    """Each module of the package, in dots, and its file, relative to the root."""
    inits = [file for depth in ("[!.]*", "[!.]*/*") for file in root.glob(f"{depth}/__init__.py")]
    folders = [file.parent for file in inits if file.relative_to(root).parts[0] not in ("tests", "build")]
    files = [file.relative_to(root) for folder in (root, *folders) for file in folder.glob("*.py")]
    return {".".join((PACKAGE, *file.with_suffix("").parts)).removesuffix(".__init__"): str(file) for file in files}


def imports(file: str, source: str, known: dict[str, str]) -> set[str]:
    """The files of the package that a file imports, also inside functions, but not for type checkers alone."""
    package = [PACKAGE, *Path(file).parent.parts]
    found, statements = set(), [ast.parse(source)]
    while statements:
        node = statements.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            statements += node.orelse
            continue
        statements += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            names = {f"{name}.{alias.name}" for alias in node.names}
            found |= {full if full in known else name for full in names}
    return {known[name] for name in found if name in known} - {file}


@cache
def graph() -> dict[str, set[str]]:
    return {file: imports(file, (ROOT / file).read_text(encoding="utf-8"), modules()) for file in modules().values()}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The files of a circle, the first of them again at the end; empty if there is none."""
    done = set()

    def search(file: str, path: list[str]) -> list[str]:
        if file in path:
            return [*path[path.index(file) :], file]
        if file in done:
            return []
        found = next(filter(None, (search(other, [*path, file]) for other in sorted(graph[file]))), [])
        done.add(file)
        return found

    return next(filter(None, (search(file, []) for file in sorted(graph))), [])


def layers(text: str) -> list[list[str]]:
    """The entries of each row of the table: a file, a folder with a slash, or `*.py` for all other files of the
    root."""
    section = text.split("## Layers")[1].partition("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| (`[^|]+`) \|", section, re.M)
    return [re.findall(r"`([^`]+)`", row) for row in rows]


def entry_of(file: str, entries: list[str]) -> str | None:
    folder = f"{Path(file).parent}/" if "/" in file else "*.py"
    return next((entry for entry in (file, folder) if entry in entries), None)


def against_layers(graph: dict[str, set[str]], layers: list[list[str]]) -> list[str]:
    """Every import of a higher layer, or of another folder of the same layer, in words."""
    level = {entry: number for number, row in enumerate(layers) for entry in row}
    wrong = []
    for file, others in graph.items():
        own = level[entry_of(file, level)]
        for other in others:
            above = level[entry_of(other, level)] - own
            if above > 0 or (above == 0 and Path(other).parent != Path(file).parent):
                wrong.append(f"{file} imports {other}")
    return sorted(wrong)


def test_no_modules_import_each_other_in_a_circle():
    assert circle_in(graph()) == []


def test_every_module_has_a_layer():
    entries = [entry for row in layers(TABLE.read_text(encoding="utf-8")) for entry in row]
    assert len(set(entries)) == len(entries) > 10
    assert [file for file in graph() if entry_of(file, entries) is None] == []
    assert set(entries) == {entry_of(file, entries) for file in graph()}


def test_imports_follow_the_layers():
    assert against_layers(graph(), layers(TABLE.read_text(encoding="utf-8"))) == []


SOURCE = """
from typing import TYPE_CHECKING
from . import beside
from .deep import name
if TYPE_CHECKING:
    from ..only_types import Name
else:
    import videollm_mod.otherwise
def function():
    from ..data.lazy import name
    from .. import root, value
"""


def test_all_kinds_of_imports_are_found():
    names = ("room.beside", "room.deep", "only_types", "otherwise", "data.lazy", "root")
    known = {f"{PACKAGE}.{name}": name.replace(".", "/") + ".py" for name in names} | {PACKAGE: "__init__.py"}
    found = {"room/beside.py", "room/deep.py", "otherwise.py", "data/lazy.py", "root.py", "__init__.py"}
    assert imports("room/file.py", SOURCE, known) == found


@pytest.mark.parametrize(
    "graph, circle",
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": set(), "b": {"a", "d"}, "c": {"b"}, "d": {"c"}}, ["b", "d", "c", "b"]),
    ],
)
def test_circles_are_found(graph, circle):
    assert circle_in(graph) == circle


def test_imports_of_higher_layers_are_found():
    rows = layers(
        "## Layers\n\n| layer | modules | x |\n| --- | --- | --- |\n| a | `*.py` | x |\n| b | `b/`, `c/` | x |\n"
    )
    assert rows == [["*.py"], ["b/", "c/"]]
    graph = {"a.py": {"b/x.py"}, "b/x.py": {"a.py", "b/y.py", "c/z.py"}, "b/y.py": set(), "c/z.py": {"a.py"}}
    assert against_layers(graph, rows) == ["a.py imports b/x.py", "b/x.py imports c/z.py"]


def bound(body: list[ast.stmt]) -> set[str]:
    """The names that a module binds."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
            for block in ("body", "orelse", "finalbody"):
                names |= bound(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                names |= bound(handler.body)
    return names


def missing_names(file: str, source: str, known: dict[str, str], names_of) -> list[str]:
    """The names that a file imports from modules of the package that do not bind them."""
    package, found = [PACKAGE, *Path(file).parent.parts], []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name in known and "__getattr__" not in (names := names_of(known[name])):
                others = (alias.name for alias in node.names if f"{name}.{alias.name}" not in known)
                found += [f"{file}: {name}.{other}" for other in others if other not in names]
    return found


@cache
def names_of(file: str) -> frozenset[str]:
    return frozenset(bound(ast.parse((ROOT / file).read_text(encoding="utf-8")).body))


def test_every_name_that_is_imported_exists():
    """Scripts of `benchmarks` run rarely, and a type checker does not see them."""
    known, wrong = modules(), []
    for file in known.values():
        wrong += missing_names(file, (ROOT / file).read_text(encoding="utf-8"), known, names_of)
    assert not wrong
    source = "from .sight import FPS, narrated\nfrom . import sight, gone\nfrom videollm_mod.routing import nothing"
    assert missing_names("benchmarks/new.py", source, known, names_of) == [
        "benchmarks/new.py: videollm_mod.benchmarks.sight.narrated",
        "benchmarks/new.py: videollm_mod.benchmarks.gone",
        "benchmarks/new.py: videollm_mod.routing.nothing",
    ]
