"""Learning from the teacher's feature maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from limbeck.errors import InputError
from limbeck.objectives.layer_maps import resolve
from limbeck.objectives.term import Shapes, clean, need_shapes, need_teacher, valid
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class FeatureMap:
    """MobileBERT's feature map transfer (Sun et al. 2020, section 3.4, taken apart as in its code).

    Inputs: states after mapped layers, student s and teacher t [B, n, d] of one width. Per token, with LN a layer norm
    without parameters, and mean and variance over the width:

        normalised * mean((LN(s) - LN(t))^2) + mean * (mean(s) - mean(t))^2 + variance * |var(s) - var(t)|

    Mean over the layers; padding contributes nothing.

    Raises:
        InputError: the widths differ, or the layer map does not fit the two models.
        ValueError: no shapes.
    """

    name = "feature_map"

    def __init__(self, section: terms.FeatureMap, task: Task, shapes: Shapes | None = None) -> None:
        shapes = need_shapes(shapes, self.name)
        mine, its = shapes.student.width, shapes.teacher.width
        if mine != its:
            raise InputError(
                f"feature_map compares states of one width, but the student's are {mine} wide and the teacher's {its}; "
                f"give student.shape hidden_size={its}, or use hidden, which learns a projection"
            )
        self.weight = section.weight
        self.normalised, self.mean, self.variance = section.normalised, section.mean, section.variance
        self.pairs = resolve(section.layers, shapes.student.layers, shapes.teacher.layers)
        self.student = Wanted(hidden=frozenset(self.pairs))
        self.teacher = Wanted(hidden=frozenset(self.pairs.values()))

    def count(self, batch: Batch) -> torch.Tensor:
        """Valid tokens."""
        return valid(batch).sum()

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over the valid tokens."""
        teacher = need_teacher(teacher, self.name)
        losses = [
            self._layer(clean(student.hidden[mine], batch), clean(teacher.hidden[its].detach(), batch))
            for mine, its in self.pairs.items()
        ]
        return torch.stack(losses).mean()

    def _layer(self, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        width = (s.shape[-1],)
        shape = (F.layer_norm(s, width, eps=1e-12) - F.layer_norm(t, width, eps=1e-12)).square().mean(-1)
        means = (s.mean(-1) - t.mean(-1)).square()
        variances = (s.var(-1, correction=0) - t.var(-1, correction=0)).abs()
        return (self.normalised * shape + self.mean * means + self.variance * variances).sum()
