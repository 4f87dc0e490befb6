"""The way through the house: recipe, data, teacher, knowledge, student, training, evaluation, export, report."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from limbeck import data, examples, hardware, opening
from limbeck.checkpoints import (
    Checkpoint,
    check_tokenizer,
    label_names,
    max_length,
    open_causal,
    open_language_model,
    weights_fingerprint,
)
from limbeck.data import Splits
from limbeck.data.augmentation import augment
from limbeck.data.perturbation import mask_word, perturb
from limbeck.errors import InputError
from limbeck.evaluation import describe_task, evaluate_language, evaluate_models
from limbeck.exporting import GGUF_FILES, OnnxModel, check_gguf, export_gguf, export_model, require_gguf
from limbeck.exporting.onnx import require_onnx
from limbeck.files import full_disk_explained, read_json, write_json
from limbeck.folder import RunFolder, fingerprint, table_fingerprint
from limbeck.generation import Answers, answered_splits, make_answers
from limbeck.knowledge import Store, WordStore, label_texts
from limbeck.progress import say
from limbeck.recipe import Recipe, dump
from limbeck.recipe.schema import Stage
from limbeck.recipe.terms import HardLabels, MaskedLM, NextToken, Objectives
from limbeck.report import write_card, write_report
from limbeck.rules import LabelRules
from limbeck.rules.answers import AnswerRules
from limbeck.signals import Asked
from limbeck.students import build_student
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel, Ruled, open_teacher
from limbeck.training import Plan, Teaching, Trained, plan_stages, train_stages
from limbeck.training.words import ask_for_words, encode_language, sample

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
    """What a run works on, checked before anything costly.

    Attributes:
        task: what is predicted.
        splits: the examples.
        teachers: the teacher's models.
        student: before training.
        general: the language model that teaches the stages on plain text.
        assistant: before training; it is to teach them instead.
        plan: what the stages need.
        label_rules: what labels are held to.
        answer_rules: what a causal language model's answers are held to.
    """

    task: Task
    splits: Splits
    teachers: list[Checkpoint]
    student: Checkpoint
    general: Checkpoint | None
    assistant: Checkpoint | None
    plan: Plan
    label_rules: LabelRules | None = None
    answer_rules: AnswerRules | None = None


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
        enlarge(recipe, ready, objects or {})
        answer_prompts(recipe, ready, objects or {})
        knowledge = ask_teacher(recipe, ready) if ready.plan.stored else None
        trained = train(recipe, ready, knowledge)
        name, main = next(iter(trained.items()))
        if not hardware.processes().is_main_process:
            return Run(folder.path, {}, main.checkpoint.model, main.checkpoint.tokenizer)
        exports = _export(recipe, main.checkpoint, folder.path / name, ready.task)
        metrics = measure(recipe, ready, knowledge, trained, exports, folder)
        write_card(metrics, dump(recipe), folder.path / name)
        write_report(metrics, dump(recipe), folder.report)
        return Run(folder.path, metrics, main.checkpoint.model, main.checkpoint.tokenizer)


def _export(recipe: Recipe, student: Checkpoint, folder: Path, task: Task) -> dict[str, Path]:
    """The student in the forms that the recipe asks for, by name."""
    if task.kind != "causal-lm":
        return export_model(student, folder, recipe.export.formats, task.pair)
    files = {name: GGUF_FILES[name] for name in recipe.export.formats}
    return {name: export_gguf(student, folder / file, kind) for name, (file, kind) in files.items()}


def prepare(recipe: Recipe, objects: Mapping[str, Any], folder: RunFolder) -> Prepared:
    """Read, open and check everything; claim the run's folder. Nothing here takes longer than loading."""
    datasets.disable_progress_bars()  # theirs flicker for every small table; ours show the long steps
    transformers_logging.disable_progress_bar()
    folder.check(recipe)
    teachers = opening.teachers(recipe, objects)
    general = opening.general(recipe, teachers)
    given = opening.from_memory(recipe.student.model, objects) if recipe.student.model else None
    if recipe.task.kind in ("masked-lm", "causal-lm"):
        kind, texts = Task(recipe.task.kind, ()), examples.texts_for_width(recipe, objects)
        student = build_student(recipe.student, given, opening.first(teachers), kind, recipe.seed, texts=texts)
        if recipe.export.formats:
            check_gguf(student)
        language = examples.words if recipe.task.kind == "masked-lm" else examples.language
        task, splits = language(recipe, objects, student)
        label_rules, answer_rules = None, opening.answer_rules(recipe, splits, [*teachers, student])
    else:
        task, splits = examples.labelled(recipe, objects, teachers)
        texts = _texts_for(recipe, splits)
        student = build_student(recipe.student, given, opening.first(teachers), task, recipe.seed, general, texts)
        label_rules, answer_rules = opening.rules(recipe, task, splits.transfer, splits.test), None
    for notice in splits.notices:
        say(f"data: {notice}")
    for checkpoint in [*teachers, student]:
        check_tokenizer(checkpoint, examples.some_texts(splits.train))
    opening.check_fit(teachers, student, task)
    mask_word(recipe.data.augmentation, [*teachers, student])
    student.model.config.update(task.config)
    assistant = None
    if recipe.assistant is not None:
        assistant = build_student(recipe.assistant, None, opening.first(teachers), task, recipe.seed, general)
        plan_stages(recipe, task, assistant, teachers, general, on_text=True)
    plan = plan_stages(recipe, task, student, teachers, assistant or general)
    content = {
        "data": fingerprint([*map(table_fingerprint, (splits.transfer, splits.validation, splits.test))]),
        "teacher": fingerprint([weights_fingerprint(each.model) for each in teachers]),
        "student's start": weights_fingerprint(student.model),
    }
    if splits.corpus is not None:
        content["plain text"] = table_fingerprint(splits.corpus)
    if general is not None and general is not opening.first(teachers):
        content["general teacher"] = weights_fingerprint(general.model)
    if assistant is not None:
        content["assistant's start"] = weights_fingerprint(assistant.model)
    rules = label_rules or answer_rules
    if rules is not None:
        content["rules"] = rules.book.fingerprint
    folder.claim(recipe, content)
    return Prepared(task, splits, teachers, student, general, assistant, plan, label_rules, answer_rules)


def _texts_for(recipe: Recipe, splits: Splits) -> list[str]:
    """The texts that building the student looks at: some, or all where their words are to be its vocabulary."""
    if recipe.student.vectors is None:
        return examples.some_texts(splits.train)
    names = [name for name in ("text", "text_pair") if name in splits.transfer.column_names]
    return [text for name in names for text in splits.transfer[name]]


def enlarge(recipe: Recipe, ready: Prepared, objects: Mapping[str, Any]) -> None:
    """Add altered copies of the training texts to the transfer set, where the recipe asks for them."""
    wanted = recipe.data.augmentation
    if wanted is None:
        return
    texts, root = ready.splits.train, knowledge_root(recipe)
    if wanted.model is None:
        mask = mask_word(wanted, [*ready.teachers, ready.student])
        rows = perturb(texts, ready.task, wanted, mask, root, recipe.seed)
    else:
        model = open_language_model(wanted.model, wanted.revision)
        owner = opening.first(ready.teachers) or model
        length = max_length(model.model, model.tokenizer, recipe.task.max_length)
        rows = augment(texts, ready.task, wanted, model, owner, root, recipe.seed, length)
    ready.splits.transfer = data.add_unlabelled(ready.splits.transfer, rows, ready.task)


def answer_prompts(recipe: Recipe, ready: Prepared, objects: Mapping[str, Any]) -> None:
    """Have the teacher answer what the stages learn from, and prompts that came alone, where the recipe asks for it."""
    if recipe.data.generation is not None:
        ready.splits = answered_splits(recipe, ready.teachers, ready.splits, knowledge_root(recipe), objects)


def knowledge_root(recipe: Recipe) -> Path:
    """The folder that keeps what teachers said and what was made for them."""
    return Path(recipe.knowledge or Path(recipe.output) / "knowledge")


def ask_teacher(recipe: Recipe, ready: Prepared) -> Store | WordStore:
    """The teacher's knowledge about the transfer set, asked for once."""
    assert recipe.teacher is not None
    if ready.task.kind == "causal-lm":
        words = ask_for_words(recipe, ready.splits, ready.teachers[0], knowledge_root(recipe), ready.answer_rules)
        ready.teachers[0].model.cpu()
        return words
    teacher: Asked = open_teacher(ready.teachers, recipe.teacher, ready.task, recipe.task.max_length)
    if ready.label_rules is not None:
        teacher = Ruled(teacher, ready.label_rules)
    features = [*recipe.teacher.features, *(n for n in ready.plan.features if n not in recipe.teacher.features)]
    store = label_texts(teacher, ready.splits.transfer, ready.task, knowledge_root(recipe), features)
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
    with full_disk_explained():
        if recipe.task.kind == "causal-lm":
            ready = prepare(recipe, objects, RunFolder(Path(recipe.output)))
            if not ready.plan.stored:
                raise InputError("no stage learns from words that are kept; give soft_targets and teacher.words")
            answer_prompts(recipe, ready, objects)
            return ask_teacher(recipe, ready)
        table = data.read(recipe.data.train, "train", objects)
        if recipe.data.label or data.label_column(table):
            ready = prepare(recipe, objects, RunFolder(Path(recipe.output)))
            enlarge(recipe, ready, objects)
            return ask_teacher(recipe, ready)
        say("data: no label column; the teacher is asked about every text")
        columns = data.find_columns(table, recipe.data, labelled=False)
        teachers = opening.teachers(recipe, objects)
        task = Task(recipe.task.kind, label_names(teachers[0].model.config), pair=len(columns.text) == 2)
        texts = data.labelled_table(table, columns, task, "train")
        check_tokenizer(teachers[0], texts["text"][:200])
        teacher: Asked = open_teacher(teachers, recipe.teacher, task, recipe.task.max_length)
        rules = opening.rules(recipe, task, texts)
        if rules is not None:
            teacher = Ruled(teacher, rules)
        return label_texts(teacher, texts, task, knowledge_root(recipe), recipe.teacher.features)


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
        if data.is_chat(table) and not data.has_answers(table):
            say("data: no answers; the teacher is asked every prompt")
            return make_answers(recipe, opening.teachers(recipe, objects), table, knowledge_root(recipe), objects)
        ready = prepare(recipe, objects, RunFolder(Path(recipe.output)))
        return make_answers(recipe, ready.teachers, ready.splits.train, knowledge_root(recipe), objects)


def train(recipe: Recipe, ready: Prepared, knowledge: Store | WordStore | None) -> dict[str, Trained]:
    """The student, then the baseline: the same start and steps without a teacher."""
    start = copy.deepcopy(ready.student) if recipe.baseline else ready.student
    name = "student" if recipe.teacher else "model"
    args = (recipe, ready.task, ready.splits)
    if recipe.teacher and ready.task.kind == "regression":
        say("regression: soft_targets are the squared error to the teacher's value; their temperature has no effect")
    one = ready.teachers[0] if len(ready.teachers) == 1 else None
    teaching = Teaching(knowledge, one, ready.general, ready.answer_rules)
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
    return stage.model_copy(update=changes | {"objectives": Objectives(hard_labels=HardLabels())})


def measure(
    recipe: Recipe,
    ready: Prepared,
    knowledge: Store | WordStore | None,
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
    metrics = {
        "version": METRICS_VERSION,
        "recipe": recipe_hash,
        "method": recipe.about.title if recipe.about else None,
        "task": describe_task(ready.task, recipe.evaluation),
        "data": ready.splits.sizes | {"notices": ready.splits.notices},
        "machine": hardware.describe(),
        **_measured(recipe, ready, trained, exports),
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


def _measured(recipe: Recipe, ready: Prepared, trained: dict[str, Trained], exports: dict[str, Path]) -> dict[str, Any]:
    """All models on the test split."""
    task, length = ready.task, recipe.task.max_length
    student = next(iter(trained.values())).checkpoint
    made = {"student": student} | {name: each.checkpoint for name, each in trained.items() if name == "baseline"}
    if task.kind == "causal-lm":
        teachers = {"teacher": ready.teachers[0]} if ready.teachers else {}
        encoded = encode_language(ready.splits.test, student, recipe.task, prompts=ready.answer_rules is not None)
        test = sample(encoded, recipe.evaluation.examples, recipe.seed)
        made |= {f"student_{name.replace('-', '_')}": open_causal(str(path)) for name, path in exports.items()}
        return evaluate_language(teachers | made, test, task, recipe.evaluation, recipe.seed, ready.answer_rules)
    models: dict[str, Asked] = {}
    if recipe.teacher is not None:
        models["teacher"] = open_teacher(ready.teachers, recipe.teacher, task, length, "float32")
    models |= {name: HuggingFaceModel(checkpoint, task, length) for name, checkpoint in made.items()}
    models |= {f"student_{name}": OnnxModel(path, student, task, length) for name, path in exports.items()}
    return evaluate_models(models, ready.splits.test, task, recipe.evaluation, recipe.seed, ready.label_rules)
