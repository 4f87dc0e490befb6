"""Terms over a large vocabulary, a few positions at a time: neither model's logits of a whole batch ever exist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from limbeck.anatomy import VocabularyHead
from limbeck.objectives.known_gradient import with_gradients
from limbeck.objectives.term import Term
from limbeck.signals import Signals, WordSource
from limbeck.tasks.text import Batch

TOGETHER = 4
"""Chunks whose gradients a CPU multiplies at once: each product passes over all of the head's weights."""
_BY_POSITION = ("targets", "positions", "importance", "advantages")


def over_vocabulary(
    terms: Sequence[Term],
    scales: torch.Tensor,
    states: torch.Tensor,
    head: VocabularyHead,
    teacher: WordSource | None,
    batch: Batch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each term's total, and their weighted sum as a function of the states and the head's weights.

    For each chunk of positions the student's logits are made, the terms' gradient by them is taken at once, and what
    that of a few chunks says of the states and of the head's weights is all that is kept: the same value and gradient
    as with all logits in memory, at the cost of no second forward pass (as in Liger's fused linear losses, Hsu et al.
    2024, section 3.2).

    Args:
        terms: terms that read logits alone.
        scales: what each total is multiplied by in the sum, float32 [terms].
        states: the student's last states at the positions that count, [N, d].
        head: the student's.
        teacher: gives the teacher's words at the same positions; none when no term needs a teacher.
        batch: its `targets`, the tokens that follow, int64 [N], and whatever else it says of each position.

    Returns:
        The totals float32 [terms], without a graph, and the loss, a float32 scalar.
    """
    weight, bias = head.linear.weight, head.linear.bias
    learns = torch.is_grad_enabled() and states.requires_grad
    inputs = [states, weight, *([bias] if bias is not None else [])]
    gradients = [torch.zeros_like(each) for each in inputs] if learns else []
    about = {name: batch[name] for name in _BY_POSITION if name in batch}
    if "own" in batch:
        about["own"] = batch["own"].expand(len(states))
    totals = torch.zeros(len(terms), device=states.device)
    waiting: list[torch.Tensor] = []
    collected = 0
    for some in head.chunks(len(states)):
        x = states.detach()[some]
        with torch.no_grad():
            raw = F.linear(x.to(weight.dtype), weight, bias)
        with torch.set_grad_enabled(learns):
            raw.requires_grad_(learns)
            said = Signals(logits=teacher.words(some)) if teacher is not None else None
            part = {name: tensor[some] for name, tensor in about.items()}
            each = torch.stack([term.total(Signals(logits=head.finish(raw)), said, part) for term in terms])
        totals += each.detach()
        if learns:
            waiting += torch.autograd.grad((each * scales).sum(), raw)
            if len(waiting) == (TOGETHER if states.device.type == "cpu" else 1) or some.stop >= len(states):
                of_raw = torch.cat(waiting) if len(waiting) > 1 else waiting[0]
                _collect(of_raw, states.detach(), slice(collected, some.stop), weight.detach(), gradients)
                waiting, collected = [], some.stop
    value = (totals * scales).sum()
    if not learns:
        return totals, value
    needed = [(each, found) for each, found in zip(inputs, gradients, strict=True) if each.requires_grad]
    return totals, with_gradients(value, *zip(*needed, strict=True))


@torch.no_grad()
def word_scores(states: torch.Tensor, head: VocabularyHead, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each target its negative log-likelihood in nats, and whether it is the likeliest; float32 [N] both."""
    loss, right = torch.empty(2, len(states), device=states.device)
    for some in head.chunks(len(states)):
        logits = head(states[some])
        loss[some] = F.cross_entropy(logits, targets[some], reduction="none")
        right[some] = (logits.argmax(-1) == targets[some]).float()
    return loss, right


def _collect(
    gradient: torch.Tensor, states: torch.Tensor, some: slice, weight: torch.Tensor, gradients: list[torch.Tensor]
) -> None:
    """Add what the gradient by the linear map's result [c, V] says of the map's weights and of these states [N, d]."""
    x = states[some]
    with torch.autocast(gradient.device.type, enabled=False):
        gradients[0][some] = gradient @ weight.to(gradient.dtype)
        if gradient.dtype == gradients[1].dtype:
            gradients[1].addmm_(gradient.T, x.to(gradient.dtype))
        else:
            gradients[1] += gradient.T @ x.to(gradient.dtype)
        if len(gradients) > 2:
            gradients[2] += gradient.sum(0)
