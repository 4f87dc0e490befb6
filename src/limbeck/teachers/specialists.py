"""Specialists that tell some of the classes apart and call the rest one (Hinton et al. 2015, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import log_softmax, softmax

from limbeck.errors import InputError
from limbeck.signals import Asked, Signals
from limbeck.tasks import Task
from limbeck.teachers.ensemble import Several

STEPS, TOLERANCE = 500, 1e-7


class WithSpecialists(Several):
    """A generalist's answers, corrected by specialists on the classes that they know.

    Args:
        generalist: a model of all classes, or several as one.
        specialists: models of some of the classes, each with the label by which it says that an example is of another.
        task: what is predicted.

    Raises:
        InputError: a specialist without that label, or with a class that the task does not have.
    """

    def __init__(self, generalist: Asked, specialists: Sequence[tuple[Asked, str]], task: Task) -> None:
        super().__init__([generalist, *(member for member, _ in specialists)])
        self.task = task
        self._places: list[list[int]] = []
        """Of each specialist its logits' places: its own classes, then the others."""
        self._classes: list[list[int]] = []
        for member, others in specialists:
            if others not in member.labels:
                raise InputError(
                    f"teacher.others is {others}, and the specialist has the labels {', '.join(member.labels[:8])}; "
                    "name the one by which it says that an example is of none of its classes"
                )
            own = [label for label in member.labels if label != others]
            strange = [label for label in own if label not in task.labels]
            if strange:
                raise InputError(
                    f"a specialist tells {strange[0]} apart, and the task's labels are {', '.join(task.labels[:8])}; "
                    "give one that knows some of these"
                )
            self._places.append([member.labels.index(label) for label in (*own, others)])
            self._classes.append([task.labels.index(label) for label in own])

    @property
    def fingerprint(self) -> dict[str, Any]:
        """That of all, and which classes are whose."""
        return {"specialists": [each.fingerprint for each in self.members], "classes": self._classes}

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """Log-probabilities float32 [N, C]; see `combine_specialists`.

        Raises:
            InputError: features are asked for; they belong to one model's layers.
        """
        if features:
            raise InputError("teacher.features are one model's layers; several teachers give logits only")
        general, *special = (np.asarray(member.ask(texts).logits) for member in self.members)
        chosen = [logits[:, places] for logits, places in zip(special, self._places, strict=True)]
        return Signals(combine_specialists(general, chosen, self._classes))


def combine_specialists(
    generalist: np.ndarray, specialists: Sequence[np.ndarray], classes: Sequence[Sequence[int]]
) -> np.ndarray:
    """The distribution q that minimises KL(g || q) + sum over active specialists m of KL(p_m || q) (equation 5).

    A specialist is active where the generalist's likeliest class is one of its own. KL(p_m || q) is over its own
    classes and one more, whose probability under q is that of all other classes. The minimum is found by expectation
    maximisation: each p_m is spread over all classes as q spreads its rest, and q becomes the mean of these and g.

    Args:
        generalist: logits [N, C].
        specialists: logits [N, k + 1] each, the last of which is about all other classes.
        classes: the k own classes of each, in the order of its logits.

    Returns:
        Log-probabilities float32 [N, C].
    """
    g = softmax(np.asarray(generalist, dtype=np.float64), axis=-1)
    likeliest = g.argmax(-1)
    found = np.log(np.maximum(g, np.finfo(np.float64).tiny))
    members = [softmax(np.asarray(logits, dtype=np.float64), axis=-1) for logits in specialists]
    active = np.stack([np.isin(likeliest, own) for own in classes], -1)  # [N, specialists]
    for which in np.unique(active, axis=0):
        if not which.any():
            continue
        rows = np.flatnonzero((active == which).all(-1))
        chosen = [(members[m][rows], list(classes[m])) for m in np.flatnonzero(which).tolist()]
        found[rows] = np.log(np.maximum(_fit(g[rows], chosen), np.finfo(np.float64).tiny))
    return np.asarray(log_softmax(found, axis=-1), dtype=np.float32)


def _fit(g: np.ndarray, specialists: list[tuple[np.ndarray, list[int]]]) -> np.ndarray:
    """The distributions [N, C] between g and these specialists, all of them active."""
    q = g.copy()
    for _ in range(STEPS):
        total = g.copy()
        for p, own in specialists:
            rest = np.ones(g.shape[1], dtype=bool)
            rest[own] = False
            others = q[:, rest]
            total[:, own] += p[:, :-1]
            total[:, rest] += p[:, -1:] * others / np.maximum(others.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
        before, q = q, total / (1 + len(specialists))
        if np.abs(q - before).max() < TOLERANCE:
            break
    return q
