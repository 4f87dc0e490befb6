"""Learning from the teacher's outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from limbeck.errors import InputError
from limbeck.objectives.term import Shapes, examples, need_teacher
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class SoftTargets:
    """The teacher's output distribution at a temperature T (Hinton et al. 2015, section 2).

    Inputs: student and teacher logits [B, C] over the same labels in the same order; labels are not read, so every
    example of a transfer set counts.

    Forms, with p = softmax(t/T) and q = softmax(s/T), per example:

    - `kl`: T^2 * KL(p || q) = T^2 * sum_c p_c (log p_c - log q_c). Zero where the student equals the teacher.
    - `cross-entropy`: T^2 * -sum_c p_c log q_c. The same gradient, T (q - p); larger by the teacher's entropy.
    - `mse`: mean_c (s_c - t_c)^2 of the raw logits, without T (Ba and Caruana 2014; Tang et al. 2019). Unlike the
      others it also matches a constant added to all logits.

    masked-lm: an example is a token, with logits [N, V] at the batch's `positions`: every valid token, or of those only
    the ones with a `targets` int64 [N] other than -100 where the recipe says `positions: masked` (DistilBERT's
    `restrict_ce_to_mask`).
    multi-label: p and q are sigmoids, KL and cross entropy are those of each label's two outcomes, mean over labels.
    regression: squared error of the two values in every form; there is no distribution to soften.

    The factor T^2 keeps the gradient's scale the same at every temperature.

    Raises:
        InputError: `positions: masked` of a task that masks nothing.
    """

    name = "soft_targets"

    def __init__(self, section: terms.SoftTargets, task: Task, shapes: Shapes | None = None) -> None:
        if section.positions == "masked" and task.kind != "masked-lm":
            raise InputError(
                f"soft_targets.positions=masked is about masked words, but the task is {task.kind}; "
                "give task masked-lm, or soft_targets.positions=all"
            )
        self.weight = section.weight
        self.student = self.teacher = Wanted(logits=True)
        self.kind = task.kind
        self.positions = section.positions
        self.form = "mse" if task.kind == "regression" else section.form
        self.temperature = section.temperature

    def count(self, batch: Batch) -> torch.Tensor:
        """Every example; of a masked-lm task every position, or every masked one."""
        if self.positions == "masked":
            return (batch["targets"] != -100).sum()
        if self.kind == "masked-lm":
            return torch.tensor(len(batch["positions"]), device=batch["positions"].device)
        return examples(batch)

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over what counts."""
        s: torch.Tensor = student.logits.float()
        t: torch.Tensor = need_teacher(teacher, self.name).logits.detach().float()
        losses = self._losses(s, t)
        if self.positions == "masked":
            losses = losses.masked_fill(batch["targets"] == -100, 0)
        return losses.sum()

    def _losses(self, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The loss of each example."""
        if self.form == "mse":
            return (s - t).square().mean(-1)
        s, t = s / self.temperature, t / self.temperature
        if self.kind == "multi-label":
            cross = F.binary_cross_entropy_with_logits(s, t.sigmoid(), reduction="none")
            entropy = F.binary_cross_entropy_with_logits(t, t.sigmoid(), reduction="none")
            per_example = (cross - entropy if self.form == "kl" else cross).mean(-1)
        elif self.form == "kl":
            per_example = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        else:
            per_example = -(t.softmax(-1) * s.log_softmax(-1)).sum(-1)
        return per_example * self.temperature**2
