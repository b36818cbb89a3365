"""A server that speaks OpenAI's chat completions: it answers about images, or judges answers."""

import base64
import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

RETRIES = 4  # of a request that could not be answered for now, with growing pauses
SECONDS = 600.0  # in which a server must answer
LONGEST_SIDE = 768  # pixels of the images that are sent
QUALITY = 90  # of JPEG
# what newer models call a setting that they refuse; None: they have no such setting
OTHER_NAMES = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}


@dataclass(frozen=True)
class Reply:
    """The `text` of an answer, and the `tokens` of question and answer, None if the server does not say."""

    text: str
    tokens: int | None


class ChatServer:
    """
    Args:
        url (`str`): with the path, such as `http://localhost:8000/v1`.
        model (`str`): its name there.
        key_env (`str`, *optional*): environment variable that holds the key.

    Attributes:
        settings (`dict`): what is sent with each question. Answers are greedy, as far as the server lets them be.

    Raises:
        `ImportError`: without the package `openai`.
    """

    def __init__(self, url: str, model: str, key_env: str | None = None):
        import openai

        self._openai, self.url, self.model = openai, url, model
        key = "none" if key_env is None else os.environ[key_env]
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=SECONDS)
        self.settings: dict[str, Any] = {"temperature": 0.0, "seed": 0}

    def answer(
        self,
        text: str,
        images: list[np.ndarray] | None = None,
        max_tokens: int | None = None,
        system: str | None = None,
    ) -> Reply:
        """
        Args:
            text (`str`): the user's whole text, which follows the images.
            images (`list` of uint8 `[H, W, 3]`, *optional*).
            system (`str`, *optional*): the instruction before it.

        Raises:
            `OSError`: if the server cannot be reached, refuses, or fails again and again.
        """
        content: list[dict] = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in images or ()]
        settings = {**self.settings, **({} if max_tokens is None else {"max_tokens": max_tokens})}
        messages: Any = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        try:
            given = self._sent(messages, settings)
        except self._openai.OpenAIError as error:
            raise OSError(f"{self.model} at {self.url} does not answer: {error}") from None
        if not given.choices:
            raise OSError(f"{self.model} at {self.url} does not answer: the response holds no choices")
        return Reply(given.choices[0].message.content or "", given.usage and given.usage.total_tokens)

    def _sent(self, messages: Any, settings: dict):
        """The response, without the settings that this model refuses."""
        while True:
            try:
                return self._client.chat.completions.create(model=self.model, messages=messages, **settings)
            except self._openai.BadRequestError as error:
                refused = error.param
                if refused not in settings or refused not in OTHER_NAMES:
                    raise
                value, other = settings.pop(refused), OTHER_NAMES[refused]
                self.settings.pop(refused, None)
                if other is not None:
                    settings[other] = value


def data_url(image: np.ndarray) -> str:
    """uint8 `[H, W, 3]` as JPEG, scaled down to `LONGEST_SIDE`."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    picture.save(file := io.BytesIO(), "jpeg", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


__all__ = ["ChatServer", "Reply"]
