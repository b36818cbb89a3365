"""The repository as a Python package: the contents of its wheel, which works outside the repository."""

import configparser
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fresh_process import ROOT, run_fresh
from packaging.version import Version
from repository import CHECKPOINT_FILES

import videollm_mod


def command(*arguments: object, **options) -> str:
    process = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, **options)
    assert process.returncode == 0, f"{arguments}\n{process.stdout}\n{process.stderr}"
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the files that git tracks or would add, in a folder with another name."""
    base = tmp_path_factory.mktemp("wheel")
    listed = command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            copy = base / "clone" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    command(*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", base / "dist", base / "clone")
    (wheel,) = (base / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder with only the installed wheel."""
    site = tmp_path_factory.mktemp("site")
    command(
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "install",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        site,
        wheel,
    )
    return site


def test_wheel_holds_code_and_checkpoint_but_no_tests_and_benchmarks(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("videollm_mod/")}
    code = {file.name for file in ROOT.glob("*.py")}
    expected = {f"videollm_mod/{name}" for name in (*code, *CHECKPOINT_FILES, "py.typed")}
    assert expected <= names
    assert not {name.split("/")[1] for name in names} & {"benchmarks", "build", "tests"}


def test_every_package_folder_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = (file.parent.relative_to(ROOT) for depth in ("*", "*/*") for file in ROOT.glob(f"{depth}/__init__.py"))
    others = re.compile(r"\.|(benchmarks|tests|build)(/|$)")  # hidden folders hold environments
    found = {".".join(folder.parts) for folder in folders if not others.match(str(folder))}
    assert sorted(listed) == sorted(["videollm_mod", *(f"videollm_mod.{name}" for name in found)])


def test_public_names_are_importable():
    for name in videollm_mod.__all__:
        assert getattr(videollm_mod, name) is not None
    assert set(videollm_mod.__all__) <= set(dir(videollm_mod))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        videollm_mod.nothing  # noqa: B018


def use_installed_package(site: str) -> dict:
    import contextlib
    import io

    import videollm_mod

    home = Path(videollm_mod.__file__).parent
    assert home == Path(site) / "videollm_mod", home
    assert "torch" not in sys.modules, "importing the package waits for torch"

    import torch

    from videollm_mod.commands import cli

    processor = videollm_mod.VideoLLMMoDProcessor.from_pretrained(home)
    model = videollm_mod.VideoLLMMoDForConditionalGeneration.from_pretrained(home).eval()
    stream = {"role": "stream", "content": [{"type": "video", "video": torch.zeros(2, 3, 32, 48, dtype=torch.uint8)}]}
    inputs = processor.apply_chat_template([stream], tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(["bench", "plan"])
    assert cli.main(["bench", "plan", "--results", str(ROOT / "benchmarks" / "results"), "--output", "plan.md"]) == 0
    tokens = {"tokens": logits.shape[1], "given": inputs["input_ids"].shape[1]}
    plan = {"without": [code, out.getvalue(), err.getvalue()], "page": Path("plan.md").read_text(encoding="utf-8")}
    return {"finite": bool(logits.isfinite().all()), "plan": plan} | tokens


@pytest.fixture(scope="module")
def used(site, tmp_path_factory) -> dict:
    """What `use_installed_package` found, in a new process away from the repository."""
    folder = tmp_path_factory.mktemp("used") / "process"
    return run_fresh(use_installed_package, folder, site, new=True, PYTHONPATH=str(site))


def test_installed_wheel_works_away_from_the_repository(used):
    assert used["finite"]
    assert used["tokens"] == used["given"]


def test_console_script(site, tmp_path):
    printed = command(site / "bin" / "videollm-mod", "--version", cwd=tmp_path, env={"PYTHONPATH": str(site)})
    assert printed == f"videollm-mod {videollm_mod.__version__}\n"


def test_installed_bench_plan_asks_for_results(used):
    """Only a checkout has results of its own."""
    code, out, err = used["plan"]["without"]
    assert code == 2 and out == "" and err.startswith("error: --results must be given")
    assert used["plan"]["page"] == (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")


def test_lower_bounds_are_the_oldest_releases_that_are_tested():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = {line.strip().lower() for text in needed for line in text.splitlines() if line.strip()}
    plain = [re.sub(r"\[.*\]", "", line.split(",")[0]) for line in lines]  # without the extras of packages
    bounds = {tuple(line.split(">=")) for line in plain if ">=" in line}
    pins = re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8"), re.M)
    assert {name for name, _ in bounds} == {name for name, _ in pins}
    for name, bound in bounds:
        tested = dict(pins)[name]
        assert Version(tested).release[: len(Version(bound).release)] == Version(bound).release, name
    # for developers
    tools = {
        "httpx",
        "hypothesis",
        "mkdocs-material",
        "mypy",
        "playwright",
        "pytest",
        "pytest-xdist",
        "ruff",
        "transformers-mlinter",
    }
    assert {line for line in lines if ">=" not in line} == tools
