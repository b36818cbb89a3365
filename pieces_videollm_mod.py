"""Tokens of a text that stands inside a sequence, where some tokenizers would put a space before it."""

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


def tokenizer_of_pieces(tokenizer):
    """The tokenizer, or one like it that puts no space before a text, as SentencePiece's Llama 2 and TinyLlama do.

    A stream is made of pieces tokenised one by one; with such a space each would begin with a token that the language
    model never met there, and a separator could be two tokens.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer, pre_tokenizer = _without_space(backend["normalizer"]), _without_space(backend["pre_tokenizer"])
    if (normalizer, pre_tokenizer) == (backend["normalizer"], backend["pre_tokenizer"]):
        return tokenizer
    backend |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))


def _without_space(step: dict | None) -> dict | None:
    """A normaliser or pre-tokeniser, as tokenizers writes it, without what adds a space."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        return step | {name: [x for x in map(_without_space, step[name]) if x is not None]}
    if step["type"] == "Metaspace":
        return step | {"prepend_scheme": "never"}
    return step | {"add_prefix_space": False} if step.get("add_prefix_space") else step


__all__ = ["tokenizer_of_pieces"]
