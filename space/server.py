"""The page and its API on a gradio server: `/narrate` and `/ask` for programs, and the endpoints that the page calls.

The page's endpoints return at once and do not use gradio's queue; `Line` decides which streams may run.
"""

import inspect
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from fastapi import HTTPException
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse

from ..data.world import DOMAIN
from ..narration.sight import COMMANDS, can_describe, why_silent
from . import clips
from .checks import checked_rule, checked_text, controls_of, with_visitor_errors
from .models import Models
from .remote import AnyModels, RemoteModels
from .settings import PREFIX, Settings
from .stream import FORMATS, Stream
from .visitors import Visitors

# gradio stores uploads here, each in its own folder; the folder holds nothing else
if folder := os.environ.get("GRADIO_TEMP_DIR"):
    os.makedirs(folder, exist_ok=True)
UPLOADS = tempfile.TemporaryDirectory(prefix="videollm-mod-uploads-", dir=folder or None)
os.environ["GRADIO_TEMP_DIR"] = UPLOADS.name
PAGE = Path(__file__).parent / "page"
ASSETS = {
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(("main.js", "calls.js", "stage.js", "charts.js", "log.js"), "text/javascript"),
}
WAIT_SECONDS = 0.5
REMOTE_RUNNING = 32  # streams at the same time, if a server runs the model; it has limits of its own
# the page loads nothing from other sites
POLICY = "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'"


class Space:
    """
    The gradio server with all endpoints and routes.

    Args:
        models (`Models` or `RemoteModels`), settings (`Settings`).
    """

    def __init__(self, models: AnyModels, settings: Settings):
        self.models, self.settings = models, settings
        self.visitors = Visitors(models, settings, self._uploads)
        self._last: dict[str, str] = {}  # session of an API client -> its last stream
        self._rendering = threading.Semaphore(1)
        self._app: Any = None  # once it is launched
        self.server = gr.Server(title="VideoLLM-MoD", docs_url=None, redoc_url=None, openapi_url=None)
        for function, public in (
            (self.narrate, True),
            (self.ask, True),
            (self.choose, False),
            (self.begin, False),
            (self.advance, False),
            (self.stop, False),
        ):
            self.server.api(
                with_visitor_errors(function),
                name=function.__name__,
                # gradio's default omits the parameters
                description=" ".join((inspect.getdoc(function) or "").split()),
                queue=public,
                concurrency_limit=None,
                api_visibility="public" if public else "undocumented",
            )
        self._add_routes()

    def narrate(
        self,
        video: dict[str, Any],
        instruction: str | None = None,
        keep_ratio: float | None = None,
        threshold: float | None = None,
        memory: int | None = None,
        compare: bool = False,
        rule: str | None = None,
        request: gr.Request = None,  # type: ignore[assignment]  # gradio passes it
    ) -> Iterator[dict[str, Any]]:
        """
        Narrate a video as fast as possible.

        Yields the events so far whenever the model speaks. The last result has everything: `events`, `stats`, and the
        events as `vtt`, `srt` and `jsonl`. While the stream waits in line, `waiting` is its place. A model that cannot
        describe the video says nothing; `notice` then says why.

        Parameters:
            video: a file, as returned by `gradio_client.handle_file(path)`.
            instruction: the opening instruction, by default the model's own.
            keep_ratio: share of vision tokens that routed layers keep, above 0 and at most 1.
            threshold: the model speaks when P(silence) is below this.
            memory: frames to remember, at least 1.
            compare: also run the dense model; its statistics are in `stats`, its events in `dense_events`.
            rule: how the model decides when to speak, `trained` or `verify`.
        """
        controls = controls_of(self.models, keep_ratio, threshold, memory)
        clip = self._choose("upload", video, None)
        instruction = checked_text(self.models.instruction if instruction is None else instruction, "instruction")
        stream = self.visitors.begin(clip, controls, instruction, compare, checked_rule(self.models, rule))
        try:
            self._last = {session: last for session, last in self._last.items() if last in self.visitors.streams}
            if request.session_hash:
                self._last[request.session_hash] = stream.id
            while place := self.visitors.line.place(stream.id):
                yield {"stream": stream.id, "waiting": place, "events": [], "done": False}
                self.visitors.stream(stream.id)
                time.sleep(WAIT_SECONDS)
            num_events = -1
            while not stream.over:
                stream.advance(float("inf"), controls)
                self.visitors.stream(stream.id)
                self.visitors.line.place(stream.id)
                if len(stream.lanes["mod"].events) != num_events:
                    num_events = len(stream.lanes["mod"].events)
                    yield self._progress(stream)
            if stream.problem:
                raise ValueError(stream.problem)
            yield {**self._progress(stream), **{name: stream.export(name) for name in FORMATS}, "done": True}
        finally:
            self.visitors.line.leave(stream.id)

    def _progress(self, stream: Stream) -> dict[str, Any]:
        progress = {"stream": stream.id, "waiting": 0, "time": stream.time, "done": False, "stats": stream.stats()}
        progress["notice"] = self._describe(stream.clip)["silent"] or stream.clip.notice
        progress["events"] = [vars(event) for event in stream.lanes["mod"].events]
        if stream.compare:
            progress["dense_events"] = [vars(event) for event in stream.lanes["dense"].events]
        return progress

    def ask(
        self,
        question: str,
        stream: str = "",
        request: gr.Request = None,  # type: ignore[assignment]  # gradio passes it
    ) -> dict[str, Any]:
        """
        Ask about a stream, while it runs or afterwards. The answer becomes part of the stream.

        Parameters:
            question: a question in words that the model knows.
            stream: the `stream` of a result of `/narrate`, by default this client's last one.
        """
        found = self.visitors.stream(stream or self._last.get(request.session_hash or "", ""))
        return vars(found.ask(checked_text(question, "question") or ""))

    def choose(self, kind: str, value: Any = None, name: str = "") -> dict[str, Any]:
        """Choose what to watch: `kind` is `example`, `scene`, `upload` or `camera`."""
        return self._describe(self._choose(kind, value, name))

    def _describe(self, clip: clips.Clip) -> dict[str, Any]:
        """What the page needs to know of a clip; `silent` says why the model does not speak about it, if so."""
        config = self.models.config
        return {**clip.describe(), "silent": None if can_describe(config, clip.domain) else why_silent(config)}

    def _choose(self, kind: str, value: Any, name: str | None) -> clips.Clip:
        if kind == "example":
            return self.visitors.add_clip(clips.example, value)
        if kind == "scene":
            return self.visitors.add_clip(clips.scene, value)
        if kind == "camera":
            return self.visitors.add_clip(clips.camera)
        if kind != "upload":
            raise ValueError(f"The kind must be example, scene, camera or upload, got {kind!r}.")
        path = Path(str((value or {}).get("path", "") if isinstance(value, dict) else value))
        if str(path) not in self._uploads() or not path.is_file():
            raise ValueError("There is no such upload. Please upload the video again.")
        size, limit = path.stat().st_size / 1e6, self.settings.upload_megabytes
        if size > limit:
            raise ValueError(f"The video has {size:.0f} MB. Uploads may have up to {limit} MB.")
        name = Path(name or (value.get("orig_name") if isinstance(value, dict) else None) or path.name).name
        return self.visitors.add_clip(clips.upload, path, name, self.settings.video_seconds)

    @staticmethod
    def _uploads() -> set[str]:
        """The files that visitors have uploaded."""
        return {str(path) for path in Path(UPLOADS.name).glob("*/*") if path.is_file()}

    def begin(self, clip: str, options: dict[str, Any]) -> dict[str, Any]:
        """Start to watch a clip."""
        controls = controls_of(self.models, *(options.get(name) for name in ("keep_ratio", "threshold", "memory")))
        stream = self.visitors.begin(
            self.visitors.clip(clip),
            controls,
            checked_text(options.get("instruction"), "instruction"),
            bool(options.get("compare")),
            checked_rule(self.models, options.get("rule")),
        )
        return {**self._view(stream, None), "waiting": self.visitors.line.place(stream.id)}

    def advance(
        self, stream: str, seconds: float, options: dict[str, Any], known: dict[str, Any], picture: str | None = None
    ) -> dict[str, Any]:
        """Advance a stream to the time at which its video plays, or watch a picture of a camera."""
        found = self.visitors.stream(stream)
        if found.over:
            return self._view(found, known)
        if place := self.visitors.line.place(stream):
            return {**self._view(found, known), "waiting": place}
        controls = controls_of(self.models, *(options.get(name) for name in ("keep_ratio", "threshold", "memory")))
        more = False
        if found.clip.path is not None:
            more = found.advance(seconds, controls)
        elif picture is not None:
            found.watch_picture(picture, seconds, controls)
        if found.over:
            self.visitors.line.leave(stream)
        return {**self._view(found, known), "waiting": 0, "more": more}

    def stop(self, stream: str, known: dict[str, Any] | None = None) -> dict[str, Any]:
        """Stop watching."""
        found = self.visitors.stream(stream)
        found.stop()
        self.visitors.line.leave(stream)
        return self._view(found, known)

    def _view(self, stream: Stream, known: dict | None) -> dict[str, Any]:
        return {**stream.view(known), "clip": self._describe(stream.clip), "compare": stream.compare}

    def _add_routes(self) -> None:
        server, visitors = self.server, self.visitors

        @server.get("/", response_class=HTMLResponse)
        def page():
            html = (PAGE / "index.html").read_text(encoding="utf-8")
            return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

        @server.get("/assets/{name}")
        def asset(name: str):
            if name not in ASSETS:
                raise HTTPException(404)
            return FileResponse(PAGE / name, media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})

        @server.get("/about.json")
        def about():
            limits = {name: getattr(self.settings, name) for name in ("running", "waiting", "upload_megabytes")}
            limits |= {"video_seconds": self.settings.video_seconds, "camera_seconds": self.settings.camera_seconds}
            examples = [{"name": name, "title": title} for name, (title, _) in clips.EXAMPLES.items()]
            if self.models.config.domain is None:
                examples.reverse()  # the real clip first
            shown = {"examples": examples, "scenes": DOMAIN, "sight": COMMANDS}
            return {"model": self.models.describe(), "limits": limits, **shown}

        @server.get("/media/{clip_id}")
        def media(clip_id: str):
            clip = visitors.clips.get(clip_id)
            if clip is None or clip.shown is None:
                raise HTTPException(404)
            return FileResponse(clip.shown)

        @server.get("/download/{stream_id}/{name}")
        def download(stream_id: str, name: str):
            stream, suffix = visitors.streams.get(stream_id), name.rpartition(".")[2]
            if stream is None:
                raise HTTPException(404, "This stream no longer exists.")
            stem = Path(stream.clip.title).stem.replace(" ", "-") or "stream"
            headers = {"Content-Disposition": f'attachment; filename="{ascii_name(stem)}.{suffix}"'}
            if name in {f"narration.{format}" for format in FORMATS}:
                kind = "text/vtt" if suffix == "vtt" else "text/plain"
                return PlainTextResponse(stream.export(suffix), media_type=kind, headers=headers)
            if name != "overlay.mp4":
                raise HTTPException(404)
            try:
                with self._rendering:
                    path = stream.write_overlay()
            except ValueError as error:
                raise HTTPException(409, str(error)) from error
            return FileResponse(path, media_type="video/mp4", headers=headers)

        @server.get("/favicon.ico")
        def favicon():
            return RedirectResponse("assets/icon.svg")

    def launch(self, **options) -> tuple[Any, str, str]:
        """Start the server; see `gradio.Blocks.launch`."""
        limit = f"{self.settings.upload_megabytes}mb"
        options = {"show_error": False, "max_file_size": limit, "ssr_mode": False, **options}
        launched = self.server.launch(_frontend=False, **options)
        self._app = launched[0]
        return launched

    def close(self) -> None:
        """End all streams, delete all files, and stop the server, which would look for work a thousand times a second
        as long as the process lives."""
        self.visitors.close()
        if self._app is not None:
            self._app.get_blocks().close(verbose=False)


def ascii_name(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)


def launch(checkpoint: str | None = None, server: str | None = None, key: str | None = None, **options) -> None:
    """Load the model, by default that of the package, and serve until interrupted.

    Args:
        checkpoint (`str`, *optional*): folder or Hub id.
        server (`str`, *optional*): address of a `videollm-mod serve` whose model is used instead; `key`: for it.

    Raises:
        `ValueError`, `OSError`: from `load_checkpoint`, `RemoteModels` and `Settings`.
        `ImportError`: from `RemoteModels`.
    """
    settings = Settings.from_environment()
    if server is not None:
        remote = RemoteModels(server, key)
        if not os.environ.get(f"{PREFIX}RUNNING"):
            settings = replace(settings, running=REMOTE_RUNNING)
        Space(remote, settings).launch(**options)
        return
    models = Models.load(checkpoint)
    models.warm_up()
    Space(models, settings).launch(**options)


__all__ = ["Space", "launch"]
