"""A prediction problem: its outputs, how logits become predictions, and its metrics (scikit-learn)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics

from limbeck.errors import InputError
from limbeck.recipe.sections import nearest

Array = NDArray[Any]
Kind = Literal["classification", "multi-label", "regression", "masked-lm", "causal-lm"]
Inputs = Literal["text", "image", "features"]
Metric = Callable[[Array, Array], float]

PROBLEM_TYPES: dict[Kind, str] = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
"""As transformers names them; a language model has none."""


def _f1(average: str) -> Metric:
    return lambda labels, predicted: float(metrics.f1_score(labels, predicted, average=average, zero_division=0))


def _correlation(function: Callable[[Array, Array], Any]) -> Metric:
    def metric(labels: Array, predicted: Array) -> float:
        if np.ptp(labels) == 0 or np.ptp(predicted) == 0:
            return 0.0  # a constant has no correlation with anything
        return float(function(labels, predicted).statistic)

    return metric


# The first of each kind is the one that retention and the choice of checkpoints are about; all but mae: more is better.
METRICS: dict[Kind, dict[str, Metric]] = {
    "classification": {
        "accuracy": lambda labels, predicted: float(metrics.accuracy_score(labels, predicted)),
        "f1_macro": _f1("macro"),
        "mcc": lambda labels, predicted: float(metrics.matthews_corrcoef(labels, predicted)),
    },
    "multi-label": {
        "f1_micro": _f1("micro"),
        "f1_macro": _f1("macro"),
        "exact_match": lambda labels, predicted: float(metrics.accuracy_score(labels, predicted)),
    },
    "regression": {
        "spearman": _correlation(spearmanr),
        "pearson": _correlation(pearsonr),
        "r2": lambda labels, predicted: float(metrics.r2_score(labels, predicted)),
        "mae": lambda labels, predicted: float(metrics.mean_absolute_error(labels, predicted)),
    },
    "masked-lm": {"accuracy": lambda labels, predicted: float(metrics.accuracy_score(labels, predicted))},
    "causal-lm": {"accuracy": lambda labels, predicted: float(metrics.accuracy_score(labels, predicted))},
}


@dataclass(frozen=True)
class Task:
    """A prediction problem over texts, pairs of texts, images, or vectors of features.

    Attributes:
        kind: `classification`, `multi-label`, `regression`, `masked-lm` or `causal-lm`.
        labels: class names in the order of the outputs; the single output's name for regression; the vocabulary.
        pair: two texts an example.
        inputs: what an example is made of: `text`, `image` or `features`.
        features: the columns of the features.

    Labels are int64 class numbers [N], float32 multi-hot rows [N, C], or float32 values [N]. An unlabelled example
    has -100 (classification) or NaN.
    """

    kind: Kind
    labels: tuple[str, ...]
    pair: bool = False
    inputs: Inputs = "text"
    features: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of an example besides its label."""
        if self.inputs == "features":
            return self.features
        return ("image",) if self.inputs == "image" else ("text", "text_pair") if self.pair else ("text",)

    @property
    def outputs(self) -> int:
        """Logits per example."""
        return len(self.labels)

    @property
    def one_of(self) -> bool:
        """Whether the outputs are a distribution of which one outcome is right."""
        return self.kind in ("classification", "masked-lm", "causal-lm")

    @property
    def config(self) -> dict[str, Any]:
        """The entries of a Hugging Face configuration that state this task; none of a language model."""
        if self.kind in ("masked-lm", "causal-lm"):
            return {}
        return {
            "num_labels": self.outputs,
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: index for index, name in enumerate(self.labels)},
            "problem_type": PROBLEM_TYPES[self.kind],
        }

    @property
    def metrics(self) -> dict[str, Metric]:
        """Metric name to function of (labels, predictions)."""
        return METRICS[self.kind]

    def main_metric(self, name: str | None) -> str:
        """The metric that is asked for, or the kind's first.

        Raises:
            InputError: unknown for this kind, or one of which less is better.
        """
        ranking = [metric for metric in self.metrics if metric != "mae"]
        if name is not None and name not in ranking:
            raise InputError(f"evaluation.metric '{name}' does not rank {self.kind} models; {nearest(name, ranking)}")
        return name or ranking[0]

    def probabilities(self, logits: Array) -> Array:
        """Logits [N, C] as probabilities [N, C]; per label for multi-label; unchanged for regression."""
        if self.one_of:
            return np.asarray(softmax(logits.astype(np.float64), axis=-1))
        return np.asarray(expit(logits.astype(np.float64))) if self.kind == "multi-label" else logits

    def predict(self, logits: Array) -> Array:
        """Logits [N, C] as class numbers [N], 0/1 rows [N, C] or values [N]."""
        if self.one_of:
            return np.asarray(logits.argmax(-1))
        return (logits > 0).astype(np.int64) if self.kind == "multi-label" else logits[:, 0]

    def missing_label(self) -> int | float | list[float]:
        """What stands for the label of an unlabelled example."""
        if self.one_of:
            return -100
        return float("nan") if self.kind == "regression" else [float("nan")] * self.outputs
