"""From frames to pixel values: layout, letterboxing, normalisation.

Shapes: `F` frames, `H` and `W` pixels.
"""

import functools
import os
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad
from transformers import BatchFeature
from transformers.image_utils import SizeDict, load_image

# `transformers.BaseVideoProcessor` is a dummy where torchvision is missing. The class itself needs torchvision only in
# methods that are overridden or not reached here.
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .containers import is_video_source, shown
from .decoding import DEFAULT_FPS, decode_video

LOADING_OPTIONS = ("fps", "num_frames", "do_sample_frames", "input_data_format")
IMAGE_NAMES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
PIXELS_AT_ONCE = 16 * 1280 * 720  # pixels that are held as float32 at full resolution
# options of what is done with each frame
FRAME_OPTIONS: tuple[str, ...] = ("do_resize", "size", "resample", "do_pad", "do_rescale", "rescale_factor")
FRAME_OPTIONS += ("do_normalize", "image_mean", "image_std")
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by the numbers of PIL's resampling filters


def channels_first(frames: torch.Tensor, input_data_format: str | None = None) -> torch.Tensor:
    """`[F, 3, H, W]` from `[F, H, W, 3]` or `[F, 3, H, W]`.

    Without `input_data_format` the channels are the axis of size 3; if both are (`[F, 3, H, 3]`), the last one.
    """
    axes = {"channels_last": -1, "channels_first": 1}
    for name in axes if input_data_format is None else [str(getattr(input_data_format, "value", input_data_format))]:
        if frames.ndim == 4 and 0 not in frames.shape and frames.shape[axes[name]] == 3:
            return frames.movedim(axes[name], 1)
    expected = "[F, H, W, 3] or [F, 3, H, W]" if input_data_format is None else input_data_format
    raise ValueError(f"a video must be {expected} and not empty, got the shape {list(frames.shape)}")


def flatten_videos(videos: Any, depth: int = 0) -> list:
    """The videos of a batch, nested or not, as a flat list.

    A list of frames is one video. A list of strings is a list of paths. Within another list, however, it is one video
    of image files if all have such names; in a list of samples (`depth` 2) it is always one video of image files.
    """
    if is_video_source(videos):
        return [videos]
    if isinstance(videos, np.ndarray | torch.Tensor):
        return list(videos) if videos.ndim == 5 else [videos]
    if not isinstance(videos, list | tuple):
        raise ValueError(f"`videos` must be paths, arrays, tensors or lists of frames, got {shown(videos)}")
    if videos and (depth == 2 or hasattr(videos[0], "convert") or getattr(videos[0], "ndim", None) == 3):
        return [videos]
    if videos and depth == 1 and all(is_named_image(item) for item in videos):
        return [videos]
    return [video for item in videos for video in flatten_videos(item, depth + 1)]


def is_named_image(item: Any) -> bool:
    """Whether `item` is a path or URL with the name of an image."""
    return isinstance(item, str | os.PathLike) and os.fspath(item).partition("?")[0].lower().endswith(IMAGE_NAMES)


def read_image(source: str):
    """A PIL image from a path, a URL or base64.

    Raises:
        `OSError`, `ValueError`: naming what cannot be read.
    """
    is_name = len(source) < 4096 and not source.startswith(("http://", "https://", "data:"))
    if is_name and "." in source and not os.path.exists(source):
        raise FileNotFoundError(f"there is no image {source}")
    try:
        return load_image(source)
    except (ValueError, OSError) as error:  # also for an address that cannot be reached
        reason = "" if is_name else f" ({' '.join(str(error).split())})"
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{shown(source)} is no image, as each of a list of frames must be{reason}") from error


def stack_frames(frames: list | tuple) -> torch.Tensor:
    """One tensor from a list of frames: 3-dimensional arrays, PIL images, or paths or URLs of images."""
    tensors = []
    for frame in frames:
        if isinstance(frame, str | os.PathLike):
            frame = read_image(os.fspath(frame))
        tensors.append(torch.as_tensor(np.array(frame.convert("RGB")) if hasattr(frame, "convert") else frame))
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) != 1:
        raise ValueError(f"the frames of a video must have one shape, got {sorted(shapes)}")
    return torch.stack(tensors)


class VideoLLMMoDVideoProcessor(BaseVideoProcessor):
    r"""
    Turns frames into `pixel_values_videos`, in plain torch on the frames' device; torchvision is not needed.

    Frames are `[F, H, W, 3]` or `[F, 3, H, W]` (see `channels_first`), integers from 0 to 255 or floats from 0 to 1.
    They are resized to `size`, rescaled to the range 0 to 1, and normalised. With `do_rescale=False` any range is
    allowed.

    Args:
        size (`dict`, defaults to 384 x 384): `{"height": int, "width": int}`.
        do_pad (`bool`, defaults to `True`): letterbox: keep the aspect ratio and pad with black on both sides.
            Otherwise frames are stretched.
        resample (`int`, defaults to 3): 2 bilinear, 3 bicubic (as SigLIP and CLIP), both antialiased.
        fps (`float`, defaults to 2.0): frames per second at which files and URLs are decoded. Arrays and lists of
            frames count as sampled already, unless `do_sample_frames=True`.
        do_resize, do_rescale, rescale_factor, do_normalize, image_mean, image_std: as in `transformers`. The factor
            applies to integers.

    Returns (called with `videos`):
        `pixel_values_videos`, float32 `[F, 3, height, width]`: the frames of all videos, one after another.

    Raises:
        `ValueError`: for no frames, another shape, values that are not finite or out of range, or an option that is
            not supported.
    """

    resample = 3
    size = {"height": 384, "width": 384}
    do_resize = True
    do_pad = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    do_center_crop: bool | None  # not supported
    do_convert_rgb = False
    do_sample_frames = False
    fps = DEFAULT_FPS
    model_input_names = ["pixel_values_videos"]

    def load_video(
        self,
        video: Any,
        fps: float | None = None,
        num_frames: int | None = None,
        do_sample_frames: bool | None = None,
        input_data_format: str | None = None,
    ) -> torch.Tensor:
        """Frames of one video, `[F, 3, H, W]` of its own dtype; a path, URL or file is decoded.

        Args:
            fps, num_frames: decode at `fps`, or this many evenly spaced frames; at the processor's fps by default.
            do_sample_frames: `False` without these two decodes every frame.
        """
        if is_video_source(video):
            if fps is not None and num_frames is not None:
                raise ValueError(f"give `fps` or `num_frames`, not both, got {fps} and {num_frames}")
            if fps is None and do_sample_frames is not False:
                fps = self.fps
            frames, _ = decode_video(video, fps, num_frames)
            return torch.from_numpy(frames).movedim(-1, 1)
        if isinstance(video, list | tuple):
            if do_sample_frames:
                # In the words of transformers, whose users look for them.
                raise ValueError(
                    "Sampling frames from a list of images is not supported! Set `do_sample_frames=False`."
                )
            video = stack_frames(video)
        if isinstance(video, np.ndarray) and video.dtype.kind in "biuf":
            # torch has no negative strides, and needs writable memory.
            video = torch.from_numpy(np.require(video, requirements=["C", "W"]))
        if not isinstance(video, torch.Tensor):
            raise ValueError(f"a video must be a path, URL, file, numbers or a list of frames, got {shown(video)}")
        return channels_first(video, input_data_format)

    def preprocess(self, videos, **kwargs) -> BatchFeature:
        """See the class. `videos`: one or several (`flatten_videos`); keyword arguments override attributes."""
        videos = flatten_videos(videos)
        if not videos:
            raise ValueError("`videos` is empty")
        options = {name: kwargs.get(name) for name in LOADING_OPTIONS}
        if any(is_video_source(video) for video in videos):
            kwargs["do_sample_frames"] = False
        if options["num_frames"] is not None:
            kwargs.setdefault("fps", None)  # for transformers, which refuses both
        videos = [self.load_video(video, **options) for video in videos]
        # transformers would guess these from shapes, which fails for frames of 1 or 3 pixels.
        kwargs |= {"input_data_format": "channels_first", "do_convert_rgb": False}
        if kwargs.get("video_metadata") is None:
            kwargs["video_metadata"] = [
                VideoMetadata(total_num_frames=len(video), frames_indices=list(range(len(video)))) for video in videos
            ]
        return super().preprocess(videos, **kwargs)

    def to_pixels(self, frames: torch.Tensor) -> torch.Tensor:
        """As `preprocess` of one video `[F, 3, H, W]` with the processor's own options, but without checking them, for
        streams that come frame by frame. Returns float32 `[F, 3, height, width]`."""
        options = {name: getattr(self, name) for name in FRAME_OPTIONS}
        if not hasattr(options["size"], "height"):
            options["size"] = SizeDict(**options["size"])
        if self.do_center_crop:
            raise ValueError("`do_center_crop` is not supported")
        by_products = frames.device.type == "cuda" and frames.dtype == torch.uint8
        by_products = by_products and options["do_resize"] and options["do_rescale"]
        preprocess = pixels_by_products if by_products else self._preprocess_frames
        pixel_values = [preprocess(chunk, **options) for chunk in in_chunks(frames)]
        return pixel_values[0] if len(pixel_values) == 1 else torch.cat(pixel_values)

    def _preprocess(  # type: ignore[override]  # the other options are passed on
        self, videos: list[torch.Tensor], return_tensors: str | None = None, **options
    ) -> BatchFeature:
        if options["do_center_crop"]:
            raise ValueError("`do_center_crop` is not supported")
        pixel_values = [self._preprocess_frames(chunk, **options) for video in videos for chunk in in_chunks(video)]
        sizes = {tuple(frames.shape[-2:]) for frames in pixel_values}
        if len(sizes) > 1:
            raise ValueError(f"frames of different sizes need `do_resize=True`, got {sorted(sizes)}")
        return BatchFeature({"pixel_values_videos": torch.cat(pixel_values)}, tensor_type=return_tensors)

    @staticmethod
    def _preprocess_frames(
        frames: torch.Tensor,
        do_resize: bool,
        size: Any,
        resample: int,
        do_pad: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        **kwargs,
    ) -> torch.Tensor:
        """`[F, 3, H, W]` to float32 `[F, 3, height, width]`."""
        dtype, frames = frames.dtype, frames.float()
        top = 1 if dtype.is_floating_point else 255
        if dtype.is_floating_point and not frames.isfinite().all():
            raise ValueError("frames must be finite, got nan or inf")
        if do_rescale and dtype != torch.uint8:
            low, high = (value.item() for value in frames.aminmax())
            if low < 0 or high > top:
                raise ValueError(
                    f"frames of {dtype} must be in [0, {top}], got values from {low} to {high}; with "
                    "`do_rescale=False` they are taken as they are"
                )
        if do_resize:
            frames = resize_frames(frames, size, resample, do_pad)
            if do_rescale:
                frames = frames.clamp(0, top)  # bicubic overshoots
        if do_rescale and not dtype.is_floating_point:
            frames = frames * rescale_factor
        if do_normalize:
            mean, std = (of_channels(tuple(np.ravel(x)), frames.device) for x in (image_mean, image_std))
            frames = (frames - mean) / std
        return frames


def in_chunks(frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return frames.split(max(1, PIXELS_AT_ONCE // (frames.shape[-2] * frames.shape[-1])))


@functools.lru_cache(16)
@torch.inference_mode(False)  # cached tensors may be used with gradients later
def of_channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """float32 `[3 or 1, 1, 1]`. Cached, since copying it to a GPU waits for all work of the GPU."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


@functools.lru_cache(16)
@torch.inference_mode(False)
def resizing(old: int, new: int, black: tuple[int, int], mode: str, device: torch.device) -> torch.Tensor:
    """The matrix of resizing, float32 `[black + new + black, old]`: resizing is linear, so this is the resized
    identity matrix, with rows of zeros for the black bars."""
    matrix = interpolate(torch.eye(old)[None, None], (new, old), mode=mode, antialias=True)[0, 0]
    return pad(matrix, (0, 0, *black)).to(device)


@functools.lru_cache(16)
@torch.inference_mode(False)
def scale_and_shift(factor: float, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device):
    """Rescaling and normalising as one factor and one summand, float32 `[3 or 1, 1, 1]` each."""
    means, stds = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
    return (factor / stds).float().to(device), (-means / stds).float().to(device)


def resize_frames(frames: torch.Tensor, size: Any, resample: int, do_pad: bool) -> torch.Tensor:
    """float `[F, 3, H, W]` to `[F, 3, size.height, size.width]`, letterboxed with zeros if `do_pad`."""
    new_size, (above, below), (left, right) = placed(frames.shape[-2:], size, resample, do_pad)
    if new_size != tuple(frames.shape[-2:]):
        frames = interpolate(frames, new_size, mode=INTERPOLATIONS[resample], antialias=True)
    return pad(frames, (left, right, above, below))


def placed(old_size: tuple[int, ...], size: Any, resample: int, do_pad: bool) -> tuple[tuple[int, ...], ...]:
    """The size (height, width) of resized frames within `size`, and the widths of the black bars before and after them
    on each of the two axes."""
    if not (size.height and size.width):
        raise ValueError(f"`size` must be {{'height': int, 'width': int}}, got {shown(size)}")
    if resample not in INTERPOLATIONS:
        raise ValueError(f"`resample` must be one of {INTERPOLATIONS}, got {shown(resample)}")
    new_size: tuple[int, ...] = (size.height, size.width)
    if do_pad:
        scale = min(size.height / old_size[0], size.width / old_size[1])
        new_size = tuple(max(1, round(pixels * scale)) for pixels in old_size)
    rows, columns = size.height - new_size[0], size.width - new_size[1]
    return new_size, (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)


def pixels_by_products(
    frames: torch.Tensor,
    size: Any,
    resample: int,
    do_pad: bool,
    rescale_factor: float,
    do_normalize: bool,
    image_mean: Any,
    image_std: Any,
    **kwargs,
) -> torch.Tensor:
    """As `_preprocess_frames` of uint8 frames that are resized and rescaled, up to rounding. It has only five kernel
    launches, which take most of the time of a frame on a GPU; zeros in the resizing matrices make the black bars."""
    new_size, *black = placed(frames.shape[-2:], size, resample, do_pad)
    rows, columns = (
        resizing(*sides, INTERPOLATIONS[resample], frames.device)
        for sides in zip(frames.shape[-2:], new_size, black, strict=True)
    )
    mean, std = (tuple(np.ravel(x)) for x in ((image_mean, image_std) if do_normalize else (0.0, 1.0)))
    scale, shift = scale_and_shift(rescale_factor, mean, std, frames.device)
    frames = frames.to(torch.float32, memory_format=torch.contiguous_format)
    return torch.addcmul(shift, (rows @ frames @ columns.T).clamp_(0, 255), scale)


VideoLLMMoDVideoProcessor.register_for_auto_class()

__all__ = ["VideoLLMMoDVideoProcessor"]
