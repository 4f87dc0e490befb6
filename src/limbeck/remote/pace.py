"""When the next request may be sent."""

from __future__ import annotations

import time

from limbeck.recipe.served import Rate


class Pace:
    """Spaces requests evenly, so that a server's rates are kept without bursts that it would refuse.

    Args:
        rate: what the server allows.
    """

    def __init__(self, rate: Rate) -> None:
        self._calls = [
            _Clock(per_second)
            for per_second in (rate.requests_per_second, (rate.requests_per_minute or 0) / 60)
            if per_second
        ]
        self._tokens = _Clock(rate.tokens_per_minute / 60) if rate.tokens_per_minute else None

    async def turn(self, tokens: float) -> None:
        """Wait until one more request may be sent.

        Args:
            tokens: that it will take, with its answer.
        """
        import anyio

        now = time.monotonic()
        at = max([now, *(clock.take(1, now) for clock in self._calls)])
        if self._tokens is not None:
            at = max(at, self._tokens.take(tokens, now))
        if at > now:
            await anyio.sleep(at - now)

    def correct(self, tokens: float) -> None:
        """Make up for a wrong guess: so many tokens more were taken, or less."""
        if self._tokens is not None:
            self._tokens.free += tokens / self._tokens.rate


class _Clock:
    """One rate: when it is free again."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free = rate, 0.0

    def take(self, amount: float, now: float) -> float:
        """When so much more may be taken; it is, then."""
        at = max(self.free, now)
        self.free = at + amount / self.rate
        return at
