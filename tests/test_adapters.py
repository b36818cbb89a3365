"""Adapters of public data sets, on small files in their schemas, and on the real Goal-Step file if it is available."""

import json
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
from fresh_process import ROOT
from small_data import said
from video_files import write_video

from videollm_mod.commands import cli
from videollm_mod.data import coin, ego4d, ego4d_lta, egoexo4d, goalstep
from videollm_mod.data.annotations import numbered, words_of
from videollm_mod.data.jsonl import validate
from videollm_mod.data.prepare import DATASETS, find_videos, prepare

REAL_GOALSTEP = ROOT.parent / "shared" / "data" / "goalstep_valid.json"


class Folder:
    """A folder with annotations and videos, and the result of `prepare`."""

    def __init__(self, path: Path, clips: dict[float, Path]):
        self.path, self.clips = path, clips

    def videos(self, *names: str, seconds: float = 20_000.0) -> None:
        for name in names:
            file = self.path / "videos" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            copyfile(self.clips[seconds], file)

    def run(self, dataset: str, task: str, annotations, **options):
        file = self.path / "annotations.json"
        file.write_text(json.dumps(annotations))
        return prepare(dataset, file, task, self.path / "videos", self.path / "out.jsonl", **options)

    def lines(self, *arguments, **options) -> list[dict]:
        prepared = self.run(*arguments, **options)
        assert validate(prepared.path, media=False) == []
        lines = [json.loads(line) for line in prepared.path.read_text(encoding="utf-8").splitlines()]
        assert len(lines) == prepared.streams
        assert len({line["video"] for line in lines}) == prepared.videos
        assert all((prepared.path.parent / line["video"]).is_file() for line in lines)
        return lines


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[float, Path]:
    """Videos of two frames with given durations: Matroska files, which state their end, whatever their name."""
    folder, frames = tmp_path_factory.mktemp("clips"), np.zeros((2, 32, 32, 3), np.uint8)
    return {
        seconds: write_video(folder / f"{seconds}.mkv", frames, "mpeg4", times=[0.0, seconds - 0.1])
        for seconds in (15.5, 20_000.0)
    }


@pytest.fixture
def folder(tmp_path, clips) -> Folder:
    (tmp_path / "videos").mkdir()
    return Folder(tmp_path, clips)


def narrate(text: str) -> dict:
    return said(0.0, text, "user")


REDACTED = {
    "videos": {
        "v1": {
            "narrations": [
                {"time": 3.0, "text": "#C C opens the #unsure", "_annotation_uid": "x"},
                {"time": 1.5, "text": "#C C picks up a cup.", "_annotation_uid": "x"},
                {"time": 2.0, "text": "#O A man X walks", "_annotation_uid": "y"},
                {"time": 2.5, "text": "#O A man X walks ", "_annotation_uid": "y"},
                {"time": 4.0, "text": "#unsure", "_annotation_uid": "x"},
            ],
            "summaries": [{"start_time": 0.0, "end_time": 5.0, "text": "#Summary C drinks"}],
        },
        "v2": {"narrations": [], "summaries": []},
    }
}


def passes(*texts: list[tuple[float, str]]) -> dict:
    return {
        "status": "complete",
        **{
            f"narration_pass_{number}": {
                "narrations": [{"timestamp_sec": time, "narration_text": text} for time, text in narrations],
                "summaries": [],
            }
            for number, narrations in enumerate(texts, start=1)
        },
    }


def test_ego4d_redacted_narrations(folder):
    folder.videos("v1.mp4")
    first, second = folder.lines("ego4d", "narration", REDACTED)
    assert first == {
        "video": "videos/v1.mp4",
        "turns": [
            narrate(ego4d.INSTRUCTION),
            said(1.5, "C picks up a cup."),
            said(3.0, "C opens the something."),
        ],
    }
    assert second["turns"] == [narrate(ego4d.INSTRUCTION), said(2.0, "A man X walks.")]
    assert folder.run("ego4d", "narration", REDACTED).left_out == {
        "narrations without text": 1,
        "narrations that repeat the previous one": 1,
        "videos or passes without narrations": 1,
    }


def test_ego4d_official_narrations(folder):
    folder.videos("a/v1.mp4", "b/v2.MP4")
    one, other = [(1.0, "#C C sits"), (2.0, "#C C reads, # a book")], [(1.25, "#c c sits down")]
    lines = folder.lines("ego4d", "narration", {"v1": passes(one, other), "v2": passes(one, one), "v3": passes()})
    assert [line["video"] for line in lines] == ["videos/a/v1.mp4", "videos/a/v1.mp4", "videos/b/v2.MP4"]
    assert lines[0]["turns"][1:] == [said(1.0, "C sits."), said(2.0, "C reads, a book.")]
    assert lines[1]["turns"][1:] == [said(1.25, "C sits down.")]
    assert lines[2]["turns"] == lines[0]["turns"]


def test_ego4d_refined_narrations(folder):
    folder.videos("v1.mp4")
    refined = {"v1": {"x": [{"time": 2.0, "text": "You sit."}], "y": [{"time": 1.0, "text": "You stand. #1"}]}}
    first, second = folder.lines("ego4d", "narration", refined)
    assert first["turns"] == [narrate(ego4d.REFINED_INSTRUCTION), said(2.0, "You sit.")]
    assert second["turns"] == [narrate(ego4d.REFINED_INSTRUCTION), said(1.0, "You stand. #1")]


def step(start: float, text: str, **more) -> dict:
    return {"start_time": start, "end_time": start + 1, "step_category": "c: d", "step_description": text, **more}


GOALSTEP = {
    "version": "1.0",
    "split": "val",
    "videos": [
        {"video_uid": "v1", "segments": [step(4.5, "Stir", segments=[step(4.5, "Take")]), step(0.5, "Cut ")]},
        {"video_uid": "v2", "segments": [step(0.0, "")]},
        {"video_uid": "v3", "segments": []},
    ],
}


def test_goalstep(folder):
    folder.videos("v1.mp4", "v2.webm", "v3.mp4")
    first, second = folder.lines("goalstep", "narration", GOALSTEP, subset="val")
    assert first["turns"] == [narrate(goalstep.INSTRUCTION), said(0.5, "Cut"), said(4.5, "Stir")]
    assert second["turns"] == [narrate(goalstep.INSTRUCTION), said(0.0, "c: d")]
    assert folder.run("goalstep", "narration", GOALSTEP).left_out == {"videos without steps": 1}
    with pytest.raises(ValueError, match="`subset` is 'train', but these annotations are of 'val'"):
        folder.run("goalstep", "narration", GOALSTEP, subset="train")


def test_goalstep_chat(folder):
    folder.videos("v1.mp4")
    talk = [
        {"role": "user", "time": 2.0, "content": "What now?"},
        {"role": "assistant", "time": 2.0, "content": "Stir it."},
        {"role": "assistant", "time": 6.5, "content": " "},
    ]
    chat = [{"video_uid": "v1", "conversation": talk}, {"video_uid": "v1", "conversation": talk[:1]}]
    (line,) = folder.lines("goalstep", "chat", chat)
    system = said(0.0, goalstep.CHAT_SYSTEM, "system")
    assert line["turns"] == [system, said(2.0, "What now?", "user"), said(2.0, "Stir it.")]
    left_out = folder.run("goalstep", "chat", chat).left_out
    assert left_out == {"streams without replies": 1, "turns without text": 1}


def lta_clips(count: int, labels: bool = True, clip: str = "c1", parent: float = 100.0) -> list[dict]:
    return [
        {
            "clip_uid": clip,
            "video_uid": "v1",
            "clip_parent_start_sec": parent,
            "action_clip_start_sec": 2.0 * index,
            "action_clip_end_sec": 2.0 * index + 3,
            "action_idx": index,
            **({"verb": f"take_(pick,_grab)_{index}", "noun": "nut_(tool)", "verb_label": 1} if labels else {}),
        }
        for index in range(count)
    ]


def test_ego4d_lta(folder):
    folder.videos("v1.mp4")
    clips = [*lta_clips(29)[::-1], *lta_clips(28, clip="c2", parent=500.0), *lta_clips(27, clip="c3")]
    lines = folder.lines("ego4d", "lta", {"split": "val", "clips": clips}, subset="val")
    assert [(line["start"], line["end"]) for line in lines] == [(100.0, 117.0), (102.0, 119.0), (500.0, 517.0)]
    answer = numbered(["take nut (tool)"] * 20)
    assert lines[1]["turns"] == [said(102.0, ego4d_lta.INSTRUCTION, "user"), said(119.0, answer)]
    assert answer.startswith("1. take nut (tool) 2. take") and answer.endswith("20. take nut (tool)")
    assert folder.run("ego4d", "lta", {"clips": clips}).left_out == {"clips with fewer than 28 actions": 1}

    assert ego4d_lta.word_of("put_(place,_leave,_drop)") == "put" and ego4d_lta.word_of("cooker_hood") == "cooker hood"


def coin_video(subset: str, *labels: str, name: str = "MakeRJ45Cable") -> dict:
    annotation = [
        {"id": str(i), "segment": [10.0 * i, 10.0 * i + 5], "label": label} for i, label in enumerate(labels)
    ]
    return {"duration": 90.5, "class": name, "subset": subset, "start": 0, "end": 80, "annotation": annotation}


COIN = {
    "database": {
        "-a.b": coin_video("training", "s0", "s1", "s2", "s3", "s4", "s5", "s6"),
        "b_c": coin_video("testing", "t0", "t1"),
    }
}


def test_coin_steps_and_tasks(folder):
    folder.videos("1/-a.b.mp4", "2/b_c.mp4")
    lines = folder.lines("coin", "step", COIN)
    assert len(lines) == 9
    assert lines[1] == {
        "video": "videos/1/-a.b.mp4",
        "start": 10.0,
        "end": 15.0,
        "turns": [said(10.0, coin.STEP, "user"), said(15.0, "s1")],
    }
    whole = folder.lines("coin", "task", COIN)
    assert whole[1] == {
        "video": "videos/2/b_c.mp4",
        "turns": [said(0.0, coin.TASK, "user"), said(90.5, "make RJ45 cable")],
    }


def test_coin_next_steps_and_procedures(folder):
    folder.videos("-a.b.mp4", "b_c.mp4")
    answers = {
        task: [(line["start"], line["turns"][1]["content"]) for line in folder.lines("coin", task, COIN)]
        for task in ("next", "procedure", "procedure+")
    }
    starts = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 0.0]
    assert answers["next"] == list(zip(starts, ["s1", "s2", "s3", "s4", "s5", "s6", "t1"], strict=True))
    assert answers["procedure"] == answers["procedure+"]
    assert answers["procedure"][0] == (0.0, "1. s1 2. s2 3. s3 4. s4 5. s5")
    assert answers["procedure"][3:] == [
        (30.0, "1. s4 2. s5 3. s6"),
        (40.0, "1. s5 2. s6"),
        (50.0, "1. s6"),
        (0, "1. t1"),
    ]
    question = folder.lines("coin", "procedure+", COIN)[0]["turns"][0]["content"]
    assert question == "This is to make RJ45 cable. " + coin.PROCEDURE


@pytest.mark.parametrize("held_out", ["testing", "test", "validation"])
def test_coin_subset_has_several_names(folder, held_out):
    folder.videos("-a.b.mp4", "b_c.mp4")
    database = {**COIN["database"], "b_c": coin_video(held_out, "t0", "t1")}
    for subset in ("testing", "test", "validation"):
        (line,) = folder.lines("coin", "next", {"database": database}, subset=subset)
        assert line["video"] == "videos/b_c.mp4"
    assert len(folder.lines("coin", "next", {"database": database}, subset="training")) == 6
    with pytest.raises(ValueError, match=f"`subset` must be one of .*{held_out}.*, got 'dev'"):
        folder.run("coin", "next", {"database": database}, subset="dev")


def test_coin_steps_without_duration_are_counted(folder):
    folder.videos("v.mp4")
    video = coin_video("training", "s0", " ", "s2")
    video["annotation"][2]["segment"] = [20.0, 20.0]
    prepared = folder.run("coin", "step", {"database": {"v": video}})
    assert prepared.streams == 1
    assert str(prepared).endswith("1 video, 1 stream, 1 reply; left out: steps without a name or a duration (2)")


def test_egoexo4d_keysteps(folder):
    folder.videos("take1.mp4", "named.mp4")
    segment = {"start_time": 1.0, "end_time": 2.5, "step_id": 3, "step_name": "Crack eggs", "is_essential": True}
    takes = {
        "take1": {"segments": [segment, {**segment, "end_time": 1.0}, {**segment, "step_name": "Fry"}]},
        "take2": {"take_name": "named", "segments": [segment]},
    }
    lines = folder.lines("egoexo4d", "keystep", {"annotations": takes, "taxonomy": {}, "vocabulary": {}})
    assert [line["video"] for line in lines] == ["videos/take1.mp4", "videos/take1.mp4", "videos/named.mp4"]
    assert [line["turns"][1]["content"] for line in lines] == ["Crack eggs", "Fry", "Crack eggs"]
    assert lines[0]["turns"] == [said(1.0, egoexo4d.INSTRUCTION, "user"), said(2.5, "Crack eggs")]


def test_missing_videos_are_an_error_or_counted(folder, capsys):
    folder.videos("v2.mp4")
    (folder.path / "a.json").write_text(json.dumps(GOALSTEP))
    output = folder.path / "o.jsonl"
    command = ["prepare", "goalstep", str(folder.path / "a.json"), "--task", "narration"]
    command += ["--videos", str(folder.path / "videos"), "--output", str(output)]
    assert cli.main(command) == 2
    printed = capsys.readouterr()
    assert ": 1 of 2 videos, such as v1; `--missing skip`" in printed.err
    assert sorted(path.name for path in folder.path.iterdir()) == ["a.json", "videos"]
    assert cli.main([*command, "--missing", "skip"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        f"{output}: 1 video, 1 stream, 1 reply; 1 video missing; left out: videos without steps (1)\n"
    )
    assert printed.err == "left out: videos without steps (1), such as v3\n"
    before = output.read_bytes()
    (folder.path / "videos" / "v2.mp4").unlink()
    assert cli.main([*command, "--missing", "skip"]) == 2
    assert ": 2 of 2 videos, such as" in capsys.readouterr().err
    assert output.read_bytes() == before


SEGMENT = {"start_time": 1.0, "end_time": 2.5, "step_name": "Crack eggs"}


def test_egoexo4d_videos_in_the_downloaders_layout(folder, capsys):
    """The glasses' colour camera is taken, at full size if available, unless another camera is requested."""
    one, other = "takes/cmu_bike_3/frame_aligned_videos", "takes/georgia_06/frame_aligned_videos"
    folder.videos(*(f"{one}/{name}.mp4" for name in ("aria01_1201-1", "aria01_214-1", "cam01")))
    folder.videos(f"{one}/downscaled/448/aria01_214-1.mp4", f"{other}/downscaled/448/aria02_214-1.mp4")
    takes = {
        uid: {"take_name": name, "segments": [SEGMENT]} for uid, name in (("1", "cmu_bike_3"), ("2", "georgia_06"))
    }
    lines = folder.lines("egoexo4d", "keystep", {"annotations": takes, "split": "train"}, subset="train")
    assert [line["video"] for line in lines] == [
        f"videos/{one}/aria01_214-1.mp4",
        f"videos/{other}/downscaled/448/aria02_214-1.mp4",
    ]
    with pytest.raises(
        FileNotFoundError, match="1 of 2 videos.* as georgia_06; choose one of the cameras aria02_214-1 with"
    ):
        folder.run("egoexo4d", "keystep", {"annotations": takes}, camera="cam01")
    (line,) = folder.lines("egoexo4d", "keystep", {"annotations": takes}, camera="cam01", missing="skip")
    assert line["video"] == f"videos/{one}/cam01.mp4"
    command = ["prepare", "egoexo4d", str(folder.path / "annotations.json"), "--task", "keystep", "--camera", "cam02"]
    command += ["--videos", str(folder.path / "videos"), "--output", str(folder.path / "out.jsonl")]
    assert cli.main(command) == 2
    assert "choose one of the cameras aria01_1201-1, aria01_214-1, aria02_214-1, cam01" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`camera` is only for egoexo4d, got 'cam01' for coin"):
        folder.run("coin", "step", COIN, camera="cam01")


@pytest.mark.parametrize(
    ("dataset", "task", "annotations", "says"),
    [
        ("goalstep", "narration", {**GOALSTEP, "split": "val"}, "val"),
        ("goalstep", "narration", {**GOALSTEP, "split": "validation"}, "val"),
        ("ego4d", "lta", {"split": "test_unannotated", "clips": lta_clips(29)}, "test"),
        ("egoexo4d", "keystep", {"split": "train", "annotations": {"v1": {"segments": [SEGMENT]}}}, "train"),
    ],
)
def test_file_is_only_used_for_its_own_subset(folder, dataset, task, annotations, says):
    folder.videos("v1.mp4", "v2.mp4")
    assert folder.lines(dataset, task, annotations, subset=says)
    for subset in {"train", "val", "test"} - {says}:
        with pytest.raises(ValueError, match=f"`subset` is '{subset}', but these annotations are"):
            folder.run(dataset, task, annotations, subset=subset)
    for subset in ("testing", "validation", "dev", ""):
        with pytest.raises(ValueError, match=f"`subset` must be one of train, val, test, got '{subset}'"):
            folder.run(dataset, task, annotations, subset=subset)


def test_coin_keeps_two_held_out_subsets_apart(folder):
    folder.videos("a.mp4", "b.mp4")
    database = {"a": coin_video("testing", "t0", "t1"), "b": coin_video("validation", "v0", "v1")}
    for subset, video in (("testing", "videos/a.mp4"), ("validation", "videos/b.mp4")):
        (line,) = folder.lines("coin", "next", {"database": database}, subset=subset)
        assert line["video"] == video
    for subset in ("test", "training"):
        with pytest.raises(
            ValueError, match=f"`subset` is '{subset}', but these annotations have testing, validation"
        ):
            folder.run("coin", "next", {"database": database}, subset=subset)
    with pytest.raises(ValueError, match="`subset` must be one of training, testing, test, validation, got 'val'"):
        folder.run("coin", "next", {"database": database}, subset="val")


WELL = [(2.0, "#C C picks a cup"), (4.0, "#C C drops the cup")]


def official(*items) -> dict:
    return {"narration_pass_1": passes(items)["narration_pass_1"], "status": "complete"}


def coined(*segments: list) -> dict:
    video = coin_video("training", *(f"s{index}" for index in range(len(segments))))
    for step, segment in zip(video["annotation"], segments, strict=True):
        step["segment"] = segment
    return {"database": {"v": video}}


def taken(*segments: dict | None) -> dict:
    return {"annotations": {f"v{index}": segment for index, segment in enumerate(segments, start=1)}}


@pytest.mark.parametrize(
    ("dataset", "task", "annotations", "replies", "left_out", "named"),
    [
        ("ego4d", "narration", {"v": official((-0.03, "#C C sits"), *WELL)}, 2, "narrations that", "got -0.03"),
        ("ego4d", "narration", {"v": official((1.0, None), *WELL)}, 2, "narrations that", "narrations[0] must be of"),
        ("ego4d", "narration", {"v": official((float("nan"), "#C C sits"), *WELL)}, 2, "narrations that", "got nan"),
        ("ego4d", "narration", {"v": official((10**400, "#C C sits"), *WELL)}, 2, "narrations that", "seconds >= 0"),
        ("ego4d", "narration", {"v": official(*WELL) | {"narration_pass_2": None}}, 2, "passes that", "pass_2' of v"),
        ("ego4d", "narration", {"v": official(*WELL) | {"narration_pass_2": {}}}, 2, "passes that", "no 'narrations'"),
        ("ego4d", "narration", {"v": official(*WELL), "w": None}, 2, "videos that", "'w' of videos"),
        ("ego4d", "narration", {"v": official(*WELL), "w": {"status": "redacted"}}, 2, "videos or passes", "w"),
        (
            "ego4d",
            "narration",
            {"v": official(*WELL, (99.0, "#C C leaves"))},
            2,
            "turns beyond",
            "v at 99 s of 15.5 s",
        ),
        ("ego4d", "narration", {"v": official(*WELL, (5.0, "C " * 10**4 + "it"))}, 2, "turns that", "at most 20000"),
        ("coin", "step", coined([1, 3], [14, 30], [100, 110]), 1, "segments beyond", "v from 100 to 110 s of 15.5 s"),
        ("coin", "step", coined([1, 3], [2], ["1", "3"]), 1, "steps that", "in seconds, got [2]; 'start' of"),
        ("coin", "step", coined([1, 3], [2, 2]), 1, "steps without", "database.v.annotation[1]"),
        ("egoexo4d", "keystep", taken({"segments": [SEGMENT]}, {}), 1, "takes that", "v2 has no 'segments'"),
        ("egoexo4d", "keystep", taken({"segments": [SEGMENT, {**SEGMENT, "step_name": None}]}), 1, "keysteps", "[1]"),
        (
            "goalstep",
            "narration",
            {"videos": [{"video_uid": "v", "segments": [step(1, "x"), None]}]},
            1,
            "steps",
            "[1]",
        ),
        ("goalstep", "narration", {"videos": [*GOALSTEP["videos"][1:2], {}]}, 1, "videos that", "no 'video_uid'"),
    ],
)
def test_unusable_annotations_are_left_out_counted_and_named(
    folder, dataset, task, annotations, replies, left_out, named
):
    folder.videos("v.mp4", "v1.mp4", "v2.mp4", seconds=15.5)
    prepared = folder.run(dataset, task, annotations)
    assert prepared.replies == replies and validate(prepared.path) == []
    (what,) = prepared.left_out
    assert what.startswith(left_out) and named in "; ".join(prepared.named[what])
    assert prepared.left_out[what] == len(prepared.named[what])


def test_annotations_without_usable_streams_are_an_error(folder):
    folder.videos("v1.mp4", seconds=15.5)
    unseen = {"split": "test", "clips": lta_clips(10, labels=False)}
    with pytest.raises(ValueError, match="holds nothing for the task 'lta': actions that .*10.*0. has no 'verb'"):
        folder.run("ego4d", "lta", unseen)
    with pytest.raises(ValueError, match=r"segments beyond the end of their video \(1\), such as v1 from 100 to 117"):
        folder.run("ego4d", "lta", {"clips": lta_clips(28)})
    (folder.path / "videos" / "v1.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"videos that cannot be decoded \(1\), such as v1: can ?not decode"):
        folder.run("ego4d", "narration", {"v1": official(*WELL)})
    assert not (folder.path / "out.jsonl").exists()


def test_coin_task_is_answered_at_the_end_of_the_video(folder):
    folder.videos("-a.b.mp4", "b_c.mp4", seconds=15.5)
    first, second = folder.lines("coin", "task", COIN)
    assert first["turns"][1]["time"] == second["turns"][1]["time"] == 15.5


def test_byte_order_mark_is_ignored(folder):
    folder.videos("v.mp4")
    (folder.path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"v": official(*WELL)}).encode())
    output = folder.path / "out.jsonl"
    assert prepare("ego4d", folder.path / "a.json", "narration", folder.path / "videos", output).replies == 2


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("#C C picks up a cup from the table.", "C picks up a cup from the table."),
        ("#c c looks around", "C looks around."),
        ("# C C opens the door", "C opens the door."),
        ("#CC walks", "C walks."),
        ("#cC turns right", "C turns right."),
        ("#cc turns", "C turns."),
        ("#C c sits", "C sits."),
        ("#C  C  holds a #unsure", "C holds a something."),
        ("#C C's hand moves", "C's hand moves."),
        ("#C-C turns", "C turns."),
        ("C#C picks", "C picks."),
        ("##C C stands", "C stands."),
        ("@C C stands", "C stands."),
        ("#C C cuts the C clamp", "C cuts the C clamp."),
        ("#O A man X talks to C", "A man X talks to C."),
        ("# o the man Y talks to C", "The man Y talks to C."),
        ("#OThe lady Y walks", "The lady Y walks."),
        ("#O The lady Y walks#unsure", "The lady Y walks something."),
        ("#O Others watch C", "Others watch C."),
        ("#C C moves the # unsure.", "C moves the something."),
        ("#C C washes #unsure, and #Unsure", "C washes something, and something."),
        ("#summary C was cooking", "C was cooking."),
        ("#Summary C cooked. #unsure", "C cooked. something."),
        ("#C C reads, # a book", "C reads, a book."),
        ("#Unsure", ""),
        ("#C C #unsure #unsure", ""),
        ("#C C", ""),
        ("#", ""),
        ("", ""),
    ],
)
def test_ego4d_tags_are_removed(text, clean):
    assert ego4d.clean(text) == clean


@pytest.mark.parametrize(
    ("dataset", "task", "annotations", "message"),
    [
        (
            "ego4d",
            "narration",
            {"videos": {"v": {"narrations": [{"text": "C sits"}]}}},
            "v.narrations.0. has no 'time'",
        ),
        (
            "ego4d",
            "narration",
            {"v": {"x": [{"time": "1", "text": "a b"}]}},
            "'time' of v.x.0. must be of type int",
        ),
        ("ego4d", "narration", [1], "narrations must be a JSON object of videos, got a list"),
        ("ego4d", "lta", {"clips": [{"video_uid": "v"}]}, "clips.0. has no 'clip_uid'"),
        ("goalstep", "narration", {"videos": [{"video_uid": "v"}]}, "videos.0. has no 'segments'"),
        (
            "goalstep",
            "narration",
            {"videos": [{"video_uid": "v", "segments": [step(-1, "x")]}]},
            "'start_time' of videos.0..segments.0. must be a finite number of seconds >= 0, got -1",
        ),
        ("goalstep", "chat", {}, "chat annotations must be a list of conversations, got a dict"),
        ("coin", "step", {"videos": {}}, "the file has no 'database'"),
        ("egoexo4d", "keystep", {"annotations": {"v": []}}, "'v' of annotations must be of type dict"),
        ("goalstep", "narration", {"videos": []}, "holds nothing for the task 'narration'"),
        ("goalstep", "steps", {}, "`task` must be one of narration, chat, got 'steps'"),
        ("coco", "step", {}, "`dataset` must be one of ego4d, goalstep, coin, egoexo4d, got 'coco'"),
    ],
)
def test_annotations_in_another_schema_give_a_clear_error(folder, dataset, task, annotations, message):
    folder.videos("v.mp4")
    with pytest.raises(ValueError, match=message):
        folder.run(dataset, task, annotations)
    assert not (folder.path / "out.jsonl").exists()


def test_all_tasks_are_available():
    assert {name: set(tasks) for name, tasks in DATASETS.items()} == {
        "ego4d": {"narration", "lta"},
        "goalstep": {"narration", "chat"},
        "coin": {"step", "task", "next", "procedure", "procedure+"},
        "egoexo4d": {"keystep"},
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("PutOnHairExtensions", "put on hair extensions"),
        ("ReplaceSIMCard", "replace SIM card"),
        ("MakeRJ45Cable", "make RJ45 cable"),
        ("ChangeATire", "change a tire"),
        ("UseEpinephrine", "use epinephrine"),
    ],
)
def test_class_names_are_split_into_words(name, words):
    assert words_of(name) == words


@pytest.mark.skipif(not REAL_GOALSTEP.exists(), reason="the real Goal-Step file is not beside the repository")
def test_real_goalstep_file_is_prepared_in_full(folder):
    annotations = json.loads(REAL_GOALSTEP.read_text(encoding="utf-8"))
    folder.videos(*(f"{video['video_uid']}.mp4" for video in annotations["videos"]))
    prepared = folder.run("goalstep", "narration", annotations)
    assert (prepared.videos, prepared.streams, prepared.replies) == (134, 134, 3349)
    assert prepared.left_out == {} and validate(prepared.path, media=False) == []
    lines = [json.loads(line) for line in prepared.path.read_text(encoding="utf-8").splitlines()]
    for video, line in zip(annotations["videos"], lines, strict=True):
        told = [(turn["time"], turn["content"]) for turn in line["turns"] if turn["role"] == "assistant"]
        steps = [(step["start_time"], step["step_description"].strip()) for step in video["segments"]]
        assert sorted(told) == sorted(steps)


def test_symbolic_links_may_form_a_cycle(tmp_path):
    for name in ("a", "b", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / "v.mp4").touch()
    for name, target in (("a/up", "."), ("b/up", "."), ("b/there", "elsewhere")):
        (tmp_path / name).symlink_to(tmp_path / target, target_is_directory=True)
    assert find_videos(tmp_path / "b") == {"v": tmp_path / "b" / "there" / "v.mp4"}
    assert list(find_videos(tmp_path)) == ["v"]
