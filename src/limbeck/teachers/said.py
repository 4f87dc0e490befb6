"""From what a server says to labels and their log-probabilities."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST = 1e-9
"""The least probability that is taken from an answer: what a server leaves out is rare, not impossible."""
_AROUND = " \t\r\n\"'`*.,;:!?()[]{}<>\u201c\u201d\u2018\u2019"


def find_label(text: str, labels: Sequence[str]) -> int | None:
    """The label that a text is, whatever its case and the punctuation around it; none where it is something else."""
    said = plain(text)
    return next((number for number, label in enumerate(labels) if plain(label) == said), None)


def find_labels(text: str, labels: Sequence[str]) -> list[int] | None:
    """The labels that a text lists with commas or lines between; `none` lists none. None where one is no label."""
    if plain(text) == "none":
        return []
    found = [find_label(part, labels) for part in re.split("[,\n]", text) if plain(part)]
    numbers = [number for number in found if number is not None]
    return sorted(set(numbers)) if found and len(numbers) == len(found) else None


def label_logs(tokens: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[float]:
    """Log-probabilities of labels from those of an answer's tokens.

    At each place the server lists the token that it wrote and others that it might have written. A token that makes the
    text so far the beginning of one label alone counts as that label, whatever its case: `pos`, ` Positive`. One that
    leaves several open is followed where it was written (`very` of `very good` and `very bad`), and its mass is shared
    at the next place. Labels that are nowhere listed are no likelier than the least likely token that is, and share at
    most what is left of the whole.

    Args:
        tokens: OpenAI's `logprobs.content`.
        labels: the label names, of which none is another in other case.

    Returns:
        C log-probabilities whose exponentials sum to 1.

    Raises:
        LookupError, TypeError, ValueError: the list is not of that form.
    """
    names = [plain(label) for label in labels]
    mass, most = np.zeros(len(names)), np.ones(len(names))
    written, share, open_ = "", 1.0, list(range(len(names)))
    for token in tokens:
        listed = {str(each["token"]): float(each["logprob"]) for each in token["top_logprobs"]}
        listed[str(token["token"])] = float(token["logprob"])
        chances = {text: share * math.exp(min(log, 0.0)) for text, log in listed.items()}
        fits = {text: _fitting(written + text, names) for text in chances}
        for text, labels_left in fits.items():
            if len(labels_left) == 1:
                mass[labels_left[0]] += chances[text]
        unseen = [number for number in open_ if mass[number] == 0]
        rest = max(share - sum(chances.values()), 0.0) / max(len(unseen), 1)
        most[unseen] = min(min(chances.values()), rest)
        written, share, open_ = written + token["token"], chances[token["token"]], fits[token["token"]]
        if len(open_) < 2:
            break
    else:
        whole = [number for number in open_ if names[number] == plain(written)]
        mass[whole] += share  # it ended where it could have gone on to a longer label
    logs = np.log(np.maximum(np.where(mass > 0, mass, most), LEAST))
    return _rounded(logs - np.logaddexp.reduce(logs))


def score_logs(scores: Mapping[int, float], count: int) -> list[float]:
    """Log-probabilities of all labels from probabilities of some of them: the others share what is left.

    Args:
        scores: probabilities by label number, at least one.
        count: C, the number of labels.

    Returns:
        C log-probabilities whose exponentials sum to 1. A label that is left out is no likelier than any that is given.
    """
    rest = max(1 - sum(scores.values()), 0.0) / max(count - len(scores), 1)
    missing = min(rest, *scores.values()) if len(scores) > 1 else rest
    logs = np.log(np.maximum([scores.get(number, missing) for number in range(count)], LEAST))
    return _rounded(logs - np.logaddexp.reduce(logs))


def log_odds(scores: Sequence[float]) -> list[float]:
    """Log-odds of probabilities, each on its own."""
    p = np.clip(np.asarray(scores, dtype=np.float64), LEAST, 1 - LEAST)
    return _rounded(np.log(p) - np.log1p(-p))


def at(value: Any, path: str) -> Any:  # noqa: ANN401
    """What stands at a path in a JSON value: keys and list numbers with dots between, `*` for every item of a list.

    Raises:
        LookupError, TypeError, ValueError: nothing stands there.
    """
    head, _, rest = path.partition(".")
    if head == "*":
        if not isinstance(value, list):
            raise TypeError(f"no list at '{path}'")
        return [at(each, rest) if rest else each for each in value]
    if not isinstance(value, (dict, list)):
        raise TypeError(f"nothing at '{path}'")
    inner = value[int(head)] if isinstance(value, list) else value[head]
    return at(inner, rest) if rest else inner


def _fitting(text: str, names: Sequence[str]) -> list[int]:
    """The labels that a text may be the beginning of, or begins with."""
    said = text.lstrip(_AROUND).casefold()
    if not said:
        return list(range(len(names)))
    whole = said.rstrip(_AROUND)
    return [number for number, name in enumerate(names) if name.startswith(said) or name == whole]


def plain(text: str) -> str:
    """A text as labels are compared: without case, and without white space and punctuation around it."""
    return " ".join(text.split()).strip(_AROUND).casefold()


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
