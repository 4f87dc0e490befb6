"""A teacher behind any server that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, TGI, OpenAI itself."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from limbeck.errors import InputError, LimbeckError
from limbeck.extras import require
from limbeck.generation.answers import Answer, Ask
from limbeck.recipe.schema import Generation
from limbeck.recipe.teacher import TeacherModel

if TYPE_CHECKING:
    from openai import AsyncOpenAI

RETRIES = 8
"""How often a request is tried again, after 0.5, 1, 2, 4 and then 8 seconds, or what the server asks for."""


class ServerTeacher:
    """A model behind an OpenAI-compatible server.

    Requests that fail for now (429, 5xx, timeouts, cut connections) are tried again by the `openai` package, later each
    time and with jitter, or when the server's Retry-After says; those that can never work end the run in a sentence.
    The key is read from the environment, and neither kept nor printed.

    Args:
        teacher: the model, its server, the name of the key's environment variable and the timeout.
        settings: the recipe's section; `batch_size` requests are under way at a time.
        retries: how often a request is tried again.

    Raises:
        InputError: the extra `api` is not installed, or the key's variable is not set.
    """

    divides = False

    def __init__(self, teacher: TeacherModel, settings: Generation, retries: int = RETRIES) -> None:
        require("api", "a teacher behind a server")
        assert teacher.server is not None
        self.name, self.address, self.timeout = teacher.model, teacher.server.rstrip("/"), teacher.timeout
        self.settings, self.retries = settings, retries
        self._variable = teacher.key
        self._key = os.environ.get(teacher.key, "") if teacher.key else "none"
        self._limit_name = "max_tokens"
        if not self._key:
            raise InputError(f"teacher.key is {teacher.key}, but no such environment variable is set; export it first")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The server's address and the model's name there; what stands behind them cannot be seen."""
        return {"server": self.address, "model": self.name}

    def check(self, prompts: Dataset) -> None:
        """Refuse an address where nothing listens.

        Raises:
            InputError: no connection.
        """
        from anyio.from_thread import start_blocking_portal
        from openai import APIConnectionError, APITimeoutError, OpenAIError

        async def look() -> None:
            async with self._client() as client:
                await client.with_options(max_retries=min(2, self.retries)).models.with_raw_response.list()

        try:
            with start_blocking_portal() as portal:
                portal.call(look)
        except APITimeoutError:
            pass  # slow is not absent
        except APIConnectionError as error:
            reason = self._clean(error.__cause__ or error)
            raise InputError(f"no connection to teacher.server={self.address} ({reason}); is it running?") from None
        except OpenAIError:
            pass  # something answers; whether it completes chats is seen at once

    def answer(self, parts: Iterable[list[Ask]], known: Container[tuple[int, int]]) -> Iterator[list[Answer]]:
        """Answers as they come in. Where one fails for good, those under way are still waited for and given out.

        It ends early once `token_limit` is reached: by then the requests under way may add to it.

        Raises:
            InputError: the key, the model's name, the address or a prompt is refused.
            LimbeckError: the server kept failing, or answers something else than a chat completion.
        """
        from anyio.from_thread import start_blocking_portal

        limit, spent = self.settings.token_limit, 0
        failure: LimbeckError | None = None
        asks = (ask for part in parts for ask in part if (ask.row, ask.sample) not in known)
        client = self._client()
        pending: set[Future[Answer]] = set()
        with start_blocking_portal() as portal:
            try:
                while True:
                    while (
                        failure is None and len(pending) < self.settings.batch_size and not (limit and spent >= limit)
                    ):
                        ask = next(asks, None)
                        if ask is None:
                            break
                        pending.add(portal.start_task_soon(self._ask, client, ask))
                    if not pending:
                        break
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for each in finished:
                        try:
                            answer = each.result()
                        except LimbeckError as error:
                            failure = failure or error
                            continue
                        spent += (answer.tokens or 0) + (answer.prompt_tokens or 0)
                        yield [answer]
            finally:
                portal.call(client.close)
        if failure is not None:
            raise failure

    async def _ask(self, client: AsyncOpenAI, ask: Ask) -> Answer:
        import openai

        try:
            try:
                text = await self._post(client, ask)
            except openai.BadRequestError as error:
                if "max_completion_tokens" not in str(error) or self._limit_name == "max_completion_tokens":
                    raise
                self._limit_name = "max_completion_tokens"  # OpenAI's newer models know the limit by this name alone
                text = await self._post(client, ask)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            held = (
                f"the key in {self._variable}" if self._variable else "a request without a key (teacher.key=VARIABLE)"
            )
            raise InputError(f"{self.address} refused {held} with status {error.status_code}") from None
        except openai.NotFoundError as error:
            raise InputError(
                f"{self.address} knows no model '{self.name}', or is no address of chat completions, which mostly end "
                f"in /v1 (status 404: {self._clean(error)})"
            ) from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise InputError(
                f"{self.address} refused row {ask.row + 1} of the prompts with status {error.status_code}: "
                f"{self._clean(error)}"
            ) from None
        except openai.OpenAIError as error:
            reason = self._clean(error.__cause__ or error)
            raise LimbeckError(
                f"{self.address} failed {self.retries + 1} times at row {ask.row + 1} of the prompts ({reason}); "
                "what it answered is kept: the same command goes on"
            ) from None
        return self._read(text, ask)

    async def _post(self, client: AsyncOpenAI, ask: Ask) -> str:
        settings = self.settings
        sampled = {"top_p": settings.top_p, "seed": ask.seed} if settings.temperature > 0 else {}
        body: Any = {"model": self.name, "messages": ask.messages, "temperature": settings.temperature, **sampled}
        body[self._limit_name] = settings.max_new_tokens
        response = await client.chat.completions.with_raw_response.create(**body)
        return str(response.http_response.text)

    def _read(self, text: str, ask: Ask) -> Answer:
        try:
            found = json.loads(text)
            choice = found["choices"][0]
            content, reason = choice["message"].get("content") or "", choice.get("finish_reason")
            usage = found.get("usage") or {}
            tokens, prompt = usage.get("completion_tokens"), usage.get("prompt_tokens")
            if not isinstance(content, str):
                raise TypeError("content is no text")
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise LimbeckError(
                f"{self.address} answered row {ask.row + 1} of the prompts with something else than a chat completion, "
                f"{self._clean(text)[:100]!r} ({self._clean(error)}); what it answered before is kept: the same "
                "command goes on"
            ) from None
        if self.settings.token_limit is not None and (tokens is None or prompt is None):
            raise InputError(
                f"{self.address} does not count tokens, so data.generation.token_limit={self.settings.token_limit} "
                "cannot be held; leave it out"
            )
        return Answer(ask.row, ask.sample, content.strip(), reason in ("length", "content_filter"), tokens, prompt)

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=self.address, api_key=self._key, timeout=self.timeout, max_retries=self.retries)

    def _clean(self, error: object) -> str:
        """A message in one line, without the key, which servers like to repeat."""
        text = " ".join((str(error) or type(error).__name__).split())
        return (text.replace(self._key, "***") if self._variable else text)[:300]
