"""What every term of a loss looks like to the trainer."""

from __future__ import annotations

from typing import Protocol

import torch

from limbeck.signals import Signals
from limbeck.tasks.text import Batch


class Term(Protocol):
    """One term of a loss.

    The trainer divides `total` by `count` over the whole global batch (all micro-steps and processes) and multiplies
    by `weight`, so that the gradient does not depend on how that batch is split.
    """

    name: str
    weight: float
    needs_labels: bool
    needs_teacher: bool

    def count(self, batch: Batch) -> torch.Tensor:
        """The number of valid positions in this batch, a scalar; from the inputs alone, before any forward pass."""

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over this batch's valid positions, a float32 scalar."""


def labelled(labels: torch.Tensor) -> torch.Tensor:
    """Which examples [B] have a label: not -100 (class numbers), not NaN (multi-hot rows, values)."""
    if not labels.is_floating_point():
        return labels != -100
    known = ~labels.isnan()
    return known.all(-1) if known.ndim > 1 else known
