"""A teacher held to rules: its answers, or the words of one that runs along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from limbeck.rules import LabelRules
from limbeck.rules.answers import Held
from limbeck.rules.tokens import TokenRules
from limbeck.signals import Asked, Signals, SparseWords, WordSource
from limbeck.tasks.text import Batch
from limbeck.teachers.live import LiveTeacher


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
    def parameters(self) -> int | None:
        """The model's parameters."""
        return self.model.parameters

    @property
    def bytes(self) -> int | None:
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
        return Signals(self.rules.project(said.logits, texts).astype(np.float32), said.features, hard=said.hard)

    def runner(self, texts: Dataset) -> Callable[[], None] | None:
        """A function that runs the model on these texts as one batch and projects as many logits; none of none."""
        inner, logits = self.model.runner(texts), np.zeros((len(texts), self.rules.task.outputs))
        if inner is None:
            return None

        def run() -> None:
            inner()
            self.rules.project(logits, texts)

        return run


class RuledWords:
    """A teacher that runs along, whose words are projected onto rules; a signal source for training.

    What the rules allow is found anew for each batch: of the data's answers, and of the student's own.

    Args:
        teacher: of a causal language model.
        rules: in the teacher's tokens.
        prompts: what the rules' conditions look at, by the examples' `row`.
    """

    def __init__(self, teacher: LiveTeacher, rules: TokenRules, prompts: Sequence[str]) -> None:
        self.teacher, self.rules, self.prompts = teacher, rules, prompts

    def signals(self, batch: Batch) -> Signals:
        """As the teacher's, with its words projected; see `TokenRules.project`."""
        said = self.teacher.signals(batch)
        if said.at_words is not None:
            rows = batch["positions"] // batch["input_ids"].shape[1]
            sizes = torch.bincount(rows, minlength=len(batch["row"])).tolist()
            answers = [each.tolist() for each in torch.split(batch["targets"].cpu(), sizes)]
            prompts = [self.prompts[row] for row in batch["row"].tolist()]
            said.at_words = _RuledWords(said.at_words, Held(self.rules, prompts, answers))
        return said

    def close(self) -> None:
        """As the teacher."""
        self.teacher.close()


class _RuledWords:
    def __init__(self, inner: WordSource, held: Held) -> None:
        self.inner, self.held = inner, held

    def words(self, some: slice) -> torch.Tensor:
        said = self.inner.words(some)
        if isinstance(said, SparseWords):
            raise TypeError("all of a teacher's words are projected, not a few that were kept")
        return self.held.project(said, some)
