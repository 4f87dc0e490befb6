"""From raw tables to train, validation, test and transfer sets with the columns every other room reads."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from sklearn.model_selection import train_test_split

from limbeck.data.columns import Columns
from limbeck.data.labels import encode_labels
from limbeck.data.reading import RawData
from limbeck.errors import InputError
from limbeck.images import check_images, image_bytes
from limbeck.tasks.task import Task


@dataclass
class Splits:
    """The examples of a run; the task's columns and `label`.

    Attributes:
        train: labelled examples to learn from.
        validation: labelled examples to choose by.
        test: labelled examples to report on.
        transfer: what the teacher is asked: `train`, then the unlabelled text with missing labels.
        notices: what the user should know, a sentence each.
        corpus: plain text for stages of masked words, column `text`.
        corpus_held: some of it that no stage learns from.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    transfer: Dataset
    notices: list[str] = field(default_factory=list)
    corpus: Dataset | None = None
    corpus_held: Dataset | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The number of examples by part, and of lines of plain text where there is some."""
        names = ("train", "transfer", "validation", "test", *(("corpus",) if self.corpus is not None else ()))
        return {name: len(getattr(self, name)) for name in names}


def split(raw: RawData, columns: Columns, task: Task, seed: int) -> Splits:
    """Check the examples, cut the parts that are given as fractions (seeded; stratified by class), and rename columns.

    Raises:
        InputError: empty text, a bad label, or too few examples to split.
    """
    notices: list[str] = []
    train = labelled_table(raw.train, columns, task, "train")
    parts: dict[str, Dataset] = {}
    total = len(train)
    for name, part in (("test", raw.test), ("validation", raw.validation)):
        if isinstance(part, Dataset):
            parts[name] = labelled_table(part, columns, task, name)
        else:
            train, parts[name] = _cut(train, round(part * total), task, seed, name, notices)
    transfer = train
    if raw.unlabelled is not None:
        more = labelled_table(raw.unlabelled, replace(columns, label=()), task, "unlabelled")
        transfer = add_unlabelled(train, more, task)
    _find_leaks(transfer, parts["test"], task, notices)
    return Splits(train, parts["validation"], parts["test"], transfer, notices)


def add_unlabelled(table: Dataset, texts: Dataset, task: Task) -> Dataset:
    """A table with more texts at its end, whose labels are missing."""
    missing = [task.missing_label()] * len(texts)
    return concatenate_datasets([table, texts.add_column("label", missing, feature=table.features["label"])])


def labelled_table(table: Dataset, columns: Columns, task: Task, name: str) -> Dataset:
    """A table with the task's columns and, where there are labels, `label` in the task's form.

    Raises:
        InputError: a missing column, empty text, a missing image, a value that is no number, or a bad label; names the
            row.
    """
    for column in columns.inputs + columns.label:
        if column not in table.column_names:
            raise InputError(f"the {name} data has no column '{column}'; it has {', '.join(table.column_names)}")
    found = _inputs(table, columns, task, name)
    if not columns.label:
        return found
    feature = {
        "classification": Value("int64"),
        "multi-label": List(Value("float32"), length=task.outputs),
        "regression": Value("float32"),
    }[task.kind]
    return found.add_column("label", encode_labels(table, columns, task), feature=feature)


def _inputs(table: Dataset, columns: Columns, task: Task, name: str) -> Dataset:
    """The columns of the examples, checked and named as the task names them."""
    if columns.kind == "image":
        check_images(table, columns.inputs[0], name)
        return table.select_columns(list(columns.inputs)).rename_columns(
            dict(zip(columns.inputs, task.columns, strict=True))
        )
    if columns.kind == "features":
        return _features(table, columns, name)
    content: dict[str, list[Any]] = {}
    for column, source in zip(task.columns, columns.inputs, strict=True):
        values = table[source][:]
        empty = [row for row, value in enumerate(values) if value is None or not value.strip()]
        if empty:
            raise InputError(
                f"{len(empty)} of {len(values)} texts in column '{source}' of the {name} data are empty "
                f"(first: row {empty[0] + 1}); remove these rows"
            )
        content[column] = values
    return Dataset.from_dict(content, features=Features({column: Value("string") for column in content}))


def _features(table: Dataset, columns: Columns, name: str) -> Dataset:
    """Columns of numbers (float64) and names (text), none of them missing; which is which, all tables share."""
    content: dict[str, list[Any]] = {}
    features: dict[str, Value] = {}
    for column in columns.inputs:
        if column == "label":
            raise InputError("a feature column is called 'label', which names what is predicted; rename it")
        nominal = column in columns.nominal
        values = _names(table, column, name) if nominal else _numbers(table, column, name)
        missing = [row for row, v in enumerate(values) if v is None or (isinstance(v, float) and not math.isfinite(v))]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(values)} values in column '{column}' of the {name} data are missing or not "
                f"finite (first: row {missing[0] + 1}); fill or remove these rows, or leave the column "
                "out of data.features"
            )
        content[column] = values
        features[column] = Value("string" if nominal else "float64")
    return Dataset.from_dict(content, features=Features(features))


def _names(table: Dataset, column: str, name: str) -> list[str | None]:
    """A column of names; numbers are none but whole ones, which are written in one way alone."""
    values = table[column][:]
    broken = next((row for row, value in enumerate(values) if isinstance(value, float)), None)
    if broken is not None:
        raise InputError(
            f"column '{column}' of the {name} data holds the number {values[broken]} (row {broken + 1}), and the "
            "training data hold names there, as one value that is no number makes all of a column; repair either"
        )
    return [None if value is None else str(value) for value in values]


def _numbers(table: Dataset, column: str, name: str) -> list[float | None]:
    """A column of numbers, also where they are written as text."""
    found: list[float | None] = []
    for row, value in enumerate(table[column][:], 1):
        try:
            found.append(None if value is None else float(value))
        except (TypeError, ValueError):
            raise InputError(
                f"column '{column}' of the {name} data holds {value!r} (row {row}), and the training data hold numbers "
                "there; repair or remove the row, or leave the column out of data.features"
            ) from None
    return found


def _cut(table: Dataset, size: int, task: Task, seed: int, name: str, notices: list[str]) -> tuple[Dataset, Dataset]:
    if size < 1 or size > len(table) - 2:
        raise InputError(
            f"{len(table)} training examples are too few to hold out {size} for {name}; give data.{name}=FILE"
        )
    labels = table["label"][:]
    strata = _stratification(labels, task, size / len(table))
    if strata is None and task.kind == "classification":
        notices.append(f"some class is too rare to stratify the {name} split; it is drawn at random")
    rest, held = train_test_split(np.arange(len(table)), test_size=size, random_state=seed, stratify=strata)
    return table.select(np.sort(rest)).flatten_indices(), table.select(np.sort(held)).flatten_indices()


def _stratification(labels: list[Any], task: Task, smallest: float) -> np.ndarray | None:
    """Class numbers to stratify by, or none where some class is too rare for its share of the smallest part."""
    if task.kind != "classification":
        return None
    numbers = np.array(labels)
    rarest = np.unique(numbers, return_counts=True)[1].min()
    return numbers if rarest * smallest >= 1 else None


def _find_leaks(transfer: Dataset, test: Dataset, task: Task, notices: list[str]) -> None:
    def keys(table: Dataset) -> list[Any]:
        if task.inputs == "image":
            return [hashlib.blake2b(each, digest_size=16).digest() for each in image_bytes(table)]
        return list(zip(*(table[column][:] for column in task.columns), strict=True))

    seen = set(keys(transfer))
    leaked = sum(key in seen for key in keys(test))
    if leaked:
        notices.append(f"{leaked} of {len(test)} test examples also stand in the training or unlabelled data")
