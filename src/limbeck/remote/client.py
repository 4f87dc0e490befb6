"""The one client for servers: generation and labelling ask through it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from limbeck.errors import InputError, LimbeckError
from limbeck.extras import require
from limbeck.recipe.served import Rate
from limbeck.recipe.teacher import TeacherModel
from limbeck.remote.pace import Pace
from limbeck.remote.spending import Spending

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

A = TypeVar("A")
T = TypeVar("T")

RETRIES = 8
"""How often a request is tried again, after 0.5, 1, 2, 4 and then 8 seconds, or what the server asks for."""
UNREADABLE = 3
"""How many answers that cannot be read are met with another try: a server that gives more of them is another one."""
LONGEST_WAIT = 120.0
"""Seconds; a server that asks to be left alone for longer ends the run."""
_FOR_NOW = (408, 409, 425, 429)


class RefusedError(Exception):
    """A request that the server understood and will never answer.

    Attributes:
        status: the HTTP status.
        message: what the server said, in one line and without the key.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status}: {message}")
        self.status, self.message = status, message


class Client:
    """Requests to one server, some at a time.

    Those that fail for now (429, 5xx, timeouts, cut connections, answers that cannot be read) are tried again, later
    each time and with jitter, or when the server's Retry-After says. Each carries an `Idempotency-Key` made of its
    content, so that a server that knows it charges once for what was tried twice. The key is read from the environment,
    and neither kept nor printed.

    Args:
        teacher: the server, the name of the key's environment variable, the timeout, rates, price and limits.
        retries: how often a request is tried again.
        spending: where answers are counted; by the teacher's price and limits when not given.

    Attributes:
        spending: what this run spent.
        repeated: requests that were tried again.

    Raises:
        InputError: the extra `api` is not installed, or the key's variable is not set.
    """

    def __init__(self, teacher: TeacherModel, retries: int = RETRIES, spending: Spending | None = None) -> None:
        require("api", "a teacher behind a server")
        assert teacher.server is not None
        self.address, self.timeout, self.retries = teacher.server.rstrip("/"), teacher.timeout, retries
        self.rate = teacher.rate or Rate()
        self.spending = spending or Spending(teacher.price, teacher.limit)
        self.repeated = 0
        self._pace = Pace(self.rate)
        self._variable = teacher.key
        self._key = os.environ.get(teacher.key, "") if teacher.key else ""
        if teacher.key and not self._key:
            raise InputError(f"teacher.key is {teacher.key}, but no such environment variable is set; export it first")
        http = teacher.http
        self._headers = dict(http.headers) if http else {}
        if self._key:
            name, _, value = (http.key_as if http else "Authorization: Bearer {key}").partition(":")
            self._headers[name.strip()] = value.strip().replace("{key}", self._key)
        self._http: AsyncClient | None = None

    def check(self, path: str = "") -> None:
        """Refuse an address where nothing listens.

        Args:
            path: what is looked at; what it answers does not matter.

        Raises:
            InputError: no connection.
        """
        import anyio
        import httpx2
        from anyio.from_thread import start_blocking_portal

        async def look() -> str | None:
            reason = None
            async with self._open() as http:
                for turn in range(1 + min(2, self.retries)):
                    await anyio.sleep(0.5 * turn)
                    try:
                        await http.get(self.address + path)
                        return None
                    except (httpx2.ConnectError, httpx2.ProxyError) as error:
                        reason = self.clean(error)
                    except httpx2.RequestError:
                        return None  # slow or odd is not absent
            return reason

        with start_blocking_portal() as portal:
            reason = portal.call(look)
        if reason is not None:
            raise InputError(f"no connection to teacher.server={self.address} ({reason}); is it running?")

    def run(
        self, draw: Callable[[], A | None], job: Callable[[A], Awaitable[T]], at_once: int
    ) -> Generator[list[T], None, None]:
        """Do jobs, some at a time, and give their results out as they come.

        Where one fails for good, no more are begun; those under way are still waited for and given out. It ends early
        once the limits are reached.

        Args:
            draw: the next job's argument; None where there is none for now. It is asked again after each result.
            job: what is done with it; calls `post`.
            at_once: jobs under way at a time.

        Raises:
            LimbeckError: what a job raised.
        """
        from anyio.from_thread import start_blocking_portal

        failure: LimbeckError | None = None
        pending: set[Future[T]] = set()
        self._http = self._open()
        with start_blocking_portal() as portal:
            try:
                while True:
                    while failure is None and len(pending) < at_once and self.spending.allows(len(pending)):
                        ask = draw()
                        if ask is None:
                            break
                        pending.add(portal.start_task_soon(job, ask))
                    if not pending:
                        break
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    results = []
                    for each in finished:
                        try:
                            results.append(each.result())
                        except LimbeckError as error:
                            failure = failure or error
                    if results:
                        yield results
            finally:
                portal.call(self._http.aclose)
        if failure is not None:
            raise failure

    async def post(self, path: str, body: Any, read: Callable[[Any], T], what: str, form: str, number: str) -> T:  # noqa: ANN401
        """One request, tried again until it is answered; inside `run` alone.

        Args:
            path: after the server's address.
            body: sent as JSON.
            read: makes something of the answer's JSON; raises ValueError, TypeError, LookupError or AttributeError
                where it is not of the form.
            what: what is asked about, for messages: `row 7 of the prompts`.
            form: what the answer should be, for messages: `a chat completion`.
            number: tells requests of equal content apart that are to be answered separately.

        Raises:
            RefusedError: with a status that no other try would change.
            InputError: the key is refused, or the address leads elsewhere.
            LimbeckError: the server kept failing, answers something else, or asks to be left alone for long.
        """
        import anyio
        import httpx2

        assert self._http is not None
        content = [self.address + path, number, body]
        token = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        unreadable = 0
        for turn in range(1, self.retries + 2):
            guess = self.spending.per_call
            await self._pace.turn(guess)
            after, reason = None, ""
            try:
                with anyio.fail_after(self.timeout):
                    response = await self._http.post(self.address + path, json=body, headers={"Idempotency-Key": token})
            except (httpx2.RequestError, TimeoutError) as error:
                reason = self.clean(error)
            else:
                if response.is_success:
                    try:
                        found = response.json()
                        answer = read(found)
                    except (ValueError, TypeError, LookupError, AttributeError) as error:
                        unreadable += 1
                        reason = f"{self.clean(response.text)[:100]!r} ({self.clean(error)})"
                    else:
                        prompt_tokens, tokens = usage(found)
                        self._pace.correct((prompt_tokens or 0) + (tokens or 0) - guess)
                        self.spending.add(prompt_tokens, tokens)
                        return answer
                else:
                    after, reason = self._judge(response)
            if unreadable == UNREADABLE or (unreadable and turn > self.retries):
                raise LimbeckError(
                    f"{self.address} answered {what} with something else than {form}, {reason}; what it answered "
                    "before is kept: the same command goes on"
                )
            if after is not None and after > LONGEST_WAIT:
                raise LimbeckError(
                    f"{self.address} asks to be left alone for {after:,.0f} seconds ({reason}); what it answered is "
                    "kept: the same command goes on"
                )
            if turn <= self.retries:
                self.repeated += 1
                backoff = min(0.5 * 2 ** (turn - 1), 8.0) * (1 - random.random() / 4)
                await anyio.sleep(backoff if after is None else after)
        raise LimbeckError(
            f"{self.address} failed {self.retries + 1} times at {what} ({reason}); what it answered is kept: the same "
            "command goes on"
        )

    def clean(self, error: object) -> str:
        """A message in one line, without the key, which servers like to repeat."""
        text = " ".join((str(error) or type(error).__name__).split())
        return (text.replace(self._key, "***") if self._key else text)[:300]

    def _judge(self, response: Response) -> tuple[float | None, str]:
        """How long to wait and why, of an answer that is no success; raises where waiting does not help."""
        status, message = response.status_code, self.clean(_message(response))
        if status in (401, 403):
            held = (
                f"the key in {self._variable}" if self._variable else "a request without a key (teacher.key=VARIABLE)"
            )
            raise InputError(f"{self.address} refused {held} with status {status}")
        if response.is_redirect:  # which is not followed: the key would go there, too
            there = self.clean(response.headers.get("Location", "elsewhere"))
            raise InputError(f"{self.address} leads to {there} (status {status}); give the right teacher.server")
        if status not in _FOR_NOW and status < 500:
            raise RefusedError(status, message)
        return _retry_after(response), f"status {status}: {message}"

    def _open(self) -> AsyncClient:
        import httpx2

        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30)
        return httpx2.AsyncClient(headers=self._headers, timeout=self.timeout, limits=limits)


def usage(found: Any) -> tuple[int | None, int | None]:  # noqa: ANN401
    """The tokens of prompt and answer that an answer's JSON states, as OpenAI does; none where it does not."""
    said = found.get("usage") if isinstance(found, dict) else None
    counts = [said.get(name) if isinstance(said, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, answer = (count if isinstance(count, int) else None for count in counts)
    return prompt, answer


def _message(response: Response) -> str:
    """What an error says: OpenAI's message, or all of it."""
    try:
        said = response.json()["error"]
        return str(said["message"] if isinstance(said, dict) else said)
    except (ValueError, TypeError, LookupError):
        return response.text or response.reason_phrase


def _retry_after(response: Response) -> float | None:
    """Seconds that the server wants to be left alone for: a number or a date."""
    told = response.headers.get("Retry-After", "")
    try:
        seconds = float(told) if told[:1].isdigit() else parsedate_to_datetime(told).timestamp() - time.time()
    except ValueError:
        return None
    return max(seconds, 0.0)
