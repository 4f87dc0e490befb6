"""The library: functions that take names or objects, and hand a checked recipe to `run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from limbeck import data as data_room
from limbeck import hardware
from limbeck import recipe as recipe_room
from limbeck import run as run_room
from limbeck.checkpoints import check_tokenizer, label_names, open_causal
from limbeck.errors import InputError
from limbeck.evaluation import describe_task, evaluate_models
from limbeck.evaluation.harness import measure, plan_benchmarks
from limbeck.examples import some_texts
from limbeck.exporting import export_model
from limbeck.exporting.onnx import FILES
from limbeck.files import full_disk_explained
from limbeck.generation import Answers
from limbeck.given import Examples, Model, checkpoint_of, in_memory, name_data, resolve
from limbeck.knowledge import Store, WordStore
from limbeck.opening import check_fit, check_same_labels
from limbeck.recipe import Recipe
from limbeck.recipe.loading import explain
from limbeck.recipe.schema import Depth, Evaluation
from limbeck.recipe.sections import nearest
from limbeck.rules import LabelRules, load_rules, violations
from limbeck.rules.text import rates
from limbeck.run import Run, run
from limbeck.signals import Asked
from limbeck.sizing import Plan, Target, plan_students
from limbeck.students import PATTERNS, cut_model
from limbeck.teachers import HuggingFaceModel
from limbeck.training.checkpointing import save_model


def distill(
    recipe: str | Path | Mapping[str, Any] | Recipe = "hinton",
    *,
    teacher: Model | Sequence[Model] | Mapping[str, Any] | None = None,
    data: Examples | None = None,
    student: Model | Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    **settings: Any,  # noqa: ANN401
) -> Run:
    """Distil a teacher into a student, measure what was kept, and write the report.

    Run again with the same arguments it goes on where it stopped, and reuses what is finished.

    Args:
        recipe: a packaged method's name, a YAML file, a mapping or a recipe.
        teacher: a folder, a hub name or `(model, tokenizer)`; several of these make an ensemble.
        data: a file, folder, hub name, `datasets` object, or the recipe's `data` section.
        student: the recipe's `student` section such as `{"layers": 3}`; or another checkpoint like `teacher`.
        output: the run's folder.
        settings: any other entries of the recipe, such as `training={"epochs": 1}` or `**{"training.epochs": 1}`.

    Raises:
        InputError: something given cannot work; nothing costly was done.
    """
    given = {"teacher": teacher, "data": data, "student": student, "output": output, **settings}
    checked, objects = resolve(recipe, given)
    if checked.teacher is None:
        raise InputError("nothing to distil from: give teacher=MODEL, or use limbeck train to learn from labels alone")
    return run(checked, objects)


def train(
    model: Model | None = None,
    *,
    data: Examples | None = None,
    output: str | Path | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "fine-tune",
    **settings: Any,  # noqa: ANN401
) -> Run:
    """Fine-tune a model on labels: how a teacher is made. The result is `OUTPUT/model`; arguments as of `distill`."""
    checked, objects = resolve(recipe, {"student": model, "data": data, "output": output, **settings})
    if checked.teacher is not None:
        raise InputError("limbeck train learns from labels alone; use limbeck distill with a teacher")
    return run(checked, objects)


def label(
    recipe: str | Path | Mapping[str, Any] | Recipe = "hinton",
    *,
    teacher: Model | Sequence[Model] | Mapping[str, Any] | None = None,
    data: Examples | None = None,
    output: str | Path | None = None,
    **settings: Any,  # noqa: ANN401
) -> Store | WordStore:
    """Ask the teacher once over the transfer set that `distill` with the same arguments would use, and keep it.

    Data without labels needs no more than text; the teacher is then asked about all of it.

    Returns:
        The store, in `KNOWLEDGE/KEY` (by default under `OUTPUT/knowledge`); `datasets.load_from_disk` opens it too.
    """
    checked, objects = resolve(recipe, {"teacher": teacher, "data": data, "output": output, **settings})
    return run_room.label(checked, objects)


def plan(
    *,
    teacher: Model | Mapping[str, Any],
    data: Examples,
    speedup: float | None = None,
    latency: float | None = None,
    megabytes: float | None = None,
    **settings: Any,  # noqa: ANN401
) -> Plan:
    """Before any training: students of a teacher that could be made, what they would be, and what that would cost.

    Each is built, timed and trained for a few batches on the data; that takes seconds a student.

    Args:
        teacher: as of `distill`; one that runs here.
        data: as of `distill`.
        speedup: how many times faster than the teacher the student is to be, one example at a time.
        latency: milliseconds that an answer may take here, one example at a time.
        megabytes: that its weights may take in float32.
        settings: other entries of the recipe, such as `**{"training.epochs": 5, "data.corpus": TEXT}`.

    Returns:
        The plan; its `best` is the largest student that meets the target.

    Raises:
        InputError: a target that is no positive number; as `distill`.
    """
    for name, value in (("speedup", speedup), ("latency", latency), ("megabytes", megabytes)):
        if value is not None and not value > 0:
            raise InputError(f"{name}={value} is no target; give a number above 0")
    return plan_students({"teacher": teacher, "data": data, **settings}, Target(speedup, latency, megabytes))


def generate(
    recipe: str | Path | Mapping[str, Any] | Recipe = "seqkd",
    *,
    teacher: Model | Mapping[str, Any] | None = None,
    data: Examples | None = None,
    output: str | Path | None = None,
    **settings: Any,  # noqa: ANN401
) -> Answers:
    """Have a teacher answer prompts once, and keep the answers for any later run.

    Args:
        recipe: one with `data.generation`.
        teacher: a folder, a hub name or `(model, tokenizer)`; `{"server": URL, "model": NAME, "key": VARIABLE}`.
        data: chat examples, of which the prompts are read; other arguments as of `distill`.
        output: the run's folder; the answers go to its knowledge.
        settings: any other entries of the recipe, such as `**{"data.generation.max_new_tokens": 128}`.

    Returns:
        The answers, in `KNOWLEDGE/answers/KEY`; `datasets.load_from_disk` opens them too.
    """
    given = {"teacher": teacher, "data": data, "output": output, "student": "unused", **settings}
    checked, objects = resolve(recipe, given)
    return run_room.generate(checked, objects)


def evaluate(
    model: Model,
    data: Examples,
    *,
    teacher: Model | None = None,
    task: str = "classification",
    text: str | list[str] | None = None,
    label: str | list[str] | None = None,
    features: list[str] | None = None,
    max_length: int | None = None,
    seed: int = 0,
    rules: str | Path | None = None,
    **settings: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Measure a classifier on labelled examples, and against a teacher where one is given.

    Args:
        model: a folder, a hub name or `(model, tokenizer)`.
        data: labelled examples; the test split where the source has several.
        teacher: another classifier of the same labels.
        task: `classification`, `multi-label` or `regression`.
        text: the text column or columns; inferred when not given.
        label: the label column or columns; inferred when not given.
        features: the columns of a table of numbers and names; inferred where all are numbers.
        max_length: tokens kept of an example.
        seed: fixes the resamples.
        rules: a rules file; each model is measured without it and held to it.
        settings: the recipe's `evaluation` section: `metric`, `resamples`, `speed`.

    Returns:
        What `metrics.json` says of each model, under `student` and `teacher`; see docs/metrics.md.

    Raises:
        InputError: a setting that cannot be, data or a model that does not open, or ones that do not fit each other.
    """
    try:
        evaluation = Evaluation(**settings)
    except ValidationError as error:
        raise InputError(explain(error)) from None
    objects: dict[str, Any] = {}
    source = {"train": name_data(data, objects), "text": text, "label": label, "features": features}
    checked = recipe_room.load(
        "fine-tune", {"student": "unused", "output": "unused", "task.kind": task, "data": source}
    )
    table = data_room.read(checked.data.train, "test", objects)
    columns = data_room.find_columns(table, checked.data)
    opened = {"student": checkpoint_of(model)} | ({"teacher": checkpoint_of(teacher)} if teacher else {})
    names = label_names(opened["student"].model.config)
    resolved = data_room.resolve_task(table, columns, checked.task.kind, None, names)
    check_fit(list(opened.values()), None, resolved)
    if teacher and resolved.kind != "regression":  # the one output's name says nothing
        check_same_labels(opened["teacher"], opened["student"])
    test = data_room.labelled_table(table, columns, resolved, "test")
    ruled = LabelRules(load_rules(rules), resolved) if rules is not None else None
    models: dict[str, Asked] = {}
    for name in ("teacher", "student"):
        if name in opened:
            check_tokenizer(opened[name], some_texts(test))
            models[name] = HuggingFaceModel(opened[name], resolved, max_length)
    return {
        "task": describe_task(resolved, evaluation),
        "data": {"test": len(test)},
        **evaluate_models(models, test, resolved, evaluation, seed, ruled),
    }


def benchmark(
    model: Model,
    tasks: Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    shots: int = 0,
    seed: int = 0,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Measure a causal language model on published benchmarks, through lm-eval (the `harness` extra).

    Args:
        model: a folder, a run's folder, a hub name, a .gguf file, or `(model, tokenizer)`, which is measured on the
            device and in the precision that it is in.
        tasks: benchmarks such as `["lambada", "hellaswag"]`; all that `data` has files of when not given.
        data: a folder of files (docs/benchmarks.md); the hub's data sets when not given.
        limit: examples of each benchmark, drawn by `seed`; all when not given.
        shots: examples with their answers in the prompt, drawn by `seed`, never from those that are measured.
        seed: fixes both draws.
        batch_size: examples computed at a time.

    Returns:
        `model`, `parameters`, `versions`, `settings` and `tasks`; see `limbeck.evaluation.harness.measure`.

    Raises:
        InputError: lm-eval is not installed, an unknown benchmark, a missing file, wrong columns, no such model.
    """
    plan = plan_benchmarks(tasks, None if data is None else Path(data), limit, shots, seed)
    opened = in_memory(model) or open_causal(str(model))
    opened.model.to(hardware.device())
    result = measure(plan, opened.model, opened.tokenizer, batch_size)
    return {"model": opened.name, "parameters": opened.model.num_parameters(), **result}


def check_rules(
    rules: str | Path,
    data: Examples,
    *,
    prompt: str = "prompt",
    output: str = "output",
    task: str = "classification",
    text: str | list[str] | None = None,
    label: str | list[str] | None = None,
) -> dict[str, Any]:
    """Count how often a table breaks rules: generated text, or for rules about labels the labels themselves.

    Labels that break a rule say where it is wrong, before anything learns from it.

    Args:
        rules: a rules file.
        data: a table of prompts and outputs, or of texts and labels; the training split where it has several.
        prompt: the column of prompts.
        output: the column of outputs.
        task: of rules about labels, `classification` or `multi-label`.
        text: the text column or columns of a table with labels; inferred when not given.
        label: the label column or columns; inferred when not given.

    Returns:
        What `limbeck.rules.violations` says: `hard`, `soft` and `by_rule`.

    Raises:
        InputError: a rule, a column or a label that does not fit.
    """
    book = load_rules(rules)
    objects: dict[str, Any] = {}
    source = {"train": name_data(data, objects), "text": text, "label": label}
    checked = recipe_room.load(
        "fine-tune", {"student": "unused", "output": "unused", "task.kind": task, "data": source}
    )
    table = data_room.read(checked.data.train, "train", objects)
    if book.about_text:
        for name in (prompt, output):
            if name not in table.column_names:
                raise InputError(
                    f"no column '{name}' in the data; give prompt=COLUMN and output=COLUMN of those "
                    f"there: {', '.join(table.column_names)}"
                )
        return violations(book, *([str(value or "") for value in table[name]] for name in (prompt, output)))
    columns = data_room.find_columns(table, checked.data)
    resolved = data_room.resolve_task(table, columns, checked.task.kind, None, None)
    ready = LabelRules(book, resolved)
    examples = data_room.labelled_table(table, columns, resolved, "train")
    return rates(ready.rules, ready.applies(examples), ready.broken(np.array(examples["label"][:]), examples))


def export(
    model: Model, output: str | Path, formats: Sequence[str] = ("onnx", "int8"), pair: bool = False
) -> list[Path]:
    """Write a classifier's ONNX forms into a folder; files of these forms that are there are replaced.

    Args:
        model: a folder, a hub name or `(model, tokenizer)`.
        output: the folder.
        formats: `onnx` and `int8`, or one of them.
        pair: the model reads two texts.

    Returns:
        The files written.

    Raises:
        InputError: no or another format, a file where the folder should be, a model that does not open, or the `onnx`
            extra is missing.
    """
    wanted: list[Any] = list(formats) if isinstance(formats, (list, tuple)) else [formats]
    if not wanted:
        raise InputError("formats is empty; give formats=[onnx, int8] or one of them")
    for each in wanted:
        if each not in list(FILES):
            raise InputError(f"formats names '{each}', which is no form of ONNX; {nearest(str(each), list(FILES))}")
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder")
    checkpoint = checkpoint_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    with full_disk_explained():
        return list(export_model(checkpoint, folder, wanted, pair).values())


def cut(model: Model, output: str | Path, layers: Depth, pattern: str = "alternate") -> Path:
    """Write a classifier with only some of its layers; all other weights and the tokenizer are the model's.

    A model that was trained with `training.layer_drop` keeps most of its quality (LayerDrop, Fan et al. 2020).

    Args:
        model: a folder, a hub name or `(model, tokenizer)`; not changed.
        output: the folder to write; it must not hold files yet.
        layers: how many layers to keep (a number, `half`, `all`), or which, counted from 0.
        pattern: which layers a number keeps: `alternate`, `first`, `last` or `spaced`.

    Returns:
        The folder written.

    Raises:
        InputError: layers that are not there, an architecture that cannot be cut, a folder in use.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is in use; give a folder that does not exist yet")
    if pattern not in PATTERNS:
        raise InputError(f"no pattern '{pattern}'; {nearest(str(pattern), list(PATTERNS))}")
    if layers not in ("half", "all") and not all(
        type(each) is int for each in (layers if isinstance(layers, list) else [layers])
    ):
        raise InputError(f"layers is {layers!r}; give a number such as 3, half, or a list such as [0,2,4]")
    made = cut_model(checkpoint_of(model), layers, pattern)
    with full_disk_explained():
        save_model(made, folder)
    return folder
