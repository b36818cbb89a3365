"""Stand-ins of the field's benchmarks: files in their published schemas, about clips of the procedural world.

    write_all(folder) -> the annotation file of each benchmark; the clips are in `folder/videos`

Only the content is ours. The questions are the world's own, with options from the same world; what cannot be asked of
it, such as reading (OCR), is left out. Questions come at whole seconds, as the official scripts cut clips there.
"""

import csv
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ..data.world import world_stream
from ..data.world_basic import KINDS, NUMBERS, PLACES
from ..data.world_clip import write_clip
from ..data.world_hard import split_seeds
from ..data.world_tasks import NAMES, PROCEDURES, HardTasksStream

BASIC, HARD, TASKS = "basic", "hard_small", "hard_small_tasks"
CLIPS = 2  # of each level
SSR_TESTS = 4  # of a clip
STEP = 0.5  # seconds between frames
LAST_FRAMES = 1.5  # seconds after an event, when four frames do not show the change any more
PLACE_ANSWERS = [f"At the {place}." for row in PLACES for place in row]
COUNT_ANSWERS = [f"{number.capitalize()}." for number in NUMBERS[:6]]
PICTURES = [f"A {kind}." for kind in KINDS]
STEPS = sorted({f"{verb.capitalize()} the {KINDS[kind]}." for steps in PROCEDURES.values() for verb, kind in steps})
SUMMARIES = [f"The {name}." for name in NAMES]
Asked = tuple[str, str, list[str]]  # question, answer, and answers to other questions


class Clip:
    """A clip of the world, and what can be asked about it."""

    def __init__(self, seed: int, level: str):
        self.name, self.stream, self.level, self.seed = f"{level}_{seed}", world_stream(seed, level), level, seed
        self.events = self.stream.narrations
        self.ends = [time for time, _ in self.events[1:]] + [self.stream.seconds]  # when the next event comes
        self.rng = random.Random(self.name)

    @property
    def video(self) -> str:
        return f"{self.name}.mp4"

    def seconds(self) -> range:
        return range(2, int(self.stream.seconds - STEP) + 1)

    def ask(self, kind: str, time: int) -> Asked | None:
        """A question of this kind after the frame at `time`; None if it cannot be asked."""
        things = self.stream.things(float(time))
        if isinstance(self.stream, HardTasksStream):
            pools = {"step": STEPS, "next": STEPS, "task": SUMMARIES}
            return (*self.stream.task(kind, float(time)), pools[kind]) if kind in self.stream.tasks(time) else None
        if kind == "count":
            return "How many objects are there?", COUNT_ANSWERS[len(things)], COUNT_ANSWERS
        if kind == "last":
            past = [text for at, text in self.events if at <= time]
            return ("What happened last?", past[-1], [text for _, text in self.events]) if past else None
        if kind == "absent":
            absent = self.rng.choice([kind for kind in KINDS if kind not in {thing.name for thing in things}])
            return f"Where is the {absent}?", "It is not there.", PLACE_ANSWERS
        if not things:
            return None
        thing = self.rng.choice(things)
        if kind == "where":
            return f"Where is the {thing.name}?", f"At the {thing.place}.", PLACE_ANSWERS
        like = [text for text in PICTURES if thing.shape in text] if kind == "colour" else PICTURES
        return f"What is at the {thing.place}?", f"A {thing.name}.", like

    def choice(self, kind: str, time: int) -> tuple[str, list[str], int] | None:
        """The question, four options, and the index of the right one."""
        asked = self.ask(kind, time)
        others = [] if asked is None else sorted(set(asked[2]) - {asked[1]})
        if asked is None or len(others) < 3:
            return None
        options = [asked[1], *self.rng.sample(others, 3)]
        self.rng.shuffle(options)
        return asked[0], options, options.index(asked[1])

    def moments(self) -> Iterator[tuple[float, float, int, str]]:
        """Events with a whole second at which they are the last one: `(time, next event, second, text)`."""
        for (time, text), end in zip(self.events, self.ends, strict=True):
            if math.ceil(time) < end:
                yield time, end, math.ceil(time), text


class World:
    """The clips of all benchmarks, written as videos."""

    def __init__(self, folder: Path, count: int = CLIPS):
        self.folder = folder
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        self.clips = {
            level: [Clip(seed, level) for seed in split_seeds("test", count)] for level in (BASIC, HARD, TASKS)
        }
        for clip in (clip for of_level in self.clips.values() for clip in of_level):
            if not (folder / "videos" / clip.video).exists():
                write_clip(folder / "videos" / clip.video, clip.seed, clip.level)

    def choices(self, kind: str) -> Iterator[tuple[Clip, int, str, list[str], int]]:
        """One question of a kind for each clip that allows it: with its second, options and right index."""
        for clip in self.clips[TASKS if kind in ("step", "next", "task") else BASIC]:
            times = list(clip.seconds())
            if kind == "long ago":  # four frames do not show it any more
                times = [t for t in times if any(at + LAST_FRAMES <= t < end for at, end, _, _ in clip.moments())]
            elif kind == "last":
                times = [second for _, _, second, _ in clip.moments()]
            clip.rng.shuffle(times)
            found = ((t, clip.choice("last" if kind == "long ago" else kind, t)) for t in times)
            if (first := next(((t, made) for t, made in found if made is not None), None)) is not None:
                yield (clip, first[0], *first[1])

    def narrated(self) -> list[Clip]:
        return [*self.clips[BASIC], *self.clips[HARD]]

    def write(self, name: str, content: list | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        path.write_text(text, encoding="utf-8")
        return path


OVO_CHOICES = {
    "EPM": "long ago",
    "ASI": "step",
    "HLD": "absent",
    "STU": "where",
    "OJR": "what",
    "ATR": "colour",
    "ACR": "last",
    "FPD": "next",
}


def ovo_bench(world: World) -> Path:
    """`ovo_bench_new.json`."""
    entries: list[dict] = []

    def add(task: str, clip: Clip, **fields) -> None:
        entries.append({"id": len(entries), "task": task, "video": f"World/{clip.video}", **fields})

    for task, kind in OVO_CHOICES.items():
        for clip, time, question, options, right in world.choices(kind):
            fields = {"answer": options[right], "options": options, "gt": right}
            add(task, clip, realtime=time, question=question, **fields)
    for clip in world.narrated():
        moments = list(clip.moments())
        if len(moments) < 2:
            continue
        times = [time for time, _ in clip.events]
        tests = []
        for index, (time, _, second, text) in enumerate(moments):
            if index and moments[index - 1][2] < time:  # before it, and then at it
                tests.append({"realtime": moments[index - 1][2], "step": text, "type": 0})
            tests.append({"realtime": second, "step": text, "type": 1})
        steps = [text for _, text in clip.events]
        fields = {"tutorial": "World", "all_steps": steps, "start_time": times, "end_time": clip.ends}
        add("SSR", clip, **fields, test_info=tests[:SSR_TESTS])
        time, _, second, text = moments[-1]
        asked = math.floor(max((at for at in times if at < time), default=0.0)) + 1  # after the event before it
        if asked < time:
            tests = [{"realtime": at, "type": int(at >= time)} for at in (asked, second)]
            fields = {"ask_time": asked, "clue_time": time, "answer": text}
            add("CRR", clip, question="Tell me what you see.", **fields, test_info=tests)
    for clip in world.clips[BASIC]:
        leaves = [time for time, text in clip.events if text.endswith("leaves.")]
        if leaves:
            tests = [
                {"realtime": math.ceil(time), "count": sum(at <= math.ceil(time) for at in leaves)} for time in leaves
            ]
            fields = {"activity": "leave", "start_times": leaves, "end_times": [time + STEP for time in leaves]}
            add("REC", clip, **fields, test_info=tests)
    return world.write("ovo_bench_new.json", entries)


STREAMINGBENCH_CHOICES = {
    "Object Recognition": "what",
    "Attribute Recognition": "colour",
    "Spatial Understanding": "where",
    "Counting": "count",
    "Event Understanding": "last",
    "Action Recognition": "step",
    "Prospective Reasoning": "next",
    "Clips Summarize": "task",
}


SEQUENTIAL, PROACTIVE = "Sequential Question Answering", "Proactive Output"
FILE_OF = {"Scene Understanding": "omni", SEQUENTIAL: "sqa", PROACTIVE: "proactive"}


def clock(seconds: float) -> str:
    return f"00:{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def streamingbench(world: World) -> Path:
    """The folder with `questions_real.json`, `_omni`, `_sqa` and `_proactive`."""

    videos = world.folder / "videos"
    numbers = {clip.name: number for number, clip in enumerate([*world.narrated(), *world.clips[TASKS]])}

    def entry(clip: Clip, **question) -> dict:
        """A video has a name of its own in each file."""
        whole = f"[0:00:00 - {clock(clip.stream.seconds)[1:]}]"
        name = f"sample_{numbers[clip.name]}_{FILE_OF.get(question['task_type'], 'real')}.mp4"
        shutil.copy(videos / clip.video, videos / name)
        fields = {"video_categories": "world", "video_path": f"./videos/{name}"}
        return {"time": whole, "questions": [{**question, "required_ability": "episodic memory"}], **fields}

    def choice(task: str, clip: Clip, time: int, question: str, options: list[str], right: int) -> dict:
        listed = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
        fields = {"time_stamp": clock(time), "answer": "ABCD"[right], "options": listed}
        return entry(clip, task_type=task, question=question, **fields)

    real = [choice(task, *made) for task, kind in STREAMINGBENCH_CHOICES.items() for made in world.choices(kind)]
    omni = [choice("Scene Understanding", *made) for made in list(world.choices("what"))[:4]]
    sequences = []
    for clip in world.clips[BASIC]:
        times = list(clip.seconds())[:: max(1, len(clip.seconds()) // 3)]
        made = [(time, clip.choice(kind, time)) for time, kind in zip(times, ("what", "where", "count"), strict=False)]
        sequences.append([choice(SEQUENTIAL, clip, time, *asked) for time, asked in made if asked is not None])
    proactive = []
    for clip in world.narrated():
        before = [0.0, *(time for time, _ in clip.events)]
        for (time, text), earlier in zip(clip.events, before, strict=False):
            asked = math.floor(earlier) + 1
            if time == int(time) and asked < time:  # the truth is a whole second
                fields = {"ground_truth_time_stamp": clock(time), "ground_truth_output": text}
                question = f'When this happens, output "{text}"'
                task = {"task_type": PROACTIVE, "question": question, "time_stamp": clock(asked)}
                proactive.append(entry(clip, **task, **fields))
                break
    world.write("streamingbench/questions_real.json", real)
    world.write("streamingbench/questions_omni.json", omni)
    world.write("streamingbench/questions_sqa.json", [each for each in sequences if each])
    return world.write("streamingbench/questions_proactive.json", proactive).parent


def proactivevideoqa(world: World) -> Path:
    """`WEB/anno.json`."""
    entries = []
    for clip in world.narrated():
        answers = [
            {"role": "assistant", "content": text, "related_timespan": span, "reply_timespan": span}
            for (time, text), end in zip(clip.events, clip.ends, strict=True)
            for span in [[time, end - STEP / 2]]  # the next event is due in the next one
        ]
        asked = [{"role": "user", "content": "Narrate what happens.", "time": 0}]
        fields = {"conversation": asked, "duration": clip.stream.seconds}
        entries.append({"video": clip.video, "question_id": clip.video, "answer": answers, **fields})
    return world.write("proactivevideoqa/WEB/anno.json", entries)


def omnimmi_pa(world: World) -> Path:
    """`proactive_alerting.json`."""
    entries = []
    for clip in world.narrated():
        (time, text), end = clip.events[0], clip.ends[0]
        question = f"Let me know when this happens: {text}"
        entries.append({"video": clip.video, "question": question, "answer": [time, end - STEP / 2]})
    return world.write("proactive_alerting.json", entries)


def omnipro(world: World) -> Path:
    """`benchmark.json`."""
    entries: list[dict] = []

    def add(clip: Clip, task: str, question: str, truth: list[dict]) -> None:
        fields = {"video_path": f"videos/{clip.video}", "audio_dependency": "none"}
        entries.append({"id": len(entries), "task": task, "question": question, "ground_truth": truth, **fields})

    for clip in world.narrated():
        told = [{"trigger_time_sec": time, "response": text} for time, text in clip.events]
        add(clip, "event_narration", "Narrate what happens.", told)
        add(clip, "instant_event_alert", "Tell me whenever something happens.", told)
    for clip in world.clips[BASIC]:
        placed = [
            {"trigger_time_sec": time, "position": text.rpartition(" at the ")[2].rstrip(".")}
            for time, text in clip.events
            if " appears at the " in text
        ]
        placed = [{**each, "position": REGIONS[str(each["position"])]} for each in placed]
        if placed:
            add(clip, "explicit_target_grounding", "Tell me where something appears whenever it does.", placed)
    return world.write("benchmark.json", entries)


REGIONS = {
    "top left": "top-left",
    "top": "top-center",
    "top right": "top-right",
    "left": "center-left",
    "center": "center",
    "right": "center-right",
    "bottom left": "bottom-left",
    "bottom": "bottom-center",
    "bottom right": "bottom-right",
}


def livesports_3k(world: World) -> Path:
    """`LiveSports-3K-CC-val.csv`, and beside it `baseline.jsonl`: a commentary that fits every clip a little."""
    path = world.folder / "LiveSports-3K-CC-val.csv"
    baseline = []
    with open(path, "w", encoding="utf-8", newline="") as file:
        columns = ("video_id", "event_id", "video", "begin", "end", "event_title", "event_asr_text", "class")
        rows = csv.DictWriter(file, columns)
        rows.writeheader()
        for clip in world.narrated():
            told = " ".join(text for _, text in clip.events)
            fields = {"video": clip.video, "begin": 0, "end": clip.stream.seconds, "event_title": "The world"}
            rows.writerow({"video_id": clip.name, "event_id": 0, **fields, "event_asr_text": told, "class": "world"})
            said = "A red circle appears at the center. " * len(clip.events)
            baseline.append({"video_id": clip.name, "event_id": 0, "pred": said.strip()})
    world.write("baseline.jsonl", "".join(json.dumps(line) + "\n" for line in baseline))
    return path


MAKERS: dict[str, Callable[[World], Path]] = {
    "ovo-bench": ovo_bench,
    "streamingbench": streamingbench,
    "proactivevideoqa": proactivevideoqa,
    "omnimmi-pa": omnimmi_pa,
    "omnipro": omnipro,
    "livesports-3k": livesports_3k,
}
