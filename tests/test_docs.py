"""The pages of docs/: their snippets run, their links lead somewhere, and what is generated is not stale."""

import contextlib
import io
import re
import shlex
import sys
from xml.etree import ElementTree

import pytest
import yaml
from fresh_process import ROOT
from media_servers import FileServer
from pages import PAGES, command_lines, python_blocks, run_blocks, text_of
from video_files import moving, write_video

from videollm_mod.commands.cli import build_parser
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_clip import write_clip

DOCS = ROOT / "docs"
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_PYTHON = [name for name in NAMES if name.startswith("docs/") and python_blocks(ROOT / name)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where snippets run: a folder with a video."""
    write_clip(tmp_path / "video.mp4", seed=3)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def camera(tmp_path):
    """The address of an endless stream."""
    server = FileServer(write_video(tmp_path / "a.ts", moving(40, 48, 64), "mpeg2video", fps=20), rounds=100)
    yield f"{server.url}/loop"
    server.close()


@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if name != "docs/tutorial.md"])
def test_snippets_run(name, folder, camera, checkpoint, capsys):
    model, processor = checkpoint
    names = {"repo": str(ROOT), "model": model, "processor": processor}
    shorter = {"frame.time > 60": "frame.time > 1", "max_steps=2": "max_steps=1, per_device_train_batch_size=1"}
    shorter["seed=4242"] = "seed=258"
    run_blocks(ROOT / name, names, {"rtsp://camera/stream": camera, **shorter})


def test_the_tutorial_runs_from_top_to_bottom(folder):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_blocks(DOCS / "tutorial.md", {}, {'repo = "."': f"repo = {str(ROOT)!r}"})
    narrations = world_stream(4242).narrations
    assert all(f"{time:5.1f} s  {text}\n" in printed.getvalue() for time, text in narrations)
    assert f"\n{narrations[-1][1]}\ncache: " in printed.getvalue()  # what happened last


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist_with_their_options(name):
    """Every `videollm-mod` line parses; nothing is run."""
    for line in command_lines(ROOT / name):
        arguments = shlex.split(line)
        if arguments and arguments != ["demo"]:
            build_parser().parse_args(arguments)
    targets = set(re.findall(r"`make ([a-z-]+)[` ]|^make ([a-z-]+)", text_of(ROOT / name), re.M))
    makefile = text_of(ROOT / "Makefile")
    assert all(re.search(rf"^{one or other}:", makefile, re.M) for one, other in targets)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*NAMES, "space_app/README.md", "examples/own_videos/README.md", "media/README.md"])
def test_links_lead_to_files_and_headings(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{name}: {link}"
        assert not anchor or anchor in anchors(text_of(target)), f"{name}: {link}"


@pytest.mark.parametrize("name", NAMES)
def test_files_that_pages_name_exist(name):
    """Every `folder/file.py` and so on in a table or sentence."""
    if name == "CHANGELOG.md":
        return  # names files that are gone
    for path in re.findall(r"`((?:[a-z_]+/)*[a-z_0-9]+\.(?:py|yaml|ipynb|jinja))`", text_of(ROOT / name)):
        assert list(ROOT.glob(path)), f"{name}: {path}"


def test_architecture_names_every_root_file():
    table = text_of(DOCS / "architecture.md").partition("## Where things are")[2]
    assert not [file.name for file in ROOT.glob("*.py") if f"`{file.name}`" not in table and file.stem != "__init__"]


def test_every_page_is_in_the_navigation():
    navigation = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))["nav"]

    def pages(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(part)

    found = list(pages(navigation))
    assert sorted(found) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    linked = text_of(ROOT / "README.md")
    assert all(f"](docs/{page})" in linked for page in found if page != "index.md")


def test_diagrams_are_drawn_without_a_script(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from sequence_diagram import draw

    sources = re.findall(r"```mermaid\n(.*?)```", "".join(map(text_of, PAGES)), re.DOTALL)
    assert sources
    for source in sources:
        picture = ElementTree.fromstring(draw(source))
        drawn = {element.text for element in picture.iter() if element.tag.endswith("text")}
        told = re.findall(r">>\w+: (.+)|Note over [\w,]+: (.+)|participant \w+ as (.+)", source)
        assert {"".join(each) for each in told} <= drawn
    for wrong in ("graph TD", "sequenceDiagram\n  alt x", "sequenceDiagram\n  end"):
        with pytest.raises(ValueError, match="sequence diagrams"):
            draw(wrong)


def test_the_reference_of_the_command_line_is_not_stale(monkeypatch):
    """`python docs/command_line.py` makes it anew."""
    monkeypatch.syspath_prepend(DOCS)
    import command_line

    assert text_of(command_line.PAGE) == command_line.page()
    del sys.modules["command_line"]
