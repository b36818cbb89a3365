"""Conversations: messages as users write them, checked and normalised; the pieces between their contents; the spans of
their tokens; and what other families' processors make of messages and frames."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from .containers import check_count, check_fps, shown

MAX_TEXT = 20_000  # characters of one message: far more than a model can use, too few to fill the memory
ROLES = ("system", "user", "assistant", "stream")


# runs of white space that contain a line break of any kind
LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def clean_text(text: str) -> str:
    """Strip a text, and turn each run of white space that holds a line break into a space. This is what is tokenised.

    So no line of a message can look like the header of another message.
    """
    text = text.encode("utf-8", "replace").decode()  # lone surrogates, as from undecodable command lines
    return LINE_BREAKS.sub(" ", text).strip()


class Text(str):
    """What a user or the model says. Among structure, which is plain `str`, special tokens in it are text."""


@dataclass(frozen=True)
class Pieces:
    r"""
    What stands between the contents of a conversation, as text. The defaults are this package's own sequence;
    `pieces_of` reads those of a chat template.

    Args:
        start (`str`): opens a sequence without a system message.
        system_start, system_end (`str`, *optional*): around the text of a system message; None if the template has
            none.
        stream_start, stream_end (`str`): around the frames of a stream, or of a user turn.
        frame_start, frame_end (`str`): around the vision tokens of a frame. `{time}` becomes its time, `MM:SS`.
        between_frames (`str`): between two frames.
        frame_separator (`str`): in a family's stream, one token more after a frame that another frame follows.
        user_start (`str`): opens a user turn without frames.
        reply_start (`str`): from the text of a user turn to the reply.
        reply_prefix (`str`): what the model says before the text of a reply, such as a space.
        reply_end (`str`, *optional*): after a reply; the end of sequence if omitted.
        one_turn (`bool`): frames and text share one user turn: frames come first, and an instruction is the text of
            every turn after which the model speaks. Otherwise an instruction stands where it was given.
        video_as (`str`): how a recorded video stands in the family's template: `"video"`, as a `"video"` block;
            `"text"`, as a block of text; `"images"`, as one image a frame.
        video_start, video_end (`str`): around the frames of a recorded video. `{count}` becomes their number in words,
            and `{duration}` the length of the video, `H:MM:SS`.
        image_start, image_end (`str`): around the vision tokens of an image.
        tile_start, tiles_end (`str`): before each tile of an image that is split, with `{row}` and `{column}`, and
            between its tiles and the whole image. A row of tiles ends with a line break.
    """

    start: str = ""
    system_start: str | None = ""
    system_end: str | None = "\n"
    stream_start: str = "\n["
    stream_end: str = "]"
    frame_start: str = ""
    frame_end: str = ""
    between_frames: str = ","
    frame_separator: str = ""
    user_start: str = "\nUser:"
    reply_start: str = "\nAssistant:"
    reply_prefix: str = " "
    reply_end: str | None = None
    one_turn: bool = False
    video_as: str = "video"
    video_start: str = ""
    video_end: str = ""
    image_start: str = ""
    image_end: str = ""
    tile_start: str = ""
    tiles_end: str = ""


@dataclass(frozen=True)
class Turn:
    """
    Where a turn stands in the tokens of a conversation.

    Args:
        role (`str`): `"system"`, `"user"`, `"assistant"` or `"stream"`.
        start, stop (`int`): its first token, and the one after its last.
        frames (`range`): the first vision token of each frame of a stream; a tuple in a family's sequence, where the
            text around frames may differ in length.
    """

    role: str
    start: int
    stop: int
    frames: range | tuple[int, ...] = range(0)

    def moved(self, by: int) -> "Turn":
        """The same turn where `by` more tokens stand before it."""
        frames = self.frames
        if isinstance(frames, tuple):
            return Turn(self.role, self.start + by, self.stop + by, tuple(first + by for first in frames))
        frames = range(frames.start + by, frames.stop + by, frames.step)
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


@dataclass
class Medium:
    """
    A video or an image in the content of a message, for which a template puts a placeholder.

    Args:
        kind (`str`): `"video"` or `"image"`.
        block (`Mapping`): as the user wrote it.
        frames (`[F, 3, H, W]`): once it is loaded; of an image one, or its tiles and then the whole image.
        times (`list[float]`), duration (`float`): of a video, in seconds.
        grid (`tuple[int, int]`): rows and columns of the tiles of an image; zeros if it is not split.
        is_resized (`bool`): the frames have the size of pixel values.
        is_alone (`bool`): no other image stands in the same conversation or text.
        size (`tuple[int, int]`, *optional*), num_tokens (`int`): height and width of an image whose tiles are joined,
            and how many tokens it then has.
    """

    kind: str
    block: Mapping = field(default_factory=dict)
    frames: Any = None
    times: list[float] = field(default_factory=list)
    duration: float = 0.0
    grid: tuple[int, int] = (0, 0)
    is_resized: bool = False
    is_alone: bool = True
    size: tuple[int, int] | None = None
    num_tokens: int = 0


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


def read_conversation(conversation: Any, name: str = "conversation", one_turn: bool = False) -> list[dict]:
    """Check messages and normalise them.

    Args:
        conversation: messages, see `VideoLLMMoDProcessor.apply_chat_template`.
        name (`str`): its name in errors.
        one_turn (`bool`): as in `Pieces`: text is kept as it is, and videos and images stay in their messages, unless
            the conversation has streams.

    Returns:
        `{"role": "system"|"user"|"assistant", "content": str, "learn": bool}` with clean text, and
        `{"role": "stream", "learn": bool | int}` with `"num_frames": int` or `"content": [Medium]`. With `one_turn`
        and no streams the content of every message is a list of `Text` and `Medium`.

    Raises:
        `ValueError`: naming the message and what is wrong with it.
    """
    if not isinstance(conversation, list | tuple) or not conversation:
        raise ValueError(f"`{name}` must be a list of at least one message, got {shown(conversation)}")
    whole = one_turn and not any(isinstance(x, Mapping) and x.get("role") == "stream" for x in conversation)
    turns = []
    for index, message in enumerate(conversation):
        where = f"{name}[{index}]"
        role, learn = check_message(message, index, where)
        if "num_frames" in message:
            if role != "stream" or message.get("content") is not None:
                raise ValueError(f"`{where}`: `num_frames` goes with the role 'stream' and without `content`")
            check_count(f"`num_frames` of `{where}`", message["num_frames"])
            turns.append({"role": role, "num_frames": int(message["num_frames"]), "learn": learn})
            if one_turn and message.get("times") is not None:
                turns[-1]["at"] = message["times"]
            continue
        items = read_blocks(message.get("content"), role, where)
        media = [item for item in items if isinstance(item, Medium)]
        text = " ".join(item for item in items if isinstance(item, Text))
        text = text if one_turn else clean_text(text)
        if role == "stream" and not media:
            raise ValueError(f"`{where}` is a stream without frames; give a video block or `num_frames`")
        if len(text) > MAX_TEXT:
            raise ValueError(f"`{where}` must have at most {MAX_TEXT} characters of text, got {len(text)}")
        if not media and not text.strip():
            raise ValueError(f"`{where}` has no text: {shown(message.get('content'))}")
        if whole:
            turns.append({"role": role, "content": items, "learn": learn, "name": where})
            continue
        turns += ({"role": "stream", "content": [medium], "learn": learn, "name": where} for medium in media)
        if text.strip():
            turns.append({"role": role, "content": text, "learn": learn})
    return turns


def read_conversations(conversation: Any, one_turn: bool = False) -> tuple[list[list[dict]], bool]:
    """The turns of each conversation, of one or of a list of them, and whether it was a list."""
    if isinstance(conversation, list | tuple) and conversation and isinstance(conversation[0], list | tuple):
        named = enumerate(conversation)
        return [read_conversation(turns, f"conversation[{i}]", one_turn) for i, turns in named], True
    return [read_conversation(conversation, one_turn=one_turn)], False


def check_message(message: Any, index: int, where: str) -> tuple[str, bool | int]:
    """Role and `learn` of a message, which are valid."""
    if not isinstance(message, Mapping):
        raise ValueError(f"`{where}` must be a message, {{'role': ..., 'content': ...}}, got {shown(message)}")
    role, learn = message.get("role"), message.get("learn", True)
    if role not in ROLES:
        raise ValueError(f"the role of `{where}` must be one of {', '.join(ROLES)}, got {shown(role)}")
    if role == "system" and index > 0:
        raise ValueError(f"`{where}` is a system message; only the first message may be one")
    if not isinstance(learn, bool):
        if role == "assistant":
            raise ValueError(f"`learn` of `{where}` must be a bool, got {shown(learn)}")
        check_count(f"`learn` of `{where}`, unless a bool,", learn, minimum=0)
    return role, learn


def read_blocks(content: Any, role: str, where: str) -> list:
    """The content of the message `where` as `Text` and `Medium`."""
    allowed = {"user": ("text", "video", "image"), "stream": ("video", "image")}.get(role, ("text",))
    if isinstance(content, str) and role != "stream":
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        kinds = "a list of video blocks" if role == "stream" else "a string or a list of blocks"
        raise ValueError(f"the content of `{where}` must be {kinds}, got {shown(content)}")
    items: list = []
    for block in content:
        block_type = block.get("type") if isinstance(block, Mapping) else None
        if block_type not in allowed:
            raise ValueError(
                f"`{where}` ({role}) may hold only blocks of the type {' or '.join(allowed)}, got {shown(block)}"
            )
        if block_type == "text":
            if not isinstance(block.get("text"), str):
                raise ValueError(f"the text block of `{where}` must hold a string, got {shown(block.get('text'))}")
            items.append(Text(block["text"].encode("utf-8", "replace").decode()))  # without lone surrogates
            continue
        if block.get("fps") is not None:
            check_fps(f"`fps` of `{where}`", block["fps"])
        items.append(Medium(block_type, block))
    return items


def check_continuation(turns: list[dict], add_generation_prompt: bool, continue_final_message: bool) -> None:
    """Raise `ValueError` if the final message is to be continued but is no reply, or if a new one is begun as well."""
    if continue_final_message and (add_generation_prompt or turns[-1]["role"] != "assistant"):
        raise ValueError(
            "`continue_final_message` needs a reply as the last message and no `add_generation_prompt`, got the role "
            f"{turns[-1]['role']!r} and add_generation_prompt={add_generation_prompt}"
        )


SLOT = "\ue000{}\ue001"  # stands for the text of a message while a template is rendered; no template holds it
SLOTS = r"\ue000\d+\ue001"


class ChatTemplate:
    """
    Renders messages into structure and contents, by a family's own template.

    Args:
        tokenizer: whose special tokens the template may name.
        template (`str`): in Jinja, for messages whose content is a list of blocks or a string.
        image_token, video_token (`str`): what the template writes for an image and for a video.
        video_as (`str`): how a video is given to a template that has no video blocks, `"text"` or `"images"`.

    Attributes:
        takes_blocks (`bool`): whether the content of a message may be a list of blocks.
        video_as (`str`): how a video is given to this template, `"video"` if it has such blocks.

    Raises:
        `ValueError`: if it loses the text or the image of a message.
    """

    def __init__(self, tokenizer, template: str, image_token: str, video_token: str, video_as: str = "images"):
        self.tokenizer, self.template = tokenizer, template
        self.tokens = {"image": image_token, "video": video_token}
        self.takes_blocks, self.video_as = True, "video"
        content: list = [Medium("image"), Text("Q")]
        probe = [{"role": "user", "content": content}]
        if self.attempt(probe) is None:
            self.takes_blocks = False
            self.render(probe)  # raises
        content[0] = Medium("video")
        if not self.takes_blocks or self.attempt(probe) is None:
            self.video_as = video_as

    def attempt(self, messages: list[dict]) -> list | None:
        """As `render`, but None where that raises."""
        try:
            return self.render(messages)
        except ValueError:
            return None

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> list:
        """What the template writes for messages `{"role": str, "content": [Text | Medium]}`: structure (`str`) and
        contents (`Text`, `Medium`) in turn, with structure first and last, which may be empty."""
        from jinja2 import TemplateError

        slots: list = []
        waiting: dict[str, list] = {token: [] for token in self.tokens.values()}
        given = [
            {"role": message["role"], "content": self._content(message["content"], slots, waiting)}
            for message in messages
        ]
        try:
            rendered = self.tokenizer.apply_chat_template(
                given, chat_template=self.template, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ValueError(f"the chat template cannot be used: {error}") from error
        tokens = [re.escape(token) for token, items in waiting.items() if items]
        parts, seen = re.split(f"({'|'.join([SLOTS, *tokens])})", rendered), []
        for index, part in enumerate(parts):
            if index % 2 and part in waiting:
                if not waiting[part]:
                    raise ValueError(f"the chat template writes {part!r} more often than there are blocks for it")
                parts[index] = waiting[part].pop(0)
            elif index % 2:
                seen.append(int(part[1:-1]))
                parts[index] = slots[seen[-1]]
        lost = next((token for token, left in waiting.items() if left), None)
        if lost is not None or seen != list(range(len(slots))):
            what = "text" if lost is None else f"block for {lost!r}"
            raise ValueError(f"the chat template loses or repeats the {what} of a message")
        return parts

    def _content(self, content: list, slots: list, waiting: dict[str, list]) -> list[dict] | str:
        """The content of a message for the template, which is to write a slot or a token for each item."""
        texts, media, blocks = [], [], []
        for item in content:
            kind = "text" if isinstance(item, Text) else item.kind
            if kind == "video":
                kind = self.video_as.removesuffix("s")
            if kind == "text":
                texts.append(SLOT.format(len(slots)))
                slots.append(item)
                blocks.append({"type": "text", "text": texts[-1]})
            else:
                media.append(self.tokens[kind] + "\n")
                waiting[self.tokens[kind]].append(item)
                blocks.append({"type": kind})
        return blocks if self.takes_blocks else "".join(media) + " ".join(texts)


def added_tokens(tokenizer) -> dict[str, tuple[int, Any]]:
    """Id and properties of each token that the tokenizer does not split, such as special ones, by its text."""
    return {str(token): (i, token) for i, token in tokenizer.added_tokens_decoder.items()}


FAKE, NEWLINE = "<fake_token_around_image>", "<image_newline>"
IMAGE = {
    "image_start": f"{FAKE}<global-img>",
    "image_end": FAKE,
    "tile_start": f"{FAKE}<row_{{row}}_col_{{column}}>",
    "tiles_end": "\n",
}
# the placeholder of a vision token, and the pieces that no template has, for each type of model
FAMILIES: dict[str, tuple[str, dict[str, str]]] = {
    "llava": ("<image>", {}),
    "llava_onevision": ("<video>", {"video_end": NEWLINE, "image_end": NEWLINE}),
    "idefics3": ("<image>", {**IMAGE, "frame_start": IMAGE["image_start"], "frame_end": FAKE}),
    "smolvlm": (
        "<image>",
        {
            **IMAGE,
            "frame_start": f"\nFrame from {{time}}:{IMAGE['image_start']}",
            "frame_end": FAKE,
            "video_start": "You are provided the following series of {count} frames from a {duration} [H:MM:SS] "
            "video.\n",
            "video_end": "\n\n",
        },
    ),
}


def pieces_of(template: ChatTemplate, **family: str) -> Pieces:
    """The pieces of a family's chat template, which is rendered for a few conversations and cut at their contents.

    Args:
        template (`ChatTemplate`).
        family: pieces that no template has, as of a frame or around a recorded video.

    Raises:
        `ValueError`: for a template that cannot be cut, saying where.
    """
    question, reply, system = Text("question"), Text("reply"), Text("system")
    media = [Medium("video")] if template.video_as != "images" else [Medium("image"), Medium("image")]
    seen = {"role": "user", "content": [*media, question]}
    asked, said = {"role": "user", "content": [question]}, {"role": "assistant", "content": [reply]}

    prompt = template.render([seen], add_generation_prompt=True)[::2]
    first, between, after, reply_start = prompt[0], prompt[1] if len(media) == 2 else "", prompt[-2], prompt[-1]
    reply_end = template.render([seen, said])[-1]
    again = template.render([seen, said, seen])[::2]
    opening, prefix = again[len(media) + 2], again[len(media) + 1].removeprefix(reply_start)
    stream_start = after_reply(opening, reply_end)
    user_start = after_reply(template.render([seen, said, asked])[-3], reply_end)
    if not first.endswith(stream_start):
        raise ValueError(f"the chat template cannot be cut: {first!r} opens the first turn, {opening!r} the others")
    start, system_start, system_end = first.removesuffix(stream_start), None, None
    if reply_end.isspace():  # it is tokenised with the words after it
        reply_end, stream_start, user_start = "", reply_end + stream_start, reply_end + user_start
    with_system = template.attempt([{"role": "system", "content": [system]}, seen])
    if with_system is not None and with_system[2].endswith(stream_start):
        system_start, system_end = with_system[0], with_system[2].removesuffix(stream_start)
    return Pieces(
        start=start,
        system_start=system_start,
        system_end=system_end,
        stream_start=stream_start,
        stream_end=family.get("video_end", "") + after,
        between_frames=between,
        user_start=user_start,
        reply_start=reply_start,
        reply_prefix=prefix if prefix.isspace() else "",
        reply_end=reply_end,
        one_turn=True,
        video_as=template.video_as,
        **family,
    )


def family_options(family: str, tokenizer, chat_template: str) -> dict[str, Any]:
    """Options of `VideoLLMMoDProcessor` for a family; see its `of_family`."""
    if family not in FAMILIES:
        raise ValueError(f"`family` must be one of {', '.join(FAMILIES)}, got {family!r}")
    if not isinstance(chat_template, str):
        raise ValueError(f"the processor of a {family} model needs its chat template, got {shown(chat_template)}")
    video_token, pieces = FAMILIES[family]
    texts, known = "".join(pieces.values()), added_tokens(tokenizer)
    needed = [video_token, *([FAKE] if FAKE in texts else [])]
    if missing := [token for token in needed if token not in known]:
        raise ValueError(f"`tokenizer` is not that of a {family} model: it has no token {' and no '.join(missing)}")
    if NEWLINE in texts and NEWLINE not in known:
        tokenizer.add_special_tokens({"additional_special_tokens": [NEWLINE]}, replace_extra_special_tokens=False)
    video_as = "text" if "video_start" in pieces else "images"
    template = ChatTemplate(tokenizer, chat_template, "<image>", "<video>", video_as)
    return {
        "video_token": video_token,
        "image_slot": "<image>",
        "video_slot": "<video>",
        "pieces": asdict(pieces_of(template, **pieces)),
    }


CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# the defaults of the families' own processors in transformers
CLIP_FRAMES: dict[str, Any] = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
CLIP_FRAMES |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_center_crop": True}
ONEVISION_FRAMES: dict[str, Any] = {"size": {"height": 384, "width": 384}}
ONEVISION_FRAMES |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
SMOLVLM_FRAMES: dict[str, Any] = {"size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364}}
SMOLVLM_FRAMES |= {"resample": 1}


def family_frames(family: str, image: dict, video: dict | None = None) -> dict:
    """Options of `VideoLLMMoDVideoProcessor` with which frames become what a family makes of them.

    Args:
        family (`str`): the `model_type` of its configuration.
        image, video (`dict`): the stored options of its image processor, and of its video processor if it has one.

    Raises:
        `ValueError`: for an option that no frame can follow.
    """
    is_smolvlm = family in ("smolvlm", "idefics3")
    frames = image if family not in ("llava_onevision", "smolvlm") or not video else video
    if family == "llava" and image.get("do_pad"):
        raise ValueError("an image processor that pads images to squares of the mean colour is not supported")
    defaults = {"llava": CLIP_FRAMES, "llava_onevision": ONEVISION_FRAMES}.get(family, SMOLVLM_FRAMES)
    names: tuple[str, ...] = (
        "size",
        "resample",
        "rescale_factor",
        "image_mean",
        "image_std",
        "do_center_crop",
        "crop_size",
    )
    names += ("do_rescale", "do_normalize", "max_image_size", "do_image_splitting")
    chosen = {name: frames[name] for name in names if frames.get(name) is not None}
    options = {**defaults, **chosen, "do_pad": False, "as_pictures": True}
    if "height" in options["size"]:
        options["do_center_crop"] = chosen.get("do_center_crop", False)
    if not options.get("do_center_crop"):
        options.pop("crop_size", None)
    elif isinstance(options["crop_size"], int):
        options["crop_size"] = {"height": options["crop_size"], "width": options["crop_size"]}
    if not is_smolvlm:
        return options
    options["do_image_splitting"] = image.get("do_image_splitting", True)
    options["max_image_size"] = image.get("max_image_size") or options["max_image_size"]
    sampling = (video or {}).get("video_sampling") or image.get("video_sampling") or {}
    options["size"] = sampling.get("video_size") or options["size"]
    options["image_size"] = image.get("size") or SMOLVLM_FRAMES["size"]
    if fps := sampling.get("fps") or (video or {}).get("fps"):
        options["fps"] = float(fps)
    return options


def after_reply(text: str, reply_end: str) -> str:
    """What opens the next turn, of the text between a reply and the contents of that turn."""
    if not text.startswith(reply_end):
        raise ValueError(
            f"the chat template cannot be cut: {reply_end!r} ends the last reply, but {text!r} stands after others"
        )
    return text.removeprefix(reply_end)


__all__ = [
    "FAMILIES",
    "MAX_TEXT",
    "ChatTemplate",
    "EncodedConversation",
    "Medium",
    "Pieces",
    "Text",
    "Turn",
    "added_tokens",
    "check_continuation",
    "check_text",
    "clean_text",
    "family_frames",
    "family_options",
    "pieces_of",
    "read_conversation",
    "read_conversations",
]
