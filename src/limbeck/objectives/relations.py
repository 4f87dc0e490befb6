"""Learning from the relations among the teacher's queries, keys and values."""

from __future__ import annotations

import math
from typing import Any

import torch

from limbeck.errors import InputError
from limbeck.objectives.divergence import relation_divergence
from limbeck.objectives.layer_maps import resolve
from limbeck.objectives.term import Shapes, need_shapes, need_teacher, valid
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class Relations:
    """MiniLM's value relation (Wang et al. 2020, eq. 5 to 7) and MiniLMv2's relations (Wang et al. 2021, section 3.1).

    Inputs: queries, keys or values of mapped layers, all heads side by side, [B, n, w_s] and [B, n, w_t]. Each X is
    split again into A relation heads of width w / A, and R = softmax(X X^T / sqrt(w / A)) over the valid tokens. The
    loss is KL(R_t || R_s) per valid token, mean over relation heads, kinds of vectors and layers.

    A relation is n by n whatever the widths, so neither widths nor attention heads of the models need agree; A must
    divide both widths. A is the teacher's number of attention heads when the recipe gives none, which makes the
    relation of the values MiniLM's.

    Raises:
        InputError: the layer map does not fit the two models, or A does not divide a width.
        ValueError: no shapes.
    """

    name = "relations"

    def __init__(self, section: terms.Relations, task: Task, shapes: Shapes | None = None) -> None:
        shapes = need_shapes(shapes, self.name)
        self.weight = section.weight
        self.kinds = tuple(section.of)
        self.heads = section.heads or shapes.teacher.heads
        self.pairs = resolve(section.layers, shapes.student.layers, shapes.teacher.layers, lowest=1)
        for kind in self.kinds:
            sides = (shapes.student, shapes.teacher)
            widths = [(each.queries if kind == "queries" else each.keys) or each.width for each in sides]
            self._check_widths(kind, *widths)
        mine: dict[str, Any] = dict.fromkeys(self.kinds, frozenset(self.pairs))
        its: dict[str, Any] = dict.fromkeys(self.kinds, frozenset(self.pairs.values()))
        self.student, self.teacher = Wanted(**mine), Wanted(**its)

    def count(self, batch: Batch) -> torch.Tensor:
        """Valid tokens."""
        return valid(batch).sum()

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over the valid tokens."""
        teacher = need_teacher(teacher, self.name)
        losses = []
        for kind in self.kinds:
            for mine, its in self.pairs.items():
                s, t = getattr(student, kind)[mine], getattr(teacher, kind)[its].detach()
                losses.append(relation_divergence(s, t, self.heads, batch))
        return torch.stack(losses).mean()

    def _check_widths(self, kind: str, mine: int, its: int) -> None:
        if mine % self.heads or its % self.heads:
            raise InputError(
                f"relations splits {kind} into {self.heads} heads, but the student's are {mine} wide and the "
                f"teacher's {its}; give relations.heads a divisor of {math.gcd(mine, its)}"
            )
