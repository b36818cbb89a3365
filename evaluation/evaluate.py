"""`videollm-mod evaluate`: a task's metrics of a checkpoint, on a JSONL file or the procedural world.

Streams go through the model in batches that are the same however many processes share them and however often a run was
killed, so the numbers are the same too.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from accelerate.utils import gather_object
from tqdm import tqdm

from ..benchmarks.record import surroundings
from ..data.ego4d_lta import word_of
from ..data.files import STANDARD, written_whole
from ..data.processes import process_state
from ..loading.checkpoint import load_checkpoint
from ..memory import frames_in_context
from ..narration.options import NarrateOptions, check_output
from ..speaking import DEFAULT_THRESHOLD
from .answering import answers
from .answers import Taxonomy
from .captions import NEEDS_JAVA, check_captions
from .encoding import encode
from .free_running import watch
from .results import Results
from .sources import Example, JsonlSource, WorldSource
from .speaking import check_plot, plot_speaking
from .tasks import (
    CANDIDATES,
    MAX_NEW_TOKENS,
    STREAMING,
    TASKS,
    check_categories,
    summarise_answers,
    summarise_forced,
    summarise_free,
)
from .teacher_forced_model import teacher_forced

CONFIGURATIONS = ("config.json", "processor_config.json", "tokenizer.json", "adapter_config.json")


@dataclass
class EvaluateOptions:
    """See `videollm-mod evaluate --help`.

    Raises:
        `ValueError`, `OSError`, `ImportError`: from `check`, naming the argument.
    """

    task: str
    model: str | None = None
    data: Path | None = None
    level: str | None = None
    split: str | None = None
    first_seed: int | None = None
    questions: int | None = None
    streams: int | None = None
    self_conditioned: bool = False
    threshold: float = DEFAULT_THRESHOLD
    keep_ratio: float | None = None
    categories: Path | None = None
    batch_size: int = 8
    json: Path | None = None
    plot: Path | None = None
    dtype: str = "auto"
    device: str = "auto"

    def check(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"`--task` must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.self_conditioned and self.task not in STREAMING:
            raise ValueError(f"`--self-conditioned` is for the tasks {' and '.join(STREAMING)}, not for {self.task!r}")
        if self.data is not None:
            for name in ("level", "split", "first_seed", "questions"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`--{name.replace('_', '-')}` is of the world, and does not go with `--data`")
        for name, least in (("streams", 1), ("batch_size", 1), ("questions", 0), ("first_seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least {least}, got {value}")
        if self.categories is not None and self.task in STREAMING:
            raise ValueError(f"`--categories` is for tasks with an answer, not for {self.task!r}")
        if self.first_seed is not None and self.split is not None:
            raise ValueError("`--first-seed` is instead of a split's seeds, and does not go with `--split`")
        for name in ("json", "plot"):
            if getattr(self, name) is not None:
                check_output(f"--{name}", getattr(self, name), "")
        if self.json is not None:
            check_result(self.json)
            if self.plot is not None and self.plot.absolute() == self.json.absolute():
                raise ValueError(f"`--json` and `--plot` are the same file, {self.json}")
        if self.plot is not None:
            if self.self_conditioned or self.task not in STREAMING:
                raise ValueError("`--plot` shows the decisions to speak, of narration and chat, not self-conditioned")
            check_plot(self.plot)
        if self.self_conditioned:
            check_captions()
        self.loading("auto").check()

    def loading(self, device: str) -> NarrateOptions:
        """How the checkpoint is loaded."""
        given = {name: getattr(self, name) for name in ("model", "threshold", "keep_ratio", "dtype")}
        return NarrateOptions(source="", device=device if self.device == "auto" else self.device, **given)

    def source(self) -> JsonlSource | WorldSource:
        if self.data is not None:
            return JsonlSource(self.data, self.task, self.streams)
        given = {"questions": self.questions, "count": self.streams, "first_seed": self.first_seed}
        given = {name: value for name, value in given.items() if value is not None}
        return WorldSource(self.level or "basic", self.task, self.split or "validation", **given)

    def read_categories(self) -> list[str] | Taxonomy | None:
        """What answers may be: one a line, or the taxonomy of long-term anticipation."""
        if self.categories is None:
            return None
        try:
            text = self.categories.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.categories} is not UTF-8: {error}") from error
        if self.task != "lta":
            if categories := [line.strip() for line in text.splitlines() if line.strip()]:
                return categories
            raise ValueError(f"{self.categories} holds no categories; one a line is wanted")
        try:
            taxonomy = json.loads(text)
            if not all(isinstance(taxonomy[kind], list) for kind in ("verbs", "nouns")):
                raise TypeError("words are wanted in lists")
            return Taxonomy(*([word_of(name) for name in taxonomy[kind]] for kind in ("verbs", "nouns")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{self.categories} is no taxonomy, {{"verbs": [str], "nouns": [str]}}') from error


def check_result(path: Path) -> None:
    """Raise `ValueError` if a file is there that is no result, and would be lost."""
    if not path.exists() or not path.stat().st_size:
        return
    try:
        made = json.loads(path.read_bytes())
    except ValueError:
        made = None
    if not isinstance(made, dict) or not {"command", "task", "summary"} <= made.keys():
        raise ValueError(f"`--json` would overwrite {path}, which is no result of `videollm-mod evaluate`")


def fingerprint_of(folder: str) -> str:
    """Hash of the configuration and weights of a checkpoint or adapter; an id on the Hub itself."""
    if not Path(folder).is_dir():
        return folder
    digest = hashlib.sha256()
    names = (*CONFIGURATIONS, *Path(folder).glob("*.safetensors"))
    for file in sorted(Path(folder) / name for name in names):
        if file.is_file():
            with open(file, "rb") as content:
                digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def results_of(options: EvaluateOptions, model, processor, examples: list[Example]) -> list[dict]:
    """The results of streams that go through the model together; see `tasks`."""
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
                max_cached_frames=frames_in_context(model.config),  # as `narrate`
            )
            result = {name: getattr(watched, name) for name in ("true", "said", "questions")}
            results.append({**result, "end": float(example.times[-1]) + 1 / example.fps, "fps": example.fps})
        return results
    features = [encode(model, processor, example.frames) for example in examples]
    conversations = [example.messages for example in examples]
    if options.task in STREAMING:
        forced = teacher_forced(model, processor, conversations, features, options.threshold)
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
        summary = summarise_free(results)
        pairs = summary["summary"]["segments_matched"]
        return summary | ({"note": NEEDS_JAVA} if pairs and summary["summary"]["meteor"] is None else {})
    if options.task in STREAMING:
        return summarise_forced(results)
    return summarise_answers(options.task, results, categories, source.answers)


def evaluate(options: EvaluateOptions, command: str = "") -> dict | None:
    """Evaluate, or go on where a run with the same `json` was killed: the results of single streams are kept beside
    it, in `NAME.streams.jsonl`. Under `accelerate launch` or `torchrun` the batches are shared out.

    Args:
        command (`str`): what is entered into the result.

    Returns:
        The result, in the first process; None in others.

    Raises:
        `ValueError`, `OSError`, `ImportError`: before the model is loaded for arguments and data that do not fit; and
            if a video turns out to be damaged, whereupon the results so far are kept.
    """
    options.check()
    source, categories = options.source(), options.read_categories()
    if isinstance(categories, list):
        check_categories(options.task, categories, source.answers)
    state = process_state(on_cpu=options.device == "cpu", timeout=timedelta(days=1))
    loading = options.loading(str(state.device))
    settings = {
        "task": options.task,
        "self_conditioned": options.self_conditioned,
        "data": source.about,
        "model": " on ".join(fingerprint_of(folder) for folder in dict.fromkeys((loading.checkpoint, loading.base))),
        "threshold": options.threshold,
        "keep_ratio": options.keep_ratio,
        "dtype": options.dtype,
    }
    to_file = options.json not in (None, STANDARD)
    results = Results(options.json.with_suffix(".streams.jsonl") if to_file else None, settings)
    state.wait_for_everyone()
    if state.is_main_process:
        results.begin()
    model, processor = load_checkpoint(loading)
    if options.keep_ratio is not None:
        model.keep_ratio = options.keep_ratio
    source.open(model, processor)
    state.wait_for_everyone()

    size = 1 if options.self_conditioned else options.batch_size  # sessions run one by one
    batches = [range(first, min(first + size, len(source))) for first in range(0, len(source), size)]
    own = batches[state.process_index :: state.num_processes]
    todo = [batch for batch in own if not results.done.keys() >= set(batch)]
    total, left = sum(map(len, own)), sum(map(len, todo))
    show = {"desc": "streams", "total": total, "initial": total - left, "disable": not state.is_main_process}
    if state.num_processes > 1:
        show["desc"] = f"streams of process 1 of {state.num_processes}"
    with tqdm(**show) as progress:
        for batch in todo:
            found = results_of(options, model, processor, [source[index] for index in batch])
            results.add([{"index": index, **result} for index, result in zip(batch, found, strict=True)])
            progress.update(len(batch))

    done = {}
    for gathered in gather_object([results.done]):
        done |= gathered
    if not state.is_main_process:
        return None
    ordered = [json.loads(json.dumps(done[index])) for index in range(len(source))]  # as they are read from a file
    result = {
        "command": command,
        **settings,
        **summarise(options, ordered, categories, source),
        "processes": state.num_processes,
        "device": f"{model.device.type}, {str(model.dtype).removeprefix('torch.')}",
        **surroundings("accelerate", "pycocoevalcap"),
    }
    if options.plot is not None and result["speaking"] is None:
        result["note"] = f"the streams hold no decision to speak or to be silent, so {options.plot} is not drawn"
    if options.json is not None:
        with written_whole(options.json) as partial:
            partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.plot is not None and result["speaking"] is not None:
        plot_speaking(result["speaking"]["sweep"], result["speaking"]["calibration"], options.plot)
    return result
