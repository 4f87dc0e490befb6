"""The way through the house: recipe, data, teacher, knowledge, student, training, evaluation, export, report."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel

from limbeck import data, examples, hardware, opening
from limbeck.asking import as_taught, ask
from limbeck.checkpoints import (
    Checkpoint,
    check_tokenizer,
    open_causal,
)
from limbeck.errors import InputError
from limbeck.evaluation import describe_task, describe_tree, evaluate_language, evaluate_models
from limbeck.exporting import GGUF_FILES, OnnxModel, export_gguf, export_model, require_gguf
from limbeck.exporting.onnx import require_onnx
from limbeck.files import full_disk_explained, read_json, write_json
from limbeck.folder import RunFolder, fingerprint
from limbeck.generation import Answers, make_answers
from limbeck.knowledge import Joined, Store, WordStore, label_texts
from limbeck.preparing import Prepared, answer_prompts, enlarge, knowledge_root, prepare, work_of
from limbeck.progress import say
from limbeck.recipe import Recipe, dump
from limbeck.recipe.schema import Stage
from limbeck.recipe.terms import HardLabels, MaskedLM, NextToken, Objectives, PathCrossEntropy
from limbeck.report import write_card, write_report
from limbeck.signals import Asked
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel, Ruled, ask_servers, open_teacher
from limbeck.training import Teaching, Trained, train_stages
from limbeck.training.words import ask_for_words, encode_language, sample

METRICS_VERSION = 1


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: everything that the run wrote.
        metrics: the content of `metrics.json`; empty on processes other than the first.
        model: the student (of `train`: the model).
        tokenizer: its tokenizer; of a student of images or features its processor.
    """

    folder: Path
    metrics: dict[str, Any]
    model: PreTrainedModel
    tokenizer: Any

    @property
    def report(self) -> Path:
        """The report's path."""
        return RunFolder(self.folder).report


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
            (require_gguf if recipe.task.kind == "causal-lm" else require_onnx)()
        ready = prepare(recipe, objects or {}, folder)
        enlarge(recipe, ready)
        answer_prompts(recipe, ready, objects or {})
        knowledge = ask_teacher(recipe, ready) if ready.plan.stored else None
        trained = train(as_taught(recipe, ready), ready, knowledge)
        name, main = next(iter(trained.items()))
        if not hardware.processes().is_main_process:
            return Run(folder.path, {}, main.checkpoint.model, main.checkpoint.processor)
        exports = _export(recipe, main.checkpoint, folder.path / name, ready.task)
        metrics = measure(recipe, ready, knowledge, trained, exports, folder)
        write_card(metrics, dump(recipe), folder.path / name)
        write_report(metrics, dump(recipe), folder.report)
        return Run(folder.path, metrics, main.checkpoint.model, main.checkpoint.processor)


def _export(recipe: Recipe, student: Checkpoint, folder: Path, task: Task) -> dict[str, Path]:
    """The student in the forms that the recipe asks for, by name."""
    if task.kind != "causal-lm":
        return export_model(student, folder, recipe.export.formats, task.pair, keep=True)
    files = {name: GGUF_FILES[name] for name in recipe.export.formats}
    return {name: export_gguf(student, folder / file, kind) for name, (file, kind) in files.items()}


def ask_teacher(recipe: Recipe, ready: Prepared) -> Store | Joined | WordStore:
    """The teacher's knowledge about the transfer set, asked for once; of `teacher.queries` about what is chosen of it.

    Examples that a server has no usable answer to leave the transfer set.
    """
    assert recipe.teacher is not None
    if ready.task.kind == "causal-lm":
        root, rules = knowledge_root(recipe), ready.answer_rules
        words = ask_for_words(recipe, ready.splits, ready.teachers[0], ready.student, root, rules, ready.work)
        ready.teachers[0].model.cpu()
        return words
    root, length = knowledge_root(recipe), recipe.task.max_length
    validation = ready.splits.validation
    teacher: Asked = open_teacher(ready.teachers, recipe.teacher, ready.task, length, root=root, validation=validation)
    if ready.label_rules is not None:
        teacher = Ruled(teacher, ready.label_rules)
    features = [*recipe.teacher.features, *(n for n in ready.plan.features if n not in recipe.teacher.features)]
    store = ask(recipe, ready, teacher, features, root)
    for each in ready.teachers:
        each.model.cpu()  # the accelerator's memory is the student's now
    return store


def label(recipe: Recipe, objects: Mapping[str, Any] | None = None) -> Store | WordStore:
    """Ask the teacher about the transfer set that `run` would use; where there are no labels, about every text.

    Raises:
        InputError: as `run`.
    """
    objects = objects or {}
    if recipe.teacher is None:
        raise InputError("no teacher to ask; give teacher=MODEL")
    if recipe.task.kind == "masked-lm":
        raise InputError("a language model's words are too many to keep, so there is nothing to label; use distill")
    if recipe.teacher.queries is not None:
        raise InputError("what to ask is chosen by a student in training; use distill, or leave teacher.queries out")
    with full_disk_explained():
        if recipe.task.kind == "causal-lm":
            ready = prepare(recipe, objects, RunFolder(Path(recipe.output)))
            if not ready.plan.stored:
                raise InputError("no stage learns from words that are kept; give soft_targets and teacher.words")
            answer_prompts(recipe, ready, objects)
            return _stored(ask_teacher(recipe, ready))
        table = data.read(recipe.data.train, "train", objects)
        if recipe.data.label or data.label_column(table):
            ready = prepare(recipe, objects, RunFolder(Path(recipe.output)))
            enlarge(recipe, ready)
            return _stored(ask_teacher(recipe, ready))
        say("data: no label column; the teacher is asked about every text")
        return _label_all(recipe, table, objects)


def _label_all(recipe: Recipe, table: datasets.Dataset, objects: Mapping[str, Any]) -> Store:
    """What the teacher says of every example of a table without labels."""
    assert recipe.teacher is not None
    if recipe.teacher.weigh == "validation":
        raise InputError("the data have no labels to weigh teachers by; give teacher.weigh=given or confidence")
    columns, work = data.find_columns(table, recipe.data, labelled=False), work_of(recipe)
    teachers = opening.teachers(recipe, objects)
    names = opening.label_names_of(recipe, teachers) or recipe.task.labels
    if names is None:
        raise InputError("neither the data nor a model here names the labels; give task.labels=[...]")
    task = data.task_about(recipe.task.kind, names, columns)
    opening.check_servers(recipe, task)
    opening.check_fit(teachers, None, task)
    texts = data.labelled_table(table, columns, task, "train")
    for each in teachers:
        check_tokenizer(each, examples.some_texts(texts))
    root = knowledge_root(recipe)
    teacher: Asked = open_teacher(teachers, recipe.teacher, task, recipe.task.max_length, root=root)
    rules = opening.rules(recipe, task, texts)
    if rules is not None:
        teacher = Ruled(teacher, rules)
    texts = texts.select(ask_servers(teacher, texts))
    return label_texts(teacher, texts, task, root, recipe.teacher.features, work)


def _stored(knowledge: Store | Joined | WordStore) -> Store | WordStore:
    assert not isinstance(knowledge, Joined)  # which rounds of queries alone make
    return knowledge


def generate(recipe: Recipe, objects: Mapping[str, Any] | None = None) -> Answers:
    """Have the teacher answer the prompts of `data.generation`, or else of the training examples.

    Raises:
        InputError: as `run`.
    """
    objects = objects or {}
    if recipe.teacher is None or recipe.data.generation is None:
        raise InputError("nobody to ask; give teacher=MODEL, and data.generation unless the recipe has it")
    with full_disk_explained():
        table = data.read(recipe.data.train, "train", objects)
        if recipe.data.generation.prompts is None and data.is_chat(table):
            if data.has_answers(table):
                table = examples.language_splits(recipe, objects).train
            else:
                say("data: no answers; the teacher is asked every prompt")
                table = data.read_chat(table, answers=False)
        teachers = opening.teachers(recipe, objects)
        for each in teachers:
            check_tokenizer(each, examples.some_texts(table))
        return make_answers(recipe, teachers, table, knowledge_root(recipe), objects)


def train(recipe: Recipe, ready: Prepared, knowledge: Store | Joined | WordStore | None) -> dict[str, Trained]:
    """The student, then the baseline: the same start and steps without a teacher."""
    start = copy.deepcopy(ready.student) if recipe.baseline else ready.student
    name = "student" if recipe.teacher else "model"
    args = (recipe, ready.task, ready.splits)
    if recipe.teacher and ready.task.kind == "regression":
        say("regression: soft_targets are the squared error to the teacher's value; their temperature has no effect")
    teaching = Teaching(knowledge, ready.teachers, ready.general, ready.answer_rules)
    if ready.assistant is not None:
        on_text = [stage for stage in recipe.stages if stage.on_text]
        teaching.general = train_stages("assistant", ready.assistant, on_text, *args, teaching).checkpoint
    trained = {name: train_stages(name, ready.student, recipe.stages, *args, teaching)}
    if recipe.baseline:
        stages = [_without_teacher(recipe, stage, ready) for stage in recipe.stages]
        trained["baseline"] = train_stages("baseline", start, stages, *args, Teaching())
    return trained


def _without_teacher(recipe: Recipe, stage: Stage, ready: Prepared) -> Stage:
    """The stage on labels or masked words alone, as many steps long.

    It has no use for text without labels, so it takes more epochs of less.
    """
    changes: dict[str, Any] = {"progressive": False, "on": None}
    if stage.on_text:
        return stage.model_copy(update=changes | {"objectives": Objectives(masked_lm=MaskedLM())})
    if ready.task.kind == "causal-lm":
        epochs = recipe.training_of(stage).epochs
        if stage.on != "train":
            epochs *= len(ready.splits.transfer) / len(ready.splits.train)
        changes |= {"on": "train", "on_policy": None, "training": stage.training | {"epochs": epochs}}
        return stage.model_copy(update=changes | {"objectives": Objectives(next_token=NextToken())})
    on_transfer = stage.on == "transfer" if stage.on is not None else stage.objectives.needs_teacher
    if on_transfer:
        epochs = recipe.training_of(stage).epochs * len(ready.splits.transfer) / len(ready.splits.train)
        changes["training"] = stage.training | {"epochs": epochs}
    objectives = Objectives(hard_labels=HardLabels(), balance=stage.objectives.balance)
    if stage.objectives.path_cross_entropy is not None:
        by_path = PathCrossEntropy(targets="labels")
        objectives = Objectives(path_cross_entropy=by_path, balance=stage.objectives.balance)
    return stage.model_copy(update=changes | {"objectives": objectives})


def measure(
    recipe: Recipe,
    ready: Prepared,
    knowledge: Store | Joined | WordStore | None,
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
    first = next(iter(trained.values()))
    models, measured = _measured(recipe, ready, trained, exports)
    metrics = {
        "version": METRICS_VERSION,
        "recipe": recipe_hash,
        "method": recipe.about.title if recipe.about else None,
        "task": describe_task(ready.task, recipe.evaluation),
        "data": ready.splits.sizes | {"measured": measured, "notices": ready.splits.notices},
        "machine": hardware.describe(),
        **models,
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
    if ready.asked:
        metrics["asked"] = ready.asked
    if recipe.teacher is not None and recipe.teacher.queries is not None:
        queries = recipe.teacher.queries
        quality = metrics["student"]["quality"]
        curve = [*ready.curve, {"queries": queries.budget, "quality": quality}]
        metrics["queries"] = {**queries.model_dump(), "curve": curve}
    write_json(folder.metrics, metrics)
    return metrics


def _measured(
    recipe: Recipe, ready: Prepared, trained: dict[str, Trained], exports: dict[str, Path]
) -> tuple[dict[str, Any], int]:
    """All models on the test split, and on how many examples of it."""
    task, length = ready.task, recipe.task.max_length
    student = next(iter(trained.values())).checkpoint
    made = {"student": student} | {name: each.checkpoint for name, each in trained.items() if name == "baseline"}
    if task.kind == "causal-lm":
        teachers = {"teacher": ready.teachers[0]} if ready.teachers else {}
        encoded = encode_language(ready.splits.test, student, recipe.task, prompts=ready.answer_rules is not None)
        test = sample(encoded, recipe.evaluation.examples, recipe.seed)
        made |= {f"student_{name.replace('-', '_')}": open_causal(str(path)) for name, path in exports.items()}
        rules = ready.answer_rules
        return evaluate_language(teachers | made, test, task, recipe.evaluation, recipe.seed, rules), len(test)
    models: dict[str, Asked] = {}
    if recipe.teacher is not None and recipe.evaluation.teacher:
        root = knowledge_root(recipe)
        models["teacher"] = open_teacher(
            ready.teachers, recipe.teacher, task, length, "float32", root, ready.splits.validation
        )
    models |= {name: HuggingFaceModel(checkpoint, task, length) for name, checkpoint in made.items()}
    models |= {f"student_{name}": OnnxModel(path, student, task, length) for name, path in exports.items()}
    measured = evaluate_models(models, ready.splits.test, task, recipe.evaluation, recipe.seed, ready.label_rules)
    tree = describe_tree(student, models["student"], ready.splits.test, task)
    if tree is not None:
        measured["student"]["tree"] = tree
    return measured, len(ready.splits.test)
