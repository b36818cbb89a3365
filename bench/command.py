"""The arguments of `videollm-mod bench`; each benchmark is a file of its own that is imported when it runs."""

from pathlib import Path

from .arguments import minutes, result_file
from .geometries import NAMES
from .stream_command import add_watching


def add_bench(commands) -> None:
    parser = commands.add_parser("bench", help="measure time and memory, mixture of depths beside dense")
    benches = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    add_train(benches)
    add_memory(benches)
    add_watching(benches)
    add_plan(benches)


def add_result(parser, geometry: str) -> None:
    """The arguments that all benchmarks share."""
    parser.add_argument("--geometry", choices=NAMES, default=geometry, help="of the model; its weights are random")
    parser.add_argument("--json", type=result_file, metavar="FILE.json", help="for the result, with a plot beside it")


def add_train(benches) -> None:
    parser = benches.add_parser("train", help="a training step: LoRA, bfloat16, streams of random frames")
    add_result(parser, "llama3-8b")
    parser.add_argument("--frames", type=int, default=1200)
    parser.add_argument("--tokens", type=int, default=10, help="of a frame")
    parser.add_argument("--keep-ratio", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each row, which take turns")
    parser.add_argument("--minutes", type=minutes, default=30.0, help="no step is begun after that time")
    parser.add_argument("--profile", action="store_true", help="also say which kernels the time goes to")

    def run(arguments: dict) -> None:
        for name in ("frames", "repeats"):
            if arguments[name] < 1:
                raise ValueError(f"--{name} must be at least 1, got {arguments[name]}")
        from .train import bench

        bench(**arguments)

    parser.set_defaults(run=run)


def add_memory(benches) -> None:
    parser = benches.add_parser("memory", help="of the cache and of training, against the length of the stream")
    add_result(parser, "llama3-8b")
    parser.add_argument("--training", action="store_true", help="also measure how a training step grows")
    parser.add_argument("--minutes", type=minutes, default=30.0, help="no step is begun after that time")

    def run(arguments: dict) -> None:
        from .memory import bench

        bench(**arguments)

    parser.set_defaults(run=run)


def add_plan(benches) -> None:
    parser = benches.add_parser("plan", help="write a page that scales results to 8 GPUs, 64 GPUs and a million hours")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="folder of results (default: benchmarks/results of a checkout)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="Markdown file to write (default: docs/planning.md of a checkout)"
    )

    def run(arguments: dict) -> None:
        from .plan import bench

        bench(**arguments)

    parser.set_defaults(run=run)
