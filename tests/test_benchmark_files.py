"""Published files of benchmarks, in their schemas, become items; wrong ones are refused with place and field."""

import csv
import json
import re
from copy import deepcopy
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
from video_files import write_video

from videollm_mod.commands import cli
from videollm_mod.data import omnipro, ovo_bench, streamingbench
from videollm_mod.data.benchmark_items import Item, Poll, read_items, write_items
from videollm_mod.data.prepare_benchmarks import READERS, prepare_benchmark

OVO = [
    {
        "id": 7,
        "task": "OCR",
        "video": "Ego4D/clips/a.mp4",
        "realtime": 3.2,
        "question": "Which word?",
        "answer": "in",
        "options": ["in", "out"],
        "gt": 1,
    },
    {
        "id": 8,
        "task": "REC",
        "video": "x/b.mp4",
        "activity": "jump",
        "start_times": [0],
        "end_times": [4],
        "test_info": [{"realtime": 4, "count": 1}, {"realtime": 6.5, "count": 2}],
    },
    {
        "id": 9,
        "task": "SSR",
        "video": "x/b.mp4",
        "tutorial": "Cook",
        "all_steps": ["fry", "stir"],
        "start_time": [1],
        "end_time": [2],
        "test_info": [
            {"realtime": 5, "step": "fry", "type": 1},
            {"realtime": 3, "step": "stir", "type": 0},
            {"realtime": 9, "step": "stir", "type": 1},
        ],
    },
    {
        "id": 10,
        "task": "CRR",
        "video": "x/c.mp4",
        "question": "What next?",
        "answer": "She leaves.",
        "ask_time": 4,
        "clue_time": 6,
        "test_info": [{"realtime": 4, "type": 0}, {"realtime": 8, "type": 1}],
    },
]
REAL = [
    {
        "time": "[0:00:00 - 0:00:10]",
        "video_categories": "cooking",
        "video_path": "./videos/sample_1_real.mp4",
        "questions": [
            {
                "task_type": "Counting",
                "question": "How many?",
                "time_stamp": "0:00:05",
                "answer": "B",
                "options": ["A. 1.", "B. 2.", "C. 3.", "D. 4.", "E. 5."],
            },
            {
                "task_type": "Emotion Recognition",
                "question": "How does it sound?",
                "time_stamp": "00:06",
                "answer": "A",
                "options": ["Glad.", "Sad.", "Calm.", "Cross."],
            },
        ],
    }
]
SEQUENTIAL = [
    [
        {
            "video_path": "sample_1_sqa.mp4",
            "questions": [
                {
                    "task_type": "Sequential Question Answering",
                    "question": f"Question {number}?",
                    "time_stamp": f"00:00:0{number}",
                    "answer": "C",
                    "options": ["one", "two", "three", "four"],
                }
            ],
        }
        for number in (2, 4)
    ]
]
ALERTS = [
    {
        "video_path": "./videos/sample_2_proactive.mp4",
        "questions": [
            {
                "task_type": "Proactive Output",
                "question": f'When it shows {number}, output "{number}".',
                "time_stamp": f"00:00:0{asked}",
                "ground_truth_time_stamp": f"00:00:0{truth}",
                "ground_truth_output": str(number),
            }
        ],
    }
    for number, asked, truth in ((3, 1, 2), (4, 5, 6))
]
ANSWERS = [
    {"content": "A dog.", "related_timespan": [0.0, 3.0], "reply_timespan": [0.0, 4.0]},
    {"content": "A cat.", "related_timespan": [4.5, 6.0], "reply_timespan": [4.5, 7.0]},
]
SPOKEN = [
    {
        "video": "show=clip.mp4",
        "question_id": "show=clip.mp4%Q1",
        "duration": 12.0,
        "conversation": [
            {"role": "user", "content": "Who is it?", "time": 0},
            {"role": "user", "content": "Subtitle: Hello.", "time": 1.5},
        ],
        "answer": ANSWERS,
    }
]
WATCHED = [{**SPOKEN[0], "conversation": SPOKEN[0]["conversation"][:1]}]
PA = [{"video": "a.mp4", "question": "Tell me when it rains.", "answer": [3, 7]}]
PRO = [
    {
        "id": f"{task}_1",
        "task": task,
        "video_path": "raw_videos/a.mp4",
        "video_id": "a",
        "question": "Let me know when a dog barks.",
        "question_time": "00:01",
        "duration": 10,
        "audio_dependency": "required" if task == "event_narration" else "helpful",
        "ground_truth": [
            {
                "trigger_time_sec": time,
                "response": f"Thing {time}.",
                "count": index + 1,
                "position": "center",
                "state_from": "off",
                "state_to": "on",
            }
            for index, time in enumerate((6, 8))
        ],
    }
    for task in omnipro.GROUPS
]
SPORTS = [
    {
        "video_id": "abc",
        "url": "x",
        "event_id": "4",
        "begin": "2.0",
        "end": "9.5",
        "event_title": "A final",
        "event_type": "0",
        "video": "abc.mp4",
        "class": "golf",
        "preasr_text": "He waits.",
        "event_asr_text": "He hits it.",
    }
]
SECONDS = 12.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A video of two frames and twelve seconds."""
    folder, frames = tmp_path_factory.mktemp("clips"), np.zeros((2, 32, 32, 3), np.uint8)
    return write_video(folder / "clip.mkv", frames, "mpeg4", times=[0.0, SECONDS - 0.1])


class Folder:
    def __init__(self, path: Path, clip: Path):
        self.path, self.clip = path, clip

    def videos(self, *names: str) -> None:
        for name in names:
            file = self.path / "videos" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            copyfile(self.clip, file)

    def write(self, name: str, content) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            with open(path, "w", newline="", encoding="utf-8") as file:
                rows = csv.DictWriter(file, list(content[0]))
                rows.writeheader()
                rows.writerows(content)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(value) + "\n" for value in content))
        else:
            path.write_text(json.dumps(content))
        return path

    def items(self, benchmark: str, content, name: str = "annotations.json", **options) -> list[Item]:
        path = content if isinstance(content, Path) else self.write(name, content)
        prepared = prepare_benchmark(benchmark, path, self.path / "videos", self.path / "out.jsonl", **options)
        items = read_items(prepared.path)
        assert len(items) == prepared.items and sum(item.needs_sound for item in items) == prepared.with_sound
        assert all((prepared.path.parent / item.video).is_file() for item in items)
        assert {item.benchmark for item in items} == {benchmark}
        return items


@pytest.fixture
def folder(tmp_path, clip) -> Folder:
    (tmp_path / "videos").mkdir()
    return Folder(tmp_path, clip)


def test_ovo_bench(folder):
    folder.videos(
        "Ego4D/clips/a.mp4", "b.mkv", "10_1.mp4"
    )  # the last is a clip of the data set, the longest of its item
    choice, count, step, clue = folder.items("ovo-bench", OVO)
    text = ovo_bench.CHOICE.format(question="Which word?", options="A. in; B. out;")
    poll = Poll(4.0, text)  # clips end at whole seconds
    assert choice == Item(
        "ovo-bench",
        "7",
        "Real-Time Visual Perception",
        "OCR",
        "videos/Ego4D/clips/a.mp4",
        "choice",
        (poll,),
        poll,
        4.0,
        {"answer": "B"},
        ("in", "out"),
    )
    assert [poll.time for poll in count.polls] == [4.0, 7.0] and count.truth == {"counts": [1, 2]}
    assert count.stream == Poll(0.0, "How many times did they jump?") and count.end == 7.0
    assert [poll.time for poll in step.polls] == [5.0, 3.0, 9.0]  # in the order of the file
    assert step.truth == {"steps": ["fry", "stir", "stir"], "types": [1, 0, 1]} and "fry; stir" in step.stream.text
    assert clue.video == "videos/10_1.mp4" and clue.stream == Poll(4.0, "What next?")
    assert clue.truth == {"types": [0, 1], "clue_time": 6, "answer": "She leaves."}


def test_streamingbench_from_a_folder_of_its_files(folder):
    folder.videos("sample_1_real.mp4", "sqa/sample_1/video.mp4", "sample_2_proactive.mp4")
    for name, content in zip(streamingbench.FILES, (REAL, REAL, SEQUENTIAL, ALERTS), strict=True):
        entries = deepcopy(content)
        if name == "questions_omni.json":
            entries[0]["questions"][0]["task_type"] = "Scene Understanding"
            entries[0]["video_path"] = "./videos/sample_1_real.mp4"
            for question in entries[0]["questions"]:
                question["time_stamp"] = "00:00:07"
        folder.write(f"files/{name}", entries)
    items = folder.items("streamingbench", folder.path / "files")
    real, heard, first, second, alert, last = (items[index] for index in (0, 1, 4, 5, 6, 7))
    assert [item.id for item in items[:4]] == [
        "sample_1_real@0:00:05",
        "sample_1_real@00:06",
        "sample_1_real@00:00:07",
        "sample_1_real@00:00:07#2",
    ]
    assert real.polls == (real.stream,) and real.stream.time == 5.0 and real.options == ("1.", "2.", "3.", "4.")
    assert real.polls[0].text.endswith("Options:\nA. 1.\nB. 2.\nC. 3.\nD. 4.\n\nThe best option is:")  # no fifth
    assert not real.needs_sound and heard.needs_sound and heard.group == "Omni-Source Understanding"
    assert "A. Glad.\nB. Sad." in heard.polls[0].text
    assert streamingbench.CONTEXT_BEGINS not in first.polls[0].text and first.video == "videos/sqa/sample_1/video.mp4"
    assert (
        "At timestamp 00:00:02, the following question and answer occurred: Question: Question 2?; "
        "Options: A. one, B. two, C. three, D. four; Answer: C; "
    ) in second.polls[0].text
    assert [poll.time for poll in alert.polls] == [2.0, 3.0, 4.0, 5.0, 6.0] and alert.polls[0].since == 1.0
    assert alert.stream == Poll(1.0, 'When it shows 3, output "3".', 1.0)
    assert 'Is it the right time to output "3"? You can only answer yes or no.' in alert.polls[0].text
    assert alert.truth["time"] == 2.0 and alert.truth["then_ask"].endswith('output "3".\n\nThe answer is:\n')
    assert (alert.end, last.end) == (5.0, pytest.approx(SECONDS, abs=0.2))  # its video's next question; its end


def test_proactivevideoqa(folder):
    folder.videos("TV/videos/show=clip.mp4")
    (item,) = folder.items("proactivevideoqa", SPOKEN, "TV/anno.json")
    assert (item.task, item.id, item.needs_sound, item.end) == ("TV", "show=clip.mp4%Q1", True, 7.0)
    assert [(poll.since, poll.time) for poll in item.polls] == [(0.0, 3.0), (3.0, 6.0), (6.0, 9.0)]
    assert item.polls[0].text.startswith(
        "Subtitle: Hello.\n\nIs the following question answerable by the video and sub"
    )
    assert item.polls[1].text == (
        "Is the following question answerable by the video? Only reply with Yes or No.\nWho is it?"
    )
    assert item.truth["then_ask"][1].startswith("Who is it?\nYour answers can only contain video content.")
    assert item.truth["answers"][1] == {"content": "A cat.", "reply": [4.5, 7.0], "related": [4.5, 6.0]}
    (item,) = folder.items("proactivevideoqa", WATCHED, "other/anno.json")
    assert (item.task, item.needs_sound, item.stream) == ("WEB", False, Poll(0.0, "Who is it?"))
    for name, task in (("frame", "TV"), ("type", "EGO"), ("num_captions", "VAD")):
        entry = deepcopy(WATCHED)
        (entry[0] if task == "TV" else entry[0]["answer"][0])[name] = "x"
        assert folder.items("proactivevideoqa", entry)[0].task == task


def test_omnimmi_alerts(folder):
    folder.videos("a.mp4")
    (item,) = folder.items("omnimmi-pa", PA)
    assert item.truth == {"span": [3.0, 7.0]} and item.stream == Poll(0.0, "Tell me when it rains.")
    assert [poll.time for poll in item.polls] == [float(second) for second in range(1, 13)]


def test_omnipro(folder):
    folder.videos("a.mp4")
    items = {item.task: item for item in folder.items("omnipro", PRO)}
    assert [task for task, item in items.items() if item.needs_sound] == ["event_narration"]
    alert, narration = items["instant_event_alert"], items["event_narration"]
    assert (
        alert.polls[0].text.startswith("Listen carefully") and "Did a dog barks in this video?" in alert.polls[0].text
    )
    assert "has already happened 1 time earlier" in alert.polls[2].text
    assert [probe["early"] for probe in alert.truth["probes"]] == [True, False, True, False]
    for index, poll in enumerate(alert.polls):
        distance = poll.time - (6, 8)[index // 2]
        assert distance in ((-5, -4, -3, -2) if index % 2 == 0 else (0, 1, 2, 3))
    assert sorted(narration.options) == ["Thing 6.", "Thing 8."] and len(narration.polls) == 2
    assert [narration.options[probe["expected"]] for probe in narration.truth["probes"]] == ["Thing 6.", "Thing 8."]
    assert [probe["expected"] for probe in items["dedup_counting"].truth["probes"]] == [0, 1, 1, 2]
    assert items["realtime_state_monitor"].truth["states"] == ["off", "on"]
    assert alert.stream.time == 1.0 and alert.stream.text.startswith("Watch this live video stream and monitor")
    lines = [{**sample, "ground_truth": json.dumps(sample["ground_truth"])} for sample in PRO]
    assert folder.items("omnipro", lines, "metadata.jsonl") == list(items.values())


def test_livesports(folder):
    folder.videos("abc.mp4")
    (item,) = folder.items("livesports-3k", SPORTS, "test.csv")
    assert item.polls == (Poll(9.5, item.stream.text, 2.0),) and (item.stream.time, item.stream.since) == (2.0, 2.0)
    assert item.stream.text.endswith(
        'This is a video titled "A final".\nHere is previous commentary of the video:\n\nHe waits.\n\n'
        "Please continue to comment the video."
    )
    assert item.truth == {"human": "He hits it.", "baseline": ""} and item.id == "abc_4"
    baseline = folder.write("gpt.jsonl", [{"video_id": "abc", "event_id": 4, "pred": "Nice."}])
    (item,) = folder.items("livesports-3k", SPORTS, "test.csv", baseline=baseline)
    assert item.truth["baseline"] == "Nice."


def changed(content: list, path: str, value) -> list:
    """A copy with the value at a dotted path replaced, or removed for `...`."""
    content = deepcopy(content)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = content
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


WRONG = [
    ("ovo-bench", changed(OVO, "0.gt", 2), "'gt' of [0] must be the index of one of 2 options"),
    ("ovo-bench", changed(OVO, "0.task", "XYZ"), "'task' of [0] must be one of EPM"),
    ("ovo-bench", changed(OVO, "1.test_info.1.count", "2"), "'count' of [1].test_info[1] must be of type int"),
    ("ovo-bench", changed(OVO, "2.test_info.0.type", 3), "'type' of [2].test_info[0] must be 0 or 1"),
    ("ovo-bench", changed(OVO, "3.ask_time", ...), "[3] has no 'ask_time'"),
    ("ovo-bench", changed(OVO, "0.realtime", -1), "'realtime' of [0] must be a finite number"),
    (
        "streamingbench",
        changed(REAL, "0.questions.0.time_stamp", "5 s"),
        "'time_stamp' of [0].questions[0] must be a time",
    ),
    ("streamingbench", changed(REAL, "0.questions.1.answer", "E"), "'answer' of [0].questions[1] must be one of A, B"),
    (
        "streamingbench",
        changed(REAL, "0.questions.0.options", ["A."]),
        "'options' of [0].questions[0] must be a list of 4",
    ),
    ("streamingbench", changed(SEQUENTIAL, "0.1.questions", []), "'questions' of [0][1] is empty"),
    (
        "streamingbench",
        changed(ALERTS, "1.questions.0.ground_truth_output", " "),
        "'ground_truth_output' of [1].questions",
    ),
    (
        "proactivevideoqa",
        changed(WATCHED, "0.answer.1.reply_timespan", [7, 5]),
        "'reply_timespan' of [0].answer[1] must be",
    ),
    ("proactivevideoqa", changed(WATCHED, "0.conversation", []), "'conversation' of [0] is empty"),
    ("omnimmi-pa", changed(PA, "0.answer", [3]), "'answer' of [0] must be [start, end] in seconds"),
    (
        "omnipro",
        changed(PRO, "0.ground_truth.1.trigger_time_sec", ...),
        "[0].ground_truth[1] has no 'trigger_time_sec'",
    ),
    ("omnipro", changed(PRO, "2.ground_truth.0.count", None), "'count' of [2].ground_truth[0] must be of type int"),
    (
        "omnipro",
        changed(PRO, "0.audio_dependency", "loud"),
        "'audio_dependency' of [0] must be one of required, helpful",
    ),
    ("ovo-bench", changed(OVO, "0.options", ["x"] * 27), "'options' of [0] must be a list of 2 to 26 strings"),
    ("ovo-bench", changed(OVO, "0.video", ""), "'video' of [0] must be the name of a video, got ''"),
    ("ovo-bench", changed(OVO, "3.question", "\ud800"), "[3] has an unpaired surrogate"),
    ("omnipro", {"a": 1}, "the file must be a JSON list"),
    ("omnipro", [], "is empty"),
]


@pytest.mark.parametrize(("benchmark", "content", "message"), WRONG, ids=[message[:40] for _, _, message in WRONG])
def test_a_wrong_file_is_refused_with_its_place_and_field(folder, benchmark, content, message):
    folder.videos("a.mp4", "b.mp4", "c.mp4")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        folder.items(benchmark, content)
    assert "annotations.json" in str(error.value)
    assert not (folder.path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["chunked_videos/42.mp4", "chunked_videos/7.mp4"], "chunked_videos/7.mp4"),  # 42 is a piece of another item
        (["AutoEvalMetaData/42.mp4", "chunked_videos/42.mp4", "chunked_videos/7.mp4"], "AutoEvalMetaData/42.mp4"),
        (["42.mp4", "7.mp4"], None),  # nothing says what these are
    ],
)
def test_a_video_with_a_number_for_its_name_is_no_piece_of_another_item(folder, files, found):
    folder.videos(*files)
    entries = changed(OVO[:1], "0.video", "AutoEvalMetaData/42.mp4")
    if found is None:
        with pytest.raises(FileNotFoundError, match="1 of 1 video, such as AutoEvalMetaData/42"):
            folder.items("ovo-bench", entries)
    else:
        assert folder.items("ovo-bench", entries)[0].video == f"videos/{found}"


def test_of_videos_with_one_name_that_in_the_folders_of_the_file_is_taken(folder):
    folder.videos("a/clips/v.mp4", "b/clips/v.mp4", "c/v.mp4")
    for path, found in (("b/clips/v.mp4", "b/clips"), ("./c/v.mp4", "c"), ("/x/v.mp4", "a/clips"), ("v", "a/clips")):
        assert folder.items("omnimmi-pa", changed(PA, "0.video", path))[0].video == f"videos/{found}/v.mp4"


def test_items_with_the_same_id_get_numbers(folder):
    folder.videos("a.mp4")
    ids = [item.id for item in folder.items("ovo-bench", OVO[:1] * 3)]
    assert ids == ["7", "7#2", "7#3"]


def test_text_is_read_whole_and_as_it_is(folder):
    folder.videos("a.mp4", "abc.mp4")
    question = "What\u2028now? \x85 \u3053"
    path = folder.write("pro.jsonl", [])
    lines = [json.dumps(sample | {"question": question}, ensure_ascii=False) for sample in PRO[:2]]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n\n", encoding="utf-8")
    assert [item.truth["question"] for item in folder.items("omnipro", path)] == [question] * 2
    long = "word " * 40_000
    assert folder.items("livesports-3k", changed(SPORTS, "0.event_asr_text", long), "a.csv")[0].truth["human"] == long
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"pro.jsonl, omnipro: byte 8 of the file, 0xff, is not UTF-8; save the file"):
        folder.items("omnipro", path)
    table = folder.write("b.csv", SPORTS * 3)
    table.write_text(table.read_text().replace("A final", '"A final', 1))
    with pytest.raises(ValueError, match=r"b.csv, livesports-3k: the row after line 1 is not CSV: unexpected"):
        folder.items("livesports-3k", table)


def test_a_wrong_line_is_named(folder):
    folder.videos("abc.mp4")
    with pytest.raises(ValueError, match=r"'begin' of line 2 must be a number of seconds, got 'soon'"):
        folder.items("livesports-3k", changed(SPORTS, "0.begin", "soon"), "test.csv")
    path = folder.write("pro.jsonl", PRO)
    path.write_text(path.read_text() + "{")
    with pytest.raises(ValueError, match="line 10 is not JSON"):
        folder.items("omnipro", path)
    baseline = folder.write("other.jsonl", [{"video_id": "abc", "event_id": 5, "pred": "x"}])
    with pytest.raises(ValueError, match="line 2: the baseline has no commentary on the event 'abc_4'"):
        folder.items("livesports-3k", SPORTS, "test.csv", baseline=baseline)


def test_missing_videos_stop_or_are_counted(folder):
    folder.videos("b.mp4")
    path = folder.write("ovo.json", OVO)
    with pytest.raises(FileNotFoundError, match=r"2 of 3 videos, such as Ego4D/clips/a, x/c; `--missing skip` leaves"):
        folder.items("ovo-bench", path)
    prepared = prepare_benchmark("ovo-bench", path, folder.path / "videos", folder.path / "out.jsonl", missing="skip")
    assert (prepared.items, prepared.videos, prepared.missing) == (2, 1, 2)
    assert str(prepared).endswith("2 items of 1 video; 2 videos missing")
    (folder.path / "videos" / "a.mp4").write_text("no video")
    folder.videos("c.mp4")
    with pytest.raises(ValueError, match="1 video in .* cannot be decoded, such as a.mp4"):
        folder.items("ovo-bench", path)
    prepared = prepare_benchmark("ovo-bench", path, folder.path / "videos", folder.path / "out.jsonl", missing="skip")
    assert (prepared.items, prepared.broken) == (3, 1) and "cannot be decoded, such as a.mp4" in str(prepared)


def test_what_is_asked_beyond_the_end_is_asked_at_the_end_and_counted(folder):
    folder.videos("a.mp4")
    path = folder.write("ovo.json", changed(OVO[:1], "0.realtime", 40))
    prepared = prepare_benchmark("ovo-bench", path, folder.path / "videos", folder.path / "out.jsonl")
    (item,) = read_items(prepared.path)
    assert item.polls[0].time == pytest.approx(SECONDS, abs=0.2) and prepared.beyond == 1
    assert "1 ask beyond the end of their video" in str(prepared)


def test_the_command_prepares_benchmarks_without_a_task(folder, capsys):
    folder.videos("a.mp4")
    path, output = folder.write("pa.json", PA), folder.path / "out.jsonl"
    videos = ["--videos", str(folder.path / "videos"), "--output", str(output)]
    cli.main(["prepare", "omnimmi-pa", str(path), *videos])
    assert "1 item of 1 video" in capsys.readouterr().out and len(read_items(output)) == 1
    for arguments, message in (
        (["omnimmi-pa", str(path), *videos, "--task", "step"], "`task` is not for benchmarks, got 'step'"),
        (["omnimmi-pa", str(path), *videos, "--baseline", "x"], "`baseline` is only for livesports-3k"),
        (["coin", str(path), *videos], "`task` must be one of step, task, next"),
        (["coin", str(path), *videos, "--task", "step", "--baseline", "x"], "`baseline` is only for livesports-3k"),
        (["other", str(path), *videos], "`dataset` must be one of ego4d"),
    ):
        assert cli.main(["prepare", *arguments])
        assert message in capsys.readouterr().err


ITEM = {
    "benchmark": "ovo-bench",
    "id": "1",
    "group": "g",
    "task": "OCR",
    "video": "a.mp4",
    "kind": "choice",
    "polls": [{"time": 2.0, "text": "q", "since": 0.0}],
    "stream": {"time": 2.0, "text": "q", "since": 0.0},
    "end": 2.0,
    "truth": {},
    "options": ["x"],
    "needs_sound": False,
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("kind", "essay", "line|2: kind: it is 'essay'; one of choice"),
        ("kind", ["choice"], "2: kind: "),
        ("polls.0.time", -1, "2: polls[0].time: it is -1"),
        ("polls.0.since", 3.0, "2: polls[0].since: 3.0 is after `time`"),
        ("polls", {}, "2: polls: "),
        ("stream", None, "2: stream: "),
        ("stream.txt", "q", "2: stream.txt: unknown field; did you mean text?"),
        ("id", "0", "2: id: '0' is also the id of line 1"),
        ("options", [1], "2: options: "),
        ("needs_sound", 1, "2: needs_sound: "),
        ("truth", [], "2: truth: "),
        ("video", "", "2: video: "),
        ("end", ..., "2: end: it is missing"),
    ],
)
def test_faults_of_items_are_named_with_line_and_field(tmp_path, path, value, message):
    file = tmp_path / "items.jsonl"
    lines = [ITEM | {"id": "0"}, *changed([ITEM], f"0.{path}", value)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=re.escape(message.removeprefix("line|"))):
        read_items(file)


def test_items_are_read_as_they_were_written(tmp_path):
    items = [Item(**{**ITEM, "polls": (Poll(2.0, "q"),), "stream": Poll(1.0, "ä\n", 0.5), "options": ("x",)})]
    write_items(tmp_path / "items.jsonl", items)
    assert read_items(tmp_path / "items.jsonl") == items
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="it is empty"):
        read_items(tmp_path / "empty.jsonl")
    assert len(READERS) == 6
