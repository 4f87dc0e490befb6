"""The headline table: which models a run has, what is shown of each, and the table for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
}
"""The models of a run in the order in which they are shown."""


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


def get(metrics: Metrics, *keys: str) -> Any:  # noqa: ANN401
    """A nested value; None where any step is missing or null, as `speed` is when it was not measured."""
    value: Any = metrics
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(metrics: Metrics, *keys: str) -> float | None:
    """A nested number; None where it was not measured."""
    return known(get(metrics, *keys))


def speed_up(metrics: Metrics, model: str) -> float | None:
    """How many times the teacher's speed: the ratio of the median latencies of one example."""
    teacher, own = (number(metrics, name, "speed", "latency_ms_p50") for name in ("teacher", model))
    return teacher / own if teacher and own else None


def headline(metrics: Metrics) -> list[Column]:
    """The headline table's columns. One without any value is left out.

    What compares a model with the teacher (retention, agreement, KL) is empty for the teacher itself.
    """
    metric = metrics["task"]["metric"]

    def ratio(model: str) -> Cell:
        return Cell(*_with_interval("accuracy", metrics[model].get("retention"), get(metrics, model, "retention_interval")))

    def agreement(model: str) -> Cell:
        fidelity = get(metrics, model, "fidelity") or {}
        # Of numbers only a coefficient can be given; of classes, the share of equal predictions.
        unit = "r2" if metrics["task"]["kind"] == "regression" else "accuracy"
        return Cell(*_with_interval(unit, fidelity.get("agreement"), fidelity.get("agreement_interval")))

    def quality(model: str) -> Cell:
        return quality_cell(metrics, model, metric)

    def own(write: Callable[[float], str], *keys: str) -> Callable[[str], Cell]:
        return lambda model: _cell(number(metrics, model, *keys), write)

    columns: list[tuple[str, bool, Callable[[str], Cell]]] = [
        (title(metric), True, quality),
        ("Retention", False, ratio),
        ("Agreement", False, agreement),
        ("KL", False, own("{:.3f}".format, "fidelity", "kl")),
        ("ECE", True, own("{:.3f}".format, "calibration", "ece")),
        ("Parameters", True, own(count, "size", "parameters")),
        ("Size (MB)", True, own(lambda size: f"{size / 1e6:,.1f}", "size", "bytes")),
        ("Latency (ms)", True, own(significant, "speed", "latency_ms_p50")),
        ("Examples/s", True, own(significant, "speed", "throughput")),
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
    """The headline table for a terminal: one row per model, 95 % intervals under the values.

    Args:
        metrics: a run's metrics, as in `metrics.json`.
    """
    table = Table(title=f"On {metrics['data']['test']:,} test examples", title_justify="left", title_style="bold")
    table.add_column("Model", style="bold", no_wrap=True)
    columns = headline(metrics)
    for column in columns:
        table.add_column(column.title, justify="right")
    for row, model in enumerate(models(metrics)):
        cells = [column.cells[row] for column in columns]
        table.add_row(NAMES[model], *[_terminal(cell) for cell in cells])
    return table


def _terminal(cell: Cell) -> Text:
    text = Text(cell.text or "-")
    return text.append(f"\n{cell.interval}", style="dim") if cell.interval else text


def _cell(value: float | None, write: Callable[[float], str]) -> Cell:
    return Cell() if value is None else Cell(write(value))


def _with_interval(unit: str, value: Any, interval: Any) -> tuple[str, str]:  # noqa: ANN401
    low, high = interval if interval else (None, None)
    return score(unit, value), bounds(unit, low, high)
