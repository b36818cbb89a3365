"""`videollm-mod evaluate`."""

import json
import shlex
import sys

from ..data.files import beside
from ..evaluation.options import EvaluateOptions
from .options import add_command
from .threads import share_cores


def add(commands) -> None:
    add_command(commands, "evaluate", EvaluateOptions, run, help="score a model on a task or a benchmark")


def run(options: EvaluateOptions) -> None:
    share_cores()
    from ..evaluation.evaluate import evaluate

    result = evaluate(options, command=shlex.join(["videollm-mod", *sys.argv[1:]]))
    if result is None:  # not the first process
        return
    if options.benchmark is None:
        print(json.dumps(result["summary"], indent=1), file=beside(options.json))
    else:
        from ..evaluation.benchmark_table import table_of

        print(table_of(result), end="", file=beside(options.json))
    if "note" in result:
        print(result["note"], file=sys.stderr)
