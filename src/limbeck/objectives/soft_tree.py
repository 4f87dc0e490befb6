"""Learning a soft decision tree: the cross entropy of its leaves, and a penalty on lopsided decisions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from limbeck.errors import InputError
from limbeck.objectives.term import Shapes, examples, labelled, need_teacher
from limbeck.recipe import terms
from limbeck.signals import Paths, Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch

LEAST = 1e-5
"""A node's mean decision counts as no closer to 0 or 1 than this, so that the penalty stays finite."""


class PathCrossEntropy:
    """Each leaf's cross entropy, weighted by the probability of ending there (Frosst and Hinton 2017, section 3).

    L(x) = -sum_l P_l(x) sum_k T_k log Q_lk with path probabilities P, leaf distributions Q and targets T: the true
    class, or the teacher's distribution softmax(t / temperature). The paper prints the logarithm of the double sum,
    which is negative; implementations, and this, use the sum itself. It is an upper bound of the cross entropy of the
    mixture, and unlike that it makes each leaf right by itself.

    Inputs: the student's paths; labels int64 [B] (examples without one contribute nothing and are not counted), or the
    teacher's logits [B, C], with which every example counts. The leaves have no temperature, so none is made up for:
    the gradient's scale hardly changes with the targets'.

    Raises:
        InputError: a task other than classification.
    """

    name = "path_cross_entropy"

    def __init__(self, section: terms.PathCrossEntropy, task: Task, shapes: Shapes | None = None) -> None:
        if task.kind != "classification":
            raise InputError(
                f"path_cross_entropy is about one distribution over classes, and the task is {task.kind}; use a task "
                "of classification, or another student and soft_targets"
            )
        self.weight = section.weight
        self.taught = section.targets == "teacher"
        self.temperature = section.temperature
        self.student, self.teacher = Wanted(logits=True, paths=True), Wanted(logits=self.taught)

    def count(self, batch: Batch) -> torch.Tensor:
        """Every example, or those with a label."""
        return examples(batch) if self.taught else labelled(batch["labels"]).sum()

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over what counts."""
        logs = paths_of(student, self.name).expected
        if not self.taught:
            return F.nll_loss(logs, batch["labels"], ignore_index=-100, reduction="sum")
        targets = (need_teacher(teacher, self.name).logits.detach().float() / self.temperature).softmax(-1)
        loss: torch.Tensor = -(targets * logs).sum()
        return loss


class Balance(nn.Module):
    """A penalty on nodes that send most of what comes to them the same way (Frosst and Hinton 2017, section 3.1).

    C = -sum_i decay^d(i) 1/2 (log a_i + log(1 - a_i)) over inner nodes i of depth d(i), with a_i the mean probability
    of going right among what comes to the node: a_i = sum_x P_i(x) p_i(x) / sum_x P_i(x). It is least, log 2 a node,
    where each half goes its way. Without it some nodes send everything one way early, and the other side never learns.

    Few examples of a batch come to a deep node, so a_i is of a running average: what both sums were is multiplied by
    1 - 1/w with each update, where the window w doubles from level to level. Sums, not their quotient, are averaged, so
    that a smaller batch counts for less.

    The gradient is that of the whole global batch's a_i, however it is split: before an update the trainer runs the
    student once over all its micro-batches, on all processes, for their sums (`begin`). The average's past is no
    function of the weights, so that only one update's part of a_i moves with them, some 1/w; the gradient is multiplied
    by how many updates the average is worth. So it estimates that of the penalty on all examples, and depth weakens it
    by `decay` alone.

    Inputs: the student's paths; no labels and no teacher. The running average is kept in checkpoints.
    """

    name = "balance"

    def __init__(self, section: terms.Balance, task: Task, shapes: Shapes | None = None) -> None:
        super().__init__()
        self.weight = section.weight
        self.decay, self.window = section.decay, section.window
        self.student, self.teacher = Wanted(paths=True), Wanted()
        self.average: torch.Tensor
        self.register_buffer("average", torch.zeros(3, 0))  # `sums` and how many; of no node before the first update
        self._depths: torch.Tensor | None = None
        self._examples: torch.Tensor | None = None

    def sums(self, paths: Paths) -> torch.Tensor:
        """By inner node how many came, and how many of these went right, in expectation, float32 [2, nodes]."""
        return torch.stack([paths.nodes.sum(0), (paths.nodes * paths.gates).sum(0)])

    def begin(self, sums: torch.Tensor) -> None:
        """Take the whole global batch's `sums` into the running average; to be called once before each update."""
        if self.average.shape[1] != sums.shape[1]:
            self.average = sums.new_zeros(3, sums.shape[1])
        depth = sums.shape[1].bit_length()
        self._depths = torch.cat([torch.full((2**level,), float(level)) for level in range(depth)]).to(sums.device)
        self._examples = sums[0, 0]  # all of them come to the root
        self.average.mul_(1 - 1 / (self.window * 2**self._depths)).add_(torch.cat([sums, torch.ones_like(sums[:1])]))

    def count(self, batch: Batch) -> torch.Tensor:
        """Every example."""
        return examples(batch)

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The penalty times this batch's examples; the gradient is this batch's part of it, times all examples.

        Raises:
            ValueError: `begin` was not called.
        """
        if self._examples is None or self._depths is None:
            raise ValueError("balance needs the sums of the whole global batch before any part of it; call begin")
        own = self.sums(paths_of(student, self.name))
        came, right = self.average[:2] + self.average[2] * (own - own.detach())
        share = right / came.clamp(min=torch.finfo(came.dtype).tiny)
        a = share.detach().clamp(LEAST, 1 - LEAST)
        weights = self.decay**self._depths
        value = -(weights * (a.log() + (1 - a).log())).sum() / 2
        # By the slope at `a`, which beyond `LEAST` does not vanish as that of a clamped value would.
        moved = (weights * (1 / (1 - a) - 1 / a) * (share - share.detach())).sum() / 2
        loss: torch.Tensor = value * examples(batch) + moved * self._examples
        return loss

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        saved = state_dict.get(f"{prefix}average")
        if saved is not None:  # its size is the tree's, which is not known before the first update
            self.average = torch.zeros_like(saved, device=self.average.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def paths_of(student: Signals, name: str) -> Paths:
    """How the student's inputs went through its tree.

    Raises:
        ValueError: it is no tree.
    """
    if student.paths is None:
        raise ValueError(f"{name} needs the paths of a soft tree")
    return student.paths
