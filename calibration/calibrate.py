"""`videollm-mod calibrate`: from clips to the routing options of a checkpoint."""

import json
import shutil
from pathlib import Path

from safetensors import safe_open

from ..data.files import write_whole, written_whole
from ..evaluation.surroundings import surroundings
from ..loading.checkpoint import load_checkpoint
from ..loading.find import find_checkpoint
from ..memory import frames_in_context
from ..narration.options import stated_fps
from .clips import Clip, encoded, first_frames, read_clip
from .measuring import Divergence, Measured, best, candidates, choose, exact_answers, progress, routed
from .options import CalibrateOptions
from .report import described, plot, table


def calibrate(options: CalibrateOptions) -> str:
    """Measure, write what was chosen, and return it in words.

    Raises:
        `ValueError`, `OSError`: naming what is wrong; then the checkpoint is as it was.
    """
    options.check()
    base = find_checkpoint(options.model).base
    fps = stated_fps(base)
    for clip in options.clips:  # before the model is loaded
        if not first_frames(clip, fps, 1):
            raise ValueError(f"there is no frame in {clip}")
    if Path(base).is_dir():
        check_untrained(Path(base), options.force)
    model, processor = load_checkpoint(base, device=options.device, dtype=options.dtype)
    folder = folder_of(base)
    check_untrained(folder, options.force)
    clips = read_clips(options, model, processor)
    divergence = Divergence(model, clips)
    ranked = divergence.ranked_layers()
    tried = candidates(list(ranked), model.config.num_frame_tokens)
    rows = [divergence.measured(name, routing) for name, routing in progress(tried, "routings")]
    followed = {row: divergence.followed(row) for row in progress(best(rows), "decisions")}
    rows = [followed.get(row, row) for row in rows]
    budget, limit = options.budget
    report = {
        "model": options.model,
        **surroundings(),
        "clips": [str(clip) for clip in options.clips],
        "frames": sum(len(clip.times) for clip in clips),
        "predictions": divergence.predictions,
        "budget": {budget: limit},
        "said": [[event.text for event in clip.events] for clip in clips],
        "layers": [{"layer": layer, "divergence": value} for layer, value in ranked.items()],
        "rows": [row.as_dict() for row in rows],
    }
    try:
        chosen = choose(rows, budget, limit)
    except ValueError:
        write_report(options.json, report)
        raise
    exact = exact_answers(model, processor, clips, chosen.routing, **session_options(options, model))
    write_report(options.json, report | {"chosen": chosen.as_dict(), "exact": [sum(exact), len(exact)]})
    if options.plot is not None:
        plot(rows, chosen, options.plot)
    where = write_routing(folder, options.output, chosen)
    words = described(chosen, ranked, exact, model.config.text_config.num_hidden_layers)
    return f"{table(rows)}\n\n{words}\nwritten: {where}"


def read_clips(options: CalibrateOptions, model, processor) -> list[Clip]:
    """The clips, with what the dense model says about them."""
    fps, clips = processor.video_processor.fps, []
    with routed(model, None):
        for path in progress(options.clips, "clips"):
            features = encoded(model, processor, first_frames(path, fps, options.frames))
            times = [index / fps for index in range(len(features))]
            questions = [] if options.question is None else [(times[-1], options.question)]
            own = session_options(options, model)
            clips.append(read_clip(model, processor, str(path), features, times, questions, **own))
    return clips


def session_options(options: CalibrateOptions, model) -> dict:
    """As `narrate` makes its session, if nothing else is said."""
    return {"speak_threshold": options.threshold, "max_cached_frames": frames_in_context(model.config)}


def check_untrained(folder: Path, force: bool) -> None:
    """Raise `ValueError` if the checkpoint has trained LayerExperts, unless they may be replaced."""
    if force:
        return
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                if name.endswith("layer_expert.weight") and weights.get_tensor(name).any():
                    raise ValueError(
                        f"the routing of {folder} is trained ({name}); `--force` replaces it by a score that needs no "
                        "training"
                    )


def folder_of(base: str) -> Path:
    """The folder of a checkpoint that was loaded, in the cache if it is on the Hub."""
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(base, local_files_only=True))


def write_report(path: Path | None, report: dict) -> None:
    if path is not None:
        write_whole(path, json.dumps(report, indent=1) + "\n")


def write_routing(folder: Path, output: Path | None, chosen: Measured) -> Path:
    """Write the routing into the checkpoint's config.json, or into that of a copy; returns the path of the file."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] = config["text_config"] | chosen.routing.options
    content = json.dumps(config, indent=2) + "\n"
    if output is None:
        write_whole(folder / "config.json", content)
        return folder / "config.json"
    with written_whole(output) as partial:
        partial.mkdir()
        for file in folder.iterdir():
            if file.is_file() and not file.name.startswith("."):
                shutil.copy(file, partial / file.name)
        (partial / "config.json").write_text(content, encoding="utf-8")
    return output / "config.json"


__all__ = ["calibrate"]
