"""Learning from the teacher's hidden states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from limbeck.objectives.layer_maps import resolve
from limbeck.objectives.projection import Projection
from limbeck.objectives.term import Shapes, clean, examples, need_shapes, need_teacher, valid
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class Hidden(nn.Module):
    """The states after mapped layers; where the widths differ, the student's through one learnt W for all layers.

    Inputs: student states s [B, n, d_s]; teacher states t [B, n, d_t], or of form `cls` its `features` [B, d_t], which
    a store can keep. Padding contributes nothing. A conversation's prompt counts: what is said depends on its states.

    Forms:

    - `mse`: per token, mean over the teacher's width of (s W - t)^2, summed over the layers (TinyBERT's L_hidn, Jiao
      et al. 2020, eq. 9 and 11).
    - `cosine`: per token 1 - cos(s W, t), mean over the layers (DistilBERT's L_cos, Sanh et al. 2019, section 2).
    - `cls`: per example, of the first token's state, mean over layers and width of (s W / |s W| - t / |t|)^2, which is
      (2 - 2 cos) / d_t (PKD's L_PT, Sun et al. 2019, eq. 7, as its code averages it).

    Raises:
        InputError: the layer map does not fit the two models.
        ValueError: no shapes.
    """

    name = "hidden"

    def __init__(self, section: terms.Hidden, task: Task, shapes: Shapes | None = None) -> None:
        super().__init__()
        shapes = need_shapes(shapes, self.name)
        self.weight = section.weight
        self.form = section.form
        lowest = 1 if self.form == "cls" else 0
        self.pairs = resolve(section.layers, shapes.student.layers, shapes.teacher.layers, lowest)
        its = frozenset(self.pairs.values())
        self.student = Wanted(hidden=frozenset(self.pairs))
        self.teacher = Wanted(features=its) if self.form == "cls" else Wanted(hidden=its)
        self.projection = Projection(shapes.student.width, shapes.teacher.width)

    def count(self, batch: Batch) -> torch.Tensor:
        """Valid tokens; examples for `cls`."""
        return examples(batch) if self.form == "cls" else valid(batch).sum()

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over the valid tokens, or over the examples for `cls`."""
        teacher = need_teacher(teacher, self.name)
        layer = {"mse": self._mse, "cosine": self._cosine, "cls": self._cls}[self.form]
        losses = torch.stack([layer(student, teacher, batch, mine, its) for mine, its in self.pairs.items()])
        return losses.sum() if self.form == "mse" else losses.mean()

    def _mse(self, student: Signals, teacher: Signals, batch: Batch, mine: int, its: int) -> torch.Tensor:
        s, t = self._states(student, teacher, batch, mine, its)
        return (s - t).square().mean(-1).sum()

    def _cosine(self, student: Signals, teacher: Signals, batch: Batch, mine: int, its: int) -> torch.Tensor:
        s, t = self._states(student, teacher, batch, mine, its)
        return (1 - F.cosine_similarity(s, t, dim=-1)).masked_fill(~valid(batch), 0).sum()

    def _cls(self, student: Signals, teacher: Signals, batch: Batch, mine: int, its: int) -> torch.Tensor:
        s: torch.Tensor = self.projection(student.hidden[mine][:, 0].float())
        t: torch.Tensor = teacher.features[its].detach().float()
        return (F.normalize(s, dim=-1) - F.normalize(t, dim=-1)).square().mean(-1).sum()

    def _states(
        self, student: Signals, teacher: Signals, batch: Batch, mine: int, its: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both models' states [B, n, d_t], zero for padding."""
        return self.projection(clean(student.hidden[mine], batch)), clean(teacher.hidden[its].detach(), batch)
