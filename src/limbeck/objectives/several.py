"""A term on the layers of several teachers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

import torch
from torch import nn

from limbeck.objectives.term import Term, need_teacher
from limbeck.signals import Signals, Wanted
from limbeck.tasks.text import Batch


class FromEach(nn.Module):
    """The weighted mean over several teachers of one term on layers.

    Each teacher has a term of its own, built for its sizes: its own layer map and its own projections. Their inputs are
    the teacher's `members`, in order.

    Args:
        parts: the term for each teacher.
        shares: the teachers' weights; normalised.
    """

    def __init__(self, parts: Sequence[Term], shares: Sequence[float]) -> None:
        super().__init__()
        self.parts = list(parts)
        self.shares = [share / sum(shares) for share in shares]
        self.name, self.weight = parts[0].name, parts[0].weight
        self.student = reduce(or_, (part.student for part in parts), Wanted())
        self.teacher = reduce(or_, (part.teacher for part in parts), Wanted())
        # No ModuleList: in a student of as many layers as there are teachers it would look like its layers.
        for number, part in enumerate(parts):
            if isinstance(part, nn.Module):
                self.add_module(f"teacher_{number}", part)

    def count(self, batch: Batch) -> torch.Tensor:
        """As any of the terms."""
        return self.parts[0].count(batch)

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The mean over the teachers of the terms' sums."""
        members = need_teacher(teacher, self.name).members
        each = zip(self.parts, self.shares, members, strict=True)
        return torch.stack([share * part.total(student, member, batch) for part, share, member in each]).sum()
