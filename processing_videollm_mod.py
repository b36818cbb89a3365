"""The sequence that the model reads: frames and text interleaved, with labels.

Shapes: `F` frames, `H` and `W` pixels, `n` vision tokens per frame, `B` conversations, `T` tokens.
"""

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature

from .compat import ProcessorWithoutTorchvision
from .configuration_videollm_mod import MAX_FRAME_TOKENS, ImageTiling
from .containers import IGNORE_INDEX, check_count, is_video_source, shown
from .conversation import (
    ChatTemplate,
    check_continuation,
    family_options,
    read_conversation,
    read_conversations,
)
from .decoding import frame_times
from .sequence import EncodedConversation, Medium, SequencePieces, tokenizer_of_pieces
from .speaking import StreamInputs
from .video_processing_videollm_mod import LOADING_OPTIONS, VideoLLMMoDVideoProcessor, flatten_images, flatten_videos

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
        ("number of tokens per frame", processor.num_frame_tokens, config.num_frame_tokens),
    ]
    if config.frame_separator_token_id is not None or not processor.sequence.one_turn:  # else it is not learned yet
        separators = processor.frame_separator_token_id, config.frame_separator_token_id
        pairs.insert(1, ("id of the frame separator", *separators))
    if video_processor.frame_size is not None:
        pairs.append(("frame size", video_processor.frame_size, [side, side]))
    found = [pair for pair in pairs if pair[1] != pair[2]]
    if len(tokenizer) > text.vocab_size:
        found.append(("vocabulary size", len(tokenizer), text.vocab_size))
    ends = {own for source in (text, model.generation_config) for own in as_list(source.eos_token_id)}
    if ends and tokenizer.eos_token_id not in ends:
        found.append(("id of the end of sequence", tokenizer.eos_token_id, " or ".join(map(str, sorted(ends)))))
    return found


def as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


NATIVE_OPTIONS = ("frame_separator", "stream_start", "stream_end")
FAMILY_OPTIONS = ("pieces", "image_slot", "video_slot", "default_query")


TEMPLATE_CONSTANTS = ("num_frame_tokens", "video_token", "frame_separator", "stream_start", "stream_end")


class VideoLLMMoDProcessor(SequencePieces, ProcessorWithoutTorchvision):
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
        pieces (`dict`, *optional*): the `Pieces` of another family's chat template, instead of the three above; see
            `of_family`. The template is then the family's own.
        image_slot, video_slot (`str`, *optional*): what stands for an image and for a video in the family's text;
            `video_token` if omitted.
        default_query (`str`, *optional*): with `pieces`, the text of every user turn after which the model narrates,
            unless it was instructed.

    Attributes:
        video_token_id, frame_separator_token_id (`int`): as in `VideoLLMMoDConfig`.
        and those of `SequencePieces`: the ids of everything that stands around frames and text.

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
        pieces=None,
        image_slot=None,
        video_slot=None,
        default_query=None,
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
        self.pieces, self.default_query = pieces, default_query
        self.image_slot, self.video_slot = image_slot or video_token, video_slot or video_token

        self.piece_tokenizer = tokenizer_of_pieces(tokenizer)
        self.video_token_id = special_ids[video_token]
        self.frame_ids = [self.video_token_id] * num_frame_tokens
        self.reply_stop_id = tokenizer.eos_token_id
        if pieces is None:
            self._set_own_pieces()
        else:
            self._set_family_pieces(special_ids)

    @classmethod
    def of_family(
        cls,
        family: str,
        video_processor: VideoLLMMoDVideoProcessor,
        tokenizer,
        chat_template: str,
        num_frame_tokens: int,
        default_query: str = "What do you see?",
        frame_separator: str = "",
    ) -> "VideoLLMMoDProcessor":
        """The processor of a pretrained model: its own prompts for recorded videos and images, and the same pieces
        around the frames of a stream.

        Args:
            family (`str`): the `model_type` of its configuration, one of `FAMILIES`.
            tokenizer, chat_template: its own. OneVision's tokenizer gets a token for the end of a video.
            frame_separator (`str`): see `Pieces`; needed to learn silence where frames follow each other directly.

        Raises:
            `ValueError`: for another family, a tokenizer without the family's tokens, or a template that cannot be
                cut into pieces.
        """
        options = family_options(family, tokenizer, chat_template)
        options["pieces"] |= {"frame_separator": frame_separator}
        return cls(video_processor, tokenizer, chat_template, num_frame_tokens, default_query=default_query, **options)

    def to_dict(self) -> dict[str, Any]:
        unused = FAMILY_OPTIONS if self.pieces is None else NATIVE_OPTIONS
        return {name: value for name, value in super().to_dict().items() if name not in unused}

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

    def encode_conversation(
        self, conversation: list[dict], add_generation_prompt: bool = False, continue_final_message: bool = False
    ) -> EncodedConversation:
        """Tokens of a conversation whose streams are `{"role": "stream", "num_frames": int}`, and may have the `times`
        of their frames, in seconds, which a family's prompts may write.

        Returns:
            `(input_ids, labels, assistant_mask, turns)`. Labels are not shifted, which the model does: they are the
            assistant's turns, and after each frame the token that follows it (a separator, or the first token of the
            stream's end if an assistant turn comes next); -100 elsewhere and where `learn` says no.

        Raises:
            `ValueError`: as `read_conversation`; for a stream without `num_frames`; if there is no reply to continue.
        """
        turns = read_conversation(conversation, one_turn=self.sequence.one_turn)
        check_continuation(turns, add_generation_prompt, continue_final_message)
        return self._encode_turns(turns, add_generation_prompt, continue_final_message)

    def _times_of(self, turn: dict, last: float | None) -> list[float]:
        """Times of the frames of a stream; those of a video continue from the `last` frame."""
        fps, given = self.video_processor.fps, turn.get("times")
        if turn.get("at") is not None:
            return frame_times(turn["at"], turn["num_frames"], fps, last)
        start = 0.0 if last is None else last + 1 / fps
        return frame_times(given and [start + time for time in given], turn["num_frames"], fps, last)

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

        one_turn = self.sequence.one_turn
        conversations, is_batched = read_conversations(conversation, one_turn)
        ending = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        for turns in conversations:
            check_continuation(turns, **ending)
        if not tokenize:
            texts = (self._render_prompts if one_turn else self._render)(conversations, **ending)
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
        media = self._load(conversations, options["videos_kwargs"])
        rows = [self._encode_turns(turns, **ending)[:3] for turns in conversations]
        data: dict[str, Any] = self._pad_rows(rows, options["text_kwargs"])
        if media:
            data |= self._process_videos(media, **options["videos_kwargs"])[0]
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

    def _render_prompts(
        self, conversations: list[list[dict]], add_generation_prompt: bool, continue_final_message: bool
    ) -> list[str]:
        """Family prompts as text, with a slot for each video and image."""
        slots, texts = {"video": self.video_slot, "image": self.image_slot}, []
        for turns in conversations:
            if any(turn["role"] == "stream" for turn in turns):
                raise ValueError("with the pieces of a chat template streams are tokens only: pass `tokenize=True`")
            parts = self._template.render(turns, add_generation_prompt)[: -1 if continue_final_message else None]
            texts.append("".join(slots[part.kind] if isinstance(part, Medium) else part for part in parts))
        return texts

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(
            self.tokenizer, str(self.chat_template), self.image_slot, self.video_slot, self.sequence.video_as
        )

    def _load(self, conversations: list[list[dict]], videos_kwargs: dict) -> list[Medium]:
        """Load the videos and images of all messages, in order. Streams get `num_frames`, and the times of a file."""
        media = [
            (turn, item)
            for turns in conversations
            for turn in turns
            for item in (turn["content"] if isinstance(turn.get("content"), list) else ())
            if isinstance(item, Medium)
        ]
        if media and any("num_frames" in turn for turns in conversations for turn in turns):
            raise ValueError("streams with `num_frames` and streams with videos cannot be mixed in one call")
        for turns in conversations:
            own = [item for turn, item in media if item.kind == "image" and any(turn is one for one in turns)]
            for image in own:
                image.is_alone = len(own) == 1
        options = {name: videos_kwargs.get(name) for name in LOADING_OPTIONS}
        metadata = iter(videos_kwargs.get("video_metadata") or ())
        for turn, medium in media:
            kind, block, is_stream = medium.kind, medium.block, turn["role"] == "stream"
            source = next((block[key] for key in (kind, "url", "path", "base64") if block.get(key) is not None), None)
            if source is None:
                raise ValueError(f"the {kind} block of `{turn['name']}` must hold `{kind}`, got {shown(block)}")
            fps = options["fps"] if block.get("fps") is None else block["fps"]
            known = next(metadata, None) if kind == "video" else None
            self._load_medium(medium, source, {**options, "fps": fps}, known, whole=is_stream)
            if is_stream:
                is_timed = is_video_source(source) or known is not None
                turn |= {"num_frames": len(medium.frames), "times": medium.times if is_timed else None}
                del turn["content"]
        return [medium for _, medium in media]

    def _load_medium(self, medium: Medium, source, options: dict, metadata=None, whole: bool = False) -> None:
        """Load a video or an image. metadata: of the video, as in transformers; whole: take an image as a frame, which
        is never split."""
        video_processor = self.video_processor
        if medium.kind == "image":
            medium.frames = video_processor.load_image(source, options.get("input_data_format"))
            if video_processor.max_image_size is not None and not whole:
                medium.frames, medium.grid = video_processor.prepare_image(medium.frames)
                medium.is_resized = True
            if video_processor.image_tiling is not None and not whole:
                medium.size = (medium.frames.shape[-2], medium.frames.shape[-1])
                tiling = ImageTiling(**video_processor.image_tiling)
                medium.num_tokens = tiling.num_tokens(medium.size, medium.is_alone)
                medium.frames = video_processor.cut_image(medium.frames, medium.is_alone)
                medium.is_resized = True
            return
        medium.frames, times = video_processor.load_timed_video(source, **options)
        fps = options.get("fps") or video_processor.fps
        if metadata is not None:  # as in transformers
            fps, indices = metadata.get("fps") or 24, metadata.get("frames_indices")
            indices = range(len(medium.frames)) if indices is None else indices
            medium.times = [index / fps for index in indices]
            duration = metadata.get("duration")
            medium.duration = medium.times[-1] if duration is None else duration
        elif times is not None:
            medium.times, medium.duration = times, times[-1] + 1 / fps
        else:
            medium.times = [index / fps for index in range(len(medium.frames))]
            medium.duration = medium.times[-1]

    def _pad_rows(self, rows: list[tuple[list[int], list[int], list[int]]], text_kwargs: dict) -> dict[str, list]:
        """Truncate and pad the `(input_ids, labels, assistant_mask)` of each row."""
        if text_kwargs.get("truncation"):
            limit = text_kwargs.get("max_length") or self.tokenizer.model_max_length
            placeholders = {self.video_token_id, self.tokenizer.convert_tokens_to_ids(self.image_slot)}
            if any(not placeholders.isdisjoint(input_ids[limit:]) for input_ids, _, _ in rows):
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

    def __call__(
        self, text: str | list[str] | None = None, videos: Any = None, images: Any = None, **kwargs
    ) -> BatchFeature:
        """Tokenise text that has one placeholder for each video and image, and preprocess these.

        Only here a placeholder in text is more than text: it is replaced by the placeholders of the video's frames,
        with what stands between them. No beginning of sequence is added to text that begins with one.

        Args:
            text (`str` or `list[str]`): with `video_slot` in the place of a video, and `image_slot` in that of an
                image; both are `video_token` in this package's own sequence, usually between `[` and `]`.
            videos: one or several, nested per text or not: paths, URLs, files, arrays, tensors or lists of frames.
            images: one or several, nested per text or not: PIL images, paths, URLs, or arrays and tensors `[H, W, 3]`.
            kwargs: options of the tokenizer and the video processor.

        Raises:
            `ValueError`: if the numbers of placeholders and videos differ, and as the video processor.
        """
        bos, texts = self.tokenizer.bos_token, text if isinstance(text, list | tuple) else [text]
        if bos and "text_kwargs" not in kwargs and all(str(sample).startswith(bos) for sample in texts):
            kwargs.setdefault("add_special_tokens", False)
        return super().__call__(text=text, videos=videos, images=images, **kwargs)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        if audio is not None:
            raise ValueError(f"`audio` is not supported, got {shown(audio)}")
        if text is not None:
            text = [text] if isinstance(text, str) else text
            if not isinstance(text, list | tuple) or not text or not all(isinstance(sample, str) for sample in text):
                raise ValueError(f"`text` must be a string or a list of strings, got {shown(text)}")
            text = list(text)
        given = [(Medium("video"), video) for video in ([] if videos is None else flatten_videos(videos))]
        sources = {self.video_slot: given}
        # as in transformers, images are those of one text if they are nested; otherwise each counts as alone
        nested = isinstance(images, list | tuple) and any(isinstance(own, list | tuple) for own in images)
        samples = [] if images is None else images if nested else flatten_images(images)
        of_texts = [flatten_images(own) for own in samples]
        given = [(Medium("image", is_alone=len(own) == 1), image) for own in of_texts for image in own]
        sources[self.image_slot] = sources.get(self.image_slot, []) + given
        if text is None:
            ordered = [source for of_slot in sources.values() for source in of_slot]
        else:
            ordered = self._in_order(text, sources)
        options = {**kwargs, **kwargs.get("videos_kwargs", {})}
        metadata = iter(options.get("video_metadata") or ())
        options = {name: options.get(name) for name in LOADING_OPTIONS}
        for medium, source in ordered:
            self._load_medium(medium, source, options, next(metadata, None) if medium.kind == "video" else None)
        return None, text, [medium for medium, _ in ordered] or None, None

    def _in_order(self, text: list[str], sources: dict[str, list]) -> list:
        """Videos and images in the order of their placeholders in the text."""
        if len(sources) == 1 and len({medium.kind for given in sources.values() for medium, _ in given}) > 1:
            raise ValueError(f"{self.video_slot} stands for a video or an image: give both as `videos`, in order")
        found = re.findall("|".join(map(re.escape, sources)), "\n".join(text))
        for slot, given in sources.items():
            if found.count(slot) != len(given):
                names = {self.video_slot: "videos", self.image_slot: "images"}
                kinds = names[slot] if len(names) == 2 else "videos and images"
                raise ValueError(
                    f"the number of {slot} tokens in the prompts should be the same as the number of {kinds}, "
                    f"got {found.count(slot)} and {len(given)}"
                )
        waiting = {slot: iter(given) for slot, given in sources.items()}
        return [next(waiting[slot]) for slot in found]

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        text = None if videos else text  # the placeholders were counted
        super().validate_inputs(text=text, videos=videos, **kwargs)

    def _process_videos(  # type: ignore[override]  # `prepare_inputs_layout` has loaded them
        self, videos: list[Medium], **kwargs
    ) -> tuple[BatchFeature, list[str]]:
        # The videos are loaded and sampled already, since the text depends on their numbers of frames.
        kwargs |= {"do_sample_frames": False, "input_data_format": "channels_first", "video_metadata": None}
        if not any(medium.is_resized for medium in videos):
            processed = self.video_processor([medium.frames for medium in videos], **kwargs)
        else:
            kwargs = {name: value for name, value in kwargs.items() if name not in ("return_tensors", "do_resize")}
            pixels: dict[str, list] = {"pixel_values_videos": [], "pixel_values": []}
            for medium in videos:
                resizing = {"do_resize": False} if medium.is_resized else {}
                own = self.video_processor([medium.frames], **kwargs, **resizing)["pixel_values_videos"]
                pixels["pixel_values_videos" if medium.size is None else "pixel_values"].append(own)
            processed = BatchFeature({name: torch.cat(own) for name, own in pixels.items() if own})
            if joined := [medium for medium in videos if medium.size is not None]:
                processed["image_sizes"] = torch.tensor([medium.size for medium in joined])
                processed["batch_num_images"] = torch.tensor(images_of_rows(joined))
        return processed, [self.medium_text(medium) for medium in videos]

    def get_text_with_replacements(
        self, text, images_replacements=(), videos_replacements=(), audio_replacements=()
    ) -> tuple[list[str], list]:
        """The texts with each slot replaced by the text of its video or image. videos_replacements: of both."""
        waiting = iter(videos_replacements)
        pattern = "|".join(map(re.escape, {self.video_slot, self.image_slot}))
        return [re.sub(pattern, lambda _: next(waiting), sample) for sample in text], []


def images_of_rows(images: list[Medium]) -> list[int]:
    """`batch_num_images`. Images that are not alone count as those of one row: only whether it has several matters."""
    counts: list[int] = []
    for alone, group in itertools.groupby(image.is_alone for image in images):
        number = len(list(group))
        counts += [1] * number if alone else [number]
    return counts


VideoLLMMoDProcessor.register_for_auto_class()


__all__ = ["VideoLLMMoDProcessor", "VideoLLMMoDVideoProcessor", "check_pair"]
