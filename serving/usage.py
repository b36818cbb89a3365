"""How many tokens a response took, as in OpenAI's APIs: of which kind, and how many had been read before."""

from ..memory import VISION
from ..streaming import StreamingSession


class Usage:
    """Counts the tokens of one session, from now on."""

    def __init__(self, session: StreamingSession):
        self.session = session
        self._read = read_tokens(session)

    def take(self) -> dict:
        """The object `usage` of the response that has just ended.

        `input_tokens` are those that the session held when the response began. `cached_tokens` of them had been read
        before the response before it ended.
        """
        session = self.session
        reply, held, images = session.reply, session.reply_context, held_image_tokens(session)
        read = read_tokens(session)
        fed = session.cache.get_seq_length() - held  # of the reply itself
        new, self._read = read - fed - self._read, read
        said = len(reply.ids) + reply.ended
        return {
            "input_tokens": held,
            "input_token_details": {
                "text_tokens": held - images,
                "image_tokens": images,
                "audio_tokens": 0,
                "cached_tokens": max(0, held - new),
            },
            "output_tokens": said,
            "output_token_details": {"text_tokens": said, "audio_tokens": 0},
            "total_tokens": held + said,
        }


def read_tokens(session: StreamingSession) -> int:
    """Tokens that the model has read in a session."""
    state = session.state
    return state.cache.get_seq_length() + (0 if state.memory is None else state.memory.forgotten)


def held_image_tokens(session: StreamingSession) -> int:
    """Vision tokens that a session holds."""
    state = session.state
    if state.memory is None:  # none has left
        return state.counts["frames"] * session.model.config.num_frame_tokens
    return int((state.memory.kinds == VISION).sum())


__all__ = ["Usage", "read_tokens"]
