"""From a recipe to its teacher's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from limbeck import data
from limbeck.checkpoints import Checkpoint
from limbeck.data import Splits
from limbeck.data.chat import CHAT
from limbeck.errors import InputError
from limbeck.generation.answers import Answerer, Answers, generate
from limbeck.generation.local import LocalTeacher
from limbeck.generation.server import ServerTeacher
from limbeck.recipe import Recipe
from limbeck.recipe.data import Generation
from limbeck.rules import TextRules, load_rules
from limbeck.rules.answers import AnswerRules


def answered(
    recipe: Recipe, teachers: Sequence[Checkpoint], train: Dataset, root: Path, objects: Mapping[str, Any] | None = None
) -> Dataset:
    """What a run of a recipe with `data.generation` learns from: prompts with the teacher's answers.

    Args:
        recipe: says which prompts, how they are answered, and whether cut answers are kept.
        teachers: the teacher, opened; nobody where it is behind a server.
        train: the training examples, whose prompts are answered unless the recipe names others; see `read_chat`.
        root: the run's knowledge.
        objects: datasets in memory, by the names that stand for them in the recipe.

    Returns:
        One column `messages`, features `CHAT`, each ending with the assistant. None breaks a hard rule of the recipe.

    Raises:
        InputError: see `generate`; no prompts, or no answer to learn from.
        LimbeckError: see `generate`.
    """
    return _usable(recipe, make_answers(recipe, teachers, train, root, objects))


def answered_splits(
    recipe: Recipe, teachers: Sequence[Checkpoint], splits: Splits, root: Path, objects: Mapping[str, Any] | None = None
) -> Splits:
    """The splits of a run of a recipe with `data.generation`: what is learnt from as `answered` gives it.

    Splits that are prompts alone (`data.ROW`) are answered, too. Each table is asked about whole, so that these are the
    answers of `limbeck generate`, and each split takes its own; to watch and to measure, one answer to each prompt.

    Args:
        recipe: as of `answered`.
        teachers: as of `answered`.
        splits: conversations or plain text; see `limbeck.examples.language`.
        root: as of `answered`.
        objects: as of `answered`.

    Raises:
        InputError: see `answered`.
        LimbeckError: see `generate`.
    """
    found: dict[str, Dataset] = {}
    asked: dict[tuple[str, str], Answers] = {}
    for name in ("train", "validation", "test"):
        split: Dataset = getattr(splits, name)
        if data.ROW not in split.column_names:
            continue
        held = data.source_of(recipe.data, name, objects or {}) if name != "train" else None
        source, use = (held, name) if held is not None else (recipe.data.train, "train")
        key = (use, source.model_dump_json())
        if key not in asked:
            table = data.without_answers(data.read_chat(data.read(source, use, objects), answers=False))
            asked[key] = _ask(recipe, teachers, table, root)
        found[name] = _usable(recipe, asked[key].of(split[data.ROW], every=name == "train"))
    own = found.get("train") if _settings(recipe).prompts is None else None
    transfer = own if own is not None else answered(recipe, teachers, splits.train, root, objects)
    return replace(splits, transfer=transfer, **found)


def make_answers(
    recipe: Recipe, teachers: Sequence[Checkpoint], train: Dataset, root: Path, objects: Mapping[str, Any] | None = None
) -> Answers:
    """All that the teacher answers; arguments as of `answered`."""
    return _ask(recipe, teachers, _prompts(_settings(recipe), train, objects), root)


def _ask(recipe: Recipe, teachers: Sequence[Checkpoint], prompts: Dataset, root: Path) -> Answers:
    assert recipe.teacher is not None
    settings, model = _settings(recipe), recipe.teacher.models[0]
    teacher: Answerer
    if model.server is None:
        rules = AnswerRules(load_rules(recipe.rules)).of(teachers[0]) if recipe.rules is not None else None
        teacher = LocalTeacher(teachers[0], settings, rules)
    else:
        teacher = ServerTeacher(model, settings)
    return generate(teacher, prompts, settings, root, recipe.seed)


def _usable(recipe: Recipe, found: Answers) -> Dataset:
    """Those to learn from; a server is not told the rules, and what it answered does not depend on them."""
    rules = TextRules(load_rules(recipe.rules)) if recipe.rules is not None else None
    return found.usable(_settings(recipe).cut == "keep", rules)


def _settings(recipe: Recipe) -> Generation:
    assert recipe.data.generation is not None
    return recipe.data.generation


def _prompts(settings: Generation, train: Dataset, objects: Mapping[str, Any] | None) -> Dataset:
    source = settings.prompts
    if source is None:
        if not data.is_chat(train):
            raise InputError("data.train is plain text, which asks nothing; give data.generation.prompts=FILE")
        return data.without_answers(data.read_chat(train, answers=False))
    table = data.read(source, "train", objects)
    if data.is_chat(table):
        return data.without_answers(data.read_chat(table, answers=False))
    lines = data.read_corpus(source, "train", objects)["text"]
    return Dataset.from_dict({"messages": [[{"role": "user", "content": line}] for line in lines]}, features=CHAT)
