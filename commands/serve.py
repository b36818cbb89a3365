"""`videollm-mod serve`, and the application that `serve run` and `serve deploy` of Ray Serve run:

    serve run videollm_mod.commands.serve:app model=DIR store=FOLDER replicas=2

Its arguments are the options of the command; those that take no value are `true`.
"""

import sys
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..containers import MAX_PIXELS
from .options import Parser, add_command, add_options
from .own_session import in_own_session
from .threads import sleep_while_waiting, use_free_cores

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..serving.keys import Keys
    from ..serving.limits import Limits

PROXY_BYTES = 16 * 2**20  # of one message of a WebSocket that Ray's proxy takes


@dataclass
class ServeOptions:
    """The options of `videollm-mod serve`."""

    _: KW_ONLY
    model: Annotated[str | None, "folder or Hub id (default: the bundled checkpoint)", {"metavar": "MODEL"}] = None
    name: Annotated[str | None, "name of the model for clients (default: that of its folder)"] = None
    host: Annotated[str, "address to listen on"] = "127.0.0.1"
    port: Annotated[int, "port to listen on; 0 takes a free one (default: 8000)"] = 8000
    keys: Annotated[
        Path | None,
        "file with the keys of clients, one a line, which may end with sessions=N and fps=N, the limits of that key; "
        "more keys in the environment variable VIDEOLLM_MOD_API_KEYS, with commas between them (default: no key is "
        "needed)",
    ] = None
    saved: Annotated[
        str | None,
        "folder, or URL that fsspec knows, where sessions are saved; several servers may share it (default: they are "
        "not saved)",
        {"flag": "--store", "metavar": "URL"},
    ] = None
    save_seconds: Annotated[float, "between two saves of a session (default: 5)"] = 5.0
    lease_seconds: Annotated[
        float,
        "after which a session of a server that does not answer is continued elsewhere; at once if its process is "
        "known to be dead (default: 15)",
    ] = 15.0
    keep_days: Annotated[float, "for which saved sessions are kept that nobody continues (default: 7)"] = 7.0
    device: Annotated[str, "cpu, cuda, cuda:N or mps; auto takes the best one there is (default: auto)"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], "of the weights (default: the checkpoint's)"
    ] = "auto"
    load_in_4bit: Annotated[bool, "quantise the language model to 4 bit"] = False
    trust_remote_code: Annotated[bool, "run the Python code that comes with the checkpoint"] = False
    frames: Annotated[
        int | None,
        "frames that each session remembers (default: as many as the model supports)",
        {"flag": "--max-cached-frames"},
    ] = None
    max_cached_bytes: Annotated[int | None, "of the caches of all sessions together (default: no limit)"] = None
    max_new_tokens: Annotated[int, "of one narration or answer (default: 64)"] = 64
    threshold: Annotated[float | None, "speak when P(silence) is below this (default: the model's)"] = None
    keep_ratio_range: Annotated[
        list[float],
        "under load, keep fewer vision tokens, from HIGH down to LOW, before frames are dropped (default: the range "
        "that the checkpoint was trained on, if it says so; otherwise the ratio stays)",
        {"nargs": 2, "metavar": ("LOW", "HIGH")},
    ] = field(default_factory=list)
    max_sessions: Annotated[int, "open at the same time (default: 64)"] = 64
    max_fps: Annotated[float, "frames a second of one session (default: 30)"] = 30.0
    max_waiting_frames: Annotated[int, "of one session, before its oldest ones are dropped (default: 16)"] = 16
    max_message_bytes: Annotated[int, "of one message or request (default: 8388608)"] = 8 * 2**20
    max_image_pixels: Annotated[int, f"of one image (default: {MAX_PIXELS})"] = MAX_PIXELS
    max_chats: Annotated[int, "chats that are answered at the same time (default: 8)"] = 8
    max_chat_frames: Annotated[int, "images and frames of videos of one chat (default: 512)"] = 512
    allow_urls: Annotated[
        bool, "fetch images and videos of chats from public http(s) addresses (default: only data URLs are taken)"
    ] = False
    idle_seconds: Annotated[float, "after which a session without a message is closed (default: 600)"] = 600.0
    allow_origin: Annotated[
        list[str], "sites whose pages may connect in browsers, such as https://example.org", {"metavar": "ORIGIN"}
    ] = field(default_factory=list)
    ray: Annotated[
        bool,
        "serve from replicas on the Ray cluster of this machine, or of the environment variable RAY_ADDRESS; without "
        "one, on this machine. Limits are those of one replica",
    ] = False
    replicas: Annotated[int, "of the model, with --ray (default: 1)"] = 1
    max_replicas: Annotated[
        int | None, "start more, up to so many, when frames wait, with --ray (default: as many as --replicas)"
    ] = None
    scale_up_seconds: Annotated[float, "for which frames must wait before a replica is started (default: 30)"] = 30.0
    scale_down_seconds: Annotated[float, "of quiet before a replica is stopped (default: 600)"] = 600.0


def add(commands) -> None:
    add_command(commands, "serve", ServeOptions, run, help="serve a model to many live streams over HTTP")


def run(options: ServeOptions) -> None:
    sleep_while_waiting()
    from ..serving.keys import Keys
    from ..serving.listening import listen

    limits, keys = limits_of(options), Keys.load(options.keys)
    check_replicas(options)
    with listen(options.host, options.port) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if not options.ray:
            from ..serving.server import Server

            use_free_cores()
            app = make(options, keys)
            warn(options, keys)
            app.state.registry.on_prepared = partial(show_progress, address)
            server = Server(app, limits.message_bytes)
            try:
                server.run(sockets=[listening])
            except (KeyboardInterrupt, SystemExit):  # uvicorn raises the signal again, after all sessions were closed
                print("stopped", flush=True)
            return
    warn(options, keys)  # Ray's processes listen themselves
    in_own_session(partial(run_cluster, options, keys, host, port, address))
    print("stopped", flush=True)


def run_cluster(options: ServeOptions, keys: "Keys", host: str, port: int, address: str) -> None:
    """Serve from a Ray cluster until this process is terminated. What Ray starts for it must live until then."""
    from ..serving.ray_app import serve_until_stopped

    ready = partial(print, f"serving on {address}", flush=True)
    serve_until_stopped(partial(cluster_app, options, keys), host, port, ready)


def show_progress(address: str, done: int, total: int) -> None:
    """Say how far the server is, and where it serves."""
    if done == total:
        print(f"serving on {address}", flush=True)
    elif 10 * done // total != 10 * (done - 1) // total:
        print(f"starting: {done} of {total} CUDA graphs are captured", file=sys.stderr)


def limits_of(options: ServeOptions) -> "Limits":
    from ..serving.limits import Limits

    return Limits(
        sessions=options.max_sessions,
        message_bytes=options.max_message_bytes,
        **({"socket_bytes": PROXY_BYTES} if options.ray else {}),
        frames_per_second=options.max_fps,
        waiting_frames=options.max_waiting_frames,
        image_pixels=options.max_image_pixels,
        idle_seconds=options.idle_seconds,
        chats=options.max_chats,
        chat_frames=options.max_chat_frames,
    )


def check_replicas(options: ServeOptions) -> None:
    """Raise `ValueError` for options of a cluster that do not fit."""
    if options.replicas < 1:
        raise ValueError(f"`replicas` must be at least 1, got {options.replicas}")
    if options.max_replicas is not None and options.max_replicas < options.replicas:
        raise ValueError(f"`max_replicas` must be at least `replicas`, {options.replicas}, got {options.max_replicas}")
    if min(options.scale_up_seconds, options.scale_down_seconds) < 0:
        raise ValueError("`scale_up_seconds` and `scale_down_seconds` must be at least 0")
    if not options.ray and (options.replicas > 1 or options.max_replicas is not None):
        raise ValueError("several replicas need --ray")
    if options.ray and options.saved is None:
        raise ValueError("--ray needs --store URL, which all machines see: sessions move between replicas")


def make(options: ServeOptions, keys: "Keys", owner: str | None = None) -> "FastAPI":
    """The application for the options, with its model. owner: name of this process in the store."""
    from ..loading.checkpoint import load_checkpoint
    from ..memory import frames_in_context
    from ..serving.server import make_app

    model, processor = load_checkpoint(
        options.model,
        device=options.device,
        dtype=options.dtype,
        load_in_4bit=options.load_in_4bit,
        trust_remote_code=options.trust_remote_code,
    )
    trained = getattr(model.config.text_config, "mod_keep_ratio_range", None)  # code of a checkpoint may be older
    chosen = options.keep_ratio_range or trained
    return make_app(
        model,
        processor,
        options.name or ("videollm-mod" if options.model is None else Path(options.model).resolve().name),
        limits_of(options),
        keys,
        options={
            "max_cached_frames": options.frames or frames_in_context(model.config),
            "max_new_tokens": options.max_new_tokens,
            "speak_threshold": options.threshold,
        },
        keep_ratio_range=tuple(chosen) if chosen else None,
        max_cached_bytes=options.max_cached_bytes,
        saved=options.saved,
        save_seconds=options.save_seconds,
        lease_seconds=options.lease_seconds,
        keep_seconds=86400 * options.keep_days,
        owner=owner,
        origins=tuple(options.allow_origin),
        allow_urls=options.allow_urls,
    )


def cluster_app(options: ServeOptions, keys: "Keys") -> Any:
    """The application for options, on the Ray cluster to which this process is connected."""
    from ..serving.ray_app import application, has_gpus

    check_replicas(options)
    limits = limits_of(options)
    return application(
        partial(make, options, keys),
        message_bytes=limits.message_bytes,
        socket_bytes=limits.frame_bytes,
        keys=keys,
        calls=limits.sessions + limits.chats,
        replicas=options.replicas,
        max_replicas=options.max_replicas,
        delays=(options.scale_up_seconds, options.scale_down_seconds),
        resources={"num_cpus": 1, "num_gpus": int(options.device != "cpu" and has_gpus())},
        origins=tuple(options.allow_origin),
    )


def app(arguments: dict) -> Any:
    """The application for arguments of `serve run`. Raises `ValueError` for options that do not fit."""
    from ..serving.keys import Keys

    given = ["--ray"]
    for name, value in arguments.items():
        flag, text = f"--{name.replace('_', '-')}", str(value).lower()
        if text != "false":
            values = value if isinstance(value, list) else [value]
            given += [flag] if text == "true" else [flag, *map(str, values)]
    add_options(parser := ArgumentParser(), ServeOptions)
    options = ServeOptions(**vars(parser.parse_args(given)))
    return cluster_app(options, Keys.load(options.keys))


class ArgumentParser(Parser):
    """For arguments that do not come from a command line."""

    def error(self, message: str):
        raise ValueError(message)


def warn(options: ServeOptions, keys) -> None:
    """Say what may surprise."""
    if not keys.needed and options.host not in ("127.0.0.1", "::1", "localhost"):
        print("warning: no key is needed, so anybody who reaches this address may use it", file=sys.stderr)
    if options.saved is None:
        print("note: sessions are not saved; give --store FOLDER to continue them later", file=sys.stderr)
