"""Plain text to learn a language from: lines, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Value

from limbeck.data.reading import read
from limbeck.errors import InputError
from limbeck.recipe.data import Source


def read_corpus(source: Source, use: str = "train", objects: Mapping[str, Any] | None = None) -> Dataset:
    """The lines of a corpus; a label column, if any, is not read.

    Args:
        source: a .txt file, or any other table with a column `text` or a single one of text.
        use: see `read`.
        objects: see `read`.

    Returns:
        One column `text`, as it was written; empty and blank lines are left out.

    Raises:
        InputError: see `read`; no text column can be told; nothing but blank lines.
    """
    table = read(source, use, objects)
    column = _text_column(table, source)
    lines = table.select_columns(column).rename_columns({column: "text"})
    # An index in memory beside the table, which itself stays on disk.
    lines = lines.filter(_filled, batched=True, keep_in_memory=True, load_from_cache_file=False, desc="Reading text")
    if len(lines) == 0:
        raise InputError(f"{source.path} holds {len(table)} lines, all blank; a corpus needs text")
    return lines


def split_corpus(table: Dataset, held: int, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out some lines at random.

    Args:
        table: the lines of a corpus.
        held: how many to hold out, fewer than there are.
        seed: which.

    Returns:
        The lines to learn from, and those held out; both in the corpus's order.

    Raises:
        InputError: a single line.
    """
    if len(table) < 2:
        raise InputError("a corpus of 1 line leaves none to hold out; break the text into lines")
    order = np.random.default_rng(seed).permutation(len(table))
    return table.select(np.sort(order[held:])), table.select(np.sort(order[:held]))


def _text_column(table: Dataset, source: Source) -> str:
    kinds = {name: feature.dtype for name, feature in table.features.items() if isinstance(feature, Value)}
    strings = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
    if "text" not in strings and len(strings) != 1:
        raise InputError(
            f"cannot tell the text column of {source.path} among {', '.join(table.column_names)}; name it 'text'"
        )
    return "text" if "text" in strings else strings[0]


def _filled(columns: Mapping[str, list[str | None]]) -> list[bool]:
    return [bool(line and line.strip()) for line in columns["text"]]
