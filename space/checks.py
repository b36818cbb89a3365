"""Checks of visitors' input, and error messages for visitors."""

import functools
import inspect
import logging
from typing import Any

import gradio as gr

from ..containers import is_number
from .lane import Controls
from .line import LineIsFull
from .remote import AnyModels

MAX_CHARACTERS = 300  # of a question or an instruction
log = logging.getLogger(__name__)


def with_visitor_errors(function):
    """Show an expected error to the visitor as one sentence. Unexpected errors go to the log."""

    def as_error(error: Exception) -> gr.Error:
        if isinstance(error, gr.Error):
            return error
        if isinstance(error, ValueError | OSError):
            text = str(error)
            return gr.Error(text[:1].upper() + text[1:], print_exception=False)
        if isinstance(error, LineIsFull):
            return gr.Error("Too many people are here right now. Please try again in a minute.", print_exception=False)
        log.error("an endpoint failed", exc_info=error)
        return gr.Error("Something went wrong on the server. Please start again.", print_exception=False)

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


def checked_text(text: str | None, name: str) -> str | None:
    """Strip a text; None if it is empty. Raises `ValueError` for more than `MAX_CHARACTERS`."""
    if text and len(text) > MAX_CHARACTERS:
        raise ValueError(f"The {name} may have at most {MAX_CHARACTERS} characters, but has {len(text)}.")
    return text.strip() if text and text.strip() else None


def checked_rule(models: AnyModels, rule: Any) -> str | None:
    """Check a speaking rule; None if none is given. Raises `ValueError` for one that the model cannot follow."""
    if rule is not None and rule not in models.rules:
        raise ValueError(f"The speaking rule must be {' or '.join(models.rules)}, got {rule!r}.")
    return rule


def controls_of(models: AnyModels, keep_ratio: Any = None, threshold: Any = None, memory: Any = None) -> Controls:
    """Check the controls. Those that are not given are the model's own.

    Raises:
        `ValueError`: for a control that is out of range.
    """
    if models.is_remote and (keep_ratio is not None or memory is not None):
        raise ValueError("The model runs on a server, which sets the keep ratio and the memory.")
    for name, value in {"keep ratio": keep_ratio, "threshold": threshold, "memory": memory}.items():
        if value is not None and not is_number(value):
            raise ValueError(f"The {name} must be a number, got {value!r}.")
    if keep_ratio is not None and not 0 < keep_ratio <= 1:
        raise ValueError(f"The keep ratio must be above 0 and at most 1, got {keep_ratio:g}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"The threshold must be between 0 and 1, got {threshold:g}.")
    if memory is not None and not 1 <= memory <= models.max_frames:
        raise ValueError(f"The memory must be between 1 and {models.max_frames} frames, got {memory:g}.")
    return Controls(
        keep_ratio=keep_ratio,
        threshold=threshold,
        memory=None if memory is None else int(memory),
    )


__all__ = ["checked_rule", "checked_text", "controls_of", "with_visitor_errors"]
