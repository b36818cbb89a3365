"""The answer to a recorded conversation, as a session of a pool: its steps run together with those of live streams.

The prompt is the processor's own, so the answer equals that of `model.generate` for the same messages. It is read in
small pieces, between which live streams go on.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from transformers import BatchFeature, GenerationConfig

from ..cache import MoDCache
from ..speaking import Reply
from ..steps import Encode, Feed, FeedResult, Step, in_normal_mode
from ..streaming import StreamingSession

FRAMES_OF_PIECE = 4  # of a prompt that are read in one tick, which live streams wait for
TOKENS_OF_PIECE = 256  # likewise


@dataclass
class Prompt:
    """A conversation as the processor encodes it.

    Args:
        ids (`list[int]`): tokens, with a placeholder for each vision token.
        pixels (float32 `[F, 3, H, W]`, *optional*): of the frames.
        images (`dict[str, Tensor]`): images that are cut into tiles, for `get_image_features`.
    """

    ids: list[int]
    pixels: torch.Tensor | None
    images: dict[str, torch.Tensor]

    @classmethod
    def of(cls, inputs: BatchFeature) -> "Prompt":
        """The prompt of one conversation that `apply_chat_template` has encoded with `return_tensors="pt"`."""
        named = ("pixel_values", "image_sizes", "batch_num_images")
        images = {name: inputs[name] for name in named if name in inputs}
        return cls(inputs["input_ids"][0].tolist(), inputs.get("pixel_values_videos"), images)

    def pieces(self, video_token_id: int, num_frame_tokens: int) -> Iterator[tuple[list[int], int]]:
        """Tokens in pieces that cut no frame, and the number of frames in each."""
        start, stop, frames = 0, 0, 0
        while stop < len(self.ids):
            is_frame = self.ids[stop] == video_token_id
            stop, frames = stop + (num_frame_tokens if is_frame else 1), frames + is_frame
            if frames == FRAMES_OF_PIECE or stop - start >= TOKENS_OF_PIECE:
                yield self.ids[start:stop], frames
                start, frames = stop, 0
        if start < stop:
            yield self.ids[start:stop], frames


class Ready:
    """In the place of a video processor, for pixels that were preprocessed already."""

    @staticmethod
    def to_pixels(pixels: torch.Tensor) -> torch.Tensor:
        return pixels


READY = Ready()


class FeedPiece(Feed):
    """Feed a piece of a prompt, in which any text may stand between frames. The last of its logits are those after its
    last token."""

    def __init__(self, model, cache: MoDCache, ids: list[int], features=None, image_features=None):
        super().__init__(model, cache, ids, features)
        self.image_features = image_features

    @property
    def is_regular(self) -> bool:
        if self.image_features is not None or not super().is_regular:
            return False
        video, size = self.model.config.video_token_id, self.model.config.num_frame_tokens
        at = [index for index, token in enumerate(self.ids) if token == video]
        first, last = at[::size], at[size - 1 :: size]
        return len({after - before for before, after in zip(last, first[1:], strict=False)}) <= 1

    @property
    def read_at(self) -> list[int]:
        return [len(self.ids) - 1]


class ChatSession(StreamingSession):
    """
    Reads a prompt and answers it, once: `PooledStream.ask` with any text begins. It takes no frames.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        prompt (`Prompt`).
        max_new_tokens (`int`): of the answer.
        generation_config (`GenerationConfig`, *optional*): see `TokenSampler`; greedy if omitted.
        seed (`int`, *optional*): of sampling.

    Attributes:
        reply (`Reply`): the answer so far.
    """

    def __init__(
        self,
        model,
        processor,
        prompt: Prompt,
        max_new_tokens: int,
        generation_config: GenerationConfig | None = None,
        seed: int | None = None,
    ):
        super().__init__(model, processor, max_new_tokens=max_new_tokens, generation_config=generation_config)
        if seed is not None and self.sampler.generator is not None:
            self.sampler.generator.manual_seed(seed)
        self.prompt, self.reply = prompt, Reply()

    @property
    def max_kv_bytes(self) -> int:
        """Largest size that the cache can reach."""
        text = self.model.config.text_config
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self.model.dtype.itemsize
        return per_token * (len(self.prompt.ids) + self.max_new_tokens)

    @property
    def completion_tokens(self) -> int:
        """Tokens that the model has said, with the one that ends the answer."""
        return len(self.reply.ids) + self.reply.ended

    def add_question(self, question: str) -> None:
        """The question is in the prompt already."""

    def answering(self) -> Generator[Step | str]:
        self.state.counts["answers"] += 1
        return self._pieces(self.reply)

    def hush(self) -> bool:
        """End the answer with the next step, also while the prompt is still being read."""
        self._hushed = True
        return True

    def replying(self, reply: Reply | None = None) -> Generator[Step | int]:
        reply = self.reply if reply is None else reply
        fed = yield from self._read_prompt()
        while fed is not None and not self._hushed:
            token = self.sampler(reply.ids, fed.logits[-1])
            reply.ended = token in self.sampler.ends
            if reply.ended:
                return
            reply.ids.append(token)
            yield token
            if len(reply.ids) == self.max_new_tokens or self._hushed:
                return
            fed = yield from self._feed([token])

    def _read_prompt(self) -> Generator[Step, None, FeedResult | None]:
        """Read the prompt in pieces. Returns the result of the last one, or None after `hush`."""
        model, prompt, fed = self.model, self.prompt, None
        pixels, images = prompt.pixels, self._encode_images()
        for ids, num_frames in prompt.pieces(model.config.video_token_id, model.config.num_frame_tokens):
            features = own_images = None
            if num_frames:
                assert pixels is not None  # the processor has put one placeholder for each frame
                features = yield from self._result_of(Encode(model, READY, pixels[:num_frames]))
                pixels = pixels[num_frames:]
            if images is not None and (count := ids.count(model.config.image_token_id)):
                own_images, images = images[:count], images[count:]
            if self._hushed:
                return None
            fed = yield from self._result_of(FeedPiece(model, self.state.cache, ids, features, own_images))
            if self._hushed:
                return None
        prompt.pixels, prompt.images = None, {}
        return fed

    @in_normal_mode
    def _encode_images(self) -> torch.Tensor | None:
        """The tokens of all images that are cut into tiles, `[K, D]`."""
        if not self.prompt.images:
            return None
        images = {name: value.to(self.model.device) for name, value in self.prompt.images.items()}
        return self.model.model.get_image_features(**images)


__all__ = ["ChatSession", "Prompt"]
