"""Once the package is imported, transformers' Auto classes load its checkpoints without remote code."""

import json
import shutil
import sys

import pytest
from fresh_process import ROOT, run_fresh

MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
OTHERS = ("AutoConfig", "AutoProcessor", "AutoTokenizer")


def load_all(repo: str, folder: str, first: str) -> dict:
    """The modules of the classes that each Auto class loads without `trust_remote_code`."""
    if first == "package":
        import videollm_mod

        lazy = not {"torch", "transformers"} & sys.modules.keys()
        import transformers
    elif first == "Auto classes":
        import transformers

        assert all(hasattr(transformers, name) for name in (*MODELS, *OTHERS))
        import videollm_mod  # noqa: F401

        lazy = True
    else:
        from videollm_mod import VideoLLMMoDForConditionalGeneration  # noqa: F401

        lazy = True
        import transformers
    import inspect

    loaded = {name: getattr(transformers, name).from_pretrained(repo) for name in (*MODELS, *OTHERS)}
    trusting = transformers.AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True)
    video = transformers.models.auto.video_processing_auto.VIDEO_PROCESSOR_MAPPING
    loaded["AutoModelForImageTextToText"].save_pretrained(folder)
    loaded["AutoProcessor"].save_pretrained(folder)
    return {
        "lazy": lazy,
        "modules": {name: type(own).__module__ for name, own in loaded.items()},
        "trusting": type(trusting).__module__,
        "video": "videollm_mod.video_processing" in str(video[type(loaded["AutoConfig"])]),
        "source": "class VideoLLMMoDModel" in inspect.getsource(sys.modules["videollm_mod.modeling_videollm_mod"]),
        "remote": [name for name in sys.modules if name.startswith("transformers_modules")],
        "session": type(loaded["AutoModelForCausalLM"].stream(loaded["AutoProcessor"])).__module__,
    }


@pytest.mark.parametrize("first", ["package", "Auto classes", "a class"])
def test_auto_classes_are_registered_in_any_import_order(tmp_path, first):
    new = first == "package"  # which must not import torch
    found = run_fresh(load_all, tmp_path / "process", ROOT, tmp_path / "saved", first, new=new, HF_HUB_OFFLINE="1")
    modules = found.pop("modules")
    assert modules.pop("AutoTokenizer").startswith("transformers.")
    assert modules.pop("AutoConfig") == "videollm_mod.configuration_videollm_mod"
    assert modules.pop("AutoProcessor") == "videollm_mod.processing_videollm_mod"
    assert modules == dict.fromkeys(MODELS, "videollm_mod.modeling_videollm_mod")
    assert found.pop("lazy") and found.pop("source") and not found.pop("remote")
    assert found == {
        "trusting": "videollm_mod.modeling_videollm_mod",
        "video": True,
        "session": "videollm_mod.streaming",
    }
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForImageTextToText"].startswith("modeling_videollm_mod.")
    for name in ("modeling_videollm_mod.py", "processing_videollm_mod.py"):
        assert (tmp_path / "saved" / name).is_file()
    assert not (tmp_path / "saved" / "auto_classes.py").exists()


def load_trusting(folder: str) -> dict:
    from videollm_mod.loading.checkpoint import load_checkpoint

    found = {}
    for trust in (False, True):
        loaded = load_checkpoint(folder, device="cpu", trust_remote_code=trust)
        found[str(trust)] = [type(own).__module__.split(".")[0] for own in loaded]
        found[f"{trust}, changed"] = getattr(loaded[0], "changed", False)
    return found


def test_trust_remote_code_runs_the_code_of_the_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in (*ROOT.glob("*.py"), *ROOT.glob("*.json"), ROOT / "model.safetensors"):
        shutil.copy(file, folder)
    with open(folder / "modeling_videollm_mod.py", "a") as file:
        file.write("\nVideoLLMMoDForConditionalGeneration.changed = True\n")
    found = run_fresh(load_trusting, tmp_path / "process", folder, HF_HUB_OFFLINE="1")
    assert found == {
        "False": ["videollm_mod", "videollm_mod"],
        "False, changed": False,
        "True": ["transformers_modules", "transformers_modules"],
        "True, changed": True,
    }
