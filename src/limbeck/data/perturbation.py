"""More texts for a teacher to label: words masked, others of their kind in their place, n-grams (Tang et al. 2019)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from limbeck import extras
from limbeck.checkpoints import Checkpoint
from limbeck.data.copies import Alter, altered_copies, rows_of, text_columns
from limbeck.data.text_shards import Row
from limbeck.errors import InputError
from limbeck.folder import table_fingerprint
from limbeck.recipe.data import Augmentation
from limbeck.tasks import Task

VERSION = 1
LONGEST = 5
"""The most words of an n-gram that is left of a text."""
# A word with its apostrophes and hyphens, or what follows a contracted word's apostrophe where it stands alone.
_WORD = re.compile(r"['’](?:s|t|re|ve|m|ll|d)\b|\w+(?:['’-]\w+)*")  # noqa: RUF001

Tagger = Callable[[list[str]], list[str]]


class Unigrams(NamedTuple):
    """How often the words with a tag are used.

    Attributes:
        words: in alphabetical order.
        sums: each one's uses and those of all before it.
    """

    words: list[str]
    sums: list[int]

    def word(self, chance: float) -> str:
        """The word at a share of all uses, from 0 to below 1."""
        return self.words[bisect_right(self.sums, chance * self.sums[-1])]


def perturb(texts: Dataset, task: Task, settings: Augmentation, mask: str | None, root: Path, seed: int) -> Dataset:
    """Altered copies of the examples (Tang et al. 2019, section 3), made once and kept; see `altered_copies`.

    `settings.copies` times, a number u from 0 to 1 is drawn for each word: below `settings.mask` the word becomes the
    mask, below `settings.mask + settings.same_tag` a word with the same part of speech, drawn as often as the training
    texts use it (the same one perhaps), else it stays. Then with chance `settings.ngram` all is left out but 1 to 5
    words in a row. Of a pair one text or the other or both are altered, each with chance a third. What stands between
    words stays. An example's draws follow from the seed and its number alone, so that fewer copies are the first ones
    of more. Differs from the authors' code: the tags are TextBlob's, and texts of which every word was replaced are
    kept.

    Args:
        texts: columns `text` and for pairs `text_pair`; others are not read.
        task: says whether an example is one text or two.
        settings: the recipe's section.
        mask: what stands for a masked word; see `mask_word`.
        root: the folder that keeps what can be reused, such as a run's knowledge.
        seed: fixes the draws.

    Returns:
        The text columns of the new rows, each different from the others and from all originals.

    Raises:
        InputError: no new text at all, a damaged or foreign folder, or too little disk.
    """
    texts = text_columns(texts, task)

    def prepare() -> Alter:
        tag = _tagger() if settings.same_tag else _no_tags
        unigrams = count_words((text for row in rows_of(texts) for text in row), tag) if settings.same_tag else {}

        def alter(start: int, rows: list[Row], title: str) -> Iterator[Row]:
            for number, row in enumerate(rows, start):
                draw = np.random.default_rng([seed, number])
                parts = [_Text(text, tag) for text in row]
                for _ in range(settings.copies):
                    which = int(draw.integers(3)) if len(parts) == 2 else 2  # the first, the second, all
                    yield tuple(
                        part.altered(settings, mask, unigrams, draw) if which in (place, 2) else part.text
                        for place, part in enumerate(parts)
                    )

        return alter

    how = "data.augmentation's mask, same_tag and ngram drew nothing new; raise them, or leave data.augmentation out"
    spec = {
        "format": VERSION,
        "texts": table_fingerprint(texts),
        "mask": [mask, settings.mask] if settings.mask else None,
        "same_tag": [f"textblob {version('textblob')}", settings.same_tag] if settings.same_tag else None,
        "ngram": settings.ngram,
        "copies": settings.copies,
        "seed": seed,
    }
    return altered_copies(texts, root, spec, settings.copies, prepare, how)


def mask_word(settings: Augmentation | None, readers: Sequence[Checkpoint]) -> str | None:
    """What stands for a masked word in a text: the mask token that all readers have; none where nothing is masked.

    Raises:
        InputError: a tokenizer without one, or two that differ; the tagger that `same_tag` needs is not installed.
    """
    if settings is None:
        return None
    if settings.same_tag:
        extras.require("tags", "data.augmentation.same_tag (0 does without)")
    if not settings.mask:
        return None
    first = readers[0]
    for reader in readers:
        if reader.tokenizer.mask_token is None:
            raise InputError(
                f"data.augmentation.mask puts a mask token in the place of words, and the tokenizer of '{reader.name}' "
                "has none; set data.augmentation.mask=0"
            )
        if reader.tokenizer.mask_token != first.tokenizer.mask_token:
            raise InputError(
                f"data.augmentation.mask puts a mask token in the place of words, which is "
                f"{first.tokenizer.mask_token} to '{first.name}' and {reader.tokenizer.mask_token} to '{reader.name}'; "
                "set data.augmentation.mask=0"
            )
    return str(first.tokenizer.mask_token)


def count_words(texts: Iterable[str], tag: Tagger) -> dict[str, Unigrams]:
    """The words of texts by their part of speech, with how often each stands there."""
    counts: dict[str, Counter[str]] = {}
    for text in texts:
        words = _WORD.findall(text)
        for word, kind in zip(words, tag(words), strict=True):
            counts.setdefault(kind, Counter())[word] += 1
    found = {}
    for kind, count in counts.items():
        words = sorted(count)
        found[kind] = Unigrams(words, list(accumulate(count[word] for word in words)))
    return found


class _Text:
    """A text's words, where they stand and what kind they are."""

    def __init__(self, text: str, tag: Tagger) -> None:
        self.text = text
        self.spans = [match.span() for match in _WORD.finditer(text)]
        self.words = [text[start:end] for start, end in self.spans]
        self.tags = tag(self.words)

    def altered(
        self,
        settings: Augmentation,
        mask: str | None,
        unigrams: Mapping[str, Unigrams],
        draw: np.random.Generator,
    ) -> str:
        """One copy."""
        count = len(self.words)
        chances, picks = draw.random((2, count)).tolist()
        cut, size, place = draw.random(3)
        words = []
        for word, tag, chance, pick in zip(self.words, self.tags, chances, picks, strict=True):
            if mask is not None and chance < settings.mask:
                words.append(mask)
            elif chance < settings.mask + settings.same_tag:
                words.append(unigrams[tag].word(pick))
            else:
                words.append(word)
        first, last = 0, count
        if cut < settings.ngram and count:
            kept = min(1 + int(size * LONGEST), count)
            first = int(place * (count - kept + 1))
            last = first + kept
        ends = [0, *(end for _, end in self.spans)]
        gaps = [self.text[ends[number] : start] for number, (start, _) in enumerate(self.spans)]
        told = [gap + word for gap, word in zip(gaps, words, strict=True)][first:last]
        if last - first < count:
            return "".join(told)[len(gaps[first]) :]
        return "".join(told) + self.text[ends[-1] :]


def _no_tags(words: list[str]) -> list[str]:
    return [""] * len(words)


def _tagger() -> Tagger:
    from textblob.en import parser

    def tag(words: list[str]) -> list[str]:
        found: list[list[Any]] = parser.find_tags(words)
        return [str(kind) for _, kind in found]

    return tag
