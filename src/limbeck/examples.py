"""What a run learns from and is measured on, by the kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from datasets import Dataset

from limbeck import data, opening
from limbeck.checkpoints import Checkpoint, vocabulary_size
from limbeck.data import Columns, Splits
from limbeck.errors import InputError
from limbeck.progress import say
from limbeck.recipe import Recipe
from limbeck.recipe.data import Source
from limbeck.tasks import Task
from limbeck.tasks.cloze import cloze
from limbeck.tasks.masked_lm import TEXT_LENGTH

HELD_LINES = 1000
"""Lines of plain text, or conversations, held out where the recipe does not say; a tenth where there are fewer than ten
times as many."""
ANSWERED = (
    "the {} examples came without answers, and the teacher's own stand in: accuracy and perplexity say how near a "
    "model is to what the teacher writes"
)
"""What the report says where validation or test are prompts alone."""


def labelled(recipe: Recipe, objects: Mapping[str, Any], teachers: list[Checkpoint]) -> tuple[Task, Splits]:
    """The labelled examples and what they are about; with plain text where some stage learns from it."""
    raw = data.read_all(recipe.data, objects)
    columns = data.find_columns(raw.train, recipe.data)
    if columns.inferred:
        say(f"data: {told(columns)}, label is column {', '.join(columns.label)}")
    known = opening.label_names_of(recipe, teachers)
    labels, others = recipe.task.labels, recipe.task.others
    if labels is not None and others is not None:
        for name in ("train", "validation", "test"):
            table = getattr(raw, name)
            if isinstance(table, Dataset):
                setattr(raw, name, data.lump(table, columns, labels, others))
        labels = [*labels, others]
    task = data.resolve_task(raw.train, columns, recipe.task.kind, labels, known)
    task.main_metric(recipe.evaluation.metric)
    splits = data.split(raw, columns, task, recipe.seed)
    for name, kind in (("synthetic", "features"), ("augmentation", "text")):
        if getattr(recipe.data, name) is not None and task.inputs != kind:
            raise InputError(
                f"data.{name} makes examples of {kind}, and these are {task.inputs}; drop it with data.{name}=null"
            )
    if recipe.data.corpus is not None and any(stage.on_text for stage in recipe.stages):
        corpus = data.read_corpus(recipe.data.corpus, "train", objects)
        splits.corpus, splits.corpus_held = data.split_corpus(corpus, _usual(corpus), recipe.seed)
    return task, splits


def told(columns: Columns) -> str:
    """What an example is made of, in words."""
    if columns.kind == "features":
        return f"features are {len(columns.inputs)} columns"
    return f"{columns.kind} is column {' and '.join(columns.inputs)}"


def words(recipe: Recipe, objects: Mapping[str, Any], student: Checkpoint) -> tuple[Task, Splits]:
    """Plain text: lines to learn from, lines to watch, and single words to fill in for the report."""
    learn, held = _parts(recipe, objects, partial(data.read_corpus, objects=objects), {"test": 1, "validation": 0})
    watched = held["validation"]
    tokenizer, size = student.tokenizer, student.model.config.vocab_size
    tokens = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), size)))
    task = Task("masked-lm", (*tokens, *(f"unused {number}" for number in range(len(tokens), size))))
    task.main_metric(recipe.evaluation.metric)
    test = cloze(held["test"], tokenizer, recipe.task.max_length or TEXT_LENGTH, recipe.seed)
    return task, Splits(learn, watched, test, learn, corpus=learn, corpus_held=watched)


def language(recipe: Recipe, objects: Mapping[str, Any], student: Checkpoint) -> tuple[Task, Splits]:
    """The task of a causal language model, whose labels are the student's tokens, and `language_splits`."""
    splits = language_splits(recipe, objects)
    size = vocabulary_size(student.tokenizer)
    task = Task("causal-lm", tuple(str(token) for token in student.tokenizer.convert_ids_to_tokens(range(size))))
    task.main_metric(recipe.evaluation.metric)
    return task, splits


def language_splits(recipe: Recipe, objects: Mapping[str, Any]) -> Splits:
    """Plain text (column `text`) or conversations (column `messages`) to learn from, to watch, and for the report.

    Where the teacher answers prompts, conversations may be prompts alone, to be answered by it; see `answered_splits`.
    """
    read = partial(_language_table, objects=objects, answers=recipe.data.generation is None)
    learn, held = _parts(recipe, objects, read, {"test": 0, "validation": 1})
    if data.ROW in learn.column_names:
        _refuse_prompts_alone(recipe)
    alone = [name for name in ("validation", "test") if data.ROW in held[name].column_names]
    notices = [ANSWERED.format(" and ".join(alone))] if alone else []
    return Splits(learn, held["validation"], held["test"], learn, notices)


def _parts(
    recipe: Recipe, objects: Mapping[str, Any], read: Callable[[Source, str], Dataset], seeds: Mapping[str, int]
) -> tuple[Dataset, dict[str, Dataset]]:
    """What is learnt from, and by name what is held out: other sources, or parts of it drawn by seeds of their own.

    Raises:
        InputError: see `read`; too few examples to hold out as many.
    """
    learn, held = read(recipe.data.train, "train"), {}
    total = len(learn)
    for name, seed in seeds.items():
        source = data.source_of(recipe.data, name, objects)
        if source is not None:
            held[name] = read(source, name)
            continue
        share = getattr(recipe.data, name)
        size = _usual(learn) if share is None else round(share * total)
        if share is not None and not 0 < size < len(learn):
            raise InputError(
                f"{len(learn)} training examples are too few to hold out {size} for {name}; give data.{name}=FILE, or "
                "another fraction"
            )
        learn, held[name] = data.split_corpus(learn, size, recipe.seed + seed)
    return learn, held


def _usual(table: Dataset) -> int:
    """How many lines or conversations are held out where the recipe does not say."""
    return min(HELD_LINES, max(len(table) // 10, 1))


def _refuse_prompts_alone(recipe: Recipe) -> None:
    """Refuse what learns from the data's answers where the data have none."""
    path = recipe.data.train.path
    for stage in recipe.stages:
        if stage.on == "train":
            raise InputError(
                f"{path} holds prompts without answers, and stage '{stage.name}' learns from the data's answers; give "
                f"data with answers, or leave the stage out with stages.{stage.name}=null"
            )
    if recipe.baseline:
        raise InputError(
            f"{path} holds prompts without answers, and the baseline learns from answers that are not the teacher's; "
            "give data with answers, or baseline=false"
        )


def _language_table(source: Source, use: str, objects: Mapping[str, Any], answers: bool = True) -> Dataset:
    """A table of text or conversations; unless `answers`, of prompts alone where it holds no others."""
    table = data.read(source, use, objects)
    if not data.is_chat(table):
        return data.read_corpus(source, use, objects)
    return data.read_chat(table) if answers else data.read_chat_or_prompts(table)


def texts_for_cutting(recipe: Recipe, objects: Mapping[str, Any]) -> list[str] | None:
    """Some of the training text of a language model, where a student's units or layers are chosen by what they do."""
    if recipe.student.width is None and recipe.student.pattern_of(recipe.task.kind) != "influence":
        return None
    return some_texts(_language_table(recipe.data.train, "train", objects, recipe.data.generation is None))


def some_texts(table: Dataset) -> list[str]:
    """The first texts of a table, to try a tokenizer on; none of a table without text."""
    if "messages" in table.column_names:
        return [turn["content"] for messages in table["messages"][:200] for turn in messages]
    return list(table["text"][:200]) if "text" in table.column_names else []
