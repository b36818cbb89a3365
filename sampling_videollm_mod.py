"""How a reply's next token is chosen: greedily, or as a `GenerationConfig` says.

Shapes: V vocabulary.
"""

import copy
import warnings

import torch
from transformers import GenerationConfig, LogitsProcessorList

UNSUPPORTED = {"guidance_scale": 1, "stop_strings": None, "max_time": None, "penalty_alpha": 0}  # and what is plain


class TokenSampler:
    """
    Chooses tokens one at a time, with the score processors of transformers' `generate`. They see the tokens of the
    reply alone: a penalty for repeating them does not fall on what an earlier narration said.

    Args:
        model, processor: of the session.
        generation_config (`GenerationConfig`, *optional*): greedy if omitted. Samples are drawn from a generator of
            the sampler's own, seeded by torch's default one, so that a copy draws the same.

    Attributes:
        ends (`frozenset[int]`): tokens that end a reply: the tokenizer's end of sequence, and those of the model's
            `generation_config`, of which a chat model may have several.

    Raises:
        `ValueError`: for another type, beams, several sequences, or an option that takes more than scores.
    """

    def __init__(self, model, processor, generation_config: GenerationConfig | None = None):
        # a placeholder stands for a frame that was given, never for a word; nor do rows of the vocabulary that pad it
        never = {processor.video_token_id, *(model.generation_config.suppress_tokens or ())}
        self.suppressed = torch.tensor(sorted(never), device=model.device)
        eos = processor.tokenizer.eos_token_id
        others = model.generation_config.eos_token_id
        self.ends = frozenset([eos, *(others if isinstance(others, list) else [eos if others is None else others])])
        self.processors, self.generator = None, None
        if generation_config is None:
            return
        if not isinstance(generation_config, GenerationConfig):
            raise ValueError(f"`generation_config` must be a GenerationConfig, got {generation_config!r}")
        if (generation_config.num_beams or 1) != 1 or (generation_config.num_return_sequences or 1) != 1:
            raise ValueError(
                "`generation_config` must have one beam and one sequence: a stream goes on from one reply"
            )
        for name, plain in UNSUPPORTED.items():
            if getattr(generation_config, name, None) not in (None, plain):
                value = getattr(generation_config, name)
                raise ValueError(f"`generation_config.{name}` is not supported in a stream, got {value!r}")
        options = copy.deepcopy(generation_config)
        options.eos_token_id = sorted(self.ends)
        options.pad_token_id = processor.tokenizer.pad_token_id
        self.processors = score_processors(model, options)
        if generation_config.do_sample:
            self.generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))

    def copy(self) -> "TokenSampler":
        """A sampler that draws what this one would draw next."""
        other = copy.copy(self)
        if self.generator is not None:
            other.generator = torch.Generator()
            other.generator.set_state(self.generator.get_state())
        return other

    def __call__(self, said: list[int], logits: torch.Tensor) -> int:
        """The token after the tokens `said` of a reply. logits: `[V]` of any dtype.

        Raises:
            `ValueError`: if they are no numbers, as from weights that are none.
        """
        logits = logits.float()
        if not logits.isfinite().all():
            raise ValueError("the model's scores are not finite numbers: its weights hold nan or infinity")
        logits[self.suppressed] = -torch.inf
        if self.processors is None:
            return int(logits.argmax())
        said_ids = torch.tensor([said], dtype=torch.long, device=logits.device)
        scores = self.processors(said_ids, logits[None])[0]
        if self.generator is None:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self.generator))


def score_processors(model, generation_config: GenerationConfig) -> LogitsProcessorList:
    """The score processors that `generate` makes of a configuration for text without a prompt, by a way to generate
    that hands them out."""

    def hand_out(model, input_ids, logits_processor, *args, **kwargs):
        return logits_processor

    alone = copy.copy(model)  # the same weights
    alone.generation_config = generation_config  # nothing comes from the model's own
    no_prompt = torch.zeros(1, 1, model.config.text_config.hidden_size, dtype=model.dtype, device=model.device)
    with warnings.catch_warnings(action="ignore"):  # that there is no prompt, and of lengths, which a session sees to
        return alone.generate(inputs_embeds=no_prompt, generation_config=generation_config, custom_generate=hand_out)


__all__ = ["TokenSampler"]
