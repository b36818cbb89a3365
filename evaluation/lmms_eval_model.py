"""The models that lmms-eval runs: for chat tasks and for simple ones, `generate_until` and its multi-round kind.

lmms-eval finds them through `lmms_eval_plugin`. Only this file and that one know the package.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from PIL.Image import Image
from tqdm import tqdm

from ..containers import shown
from ..data.processes import process_state
from ..loading.checkpoint import load_checkpoint
from ..loading.options import ModelOptions
from ..video_processing_videollm_mod import is_named_image
from .recorded import MAX_FRAMES, Answered, Clip, Recorded

MAX_NEW_TOKENS = 1024  # of tasks that set no limit, as for the models of lmms-eval
MAX_ROUNDS = 1000  # of a task that never says that it ends
OF_SAMPLING = ("temperature", "top_p", "top_k")
OF_GENERATE = ("num_beams", "repetition_penalty")
USED = {*OF_SAMPLING, *OF_GENERATE, "do_sample", "until", "max_new_tokens", "max_gen_toks"}
SOURCES = ("url", "path", "video", "image", "video_path")  # names for what a visual is read from
ENDS = ("start_time", "video_start"), ("end_time", "video_end")  # likewise, of a part of a video
PLACEHOLDER = "<image>"  # which tasks write where an image stands
DTYPES = ("auto", "float32", "bfloat16", "float16")
ARGUMENTS = "pretrained, dtype, fps, max_num_frames, keep_ratio, load_in_4bit, trust_remote_code"


class Model(lmms):
    """
    A checkpoint as a model of lmms-eval. The arguments are those of `--model_args`, `--batch_size` and `--device`.

    Args:
        pretrained (`str`, *optional*): folder, or Hub id; the checkpoint of the package by default.
        dtype, load_in_4bit, trust_remote_code, device: see `ModelOptions`. In several processes each takes its own
            device.
        keep_ratio (`float`, *optional*): share of vision tokens that routed layers keep.
        fps, max_num_frames: see `Recorded`.
        batch_size (`int`): requests that go through the model together.

    Raises:
        `ValueError`, `OSError`: for an argument out of range, or a checkpoint that cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        dtype: str = "auto",
        fps: float | None = None,
        max_num_frames: int = MAX_FRAMES,
        keep_ratio: float | None = None,
        load_in_4bit: bool = False,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        device: str = "auto",
        **unknown,
    ):
        super().__init__()
        unknown.pop("max_batch_size", None)  # for batch sizes that are found by trying
        if unknown:
            raise ValueError(f"`--model_args` of videollm_mod are {ARGUMENTS}, got {', '.join(sorted(unknown))}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"`--batch_size` must be a whole number of at least 1, got {batch_size!r}")
        self.batch_size = int(batch_size)
        state = process_state(on_cpu=device == "cpu")
        if state.num_processes > 1 and device in ("auto", "cuda"):
            device = str(state.device)
        ModelOptions(model=pretrained, device=device, keep_ratio=keep_ratio).check()
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.model, processor = load_checkpoint(
            pretrained, device=device, dtype=dtype, load_in_4bit=load_in_4bit, trust_remote_code=trust_remote_code
        )
        if keep_ratio is not None:
            self.model.keep_ratio = keep_ratio
        self.device = self.model.device
        self.recorded: Recorded | None = Recorded(self.model, processor, fps, max_num_frames)
        self._ignored: set[str] = set()

    def clean(self) -> None:
        """Free the model, as lmms-eval asks for before it scores the answers."""
        self.recorded = None
        super().clean()

    def loglikelihood(self, requests: list[Instance]):
        raise NotImplementedError(
            f"videollm_mod answers in words: the task {requests[0].task_name!r} compares probabilities of choices, "
            "and needs `output_type: generate_until`"
        )

    def generate_until(self, requests: list[Instance]):
        """The answers, one by one: lmms-eval stores each in its cache when it comes, so that a killed run can
        continue. A single one is a list, into which agentic tasks look."""
        answers = self._all(requests, self._answer)
        return answers if len(requests) > 1 else list(answers)

    def generate_until_multi_round(self, requests: list[Instance]):
        """As `generate_until`; an answer is the list of the answers of all rounds. As in lmms-eval's own models, a
        round has its own frames and text, and those of earlier rounds are not repeated."""
        return self._all(requests, self._answer_rounds)

    def _all(self, requests: list[Instance], answer: Callable[[list[Instance]], list]) -> Iterator:
        """The answers to requests in their order, in batches of neighbours with the same options."""
        tokens, began = 0, time.perf_counter()
        with tqdm(total=len(requests), disable=self.rank != 0, desc="videollm_mod") as progress:
            for _, alike in groupby(requests, key=lambda request: str(self.options_of(request))):
                group = list(alike)
                for first in range(0, len(group), self.batch_size):
                    for result in answer(group[first : first + self.batch_size]):
                        tokens += result.token_counts.output_tokens if isinstance(result, GenerationResult) else 0
                        progress.update()
                        yield result
        seconds = time.perf_counter() - began
        log_metrics(total_elapsed_time=seconds, total_gen_tokens=tokens, avg_speed=tokens / max(seconds, 1e-9))

    def _answer(self, requests: list[Instance]) -> list[GenerationResult]:
        said = self._said(requests, [self._first(request) for request in requests])
        return [
            GenerationResult(own.text, TokenCounts(input_tokens=own.prompt_tokens, output_tokens=own.tokens))
            for own in said
        ]

    def _answer_rounds(self, requests: list[Instance]) -> list[list[str]]:
        """A task ends when it says so, or when it no longer gives rounds."""
        outputs: list[list[str]] = [[] for _ in requests]
        known: list[Any] = [None] * len(requests)
        prompts: dict[int, list[dict]] = {i: self._first(request) for i, request in enumerate(requests)}
        for number in range(1, MAX_ROUNDS + 1):
            said = self._said([requests[i] for i in prompts], list(prompts.values()))
            for i, answer in zip(prompts, said, strict=True):
                outputs[i].append(answer.text)
            asked = {}
            for i in prompts:
                with named(requests[i]):
                    asked[i], before, known[i] = self.next_messages(requests[i], number, outputs[i], known[i])
                outputs[i] = list(before)
            prompts = {i: messages for i, messages in asked.items() if messages is not None}
            if not prompts:
                return outputs
        raise ValueError(f"the task {requests[0].task_name!r} has not ended after {MAX_ROUNDS} rounds")

    def _said(self, requests: list[Instance], messages: list[list[dict]]) -> list[Answered]:
        assert self.recorded is not None, "the model was freed by `clean`"
        given = self.options_of(requests[0])
        self._warn_of_ignored(given)
        with named(*requests):
            return self.recorded.answer(messages, *limits_of(given), **sampling_of(given))

    def _first(self, request: Instance) -> list[dict]:
        with named(request):
            return self.first_messages(request)

    def _warn_of_ignored(self, given: dict) -> None:
        if new := {name for name, value in given.items() if value is not None} - USED - self._ignored:
            self._ignored |= new
            logger.warning(f"videollm_mod ignores the generation_kwargs {', '.join(sorted(new))}")

    def document(self, name: str, split: str, doc_id: int) -> dict:
        return self.task_dict[name][split][doc_id]

    def options_of(self, request: Instance) -> dict:
        """`generation_kwargs` of a request."""
        raise NotImplementedError

    def first_messages(self, request: Instance) -> list[dict]:
        """The messages of a request, or of its first round."""
        raise NotImplementedError

    def next_messages(self, request: Instance, number: int, outputs: list[str], info: Any) -> tuple:
        """Of a later round: `(messages or None at the end, outputs so far, what the task wants to be told)`."""
        raise NotImplementedError


@contextmanager
def named(*requests: Instance) -> Iterator[None]:
    """Let errors of messages and media name the task and its documents."""
    try:
        yield
    except (ValueError, OSError) as error:
        which = ", ".join(str(request.doc_id) for request in requests)
        raise ValueError(f"{requests[0].task_name}, document {which}: {error}") from error


class SimpleModel(Model):
    """For tasks that give visuals and a text."""

    is_simple = True

    def options_of(self, request: Instance) -> dict:
        return request.args[1] or {}

    def first_messages(self, request: Instance) -> list[dict]:
        context, _, to_visual, *_, doc_id, name, split = request.args
        return user_turn(to_visual(self.document(name, split, doc_id)), context)

    def next_messages(self, request: Instance, number: int, outputs: list[str], info: Any) -> tuple:
        *_, to_text, doc_id, name, split = request.args
        given = to_text(
            self.document(name, split, doc_id), previous_output=outputs, round_idx=number, previous_round_info=info
        )
        if isinstance(given, str):
            return user_turn(None, given), outputs, info
        visuals, text, is_end, before, info = given
        return None if is_end else user_turn(visuals, text), outputs if before is None else before, info


class ChatModel(Model):
    """For tasks that give messages."""

    is_simple = False

    def options_of(self, request: Instance) -> dict:
        return request.args[2] or {}

    def first_messages(self, request: Instance) -> list[dict]:
        _, to_messages, _, doc_id, name, split = request.args
        return [message_of(message) for message in to_messages(self.document(name, split, doc_id))]

    def next_messages(self, request: Instance, number: int, outputs: list[str], info: Any) -> tuple:
        _, to_messages, _, doc_id, name, split = request.args
        document = self.document(name, split, doc_id)
        given = to_messages(document, round_idx=number, previous_output=outputs, previous_round_info=info)
        if not isinstance(given, tuple):  # its own `doc_to_messages`, which knows no rounds
            return None, outputs, info
        messages, is_end, before, info = given
        kept = outputs if before is None else before
        return None if is_end else [message_of(message) for message in messages], kept, info


def limits_of(given: dict) -> tuple[int, tuple[str, ...]]:
    """`max_new_tokens` and the texts that end an answer."""
    limit = given.get("max_new_tokens") or given.get("max_gen_toks") or MAX_NEW_TOKENS
    until = given.get("until") or ()
    return int(limit), (until,) if isinstance(until, str) else tuple(filter(None, until))


def sampling_of(given: dict) -> dict:
    """Options of `generate`. The temperature decides about sampling; without one, `do_sample` does."""
    options = {name: given[name] for name in OF_GENERATE if given.get(name) is not None}
    temperature = given.get("temperature")
    if given.get("do_sample") if temperature is None else temperature > 0:
        options |= {name: given[name] for name in OF_SAMPLING if given.get(name) is not None}
        options["do_sample"] = True
    return options


def user_turn(visuals: Any, text: str) -> list[dict]:
    """A message with visuals and a text. Images take the places that the text has for them, if it has one for each."""
    media = [medium_of(visual) for visual in visuals or ()]
    parts = text.split(PLACEHOLDER)
    if len(parts) == len(media) + 1:
        mixed = [parts[0], *(item for pair in zip(media, parts[1:], strict=True) for item in pair)]
    else:
        mixed = [*media, "".join(parts)]
    blocks = [{"type": "text", "text": item} if isinstance(item, str) else item for item in mixed]
    return [{"role": "user", "content": [block for block in blocks if block.get("text", "-").strip()]}]


def message_of(message: dict) -> dict:
    """A message of lmms-eval as one of `apply_chat_template`."""
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    blocks = [block if block["type"] == "text" else medium_of(block) for block in blocks]
    return {"role": message["role"], "content": [block for block in blocks if block.get("text", "-").strip()]}


def medium_of(visual: Any) -> dict:
    """The block of an image or a video, as tasks give them: images of PIL, paths, or dicts with one of these.

    Raises:
        `ValueError`: for sound and everything else.
    """
    if isinstance(visual, Image):
        return {"type": "image", "image": visual.convert("RGB")}
    if isinstance(visual, str | Path):
        kind = "image" if is_named_image(visual) else "video"
        return {"type": kind, kind: str(visual) if kind == "image" else Clip(str(visual))}
    kind = str(visual.get("type", "video")) if isinstance(visual, dict) else ""
    inner = next((visual[name] for name in SOURCES if visual.get(name) is not None), None) if kind else None
    if kind == "image" and inner is not None:
        return medium_of(inner)
    if kind == "video" and isinstance(inner, dict):  # a part of a video in a block of a message
        return medium_of({**visual, **dict.fromkeys(SOURCES), **inner})
    if kind == "video" and isinstance(inner, str | Path):
        start, end = (next((visual[n] for n in names if visual.get(n) is not None), None) for names in ENDS)
        return {"type": "video", "video": Clip(str(inner), start or 0.0, end)}
    if kind == "video" and isinstance(inner, list | tuple) and all(isinstance(frame, Image) for frame in inner):
        return {"type": "video", "video": list(inner)}
    raise ValueError(f"videollm_mod sees images and videos, and hears nothing: it cannot take {shown(visual)}")


__all__ = ["ChatModel", "SimpleModel"]
