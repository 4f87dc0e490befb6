"""From a raw label column to class numbers, multi-hot rows or values, agreed with the teacher's label set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from limbeck.data.columns import Columns
from limbeck.errors import InputError
from limbeck.tasks.task import Kind, Task


def resolve_task(
    table: Dataset, columns: Columns, kind: Kind, stated: Sequence[str] | None, teacher: Sequence[str] | None
) -> Task:
    """The task, with the label names that data and teacher agree on.

    Args:
        table: the training examples.
        columns: where text and labels are.
        kind: the kind of problem.
        stated: the recipe's `task.labels`, in the order of the outputs.
        teacher: the teacher's label names (`LABEL_0`, ... where it never named them), or none.

    Raises:
        InputError: a missing label, one class only, or label sets that differ.
    """
    if kind == "regression":
        return _regression_task(table, columns, teacher)
    found = _label_names(table, columns, kind)
    generic = teacher is None or all(name == f"LABEL_{i}" for i, name in enumerate(teacher))
    numbers = all(isinstance(name, int) for name in found)
    agreed = tuple(stated or ()) or (None if generic else tuple(teacher or ()))
    if agreed is None:
        if teacher is not None and not numbers:
            raise InputError(
                f"the data's labels are {_listed(found)}, the teacher's are unnamed ({_listed(teacher)}); "
                "state their order with task.labels=[...]"
            )
        agreed = tuple(map(str, found)) if teacher is None else tuple(map(str, range(len(teacher))))
    if teacher is not None and len(agreed) != len(teacher):
        raise InputError(f"task.labels names {len(agreed)} labels, the teacher has {len(teacher)} ({_listed(teacher)})")
    if teacher is not None and not generic and agreed != tuple(teacher) and set(agreed) == set(teacher):
        raise InputError(
            f"task.labels has the order {_listed(agreed)}, and the teacher's outputs that of {_listed(teacher)}; drop "
            "task.labels"
        )
    hot = numbers and kind == "multi-label" and _is_multi_hot(_values(table, columns))
    by_place = numbers and (hot or not _any_numeric(agreed))
    known = set(range(len(agreed))) if by_place else set(agreed)
    seen = set(found) if by_place else set(map(str, found))
    complete = hot or len(columns.label) > 1 or (kind == "classification" and teacher is not None)
    if not seen <= known or (complete and seen != known):
        whose = "the teacher's" if teacher is not None and not stated else "task.labels"
        raise InputError(
            f"the data's labels are {_listed(found)}, {whose} are {_listed(agreed)}; "
            "give a matching teacher or data, or map them with task.labels=[...]"
        )
    return task_about(kind, agreed, columns)


def lump(table: Dataset, columns: Columns, labels: Sequence[str], others: str) -> Dataset:
    """A table in which every label that is not among these is `others`; missing ones stay."""
    name = columns.label[0]
    feature = table.features[name]
    values = [feature.names[v] if isinstance(feature, ClassLabel) and v >= 0 else v for v in table[name][:]]
    lumped = [v if v is None or str(v) in labels else others for v in values]
    return table.remove_columns([name]).add_column(name, [None if v is None else str(v) for v in lumped])


def task_about(kind: Kind, labels: Sequence[str], columns: Columns) -> Task:
    """The task of predicting these labels from these columns."""
    features = columns.inputs if columns.kind == "features" else ()
    return Task(kind, tuple(labels), columns.kind == "text" and len(columns.inputs) == 2, columns.kind, features)


def encode_labels(table: Dataset, columns: Columns, task: Task) -> list[Any]:
    """One label per example in the task's form.

    Raises:
        InputError: a missing, non-finite or unknown label; the message names the row.
    """
    if task.kind == "multi-label" and len(columns.label) > 1:
        rows = list(zip(*(table[name][:] for name in task.labels), strict=True))
        for index, row in enumerate(rows):
            if any(value not in (0, 1) for value in row):
                raise InputError(f"row {index + 1}: label columns {', '.join(task.labels)} hold {row}, not 0 and 1")
        return [[float(value) for value in row] for row in rows]
    values = _values(table, columns)
    if task.kind == "regression":
        return [float(value) for value in values]
    index_of: dict[Any, int] = {name: index for index, name in enumerate(task.labels)}
    if not _any_numeric(task.labels):
        index_of |= {index: index for index in range(task.outputs)}
    if task.kind == "classification":
        return [_index(value, index_of, row, columns.label[0]) for row, value in enumerate(values)]
    if _is_multi_hot(values) and len(values[0]) == task.outputs:
        return [[float(value) for value in row] for row in values]
    encoded = []
    for number, names in enumerate(values):
        on = {_index(name, index_of, number, columns.label[0]) for name in names}
        encoded.append([float(index in on) for index in range(task.outputs)])
    return encoded


def _regression_task(table: Dataset, columns: Columns, teacher: Sequence[str] | None) -> Task:
    if teacher is not None and len(teacher) != 1:
        raise InputError(f"task.kind is regression, but the teacher has {len(teacher)} outputs ({_listed(teacher)})")
    values = _values(table, columns)
    if not all(isinstance(value, (int, float)) for value in values):
        raise InputError(f"label column '{columns.label[0]}' holds {values[0]!r}; regression needs numbers")
    if len(set(values)) < 2:
        raise InputError(f"every label in column '{columns.label[0]}' is {values[0]}; there is nothing to learn")
    return task_about("regression", (columns.label[0],), columns)


def _label_names(table: Dataset, columns: Columns, kind: Kind) -> list[int | str]:
    """The distinct labels of the data: names, or class numbers."""
    if kind == "multi-label" and len(columns.label) > 1:
        return list(columns.label)
    if len(columns.label) > 1:
        raise InputError(f"data.label names {len(columns.label)} columns; that is for task=multi-label")
    values = _values(table, columns)
    if kind == "multi-label":
        if not isinstance(values[0], list):
            raise InputError(
                f"label column '{columns.label[0]}' holds {values[0]!r}; multi-label needs a list in each row, "
                "or several 0/1 columns: data.label=[a, b, c]"
            )
        declared = getattr(table.features[columns.label[0]].feature, "names", None)
        if declared:
            return list(declared)
        found = set(range(len(values[0]))) if _is_multi_hot(values) else {name for row in values for name in row}
    else:
        if isinstance(values[0], list):
            raise InputError(f"label column '{columns.label[0]}' holds lists ({values[0]}); add task=multi-label")
        declared = table.features[columns.label[0]]
        found = set(values)
        if len(found) < 2:
            raise InputError(f"every label in column '{columns.label[0]}' is {values[0]!r}; two classes are needed")
        if isinstance(declared, ClassLabel):
            return list(declared.names)
    if any(isinstance(value, float) for value in found):
        odd = next(value for value in found if isinstance(value, float))
        raise InputError(f"label column '{columns.label[0]}' holds {odd}, not a class; is this task=regression?")
    mixed = len({isinstance(value, str) for value in found}) > 1
    return sorted(found, key=str) if mixed else sorted(found)


def _values(table: Dataset, columns: Columns) -> list[Any]:
    """The label column: whole floats (a csv's) as integers, ClassLabel numbers as their names; none missing."""
    name = columns.label[0]
    values = table[name][:]
    missing = [row for row, v in enumerate(values) if v is None or (isinstance(v, float) and not math.isfinite(v))]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(values)} labels in column '{name}' are missing or not finite (first: row "
            f"{missing[0] + 1}); fill or remove these rows, or give them as data.unlabelled"
        )
    feature = table.features[name]
    if isinstance(feature, ClassLabel):
        return [feature.names[value] if value >= 0 else value for value in values]
    inner = getattr(feature, "feature", None)
    if isinstance(inner, ClassLabel):
        return [[inner.names[value] for value in row] for row in values]
    if isinstance(values[0], float) and all(value.is_integer() for value in values):
        return [int(value) for value in values]
    return [int(value) for value in values] if isinstance(values[0], bool) else values


def _is_multi_hot(values: list[Any]) -> bool:
    """Equally long rows of nothing but 0 and 1, too many of them for lists of different class numbers.

    Rows of two are 0/1 rows even where each holds both numbers: as lists they would give every example every label.
    """
    widths = {len(row) for row in values}
    flat = {value for row in values for value in row}
    repeated = widths == {2} or any(len(set(row)) < len(row) for row in values)
    return len(widths) == 1 and widths != {0} and flat <= {0, 1} and repeated


def _any_numeric(labels: Sequence[str]) -> bool:
    """Whether some name is a number. Then numbers in the data are names; else they are places in the label list."""
    return any(name.lstrip("-").isdecimal() for name in labels)


def _index(value: Any, index_of: dict[Any, int], row: int, column: str) -> int:  # noqa: ANN401
    index = index_of.get(value, index_of.get(str(value)))
    if index is None:
        names = [name for name in index_of if isinstance(name, str)]
        raise InputError(f"row {row + 1}: label {value!r} in column '{column}' is not among {_listed(names)}")
    return index


def _listed(names: Sequence[object]) -> str:
    shown = [str(name) for name in names[:8]]
    return f"{', '.join(shown)}{', ...' if len(names) > 8 else ''}"
