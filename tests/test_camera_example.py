"""examples/camera.html in headless Chromium, with a fake camera that shows a scene of the procedural world."""

import contextlib
import functools
import http.server
import os
import re
import threading

import pytest
from fresh_process import ROOT, TINY_WORLD
from running_servers import serving, serving_elsewhere
from test_space_browser import AUDIT, PATIENCE, browser, camera_clip, chromium_is_there  # noqa: F401
from waiting import until

from videollm_mod.data.world import world_stream
from videollm_mod.data.world_clip import write_clip
from videollm_mod.serving.store import SessionStore, manifest_content, manifest_name, manifests

KEY = "a-key-for-tests-0123456789"


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def page_url():
    """Where the example is served from, which is another site than the model's."""
    handler = functools.partial(Quiet, directory=str(ROOT / "examples"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def model_server(checkpoint, page_url):
    with serving(checkpoint, keys=(KEY,), origins=(page_url,)) as running:
        yield running


@pytest.fixture
def visit(browser, page_url, model_server):  # noqa: F811
    """`visit(key)`: the page with the address and key filled in."""
    contexts, wrong = [], []

    def visit(key=KEY):
        context = browser.new_context(viewport={"width": 1200, "height": 900}, permissions=["camera"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{page_url}/camera.html")
        page.fill("#server", model_server.url)
        page.fill("#key", key)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def look(page, name: str) -> None:
    if folder := os.environ.get("CAMERA_SCREENSHOTS"):  # for inspection
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_a_camera_is_watched_and_asked_about(visit):
    page = visit()
    page.click("#camera")
    page.wait_for_selector("#start:enabled")
    look(page, "ready")
    page.click("#start")
    page.wait_for_selector("#log li.narration")
    page.fill("#question", "How many objects are there?")
    page.click("#send")
    page.wait_for_function("Number(document.getElementById('watched').textContent) >= 6")
    page.wait_for_selector("#log li.answer")
    page.wait_for_selector("#send:enabled")
    sentences = sorted({text for _, text in world_stream(101).narrations})  # the camera shows them again and again
    said = "[...document.querySelectorAll('#log .narration span')].map(each => each.textContent)"
    page.wait_for_function(f"sentences => {said}.some(text => sentences.includes(text))", arg=sentences)
    assert page.inner_text("#log .answer q") == "How many objects are there?"
    assert page.inner_text("#log .answer span")
    assert page.inner_text("#waiting").isdigit() and page.inner_text("#kept").endswith("%")
    assert 0 <= float(page.get_attribute("#meter", "aria-valuenow")) <= 1
    assert page.get_attribute("#threshold", "style") == "left: 72.5%;"
    for width, scheme in ((1200, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(AUDIT) == []
        look(page, f"{width}-{scheme}")
    page.click("#stop")
    assert page.inner_text("#status") == "Stopped."


def test_a_video_file_is_watched_by_its_own_clock(visit, tmp_path):
    page = visit()
    page.set_input_files("#file", write_clip(tmp_path / "clip.mp4", 111)[0])
    page.click("#start")
    page.wait_for_selector("#log li.narration")
    first = page.inner_text("#log li:last-child time")
    assert re.fullmatch(r"\d+\.\d s", first) and float(first[:-2]) <= page.evaluate("video.currentTime") + 0.1


def test_a_wrong_key_is_explained(visit):
    page = visit(key="another-key-0123456789")
    page.click("#camera")
    page.click("#start:enabled")
    page.wait_for_selector("#status.wrong")
    assert "is the address right, the key" in page.inner_text("#status")
    assert page.is_enabled("#start") and page.is_disabled("#send")


# --- servers that are killed

WATCHED = "Number(document.getElementById('watched').textContent)"
# times of all frames that the page keeps and whose outcome it has shown, and of narrations
TOLD = "journal.filter(each => each.jpeg && each.told && !each.dropped).map(each => each.time)"
NARRATED = "[...document.querySelectorAll('#log .narration time')].map(each => each.textContent)"


@contextlib.contextmanager
def killed_servers(visit, page_url, store, save_seconds: float):
    """A page that streams to a server, and `kill()`, which kills that and starts another one at its address."""
    arguments = [
        "--model",
        str(TINY_WORLD),
        "--store",
        str(store),
        "--save-seconds",
        str(save_seconds),
        "--allow-origin",
        page_url,
    ]
    with contextlib.ExitStack() as servers:
        url, process = servers.enter_context(serving_elsewhere(*arguments))

        def kill() -> None:
            process.kill()
            process.wait()
            page.wait_for_function("document.getElementById('status').textContent.includes('connecting again')")
            servers.enter_context(serving_elsewhere(*arguments, "--port", url.rpartition(":")[2]))

        page = visit(key="")
        page.fill("#server", url)
        page.click("#camera")
        page.click("#start:enabled")
        page.wait_for_selector("#log li.narration")
        yield page, kill


def frames_watched(store, session_id: str) -> int:
    """By the session that is saved."""
    files = SessionStore(str(store)).files.folder(session_id)
    return manifest_content(files.read(manifest_name(manifests(files)[-1])), session_id)["frames"]


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_killed_server_costs_no_frame_and_shows_none_twice(visit, page_url, tmp_path, is_saved):
    """After a crash the page sends again what came after the last save, or all of it to a new session."""
    with killed_servers(visit, page_url, tmp_path, 1.0 if is_saved else 3600.0) as (page, kill):
        page.wait_for_function(f"{WATCHED} >= 4")
        first = page.evaluate("session.id")
        if is_saved:
            until(lambda: SessionStore(str(tmp_path)).notes(first))
        watched = page.evaluate(WATCHED)
        page.wait_for_function(f"{WATCHED} >= {watched + 2}")
        before = page.evaluate(TOLD)
        kill()
        page.wait_for_function("document.getElementById('status').textContent.includes('watches again')")
        watched = page.evaluate(WATCHED)
        page.fill("#question", "How many objects are there?")
        page.click("#send:enabled")
        page.wait_for_selector("#log li.answer")
        page.wait_for_function(f"{WATCHED} >= {watched + 4} && !asking()")
        assert (page.evaluate("session.id") == first) == is_saved
        told, shown, narrated = page.evaluate(TOLD), page.evaluate(WATCHED), page.evaluate(NARRATED)
        assert told[: len(before)] == before and told == sorted(set(told)) and len(told) == shown
        assert len(narrated) == len(set(narrated))
        page.evaluate("clearInterval(timer)")
        page.wait_for_function("journal.every(each => each.settled !== null)")
        told, last = page.evaluate(TOLD), page.evaluate("session.id")
        page.click("#stop")
        until(lambda: frames_watched(tmp_path, last) >= len(told) if last in SessionStore(str(tmp_path)) else False)
        assert frames_watched(tmp_path, last) == len(told)


def test_what_a_crash_has_cost_is_said(visit, page_url, tmp_path):
    """Of a session that was not saved, the page has forgotten the first frames."""
    with killed_servers(visit, page_url, tmp_path, 3600.0) as (page, kill):
        page.wait_for_function(f"{WATCHED} >= 3")
        page.evaluate("forgotten = journal.splice(1, 1)[0].time")  # as after many frames
        kill()
        page.wait_for_function("document.getElementById('status').textContent.includes('watches again')")
        status = page.inner_text("#status")
        assert re.search(r"After a crash of the server the model does not know what was before \d+\.\d s", status)
        watched = page.evaluate(WATCHED)
        page.wait_for_function(f"{WATCHED} >= {watched + 2}")
