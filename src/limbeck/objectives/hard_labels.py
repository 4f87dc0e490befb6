"""Learning from the true labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from limbeck.objectives.term import Shapes, labelled
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class HardLabels:
    """The task's own loss on the true labels.

    Inputs: student logits [B, C]; labels int64 [B] (classification), float32 [B, C] (multi-label) or float32 [B]
    (regression). Examples without a label contribute nothing and are not counted.

    classification: cross entropy. multi-label: binary cross entropy, mean over the labels of an example. regression:
    squared error.

    Labels may also be distributions over classes, float32 [B, C], as of images that were mixed. A student with a head
    of its own for labels, such as DeiT, answers with that one.

    Relation to others: with `soft_targets` it makes the weighted sum of Hinton et al. (2015), section 2.
    """

    name = "hard_labels"

    def __init__(self, section: terms.HardLabels, task: Task, shapes: Shapes | None = None) -> None:
        self.weight = section.weight
        self.student, self.teacher = Wanted(logits=True), Wanted()
        self.kind = task.kind

    def count(self, batch: Batch) -> torch.Tensor:
        """Examples with a label."""
        return labelled(batch["labels"]).sum()

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over the labelled examples."""
        known = labelled(batch["labels"])
        logits, labels = student.heads.get("labels", student.logits)[known].float(), batch["labels"][known]
        if self.kind == "classification":
            return F.cross_entropy(logits, labels, reduction="sum")
        if self.kind == "multi-label":
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1).sum()
        return F.mse_loss(logits[:, 0], labels, reduction="sum")
