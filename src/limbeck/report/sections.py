"""The parts of the report below its plots, as plain values for the template."""

from __future__ import annotations

from typing import Any

from limbeck.recipe.schema import Recipe
from limbeck.report import sentences, trees
from limbeck.report.numbers import (
    SHARES,
    bounds,
    count,
    difference,
    duration,
    known,
    p_value,
    percent,
    phrase,
    rough_percent,
    score,
    significant,
    times,
    title,
)
from limbeck.report.table import (
    NEW_TOKENS,
    Cell,
    Metrics,
    get,
    main_metric,
    models,
    name_of,
    number,
    quality_cell,
    sizes,
    speed_up,
)

LABEL_RULES_NOTE = (
    "Shares of all test examples. The models as they are, here and in every other table, answer without the rules. A "
    "rule that the labels break is wrong there."
)
MOST_CLASSES = 20
MOST_DISAGREEMENTS = 100
FEW = 30
"""Under so many examples a slice's score says little."""

_SAME = "Student minus the other, on the same test examples. p is of "
TEST_NOTES = {
    "classification": f"{_SAME}McNemar's exact test of right and wrong predictions.",
    "multi-label": f"{_SAME}Wilcoxon's signed-rank test of each example's share of right labels.",
    "regression": f"{_SAME}Wilcoxon's signed-rank test of each example's squared error.",
    "masked-lm": f"{_SAME}McNemar's exact test of right and wrong words.",
    "causal-lm": f"{_SAME}Wilcoxon's signed-rank test of each example's share of right tokens.",
}
SLICE_NOTES = {
    "classification": "The share of right predictions among the examples of each true class and length.",
    "multi-label": "By class: the share found of the examples that have the label. "
    "By length: the share of right label decisions.",
    "regression": "The mean squared error; less is better.",
    "masked-lm": "The share of hidden words that were filled in right, by the length of the text.",
    "causal-lm": "",
}
CALIBRATION_NOTES = {
    "classification": "On the dashed line a model is right as often as it is sure; below the line it is overconfident. "
    "Larger marks hold more examples.",
    "multi-label": "On the dashed line labels are set as often as the model says. Larger marks hold more decisions.",
    "masked-lm": "On the dashed line a model is right as often as it is sure. Larger marks hold more words.",
    "causal-lm": "On the dashed line a model is right as often as it is sure. Larger marks hold more tokens.",
}


def some(*sentences_: str | None) -> list[str]:
    """The sentences that there is something to say in."""
    return [sentence for sentence in sentences_ if sentence]


def tiles(metrics: Metrics) -> list[tuple[str, str, str]]:
    """The four or five numbers that matter most: (value, what it is, the detail)."""
    metric = main_metric(metrics)
    tiles = []
    retention = number(metrics, "student", "retention")
    if retention is not None and metrics.get("teacher"):
        interval = bounds("accuracy", *(get(metrics, "student", "retention_interval") or (None, None)))
        tiles.append((percent(retention), f"of the teacher's {phrase(metric)}", interval))
    size = sizes(metrics)
    if size is not None:
        teacher, student, unit = size
        of, short = ("size", "MB") if unit == "bytes" else (unit, "million")
        detail = f"{significant(teacher / 1e6)} to {significant(student / 1e6)} {short}"
        tiles.append((rough_percent(student / teacher), f"of the teacher's {of}", detail))
    faster = speed_up(metrics, "student")
    if faster:
        generated = number(metrics, "student", *NEW_TOKENS) is not None
        key = NEW_TOKENS if generated else ("speed", "latency_ms_p50")
        unit = "new tokens/s" if generated else "ms an example"
        before, after = (significant(number(metrics, name, *key) or 0.0) for name in ("teacher", "student"))
        tiles.append((times(faster), "the teacher's speed", f"{before} to {after} {unit}"))
    gain = get(metrics, "comparisons", "student_vs_baseline")
    value = number(metrics, "comparisons", "student_vs_baseline", "difference", "value")
    if gain and value is not None:
        unit = " points" if gain["metric"] in SHARES else ""
        taught = sentences.taught_by_data(metrics)
        ends = [difference(gain["metric"], gain["difference"][end]) for end in ("low", "high")]
        tiles.append((difference(gain["metric"], value) + unit, f"over training on {taught} alone", " to ".join(ends)))
    return tiles


def slices(metrics: Metrics) -> list[dict[str, Any]]:
    """Tables of slices: the teacher's and the student's score in each."""
    tables = []
    for kind, heading in (("class", "By class"), ("length", "By length")):
        ours = get(metrics, "student", "slices", kind) or {}
        rows = [_slice(metrics, kind, name) for name in ours]
        if len(rows) > MOST_CLASSES and kind == "class":
            rows = sorted(rows, key=lambda row: row["gap"] or 0.0)[:MOST_CLASSES]
        longest = max([1.0, *(value for row in rows for value in row["values"].values())])
        for row in rows:
            row["bars"] = {model: 100 * max(value, 0.0) / longest for model, value in row["values"].items()}
        if rows:
            few = any(row["few"] for row in rows)
            tables.append({"heading": heading, "rows": rows, "total": len(ours), "few": few})
    return tables


def _slice(metrics: Metrics, kind: str, name: str) -> dict[str, Any]:
    """One slice: shares of right predictions, or for regression mean squared errors."""
    # Not through `get`: a class may be named anything, and is looked up as it is.
    measured = {model: (get(metrics, model, "slices", kind) or {}).get(name) or {} for model in ("teacher", "student")}
    values = {model: value for model, found in measured.items() if (value := known(found.get("value"))) is not None}
    gap = values["student"] - values["teacher"] if len(values) == 2 else None
    unit = "mse" if metrics["task"]["kind"] == "regression" else "accuracy"
    examples = measured["student"].get("count", 0)
    return {
        "name": name,
        "examples": examples,
        "few": examples < FEW,
        "values": values,
        "scores": {model: score(unit, value) for model, value in values.items()},
        "difference": "" if gap is None else difference(unit, gap),
        "gap": gap,
    }


def calibration(metrics: Metrics) -> list[tuple[str, str]]:
    """The expected calibration errors: (the model, its error)."""
    errors = {model: number(metrics, model, "calibration", "ece") for model in models(metrics)}
    return [(model, f"{error:.3f}") for model, error in errors.items() if error is not None]


def all_metrics(metrics: Metrics) -> list[tuple[str, list[Cell]]]:
    """Every metric of every model: (the metric, a cell per model)."""
    found = {metric: None for model in models(metrics) for metric in get(metrics, model, "quality") or {}}
    return [(title(metric), [quality_cell(metrics, model, metric) for model in models(metrics)]) for metric in found]


def disagreements(metrics: Metrics) -> dict[str, Any]:
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
        rows.append({"image": example.get("image"), "texts": texts, "label": label, "sides": sides})
    return {"rows": rows, "total": len(every)}


def _prediction(value: Any) -> str:  # noqa: ANN401
    """A label as text: a class, several classes, or a number; a dash for an unlabelled example."""
    if value is None:
        return "\u2013"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def tests(metrics: Metrics) -> list[dict[str, str]]:
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
                "reading": "a clear difference" if sentences.decided(test) else "no clear difference",
            }
        )
    return rows


def tree(metrics: Metrics) -> dict[str, Any] | None:
    """Drawings of the student where it is a soft tree, and what they show; None where it is not."""
    found = get(metrics, "student", "tree")
    if found is None:
        return None
    path, ends = found["path"], len(found["ends"])
    below = 2 ** found["depth"] // ends
    what = {
        "image": "Each square is a gate's filter: an image bright in the blue pixels goes right, in the orange ones "
        "left.",
        "features": "Beside each gate are the features that weigh most: more of a blue one speaks for the right, of an "
        "orange one for the left.",
        "text": "Beside each gate are the words that weigh most: blue ones speak for the right, orange ones for the "
        "left.",
    }[found["inputs"]]
    leaves = f"the {below} leaves below it, by how many examples end in each" if below > 1 else "its leaf"
    right = path["predicted"] == path["label"]
    label = "" if path["label"] is None else f", and that is {'right' if right else 'wrong: ' + str(path['label'])}"
    return {
        "tree": trees.draw_tree(found),
        "path": trees.draw_path(found),
        "tree_note": f"The upper {ends.bit_length() - 1} of {found['depth']} levels. {what} The wider a "
        f"line, the more of the test examples take it. Below each branch: what {leaves} says, and the share of the "
        "examples that come there.",
        "path_note": f"The first test example on its likeliest path. The student says {path['predicted']}{label}.",
        "text": path.get("text"),
    }


def rules(metrics: Metrics) -> dict[str, Any] | None:
    """Models without the rules and held to them, and how often each rule is broken; None without rules."""
    if not metrics.get("rules"):
        return None
    kinds = [kind for kind in ("hard", "soft") if get(metrics, "rules", "labels", kind)]
    metric = get(metrics, "student", "rules", "with_rules", "difference", "metric")
    rows = []
    for model in models(metrics):
        found = get(metrics, model, "rules")
        if found is None:  # a language model's export
            continue
        held = found["with_rules"]
        gap, own = held["difference"], get(found, "quality", metric)
        cells = [_cell_of(metric, own) if own else quality_cell(metrics, model, metric)]
        cells.append(_cell_of(metric, held["quality"][metric]))
        ends = [difference(metric, gap[end]) for end in ("low", "high")]
        cells.append(Cell(difference(metric, gap["value"]), " to ".join(ends)))
        for kind in kinds:
            sides = (get(found, "violations", kind), get(held, "violations", kind))
            cells += [_cell_of("accuracy", side) if side else Cell() for side in sides]
        rows.append((model, cells))
    shown = [model for model in ("teacher", "student") if metrics.get(model)]
    broken = {model: get(metrics, model, "rules", "violations", "by_rule") for model in shown}
    labels = get(metrics, "rules", "labels", "by_rule")
    each = [
        {
            "name": rule["name"],
            "weight": "hard" if rule["weight"] == "hard" else f"{rule['weight']:g}",
            "applies": f"{rule['applies']:,}",
            "labels": percent(labels[rule["name"]]),
            "models": [percent(broken[model][rule["name"]]) for model in shown],
        }
        for rule in metrics["rules"]["rules"]
    ]
    told = {"given": "labels", "note": LABEL_RULES_NOTE}
    if metrics["task"]["kind"] == "causal-lm":
        told = {"given": "references", "note": _answer_rules_note(metrics)}
    return {"metric": title(metric), "kinds": kinds, "rows": rows, "each": each, "models": shown, **told}


def _answer_rules_note(metrics: Metrics) -> str:
    """What the figures of rules about answers are of."""
    about = metrics["rules"]
    student = metrics["student"]["rules"]
    cut = [percent(side["cut"]) for side in (student, student["with_rules"])]
    return (
        f"Shares of the greedy answers to {about['prompts']} test prompts, of up to {about['max_new_tokens']} tokens; "
        f"of the student's {cut[0]} were cut there, and {cut[1]} of those that it wrote under the rules, as it alone "
        "did. Accuracy is that of the references' tokens, of each model as it is and projected onto the rules. A "
        "rule that the references break is wrong there."
    )


def _cell_of(unit: str, measured: dict[str, float]) -> Cell:
    return Cell(score(unit, measured["value"]), bounds(unit, measured["low"], measured["high"]))


def facts(metrics: Metrics, recipe: Recipe) -> list[tuple[str, list[str]]]:
    """How the run was made: (what, lines)."""
    teachers = [teacher.model for teacher in recipe.teacher.models] if recipe.teacher else []
    times_ = [
        f"{name_of(metrics, model)}, {line}"
        for model in ("student", "baseline")
        for line in _times(metrics, model, recipe)
    ]
    stored = metrics.get("knowledge")
    knowledge = f"{stored['examples']:,} examples, {stored['bytes'] / 1e6:,.1f} MB" if stored else None
    exports = [
        f"{name_of(metrics, model)}: largest difference from the student's logits {significant(gap)}"
        for model in ("student_onnx", "student_int8")
        if (gap := number(metrics, model, "max_logit_difference")) is not None
    ]
    facts = [
        ("Teacher", teachers),
        ("Taught on plain text by", some(sentences.text_teacher(recipe))),
        ("Starts from", some(sentences.initialisation(metrics))),
        ("Stages", sentences.stages(recipe, metrics)),
        ("Training time", times_),
        ("Data", [sentences.data(metrics)]),
        ("Augmentation", some(sentences.augmentation(recipe))),
        ("Task", [_task(metrics)]),
        ("Rules", some(sentences.short(recipe.rules) if recipe.rules else None)),
        ("Queries", some(sentences.queries(recipe))),
        ("Asked of servers", sentences.asked(metrics)),
        ("Knowledge kept", some(knowledge)),
        ("Exports", exports),
        ("Machine", some(sentences.machine(metrics))),
        ("Seed", [str(recipe.seed)]),
    ]
    return [(what, lines) for what, lines in facts if lines]


def _times(metrics: Metrics, model: str, recipe: Recipe) -> list[str]:
    """How long each stage took, a progressive one over all its layers."""
    total: dict[str, float] = {}
    for phase, seconds in (get(metrics, "training", model, "seconds") or {}).items():
        stage = sentences.stage_of(phase, recipe)
        name = stage.name if stage else phase
        total[name] = total.get(name, 0.0) + seconds
    return [f"{name}: {duration(seconds)}" for name, seconds in total.items()]


def _task(metrics: Metrics) -> str:
    task = metrics["task"]
    texts = sentences.examples_of(metrics)
    labels = task.get("labels") or []
    if task["kind"] == "regression":
        return f"regression on {texts}"
    if task["kind"] == "masked-lm":
        return "masked words of plain text; one word of each test line is hidden"
    if task["kind"] == "causal-lm":
        return "the next token of a text"
    shown = ", ".join(map(str, labels[:12])) + (", ..." if len(labels) > 12 else "")
    return f"{task['kind']} of {texts} into {count(len(labels))} classes: {shown}"
