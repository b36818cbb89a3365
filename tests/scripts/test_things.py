"""The list of everyday things, the sets that draw them, and the file of their pictures."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from fresh_process import ROOT
from PIL import Image

from videollm_mod.benchmarks import things_names, things_pictures
from videollm_mod.benchmarks.things_names import FEWEST, LIST, WRONG, entries
from videollm_mod.benchmarks.things_photos import fetched, thing_of
from videollm_mod.benchmarks.things_sets import PACKAGES, IconSet, check_licence
from videollm_mod.data.things import PHOTOGRAPHS, SIDE, STYLES, TRAINED, UNKNOWN, UNSEEN, Pictures

THINGS = json.loads(LIST.read_text(encoding="utf-8"))["things"]


def test_list_is_of_everyday_things_that_enough_sets_draw():
    assert 400 <= len(THINGS) <= 500
    assert {*PACKAGES} == {*TRAINED, UNSEEN} and {*STYLES} - {*PACKAGES} == {PHOTOGRAPHS}
    assert [*THINGS] == sorted(THINGS, key=str.lower) and len({name.lower() for name in THINGS}) == len(THINGS)
    icons = [icon for thing in THINGS.values() for icon in thing["icons"]]
    assert len({*icons}) == len(icons)  # no icon has two names
    for name, thing in THINGS.items():
        assert re.fullmatch(r"[A-Za-z][A-Za-z' -]+", name), name
        assert not name.endswith("s") or " of " in name or name.endswith(("ss", "us", "os")), name
        assert not {"cup", "bottle", "flag", "face"} & {*name.split()} or name == "baby bottle"
        assert len(thing["codepoints"]) == len(thing["icons"])
        assert sum(bool(thing.get(style, thing["icons"])) for style in TRAINED) >= FEWEST
    unknown = json.loads(LIST.read_text(encoding="utf-8"))["unknown"]
    assert len(unknown) > 200 and not {*unknown} & {*icons}


def test_page_has_the_figures_of_the_list_and_of_the_measurement():
    page = (ROOT / "docs" / "how-to" / "things.md").read_text(encoding="utf-8")
    assert f"{len(THINGS)} everyday things" in page
    rows = json.loads((ROOT / "benchmarks" / "results" / "things_speed.json").read_text(encoding="utf-8"))["rows"]
    rates = {(row["level"], row["side"]): row["frames_per_second"] for row in rows if row["codec"] == "all"}
    for level in ("things", "things_camera"):
        figures = " | ".join(str(rates[level, side]) for side in (96, 160, 384))
        assert f"| `{level}` | {figures} |" in page
    large = [row for row in rows if (row["level"], row["side"]) == ("things_camera", 384)]
    taken = {row["codec"]: row["ms_per_frame"] for row in large}
    for codec, words in (("none", "without compression"), ("jpeg", "with JPEG"), ("h264", "with H.264")):
        assert f"{taken[codec]:.1f} ms {words}" in page


def test_entries_are_read():
    text = "# one\na, b = two words; c\n# two\nd-e = d;\nf"
    assert entries(text) == {"two words": ["a", "b"], "c": ["c"], "d": ["d-e"], "f": ["f"]}


def test_licences_that_do_not_allow_the_use_are_refused():
    check_licence("noto", "Apache-2.0")
    check_licence(UNSEEN, "CC-BY-SA-4.0")
    for style, licence in (("noto", "CC-BY-SA-4.0"), ("noto", "CC-BY-NC-4.0"), (UNSEEN, "GPL-3.0"), ("other", "MIT")):
        with pytest.raises(ValueError, match=f"the licence of the style '{style}' must be one of .*got '{licence}'"):
            check_licence(style, licence)


@pytest.mark.parametrize(
    "caption, thing",
    [
        ("A “Granny Smith” apple.", "apple"),
        ("A bunch of grapes.", "bunch of grapes"),
        ("Sweet yellow corn.", "ear of corn"),
        ("A ripe, red tomato!", "tomato"),
        ("A peacock (a male peafowl).", "peacock"),
        ("A male black rhino.", "rhinoceros"),
        ("A sea lion.", None),
        ("A silver garbage can.", None),
        ("A pineapple.", "pineapple"),
        ("An abalone.", None),
    ],
)
def test_captions_of_photographs_name_things(caption, thing):
    assert thing_of(caption, [*THINGS]) == thing


def package(folder: Path, style: str, licence: str = "MIT") -> None:
    """The npm package of a style in which every icon is a green disc on a wide canvas."""
    name, _, version = PACKAGES[style].rpartition("@")
    disc = {"body": '<circle cx="12" cy="8" r="6" fill="#0a0"/>'}
    icons = {icon: disc for thing in THINGS.values() for icon in thing.get(style, thing["icons"])}
    content = {
        "info": {"name": "Discs", "author": {"name": "A", "url": "B"}, "license": {"spdx": licence}},
        "icons": {"icons": icons | {"plain": disc}, "aliases": {"other": {"parent": "plain"}}, "width": 32},
        "chars": {f"{number:x}": icon for number, icon in enumerate(icons)},
        "metadata": {"categories": {kind: ["plain"] for kind in things_names.UNKNOWN}},
    }
    with tarfile.open(folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz", "w:gz") as archive:
        for part, value in content.items():
            data = json.dumps(value).encode()
            entry = tarfile.TarInfo(f"package/{part}.json")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_pictures_are_drawn_cropped_and_named(tmp_path, capsys):
    for style in ("noto", UNSEEN):
        package(tmp_path, style)
    output = tmp_path / "few.npz"
    arguments = ["--sets", str(tmp_path), "--output", str(output)]
    arguments += ["--styles", "noto", UNSEEN, "--things", "apple", "owl"]
    with pytest.raises(ValueError, match="the licence of the style 'openmoji' must be one of"):
        package(tmp_path, UNSEEN, "GPL-3.0")
        things_pictures.main(arguments)
    assert not output.exists()
    package(tmp_path, UNSEEN, "CC-BY-SA-4.0")
    things_pictures.main(arguments)
    assert "noto: 2 pictures of 2 things" in capsys.readouterr().out
    found = Pictures.load(output)
    assert found.things == ["apple", "owl"] and found.licences[UNSEEN] == "CC-BY-SA-4.0, Discs by A, B"
    image = found.picture(found.named("noto")["owl"][0])
    assert image.size == (SIDE, SIDE)  # the disc without the canvas around it
    assert (np.asarray(image)[SIDE // 2, SIDE // 2] - np.array([0, 170, 0, 255]) < 9).all()
    with pytest.raises(SystemExit):
        things_pictures.main([*arguments, "nothing"])
    assert "--things must be in things.json, got nothing" in capsys.readouterr().err


def test_missing_clients_give_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"@iconify-json/noto@.* is fetched by npm, which is not installed; or"
    ):
        IconSet.fetch("noto", tmp_path)
    with pytest.raises(FileNotFoundError, match="tuxpaint-stamps-default is fetched by apt-get, which is not inst"):
        fetched(tmp_path)


def test_empty_picture_gives_a_clear_error():
    with pytest.raises(ValueError, match="the picture shows nothing"):
        things_pictures.cropped(Image.new("RGBA", (8, 8)))


def test_names_of_icons_in_other_sets_are_found(tmp_path):
    package(tmp_path, "fxemoji")
    known = IconSet.fetch("fxemoji", tmp_path)
    known.icons["icons"] |= {name: {"body": ""} for name in ("bird", "airplane", "bigdog")}
    assert things_names.icons_of(["eggplant"], known) == ["aubergine"]
    assert things_names.icons_of(["alarm-clock"], known) == ["alarmclock"]
    assert WRONG["fxemoji"] == ("bird", "window")
    assert things_names.icons_of(["bird", "airplane"], known) == ["airplane"]
    assert "other" in known and "none" not in known and known.svg("other") == known.svg("plain")
    assert UNKNOWN not in THINGS
