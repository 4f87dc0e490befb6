"""Figures against independent formulas, intervals with known coverage, and the whole contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scipy.special import expit, softmax
from scipy.stats import binomtest
from sklearn import metrics as sk

from limbeck.evaluation import evaluate_models, quality
from limbeck.evaluation.statistics import bootstrap, interval, paired_test, resamples
from limbeck.recipe.schema import Evaluation
from limbeck.signals import Signals
from limbeck.tasks import Task

BINARY = Task("classification", ("no", "yes"))
MULTI = Task("multi-label", ("a", "b", "c"))
NUMBER = Task("regression", ("score",))


class Fixed:
    """A model whose answers are given."""

    parameters, bytes, precision, fingerprint = 10, 40, "float32", {}

    def __init__(self, logits: np.ndarray, labels: tuple[str, ...] = ("no", "yes")) -> None:
        self.logits, self.labels, self.runs = logits.astype(np.float32), labels, 0

    def ask(self, texts: Dataset, features: Any = ()) -> Signals:
        return Signals(self.logits)

    def runner(self, texts: Dataset) -> Any:
        def run() -> None:
            self.runs += 1

        return run


def examples(labels: Any, rng: np.random.Generator) -> Dataset:
    texts = [" ".join(["word"] * int(n)) for n in rng.integers(1, 30, len(labels))]
    return Dataset.from_dict({"text": texts, "label": labels})


def test_quality_is_sklearn_s_and_the_interval_covers_it() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    figures, draws = quality.quality(BINARY, labels, predicted, 200, 0)
    assert figures["accuracy"]["value"] == sk.accuracy_score(labels, predicted)
    assert figures["f1_macro"]["value"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert figures["mcc"]["value"] == pytest.approx(sk.matthews_corrcoef(labels, predicted))
    for name, figure in figures.items():
        assert figure["low"] < figure["value"] < figure["high"]
        assert len(draws[name]) == 200


def test_the_bootstrap_interval_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(1)
    labels = np.zeros(1000, dtype=int)
    predicted = (rng.random(1000) < 0.2).astype(int)
    low, high = interval(bootstrap(BINARY, labels, predicted, 1000, 0)["accuracy"])
    accuracy = (predicted == 0).mean()
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 1000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_mcnemar_is_the_binomial_test_on_discordant_examples() -> None:
    ours, theirs = np.array([1] * 20 + [0] * 5 + [1] * 75), np.array([0] * 20 + [1] * 5 + [1] * 75)
    assert paired_test(ours, theirs) == pytest.approx(binomtest(20, 25).pvalue)
    assert paired_test(ours, ours) == 1.0
    rng = np.random.default_rng(0)
    errors = rng.random(100)
    assert paired_test(-errors, -errors - 0.1) < 1e-6
    assert paired_test(-errors, -rng.permutation(errors)) > 0.01


def test_divergence_is_kl_from_the_teacher() -> None:
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(50, 2)), rng.normal(size=(50, 2))
    p, q = softmax(t, -1), softmax(s, -1)
    assert quality.divergence(BINARY, s, t) == pytest.approx((p * np.log(p / q)).sum(-1).mean())
    assert quality.divergence(BINARY, t, t) == pytest.approx(0, abs=1e-12)
    s, t = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    p, q = expit(t), expit(s)
    both = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert quality.divergence(MULTI, s, t) == pytest.approx(both.sum(-1).mean())


def test_calibration_error_of_known_models() -> None:
    sure = np.tile([[-20.0, 20.0]], (100, 1))
    labels = np.array([1] * 70 + [0] * 30)
    found = quality.calibration(BINARY, labels, sure)
    assert found["ece"] == pytest.approx(0.3, abs=1e-6)
    assert found["curve"] == [{"confidence": pytest.approx(1.0), "accuracy": 0.7, "count": 100}]
    honest = np.tile([[0.0, np.log(0.7 / 0.3)]], (100, 1))
    assert quality.calibration(BINARY, labels, honest)["ece"] == pytest.approx(0, abs=1e-9)
    assert quality.calibration(NUMBER, labels.astype(float), sure[:, :1]) == {"ece": None, "curve": []}


def test_slices_cover_every_example_once() -> None:
    rng = np.random.default_rng(0)
    labels, predicted, lengths = rng.integers(0, 2, 300), rng.integers(0, 2, 300), rng.integers(1, 40, 300)
    found = quality.slices(BINARY, labels, predicted, lengths)
    assert sum(each["count"] for each in found["length"].values()) == 300
    mean = sum(each["value"] * each["count"] for each in found["length"].values()) / 300
    assert mean == pytest.approx((labels == predicted).mean())
    assert found["class"]["yes"]["value"] == pytest.approx(sk.recall_score(labels, predicted))


def test_the_contract_of_a_whole_evaluation() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    teacher = np.eye(2)[labels] * 4 + rng.normal(size=(120, 2))
    student = teacher + rng.normal(size=(120, 2))
    models = {
        "teacher": Fixed(teacher),
        "student": Fixed(student),
        "baseline": Fixed(rng.normal(size=(120, 2))),
        "student_int8": Fixed(student + 0.25),
    }
    found = evaluate_models(models, examples(labels, rng), BINARY, Evaluation(resamples=200), 0)
    assert found["teacher"]["retention"] == 1.0
    assert found["teacher"]["fidelity"] == {"agreement": 1.0, "agreement_interval": [1.0, 1.0], "kl": 0.0}
    accuracy = {name: found[name]["quality"]["accuracy"]["value"] for name in models}
    assert found["student"]["retention"] == pytest.approx(accuracy["student"] / accuracy["teacher"])
    agreement = (teacher.argmax(-1) == student.argmax(-1)).mean()
    assert found["student"]["fidelity"]["agreement"] == pytest.approx(agreement)
    low, high = found["student"]["fidelity"]["agreement_interval"]
    assert low < agreement < high
    assert found["student_int8"]["max_logit_difference"] == pytest.approx(0.25, abs=1e-5)
    versus = found["comparisons"]["student_vs_baseline"]
    assert versus["difference"]["value"] == pytest.approx(accuracy["student"] - accuracy["baseline"])
    assert versus["difference"]["low"] > 0
    assert versus["p_value"] < 0.001
    shown = found["disagreements"]
    assert len(shown) == min(30, round((1 - agreement) * 120))
    assert all(each["teacher"] != each["student"] for each in shown)
    speeds = [found[name]["speed"] for name in models]
    assert all(s["latency_ms_p50"] <= s["latency_ms_p95"] and s["throughput"] > 0 for s in speeds)
    assert len({model.runs for model in models.values()}) == 1, "every model must be timed equally often"


@pytest.mark.parametrize("task", [MULTI, NUMBER])
def test_multi_label_and_regression_go_the_same_way(task: Task) -> None:
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(80, task.outputs))
    labels = (teacher > 0).astype(float).tolist() if task is MULTI else (teacher[:, 0] + 0.1).tolist()
    models = {"teacher": Fixed(teacher), "student": Fixed(teacher + rng.normal(scale=0.3, size=teacher.shape))}
    found = evaluate_models(models, examples(labels, rng), task, Evaluation(resamples=100, speed=False), 0)
    assert found["student"]["speed"] is None
    assert 0.5 < found["student"]["retention"] <= 1
    assert 0.5 < found["student"]["fidelity"]["agreement"] < 1
    assert (found["student"]["fidelity"]["kl"] is None) == (task is NUMBER)
    assert found["disagreements"][0]["teacher_confidence"] is None
    if task is MULTI:
        assert found["teacher"]["quality"]["exact_match"]["value"] == 1.0
    else:
        assert found["teacher"]["quality"]["mae"]["value"] == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_from_counts_are_those_of_scikit_learn(classes):
    task = Task("classification", tuple("abcde"[:classes]))
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, 12)
    for predicted in (generator.integers(0, classes, 12), np.zeros(12, dtype=int), labels):
        draws = bootstrap(task, labels, predicted, 40, 3)
        for number, rows in enumerate(resamples(12, 40, 3)):
            for name, metric in task.metrics.items():
                assert draws[name][number] == pytest.approx(metric(labels[rows], predicted[rows]), abs=1e-12)
