"""What a run's metrics say in sentences; the model card and the page share them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import Any

from limbeck.recipe.schema import Recipe, Stage
from limbeck.report.numbers import (
    SHARES,
    bounds,
    difference,
    known,
    p_value,
    percent,
    phrase,
    rough_percent,
    score,
    times,
    title,
)
from limbeck.report.table import Metrics, get, main_metric, models, name_of, number, speed_up


def verdict(metrics: Metrics) -> str:
    """The whole run in one sentence: what was kept, at which size and speed, and what training alone reaches."""
    metric = main_metric(metrics)
    retention = number(metrics, "student", "retention")
    if retention is None or not metrics.get("teacher"):
        reached = score(metric, get(metrics, "student", "quality", metric, "value"))
        who = name_of(metrics, "student").lower()
        sentence = f"The {who}'s {phrase(metric)} is {reached} on {metrics['data']['test']:,} test examples"
    else:
        sentence = f"The student keeps {percent(retention)} of the teacher's {phrase(metric)}"
    teacher, student = (number(metrics, name, "size", "bytes") for name in ("teacher", "student"))
    gains = [f"{rough_percent(student / teacher)} of its size"] if teacher and student else []
    faster = speed_up(metrics, "student")
    if faster:
        gains.append(f"{times(faster)} its speed")
    if gains and retention is not None:
        sentence += f" at {' and '.join(gains)}"
    alone = number(metrics, "baseline", "retention")
    if retention is not None and alone is not None:
        # Not "without the teacher": the baseline may start from the same layers of it.
        sentence += f"; trained on the labels alone, the same student reaches {percent(alone)}"
    return f"{sentence}."


def comparison(metrics: Metrics, other: str) -> str | None:
    """The paired comparison of the student with the `teacher` or the `baseline`; None if it was not made."""
    test = get(metrics, "comparisons", f"student_vs_{other}")
    value = number(metrics, "comparisons", f"student_vs_{other}", "difference", "value")
    if test is None or value is None:
        return None
    metric, gap, p = test["metric"], test["difference"], known(test.get("p_value"))
    size = difference(metric, abs(value)).lstrip("+")
    unit = " points" if metric in SHARES else ""
    where = "equals" if not size.strip("0.") else f"is {size}{unit} {'above' if value > 0 else 'below'}"
    low, high = difference(metric, gap["low"]), difference(metric, gap["high"])
    evidence = f"95 % interval of the difference {low} to {high}{unit}" + (f", {p_value(p)}" if p is not None else "")
    doubt = "" if decided(test) else "; this test set does not tell the two apart"
    return f"On the same examples the student's {phrase(metric)} {where} the {other}'s ({evidence}){doubt}."


def decided(test: dict[str, Any]) -> bool:
    """Whether a paired test tells the two models apart, by its interval and its p-value alike."""
    low, high, p = known(test["difference"]["low"]), known(test["difference"]["high"]), known(test.get("p_value"))
    if low is None or high is None:
        return False
    return not low <= 0 <= high and (p is None or p < 0.05)


def fidelity(metrics: Metrics) -> str | None:
    """How often the student says what the teacher says, and how far its probabilities are from the teacher's."""
    share = number(metrics, "student", "fidelity", "agreement")
    if share is None or not metrics.get("teacher"):
        return None
    kind = metrics["task"]["kind"]
    unit = "pearson" if kind == "regression" else "accuracy"
    interval = bounds(unit, *(get(metrics, "student", "fidelity", "agreement_interval") or (None, None)))
    shown = score(unit, share) + (f" (95 % interval {interval})" if interval else "")
    if kind == "regression":
        return f"The Pearson correlation of the student's values with the teacher's is {shown}."
    units = "test examples" if kind == "classification" else "label decisions"
    sentence = f"The student predicts what the teacher predicts in {shown} of the {units}"
    kl = number(metrics, "student", "fidelity", "kl")
    return sentence + (f"; the mean KL divergence from the teacher is {kl:.3f}." if kl is not None else ".")


def calibration(metrics: Metrics) -> str | None:
    """The expected calibration errors side by side; None where there is no confidence to judge."""
    errors = {name: number(metrics, name, "calibration", "ece") for name in models(metrics)}
    shown = [f"{name_of(metrics, name)} {error:.3f}" for name, error in errors.items() if error is not None]
    return f"Expected calibration error (0 is best): {'; '.join(shown)}." if shown else None


def speed_terms(metrics: Metrics) -> str | None:
    """Under which terms the speeds were taken; None if none were."""
    speeds = {name: metrics[name]["speed"] for name in models(metrics) if metrics[name].get("speed")}
    if not speeds:
        return None
    parts = ["Latency is the median for one example at a time"]
    for key, words in (("batch_size", "throughput at batch size {}"), ("threads", "{} threads"), ("precision", "{}")):
        values = {name: speed[key] for name, speed in speeds.items() if speed.get(key) is not None}
        if values:
            usual = Counter(values.values()).most_common(1)[0][0]
            others = [f"{name_of(metrics, name)}: {value}" for name, value in values.items() if value != usual]
            parts.append(words.format(usual) + (f" ({', '.join(others)})" if others else ""))
    note = "speed-up is the teacher's latency over the model's" if "teacher" in speeds else ""
    return "; ".join([*parts, note] if note else parts) + "."


def machine(metrics: Metrics) -> str:
    """The machine in one line."""
    about = metrics.get("machine") or {}
    parts = [str(about[key]) for key in ("gpu", "cpu") if about.get(key)]
    parts += [f"{about[key]} {key}" for key in ("cores", "threads") if about.get(key)]
    parts += [str(about["system"])] if about.get("system") else []
    parts += [f"{key} {about[key]}" for key in ("python", "torch") if about.get(key)]
    # What `precision: auto` means here; the models' own precisions stand beside their speeds.
    parts += [f"automatic precision {about['precision']}"] if about.get("precision") else []
    return ", ".join(parts)


def on_hub(name: str) -> bool:
    """Whether a model or data set is named as on the Hub, `owner/name`, and is no folder or file here."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or Path(name).exists():
        return False
    return not Path(name).suffix.lower().startswith((".csv", ".tsv", ".json", ".parquet"))


def short(name: str) -> str:
    """A model's or file's name without the folders above it, which are nobody's business once a card is published."""
    return name if on_hub(name) else PureWindowsPath(name).name


def initialisation(metrics: Metrics) -> str | None:
    """What the student was before training; None if it is not recorded."""
    origin = get(metrics, "training", "student", "initialisation") or {}
    if origin.get("from") == "teacher":
        layers = [str(layer) for layer in origin.get("layers", [])]
        many = "layers" if len(layers) > 1 else "layer"
        return f"the teacher's embeddings, head and {many} {', '.join(layers)} (counted from 0)"
    if origin.get("from") == "checkpoint":
        return f"the checkpoint {short(str(origin.get('model')))}"
    if origin.get("from") == "random weights":
        changes = ", ".join(f"{name} {value}" for name, value in (origin.get("shape") or {}).items())
        return f"random weights; the teacher's configuration with {changes or 'nothing changed'}"
    return ", ".join(f"{name} {value}" for name, value in origin.items()) or None


def objective(stage: Stage, regression: bool) -> str:
    """A stage's loss: `0.9 x soft targets (temperature 2.0, form kl) + 0.1 x hard labels`."""
    terms = []
    for name in type(stage.objectives).model_fields:
        section = getattr(stage.objectives, name)
        if section is None:
            continue
        settings = section.model_dump(exclude_none=True)
        weight = settings.pop("weight", 1.0)
        if regression and name == "soft_targets":
            settings = {}  # a number has no distribution to soften: neither setting is read
        inner = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
        terms.append(f"{weight:g} x {name.replace('_', ' ')}" + (f" ({inner})" if inner else ""))
    return " + ".join(terms)


def stages(recipe: Recipe, metrics: Metrics) -> list[str]:
    """Each training phase in a line: its loss and its settings."""
    lines = []
    for stage in recipe.stages:
        training = recipe.training_of(stage)
        batch = training.batch_size * training.gradient_accumulation
        limit = "up to " if training.patience else ""
        lines.append(
            f"{stage.name}: {objective(stage, metrics['task']['kind'] == 'regression')}; {limit}{training.epochs:g} "
            f"epochs, learning rate {training.learning_rate:g}, batch size {batch}"
        )
    return lines


def data(metrics: Metrics) -> str:
    """The data's sizes in one sentence."""
    sizes = metrics["data"]
    parts = [f"{sizes[name]:,} {name}" for name in ("train", "transfer", "validation", "test") if name in sizes]
    return f"Examples: {', '.join(parts)}."


def metric_note(metrics: Metrics) -> str:
    """What the intervals are."""
    return f"{title(main_metric(metrics))} on the test set. Intervals are 95 % bootstrap intervals."
