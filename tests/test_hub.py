"""The repository as a Hub model repository: Auto classes, where it loads from, what it saves.

Loading runs in new processes that cannot import the installed package, so only the repository's files are used.
"""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from comparing import assert_near
from fresh_process import ROOT, run_fresh
from repository import CHECKPOINT_FILES
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import is_torchvision_available

MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_videollm_mod.VideoLLMMoDConfig",
    "AutoModel": "modeling_videollm_mod.VideoLLMMoDModel",
    "AutoModelForCausalLM": "modeling_videollm_mod.VideoLLMMoDForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_videollm_mod.VideoLLMMoDForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_videollm_mod.VideoLLMMoDForConditionalGeneration",
}
AUTO_MAP = MODEL_AUTO_MAP | {
    "AutoProcessor": "processing_videollm_mod.VideoLLMMoDProcessor",
    "AutoVideoProcessor": "video_processing_videollm_mod.VideoLLMMoDVideoProcessor",
}
HUB_ID = "some-one/video.llm-mod"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def code_files() -> dict[str, bytes]:
    """Name -> source of the modules that a loaded model and processor consist of."""
    entries = {reference.split(".")[0] for reference in AUTO_MAP.values()}
    files = {ROOT / f"{entry}.py" for entry in entries}
    for file in tuple(files):
        files.update(map(Path, get_relative_import_files(file)))
    return {file.name: file.read_bytes() for file in files}


def test_hub_loader_finds_all_imports():
    """The loader parses the source. It follows `from .name import`, but not `from . import name`."""
    files, names = code_files(), set()
    for source in files.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level:
                names |= {node.module} if node.module else {alias.name for alias in node.names}
    assert names and {f"{name}.py" for name in names} <= files.keys()


def sample(processor) -> dict[str, torch.Tensor]:
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    messages = [
        {"role": "system", "content": "Watch."},
        {"role": "user", "content": "What moves?"},
        {"role": "stream", "content": [{"type": "video", "video": frames, "fps": 2.0}]},
    ]
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")


@torch.no_grad()
def logits_of(model, processor) -> list:
    return model.eval()(**sample(processor)).logits.tolist()


def assert_same(actual: list, expected: list) -> None:
    """In bfloat16 and in other processes: within 1 % of the largest logit, which is two rounding errors."""
    assert_near(torch.tensor(actual), torch.tensor(expected), 1e-2)


# What the new processes do ---------------------------------------------------------------------------------------


def load(repo: str):
    """Model and processor of `repo`, loaded with its own code."""
    sys.modules["videollm_mod"] = None  # importing the installed package is an error from here on
    processor = transformers.AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True)
    for part in (model, model.config, processor, processor.video_processor):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    return model, processor


def load_all_save_and_train(repo: str) -> dict:
    model, processor = load(repo)
    result = {"logits": logits_of(model, processor), "classes": {}}
    for name in MODEL_AUTO_MAP:
        loaded = getattr(transformers, name).from_pretrained(repo, trust_remote_code=True)
        result["classes"][name] = type(loaded).__name__
        if name == "AutoModel":
            with torch.no_grad():
                hidden = loaded.eval()(**sample(processor)).last_hidden_state
            result["logits of AutoModel"] = model.lm_head(hidden).tolist()
        elif name != "AutoConfig":
            result[f"logits of {name}"] = logits_of(loaded, processor)

    model.save_pretrained("saved")
    processor.save_pretrained("saved")

    example = sample(processor)
    example["labels"] = example["input_ids"].masked_fill(example["input_ids"] == model.config.video_token_id, -100)
    arguments = transformers.TrainingArguments(
        "trained",
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=[example] * 2,
        data_collator=lambda rows: dict(rows[0]),
        processing_class=processor,
    )
    trainer.train()
    result["trained logits"] = logits_of(model, processor)
    return result


def load_and_save(repo: str) -> dict:
    model, processor = load(repo)
    model.save_pretrained("saved")
    processor.save_pretrained("saved")
    return {"logits": logits_of(model, processor)}


def load_each(*repos: str) -> dict:
    return {Path(repo).name: logits_of(*load(repo)) for repo in repos}


def load_video_processor(repo: str) -> dict:
    sys.modules["videollm_mod"] = None
    try:
        public = type(transformers.AutoVideoProcessor.from_pretrained(repo, trust_remote_code=True)).__name__
    except ImportError as error:
        public = str(error)
    # the class from its own module, unless transformers replaces it by an error
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor

    video_processor = AutoVideoProcessor.from_pretrained(repo, trust_remote_code=True)
    return {"class": type(video_processor).__name__, "public": public}


# -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory) -> tuple[dict, Path]:
    """Results of a process that loads the repository's folder, and where it saved the model."""
    folder = tmp_path_factory.mktemp("hub") / "folder"
    return run_fresh(load_all_save_and_train, folder, ROOT), folder


@pytest.fixture(scope="module")
def from_hub_cache(tmp_path_factory) -> tuple[dict, Path]:
    """The same from an offline Hub cache, by repository id."""
    base = tmp_path_factory.mktemp("hub")
    repository = base / "cache" / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in [*CHECKPOINT_FILES, *code_files()]:
        shutil.copyfile(ROOT / name, snapshot / name)
    folder = base / "process"
    result = run_fresh(load_and_save, folder, HUB_ID, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(base / "cache"))
    return result, folder


@pytest.fixture(scope="module")
def from_package(tmp_path_factory) -> tuple[dict, Path]:
    """The same with the installed package's classes, in this process."""
    from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor

    folder = tmp_path_factory.mktemp("hub")
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT)
    del model.config.auto_map  # a model from a new configuration has none
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    model.save_pretrained(folder / "saved")
    processor.save_pretrained(folder / "saved")
    return {"logits": logits_of(model, processor)}, folder


@pytest.fixture(scope="module")
def saved(from_folder, from_hub_cache, from_package, tmp_path_factory) -> dict[str, Path]:
    """Every saved folder, moved and renamed."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    sources = {
        "1-from.folder": from_folder[1] / "saved",
        "2-from.hub": from_hub_cache[1] / "saved",
        "3-from.package": from_package[1] / "saved",
        "4-trained": from_folder[1] / "trained" / "checkpoint-2",
    }
    return {name: Path(shutil.move(source, elsewhere / name)) for name, source in sources.items()}


def assert_auto_maps(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    config = json.loads((folder / "processor_config.json").read_text())
    assert config["processor_class"] == "VideoLLMMoDProcessor"
    # AutoVideoProcessor reads only the nested part
    for part, name in ((config, "AutoProcessor"), (config["video_processor"], "AutoVideoProcessor")):
        assert part["auto_map"][name] == AUTO_MAP[name]


def test_auto_maps_are_complete():
    assert_auto_maps(ROOT)


def test_every_auto_class_loads_the_same_weights(from_folder):
    result, _ = from_folder
    assert result["classes"] == {name: reference.split(".")[1] for name, reference in MODEL_AUTO_MAP.items()}
    for name in MODEL_AUTO_MAP.keys() - {"AutoConfig"}:
        assert_same(result[f"logits of {name}"], result["logits"])


def test_auto_video_processor_needs_torchvision_only_when_used_directly(tmp_path):
    result = run_fresh(load_video_processor, tmp_path / "process", ROOT)
    assert result["class"] == "VideoLLMMoDVideoProcessor"
    if is_torchvision_available():
        assert result["public"] == "VideoLLMMoDVideoProcessor"
    else:
        assert "requires the Torchvision library" in result["public"]


def test_package_and_hub_cache_give_the_same_logits_as_the_folder(from_folder, from_hub_cache, from_package):
    assert_same(from_package[0]["logits"], from_folder[0]["logits"])
    assert_same(from_hub_cache[0]["logits"], from_folder[0]["logits"])


def test_saved_folder_loads_elsewhere_with_the_same_logits(saved, from_folder, tmp_path):
    result, _ = from_folder
    loaded = run_fresh(load_each, tmp_path / "process", *saved.values())
    trained, before = torch.tensor(result["trained logits"]), torch.tensor(result["logits"])
    assert (trained - before).abs().max() > 0.1 * before.abs().max()  # more than a rounding error
    assert_same(loaded.pop("4-trained"), result["trained logits"])
    for logits in loaded.values():
        assert_same(logits, result["logits"])


def older_folder(folder: Path) -> Path:
    """The checkpoint as older code saved it: every module had a long name, and newer options are missing."""
    folder.mkdir()
    for name in CHECKPOINT_FILES:
        shutil.copyfile(ROOT / name, folder / name)
    assert not {"speak_rule", "connector_type"} & json.loads((folder / "config.json").read_text()).keys()
    long = {Path(name).stem: f"{Path(name).stem.removesuffix('_videollm_mod')}_videollm_mod" for name in code_files()}
    for name, source in code_files().items():
        code = re.sub(r"from \.(\w+) import", lambda found: f"from .{long[found[1]]} import", source.decode())
        (folder / f"{long[Path(name).stem]}.py").write_text(code)
    return folder


def test_folder_of_an_older_version_loads_with_its_code_and_with_ours(tmp_path, from_package):
    from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor

    folder = older_folder(tmp_path / "older")
    assert (folder / "routing_videollm_mod.py").exists() and not (folder / "routing.py").exists()
    ours = [own.from_pretrained(folder) for own in (VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor)]
    assert_same(logits_of(*ours), from_package[0]["logits"])
    theirs = run_fresh(load_each, tmp_path / "process", folder)
    assert_same(theirs["older"], from_package[0]["logits"])


def test_saved_folder_has_its_code_and_names_no_other_repository(saved):
    for folder in saved.values():
        assert {file.name: file.read_bytes() for file in folder.glob("*.py")} == code_files()
        assert_auto_maps(folder)
        for file in folder.glob("*.json"):
            assert f"{HUB_ID}--" not in file.read_text(), file


def test_weights_are_only_safetensors(saved):
    for folder in (ROOT, *saved.values()):
        assert (folder / "model.safetensors").is_file()
        others = {file.name for pattern in ("*.bin", "*.pkl", "*.ckpt", "*.h5") for file in folder.glob(pattern)}
        assert others <= {"training_args.bin"}, others
