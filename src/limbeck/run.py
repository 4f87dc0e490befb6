"""The way through the house: recipe, data, teacher, knowledge, student, training, evaluation, export, report."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from limbeck import data, hardware
from limbeck.checkpoints import Checkpoint, check_tokenizer, label_names, open_classifier, weights_fingerprint
from limbeck.data import Splits
from limbeck.errors import InputError
from limbeck.evaluation import describe_task, evaluate_models
from limbeck.exporting import OnnxModel, export_model
from limbeck.exporting.onnx import require_onnx
from limbeck.files import full_disk_explained, read_json, write_json
from limbeck.folder import RunFolder, fingerprint, table_fingerprint
from limbeck.knowledge import Store, label_texts
from limbeck.objectives import build_terms
from limbeck.progress import say
from limbeck.recipe import Recipe, dump
from limbeck.recipe.schema import HardLabels, Objectives, Stage
from limbeck.report import write_card, write_report
from limbeck.signals import Asked
from limbeck.students import build_student
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel, open_teacher
from limbeck.training import Trained, train_stages

METRICS_VERSION = 1


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: everything that the run wrote.
        metrics: the content of `metrics.json`; empty on processes other than the first.
        model: the student (of `train`: the model).
        tokenizer: its tokenizer.
    """

    folder: Path
    metrics: dict[str, Any]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def report(self) -> Path:
        """The report's path."""
        return RunFolder(self.folder).report


@dataclass
class Prepared:
    """What a run works on, checked before anything costly: the task, examples, teacher models and untrained student."""

    task: Task
    splits: Splits
    teachers: list[Checkpoint]
    student: Checkpoint


def run(recipe: Recipe, objects: Mapping[str, Any] | None = None) -> Run:
    """Do what a recipe says, or go on with it where an earlier run of it stopped.

    Args:
        recipe: the recipe. Without a teacher it trains on the labels alone.
        objects: models and datasets in memory, by the names that stand for them in the recipe.

    Raises:
        InputError: the recipe, the data or a model cannot work; nothing costly was done.
        LimbeckError: it failed part-way; the same call goes on.
    """
    with full_disk_explained():
        folder = RunFolder(Path(recipe.output))
        if recipe.export.formats:
            require_onnx()
        ready = prepare(recipe, objects or {}, folder)
        knowledge = ask_teacher(recipe, ready.teachers, ready.task, ready.splits.transfer)
        trained = train(recipe, ready, knowledge)
        name, main = next(iter(trained.items()))
        if not hardware.processes().is_main_process:
            return Run(folder.path, {}, main.checkpoint.model, main.checkpoint.tokenizer)
        exports = export_model(main.checkpoint, folder.path / name, recipe.export.formats, ready.task.pair)
        metrics = measure(recipe, ready, knowledge, trained, exports, folder)
        write_card(metrics, dump(recipe), folder.path / name)
        write_report(metrics, dump(recipe), folder.report)
        return Run(folder.path, metrics, main.checkpoint.model, main.checkpoint.tokenizer)


def prepare(recipe: Recipe, objects: Mapping[str, Any], folder: RunFolder) -> Prepared:
    """Read, open and check everything; claim the run's folder. Nothing here takes longer than loading."""
    datasets.disable_progress_bars()  # theirs flicker for every small table; ours show the long steps
    transformers_logging.disable_progress_bar()
    folder.check(recipe)
    teachers = open_teachers(recipe, objects)
    raw = data.read_all(recipe.data, objects)
    columns = data.find_columns(raw.train, recipe.data)
    if columns.inferred:
        say(f"data: text is column {' and '.join(columns.text)}, label is column {', '.join(columns.label)}")
    known = label_names(teachers[0].model.config) if teachers else None
    task = data.resolve_task(raw.train, columns, recipe.task.kind, recipe.task.labels, known)
    task.main_metric(recipe.evaluation.metric)
    splits = data.split(raw, columns, task, recipe.seed)
    for notice in splits.notices:
        say(f"data: {notice}")
    given = _open(recipe.student.model, objects) if recipe.student.model else None
    student = build_student(recipe.student, given, teachers[0] if teachers else None, task, recipe.seed)
    for checkpoint in [*teachers, student]:
        check_tokenizer(checkpoint, splits.train["text"][:200])
    _check_fit(teachers, student, task)
    student.model.config.update(task.config)
    content = {
        "data": fingerprint([*map(table_fingerprint, (splits.transfer, splits.validation, splits.test))]),
        "teacher": fingerprint([weights_fingerprint(each.model) for each in teachers]),
        "student's start": weights_fingerprint(student.model),
    }
    folder.claim(recipe, content)
    return Prepared(task, splits, teachers, student)


def open_teachers(recipe: Recipe, objects: Mapping[str, Any]) -> list[Checkpoint]:
    """Every model the recipe names as teacher, with its tokenizer; see `open_classifier` for what is refused."""
    return [
        _open(each.model, objects) or open_classifier(each.model, each.revision, each.trust_remote_code)
        for each in (recipe.teacher.models if recipe.teacher else [])
    ]


def ask_teacher(recipe: Recipe, teachers: list[Checkpoint], task: Task, texts: Dataset) -> Store | None:
    """The teacher's knowledge about the transfer set, asked for once."""
    if recipe.teacher is None:
        return None
    teacher = open_teacher(teachers, recipe.teacher, task, recipe.task.max_length)
    root = Path(recipe.knowledge or Path(recipe.output) / "knowledge")
    store = label_texts(teacher, texts, task, root, recipe.teacher.features)
    for each in teachers:
        each.model.cpu()  # the accelerator's memory is the student's now
    return store


def label(recipe: Recipe, objects: Mapping[str, Any] | None = None) -> Store:
    """Ask the teacher about the transfer set that `run` would use; where there are no labels, about every text.

    Raises:
        InputError: as `run`.
    """
    objects = objects or {}
    if recipe.teacher is None:
        raise InputError("no teacher to ask; give teacher=MODEL")
    with full_disk_explained():
        table = data.read(recipe.data.train, "train", objects)
        if recipe.data.label or data.label_column(table):
            ready = prepare(recipe, objects, RunFolder(Path(recipe.output)))
            store = ask_teacher(recipe, ready.teachers, ready.task, ready.splits.transfer)
        else:
            say("data: no label column; the teacher is asked about every text")
            columns = data.find_columns(table, recipe.data, labelled=False)
            teachers = open_teachers(recipe, objects)
            task = Task(recipe.task.kind, label_names(teachers[0].model.config), pair=len(columns.text) == 2)
            texts = data.labelled_table(table, columns, task, "train")
            check_tokenizer(teachers[0], texts["text"][:200])
            store = ask_teacher(recipe, teachers, task, texts)
        assert store is not None
        return store


def train(recipe: Recipe, ready: Prepared, knowledge: Store | None) -> dict[str, Trained]:
    """The student, then the baseline: the same start and steps on the hard labels alone."""
    start = copy.deepcopy(ready.student) if recipe.baseline else ready.student
    name = "student" if recipe.teacher else "model"
    args = (recipe, ready.task, ready.splits)
    if recipe.teacher and ready.task.kind == "regression":
        say("regression: soft_targets are the squared error to the teacher's value; their temperature has no effect")
    trained = {name: train_stages(name, ready.student, recipe.stages, *args, knowledge)}
    if recipe.baseline:
        stages = [_without_teacher(recipe, stage, ready) for stage in recipe.stages]
        trained["baseline"] = train_stages("baseline", start, stages, *args, None)
    return trained


def _without_teacher(recipe: Recipe, stage: Stage, ready: Prepared) -> Stage:
    """The stage on hard labels alone, as many steps long: it has no use for unlabelled text, so more epochs of less."""
    training = stage.training
    if any(term.needs_teacher for term in build_terms(stage.objectives, ready.task)):
        epochs = recipe.training_of(stage).epochs * len(ready.splits.transfer) / len(ready.splits.train)
        training = training | {"epochs": epochs}
    return Stage(name=stage.name, objectives=Objectives(hard_labels=HardLabels()), training=training)


def measure(
    recipe: Recipe,
    ready: Prepared,
    knowledge: Store | None,
    trained: dict[str, Trained],
    exports: dict[str, Path],
    folder: RunFolder,
) -> dict[str, Any]:
    """The figures of `metrics.json`; those that are there for this very recipe are kept."""
    recipe_hash = fingerprint(dump(recipe))
    if folder.metrics.is_file():
        metrics: dict[str, Any] = read_json(folder.metrics)
        if metrics["recipe"] == recipe_hash:
            say(f"evaluation: reused {folder.metrics}")
            return metrics
    say("evaluation: measuring quality, fidelity, calibration and speed")
    task, length = ready.task, recipe.task.max_length
    models: dict[str, Asked] = {}
    if recipe.teacher is not None:
        models["teacher"] = open_teacher(ready.teachers, recipe.teacher, task, length, "float32")
    first = next(iter(trained.values()))
    models["student"] = HuggingFaceModel(first.checkpoint, task, length)
    if "baseline" in trained:
        models["baseline"] = HuggingFaceModel(trained["baseline"].checkpoint, task, length)
    for name, path in exports.items():
        models[f"student_{name}"] = OnnxModel(path, first.checkpoint, task, length)
    metrics = {
        "version": METRICS_VERSION,
        "recipe": recipe_hash,
        "method": recipe.about.title if recipe.about else None,
        "task": describe_task(task, recipe.evaluation),
        "data": {name: len(getattr(ready.splits, name)) for name in ("train", "transfer", "validation", "test")}
        | {"notices": ready.splits.notices},
        "machine": hardware.describe(),
        **evaluate_models(models, ready.splits.test, task, recipe.evaluation, recipe.seed),
        "training": {
            "student" if each is first else name: {
                "history": each.history,
                "seconds": each.seconds,
                "initialisation": each.checkpoint.model.config.limbeck["initialisation"],
            }
            for name, each in trained.items()
        },
    }
    if knowledge is not None:
        metrics["knowledge"] = {"examples": len(knowledge), "bytes": knowledge.size}
    write_json(folder.metrics, metrics)
    return metrics


def _open(name: str, objects: Mapping[str, Any]) -> Checkpoint | None:
    if name.startswith("memory:") and name not in objects:
        raise InputError(f"this recipe was run with a model in memory ({name}); pass the model object again")
    return objects.get(name)


def _check_fit(teachers: list[Checkpoint], student: Checkpoint, task: Task) -> None:
    for teacher in teachers:
        config = teacher.model.config
        if config.problem_type not in (None, task.config["problem_type"]):
            raise InputError(
                f"teacher '{teacher.name}' was trained for {config.problem_type}, the task is {task.kind}; set task=..."
            )
    if teachers:
        ours = sum(p.numel() for p in student.model.parameters())
        theirs = sum(p.numel() for teacher in teachers for p in teacher.model.parameters())
        if ours > theirs:
            raise InputError(
                f"the student has {ours:,} parameters, more than the teacher's {theirs:,}; "
                "give fewer student.layers or a smaller student=MODEL"
            )
