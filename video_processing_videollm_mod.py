"""From frames to pixel values: layout, letterboxing, normalisation.

Shapes: `F` frames, `H` and `W` pixels.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad
from transformers import BatchFeature
from transformers.image_utils import SizeDict, load_image
from transformers.processing_utils import VideosKwargs

# `transformers.BaseVideoProcessor` is a dummy where torchvision is missing. The class itself needs torchvision only in
# methods that are overridden or not reached here.
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .configuration_videollm_mod import ImageTiling
from .containers import is_video_source, shown
from .decoding import DEFAULT_FPS, decode_video

LOADING_OPTIONS = ("fps", "num_frames", "do_sample_frames", "input_data_format")
IMAGE_NAMES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
PIXELS_AT_ONCE = 16 * 1280 * 720  # pixels that are held as float32 at full resolution
# options of what is done with each frame
FRAME_OPTIONS: tuple[str, ...] = ("do_resize", "size", "resample", "do_pad", "do_rescale", "rescale_factor")
FRAME_OPTIONS += (
    "do_normalize",
    "image_mean",
    "image_std",
    "do_center_crop",
    "crop_size",
    "max_image_size",
    "as_pictures",
)
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by the numbers of PIL's resampling filters
BAND_ROWS, BAND_COLUMNS = 4, 16  # of a resized frame that are computed together on a CPU
LARGEST_EDGE = 4096  # of an image whose longest edge is resized


class FrameOptions(VideosKwargs, total=False):
    """Options of frames that transformers does not know of all videos."""

    max_image_size: dict[str, int] | None
    image_size: dict[str, int] | None
    do_image_splitting: bool
    image_tiling: dict | None
    as_pictures: bool


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


def flatten_images(images: Any) -> list:
    """The images of a batch, nested or not, as a flat list. A 4-dimensional array holds several."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in flatten_images(item)]
    return list(images) if getattr(images, "ndim", None) == 4 else [images]


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
        size (`dict`, defaults to 384 x 384): `{"height": int, "width": int}`; with `as_pictures` also the length of
            one edge, which keeps the aspect ratio: `{"shortest_edge": int}` with `do_center_crop` (CLIP), or
            `{"longest_edge": int}` with `max_image_size` (SmolVLM, Idefics3).
        do_pad (`bool`, defaults to `True`): letterbox: keep the aspect ratio and pad with black on both sides.
            Otherwise frames are stretched.
        resample (`int`, defaults to 3): 2 bilinear, 3 bicubic (as SigLIP and CLIP), with `as_pictures` also 1 Lanczos;
            all antialiased.
        as_pictures (`bool`, defaults to `False`): stretch, and round in between as PIL does, for models that were
            trained so: pixel values are within one grey level of those of the family's own processor.
        do_center_crop (`bool`), crop_size (`dict`): cut `{"height": int, "width": int}` out of the middle.
        max_image_size (`dict`, *optional*): `{"longest_edge": int}`, the side of the square to which frames are
            stretched at last, and that of the tiles of an image.
        image_size (`dict`, *optional*): `size` of images, where it is another one.
        do_image_splitting (`bool`, defaults to `False`): images that are larger become tiles and a small whole image.
        image_tiling (`dict`, *optional*): how images become tiles whose tokens are joined, see `ImageTiling`.
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
    do_center_crop = None
    max_image_size: dict[str, int] | None = None
    image_size: dict[str, int] | None = None
    do_image_splitting = False
    image_tiling: dict | None = None
    as_pictures = False
    valid_kwargs = FrameOptions  # type: ignore[assignment]  # the base class annotates those of images
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
        return self.load_timed_video(video, fps, num_frames, do_sample_frames, input_data_format)[0]

    def load_image(self, image: Any, input_data_format: str | None = None) -> torch.Tensor:
        """One image as a frame, `[1, 3, H, W]` of its own dtype: a PIL image, a path, URL, base64, or an array or
        tensor `[H, W, 3]` or `[3, H, W]`."""
        if isinstance(image, str | os.PathLike):
            image = read_image(os.fspath(image))
        if not hasattr(image, "convert") and getattr(image, "ndim", None) != 3:
            raise ValueError(f"an image must be a PIL image, a path, a URL or [H, W, 3], got {shown(image)}")
        return self.load_video([image], input_data_format=input_data_format)

    def load_frames(self, frames: Any) -> torch.Tensor:
        """Frames that a stream was given, `[F, 3, H, W]`: as `load_video` without sampling; a single one may be a PIL
        image or 3-dimensional."""
        is_single = hasattr(frames, "convert") or getattr(frames, "ndim", None) == 3
        return self.load_image(frames) if is_single else self.load_video(frames, do_sample_frames=False)

    def prepare_image(self, image: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """An image `[1, 3, H, W]` as frames that are not resized any more, and how many rows and columns of tiles are
        among them, before the whole image. Needs `max_image_size`."""
        assert self.max_image_size is not None
        side, size = self.max_image_size["longest_edge"], self.image_size or self.size
        dtype, image, top = image.dtype, image.float(), 1 if image.dtype.is_floating_point else 255
        height, width = image.shape[-2:]
        if size.get("longest_edge"):
            height, width = longest_edge_size(height, width, size["longest_edge"])
        sizes, rows, columns = [(height, width)], 0, 0
        if self.do_image_splitting:
            if width >= height:
                across = -(-width // side) * side
                down = math.ceil(int(across / (width / height)) / side) * side
            else:
                down = -(-height // side) * side
                across = math.ceil(int(down * (width / height)) / side) * side
            rows, columns = (down // side, across // side) if max(down, across) > side else (0, 0)
            sizes.append((down, across))
        image = resize_as_pictures(image, sizes, self.resample, top)
        frames = resize_as_pictures(image, [(side, side)], self.resample, top)
        if rows:
            tiles = image[0].unflatten(2, (columns, side)).unflatten(1, (rows, side))  # [3, rows, side, columns, side]
            frames = torch.cat([tiles.permute(1, 3, 0, 2, 4).flatten(0, 1), frames])
        return frames.to(dtype), (rows, columns)

    def cut_image(self, image: torch.Tensor, is_tiled: bool) -> torch.Tensor:
        """An image `[1, 3, H, W]` as frames that are not resized any more: the whole image and, if it is to be tiled,
        the tiles of `image_tiling`. The whole image is stretched to a square if it is tiled, else padded."""
        tiling = ImageTiling(**(self.image_tiling or {}))
        dtype, image, top = image.dtype, image.float(), 1 if image.dtype.is_floating_point else 255
        (height, width), side = image.shape[-2:], tiling.side

        def padded(image: torch.Tensor, size: tuple[int, int], colour: Any) -> torch.Tensor:
            above, left = ((new - old) // 2 for old, new in zip(image.shape[-2:], size, strict=True))
            canvas = image.new_tensor(colour).view(-1, 1, 1).expand(1, 3, *size).clone()
            canvas[..., above : above + image.shape[-2], left : left + image.shape[-1]] = image
            return canvas

        if not is_tiled:  # the colour is the mean, rounded down to a grey level
            colour = [int(255 * mean) * top / 255 for mean in self.image_mean]
            square = padded(image, (max(height, width),) * 2, colour)
            return resize_as_pictures(square, [(side, side)], self.resample, top).to(dtype)
        size = tiling.best_size(height, width)
        scale = min(size[0] / height, size[1] / width)
        inner = [min(math.ceil(old * scale), new) for old, new in zip((height, width), size, strict=True)]
        scaled = padded(resize_as_pictures(image, [(inner[0], inner[1])], self.resample, top), size, [0.0] * 3)
        whole = resize_as_pictures(image, [(side, side)], self.resample, top)
        tiles = scaled[0].unflatten(2, (-1, side)).unflatten(1, (-1, side))  # [3, rows, side, columns, side]
        return torch.cat([whole, tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)]).to(dtype)

    @property
    def frame_size(self) -> list | None:
        """Height and width of pixel values; None if frames are not resized."""
        if self.do_center_crop:
            return [self.crop_size["height"], self.crop_size["width"]]
        if self.max_image_size is not None:
            return [self.max_image_size["longest_edge"]] * 2
        return [self.size.get(name) for name in ("height", "width")] if self.do_resize else None

    def load_timed_video(
        self,
        video: Any,
        fps: float | None = None,
        num_frames: int | None = None,
        do_sample_frames: bool | None = None,
        input_data_format: str | None = None,
    ) -> tuple[torch.Tensor, list[float] | None]:
        """As `load_video`, with the times of the frames in seconds if the video is decoded."""
        if is_video_source(video):
            if fps is not None and num_frames is not None:
                raise ValueError(f"give `fps` or `num_frames`, not both, got {fps} and {num_frames}")
            if fps is None and do_sample_frames is not False:
                fps = self.fps
            frames, times = decode_video(video, fps, num_frames)
            return torch.from_numpy(frames).movedim(-1, 1), times.tolist()
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
        return channels_first(video, input_data_format), None

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
        by_products = frames.device.type in ("cpu", "cuda") and frames.dtype == torch.uint8
        by_products = by_products and options["do_resize"] and options["do_rescale"] and "height" in self.size
        by_products = by_products and not self.do_center_crop and not self.as_pictures
        for name in ("size", "crop_size"):
            if isinstance(options[name], dict):
                options[name] = SizeDict(**options[name])
        preprocess = pixels_by_products if by_products else self._preprocess_frames
        pixel_values = [preprocess(chunk, **options) for chunk in in_chunks(frames)]
        return pixel_values[0] if len(pixel_values) == 1 else torch.cat(pixel_values)

    def _preprocess(  # type: ignore[override]  # the other options are passed on
        self, videos: list[torch.Tensor], return_tensors: str | None = None, **options
    ) -> BatchFeature:
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
        do_center_crop: bool | None = None,
        crop_size: Any = None,
        max_image_size: dict | None = None,
        as_pictures: bool = False,
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
            sizes = sizes_in_turn(frames.shape[-2:], size, do_center_crop, max_image_size) if as_pictures else None
            if sizes is None:
                frames = resize_frames(frames, size, resample, do_pad)
            else:
                frames = resize_as_pictures(frames, sizes, resample, top)
            if do_rescale:
                frames = frames.clamp(0, top)  # bicubic overshoots
        if do_center_crop:
            frames = center_crop(frames, crop_size)
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


FILTERS: dict[
    int, tuple[int, Callable[[torch.Tensor], torch.Tensor]]
] = {  # their reach, and their weight at a distance
    1: (3, lambda x: x.sinc() * (x / 3).sinc()),
    2: (1, lambda x: 1 - x),
    3: (2, lambda x: torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2)),
}
PRECISION = 2**22  # PIL rounds the weights of a filter to whole numbers of this fraction


@functools.lru_cache(16)
@torch.inference_mode(False)
def picture_resizing(old: int, new: int, resample: int, device: torch.device) -> torch.Tensor:
    """The matrix with which PIL resizes, float64 `[new, old]`."""
    reach, weight = FILTERS[resample]
    centers = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * old / new
    distance = (torch.arange(old, dtype=torch.float64) + 0.5 - centers).abs() / max(old / new, 1.0)
    weights = torch.where(distance < reach, weight(distance), 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    return ((weights * PRECISION).round() / PRECISION).to(device)


def sizes_in_turn(
    old_size: tuple[int, ...], size: Any, do_center_crop: bool | None, max_image_size: dict | None
) -> list[tuple[int, int]] | None:
    """The sizes (height, width) to which frames are resized one after the other; None if `size` says nothing of it."""
    height, width = old_size
    if size.longest_edge and max_image_size:
        side = max_image_size["longest_edge"]
        return [longest_edge_size(height, width, size.longest_edge), (side, side)]
    if size.shortest_edge and do_center_crop:
        short, long = size.shortest_edge, int(size.shortest_edge * max(old_size) / min(old_size))
        return [(short, long) if height <= width else (long, short)]
    return [(size.height, size.width)] if size.height and size.width else None


def longest_edge_size(height: int, width: int, edge: int) -> tuple[int, int]:
    """The size with this longest edge; the other one is rounded down, and then up to an even number."""
    edge = min(edge, LARGEST_EDGE)
    if width >= height:
        height, width = int(edge / (width / height)), edge
        height += height % 2
    else:
        height, width = edge, int(edge * (width / height))
        width += width % 2
    return max(height, 1), max(width, 1)


def resize_as_pictures(frames: torch.Tensor, sizes: list[tuple[int, int]], resample: int, top: int) -> torch.Tensor:
    """float `[F, 3, H, W]` to one size after the other. As in PIL rows are resized before columns, and what comes out
    each time is rounded to the values of a picture. top: the largest value, 255 for whole numbers."""
    if resample not in FILTERS:
        raise ValueError(f"`resample` must be one of {list(FILTERS)}, got {shown(resample)}")

    def rounded(frames: torch.Tensor) -> torch.Tensor:
        frames = frames.clamp(0, top)
        return (frames + 0.5).floor() if top == 255 else frames

    frames = frames.double()  # then the sums of whole numbers are exact
    for height, width in sizes:
        if width != frames.shape[-1]:
            frames = rounded(frames @ picture_resizing(frames.shape[-1], width, resample, frames.device).T)
        if height != frames.shape[-2]:
            frames = rounded(picture_resizing(frames.shape[-2], height, resample, frames.device) @ frames)
    return frames.float()


def center_crop(frames: torch.Tensor, size: Any) -> torch.Tensor:
    """The middle of frames; black is put around those that are smaller."""
    if not (size and size.height and size.width):
        raise ValueError(f"`crop_size` must be {{'height': int, 'width': int}}, got {shown(size)}")
    above, left = ((old - new) // 2 for old, new in zip(frames.shape[-2:], (size.height, size.width), strict=True))
    below, right = (size.height - frames.shape[-2] + above, size.width - frames.shape[-1] + left)
    return pad(frames, (-left, right, -above, below))


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
        raise ValueError(
            "`size` must be {'height': int, 'width': int}, or with `as_pictures` {'shortest_edge': int} and "
            f"`do_center_crop`, or {{'longest_edge': int}} and `max_image_size`, got {shown(size)}"
        )
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
    launches, which take most of the time of a frame on a GPU; zeros in the resizing matrices make the black bars. A
    CPU leaves out the zeros."""
    new_size, *black = placed(frames.shape[-2:], size, resample, do_pad)
    rows, columns = zip(frames.shape[-2:], new_size, black, strict=True)
    mean, std = (tuple(np.ravel(x)) for x in ((image_mean, image_std) if do_normalize else (0.0, 1.0)))
    scale, shift = scale_and_shift(rescale_factor, mean, std, frames.device)
    if frames.device.type == "cpu":
        resized = resized_in_bands(frames, rows, columns, INTERPOLATIONS[resample])
    else:
        left, right = (resizing(*side, INTERPOLATIONS[resample], frames.device) for side in (rows, columns))
        resized = left @ frames.to(torch.float32, memory_format=torch.contiguous_format) @ right.T
    return torch.addcmul(shift, resized.clamp_(0, 255), scale)


def resized_in_bands(frames: torch.Tensor, rows: tuple, columns: tuple, mode: str) -> torch.Tensor:
    """uint8 `[F, 3, H, W]` to float32 of another size, with black bars, in either memory layout.

    Args:
        rows, columns: the old and the new number of pixels along an axis, and the widths of the bars.
    """
    # frame by frame, and few rows of it at a time: as float32 they stay in the processor's cache
    resized = torch.stack([frame_in_bands(frame, rows[:2], columns[:2], mode) for frame in frames])
    return pad(resized, (*columns[2], *rows[2]))


def frame_in_bands(frame: torch.Tensor, rows: tuple[int, int], columns: tuple[int, int], mode: str) -> torch.Tensor:
    """uint8 `[3, H, W]` to float32 of another size."""
    by_rows = frame.permute(1, 2, 0)  # as decoders give them
    planes = [by_rows.flatten(1)] if by_rows.is_contiguous() else frame.unbind()
    parts = bands(*rows, mode, BAND_ROWS)
    found = torch.stack([torch.cat([part @ plane[own].float() for own, part in parts]) for plane in planes])
    if len(found) == 1:
        found = found.unflatten(2, (columns[0], -1))[0].permute(2, 0, 1)
    lines = found.reshape(-1, columns[0])
    found = torch.cat([lines[:, own] @ part.T for own, part in bands(*columns, mode, BAND_COLUMNS)], dim=1)
    return found.view(-1, rows[1], columns[1])


@functools.lru_cache(16)
@torch.inference_mode(False)
def bands(old: int, new: int, mode: str, size: int) -> list[tuple[slice, torch.Tensor]]:
    """The rows of `resizing`, `size` at a time, with the columns between which they are not zero."""
    found = []
    for part in resizing(old, new, (0, 0), mode, torch.device("cpu")).split(size):
        used = part.any(0).nonzero()
        own = slice(int(used[0]), int(used[-1]) + 1)
        found.append((own, part[:, own].contiguous()))
    return found


VideoLLMMoDVideoProcessor.register_for_auto_class()

__all__ = ["VideoLLMMoDVideoProcessor"]
