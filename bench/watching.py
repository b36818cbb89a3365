"""The measurements of `bench stream`: a model watches, each time from the same state of its session."""

import contextlib
import time
from collections.abc import Callable
from itertools import islice
from unittest import mock

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .. import steps as steps_module
from ..compat import CACHE_NAME
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor
from ..static_graphs import Graph
from ..steps import run_steps
from .filled import fill
from .record import ROOT
from .streams import random_model
from .traffic import bytes_of_weights, copy_rate

QUESTION = "What happened to the red ball that was on the table a while ago?"
WORDS_ONLY = {
    "text_config": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32},
    "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}  # of a model that is thrown away; only the processor that comes with it is needed
WARM_UP = 3  # calls; the second captures a CUDA graph


def build(geometry: str, device: torch.device, tokens: int = 10):
    """A model, in bfloat16 on a GPU and in float32 on a CPU, and a processor with a small vocabulary."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if geometry == "nano":
        model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=dtype).eval().to(device)
        processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    else:
        from ..training.initialise import initialise

        _, processor = initialise(WORDS_ONLY, [f"\nUser: {QUESTION}\nAssistant: nothing"], vocab_size=300, seed=0)
        model = random_model(geometry, device, tokens, dtype).eval()
        config, vision = model.config, model.config.vision_config
        config.video_token_id = processor.video_token_id
        config.frame_separator_token_id = processor.frame_separator_token_id
        video = type(processor.video_processor)(size={"height": vision.image_size, "width": vision.image_size})
        processor = VideoLLMMoDProcessor(video, processor.tokenizer, num_frame_tokens=config.num_frame_tokens)
    never = {processor.video_token_id, processor.tokenizer.eos_token_id}  # so that it never stops speaking
    never |= set(range(len(processor.tokenizer), model.config.text_config.vocab_size))
    model.generation_config.suppress_tokens = sorted(never)
    return model, processor


@contextlib.contextmanager
def configured(model, dense: bool = False, static: bool = True):
    """With `dense`, every token enters every layer of the model. Without `static`, sessions use no CUDA graphs."""
    text = model.config.text_config
    routing, off = text.vision_routing, (lambda model: (None, "switched off"))
    text.vision_routing = "full" if dense else routing
    try:
        with contextlib.nullcontext() if static else mock.patch.object(steps_module, "static_language_model", off):
            yield
    finally:
        text.vision_routing = routing


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def clock(call, device: torch.device, repeats: int) -> list[float]:
    """Seconds of each call, after warm-up calls."""
    seconds = []
    for index in range(WARM_UP + repeats):
        synchronise(device)
        start = time.perf_counter()
        call(index)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def summary(seconds: list[float], frames: int = 1) -> dict:
    milliseconds = sorted(1000 * x for x in seconds)
    return {
        "p50_ms": round(milliseconds[len(milliseconds) // 2], 4),
        "p95_ms": round(milliseconds[min(len(milliseconds) - 1, int(0.95 * len(milliseconds)))], 4),
        "per_second": round(frames * len(seconds) / sum(seconds), 3),
        "raw_ms": [round(1000 * x, 3) for x in seconds],
    }


def joined(parts: list[dict], frames: int = 1, **about) -> dict:
    """Several measurements of the same row as one."""
    whole = {**parts[-1], **summary([ms / 1000 for part in parts for ms in part["raw_ms"]], frames)}
    if "ms_per_frame" in whole:
        stages = {name: [part["ms_per_frame"][name] for part in parts] for name in whole["ms_per_frame"]}
        whole["ms_per_frame"] = {name: round(sum(ms) / len(ms), 4) for name, ms in stages.items()}
    if "device_ms" in whole:
        whole["device_ms"] = min(part["device_ms"] for part in parts)
        whole["host_ms"] = round(whole["p50_ms"] - whole["device_ms"], 4)
        whole["read_bytes"], whole["copy_ms"] = parts[-1]["read_bytes"], round(parts[-1]["copy_ms"], 4)
    return whole


def session_of(model, processor, held: int, **options):
    session = model.stream(processor, speak_threshold=0.0, max_new_tokens=10_000, **options)
    if held:
        fill(session, held)
    return session


def language(model, processor, held: int, repeats: int, frames: int = 1) -> dict:
    """From features of frames to the decision to speak, in the language model alone, `frames` per call."""
    session = session_of(model, processor, held)
    size = (frames, model.config.num_frame_tokens, model.config.vision_config.hidden_size)
    features = torch.randn(size, device=model.device, dtype=model.dtype)

    def call(index=0):
        list(session.watch_encoded(features))

    found = {**summary(clock(call, model.device, repeats), frames), "why_not_static": session.stats.why_not_static}
    device_ms = graphs_ms(call, repeats)
    if device_ms is None:
        return found
    read = bytes_of_weights(model) + session.stats.kv_bytes
    return {**found, "device_ms": device_ms, "read_bytes": read, "copy_ms": read / copy_rate(model.device) * 1e3}


def graphs_ms(call: Callable[[], None], repeats: int) -> float | None:
    """Time of the graphs that one more call replays, in a row of replays: what remains of a call is the host's. None
    if it replays none. The replays write the tokens of this call again, so its session has to live on."""
    with mock.patch.object(Graph, "__call__", autospec=True, side_effect=Graph.__call__) as replay:
        call()
    graphs = [graph for (graph, *_), _ in replay.call_args_list]
    if not graphs:
        return None
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(1 + repeats):
        if number == 1:  # the device is at work already
            begin.record()
        for graph in graphs:
            graph()
    end.record()
    end.synchronize()
    return round(begin.elapsed_time(end) / repeats, 4)


def end_to_end(model, processor, held: int, repeats: int, frames: int, size: tuple[int, int]) -> dict:
    """From decoded frames of `size` (height, width) in host memory to the decision to speak, `frames` per call."""
    session = session_of(model, processor, held)
    pixels = np.random.default_rng(0).integers(0, 256, (4 * frames, *size, 3), dtype=np.uint8)
    before = {}

    def call(index):
        if index == WARM_UP:
            before.update(session.stats.seconds)
        first = index % 4 * frames
        session.push(pixels[first : first + frames])

    seconds = clock(call, model.device, repeats)
    stages = {
        name: round(1000 * (value - before[name]) / (repeats * frames), 4)
        for name, value in session.stats.seconds.items()
        if name != "generation"
    }
    return {**summary(seconds, frames), "ms_per_frame": stages, "frame_size": list(size)}


def first_token(model, processor, held: int, repeats: int) -> dict:
    """From a question to the first token of its answer."""
    session = session_of(model, processor, held)
    before = session.state.mark()
    times: list[float] = []

    def call(index):
        session.instruct(QUESTION)
        tokens = run_steps(session.replying())
        next(tokens)
        times.append(time.perf_counter() - start)
        tokens.close()
        session.state.rollback(before)

    for index in range(WARM_UP + repeats):
        synchronise(model.device)
        start = time.perf_counter()
        call(index)
    ids = processor.user_header_ids + processor.encode_text(QUESTION)
    return {**summary(times[WARM_UP:]), "question_tokens": len(ids)}


def generation(model, processor, held: int, repeats: int) -> dict:
    """The tokens of an answer after the first, one by one."""
    session = session_of(model, processor, held)
    session.instruct(QUESTION)
    tokens = run_steps(session.replying())
    next(tokens)
    return summary(clock(lambda index: next(tokens), model.device, repeats))


def stock_llama(model) -> LlamaForCausalLM:
    """The Llama of transformers with the same weights."""
    text = model.config.text_config
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["num_key_value_heads", "head_dim", "rope_parameters", "max_position_embeddings", "rms_norm_eps"]
    config = LlamaConfig(**{name: getattr(text, name) for name in names})
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        stock = LlamaForCausalLM(config)
    stock.model.load_state_dict(model.model.language_model.state_dict(), strict=False, assign=True)
    stock.lm_head.weight = model.lm_head.weight
    stock.model.rotary_emb = LlamaRotaryEmbedding(config).to(model.device)
    return stock.eval()


def stock(model, held: int, repeats: int, frames: int = 1) -> dict:
    """`LlamaForCausalLM` with a `DynamicCache`; all tokens of frames enter all layers."""
    llama, text = stock_llama(model), model.config.text_config
    per_frame = model.config.num_frame_tokens + 1
    cache = DynamicCache(config=llama.config)
    shape = (1, text.num_key_value_heads, held * per_frame, text.head_dim)
    for layer in range(text.num_hidden_layers if held else 0):
        keys, values = (torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2))
        cache.update(keys, values, layer)
    embeds = torch.randn(1, frames * per_frame, text.hidden_size, device=model.device, dtype=model.dtype)

    @torch.no_grad()
    def call(index):
        llama(inputs_embeds=embeds, **{CACHE_NAME: cache}, logits_to_keep=1)

    return summary(clock(call, model.device, repeats), frames)


def decode(repeats: int, folder) -> dict:
    """Decode a clip on the CPU, frame by frame, as `narrate` does."""
    from ..data.world_clip import write_clip
    from ..decoding import iter_video_frames

    path = write_clip(folder / "clip.mp4", seed=0, height=384)[0]
    seconds, frames, start = [], islice(iter_video_frames(path, fps=None), repeats), time.perf_counter()
    for frame, _ in frames:
        seconds.append(time.perf_counter() - start)
        start, size = time.perf_counter(), frame.shape[:2]
    return {**summary(seconds[1:]), "frame_size": list(size)}
