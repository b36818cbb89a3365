"""Tasks of lmms-eval on clips of the procedural world, and the same questions for `videollm-mod evaluate`."""

import json
from pathlib import Path

from videollm_mod.data.world import world_stream
from videollm_mod.data.world_clip import write_clip

LEVEL, FPS = "hard_small_tasks", 2.0
SEEDS = range(200_000_000, 200_000_004)
# functions that the tasks name; lmms-eval loads them from the file beside the tasks
FUNCTIONS = '''
from pathlib import Path

import av


def visuals(doc, kwargs=None):
    return [{"type": "video", "path": doc["video"], "video_start": 0.0, "video_end": doc["time"]}]


def text(doc, kwargs=None):
    return doc["question"]


def part(doc, end):
    return {"type": "video", "url": doc["video"], "start_time": 0.0, "end_time": end}


def messages(doc):
    """The whole conversation, with system message and instruction."""
    system = [{"role": "system", "content": [{"type": "text", "text": doc["system"]}]}] if doc["system"] else []
    instruction = {"role": "user", "content": [{"type": "text", "text": doc["instruction"]}]}
    asked = [part(doc, doc["time"]), {"type": "text", "text": doc["question"]}]
    return [*system, instruction, {"role": "user", "content": asked}]


def round_text(doc, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None, previous_round_info=None):
    """Ask the same after each of `doc["times"]`, and mark the answers before with their number at the end."""
    if round_idx is None:
        return doc["question"]
    assert len(previous_output) == round_idx, previous_output
    assert previous_round_info == (None if round_idx == 1 else {"before": round_idx - 1}), previous_round_info
    if round_idx == len(doc["times"]):
        marked = [f"{index}: {said}" for index, said in enumerate(previous_output)]
        return None, None, True, marked, previous_round_info
    video = {"type": "video", "path": doc["video"], "video_start": 0.0, "video_end": doc["times"][round_idx]}
    return [video], doc["question"], False, previous_output, {"before": round_idx}


def round_visuals(doc, kwargs=None):
    return [{"type": "video", "path": doc["video"], "video_start": 0.0, "video_end": doc["times"][0]}]


def rounds_right(doc, results):
    assert isinstance(results[0], list), results
    return {"right": results[0][0] == f"0: {doc['answer']}"}


def images(doc, kwargs=None):
    """Every eighth frame of the video."""
    with av.open(doc["video"]) as container:
        return [frame.to_image() for frame in list(container.decode(video=0))[::8]]


def sound(doc, kwargs=None):
    return [{"array": [0.0, 0.5], "sampling_rate": 16000}]


def damaged(doc, kwargs=None):
    path = Path(doc["video"]).with_name("damaged.mp4")
    path.write_bytes(b"no video")
    return [str(path)]
'''
OPTIONS = {
    "step": "doc_to_visual: !function utils.visuals\ndoc_to_messages: !function utils.messages",
    "rounds": "doc_to_visual: !function utils.round_visuals\nprocess_results: !function utils.rounds_right",
    "images": "doc_to_visual: !function utils.images",
    "sound": "doc_to_visual: !function utils.sound",
    "damaged": "doc_to_visual: !function utils.damaged",
    "choices": 'doc_to_visual: !function utils.visuals\ndoc_to_choice: ["Yes.", "No."]',
}
KINDS = {"rounds": "generate_until_multi_round", "choices": "multiple_choice"}
TASK = """task: world_{name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: {kind}
doc_to_text: !function utils.{text}
doc_to_target: {target}
{options}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""
GENERATION = "generation_kwargs:\n  max_new_tokens: 64\n  image_aspect_ratio: pad\n"


def write_tasks(folder: Path) -> list[dict]:
    """Write clips, the tasks `world_NAME` and `step.jsonl` for `evaluate`.

    Returns:
        The documents: a step is asked for when it has happened, and once more at the end, where the answer is wrong.
    """
    documents = []
    for seed in SEEDS:
        stream = world_stream(seed, LEVEL)
        video, _ = write_clip(folder / f"{seed}.mp4", seed=seed, level=LEVEL, height=96)
        time, question, answer = stream.examples()["step"]
        system, instruction = stream.opening()
        last = float(stream.frame_times(FPS)[-1])
        about = {"video": str(video), "question": question, "answer": answer, "times": [time, last]}
        about |= {"system": system or "", "instruction": instruction}
        documents += [{**about, "time": time}, {**about, "time": last}]
    save(folder / "documents.jsonl", documents)
    save(folder / "step.jsonl", [line_of(document) for document in documents])
    (folder / "utils.py").write_text(FUNCTIONS)
    for name, options in OPTIONS.items():
        kind = KINDS.get(name, "generate_until")
        task = TASK.format(
            name=name,
            data=folder / "documents.jsonl",
            kind=kind,
            text="round_text" if name == "rounds" else "text",
            target="0" if name == "choices" else "answer",
            options=options,
            metric={"rounds": "right", "choices": "acc"}.get(name, "exact_match"),
        )
        (folder / f"{name}.yaml").write_text(task + GENERATION * (name != "choices"))
    return documents


def line_of(document: dict) -> dict:
    said = [("system", document["system"])] if document["system"] else []
    turns = [{"time": 0.0, "role": role, "content": text} for role, text in [*said, ("user", document["instruction"])]]
    asked = [("user", document["question"]), ("assistant", document["answer"])]
    turns += [{"time": document["time"], "role": role, "content": text} for role, text in asked]
    return {"video": document["video"], "fps": FPS, "turns": turns}


def save(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
