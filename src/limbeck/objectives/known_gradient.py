"""A loss whose gradient is computed along with its value, where autograd would keep too many large tensors."""

from __future__ import annotations

import torch
from torch.autograd.function import FunctionCtx, once_differentiable


def with_gradient(value: torch.Tensor, of: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The loss `value`, a scalar without a graph, as a function of a tensor by which its gradient is known.

    Args:
        value: the loss.
        of: what it was computed from.
        gradient: of the loss by `of`, the same shape; it is kept until the backward pass.
    """
    loss: torch.Tensor = _Known.apply(of, value, gradient.to(of.dtype))  # type: ignore[no-untyped-call]
    return loss


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, of: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, scale: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * scale.to(gradient.dtype), None, None
