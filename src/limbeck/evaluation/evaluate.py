"""Teacher, student, baseline and exports on the same examples through the same code."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from limbeck.evaluation import quality as q
from limbeck.evaluation.rules import add_rules
from limbeck.evaluation.speed import measure_speed
from limbeck.evaluation.statistics import figure, paired_test
from limbeck.images import thumbnail
from limbeck.recipe.schema import Evaluation
from limbeck.rules import LabelRules
from limbeck.signals import Asked
from limbeck.tasks import Task
from limbeck.tasks.task import Array

SHOWN = 30


def describe_task(task: Task, settings: Evaluation) -> dict[str, Any]:
    """The task as `metrics.json` states it."""
    metric = task.main_metric(settings.metric)
    labels = [] if task.kind in ("masked-lm", "causal-lm") else list(task.labels)  # a vocabulary is in the tokenizer
    return {"kind": task.kind, "labels": labels, "metric": metric, "pair": task.pair, "inputs": task.inputs}


def evaluate_models(
    models: dict[str, Asked],
    test: Dataset,
    task: Task,
    settings: Evaluation,
    seed: int,
    rules: LabelRules | None = None,
) -> dict[str, Any]:
    """Measure every model on labelled examples.

    Args:
        models: by name: `teacher`, `student`, `baseline`, `student_onnx`, `student_int8`; those that there are. Without
            a teacher nothing is said of retention and fidelity.
        test: the task's columns and `label`.
        task: what is predicted.
        settings: the metric that retention is about, resamples, whether to time.
        seed: fixes resamples and the timed sample.
        rules: measure each model without them and with them. All else is about the models as they are.

    Returns:
        By model what `metrics.json` holds (see docs/metrics.md), `comparisons` and `disagreements`, and `rules`.
    """
    labels = np.array(test["label"][:])
    main = task.main_metric(settings.metric)
    said = {name: model.ask(test) for name, model in models.items()}
    logits = {name: np.asarray(each.logits) for name, each in said.items()}
    lengths = text_lengths(test, task)
    measured: dict[str, Any] = {}
    draws: dict[str, Array] = {}
    for name, model in models.items():
        predicted = task.predict(logits[name])
        figures, values = q.quality(task, labels, predicted, settings.resamples, seed)
        draws[name] = values[main]
        measured[name] = {
            "quality": figures,
            "calibration": q.calibration(task, labels, logits[name]),
            "slices": q.slices(task, labels, predicted, lengths),
            "size": {"parameters": model.parameters, "bytes": model.bytes},
            "speed": None,
        }
    if "teacher" in models:
        for name, each in measured.items():
            teacher = measured["teacher"]["quality"][main]
            each |= q.retention(each["quality"][main], draws[name], teacher, draws["teacher"])
            each["fidelity"] = q.fidelity(task, logits[name], logits["teacher"], settings.resamples, seed)
    for name in ("student_onnx", "student_int8"):
        if name in models:
            measured[name]["max_logit_difference"] = float(np.abs(logits[name] - logits["student"]).max())
    if settings.speed:
        for name, speed in measure_speed(models, test, lengths, seed).items():
            measured[name]["speed"] = speed
    add_rules(measured, rules, test, labels, logits, main, settings.resamples, seed)
    measured["comparisons"] = _comparisons(task, main, labels, logits, measured, draws)
    measured["disagreements"] = _disagreements(task, test, labels, logits)
    return measured if "teacher" not in said or not said["teacher"].hard else _without_confidence(measured, list(said))


def _without_confidence(measured: dict[str, Any], models: list[str]) -> dict[str, Any]:
    """The figures without what would be about probabilities that a teacher of labels alone never stated."""
    measured["teacher"]["calibration"] = {"ece": None, "curve": []}
    for name in models:
        measured[name]["fidelity"]["kl"] = None
    measured["disagreements"] = [each | {"teacher_confidence": None} for each in measured["disagreements"]]
    return measured


def text_lengths(test: Dataset, task: Task) -> Array | None:
    """Words of each example; none where it is no text."""
    if task.inputs != "text":
        return None
    return np.array(
        [sum(len(text.split()) for text in texts) for texts in zip(*(test[c] for c in task.columns), strict=True)]
    )


def _shown(example: dict[str, Any], task: Task) -> dict[str, str]:
    """An example as the report shows it."""
    if task.inputs == "image":
        return {"image": thumbnail(example["image"])}
    if task.inputs == "features":
        values = (
            f"{name} {value if isinstance(value, str) else format(value, '.4g')}"
            for name, value in example.items()
            if name != "label"
        )
        return {"text": ", ".join(values)}
    return {name: example[name] for name in task.columns}


def _comparisons(
    task: Task, main: str, labels: Array, logits: dict[str, Array], measured: dict[str, Any], draws: dict[str, Array]
) -> dict[str, Any]:
    """The student against the teacher and against the baseline on the same examples."""
    found = {}
    for other in ("teacher", "baseline"):
        if "student" in logits and other in logits:
            values = [measured[name]["quality"][main]["value"] for name in ("student", other)]
            each = [q.scores(task, labels, task.predict(logits[name])) for name in ("student", other)]
            found[f"student_vs_{other}"] = {
                "metric": main,
                "difference": figure(values[0] - values[1], draws["student"] - draws[other]),
                "p_value": paired_test(*each),
            }
    return found


def _disagreements(task: Task, test: Dataset, labels: Array, logits: dict[str, Array]) -> list[dict[str, Any]]:
    """The examples on which student and teacher differ most, by the distance of their probabilities or values."""
    if not {"teacher", "student"} <= set(logits):
        return []
    sides = {name: task.probabilities(logits[name]) for name in ("teacher", "student")}
    predicted = {name: task.predict(logits[name]) for name in sides}
    distance = np.abs(sides["teacher"] - sides["student"]).sum(-1)
    if task.kind != "regression":
        differs = q.agreement_per_example(predicted["student"], predicted["teacher"]) < 1
        distance = np.where(differs, distance, -1)
    shown = []
    for row in np.argsort(-distance, kind="stable")[:SHOWN]:
        if distance[row] < 0:
            break
        example = test[int(row)]
        entry: dict[str, Any] = dict(_shown(example, task))
        entry["label"] = _named(task, labels[row])
        for name in sides:
            entry[name] = _named(task, predicted[name][row])
            confidence = sides[name][row].max() if task.one_of else None
            entry[f"{name}_confidence"] = None if confidence is None else float(confidence)
        shown.append(entry)
    return shown


def _named(task: Task, prediction: Any) -> str:  # noqa: ANN401
    if task.one_of:
        return task.labels[int(prediction)]
    if task.kind == "multi-label":
        return ", ".join(name for name, on in zip(task.labels, prediction, strict=True) if on) or "none"
    return f"{float(prediction):.3g}"
