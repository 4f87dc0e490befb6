"""Which columns hold the text and the label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from datasets import Dataset, Value

from limbeck.errors import InputError
from limbeck.recipe.schema import Data
from limbeck.recipe.sections import nearest

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("text1", "text2"),
    ("text", "text_pair"),
)
TEXTS = ("text", "sentence", "review", "content", "comment", "body", "document", "tweet", "message", "utterance")
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "score", "rating", "stars")


@dataclass(frozen=True)
class Columns:
    """Column names: one or two of text, and one of labels (several for 0/1 tables; none where there are no labels)."""

    text: tuple[str, ...]
    label: tuple[str, ...]
    inferred: tuple[str, ...] = ()


def find_columns(table: Dataset, data: Data, labelled: bool = True) -> Columns:
    """The columns that the recipe states, or those that common names and types suggest.

    Raises:
        InputError: a stated column is missing, or nothing can be inferred; the message lists the table's columns.
    """
    names = table.column_names
    stated_text = (data.text,) if isinstance(data.text, str) else tuple(data.text or ())
    stated_label = (data.label,) if isinstance(data.label, str) else tuple(data.label or ())
    if len(stated_text) > 2:
        raise InputError(
            f"data.text names {len(stated_text)} columns ({', '.join(stated_text)}); one or two make an example"
        )
    for key, stated in (("text", stated_text), ("label", stated_label if labelled else ())):
        for name in stated:
            if name not in names:
                raise InputError(f"data.{key} names column '{name}', which is not in the data; {nearest(name, names)}")
    label = stated_label if labelled else ()
    if labelled and not label:
        label = label_column(table)
        if not label:
            raise InputError(f"cannot tell the label column among {', '.join(names)}; add data.label=NAME")
    text = stated_text or _infer_text(table, label)
    for name in text:
        if not _is_text(table, name):
            kind = getattr(table.features[name], "dtype", table.features[name])
            raise InputError(f"text column '{name}' holds {kind}, not text; add data.text=NAME")
    inferred = (() if stated_text else text) + (() if stated_label else label)
    return Columns(text, label, inferred)


def label_column(table: Dataset) -> tuple[str, ...]:
    """The label column by its usual names, or none."""
    return _only(name for name in LABELS if name in table.column_names)


def _infer_text(table: Dataset, label: tuple[str, ...]) -> tuple[str, ...]:
    names = table.column_names
    for pair in PAIRS:
        if set(pair) <= set(names):
            return pair
    known = _only(name for name in TEXTS if name in names)
    if known:
        return known
    strings = [name for name in names if _is_text(table, name) and name not in label]
    if len(strings) == 1:
        return (strings[0],)
    raise InputError(f"cannot tell the text column among {', '.join(names)}; add data.text=NAME (or two for pairs)")


def _only(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)[:1]


def _is_text(table: Dataset, name: str) -> bool:
    feature = table.features[name]
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")
