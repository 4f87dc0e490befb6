"""OpenAI's chat completions: what vLLM, llama.cpp, Ollama, TGI and OpenAI itself answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from limbeck.data.chat import Messages
from limbeck.errors import InputError
from limbeck.remote.client import Client, RefusedError, usage


class Completion(NamedTuple):
    """A server's answer.

    Attributes:
        text: without white space around it.
        finish: why it ended, such as `stop` or `length`.
        logprobs: OpenAI's `logprobs.content`: of each token what it was and what else it might have been.
        prompt_tokens: of the prompt; none where a server does not count.
        tokens: of the answer, likewise.
    """

    text: str
    finish: str | None
    logprobs: list[dict[str, Any]] | None
    prompt_tokens: int | None
    tokens: int | None


class Completions:
    """One model behind a server of chat completions.

    Args:
        client: the server.
        model: its name there.
    """

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model
        self._limit_name = "max_tokens"

    async def complete(
        self,
        messages: Messages,
        longest: int,
        settings: dict[str, Any],
        what: str,
        number: str,
        check: Callable[[Completion], Any] | None = None,
    ) -> Completion:
        """An answer to messages.

        Args:
            messages: the prompt.
            longest: the most tokens of the answer.
            settings: more entries of the request; null takes one out.
            what: as of `Client.post`.
            number: as of `Client.post`.
            check: raises as `Client.post`'s `read` does, where the answer cannot be used.

        Raises:
            InputError: no such model, or no such address; the key is refused.
            RefusedError: this request is.
            LimbeckError: the server kept failing.
        """

        def read(found: Any) -> Completion:  # noqa: ANN401
            completion = _read(found)
            if check is not None:
                check(completion)
            return completion

        while True:
            name = self._limit_name
            body = {"model": self.model, "messages": messages, name: longest, **settings}
            body = {key: value for key, value in body.items() if value is not None}
            try:
                return await self.client.post("/chat/completions", body, read, what, "a chat completion", number)
            except RefusedError as error:
                if error.status == 404:
                    raise InputError(
                        f"{self.client.address} knows no model '{self.model}', or is no address of chat completions, "
                        f"which mostly end in /v1 (status 404: {error.message})"
                    ) from None
                if name == "max_completion_tokens" or "max_completion_tokens" not in error.message:
                    raise
                self._limit_name = "max_completion_tokens"  # OpenAI's newer models know it by this name alone


def _read(found: Any) -> Completion:  # noqa: ANN401
    choice = found["choices"][0]
    content = choice["message"].get("content") or ""
    if not isinstance(content, str):
        raise TypeError("content is no text")
    logprobs = (choice.get("logprobs") or {}).get("content") or None
    return Completion(content.strip(), choice.get("finish_reason"), logprobs, *usage(found))
