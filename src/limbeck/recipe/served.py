"""The recipe's sections about teachers behind servers: what they are asked, how fast, and what it may cost."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.recipe.sections import Count, Positive, Section

NotNegative = Annotated[float, Field(ge=0)]
_SECRET = re.compile("auth|key|token|secret|cookie|password", re.IGNORECASE)


class Rate(Section):
    """How fast a server is asked. What it allows stands in its documentation; asked faster it answers 429."""

    at_once: Count = 16
    """Requests under way at a time. Of `data.generation` its `batch_size` says so."""
    requests_per_second: Positive | None = None
    """At most so many, evenly spaced; repeated ones count."""
    requests_per_minute: Positive | None = None
    """Likewise."""
    tokens_per_minute: Positive | None = None
    """Of prompts and answers; what a request will take is guessed from those before it, and made up for afterwards."""


class Price(Section):
    """What a server charges, in any currency."""

    call: NotNegative = 0.0
    """For each answer."""
    prompt: NotNegative = 0.0
    """For a million tokens of prompts."""
    answer: NotNegative = 0.0
    """For a million tokens of answers."""


class Limit(Section):
    """What one run of the command may spend; the same command goes on for as much again."""

    calls: Count | None = None
    """Answers."""
    tokens: Count | None = None
    """Of prompts and answers."""
    money: Positive | None = None
    """By `price`."""


class Chat(Section):
    """How a server of chat completions is asked for a label."""

    shorthand: ClassVar[str | None] = "prompt"
    prompt: str | None = None
    """What it is asked: `{text}`, `{text_pair}` and `{labels}` stand for the example and the label names. Made from the
    label names when not given."""
    system: str | None = None
    """What it is told beforehand; `{labels}` may stand here, too."""
    probabilities: bool | None = None
    """Learn from the log-probabilities of the labels (true) or from the label that is answered (false). When not given,
    from log-probabilities where the server gives them."""
    tries: Count = 3
    """How often an example is asked about, where the answer is none of the labels; then it is left out and counted."""
    body: dict[str, Any] = {}
    """More entries of the request, such as a server's own way to allow the labels alone; null takes one out."""

    @model_validator(mode="after")
    def _asks(self) -> Chat:
        if self.prompt is not None and "{text}" not in self.prompt:
            raise ValueError("prompt asks about no text; put {text} where the example goes")
        return self


class Http(Section):
    """How any other HTTP classifier is asked, and where its answer says what.

    Paths go down by keys and list numbers with dots between; `*` is every item of a list: `0.*.score`.
    """

    body: dict[str, Any] | list[Any]
    """The request as JSON: `{text}` and `{text_pair}` in its texts stand for the example."""
    label: str | None = None
    """The path of the label that it answers, of several labels a list; where it says no more than that."""
    scores: str | None = None
    """The path of the scores: a mapping by label, or a list in the order of the labels or of `names`."""
    names: str | None = None
    """The path of the list of names that the scores are of."""
    scale: Literal["probabilities", "logits"] = "probabilities"
    """What the scores are."""
    labels: dict[str | int, str] = {}
    """Its names for the labels, where they differ: `{POS: positive}`."""
    headers: dict[str, str] = {}
    """Headers that it wants besides the key's."""
    key_as: str = "Authorization: Bearer {key}"
    """The header that carries the key."""
    tries: Count = 1
    """How often an example is asked about, where the answer is none of the labels; then it is left out and counted."""

    @model_validator(mode="after")
    def _one_kind(self) -> Http:
        if (self.label is None) == (self.scores is None):
            raise ValueError("give the path of either the label or the scores in the answer: label=PATH or scores=PATH")
        if self.names is not None and self.scores is None:
            raise ValueError("names say what scores are of, and no scores are given; add scores=PATH")
        if not any("{text}" in text for text in texts_in(self.body)):
            raise ValueError("body asks about no text; put {text} where the example goes")
        secret = next((name for name in self.headers if _SECRET.search(name)), None)
        if secret is not None:
            raise ValueError(
                f"headers has {secret}, which looks like a key's; name the environment variable of the key as "
                "key=NAME, and the header that carries it as key_as='NAME: {key}'"
            )
        if not re.fullmatch(r"[A-Za-z0-9-]+: *[^{}]*\{key\}[^{}]*", self.key_as):
            raise ValueError("key_as must look like 'X-Api-Key: {key}'; the key itself never stands in a recipe")
        return self


def texts_in(value: Any) -> list[str]:  # noqa: ANN401
    """All texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in texts_in(each)]


class Queries(Section):
    """What to ask a teacher about where each query costs: a student in training chooses, round by round.

    The rest of the transfer set is left out. Settles, Active Learning Literature Survey, 2009.
    """

    shorthand: ClassVar[str | None] = "budget"
    budget: Count
    """Examples to ask about, in all."""
    choose: Literal["uncertainty", "diversity", "random"] = "uncertainty"
    """Those that the student is least sure of; those that lie far apart to it; or any. The first round's are any."""
    uncertainty: Literal["entropy", "margin"] = "entropy"
    """By the entropy of what the student says, or by the gap between its first two labels."""
    diversity: Literal["k-means++", "core-set"] = "k-means++"
    """Draw each by its squared distance to the nearest that was asked (Arthur and Vassilvitskii 2007), or take the
    farthest (Sener and Savarese 2018); between the student's last [CLS] states."""
    rounds: Count = 5
    """Equal parts that the budget is spent in. After each but the last, the student is trained on what is known."""

    @model_validator(mode="after")
    def _enough(self) -> Queries:
        if self.rounds > self.budget:
            raise ValueError(f"rounds is {self.rounds} for a budget of {self.budget}; give fewer rounds")
        return self
