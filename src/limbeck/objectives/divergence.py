"""The KL divergence of two attention maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from limbeck.objectives.term import valid
from limbeck.tasks.text import Batch

NEVER = -1e30  # like -inf its softmax is exactly zero; unlike it, it cannot turn into NaN in a row that is all of it


def divergence(student: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor:
    """KL(teacher row || student row), mean over heads, summed over the rows of valid queries; a float32 scalar.

    A row is the softmax over the valid keys. Keys that the teacher never looks at have probability zero there. Keys
    that the student never looks at cannot be learnt: both rows are taken over the others, and a row without any
    contributes nothing.

    Args:
        student: scores [B, h, n, n], -inf where it never looks.
        teacher: likewise.
        batch: says which tokens are valid.
    """
    tokens = valid(batch)
    looks = tokens[:, None, None, :] & ~student.isneginf()
    seen = looks & ~teacher.isneginf()
    s = student.float().masked_fill(~looks, NEVER).log_softmax(-1)
    t = teacher.float().masked_fill(~seen, NEVER).log_softmax(-1)
    rows = F.kl_div(s, t, reduction="none", log_target=True).sum(-1)
    return rows.masked_fill(~(tokens[:, None, :] & seen.any(-1)), 0).mean(1).sum()
