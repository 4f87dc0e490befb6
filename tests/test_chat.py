"""Chat examples: every form gives the same messages, and what cannot be told is refused by its row."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import write_jsonl
from datasets import Dataset

from limbeck.data import is_chat, read, read_chat, without_answers
from limbeck.data.chat import CHAT
from limbeck.errors import InputError
from limbeck.recipe.data import Source

TURNS = [{"role": "user", "content": "What is two?"}, {"role": "assistant", "content": "A number."}]
FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": TURNS},
    "sharegpt": {"conversations": [{"from": "human", "value": "What is two?"}, {"from": "gpt", "value": "A number."}]},
    "completion": {"prompt": "What is two?", "completion": "A number."},
    "completion of messages": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "instruction": {"instruction": "What is two?", "input": "", "output": "A number."},
    "instruction alone": {"instruction": "What is two?", "output": "A number."},
}


def messages_of(row: dict[str, Any], answers: bool = True) -> list[dict[str, str]]:
    return read_chat(Dataset.from_list([row]), answers)["messages"][0]


def refusal(*rows: dict[str, Any], answers: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        read_chat(Dataset.from_list(list(rows)), answers)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_messages(form, tmp_path):
    row = {**FORMS[form], "id": 7, "source": "books"}
    assert is_chat(Dataset.from_list([row]))
    table = read_chat(Dataset.from_list([row, row]))
    assert table.features == CHAT
    assert table["messages"][:] == [TURNS, TURNS]
    from_file = read(Source(path=str(write_jsonl(tmp_path / "chat.jsonl", [row]))), "train")
    assert read_chat(from_file)["messages"][:] == [TURNS]


def test_an_input_follows_its_instruction_after_a_blank_line():
    row = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    assert messages_of(row)[0]["content"] == "Translate.\n\nGuten Tag"
    assert messages_of({**row, "input": None})[0]["content"] == "Translate."


def test_text_is_kept_as_it_was_written_and_systems_and_many_turns_too():
    turns = [{"role": "system", "content": " Be brief.\n"}, *TURNS, {"role": "user", "content": "\tÄh? "}, TURNS[1]]
    assert messages_of({"messages": turns}) == turns


def test_entries_of_a_turn_beside_role_and_content_are_left_out():
    turns = [{**turn, "weight": 1} for turn in TURNS]
    assert messages_of({"messages": turns}) == TURNS


def test_the_rendered_text_beside_an_instruction_is_not_read():
    row = {**FORMS["instruction"], "text": "### Instruction: What is two?"}
    assert is_chat(Dataset.from_list([row]))
    assert messages_of(row) == TURNS


def test_prompts_alone_are_read_where_asked_for():
    for row in ({"prompt": "Hello"}, {"prompt": "Hello", "completion": None}, {"instruction": "Hello", "output": " "}):
        assert messages_of(row, answers=False) == [{"role": "user", "content": "Hello"}]
    assert messages_of({"messages": TURNS}, answers=False) == TURNS
    assert "none named 'completion'" in refusal({"prompt": "Hello"})
    assert "none named 'output'" in refusal({"instruction": "Hello"})
    assert refusal({"prompt": "Hello", "completion": ""}) == "row 1: turn 1 (assistant) is empty; remove this row"


def test_prompts_are_examples_without_the_answer_at_their_end():
    table = read_chat(Dataset.from_list([{"messages": [*TURNS, *TURNS]}, {"messages": TURNS[:1]}]), answers=False)
    assert without_answers(table)["messages"][:] == [[*TURNS, TURNS[0]], TURNS[:1]]
    alone = read_chat(Dataset.from_list([{"messages": TURNS}, {"messages": TURNS[1:]}]))
    with pytest.raises(InputError, match="row 2 holds nothing of a user to answer"):
        without_answers(alone)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ([{"role": "user", "content": ""}, TURNS[1]], "row 2: turn 1 (user) is empty; remove this row"),
        ([TURNS[0], {"role": "assistant", "content": None}], "row 2: turn 2 (assistant) is empty; remove this row"),
        ([TURNS[0], {"role": "assistant", "content": " \n"}], "row 2: turn 2 (assistant) is empty; remove this row"),
        ([{"role": "tool", "content": "5"}], "row 2: turn 1 has the role 'tool'; known are system, user, assistant"),
        ([{"role": None, "content": "5"}], "row 2: turn 1 has the role None; known are"),
        (TURNS[:1], "row 2 ends with the user; end each example with the assistant's answer"),
        ([{"role": "system", "content": "Hi"}], "row 2 ends with the system; end each"),
        ([], "row 2 holds no messages; remove this row"),
        (None, "row 2 holds no messages; remove this row"),
    ],
)
def test_what_cannot_be_is_refused_by_its_row(bad, sentence):
    assert refusal({"messages": TURNS}, {"messages": bad}).startswith(sentence)


def test_contents_that_are_no_text_are_refused():
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    assert refusal({"messages": parts}) == "row 1: turn 1 (user) holds list, not text"
    assert refusal({"messages": ["Hello"]}) == "row 1: turn 1 is 'Hello', not a mapping of role and content"


def test_rows_are_counted_over_the_whole_table():
    rows = [{"prompt": "Hello", "completion": "Hi"}] * 1500 + [{"prompt": "", "completion": "Hi"}]
    assert refusal(*rows) == "row 1501: turn 1 (user) is empty; remove this row"


def test_plain_text_is_told_from_chat():
    assert not is_chat(Dataset.from_list([{"text": "a line"}]))
    assert not is_chat(Dataset.from_list([{"title": "a", "text": "b"}]))
    assert not is_chat(Dataset.from_list([{"line": "a", "number": 3}]))
    with pytest.raises(InputError, match="hold plain text, and chat examples are needed"):
        read_chat(Dataset.from_list([{"text": "a line"}]))
    for reader in (is_chat, read_chat):
        with pytest.raises(InputError, match="cannot tell whether the columns question, answer hold chat or plain"):
            reader(Dataset.from_list([{"question": "a", "answer": "b"}]))
