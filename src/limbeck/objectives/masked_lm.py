"""Learning to fill in masked words."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from limbeck.objectives.term import Shapes
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class MaskedLM:
    """Cross entropy with the words that were masked (BERT's own loss).

    Inputs: student logits [N, V] at the batch's `positions`; `targets` int64 [N], the true word at a masked position
    and -100 elsewhere, which contributes nothing and is not counted.
    """

    name = "masked_lm"

    def __init__(self, section: terms.MaskedLM, task: Task, shapes: Shapes | None = None) -> None:
        self.weight = section.weight
        self.student, self.teacher = Wanted(logits=True), Wanted()

    def count(self, batch: Batch) -> torch.Tensor:
        """Masked positions."""
        return (batch["targets"] != -100).sum()

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over the masked positions."""
        return F.cross_entropy(student.logits.float(), batch["targets"], ignore_index=-100, reduction="sum")
