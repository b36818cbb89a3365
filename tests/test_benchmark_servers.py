"""Benchmarks with models and judges of others: the real server of this package, servers that fail, stock models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.responses import JSONResponse
from fresh_process import ROOT, TINY_WORLD
from running_servers import serving
from small_data import write_video
from stock_vlms import save_vlm
from transformers import AutoProcessor
from transformers.utils import is_torchvision_available

from videollm_mod.benchmarks.world_benchmarks import judge_exactly, serve_chats
from videollm_mod.commands import cli
from videollm_mod.data.benchmark_items import Item, Poll, write_items
from videollm_mod.evaluation import chat_server
from videollm_mod.evaluation.chat_server import ChatServer
from videollm_mod.evaluation.image_views import StockModel

CLIP = str(ROOT / "media" / "world.mp4")
KEY = "a-key-for-tests-0123456789"
QUESTIONS = {2.0: "How many objects are there?", 3.5: "Where is the white circle?", 5.0: "What is at the right?"}


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


def choice(time: float, text: str, video: str = CLIP) -> Item:
    poll = Poll(time, text)
    truth, options = {"answer": "A"}, ("Two.", "Three.")
    return Item("ovo-bench", f"{time}", "Real", "OJR", video, "choice", (poll,), poll, time, truth, options)


def told(name: str = "a") -> Item:
    """Narrations of the clip, which a judge compares."""
    turns = json.loads(Path(CLIP).with_suffix(".jsonl").read_text())["turns"][:3]
    ends = [turn["time"] for turn in turns[1:]] + [7.0]
    answers = [
        {"content": turn["content"], "reply": [turn["time"], end - 0.25], "related": [turn["time"], end - 0.25]}
        for turn, end in zip(turns, ends, strict=True)
    ]
    question = "Narrate what happens."
    truth = {"question": question, "answers": answers, "then_ask": ["How?"]}
    polls, stream = (Poll(6.0, "Is it answerable?"),), Poll(0.0, question)
    return Item("proactivevideoqa", name, "ProactiveVideoQA", "WEB", CLIP, "open", polls, stream, 7.0, truth)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_items(tmp_path / "ovo.jsonl", [choice(*each) for each in QUESTIONS.items()])
    write_items(tmp_path / "pauc.jsonl", [told("a"), told("b")])
    return tmp_path


def command(folder: Path, name: str, protocol: str, *more: str, model: Path = TINY_WORLD) -> list[str]:
    """Of a model, unless a server or a stock model is given."""
    more = more if {"--endpoint", "--stock"} & set(more) else (*more, "--model", str(model))
    given = ["--benchmark", folder / f"{name}.jsonl", "--protocol", protocol, "--json", folder / "out.json"]
    return list(map(str, ["evaluate", *given, *more]))


def test_the_server_of_a_model_answers_as_the_model(folder, checkpoint, monkeypatch):
    assert cli.main(command(folder, "ovo", "poll", "--control", "last4", "blind")) == 0
    own = json.loads((folder / "out.json").read_text())
    for file in folder.glob("out.*"):
        file.unlink()
    monkeypatch.setenv("TEST_KEY", KEY)
    with serving(checkpoint, keys=(KEY,)) as running:
        server = ["--endpoint", f"{running.url}/v1", "--endpoint-model", "nano", "--endpoint-key-env", "TEST_KEY"]
        given = command(folder, "ovo", "poll", *server, "--fps", "2", "--control", "last4", "blind")
        assert cli.main(given) == 0
    theirs = json.loads((folder / "out.json").read_text())
    assert KEY not in (folder / "out.json").read_text()
    for row in ("model", "last4", "blind"):
        for one, other in zip(own["outcomes"][row], theirs["outcomes"][row], strict=True):
            assert one["answers"] == other["answers"]
            assert one["cost"]["frames"] == other["cost"]["frames"]
            assert other["cost"]["tokens"] > 0 and other["cost"]["peak_cache_bytes"] is None
    assert theirs["summary"]["model"] == own["summary"]["model"]
    assert theirs["decoding"] == {"temperature": 0.0, "seed": 0} and theirs["fps"] == 2.0


def test_a_server_that_only_answers_says_one_thing_in_a_stream(folder):
    seen = []

    def reply(request: dict) -> str:
        seen.append([part["type"] for part in request["messages"][-1]["content"]])
        return "Three."

    with serve_chats(reply) as url:
        server = ["--endpoint", url, "--endpoint-model", "m", "--max-frames", "3", "--control", "silent"]
        assert cli.main(command(folder, "pauc", "stream", *server)) == 0
        assert cli.main([*command(folder, "pauc", "stream", *server[:-1]), "dense"]) == 2
    result = json.loads((folder / "out.json").read_text())
    said = [{"time": 0.0, "text": "Three.", "kind": "answer"}]
    assert [outcome["said"] for outcome in result["outcomes"]["model"]] == [said, said]
    assert seen == [["image_url", "text"]] * 2  # the frame of the question's second


@pytest.mark.parametrize("what", ["model", "judge"])
def test_a_server_that_fails_ends_the_run_which_then_continues(folder, what, monkeypatch, capsys):
    monkeypatch.setattr(chat_server, "RETRIES", 1)
    asked: list[str] = []
    working = 2

    def reply(request: dict):
        asked.append(request["messages"][-1]["content"][-1]["text"])
        return "3" if len(asked) <= working else JSONResponse({"error": {"message": "out of order"}}, 500)

    name = "ovo" if what == "model" else "pauc"
    with serve_chats(reply) as url:
        server = ["--endpoint", url, "--endpoint-model", "m"] if what == "model" else ["--judge", url]
        server += ["--judge-model", "m"] if what == "judge" else []
        given = command(folder, name, "poll" if what == "model" else "stream", *server, "--control", "none")
        assert cli.main(given) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"error: m at {url} does not answer: " in error and "out of order" in error
        assert not (folder / "out.json").exists() and len(asked) == 4  # the third was asked twice
        working = 1000
        assert cli.main(given) == 0
    result = json.loads((folder / "out.json").read_text())
    if what == "model":
        assert len(asked) == 4 + 1 and len(set(asked)) == 3
        assert [outcome["answers"][0]["text"] for outcome in result["outcomes"]["model"]] == ["3"] * 3
        return
    verdicts = [verdict for outcome in result["outcomes"]["model"] for verdict in outcome["verdicts"]]
    assert len(verdicts) == 6 and {verdict["text"] for verdict in verdicts} == {"3"}
    assert all(verdict["prompt"] and verdict["value"] == 2.0 for verdict in verdicts)


def test_a_judge_scores_what_a_stream_said(folder, capsys):
    assert cli.main(command(folder, "pauc", "stream", "--control", "none", model=ROOT)) == 0
    result = json.loads((folder / "out.json").read_text())
    assert result["summary"]["model"]["official"] is None and "give `--judge`" in result["note"]
    with serve_chats(judge_exactly) as url:
        judge = ["--judge", url, "--judge-model", "exact", "--control", "silent", "blind"]
        assert cli.main(command(folder, "pauc", "stream", *judge, model=ROOT)) == 0
    result = json.loads((folder / "out.json").read_text())
    assert result["summary"] == {
        "model": {"official": 100.0, "strict": 100.0},
        "blind": {"official": 25.0, "strict": 0.0},
        "silent": {"official": 25.0, "strict": 0.0},
    }
    assert result["judge"]["verdicts"] == 6 and result["judge"]["unreadable"] == 0 and "note" not in result
    verdicts = (folder / "out.verdicts.jsonl").read_text().splitlines()
    assert len(verdicts) == 3 and "Ground Truth Answer: " in verdicts[1]


def test_verdicts_that_cannot_be_read_are_reported_and_kept(folder, capsys):
    with serve_chats(lambda request: "I would rather not say.") as url:
        judge = ["--judge", url, "--judge-model", "m", "--control", "none"]
        given = command(folder, "pauc", "stream", *judge)
        assert cli.main(given) == 0
        assert "6 of 6 verdicts of the judge cannot be read" in capsys.readouterr().err
        lines = [json.loads(line) for line in (folder / "out.verdicts.jsonl").read_text().splitlines()]
        assert lines[1]["verdicts"][0]["text"] == "I would rather not say."
        lines[1]["verdicts"][0]["prompt"] = "another"
        (folder / "out.verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert cli.main(given) == 2
    assert "holds verdicts on other answers to a; remove it" in capsys.readouterr().err


def test_settings_that_a_server_refuses_are_left_out():
    requests = []

    def reply(request: dict):
        requests.append(set(request) - {"model", "messages"})
        for name in ("max_tokens", "temperature"):
            if name in request:
                error = {"message": f"{name} is not supported", "type": "invalid_request_error", "param": name}
                return JSONResponse({"error": error}, 400)
        return "Yes"

    with serve_chats(reply) as url:
        server = ChatServer(url, "m")
        assert server.answer("Is it?", max_tokens=5).text == "Yes"
        assert server.settings == {"seed": 0}
        assert requests[-1] == {"seed", "max_completion_tokens"}
        with pytest.raises(OSError, match=r"m at http.* does not answer: Error code: 404"):
            ChatServer(url.replace("/v1", "/v2"), "m").answer("Is it?")


def stock(folder: Path, kind: str, **options) -> Path:
    """A tiny model whose processor loads by its Auto class."""
    save_vlm(folder, kind, **options)
    path = folder / "preprocessor_config.json"
    image = json.loads(path.read_text())
    image["image_processor_type"] = image["image_processor_type"].replace("Config", "ImageProcessor")
    path.write_text(json.dumps(image))
    return folder


def expected(folder: Path, images: list[np.ndarray], text: str, limit: int) -> str:
    """What a pipeline of transformers answers."""
    from transformers import AutoModelForImageTextToText

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True,
    )  # fmt: skip
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=limit)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True).strip()


def test_a_stock_model_answers_about_images(tmp_path, monkeypatch):
    from videollm_mod.decoding import decode_video

    folder = stock(tmp_path / "idefics3", "idefics3", scale_factor=2)
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": 9}))
    write_video(tmp_path / "a.mp4", num_frames=12)
    write_items(tmp_path / "ovo.jsonl", [choice(2.0, "What is left?", "a.mp4")])
    monkeypatch.setattr("videollm_mod.evaluation.benchmarks.ovo_bench.OvoBench.max_new_tokens", 5)
    given = command(tmp_path, "ovo", "poll", "--stock", str(folder), "--control", "blind", "last4")
    assert cli.main(given) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    images = list(decode_video(tmp_path / "a.mp4", fps=1.0)[0])
    for row, shown in (("model", images), ("blind", [])):
        (outcome,) = result["outcomes"][row]
        assert outcome["answers"][0]["text"] == expected(folder, shown, "What is left?", 5)
        assert outcome["cost"]["frames"] == len(shown) and outcome["cost"]["peak_cache_bytes"] > 0
    assert result["stock"] == "idefics3" and len(result["outcomes"]["last4"]) == 1


def test_a_folder_that_is_no_stock_model_is_refused(tmp_path, folder, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    assert cli.main(command(folder, "ovo", "poll", "--stock", str(tmp_path / "empty"))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "empty" in error and error.count("\n") == 1


@pytest.mark.skipif(not is_torchvision_available(), reason="the video processors of transformers need torchvision")
def test_a_stock_model_answers_about_a_video(tmp_path):
    folder = stock(tmp_path / "onevision", "llava_onevision", text="qwen2", vision={"vision_use_head": False})
    tokens = {"num_image_tokens": 36, "vision_feature_select_strategy": "full"}
    (folder / "processor_config.json").write_text(json.dumps(tokens))
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": 24, "width": 24}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    model = StockModel(folder, torch.device("cpu"), torch.float32)
    assert model.takes_video
    images = [np.full((24, 24, 3), 40 * index, np.uint8) for index in range(4)]
    text, count, held = model.reply(images, range(4), 1.0, "What is left?", 5)
    inputs = model.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What is left?"}]}],
        add_generation_prompt=True,
    )
    inputs = model.processor(text=inputs, videos=[np.stack(images)], return_tensors="pt", do_sample_frames=False)
    ids = model.model.generate(**inputs, do_sample=False, max_new_tokens=5)[0]
    assert text == model.processor.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert count == len(ids) and held > 0
    assert model.reply(images[:2], range(2), 1.0, "What is left?", 5)[1] < count
