"""The pieces of a sequence: what stands between frames and texts, its token ids, and the ids of whole conversations.

There are two grammars. In this package's own sequence pieces are tokenised one by one, and an instruction stands where
it was given. In that of another family (`Pieces.one_turn`) the pieces are those of its chat template, tokenised as in
its own prompts, and a user turn holds frames and then text.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

from .containers import IGNORE_INDEX, clock, in_words

# runs of white space that contain a line break of any kind
LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def clean_text(text: str) -> str:
    """Text as it is tokenised: stripped, with a space in place of each run of white space that has a line break.

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


class SequencePieces:
    """
    The part of `VideoLLMMoDProcessor` that makes token ids. A session asks it for every id that it feeds, except for
    what the model says.

    Attributes:
        sequence (`Pieces`).
        frame_ids, stream_start_ids, stream_end_ids, user_header_ids, assistant_header_ids, system_end_ids
            (`list[int]`): the pieces; in this package's own sequence `<v>*n`, `"\\n["`, `"]"`, `"\\nUser:"`, ...
        start_stream_ids, between_frames_ids, reply_end_ids (`list[int]`): before the first frame, between two frames,
            and after a reply.
        reply_stop_id (`int`): what the model says to end a reply.
        frame_separator_token_id (`int`, *optional*): the token between frames that means silence; None for a family,
            which has none.
    """

    tokenizer: Any
    piece_tokenizer: Any
    pieces: dict
    video_token: str
    video_token_id: int
    image_slot: str
    num_frame_tokens: int
    frame_ids: list[int]
    frame_separator: str
    stream_start: str
    stream_end: str
    default_query: str
    frame_separator_token_id: int | None
    reply_stop_id: int
    _template: Any
    _times_of: Callable[[dict, float | None], list[float]]

    def _set_own_pieces(self) -> None:
        """The ids of this package's own sequence, whose pieces are tokenised one by one."""
        pieces = Pieces(
            between_frames=self.frame_separator, stream_start="\n" + self.stream_start, stream_end=self.stream_end
        )
        self.sequence, self.reply_end_ids = pieces, [self.reply_stop_id]
        separator_ids = self._encode_piece("frame_separator", pieces.between_frames)
        self.frame_separator_token_id = separator_ids[0]
        self.stream_start_ids = self._encode_piece("stream_start", pieces.stream_start)
        self.stream_end_ids = self._encode_piece("stream_end", pieces.stream_end)
        self.user_header_ids = self._encode_piece("user header", pieces.user_start)
        self.assistant_header_ids = self._encode_piece("assistant header", pieces.reply_start)
        self.system_end_ids = self._encode_piece("system end", pieces.system_end or "")
        self.start_stream_ids, self.between_frames_ids = self.stream_start_ids, separator_ids
        if len(separator_ids) != 1:
            raise ValueError(
                f"`frame_separator` {self.frame_separator!r} must be one token, got the ids {separator_ids}"
            )
        if self.frame_separator_token_id in (self.video_token_id, self.stream_end_ids[0]):
            raise ValueError(
                f"`frame_separator` {self.frame_separator!r}, `stream_end` {self.stream_end!r} and `video_token` must "
                "begin with different tokens"
            )

    def _set_family_pieces(self, special_ids: dict[str, int]) -> None:
        """The ids of a family's sequence, which are those of its own prompts."""
        self.sequence = pieces = Pieces(**self.pieces)
        reply_end = pieces.reply_end or ""
        texts = "".join(text for text in asdict(pieces).values() if isinstance(text, str))
        structure = {i for name, (i, _) in added_tokens(self.tokenizer).items() if name in texts}
        self.segments = SegmentTokenizer(self.tokenizer, {*special_ids.values(), *structure, self.video_token_id})
        self.frame_separator_token_id = None
        self._after_reply = "special" if self.segments.ends_special(reply_end) else "text"
        self.start_stream_ids = self.stream_start_ids = self._ids(pieces.stream_start, after=self._after_reply)
        self.between_frames_ids, self.stream_end_ids = self._ids(pieces.between_frames), self._ids(pieces.stream_end)
        self.user_header_ids = self._ids(pieces.user_start, after=self._after_reply)
        self.assistant_header_ids = self._ids(pieces.reply_start, after="text")
        self.system_end_ids = self._ids(pieces.system_end or "", after="text")
        self.reply_end_ids = self._ids(reply_end, after="text")
        if self.reply_end_ids and self.reply_end_ids[0] in special_ids.values():
            self.reply_stop_id = self.reply_end_ids[0]

    def medium_text(self, medium) -> str:
        """The text of a loaded video or image (`Medium`) in a prompt, with the placeholders of all vision tokens."""
        pieces, frame = self.sequence, self.video_token * self.num_frame_tokens
        if medium.kind == "video":
            frames = [
                pieces.frame_start.format(time=clock(seconds)) + frame + pieces.frame_end for seconds in medium.times
            ]
            length = timedelta(seconds=int(medium.duration))
            start = pieces.video_start.format(count=in_words(len(frames)), duration=length)
            return start + pieces.between_frames.join(frames) + pieces.video_end
        if medium.size is not None:
            return self.image_slot * medium.num_tokens
        (rows, columns), tiles = medium.grid, ""
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                tiles += pieces.tile_start.format(row=row, column=column) + frame
            tiles += "\n"
        whole = pieces.image_start + frame + pieces.image_end
        return tiles + pieces.tiles_end + whole if rows else whole

    def _encode_turns(self, turns: list[dict], add_generation_prompt: bool, continue_final_message: bool):
        """`encode_conversation` of messages that were read, and whose videos and images were loaded."""
        options = (add_generation_prompt, continue_final_message)
        if self.sequence.one_turn and all(turn["role"] != "stream" for turn in turns):
            return self._encode_prompt(turns, *options)
        encoded = EncodedConversation([], [], [], [])

        def append(ids: list[int], learn: bool = False, reply: bool = False) -> None:
            encoded.input_ids.extend(ids)
            encoded.labels.extend(ids if learn else [IGNORE_INDEX] * len(ids))
            encoded.assistant_mask.extend([int(reply)] * len(ids))

        encode = self._append_shared_turns if self.sequence.one_turn else self._append_turns
        encode(append, encoded, turns, *options)
        return encoded

    def _append_turns(self, append: Callable, encoded: EncodedConversation, turns, prompt: bool, proceed: bool):
        """Append the tokens of turns in this package's own sequence."""
        append(self.start_ids())
        for turn, next_turn in zip(turns, [*turns[1:], None], strict=True):
            role, learn, start, frames = turn["role"], turn["learn"], len(encoded.input_ids), range(0)
            if role == "system":
                append(self.encode_text(turn["content"], prefix="") + self.system_end_ids)
            elif role == "user":
                append(self.question_ids(turn["content"], in_stream=False))
            elif role == "assistant":
                append(self.reply_start_ids(in_stream=False), learn)
                append(self.encode_text(turn["content"]), learn, reply=True)
                if next_turn is not None or not proceed:
                    append(self.reply_end_ids, learn, reply=True)
            else:
                frames = self._append_stream(append, turn, next_turn, start, prompt)
            encoded.turns.append(Turn(role, start, len(encoded.input_ids), frames))
        if prompt:
            append(self.reply_start_ids(in_stream=False))

    def _append_shared_turns(self, append: Callable, encoded: EncodedConversation, turns, prompt: bool, proceed: bool):
        """Append the tokens of turns with streams in a family's sequence, as a session feeds them: a user turn before
        a reply is a question, any other an instruction."""
        system = turns[0]["content"] if turns[0]["role"] == "system" else None
        append(self.start_ids(system))
        in_stream, query, asked, last = False, None, False, None
        for turn, next_turn in zip(turns, [*turns[1:], None], strict=True):
            role, learn, start = turn["role"], turn["learn"], len(encoded.input_ids)
            frames: list[int] = []
            if role == "system":
                start = 0
            elif role == "user":
                asked = prompt if next_turn is None else next_turn["role"] == "assistant"
                if asked:
                    append(self.question_ids(turn["content"], in_stream))
                    in_stream = False
                else:
                    query = turn["content"]
            elif role == "assistant":
                append(self._speak_ids(in_stream, asked, query))
                append(self.encode_text(turn["content"], self.sequence.reply_prefix), learn, reply=True)
                if next_turn is not None or not proceed:
                    append(self.reply_end_ids[:1], learn, reply=True)
                    append(self.reply_end_ids[1:], reply=True)
                in_stream = asked = False
            else:
                check_has_frames(turn)
                for time in self._times_of(turn, last):
                    append(self.between_frames_ids if in_stream else self.start_stream_ids)
                    frame = self.frame_ids_at(time)
                    frames.append(len(encoded.input_ids) + frame.index(self.video_token_id))
                    append(frame)
                    in_stream, last = True, time
            encoded.turns.append(Turn(role, start, len(encoded.input_ids), tuple(frames)))
        if prompt:
            append(self._speak_ids(in_stream, asked, query))

    def _speak_ids(self, in_stream: bool, asked: bool, query: str | None) -> list[int]:
        """From the end of the last frame or question to where the reply begins. Without either a user turn is made."""
        if in_stream or asked:
            return self.reply_start_ids(in_stream, query)
        query = self.default_query if query is None else query
        return self.question_ids(query, in_stream=False) + self.reply_start_ids(in_stream=False)

    def _encode_prompt(self, turns: list[dict], prompt: bool, proceed: bool) -> EncodedConversation:
        """Tokens of messages without streams, as the family's template renders them. No turns are reported."""
        parts = self._template.render(turns, prompt)[: -1 if proceed else None]
        replies = {
            id(item): turn["learn"] for turn in turns if turn["role"] == "assistant" for item in turn["content"]
        }
        learns = [replies.get(id(part)) for part in parts]  # None for what is no reply
        texts = [self.medium_text(part) if isinstance(part, Medium) else part for part in parts]
        opening = self._opening_ids(texts[0])
        ids, owners = self.segments(texts, after="start")
        encoded = EncodedConversation(opening + ids, [IGNORE_INDEX] * len(opening), [0] * len(opening), [])
        before = 0
        for token_id, owner in zip(ids, owners, strict=True):
            learn = learns[owner]
            if owner > before and token_id == self.reply_stop_id:
                learn = learns[owner - 1]  # the end of the reply before it
            encoded.labels.append(token_id if learn else IGNORE_INDEX)
            encoded.assistant_mask.append(int(learn is not None))
            before = owner
        return encoded

    def _append_stream(
        self, append: Callable, turn: dict, next_turn: dict | None, start: int, add_generation_prompt: bool
    ) -> range:
        """Append the tokens of a stream that begins at token `start`; returns where its frames begin."""
        check_has_frames(turn)
        num_frames, learn = turn["num_frames"], turn["learn"]
        num_learned = num_frames * learn if isinstance(learn, bool) else learn
        append(self.stream_start_ids)
        for index in range(1, num_frames):
            append(self.frame_ids)
            append([self.frame_separator_token_id], index <= num_learned)
        append(self.frame_ids)
        if next_turn is not None or add_generation_prompt:
            speaks = next_turn is not None and next_turn["role"] == "assistant"
            append(self.stream_end_ids[:1], speaks and num_frames <= num_learned)
            append(self.stream_end_ids[1:])
        first, step = start + len(self.stream_start_ids), len(self.frame_ids) + 1
        return range(first, first + num_frames * step, step)

    def _encode_piece(self, name: str, text: str) -> list[int]:
        ids = self.piece_tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids or self.tokenizer.unk_token_id in ids:
            raise ValueError(f"`{name}` {text!r} must be made of known tokens, got the ids {ids}")
        return ids

    def _ids(self, *parts: str, after: str = "special") -> list[int]:
        """Token ids of structure, and `Text` in it, of a family."""
        return self.segments(parts, after)[0]

    def encode_text(self, text: str, prefix: str = " ") -> list[int]:
        """Token ids of a message's text after `prefix`. Special tokens in it are tokenised as text."""
        if self.sequence.one_turn:
            return self._ids(Text(prefix + text), after="text")

        def encode(part: str) -> list[int]:
            return self.piece_tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]

        text = prefix + clean_text(text)
        ids = encode(text)
        # A tokenizer may merge ordinary characters into a special token, but not when it gets one at a time.
        structure = {self.video_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        if not structure.isdisjoint(ids):
            ids = [token_id for character in text for token_id in encode(character) if token_id not in structure]
        return ids

    def start_ids(self, system_prompt: str | None = None) -> list[int]:
        """Token ids at the beginning of a sequence."""
        bos = self.tokenizer.bos_token_id
        ids, pieces = [] if bos is None else [bos], self.sequence
        if pieces.one_turn:
            if system_prompt is None:
                return self._opening_ids(pieces.start) + self._ids(pieces.start, after="start")
            if pieces.system_start is None:
                raise ValueError("`system_prompt` cannot be given: the chat template of this model has none")
            parts = (pieces.system_start, Text(system_prompt), pieces.system_end or "")
            return self._opening_ids(parts[0]) + self._ids(*parts, after="start")
        if system_prompt is None:
            return ids
        return ids + self.encode_text(system_prompt, prefix="") + self.system_end_ids

    def _opening_ids(self, text: str) -> list[int]:
        """The special tokens that the tokenizer adds before a family's prompt, which begins with this text."""
        bos = self.tokenizer.bos_token
        if bos is not None and text.startswith(bos):
            return []
        plain, whole = (self.tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
        return whole[: whole.index(plain[0])]

    def frame_ids_at(self, seconds: float | None = None) -> list[int]:
        """Token ids of a frame at this time, with what stands around it."""
        if not self.sequence.one_turn:
            return list(self.frame_ids)
        start = self.sequence.frame_start.format(time=clock(seconds or 0.0))
        return self._ids(start, after="text") + self.frame_ids + self._ids(self.sequence.frame_end)

    @property
    def frame_text_tokens(self) -> int:
        """The most tokens of text around a frame."""
        late = 100 * 60 * 60.0  # whose clock has more digits than that of other streams
        return len(self.between_frames_ids) + len(self.frame_ids_at(late)) - self.num_frame_tokens

    def instruction_ids(self, text: str, in_stream: bool) -> list[int]:
        """Token ids of a user turn that needs no reply now. With `Pieces.one_turn` there are none: its text is that of
        the turns after which the model speaks."""
        return [] if self.sequence.one_turn else self.question_ids(text, in_stream)

    def question_ids(self, text: str, in_stream: bool) -> list[int]:
        """Token ids of a user turn up to the end of its text. in_stream: frames directly before it are not closed."""
        if not self.sequence.one_turn:
            return (self.stream_end_ids if in_stream else []) + self.user_header_ids + self.encode_text(text)
        if in_stream:
            return self._ids(self.sequence.stream_end, Text(text))
        return self._ids(self.sequence.user_start, Text(text), after=self._after_reply)

    def reply_start_ids(self, in_stream: bool, query: str | None = None) -> list[int]:
        """Token ids from the end of the last frame (`in_stream`), or of the last text, to where the reply begins.
        query: what the model narrates after, `default_query` if omitted; without `Pieces.one_turn` it stands in the
        sequence already."""
        if not self.sequence.one_turn:
            return (self.stream_end_ids if in_stream else []) + self.assistant_header_ids
        if not in_stream:
            return list(self.assistant_header_ids)
        query = self.default_query if query is None else query
        return self._ids(self.sequence.stream_end, Text(query), self.sequence.reply_start)


def check_has_frames(turn: dict) -> None:
    if "num_frames" not in turn:
        raise ValueError(f"`{turn['name']}` must have `num_frames`; `apply_chat_template` takes videos")


class SegmentTokenizer:
    """
    Tokenises structure and contents together, as the whole text would be, except that special tokens in contents are
    text. Between two special tokens of the structure the text is tokenised at once, so that words merge as they do in
    the family's own prompts.

    Args:
        tokenizer: a fast one.
        structure (`Iterable[int]`): ids that no content may hold.
    """

    def __init__(self, tokenizer, structure: Iterable[int]):
        self.at_start, self.inside = tokenizer, tokenizer_of_pieces(tokenizer, everywhere=False)
        self.after_text = tokenizer_of_pieces(tokenizer)
        self.structure = set(structure)
        self.added = added_tokens(tokenizer)
        names = sorted(self.added, key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, names))})" if names else r"(?!)()")

    def __call__(self, parts: Sequence[str], after: str = "special") -> tuple[list[int], list[int]]:
        """Token ids, and for each of them the index of the part that it ends in.

        Args:
            parts (`list[str]`): structure, and `Text` in it.
            after (`str`): what they follow: `"start"` of the sequence, `"text"` or a `"special"` token.
        """
        ids: list[int] = []
        owners: list[int] = []
        segment: list[tuple[str, int]] = []
        tokenizers = {"start": self.at_start, "text": self.after_text, "special": self.inside}
        tokenizer, strips = tokenizers[after], False

        def tokenise() -> None:
            nonlocal tokenizer
            if text := "".join(piece for piece, _ in segment):
                owner = [index for piece, index in segment for _ in piece]
                own, ends = self._encode(tokenizer, text)
                ids.extend(own)
                owners.extend(owner[max(end - 1, 0)] for end in ends)
            segment.clear()
            tokenizer = self.inside

        for index, part in enumerate(parts):
            for number, piece in enumerate([part] if isinstance(part, Text) else self.pattern.split(part)):
                if number % 2 == 0:
                    segment.append((piece.lstrip() if strips and not segment else piece, index))
                    continue
                token_id, token = self.added[piece]
                if token.lstrip and segment:
                    segment[-1] = (segment[-1][0].rstrip(), segment[-1][1])
                tokenise()
                strips = token.rstrip
                ids.append(token_id)
                owners.append(index)
        tokenise()
        return ids, owners

    def ends_special(self, text: str) -> bool:
        """Whether structure ends with a special token."""
        return any(text.endswith(token) for token in self.added)

    def _encode(self, tokenizer, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text without structure, and where each ends in it."""

        def encode(tokenizer, text: str) -> tuple[list[int], list[int]]:
            options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
            encoded = tokenizer(text, **options)
            return encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]

        ids, ends = encode(tokenizer, text)
        if self.structure.isdisjoint(ids):
            return ids, ends
        # A tokenizer may merge ordinary characters into a special token, but not when it gets one at a time.
        found = [(i, at + 1) for at, x in enumerate(text) for i in encode(self.after_text, x)[0]]
        found = [(i, end) for i, end in found if i not in self.structure]
        return [i for i, _ in found], [end for _, end in found]


def added_tokens(tokenizer) -> dict[str, tuple[int, Any]]:
    """Id and properties of each token that the tokenizer does not split, such as special ones, by its text."""
    return {str(token): (i, token) for i, token in tokenizer.added_tokens_decoder.items()}


def tokenizer_of_pieces(tokenizer, everywhere: bool = True):
    """The tokenizer, or a copy that does not add a space before a text, as those of Llama 2 and TinyLlama do; without
    `everywhere` it does not add one only where the tokenizer adds one at the start of a sequence alone.

    The pieces of a stream are tokenised one by one. With such a space each would begin with a token that the language
    model has never seen there, and a separator could be two tokens.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    without = _without_space if everywhere else _without_first_space
    normalizer, pre_tokenizer = without(backend["normalizer"]), without(backend["pre_tokenizer"])
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


def _without_first_space(step: dict | None) -> dict | None:
    """As `_without_space`, of the part that adds a space at the start of a sequence alone."""
    if step is None:
        return None
    if step["type"] == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        return step | {name: [_without_first_space(x) for x in step[name]]}
    return step | {"prepend_scheme": "never"} if step.get("prepend_scheme") == "first" else step


__all__ = [
    "EncodedConversation",
    "Medium",
    "Pieces",
    "SegmentTokenizer",
    "SequencePieces",
    "Text",
    "Turn",
    "added_tokens",
    "clean_text",
    "tokenizer_of_pieces",
]
