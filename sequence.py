"""The pieces of a sequence: what stands between frames and texts, its token ids, and the ids of whole conversations.

There are two grammars. In this package's own sequence pieces are tokenised one by one, and an instruction stands where
it was given. In that of another family (`Pieces.one_turn`) the pieces are those of its chat template, tokenised as in
its own prompts, and a user turn holds frames and then text.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from .containers import IGNORE_INDEX, clock, in_words
from .conversation import EncodedConversation, Medium, Pieces, Text, Turn, added_tokens, clean_text

LATE = 100 * 60 * 60.0  # seconds; the clock has more digits than in other streams
NO_SILENCE = (
    "no token can mean silence in the prompts of this model, whose frames follow each other directly; build it with a "
    "token between frames: `from_vlm(..., frame_separator=',')`, `videollm-mod build --frame-separator ,`"
)
DEFAULT_THRESHOLD = 0.725  # a trained model speaks when P(silence) is below this, as in VideoLLM-online


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
        frame_separator_token_id (`int`, *optional*): the token after a frame that means silence: the separator, or in
            a family's sequence the token that opens the next frame. None if that is the frame itself.
        decision_offset (`int`): tokens of text from the end of a frame to the decision whether to speak.
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
    decision_offset: int = 0
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
        self._after_reply = "special" if self.segments.ends_special(reply_end) else "text"
        self.start_stream_ids = self.stream_start_ids = self._ids(pieces.stream_start, after=self._after_reply)
        separator_ids = self._ids(pieces.frame_separator, after="text")
        if len(separator_ids) > 1:
            raise ValueError(
                f"`frame_separator` {pieces.frame_separator!r} must be one token of the vocabulary, got the ids "
                f"{separator_ids}"
            )
        self.between_frames_ids = separator_ids + self._ids(pieces.between_frames)
        self.stream_end_ids = self._ids(pieces.stream_end)
        self.user_header_ids = self._ids(pieces.user_start, after=self._after_reply)
        self.assistant_header_ids = self._ids(pieces.reply_start, after="text")
        self.system_end_ids = self._ids(pieces.system_end or "", after="text")
        self.reply_end_ids = self._ids(reply_end, after="text")
        if self.reply_end_ids and self.reply_end_ids[0] in special_ids.values():
            self.reply_stop_id = self.reply_end_ids[0]
        self._set_silence()

    def _set_silence(self) -> None:
        """Find the token that means silence in a family's sequence: the first one of the next frame that speech does
        not have. What both begin with, such as a line break, is read first, as the end of a frame."""
        self.frame_separator_token_id, self._shared_ids, self._num_moved = None, [], 0
        self._stream_end, self._after_frame = self.sequence.stream_end, "special"
        frames = [self.between_frames_ids + self.frame_ids_at(time) for time in (0.0, LATE)]
        speech = self.reply_start_ids(True)
        count = next((n for n, ids in enumerate(zip(*frames, speech, strict=False)) if len(set(ids)) > 1), len(speech))
        shared, (silence, late) = speech[:count], (ids[count] for ids in frames)
        cut = next((n for n in range(len(self._stream_end) + 1) if self._ids(self._stream_end[:n]) == shared), None)
        if cut is None or silence == self.video_token_id or silence != late:
            return
        if cut:
            self._stream_end, self._after_frame = self._stream_end[cut:], "text"
            if shared + self.reply_start_ids(True) != speech:
                self._stream_end, self._after_frame = self.sequence.stream_end, "special"
                return
        between = min(len(shared), len(self.between_frames_ids))
        self._shared_ids, self._num_moved = shared, len(shared) - between
        self.start_stream_ids = self.start_stream_ids + shared[between:]
        self.between_frames_ids = self.between_frames_ids[between:]
        self.frame_separator_token_id = silence
        self.decision_offset = len(self._ids(self.sequence.frame_end)) + len(shared)

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
        learns = self.frame_separator_token_id is not None
        decides = False  # whether to speak after the last frame is learned
        ends = False  # so is the end of the last reply, where the template writes none
        for turn, next_turn in zip(turns, [*turns[1:], None], strict=True):
            role, learn, start, owed = turn["role"], turn["learn"], len(encoded.input_ids), ends
            frames: list[int] = []
            if role == "system":
                start = 0
            elif role == "user":
                decides = False
                asked = prompt if next_turn is None else next_turn["role"] == "assistant"
                if asked:
                    append(self.question_ids(turn["content"], in_stream))
                    in_stream = False
                else:
                    query = turn["content"]
            elif role == "assistant":
                opening = self._speak_ids(in_stream, asked, query)
                append(opening[:1], decides)
                append(opening[1:])
                append(self.encode_text(turn["content"], self.sequence.reply_prefix), learn, reply=True)
                if next_turn is not None or not proceed:
                    append(self.reply_end_ids[:1], learn, reply=True)
                    append(self.reply_end_ids[1:], reply=True)
                    ends = bool(learn) and not self.reply_end_ids
                in_stream = asked = decides = False
            else:
                check_has_frames(turn)
                num_learned = (turn["num_frames"] * learn if isinstance(learn, bool) else learn) * learns
                for index, time in enumerate(self._times_of(turn, last)):
                    ids = self.between_frames_ids if in_stream else self.start_stream_ids
                    ids = ids + self.frame_ids_at(time)
                    frames.append(len(encoded.input_ids) + ids.index(self.video_token_id))
                    append(ids[:1], 0 < index <= num_learned)
                    append(ids[1:])
                    in_stream, last = True, time
                decides = turn["num_frames"] <= num_learned
            if owed and len(encoded.input_ids) > start:
                encoded.labels[start], ends = self.reply_stop_id, ends and role == "assistant"
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
        start_ids, end_ids = self._ids(start, after="text"), self._ids(self.sequence.frame_end)
        return start_ids[self._num_moved :] + self.frame_ids + end_ids + self._shared_ids

    def stream_ids(
        self, times: Iterable[float], in_stream: bool, pending: Sequence[int] = ()
    ) -> tuple[list[int], list[int], list[int] | None]:
        """Token ids of pending text and of frames at these times, with what stands between them.

        Args:
            times (`list[float]`): in seconds.
            in_stream (`bool`): frames stand directly before these.
            pending (`list[int]`): token ids of text before the frames.

        Returns:
            `(ids, ends, owners)`: the ids; how many of them come before the end of each frame; and which of the frames
            each token belongs to, -1 for none. The last is None in this package's own sequence, where only separators
            stand around frames.
        """
        ids, ends = [*pending, *([] if in_stream else self.start_stream_ids)], []
        owners, between = [-1] * len(ids), self.between_frames_ids if in_stream else []
        for index, time in enumerate(times):
            ids += between + self.frame_ids_at(time)
            owners += [index] * (len(ids) - len(owners))
            ends.append(len(ids))
            between = self.between_frames_ids
        return ids, ends, owners if self.sequence.one_turn else None

    @property
    def frame_text_tokens(self) -> int:
        """The most tokens of text around a frame."""
        return len(self.between_frames_ids) + len(self.frame_ids_at(LATE)) - self.num_frame_tokens

    def instruction_ids(self, text: str, in_stream: bool) -> list[int]:
        """Token ids of a user turn that needs no reply now. With `Pieces.one_turn` there are none: its text is that of
        the turns after which the model speaks."""
        return [] if self.sequence.one_turn else self.question_ids(text, in_stream)

    def question_ids(self, text: str, in_stream: bool) -> list[int]:
        """Token ids of a user turn up to the end of its text. in_stream: frames directly before it are not closed."""
        if not self.sequence.one_turn:
            return (self.stream_end_ids if in_stream else []) + self.user_header_ids + self.encode_text(text)
        if in_stream:
            return self._ids(self._stream_end, Text(text), after=self._after_frame)
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
        return self._ids(self._stream_end, Text(query), self.sequence.reply_start, after=self._after_frame)


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
    "DEFAULT_THRESHOLD",
    "NO_SILENCE",
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
