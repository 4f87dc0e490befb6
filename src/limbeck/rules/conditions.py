"""Which inputs a rule is about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.rules.file import Rule, When

Texts = Mapping[str, Sequence[str]]
"""Columns `text`, and `text_pair` for pairs: a dict of lists or a `datasets.Dataset`."""
Flags = NDArray[np.bool_]


def applies(rules: Sequence[Rule], texts: Texts) -> Flags:
    """Which rules are about which inputs.

    Args:
        rules: R rules.
        texts: N inputs.

    Returns:
        bool [N, R].
    """
    columns = {name: list(texts[name]) for name in _columns(texts)}
    if len(columns) == 2:
        columns["both"] = ["\n".join(pair) for pair in zip(columns["text"], columns["text_pair"], strict=True)]
    found = np.ones((len(columns["text"]), len(rules)), dtype=bool)
    for number, rule in enumerate(rules):
        if rule.when is not None:
            found[:, number] = _holds(rule.when, columns)
    return found


def spelled(phrase: str) -> tuple[str, bool]:
    """A phrase as a regular expression, with any white space between its words; whether it may begin a longer word."""
    words = phrase.strip().removesuffix("*").split()
    return r"\s+".join(re.escape(word) for word in words), phrase.strip().endswith("*")


def whole_words(phrases: Sequence[str]) -> re.Pattern[str]:
    """Finds any of these phrases, in upper or lower case."""
    each = [letters if begins else rf"{letters}(?!\w)" for letters, begins in map(spelled, phrases)]
    return re.compile(rf"(?<!\w)(?:{'|'.join(each)})", re.IGNORECASE)


def parts(when: When | None) -> set[str]:
    """The texts of a pair that a condition asks for by name."""
    if when is None:
        return set()
    inner = [*(when.any or []), *([when.unless] if when.unless else [])]
    return set().union({when.part} if when.part else set(), *(parts(each) for each in inner))


def _columns(texts: Texts) -> list[str]:
    names: Any = getattr(texts, "column_names", texts)
    return [name for name in ("text", "text_pair") if name in names]


def _holds(when: When, columns: dict[str, list[str]]) -> Flags:
    texts = columns[when.part or ("both" if "both" in columns else "text")]
    met = np.ones(len(texts), dtype=bool)
    patterns = [whole_words(when.words)] if when.words else []
    patterns += [re.compile(when.matches)] if when.matches is not None else []
    for pattern in patterns:
        met &= np.fromiter((pattern.search(text) is not None for text in texts), bool, len(texts))
    if when.min_words is not None or when.max_words is not None:
        lengths = np.fromiter((len(text.split()) for text in texts), int, len(texts))
        met &= (lengths >= (when.min_words or 0)) & (lengths <= (when.max_words or np.inf))
    if when.any is not None:
        met &= np.any([_holds(each, columns) for each in when.any], axis=0)
    if when.unless is not None:
        met &= ~_holds(when.unless, columns)
    return met
