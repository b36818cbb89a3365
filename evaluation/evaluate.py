"""`videollm-mod evaluate`: measure a checkpoint on a task, with a JSONL file or the procedural world.

Batches do not depend on the number of processes or on interruptions, so the results do not either.
"""

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from accelerate.utils import gather_object
from tqdm import tqdm

from ..data.ego4d_lta import word_of
from ..data.files import STANDARD, write_whole
from ..data.processes import process_state
from ..data.turns import timed
from ..loading.checkpoint import load_checkpoint
from ..loading.find import find_checkpoint
from ..memory import frames_in_context
from ..sequence import DEFAULT_THRESHOLD
from ..speaking import default_threshold
from .answering import answers
from .answers import Taxonomy
from .benchmark_run import evaluate_benchmark
from .captions import NEEDS_JAVA
from .encoding import encode
from .fingerprint import fingerprint_of_found
from .free_running import watch
from .options import EvaluateOptions
from .results import Results
from .sources import Example, JsonlSource, WorldSource
from .speaking import plot_speaking
from .surroundings import surroundings
from .tasks import (
    CANDIDATES,
    MAX_NEW_TOKENS,
    STREAMING,
    check_categories,
    summarise_answers,
    summarise_self_conditioned,
    summarise_teacher_forced,
)
from .teacher_forced_model import teacher_forced


def source_of(options: EvaluateOptions) -> JsonlSource | WorldSource:
    """The streams to evaluate on."""
    if options.data is not None:
        return JsonlSource(options.data, options.task, options.streams)
    given = {"questions": options.questions, "count": options.streams, "first_seed": options.first_seed}
    chosen = {name: value for name, value in given.items() if value is not None}
    return WorldSource(options.level or "basic", options.task, options.split or "validation", **chosen)


def read_categories(path: Path | None, task: str) -> list[str] | Taxonomy | None:
    """The possible answers: one per line, or the taxonomy of long-term anticipation."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    if task != "lta":
        if categories := [line.strip() for line in text.splitlines() if line.strip()]:
            return categories
        raise ValueError(f"{path} holds no categories; it must hold one per line")
    try:
        taxonomy = json.loads(text)
        if not all(isinstance(taxonomy[kind], list) for kind in ("verbs", "nouns")):
            raise TypeError("verbs and nouns must be lists")
        return Taxonomy(*([word_of(name) for name in taxonomy[kind]] for kind in ("verbs", "nouns")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is not a taxonomy, {{"verbs": [str], "nouns": [str]}}') from error


def threshold_of(options: EvaluateOptions, config) -> float:
    """The threshold of P(silence). Teacher-forced decisions are always those of the rule `"trained"`."""
    if options.threshold is not None:
        return options.threshold
    return default_threshold(config.speak_rule if options.self_conditioned else "trained", config.verify_margin)


def check_rule(options: EvaluateOptions, config) -> None:
    """Raise `ValueError` if the model has not learned the decisions that are to be scored."""
    if options.task in STREAMING and not options.self_conditioned and config.frame_separator_token_id is None:
        raise ValueError(
            f"the task {options.task!r} needs `--self-conditioned` for this model: it has no frame separator, so it "
            "predicts no silence that could be scored teacher-forced"
        )


def evaluate_batch(options: EvaluateOptions, model, processor, examples: list[Example]) -> list[dict]:
    """The results of a batch of streams; for their fields see `tasks`."""
    if options.self_conditioned:
        results = []
        for example in examples:
            watched = watch(
                model,
                processor,
                example.messages,
                example.frames,
                example.times,
                speak_threshold=options.threshold,
                keep_ratio=options.keep_ratio,
                max_cached_frames=frames_in_context(model.config),  # the default of `narrate`
            )
            result = {name: getattr(watched, name) for name in ("true", "said", "questions")}
            results.append({**result, "end": float(example.times[-1]) + 1 / example.fps, "fps": example.fps})
        return results
    features = [encode(model, processor, example.frames) for example in examples]
    conversations = [timed(example.messages, example.times) for example in examples]
    if options.task in STREAMING:
        forced = teacher_forced(model, processor, conversations, features, threshold_of(options, model.config))
        return [{**asdict(stream), "fps": example.fps} for stream, example in zip(forced, examples, strict=True)]
    said = answers(
        model,
        processor,
        [messages[:-1] for messages in conversations],
        features,
        CANDIDATES.get(options.task, 1),
        MAX_NEW_TOKENS.get(options.task, 64),
    )
    return [
        {"question": last_question(messages), "true": messages[-1]["content"], "said": texts}
        for messages, texts in zip(conversations, said, strict=True)
    ]


def last_question(messages: list[dict]) -> str:
    return next(message["content"] for message in reversed(messages) if message["role"] == "user")


def summarise(options: EvaluateOptions, results: list[dict], categories, source) -> dict:
    if options.self_conditioned:
        summary = summarise_self_conditioned(results)
        pairs = summary["summary"]["segments_matched"]
        return summary | ({"note": NEEDS_JAVA} if pairs and summary["summary"]["meteor"] is None else {})
    if options.task in STREAMING:
        return summarise_teacher_forced(results)
    return summarise_answers(options.task, results, categories, source.answers)


def run_batches(options: EvaluateOptions, state, model, processor, source, results: Results) -> None:
    """Evaluate this process's batches that have no results yet."""
    size = 1 if options.self_conditioned else options.batch_size  # a session watches one stream
    batches = [range(first, min(first + size, len(source))) for first in range(0, len(source), size)]
    own = batches[state.process_index :: state.num_processes]
    todo = [batch for batch in own if not results.done.keys() >= set(batch)]
    total, left = sum(map(len, own)), sum(map(len, todo))
    show = {"desc": "streams", "total": total, "initial": total - left, "disable": not state.is_main_process}
    if state.num_processes > 1:
        show["desc"] = f"streams of process 1 of {state.num_processes}"
    with tqdm(**show) as progress:
        for batch in todo:
            found = evaluate_batch(options, model, processor, [source[index] for index in batch])
            results.add([{"index": index, **result} for index, result in zip(batch, found, strict=True)])
            progress.update(len(batch))


def evaluate(options: EvaluateOptions, command: str = "") -> dict | None:
    """Evaluate a checkpoint, or resume an interrupted run with the same `json`: the results of single streams are kept
    next to it in `NAME.streams.jsonl`. Under `accelerate launch` or `torchrun` the batches are split over processes.

    Args:
        command (`str`): command line to store in the result.

    Returns:
        The result in the main process, None in others; for a benchmark see `evaluate_benchmark`.

    Raises:
        `ValueError`, `OSError`, `ImportError`: for wrong arguments or data, before the model is loaded, and for a
            damaged video later on. The results so far are kept.
    """
    options.check()
    if options.benchmark is not None:
        return evaluate_benchmark(options, command)
    source, categories = source_of(options), read_categories(options.categories, options.task)
    if isinstance(categories, list):
        check_categories(options.task, categories, source.answers)
    state = process_state(on_cpu=options.device == "cpu", timeout=timedelta(days=1))
    found = find_checkpoint(options.model)
    settings = {
        "task": options.task,
        "self_conditioned": options.self_conditioned,
        "data": source.about,
        "model": fingerprint_of_found(found),
        "threshold": DEFAULT_THRESHOLD if options.threshold is None else options.threshold,
        "keep_ratio": options.keep_ratio,
        "dtype": options.dtype,
    }
    file = None if options.json == STANDARD else options.json
    results = Results(None if file is None else file.with_suffix(".streams.jsonl"), settings)
    state.wait_for_everyone()
    if state.is_main_process:
        results.begin()
    device = str(state.device) if options.device == "auto" else options.device
    model, processor = load_checkpoint(options.model, device=device, dtype=options.dtype)
    if options.keep_ratio is not None:
        model.keep_ratio = options.keep_ratio
    check_rule(options, model.config)
    source.open(model, processor)
    state.wait_for_everyone()

    run_batches(options, state, model, processor, source, results)
    done: dict[int, dict] = {}
    for gathered in gather_object([results.done]):
        done |= gathered
    if not state.is_main_process:
        return None
    ordered = [json.loads(json.dumps(done[index])) for index in range(len(source))]  # the same as read from a file
    result = {
        "command": command,
        **settings,
        "threshold": threshold_of(options, model.config),
        **summarise(options, ordered, categories, source),
        "processes": state.num_processes,
        "device": f"{model.device.type}, {str(model.dtype).removeprefix('torch.')}",
        **surroundings("accelerate", "pycocoevalcap"),
    }
    write_result(options, result)
    return result


def write_result(options: EvaluateOptions, result: dict) -> None:
    """Write the result and the plot to the files of `options`; a plot that cannot be drawn is noted in the result."""
    if options.plot is not None and result["speaking"] is None:
        result["note"] = f"{options.plot} is not drawn: the streams have no decision to speak or to stay silent"
    if options.json is not None:
        write_whole(options.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if options.plot is not None and result["speaking"] is not None:
        plot_speaking(result["speaking"]["sweep"], result["speaking"]["calibration"], options.plot)
