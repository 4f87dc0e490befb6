"""Intervals and paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, wilcoxon
from sklearn import config_context

from limbeck.tasks import Task
from limbeck.tasks.task import Array


def resamples(examples: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """`count` bootstrap draws of example numbers, int64 [examples]; the same ones for every model of a run."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield generator.integers(0, examples, examples)


def bootstrap(task: Task, labels: Array, predicted: Array, count: int, seed: int) -> dict[str, Array]:
    """Each of the task's metrics over every resample, float64 [count]."""
    if task.kind == "classification":
        values = [confusion_metrics(each) for each in _confusions(labels, predicted, count, seed)]
    else:
        with config_context(assume_finite=True, skip_parameter_validation=True):
            values = [
                {name: metric(labels[rows], predicted[rows]) for name, metric in task.metrics.items()}
                for rows in resamples(len(labels), count, seed)
            ]
    return {name: np.array([each[name] for each in values]) for name in task.metrics}


def _confusions(labels: Array, predicted: Array, count: int, seed: int) -> Iterator[Array]:
    classes = int(max(labels.max(), predicted.max())) + 1
    cells = labels * classes + predicted
    for rows in resamples(len(labels), count, seed):
        yield np.bincount(cells[rows], minlength=classes**2).reshape(classes, classes)


def confusion_metrics(confusion: Array) -> dict[str, float]:
    """scikit-learn's `accuracy`, `f1_macro` and `mcc` from counts [true class, predicted class].

    A thousand resamples of thousands of predictions take scikit-learn's own functions many seconds for each model.
    """
    total, right = float(confusion.sum()), confusion.diagonal()
    true, guessed = confusion.sum(1).astype(float), confusion.sum(0).astype(float)
    met = (true + guessed) > 0  # classes that nobody named have no F1
    spread = (total**2 - guessed @ guessed) * (total**2 - true @ true)
    return {
        "accuracy": float(right.sum() / total),
        "f1_macro": float(np.mean(2 * right[met] / (true + guessed)[met])),
        "mcc": float((right.sum() * total - true @ guessed) / np.sqrt(spread)) if spread else 0.0,
    }


def interval(values: Array) -> tuple[float, float]:
    """The central 95 % of bootstrap values (percentile method)."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def figure(value: float, values: Array) -> dict[str, float]:
    """A value with its interval, as `metrics.json` states it."""
    low, high = interval(values)
    return {"value": float(value), "low": low, "high": high}


def sums(rows: Array, values: Array, examples: int) -> Array:
    """The sum over each example's tokens, float64 [examples], of values [T] with their examples' numbers [T]."""
    return np.bincount(rows, values, examples)


def token_means(rows: Array, values: Array, examples: int, draws: Sequence[Array]) -> Array:
    """The mean over tokens in each resample of examples; not a number in one without any. As `sums`."""
    total, counts = sums(rows, values, examples), sums(rows, np.ones_like(values), examples)
    with np.errstate(invalid="ignore"):
        return np.array([total[some].sum() / counts[some].sum() for some in draws])


def paired_test(ours: Array, theirs: Array) -> float:
    """The two-sided p-value that two models score alike on the same examples.

    Args:
        ours: one score per example, [N]; right or wrong as 1 or 0, or a negative error.
        theirs: the other model's scores.

    Returns:
        McNemar's exact test (a binomial test on the examples where they differ) for 0/1 scores; else Wilcoxon's
        signed-rank test.
    """
    difference = ours.astype(np.float64) - theirs
    changed = difference[difference != 0]
    if len(changed) == 0:
        return 1.0
    if set(np.unique(ours)) | set(np.unique(theirs)) <= {0, 1}:
        return float(binomtest(int((changed > 0).sum()), len(changed)).pvalue)
    result: Any = wilcoxon(changed)
    return float(result.pvalue)
