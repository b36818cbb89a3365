"""Two families of image models at nano size, as transformers has them: `llava` as in LLaVA-Interleave (SigLIP, a
projector of two layers, Qwen2) and `smolvlm` (SigLIP, pixel shuffle, a linear connector, Llama).

Formats of conversations and special tokens are those of the published models. Weights are random.
"""

import json
import random
from functools import lru_cache, partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from ..training.initialise import init_position_embeddings

SIDE = 96  # pixels
MAX_SECONDS = 600  # of the times that SmolVLM writes before frames
IMAGE = "<image>"
LLAVA_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}"
    "{{ '\n' if message['role'] == 'assistant' else ' ' }}"
    "{% if message['content'] is string %}"
    "{{ '' if message['role'] == 'assistant' else '\n' }}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ '' if message['role'] == 'assistant' else '\n' }}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}"
    "{% else %}{{ '' if message['content'][0]['type'] == 'image' else ' ' }}"
    "{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}{% endfor %}"
    "{% endif %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


class Family:
    """How a family writes turns, and its models.

    Attributes:
        image_tokens (`int`): tokens of an image.
        image (`str`): how an image is written, in special tokens.
        special (`tuple[str, ...]`): special tokens: that of padding, that which ends a reply, and others.
    """

    name: str
    image_tokens: int
    image: str
    special: tuple[str, ...]
    template: str

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None = None):
        self.tokenizer = tokenizer

    @property
    def pad_token_id(self) -> int:
        return self.tokenizer.pad_token_id

    def user(self, rng: random.Random, images: int, question: str, first: bool) -> list[str]:
        """A user turn up to where the reply begins, in pieces. A piece ends or begins with a special token, or where
        the tokenizer splits words."""
        raise NotImplementedError

    def reply(self, answer: str) -> str:
        raise NotImplementedError

    def user_ids(self, rng: random.Random, images: int, question: str, first: bool) -> list[int]:
        return [token for piece in self.user(rng, images, question, first) for token in self._ids(piece)]

    def reply_ids(self, answer: str) -> list[int]:
        return [*self._ids(self.reply(answer))]

    def prompt_ids(self, question: str) -> list[int]:
        """A question about one image, by the chat template."""
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text.replace(IMAGE, self.image), add_special_tokens=False)["input_ids"]

    def _ids(self, piece: str) -> tuple[int, ...]:
        return cached_ids(self.tokenizer, piece)

    def learn_words(self, texts: list[str], vocab_size: int = 1000) -> None:
        """Train a byte-level tokenizer on texts. They are split at the special tokens."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        for token in self.special:
            texts = [part for text in texts for part in text.split(token)]
        tokenizer.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=list(self.special),
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        pad, end, *others = self.special
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=pad,
            eos_token=end,
            additional_special_tokens=others,
            clean_up_tokenization_spaces=False,
            chat_template=self.template,
        )

    def new_model(self, width: int = 256, layers: int = 8, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = self._model(
            {
                "vocab_size": len(self.tokenizer),
                "hidden_size": width,
                "intermediate_size": 2 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": width // 32,
                "num_key_value_heads": width // 64,
                "max_position_embeddings": 4096,
                "tie_word_embeddings": True,
                "bos_token_id": None,
                "eos_token_id": self.tokenizer.eos_token_id,
                "pad_token_id": self.tokenizer.pad_token_id,
            },
            {
                "hidden_size": width * 3 // 4,
                "intermediate_size": 2 * width,
                "num_hidden_layers": 4,
                "num_attention_heads": width // 32,
                "image_size": SIDE,
            },
        )
        model.generation_config.eos_token_id = self.tokenizer.eos_token_id
        model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def _model(self, text: dict, vision: dict) -> torch.nn.Module:
        raise NotImplementedError

    def pixel_values(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the family's image processor makes of uint8 `[M, 3, SIDE, SIDE]`, as the model takes images of one
        conversation."""
        return (pictures.float() / 255 - 0.5) / 0.5

    def one_each(self, pixels: torch.Tensor) -> torch.Tensor:
        """`pixel_values` for as many conversations with one image each."""
        return pixels

    def image_processor_config(self) -> dict:
        raise NotImplementedError

    def processor_config(self) -> dict:
        raise NotImplementedError

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """A folder that transformers loads: weights in bfloat16, tokenizer, image processor, chat template."""
        model.to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        normalised = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}
        scaled = {"do_rescale": True, "rescale_factor": 1 / 255, "do_resize": True, "do_convert_rgb": True}
        write = partial(json.dumps, indent=2)
        (folder / "preprocessor_config.json").write_text(
            write({**self.image_processor_config(), **normalised, **scaled}) + "\n"
        )
        (folder / "processor_config.json").write_text(write(self.processor_config()) + "\n")


@lru_cache(maxsize=100_000)
def cached_ids(tokenizer: PreTrainedTokenizerFast, piece: str) -> tuple[int, ...]:
    return tuple(tokenizer(piece, add_special_tokens=False)["input_ids"])


class Llava(Family):
    """`<|im_start|>user <image>\\nQUESTION<|im_end|><|im_start|>assistant\\nREPLY<|im_end|>`, with patches of 16
    pixels, each a token."""

    name = "llava"
    image_tokens = 36
    image = IMAGE * image_tokens
    special = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", IMAGE)
    template = LLAVA_TEMPLATE

    def user(self, rng: random.Random, images: int, question: str, first: bool) -> list[str]:
        return ["<|im_start|>user ", *[self.image] * images, f"\n{question}<|im_end|><|im_start|>assistant\n"]

    def reply(self, answer: str) -> str:
        return f"{answer}<|im_end|>"

    def _model(self, text: dict, vision: dict) -> torch.nn.Module:
        config = LlavaConfig(
            text_config=Qwen2Config(**text),
            vision_config=SiglipVisionConfig(**vision, patch_size=16, vision_use_head=False),
            image_token_index=self.tokenizer.convert_tokens_to_ids(IMAGE),
            image_seq_length=self.image_tokens,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=True,
        )
        model = LlavaForConditionalGeneration(config)
        init_position_embeddings(model.model.vision_tower)
        return model

    def image_processor_config(self) -> dict:
        return {"image_processor_type": "SiglipImageProcessor", "size": {"height": SIDE, "width": SIDE}, "resample": 3}

    def processor_config(self) -> dict:
        return {
            "processor_class": "LlavaProcessor",
            "patch_size": 16,
            "num_additional_image_tokens": 0,
            "vision_feature_select_strategy": "full",
            "image_token": IMAGE,
        }


class SmolVLM(Family):
    """`<|im_start|>User:IMAGE QUESTION<end_of_utterance>\\nAssistant: REPLY<end_of_utterance>\\n`. An image has
    patches of 8 pixels, of which 4 x 4 are one token.

    Half of the turns write images as the family writes the frames of a video, with a random time for each.
    """

    name = "smolvlm"
    image_tokens = 9
    image = f"<fake_token_around_image><global-img>{IMAGE * image_tokens}<fake_token_around_image>"
    special = (
        "<|im_end|>",
        "<end_of_utterance>",
        "<|im_start|>",
        "<fake_token_around_image>",
        IMAGE,
        "<global-img>",
        "<video>",
    )
    template = SMOLVLM_TEMPLATE

    def user(self, rng: random.Random, images: int, question: str, first: bool) -> list[str]:
        opened, asked = ("<|im_start|>" if first else "\n") + "User:", f"{question}<end_of_utterance>\nAssistant:"
        if not images:
            return [opened, f" {asked}"]
        if rng.random() < 0.5:
            return [opened, *[self.image] * images, asked]
        times = sorted(rng.randrange(MAX_SECONDS) for _ in range(images))
        frames = [piece for t in times for piece in (f"\nFrame from {t // 60:02d}:{t % 60:02d}:", self.image)]
        return [f"{opened}{rng.choice(('', ' '))}", *frames, f"{rng.choice(('', chr(10) * 2))}{asked}"]

    def reply(self, answer: str) -> str:
        return f" {answer}<end_of_utterance>"

    def _model(self, text: dict, vision: dict) -> torch.nn.Module:
        config = SmolVLMConfig(
            text_config=LlamaConfig(**text),
            vision_config=SmolVLMVisionConfig(**vision, patch_size=8),
            image_token_id=self.tokenizer.convert_tokens_to_ids(IMAGE),
            scale_factor=4,
            tie_word_embeddings=True,
        )
        model = SmolVLMForConditionalGeneration(config)
        init_position_embeddings(model.model.vision_model)
        return model

    def pixel_values(self, pictures: torch.Tensor) -> torch.Tensor:
        return super().pixel_values(pictures)[None]

    def one_each(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.transpose(0, 1)

    def image_processor_config(self) -> dict:
        longest = {"longest_edge": SIDE}
        return {
            "image_processor_type": "SmolVLMImageProcessor",
            "size": longest,
            "max_image_size": longest,
            "do_image_splitting": False,
            "do_pad": True,
            "resample": 1,
        }

    def processor_config(self) -> dict:
        return {"processor_class": "SmolVLMProcessor", "image_seq_len": self.image_tokens}


FAMILIES: dict[str, type[Family]] = {family.name: family for family in (Llava, SmolVLM)}


def load(folder: Path, **options) -> tuple[torch.nn.Module, Family]:
    """A model that `Family.save` wrote, by the stock classes, and its family.

    Raises:
        `ValueError`: for a model of another family.
    """
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind not in FAMILIES:
        raise ValueError(f"the model must be of {' or '.join(FAMILIES)}, got {kind!r}")
    model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
    return model, FAMILIES[kind](AutoTokenizer.from_pretrained(folder))
