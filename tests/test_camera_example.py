"""examples/camera.html in headless Chromium, with a fake camera that shows a scene of the procedural world."""

import functools
import http.server
import os
import re
import threading

import pytest
from fresh_process import ROOT
from running_servers import serving
from test_space_browser import AUDIT, PATIENCE, browser, camera_clip, chromium_is_there  # noqa: F401

from videollm_mod.data.world import world_stream
from videollm_mod.data.world_clip import write_clip

KEY = "a-key-for-tests-0123456789"


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
    """`visit(width, scheme)`: the page with the address and key filled in."""
    contexts, wrong = [], []

    def visit(width=1200, scheme="light", key=KEY):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, permissions=["camera"]
        )
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


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_a_camera_is_watched_and_asked_about(visit, width, scheme):
    page = visit(width, scheme)
    page.click("#camera")
    page.wait_for_selector("#start:enabled")
    look(page, f"{width}-{scheme}-ready")
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
