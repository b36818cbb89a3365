"""One visitor's stream: the clip or camera, the models that watch it, and the results so far.

Nothing here waits. As its video plays, the page asks to advance the stream to a time, and gets the new results. So the
page alone handles pausing, seeking and stopping, and visitors take turns.
"""

import base64
import binascii
import io
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..narration.overlay import OverlayVideo, frame_fit
from ..narration.sight import can_describe, why_silent
from ..narration.writers import file_writer
from ..speaking import StreamEvent
from .clips import Clip
from .lane import Controls, Lane, Request
from .remote import AnyModels, RemoteLane, RemoteModels

FRAMES_PER_CALL = 8  # of a video at most, so that each call returns soon
CAMERA_PIXELS = 1024  # maximum width and height of a camera's picture
SAME_FRAME = 0.25  # seconds within which two times are the same frame
FORMATS = ("vtt", "srt", "jsonl")


class Stream:
    """
    Args:
        id (`str`): a secret id.
        models (`Models` or `RemoteModels`), clip (`Clip`), controls (`Controls`).
        instruction (`str`, *optional*): the opening instruction.
        compare (`bool`): whether the dense twin watches too.
        rule (`str`, *optional*): how the model decides when to speak; its own rule if omitted.
        max_seconds (`float`): how much of the clip to watch.

    Raises:
        `ValueError`: if the model runs on a server that refuses, or is to be compared.
    """

    def __init__(
        self,
        id: str,
        models: AnyModels,
        clip: Clip,
        controls: Controls,
        instruction: str | None = None,
        compare: bool = False,
        max_seconds: float = 180.0,
        rule: str | None = None,
    ):
        self.id, self.models, self.clip, self.max_seconds = id, models, clip, max_seconds
        self.controls, self.compare, self.instruction = controls, compare, instruction
        self.rule = rule or next(iter(models.rules))
        self.describes = can_describe(models.config, clip.domain)  # if not, the models watch without a word
        self.lanes = self._open_lanes()
        self.ended = self.stopped = False
        self.problem: str | None = None  # why the video ended early, if it did
        self.answering: dict | None = None  # the answer that is being generated
        self.pictures: list[bytes] = []  # of a camera, as JPEG
        self._source = None if clip.path is None else clip.frames(models.fps)
        self._next: tuple[np.ndarray, float] | None = None  # the next frame, decoded but not watched yet
        self._reverse, self._lock = False, threading.Lock()
        self.touched = time.monotonic()

    def _open_lanes(self) -> dict[str, Lane | RemoteLane]:
        if isinstance(self.models, RemoteModels):
            if self.compare:
                raise ValueError("The model runs on a server, so it cannot be compared with a dense one here.")
            return {"mod": RemoteLane(self.models, self.full_controls, self.instruction)}
        names = ("mod", "dense") if self.compare else ("mod",)
        return {
            name: Lane(self.models, name, self.full_controls, self.instruction, self.rule, self.clip.folder)
            for name in names
        }

    @property
    def time(self) -> float:
        """Time of the last watched frame, seconds."""
        seen = self.lanes["mod"].seen
        return seen[-1].watched.time if seen else 0.0

    @property
    def full_controls(self) -> Controls:
        """The controls with a threshold: the rule's where none was given, and 0, never to speak, about a clip that the
        model cannot describe."""
        threshold = self.models.rules[self.rule] if self.controls.threshold is None else self.controls.threshold
        return replace(self.controls, threshold=threshold if self.describes else 0.0)

    @property
    def over(self) -> bool:
        return self.stopped or (self.ended and all(lane.settled for lane in self.lanes.values()))

    def advance(self, seconds: float, controls: Controls | None = None) -> bool:
        """Watch at most `FRAMES_PER_CALL` of the clip's frames up to `seconds`. Returns whether there are more."""
        if not self._lock.acquire(blocking=False):  # an answer is being generated, or another call is watching
            return False
        try:
            self.controls = controls or self.controls
            block: list[tuple[np.ndarray, float]] = []
            # what is verified goes through the model frame by frame
            limit = 1 if self.rule == "verify" else FRAMES_PER_CALL
            while not self.over and len(block) < limit:
                frame = self._peek()
                if frame is None or frame[1] > seconds:
                    break
                block.append(frame)
                self._next = None
            if block:
                images, times = zip(*block, strict=True)
                self._run(Request(self.full_controls, np.stack(images), times))
            else:
                self.lanes["mod"].rest()
            self.collect()
            frame = None if self.over else self._peek()
            return frame is not None and frame[1] <= seconds
        finally:
            self._lock.release()

    def watch_picture(self, picture: str, seconds: float, controls: Controls | None = None) -> None:
        """Watch a camera's picture, a `data:` URL with a JPEG.

        Raises:
            `ValueError`: if it is not a JPEG, or too large.
        """
        encoded = picture.partition("base64,")[2]
        try:
            raw = base64.b64decode(encoded, validate=True)
            image = Image.open(io.BytesIO(raw), formats=("JPEG",))
            if max(image.size) > CAMERA_PIXELS:
                raise ValueError(f"a picture may be at most {CAMERA_PIXELS} pixels wide and high, got {image.size}")
            pixels = np.asarray(image.convert("RGB"))
        except (binascii.Error, OSError) as error:
            raise ValueError("the camera's picture cannot be read") from error
        with self._lock:
            self.controls = controls or self.controls
            if self.over:
                return
            if seconds >= self.max_seconds:
                self.ended = True
                return
            self.pictures.append(raw)
            self._run(Request(self.full_controls, pixels[None], (max(float(seconds), self.time),), wait=False))

    def ask(self, question: str) -> StreamEvent:
        """Ask a question after the last watched frame. Returns the answer of the routed model.

        Raises:
            `ValueError`: for an empty question, or if the model cannot describe the clip.
        """
        if not self.describes:
            raise ValueError(why_silent(self.models.config))
        if not question or not question.strip():
            raise ValueError("Type a question first.")
        with self._lock:

            def grow(text: str) -> None:
                self.answering = {"query": question, "text": text, "time": self.time}

            try:
                grow("")
                for name, lane in self.lanes.items():
                    lane.run(Request(self.full_controls, question=question), grow if name == "mod" else None)
            finally:
                self.answering = None
            return next(event for event in reversed(self.lanes["mod"].events) if event.kind == "answer")

    def stop(self) -> None:
        """Stop watching. Questions are still answered."""
        self.stopped = True
        with self._lock:
            self._close()

    def collect(self) -> None:
        """Take what a server has sent."""
        lane = self.lanes["mod"]
        lane.collect()
        if lane.problem is not None:
            self.ended, self.problem = True, lane.problem

    def close(self) -> None:
        """Stop, and leave the server. Questions are not answered anymore."""
        self.stop()
        for lane in self.lanes.values():
            lane.close()

    def _peek(self) -> tuple[np.ndarray, float] | None:
        if self._next is None and self._source is not None:
            try:
                self._next = next(self._source, None)
            except (ValueError, OSError) as error:
                self.problem = str(error).replace(str(self.clip.path), self.clip.title)
            if self._next is None or self._next[1] >= self.max_seconds:
                self.ended = True
                self._close()
        return self._next

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source = self._next = None

    def _run(self, request: Request) -> None:
        self._reverse = not self._reverse  # alternate the order: the first model always finds cold CPU caches
        for lane in list(self.lanes.values())[:: 1 if self._reverse else -1]:
            if not self.stopped:
                request = lane.run(request)  # frames are encoded once

    def view(self, known: dict | None = None) -> dict:
        """What the page shows, without what it has already. `known` is `{lane: [number of frames, of events]}`."""
        self.collect()
        lanes = {}
        for name, lane in self.lanes.items():
            frames, events = (known or {}).get(name) or (0, 0)
            lanes[name] = {
                "frames": [as_row(seen) for seen in lane.seen[frames:]],
                "events": [vars(event) for event in lane.events[events:]],
                "from": [frames, events],
            }
        view = {"stream": self.id, "time": self.time, "lanes": lanes, "over": self.over, "problem": self.problem}
        view |= {"answering": self.answering, "server": self.lanes["mod"].state()}
        if self.over and self.clip.truth is not None and self.clip.domain == self.models.config.domain:
            view["truth"] = self.score_narrations()
        return view

    def score_narrations(self) -> list[dict]:
        """Score narrations: true ones so far are `right`, `late` (said at another time) or `missed`, and all other
        narrations of the model are `wrong`. In order of time."""
        said = [event for event in self.lanes["mod"].events if event.kind == "narration"]
        scored = []
        for seconds, text in self.clip.truth or ():
            if seconds > self.time + 1e-6:
                continue
            same = [event for event in said if event.text == text]
            nearest = min(same, key=lambda event: abs(event.time - seconds), default=None)
            verdict = "missed"
            if nearest is not None:
                verdict = "right" if abs(nearest.time - seconds) <= SAME_FRAME else "late"
                said.remove(nearest)
            scored.append({"time": seconds, "text": text, "verdict": verdict})
        scored += [{"time": event.time, "text": event.text, "verdict": "wrong"} for event in said]
        return sorted(scored, key=lambda entry: entry["time"])

    def stats(self) -> dict:
        """For each model: frames, bytes of its cache, and milliseconds per frame of the language model."""
        return {
            name: {
                "frames": len(lane.seen),
                "kv_bytes": lane.seen[-1].kv_bytes,
                "milliseconds_a_frame": sum(seen.milliseconds for seen in lane.seen) / len(lane.seen),
            }
            for name, lane in self.lanes.items()
            if lane.seen
        }

    def export(self, format: str) -> str:
        """The events as `vtt`, `srt` or `jsonl`."""
        file = io.StringIO()
        writer = file_writer(format, file)
        for event in list(self.lanes["mod"].events):
            writer.event(event)
        writer.close(self.stats())
        return file.getvalue()

    def write_overlay(self) -> Path:
        """Write the overlay video, as `videollm-mod narrate --overlay` does.

        Raises:
            `ValueError`: if no frame has been watched.
        """
        seen, events = list(self.lanes["mod"].seen), list(self.lanes["mod"].events)
        if isinstance(self.models, RemoteModels):
            raise ValueError("The overlay shows what the model's layers keep, and the model runs on a server.")
        if not seen:
            raise ValueError("There is nothing to show yet: the model has not watched a frame.")
        path = self.clip.folder / f"{self.id}.overlay.mp4"
        threshold = self.full_controls.threshold if self.describes else None
        fit = frame_fit(self.models.processor.video_processor)
        video = OverlayVideo(path, self.models.config, self.models.fps, threshold, fit)
        try:
            for image, frame in zip(self._images(), seen, strict=False):
                while events and events[0].time <= frame.watched.time:
                    video.event(events.pop(0))
                video.frame(image, frame.watched)
        finally:
            video.close()
        return path

    def _images(self) -> Iterator[np.ndarray]:
        if self.clip.path is None:
            for raw in self.pictures:
                yield np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
        else:
            with suppress(ValueError, OSError):  # the same error as when it was watched
                for image, _ in self.clip.frames(self.models.fps):
                    yield image


def as_row(seen) -> list:
    """`[time, probability of silence, tokens kept in each routed layer, bytes, milliseconds]`."""
    watched = seen.watched
    kept = [tokens.tolist() for tokens in watched.kept if tokens is not None]
    return [watched.time, watched.silence_probability, kept, seen.kv_bytes, seen.milliseconds]


__all__ = ["FORMATS", "Stream"]
