"""The headline table: which models a run has, what is shown of each, and the table for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from limbeck.report.numbers import bounds, count, known, score, significant, times, title

Metrics = dict[str, Any]

NAMES = {
    "teacher": "Teacher",
    "student": "Student",
    "baseline": "Baseline",
    "student_onnx": "Student, ONNX",
    "student_int8": "Student, int8",
    "student_gguf": "Student, GGUF",
    "student_gguf_q8": "Student, GGUF 8 bits",
}
"""The models of a run in the order in which they are shown."""


NEW_TOKENS = ("speed", "new_tokens_per_second", "median")

# What a terminal shows under what, the heading that the two share, and the units that the heading then lacks.
_UNDER = {
    "Agreement": "KL",
    "Parameters": "Size (MB)",
    "Latency (ms)": "Examples/s",
    "New tokens/s": "Speed-up",
}
_HEADS = {"Parameters": "Size", "Latency (ms)": "Speed", "New tokens/s": "Tokens/s"}
_UNITS = {"KL": "KL {}", "Size (MB)": "{} MB", "Latency (ms)": "{} ms", "Examples/s": "{} /s"}


@dataclass(frozen=True)
class Cell:
    """One measurement as text; both parts are empty when it was not made."""

    text: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Column:
    """One measurement of every model, in the order of `models`."""

    title: str
    cells: list[Cell]


def models(metrics: Metrics) -> list[str]:
    """The models that were measured, in the order in which they are shown."""
    return [name for name in NAMES if metrics.get(name)]


def name_of(metrics: Metrics, model: str) -> str:
    """A model's name for reading. Without a teacher there is no student, just a model."""
    taught = metrics.get("teacher") or metrics.get("knowledge")  # one that costs may be left unmeasured
    return NAMES[model] if taught else NAMES[model].replace("Student", "Model")


def main_metric(metrics: Metrics) -> str:
    """The metric that the run is about; the first one measured where no task is recorded."""
    return str(get(metrics, "task", "metric") or next(iter(metrics["student"]["quality"])))


def get(metrics: Metrics, *keys: str) -> Any:  # noqa: ANN401
    """A nested value; None where any step is missing or null, as `speed` is when it was not measured."""
    value: Any = metrics
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def tested(metrics: Metrics) -> int:
    """The test examples that the figures are about: of a causal language model those that it was measured on."""
    sizes = metrics["data"]
    return int(sizes.get("measured", sizes["test"]))


def number(metrics: Metrics, *keys: str) -> float | None:
    """A nested number; None where it was not measured."""
    return known(get(metrics, *keys))


def speed_up(metrics: Metrics, model: str) -> float | None:
    """How many times the teacher's speed, by the median latency of one example or by the tokens generated a second."""
    teacher, own = (number(metrics, name, "speed", "latency_ms_p50") for name in ("teacher", model))
    if not (teacher and own):
        own, teacher = (number(metrics, name, *NEW_TOKENS) for name in ("teacher", model))
    return teacher / own if teacher and own else None


def sizes(metrics: Metrics) -> tuple[float, float, str] | None:
    """The teacher's and the student's size, in `bytes`; in `parameters` where they are kept in numbers of other widths.

    A teacher of four bits a weight is no larger than a student a quarter as large in float32.
    """
    ends = ("teacher", "student")
    teacher, student = (number(metrics, name, "size", "bytes") for name in ends)
    if not (teacher and student):
        return None
    its, own = (number(metrics, name, "size", "parameters") for name in ends)
    if its and own and not 0.8 < (teacher / its) / (student / own) < 1.25:
        return its, own, "parameters"
    return teacher, student, "bytes"


def headline(metrics: Metrics) -> list[Column]:
    """The headline table's columns. One without any value is left out.

    What compares a model with the teacher (retention, agreement, KL) is empty for the teacher itself.
    """
    metric = main_metric(metrics)

    def ratio(model: str) -> Cell:
        return _estimate("accuracy", get(metrics, model, "retention"), get(metrics, model, "retention_interval"))

    def agreement(model: str) -> Cell:
        fidelity = get(metrics, model, "fidelity") or {}
        # Values correlate more or less; classes are the same or not.
        unit = "pearson" if get(metrics, "task", "kind") == "regression" else "accuracy"
        return _estimate(unit, fidelity.get("agreement"), fidelity.get("agreement_interval"))

    def quality(model: str) -> Cell:
        return quality_cell(metrics, model, metric)

    def own(write: Callable[[float], str], *keys: str) -> Callable[[str], Cell]:
        return lambda model: _cell(number(metrics, model, *keys), write)

    def rate(value: float) -> str:
        return count(value) if value >= 1e4 else significant(value)

    columns: list[tuple[str, bool, Callable[[str], Cell]]] = [
        (title(metric), True, quality),
        ("Perplexity", True, lambda model: quality_cell(metrics, model, "perplexity")),
        ("Retention", False, ratio),
        ("Agreement", False, agreement),
        ("KL", False, own("{:.3f}".format, "fidelity", "kl")),
        ("ECE", True, own("{:.3f}".format, "calibration", "ece")),
        ("Parameters", True, own(count, "size", "parameters")),
        ("Size (MB)", True, own(lambda size: significant(size / 1e6), "size", "bytes")),
        ("Latency (ms)", True, own(significant, "speed", "latency_ms_p50")),
        ("Examples/s", True, own(rate, "speed", "throughput")),
        ("New tokens/s", True, own(rate, *NEW_TOKENS)),
        ("Prompt tokens/s", True, own(rate, "speed", "prompt_tokens_per_second", "median")),
        ("Memory (MB)", True, own(lambda size: significant(size / 1e6), "speed", "peak_bytes", "median")),
        ("Speed-up", True, lambda model: _cell(speed_up(metrics, model), times)),
    ]
    shown = [
        Column(name, [cell(model) if teacher_too or model != "teacher" else Cell() for model in models(metrics)])
        for name, teacher_too, cell in columns
    ]
    return [column for column in shown if any(cell.text for cell in column.cells)]


def quality_cell(metrics: Metrics, model: str, metric: str) -> Cell:
    """One model's score in one metric, with its interval."""
    measured = get(metrics, model, "quality", metric) or {}
    return Cell(score(metric, measured.get("value")), bounds(metric, measured.get("low"), measured.get("high")))


def metrics_table(metrics: Metrics) -> Table:
    """The headline table for a terminal: one row per model, with the interval under the main metric.

    Measurements share columns two by two, so that the whole fits a terminal of 80 characters; of a language model
    some are left to the report.

    Args:
        metrics: a run's metrics, as in `metrics.json`.
    """
    title_ = f"On {tested(metrics):,} test examples" if get(metrics, "data", "test") is not None else None
    table = Table(title=title_, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Model", style="bold")
    columns = headline(metrics)
    titles = {column.title for column in columns}
    left_out = {"Prompt tokens/s", "Memory (MB)"} | ({"ECE"} if "Perplexity" in titles else set())
    beneath = {below for above, below in _UNDER.items() if above in titles}
    rows = [[Text(name_of(metrics, model).replace(", ", "\n"))] for model in models(metrics)]
    for column in columns:
        if column.title in left_out | beneath:
            continue
        table.add_column(_HEADS.get(column.title, column.title), justify="right")
        under = next((other for other in columns if other.title == _UNDER.get(column.title)), None)
        for row, cells in enumerate(rows):
            text = Text(_with_unit(column, row) or "-")
            below = _with_unit(under, row) if under else ""
            if column is columns[0]:
                interval = column.cells[row].interval
                below = interval if "-" in interval else interval.replace(" to ", "-")
            cells.append(text.append(f"\n{below}", style="dim") if below else text)
    for cells in rows:
        table.add_row(*cells)
    return table


def _with_unit(column: Column, row: int) -> str:
    text = column.cells[row].text
    return _UNITS.get(column.title, "{}").format(text) if text else ""


def _cell(value: float | None, write: Callable[[float], str]) -> Cell:
    return Cell() if value is None else Cell(write(value))


def _estimate(unit: str, value: Any, interval: Any) -> Cell:  # noqa: ANN401
    low, high = interval if interval else (None, None)
    return Cell(score(unit, value), bounds(unit, low, high))
