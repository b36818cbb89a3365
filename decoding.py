"""From a video file, URL or camera to upright frames and their times."""

import math
import struct
from collections.abc import Generator, Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from .containers import (
    INDEXED,
    LIMITS,
    MAX_PIXELS,
    MediaLimits,
    check_count,
    check_fps,
    has_flag,
    open_container,
    opened,
    readable_errors,
    shown,
    source_name,
)

DEFAULT_FPS = 2.0
BLOCK_BYTES = 16 * 1920 * 1080 * 3  # of decoded frames that are held
HIGHEST_RATE = 1000.0  # frames per second that a container may state; a higher rate is ignored
CLOCK_JITTER = 1.0  # seconds by which timestamps may go back
CLOCK_JUMP = 10.0  # seconds between frames that count as a jump of the clock, in formats whose clock may jump
MAX_PIXEL_SHAPE = 16  # ratio of a pixel's sides; pixels of a larger ratio are treated as square


def limited_size(width: int, height: int) -> tuple[int, int]:
    """Width and height, scaled down to at most `MAX_PIXELS` pixels."""
    scale = min(1.0, math.sqrt(MAX_PIXELS / (width * height)))
    return max(1, int(width * scale)), max(1, int(height * scale))


class DisplayTransform:
    """Converts decoded frames to upright images: with square pixels, rotated and mirrored according to their metadata,
    and of the size of the first frame, which has at most `MAX_PIXELS`. A frame of another shape gets black bars."""

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None  # width and height of the images
        self._codec: Any = None
        self._stated: Any = None

    def begin(self, stream) -> None:
        """Prepare for the frames of this stream. If the container states the shape of pixels, it holds for the whole
        stream; otherwise the codec states it, and may change it midway."""
        self._codec, self._stated = stream.codec_context, stream.sample_aspect_ratio
        if self._stated == self._codec.sample_aspect_ratio:
            self._stated = None

    def measure(self, frame) -> tuple[tuple[int, int], tuple[bool, bool, bool]]:
        """Width and height of an `av.VideoFrame` in square pixels, before rotation, and its `orientation`. The first
        frame decides the size of all images."""
        shape = self._codec.sample_aspect_ratio if self._stated is None else self._stated
        shape = float(shape) if shape else 1.0
        wide = frame.width * shape if 1 / MAX_PIXEL_SHAPE <= shape <= MAX_PIXEL_SHAPE else frame.width
        size, turned = (max(1, round(wide)), frame.height), orientation(frame)
        if self._size is None:
            width, height = limited_size(*size)
            self._size = (height, width) if turned[0] else (width, height)
        return size, turned

    def __call__(self, frame) -> np.ndarray:
        """The image uint8 `[H, W, 3]` of an `av.VideoFrame`."""
        size, (transposed, mirrored, upside_down) = self.measure(frame)
        assert self._size is not None  # `measure` has set it
        whole = self._size[:: -1 if transposed else 1]
        scales = [space / side for space, side in zip(whole, size, strict=True)]
        fitting = tuple(max(1, round(side * min(scales))) for side in size)
        # smaller differences come from rounding
        width, height = whole if max(scales) <= 1.02 * min(scales) else fitting
        # freeing a scaler in a forked process, such as a data loader, would wait forever for its threads
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
        pixels = pixels.transpose(1, 0, 2) if transposed else pixels
        pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
        bars = [space - side for space, side in zip(self._size[::-1], pixels.shape[:2], strict=True)]
        if any(bars):
            pixels = np.pad(pixels, [*((bar // 2, bar - bar // 2) for bar in bars), (0, 0)])
        return np.ascontiguousarray(pixels)


def orientation(frame) -> tuple[bool, bool, bool]:
    """Whether to transpose an `av.VideoFrame`, and then to mirror it horizontally and vertically: the one of the eight
    orientations that is nearest to its display matrix, which maps `(x, y)` to `(a x + c y, b x + d y)`."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 fails if there is side data that it does not know, such as EXIF
        return ((False, False, False), (True, False, True), (False, True, True), (True, True, False))[
            round(frame.rotation / 90) % 4
        ]
    if matrix is None:
        return False, False, False
    a, b, _, c, d, *_ = struct.unpack_from("=9i", bytes(matrix))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def measured_duration(source, limits: MediaLimits = LIMITS, **options) -> float:
    """The duration of a video in seconds, measured by decoding all of it. Raises as `iter_video_frames`."""
    container, stream = open_container(source, limits, **options)
    name = source_name(source)
    with opened(container, stream), readable_errors(name):
        clock = FrameClock(container, stream, limits)
        for frame in decoded_frames(container, stream, name, limits):
            clock(frame)
        if clock.last is None:
            raise ValueError(f"there is no frame in {name}")
        return clock.end


def iter_video_frames(
    source, fps: float | None = DEFAULT_FPS, first: int = 0, limits: MediaLimits = LIMITS, **options
) -> Generator[tuple[np.ndarray, float], None, None]:
    """Decode a video as a stream: for i = first, first + 1, ... the frame on screen `i / fps` seconds after its start.

    Sampling goes by timestamps, so the video may have any frame rate, also a variable one; a frame that stays on
    screen is repeated. `FrameClock` handles wrong timestamps. Frames are rotated, mirrored and scaled to square pixels
    according to their metadata. Only one frame is held at a time; a frame of more than `MAX_PIXELS` is scaled down.

    Args:
        source (`str`, `os.PathLike` or binary file object): path, URL or file.
        fps (`float`, *optional*): frames per second; `None` gives every frame at its own time.
        first (`int`): index of the first frame at that rate. Earlier frames are skipped without decoding if the
            container allows it; the result is the same.
        limits (`MediaLimits`): limits of what is decoded.
        options: passed to `av.open`, such as `format="v4l2"` for a camera.

    Yields:
        `(uint8 [H, W, 3], seconds)`; all frames have the size of the first.

    Raises:
        `OSError`: if the source cannot be read.
        `ValueError`: if it holds no video that can be decoded or passes a limit, or `fps` is not a finite number > 0.
        `ImportError`: without PyAV.
    """
    if fps is not None:
        check_fps("`fps`", fps)
        check_count("`first`", first, minimum=0)
    container, stream = open_container(source, limits, **options)
    name, origin = source_name(source), None
    if fps is not None and first:
        with readable_errors(name):
            origin = seek(container, stream, first / fps)
        if origin is None:  # from the beginning again
            with opened(container, stream):
                pass
            container, stream = open_container(source, limits, **options)
    yield from sample_container(container, stream, fps, name, limits, first, origin)


def seek(container, stream, seconds: float) -> tuple[float, DisplayTransform] | None:
    """Seek to the last key frame that is shown at most `seconds` after the first frame of a video.

    Returns:
        The timestamp of the first frame in seconds, and a `DisplayTransform` that has measured it; None if the frames
        from there on could differ from those decoded from the beginning.
    """
    import av

    if container.format.name not in INDEXED:
        return None
    transform = DisplayTransform()
    transform.begin(stream)
    try:
        head = next(container.decode(stream), None)
        if head is None or head.pts is None:
            return None
        transform.measure(head)
        wanted = head.pts + int(seconds / stream.time_base)
        for earlier in (0, 1, 4, 16):  # seconds: containers seek by decoding time, not by presentation time
            target = max(head.pts, wanted - int(earlier / stream.time_base))
            container.seek(target, stream=stream)
            key = next(container.demux(stream)).pts
            if key is not None and key <= wanted:
                break
        else:
            return None
        container.seek(target, stream=stream)
        # frames before the key frame may refer to earlier ones, and are not shown
        frame = next((frame for frame in container.decode(stream) if frame.pts is None or frame.pts >= key), None)
        if frame is None or frame.pts != key or not frame.key_frame or frame.is_corrupt:
            return None
        container.seek(target, stream=stream)
    except av.FFmpegError:
        return None
    return float(head.pts * head.time_base), transform


def sample_container(
    container,
    stream,
    fps: float | None,
    name: str,
    limits: MediaLimits = LIMITS,
    first: int = 0,
    origin: tuple[float, DisplayTransform] | None = None,
) -> Generator[tuple[np.ndarray, float]]:
    """`iter_video_frames` of an open container, which may have been sought. Closes it at the end."""
    with opened(container, stream), readable_errors(name):
        frames = _sample_frames(container, stream, fps, name, limits, first, origin)
        for index, frame in enumerate(frames):
            if index >= limits.frames:
                at = "" if fps is None else f" at {fps:g} frames per second"
                raise ValueError(f"{name} holds more than {limits.frames} frames{at}, the limit of a recording")
            yield frame


def decoded_frames(container, stream, name: str, limits: MediaLimits = LIMITS) -> Iterator:
    """The `av.VideoFrame`s of a stream.

    Raises:
        `ValueError`: after too many packets without a frame.
    """
    own = others = 0
    for packet in container.demux():
        if packet.stream.index == stream.index:
            own += 1
            if not packet.size and packet.dts is not None:  # the frame before stays on screen
                continue
            for frame in packet.decode():
                yield frame
                own = others = 0
        else:
            others += 1
        if own > limits.packets or others > 100 * limits.packets:
            raise ValueError(f"{name} holds {own + others} packets without a frame, more than the limit")


def frame_seconds(frame, stream) -> float | None:
    """The timestamp of an `av.VideoFrame`, None if it has none."""
    time_base = frame.time_base or stream.time_base
    return None if frame.pts is None or not time_base else float(frame.pts * time_base)


def usual_step(stream, limits: MediaLimits = LIMITS) -> float:
    """Seconds between frames as the container states them; 1/25 if that is implausible."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    return 1 / rate if 1 / limits.hold <= rate <= HIGHEST_RATE else 1 / 25


class FrameClock:
    """Gives each frame of a video its time, in seconds after the first frame, which never decreases.

    Without a timestamp the time continues at the average rate. So it does where a timestamp goes back by more than a
    second or jumps by more than an hour (in transport streams and the like by 10 seconds), such as in joined
    recordings; the timestamps after it then count from there.

    Args:
        begin (`float`, *optional*): the timestamp of the first frame, if decoding begins at a later one.
    """

    def __init__(self, container, stream, limits: MediaLimits = LIMITS, begin: float | None = None):
        self._stream, self._begin = stream, begin
        self.step, self.time = usual_step(stream, limits), 0.0
        self.last: Any = None  # `av.VideoFrame`
        self._hold = limits.hold  # a longer time between two frames is a jump
        self._jump = min(limits.hold, CLOCK_JUMP) if has_flag(container, "ts_discont") else limits.hold

    def __call__(self, frame) -> float:
        seconds, is_first = frame_seconds(frame, self._stream), self.last is None
        self.last = frame
        if is_first:
            if self._begin is not None:
                assert seconds is not None  # `seek` has checked it
                self.time = seconds - self._begin
        elif seconds is None or self._begin is None:
            self.time += self.step
        elif -CLOCK_JITTER <= seconds - self._begin - self.time <= self._jump:
            self.time = max(self.time, seconds - self._begin)
        else:
            self.time += self.step
            self._begin = seconds - self.time
        if self._begin is None and seconds is not None:
            self._begin = seconds - self.time
        return self.time

    @property
    def end(self) -> float:
        """When the last frame leaves the screen."""
        lasts = float(self.last.duration * (self.last.time_base or 0)) if self.last.duration else self.step
        return self.time + (lasts if lasts <= self._hold else self.step)


def _sample_frames(
    container,
    stream,
    fps: float | None,
    name: str,
    limits: MediaLimits,
    first: int,
    origin: tuple[float, DisplayTransform] | None,
) -> Generator[tuple[np.ndarray, float]]:
    begin, transform = (None, DisplayTransform()) if origin is None else origin
    if origin is None:
        transform.begin(stream)
    clock = FrameClock(container, stream, limits, begin)
    tolerance = 5e-4  # some containers round timestamps to milliseconds
    frame, index = None, 0 if origin is None else first
    for next_frame in decoded_frames(container, stream, name, limits):
        time = clock(next_frame)
        while fps is not None and frame is not None and index / fps < time - tolerance:
            if index >= first:
                yield transform(frame), index / fps
            index += 1
        frame = next_frame
        if fps is None:
            yield transform(frame), time
    if frame is None and origin is None:
        raise ValueError(f"there is no frame in {name}")
    if fps is not None and frame is not None:
        while index == 0 or index / fps < clock.end - tolerance:
            if index >= first:
                yield transform(frame), index / fps
            index += 1


def decode_video(
    source, fps: float | None = DEFAULT_FPS, num_frames: int | None = None, limits: MediaLimits = LIMITS
) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a video as from `iter_video_frames`, and their times. Only sampled frames are kept in memory.

    Args:
        num_frames (`int`, *optional*): this many evenly spaced frames, instead of `fps`. The video is decoded twice.

    Returns:
        `(uint8 [F, H, W, 3], float64 [F] seconds)`.

    Raises:
        as `iter_video_frames`; `ValueError` also if the video has no frames or fewer than `num_frames`.
    """
    wanted = None
    if num_frames is not None:
        fps, total = None, sum(1 for _ in iter_video_frames(source, None, limits=limits))
        if not 1 <= num_frames <= total:
            raise ValueError(f"`num_frames` must be in [1, {total}], the frames of {shown(source)}, got {num_frames}")
        wanted = {index * total // num_frames for index in range(num_frames)}
    sampled, num_bytes = [], 0
    for index, frame in enumerate(iter_video_frames(source, fps, limits=limits)):
        if wanted is None or index in wanted:
            sampled.append(frame)
            num_bytes += frame[0].nbytes
            if num_bytes > limits.num_bytes:
                size = f"{limits.num_bytes / 2**30:g} GiB"
                raise ValueError(f"the frames of {shown(source)} take more than {size}; take fewer of them")
    images, times = zip(*sampled, strict=True)
    return np.stack(images), np.array(times)


def iter_video_blocks(source, fps: float, num_frames: int) -> Generator[tuple[np.ndarray, list[float]]]:
    """As `iter_video_frames`, with frames stacked into blocks `(uint8 [F, H, W, 3], F times)`. F is at most
    `num_frames`, and smaller where these would take more than `BLOCK_BYTES`."""
    images: list[np.ndarray] = []
    times: list[float] = []
    for image, time in iter_video_frames(source, fps):
        images.append(image)
        times.append(time)
        if len(images) == num_frames or len(images) * image.nbytes >= BLOCK_BYTES:
            yield np.stack(images), times
            images, times = [], []
    if images:
        yield np.stack(images), times


def frame_times(times, num_frames: int, fps: float, last: float | None) -> list[float]:
    """The times of frames that follow one at `last` (None: there is none), in seconds.

    Args:
        times (`list[float]`, *optional*): the times if they are known; otherwise one frame follows another at `fps`.

    Raises:
        `ValueError`: for another number of times than frames, times that are not finite, or times that go back.
    """
    if times is None:
        before = -1 / fps if last is None else last
        # one after the other, to the last bit as in calls of one frame
        return list(accumulate([1 / fps] * num_frames, initial=before))[1:]
    try:
        times = [float(time) for time in times]
    except TypeError as error:
        raise ValueError(f"`times` must be a list of seconds, got {times!r}") from error
    if len(times) != num_frames:
        raise ValueError(f"`times` must hold one time a frame, got {len(times)} for {num_frames} frames")
    earlier_times = [-math.inf if last is None else last, *times]
    for index, (earlier, time) in enumerate(zip(earlier_times, times, strict=False)):
        if not math.isfinite(time) or time < earlier:
            raise ValueError(
                f"`times` must be finite seconds that do not go back, got {time} at index {index} after {earlier}"
            )
    return times


__all__ = ["DEFAULT_FPS", "decode_video", "frame_times", "iter_video_blocks", "iter_video_frames", "measured_duration"]
