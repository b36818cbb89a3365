"""A processor of another model is refused wherever a model and a processor are combined."""

import copy
import json
import shutil

import pytest
from fresh_process import ROOT
from small_data import small_model

from videollm_mod import StreamingSession, StreamPool, VideoLLMMoDProcessor
from videollm_mod.loading.checkpoint import load_checkpoint
from videollm_mod.space.models import Models

WEIGHTS = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def rebuilt(processor, size=None, more_words=(), eos=None, **pieces) -> VideoLLMMoDProcessor:
    """The processor with a changed attribute."""
    video_processor, tokenizer = copy.deepcopy(processor.video_processor), copy.deepcopy(processor.tokenizer)
    if size is not None:
        video_processor.size = {"height": size, "width": size}
    if eos is not None:
        tokenizer.eos_token = eos
    special = [pieces["video_token"]] if "video_token" in pieces else []
    tokenizer.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    tokenizer.add_tokens(list(more_words))
    return VideoLLMMoDProcessor(video_processor, tokenizer, **pieces)


OTHERS = {
    "frames have other tokens": ({"num_frame_tokens": 7}, "number of tokens per frame is 7, the model's 10$"),
    "another separator": ({"frame_separator": "."}, r"id of the frame separator is \d+, the model's \d+$"),
    "another size": ({"size": 32}, r"frame size is \[32, 32\], the model's \[96, 96\]$"),
    "more words": ({"more_words": [f"<{i}>" for i in range(999)]}, r"vocabulary size is \d+, the model's \d+$"),
    "another placeholder": ({"video_token": "<image>"}, r"id of the video token is \d+, the model's \d+"),
    "another end": ({"eos": "."}, r"id of the end of sequence is \d+, the model's \d+$"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_differences_are_named(checkpoint, case):
    model, processor = checkpoint
    changes, sentence = OTHERS[case]
    with pytest.raises(ValueError, match=f"^`processor` belongs to another model: .*its {sentence}"):
        model.stream(rebuilt(processor, **changes))
    model.stream(rebuilt(processor))


def test_processor_of_another_model_is_refused(checkpoint, tmp_path):
    model, processor = checkpoint
    _, other = small_model()
    everywhere = "tokens per frame is 5, the model's 10; its frame size is .32, 32., the model's .96, 96."
    with pytest.raises(ValueError, match=everywhere):
        StreamPool(model, other)
    saved = model.stream(processor).save(tmp_path / "session")
    with pytest.raises(ValueError, match=everywhere):
        StreamingSession.load(saved, model, other)


@pytest.mark.parametrize("part", ["tokenizer", "video_processor"])
def test_non_processors_are_refused(checkpoint, part):
    model, processor = checkpoint
    wrong = getattr(processor, part)
    for begin in (model.stream, lambda other: StreamPool(model, other)):
        with pytest.raises(ValueError, match=f"must be a VideoLLMMoDProcessor.*got {type(wrong).__name__}"):
            begin(wrong)


def test_commands_refuse_a_folder_with_another_processor(tmp_path):
    for name in WEIGHTS:
        shutil.copy(ROOT / name, tmp_path)
    options = json.loads((ROOT / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps(options | {"num_frame_tokens": 7}))
    for load in (Models.load, load_checkpoint):
        with pytest.raises(ValueError, match=f"the processor of {tmp_path} .*tokens per frame is 7, the model's 10"):
            load(str(tmp_path))
