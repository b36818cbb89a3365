"""The `videollm-mod` command: parses arguments and calls the package."""

import argparse
import codecs
import io
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from . import __version__
from .commands.threads import use_free_cores

MAX_MESSAGE = 1000  # characters

# package -> what of `pip install videollm-mod[...]` brings it
EXTRAS = dict.fromkeys(("accelerate", "datasets", "matplotlib", "peft"), "train")
EXTRAS |= {"bitsandbytes": "quant", "gguf": "gguf", "gradio": "space"}


def message_of(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """One line: what to install where a package is missing, a file's name before what is wrong with it, and no secrets
    of the command's arguments."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | bytes):
        wrong = "no such file" if isinstance(error, FileNotFoundError) else error.strerror.lower()
        text = f"{os.fsdecode(error.filename)}: {wrong}"
    text = one_line(without_secrets(text, arguments)) or type(error).__name__
    package = (getattr(error, "name", None) or "").split(".")[0]
    return f"{text}: pip install videollm-mod[{EXTRAS[package]}]" if package in EXTRAS else text


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage. Numbers are of plain digits."""

    def __init__(self, *args, **kwargs):
        from .narration.options import plain_float, plain_int

        super().__init__(*args, **kwargs)
        self.register("type", float, plain_float)
        self.register("type", int, plain_int)

    def parse_known_args(self, args=None, namespace=None):
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        if names := [each for each in self.given if re.match(r"-[^-]", each) and re.search(r"\.[a-zA-Z]\w*$", each)]:
            message += f"; a name that begins with - is given as ./{names[0]}, or after --"
        self.exit(2, f"error: {one_line(without_secrets(message, self.given))}\n")


def without_secrets(message: object, arguments: Sequence[str]) -> str:
    """`message` with the addresses among a command's arguments as `source_name` has them, whatever quotes them."""
    from .containers import ADDRESS, source_name

    message, given = str(message), [text for each in arguments for text in (each, each.partition("=")[2])]
    for address in sorted(filter(ADDRESS.fullmatch, given), key=len, reverse=True):
        for form in (address, str(Path(address)), str(Path(address).parent)):
            if "/" in form:
                message = message.replace(form, source_name(address)).replace(repr(form)[1:-1], source_name(address))
    return message


def one_line(message: object) -> str:
    """What a terminal can show: whatever file names and arguments hold, one line without control characters."""
    text = " ".join(str(message).split())
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def replace_what_cannot_be_shown() -> None:
    """Print `?` for what standard output has no character for, as on a Windows console, instead of breaking off."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and (out.errors == "strict" or codecs.lookup(out.encoding).name != "utf-8"):
        out.reconfigure(errors="replace")


STANDARD = Path("-")  # standard input or output


def beside(output: Path | None) -> TextIO:
    """Where to say something besides what goes to `output`."""
    return sys.stderr if output == STANDARD else sys.stdout


def sleep_while_waiting() -> None:
    """Let threads that wait for each other sleep, not spin: beside other programs a small model then runs twice as
    fast; alone it takes longer over single frames, unless OMP_WAIT_POLICY says ACTIVE. To be called before torch is
    imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def share_cores() -> None:
    """Compute on free cores alone, and `sleep_while_waiting`."""
    sleep_while_waiting()
    use_free_cores()


@contextmanager
def ending_properly() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt and SIGTERM SystemExit, so that what was begun is ended, but never amid an
    import: extension modules abort the process, or raise something else, when their set-up is broken off."""

    def end(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not main.__code__:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                later = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, number])
                later.daemon = True
                return later.start()
            frame = frame.f_back
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # the only one that may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def add_narrate(commands) -> None:
    from .narration.options import DTYPES, FORMATS, WHEN_BEHIND, NarrateOptions

    parser = commands.add_parser("narrate", help="say what happens in a video or stream, as it happens")
    parser.add_argument("source", help="a file, a URL, webcam:0, rtsp://..., or - for a container on standard input")
    parser.add_argument("--model", help="folder or Hub id of a checkpoint; by default the one installed here")
    parser.add_argument(
        "--query",
        action="append",
        default=[],
        dest="queries",
        metavar="TEXT[@SECONDS]",
        help="an instruction to begin with, or a question asked at a time; may be given several times",
    )
    parser.add_argument("--fps", type=float, help="frames per second that the model sees; by default its own")
    parser.add_argument("--threshold", type=float, default=0.725, help="speak where silence is less probable")
    parser.add_argument("--keep-ratio", type=float, help="share of vision tokens that routed layers keep")
    parser.add_argument(
        "--max-cached-frames",
        type=int,
        metavar="N",
        help="that are remembered; by default what the model can overlook",
    )
    parser.add_argument("--format", choices=FORMATS, help="by default what the output's name ends in, else text")
    parser.add_argument("--output", type=Path, help="file for the events; by default, and as -, standard output")
    parser.add_argument("--overlay", type=Path, metavar="FILE.mp4", help="video of what was seen, kept and said")
    parser.add_argument(
        "--when-behind",
        choices=WHEN_BEHIND,
        help="drop frames of a live source, or let it wait; by default cameras and streams drop, standard input waits",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="by default float32 on a CPU")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or mps; by default the best there is")
    parser.add_argument("--load-in-4bit", action="store_true", help="needs bitsandbytes")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a checkpoint brings")

    def load(options: NarrateOptions):
        use_free_cores()  # imports torch, which a source that cannot be read need not wait for
        from .loading.checkpoint import load_checkpoint

        return load_checkpoint(options)

    def run(arguments: dict) -> None:
        sleep_while_waiting()
        from .narration.narrate import narrate

        narrate(NarrateOptions(**arguments), load)

    parser.set_defaults(run=run)


def add_demo(commands) -> None:
    parser = commands.add_parser("demo", help="narrate two clips that come with the package")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for subtitles and overlay videos")

    def run(arguments: dict) -> None:
        share_cores()
        from .narration.demo import demo

        demo(**arguments)

    parser.set_defaults(run=run)


def add_train(commands) -> None:
    parser = commands.add_parser("train", help="train or fine-tune as a YAML file says")
    parser.add_argument("config", type=Path, help="see training/configs")

    def run(arguments: dict) -> None:
        share_cores()
        from .training.train import TrainingConfig, train

        print(train(TrainingConfig.load(arguments["config"])))

    parser.set_defaults(run=run)


def add_evaluate(commands) -> None:
    from .narration.options import DTYPES

    parser = commands.add_parser("evaluate", help="measure how well a checkpoint does a task")
    parser.add_argument("--task", required=True, help="narration, chat, step, task, next, procedure, lta, ...")
    parser.add_argument("--model", help="folder or Hub id of a checkpoint; by default the one installed here")
    parser.add_argument("--data", type=Path, metavar="FILE.jsonl", help="streams (see `prepare`); else of the world")
    parser.add_argument("--level", help="of the world: basic (the default), hard or hard_small")
    parser.add_argument("--split", help="of the world's seeds: validation (the default), test or train")
    parser.add_argument("--first-seed", type=int, metavar="SEED", help="of the world, instead of a split's")
    parser.add_argument("--questions", type=int, metavar="N", help="asked in each stream of the world, by default 1")
    parser.add_argument("--streams", type=int, metavar="N", help="the first N; by default all, or 500 of the world")
    parser.add_argument("--self-conditioned", action="store_true", help="let the model run on its own past words")
    parser.add_argument("--threshold", type=float, default=0.725, help="speak where silence is less probable")
    parser.add_argument("--keep-ratio", type=float, help="share of vision tokens that routed layers keep")
    parser.add_argument(
        "--categories", type=Path, metavar="FILE", help="all answers, one a line; for lta the taxonomy.json"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="streams that go through the model together")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="for the result, - for standard output; a killed run goes on from there",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="of what each threshold would do")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="by default float32 on a CPU")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or mps; by default the best there is")

    def run(arguments: dict) -> None:
        share_cores()
        from .evaluation.evaluate import EvaluateOptions, evaluate

        result = evaluate(EvaluateOptions(**arguments), command=shlex.join(["videollm-mod", *sys.argv[1:]]))
        if result is not None:
            print(json.dumps(result["summary"], indent=1), file=beside(arguments["json"]))
            if "note" in result:
                print(result["note"], file=sys.stderr)

    parser.set_defaults(run=run)


def add_merge(commands) -> None:
    parser = commands.add_parser("merge", help="write the checkpoint that an adapter and its base model amount to")
    parser.add_argument("adapter", type=Path, help="the folder of an adapter, `final/` of a run with `lora`")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")

    def run(arguments: dict) -> None:
        from .training.adapters import merge_adapter

        print(merge_adapter(**arguments))

    parser.set_defaults(run=run)


def add_world(commands) -> None:
    parser = commands.add_parser("world", help="write a clip of the procedural world with its ground truth")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="an .mp4; the truth goes beside it as .jsonl")
    parser.add_argument("--level", default="basic")
    parser.add_argument("--fps", type=float, default=10.0, help="frames per second")
    parser.add_argument("--height", type=int, default=384, help="pixels")

    def run(arguments: dict) -> None:
        from .data.world_clip import write_clip

        print(*write_clip(path=arguments.pop("output"), **arguments))

    parser.set_defaults(run=run)


def add_data(commands) -> None:
    parser = commands.add_parser("validate", help="name every fault of a JSONL file of streams")
    parser.add_argument("file", type=Path, help="or - for standard input")

    def run_validate(arguments: dict) -> None:
        from .data.jsonl import validate

        file = arguments["file"]
        faults = validate(file)
        for fault in faults:
            print(f"{file}:{fault}")
        if faults:
            raise ValueError(f"{len(faults)} faults in {file}")
        print(f"{file}: no faults")

    parser.set_defaults(run=run_validate)

    parser = commands.add_parser("extract", help="write the features of the videos of a JSONL file, to train on")
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--output", type=Path, required=True, help="a folder; what is in it already is not redone")
    parser.add_argument("--batch-size", type=int, default=64, help="frames encoded together")

    def run_extract(arguments: dict) -> None:
        share_cores()
        from accelerate import PartialState

        from .data.extract import extract
        from .narration.options import check_model

        check_model(arguments["model"], trust_remote_code=False)
        result = extract(jsonl=arguments.pop("file"), **arguments)
        if PartialState().is_main_process:
            print(result)

    parser.set_defaults(run=run_extract)

    parser = commands.add_parser("prepare", help="turn a public data set into JSONL")
    parser.add_argument("dataset", help="ego4d, goalstep, coin or egoexo4d")
    parser.add_argument("annotations", type=Path, help="the data set's JSON file")
    parser.add_argument("--task", required=True, help="narration, chat, lta, step, task, next, procedure, ...")
    parser.add_argument("--videos", type=Path, required=True, help="the folder of the videos")
    parser.add_argument("--output", type=Path, required=True, help="the JSONL file, or - for standard output")
    parser.add_argument(
        "--subset", help="only this one: train, val or test; of COIN training, testing, test or validation"
    )
    parser.add_argument("--missing", default="stop", help="stop (the default) or skip where videos are missing")
    parser.add_argument("--camera", help="of egoexo4d, such as cam01; by default the first ego view of each take")

    def run_prepare(arguments: dict) -> None:
        from .data.annotations import told
        from .data.prepare import prepare

        prepared = prepare(**arguments)
        for what in told(prepared.left_out, prepared.named):
            print(f"left out: {one_line(what)}", file=sys.stderr)
        print(prepared, file=beside(arguments["output"]))

    parser.set_defaults(run=run_prepare)


def add_build(commands) -> None:
    parser = commands.add_parser("build", help="put MoD on a language model and a vision tower")
    parser.add_argument("--llm", required=True, help="folder or Hub id: Llama, SmolLM2, TinyLlama, Mistral, Qwen2")
    parser.add_argument("--vision", required=True, help="folder or Hub id: SigLIP, SigLIP 2 of fixed resolution, CLIP")
    parser.add_argument("--gguf-file", help="of the language model's folder")
    parser.add_argument("--output", type=Path, required=True, help="a new or empty folder")
    add_routing(parser)
    parser.add_argument(
        "--no-class-token",
        action="store_const",
        const=False,
        dest="frame_token_cls",
        help="make frames of pooled patches alone, as where the tower has no pooling head",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights that are new")

    def run_build(arguments: dict) -> None:
        from .training.assemble import build_folder

        print(build_folder(**arguments))

    parser.set_defaults(run=run_build)


def add_convert(commands) -> None:
    parser = commands.add_parser("convert", help="turn another project's checkpoint into this format")
    parser.add_argument("kind", choices=["videollm-online"])
    parser.add_argument("path", type=Path, help="the adapter's folder")
    parser.add_argument("--base", help="folder or Hub id of the language model; by default the one the adapter names")
    parser.add_argument("--vision", default="google/siglip-large-patch16-384", help="folder or Hub id of the tower")
    parser.add_argument("--output", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--mod", action="store_true", help="add routers; by default every layer sees every token")
    add_routing(parser)

    def run_convert(arguments: dict) -> None:
        from .training.assemble import convert_folder

        arguments.pop("kind")
        print(convert_folder(**arguments))

    parser.set_defaults(run=run_convert)


def add_bench(commands) -> None:
    from .bench.command import add_bench

    add_bench(commands)


def add_routing(parser) -> None:
    parser.add_argument("--keep-ratio", type=float, dest="mod_keep_ratio", help="of routed layers, by default 0.2")
    parser.add_argument("--mod-layers", help="interleaved (the default), all, all_deep or interleaved_deep")


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments) and return its exit code: 2 for bad input."""
    replace_what_cannot_be_shown()
    given = sys.argv[1:] if argv is None else argv
    try:
        with ending_properly():
            return dispatch(argv)
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"error: {message_of(error, given)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def dispatch(argv: list[str] | None) -> int:
    from .loading.quiet import quiet_libraries

    parser = Parser(prog="videollm-mod", description="Streaming video language model.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    add_narrate(commands)
    add_demo(commands)
    add_train(commands)
    add_evaluate(commands)
    add_merge(commands)
    add_world(commands)
    add_data(commands)
    add_build(commands)
    add_convert(commands)
    add_bench(commands)
    arguments = vars(parser.parse_args(argv))
    run = arguments.pop("run", None)
    if run is None:
        parser.print_help()
        return 0
    quiet_libraries()
    run(arguments)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()  # a process that ends while its group's threads still run is aborted
        distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
