"""The page's plots, each an inline SVG or None where the run has nothing to show."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any, cast

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from limbeck.recipe.schema import Recipe
from limbeck.report.drawing import COLOURS, MARKERS, SIZE, Point, canvas, place_labels, to_svg
from limbeck.report.numbers import SHARES, known, score, significant, title
from limbeck.report.sentences import stage_of, term_name
from limbeck.report.table import Metrics, get, main_metric, models, name_of, number

_NOT_TERMS = ("loss", "learning_rate", "grad_norm", "epoch", "step", "num_input_tokens_seen", "total_flos")
_DASHES = ("-", "--", "-.", ":")

Logs = list[dict[str, Any]]
Phases = list[tuple[str, Logs]]
"""The phases of a training in order: the name of the stage that each is of, and what was logged."""


def quality_against(metrics: Metrics, name: str, label: str, keys: tuple[str, ...], unit: float = 1) -> Markup | None:
    """The main metric of every model against one of its costs.

    Args:
        metrics: a run's metrics.
        name: the plot's name.
        label: the cost's name and unit, for the axis.
        keys: where the cost lies in a model's metrics.
        unit: what the cost is divided by.
    """
    metric = main_metric(metrics)
    points = []
    for model in models(metrics):
        cost, quality = number(metrics, model, *keys), number(metrics, model, "quality", metric, "value")
        if cost is not None and quality is not None:
            points.append((model, cost / unit, quality))
    if len(points) < 2:
        return None
    costs = [cost for _, cost, _ in points]
    with canvas() as axes:
        if min(costs) > 0 and max(costs) / min(costs) > 12:
            axes.set_xscale("log")
            axes.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, max(costs) * 1.15)
        places = _side_by_side(axes, costs)
        drawn = []
        for (model, _, quality), x in zip(points, places, strict=True):
            ends = [number(metrics, model, "quality", metric, end) for end in ("low", "high")]
            low, high = (quality if end is None else end for end in ends)
            style: dict[str, Any] = {"color": COLOURS[model], "marker": MARKERS[model], "capsize": 2.5}
            bar = [[max(quality - low, 0)], [max(high - quality, 0)]]
            axes.errorbar(x, quality, bar, markersize=6.5, elinewidth=1.1, **style)
            drawn.append(Point(x, quality, low, high, name_of(metrics, model), COLOURS[model]))
        axes.margins(y=0.14)
        axes.set(xlabel=label, ylabel=title(metric))
        _unit_of(axes, metric)
        place_labels(axes, drawn)
        told = "; ".join(
            f"{name_of(metrics, model)}: {score(metric, q)} at {significant(cost)}" for model, cost, q in points
        )
        return to_svg(axes, name, f"{title(metric)} against {label}. {told}.")


def queries(metrics: Metrics) -> Markup | None:
    """The main metric of students after so many queries, and the teacher's."""
    metric = main_metric(metrics)
    points = [
        (each["queries"], [known(each["quality"][metric][key]) for key in ("value", "low", "high")])
        for each in get(metrics, "queries", "curve") or []
    ]
    drawn = [(x, y, low, high) for x, (y, low, high) in points if y is not None]
    if len(drawn) < 2:
        return None
    with canvas() as axes:
        xs, ys = [x for x, *_ in drawn], [y for _, y, *_ in drawn]
        bars = [[max(y - (y if end is None else end), 0) for _, y, end, _ in drawn]]
        bars.append([max((y if end is None else end) - y, 0) for _, y, _, end in drawn])
        style: dict[str, Any] = {"color": COLOURS["student"], "marker": MARKERS["student"], "capsize": 2.5}
        axes.errorbar(xs, ys, bars, linewidth=1.5, markersize=5, elinewidth=1.1, label="Student", **style)
        teacher = number(metrics, "teacher", "quality", metric, "value")
        if teacher is not None:
            axes.axhline(teacher, color=COLOURS["teacher"], linewidth=1.2, linestyle="--", label="Teacher")
        axes.set(xlabel="queries", ylabel=title(metric))
        axes.set_xlim(0, max(xs) * 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.14)
        _unit_of(axes, metric)
        axes.legend(loc="lower right")
        told = "; ".join(f"{score(metric, y)} after {x:,} queries" for x, y in zip(xs, ys, strict=True))
        return to_svg(axes, "queries", f"{title(metric)} of the student against queries. {told}.")


def losses(metrics: Metrics, recipe: Recipe, model: str) -> list[tuple[list[str], Markup]]:
    """A model's training loss and each term's part unweighted: a plot for phases of the same terms, with their stages.

    Terms of different stages have nothing in common, their scale least of all.
    """
    groups = groupby(_phases(metrics, recipe, model), key=lambda phase: _terms(phase[1]))
    found = []
    for place, (terms, group) in enumerate(groups, 1):
        phases = list(group)
        plot = _losses(metrics, model, phases, terms, f"loss-{model}-{place}")
        if plot is not None:
            found.append((list(dict.fromkeys(stage for stage, _ in phases)), plot))
    return found


def _losses(metrics: Metrics, model: str, phases: Phases, terms: list[str], plot: str) -> Markup | None:
    """The losses of phases of the same terms."""
    starts = _starts(phases)
    names = terms if len(terms) == 1 else ["loss", *terms]
    lines = {name: _lines(phases, name, starts) for name in names}
    values = [y for segments in lines.values() for _, ys in segments for y in ys]
    if not values:
        return None
    colours = [COLOURS[role] for role in ("ink", "student", "baseline", "student_onnx", "student_int8", "teacher")]
    with canvas() as axes:
        for index, (name, segments) in enumerate(lines.items()):
            colour = colours[0] if name == "loss" else colours[1 + (index - ("loss" in lines)) % 5]
            label = term_name(name)
            dash = _DASHES[index // len(colours) % len(_DASHES)]
            for xs, ys in segments:
                axes.plot(xs, ys, dash, color=colour, linewidth=1.5, label=label)
                label = "_nolegend_"  # one entry for all phases
        if min(values) > 0 and max(values) / min(values) > 30:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) / min(values) < 1000 else (1,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="step", ylabel="loss")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _stage_borders(axes, starts)
        axes.legend(loc="best")
        told = "; ".join(
            f"{term_name(name)} from {significant(ys[0])} to {significant(ys[-1])}"
            for name, segments in lines.items()
            if (ys := [y for _, segment in segments for y in segment])
        )
        return to_svg(axes, plot, f"Training loss of the {name_of(metrics, model).lower()} by step: {told}.")


def validation(metrics: Metrics, recipe: Recipe, on_text: bool = False) -> Markup | None:
    """The main metric on the validation examples over the stages on the task.

    Args:
        metrics: a run's metrics.
        recipe: the run's recipe.
        on_text: instead the share of masked words filled in right, over the stages on plain text.
    """
    metric = "accuracy" if on_text else main_metric(metrics)
    what = "Masked words right" if on_text else title(metric)
    key = f"eval_{metric}"
    phases = {model: _phases(metrics, recipe, model, on_text) for model in ("student", "baseline")}
    judged = {stage for each in phases.values() for stage, logs in each if any(key in log for log in logs)}
    phases = {model: [phase for phase in each if phase[0] in judged] for model, each in phases.items()}
    starts = _starts(*phases.values())
    told = []
    with canvas() as axes:
        for model in ("baseline", "student"):
            label = name_of(metrics, model)
            for (stage, _), (xs, ys) in zip(phases[model], _lines(phases[model], key, starts), strict=True):
                if not ys:
                    continue
                style: dict[str, Any] = {"color": COLOURS[model], "marker": MARKERS[model], "markersize": 4.5}
                axes.plot(xs, ys, linewidth=1.5, label=label, **style)
                label = "_nolegend_"
                told.append(f"{name_of(metrics, model)}, stage {stage}: {score(metric, ys[-1])} at step {xs[-1]:g}")
        if not told:
            return None
        axes.set(xlabel="step", ylabel=f"{what} (validation)")
        axes.margins(y=0.14)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _unit_of(axes, metric)
        _stage_borders(axes, starts)
        axes.legend(loc="best")
        name = "words" if on_text else "validation"
        return to_svg(axes, name, f"{what} on the validation examples. {'; '.join(told)}.")


def reliability(metrics: Metrics) -> Markup | None:
    """Accuracy against confidence, binned; on the diagonal a model is as often right as it is sure."""
    curves = {}
    for model in models(metrics):
        bins = [b for b in get(metrics, model, "calibration", "curve") or [] if b.get("count")]
        pairs = [(known(b["confidence"]), known(b["accuracy"]), b["count"]) for b in bins]
        curve = [(x, y, n) for x, y, n in pairs if x is not None and y is not None]
        if curve and model != "student_onnx":  # the same model as the student, to the last few digits
            curves[model] = curve
    if not curves:
        return None
    with canvas((SIZE[0], 4.2)) as axes:
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 4)))
        for model, curve in curves.items():
            xs, ys, counts = zip(*curve, strict=True)
            total = sum(counts)
            axes.plot(xs, ys, color=COLOURS[model], linewidth=1.3)
            areas = [12 + 110 * n / total for n in counts]
            axes.scatter(
                xs, ys, areas, color=COLOURS[model], marker=MARKERS[model], label=name_of(metrics, model), linewidths=0
            )
        left = min(x for curve in curves.values() for x, _, _ in curve)
        axes.set_xlim(max(0, left - 0.05), 1.01)
        lowest = min(y for curve in curves.values() for _, y, _ in curve)
        axes.set_ylim(max(0, min(lowest, left) - 0.08), 1.02)
        many = metrics["task"]["kind"] == "multi-label"
        axes.set(xlabel="probability" if many else "confidence", ylabel=f"share {'set' if many else 'right'}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        legend = axes.legend(loc="lower right" if left > 0.3 else "upper left")
        for handle in legend.legend_handles:
            cast(PathCollection, handle).set_sizes([36])
        told = [
            f"{name_of(metrics, model)} {error:.3f}" for model in curves if (error := _ece(metrics, model)) is not None
        ]
        return to_svg(axes, "reliability", f"Reliability diagram. Expected calibration error: {', '.join(told)}.")


def _ece(metrics: Metrics, model: str) -> float | None:
    return number(metrics, model, "calibration", "ece")


def _phases(metrics: Metrics, recipe: Recipe, model: str, on_text: bool | None = None) -> Phases:
    """What a model's training logged, phase by phase; on plain text or on the task alone where that is asked for."""
    found = []
    for name, logs in (get(metrics, "training", model, "history") or {}).items():
        stage = stage_of(name, recipe)
        text = stage.on_text if stage else metrics["task"]["kind"] in ("masked-lm", "causal-lm")
        if logs and on_text in (None, text):
            found.append((stage.name if stage else name, logs))
    return found


def _starts(*trainings: Phases) -> dict[str, float]:
    """The step at which each stage starts, the same for all trainings: one after the other, as long as its longest."""
    longest: dict[str, float] = {}
    for phases in trainings:
        own: dict[str, float] = {}
        for stage, logs in phases:
            own[stage] = own.get(stage, 0.0) + _steps(logs)
        longest = {stage: max(longest.get(stage, 0.0), own.get(stage, 0.0)) for stage in [*longest, *own]}
    starts, place = {}, 0.0
    for stage, steps in longest.items():
        starts[stage] = place
        place += steps
    return starts


def _steps(logs: Logs) -> float:
    return max([known(log.get("step")) or 0.0 for log in logs], default=0.0)


def _terms(logs: Logs) -> list[str]:
    """The loss terms that a phase's logs hold beside what `Trainer` writes itself."""
    names: dict[str, None] = {}
    for log in logs:
        if "loss" in log:
            names |= {name: None for name in log if name not in _NOT_TERMS and known(log[name]) is not None}
    return list(names)


def _lines(phases: Phases, key: str, starts: dict[str, float]) -> list[tuple[list[float], list[float]]]:
    """One logged value over the steps, a line for each phase; what is not finite is left out."""
    lines, place = [], dict(starts)
    for stage, logs in phases:
        pairs = [(known(log.get("step")), known(log.get(key))) for log in logs]
        found = [(place[stage] + x, y) for x, y in pairs if x is not None and y is not None]
        lines.append(([x for x, _ in found], [y for _, y in found]))
        place[stage] += _steps(logs)
    return lines


def _stage_borders(axes: Axes, starts: dict[str, float]) -> None:
    """A dotted line where a stage ends, and the stages' names, when there are several."""
    if len(starts) < 2:
        return
    unit = 0.85 * 72 * SIZE[0] / axes.get_xlim()[1]  # of a step, about; the layout is not made yet
    free, up = 0.0, 2
    for stage, start in starts.items():
        if start:
            axes.axvline(start, color=COLOURS["muted"], linewidth=0.9, linestyle=":")
        up = 2 if up > 2 or unit * start >= free else 13  # above the name before it where that is in the way
        free = unit * start + 5 * len(stage)
        style: dict[str, Any] = {"textcoords": "offset points", "color": COLOURS["muted"], "fontsize": 8.5}
        axes.annotate(stage, (start, 1), (3, up), xycoords=axes.get_xaxis_transform(), va="bottom", **style)


def _side_by_side(axes: Axes, costs: list[float]) -> list[float]:
    """Models of the same cost moved a little apart, so that their error bars do not hide each other."""
    places = [axes.transData.transform((cost, 0))[0] for cost in costs]
    step = 0.018 * axes.get_window_extent().width
    order = sorted(range(len(places)), key=places.__getitem__)
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + step)
    return [float(axes.transData.inverted().transform((place, 0))[0]) for place in places]


def _unit_of(axes: Axes, metric: str) -> None:
    """The metric's unit on the vertical axis; of a share, there is no less than nothing and no more than all."""
    if metric in SHARES:
        low, high = axes.get_ylim()
        axes.set_ylim(max(min(low, 0.97) if high > 1 else low, -0.004), min(high, 1.004))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
