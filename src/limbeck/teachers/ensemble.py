"""Several models that answer as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from limbeck.errors import InputError
from limbeck.signals import Asked, Signals, mean_signals
from limbeck.tasks import Task


class Ensemble:
    """The weighted mean of several models' probabilities or logits.

    Args:
        members: models with the same labels in the same order.
        weights: their shares; normalised.
        combine: `probabilities` or `logits`; see `limbeck.signals.mean_signals`.
        task: what is predicted.

    Raises:
        InputError: the members' label sets differ.
    """

    def __init__(self, members: Sequence[Asked], weights: Sequence[float], combine: str, task: Task) -> None:
        for member in members[1:]:
            if member.labels != members[0].labels:
                raise InputError(
                    f"the teachers' labels differ: {', '.join(members[0].labels)} and {', '.join(member.labels)}"
                )
        self.members, self.weights, self.combine, self.task = list(members), list(weights), combine, task

    @property
    def labels(self) -> tuple[str, ...]:
        """The members' labels."""
        return self.members[0].labels

    @property
    def parameters(self) -> int:
        """All members' parameters."""
        return sum(member.parameters for member in self.members)

    @property
    def bytes(self) -> int:
        """All members' files."""
        return sum(member.bytes for member in self.members)

    @property
    def precision(self) -> str:
        """What the members compute in."""
        return self.members[0].precision

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The members' fingerprints, weights and the way they are combined, which differs by the task's kind."""
        members = [member.fingerprint for member in self.members]
        return {"members": members, "weights": self.weights, "combine": self.combine, "kind": self.task.kind}

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """The combined logits, float32 [N, C].

        Raises:
            InputError: features are asked for; they belong to one model's layers.
        """
        if features:
            raise InputError("teacher.features are one model's layers; several teachers give logits only")
        answers = [member.ask(texts).logits for member in self.members]
        return Signals(mean_signals(answers, self.weights, self.task.kind, self.combine))

    def runner(self, texts: Dataset) -> Callable[[], None]:
        """A function that runs every member once on these texts as one batch."""
        runs = [member.runner(texts) for member in self.members]

        def run() -> None:
            for each in runs:
                each()

        return run
