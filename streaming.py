"""The session that feeds a stream to the model: frames in, events out.

After each frame the session finds out how probable silence is; below a threshold the model speaks. What it says and
what it is asked becomes part of the stream.

Shapes: F frames, H and W pixels, N vision tokens per frame, Dv hidden size of the vision tower, V vocabulary.
"""

import copy
import math
import os
import weakref
from collections.abc import Generator
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from .cache import MoDCache
from .configuration_videollm_mod import SPEAK_RULES, check_choice, check_keep_ratio
from .containers import check_count, is_video_source, shown
from .conversation import check_text
from .decoding import frame_times, iter_video_blocks
from .memory import POLICIES, KeyRotation, StreamMemory, frames_in_context
from .processing_videollm_mod import check_pair
from .session_state import SessionState, StreamStats, load_session, save_session
from .speaking import Reply, StreamEvent, TokenSampler, WatchedFrame, check_threshold, default_threshold, speaks
from .steps import Encode, Feed, FeedResult, StageTime, Step, Verification, run_steps, run_together

logger = logging.get_logger(__name__)

LONGEST_QUERY = 64  # tokens by which an instruction may be longer than the default one before it needs more room
FRAMES_AT_ONCE = 16  # frames of one push that go through the model together
FRAMES_AT_ONCE_ON_GPU = 32  # more, since frames that are rolled back cost less there
AHEAD_AFTER_SPEECH = 4  # frames at once after the model spoke; every block in which it is silent doubles them


class StreamingSession:
    """
    One stream watched by a model: push frames as they come, ask whenever you like.

    Everything that is pushed, asked and said in a session is one conversation, encoded as the processor does it; the
    cache of the session equals the cache of that conversation in one forward pass. After an error, an interrupt or an
    iterator that is closed early, the session is at the last frame or token that came out of it.

    It runs where the model is: CPU, CUDA, or Apple's mps (untested). Use a session from one thread at a time; sessions
    of one model are independent of each other.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        system_prompt (`str`, *optional*): text at the beginning of the stream.
        speak_rule (`str`, *optional*): how P(silence) is computed, `"trained"` or `"verify"`, see `speaking`; the
            model's own (`config.speak_rule`) if omitted.
        speak_threshold (`float`, *optional*): in [0, 1]; the model speaks after a frame when P(silence) is below this.
            If omitted it is 0.725, or for `"verify"` `exp(-config.verify_margin)`.
        keep_ratio (`float`, *optional*): share of vision tokens that routed layers keep in this session, in (0, 1];
            the model's own if omitted.
        max_cached_frames, max_cached_bytes (`int`, *optional*): frames to remember, and size that the cache never
            exceeds. With neither, everything is remembered, and a warning comes once the stream is longer than the
            model's `max_position_embeddings`.
        max_cached_text (`int`, *optional*): tokens of text that a bounded session remembers, see `StreamMemory`.
        cache_policy (`str`): which vision tokens leave a bounded cache first, `"window"` or `"router"`.
        max_new_tokens (`int`): limit for one narration or answer.
        generation_config (`GenerationConfig`, *optional*): sampling, penalties and everything else that changes scores
            over the tokens of a reply; greedy if omitted. Its `max_new_tokens` is a limit too.

    Attributes:
        state (`SessionState`): everything that the session knows of the stream.
        sampler (`TokenSampler`): chooses the tokens of replies.
        reply (`Reply`), reply_context (`int`): the last narration or answer of this object, in tokens, and how many
            tokens the session held when it began.

    Raises:
        `ValueError`: for an argument out of range, the processor of another model, or the rule `"trained"` for a model
            that has learned no frame separator.
    """

    def __init__(
        self,
        model,
        processor,
        system_prompt: str | None = None,
        speak_threshold: float | None = None,
        keep_ratio: float | None = None,
        max_cached_frames: int | None = None,
        max_new_tokens: int = 64,
        generation_config: GenerationConfig | None = None,
        cache_policy: str = "window",
        max_cached_bytes: int | None = None,
        speak_rule: str | None = None,
        max_cached_text: int | None = None,
    ):
        check_pair(model, processor)
        speak_rule = model.config.speak_rule if speak_rule is None else speak_rule
        check_choice("speak_rule", speak_rule, SPEAK_RULES)
        if speak_rule == "trained" and model.config.frame_separator_token_id is None:
            raise ValueError(
                "`speak_rule` must be 'verify' for this model: it has no frame separator, so it has not learned when "
                "to be silent"
            )
        if speak_threshold is None:
            speak_threshold = default_threshold(speak_rule, model.config.verify_margin)
        check_threshold("speak_threshold", speak_threshold)
        check_choice("cache_policy", cache_policy, POLICIES)
        check_count("`max_new_tokens`", max_new_tokens)
        if keep_ratio is not None:
            check_keep_ratio("keep_ratio", keep_ratio)
        if system_prompt is not None:
            check_text("`system_prompt`", system_prompt)
        self.model, self.processor = model, processor
        self.system_prompt, self.generation_config = system_prompt, generation_config
        self.speak_rule, self.speak_threshold = speak_rule, float(speak_threshold)
        self.keep_ratio, self.max_new_tokens = keep_ratio, max_new_tokens
        self.max_cached_frames, self.max_cached_bytes = max_cached_frames, max_cached_bytes
        self.cache_policy, self.max_cached_text = cache_policy, max_cached_text
        self.sampler = TokenSampler(model, processor, generation_config)
        self._why_not_static: str | None = None
        # the last iterator of `watch` or `ask_tokens`; a weak reference, so that leaving a loop over it closes it
        self._running: weakref.ref | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the stream, as if the session were new; its options stay."""
        self.break_off()
        memory = None
        if (self.max_cached_frames, self.max_cached_bytes, self.max_cached_text) != (None, None, None):
            memory = self._new_memory()
            KeyRotation(self._rotary_embedding)  # raises if keys cannot be moved to other positions
        pending = self.processor.start_ids(self.system_prompt)
        self.state = SessionState(MoDCache(self.model.config), memory, pending, ahead=self._frames_at_once)
        self._stage_times: list[StageTime] = []  # to be added to `state.seconds`
        self._speaking = self._hushed = False
        self.reply, self.reply_context = Reply(), 0
        if self.system_prompt is not None:
            self._check_fits("system_prompt", 0)

    @property
    def cache(self) -> MoDCache:
        """Keys and values of the tokens that the model has read."""
        return self.state.cache

    @property
    def query(self) -> str | None:
        """The last question or instruction. With a family's prompts it is what the model narrates after: the last
        instruction, or the processor's `default_query`."""
        return self.processor.default_query if self.state.query is None else self.state.query

    @property
    def time(self) -> float | None:
        """Of the last frame, in seconds; None before the first."""
        return self.state.time

    def _new_memory(self) -> StreamMemory:
        text, processor = self.model.config.text_config, self.processor
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self.model.dtype.itemsize
        around = len(processor.reply_start_ids(in_stream=True)) + len(processor.reply_end_ids)
        if processor.sequence.one_turn:
            around += LONGEST_QUERY
        return StreamMemory(
            self.max_cached_frames,
            self.model.config.num_frame_tokens,
            self.cache_policy,
            self.max_cached_bytes,
            token_bytes=per_token,
            turn_tokens=around + self.max_new_tokens,
            frame_text=processor.frame_text_tokens,
            max_text=self.max_cached_text,
        )

    def fork(self) -> "StreamingSession":
        """An independent session at the same point of the stream. Both share the memory of the cache until they
        differ."""
        self.break_off()
        self._add_up()
        other = copy.copy(self)
        other.state, other.sampler, other._stage_times = self.state.copy(), self.sampler.copy(), []
        return other

    def save(self, path: str | os.PathLike) -> Path:
        """Write the session to one file, from which `load` continues as if it had not been interrupted. A file that
        could not be written completely does not appear. See `session_state`."""
        self.break_off()
        self._add_up()
        return save_session(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike, model, processor) -> "StreamingSession":
        """The session that `save` wrote, on the same model.

        Raises:
            `OSError`: if there is no such file.
            `ValueError`: if it is damaged, of another version, or of another model.
        """
        return load_session(cls, path, model, processor)

    @property
    def max_kv_bytes(self) -> int | None:
        """Largest size that the cache can reach; None for a session without bounds."""
        return None if self.state.memory is None else self.state.memory.max_kv_bytes

    def _add_up(self) -> None:
        """Add the times of past steps to `state.seconds`; on a GPU it may have to wait for the last ones."""
        times, self._stage_times = self._stage_times, []
        for each in times:
            self.state.seconds[each.stage] = self.state.seconds.get(each.stage, 0.0) + each.seconds()

    @property
    def stats(self) -> StreamStats:
        """Counts, memory and times of the session so far."""
        self._add_up()
        return self.state.stats(self.model.config.text_config, self._why_not_static)

    def remember(self, max_cached_frames: int) -> None:
        """Change the number of frames to remember. Frames beyond it are forgotten before the next one is watched.

        Raises:
            `ValueError`: for a session that began without a bound, or a number below 1.
        """
        if self.state.memory is None:
            raise ValueError("`max_cached_frames` can be changed only in a session that was made with a bound")
        self.break_off()
        self.state.memory.resize(max_cached_frames)
        self.max_cached_frames = max_cached_frames

    def instruct(self, text: str) -> None:
        """Add a user's turn that needs no answer now, such as what to narrate. Under the rule `"verify"` the model
        narrates anew after the next frame."""
        check_text("`text`", text)
        self.break_off()
        self.make_room_for(text)
        self._add_turn("text", self.processor.instruction_ids(text, self.state.in_stream))
        self.state.query, self.state.narration = text, None

    def make_room_for(self, query: str) -> None:
        """With a family's prompts an instruction is part of every turn: let a bounded session remember less for it, or
        raise `ValueError` if it is too long."""
        memory, processor = self.state.memory, self.processor
        if memory is None or not processor.sequence.one_turn:
            return
        more = len(processor.reply_start_ids(True, query)) - len(processor.reply_start_ids(True))
        if more - LONGEST_QUERY > memory.max_more_tokens:
            raise ValueError(
                f"`text` is too long for a bounded session: it has {more} tokens more than "
                f"{processor.default_query!r}, the limit is {memory.max_more_tokens + LONGEST_QUERY}"
            )
        memory.lengthen_turns(more - LONGEST_QUERY)

    def add_question(self, question: str) -> None:
        """Add a user's turn that `answering` replies to."""
        check_text("`question`", question)
        self.break_off()
        self._add_turn("question", self.processor.question_ids(question, self.state.in_stream))
        if not self.processor.sequence.one_turn:
            self.state.query = question

    def _add_turn(self, name: str, ids: list[int]) -> None:
        """Add tokens of a user's turn, the argument `name`."""
        self._check_fits(name, len(ids))
        self.state.pending += ids
        if ids:
            self.state.in_stream = False

    def _check_fits(self, name: str, more: int) -> None:
        """Raise `ValueError` if pending text and `more` tokens do not fit into a bounded session."""
        memory = self.state.memory
        tokens, limit = len(self.state.pending) + more, math.inf if memory is None else memory.max_pending
        if tokens > limit:
            raise ValueError(
                f"`{name}` is too long for a bounded session: {tokens} tokens would be pending, the limit is {limit}"
            )

    def ask(self, question: str) -> list[StreamEvent]:
        """Ask after the last frame, and get the answer. Its time is 0 before the first frame."""
        text = "".join(self.ask_tokens(question))
        return [StreamEvent(self.time or 0.0, "answer", text, question)]

    def ask_tokens(self, question: str) -> Generator[str]:
        """As `ask`, but yields the text piece by piece. Closing the iterator, by `close()` or by any other call of the
        session, cancels the rest: the answer then ends with the last piece that came out."""
        self.add_question(question)
        return self._start(self.answering())

    def answering(self) -> Generator[Step | str]:
        """The answer to the last question: steps, and between them its text in pieces."""
        self._evict(keep_newest=True)
        self.state.counts["answers"] += 1
        return self._pieces(Reply())

    def hush(self) -> bool:
        """End the reply that is being generated with the last piece that came out. Returns whether there is one."""
        self._hushed = self._speaking
        return self._speaking

    def push(self, frames, times: list[float] | None = None) -> list[StreamEvent]:
        """Let the model see frames, and speak after any of them.

        Frames go through the model in blocks, on the guess that it stays silent. When it speaks, the frames after that
        are rolled back and fed again. The events are the same as when frames are pushed one by one.

        Args:
            frames (uint8 `[F, H, W, 3]` or `[F, 3, H, W]`): array or tensor; a single frame, as an array or a PIL
                image; or a video's path, URL or file, which is decoded at the processor's fps while it is watched.
            times (`list[float]`, *optional*): of the frames, in seconds; if omitted they continue from the last frame
                at the processor's fps. A video has its own times, which continue from the last frame too.

        Returns:
            What the model said, in order.

        Raises:
            `ValueError`: for frames of another shape, and as `frame_times` and `iter_video_frames`.
        """
        return [watched.event for watched in self.watch(frames, times) if watched.event is not None]

    def watch(self, frames, times: list[float] | None = None) -> Generator[WatchedFrame]:
        """As `push`, but yields every frame as soon as the model has watched it. Closing the iterator, by `close()` or
        by any other call of the session, drops the frames that have not come out."""
        self.break_off()
        blocks = self.blocks(frames, times, self.time)
        return self._start(self.watching(next(blocks), blocks), WatchedFrame)  # bad frames are an error now, not later

    def blocks(self, frames, times: list[float] | None, last: float | None) -> Generator[tuple[torch.Tensor, list]]:
        """Frames that are pushed after the time `last` as `[F, 3, H, W]` with a time for each frame: all at once, or
        block by block from a video that is decoded."""
        video_processor = self.processor.video_processor
        if not is_video_source(frames):
            frames = video_processor.load_frames(frames)
            yield frames, frame_times(times, len(frames), video_processor.fps, last)
            return
        if times is not None:
            raise ValueError("`times` are for frames; a video has its own")
        start = 0.0 if last is None else last + 1 / video_processor.fps
        for images, seconds in iter_video_blocks(frames, video_processor.fps, self._frames_at_once):
            yield torch.from_numpy(images).movedim(-1, 1), [start + time for time in seconds]

    def encode(self, frames) -> torch.Tensor:
        """The features `[F, N, Dv]` of frames, as `push` would encode them, for `watch_encoded` of this session or of
        another one of a model with the same vision tower. Does not touch the state of the session, so another thread
        may encode frames while the session watches.

        Args:
            frames (uint8 `[F, H, W, 3]` or `[F, 3, H, W]`): array or tensor.

        Raises:
            `ValueError`: for frames of another shape.
        """
        frames = self.processor.video_processor.load_frames(frames)
        step = Encode(self.model, self.processor.video_processor, frames)
        run_together([step])
        return step.result()

    def watch_encoded(self, features: torch.Tensor, times: list[float] | None = None) -> Generator[WatchedFrame]:
        """As `watch`, of frames that are encoded already, as by `encode` or `model.encode_frames`: `[F, M, Dv]`,
        `config.video_feature_shape` for each frame.

        Raises:
            `ValueError`: for features of another shape, and as `frame_times`.
        """
        self.break_off()
        size = self.model.config.video_feature_shape
        got = list(features.shape) if isinstance(features, torch.Tensor) else shown(features)
        if got[1:] != list(size):
            raise ValueError(f"`features` must be a tensor [F, {size[0]}, {size[1]}], got {got}")
        times = frame_times(times, len(features), self.processor.video_processor.fps, self.time)
        return self._start(self.watching((features, times)), WatchedFrame)

    def _start(self, work: Generator, kind: type = str) -> Generator:
        """Iterate over what `work` yields of this kind. Any other call of the session closes the iterator."""
        running = run_steps(work, kind)
        self._running = weakref.ref(running)
        return running

    def break_off(self) -> None:
        """Close the last iterator of `watch` or `ask_tokens`, if it is still held and not exhausted."""
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()
        self._running = None

    # The generators below yield a `Step` where they need the model, and continue with its result once the caller has
    # run it. Between the steps they yield what they produce.

    def watching(self, block: tuple, more: Generator | None = None) -> Generator[Step | str | WatchedFrame]:
        """Watch frames with their times: steps, and between them the pieces of narrations, and each watched frame.

        Args:
            block (`tuple`): frames, uint8 `[F, 3, H, W]` or features `[F, N, Dv]`, and the time of each.
            more (`Generator`, *optional*): of blocks that follow; it is closed at the end.
        """
        try:
            for frames, times in chain([block], more or ()):
                done, features = 0, frames[:0]
                while done < len(frames):
                    if not len(features):  # all that were encoded are watched
                        features = frames[done : done + self._frames_at_once]
                        if frames.ndim == 4:  # pixels
                            encode = Encode(self.model, self.processor.video_processor, features)
                            features = yield from self._result_of(encode)
                    self._evict()
                    together = features[: self._frames_ahead()]
                    watched, spoke = yield from self._watch_together(together, times[done:])
                    done, features = done + watched, features[watched:]
                    self.state.ahead = AHEAD_AFTER_SPEECH if spoke else min(2 * self.state.ahead, self._frames_at_once)
        finally:
            if more is not None:
                more.close()

    def _watch_together(self, features: torch.Tensor, times: list[float]):
        """Feed frames `[F, N, Dv]` together, up to the first after which the model speaks. Yields steps and watched
        frames; returns how many frames were watched, and whether the model spoke after the last of them."""
        state, before, watched, spoke = self.state, self.state.mark(), 0, False
        try:
            ids, ends, owners = self.processor.stream_ids(times[: len(features)], state.in_stream, state.pending)
            fed = yield from self._feed(ids, features, self._verification(), owners, ends)
            ends = [before.tokens + end for end in ends]
            state.pending, state.in_stream = [], True
            silence = self._silence(fed)
            speech = speaks(silence, self.speak_threshold).tolist()
            for index, probability in enumerate(silence.tolist()):
                if not math.isfinite(probability):
                    raise ValueError("the model's scores are not finite numbers: its weights hold nan or infinity")
                event = None
                if speech[index]:
                    state.rollback_cache(ends[index])
                    event = yield from self._narrate(times[index], probability)
                # from here on the frame is part of the stream; a failure before this point removes it
                state.time, watched, spoke = times[index], index + 1, event is not None
                state.counts["frames"] += 1
                state.counts["verified"] += fed.gap is not None
                self._warn_if_long(ends[index])
                yield WatchedFrame(times[index], probability, fed.kept[index], event)
                if spoke:
                    break
        finally:
            if watched == 0:
                state.rollback(before)
            elif not spoke:
                state.rollback_cache(ends[watched - 1])
                state.pending, state.in_stream = [], True
        return watched, spoke

    def _silence(self, fed: FeedResult) -> torch.Tensor:
        """`[F]`: how probable silence is after each frame."""
        if fed.silence is not None and self.speak_rule == "trained":
            return fed.silence
        gap = math.inf if fed.gap is None else float(fed.gap)
        return torch.tensor([math.exp(-gap)], dtype=torch.float64)  # so that no gap above 0 is rounded to 1

    def _verification(self) -> Verification | None:
        """What verifies the last narration after a frame; None if nothing was said yet, or the rule is another."""
        reply = self.state.narration
        if reply is None or self.speak_rule != "verify":
            return None
        said = reply.ids if reply.ended else reply.ids[:-1]  # tokens from which the next one is predicted
        ids = self.processor.reply_start_ids(True, self.query) + said
        return Verification(ids, len(reply.ids) + reply.ended, partial(self.sampler.largest_gap, reply))

    def _warn_if_long(self, tokens: int) -> None:
        """Warn, once per stream, when it holds more tokens than the model supports."""
        limit = self.model.config.text_config.max_position_embeddings
        if tokens > limit and not self.state.warned:
            self.state.warned = True
            logger.warning(
                f"the stream holds {tokens} tokens, more than the {limit} (`max_position_embeddings`) that the model "
                "supports: from here on replies may be wrong, and memory keeps growing; make the session with "
                f"`max_cached_frames={frames_in_context(self.model.config)}` or less"
            )

    def _narrate(self, time: float, silence: float):
        """Speak after a frame. Yields steps and pieces of the text; returns the event."""
        text, reply = "", Reply()
        with closing(self._pieces(reply)) as pieces:
            for piece in pieces:
                if isinstance(piece, str):
                    text += piece
                yield piece
        self.state.counts["narrations"] += 1
        if reply.ids or reply.ended:  # otherwise it was hushed before its first token
            self.state.narration = reply
        return StreamEvent(time, "narration", text, self.query, silence)

    @property
    def _rotary_embedding(self):
        return self.model.model.language_model.rotary_emb

    @property
    def _frames_at_once(self) -> int:
        return FRAMES_AT_ONCE_ON_GPU if self.model.lm_head.weight.is_cuda else FRAMES_AT_ONCE

    def _frames_ahead(self) -> int:
        """Frames that may be fed together. Tokens leave the memory at the same frames however these are pushed."""
        if self.speak_rule == "verify":
            return 1  # what is verified follows each frame
        ahead, memory = self.state.ahead, self.state.memory
        return ahead if memory is None else max(1, min(ahead, self._free_frames(memory)))

    def _free_frames(self, memory: StreamMemory) -> int:
        held = 0 if memory.max_bytes is None else self.cache.num_bytes
        return memory.free_frames(held, self._text_before_next_frame)

    @property
    def _text_before_next_frame(self) -> int:
        state = self.state
        return len(state.pending) + (0 if state.in_stream else len(self.processor.start_stream_ids))

    def _evict(self, keep_newest: bool = False) -> None:
        memory = self.state.memory
        if memory is not None and self._free_frames(memory) == 0:
            memory.evict(self.cache, self._rotary_embedding, self._text_before_next_frame, keep_newest)

    def replying(self, reply: Reply | None = None) -> Generator[Step | int]:
        """Let the model speak until it ends its turn: steps, and between them token ids. They are noted in `reply`."""
        limit = self.max_new_tokens
        if self.generation_config is not None and self.generation_config.max_new_tokens is not None:
            limit = min(limit, self.generation_config.max_new_tokens)
        state, reply = self.state, Reply() if reply is None else reply
        said, self._speaking, self._hushed = reply.ids, True, False
        self.reply, self.reply_context = reply, state.cache.get_seq_length()
        state.pending = state.pending + self.processor.reply_start_ids(state.in_stream, state.query)
        state.in_stream = False
        try:
            while len(said) < limit:
                fed = yield from self._feed(state.pending)
                state.pending, self.reply_context = [], self.reply_context if said else state.cache.get_seq_length()
                if self._hushed:
                    break
                self._warn_if_long(state.cache.get_seq_length())
                token = self.sampler(said, fed.logits[-1])
                reply.ended = token in self.sampler.ends
                if self.speak_rule == "verify" and self.sampler.generator is not None:
                    step = Reply(ended=True) if reply.ended else Reply([token])
                    reply.gaps += self.sampler.gaps(step, fed.logits[-1:]).tolist()
                if reply.ended:
                    break
                said.append(token)
                state.pending = [token]
                yield token
        finally:
            self._speaking = False
            state.pending = state.pending + self.processor.reply_end_ids  # a reply that was cancelled ends here too

    def _pieces(self, reply: Reply) -> Generator[Step | str]:
        """The text of a reply, without white space around it, in pieces. Its tokens are noted in `reply`."""
        shown, tokens = "", self.replying(reply)
        try:
            for token in tokens:
                if isinstance(token, Step):
                    yield token
                    continue
                text = self.processor.decode(reply.ids, skip_special_tokens=True).strip()
                if not text.endswith("\ufffd") and text != shown and text.startswith(shown):  # whole characters only
                    yield text[len(shown) :]
                    shown = text
            text = self.processor.decode(reply.ids, skip_special_tokens=True).strip()
            if text != shown:
                yield text[len(shown) :]
        finally:
            tokens.close()

    def _feed(
        self,
        ids: list[int],
        features: torch.Tensor | None = None,
        verification: Verification | None = None,
        owners: list[int] | None = None,
        ends: list[int] | None = None,
    ):
        """Feed tokens, and features `[F, N, Dv]` of the frames among them, which `owners` and `ends` tell apart as
        `stream_ids` does, after all that was fed before. What is verified leaves no trace, nor does a call that fails.
        Yields steps; returns a `FeedResult`."""
        state, memory, before = self.state, self.state.memory, self.state.cache.get_seq_length()
        read_at = None if ends is None else [end - 1 for end in ends]
        feed = Feed(self.model, state.cache, ids, features, self.keep_ratio, memory is not None, verification, read_at)
        try:
            fed: FeedResult = yield from self._result_of(feed)
            if verification is not None:
                state.cache.rollback(before + len(ids))
            self._why_not_static = fed.why_not_static
            if memory is not None:
                processor = self.processor
                separator = processor.frame_separator_token_id
                memory.record(ids, processor.video_token_id, separator, fed.scores, owners)
            return fed
        except BaseException:
            state.rollback_cache(before)
            raise

    def _result_of(self, step: Step):
        """Yield a step, which the caller runs; returns its result."""
        yield step
        self._stage_times += step.times
        if len(self._stage_times) >= 64:  # most of them are long past, so this does not wait
            self._add_up()
        return step.result()


__all__ = ["StreamStats", "StreamingSession"]
