"""Chat and instruction examples, in the forms that they come in, as one column of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from limbeck.errors import InputError

Messages = list[dict[str, str]]

CHAT = Features({"messages": List({"role": Value("string"), "content": Value("string")})})
"""The one form: a conversation's turns in order."""
ROW = "row"
"""The column that tells prompts from examples with answers; see `read_chat_or_prompts`."""
ROLES = ("system", "user", "assistant")
FORMS = {
    "messages": ("messages",),
    "conversations": ("conversations",),  # ShareGPT's
    "prompt/completion": ("prompt",),
    "instruction/input/output": ("instruction",),
}
"""The forms, by the columns that tell them; where a table has those of several, the first counts."""
_SHAREGPT = {"human": "user", "gpt": "assistant"}


def is_chat(table: Dataset) -> bool:
    """Whether a table holds chat examples, or else plain text; told by the names of its columns.

    Raises:
        InputError: neither can be told.
    """
    if _form(table) is not None:
        return True
    kinds = {name: feature.dtype for name, feature in table.features.items() if isinstance(feature, Value)}
    strings = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
    if "text" in strings or len(strings) == 1:
        return False
    raise InputError(
        f"cannot tell whether the columns {', '.join(table.column_names)} hold chat or plain text; name the text "
        f"column 'text', or those of a chat as one of {', '.join(FORMS)}"
    )


def read_chat(table: Dataset, answers: bool = True) -> Dataset:
    """Chat examples as messages.

    Read are `messages` (role, content); `conversations` (from, value: ShareGPT); `prompt` and `completion`, each a text
    or messages; `instruction`, `input` and `output`, of which `input` may be empty and follows after a blank line.

    Args:
        table: in any of these forms; see `is_chat`.
        answers: each example must end with the assistant. Otherwise it may, or may end with the user.

    Returns:
        One column `messages`, features `CHAT`: text as it was written. Other columns are left out.

    Raises:
        InputError: not chat; an empty turn, an unknown role, or an end that cannot be; names the first such row,
            counted from 1.
    """
    form = _form(table)
    if form is None:
        is_chat(table)
        raise InputError(
            f"the columns {', '.join(table.column_names)} hold plain text, and chat examples are needed: one of "
            f"{', '.join(FORMS)}"
        )
    if form == "prompt/completion" and "completion" not in table.column_names and answers:
        raise InputError("the data has a column 'prompt' but none named 'completion'; add one with the answers")
    if form == "instruction/input/output" and "output" not in table.column_names and answers:
        raise InputError("the data has a column 'instruction' but none named 'output'; add one with the answers")

    def convert(columns: Mapping[str, list[Any]], rows: Sequence[int]) -> dict[str, list[Messages]]:
        names = list(columns)
        examples = (dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return {"messages": [_messages(each, form, answers, row) for each, row in zip(examples, rows, strict=True)]}

    return table.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=table.column_names,
        features=CHAT,
        load_from_cache_file=False,
        desc="Reading chat",
    )


def has_answers(table: Dataset) -> bool:
    """Whether every chat example ends with the assistant.

    Raises:
        InputError: see `read_chat`.
    """
    return all(messages[-1]["role"] == "assistant" for messages in read_chat(table, answers=False)["messages"])


def read_chat_or_prompts(table: Dataset) -> Dataset:
    """Chat examples as messages, or prompts that somebody is still to answer: examples of which none has an answer.

    Returns:
        As `read_chat`; of prompts also a column `ROW`, int64, their numbers in the table.

    Raises:
        InputError: see `read_chat`; some examples have answers and some none.
    """
    read = read_chat(table, answers=False)
    if any(messages[-1]["role"] == "assistant" for messages in read["messages"]):
        return read_chat(table)
    return read.add_column(ROW, np.arange(len(read)))


def without_answers(table: Dataset) -> Dataset:
    """The prompts of chat examples: all messages but an assistant's at the end.

    Args:
        table: as `read_chat` gives it.

    Raises:
        InputError: nothing from a user is left to answer; names the row, counted from 1.
    """

    def convert(columns: Mapping[str, list[Any]], rows: Sequence[int]) -> dict[str, list[Messages]]:
        out = []
        for messages, row in zip(columns["messages"], rows, strict=True):
            prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
            if not prompt or prompt[-1]["role"] != "user":
                raise InputError(f"row {row + 1} holds nothing of a user to answer; remove this row")
            out.append(prompt)
        return {"messages": out}

    return table.map(
        convert, batched=True, with_indices=True, features=CHAT, load_from_cache_file=False, desc="Reading prompts"
    )


def prompt_text(messages: Messages) -> str:
    """What a conversation asks, as rules see it: all turns before the last answer, without their roles, a line each."""
    turns = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return "\n".join(turn["content"] for turn in turns)


def _form(table: Dataset) -> str | None:
    names = set(table.column_names)
    return next((form for form, columns in FORMS.items() if names.issuperset(columns)), None)


def _messages(example: Mapping[str, Any], form: str, answers: bool, row: int) -> Messages:
    if form == "messages":
        turns = _turns(example["messages"], "", row)
    elif form == "conversations":
        turns = _turns(example["conversations"], "", row)
    elif form == "prompt/completion":
        turns = _turns(example["prompt"], "user", row) + _answer(example.get("completion"), answers, row)
    else:
        parts = (example["instruction"], example.get("input"))
        prompt = "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())
        turns = _turns(prompt, "user", row) + _answer(example.get("output"), answers, row)
    last = turns[-1]["role"]
    if last == "system" or (answers and last != "assistant"):
        wanted = "the assistant's answer" if answers else "the user or the assistant"
        raise InputError(f"row {row + 1} ends with the {last}; end each example with {wanted}")
    return turns


def _answer(value: Any, needed: bool, row: int) -> Messages:  # noqa: ANN401
    """The turns of an answer; none where there is none and none is needed."""
    missing = value is None or value == [] or (isinstance(value, str) and not value.strip())
    return [] if missing and not needed else _turns(value, "assistant", row)


def _turns(value: Any, role: str, row: int) -> Messages:  # noqa: ANN401
    """A text as one turn of this role, or a list of turns, checked."""
    given = [{"role": role, "content": value}] if role and not isinstance(value, list) else value
    if not isinstance(given, list) or not given:
        raise InputError(f"row {row + 1} holds no messages; remove this row")
    turns = []
    for number, turn in enumerate(given, 1):
        if not isinstance(turn, Mapping):
            raise InputError(f"row {row + 1}: turn {number} is {turn!r}, not a mapping of role and content")
        spoken = turn["from"] if "from" in turn else turn.get("role")
        content = turn["value"] if "value" in turn else turn.get("content")
        who = _SHAREGPT.get(spoken, spoken) if isinstance(spoken, str) else spoken
        if who not in ROLES:
            raise InputError(
                f"row {row + 1}: turn {number} has the role {spoken!r}; known are {', '.join((*ROLES, *_SHAREGPT))}"
            )
        if content is not None and not isinstance(content, str):
            raise InputError(f"row {row + 1}: turn {number} ({spoken}) holds {type(content).__name__}, not text")
        if content is None or not content.strip():
            raise InputError(f"row {row + 1}: turn {number} ({spoken}) is empty; remove this row")
        turns.append({"role": str(who), "content": content})
    return turns
