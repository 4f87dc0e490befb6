"""Bringing a student's states to the teacher's width."""

from __future__ import annotations

import torch
from torch import nn


class Projection(nn.Module):
    """A learnt linear map without bias (TinyBERT's W, eq. 9 and 10); nothing at all where the widths agree.

    Args:
        student: the student's width d_s.
        teacher: the teacher's width d_t.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.linear = nn.Identity() if student == teacher else nn.Linear(student, teacher, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Float32 [..., d_s] to float32 [..., d_t], under autocast, too."""
        with torch.autocast(states.device.type, enabled=False):
            projected: torch.Tensor = self.linear(states)
        return projected
