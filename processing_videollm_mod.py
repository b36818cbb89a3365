"""The sequence that the model reads: frames and text interleaved, with labels.

Shapes: `F` frames, `H` and `W` pixels, `n` vision tokens per frame, `B` conversations, `T` tokens.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature

from .compat import ProcessorWithoutTorchvision
from .configuration_videollm_mod import IGNORE_INDEX, MAX_FRAME_TOKENS
from .containers import check_count, shown
from .conversation import (
    EncodedConversation,
    Pieces,
    Turn,
    check_continuation,
    clean_text,
    read_conversation,
    read_conversations,
    tokenizer_of_pieces,
)
from .generation import StreamInputs
from .video_processing_videollm_mod import LOADING_OPTIONS, VideoLLMMoDVideoProcessor, flatten_videos

NEEDED = (
    "tokenizer",
    "video_processor",
    "num_frame_tokens",
    "video_token_id",
    "frame_separator_token_id",
    "frame_ids_at",
    "start_stream_ids",
    "encode_text",
)


def check_pair(model, processor, name: str = "`processor`") -> None:
    """Raise `ValueError` if the processor is not one for streams, or belongs to another model, naming all differences.

    It checks attributes, since the Hub's loader may have made the classes of both anew.
    """
    if missing := [needed for needed in NEEDED if not hasattr(processor, needed)]:
        raise ValueError(
            f"{name} must be a VideoLLMMoDProcessor, such as `AutoProcessor.from_pretrained` loads from the model's "
            f"folder, got {type(processor).__name__}, which has no `{missing[0]}`"
        )
    differing = [f"its {what} is {own}, the model's {wanted}" for what, own, wanted in differences(model, processor)]
    if differing:
        raise ValueError(f"{name} belongs to another model: {'; '.join(differing)}")


def differences(model, processor) -> list[tuple[str, object, object]]:
    """`(what, the processor's, the model's)` for everything in which they differ."""
    config, video_processor, tokenizer = model.config, processor.video_processor, processor.tokenizer
    text, side = config.text_config, config.vision_config.image_size
    pairs = [
        ("id of the video token", processor.video_token_id, config.video_token_id),
        ("id of the frame separator", processor.frame_separator_token_id, config.frame_separator_token_id),
        ("number of tokens per frame", processor.num_frame_tokens, config.num_frame_tokens),
    ]
    if video_processor.do_resize:
        size = [video_processor.size.get(name) for name in ("height", "width")]
        pairs.append(("frame size", size, [side, side]))
    found = [pair for pair in pairs if pair[1] != pair[2]]
    if len(tokenizer) > text.vocab_size:
        found.append(("vocabulary size", len(tokenizer), text.vocab_size))
    ends = {own for source in (text, model.generation_config) for own in as_list(source.eos_token_id)}
    if ends and tokenizer.eos_token_id not in ends:
        found.append(("id of the end of sequence", tokenizer.eos_token_id, " or ".join(map(str, sorted(ends)))))
    return found


def as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


TEMPLATE_CONSTANTS = ("num_frame_tokens", "video_token", "frame_separator", "stream_start", "stream_end")


class VideoLLMMoDProcessor(ProcessorWithoutTorchvision):
    r"""
    Interleaves frames and text into one sequence, from pieces that are tokenised one by one:

        <bos>SYSTEM\n
        \nUser: QUESTION
        \n[<v>*n,<v>*n,<v>*n]
        \nAssistant: REPLY<eos>

    The text of a message cannot imitate this structure: special tokens in it are tokenised as text, and line breaks
    become spaces.

    Args:
        video_processor (`VideoLLMMoDVideoProcessor`).
        tokenizer: a fast tokenizer with an end-of-sequence token, which is also its padding token if it has none. It
            pads on the left.
        chat_template (`str`, *optional*): renders the same sequence as text.
        num_frame_tokens (`int`): vision tokens per frame, `n`.
        video_token (`str`): the special token that stands for one vision token.
        frame_separator (`str`): one token between frames; predicting it means to stay silent.
        stream_start, stream_end (`str`): around a stream; predicting the end's first token means to speak.

    Attributes:
        video_token_id, frame_separator_token_id (`int`): as in `VideoLLMMoDConfig`.
        frame_ids, stream_start_ids, stream_end_ids, user_header_ids, assistant_header_ids, system_end_ids
            (`list[int]`): the other pieces: `<v>*n`, `"\n["`, `"]"`, `"\nUser:"`, `"\nAssistant:"`, `"\n"`.
        start_stream_ids, between_frames_ids, reply_end_ids (`list[int]`): before the first frame, between two frames,
            and after a reply; the first of the last is what the model says to end it.

    Raises:
        `ValueError`: for a tokenizer and pieces that do not fit together, naming what is missing.
    """

    own_video_processor = VideoLLMMoDVideoProcessor

    def __init__(
        self,
        video_processor=None,
        tokenizer=None,
        chat_template=None,
        num_frame_tokens=10,
        video_token="<v>",
        frame_separator=",",
        stream_start="[",
        stream_end="]",
    ):
        # The template lies beside this file, unless this is remote code; then the repository's template is passed.
        template_file = Path(__file__).with_name("chat_template.jinja")
        if chat_template is None and template_file.exists():
            chat_template = template_file.read_text(encoding="utf-8")
        super().__init__(video_processor, tokenizer, chat_template=chat_template)
        check_count("`num_frame_tokens`", num_frame_tokens)
        if num_frame_tokens > MAX_FRAME_TOKENS:
            raise ValueError(f"`num_frame_tokens` must be at most {MAX_FRAME_TOKENS}, got {num_frame_tokens}")
        if tokenizer.eos_token_id is None:
            raise ValueError("`tokenizer` has no end-of-sequence token, without which no reply ends")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        special_ids = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if video_token not in special_ids:
            raise ValueError(
                f"`video_token` {video_token!r} is not a special token of the tokenizer; add it with "
                f"`tokenizer.add_special_tokens({{'additional_special_tokens': [{video_token!r}]}})`"
            )
        self.num_frame_tokens = num_frame_tokens
        self.video_token = video_token
        self.frame_separator = frame_separator
        self.stream_start = stream_start
        self.stream_end = stream_end

        self.piece_tokenizer = tokenizer_of_pieces(tokenizer)
        self.video_token_id = special_ids[video_token]
        self.frame_ids = [self.video_token_id] * num_frame_tokens
        pieces = Pieces(between_frames=frame_separator, stream_start="\n" + stream_start, stream_end=stream_end)
        separator_ids = self._encode_piece("frame_separator", frame_separator)
        self.frame_separator_token_id = separator_ids[0]
        self.stream_start_ids = self._encode_piece("stream_start", pieces.stream_start)
        self.stream_end_ids = self._encode_piece("stream_end", pieces.stream_end)
        self.user_header_ids = self._encode_piece("user header", pieces.user_start)
        self.assistant_header_ids = self._encode_piece("assistant header", pieces.reply_start)
        self.system_end_ids = self._encode_piece("system end", pieces.system_end)
        self.sequence, self.start_stream_ids, self.between_frames_ids = pieces, self.stream_start_ids, separator_ids
        self.reply_end_ids = [tokenizer.eos_token_id]
        if len(separator_ids) != 1:
            raise ValueError(f"`frame_separator` {frame_separator!r} must be one token, got the ids {separator_ids}")
        if self.frame_separator_token_id in (self.video_token_id, self.stream_end_ids[0]):
            raise ValueError(
                f"`frame_separator` {frame_separator!r}, `stream_end` {stream_end!r} and `video_token` must begin "
                "with different tokens"
            )

    def _encode_piece(self, name: str, text: str) -> list[int]:
        ids = self.piece_tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids or self.tokenizer.unk_token_id in ids:
            raise ValueError(f"`{name}` {text!r} must be made of known tokens, got the ids {ids}")
        return ids

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        # transformers leaves `auto_map` on the object; a processor that is loaded from the file has none
        self.__dict__.pop("auto_map", None)
        return files

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]

    @property
    def model_input_names(self) -> list[str]:
        """Tokens first, since the Trainer takes the length of an example from the first name."""
        return sorted(super().model_input_names, key=lambda name: name != "input_ids")

    def encode_text(self, text: str, prefix: str = " ") -> list[int]:
        """Token ids of a message's text after `prefix`. Special tokens in it are tokenised as text."""

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
        ids = [] if bos is None else [bos]
        if system_prompt is None:
            return ids
        return ids + self.encode_text(system_prompt, prefix="") + self.system_end_ids

    def frame_ids_at(self, seconds: float | None = None) -> list[int]:
        """Token ids of a frame at this time, with what stands around it."""
        return list(self.frame_ids)

    def instruction_ids(self, text: str, in_stream: bool) -> list[int]:
        """Token ids of a user turn that needs no reply now."""
        return self.question_ids(text, in_stream)

    def question_ids(self, text: str, in_stream: bool) -> list[int]:
        """Token ids of a user turn up to the end of its text. in_stream: frames directly before it are not closed."""
        return (self.stream_end_ids if in_stream else []) + self.user_header_ids + self.encode_text(text)

    def reply_start_ids(self, in_stream: bool, query: str | None = None) -> list[int]:
        """Token ids from the end of the last frame (`in_stream`), or of the last text, to where the reply begins.
        query: what the model narrates after; it stands in the sequence already."""
        return (self.stream_end_ids if in_stream else []) + self.assistant_header_ids

    def encode_conversation(
        self, conversation: list[dict], add_generation_prompt: bool = False, continue_final_message: bool = False
    ) -> EncodedConversation:
        """Tokens of a conversation whose streams are `{"role": "stream", "num_frames": int}`.

        Returns:
            `(input_ids, labels, assistant_mask, turns)`. Labels are not shifted, which the model does: they are the
            assistant's turns, and after each frame the token that follows it (a separator, or the first token of the
            stream's end if an assistant turn comes next); -100 elsewhere and where `learn` says no.

        Raises:
            `ValueError`: as `read_conversation`; for a stream without `num_frames`; if there is no reply to continue.
        """
        turns = read_conversation(conversation)
        check_continuation(turns, add_generation_prompt, continue_final_message)
        encoded = EncodedConversation([], [], [], [])

        def append(ids: list[int], learn: bool = False, reply: bool = False) -> None:
            encoded.input_ids.extend(ids)
            encoded.labels.extend(ids if learn else [IGNORE_INDEX] * len(ids))
            encoded.assistant_mask.extend([int(reply)] * len(ids))

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
                if next_turn is not None or not continue_final_message:
                    append(self.reply_end_ids, learn, reply=True)
            else:
                frames = self._append_stream(append, turn, next_turn, start, add_generation_prompt)
            encoded.turns.append(Turn(role, start, len(encoded.input_ids), frames))
        if add_generation_prompt:
            append(self.reply_start_ids(in_stream=False))
        return encoded

    def _append_stream(
        self, append: Callable, turn: dict, next_turn: dict | None, start: int, add_generation_prompt: bool
    ) -> range:
        """Append the tokens of a stream that begins at token `start`; returns where its frames begin."""
        if "num_frames" not in turn:
            raise ValueError(f"`{turn['name']}` must have `num_frames`; `apply_chat_template` takes videos")
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

    def apply_chat_template(  # type: ignore[override]  # tools and documents are not supported
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_labels: bool = False,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ) -> str | list[str] | list[list[int]] | np.ndarray | torch.Tensor | BatchFeature:
        r"""
        Encode one conversation (a list of messages) or a batch of them (a list of lists).

        Messages are `{"role": "system"|"user"|"assistant", "content": str or list of text blocks}` and
        `{"role": "stream", "content": [{"type": "video", "video": ..., "fps": 2.0}]}`, where `video` is a path, URL,
        file, array, tensor or list of frames. `fps` is the rate at which it is decoded; arrays are used completely.
        With `{"role": "stream", "num_frames": int}` the frames are given to the model separately. A video block in a
        user turn is a stream before its text. `"learn": False` in a message leaves it out of the labels; on a stream a
        number limits them to its first frames.

        A stream ends when a message follows or `add_generation_prompt=True`; otherwise it stays open.

        Args:
            chat_template (`str`, *optional*): your own template, rendered by `ProcessorMixin.apply_chat_template`.
            add_generation_prompt (`bool`): end an open stream, and begin the assistant's turn.
            continue_final_message (`bool`): omit the end of sequence after the last reply.
            tokenize (`bool`): return tokens instead of text. In the text a video block is one placeholder, to be
                filled by `processor(text=..., videos=...)`.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; lists otherwise.
            return_dict (`bool`): a `BatchFeature` instead of the input ids alone: `input_ids` and `attention_mask`
                `[B, T]`, and `pixel_values_videos` `[F, 3, H, W]`, the frames of all conversations in order.
            return_labels (`bool`): also return `labels` `[B, T]`, see `encode_conversation`.
            return_assistant_tokens_mask (`bool`): also return `assistant_masks` `[B, T]`.
            processor_kwargs (`dict`), kwargs: options of the tokenizer (`padding`, by default to the longest row,
                `padding_side`, `max_length`, `truncation`, ...) and of the video processor (`fps`, `num_frames`,
                `size`, ...).

        Raises:
            `ValueError`: naming the message or argument and its value.
            `OSError`: for a video that cannot be read.
        """
        if return_tensors == "auto":  # the default in newer transformers
            return_tensors = None
        if chat_template is not None:
            if return_tensors is not None:
                kwargs["return_tensors"] = return_tensors
            return super().apply_chat_template(
                conversation,
                chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                return_assistant_tokens_mask=return_assistant_tokens_mask,
                tokenize=tokenize,
                return_dict=return_dict,
                processor_kwargs=processor_kwargs,
                **kwargs,
            )
        for name in ("tools", "documents", "load_audio_from_video"):
            if value := kwargs.pop(name, None):
                raise ValueError(f"`{name}` is not supported, got {shown(value)}")
        if (return_labels or return_assistant_tokens_mask) and not (tokenize and return_dict):
            raise ValueError("`return_labels` and `return_assistant_tokens_mask` need `tokenize` and `return_dict`")
        kwargs.pop("sanitize_control_tokens", None)  # always done

        conversations, is_batched = read_conversations(conversation)
        ending = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        for turns in conversations:
            check_continuation(turns, **ending)
        if not tokenize:
            texts = self._render(conversations, **ending)
            return texts if is_batched else texts[0]

        options = self.options_of_parts(**{**(processor_kwargs or {}), **kwargs})
        data = self._encode(conversations, options, **ending)
        if not return_labels:
            del data["labels"]
        if not return_assistant_tokens_mask:
            del data["assistant_masks"]
        inputs = StreamInputs(data, tensor_type=return_tensors or options["text_kwargs"].get("return_tensors"))
        return inputs if return_dict else inputs["input_ids"]

    def _encode(self, conversations: list[list[dict]], options: dict, **ending) -> dict[str, Any]:
        """The padded rows of conversations, and the pixels of their frames if there are any."""
        videos = self._load_streams(conversations, options["videos_kwargs"])
        rows = [self.encode_conversation(turns, **ending)[:3] for turns in conversations]
        data: dict[str, Any] = self._pad_rows(rows, options["text_kwargs"])
        if videos:
            data |= self._process_videos(videos, **options["videos_kwargs"])[0]
        return data

    def _render(
        self, conversations: list[list[dict]], add_generation_prompt: bool, continue_final_message: bool
    ) -> list[str]:
        """The texts of conversations by the processor's template."""
        template = self.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is None:
            raise ValueError("the processor has no chat template; pass `chat_template` when building it")
        slot = {"role": "stream", "content": [{"type": "video"}]}  # a template needs no pixels
        texts = self.tokenizer.apply_chat_template(
            [[slot if isinstance(x.get("content"), list) else x for x in turns] for turns in conversations],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **{name: getattr(self, name) for name in TEMPLATE_CONSTANTS},
        )
        return [text.removesuffix(self.tokenizer.eos_token) if continue_final_message else text for text in texts]

    def _load_streams(self, conversations: list[list[dict]], videos_kwargs: dict) -> list[torch.Tensor]:
        """Load the videos of all streams, `[F, 3, H, W]` each, and put `num_frames` in their place."""
        streams = [turn for turns in conversations for turn in turns if turn["role"] == "stream"]
        if len({"num_frames" in turn for turn in streams}) > 1:
            raise ValueError("streams with `num_frames` and streams with videos cannot be mixed in one call")
        options = {name: videos_kwargs.get(name) for name in LOADING_OPTIONS}
        videos = []
        for turn in streams:
            if "num_frames" in turn:
                continue
            (block,) = turn.pop("content")
            video = next((block[key] for key in ("video", "url", "path") if block.get(key) is not None), None)
            if video is None:
                raise ValueError(f"the video block of `{turn['name']}` must hold `video`, got {shown(block)}")
            fps = options["fps"] if block.get("fps") is None else block["fps"]
            videos.append(self.video_processor.load_video(video, **{**options, "fps": fps}))
            turn["num_frames"] = len(videos[-1])
        return videos

    def _pad_rows(self, rows: list[tuple[list[int], list[int], list[int]]], text_kwargs: dict) -> dict[str, list]:
        """Truncate and pad the `(input_ids, labels, assistant_mask)` of each row."""
        if text_kwargs.get("truncation"):
            limit = text_kwargs.get("max_length") or self.tokenizer.model_max_length
            if any(self.video_token_id in input_ids[limit:] for input_ids, _, _ in rows):
                raise ValueError(f"truncation to `max_length={limit}` would cut frames; raise it or give fewer frames")
            rows = [(ids[:limit], labels[:limit], mask[:limit]) for ids, labels, mask in rows]
        side = text_kwargs.get("padding_side") or self.tokenizer.padding_side
        padded = self.tokenizer.pad(
            {"input_ids": [row[0] for row in rows], "attention_mask": [[1] * len(row[0]) for row in rows]},
            padding=text_kwargs.get("padding", True),
            max_length=text_kwargs.get("max_length"),
            pad_to_multiple_of=text_kwargs.get("pad_to_multiple_of"),
            padding_side=side,
            verbose=False,
        )
        data = {name: padded[name] for name in ("input_ids", "attention_mask")}
        for column, (name, value) in enumerate({"labels": IGNORE_INDEX, "assistant_masks": 0}.items(), start=1):
            fill = [[value] * (len(ids) - len(row[0])) for ids, row in zip(padded["input_ids"], rows, strict=True)]
            data[name] = [f + r[column] if side == "left" else r[column] + f for f, r in zip(fill, rows, strict=True)]
        return data

    def __call__(self, text: str | list[str] | None = None, videos: Any = None, **kwargs) -> BatchFeature:
        """Tokenise text that has one placeholder for each video, and preprocess the videos.

        Only here a placeholder in text is more than text: it is replaced by the placeholders of the video's frames,
        with separators between them. No beginning of sequence is added to text that begins with one.

        Args:
            text (`str` or `list[str]`): with `video_token` in the place of a video, usually between `[` and `]`.
            videos: one or several, nested per text or not: paths, URLs, files, arrays, tensors or lists of frames.
            kwargs: options of the tokenizer and the video processor.

        Raises:
            `ValueError`: if the numbers of placeholders and videos differ, and as the video processor.
        """
        bos, texts = self.tokenizer.bos_token, text if isinstance(text, list | tuple) else [text]
        if bos and "text_kwargs" not in kwargs and all(str(sample).startswith(bos) for sample in texts):
            kwargs.setdefault("add_special_tokens", False)
        return super().__call__(text=text, videos=videos, **kwargs)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        for name, value in {"images": images, "audio": audio}.items():
            if value is not None:
                raise ValueError(f"`{name}` is not supported, got {shown(value)}")
        if text is not None:
            text = [text] if isinstance(text, str) else text
            if not isinstance(text, list | tuple) or not text or not all(isinstance(sample, str) for sample in text):
                raise ValueError(f"`text` must be a string or a list of strings, got {shown(text)}")
            text = list(text)
        if videos is not None:
            videos_kwargs = {**kwargs, **kwargs.get("videos_kwargs", {})}
            options = {name: videos_kwargs.get(name) for name in LOADING_OPTIONS}
            videos = [self.video_processor.load_video(video, **options) for video in flatten_videos(videos)] or None
        return None, text, videos, None

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        slots, given = sum(sample.count(self.video_token) for sample in text or []), len(videos or [])
        if text is not None and slots != given:
            raise ValueError(
                f"the number of {self.video_token} tokens in the prompts should be the same as the number of videos, "
                f"got {slots} and {given}"
            )
        super().validate_inputs(text=text, videos=videos, **kwargs)

    def _process_videos(  # type: ignore[override]  # `prepare_inputs_layout` has loaded them
        self, videos: list[torch.Tensor], **kwargs
    ) -> tuple[BatchFeature, list[str]]:
        # The videos are loaded and sampled already, since the text depends on their numbers of frames.
        kwargs |= {"do_sample_frames": False, "input_data_format": "channels_first"}
        processed = self.video_processor(videos, **kwargs)
        return processed, [self.replace_video_token(processed, i, num_frames=len(x)) for i, x in enumerate(videos)]

    def replace_video_token(self, video_inputs: Mapping, video_idx: int, num_frames: int = 1, **kwargs) -> str:
        """The text in place of a video: the placeholders of its frames, with separators between them."""
        return self.frame_separator.join([self.video_token * self.num_frame_tokens] * num_frames)


VideoLLMMoDProcessor.register_for_auto_class()


__all__ = ["VideoLLMMoDProcessor", "VideoLLMMoDVideoProcessor", "check_pair"]
