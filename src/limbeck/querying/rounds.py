"""Rounds of asking: a student learns from what is known and chooses what to ask next, until the budget is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from limbeck import hardware
from limbeck.anatomy.parts import parts_of
from limbeck.checkpoints import Checkpoint
from limbeck.data import Splits
from limbeck.errors import InputError
from limbeck.evaluation.quality import quality
from limbeck.files import read_json, write_json
from limbeck.knowledge.store import Joined, Store
from limbeck.progress import say
from limbeck.querying.choosing import most_uncertain, spread_out
from limbeck.recipe import Recipe
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel


@dataclass
class Spent:
    """What the budget bought.

    Attributes:
        knowledge: what the teacher said, by row of `transfer`.
        transfer: the examples that have an answer.
        curve: of each student that chose, `queries` and its `quality` on the test split.
    """

    knowledge: Joined
    transfer: Dataset
    curve: list[dict[str, Any]]


def check_queries(recipe: Recipe, pool: Dataset, student: Checkpoint) -> None:
    """Refuse queries that cannot be chosen, before the first is asked; nothing where the recipe has none.

    Raises:
        InputError: the pool has fewer examples than the budget; a student of an architecture whose states cannot be
            read, where they are compared.
    """
    queries = recipe.teacher.queries if recipe.teacher is not None else None
    if queries is None:
        return
    if queries.budget > len(pool):
        raise InputError(
            f"teacher.queries.budget is {queries.budget:,}, and there are {len(pool):,} examples to ask about; give a "
            "smaller budget, or leave teacher.queries out to ask about all"
        )
    if queries.choose == "diversity":
        parts_of(student.model)


def ask_in_rounds(
    recipe: Recipe,
    task: Task,
    splits: Splits,
    ask: Callable[[Dataset], tuple[list[int], Store]],
    train: Callable[[str, Splits, Joined], Checkpoint],
) -> Spent:
    """Spend the budget of `teacher.queries`.

    What each round asks about is written to `OUTPUT/queries` before it is asked, so that the same command goes on with
    it. The students that choose are the recipe's own, from the same start, trained by the recipe's stages; they are
    thrown away.

    Args:
        recipe: with `teacher.queries`.
        task: what is predicted.
        splits: the transfer set is the pool; quality is that on the test split, by which nothing is chosen.
        ask: has the teacher answer; gives the places of the examples that it answered, and what it said about them.
        train: trains a student of a name on splits and knowledge.

    Raises:
        LimbeckError: see `ask` and `train`.
    """
    assert recipe.teacher is not None
    assert recipe.teacher.queries is not None
    queries, pool, group = recipe.teacher.queries, splits.transfer, hardware.processes()
    folder = Path(recipe.output) / "queries"
    asked: list[int] = []
    known: list[int] = []
    stores: list[Store] = []
    curve: list[dict[str, Any]] = []
    for number, part in enumerate(np.array_split(np.arange(queries.budget), queries.rounds), 1):
        note = folder / f"round-{number}.json"
        chosen = note.is_file()
        group.wait_for_everyone()  # all have looked before one writes
        if not chosen:
            name = f"round-{number - 1}"
            student = train(name, replace(splits, transfer=pool.select(known)), Joined(stores)) if asked else None
            if group.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                record: dict[str, Any] = {"rows": _choose(recipe, task, pool, asked, len(part), student)}
                if student is not None:
                    record["student"] = {"queries": len(asked), "quality": _quality(recipe, task, splits, student)}
                write_json(note, record)
                _remove(Path(recipe.output), name)
            group.wait_for_everyone()
        record = read_json(note)
        curve += [record["student"]] if "student" in record else []
        answered, store = ask(pool.select(record["rows"]))
        asked += record["rows"]
        known += [record["rows"][place] for place in answered]
        stores.append(store)
        say(f"queries: {len(asked):,} of {queries.budget:,} asked, after round {number} of {queries.rounds}")
    return Spent(Joined(stores), pool.select(known), curve)


def _choose(
    recipe: Recipe, task: Task, pool: Dataset, asked: list[int], count: int, student: Checkpoint | None
) -> list[int]:
    """Rows of the pool that were not asked about, in ascending order."""
    assert recipe.teacher is not None
    assert recipe.teacher.queries is not None
    queries = recipe.teacher.queries
    generator = np.random.default_rng([recipe.seed, len(asked)])
    left = np.setdiff1d(np.arange(len(pool)), asked)
    if student is None or queries.choose == "random":
        return sorted(generator.choice(left, count, replace=False).tolist())
    model = HuggingFaceModel(student, task, recipe.task.max_length)
    if queries.choose == "uncertainty":
        probabilities = task.probabilities(np.asarray(model.ask(pool.select(left)).logits))
        picked = most_uncertain(probabilities, task.kind, queries.uncertainty, count)
        return sorted(int(left[place]) for place in picked)
    states = np.asarray(model.ask(pool, features=(-1,)).features[-1])
    return sorted(spread_out(states, asked, count, queries.diversity, generator))


def _quality(recipe: Recipe, task: Task, splits: Splits, student: Checkpoint) -> dict[str, Any]:
    model = HuggingFaceModel(student, task, recipe.task.max_length)
    predicted = task.predict(np.asarray(model.ask(splits.test).logits))
    labels = np.array(splits.test["label"][:])
    return quality(task, labels, predicted, recipe.evaluation.resamples, recipe.seed)[0]


def _remove(output: Path, name: str) -> None:
    """Drop a student that has chosen."""
    shutil.rmtree(output / name, ignore_errors=True)
    (output / "logs" / f"{name}.json").unlink(missing_ok=True)
