"""Models of `from_vlm` against the stock classes of transformers, at the full shapes of published checkpoints.

    python -m videollm_mod.benchmarks.vlm_equality           # all on one GPU of 80 GB or more, in float32
    python -m videollm_mod.benchmarks.vlm_equality --tiny    # the same grids of patches, narrow layers, on a CPU

Weights are random, since equality does not depend on their values. For each shape the stock class and the model that
`from_vlm` makes of it read the same prompt, with one image and with a video of three frames: the table shows the
largest difference of the logits as a share of the largest logit, the change of the logits by other pixels for
comparison, whether greedy words are equal, and the difference between the frames one by one and in one pass.

Where the shapes come from: LLaVA and LLaVA-OneVision: `convert_llava_weights_to_hf.py` and
`convert_llava_onevision_weights_to_hf.py` of transformers, with the language models that they name (Vicuna 1.5 7B,
Qwen1.5-0.5B, Qwen2 0.5B and 7B; vocabularies padded to 64 as there). SmolVLM2-256M and -500M: `config.json` of
HuggingFaceTB/SmolVLM2-256M-Video-Instruct and -500M-Video-Instruct, as copies of them say. SmolVLM2-2.2B:
`config.json` of SmolVLM-Base and SmolVLM-Instruct, of the same sizes (hidden 2048, intermediate 8192, 24 layers, heads
of 64, 16384 positions, `scale_factor` 3, `image_seq_len` 81), as copies of them say, and `processor_config.json` of
SmolVLM2-2.2B-Base (`image_seq_len` 81). Idefics3-8B-Llama3: its `config.json` at revision 92a708a (hidden 4096,
intermediate 14336, `scale_factor` 2, `image_token_id` 128257) and `convert_idefics3_weights_to_hf.py`. Not compared
with a `config.json`: the placeholder's id and the rotary base of SmolVLM2-2.2B, and the towers of both.
"""

import argparse
import gc
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from ..bench.record import RESULTS, commit, surroundings, write
from ..cache import MoDCache
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration

TOLERANCE = 1e-4  # of the largest logit
FRAMES = 3
WORDS = 16  # said greedily
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{% for block in message.content %}"
    "{% if block.type == 'text' %}{{ block.text }}{% else %}<{{ block.type }}>\n{% endif %}{% endfor %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def text(kind: str, hidden: int, inner: int, layers: int, heads: int, groups: int, vocab: int, **more) -> dict:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocab}
    return {"model_type": kind, **sizes, "num_attention_heads": heads, "num_key_value_heads": groups, **more}


def tower(kind: str, hidden: int, inner: int, layers: int, heads: int, image: int, patch: int, **more) -> dict:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {
        "model_type": kind,
        **sizes,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
        **more,
    }


CLIP_L = tower("clip_vision_model", 1024, 4096, 24, 16, 336, 14, projection_dim=768)
SO400M = tower("siglip_vision_model", 1152, 4304, 26, 16, 384, 14, vision_use_head=False)
QWEN = {"image_token_index": 151646, "video_token_index": 151647}
SMALL_TOWER = tower("smolvlm_vision", 768, 3072, 12, 12, 512, 16)
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
SMOL = {"rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
SMOL_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}
QWEN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": True}
SHAPES = {
    "LLaVA-1.5-7B": {
        "model_type": "llava",
        "vision_config": CLIP_L,
        "text_config": text("llama", 4096, 11008, 32, 32, 32, 32064, rms_norm_eps=1e-5),
        "image_token_index": 32000,
    },
    "llava-interleave-qwen-0.5b": {
        "model_type": "llava",
        "vision_config": SO400M,
        "text_config": text("qwen2", 1024, 2816, 24, 16, 16, 152000, **QWEN_ROPE),
        "image_token_index": 151646,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "LLaVA-OneVision-0.5B": {
        "model_type": "llava_onevision",
        "vision_config": SO400M,
        "text_config": text("qwen2", 896, 4864, 24, 14, 2, 152000, **QWEN_ROPE),
        **QWEN,
    },
    "LLaVA-OneVision-7B": {
        "model_type": "llava_onevision",
        "vision_config": SO400M,
        "text_config": text("qwen2", 3584, 18944, 28, 28, 4, 152128, **{**QWEN_ROPE, "tie_word_embeddings": False}),
        **QWEN,
    },
    "SmolVLM2-256M": {
        "model_type": "smolvlm",
        "vision_config": SMALL_TOWER,
        "text_config": text("llama", 576, 1536, 30, 9, 3, 49280, head_dim=64, **SMOL, **SMOL_ROPE),
        "image_token_id": 49190,
        "scale_factor": 4,
    },
    "SmolVLM2-500M": {
        "model_type": "smolvlm",
        "vision_config": SMALL_TOWER,
        "text_config": text("llama", 960, 2560, 32, 15, 5, 49280, head_dim=64, **SMOL, **SMOL_ROPE),
        "image_token_id": 49190,
        "scale_factor": 4,
    },
    "SmolVLM2-2.2B": {
        "model_type": "smolvlm",
        "vision_config": {**SO400M, "model_type": "smolvlm_vision", "num_hidden_layers": 27},
        "text_config": text("llama", 2048, 8192, 24, 32, 32, 49280, **{**SMOL, "max_position_embeddings": 16384}),
        "image_token_id": 49190,
        "scale_factor": 3,
    },
    "Idefics3-8B": {
        "model_type": "idefics3",
        "vision_config": tower("idefics3_vision", 1152, 4304, 27, 16, 364, 14),
        "text_config": text("llama", 4096, 14336, 32, 32, 8, 128259, rms_norm_eps=1e-5, rope_parameters=ROPE),
        "image_token_id": 128257,
        "scale_factor": 2,
    },
}


def narrow(shape: dict) -> dict:
    """The same shape with few and narrow layers and a small vocabulary; grids of patches stay."""
    groups = 4 if shape["text_config"]["num_key_value_heads"] == shape["text_config"]["num_attention_heads"] else 2
    own = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    language = {**shape["text_config"], **own, "num_key_value_heads": groups, "head_dim": 16, "vocab_size": 320}
    vision = {**shape["vision_config"], **own, "hidden_size": 32, "intermediate_size": 48}
    ids = {"image_token_index": 300, "image_token_id": 300, "video_token_index": 301}
    ids = {name: ids[name] for name in ids if name in shape}
    return {**shape, "text_config": language, "vision_config": vision, **ids}


def tokenizer_for(config) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has the model's placeholders at their ids."""
    image = config.image_token_id
    placeholders = {image: "<image>"}
    if config.model_type == "llava_onevision":
        placeholders[config.video_token_id] = "<video>"
    special = ["<|start|>", "<|end|>", "<fake_token_around_image>", "<global-img>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {word: index for index, word in enumerate(words)}
    for index in range(len(words), max(placeholders) + 1):
        vocabulary[placeholders.get(index, f"<unused {index}>")] = index
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|start|>")
    words.add_special_tokens({"additional_special_tokens": [*special[2:], *placeholders.values()]})
    words.chat_template = TEMPLATE
    return words


def prompt(model, frames: int) -> list[int]:
    """Ids of text, frames side by side, and text."""
    config, words = model.config, list(range(20, 36))
    newline = [] if config.image_newline_token_id is None else [config.image_newline_token_id]
    return words + [config.video_token_id] * config.num_frame_tokens * frames + newline + words[::-1]


def stock_inputs(stock, model, ids: list[int], pixels: torch.Tensor) -> dict:
    newline, video = model.config.image_newline_token_id, model.config.video_token_id
    theirs = torch.tensor([[video if token == newline else token for token in ids]], device=pixels.device)
    if stock.config.model_type == "llava":
        return {"input_ids": theirs, "pixel_values": pixels}
    name = "pixel_values_videos" if stock.config.model_type == "llava_onevision" else "pixel_values"
    return {"input_ids": theirs, name: pixels[None]}


def one_by_one(model, ids: list[int], pixels: torch.Tensor) -> torch.Tensor:
    """Logits `[1, T, V]` where each call ends at the end of a frame."""
    video, per_frame = model.config.video_token_id, model.config.num_frame_tokens
    first = ids.index(video)
    cuts = [first + per_frame * (number + 1) for number in range(len(pixels))]
    cache, at, parts = MoDCache(model.config), 0, []
    for number, cut in enumerate([*cuts, len(ids)]):
        own = torch.tensor([ids[at:cut]], device=pixels.device)
        inputs = {"pixel_values_videos": pixels[number : number + 1]} if number < len(pixels) else {}
        parts.append(model(input_ids=own, cache=cache, **inputs).logits)
        at = cut
    return torch.cat(parts, dim=1)


@torch.no_grad()
def compare(shape: dict, device: torch.device) -> dict:
    """One row of the table, with the largest values over an image and a video."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**shape)
    with device:
        stock = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    model, _ = VideoLLMMoDForConditionalGeneration.from_vlm(stock, tokenizer_for(config))
    model.to(device)
    side, rows = config.vision_config.image_size, []
    for frames in (1, FRAMES):
        pixels, others = torch.randn(2, frames, 3, side, side, device=device)
        ids = prompt(model, frames)
        ours = {"input_ids": torch.tensor([ids], device=device), "pixel_values_videos": pixels}
        theirs = stock_inputs(stock, model, ids, pixels)
        expected = stock(**theirs).logits
        largest = expected.abs().max()
        logits = model(**ours).logits
        assert logits.shape == expected.shape
        if model.config.image_newline_token_id is not None:  # an unused row of the stock class
            expected[..., model.config.image_newline_token_id] = logits[..., model.config.image_newline_token_id]
        changed = model(**{**ours, "pixel_values_videos": others}, logits_to_keep=WORDS).logits
        in_pieces = one_by_one(model, ids, pixels)
        options = {"max_new_tokens": WORDS, "do_sample": False, "pad_token_id": 0}
        never = model.generation_config.suppress_tokens
        said = stock.generate(**theirs, **options, suppress_tokens=never)[0, len(ids) :]
        rows.append(
            {
                "difference": ((logits - expected).abs().max() / largest).item(),
                "other_pixels": ((changed - logits[:, -WORDS:]).abs().max() / largest).item(),
                "one_by_one": ((in_pieces - logits).abs().max() / largest).item(),
                "same_words": torch.equal(model.generate(**ours, **options)[0, len(ids) :], said),
            }
        )
    return {
        "parameters": sum(weight.numel() for weight in stock.parameters()),
        "tokens_per_frame": model.config.num_frame_tokens,
        "difference": max(row["difference"] for row in rows),
        "other_pixels": min(row["other_pixels"] for row in rows),
        "one_by_one": max(row["one_by_one"] for row in rows),
        "same_words": all(row["same_words"] for row in rows),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="narrow layers, on a CPU too")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="NAME")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="the JSON (default: in benchmarks/results, with --tiny none)")
    args = parser.parse_args(argv)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    transformers.logging.set_verbosity_error()
    output = args.output or (None if args.tiny else RESULTS / "vlm_equality.json")
    command = "python -m videollm_mod.benchmarks.vlm_equality" + " --tiny" * args.tiny
    result = {"command": command, "commit": commit(), **surroundings(), "tolerance": TOLERANCE, "models": {}}
    print(f"{'model':28}{'parameters':>12}{'N':>6}{'difference':>12}{'one by one':>12}{'other pixels':>14}  words")
    for name in args.only:
        start = time.perf_counter()
        row = compare(narrow(SHAPES[name]) if args.tiny else SHAPES[name], torch.device(args.device))
        row["seconds"] = round(time.perf_counter() - start, 1)
        result["models"][name] = row
        write(output, result)
        figures = f"{row['parameters']:>12,}{row['tokens_per_frame']:>6}{row['difference']:>12.1e}"
        figures += f"{row['one_by_one']:>12.1e}{row['other_pixels']:>14.1e}"
        print(f"{name:28}{figures}  {'equal' if row['same_words'] else 'DIFFER'}", flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    rows = result["models"].values()
    return int(any(row["difference"] > TOLERANCE or not row["same_words"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
