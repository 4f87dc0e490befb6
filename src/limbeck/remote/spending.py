"""What a server's answers cost, and when to ask no more."""

from __future__ import annotations

from limbeck.errors import InputError
from limbeck.recipe.served import Limit, Price


class Spending:
    """What one run of the command spent on a server.

    Args:
        price: what the server charges.
        limit: what may be spent.
        named: what the limit of tokens is called in the recipe.

    Attributes:
        calls: answers.
        prompt_tokens: of their prompts.
        tokens: of the answers themselves.
    """

    def __init__(
        self, price: Price | None = None, limit: Limit | None = None, named: str = "teacher.limit.tokens"
    ) -> None:
        self.price, self.limit, self.named = price or Price(), limit or Limit(), named
        self.calls = self.prompt_tokens = self.tokens = 0

    def add(self, prompt_tokens: int | None, tokens: int | None) -> None:
        """Count an answer.

        Args:
            prompt_tokens: of the prompt; none where the server does not count.
            tokens: of the answer, likewise.

        Raises:
            InputError: the server does not count tokens, and the price or the limit is about them.
        """
        self.calls += 1
        if prompt_tokens is None or tokens is None:
            for name, value, what in (
                (self.named, self.limit.tokens, "held"),
                ("teacher.price.prompt", self.price.prompt, "reckoned with"),
                ("teacher.price.answer", self.price.answer, "reckoned with"),
            ):
                if value:
                    raise InputError(
                        f"the server does not count tokens, so {name}={value:g} cannot be {what}; leave it out"
                    )
        self.prompt_tokens += prompt_tokens or 0
        self.tokens += tokens or 0

    @property
    def money(self) -> float:
        """In the price's currency."""
        return cost(self.price, self.calls, self.prompt_tokens, self.tokens)

    @property
    def per_call(self) -> float:
        """Tokens of an answer with its prompt, so far."""
        return (self.prompt_tokens + self.tokens) / max(self.calls, 1)

    def allows(self, under_way: int) -> bool:
        """Whether one more may be asked while so many are; they are taken to cost what the others did."""
        share = 1 + under_way / max(self.calls, 1)
        spent = (self.calls + under_way, (self.prompt_tokens + self.tokens) * share, self.money * share)
        limits = (self.limit.calls, self.limit.tokens, self.limit.money)
        return all(most is None or value < most for value, most in zip(spent, limits, strict=True))

    def told(self) -> str:
        """For reading."""
        return told(self.price, self.calls, self.prompt_tokens, self.tokens)

    def limits(self) -> str:
        """The limits for reading: `limit.calls is 500`."""
        given = self.limit.model_dump(exclude_none=True)
        return " and ".join(f"teacher.limit.{name} is {value:,}" for name, value in given.items())


def cost(price: Price, calls: int, prompt_tokens: int, tokens: int) -> float:
    """What so many answers cost, in the price's currency."""
    return price.call * calls + (price.prompt * prompt_tokens + price.answer * tokens) / 1e6


def told(price: Price, calls: int, prompt_tokens: int, tokens: int) -> str:
    """What so many answers took, for reading."""
    parts = [f"{calls:,} call{'s' * (calls != 1)}"]
    if prompt_tokens or tokens:
        parts.append(f"{prompt_tokens:,} tokens of prompts and {tokens:,} of answers")
    money = cost(price, calls, prompt_tokens, tokens)
    if money:
        parts.append(f"a cost of {money:,.4g}")
    return ", ".join(parts)
