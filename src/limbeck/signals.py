"""The seams between rooms: what a model says about examples, who can be asked, and where a trainer gets it from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from datasets import Dataset


@dataclass
class SparseWords:
    """A teacher's distributions over a vocabulary of which a few tokens were kept; see `limbeck.knowledge.formats`.

    Attributes:
        ids: int64 [N, k + n]: the k likeliest tokens, then n that were drawn from the rest in proportion to their
            probability, of which some may be equal.
        logs: log-probabilities of the first k, float32 [N, k].
        drawn: n; where it is 0, all that is known of the rest is its mass.
        entropy: of the whole distribution in nats, float32 [N].
        temperature: that the teacher's logits were divided by.
    """

    ids: torch.Tensor
    logs: torch.Tensor
    drawn: int
    entropy: torch.Tensor
    temperature: float

    @property
    def tail(self) -> torch.Tensor:
        """The mass of all but the first k, float32 [N]."""
        return (1 - self.logs.exp().sum(-1)).clamp(min=0)

    def __getitem__(self, rows: slice) -> SparseWords:
        return SparseWords(self.ids[rows], self.logs[rows], self.drawn, self.entropy[rows], self.temperature)


@dataclass
class Paths:
    """How B inputs went through a soft decision tree of depth D; nodes are numbered level by level from the root.

    Attributes:
        gates: of each inner node the probability of going right, float32 [B, 2^D - 1].
        nodes: of each inner node the probability of coming there, likewise.
        leaves: of each leaf the probability of ending there, float32 [B, 2^D].
        expected: log-probabilities of the classes, averaged over the leaves by these probabilities, float32 [B, C].
    """

    gates: torch.Tensor
    nodes: torch.Tensor
    leaves: torch.Tensor
    expected: torch.Tensor


@dataclass
class Signals:
    """What a model says about B examples of up to n tokens. Inner signals are there for the layers that were wanted.

    Layers are counted from 1; hidden state 0 is what the first layer reads. `Store` and `Asked` give logits and
    features alone.

    Attributes:
        logits: float [B, C]; of a language model float [N, V] at the batch's N `positions`; of a teacher also sparse
            words there.
        features: the [CLS] state [B, d] after a layer.
        hidden: the states [B, n, d] after a layer.
        queries: of a layer, all heads side by side [B, n, h * d_k], before any rotary embedding.
        keys: likewise.
        values: likewise.
        scores: attention scores before softmax and padding mask [B, h, n, n]; -inf where the architecture never looks.
        heads: of a student with a head for `labels` and one for the `teacher`, whose logits are the mean of both:
            each one's own logits [B, C].
        at_words: of a causal language model's teacher: what it says about the words at the batch's `positions`.
        paths: of a soft tree.
        hard: the logits are of labels alone: probabilities of 0 and 1 that nobody stated.
        members: of several teachers whose layers are learnt from: the inner signals of each.
    """

    logits: Any = None
    features: dict[int, Any] = field(default_factory=dict)
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    queries: dict[int, torch.Tensor] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    scores: dict[int, torch.Tensor] = field(default_factory=dict)
    at_words: WordSource | None = None
    heads: dict[str, torch.Tensor] = field(default_factory=dict)
    paths: Paths | None = None
    hard: bool = False
    members: list[Signals] = field(default_factory=list)


class WordSource(Protocol):
    """What a teacher says about the words at a batch's positions, a few positions at a time."""

    def words(self, some: slice) -> torch.Tensor | SparseWords:
        """Its logits float32 [c, V] at these of the positions, or sparse words."""


@dataclass(frozen=True)
class Wanted:
    """Which signals of a model a loss reads: whether its logits or paths, and by kind the layers; see `Signals`."""

    logits: bool = False
    paths: bool = False
    features: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()
    queries: frozenset[int] = frozenset()
    keys: frozenset[int] = frozenset()
    values: frozenset[int] = frozenset()
    scores: frozenset[int] = frozenset()

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(**{each.name: getattr(self, each.name) | getattr(other, each.name) for each in fields(self)})

    @property
    def by_token(self) -> bool:
        """Whether it includes signals of every token, which are too many to keep: the teacher must be at hand."""
        return any((self.hidden, self.queries, self.keys, self.values, self.scores))

    @property
    def inside(self) -> bool:
        """Whether it includes anything of a layer."""
        return self.by_token or bool(self.features)


class Asked(Protocol):
    """A model that answers about text: a teacher, several as one, a student, an exported student."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of its outputs."""

    @property
    def parameters(self) -> int | None:
        """Its number of parameters; none where that is not known."""

    @property
    def bytes(self) -> int | None:
        """The size of its weights on disk; none where that is not known."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What its answers depend on besides the text: weights, tokenizer, truncation, precision."""

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """Its answers in the order of `texts` (columns `text`, and `text_pair` for pairs), as numpy arrays."""

    def runner(self, texts: Dataset) -> Callable[[], None] | None:
        """A function that runs it once on these texts as one batch, tokenised beforehand; none of what is not timed."""


class SignalSource(Protocol):
    """Where the trainer gets the teacher's signals for a batch; in memory, on disk or elsewhere."""

    def signals(self, batch: dict[str, torch.Tensor]) -> Signals:
        """The signals about a batch as tensors; its `row`, int64 [B], are the examples' numbers in the transfer set."""
