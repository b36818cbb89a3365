"""Write video files in any container, codec, size and timing."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

PIXEL_FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8", "png": "rgb24", "ffv1": "bgr0", "prores_ks": "yuv422p10le"}


class Unseekable(io.RawIOBase):
    """An append-only file, like a pipe or socket: containers cannot write their duration."""

    def __init__(self, path: Path):
        self._file = open(path, "wb")  # noqa: SIM115

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()


def write_video(
    path: Path,
    frames: np.ndarray,
    codec: str,
    fps: float = 10,
    times=None,
    seekable=True,
    rotation=0,
    audio="",
    **options,
) -> Path:
    """Write uint8 frames `[F, H, W, 3]` at `fps`, or at `times` (seconds); `audio`: the codec of a silent track."""
    target = str(path) if seekable else Unseekable(path)
    container_format = (
        {".webm": "webm", ".mkv": "matroska", ".ts": "mpegts"}.get(path.suffix) if not seekable else None
    )
    with av.open(target, "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        if codec in ("libx264", "libx265", "libvpx-vp9"):
            stream.options = {"crf": "15"}
        elif codec in ("mpeg4", "mpeg2video", "mjpeg", "flv1"):
            stream.options = {"q": "2"}
        elif codec == "libvpx":
            stream.options = {"threads": "1"}  # several wait for each other in a loop: 1.2 s instead of 0.03
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream(audio, rate=48000) if audio else None
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for _ in range(int(len(frames) / fps * 46)):
                silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
                silence.sample_rate = 48000
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return path


def write_sound(path: Path, cover: bool = False) -> Path:
    """Two seconds of silence, optionally with a cover picture."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.height = picture.width = 32
            picture.pix_fmt = "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        for _ in range(86):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            frame.sample_rate = 44100
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        if cover:
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(picture.encode(frame))
            container.mux(picture.encode())
    return path


def moving(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 `[F, H, W, 3]`: a bright patch that moves over noise."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 90, (1, height, width, 3), dtype=np.uint8), num_frames, axis=0)
    for index in range(num_frames):
        row, column = index * height // num_frames, index * width // num_frames
        frames[index, row : row + max(1, height // 4), column : column + max(1, width // 4)] = 230
    return frames
