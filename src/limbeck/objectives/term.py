"""What every term of a loss looks like to the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from limbeck.anatomy import Shape
from limbeck.signals import Signals, Wanted
from limbeck.tasks.text import Batch


class Term(Protocol):
    """One term of a loss.

    The trainer divides `total` by `count` over the whole global batch (all micro-steps and processes) and multiplies
    by `weight`, so that the gradient does not depend on how that batch is split.

    A term with weights of its own (projections) is an `nn.Module`: they are trained along and never saved with the
    student.

    Attributes:
        name: as in the recipe.
        weight: its share of the loss.
        student: what it reads of the student.
        teacher: what it reads of the teacher; nothing for a term that needs none.
    """

    name: str
    weight: float
    student: Wanted
    teacher: Wanted

    def count(self, batch: Batch) -> torch.Tensor:
        """The number of valid positions in this batch, a scalar; from the inputs alone, before any forward pass."""

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over this batch's valid positions, a float32 scalar."""


@dataclass(frozen=True)
class Shapes:
    """The sizes of the two models that a term compares.

    Attributes:
        student: of the student.
        teacher: of the teacher whose inner signals are read.
    """

    student: Shape
    teacher: Shape


def need_shapes(shapes: Shapes | None, name: str) -> Shapes:
    """The sizes, for a term that cannot be built without.

    Raises:
        ValueError: there are none.
    """
    if shapes is None:
        raise ValueError(f"{name} needs the shapes of student and teacher")
    return shapes


def need_teacher(teacher: Signals | None, name: str) -> Signals:
    """The teacher's signals, for a term that cannot do without.

    Raises:
        ValueError: there are none.
    """
    if teacher is None:
        raise ValueError(f"{name} needs the teacher's signals")
    return teacher


def examples(batch: Batch) -> torch.Tensor:
    """The number of examples, a scalar where the batch is; its rows alone may be elsewhere."""
    device = next((each.device for name, each in batch.items() if name != "row"), batch["row"].device)
    return torch.full((), len(batch["row"]), device=device)  # a filled tensor waits for no device


def valid(batch: Batch) -> torch.Tensor:
    """Which tokens [B, n] are no padding."""
    return batch["attention_mask"].bool()


def clean(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """States of tokens [B, n, d] in float32 with zeros for padding, so that it reaches neither value nor gradient."""
    return states.float().masked_fill(~valid(batch)[..., None], 0)


def labelled(labels: torch.Tensor) -> torch.Tensor:
    """Which examples [B] have a label: not -100 (class numbers), not NaN (multi-hot rows, values)."""
    if not labels.is_floating_point():
        return labels != -100
    known = ~labels.isnan()
    return known.all(-1) if known.ndim > 1 else known
