"""A teacher behind any server that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, TGI, OpenAI itself."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Any

from datasets import Dataset

from limbeck.errors import InputError
from limbeck.generation.answers import Answer, Ask
from limbeck.recipe.data import Generation
from limbeck.recipe.served import Limit
from limbeck.recipe.teacher import TeacherModel
from limbeck.remote import RETRIES, Client, Completions, RefusedError, Spending


class ServerTeacher:
    """A model behind an OpenAI-compatible server; see `limbeck.remote.Client` for how it is asked.

    Args:
        teacher: the model, its server, the name of the key's environment variable, the timeout and rates.
        settings: the recipe's section; `batch_size` requests are under way at a time.
        retries: how often a request is tried again.

    Raises:
        InputError: the extra `api` is not installed, or the key's variable is not set.
    """

    divides = False

    def __init__(self, teacher: TeacherModel, settings: Generation, retries: int = RETRIES) -> None:
        limit = Limit(tokens=settings.token_limit)
        self.client = Client(teacher, retries, Spending(limit=limit, named="data.generation.token_limit"))
        self.chat = Completions(self.client, teacher.model)
        self.settings = settings

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The server's address and the model's name there; what stands behind them cannot be seen."""
        return {"server": self.client.address, "model": self.chat.model}

    def check(self, prompts: Dataset) -> None:
        """Refuse an address where nothing listens.

        Raises:
            InputError: no connection.
        """
        self.client.check("/models")

    def answer(self, parts: Iterable[list[Ask]], known: Container[tuple[int, int]]) -> Iterator[list[Answer]]:
        """Answers as they come in. Where one fails for good, those under way are still waited for and given out.

        It ends early once `token_limit` is reached: by then the requests under way may add to it.

        Raises:
            InputError: the key, the model's name, the address or a prompt is refused.
            LimbeckError: the server kept failing, or answers something else than a chat completion.
        """
        asks = (ask for part in parts for ask in part if (ask.row, ask.sample) not in known)
        yield from self.client.run(lambda: next(asks, None), self._ask, self.settings.batch_size)

    async def _ask(self, ask: Ask) -> Answer:
        settings, row = self.settings, f"row {ask.row + 1} of the prompts"
        sampled = {"top_p": settings.top_p, "seed": ask.seed} if settings.temperature > 0 else {}
        body = {"temperature": settings.temperature, **sampled}
        number = f"{ask.row} {ask.sample}"
        try:
            said = await self.chat.complete(ask.messages, settings.max_new_tokens, body, row, number)
        except RefusedError as error:
            raise InputError(f"{self.client.address} refused {row} with {error}") from None
        cut = said.finish in ("length", "content_filter")
        return Answer(ask.row, ask.sample, said.text, cut, said.tokens, said.prompt_tokens)
