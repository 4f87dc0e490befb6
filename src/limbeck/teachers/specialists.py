"""Specialists beside a generalist: models that tell some of the classes apart and call all others one (Hinton et al.
2015, section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax, softmax

STEPS, TOLERANCE = 500, 1e-7


def combine_specialists(
    generalist: np.ndarray, specialists: Sequence[np.ndarray], classes: Sequence[Sequence[int]]
) -> np.ndarray:
    """The distribution q that minimises KL(g || q) + sum over active specialists m of KL(p_m || q) (equation 5).

    A specialist is active where the generalist's likeliest class is one of its own. KL(p_m || q) is over its own classes
    and one more, whose probability under q is that of all other classes. The minimum is found by expectation
    maximisation: each p_m is spread over all classes as q spreads its rest, and q becomes the mean of these and g.

    Args:
        generalist: logits [N, C].
        specialists: logits [N, k + 1] each, the last of which is about all other classes.
        classes: the k own classes of each, in the order of its logits.

    Returns:
        Log-probabilities float32 [N, C].
    """
    g = softmax(np.asarray(generalist, dtype=np.float64), axis=-1)
    likeliest = g.argmax(-1)
    found = np.log(np.maximum(g, np.finfo(np.float64).tiny))
    members = [softmax(np.asarray(logits, dtype=np.float64), axis=-1) for logits in specialists]
    active = np.stack([np.isin(likeliest, own) for own in classes], -1)  # [N, specialists]
    for which in np.unique(active, axis=0):
        if not which.any():
            continue
        rows = np.flatnonzero((active == which).all(-1))
        chosen = [(members[m][rows], list(classes[m])) for m in np.flatnonzero(which)]
        found[rows] = np.log(np.maximum(_fit(g[rows], chosen), np.finfo(np.float64).tiny))
    return np.asarray(log_softmax(found, axis=-1), dtype=np.float32)


def _fit(g: np.ndarray, specialists: list[tuple[np.ndarray, list[int]]]) -> np.ndarray:
    """The distributions [N, C] between g and these specialists, all of them active."""
    q = g.copy()
    for _ in range(STEPS):
        total = g.copy()
        for p, own in specialists:
            rest = np.ones(g.shape[1], dtype=bool)
            rest[own] = False
            others = q[:, rest]
            total[:, own] += p[:, :-1]
            total[:, rest] += p[:, -1:] * others / np.maximum(others.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
        before, q = q, total / (1 + len(specialists))
        if np.abs(q - before).max() < TOLERANCE:
            break
    return q
