"""`videollm-mod build` and `videollm-mod convert`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from .options import add_command

KEEP_RATIO = "share of vision tokens that routed layers keep (default: 0.2)"
LAYERS = "layers that route: interleaved, all, all_deep or interleaved_deep (default: interleaved)"


@dataclass(kw_only=True)
class BuildOptions:
    """The options of `videollm-mod build`."""

    output: Annotated[Path, "a new or empty folder", {"metavar": "FOLDER"}]
    vlm: Annotated[
        str | None, "folder or Hub id of a model that reads images: LLaVA, LLaVA-OneVision, SmolVLM, Idefics3"
    ] = None
    llm: Annotated[
        str | None, "folder or Hub id of a language model: Llama, SmolLM2, SmolLM3, TinyLlama, Mistral, Qwen2 or Qwen3"
    ] = None
    vision: Annotated[
        str | None, "folder or Hub id of its vision tower: SigLIP, SigLIP 2 of fixed resolution or CLIP"
    ] = None
    gguf_file: Annotated[
        str | None, "name of a GGUF file in the folder of the language model", {"metavar": "NAME"}
    ] = None
    mod_keep_ratio: Annotated[
        float | None,
        "share of vision tokens that routed layers keep (default: 0.2; with `--vlm` 1.0, all)",
        {"flag": "--keep-ratio", "metavar": "R"},
    ] = None
    mod_layers: Annotated[str | None, LAYERS, {"metavar": "LAYERS"}] = None
    frame_separator: Annotated[
        str | None,
        "one token between two frames, which means silence (default: a comma; with `--vlm` none)",
        {"metavar": "TEXT"},
    ] = None
    no_class_token: Annotated[
        bool, "leave out the class token of each frame, as for a tower without a pooling head"
    ] = False
    seed: Annotated[int, "seed of the weights that are new (default: 0)"] = 0


@dataclass
class ConvertOptions:
    """The options of `videollm-mod convert`."""

    kind: Annotated[Literal["videollm-online"], "the project that the checkpoint comes from"]
    path: Annotated[Path, "folder of the adapter"]
    _: KW_ONLY
    output: Annotated[Path, "a new or empty folder", {"metavar": "FOLDER"}]
    base: Annotated[str | None, "folder or Hub id of the language model (default: the one that the adapter names)"] = (
        None
    )
    vision: Annotated[str, "folder or Hub id of the vision tower (default: google/siglip-large-patch16-384)"] = (
        "google/siglip-large-patch16-384"
    )
    mod: Annotated[bool, "add routers (default: every layer sees every token)"] = False
    mod_keep_ratio: Annotated[float | None, KEEP_RATIO, {"flag": "--keep-ratio", "metavar": "R"}] = None
    mod_layers: Annotated[str | None, LAYERS, {"metavar": "LAYERS"}] = None


def add(commands) -> None:
    add_command(commands, "build", BuildOptions, build, help="build a streaming model from pretrained ones")
    add_command(
        commands, "convert", ConvertOptions, convert, help="turn the checkpoint of another project into this format"
    )


def build(options: BuildOptions) -> None:
    from ..training.assemble import build_folder

    given = dict(vars(options))
    frame_token_cls = False if given.pop("no_class_token") else None
    print(build_folder(**given, frame_token_cls=frame_token_cls))


def convert(options: ConvertOptions) -> None:
    from ..training.assemble import convert_folder

    given = dict(vars(options))
    del given["kind"]
    print(convert_folder(**given))
