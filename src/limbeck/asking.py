"""Asking the teacher about the transfer set: all of it or in rounds, a model here or a server."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset

from limbeck.checkpoints import Checkpoint
from limbeck.data import Splits
from limbeck.errors import InputError
from limbeck.knowledge import Joined, Store, label_texts
from limbeck.progress import say
from limbeck.querying import ask_in_rounds
from limbeck.recipe import Recipe
from limbeck.recipe.served_checks import check_labels_alone
from limbeck.signals import Asked
from limbeck.teachers import ask_servers, behind_api, labels_alone
from limbeck.training import Teaching, train_stages

if TYPE_CHECKING:
    from limbeck.preparing import Prepared


def ask(recipe: Recipe, ready: Prepared, teacher: Asked, features: Sequence[int], root: Path) -> Store | Joined:
    """What the teacher says about the transfer set, or about what `teacher.queries` chooses of it.

    Examples that a server has no usable answer to leave the splits, and what was asked of servers is noted in `ready`.

    Args:
        recipe: says whether the teacher is measured, and whether queries are chosen.
        ready: changed in place.
        teacher: who is asked.
        features: layers whose [CLS] state is kept too.
        root: the folder that keeps knowledge.

    Raises:
        InputError: see `label_texts` and `ask_servers`.
        LimbeckError: see `ask_servers`; the same command goes on.
    """
    assert recipe.teacher is not None
    servers, pool, test = behind_api(teacher), ready.splits.transfer, ready.splits.test

    def label(texts: Dataset) -> tuple[list[int], Store]:
        answered = ask_servers(teacher, texts)
        ready.hard = labels_alone(teacher)
        as_taught(recipe, ready)  # refused now, where the first answer has shown what cannot be learnt
        return answered, label_texts(teacher, _some(texts, answered), ready.task, root, features, ready.work)

    store: Store | Joined
    measured = [test] if servers and recipe.evaluation.teacher else []
    if recipe.teacher.queries is None:
        answered, store = label(pool)
        ready.splits = replace(ready.splits, transfer=_some(pool, answered))
    if measured:
        ready.splits = replace(ready.splits, test=_some(test, ask_servers(teacher, test)))
    if recipe.teacher.queries is not None:
        spent = ask_in_rounds(recipe, ready.task, ready.splits, label, partial(_train, recipe, ready))
        store, ready.curve = spent.knowledge, spent.curve
        ready.splits = replace(ready.splits, transfer=spent.transfer)
    ready.asked = {server.name: server.spent([pool, *measured]) for server in servers}
    ready.splits.notices += _worth_knowing(ready)
    return store


def _train(recipe: Recipe, ready: Prepared, name: str, splits: Splits, knowledge: Joined) -> Checkpoint:
    """A student that learns from what is known so far; see `ask_in_rounds`."""
    taught, start = as_taught(recipe, ready), copy.deepcopy(ready.student)
    stages = [stage for stage in taught.stages if not stage.on_text]
    return train_stages(name, start, stages, taught, ready.task, splits, Teaching(knowledge)).checkpoint


def _worth_knowing(ready: Prepared) -> list[str]:
    """What readers should know of answers that were not usable, or say less than probabilities."""
    told = [
        f"{name} gave no usable answer to {found['left_out']:,} of {found['examples']:,} examples, which are left out"
        for name, found in ready.asked.items()
        if found["left_out"]
    ]
    if ready.hard:
        told.append(
            "the teacher gives labels alone: soft targets are its labels, at temperature 1 whatever the recipe says, "
            "and there is no divergence from its probabilities to measure"
        )
    for each in told:
        say(f"teacher: {each}")
    return told


def as_taught(recipe: Recipe, ready: Prepared) -> Recipe:
    """The recipe as its stages are trained: of a teacher that gives labels alone, without a temperature.

    Raises:
        InputError: a stage compares what such a teacher does not say.
    """
    if not ready.hard:
        return recipe
    assert recipe.teacher is not None
    try:
        check_labels_alone(recipe.stages, recipe.teacher.models[0].model)
    except ValueError as error:
        raise InputError(str(error)) from None
    taught = recipe.model_copy(deep=True)
    for stage in taught.stages:
        if stage.objectives.soft_targets is not None and not stage.on_text:
            stage.objectives.soft_targets.temperature = 1.0
    return taught


def _some(table: Dataset, places: list[int]) -> Dataset:
    return table if len(places) == len(table) else table.select(places)
