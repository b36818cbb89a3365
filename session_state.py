"""A streaming session as a file: saved at any point, it goes on from there in another process.

The file is a safetensors file: the cache's tensors, and everything else as JSON in its metadata, with a version and a
checksum over both. Nothing in it is code.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig

from .memory import FIELDS

FORMAT = "videollm-mod session"
VERSION = 2
OPTIONS = (
    "system_prompt",
    "speak_threshold",
    "keep_ratio",
    "max_cached_frames",
    "max_cached_bytes",
    "max_new_tokens",
    "cache_policy",
)
STATE = ("query", "time", "_in_stream", "_ahead", "_pending", "_counts", "_seconds")
# of the text config: what a cache means depends on these
SHAPE_OPTIONS = (
    "hidden_size",
    "num_hidden_layers",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rope_parameters",
)
ROUTING_OPTIONS = (
    "vision_routing",
    "mod_layers",
    "mod_selection",
    "mod_gate",
    "mod_force_keep_last",
    "mod_seed",
    "early_exit_layer",
)


def model_fingerprint(model) -> str:
    """Tells models apart whose sessions cannot be exchanged: by their options, dtype and some of all weights."""
    text = model.config.text_config
    options = {name: getattr(text, name) for name in (*SHAPE_OPTIONS, *ROUTING_OPTIONS)}
    options |= {"dtype": str(model.dtype), "num_frame_tokens": model.config.num_frame_tokens}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        digest.update(raw_bytes(weight.detach().flatten()[:: max(1, weight.numel() // 16)].cpu()))
    return digest.hexdigest()


def raw_bytes(value: torch.Tensor):
    """The bytes of a tensor of any dtype and layout, as an array."""
    return value.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy()


def checksum(tensors: dict[str, torch.Tensor], content: str) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(raw_bytes(value))
    return digest.hexdigest()


def save_session(session, path: str | os.PathLike) -> Path:
    """Write `session` to `path`; its folder must exist. See `StreamingSession.save`."""
    path, cache = Path(path), session.cache
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be a file, {path} is a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of `path` does not exist: {path.parent}")
    tensors = {"next_position": cache.next_position, "frame_ends": cache.frame_ends}
    for index, layer in enumerate(cache.layers):
        if layer.is_initialized:
            tensors |= {f"layers.{index}.keys": layer.keys, f"layers.{index}.values": layer.values}
            tensors[f"layers.{index}.positions"] = layer.positions.clone()  # dense layers share theirs
    if session._memory is not None:
        tensors |= {f"memory.{name}": getattr(session._memory, name) for name in FIELDS}
    if session._sampler.generator is not None:
        tensors["generator"] = session._sampler.generator.get_state()
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items() if value is not None}
    config = session.generation_config
    options = {name: getattr(session, name) for name in OPTIONS}
    if options["keep_ratio"] is None:
        options["keep_ratio"] = session.model.keep_ratio  # which may be another one by the time it is restored
    content = json.dumps(
        {
            "model": model_fingerprint(session.model),
            "options": options,
            "generation_config": None if config is None else json.loads(config.to_json_string(use_diff=True)),
            "state": {name: getattr(session, name) for name in STATE},
            "seen_tokens": cache.seen_tokens,
            "frames_forgotten": cache.frames_forgotten,
            "tokens_forgotten": 0 if session._memory is None else session._memory.forgotten,
        }
    )
    metadata = {"format": FORMAT, "version": str(VERSION), "content": content}
    metadata["checksum"] = checksum(tensors, content)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except SafetensorError as error:  # such as a full disk
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_session(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and content of a saved session, checked to be whole."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no saved session {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} is no saved session")
            if metadata["version"] != str(VERSION):
                raise ValueError(
                    f"{path} was saved in version {metadata['version']!r}, this package reads version {VERSION}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = metadata["checksum"] == checksum(tensors, metadata["content"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is no saved session, or damaged: {error}") from error
    if not whole:
        raise ValueError(f"{path} is damaged: its checksum does not fit its content")
    return tensors, json.loads(metadata["content"])


def load_session(cls, path: str | os.PathLike, model, processor):
    """See `StreamingSession.load`."""
    path = Path(path)
    tensors, content = read_session(path)
    try:
        if content["model"] != model_fingerprint(model):
            raise ValueError(f"{path} was saved with another model, other routing options or another dtype")
        return restore(cls, tensors, content, model, processor)
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is no saved session of this package: {error!r}") from error


def restore(cls, tensors: dict[str, torch.Tensor], content: dict, model, processor):
    config = content["generation_config"]
    config = None if config is None else GenerationConfig.from_dict(config)
    options = {name: content["options"][name] for name in OPTIONS}
    session = cls(model, processor, **options, generation_config=config)
    for name in STATE:
        setattr(session, name, content["state"][name])
    cache, tensors = session.cache, {name: value.to(model.device) for name, value in tensors.items()}
    cache.seen_tokens, cache.frames_forgotten = content["seen_tokens"], content["frames_forgotten"]
    cache.next_position, cache.frame_ends = tensors.get("next_position"), tensors.get("frame_ends")
    for index, layer in enumerate(cache.layers):
        if f"layers.{index}.keys" in tensors:
            layer.lazy_initialization(tensors[f"layers.{index}.keys"], tensors[f"layers.{index}.values"])
            for name in ("keys", "values", "positions"):
                setattr(layer, name, tensors[f"layers.{index}.{name}"])
    if session._memory is not None:
        session._memory.forgotten = content["tokens_forgotten"]
        for name in FIELDS:
            setattr(session._memory, name, tensors[f"memory.{name}"].cpu())
    if session._sampler.generator is not None:
        session._sampler.generator.set_state(tensors["generator"].cpu())
    return session


__all__ = ["load_session", "save_session"]
