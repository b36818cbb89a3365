"""The safetensors files of extracted features: one per video, with metadata about the video and the model.

Shapes: `F` frames, `N` vision tokens per frame, `Dv` hidden size of the vision tower.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from .files import written_whole
from .frames import input_size

if TYPE_CHECKING:  # files are validated without waiting for torch
    import torch

TENSOR = "video_features"
# All metadata in one entry: safetensors writes several entries in an order that changes from run to run.
ENTRY = "videollm_mod"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "video": str,
    "video_bytes": (int, type(None)),
    "fps": float,
    "num_frames": int,
    "num_frame_tokens": int,
    "hidden_size": int,
    "fingerprint": str,
}


def model_fingerprint(model, video_processor) -> str:
    """Hash of everything that determines the features of a frame: the vision tower's weights, the tokens per frame and
    the preprocessing. Weights are hashed in bfloat16, so the dtype in which a checkpoint is loaded does not matter."""
    import torch

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
    rest["size"] = list(input_size(video_processor))
    rest["tokens"] = [config.frame_token_cls, list(config.frame_token_pooled or ())]
    kind = [config.frame_pooling, config.vision_feature_layer, config.drop_first_patch]
    if kind != ["average", None, False]:  # files from before these options are still right
        rest["tokens"] += kind
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()


def write_features(path: str | Path, features: "torch.Tensor", metadata: dict) -> None:
    """Write features `[F, N, Dv]` and their metadata (`FIELDS`) atomically."""
    from safetensors.torch import save

    with written_whole(path) as partial:
        partial.write_bytes(save({TENSOR: features.contiguous()}, {ENTRY: json.dumps(metadata, sort_keys=True)}))


def read_metadata(path: str | Path) -> dict:
    """The metadata of a features file (`FIELDS`), without reading the features.

    Raises:
        `FileNotFoundError`: if the file does not exist.
        `ValueError`: if it is not a complete features file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata, shape = (file.metadata() or {}).get(ENTRY), None
            if TENSOR in file.keys():  # noqa: SIM118 (not a mapping)
                shape = file.get_slice(TENSOR).get_shape()
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    if metadata is None or shape is None:
        raise ValueError(f"{path} is not a features file as `videollm-mod extract` writes it")
    metadata = json.loads(metadata)
    if any(not isinstance(metadata.get(name), types) for name, types in FIELDS.items()):
        raise ValueError(f"the metadata of {path} must have {', '.join(FIELDS)}, got {metadata}")
    if shape != [metadata["num_frames"], metadata["num_frame_tokens"], metadata["hidden_size"]]:
        raise ValueError(f"{path} holds features of shape {shape}, which does not match its metadata {metadata}")
    return metadata


def read_features(path: str | Path, first: int = 0, stop: int | None = None) -> "torch.Tensor":
    """Features `[F, N, Dv]` of the frames `first <= i < stop`; only these are read from the file.

    Raises:
        as `read_metadata`, and `ValueError` if the file has no frame `first`.
    """
    num_frames = read_metadata(path)["num_frames"]
    if first >= num_frames:
        raise ValueError(f"{path} ends before frame {first}: it holds {num_frames} frames")
    with safe_open(path, framework="pt") as file:
        return file.get_slice(TENSOR)[first:stop]
