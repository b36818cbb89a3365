"""What a model can describe. One that knows a single domain, as the bundled checkpoint, makes up words about any other
video; so the demo and the Space show what it costs to watch such a video, and not what it would say.

A model names its domain in its configuration (`config.domain`), a clip in the title of its container.
"""

from pathlib import Path

from ..containers import local_path, open_container

COMMANDS = (
    "pip install .",
    "videollm-mod build --vlm HuggingFaceTB/SmolVLM2-256M-Video-Instruct --output smolvlm2",
    'videollm-mod narrate clip.mp4 --model smolvlm2 --query "What do you see?"',
)


def can_describe(config, domain: str | None) -> bool:
    """Whether a model of this `VideoLLMMoDConfig` has learned what a clip of this domain shows."""
    return getattr(config, "domain", None) in (None, domain)  # the code of an older checkpoint has no domains


def clip_domain(path: Path) -> str | None:
    """The title that a video file states, if any: `write_clip` names the procedural world there.

    Raises:
        `ValueError`, `OSError`: from `open_container`.
    """
    container, _ = open_container(path)
    with container:
        return container.metadata.get("title")


def notice(config, source: str) -> str | None:
    """One line on how to give the model sight, unless it can describe any video or the source is a file of its domain.
    What cameras, addresses and pipes show cannot be known."""
    path = Path(local_path(source))
    if can_describe(config, clip_domain(path) if path.is_file() else None):
        return None
    return (
        f"this model knows only the {config.domain}; about anything else its words mean nothing. For one that sees, "
        f"run `{COMMANDS[1]}`, and pass `--model smolvlm2`"
    )


def why_silent(config) -> str:
    """One sentence for a video that the model cannot describe."""
    return f"This model knows only the {config.domain}, so its words about this video would mean nothing."


__all__ = ["COMMANDS", "can_describe", "clip_domain", "notice", "why_silent"]
