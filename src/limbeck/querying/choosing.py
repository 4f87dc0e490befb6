"""Which examples to ask about next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import entr

from limbeck.tasks.task import Array, Kind


def most_uncertain(probabilities: Array, kind: Kind, by: str, count: int) -> list[int]:
    """The examples that a student is least sure of (Settles 2009, section 3.1).

    Args:
        probabilities: float [N, C]; per label for multi-label.
        kind: the task's.
        by: `entropy`, of a multi-label example summed over labels; or `margin`, the gap between the two likeliest
            labels, of a multi-label example the smallest over labels of the gap between yes and no.
        count: how many.

    Returns:
        Their numbers, the least sure first; of equals the first ones.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if kind == "multi-label":
        doubt = (entr(p) + entr(1 - p)).sum(-1) if by == "entropy" else -np.abs(2 * p - 1).min(-1)
    elif by == "entropy":
        doubt = entr(p).sum(-1)
    else:
        first = np.sort(p, axis=-1)
        doubt = first[:, -2] - first[:, -1]
    return [int(row) for row in np.argsort(-doubt, kind="stable")[:count]]


def spread_out(features: Array, asked: Sequence[int], count: int, by: str, generator: np.random.Generator) -> list[int]:
    """Examples that lie far from those asked about, and from each other.

    Args:
        features: a point for each example of the pool, float [N, d].
        asked: numbers of those that were asked about; at least one.
        count: how many more, at most N less those asked.
        by: `k-means++` draws each in proportion to its squared distance to the nearest that is asked or drawn (Arthur
            and Vassilvitskii 2007); `core-set` takes the farthest (Sener and Savarese 2018, algorithm 1).
        generator: of the draws.

    Returns:
        Their numbers, in the order in which they were taken.
    """
    points = np.asarray(features, dtype=np.float32)
    norms = np.einsum("nd,nd->n", points, points)
    nearest = np.full(len(points), np.inf, dtype=np.float64)
    free = np.ones(len(points), dtype=bool)

    def take(row: int) -> None:
        free[row] = False
        np.minimum(nearest, np.maximum(norms + norms[row] - 2 * (points @ points[row]), 0), out=nearest)

    for row in asked:
        take(row)
    taken: list[int] = []
    for _ in range(count):
        far = np.where(free, nearest, 0.0)
        if by == "core-set":
            row = int(np.argmax(np.where(free, nearest, -1.0)))
        elif far.sum() > 0:
            row = int(generator.choice(len(far), p=far / far.sum()))
        else:  # copies of what is asked are all that is left
            row = int(generator.choice(np.flatnonzero(free)))
        take(row)
        taken.append(row)
    return taken
