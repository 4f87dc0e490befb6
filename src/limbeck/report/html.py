"""The run's report: one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from limbeck.files import write_atomic
from limbeck.recipe import Recipe, load
from limbeck.report import plots, sections, sentences
from limbeck.report.table import Metrics, headline, models, name_of


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
    recipe = load(yaml.safe_load(recipe_yaml))
    template = environment().get_template("report.html.j2")
    page = template.render(
        name=path.resolve().parent.name,
        method=metrics.get("method"),
        verdict=sentences.verdict(metrics),
        tiles=sections.tiles(metrics),
        present=models(metrics),
        names={model: name_of(metrics, model) for model in models(metrics)},
        columns=headline(metrics),
        kind=metrics["task"]["kind"],
        inputs=metrics["task"].get("inputs", "text"),
        compared=[model for model in ("teacher", "student") if model in models(metrics)],
        test_note=sections.TEST_NOTES[metrics["task"]["kind"]],
        slice_note=sections.SLICE_NOTES[metrics["task"]["kind"]],
        calibration_note=sections.CALIBRATION_NOTES.get(metrics["task"]["kind"], ""),
        notes=sections.some(sentences.metric_note(metrics), sentences.speed_terms(metrics)),
        statements=sections.some(
            sentences.comparison(metrics, "teacher"),
            sentences.comparison(metrics, "baseline"),
            sentences.fidelity(metrics),
        ),
        notices=metrics["data"].get("notices") or [],
        tradeoffs=_figures(_tradeoffs(metrics)),
        training=_figures(_training(metrics, recipe)),
        reliability=plots.reliability(metrics),
        calibration=sections.calibration(metrics),
        slices=sections.slices(metrics),
        all_metrics=sections.all_metrics(metrics),
        disagreements=sections.disagreements(metrics),
        tests=sections.tests(metrics),
        rules=sections.rules(metrics),
        tree=sections.tree(metrics),
        facts=sections.facts(metrics, recipe),
        recipe=recipe_yaml,
    )
    write_atomic(path, page)
    return path


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
        (
            plots.queries(metrics),
            "Quality and queries",
            "Students trained on what had been asked by then, on the test set, by which nothing was chosen. Bars are "
            "95 % intervals.",
        ),
    ]


def _training(metrics: Metrics, recipe: Recipe) -> list[tuple[Markup | None, str, str]]:
    figures: list[tuple[Markup | None, str, str]] = []
    progressive = {stage.name for stage in recipe.stages if stage.progressive}
    for model in ("student", "baseline"):
        caption = "Each term before its weight; the total after."
        if model == "baseline":
            caption = f"The same student on {sentences.taught_by_data(metrics)} alone."
        found = plots.losses(metrics, recipe, model)
        for stages, plot in found:
            which = f": {', '.join(stages)}" if len(found) > 1 else ""
            turns = " One layer after the other." if model == "student" and progressive & set(stages) else ""
            figures.append((plot, f"Loss of the {name_of(metrics, model).lower()}{which}", caption + turns))
    kept = "A stage keeps its last checkpoint; with training.patience the best."
    words = "The share of masked words filled in right in plain text held out."
    return [
        *figures,
        (plots.validation(metrics, recipe), "Validation", kept),
        (plots.validation(metrics, recipe, on_text=True), "Masked words", words),
    ]
