"""A model held to rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from limbeck.rules import LabelRules
from limbeck.signals import Asked, Signals


class Ruled:
    """A model whose answers are projected onto rules: a teacher corrected by them, or a student in use.

    Args:
        model: whoever answers.
        rules: about the model's labels, in the order of its outputs.
    """

    def __init__(self, model: Asked, rules: LabelRules) -> None:
        self.model, self.rules = model, rules

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's labels."""
        return self.model.labels

    @property
    def parameters(self) -> int:
        """The model's parameters."""
        return self.model.parameters

    @property
    def bytes(self) -> int:
        """The model's files."""
        return self.model.bytes

    @property
    def precision(self) -> str:
        """What the model computes in."""
        return self.model.precision

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The model's, the rules' content, and the label names that they are read with."""
        labels = list(self.rules.task.labels)
        return {"model": self.model.fingerprint, "rules": self.rules.book.fingerprint, "labels": labels}

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """Projected logits float32 [N, C]; see `LabelRules.project`. Features are the model's own."""
        said = self.model.ask(texts, features)
        return Signals(self.rules.project(said.logits, texts).astype(np.float32), said.features)

    def runner(self, texts: Dataset) -> Callable[[], None]:
        """A function that runs the model on these texts as one batch and projects as many logits."""
        inner, logits = self.model.runner(texts), np.zeros((len(texts), self.rules.task.outputs))

        def run() -> None:
            inner()
            self.rules.project(logits, texts)

        return run
