"""Conversations: messages as users write them, checked and normalised; what stands between them in a sequence; and the
spans of their tokens."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .containers import check_count, check_fps, shown

MAX_TEXT = 20_000  # characters of one message: far more than a model can use, too few to fill the memory
ROLES = ("system", "user", "assistant", "stream")
# runs of white space that contain a line break of any kind
LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


@dataclass(frozen=True)
class Pieces:
    r"""
    What stands between the contents of a conversation, as text. The defaults are this package's own sequence.

    Args:
        start (`str`): opens a sequence without a system message.
        system_start, system_end (`str`): around the text of a system message.
        stream_start, stream_end (`str`): around the frames of a stream, or of a user turn.
        frame_start, frame_end (`str`): around the vision tokens of a frame. `{time}` becomes its time, `MM:SS`.
        between_frames (`str`): between two frames.
        user_start (`str`): opens a user turn without frames.
        reply_start (`str`): from the text of a user turn to the reply.
        reply_end (`str`, *optional*): after a reply; the end of sequence if omitted.
        one_turn (`bool`): frames and text share one user turn: frames come first, and an instruction is the text of
            every turn after which the model speaks. Otherwise an instruction stands where it was given.
    """

    start: str = ""
    system_start: str = ""
    system_end: str = "\n"
    stream_start: str = "\n["
    stream_end: str = "]"
    frame_start: str = ""
    frame_end: str = ""
    between_frames: str = ","
    user_start: str = "\nUser:"
    reply_start: str = "\nAssistant:"
    reply_end: str | None = None
    one_turn: bool = False


@dataclass(frozen=True)
class Turn:
    """
    Where a turn stands in the tokens of a conversation.

    Args:
        role (`str`): `"system"`, `"user"`, `"assistant"` or `"stream"`.
        start, stop (`int`): its first token, and the one after its last.
        frames (`range`): the first vision token of each frame of a stream.
    """

    role: str
    start: int
    stop: int
    frames: range = range(0)

    def moved(self, by: int) -> "Turn":
        """The same turn where `by` more tokens stand before it."""
        frames = range(self.frames.start + by, self.frames.stop + by, self.frames.step)
        return Turn(self.role, self.start + by, self.stop + by, frames)


class EncodedConversation(NamedTuple):
    """
    The tokens of a conversation.

    Args:
        input_ids (`list[int]`): `T` tokens.
        labels (`list[int]`): of each token, not shifted; -100 where nothing is learned.
        assistant_mask (`list[int]`): 1 on replies and their end of sequence, 0 elsewhere.
        turns (`list[Turn]`): one after the other without gaps, from after the beginning of sequence to the end.
    """

    input_ids: list[int]
    labels: list[int]
    assistant_mask: list[int]
    turns: list[Turn]


def clean_text(text: str) -> str:
    """Text as it is tokenised: stripped, with a space in place of each run of white space that has a line break.

    So no line of a message can look like the header of another message.
    """
    text = text.encode("utf-8", "replace").decode()  # lone surrogates, as from undecodable command lines
    return LINE_BREAKS.sub(" ", text).strip()


def check_text(name: str, text: Any) -> None:
    """Raise `ValueError` unless `text` is a valid string that is not empty and has at most `MAX_TEXT` characters."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} must be a string that is not empty, got {shown(text)}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"{name} must have at most {MAX_TEXT} characters, got {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must be text in UTF-8, got {shown(text)}") from error


def read_conversation(conversation: Any, name: str = "conversation") -> list[dict]:
    """Check messages and normalise them.

    Args:
        conversation: messages, see `VideoLLMMoDProcessor.apply_chat_template`.
        name (`str`): its name in errors.

    Returns:
        `{"role": "system"|"user"|"assistant", "content": str, "learn": bool}` with clean text, and
        `{"role": "stream", "learn": bool | int}` with `"num_frames": int` or `"content": [video block]`.

    Raises:
        `ValueError`: naming the message and what is wrong with it.
    """
    if not isinstance(conversation, list | tuple) or not conversation:
        raise ValueError(f"`{name}` must be a list of at least one message, got {shown(conversation)}")
    turns = []
    for index, message in enumerate(conversation):
        where = f"{name}[{index}]"
        if not isinstance(message, Mapping):
            raise ValueError(f"`{where}` must be a message, {{'role': ..., 'content': ...}}, got {shown(message)}")
        role, content, learn = message.get("role"), message.get("content"), message.get("learn", True)
        if role not in ROLES:
            raise ValueError(f"the role of `{where}` must be one of {', '.join(ROLES)}, got {shown(role)}")
        if role == "system" and index > 0:
            raise ValueError(f"`{where}` is a system message; only the first message may be one")
        if not isinstance(learn, bool):
            if role == "assistant":
                raise ValueError(f"`learn` of `{where}` must be a bool, got {shown(learn)}")
            check_count(f"`learn` of `{where}`, unless a bool,", learn, minimum=0)
        if "num_frames" in message:
            if role != "stream" or content is not None:
                raise ValueError(f"`{where}`: `num_frames` goes with the role 'stream' and without `content`")
            check_count(f"`num_frames` of `{where}`", message["num_frames"])
            turns.append({"role": role, "num_frames": int(message["num_frames"]), "learn": learn})
            continue
        texts, videos = read_blocks(content, role, where)
        turns += ({"role": "stream", "content": [video], "learn": learn, "name": where} for video in videos)
        if role == "stream":
            if not videos:
                raise ValueError(f"`{where}` is a stream without frames; give a video block or `num_frames`")
        elif text := clean_text(" ".join(texts)):
            if len(text) > MAX_TEXT:
                raise ValueError(f"`{where}` must have at most {MAX_TEXT} characters of text, got {len(text)}")
            turns.append({"role": role, "content": text, "learn": learn})
        elif not videos:
            raise ValueError(f"`{where}` has no text: {shown(content)}")
    return turns


def read_blocks(content: Any, role: str, where: str) -> tuple[list[str], list[Mapping]]:
    """Texts and video blocks of the content of the message `where`."""
    allowed = {"user": ("text", "video"), "stream": ("video",)}.get(role, ("text",))
    if isinstance(content, str) and role != "stream":
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        kinds = "a list of video blocks" if role == "stream" else "a string or a list of blocks"
        raise ValueError(f"the content of `{where}` must be {kinds}, got {shown(content)}")
    texts, videos = [], []
    for block in content:
        block_type = block.get("type") if isinstance(block, Mapping) else None
        if block_type not in allowed:
            raise ValueError(
                f"`{where}` ({role}) may hold only blocks of the type {' or '.join(allowed)}, got {shown(block)}"
            )
        if block_type == "text":
            if not isinstance(block.get("text"), str):
                raise ValueError(f"the text block of `{where}` must hold a string, got {shown(block.get('text'))}")
            texts.append(block["text"])
        else:
            if block.get("fps") is not None:
                check_fps(f"`fps` of `{where}`", block["fps"])
            videos.append(block)
    return texts, videos


def read_conversations(conversation: Any) -> tuple[list[list[dict]], bool]:
    """As `read_conversation`, for one conversation or a list of them; with them, whether it was a list of them."""
    if isinstance(conversation, list | tuple) and conversation and isinstance(conversation[0], list | tuple):
        return [read_conversation(own, f"conversation[{index}]") for index, own in enumerate(conversation)], True
    return [read_conversation(conversation)], False


def check_continuation(turns: list[dict], add_generation_prompt: bool, continue_final_message: bool) -> None:
    """Raise `ValueError` if the final message is to be continued but is no reply, or if a new one is begun as well."""
    if continue_final_message and (add_generation_prompt or turns[-1]["role"] != "assistant"):
        raise ValueError(
            "`continue_final_message` needs a reply as the last message and no `add_generation_prompt`, got the role "
            f"{turns[-1]['role']!r} and add_generation_prompt={add_generation_prompt}"
        )


def tokenizer_of_pieces(tokenizer):
    """The tokenizer, or a copy that does not add a space before a text, as those of Llama 2 and TinyLlama do.

    The pieces of a stream are tokenised one by one. With such a space each would begin with a token that the language
    model has never seen there, and a separator could be two tokens.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer, pre_tokenizer = _without_space(backend["normalizer"]), _without_space(backend["pre_tokenizer"])
    if (normalizer, pre_tokenizer) == (backend["normalizer"], backend["pre_tokenizer"]):
        return tokenizer
    backend |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    from tokenizers import Tokenizer  # slow to import, and commands check text before
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))


def _without_space(step: dict | None) -> dict | None:
    """A normaliser or pre-tokeniser, in the JSON of tokenizers, without the part that adds a space."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        return step | {name: [x for x in map(_without_space, step[name]) if x is not None]}
    if step["type"] == "Metaspace":
        return step | {"prepend_scheme": "never"}
    return step | {"add_prefix_space": False} if step.get("add_prefix_space") else step


__all__ = [
    "MAX_TEXT",
    "EncodedConversation",
    "Pieces",
    "Turn",
    "check_text",
    "clean_text",
    "read_conversation",
    "read_conversations",
    "tokenizer_of_pieces",
]
