"""Learning from the teacher's embeddings."""

from __future__ import annotations

import torch
from torch import nn

from limbeck.objectives.projection import Projection
from limbeck.objectives.term import Shapes, clean, need_shapes, need_teacher, valid
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class Embedding(nn.Module):
    """TinyBERT's L_embd = MSE(E_s W, E_t) (Jiao et al. 2020, eq. 10).

    Inputs: what the first layer reads, student [B, n, d_s] and teacher [B, n, d_t]. W is learnt, and only there where
    the widths differ. Per token the mean over the teacher's width; padding contributes nothing.

    Raises:
        ValueError: no shapes.
    """

    name = "embedding"

    def __init__(self, section: terms.Embedding, task: Task, shapes: Shapes | None = None) -> None:
        super().__init__()
        shapes = need_shapes(shapes, self.name)
        self.weight = section.weight
        self.student = self.teacher = Wanted(hidden=frozenset({0}))
        self.projection = Projection(shapes.student.width, shapes.teacher.width)

    def count(self, batch: Batch) -> torch.Tensor:
        """Valid tokens."""
        return valid(batch).sum()

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over the valid tokens."""
        s = self.projection(clean(student.hidden[0], batch))
        t = clean(need_teacher(teacher, self.name).hidden[0].detach(), batch)
        error: torch.Tensor = (s - t).square().mean(-1).sum()
        return error
