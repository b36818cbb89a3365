"""The two protocols of a benchmark, and the controls: from a model and an item to an outcome.

Poll: the model is asked anew at each time, with the frames up to it, as official scripts do.
Stream: frames pass once through a session that speaks by its own rule, and the question is asked once. What the model
says from then on counts. Where the stream ends with the question, that is the answer to it; otherwise the question is
an instruction, which comes before the frame of its second. A model that cannot speak by itself answers once.
"""

from time import perf_counter

from ..data.benchmark_items import Item, Poll
from .benchmark_views import Cost, Model, View
from .benchmarks import Benchmark, Outcome
from .video_window import count_frames, frames_between

LAST = 4  # frames that the control `last4` sees
DECIDED = ("alert", "yes-no")  # kinds whose polls ask whether it is time to speak
REFUSAL = "I do not know."


def since(poll: Poll, context_seconds: float | None) -> float:
    """The second from which on frames are seen."""
    return poll.since if context_seconds is None else max(poll.since, poll.time - context_seconds)


def goes_on(item: Item) -> bool:
    """Whether the stream goes on after the question."""
    return item.end > item.stream.time


def changes(control: str, protocol: str, item: Item) -> bool:
    """Whether a control that runs a model can change what it does with an item."""
    if control != "always":
        return True
    return item.kind in DECIDED if protocol == "poll" else goes_on(item)


def run(
    model: Model,
    benchmark: Benchmark,
    item: Item,
    video: str,
    protocol: str,
    control: str | None = None,
    context_seconds: float | None = None,
) -> Outcome:
    """What a model does on one item.

    Args:
        video (`str`): path of the item's video.
        protocol (`str`): `"poll"` or `"stream"`.
        control (`str`, *optional*): `"always"`, `"last4"`, `"blind"` or `"dense"`.
        context_seconds (`float`, *optional*): only the frames of the last seconds before each question are shown.

    Raises:
        `ValueError`, `OSError`: for a video that cannot be decoded, or a server that does not answer.
    """
    begin = perf_counter()
    view = model.view(video, benchmark.max_new_tokens, dense=control == "dense")
    frames = Frames(0 if control == "blind" else count_frames(video, model.fps), model.fps, control, context_seconds)
    if protocol == "poll":
        outcome = Outcome(item.id, answers=polled(view, benchmark, item, frames, control))
    else:
        outcome = Outcome(item.id, said=streamed(view, item, frames, control, model.speaks))
    view.cost.seconds = perf_counter() - begin
    outcome.cost = vars(view.cost)
    return outcome


class Frames:
    """The frames of a video that a control shows."""

    def __init__(self, count: int, fps: float, control: str | None, context_seconds: float | None):
        self.count, self.fps, self.context_seconds = count, fps, context_seconds
        self.only_last = control == "last4"

    def until(self, poll: Poll) -> range:
        """Those that are seen when it is asked."""
        if not self.count:
            return range(0)
        frames = frames_between(since(poll, self.context_seconds), poll.time, self.fps, self.count)
        return frames[-LAST:] if self.only_last else frames

    def around(self, poll: Poll, end: float) -> tuple[range, range]:
        """Those before an instruction, and those from its second to `end`."""
        if not self.count:
            return range(0), range(0)
        first = frames_between(poll.time, end, self.fps, self.count)
        return range(min(self.until(poll).start, first.start), first.start), first


def polled(view: View, benchmark: Benchmark, item: Item, frames: Frames, control: str | None) -> list[dict]:
    """`Outcome.answers`."""
    answers: list[dict] = []
    while (poll := benchmark.next_poll(item, answers)) is not None:
        always = control == "always" and item.kind in DECIDED
        text = "Yes" if always else view.answer(frames.until(poll), poll.text)
        answers.append({"time": poll.time, "text": text})
    return answers


def streamed(view: View, item: Item, frames: Frames, control: str | None, speaks: bool) -> list[dict]:
    """`Outcome.said`, without what was said before the question."""
    poll = item.stream
    if not speaks or not goes_on(item):
        ((_, text),) = view.stream(frames.until(poll), range(0), poll.text)
        return [{"time": poll.time, "text": text, "kind": "answer"}]
    before, after = frames.around(poll, item.end)
    parts = [(before, after)] if after else []
    if control == "last4":  # at each frame the model begins anew
        parts = [(range(max(before.start, index - LAST + 1), index), range(index, index + 1)) for index in after]
    said = [one for part in parts for one in view.stream(*part, poll.text, always=control == "always")]
    return [{"time": time, "text": text, "kind": "narration"} for time, text in said]


def constant(benchmark: Benchmark, item: Item, protocol: str, text: str) -> Outcome:
    """The outcome of a constant answer; silence if it is empty."""
    answers: list[dict] = []
    said = [{"time": item.stream.time, "text": text, "kind": "answer"}] if text else []
    if protocol == "poll":
        while (poll := benchmark.next_poll(item, answers)) is not None:
            answers.append({"time": poll.time, "text": text})
        said = []
    return Outcome(item.id, answers, said, vars(Cost()))
