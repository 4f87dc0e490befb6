"""The words of a text as a tokenizer sees them, and the whole words of its vocabulary."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase


class Word(NamedTuple):
    """A word at `text[start:end]`, and the places of its pieces among the text's tokens."""

    start: int
    end: int
    pieces: tuple[int, ...]


def read_words(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[tuple[list[int], list[Word]]]:
    """The token ids of each text, cut to `length` with special tokens, and the words that are whole in them.

    A word is what the tokenizer's pre-tokenizer splits off, without the punctuation at its edges. Left out: words
    without a letter, special and unknown tokens, words beyond the cut, and what follows an apostrophe (`n't`, `'s`).
    """
    if not texts:
        return []
    special = set(tokenizer.all_special_ids)
    encodings = tokenizer(list(texts), truncation=True, max_length=length).encodings
    return [(e.ids, _words_of(text, e, special)) for text, e in zip(texts, encodings, strict=True)]


def _words_of(text: str, encoding: Any, special: set[int]) -> list[Word]:  # noqa: ANN401
    beyond = {number for rest in encoding.overflowing for number in rest.word_ids}
    places: dict[int, list[int]] = {}
    for place, number in enumerate(encoding.word_ids):
        if number is not None and number not in beyond:
            places.setdefault(number, []).append(place)
    words = []
    for pieces in places.values():
        spans = [encoding.offsets[place] for place in pieces]
        start, end = _trim(text, spans[0][0], spans[-1][1])
        if _is_eligible(text, start, end) and not special.intersection(encoding.ids[place] for place in pieces):
            # Without the pieces of the punctuation that was trimmed off, where the tokenizer does not split it off.
            inner = tuple(p for p, (left, right) in zip(pieces, spans, strict=True) if left < end and right > start)
            words.append(Word(start, end, inner))
    return words


def whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The vocabulary's entries that are a word with a letter in it, by id.

    An entry is a whole word if its text after a space is tokenised as that entry alone. That leaves out WordPiece's
    `##` pieces and, of byte-level BPE and SentencePiece, all that does not begin a word.
    """
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    texts = tokenizer.backend_tokenizer.decode_batch([[number] for number in ids])
    stripped = [(number, text.strip()) for number, text in zip(ids, texts, strict=True)]
    words = [(number, text) for number, text in stripped if is_word(text)]
    pieces = tokenizer([f" {text}" for _, text in words], add_special_tokens=False)["input_ids"] if words else []
    return {number: text for (number, text), found in zip(words, pieces, strict=True) if found == [number]}


def is_word(text: str) -> bool:
    """Whether a text has a letter and neither begins nor ends with punctuation or space."""
    return _trim(text, 0, len(text)) == (0, len(text)) and any(character.isalpha() for character in text)


def spellings(words: Iterable[str]) -> int:
    """How many of the words are the same but for case, at most."""
    return max(Counter(word.casefold() for word in words).values(), default=0)


def others(ranked: Iterable[str], own: set[str], count: int) -> list[str]:
    """The first `count` words that are, whatever their case, none of `own` (case-folded)."""
    return [word for word in ranked if word.casefold() not in own][:count]


def _is_eligible(text: str, start: int, end: int) -> bool:
    contracted = start > 1 and text[start - 1] in "'’" and text[start - 2].isalpha()  # noqa: RUF001
    return not contracted and any(character.isalpha() for character in text[start:end])


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and _is_edge(text[start]):
        start += 1
    while start < end and _is_edge(text[end - 1]):
        end -= 1
    return start, end


def _is_edge(character: str) -> bool:
    """Punctuation, symbols, separators and control characters; not marks, with which words of Hindi end."""
    return unicodedata.category(character)[0] in "PSZC"
