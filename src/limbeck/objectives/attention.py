"""Learning from the teacher's attention."""

from __future__ import annotations

import torch

from limbeck.errors import InputError
from limbeck.objectives.divergence import divergence, squares
from limbeck.objectives.layer_maps import resolve
from limbeck.objectives.term import Shapes, need_shapes, need_teacher, valid
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class Attention:
    """The attention of mapped layers, head by head.

    Inputs: scores before softmax [B, h, n, n] of both models, -inf where an architecture never looks (a window, the
    future). Padding contributes nothing, as query and as key.

    Forms:

    - `mse`: squared difference of the scores per pair of valid tokens, mean over heads, summed over the layers
      (TinyBERT's L_attn, Jiao et al. 2020, eq. 8 and 11). Pairs at which either model never looks contribute nothing.
    - `kl`: KL(teacher || student) of the softmax over valid keys per valid query, mean over heads and layers
      (MobileBERT's L_AT, Sun et al. 2020, section 3.4; MiniLM's, Wang et al. 2020, eq. 4).

    Raises:
        InputError: the numbers of heads differ, or the layer map does not fit the two models.
        ValueError: no shapes.
    """

    name = "attention"

    def __init__(self, section: terms.Attention, task: Task, shapes: Shapes | None = None) -> None:
        shapes = need_shapes(shapes, self.name)
        mine, its = shapes.student.heads, shapes.teacher.heads
        if mine != its:
            raise InputError(
                f"attention compares head by head, but the student has {mine} heads and the teacher {its}; "
                f"give student.shape num_attention_heads={its}, or use relations instead"
            )
        self.weight = section.weight
        self.form = section.form
        self.pairs = resolve(section.layers, shapes.student.layers, shapes.teacher.layers, lowest=1)
        self.student = Wanted(scores=frozenset(self.pairs))
        self.teacher = Wanted(scores=frozenset(self.pairs.values()))

    def count(self, batch: Batch) -> torch.Tensor:
        """Pairs of valid tokens of the same example; valid tokens for `kl`."""
        lengths = valid(batch).sum(-1)
        return lengths.sum() if self.form == "kl" else lengths.square().sum()

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over the pairs of valid tokens, or over the valid queries for `kl`."""
        teacher = need_teacher(teacher, self.name)
        both = [(student.scores[mine], teacher.scores[its].detach()) for mine, its in self.pairs.items()]
        if self.form == "kl":
            return torch.stack([divergence(s, t, batch) for s, t in both]).mean()
        return torch.stack([squares(s, t, batch) for s, t in both]).sum()
