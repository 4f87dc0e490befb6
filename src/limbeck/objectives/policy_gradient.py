"""Learning from what the student's own answers lead to."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from limbeck.objectives.term import Shapes
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.text import Batch


class PolicyGradient:
    """The long-range part of the reverse KL divergence's gradient (Gu et al. 2024, MiniLLM, section 2.2).

    Inputs: student logits [N, V] at the tokens of its own answers, `targets` int64 [N], what it said, and `advantages`
    float32 [N], what that led to (`limbeck.training.on_policy.advantages`); where the teacher was mixed in,
    `importance` float32 [N]. The loss is -sum_t importance_t advantage_t log q(y_t). Together with `soft_targets` of
    form `reverse-kl` on the same answers, the part of the gradient that each token has on its own, and with advantages
    that are sums, its gradient's mean is that of KL(q || p) between distributions of whole answers.

    A batch of answers that are not its own contributes nothing.
    """

    name = "policy_gradient"

    def __init__(self, section: terms.PolicyGradient, task: Task, shapes: Shapes | None = None) -> None:
        self.weight, self.normalised = section.weight, section.length_normalised
        self.student = self.teacher = Wanted(logits=True)

    def count(self, batch: Batch) -> torch.Tensor:
        """The tokens of its own answers."""
        return torch.full((), len(batch["targets"]) if "own" in batch else 0, device=batch["targets"].device)

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over those tokens."""
        logits: torch.Tensor = student.logits.float()
        if "advantages" not in batch:
            return logits.sum() * 0
        losses = F.cross_entropy(logits, batch["targets"], reduction="none") * batch["advantages"]
        return (losses * batch["importance"] if "importance" in batch else losses).sum()
