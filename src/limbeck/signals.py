"""The seams between rooms: what a model says about examples, who can be asked, and where a trainer gets it from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from datasets import Dataset


@dataclass
class Signals:
    """What a model says about B examples.

    Attributes:
        logits: float [B, C].
        features: the [CLS] state [B, d] after each kept layer, by layer number counted from 1; -1 is the last.
    """

    logits: Any
    features: dict[int, Any] = field(default_factory=dict)


class Asked(Protocol):
    """A model that answers about text: a teacher, several as one, a student, an exported student."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of its outputs."""

    @property
    def parameters(self) -> int:
        """Its number of parameters."""

    @property
    def bytes(self) -> int:
        """The size of its weights on disk."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What its answers depend on besides the text: weights, tokenizer, truncation, precision."""

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """Its answers in the order of `texts` (columns `text`, and `text_pair` for pairs), as numpy arrays."""

    def runner(self, texts: Dataset) -> Callable[[], None]:
        """A function that runs it once on these texts as one batch, tokenised beforehand; for timing."""


class SignalSource(Protocol):
    """Where the trainer gets the teacher's signals for a batch; in memory, on disk or elsewhere."""

    def signals(self, rows: torch.Tensor) -> Signals:
        """The signals of the transfer set's examples numbered `rows`, int64 [B], as tensors in that order."""
