"""Several models that answer as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import entr

from limbeck.errors import InputError
from limbeck.signals import Asked, Signals
from limbeck.tasks import Task


class Several:
    """What several models have in common with one: the labels and precision of the first, the size of all."""

    def __init__(self, members: Sequence[Asked]) -> None:
        self.members = list(members)

    @property
    def labels(self) -> tuple[str, ...]:
        """The first member's labels."""
        return self.members[0].labels

    @property
    def parameters(self) -> int | None:
        """All members' parameters."""
        return total_of([member.parameters for member in self.members])

    @property
    def bytes(self) -> int | None:
        """All members' files."""
        return total_of([member.bytes for member in self.members])

    @property
    def precision(self) -> str:
        """What the first member computes in."""
        return self.members[0].precision

    def runner(self, texts: Dataset) -> Callable[[], None] | None:
        """A function that runs every member once on these texts as one batch; none where a member has none."""
        return run_all([member.runner(texts) for member in self.members])


class Ensemble(Several):
    """The weighted mean of several models' probabilities or logits.

    Args:
        members: models with the same labels in the same order.
        weights: their shares; normalised.
        combine: `probabilities` or `logits`; see `mean_signals`.
        task: what is predicted.
        by_confidence: multiply each one's weight, example by example, with its `certainty`.

    Raises:
        InputError: the members' label sets differ.
    """

    def __init__(
        self, members: Sequence[Asked], weights: Sequence[float], combine: str, task: Task, by_confidence: bool = False
    ) -> None:
        for member in members[1:]:
            if member.labels != members[0].labels:
                raise InputError(
                    f"the teachers' labels differ: {', '.join(members[0].labels)} and {', '.join(member.labels)}"
                )
        super().__init__(members)
        self.weights, self.combine, self.task = list(weights), combine, task
        self.by_confidence = by_confidence

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The members' fingerprints, weights and the way they are combined, which differs by the task's kind."""
        members = [member.fingerprint for member in self.members]
        told = {"members": members, "weights": self.weights, "combine": self.combine, "kind": self.task.kind}
        return told | ({"by confidence": True} if self.by_confidence else {})

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """The combined logits, float32 [N, C].

        Raises:
            InputError: features are asked for; they belong to one model's layers; or logits are to be combined, and a
                member gives labels alone.
        """
        if features:
            raise InputError("teacher.features are one model's layers; several teachers give logits only")
        said = [member.ask(texts) for member in self.members]
        if self.combine == "logits" and any(each.hard for each in said):
            raise InputError(
                "a teacher gives labels alone, which have no logits to combine; give teacher.combine=probabilities"
            )
        logits = [np.asarray(each.logits) for each in said]
        weights = np.asarray(self.weights)
        if self.by_confidence:
            weights = weights[:, None] * np.stack([certainty(each, self.task) for each in logits])
        return Signals(mean_signals(logits, weights, self.task.kind, self.combine))


def run_all(runners: Sequence[Callable[[], None] | None]) -> Callable[[], None] | None:
    """One function for several; none where one of them is none."""
    runs = [each for each in runners if each is not None]
    if len(runs) < len(runners):
        return None

    def run() -> None:
        for each in runs:
            each()

    return run


def total_of(values: Sequence[int | None]) -> int | None:
    """The sum; none where some value is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def certainty(logits: np.ndarray, task: Task) -> np.ndarray:
    """How sure a model is of each example [N]: one minus its entropy over the greatest possible; at least 1e-6.

    multi-label: mean over the labels.
    """
    p = task.probabilities(logits)
    if task.kind == "multi-label":
        sure = 1 - ((entr(p) + entr(1 - p)) / np.log(2)).mean(-1)
    else:
        sure = 1 - entr(p).sum(-1) / np.log(p.shape[-1])
    return np.asarray(np.maximum(sure, 1e-6))


def mean_signals(members: Sequence[Any], weights: Sequence[float] | np.ndarray, kind: str, combine: str) -> np.ndarray:
    """The logits of several models as one model's (Hinton et al. 2015, section 1).

    Args:
        members: logits [N, C] of each model.
        weights: their shares, not all zero: one each, or one each for every example [K, N].
        kind: the task's kind.
        combine: `probabilities` gives the logits whose probabilities are the weighted mean of the members'
            (log-probabilities, or log-odds per label); `logits` gives the weighted mean of logits, a geometric mean
            of probabilities. One value is the mean either way.

    Returns:
        float32 [N, C].
    """
    stack = np.stack([np.asarray(logits, dtype=np.float64) for logits in members])
    share = np.asarray(weights, dtype=np.float64).reshape(len(stack), -1, 1)
    share = share / share.sum(0)
    if combine == "logits" or kind == "regression":
        return np.asarray((share * stack).sum(0), dtype=np.float32)
    log_share = np.log(share)
    if kind == "classification":
        normalised = stack - np.logaddexp.reduce(stack, axis=-1, keepdims=True)
        return np.asarray(np.logaddexp.reduce(normalised + log_share, axis=0), dtype=np.float32)
    log_on = np.logaddexp.reduce(-np.logaddexp(0, -stack) + log_share, axis=0)
    log_off = np.logaddexp.reduce(-np.logaddexp(0, stack) + log_share, axis=0)
    return np.asarray(log_on - log_off, dtype=np.float32)
