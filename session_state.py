"""The state of a streaming session, and the file that holds it: saved at any point, a session continues in another
process.

The file is a safetensors file. The tensors of the cache are its tensors, everything else is JSON in its metadata, with
a version and a checksum over both. It holds no code.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from operator import methodcaller
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig
from transformers.modeling_outputs import ModelOutput

from .cache import MoDCache
from .memory import FIELDS, StreamMemory
from .speaking import Reply

FORMAT = "videollm-mod session"
VERSION = 4
READABLE = (2, 3, 4)
STAGES = ("preprocess", "vision", "language", "generation")  # and "verify", where narrations are verified
COUNTS = ("frames", "verified", "narrations", "answers")
OPTIONS = (
    "system_prompt",
    "speak_rule",
    "speak_threshold",
    "keep_ratio",
    "max_cached_frames",
    "max_cached_bytes",
    "max_cached_text",
    "max_new_tokens",
    "cache_policy",
)
# fields of the text config on which the meaning of a cache depends
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


@dataclass
class StreamStats(ModelOutput):
    """Counts, memory and times of a session; readable by name and by key.

    Args:
        frames, narrations, answers (`int`): so far.
        verified (`int`): frames after which the last narration was verified.
        tokens (`int`): of the stream, vision and text.
        kv_bytes (`int`): size of the cache; `kv_bytes_if_dense` is its size if every layer held every token.
        seconds (`dict[str, float]`): spent in each stage: `preprocess`, `vision`, `language` (watching frames) and
            `generation` (narrations and answers); on a CUDA device it is the time of the device. A narration is
            verified in the same forward pass as its frame; its share of the tokens is its share of the time, `verify`.
        why_not_static (`str`, *optional*): why the last call did not use the faster `static_step` on a GPU; None if
            it did, and on a CPU.
    """

    frames: int | None = None
    verified: int | None = None
    narrations: int | None = None
    answers: int | None = None
    tokens: int | None = None
    kv_bytes: int | None = None
    kv_bytes_if_dense: int | None = None
    seconds: dict | None = None
    why_not_static: str | None = None


class Mark(NamedTuple):
    """A point of a stream to which `SessionState.rollback` returns."""

    tokens: int
    pending: tuple[int, ...]
    in_stream: bool


@dataclass
class SessionState:
    """
    Everything that a session knows of its stream.

    Args:
        cache (`MoDCache`): keys and values of the tokens that the model has read.
        memory (`StreamMemory`, *optional*): decides which of them leave; None for a session without bounds.
        pending (`list[int]`): token ids that the model has yet to read.
        in_stream (`bool`): the last token read or pending belongs to a stream that is still open.
        ahead (`int`): frames that may be fed together on the guess that the model stays silent.
        counts (`dict[str, int]`): of each of `COUNTS` so far.
        seconds (`dict[str, float]`): time spent in each of `STAGES`.
        query (`str`, *optional*): the last question or instruction.
        time (`float`, *optional*): of the last frame, in seconds.
        narration (`Reply`, *optional*): the last one, to be verified after the next frame; None before the first, and
            after an instruction.
        warned (`bool`): the user was told that the stream is longer than the model supports.
    """

    cache: MoDCache
    memory: StreamMemory | None
    pending: list[int]
    ahead: int
    in_stream: bool = False
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    query: str | None = None
    time: float | None = None
    narration: Reply | None = None
    warned: bool = False

    def copy(self) -> "SessionState":
        """An independent state at the same point. The tensors of the cache are shared until one of them changes."""
        return replace(
            self,
            cache=self.cache.copy(),
            memory=None if self.memory is None else self.memory.copy(),
            pending=list(self.pending),
            counts=dict(self.counts),
            seconds=dict(self.seconds),
        )

    def mark(self) -> Mark:
        """The point where the stream is now."""
        return Mark(self.cache.get_seq_length(), tuple(self.pending), self.in_stream)

    def rollback(self, mark: Mark) -> None:
        """Forget all tokens that were read or became pending after a mark."""
        self.rollback_cache(mark.tokens)
        self.pending, self.in_stream = list(mark.pending), mark.in_stream

    def rollback_cache(self, tokens: int) -> None:
        """Forget all but the first `tokens` of the cached tokens."""
        if tokens == self.cache.get_seq_length():
            return
        self.cache.rollback(tokens)
        if self.memory is not None:
            self.memory.rollback(tokens)

    def stats(self, text_config, why_not_static: str | None) -> StreamStats:
        """See `StreamingSession.stats`."""
        tokens, text = self.cache.get_seq_length(), text_config
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        itemsize = next((x.keys.element_size() for x in self.cache.layers if x.is_initialized), 0)
        return StreamStats(
            **self.counts,
            tokens=tokens + (0 if self.memory is None else self.memory.forgotten),
            kv_bytes=self.cache.num_bytes,
            kv_bytes_if_dense=tokens * per_token * itemsize,
            seconds=dict(self.seconds),
            why_not_static=why_not_static,
        )

    def plain_values(self) -> dict:
        """The fields that are saved as JSON: all but the cache and the memory, which are saved as tensors."""
        values = {x.name: getattr(self, x.name) for x in fields(self) if x.name not in ("cache", "memory")}
        return values | {"narration": None if self.narration is None else asdict(self.narration)}


def model_fingerprint(model) -> str:
    """Tells models apart whose sessions cannot be exchanged: by their options, their dtype and a sample of every
    weight."""
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


def state_tensors(session) -> dict[str, torch.Tensor]:
    """The tensors of a session but for those of the layers of its cache, each where it is."""
    cache, memory = session.state.cache, session.state.memory
    tensors = {"next_position": cache.next_position, "frame_ends": cache.frame_ends}
    if memory is not None:
        tensors |= {f"memory.{name}": getattr(memory, name) for name in FIELDS}
    if session.sampler.generator is not None:
        tensors["generator"] = session.sampler.generator.get_state()
    return {name: value for name, value in tensors.items() if value is not None}


def session_tensors(session) -> dict[str, torch.Tensor]:
    """All tensors of a session, each where it is."""
    tensors = state_tensors(session)
    for index, layer in enumerate(session.state.cache.layers):
        if layer.is_initialized:
            tensors |= {f"layers.{index}.keys": layer.keys, f"layers.{index}.values": layer.values}
            tensors[f"layers.{index}.positions"] = layer.positions.clone()  # dense layers share theirs
    return tensors


def session_content(session, fingerprint: str) -> str:
    """Everything of a session that is no tensor, as JSON. fingerprint: see `model_fingerprint`."""
    cache, memory, config = session.state.cache, session.state.memory, session.generation_config
    options = {name: getattr(session, name) for name in OPTIONS}
    if options["keep_ratio"] is None:
        options["keep_ratio"] = session.model.keep_ratio  # which may be another one by the time it is restored
    return json.dumps(
        {
            "model": fingerprint,
            "options": options,
            "generation_config": None if config is None else json.loads(config.to_json_string(use_diff=True)),
            "state": session.state.plain_values(),
            "seen_tokens": cache.seen_tokens,
            "frames_forgotten": cache.frames_forgotten,
            "tokens_forgotten": 0 if memory is None else memory.forgotten,
        },
        default=methodcaller("item"),  # numbers of numpy
    )


def save_session(session, path: str | os.PathLike) -> Path:
    """Write `session` to `path`; its folder must exist. See `StreamingSession.save`."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be a file, {path} is a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of `path` does not exist: {path.parent}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in session_tensors(session).items()}
    content = session_content(session, model_fingerprint(session.model))
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
    """Tensors and content of a saved session, whose checksum was verified."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no saved session {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} is no saved session")
            if metadata["version"] not in map(str, READABLE):
                raise ValueError(
                    f"{path} was saved in version {metadata['version']!r}, this package reads the versions "
                    f"{', '.join(map(str, READABLE))}"
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
    return restore_session(cls, tensors, content, model, processor, model_fingerprint(model), str(path))


def check_model(content: dict, fingerprint: str, place: str) -> None:
    if content["model"] != fingerprint:
        raise ValueError(f"{place} was saved with another model, other routing options or another dtype")


def restore_session(cls, tensors, content: dict, model, processor, fingerprint: str, place: str):
    """A session of `session_tensors` and `session_content`; errors name the place that they come from."""
    try:
        check_model(content, fingerprint, place)
        return restore(cls, tensors, content, model, processor)
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{place} is no saved session of this package: {error!r}") from error


def ascending(positions: torch.Tensor, limit: int) -> bool:
    """Whether positions, int64 `[L]`, ascend within `[0, limit)`."""
    bounded = torch.cat([positions.new_tensor([-1]), positions, positions.new_tensor([limit])])
    return bool((bounded.diff() > 0).all())


def check_indices(tensors: dict[str, torch.Tensor], content: dict, model) -> None:
    """Raise `IndexError` if something that is used as an index is out of range, which would end a process on CUDA."""
    seen, vocabulary = content["seen_tokens"], model.config.text_config.vocab_size
    for name, value in tensors.items():
        if name == "frame_ends" or name.endswith(".positions"):
            fits = value.dtype == torch.long and value.shape[:-1] == (1,) and ascending(value[0].cpu(), seen)
        elif name == "next_position":
            fits = value.tolist() == [seen]
        elif name.startswith("memory."):
            fits = value.shape == (seen,)
        else:
            continue
        if not fits:
            raise IndexError(f"`{name}` does not fit a cache of {seen} tokens")
    pending = content["state"].get("pending", content["state"].get("_pending"))
    if not all(isinstance(token, int) and 0 <= token < vocabulary for token in pending):
        raise IndexError("`pending` must hold token ids of the model")


def restore(cls, tensors: dict[str, torch.Tensor], content: dict, model, processor):
    check_indices(tensors, content, model)
    config = content["generation_config"]
    config = None if config is None else GenerationConfig.from_dict(config)
    old = {"speak_rule": "trained", "max_cached_text": None}  # before version 4, and before there was such a bound
    options = {name: {**old, **content["options"]}[name] for name in OPTIONS}
    session = cls(model, processor, **options, generation_config=config)
    state = session.state
    # version 2 wrote the names of private attributes, and no `warned`; version 3 nothing of verified narrations
    saved = {name.removeprefix("_"): value for name, value in content["state"].items()}
    saved = {"warned": False, "narration": None} | saved
    for name in ("counts", "seconds"):
        saved[name] = getattr(state, name) | saved[name]
    if saved["narration"] is not None:
        saved["narration"] = Reply(**saved["narration"])
    for name in state.plain_values():
        setattr(state, name, saved[name])
    cache, tensors = state.cache, {name: value.to(model.device) for name, value in tensors.items()}
    cache.seen_tokens, cache.frames_forgotten = content["seen_tokens"], content["frames_forgotten"]
    cache.next_position, cache.frame_ends = tensors.get("next_position"), tensors.get("frame_ends")
    for index, layer in enumerate(cache.layers):
        if f"layers.{index}.keys" in tensors:
            layer.lazy_initialization(tensors[f"layers.{index}.keys"], tensors[f"layers.{index}.values"])
            for name in ("keys", "values", "positions"):
                setattr(layer, name, tensors[f"layers.{index}.{name}"])
    if state.memory is not None:
        session.make_room_for(session.query or "")
        state.memory.forgotten = content["tokens_forgotten"]
        for name in FIELDS:
            setattr(state.memory, name, tensors[f"memory.{name}"].cpu())
    if session.sampler.generator is not None:
        session.sampler.generator.set_state(tensors["generator"].cpu())
    return session


__all__ = ["SessionState", "StreamStats", "load_session", "save_session"]
