"""What a run's metrics say in sentences; the model card and the page share them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import Any

from limbeck.recipe.schema import Depth, Recipe, Stage, Student
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
from limbeck.report.table import Metrics, get, main_metric, models, name_of, number, sizes, speed_up, tested


def verdict(metrics: Metrics) -> str:
    """The whole run in one sentence: what was kept, at which size and speed, and what training alone reaches."""
    metric = main_metric(metrics)
    retention = number(metrics, "student", "retention")
    if retention is None or not metrics.get("teacher"):
        reached = score(metric, get(metrics, "student", "quality", metric, "value"))
        who = name_of(metrics, "student").lower()
        sentence = f"The {who}'s {phrase(metric)} is {reached} on {tested(metrics):,} test examples"
    else:
        sentence = f"The student keeps {percent(retention)} of the teacher's {phrase(metric)}"
    gains = []
    size = sizes(metrics)
    if size is not None:
        teacher, student, unit = size
        gains.append(f"{rough_percent(student / teacher)} of its {'size' if unit == 'bytes' else unit}")
    faster = speed_up(metrics, "student")
    if faster:
        gains.append(f"{times(faster)} its speed")
    if gains and retention is not None:
        sentence += f" at {' and '.join(gains)}"
    alone = number(metrics, "baseline", "retention")
    if retention is not None and alone is not None:
        # Not "without the teacher": the baseline may start from the same layers of it.
        sentence += f"; trained on {taught_by_data(metrics)} alone, the same student reaches {percent(alone)}"
    return f"{sentence}."


def taught_by_data(metrics: Metrics) -> str:
    """What the baseline learns from: `the text` of a causal-lm, else `the labels`, `masked words`, or both."""
    if metrics["task"]["kind"] == "causal-lm":
        return "the text"
    phases = (get(metrics, "training", "baseline", "history") or {}).values()
    words, labels = (any(term in log for logs in phases for log in logs) for term in ("masked_lm", "hard_labels"))
    return "masked words and the labels" if words and labels else "masked words" if words else "the labels"


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
    units = {"multi-label": "label decisions", "causal-lm": "test tokens"}.get(kind, "test examples")
    sentence = f"The student predicts what the teacher predicts in {shown} of the {units}"
    kl = number(metrics, "student", "fidelity", "kl")
    return sentence + (f"; the mean KL divergence from the teacher is {kl:.3f}." if kl is not None else ".")


def calibration(metrics: Metrics) -> str | None:
    """The expected calibration errors side by side; None where there is no confidence to judge."""
    errors = {name: number(metrics, name, "calibration", "ece") for name in models(metrics)}
    shown = [f"{name_of(metrics, name)} {error:.3f}" for name, error in errors.items() if error is not None]
    return f"Expected calibration error (0 is best): {'; '.join(shown)}." if shown else None


def rules(metrics: Metrics) -> str | None:
    """What the student breaks of the rules, as it is and held to them, and what that changes; None without rules."""
    found = get(metrics, "student", "rules")
    if found is None:
        return None
    held, answers = found["with_rules"], metrics["task"]["kind"] == "causal-lm"
    where = f"{metrics['rules']['prompts']:,} answers" if answers else "the test examples"
    parts = [
        f"a {kind} rule is broken in {percent(kept['value'])} of {where} ({percent(free['value'])} without)"
        for kind in ("hard", "soft")
        if (kept := held["violations"][kind]) and (free := found["violations"][kind])
    ]
    gap = held["difference"]
    of = " on the tokens of reference answers" if answers else ""
    unit = " points" if gap["metric"] in SHARES else ""
    change = f"its {phrase(gap['metric'])}{of} changes by {difference(gap['metric'], gap['value'])}{unit}"
    return f"Held to the run's `rules.yaml` in use, {'; '.join([*parts, change])}."


def speed_terms(metrics: Metrics) -> str | None:
    """Under which terms the speeds were taken; None if none were."""
    speeds = {name: metrics[name]["speed"] for name in models(metrics) if metrics[name].get("speed")}
    if not speeds:
        return None
    parts, by = ["Latency is the median for one example at a time"], "the teacher's latency over the model's"
    told = next(iter(speeds.values()))
    if "new_tokens" in told:
        parts = [
            f"Tokens per second are medians of {told['new_tokens']} tokens generated after a prompt of "
            f"{told['prompt_tokens']}, one text at a time; memory is the most above the weights"
        ]
        speeds = {name: {**speed, "batch_size": None} for name, speed in speeds.items()}
        by = "the model's new tokens per second over the teacher's"
    for key, words in (("batch_size", "throughput at batch size {}"), ("threads", "{} threads"), ("precision", "{}")):
        values = {name: speed[key] for name, speed in speeds.items() if speed.get(key) is not None}
        if values:
            usual = Counter(values.values()).most_common(1)[0][0]
            others = [f"{name_of(metrics, name)}: {value}" for name, value in values.items() if value != usual]
            said = "1 thread" if (key, usual) == ("threads", 1) else words.format(usual)
            parts.append(said + (f" ({', '.join(others)})" if others else ""))
    note = f"speed-up is {by}" if "teacher" in speeds else ""
    return "; ".join([*parts, note] if note else parts) + "."


def examples_of(metrics: Metrics) -> str:
    """What the examples are, in the plural."""
    inputs = metrics["task"].get("inputs", "text")
    if inputs != "text":
        return {"image": "images", "features": "rows of features"}[inputs]
    return "pairs of texts" if metrics["task"].get("pair") else "single texts"


def machine(metrics: Metrics) -> str:
    """The machine in one line."""
    about = metrics.get("machine") or {}
    parts = [str(about[key]) for key in ("gpu", "cpu") if about.get(key)]
    parts += [f"{about[key]} {key if about[key] > 1 else key[:-1]}" for key in ("cores", "threads") if about.get(key)]
    parts += [str(about["system"])] if about.get("system") else []
    parts += [f"{key} {about[key]}" for key in ("python", "torch") if about.get(key)]
    # What `precision: auto` means here; the models' own precisions stand beside their speeds.
    parts += [f"automatic precision {about['precision']}"] if about.get("precision") else []
    return ", ".join(parts)


def on_hub(name: str) -> bool:
    """Whether a model or data set is named as on the Hub, `owner/name`, and is no folder or file here."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or Path(name).exists():
        return False
    return not Path(name).suffix.lower().startswith((".csv", ".tsv", ".json", ".parquet", ".txt"))


def short(name: str) -> str:
    """A model's or file's name without the folders above it, which are nobody's business once a card is published."""
    return name if on_hub(name) else PureWindowsPath(name).name


def initialisation(metrics: Metrics) -> str | None:
    """What the student was before training; None if it is not recorded."""
    origin = get(metrics, "training", "student", "initialisation") or {}
    source = {
        "teacher": "the teacher",
        "checkpoint": f"the checkpoint {short(str(origin.get('model')))}",
        "model object": "a model in memory",
    }.get(str(origin.get("from")))
    if source is None:
        return _fresh(origin) if origin.get("from") == "random weights" else None
    if "layers" not in origin:
        return source
    layers = [str(layer) for layer in origin["layers"]]
    told = f"{'layers' if len(layers) > 1 else 'layer'} {', '.join(layers)} (counted from 0)"
    whole = f"embeddings and {told}" if origin.get("random") else f"embeddings, head and {told}"
    told = f"the teacher's {whole}" if source == "the teacher" else f"{whole} of {source}"
    made = f", as a {origin['architecture']} model" if origin.get("architecture") else ""
    if origin.get("width"):
        sizes = ", ".join(f"{name} {value}" for name, value in origin["width"].items())
        made = f", cut to {sizes} (units kept: {origin['units']})"
    return told + made + (" with a fresh head" if origin.get("random") else "")


def _fresh(origin: dict[str, Any]) -> str:
    """A model of random weights."""
    shape = dict(origin.get("shape") or {})
    kind = shape.pop("model_type", None)
    base = f"architecture {kind}" if kind else "the teacher's configuration"
    changes = ", ".join(f"{name} {value}" for name, value in shape.items())
    parts = [f"random weights; {base}{' with ' if changes else ''}{changes}"]
    if origin.get("tokenizer"):
        parts.append(f"the tokenizer of {short(str(origin['tokenizer']))}")
    if origin.get("embeddings"):
        parts.append("the teacher's embeddings")
    if origin.get("vectors"):
        parts.append(f"the word vectors {short(str(origin['vectors']))}")
    return "; ".join(parts)


def term_name(name: str) -> str:
    """A term of the loss for reading."""
    return {"loss": "total", "masked_lm": "masked words"}.get(name, name.replace("_", " "))


def objective(stage: Stage, regression: bool) -> str:
    """A stage's loss: `0.9 x soft targets (temperature 2, form kl) + 0.1 x hard labels`."""
    terms = []
    for name in stage.objectives.names:
        settings = getattr(stage.objectives, name).model_dump(exclude_none=True)
        weight = settings.pop("weight")
        if settings.get("form") != "jsd":
            settings.pop("beta", None)
        if settings.get("targets") == "labels":
            settings.pop("temperature")
        if not stage.on_text:
            settings.pop("positions", None)  # of a text there is one answer
            if regression and name == "soft_targets":
                settings = {}  # a number has no distribution to soften: neither setting is read
        inner = ", ".join(_setting(key, value) for key, value in settings.items())
        terms.append(f"{weight:g} x {term_name(name)}" + (f" ({inner})" if inner else ""))
    return " + ".join(terms)


def _setting(key: str, value: Any) -> str:  # noqa: ANN401
    """One setting of a term: `form kl`, `of queries, keys`, `last layer from the teacher's last`."""
    if isinstance(value, dict):
        own = {mine: "last layer" if mine == -1 else f"layer {mine}" for mine in value}
        return ", ".join(
            f"{own[mine]} from the teacher's {'last' if its == -1 else its}" for mine, its in value.items()
        )
    if isinstance(value, list):
        return f"{key} {', '.join(map(str, value))}"
    return f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"


def stage_of(phase: str, recipe: Recipe) -> Stage | None:
    """The stage that a phase of the training is of: a progressive one has a phase for every layer, `NAME-1` and on."""
    exact = (stage for stage in recipe.stages if stage.name == phase)
    turns = (stage for stage in recipe.stages if stage.progressive and re.fullmatch(f"{stage.name}-[0-9]+", phase))
    return next(exact, None) or next(turns, None)


def stages(recipe: Recipe, metrics: Metrics) -> list[str]:
    """Each stage in a line: what it is about, its loss and its settings."""
    lines = []
    for stage in recipe.stages:
        training = recipe.training_of(stage)
        batch = training.batch_size * training.gradient_accumulation
        epochs = f"{'up to ' if training.patience else ''}{training.epochs:g} epoch{'s' * (training.epochs != 1)}"
        settings = [
            f"{epochs} shared by the layers" if stage.progressive else epochs,
            f"learning rate {training.learning_rate:g}",
            f"batch size {batch}",
        ]
        if training.layer_drop:
            settings.append(f"each layer left out with chance {training.layer_drop:g}")
        if not training.dropout:
            settings.append("no dropout")
        told = [*_about(stage, metrics), objective(stage, metrics["task"]["kind"] == "regression"), ", ".join(settings)]
        lines.append(f"{stage.name}: {'; '.join(told)}")
    return lines


def _about(stage: Stage, metrics: Metrics) -> list[str]:
    """What is trained and on what, where that is not the whole student on the only examples."""
    told = []
    if stage.task is not None and stage.on_text:
        text = "on plain text" + (", packed" if stage.task.packed else "")
        if {"masked_lm", "soft_targets"} & set(stage.objectives.names):
            text += f", {percent(stage.task.mask, 0)} masked" + (" by whole words" if stage.task.whole_words else "")
        told.append(text)
    elif metrics["data"].get("transfer") != metrics["data"].get("train"):
        transfer = stage.on == "transfer" if stage.on is not None else stage.objectives.needs_teacher
        told.append("on the transfer set" if transfer else "on the labelled examples")
    if stage.keep is not None:
        told.append(f"cut to {_depth(stage.keep, stage.pattern, 'its')}")
    if stage.progressive:
        told.append("layer after layer")
    return told


def _depth(keep: Depth, pattern: str, whose: str) -> str:
    """How many layers, or which: `half of its layers (alternate)`."""
    if isinstance(keep, list):
        return f"{whose} layers {', '.join(map(str, keep))} (counted from 0)"
    return f"all {whose} layers" if keep == "all" else f"{keep} of {whose} layers ({pattern})"


def text_teacher(recipe: Recipe) -> str | None:
    """Who teaches the stages on plain text, where it is not the teacher as it stands."""
    taught = [stage.name for stage in recipe.stages if stage.on_text and stage.objectives.needs_teacher]
    if recipe.teacher is None or not taught:
        return None
    alone = recipe.task.kind == "masked-lm"
    general = None if alone else recipe.teacher.general
    who = short(general.model) if general else "the teacher" if alone else "the teacher's own body"
    if recipe.assistant is not None:
        start = _start(recipe.assistant, recipe.task.kind)
        who = f"an assistant, itself distilled from {who} first; it started from {start}"
    elif alone:
        return None
    return f"{who} ({'stages' if len(taught) > 1 else 'stage'} {', '.join(taught)})"


def _start(made: Student, task: str) -> str:
    """What a section makes a model of, in a few words."""
    if made.shape is not None:
        return _fresh({"shape": made.shape, "tokenizer": made.tokenizer, "embeddings": made.embeddings})
    source = "the teacher" if made.model is None else f"the checkpoint {short(made.model)}"
    depth = made.layers if made.layers is not None else "half" if made.model is None else "all"
    return _depth(depth, made.pattern_of(task), f"{source}'s")


def augmentation(recipe: Recipe) -> str | None:
    """How altered copies of the training texts were made."""
    made = recipe.data.augmentation
    if made is None:
        return None
    if made.model is None:
        ways = {"masked": made.mask, "swapped for one of its part of speech": made.same_tag}
        words = " or ".join(f"{way} with chance {chance:g}" for way, chance in ways.items() if chance)
        cut = f"cut to a few words with chance {made.ngram:g}" if made.ngram else ""
        told = " and ".join(part for part in (f"each word {words}" if words else "", cut) if part)
        return f"up to {made.copies} copies of each training text, {told}"
    vectors = f"the word vectors {short(made.vectors)}" if made.vectors else "the teacher's input embeddings"
    return (
        f"up to {made.copies} copies of each training text, each word replaced with chance {made.probability:g} by one "
        f"of the {made.candidates} likeliest of {short(made.model)}, or nearest by {vectors}"
    )


def queries(recipe: Recipe) -> str | None:
    """How it was chosen what to ask about."""
    made = recipe.teacher.queries if recipe.teacher is not None else None
    if made is None:
        return None
    how = {
        "random": "drawn at random",
        "uncertainty": f"those that the student was least sure of, by {made.uncertainty}",
        "diversity": f"those that lay far apart to the student, by {made.diversity}",
    }[made.choose]
    rounds = f"in {made.rounds} rounds" if made.rounds > 1 else "at once"
    return f"{made.budget:,} examples of the transfer set {rounds}, {how}"


def asked(metrics: Metrics) -> list[str]:
    """What teachers behind an API were asked, and what that took."""
    return [
        f"{short(name)}: {found['told']} for {found['examples']:,} examples, {found['left_out']:,} left out"
        for name, found in (metrics.get("asked") or {}).items()
    ]


def data(metrics: Metrics) -> str:
    """The data's sizes in one sentence."""
    sizes = metrics["data"]
    if metrics["task"]["kind"] == "masked-lm":
        parts = [f"{sizes[name]:,} {name}" for name in ("train", "validation") if name in sizes]
        return f"Lines of plain text: {', '.join(parts)}; {sizes['test']:,} test lines with one word hidden."
    causal = metrics["task"]["kind"] == "causal-lm"  # its transfer set is its training set
    names = ["train", *([] if causal else ["transfer"]), "validation", "test"]
    parts = [f"{sizes[name]:,} {name}" for name in names if name in sizes]
    text = f"; {sizes['corpus']:,} lines of plain text" if sizes.get("corpus") else ""
    return f"Examples: {', '.join(parts)}{text}."


def metric_note(metrics: Metrics) -> str:
    """What the metric and its intervals are."""
    what = f"{title(main_metric(metrics))} on the test set."
    if metrics["task"]["kind"] == "masked-lm":
        what = "Accuracy is the share of hidden words filled in right, one word in each test line."
    if metrics["task"]["kind"] == "causal-lm":
        what = "Accuracy is the share of test tokens that were the likeliest to the model; lower perplexity is better."
    return f"{what} Intervals are 95 % bootstrap intervals."
