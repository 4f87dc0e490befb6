"""Learning from the teacher's outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from limbeck.errors import InputError
from limbeck.objectives.distances import distance
from limbeck.objectives.term import Shapes, examples, need_teacher
from limbeck.recipe import terms
from limbeck.signals import Signals, SparseWords, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class SoftTargets:
    """The teacher's output distribution at a temperature T (Hinton et al. 2015, section 2).

    Inputs: student and teacher logits [B, C] over the same labels in the same order; labels are not read, so every
    example of a transfer set counts.

    Forms: the distances of `limbeck.objectives.distances`, of which `kl` is T^2 * KL(p || q) with p = softmax(t/T) and
    q = softmax(s/T), zero where the student equals the teacher; and

    - `mse`: mean_c (s_c - t_c)^2 of the raw logits, without T (Ba and Caruana 2014; Tang et al. 2019). Unlike the
      others it also matches a constant added to all logits.
    - `hard`: the cross entropy with the teacher's likeliest class, without T (Touvron et al. 2021, eq. 3).

    A student with a head of its own for what a teacher says, such as DeiT, answers with that one.

    masked-lm: an example is a token, with logits [N, V] at the batch's `positions`: every valid token, or of those only
    the ones with a `targets` int64 [N] other than -100 where the recipe says `positions: masked` (DistilBERT's
    `restrict_ce_to_mask`).
    causal-lm: an example is a token to be predicted, weighed by the batch's `importance` float32 [N] where it has one;
    the teacher's logits may be wider than the vocabulary, whose padding is left out, or sparse words.
    multi-label: p and q are sigmoids; `kl` and `cross-entropy` alone, those of each label's two outcomes, mean over
    labels.
    regression: squared error of the two values in every form; there is no distribution to soften.

    Raises:
        InputError: `positions: masked` of a task that masks nothing; another form of a multi-label task.
    """

    name = "soft_targets"

    def __init__(self, section: terms.SoftTargets, task: Task, shapes: Shapes | None = None) -> None:
        if section.positions == "masked" and task.kind != "masked-lm":
            raise InputError(
                f"soft_targets.positions=masked is about masked words, but the task is {task.kind}; "
                "give task masked-lm, or soft_targets.positions=all"
            )
        if section.form == "hard" and task.kind != "classification":
            raise InputError(
                f"soft_targets.form=hard is about the teacher's likeliest class, but the task is {task.kind}; use "
                "another form"
            )
        if task.kind == "multi-label" and section.form not in ("kl", "cross-entropy", "mse"):
            raise InputError(
                f"soft_targets.form={section.form} is about one distribution over classes, but the task is "
                "multi-label; use kl, cross-entropy or mse"
            )
        self.weight = section.weight
        self.student = self.teacher = Wanted(logits=True)
        self.kind = task.kind
        self.positions = section.positions
        self.form = "mse" if task.kind == "regression" else section.form
        self.temperature, self.beta = section.temperature, section.beta
        self.vocabulary = task.outputs if task.kind == "causal-lm" else None

    def count(self, batch: Batch) -> torch.Tensor:
        """Every example; of a language model's task every position, or every masked one."""
        if self.positions == "masked":
            return (batch["targets"] != -100).sum()
        if self.kind in ("masked-lm", "causal-lm"):
            return torch.full((), len(batch["positions"]), device=batch["positions"].device)
        return examples(batch)

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over what counts."""
        s: torch.Tensor = student.heads.get("teacher", student.logits).float()
        t = need_teacher(teacher, self.name).logits
        if isinstance(t, torch.Tensor):
            t = t.detach().float()[:, : self.vocabulary]
        losses = self._losses(s, t)
        if "importance" in batch:  # answers that were not drawn from the student alone
            losses = losses * batch["importance"]
        if self.positions == "masked":
            losses = losses.masked_fill(batch["targets"] == -100, 0)
        return losses.sum()

    def _losses(self, s: torch.Tensor, t: torch.Tensor | SparseWords) -> torch.Tensor:
        """The loss of each example."""
        if self.form == "mse" and isinstance(t, torch.Tensor):
            return (s[:, : t.shape[-1]] - t).square().mean(-1)
        if self.form == "hard" and isinstance(t, torch.Tensor):
            return F.cross_entropy(s, t.argmax(-1), reduction="none")
        if self.kind != "multi-label" or isinstance(t, SparseWords):
            return distance(s, t, self.form, self.temperature, self.beta)
        s, p = s / self.temperature, (t / self.temperature).sigmoid()
        cross = F.binary_cross_entropy_with_logits(s, p, reduction="none")
        if self.form == "kl":
            cross = cross - F.binary_cross_entropy_with_logits(t / self.temperature, p, reduction="none")
        return cross.mean(-1) * self.temperature**2
