"""The nearest words of a word, among word vectors from a file or a model's input embeddings."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from limbeck import hardware
from limbeck.checkpoints import Checkpoint
from limbeck.data.words import is_word, others, spellings, whole_words
from limbeck.errors import InputError

# Candidates come from so many words at the beginning of a file, the frequent ones; so do the authors' own.
FREQUENT = 100_000
_BLOCK = 512


class WordVectors(NamedTuple):
    """What is asked and what may be the answer.

    Attributes:
        words: the words that have a vector.
        own: their vectors, float32 [W, d].
        vocabulary: the words that can be proposed.
        vectors: their vectors, float32 [V, d].
    """

    words: list[str]
    own: torch.Tensor
    vocabulary: list[str]
    vectors: torch.Tensor


def nearest_words(space: WordVectors, count: int) -> dict[str, list[str]]:
    """For each word the `count` words of greatest cosine, nearest first, itself in any case left out."""
    found: dict[str, list[str]] = {}
    vectors = normalize(space.vectors.to(hardware.device()), dim=-1)
    kept = min(count + spellings(space.vocabulary), len(space.vocabulary))
    for start in range(0, len(space.words), _BLOCK):
        own = space.own[start : start + _BLOCK].to(vectors.device)
        # The word's own length changes nothing about the order.
        best = (own @ vectors.T).topk(kept).indices.tolist()
        for word, row in zip(space.words[start : start + _BLOCK], best, strict=True):
            found[word] = others((space.vocabulary[number] for number in row), {word.casefold()}, count)
    return found


def from_embeddings(checkpoint: Checkpoint, words: Sequence[str]) -> WordVectors:
    """A model's input embeddings: its whole-word entries, and of each word the mean over its pieces.

    A word with a piece that the tokenizer does not know has no vector.
    """
    model, tokenizer, _ = checkpoint
    table = model.get_input_embeddings().weight.detach().float().cpu()
    vocabulary, special = whole_words(tokenizer), set(tokenizer.all_special_ids)
    pieces = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"] if words else []
    known = {w: ids for w, ids in zip(words, pieces, strict=True) if ids and not special.intersection(ids)}
    own = [table[ids].mean(0) for ids in known.values()]
    rows = torch.tensor(list(vocabulary), dtype=torch.int64)
    return WordVectors(
        list(known), torch.stack(own) if own else table[:0], list(vocabulary.values()), table.index_select(0, rows)
    )


def from_file(path: Path, words: Sequence[str]) -> WordVectors:
    """Vectors from a text file in GloVe's format, `word v1 v2 ...` a line, `.gz` or not.

    Words are looked up in lower case, in the whole file; the proposed ones are among its first `FREQUENT`.

    Raises:
        InputError: not readable, rows of unequal width, or none of the words is in it.
    """
    wanted = {word.lower() for word in words}
    table = table_of(path, wanted, FREQUENT, str)
    vocabulary = {word: table[word] for word in islice(table, FREQUENT) if is_word(word)}
    known = [word for word in words if word.lower() in table]
    if not vocabulary or (words and not known):
        example = f", such as '{words[0]}'" if words else ""
        raise InputError(
            f"{path} knows none of the {len(words):,} words of several pieces in the text{example}; give vectors of "
            "the text's language, or leave data.augmentation.vectors out"
        )
    vectors = torch.from_numpy(np.stack(list(vocabulary.values())))
    queries = torch.from_numpy(np.stack([table[word.lower()] for word in known])) if known else vectors[:0]
    return WordVectors(known, queries, list(vocabulary), vectors)


def table_of(path: Path, wanted: Collection[str], frequent: int, spell: Callable[[str], str]) -> dict[str, np.ndarray]:
    """The vectors, float32 [d], of these words and of a file's first `frequent`, in the file's order.

    Args:
        path: a text file in GloVe's format, `.gz` or not.
        wanted: words as `spell` writes them.
        frequent: lines of which every word is taken.
        spell: how a word of the file is written; of those that are then the same the first counts.

    Raises:
        InputError: not readable, or rows of unequal width.
    """
    found: dict[str, np.ndarray] = {}
    for number, (word, values) in enumerate(_lines(path)):
        word = spell(word)
        if word not in found and (number < frequent or word in wanted):
            found[word] = _vector(word, values, path)
    return found


def _vector(word: str, values: list[str], path: Path) -> np.ndarray:
    try:
        vector = np.array(values, dtype=np.float32)
    except ValueError:
        vector = np.array([np.nan], dtype=np.float32)
    if not np.isfinite(vector).all():
        raise InputError(f"the vector of '{word}' in {path} has something else than finite numbers; repair the file")
    return vector


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each line's word and numbers, all as many as in the first line."""
    width = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                fields = line.rstrip().split(" ")
                width = width or len(fields) - 1
                if len(fields) > width + 1 > 1 and not _is_number(fields[1]):
                    continue  # the largest of GloVe's files has some words with a space in them
                if len(fields) != width + 1 or width < 1:
                    raise InputError(
                        f"line {number} of {path} has {len(fields) - 1} numbers, line 1 has {width}; give a text file "
                        "with one word and its vector a line"
                    )
                yield fields[0], fields[1:]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"the word vectors {path} cannot be read ({error}); give a text file, .gz or not") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
