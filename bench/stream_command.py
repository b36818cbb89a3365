"""The arguments of `bench stream`, `bench offline` and `bench growth`."""

import math
import re

from ..commands.threads import share_cores
from .arguments import check_fits, minutes, result_file
from .geometries import NAMES


def add_watching(benches) -> None:
    parser = benches.add_parser("stream", help="watching as frames come: one by one, in blocks, and asked")
    add_shared(parser, repeats=60)
    parser.add_argument("--height", type=int, default=720, help="of decoded frames, which are 16:9")

    def run_stream(arguments: dict) -> None:
        share_cores()
        from .stream import bench

        height = arguments.pop("height")
        if height < 16:
            raise ValueError(f"--height must be at least 16, got {height}")
        bench(**checked(arguments), size=(height, height * 16 // 9))

    parser.set_defaults(run=run_stream)
    parser = benches.add_parser("offline", help="recorded video in large blocks")
    add_shared(parser, repeats=5)
    parser.add_argument("--frames", type=int, default=768, help="of a stream")

    def run_offline(arguments: dict) -> None:
        share_cores()
        from .offline import bench

        if arguments["frames"] < 1:
            raise ValueError(f"--frames must be at least 1, got {arguments['frames']}")
        bench(**checked(arguments))

    parser.set_defaults(run=run_offline)
    parser = benches.add_parser("growth", help="watching against frames held, tokens a frame, streams and keep ratio")
    add_shared(parser, repeats=12)
    parser.add_argument("--frames", type=int, nargs="+", metavar="N", help="held, instead of 100 to 20,000")
    parser.add_argument("--tokens", type=int, nargs="+", metavar="N", help="of a frame, instead of 1, 10, 50 and 101")

    def run_growth(arguments: dict) -> None:
        share_cores()
        from .growth import bench
        from .growth_cases import FRAMES, TOKENS

        arguments["frames"], arguments["tokens"] = arguments["frames"] or FRAMES, arguments["tokens"] or TOKENS
        if min(arguments["frames"]) < 1:
            raise ValueError(f"--frames must be at least 1, got {min(arguments['frames'])}")
        for tokens in arguments["tokens"]:
            if tokens < 1 or math.isqrt(tokens - 1) ** 2 != tokens - 1:
                raise ValueError(f"--tokens must be 1 more than a square, as 1, 10 or 50 are, got {tokens}")
        bench(**checked(arguments))

    parser.set_defaults(run=run_growth)


def add_shared(parser, repeats: int) -> None:
    parser.add_argument("--geometry", choices=NAMES, default="llama3-8b", help="of the model")
    parser.add_argument("--json", type=result_file, metavar="FILE.json", help="for the result, with a plot beside it")
    parser.add_argument("--device", help="cpu or cuda; by default the best there is")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed calls of each row")
    parser.add_argument("--minutes", type=minutes, default=30.0, help="no row is begun after that time")


def checked(arguments: dict) -> dict:
    import torch

    if arguments["repeats"] < 1:
        raise ValueError(f"--repeats must be at least 1, got {arguments['repeats']}")
    if arguments["device"] is None:
        arguments["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    elif not re.fullmatch(r"cpu|cuda(:\d+)?", arguments["device"]):
        raise ValueError(f"--device must be cpu or cuda, got {arguments['device']!r}")
    elif arguments["device"].startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda: there is no CUDA device here")
    check_fits(arguments["geometry"], arguments["device"])
    return arguments
