"""Tiny tokenizers and chat templates of other families, with their special tokens. The templates are written after
those of the published checkpoints: llava-hf/llava-1.5-7b-hf, llava-hf/llava-interleave-qwen-0.5b-hf,
llava-hf/llava-onevision-qwen2-0.5b-ov-hf, HuggingFaceTB/SmolVLM2-256M-Video-Instruct and
HuggingFaceM4/Idefics3-8B-Llama3.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

FAKE, IMAGE_TOKENS = (
    "<fake_token_around_image>",
    ["<global-img>", *(f"<row_{r}_col_{c}>" for r in "123456" for c in "123456")],
)
MERGES = [("Ċ", "Ċ"), ("Ġ", "a"), ("Ġ", "U"), (":", "Ġ"), ("Ġ", "Ċ"), ("e", "r"), (".", "Ċ"), ("Ġ", "A"), ("1", "2")]

VICUNA = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
INTERLEAVE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}VIDEOS"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + c['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VIDEOS = "{% for c in m['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
SMOLVLM = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% elif c['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CHATML = (  # of a text model: the content is a string, and there is a system message by default
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(special: list[str], **named) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a regular expression for words, as of Qwen2, SmolLM2 and Llama 3."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in MERGES:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


def metaspace(special: list[str], legacy: bool = False) -> LlamaTokenizer:
    """BPE on words that begin with a mark for a space, as of Llama 2 and Vicuna. It adds a beginning of sequence."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?!<>/'"]
    merges = [("▁", "U"), ("S", "E"), ("▁U", "SE"), ("▁USE", "R"), ("▁", "A"), ("▁", "▁"), ("a", "t"), (".", ".")]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, "▁", *letters])}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=legacy, add_bos_token=True, pad_token="<unk>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


def family(name: str):
    """`(model type, tokenizer, chat template)` of a family."""
    if name in ("llava", "llava legacy"):
        return "llava", metaspace(["<image>"], legacy="legacy" in name), VICUNA
    if name == "llava interleave":
        named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        return "llava", byte_level(["<|im_start|>", "<image>"], **named), INTERLEAVE.replace("VIDEOS", "")
    if name == "llava chatml":
        named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        return "llava", byte_level(["<|im_start|>", "<image>"], **named), CHATML
    if name == "llava_onevision":
        named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        tokenizer = byte_level(["<|im_start|>", "<image>", "<video>"], **named)
        return "llava_onevision", tokenizer, INTERLEAVE.replace("VIDEOS", VIDEOS)
    special = [FAKE, "<image>", *IMAGE_TOKENS]
    if name == "smolvlm":
        named = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
        return "smolvlm", byte_level(special, **named), SMOLVLM
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"}
    tokenizer = byte_level([FAKE, "<image>", "<end_of_utterance>"], **named)
    return "idefics3", tokenizer, SMOLVLM.replace("<|im_start|>", "<|begin_of_text|>", 1)
