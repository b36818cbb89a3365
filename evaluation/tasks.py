"""The evaluation tasks: what each requires of the data, and how it summarises the results.

The result of one stream is a JSON object:
- teacher-forced: `turns` (`TurnScores` as objects), `exact`, `silence`, `speak` as in `ForcedStream`, and `fps`;
- self-conditioned: `true`, `said`, `questions` as in `Watched`, `end` (seconds) and `fps`;
- with an answer at the end: `question`, `true`, and `said`, the list of candidates.
"""

from functools import cache

from ..data import coin, ego4d, ego4d_lta, egoexo4d, goalstep
from .answers import Taxonomy, actions, anticipation, listed, nearest, normalise, right_steps
from .captions import caption_scores
from .free_running import Counts, Watched
from .self_conditioned import best_pairs, precision_recall_f1, segments
from .speaking import calibration, sweep
from .teacher_forced import TurnScores, summarise

STREAMING = ("narration", "chat")
ANSWERING = ("step", "task", "next", "procedure", "procedure+", "lta", "keystep")
TASKS = (*STREAMING, *ANSWERING)
LISTS = ("procedure", "procedure+", "lta")  # answered with a numbered list
CANDIDATES = {"lta": 5}  # beams to score; Ego4D (arXiv 2110.07058) takes the best of 5
MAX_NEW_TOKENS = {"lta": 512, "procedure": 256, "procedure+": 256}
# instruction that `videollm-mod prepare` writes -> task
INSTRUCTIONS = {
    ego4d.INSTRUCTION: "narration",
    ego4d.REFINED_INSTRUCTION: "narration",
    goalstep.INSTRUCTION: "narration",
    ego4d_lta.INSTRUCTION: "lta",
    egoexo4d.INSTRUCTION: "keystep",
    coin.STEP: "step",
    coin.TASK: "task",
    coin.NEXT: "next",
    coin.PROCEDURE: "procedure",
}


def task_of(instruction: str) -> str | None:
    """The task of an instruction that `videollm-mod prepare` writes; None for any other instruction."""
    if instruction.endswith(f". {coin.PROCEDURE}"):
        return "procedure+"
    return INSTRUCTIONS.get(instruction)


def check_turns(task: str, turns: list[dict]) -> None:
    """Raise `ValueError` if the turns of a stream do not fit a task."""
    roles = [turn["role"] for turn in turns if turn["role"] != "system"]
    other = next((task_of(turn["content"]) for turn in turns if turn["role"] == "user"), None)
    if other not in (None, task):
        raise ValueError(f"the stream was prepared for the task {other!r}, not for {task!r}")
    if task in STREAMING:
        return
    if roles[-2:] != ["user", "assistant"] or roles.count("assistant") != 1:
        raise ValueError(
            f"the task {task!r} needs a question with its answer as the last turn, got turns of {', '.join(roles)}"
        )
    if task in LISTS and not turns[-1]["content"].startswith("1."):
        raise ValueError(f"the task {task!r} needs a numbered list as its answer, got {turns[-1]['content']!r}")
    if task == "lta" and not actions(turns[-1]["content"]):
        raise ValueError(f"the answer {turns[-1]['content']!r} names no action")


def steps(task: str, answer: str) -> list[str]:
    """The normalised steps of an answer; only one unless the task asks for a list."""
    return [normalise(step) for step in (listed(answer) if task in LISTS else [answer])]


def check_categories(task: str, categories: list[str], answers: list[str]) -> None:
    """Raise `ValueError` if a true answer is not among the categories."""
    known = {normalise(name) for name in categories}
    if lacking := sorted({step for answer in answers for step in steps(task, answer)} - known):
        raise ValueError(f"`--categories` lacks {len(lacking)} of the true answers, such as {lacking[0]!r}")


def summarise_teacher_forced(results: list[dict]) -> dict:
    """The streaming metrics, the percentage of exact narrations, the threshold sweep and the calibration."""
    turns = [[TurnScores(**turn) for turn in result["turns"]] for result in results]
    exact = [x for result in results for x in result["exact"]]
    summary = {
        "streams": len(results),
        "replies": sum(map(len, turns)),
        **summarise(turns, [result["fps"] for result in results]),
        "narrations": len(exact),
        "exact": 100 * sum(exact) / len(exact) if exact else None,
    }
    silence, speak = ([x for result in results for x in result[name]] for name in ("silence", "speak"))
    speaking = {"calibration": calibration(silence, speak), "sweep": sweep(silence, speak)} if silence else None
    return {"summary": summary, "speaking": speaking}


def summarise_self_conditioned(results: list[dict]) -> dict:
    """The `Counts` of narrations, and the metrics of segments and their texts (`self_conditioned`)."""
    counts, matched, predicted, true, pairs = Counts(), 0, 0, 0, []
    for result in results:
        watched = Watched(*(result[name] for name in ("true", "said", "questions")))
        counts += watched.counts(result["fps"])
        said_segments, true_segments = (segments(result[name], result["end"]) for name in ("said", "true"))
        found = best_pairs(said_segments, true_segments)
        matched, predicted, true = matched + len(found), predicted + len(said_segments), true + len(true_segments)
        pairs += [(said_segments[i][2], true_segments[j][2]) for i, j in found]
    summary = {"streams": len(results), **counts.summary(), "said": counts.said, "segments_matched": matched}
    summary |= precision_recall_f1(matched, predicted, true) | caption_scores(pairs)
    return {"summary": summary}


def summarise_answers(
    task: str, results: list[dict], categories: list[str] | Taxonomy | None, answers: list[str] | tuple = ()
) -> dict:
    """Top-1 accuracy in percent (by the nearest category, for each step of a list), or ED@20 in [0, 1] of long-term
    anticipation.

    `categories` are all possible answers or steps; by default they come from `answers` and the results. Top-1 is None
    for fewer than two, since any answer would then be right.
    """
    if task == "lta":
        taxonomy = categories if isinstance(categories, Taxonomy) else Taxonomy()
        distances = [anticipation(result["said"], result["true"], taxonomy) for result in results]
        names = ("ed_verb", "ed_noun", "ed_action")
        means = {name: sum(d[i] for d in distances) / len(distances) for i, name in enumerate(names)}
        return {"summary": {"streams": len(results), **means}}
    true = [steps(task, result["true"]) for result in results]
    if isinstance(categories, list) and categories:
        given = list(map(normalise, categories))
    else:
        given = [x for answer in answers for x in steps(task, answer)]
    known = sorted({*given, *(step for answer in true for step in answer)})

    @cache
    def category(text: str) -> str:
        return nearest(text, known)

    said = [[category(step) for step in steps(task, result["said"][0])] for result in results]
    right = sum(right_steps(s, t, known) for s, t in zip(said, true, strict=True))
    count = sum(map(len, true))
    summary: dict[str, float | None] = {"streams": len(results), "answers": count, "categories": len(known)}
    summary["top1"] = 100 * right / count if len(known) > 1 else None
    summary["to_the_letter"] = 100 * sum(r["said"][0] == r["true"] for r in results) / len(results)
    return {"summary": summary}
