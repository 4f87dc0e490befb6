"""More texts for a teacher to label: copies of the examples with words replaced (Jiao et al. 2020, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from limbeck import hardware
from limbeck.checkpoints import (
    Checkpoint,
    check_tokenizer,
    max_length,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from limbeck.data.candidates import Candidates, Slot
from limbeck.data.copies import SHARD_ROWS, Alter, altered_copies, text_columns
from limbeck.data.text_shards import Row
from limbeck.data.word_vectors import from_embeddings, from_file, nearest_words
from limbeck.data.words import read_words
from limbeck.errors import InputError
from limbeck.files import sha256
from limbeck.folder import table_fingerprint
from limbeck.recipe.data import Augmentation
from limbeck.tasks import Task

VERSION = 1


def augment(
    texts: Dataset,
    task: Task,
    settings: Augmentation,
    model: Checkpoint,
    vectors_of: Checkpoint,
    root: Path,
    seed: int,
    length: int,
) -> Dataset:
    """Altered copies of the examples: algorithm 1 of Jiao et al. 2020, made once and kept.

    Candidates come from the original text (see `Candidates`). Then, `settings.copies` times, each word that has some
    is replaced with chance `settings.probability` by one of them, drawn uniformly; all text around words stays as it
    is. The texts of a pair are altered each on its own, and copy i of one goes with copy i of the other. An example's
    draws follow from the seed and its number alone. Differs from the authors' code: the language model reads the masked
    text alone, stop words are replaced too, and copies are not tried again where they come out equal.

    The texts are kept; see `altered_copies`.

    Args:
        texts: columns `text` and for pairs `text_pair`; others are not read.
        task: says whether an example is one text or two.
        settings: the recipe's section.
        model: the masked language model, its head trained.
        vectors_of: whose input embeddings serve as word vectors when `settings.vectors` is not given.
        root: the folder that keeps what can be reused, such as a run's knowledge.
        seed: fixes the draws.
        length: tokens that the language model reads of a text; words beyond are never replaced.

    Returns:
        The text columns of the new rows, each different from the others and from all originals.

    Raises:
        InputError: a tokenizer without a mask token or that cannot tell where words are, unusable word vectors, no new
            text at all, a damaged or foreign folder, or too little disk.
    """
    if model.tokenizer.mask_token_id is None:
        raise InputError(
            f"the tokenizer of '{model.name}' has no mask token; give data.augmentation.model=MODEL with one"
        )
    for checkpoint in (model, vectors_of):
        if not checkpoint.tokenizer.is_fast:
            raise InputError(
                f"the tokenizer of '{checkpoint.name}' cannot tell where words are, as it has no tokenizer.json; give "
                "a model with one"
            )
    check_tokenizer(model, texts["text"][:200])
    texts = text_columns(texts, task)
    length = min(length, max_length(model.model, model.tokenizer, None))

    def prepare() -> Alter:
        several = _words_of_several_pieces(texts, model, length)
        path = settings.vectors and Path(settings.vectors).expanduser()
        space = from_file(path, several) if path else from_embeddings(vectors_of, several)
        candidates = Candidates(model, nearest_words(space, settings.candidates), settings.candidates, length)

        def alter(start: int, rows: list[Row], title: str) -> Iterator[Row]:
            slots = candidates.of([text for row in rows for text in row], title)
            for number, row in enumerate(rows, start):
                draw = np.random.default_rng([seed, number])
                altered = [_alter(text, slots[text], settings.copies, settings.probability, draw) for text in row]
                yield from zip(*altered, strict=True)

        return alter

    how = (
        f"no word has candidates, or data.augmentation.copies={settings.copies} with probability="
        f"{settings.probability:g} drew none; raise these, or leave data.augmentation out"
    )
    spec = _describe(texts, settings, model, vectors_of, seed, length)
    return altered_copies(texts, root, spec, settings.copies, prepare, how)


def _alter(text: str, slots: Sequence[Slot], copies: int, probability: float, draw: np.random.Generator) -> list[str]:
    """Copies of a text with words replaced."""
    if not slots:
        return [text] * copies
    replaced = draw.random((copies, len(slots))) <= probability
    picks = draw.integers(0, [len(slot.candidates) for slot in slots], (copies, len(slots)))
    out = []
    for chosen, pick in zip(replaced.tolist(), picks.tolist(), strict=True):
        parts, end = [], 0
        for slot, is_replaced, number in zip(slots, chosen, pick, strict=True):
            if is_replaced:
                parts += [text[end : slot.start], slot.candidates[number]]
                end = slot.end
        out.append("".join([*parts, text[end:]]))
    return out


def _words_of_several_pieces(texts: Dataset, model: Checkpoint, length: int) -> list[str]:
    """All of them, sorted, over all texts: their candidates do not depend on the text, so they are found once."""
    words: set[str] = set()
    for start in range(0, len(texts), SHARD_ROWS):
        part = texts[start : start + SHARD_ROWS]
        block = [text for column in part.values() for text in column]
        for text, (_, found) in zip(block, read_words(block, model.tokenizer, length), strict=True):
            words.update(text[word.start : word.end] for word in found if len(word.pieces) > 1)
    return sorted(words)


def _describe(
    texts: Dataset, settings: Augmentation, model: Checkpoint, vectors_of: Checkpoint, seed: int, length: int
) -> dict[str, Any]:
    """What the altered texts depend on, by content."""
    if settings.vectors:
        path = Path(settings.vectors).expanduser()
        if not path.is_file():
            raise InputError(f"no word vectors at data.augmentation.vectors={settings.vectors}; check the path")
        vectors = {"file": sha256(path)}
    else:
        vectors = _fingerprint(vectors_of)
    return {
        "format": VERSION,
        "texts": table_fingerprint(texts),
        "model": _fingerprint(model) | {"max_length": length, "precision": hardware.pick_precision()},
        "vectors": vectors,
        "copies": settings.copies,
        "probability": settings.probability,
        "candidates": settings.candidates,
        "seed": seed,
    }


def _fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        "weights": weights_fingerprint(checkpoint.model),
        "tokenizer": tokenizer_fingerprint(checkpoint.tokenizer),
    }
