"""The model's part of the teacher-forced metrics: a batch with a cache equals single turns without one, and a
scripted model gets scores computed by hand."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_data import small_model
from tiny_models import ROUTINGS

from videollm_mod.configuration_videollm_mod import VideoLLMMoDConfig
from videollm_mod.evaluation import metrics
from videollm_mod.evaluation.teacher_forced_model import teacher_forced


def random_messages(rng: random.Random) -> list[dict]:
    """Streams, narrations and questions in any order."""
    messages = [{"role": "user", "content": "Narrate what happens."}] * rng.randint(0, 1)
    for _ in range(rng.randint(3, 5)):
        if rng.random() < 0.9:
            messages.append({"role": "stream", "num_frames": rng.randint(1, 5)})
        if rng.random() < 0.3:
            messages.append({"role": "user", "content": "What happened last?"})
        if messages and rng.random() < 0.9:
            messages.append({"role": "assistant", "content": rng.choice(("The red circle leaves.", "Nothing."))})
    return [*messages, {"role": "stream", "num_frames": 2}]


def naive(model, processor, messages, features, threshold, known: dict) -> list[metrics.TurnScores]:
    """Turn by turn, with a full pass for every decision and every following frame. `known` holds the logits that were
    asked for at another threshold."""
    ids, labels, *_ = processor.encode_conversation(messages)
    eos, video = processor.tokenizer.eos_token_id, processor.video_token_id
    separator = model.config.frame_separator_token_id

    def logits(sequence: list[int], frames: torch.Tensor) -> torch.Tensor:
        if tuple(sequence) not in known:
            given = {"video_features": frames} if len(frames) else {}
            with torch.no_grad():
                out = model(input_ids=torch.tensor([sequence]), use_cache=False, **given)
            known[tuple(sequence)] = out.logits[0, -1].float()
        return known[tuple(sequence)]

    def wants(sequence: list[int], frames: torch.Tensor) -> bool:
        scores = logits(sequence, frames)
        return bool(scores.softmax(-1)[separator] < threshold or scores.argmax() != separator)

    def num_frames(start: int, stop: int) -> int:
        return ids[start:stop].count(video) // model.config.num_frame_tokens

    stops = [i + 1 for i, token in enumerate(ids) if token == eos]
    turns = []
    for number, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True)):
        learned = [i for i in range(start, stop) if i + 1 < len(ids) and labels[i + 1] != -100]
        decisions = [i for i in learned if ids[i] == video]
        spoken = [wants(ids[: i + 1], features[: num_frames(0, i + 1)]) for i in decisions]
        nll, right = [], []
        for i in (i for i in learned if ids[i] != video):
            scores = logits(ids[: i + 1], features[: num_frames(0, i + 1)])
            nll.append(-scores.log_softmax(-1)[ids[i + 1]].item())
            right.append(bool(scores.argmax() == ids[i + 1]))
        later = []
        if decisions and not any(spoken) and number + 1 < len(stops):
            most = min(num_frames(stop, stops[number + 1]), num_frames(start, stop) - 1)
            for count in range(1, most + 1):
                sequence = ids[: decisions[-1] + 1] + [separator, *processor.frame_ids] * count
                past, following = num_frames(0, decisions[-1] + 1), num_frames(0, stop)
                frames = torch.cat([features[:past], features[following : following + count]])
                later.append(wants(sequence, frames))
        turns.append(metrics.score_turn(nll, right, spoken, later))
    return turns


def close(scores: list[metrics.TurnScores], expected: list[metrics.TurnScores]) -> None:
    assert len(scores) == len(expected)
    for one, other in zip(scores, expected, strict=True):
        for name in ("ppl", "frame_diff", "fluency", "correctness"):
            value = getattr(other, name)
            assert getattr(one, name) == (value if value is None else pytest.approx(value, rel=1e-4)), name


@torch.no_grad()
def incline(model, conversations, features, processor) -> None:
    """Bias the model towards silence, so that it is the most probable token after half of the frames."""
    separator = model.config.frame_separator_token_id
    margins = []
    for messages, frames in zip(conversations, features, strict=True):
        ids = torch.tensor([processor.encode_conversation(messages)[0]])
        logits = model(input_ids=ids, video_features=frames).logits[0, model.model.lay_out(ids).ends_frame[0]]
        margins += (logits.max(-1).values - logits[:, separator]).tolist()
    head = torch.nn.Linear(*model.lm_head.weight.shape[::-1])
    head.weight.copy_(model.lm_head.weight)
    head.bias.zero_()[separator] = float(np.median(margins)) + 1e-3
    model.lm_head = head


@pytest.mark.parametrize("routing", ["learned", "random", "layer skip", "early exit", "keep last"])
def test_batch_with_cache_equals_single_streams_without(routing):
    seed = list(ROUTINGS).index(routing)
    rng, lateness = random.Random(seed), []
    model, processor = small_model(seed, **ROUTINGS[routing])
    conversations = [random_messages(rng) for _ in range(3)]
    features = [
        torch.randn(sum(m.get("num_frames", 0) for m in messages), model.config.num_frame_tokens, 16)
        for messages in conversations
    ]
    # silence is the most probable token after about half of the frames, and after some at the thresholds
    incline(model, conversations, features, processor)
    silence = np.concatenate([s.silence for s in teacher_forced(model, processor, conversations, features)])
    known: list[dict] = [{} for _ in conversations]
    middle = len(silence) * 7 // 10  # between two decisions, so that none is at the threshold
    for threshold in (0.0, float(np.sort(silence)[middle - 1 : middle + 1].mean())):
        streams = teacher_forced(model, processor, conversations, features, threshold)
        for stream, messages, frames, own in zip(streams, conversations, features, known, strict=True):
            close(stream.turns, naive(model, processor, messages, frames, threshold, own))
            lateness += [turn.frame_diff for turn in stream.turns if turn.frame_diff is not None]
    assert any(x > 0 for x in lateness) and any(x < 0 for x in lateness)


class Scripted:
    """A model that reads P(silence) from each frame, and gives each word of a reply a probability of one half, the
    highest except for one wrong word."""

    def __init__(self, processor, wrong_word: str | None = None):
        self.processor, self.device = processor, torch.device("cpu")
        self.config = VideoLLMMoDConfig(frame_separator_token_id=processor.frame_separator_token_id)
        self.wrong = None if wrong_word is None else processor.encode_text(wrong_word)[-1]
        self.starts = []  # positions of the rows at each call
        self.lm_head = torch.nn.Identity()
        self.model = self.call

    def call(self, input_ids, attention_mask, video_features, cache, use_cache):
        processor, valid = self.processor, attention_mask.bool()
        before = cache.next_position
        self.starts.append([0] * len(input_ids) if before is None else before.tolist())
        columns = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        cache.advance(columns + torch.tensor(self.starts[-1])[:, None], valid)
        scores = torch.full((*input_ids.shape, 400), 1e-9)
        *others, wrong = sorted(set(range(400)) - set(input_ids.flatten().tolist()))[-3:]  # words that never occur
        scores[..., others] = 0.25
        following = input_ids.roll(-1, dims=1)
        scores.scatter_(2, following[..., None], 0.5)
        scores[..., wrong] = torch.where(following == self.wrong, 0.6, 1e-9) if self.wrong else 1e-9
        ends = (input_ids == processor.video_token_id).nonzero()[
            processor.num_frame_tokens - 1 :: processor.num_frame_tokens
        ]
        assert len(ends) == len(video_features)
        for (row, column), frame in zip(ends.tolist(), video_features, strict=True):
            silence = frame[0, 0].item()
            scores[row, column] = 1e-9
            scores[row, column, [processor.frame_separator_token_id, processor.stream_end_ids[0]]] = torch.tensor(
                [silence, 1 - silence]
            )
        return SimpleNamespace(last_hidden_state=scores.log())


@pytest.fixture(scope="module")
def processor():
    return small_model()[1]


FIRST, SECOND, QUESTION = "The red circle leaves.", "A blue square appears at the left.", "What happened last?"
SILENCE = {".": 0.9, "!": 0.1, "?": 0.7}  # after a frame; 0.7 is the most probable, but below the threshold


@pytest.mark.parametrize(
    # expected: frames early or late, right predictions before the reply, whether those of the reply count
    "frames, cut, wrong, expected",
    [
        ("...! ....!", False, None, [(0, 4, 1), (0, 5, 1)]),
        (".?.. ....!", False, None, [(2, 2, 0), (0, 5, 1)]),  # early
        (".... .!..!", False, None, [(-2, 3, 0), (3, 2, 0)]),  # late, and early for the next turn
        (".... .....", False, None, [(-3, 3, 0), (0, 5, 1)]),  # never; the last turn counts as on time
        (".... ...!!", False, None, [(-3, 3, 0), (1, 4, 0)]),  # beyond the limit of three frames
        ("...! ....!", False, "circle", [(0, 4, "wrong"), (0, 5, 1)]),
        (
            "...! ....!",
            True,
            None,
            [(-3, 2, 0), (0, 5, 1)],
        ),  # interrupted: the fourth frame has no decision
        (".... !...!", True, None, [(-1, 2, 0), (4, 1, 0)]),
        ("!... ....!", True, None, [(2, 1, 0), (0, 5, 1)]),
    ],
)
def test_scores_of_scripted_models(processor, frames, cut, wrong, expected):
    model = Scripted(processor, wrong)
    question = [{"role": "user", "content": QUESTION}] * cut
    messages = [
        {"role": "stream", "num_frames": 4},
        *question,
        {"role": "assistant", "content": FIRST},
        {"role": "stream", "num_frames": 5},
        {"role": "assistant", "content": SECOND},
        {"role": "stream", "num_frames": 1},
    ]
    silence = [SILENCE[frame] for frame in frames if frame != " "]
    features = torch.tensor([*silence, SILENCE["!"]])[:, None, None].expand(-1, 5, 16)
    other = [{"role": "stream", "num_frames": 1}, *messages]  # in a batch with a longer one
    ours, _ = teacher_forced(model, processor, [messages, other], [features, torch.cat([features[:1], features])])
    header = len(processor.assistant_header_ids)
    for turn, (text, decisions), (difference, run, share) in zip(
        ours.turns, ((FIRST, 3 if cut else 4), (SECOND, 5)), expected, strict=True
    ):
        words = processor.encode_text(text)
        length = header + len(words) + 1
        right = length
        if share == "wrong":
            right = header + words.index(processor.encode_text(wrong)[-1])
            assert turn.ppl > 2
        else:
            assert turn.ppl == pytest.approx(2, rel=1e-3)
        assert turn.frame_diff == difference
        assert turn.correctness == pytest.approx(right / length)
        assert turn.fluency == pytest.approx((run + right * bool(share)) / (decisions + length))
    told = [difference == 0 and share == 1 for difference, _, share in expected]
    assert ours.exact == [told[0] and frames[3] == "!", told[1] and frames[-1] == "!"][cut:]
    late = [difference < 0 for difference, _, _ in expected]
    assert len(model.starts) == 1 + any(late)


def test_frames_after_a_late_turn_replace_the_reply(processor):
    model = Scripted(processor)
    messages = [
        {"role": "stream", "num_frames": 3},
        {"role": "assistant", "content": FIRST},
        {"role": "stream", "num_frames": 3},
        {"role": "assistant", "content": SECOND},
    ]
    features = torch.full((6, 5, 16), SILENCE["."])
    teacher_forced(model, processor, [messages], [features])
    opening = 1 + len(processor.stream_start_ids)
    assert model.starts == [[0], [opening + 3 * 5 + 2]]
