"""What visitors send, checked; and what goes wrong, said in a sentence."""

import functools
import inspect
import logging
from typing import Any

import gradio as gr

from .lane import Controls
from .line import LineIsFull
from .models import Models

MOST_CHARACTERS = 300  # of a question or an instruction
log = logging.getLogger(__name__)


def friendly(function):
    """What goes wrong reaches the visitor as one sentence; what nobody foresaw stays in the log."""

    def as_error(error: Exception) -> gr.Error:
        if isinstance(error, gr.Error):
            return error
        if isinstance(error, ValueError | OSError):
            text = str(error)
            return gr.Error(text[:1].upper() + text[1:], print_exception=False)
        if isinstance(error, LineIsFull):
            return gr.Error("Too many people are here right now. Please try again in a minute.", print_exception=False)
        log.error("an endpoint failed", exc_info=error)
        return gr.Error("Something went wrong here, not with you. Please start again.", print_exception=False)

    @functools.wraps(function)
    def call(*arguments, **options):
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise as_error(error) from None

    @functools.wraps(function)
    def iterate(*arguments, **options):
        try:
            yield from function(*arguments, **options)
        except Exception as error:
            raise as_error(error) from None

    return iterate if inspect.isgeneratorfunction(function) else call


def checked(text: str | None, name: str) -> str | None:
    """Raises `ValueError` for more than `MOST_CHARACTERS`."""
    if text and len(text) > MOST_CHARACTERS:
        raise ValueError(f"The {name} may have {MOST_CHARACTERS} characters, this one has {len(text)}.")
    return text.strip() if text and text.strip() else None


def controls_of(models: Models, keep_ratio: Any = None, threshold: Any = None, memory: Any = None) -> Controls:
    """Checked, with the model's own where nothing is given.

    Raises:
        `ValueError`: naming what is out of range.
    """
    for name, value in {"keep ratio": keep_ratio, "threshold": threshold, "memory": memory}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"The {name} must be a number, got {value!r}.")
    if keep_ratio is not None and not 0 < keep_ratio <= 1:
        raise ValueError(f"The keep ratio must be above 0 and at most 1, got {keep_ratio:g}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"The threshold must be between 0 and 1, got {threshold:g}.")
    if memory is not None and not 4 <= memory <= models.most_frames:
        raise ValueError(f"The memory must be between 4 and {models.most_frames} frames, got {memory:g}.")
    return Controls(
        keep_ratio=keep_ratio,
        threshold=Controls.threshold if threshold is None else threshold,
        memory=None if memory is None else int(memory),
    )


__all__ = ["checked", "controls_of", "friendly"]
