"""Learning to tell the teacher's state of a token from those of the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from limbeck.objectives.projection import Projection
from limbeck.objectives.term import Shapes, clean, need_shapes, need_teacher, valid
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class Contrastive(nn.Module):
    """InfoNCE (van den Oord et al. 2018, equation 4) between the last states of student and teacher.

    Inputs: student states [B, n, d_s], through a learnt W where the widths differ, and teacher states [B, n, d_t], both
    normalised. Per valid token i of an example, -log softmax_j(s_i . t_j / temperature) at j = i, over the example's
    valid tokens j: the state that the teacher has of the same token against those it has of the others.

    The negatives are of the same example, not of the batch, so the loss does not depend on how a batch is split.

    Raises:
        ValueError: no shapes.
    """

    name = "contrastive"

    def __init__(self, section: terms.Contrastive, task: Task, shapes: Shapes | None = None) -> None:
        super().__init__()
        shapes = need_shapes(shapes, self.name)
        self.weight, self.temperature = section.weight, section.temperature
        self.last = (shapes.student.layers, shapes.teacher.layers)
        self.student = Wanted(hidden=frozenset([self.last[0]]))
        self.teacher = Wanted(hidden=frozenset([self.last[1]]))
        self.projection = Projection(shapes.student.width, shapes.teacher.width)

    def count(self, batch: Batch) -> torch.Tensor:
        """Valid tokens."""
        return valid(batch).sum()

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over the valid tokens."""
        teacher = need_teacher(teacher, self.name)
        tokens = valid(batch)
        with torch.autocast(tokens.device.type, enabled=False):
            s = F.normalize(self.projection(clean(student.hidden[self.last[0]], batch)), dim=-1)
            t = F.normalize(clean(teacher.hidden[self.last[1]].detach(), batch), dim=-1)
            scores = (s @ t.mT / self.temperature).masked_fill(~tokens[:, None, :], -1e30)
            losses = -scores.log_softmax(-1).diagonal(dim1=-2, dim2=-1)
        return losses.masked_fill(~tokens, 0).sum()
