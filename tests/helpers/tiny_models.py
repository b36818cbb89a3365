"""Tiny random models and streams for several test files."""

import random

import torch

from videollm_mod.configuration_videollm_mod import VideoLLMMoDConfig
from videollm_mod.modeling_videollm_mod import VideoLLMMoDForConditionalGeneration

BOS, EOS, PAD, VIDEO, SEPARATOR, START, END = 0, 1, 2, 3, 4, 5, 6
FIRST_WORD = 7  # ids from here on are ordinary words
VISION = {
    "siglip_vision_model": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": 8,
    },
    "clip_vision_model": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "projection_dim": 8,
    },
}


def tiny_config(vision: str = "siglip_vision_model", pooled=(2, 2), cls: bool = True, **text) -> VideoLLMMoDConfig:
    text = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,  # large enough that a wrong mask or position shows in the logits
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "mod_keep_ratio": 0.4,
        **text,
    }
    return VideoLLMMoDConfig(
        text_config=text,
        vision_config={"model_type": vision, **VISION[vision]},
        frame_token_pooled=pooled,
        frame_token_cls=cls,
        video_token_id=VIDEO,
        frame_separator_token_id=SEPARATOR,
    )


def tiny_model(seed: int = 0, config: VideoLLMMoDConfig | None = None, **options):
    torch.manual_seed(seed)
    model = VideoLLMMoDForConditionalGeneration(config or tiny_config(**options)).eval()
    for name, parameter in model.named_parameters():
        if "layer_expert" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)  # so that scores and gates are far from their neutral values
    return model


def words(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.randrange(FIRST_WORD, 60) for _ in range(rng.randint(low, high))]


def random_stream(rng: random.Random, num_frame_tokens: int, num_frames: int) -> list[int]:
    """Ids of a prompt, then frames and words in turn, with separator ids in the text too."""
    ids, left = [BOS, *words(rng, 1, 4), SEPARATOR, *words(rng, 0, 2)], num_frames
    while left:
        turn = rng.randint(1, left)
        frames: list[int] = []
        for index in range(turn):
            frames += ([SEPARATOR] if index else []) + [VIDEO] * num_frame_tokens
        ids += [START, *frames, END, *words(rng, 1, 5)]
        left -= turn
    return ids


def random_batch(model, seed: int, frame_counts: list[int], pixels: bool = False):
    """(inputs of a left-padded batch, inputs of each row alone), with frames in row order."""
    rng, config = random.Random(seed), model.config
    torch.manual_seed(seed)
    rows = [random_stream(rng, config.num_frame_tokens, count) for count in frame_counts]
    if pixels:
        size = config.vision_config.image_size
        name, frames = "pixel_values_videos", torch.randn(sum(frame_counts), 3, size, size)
    else:
        name = "video_features"
        frames = torch.randn(sum(frame_counts), config.num_frame_tokens, config.vision_config.hidden_size)
    length = max(map(len, rows))
    batch = {
        "input_ids": torch.tensor([[PAD] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }
    if frames.shape[0]:
        batch[name] = frames
    alone = []
    for row, own in zip(rows, frames.split(frame_counts), strict=True):
        alone.append({"input_ids": torch.tensor([row])})
        if own.shape[0]:
            alone[-1][name] = own
    return batch, alone


def frame_cuts(ids: list[int], num_frame_tokens: int, rng: random.Random) -> list[int]:
    """Random positions to cut a stream, none inside a frame."""
    inside = {
        i + offset
        for i in range(len(ids))
        if ids[i] == VIDEO and sum(x == VIDEO for x in ids[:i]) % num_frame_tokens == 0
        for offset in range(1, num_frame_tokens)
    }
    allowed = [i for i in range(1, len(ids)) if i not in inside]
    return [*sorted(rng.sample(allowed, rng.randint(1, len(allowed)))), len(ids)]


def run_in_pieces(model, inputs: dict, cuts: list[int], cache):
    """Logits of one row, fed in pieces."""
    ids, per_frame = inputs["input_ids"], model.config.num_frame_tokens
    logits, start, frame = [], 0, 0
    for stop in cuts:
        piece = {"input_ids": ids[:, start:stop]}
        count = int((piece["input_ids"] == VIDEO).sum()) // per_frame
        for name in ("video_features", "pixel_values_videos"):
            if name in inputs and count:
                piece[name] = inputs[name][frame : frame + count]
        logits.append(model(**piece, past_key_values=cache).logits)
        start, frame = stop, frame + count
    return torch.cat(logits, dim=1)


# every kind of routing: name -> options
ROUTINGS = {
    "learned": {},
    "output gate": {"mod_gate": "output"},
    "no gate": {"mod_gate": "none"},
    "all layers": {"mod_layers": "all"},
    "deep": {"mod_layers": "all_deep"},
    "interleaved deep": {"mod_layers": "interleaved_deep"},
    "listed": {"mod_layers": [0, 3], "mod_keep_ratio": 0.7},
    "keep all": {"mod_keep_ratio": 1.0},
    "keep last": {"mod_force_keep_last": True, "mod_keep_ratio": 0.2},
    "uniform": {"mod_selection": "uniform"},
    "random": {"mod_selection": "random", "mod_layers": "all"},
    "random, keep last": {"mod_selection": "random", "mod_force_keep_last": True},
    "full": {"vision_routing": "full"},
    "early exit": {"vision_routing": "early_exit", "early_exit_layer": 2},
    "early exit at once": {"vision_routing": "early_exit", "early_exit_layer": 0},
    "layer skip": {"vision_routing": "layer_skip"},
    "change": {"mod_selection": "change"},
    "change, deep": {"mod_selection": "change", "mod_layers": "all_deep", "mod_force_keep_last": True},
    "difference": {"mod_selection": "difference"},
    "difference, deep": {"mod_selection": "difference", "mod_layers": "all_deep", "mod_force_keep_last": True},
}
