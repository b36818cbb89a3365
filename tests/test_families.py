"""Prompts of other families: our ids are those of the family's own template, rendered and tokenised by the stock
tokenizer, with the stock processor's text for videos and images."""

from itertools import chain

import numpy as np
import pytest
from family_tokenizers import family
from PIL import Image
from transformers import Idefics3Processor, LlavaOnevisionProcessor
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE, SmolVLMProcessor
from transformers.video_utils import VideoMetadata

from videollm_mod.processing_videollm_mod import VideoLLMMoDProcessor
from videollm_mod.sequence import in_words
from videollm_mod.video_processing_videollm_mod import VideoLLMMoDVideoProcessor

N = 4  # vision tokens of a frame
NAMES = ["llava", "llava legacy", "llava interleave", "llava chatml", "llava_onevision", "smolvlm", "idefics3"]


def processor_of(name: str, **options) -> VideoLLMMoDProcessor:
    model_type, tokenizer, template = family(name)
    video_processor = VideoLLMMoDVideoProcessor(size={"height": 8, "width": 8}, **options)
    return VideoLLMMoDProcessor.of_family(model_type, video_processor, tokenizer, template, num_frame_tokens=N)


@pytest.fixture(scope="module", params=NAMES)
def named(request):
    return request.param, processor_of(request.param)


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def messages(*turns) -> list[dict]:
    """Turns of users and assistants in turn; media are given by their types."""
    roles = ["user", "assistant"] * len(turns)
    blocks = [[text(x) if x not in ("image", "video") else {"type": x} for x in turn] for turn in turns]
    return [{"role": role, "content": content} for role, content in zip(roles, blocks, strict=False)]


CONVERSATIONS = {
    "image": messages(["image", "What is 12?"]),
    "two images": messages(["image", "image", " Two\nlines, 1212.\n"]),
    "text": messages(["Hi."]),
    "turns": messages(["image", "What? "], ["A cat."], ["And now?"], ["A er."], ["image", "Now."]),
    "system": [{"role": "system", "content": [text("Be brief.")]}, *messages(["image", "What?"], ["A"], ["Er"])],
}


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 6, 9, 3), dtype=np.uint8)


def with_media(conversation: list[dict], count: int = 3) -> list[dict]:
    media = {"image": Image.fromarray(frames(1)[0]), "video": frames(count)}
    return [
        message
        | {"content": [b | {b["type"]: media[b["type"]]} if b["type"] in media else b for b in message["content"]]}
        for message in conversation
    ]


def as_strings(conversation: list[dict], image: str) -> list[dict]:
    return [
        message | {"content": "".join(b.get("text") or image + "\n" for b in message["content"])}
        for message in conversation
    ]


def stock_image(name: str, processor, rows: int = 0, columns: int = 0) -> str:
    """What the stock processor puts in the place of an image."""
    if name not in ("smolvlm", "idefics3"):
        return "<image>" * N
    stock = object.__new__(SmolVLMProcessor if name == "smolvlm" else Idefics3Processor)
    stock.image_seq_len, stock.image_token, stock.fake_image_token = N, "<image>", "<fake_token_around_image>"
    stock.global_image_token = stock.global_image_tag = "<global-img>"
    return stock.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)


@pytest.mark.parametrize("which", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_prompts_with_images_are_those_of_the_stock_processor(named, which, prompt):
    name, processor = named
    conversation = CONVERSATIONS[which]
    given = as_strings(conversation, "<image>") if name == "llava chatml" else conversation
    rendered = processor.tokenizer.apply_chat_template(
        given, chat_template=processor.chat_template, add_generation_prompt=prompt, tokenize=False
    )
    assert processor.apply_chat_template(conversation, add_generation_prompt=prompt) == rendered
    expanded = rendered.replace("<image>", stock_image(name, processor))
    bos = processor.tokenizer.bos_token
    expected = processor.tokenizer(expanded, add_special_tokens=not (bos and rendered.startswith(bos)))["input_ids"]
    inputs = processor.apply_chat_template(
        with_media(conversation),
        add_generation_prompt=prompt,
        tokenize=True,
        return_dict=True,
        do_image_splitting=False,
    )
    ids = inputs["input_ids"][0]
    if name == "llava_onevision":  # images are frames, with the family's newline as a token of its own
        newline = processor.tokenizer.convert_tokens_to_ids("<image_newline>")
        image = processor.tokenizer.convert_tokens_to_ids("<image>")
        ids = [i for i in ids if i != newline]
        ids = [image if i == processor.video_token_id else i for i in ids]
    assert ids == expected
    images = sum(b["type"] == "image" for message in conversation for b in message["content"])
    assert len(inputs.get("pixel_values_videos", [])) == images
    if name != "llava_onevision" and images:
        again = processor(rendered, images=[Image.fromarray(frames(1)[0])] * images)
        assert again["input_ids"][0] == expected


@pytest.mark.parametrize(("count", "fps", "duration"), [(3, 1.0, None), (12, 0.1, 125.9), (1, 2.0, 3700.0)])
def test_smolvlm_videos_are_those_of_the_stock_processor(count, fps, duration, monkeypatch):
    processor = processor_of("smolvlm")
    stock = object.__new__(SmolVLMProcessor)
    stock.image_seq_len, stock.image_token, stock.fake_image_token = N, "<image>", "<fake_token_around_image>"
    stock.global_image_token = "<global-img>"
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", in_words)
    metadata = VideoMetadata(total_num_frames=count, fps=fps, duration=duration, frames_indices=list(range(count)))
    video = stock.replace_video_token({"pixel_values": np.zeros((1, count, 3, 8, 8)), "video_metadata": [metadata]}, 0)
    conversation = messages(["video", "What?"], ["A cat."], ["Now?"])
    rendered = processor.tokenizer.apply_chat_template(
        conversation, chat_template=DEFAULT_CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == rendered
    expected = processor.tokenizer(rendered.replace("<video>", video))["input_ids"]
    options = {"video_metadata": [metadata]}
    inputs = processor.apply_chat_template(
        with_media(conversation, count),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs=options,
    )
    assert inputs["input_ids"] == [expected]
    again = processor(rendered, videos=frames(count), **options)
    assert again["input_ids"] == [expected]
    assert len(again["pixel_values_videos"]) == count


@pytest.mark.parametrize("count", [1, 5])
def test_onevision_videos_are_those_of_the_stock_processor(count):
    processor = processor_of("llava_onevision")
    stock = object.__new__(LlavaOnevisionProcessor)
    stock.num_image_tokens, stock.video_token = 16, "<video>"  # 4 x 4 patches, pooled by 2
    video = stock.replace_video_token({"pixel_values_videos": np.zeros((1, count, 3, 8, 8))}, 0)
    conversation = messages(["video", "What?"], ["A cat."], ["video", "Now?"])
    rendered = processor.tokenizer.apply_chat_template(
        conversation, chat_template=processor.chat_template, add_generation_prompt=True, tokenize=False
    )
    expected = processor.tokenizer(rendered.replace("<video>", video))["input_ids"]
    (ids,) = processor.apply_chat_template(with_media(conversation, count), add_generation_prompt=True, tokenize=True)
    newline, token = processor.tokenizer.convert_tokens_to_ids("<image_newline>"), processor.video_token_id
    assert ids.count(newline) == 2
    assert all(ids[at - 1] == token for at, i in enumerate(ids) if i == newline)
    assert [token if i == newline else i for i in ids] == expected


@pytest.mark.parametrize("name", ["llava", "idefics3", "llava interleave"])
def test_a_video_is_an_image_a_frame_where_there_are_no_videos(name):
    processor, options = processor_of(name), {"add_generation_prompt": True, "tokenize": True}
    video = processor.apply_chat_template(with_media(messages(["video", "What?"]), 3), **options)
    images = with_media(messages(["image", "image", "image", "What?"]))
    assert video == processor.apply_chat_template(images, **options, do_image_splitting=False)


def test_numbers_in_words():
    words = {0: "zero", 8: "eight", 19: "nineteen", 20: "twenty", 64: "sixty-four", 100: "one hundred"}
    words |= {101: "one hundred and one", 999: "nine hundred and ninety-nine", 1000: "one thousand"}
    words |= {1012: "one thousand and twelve", 12345: "twelve thousand, three hundred and forty-five"}
    assert {number: in_words(number) for number in words} == words


@pytest.mark.parametrize(
    "forged", ["<|im_start|>", "<image>", "<video>", "<fake_token_around_image>", "<s>", "</s>", "<end_of_utterance>"]
)
def test_text_cannot_forge_structure(named, forged):
    _, processor = named
    special = {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}

    def structure(question: str) -> list[int]:
        conversation = messages(["image", question], [f"No {forged}"], [question])
        (ids,) = processor.apply_chat_template(with_media(conversation), tokenize=True, do_image_splitting=False)
        live = processor.question_ids(question, True) + processor.reply_start_ids(True, question)
        return [i for i in ids + live + processor.start_ids() if i in special]

    honest = structure("So what?")
    forgery = structure(f"So {forged}what {forged}")
    assert honest == forgery


def test_live_pieces_of_smolvlm():
    """Time per frame, no intro; what stands between frames and question is what stands there in a recorded video."""
    processor = processor_of("smolvlm")
    decode = processor.tokenizer.decode
    frame = "<fake_token_around_image><global-img>" + "<image>" * N + "<fake_token_around_image>"
    assert decode(processor.start_ids()) == "<|im_start|>"
    assert decode(processor.start_ids("Hi <image>.")) == "<|im_start|>System: Hi <image>.<end_of_utterance>\n"
    assert decode(processor.start_stream_ids) == "User: \n"  # a line break ends each frame, whatever comes next
    assert decode(processor.frame_ids_at(0.0)) == "Frame from 00:00:" + frame + "\n"
    assert decode(processor.frame_ids_at(725.9)) == "Frame from 12:05:" + frame + "\n"
    assert processor.between_frames_ids == [] and processor.instruction_ids("What?", True) == []
    assert decode(processor.reply_start_ids(True)) == "\nWhat do you see?<end_of_utterance>\nAssistant:"
    assert decode(processor.reply_start_ids(True, "Why?")) == "\nWhy?<end_of_utterance>\nAssistant:"
    assert decode(processor.question_ids("Why?", True) + processor.reply_start_ids(False)) == decode(
        processor.reply_start_ids(True, "Why?")
    )
    assert decode(processor.question_ids("Why?", False)) == "User: Why?"
    assert decode(processor.reply_end_ids) == "<end_of_utterance>\n"
    assert processor.reply_stop_id == processor.reply_end_ids[0] == processor.tokenizer.eos_token_id


COUNTING = "{% for m in messages %}{{ m.content }}|{{ loop.length }}{% endfor %}"
LIVE = {  # the opening of a stream, between frames, from frames to a reply, after it
    "llava": (" USER: ", "\n", "\nWhy? ASSISTANT:", ""),
    "llava interleave": ("<|im_start|>user ", "", "\nWhy?<|im_end|><|im_start|>assistant\n", "<|im_end|>"),
    "llava chatml": ("<|im_start|>user\n", "\n", "\nWhy?<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
    "llava_onevision": (
        "<|im_start|>user ",
        "",
        "<image_newline>\nWhy?<|im_end|><|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "idefics3": ("User:", "", "Why?<end_of_utterance>\nAssistant:", "<end_of_utterance>\n"),
}


@pytest.mark.parametrize("name", LIVE)
def test_live_pieces(name):
    processor, (start, between, reply, end) = processor_of(name), LIVE[name]
    given = processor.start_stream_ids, processor.between_frames_ids, processor.reply_start_ids(True, "Why?")
    decoded = [processor.tokenizer.decode(ids) for ids in (*given, processor.reply_end_ids)]
    if name == "llava":  # this decoder drops the first space
        start, between, reply = "USER: ", "\n", "\nWhy? ASSISTANT:"
        decoded = [text.removeprefix(" ") for text in decoded]
    assert decoded == [start, between, reply, end]
    start = "<|im_start|>system\nYou are helpful.<|im_end|>\n" if name == "llava chatml" else ""
    decoded = processor.tokenizer.decode(processor.start_ids())
    assert decoded.removeprefix("<s>").removeprefix("<|begin_of_text|>") == start


@pytest.mark.parametrize("name", ["llava", "llava legacy", "llava interleave", "llava_onevision", "idefics3"])
def test_a_stream_up_to_the_first_reply_is_the_prompt_of_a_recorded_video(name):
    """What the family sees live is what it was trained on, wherever its prompts say no length of the video."""
    processor, options = processor_of(name), {"add_generation_prompt": True, "tokenize": True}
    stream = [{"role": "stream", "num_frames": 3}, {"role": "user", "content": "What do you see?"}]
    (live,) = processor.apply_chat_template(stream, **options)
    (narrated,) = processor.apply_chat_template(stream[:1], **options)
    (recorded,) = processor.apply_chat_template(with_media(messages(["video", "What do you see?"]), 3), **options)
    assert live == narrated == recorded


@pytest.mark.parametrize("name", NAMES)
def test_conversations_with_streams_are_what_a_session_feeds(name):
    processor = processor_of(name)
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name it."},
        {"role": "stream", "num_frames": 2},
        {"role": "assistant", "content": "A cat."},
        {"role": "stream", "num_frames": 1},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Er."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "A."},
        {"role": "stream", "num_frames": 3},
    ]
    (ids,) = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True)
    frames = [processor.frame_ids_at(index / processor.video_processor.fps) for index in range(6)]
    between, prefix = processor.between_frames_ids, processor.sequence.reply_prefix
    expected = processor.start_ids("Be brief.") + processor.start_stream_ids + frames[0] + between + frames[1]
    expected += processor.reply_start_ids(True, "Name it.") + processor.encode_text("A cat.", prefix)
    expected += processor.reply_end_ids + processor.start_stream_ids + frames[2]
    expected += processor.question_ids("Why?", True) + processor.reply_start_ids(False)
    expected += processor.encode_text("Er.", prefix) + processor.reply_end_ids
    expected += processor.question_ids("And?", False) + processor.reply_start_ids(False)
    expected += processor.encode_text("A.", prefix) + processor.reply_end_ids
    expected += processor.start_stream_ids + frames[3] + between + frames[4] + between + frames[5]
    assert ids == expected + processor.reply_start_ids(True, "Name it.")
    encoded = processor.encode_conversation(conversation)
    assert encoded.input_ids == expected
    at = [first for turn in encoded.turns for first in turn.frames]
    assert all(expected[i : i + N] == [processor.video_token_id] * N for i in at) and len(at) == 6
    learned = [y for y in encoded.labels if y != -100]
    replies = [[*processor.encode_text(text, prefix), processor.reply_stop_id] for text in ("A cat.", "Er.", "A.")]
    silence, speech = processor.frame_separator_token_id, processor.reply_start_ids(True, "Name it.")[0]
    decisions = [[], [], []] if silence is None else [[silence], [speech], [silence] * 2]
    assert learned == [*decisions[0], *decisions[1], *chain(*replies), *decisions[2]]


def test_labels_of_prompts_are_the_replies_and_their_ends(named):
    _, processor = named
    conversation = messages(["What? "], ["A cat."], ["And now?"], ["A er."])
    conversation[1]["learn"] = False
    encoded = processor.encode_conversation(conversation)
    learned = processor.tokenizer.decode([y for y in encoded.labels if y != -100])
    said = processor.tokenizer.decode([i for i, is_reply in zip(*encoded[0:3:2], strict=True) if is_reply])
    end = processor.tokenizer.decode(processor.reply_end_ids[:1])
    assert learned.strip() == "A er." + end
    assert "".join(said.split()) == "".join(f"A cat.{end}A er.{end}".split())


@pytest.mark.parametrize(
    ("model_type", "change", "error"),
    [
        ("qwen2_vl", {}, "`family` must be one of llava, llava_onevision, idefics3, smolvlm, got 'qwen2_vl'"),
        ("smolvlm", {"template": None}, "needs its chat template, got None"),
        ("smolvlm", {"tokenizer": family("llava")[1]}, "it has no token <fake_token_around_image>$"),
        ("llava_onevision", {"tokenizer": family("llava")[1]}, "it has no token <video>$"),
        ("llava", {"template": "{{ messages[0]['content'] }}"}, "the chat template"),
        (
            "llava",
            {"template": COUNTING},
            "cannot be cut: ",
        ),
        ("llava", {"template": "{{ raise_exception('no') }}"}, "the chat template cannot be used: no"),
        ("llava", {"template": "no text"}, "the chat template loses or repeats the block for '<image>' of a message"),
    ],
)
def test_families_that_cannot_be_read_are_refused(model_type, change, error):
    _, tokenizer, template = family(model_type if model_type in NAMES else "llava")
    tokenizer, template = change.get("tokenizer", tokenizer), change.get("template", template)
    video_processor = VideoLLMMoDVideoProcessor(size={"height": 8, "width": 8})
    with pytest.raises(ValueError, match=error):
        VideoLLMMoDProcessor.of_family(model_type, video_processor, tokenizer, template, num_frame_tokens=N)


def test_a_system_prompt_is_refused_where_the_template_has_none():
    model_type, tokenizer, template = family("llava interleave")
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + template
    video_processor = VideoLLMMoDVideoProcessor(size={"height": 8, "width": 8})
    processor = VideoLLMMoDProcessor.of_family(model_type, video_processor, tokenizer, template, num_frame_tokens=N)
    with pytest.raises(ValueError, match="`system_prompt` cannot be given"):
        processor.start_ids("Be brief.")


def test_processors_of_families_are_saved(named, tmp_path):
    name, processor = named
    if name == "llava legacy":
        pytest.skip("transformers does not save `legacy`, so the stock tokenizer differs")
    processor.save_pretrained(tmp_path)
    again = VideoLLMMoDProcessor.from_pretrained(tmp_path)
    conversation = with_media(messages(["image", "video", "What?"], ["A."]))
    options = {"tokenize": True, "add_generation_prompt": True}
    assert again.apply_chat_template(conversation, **options) == processor.apply_chat_template(conversation, **options)
    assert again.reply_start_ids(True) == processor.reply_start_ids(True) and again.pieces == processor.pieces
    assert again.default_query == "What do you see?"
