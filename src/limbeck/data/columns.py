"""Which columns hold the inputs and the label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from datasets import ClassLabel, Dataset, Value

from limbeck.errors import InputError
from limbeck.images import is_image
from limbeck.recipe.data import Data
from limbeck.recipe.sections import nearest
from limbeck.tasks.features import is_nominal
from limbeck.tasks.task import Inputs

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
    """Column names of inputs, and of labels (several for 0/1 tables; none where there are no labels).

    Attributes:
        inputs: one or two of text, one of images, or those of the features.
        label: the labels'.
        kind: what the inputs are.
        inferred: those that the recipe does not state.
        nominal: of features, those that hold names and not numbers, in the table that the columns were found in.
    """

    inputs: tuple[str, ...]
    label: tuple[str, ...]
    kind: Inputs = "text"
    inferred: tuple[str, ...] = ()
    nominal: tuple[str, ...] = ()


def find_columns(table: Dataset, data: Data, labelled: bool = True) -> Columns:
    """The columns that the recipe states, or those that common names and types suggest.

    Raises:
        InputError: a stated column is missing, or nothing can be inferred; the message lists the table's columns.
    """
    names = table.column_names
    stated = _stated(data)
    if len(stated) > 1:
        raise InputError(f"{' and '.join(f'data.{kind}' for kind in stated)} are given; an example is one of them")
    kind, columns = next(iter(stated.items()), (None, ()))
    if kind == "text" and len(columns) > 2:
        raise InputError(f"data.text names {len(columns)} columns ({', '.join(columns)}); one or two make an example")
    stated_label = (data.label,) if isinstance(data.label, str) else tuple(data.label or ())
    for key, given in ((kind, columns), ("label", stated_label if labelled else ())):
        for name in given:
            if name not in names:
                raise InputError(f"data.{key} names column '{name}', which is not in the data; {nearest(name, names)}")
    label = stated_label if labelled else ()
    if labelled and not label:
        label = label_column(table)
        if not label:
            raise InputError(f"cannot tell the label column among {', '.join(names)}; add data.label=NAME")
    inferred = () if stated_label else label
    if kind is None:
        kind, columns = _infer_inputs(table, label)
        inferred = columns + inferred
    _check_types(table, kind, columns)
    if kind != "features":
        return Columns(columns, label, kind, inferred)
    columns = tuple(name for name in columns if name not in label)
    return Columns(columns, label, kind, inferred, tuple(name for name in columns if is_nominal(table, name)))


def _stated(data: Data) -> dict[Inputs, tuple[str, ...]]:
    """The columns that the recipe names, by what they hold."""
    given: dict[Inputs, list[str] | str | None] = {"text": data.text, "image": data.image, "features": data.features}
    return {kind: (each,) if isinstance(each, str) else tuple(each) for kind, each in given.items() if each}


def _check_types(table: Dataset, kind: Inputs, columns: tuple[str, ...]) -> None:
    """Refuse columns that hold something else than they are said to."""
    for name in columns:
        held = getattr(table.features[name], "dtype", table.features[name])
        if kind == "text" and not _is_text(table, name):
            raise InputError(f"text column '{name}' holds {held}, not text; add data.text=NAME")
        if kind == "image" and not is_image(table, name):
            raise InputError(
                f"image column '{name}' holds {held}, not images; give a folder of class folders, an .npz file of "
                "arrays, or a table saved by datasets with an Image column"
            )
        if kind == "features" and not isinstance(table.features[name], (Value, ClassLabel)):
            raise InputError(f"feature column '{name}' holds {held}; one number or name a row is read")


def label_column(table: Dataset) -> tuple[str, ...]:
    """The label column by its usual names, or none."""
    return _only(name for name in LABELS if name in table.column_names)


def _infer_inputs(table: Dataset, label: tuple[str, ...]) -> tuple[Inputs, tuple[str, ...]]:
    """What an example is made of, and the columns that hold it."""
    names = [name for name in table.column_names if name not in label]
    images = _only(name for name in names if is_image(table, name))
    if images:
        return "image", images
    numbers = [name for name in names if not is_nominal(table, name)]
    if numbers and numbers == names and not set(names) & set(TEXTS):
        return "features", tuple(names)
    return "text", _infer_text(table, label)


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
    raise InputError(
        f"cannot tell the text column among {', '.join(names)}; add data.text=NAME (two for pairs), or "
        "data.features=[NAME, ...] for a table of numbers and names"
    )


def _only(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)[:1]


def _is_text(table: Dataset, name: str) -> bool:
    feature = table.features[name]
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")
