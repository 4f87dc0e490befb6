"""Benchmarks for causal language models: which task of lm-eval each one is, and the files that it reads.

A folder of data holds a folder for each benchmark, with a file for each split (`lambada/test.jsonl`): JSON lines,
gzipped or not, or csv. docs/benchmarks.md describes the columns. A row of a file is turned into the row that lm-eval's
own task reads, so that prompts, answers and scores stay lm-eval's.
"""

from __future__ import annotations

import csv
import gzip
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.errors import InputError

Row = dict[str, Any]
ENDINGS = (".jsonl", ".jsonl.gz", ".csv")


class Layout(NamedTuple):
    """Columns of a file, and how a row of them becomes a row of lm-eval's task; a ValueError says what is wrong."""

    columns: tuple[str, ...]
    convert: Callable[[Row], Row]


class Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
        task: lm-eval's name.
        package: lm-eval's folder of that task.
        measured: the split whose examples are scored.
        shown: splits from which examples in the prompt are drawn; the first whose file is there. Never `measured`.
        layouts: what a file may hold, the first that fits.
    """

    task: str
    package: str
    measured: str
    shown: tuple[str, ...]
    layouts: tuple[Layout, ...]


def find_file(data: Path, name: str, split: str) -> Path | None:
    """The file of a benchmark's split, if it is there."""
    return next((path for end in ENDINGS if (path := data / name / f"{split}{end}").is_file()), None)


def read_split(path: Path, benchmark: Benchmark) -> list[Row]:
    """A file's rows as lm-eval's task reads them.

    Raises:
        InputError: not JSON lines or csv, empty, other columns than documented, or a value that cannot be scored.
    """
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path} holds no examples")
    fitting = [each for each in benchmark.layouts if set(each.columns) <= set(rows[0])]
    if not fitting:
        wanted = " or ".join(", ".join(each.columns) for each in benchmark.layouts)
        raise InputError(f"{path} has the columns {', '.join(rows[0])}; this benchmark reads {wanted}")
    converted = []
    for number, row in enumerate(rows, 1):
        try:
            converted.append(fitting[0].convert(row))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"example {number} of {path} cannot be scored: {reason}") from None
    return converted


def _rows(path: Path) -> list[Row]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines)) if path.suffix == ".csv" else [json.loads(s) for s in lines if s.strip()]
    except (ValueError, OSError, EOFError, csv.Error) as error:
        raise InputError(
            f"{path} does not read as {'csv' if path.suffix == '.csv' else 'JSON lines'}: {error}"
        ) from None
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} does not read as JSON lines: each line must be an object with the columns' names")
    return rows


# --- a row of a file as lm-eval's task reads it -------------------------------------------------------------------


def _lambada(row: Row) -> Row:
    if " " not in row["text"].strip():
        raise ValueError("text has no last word to guess from what comes before")
    return {"text": row["text"]}


def _storycloze(row: Row) -> Row:
    sentences = {f"input_sentence_{n}": row[f"InputSentence{n}"] for n in range(1, 5)}
    endings = {f"sentence_quiz{n}": row[f"RandomFifthSentenceQuiz{n}"] for n in (1, 2)}
    return {**sentences, **endings, "answer_right_ending": 1 + _label(int(row["AnswerRightEnding"]) - 1, list(endings))}


def _hellaswag(row: Row) -> Row:
    """lm-eval puts activity and context together again, with a colon between them."""
    activity, colon, context = row["ctx"].partition(": ")
    if not colon:
        raise ValueError("ctx must start with the activity and a colon")
    parts = {"activity_label": activity, "ctx_a": context, "ctx_b": ""}
    return {**parts, "endings": row["endings"], "label": str(_label(row["label"], row["endings"]))}


def _hellaswag_published(row: Row) -> Row:
    parts = {name: row[name] for name in ("activity_label", "ctx_a", "ctx_b")}
    return {**parts, "endings": row["endings"], "label": str(_label(row["label"], row["endings"]))}


def _nq_open(row: Row) -> Row:
    return {"question": row["question"], "answer": _answers(row)}


def _triviaqa(row: Row) -> Row:
    return {"question": row["question"], "answer": {"aliases": _answers(row)}}


def _webquestions(row: Row) -> Row:
    return {"question": row["question"], "answers": _answers(row)}


def _piqa(row: Row) -> Row:
    first, second = row["choices"]
    return {"goal": row["question"], "sol1": first, "sol2": second, "label": _label(row["label"], row["choices"])}


def _openbookqa(row: Row) -> Row:
    letters = list(string.ascii_uppercase[: len(row["choices"])])
    answer = letters[_label(row["label"], row["choices"])]
    choices = {"text": row["choices"], "label": letters}
    return {"question_stem": row["question"], "choices": choices, "answerKey": answer}


def _label(label: int | str, choices: list[str]) -> int:
    if not 0 <= int(label) < len(choices):
        raise ValueError(f"label {label}, but {len(choices)} choices, counted from 0")
    return int(label)


def _answers(row: Row) -> list[str]:
    answers = row["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) and each for each in answers):
        raise ValueError(f"answers is {answers!r}; it must be a list of at least one text")
    return answers


_QUESTION = ("question", "answers")
_CHOICE = ("question", "choices", "label")
_STORY = (
    *(f"InputSentence{n}" for n in range(1, 5)),
    "RandomFifthSentenceQuiz1",
    "RandomFifthSentenceQuiz2",
    "AnswerRightEnding",
)
_HELLASWAG = (
    Layout(("activity_label", "ctx_a", "ctx_b", "endings", "label"), _hellaswag_published),
    Layout(("ctx", "endings", "label"), _hellaswag),
)

BENCHMARKS: dict[str, Benchmark] = {
    "lambada": Benchmark("lambada_openai", "lambada", "test", ("train", "dev", "val"), (Layout(("text",), _lambada),)),
    "storycloze": Benchmark("storycloze_2016", "storycloze", "test", ("train", "val"), (Layout(_STORY, _storycloze),)),
    "hellaswag": Benchmark("hellaswag", "hellaswag", "val", ("train",), _HELLASWAG),
    "nq_open": Benchmark("nq_open", "nq_open", "test", ("train", "dev"), (Layout(_QUESTION, _nq_open),)),
    "webquestions": Benchmark("webqs", "webqs", "test", ("train", "val"), (Layout(_QUESTION, _webquestions),)),
    "triviaqa": Benchmark("triviaqa", "triviaqa", "test", ("train", "dev"), (Layout(_QUESTION, _triviaqa),)),
    "piqa": Benchmark("piqa", "piqa", "val", ("train",), (Layout(_CHOICE, _piqa),)),
    "openbookqa": Benchmark("openbookqa", "openbookqa", "test", ("train", "val"), (Layout(_CHOICE, _openbookqa),)),
}
