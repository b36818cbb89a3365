"""Features of one video in one safetensors file, which says what they are of and which model made them.

Shapes: `F` frames, `N` vision tokens per frame, `Dv` hidden size of the vision tower.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .files import written_whole

TENSOR = "video_features"
# One entry that holds them all: safetensors writes several in an order that changes from run to run.
ENTRY = "videollm_mod"
FIELDS = {
    "video": str,
    "video_bytes": (int, type(None)),
    "fps": float,
    "num_frames": int,
    "num_frame_tokens": int,
    "hidden_size": int,
    "fingerprint": str,
}


def fingerprint(model, video_processor) -> str:
    """Hash of all that decides the features of a frame: the vision tower's weights in bfloat16 (so that it is the same
    in whatever type a checkpoint is loaded), the tokens per frame, and the preprocessing."""
    digest = hashlib.sha256()
    for name, value in sorted(model.model.vision_tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    config = model.config
    rest = {
        name: getattr(video_processor, name)
        for name in ("do_resize", "do_pad", "do_rescale", "do_normalize", "resample", "rescale_factor")
    }
    rest |= {name: list(getattr(video_processor, name)) for name in ("image_mean", "image_std")}
    rest["size"] = [video_processor.size["height"], video_processor.size["width"]]
    rest["tokens"] = [config.frame_token_cls, list(config.frame_token_pooled or ())]
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()


def write_features(path: str | Path, features: torch.Tensor, about: dict) -> None:
    """Write features `[F, N, Dv]` with what `about` says of them (`FIELDS`), whole or not at all."""
    with written_whole(path) as partial:
        partial.write_bytes(save({TENSOR: features.contiguous()}, {ENTRY: json.dumps(about, sort_keys=True)}))


def read_about(path: str | Path) -> dict:
    """What a file of features says of itself, see `FIELDS`; the features are not read.

    Raises:
        `FileNotFoundError`: if there is none.
        `ValueError`: if it is no whole file of features.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about, shape = (file.metadata() or {}).get(ENTRY), None
            if TENSOR in file.keys():  # noqa: SIM118 (not a mapping)
                shape = file.get_slice(TENSOR).get_shape()
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if about is None or shape is None:
        raise ValueError(f"{path} holds no features with their origin; `videollm-mod extract` writes such files")
    about = json.loads(about)
    if any(not isinstance(about.get(name), types) for name, types in FIELDS.items()):
        raise ValueError(f"{path} does not say all of {', '.join(FIELDS)}, got {about}")
    if shape != [about["num_frames"], about["num_frame_tokens"], about["hidden_size"]]:
        raise ValueError(f"{path} holds features of the shape {shape}, which is not what it says: {about}")
    return about


def read_features(path: str | Path, first: int = 0, stop: int | None = None) -> torch.Tensor:
    """The rows `first <= i < stop` of a file's features, `[F, N, Dv]`; only they are read.

    Raises:
        as `read_about`; `ValueError` too if there is no such row.
    """
    about = read_about(path)
    if first >= about["num_frames"]:
        raise ValueError(f"{path} ends before frame {first}: it holds {about['num_frames']}")
    with safe_open(path, framework="pt") as file:
        return file.get_slice(TENSOR)[first:stop]
