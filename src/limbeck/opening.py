"""Opening what a recipe names: teachers, the language model that teaches first, rules; and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from limbeck.anatomy import outside_embeddings
from limbeck.checkpoints import (
    Checkpoint,
    ends_of,
    label_names,
    open_causal,
    open_classifier,
    open_language_model,
    weights_fingerprint,
)
from limbeck.data import Splits
from limbeck.data.chat import prompt_text
from limbeck.errors import InputError
from limbeck.files import sha256
from limbeck.progress import say
from limbeck.recipe import Recipe
from limbeck.rules import LabelRules, load_rules
from limbeck.rules.answers import AnswerRules
from limbeck.rules.tokens import TokenRules
from limbeck.students.soft_tree import SoftTreeConfig
from limbeck.tasks import Task
from limbeck.tasks.causal_lm import chat_tokens
from limbeck.teachers.estimator import labels_of_estimator

LOOKED_AT = 1000
"""Training answers that are tried against the rules."""
_READ = {"text": "text", "image": "images", "features": "tables of features"}


def teachers(recipe: Recipe, objects: Mapping[str, Any]) -> list[Checkpoint]:
    """Every model the recipe names as teacher, with its tokenizer; see `open_classifier` for what is refused."""
    opener = {"masked-lm": open_language_model, "causal-lm": open_causal}.get(recipe.task.kind, open_classifier)
    return [
        from_memory(each.model, objects) or opener(each.model, each.revision, each.trust_remote_code)
        for each in (recipe.teacher.models if recipe.teacher else [])
        if each.network
    ]


def label_names_of(recipe: Recipe, teachers: Sequence[Checkpoint]) -> tuple[str, ...] | None:
    """The labels of the first teacher that knows all of them: a network, else an estimator; none behind a server."""
    opened = iter(teachers)
    for each in recipe.teacher.models if recipe.teacher else []:
        checkpoint = next(opened) if each.network else None
        if each.others is not None or each.server is not None:
            continue
        return labels_of_estimator(each.model) if checkpoint is None else label_names(checkpoint.model.config)
    return None


def teacher_content(recipe: Recipe, teachers: Sequence[Checkpoint]) -> list[str]:
    """What the teachers are, by content: weights, and estimators' files."""
    models = recipe.teacher.models if recipe.teacher else []
    files = [sha256(Path(each.model).expanduser()) for each in models if each.server is None and not each.network]
    return [*(weights_fingerprint(each.model) for each in teachers), *files]


def check_servers(recipe: Recipe, task: Task) -> None:
    """Refuse to send to a server what is no text.

    Raises:
        InputError: a teacher behind a server, and images or tables.
    """
    served = next((each.model for each in (recipe.teacher.models if recipe.teacher else []) if each.server), None)
    if served is not None and task.inputs != "text":
        raise InputError(
            f"the teacher '{served}' is behind a server, which is sent text, and the examples are "
            f"{_READ[task.inputs]}; give a teacher opened here"
        )


def general(recipe: Recipe, teachers: list[Checkpoint]) -> Checkpoint | None:
    """The language model that teaches the stages on plain text, where there are such stages.

    Raises:
        InputError: a stage learns from its words, but no language model is given.
    """
    stages = [stage for stage in recipe.stages if stage.on_text and stage.objectives.needs_teacher]
    if recipe.teacher is None or not stages:
        return None
    if recipe.task.kind == "masked-lm":
        return first(teachers)
    words = next((stage.name for stage in stages if stage.objectives.soft_targets is not None), None)
    given = recipe.teacher.general
    if given is not None:
        return open_language_model(given.model, given.revision, given.trust_remote_code, head=words is not None)
    if words is not None:
        raise InputError(
            f"stage '{words}' learns from a language model's words, which the classifier '{teachers[0].name}' does not "
            "have; give teacher.general=MODEL"
        )
    say("teacher: no teacher.general is given; the teacher's own body teaches the stages on plain text")
    return teachers[0]


def rules(recipe: Recipe, task: Task, *tables: Dataset) -> LabelRules | None:
    """The recipe's rules about labels, checked on all texts that they will meet; refused is what `LabelRules` does."""
    if recipe.rules is None:
        return None
    rules = LabelRules(load_rules(recipe.rules), task)
    for table in tables:
        rules.check(table)
    return rules


def answer_rules(recipe: Recipe, splits: Splits, models: Sequence[Checkpoint]) -> AnswerRules | None:
    """The recipe's rules about answers, checked on all prompts and for each model's tokens.

    Raises:
        InputError: see `AnswerRules` and `TokenRules.check`; plain text; a stage whose loss hard rules make infinite.
    """
    if recipe.rules is None:
        return None
    rules = AnswerRules(load_rules(recipe.rules))
    if "messages" not in splits.train.column_names:
        raise InputError(
            "rules are about answers to prompts, and data.train is plain text; give conversations, or prompts with "
            "completions, or drop rules"
        )
    hard = next((rule.name for rule in rules.book.rules if rule.hard), None)
    for stage in recipe.stages:
        soft, ahead = stage.objectives.soft_targets, stage.objectives.policy_gradient
        if hard is not None and (ahead is not None or (soft is not None and soft.form == "reverse-kl")):
            raise InputError(
                f"stage '{stage.name}' learns by reverse KL divergence, which is infinite where the student may still "
                f"say what the hard rule '{hard}' forbids; give it a number as weight, or soft_targets.form=jsd"
            )
    asked = [prompt_text(turns) for table in (splits.transfer, splits.test) for turns in table["messages"]]
    for model in models:
        rules.of(model).check(asked)
    if recipe.data.generation is None or any(stage.on == "train" for stage in recipe.stages):
        splits.notices += _broken_answers(rules.of(models[-1]), splits.train, models[-1])
    return rules


def _broken_answers(rules: TokenRules, train: Dataset, model: Checkpoint) -> list[str]:
    """What to say where the data's own answers, which are learnt from, break hard rules."""
    some = [turns for turns in train[:LOOKED_AT]["messages"] if turns[-1]["role"] == "assistant"]
    tokenizer, ends = model.tokenizer, ends_of(model)
    broken = sum(not rules.follows(prompt_text(turns), chat_tokens(turns, tokenizer, ends)[1]) for turns in some)
    if not broken:
        return []
    return [
        f"{broken:,} of {len(some):,} training answers looked at are none that could be written under the hard rules; "
        "they are learnt from all the same, and from where one breaks a rule the teacher's words are left as they are"
    ]


def first(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The first of some."""
    return checkpoints[0] if checkpoints else None


def from_memory(name: str, objects: Mapping[str, Any]) -> Checkpoint | None:
    """The model object that a name stands for; none where it is a folder's or the hub's.

    Raises:
        InputError: the name of an object that was not passed.
    """
    if name.startswith("memory:") and name not in objects:
        raise InputError(f"this recipe was run with a model in memory ({name}); pass the model object again")
    return objects.get(name)


def check_fit(teachers: list[Checkpoint], student: Checkpoint | None, task: Task, complete: bool = True) -> None:
    """Refuse models that do not go together.

    Args:
        teachers: the networks among them.
        student: before training; none where nothing is trained.
        task: what is predicted.
        complete: there are no other teachers, so that sizes can be compared. A soft decision tree may be the larger.

    Raises:
        InputError: a model that reads something else than the examples are; a teacher trained for another task; a
            student larger than its teachers. Large tables of embeddings alone do not make it so: a row of them costs
            nothing until its word is read.
    """
    for checkpoint in [*teachers, *([student] if student else [])]:
        if checkpoint.inputs != task.inputs:
            raise InputError(
                f"'{checkpoint.name}' reads {_READ[checkpoint.inputs]}, and the examples are {_READ[task.inputs]}; "
                "give another model, or name the columns by data.text, data.image or data.features"
            )
    for teacher in teachers:
        config = teacher.model.config
        if config.problem_type not in (None, task.config.get("problem_type")):
            raise InputError(
                f"'{teacher.name}' was trained for {config.problem_type}, the task is {task.kind}; set task=..."
            )
    if student and teachers and complete and student.model.config.model_type != SoftTreeConfig.model_type:
        ours = sum(p.numel() for p in student.model.parameters())
        theirs = sum(p.numel() for teacher in teachers for p in teacher.model.parameters())
        bodies = [outside_embeddings(each.model) for each in (student, *teachers)]
        if ours > theirs and bodies[0] > sum(bodies[1:]):
            raise InputError(
                f"the student has {ours:,} parameters, more than the teacher's {theirs:,}; "
                "give fewer student.layers or a smaller student=MODEL"
            )


def check_same_labels(teacher: Checkpoint, student: Checkpoint) -> None:
    """Refuse two classifiers whose outputs do not mean the same.

    Raises:
        InputError: more outputs of one than of the other, or other labels, or in another order. Labels that were never
            named (`LABEL_0`, ...) are taken for the other's.
    """
    theirs, ours = label_names(teacher.model.config), label_names(student.model.config)
    named = [names for names in (theirs, ours) if any(name != f"LABEL_{i}" for i, name in enumerate(names))]
    if len(theirs) != len(ours) or len({*named}) > 1:
        raise InputError(
            f"the labels of '{teacher.name}' are {', '.join(theirs)}, those of '{student.name}' are {', '.join(ours)}; "
            "give a teacher with the same labels in the same order"
        )
