"""A loss whose gradient is computed along with its value, where autograd would keep too many large tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd.function import FunctionCtx, once_differentiable


def with_gradients(value: torch.Tensor, of: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The loss `value`, a scalar without a graph, as a function of tensors by which its gradients are known.

    Args:
        value: the loss.
        of: what it was computed from.
        gradients: of the loss by each, of the same shapes; they are kept until the backward pass, which uses them up.
    """
    given = [gradient.to(each.dtype) for each, gradient in zip(of, gradients, strict=True)]
    loss: torch.Tensor = _Known.apply(value, *of, *given)  # type: ignore[no-untyped-call]
    return loss


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, value: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.saved_tensors  # type: ignore[attr-defined]
        # In place: a head's gradient is as large as the head, and autograd refuses a second pass over what was changed.
        return (None, *(gradient.mul_(scale.to(gradient.dtype)) for gradient in gradients), *[None] * len(gradients))
