"""What a run works on: read, opened and checked before anything costly, then enlarged and answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging as transformers_logging

from limbeck import data, examples, extras, hardware, opening
from limbeck.checkpoints import (
    Checkpoint,
    check_tokenizer,
    max_length,
    open_language_model,
    weights_fingerprint,
)
from limbeck.data import Splits
from limbeck.data.augmentation import augment
from limbeck.data.munge import made_up
from limbeck.data.perturbation import mask_word, perturb
from limbeck.errors import InputError
from limbeck.exporting import check_gguf
from limbeck.folder import RunFolder, fingerprint, table_fingerprint
from limbeck.generation import answered_splits
from limbeck.knowledge.labelling import Work
from limbeck.knowledge.mirror import Mirror, is_url
from limbeck.progress import say
from limbeck.querying import check_queries
from limbeck.recipe import Recipe
from limbeck.rules import LabelRules
from limbeck.rules.answers import AnswerRules
from limbeck.sharding import check_sharding, check_split
from limbeck.students import build_student
from limbeck.tasks import Task
from limbeck.training import Plan, plan_stages


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
        work: who asks the teacher.
        label_rules: what labels are held to.
        answer_rules: what a causal language model's answers are held to.
        hard: the teacher gives labels alone.
        asked: what was asked of teachers behind an API, by name.
        curve: how good students were after fewer queries.
    """

    task: Task
    splits: Splits
    teachers: list[Checkpoint]
    student: Checkpoint
    general: Checkpoint | None
    assistant: Checkpoint | None
    plan: Plan
    work: Work
    label_rules: LabelRules | None = None
    answer_rules: AnswerRules | None = None
    hard: bool = False
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)


def prepare(recipe: Recipe, objects: Mapping[str, Any], folder: RunFolder) -> Prepared:
    """Read, open and check everything; claim the run's folder. Nothing here takes longer than loading."""
    datasets.disable_progress_bars()  # theirs flicker for every small table; ours show the long steps
    transformers_logging.disable_progress_bar()
    check_sharding(recipe)
    folder.check(recipe)
    work = work_of(recipe)
    teachers = opening.teachers(recipe, objects)
    general = opening.general(recipe, teachers)
    given = opening.from_memory(recipe.student.model, objects) if recipe.student.model else None
    if recipe.task.kind in ("masked-lm", "causal-lm"):
        kind, texts = Task(recipe.task.kind, ()), examples.texts_for_cutting(recipe, objects)
        student = build_student(recipe.student, given, opening.first(teachers), kind, recipe.seed, texts=texts)
        if recipe.export.formats:
            check_gguf(student)
        language = examples.words if recipe.task.kind == "masked-lm" else examples.language
        task, splits = language(recipe, objects, student)
        label_rules, answer_rules = None, opening.answer_rules(recipe, splits, [*teachers, student])
    else:
        task, splits = examples.labelled(recipe, objects, teachers)
        texts = _texts_for(recipe, splits)
        student = build_student(
            recipe.student, given, opening.first(teachers), task, recipe.seed, general, texts, splits.train
        )
        label_rules, answer_rules = opening.rules(recipe, task, splits.transfer, splits.test), None
    for notice in splits.notices:
        say(f"data: {notice}")
    opening.check_servers(recipe, task)
    opening.check_fit(teachers, student, task, recipe.teacher is None or len(teachers) == len(recipe.teacher.models))
    for checkpoint in [*teachers, student]:
        check_tokenizer(checkpoint, examples.some_texts(splits.train))
    mask_word(recipe.data.augmentation, [*teachers, student])
    student.model.config.update(task.config)
    assistant = None
    if recipe.assistant is not None:
        assistant = build_student(recipe.assistant, None, opening.first(teachers), task, recipe.seed, general)
        plan_stages(recipe, task, assistant, teachers, general, on_text=True)
    check_queries(recipe, splits.transfer, student)
    check_split(recipe, student.model, [each.model for each in [*teachers, *([general] if general else [])]])
    plan = plan_stages(recipe, task, student, teachers, assistant or general)
    content = {
        "data": fingerprint([*map(table_fingerprint, (splits.transfer, splits.validation, splits.test))]),
        "teacher": fingerprint(opening.teacher_content(recipe, teachers)),
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
    return Prepared(task, splits, teachers, student, general, assistant, plan, work, label_rules, answer_rules)


def _texts_for(recipe: Recipe, splits: Splits) -> list[str]:
    """The texts that building the student looks at: some, or all where their words are to be its vocabulary."""
    if recipe.student.vectors is None:
        return examples.some_texts(splits.train)
    names = [name for name in ("text", "text_pair") if name in splits.transfer.column_names]
    return [text for name in names for text in splits.transfer[name]]


def enlarge(recipe: Recipe, ready: Prepared) -> None:
    """Add altered copies of the texts, or made-up rows, to the transfer set, where the recipe asks for them."""
    made = recipe.data.synthetic
    if made is not None:
        rows = made_up(ready.splits.train, ready.task.columns, made, recipe.seed)
        ready.splits.transfer = data.add_unlabelled(ready.splits.transfer, rows, ready.task)
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
    own = Path(recipe.output) / "knowledge"
    return own if recipe.knowledge is None or is_url(recipe.knowledge) else Path(recipe.knowledge)


def work_of(recipe: Recipe) -> Work:
    """Who makes knowledge, and where else it goes.

    Raises:
        InputError: no cluster or place that can be used from here.
    """
    ray = recipe.labelling.engine == "ray"
    if ray:
        extras.require("ray", "labelling.engine=ray")
        if hardware.processes().num_processes > 1:
            raise InputError(
                f"labelling.engine=ray within {hardware.processes().num_processes} processes, which would each ask the "
                "cluster; run limbeck label alone first, or give labelling.engine=here"
            )
    url = recipe.knowledge if recipe.knowledge is not None and is_url(recipe.knowledge) else None
    if url is not None:
        Mirror(url, "").check()
    return Work(ray, recipe.labelling.workers, url)
