"""The run's report: one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from limbeck.files import write_atomic
from limbeck.recipe import load
from limbeck.report import plots, sentences
from limbeck.report.numbers import (
    SHARES,
    bounds,
    count,
    difference,
    duration,
    known,
    p_value,
    percent,
    rough_percent,
    score,
    significant,
    times,
    title,
)
from limbeck.report.table import NAMES, Metrics, get, headline, models, number, quality_cell, speed_up

MOST_CLASSES = 20
MOST_DISAGREEMENTS = 100
FEW = 30
"""Under so many examples a slice's score says little."""


@dataclass(frozen=True)
class Figure:
    """A plot and what it shows."""

    svg: Markup
    heading: str
    caption: str


def environment() -> Environment:
    """The templates of this room. HTML is escaped; Markdown is not HTML and is left alone."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write_report(metrics: Metrics, recipe_yaml: str, path: Path) -> Path:
    """Write the report of a run.

    Args:
        metrics: the run's metrics, as in `metrics.json`.
        recipe_yaml: the resolved recipe.
        path: the HTML file.

    Returns:
        `path`.
    """
    page = environment().get_template("report.html.j2").render(
        name=path.resolve().parent.name,
        method=metrics.get("method"),
        verdict=sentences.verdict(metrics),
        tiles=_tiles(metrics),
        present=models(metrics),
        names=NAMES,
        columns=headline(metrics),
        metric=title(metrics["task"]["metric"]),
        notes=_some(sentences.metric_note(metrics), sentences.speed_terms(metrics)),
        statements=_some(
            sentences.comparison(metrics, "teacher"),
            sentences.comparison(metrics, "baseline"),
            sentences.fidelity(metrics),
        ),
        notices=metrics["data"].get("notices") or [],
        tradeoffs=_figures(_tradeoffs(metrics)),
        training=_figures(_training(metrics)),
        reliability=plots.reliability(metrics),
        calibration=sentences.calibration(metrics),
        slices=_slices(metrics),
        all_metrics=_all_metrics(metrics),
        disagreements=_disagreements(metrics),
        tests=_tests(metrics),
        facts=_facts(metrics, recipe_yaml),
        recipe=recipe_yaml,
    )
    write_atomic(path, page)
    return path


def _some(*sentences_: str | None) -> list[str]:
    return [sentence for sentence in sentences_ if sentence]


def _tiles(metrics: Metrics) -> list[tuple[str, str, str]]:
    """The four or five numbers that matter most: (value, what it is, the detail)."""
    metric = metrics["task"]["metric"]
    tiles = []
    retention = number(metrics, "student", "retention")
    if retention is not None and metrics.get("teacher"):
        interval = bounds("accuracy", *(get(metrics, "student", "retention_interval") or (None, None)))
        tiles.append((percent(retention), f"of the teacher's {sentences.phrase(metric)}", interval))
    teacher, student = (number(metrics, name, "size", "bytes") for name in ("teacher", "student"))
    if teacher and student:
        detail = f"{teacher / 1e6:,.0f} to {student / 1e6:,.0f} MB"
        tiles.append((rough_percent(student / teacher), "of its size", detail))
    faster = speed_up(metrics, "student")
    if faster:
        before, after = (number(metrics, name, "speed", "latency_ms_p50") or 0.0 for name in ("teacher", "student"))
        tiles.append((times(faster), "its speed", f"{significant(before)} to {significant(after)} ms an example"))
    gain = get(metrics, "comparisons", "student_vs_baseline")
    value = number(metrics, "comparisons", "student_vs_baseline", "difference", "value")
    if gain and value is not None:
        unit = " points" if gain["metric"] in SHARES else ""
        ends = [difference(gain["metric"], gain["difference"][end]) for end in ("low", "high")]
        tiles.append((difference(gain["metric"], value) + unit, "over training on labels alone", " to ".join(ends)))
    return tiles


def _figures(found: list[tuple[Markup | None, str, str]]) -> list[Figure]:
    return [Figure(svg, heading, caption) for svg, heading, caption in found if svg is not None]


def _tradeoffs(metrics: Metrics) -> list[tuple[Markup | None, str, str]]:
    latency = ("speed", "latency_ms_p50")
    return [
        (
            plots.quality_against(metrics, "latency", "latency (ms, one example)", latency),
            "Quality and latency",
            "Up and to the left is better. Bars are 95 % intervals.",
        ),
        (
            plots.quality_against(metrics, "size", "size on disk (MB)", ("size", "bytes"), 1e6),
            "Quality and size",
            "Up and to the left is better. Bars are 95 % intervals.",
        ),
    ]


def _training(metrics: Metrics) -> list[tuple[Markup | None, str, str]]:
    return [
        (plots.losses(metrics, "student"), "Loss of the student", "Each term before its weight; the total after."),
        (plots.losses(metrics, "baseline"), "Loss of the baseline", "The same student on the labels alone."),
        (plots.validation(metrics), "Validation", "The ringed checkpoint was kept."),
    ]


def _slices(metrics: Metrics) -> list[dict[str, Any]]:
    """Tables of slices: the teacher's and the student's score in each."""
    tables = []
    metric = metrics["task"]["metric"]
    for kind, heading in (("class", "By class"), ("length", "By length")):
        ours = get(metrics, "student", "slices", kind) or {}
        rows = [_slice(metrics, kind, name, metric) for name in ours]
        total = len(rows)
        if total > MOST_CLASSES and kind == "class":
            rows = sorted(rows, key=lambda row: row["order"])[:MOST_CLASSES]
        if rows:
            tables.append({"heading": heading, "rows": rows, "total": total, "few": any(row["few"] for row in rows)})
    return tables


def _slice(metrics: Metrics, kind: str, name: str, metric: str) -> dict[str, Any]:
    # Not through `get`: a class may be named anything, and is looked up as it is.
    measured = {model: (get(metrics, model, "slices", kind) or {}).get(name) or {} for model in ("teacher", "student")}
    values = {model: known(found.get("value")) for model, found in measured.items()}
    gap = values["student"] - values["teacher"] if None not in values.values() else None  # type: ignore[operator]
    examples = measured["student"].get("count", 0)
    return {
        "name": name,
        "examples": examples,
        "few": examples < FEW,
        "scores": {model: score(metric, value) for model, value in values.items()},
        "bars": {model: min(max(100 * (value or 0.0), 0.0), 100.0) for model, value in values.items()},
        "difference": "" if gap is None else difference(metric, gap),
        "order": 0.0 if gap is None else gap,
    }


def _all_metrics(metrics: Metrics) -> list[tuple[str, list[Any]]]:
    """Every metric of every model: (the metric, a cell per model)."""
    found = {metric: None for model in models(metrics) for metric in get(metrics, model, "quality") or {}}
    return [(title(metric), [quality_cell(metrics, model, metric) for model in models(metrics)]) for metric in found]


def _disagreements(metrics: Metrics) -> dict[str, Any]:
    """The examples on which student and teacher part, as text."""
    every = metrics.get("disagreements") or []
    rows = []
    for example in every[:MOST_DISAGREEMENTS]:
        label = _prediction(example.get("label"))
        sides = []
        for model in ("teacher", "student"):
            confidence = known(example.get(f"{model}_confidence"))
            said = _prediction(example.get(model))
            right = metrics["task"]["kind"] != "regression" and said == label
            sides.append({"said": said, "right": right, "sure": "" if confidence is None else percent(confidence, 0)})
        texts = [str(example[key]) for key in ("text", "text_pair") if example.get(key) is not None]
        rows.append({"texts": texts, "label": label, "sides": sides})
    return {"rows": rows, "total": len(every)}


def _prediction(value: Any) -> str:  # noqa: ANN401
    """A label as text: a class, several classes, or a number; a dash for an unlabelled example."""
    if value is None:
        return "\u2013"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _tests(metrics: Metrics) -> list[dict[str, str]]:
    """The paired tests as rows."""
    rows = []
    for other in ("teacher", "baseline"):
        test = get(metrics, "comparisons", f"student_vs_{other}")
        if not test or number(test, "difference", "value") is None:
            continue
        metric, p = test["metric"], known(test.get("p_value"))
        gap = {end: difference(metric, test["difference"][end]) for end in ("value", "low", "high")}
        rows.append(
            {
                "pair": f"Student and {other}",
                "metric": title(metric),
                "difference": gap["value"] + (" points" if metric in SHARES else ""),
                "interval": f"{gap['low']} to {gap['high']}",
                "p": "" if p is None else p_value(p).removeprefix("p ").removeprefix("= "),
                "reading": "told apart" if sentences.decided(test) else "not told apart",
            }
        )
    return rows


def _facts(metrics: Metrics, recipe_yaml: str) -> list[tuple[str, list[str]]]:
    """How the run was made: (what, lines)."""
    recipe = load(yaml.safe_load(recipe_yaml))
    teachers = [teacher.model for teacher in recipe.teacher.models] if recipe.teacher else []
    seconds = {
        model: get(metrics, "training", model, "seconds") or {} for model in ("student", "baseline") if metrics.get(model)
    }
    times_ = [f"{model}, {stage}: {duration(s)}" for model, parts in seconds.items() for stage, s in parts.items()]
    stored = metrics.get("knowledge")
    knowledge = f"{stored['examples']:,} examples, {stored['bytes'] / 1e6:,.1f} MB" if stored else None
    exports = [
        f"{NAMES[model]}: largest difference from the student's logits {significant(gap)}"
        for model in ("student_onnx", "student_int8")
        if (gap := number(metrics, model, "max_logit_difference")) is not None
    ]
    facts = [
        ("Teacher", teachers),
        ("Student starts from", _some(sentences.initialisation(metrics))),
        ("Stages", sentences.stages(recipe, metrics)),
        ("Training time", times_),
        ("Data", [sentences.data(metrics)]),
        ("Task", [_task(metrics)]),
        ("Knowledge kept", _some(knowledge)),
        ("Exports", exports),
        ("Machine", _some(sentences.machine(metrics))),
        ("Seed", [str(recipe.seed)]),
    ]
    return [(what, lines) for what, lines in facts if lines]


def _task(metrics: Metrics) -> str:
    task = metrics["task"]
    texts = "pairs of texts" if task.get("pair") else "single texts"
    labels = task.get("labels") or []
    if task["kind"] == "regression":
        return f"regression on {texts}"
    shown = ", ".join(map(str, labels[:12])) + (", ..." if len(labels) > 12 else "")
    return f"{task['kind']} of {texts} into {count(len(labels))} classes: {shown}"
