"""One model against the labels and against the teacher."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import rel_entr
from scipy.stats import pearsonr

from limbeck.evaluation.statistics import bootstrap, figure, interval, resamples
from limbeck.tasks import Task
from limbeck.tasks.task import Array

BINS = 15


def scores(task: Task, labels: Array, predicted: Array) -> Array:
    """One score per example [N]: right or wrong; the share of labels right; the negative squared error."""
    if task.one_of:
        return np.asarray(labels == predicted, dtype=np.float64)
    if task.kind == "multi-label":
        return np.asarray((labels == predicted).mean(-1))
    return np.asarray(-np.square(labels.astype(np.float64) - predicted))


def quality(
    task: Task, labels: Array, predicted: Array, count: int, seed: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Each of the task's metrics with its interval, and its values over the resamples."""
    draws = bootstrap(task, labels, predicted, count, seed)
    return {name: figure(metric(labels, predicted), draws[name]) for name, metric in task.metrics.items()}, draws


def retention(mine: dict[str, Any], draws: Array, teacher: dict[str, Any], teacher_draws: Array) -> dict[str, Any]:
    """This model's main metric over the teacher's, with the interval of the paired ratio."""
    if teacher["value"] == 0:
        return {"retention": None, "retention_interval": None}
    usable = teacher_draws != 0
    low, high = interval(draws[usable] / teacher_draws[usable])
    return {"retention": mine["value"] / teacher["value"], "retention_interval": [low, high]}


def agreement_per_example(predicted: Array, teacher: Array) -> Array:
    """Per example [N]: the same class; the share of labels decided alike."""
    same = np.asarray(predicted == teacher, dtype=np.float64)
    return np.asarray(same.mean(-1)) if same.ndim > 1 else same


def fidelity(task: Task, logits: Array, teacher: Array, count: int, seed: int) -> dict[str, Any]:
    """How much a model behaves like the teacher.

    `agreement`: the share of examples (multi-label: of label decisions) on which both predict the same; for
    regression the Pearson correlation of their values. `kl`: KL(teacher || model) at temperature 1, mean over
    examples, summed over the labels of a multi-label example; none for regression.
    """
    mine, theirs = task.predict(logits), task.predict(teacher)
    if task.kind == "regression":

        def correlation(rows: Array | slice) -> float:
            a, b = mine[rows], theirs[rows]
            return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(pearsonr(a, b).statistic)

        draws = np.array([correlation(rows) for rows in resamples(len(mine), count, seed)])
        value, kl = correlation(slice(None)), None
    else:
        same = agreement_per_example(mine, theirs)
        draws = np.array([same[rows].mean() for rows in resamples(len(same), count, seed)])
        value, kl = float(same.mean()), divergence(task, logits, teacher)
    return {"agreement": value, "agreement_interval": list(interval(draws)), "kl": kl}


def divergence(task: Task, logits: Array, teacher: Array) -> float:
    """KL(teacher || model) in nats, mean over examples."""
    q, p = task.probabilities(logits), task.probabilities(teacher)
    tiny = np.finfo(np.float64).tiny
    terms = rel_entr(p, np.maximum(q, tiny))
    if task.kind == "multi-label":
        terms = terms + rel_entr(1 - p, np.maximum(1 - q, tiny))
    return max(float(terms.sum(-1).mean()), 0.0)


def calibration(task: Task, labels: Array, logits: Array) -> dict[str, Any]:
    """The expected calibration error over 15 equal bins of confidence (Guo et al. 2017), and the curve behind it.

    Classification: confidence of the predicted class against how often it is right. Multi-label: each label's
    probability against how often it is set. Regression has none.
    """
    if task.kind == "regression":
        return {"ece": None, "curve": []}
    probabilities = task.probabilities(logits)
    if task.one_of:
        return calibration_curve(probabilities.max(-1), probabilities.argmax(-1) == labels)
    return calibration_curve(probabilities.ravel(), labels.ravel() == 1)


def calibration_curve(confidence: Array, right: Array) -> dict[str, Any]:
    """See `calibration`; of confidences [N] and whether each was right [N]."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    curve, error = [], 0.0
    for each in np.unique(bins):
        inside = bins == each
        point = {"confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean())}
        curve.append({**point, "count": int(inside.sum())})
        error += inside.mean() * abs(point["confidence"] - point["accuracy"])
    return {"ece": float(error), "curve": curve}


def slices(task: Task, labels: Array, predicted: Array, lengths: Array | None) -> dict[str, Any]:
    """The mean score by true class and, of text, by quarter of length in words. Regression: mean squared error."""
    each = scores(task, labels, predicted)
    each = -each if task.kind == "regression" else each
    by_class: dict[str, Any] = {}
    if task.kind in ("classification", "multi-label"):
        for number, name in enumerate(task.labels):
            inside = labels == number if task.one_of else labels[:, number] == 1
            right = each[inside] if task.one_of else predicted[inside, number]
            if inside.any():
                by_class[name] = {"value": float(right.mean()), "count": int(inside.sum())}
    by_length: dict[str, Any] = {}
    if lengths is None:
        return {"class": by_class, "length": by_length}
    edges = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).astype(int))
    for low, high in pairwise(edges):
        inside = (lengths >= low) & ((lengths < high) | (high == edges[-1]))
        if inside.any():
            last = int(high) if high == edges[-1] else int(high) - 1
            by_length[f"{int(low)}-{last} words"] = {"value": float(each[inside].mean()), "count": int(inside.sum())}
    return {"class": by_class, "length": by_length}
