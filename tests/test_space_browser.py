"""The Space's page in a real browser, headless Chromium, used like a visitor would."""

import json
import os
import re
import shutil
import time as clock

import av
import numpy as np
import pytest
from running_servers import serving
from space_servers import launched, models
from waiting import until

from videollm_mod.data.world import world_stream
from videollm_mod.data.world_clip import write_clip
from videollm_mod.loading.find import OWN_CHECKPOINT
from videollm_mod.narration.sight import COMMANDS
from videollm_mod.space.remote import RemoteModels
from videollm_mod.space.server import Space
from videollm_mod.space.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CUP = OWN_CHECKPOINT / "media" / "cup.mp4"
PATIENCE = 600_000  # milliseconds, which only a hang takes


@pytest.fixture(scope="module", autouse=True)
def chromium_is_there():
    if CHROMIUM is None:
        missing = "no chromium: apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)


@pytest.fixture(scope="module")
def camera_clip(tmp_path_factory):
    """A scene of the world that the browser's fake camera plays in a loop."""
    path = tmp_path_factory.mktemp("camera") / "scene.mjpeg"
    with av.open(str(path), "w", format="mjpeg") as container:
        video = container.add_stream("mjpeg", rate=10)
        video.width = video.height = 384
        video.pix_fmt, video.options = "yuvj420p", {"q": "2"}
        for image in world_stream(101).frames(fps=10.0, height=384):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(video.encode())
    return path


@pytest.fixture(scope="module")
def browser(camera_clip):
    options = [
        "--no-sandbox",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera_clip}",
    ]
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=options)


@pytest.fixture(scope="module")
def served():
    with launched() as running:
        yield running


@pytest.fixture
def space_url(served) -> str:
    return served[1]


@pytest.fixture
def visit(browser, space_url):
    """`visit(width, scheme, query)`: the page of a new visitor, ready to use. Checks at the end that nothing failed
    and no other server was contacted."""
    url = space_url
    contexts, wrong = [], []

    def note(kind):
        return lambda what: wrong.append(f"{kind}: {getattr(what, 'text', what)}")

    def watch_request(request):
        if not request.url.startswith((url, "data:", "blob:")):
            wrong.append(f"asked elsewhere: {request.url}")

    def visit(width=1440, scheme="light", query="", expect_errors=False):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, permissions=["camera"]
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", note("error"))
        page.on("request", watch_request)
        if not expect_errors:
            page.on("console", lambda message: message.type == "error" and note("console")(message))
        page.goto(url + query)
        page.wait_for_selector("html[data-ready]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def upload(page, path) -> None:
    page.set_input_files("#file", path)
    wait_until(page, f"document.getElementById('status').textContent.startsWith('{path.name}')")


def log(page) -> list[str]:
    return page.eval_on_selector_all("#log li", "items => items.map(item => item.innerText.replace(/\\s+/g, ' '))")


def said(page) -> list[tuple[float, str]]:
    """Narrations with their times."""
    found = [re.match(r"(\d+):([\d.]+) (.*?\.)", line) for line in log(page)]
    return [(60 * int(match[1]) + float(match[2]), match[3]) for match in found if match]


def slide(page, name: str, value: float) -> None:
    page.fill(f"#{name}", str(value))


def wait_until(page, condition: str) -> None:
    """Wait for a condition. Playwright's `wait_for_function` is forbidden by the page's content security policy."""
    end = clock.monotonic() + PATIENCE / 1000
    while not page.evaluate(condition):
        assert clock.monotonic() < end, f"never came true: {condition}\n{page.inner_text('main')}"
        page.wait_for_timeout(100)


def wait_until_told(page, seed: int) -> None:
    """Wait for a sentence of a stream of the world. A camera shows them again and again: a slow machine may miss the
    first ones."""
    sentences = json.dumps(sorted({text for _, text in world_stream(seed).narrations}))
    wait_until(page, f"{sentences}.some(text => document.getElementById('log').textContent.includes(text))")


@pytest.fixture
def of_no_domain(monkeypatch):
    """Let the model speak about any video, as one with general sight."""
    monkeypatch.setattr(models().config, "domain", None)


def test_every_control_works_on_a_real_clip(visit, tmp_path, of_no_domain):
    page = visit()
    upload(page, CUP)
    slide(page, "threshold", 1)
    # slowly, so that the steps below happen in the middle of the stream
    page.evaluate("document.getElementById('video').playbackRate = 0.1")
    page.click("#start")
    page.wait_for_selector("#log li")
    assert page.inner_text("#start") == "Start again" and page.is_disabled("#start")
    # a question during the stream is answered; pausing the video pauses the model
    page.fill("#question", "What is at the center?")
    page.press("#question", "Enter")
    page.evaluate("document.getElementById('video').pause()")
    page.wait_for_selector("#log li.answer button:enabled")
    assert "What is at the center?" in page.inner_text("#log li.answer")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Paused')")
    assert not page.evaluate("document.getElementById('video').ended")
    # each control takes effect at the next frame
    for name, value, shown in [
        ("keep-ratio", 0.5, "50 %: 5 of 10 tokens"),
        ("threshold", 0.4, "0.400"),
        ("memory", 8, "8 frames, 4 s"),
    ]:
        slide(page, name, value)
        assert page.inner_text(f"#{name}-value") == shown
    page.uncheck("#show-kept")
    page.check("#show-kept")
    page.evaluate("document.getElementById('video').playbackRate = 4")
    page.click("#continue")
    page.click("#suggestions button >> nth=1")
    wait_until(page, "document.querySelectorAll('#log li.answer button:enabled').length == 2")
    wait_until(page, "document.querySelector('#layers figcaption').textContent.match(/[45] of 9 patches/)")
    wait_until(page, "document.getElementById('status').textContent.startsWith('The model has watched everything')")
    for chart in ("speak", "bytes", "time"):
        drawn = page.eval_on_selector_all(f"#chart-{chart} polyline", "lines => lines.map(l => l.points.length)")
        assert drawn == [17, 17], (chart, drawn)
    assert re.search(r"MoD [\d.]+ [kM]B · dense [\d.]+ [kM]B, \d+ % less", page.inner_text("#chart-bytes"))
    # a click on an entry seeks to its time
    page.click("#log li >> nth=0")
    first = page.inner_text("#log li >> nth=0")
    wait_until(page, f"Math.abs(document.getElementById('video').currentTime - {float(first[2:6])}) < 0.1")
    assert page.get_attribute("#timeline button >> nth=0", "aria-label") in " ".join(first.split())
    for name in ("narration.vtt", "narration.srt", "narration.jsonl", "overlay.mp4"):
        with page.expect_download() as download:
            page.click(f"#downloads a[data-name='{name}']")
        download.value.save_as(tmp_path / name)
    lines = [json.loads(line) for line in (tmp_path / "narration.jsonl").read_text().splitlines()]
    assert next(line["query"] for line in lines if line.get("kind") == "answer") == "What is at the center?"
    assert (tmp_path / "narration.vtt").read_text().startswith("WEBVTT")
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 17


def test_two_visitors_do_not_see_each_other(visit, tmp_path):
    seeds = (111, 113)  # whose streams have no sentence in common
    pages = [visit() for _ in seeds]
    for page, seed in zip(pages, seeds, strict=True):
        page.uncheck("#compare")  # a dense model may answer in other words, which is an entry of its own
        upload(page, write_clip(tmp_path / f"{seed}.mp4", seed)[0])
    for page in pages:
        page.evaluate("document.getElementById('video').playbackRate = 4")
        page.click("#start")
    for page in pages:
        wait_until(page, "document.querySelectorAll('#log li').length >= 2")
        page.fill("#question", f"How many objects are there?{' ' * pages.index(page)}")
        page.click("#ask button")
        page.wait_for_selector("#log li.answer button:enabled")
    for page, seed in zip(pages, seeds, strict=True):
        page.evaluate("document.getElementById('stop').click()")  # if it is still running
        own, others = ({text for _, text in world_stream(s).narrations} for s in (seed, sum(seeds) - seed))
        narrated = {text for _, text in said(page)}
        assert narrated & own and not narrated & others
        assert len(page.query_selector_all("#log li.answer")) == 1


def test_stop_is_immediate_and_start_begins_again_with_ground_truth(visit):
    page = visit()
    page.click("#scene")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Random scene')")
    assert page.is_hidden("#truth")
    page.uncheck("#compare")
    page.click("#start")
    page.wait_for_selector("#log li")
    # immediately, before any call to the server
    assert page.evaluate(
        "(document.getElementById('stop').click(), document.getElementById('stop').disabled) "
        "&& document.getElementById('video').paused"
    )
    page.wait_for_selector("#truth:not([hidden])")
    before = log(page)
    page.fill("#question", "What happened last?")
    page.click("#ask button")
    page.wait_for_selector("#log li.answer button:enabled")  # it still answers, and says nothing else
    assert [line for line in log(page) if line in before] == before and len(log(page)) == len(before) + 1
    assert page.evaluate("document.getElementById('video').paused")
    page.click("#start")
    wait_until(page, "document.querySelectorAll('#log li.answer').length == 0")
    page.wait_for_selector("#log li")
    assert page.is_hidden("#truth") and "dense" not in page.inner_text("#chart-bytes")
    assert log(page)[0] == before[0]
    page.click("#stop")
    page.wait_for_selector("#truth:not([hidden])")
    assert page.inner_text("#truth ol li >> nth=0").endswith("right")


def test_camera_is_watched_live(visit, of_no_domain):
    page = visit()
    page.click("#camera")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Your camera')")
    page.click("#start")
    wait_until_told(page, 101)
    page.click("#suggestions button >> nth=0")
    page.wait_for_selector("#log li.answer button:enabled")
    page.click("#stop")
    narrated = {text for _, text in said(page)}
    assert narrated & {text for _, text in world_stream(101).narrations}
    for index in range(2):  # shows the picture of its time, which an answer may share
        page.click(f"#log li button >> nth={index}")
        time = page.inner_text(f"#log li button time >> nth={index}")
        wait_until(page, f"document.querySelector('#log [aria-current=true] time')?.textContent === '{time}'")


def test_bad_files_and_failing_calls_are_explained(visit, tmp_path, served):
    page = visit(expect_errors=True)
    broken, large = tmp_path / "broken.mp4", tmp_path / "large.mp4"
    broken.write_bytes(CUP.read_bytes()[:4000])
    large.write_bytes(b"")
    os.truncate(large, 101_000_000)
    page.set_input_files("#file", broken)
    page.wait_for_selector("#problem:not([hidden])")
    assert "broken.mp4" in page.inner_text("#problem") and "Traceback" not in page.content()
    page.set_input_files("#file", large)
    wait_until(
        page, "document.getElementById('problem').textContent.includes('101 MB. Uploads may have up to 100 MB')"
    )
    # the page still works
    page.uncheck("#compare")
    page.click("#examples button >> nth=0")
    wait_until(page, "!document.getElementById('start').disabled && document.getElementById('problem').hidden")
    page.click("#start")
    page.wait_for_selector("#log li")
    # a stream that the server has deleted
    space, _ = served
    for stream in list(space.visitors.streams):
        del space.visitors.streams[stream]
    wait_until(page, "document.getElementById('problem').textContent.includes('idle for too long')")
    assert page.is_enabled("#start")


def test_reload_continues_the_stream(visit):
    page = visit()
    page.uncheck("#compare")
    page.click("#start")
    wait_until(page, "document.querySelectorAll('#log li').length >= 1")
    before = log(page)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert log(page)[: len(before)] == before and not page.is_checked("#compare")
    page.click("#continue")
    wait_until(page, f"document.querySelectorAll('#log li').length > {len(before)}")
    assert said(page) == [entry for entry in world_of_example() if entry[0] <= said(page)[-1][0]]
    page.click("#stop")


def world_of_example() -> list[tuple[float, str]]:
    turns = json.loads((OWN_CHECKPOINT / "media" / "world.jsonl").read_text())["turns"]
    return [(turn["time"], turn["content"]) for turn in turns]


# the contrast of each visible text with its background, and whether each control has a name
AUDIT = """() => {
  const channel = (c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const box = element.getBoundingClientRect();
    if (!own || box.width < 2 || element.closest(":disabled, [hidden], svg, [aria-hidden]")) continue;
    if (element.matches(".links a:not([href])")) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)} of ${element.textContent.trim().slice(0, 40)}`);
    if (box.right > innerWidth + 1) found.push(`too wide: ${element.textContent.trim().slice(0, 40)}`);
  }
  for (const control of document.querySelectorAll("button, input, video, [role=img]")) {
    const name = control.getAttribute("aria-label") || control.labels?.[0]?.textContent || control.textContent;
    if (!name?.trim()) found.push(`no name: ${control.outerHTML.slice(0, 80)}`);
    const box = control.getBoundingClientRect();
    const small = control.matches("button:not(.timeline *)") && box.height && box.height < 32;
    if (small) found.push(`small: ${control.textContent}`);
  }
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) found.push(`scrolls sideways: ${wide}`);
  return found;
}"""


def test_a_video_outside_the_domain_is_watched_without_a_word(visit):
    page = visit(390)
    page.click("#examples button >> nth=1")
    page.wait_for_selector("#silent:not([hidden])")
    assert "knows only the procedural world" in page.inner_text("#silent")
    assert page.inner_text("#sight").splitlines() == list(COMMANDS)
    page.evaluate("document.getElementById('video').playbackRate = 4")
    page.click("#start")
    wait_until(page, "document.getElementById('status').textContent === 'The model has watched everything.'")
    assert page.is_hidden("#ask") and page.is_hidden("#log") and page.is_hidden("#chart-speak") and log(page) == []
    assert page.eval_on_selector_all("#chart-bytes polyline", "lines => lines.map(l => l.points.length)") == [17, 17]
    assert page.evaluate(AUDIT) == []
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#silent", state="hidden")
    assert page.is_visible("#ask") and page.is_visible("#log")


def test_page_is_that_of_the_model(visit, monkeypatch, of_no_domain, served):
    """Of one that was made from a pretrained image model: without a separator, and dense before calibration."""
    for name, value in {
        "name": "smolvlm2",
        "rules": {"verify": 0.1353},
        "instruction": "What do you see?",
        "default_keep_ratio": 1.0,
    }.items():
        monkeypatch.setattr(models(), name, value)
    page = visit(390)
    assert page.title().startswith("smolvlm2") and page.inner_text("#name") == "smolvlm2"
    assert "only a few patches" not in page.inner_text("#intro") and "keep every patch" in page.inner_text("main")
    assert page.get_attribute("#examples button", "data-name") == "cup" and page.is_hidden("#scene")
    assert page.input_value("#instruction") == page.inner_text("#suggestions button >> nth=0") == "What do you see?"
    assert page.is_hidden("#rule") and page.inner_text("#threshold-value") == "0.135"
    assert not page.is_checked("#compare")
    page.evaluate("document.getElementById('video').playbackRate = 4")
    page.click("#start")
    page.wait_for_selector("#log li")
    *_, stream = served[0].visitors.streams.values()
    controls = stream.full_controls
    assert (stream.rule, controls.threshold, controls.keep_ratio, stream.compare) == ("verify", 0.1353, None, False)
    assert stream.instruction == "What do you see?" and page.is_hidden("#truth")
    page.fill("#question", "w" * 300)  # is wrapped
    page.press("#question", "Enter")
    page.wait_for_selector("#log li.answer button:enabled")
    page.click("#stop")
    assert page.evaluate(AUDIT) == []


def test_rule_of_speaking_is_chosen(visit):
    page = visit()
    assert page.input_value("#rule") == "trained" and page.inner_text("#threshold-value") == "0.725"
    page.uncheck("#compare")
    page.select_option("#rule", "verify")
    assert page.inner_text("#threshold-value") == "1.000" and page.inner_text("#chart-speak-title").startswith("Doubt")
    page.click("#start")
    page.wait_for_selector("#log li")
    assert log(page)[0].startswith("0:00.0")  # after the first frame
    page.click("#stop")


def test_page_works_with_keyboard_alone_and_is_readable_in_both_themes(visit):
    """At any width the tab key follows the order of the document."""
    page = visit(390, "dark")

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"the tab key does not reach {selector}")

    tab_to("#examples button")
    page.keyboard.press("Enter")
    wait_until(page, "!document.getElementById('start').disabled")
    tab_to("#start")
    page.keyboard.press("Enter")
    page.wait_for_selector("#log li")
    tab_to("#log button")
    page.keyboard.press("ArrowDown")
    tab_to("#question")
    page.keyboard.type("How many objects are there?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#log li.answer button:enabled")
    tab_to("#keep-ratio")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#keep-ratio-value").startswith("25 %")
    page.keyboard.press("Shift+Tab")
    wait_until(page, "document.querySelector('#truth[hidden]')")
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.id") == "stop":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#truth:not([hidden])")
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        for _ in range(2):
            assert page.evaluate(AUDIT) == []
            if folder := os.environ.get("SPACE_SCREENSHOTS"):  # for inspection
                theme = page.evaluate("document.documentElement.dataset.theme")
                page.screenshot(path=f"{folder}/{width}-{theme}.png", full_page=True)
            page.click("#theme")


class TestSpaceOnAServer:
    """The model runs in `videollm-mod serve`, and the Space only streams to it."""

    @pytest.fixture
    def server(self, checkpoint):
        with serving(checkpoint, ("a-key-for-tests-0123456789",)) as running:
            yield running

    @pytest.fixture
    def space_url(self, server, monkeypatch):
        for name in ("ANSWER_SECONDS", "PATIENCE_SECONDS"):
            monkeypatch.setattr(f"videollm_mod.space.remote.{name}", PATIENCE / 1000)
        remote = RemoteModels(server.url, "a-key-for-tests-0123456789")
        remote.config.domain = None  # so that it speaks about a camera, whatever that shows
        space = Space(remote, Settings(running=4))
        yield space.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")[1]
        space.close()
        until(lambda: not server.registry.sessions, "the end of all sessions")

    def test_visitors_of_a_video_and_a_camera_are_sessions_there(self, visit, server, tmp_path):
        pages = clip, camera = visit(), visit(width=900)
        upload(clip, write_clip(tmp_path / "111.mp4", 111)[0])
        camera.click("#camera")
        wait_until(camera, "document.getElementById('status').textContent.startsWith('Your camera')")
        for page in pages:
            for name in (
                "#layers",
                "#show-kept",
                "#compare",
                "#keep-ratio",
                "#chart-bytes",
                "[data-name='overlay.mp4']",
            ):
                assert not page.is_visible(name), name
            assert "A server runs the model" in page.inner_text("#elsewhere")
            page.click("#start")
        wait_until_told(clip, 111)
        wait_until_told(camera, 101)
        assert len(server.registry.sessions) == 2
        for page in pages:
            page.fill("#question", "How many objects are there?")
            page.press("#question", "Enter")
            page.wait_for_selector("#log li.answer button:enabled")
            state = page.inner_text("#server")
            # of a camera's pictures, as many as the machine is slow
            dropped = "None" if page is clip else r"(None|\d+)"
            assert re.match(rf"The model keeps 20 % of .* on the way\. {dropped} were dropped\.", state), state
        narrated = [{text for _, text in said(page)} for page in pages]
        assert narrated[0] & {text for _, text in world_stream(111).narrations}
        assert narrated[1] & {text for _, text in world_stream(101).narrations}
        clip.evaluate("document.getElementById('video').playbackRate = 4")
        wait_until(clip, "document.getElementById('status').textContent.startsWith('The model has watched')")
        assert "ms" in clip.inner_text("#chart-time") and clip.inner_text("#chart-time-title").endswith("its decision")
        with clip.expect_download() as download:
            clip.click("#downloads a[data-name='narration.vtt']")
        assert download.value.suggested_filename.endswith(".vtt")
        camera.click("#stop")

    def test_the_page_tells_when_the_server_ends(self, visit, server, monkeypatch):
        monkeypatch.setattr("videollm_mod.space.remote.PATIENCE_SECONDS", 0.1)
        page = visit(expect_errors=True)
        page.click("[data-name=world]")
        page.click("#start")
        page.wait_for_selector("#log li")
        server.stop()
        page.wait_for_selector("#problem:not([hidden])")
        assert "The server that runs the model cannot be reached." in page.inner_text("#problem")
        page.wait_for_selector("#log li")  # and what was said stays
