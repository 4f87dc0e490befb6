"""How far two attention maps, or two relations, are apart.

An attention map has n times n numbers for each head, and autograd would keep several of that size. All functions find
the gradient along with the value, over as many maps at a time as a processor's cache holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from limbeck.objectives.known_gradient import with_gradients
from limbeck.objectives.term import clean, valid
from limbeck.tasks.text import Batch

NEVER = -1e30  # like -inf its softmax is exactly zero; unlike it, it cannot turn into NaN in a row that is all of it
ON_CPU, ON_GPU = 2**18, 2**26  # numbers of a chunk


def squares(student: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Squared difference of scores, mean over heads, summed over the pairs of valid tokens; a float32 scalar.

    Args:
        student: scores [B, h, n, n]; pairs at which they, or the teacher's, are -inf contribute nothing.
        teacher: likewise.
        batch: says which tokens are valid.
    """

    def compare(s: torch.Tensor, t: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        apart = s.float() - t.float()
        apart.masked_fill_(~pairs | s.isneginf() | t.isneginf(), 0)
        return torch.dot(apart.flatten(), apart.flatten()), apart.mul_(2)

    return _over_maps(student, teacher, batch, compare)


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

    def compare(s: torch.Tensor, t: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        looks = pairs & ~s.isneginf()
        seen = looks & ~t.isneginf()
        # A row of which nothing is left is uniform in both, so it adds nothing to the value or the gradient.
        mine, its = s.float().masked_fill(~looks, NEVER), t.float().masked_fill(~seen, NEVER)
        return _kl(mine.masked_fill_(~seen.any(-1, keepdim=True), NEVER), its)

    return _over_maps(student, teacher, batch, compare)


def relation_divergence(student: torch.Tensor, teacher: torch.Tensor, heads: int, batch: Batch) -> torch.Tensor:
    """KL(R_t || R_s) for the relations of vectors, mean over relation heads, summed over valid rows; a float32 scalar.

    The vectors are split into heads of width d, and R = softmax(X X^T / sqrt(d)) over the valid tokens.

    Args:
        student: vectors [B, n, w_s].
        teacher: vectors [B, n, w_t].
        heads: A; it divides both widths.
        batch: says which tokens are valid.
    """
    length = student.shape[1]

    def split(vectors: torch.Tensor) -> torch.Tensor:
        by_head = clean(vectors.detach(), batch).reshape(-1, length, heads, vectors.shape[-1] // heads)
        return by_head.transpose(1, 2).flatten(0, 1)

    s, t = split(student), split(teacher)
    padding = torch.where(valid(batch), 0.0, NEVER).repeat_interleave(heads, 0)[:, None, :]
    gradient = s.new_empty(s.mT.shape)  # a row of it is as wide as a text: products are slow that are a head wide
    total = s.new_zeros(())
    with torch.autocast(student.device.type, enabled=False):  # which would multiply in bfloat16
        for some in _chunks(s, length):
            scaled = s[some] * s.shape[-1] ** -0.5
            mine = torch.baddbmm(padding[some], scaled, s[some].mT)
            its = torch.baddbmm(padding[some], t[some] * t.shape[-1] ** -0.5, t[some].mT)
            found, of_scores = _kl(mine, its)  # a padded query is zeros in both, its rows are equal
            total += found
            torch.bmm(scaled.mT, of_scores, out=gradient[some])
            gradient[some].baddbmm_(scaled.mT, of_scores.mT)  # each vector is a row's and a column's
    by_token = gradient.div_(heads).reshape(len(student), -1, length).mT.contiguous()
    return with_gradients(total / heads, [student], [by_token])


def _over_maps(
    student: torch.Tensor,
    teacher: torch.Tensor,
    batch: Batch,
    compare: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Mean over heads of what `compare` makes of scores [k, n, n] and pairs of valid tokens, with its gradient."""
    heads, length = student.shape[1], student.shape[-1]
    s, t = (scores.detach().flatten(0, 1) for scores in (student, teacher))
    tokens = valid(batch).repeat_interleave(heads, 0)
    gradient = torch.empty_like(s)
    total = s.new_zeros((), dtype=torch.float32)
    for some in _chunks(s, length):
        found, of_scores = compare(s[some], t[some], tokens[some, None, :] & tokens[some, :, None])
        total += found
        torch.div(of_scores, heads, out=gradient[some])
    return with_gradients(total / heads, [student], [gradient.view_as(student)])


def _chunks(maps: torch.Tensor, length: int) -> list[slice]:
    """Runs of the first dimension of which the maps of length times length numbers fit the limit."""
    step = max(1, (ON_CPU if maps.device.type == "cpu" else ON_GPU) // (length * length))
    return [slice(k, k + step) for k in range(0, len(maps), step)]


def _kl(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL of the softmax of scores [k, n, n] summed over all rows, and its gradient by s; both arguments are used up.

    The gradient is the softmax of the student less that of the teacher.
    """
    for scores in (s, t):  # as powers of two, which not only one maker's processors are fast at
        scores.sub_(scores.amax(-1, keepdim=True)).mul_(1 / math.log(2))
    apart = t - s
    s.exp2_()
    t.exp2_()
    whole, its_whole = s.sum(-1, keepdim=True), t.sum(-1, keepdim=True)
    s /= whole
    t /= its_whole
    value = math.log(2) * torch.dot(t.flatten(), apart.flatten()) + (whole.log() - its_whole.log()).sum()
    return value, s.sub_(t)
