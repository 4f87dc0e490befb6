"""Tokens of text and conversations for causal language models: what is predicted, from where, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_causal, make_chat_tokenizer
from datasets import Dataset

from limbeck.checkpoints import Checkpoint
from limbeck.data import Splits
from limbeck.errors import InputError
from limbeck.recipe import load
from limbeck.recipe.schema import Task
from limbeck.tasks import Task as Kind
from limbeck.tasks.causal_lm import CausalBatches, causal_inputs, encode_chat, encode_text
from limbeck.training import plan_stages
from limbeck.training.words import ask_for_words, encode_language

LINES = ["the soup was cold", "a long night", "bread", "the hotel seemed very old and the staff rather quiet"]
TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "how was the soup"},
    {"role": "assistant", "content": "the soup was cold"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_chat_tokenizer()


def text(lines: list[str]) -> Dataset:
    return Dataset.from_dict({"text": lines})


def chat(*talks: list[dict[str, str]]) -> Dataset:
    return Dataset.from_dict({"messages": list(talks)})


def test_an_answer_ends_at_the_end_of_turn_that_generation_settings_name():
    tokenizer = make_chat_tokenizer()
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|endoftext|>"
    model = make_causal(tokenizer)
    model.generation_config.eos_token_id = [turn]
    given = Checkpoint(model, tokenizer, "tiny")
    (example,) = encode_language(chat(TALK), given, Task(kind="causal-lm"))
    assert example["input_ids"][-1] == turn  # and not the line break that the template writes after it
    assert tokenizer.decode(example["input_ids"][example["first"] :]) == "the soup was cold<|im_end|>"


def test_the_words_are_asked_of_examples_as_the_student_reads_them(tmp_path):
    tokenizer = make_chat_tokenizer()
    teacher = Checkpoint(make_causal(tokenizer), tokenizer, "teacher")
    student = Checkpoint(make_causal(tokenizer, num_hidden_layers=2, max_position_embeddings=40), tokenizer, "student")
    stage = {"name": "distill", "objectives": {"soft_targets": 1}}
    given = {"task": "causal-lm", "data": "x.txt", "teacher": "teacher", "output": "o", "stages": [stage]}
    recipe = load(given)
    table = text(LINES * 20)
    words = ask_for_words(recipe, Splits(table, table, table, table), teacher, student, tmp_path)
    learnt = encode_language(table, student, recipe.task)
    assert len(learnt[0]["input_ids"]) == 40
    assert len(words) == len(learnt)
    task = Kind("causal-lm", ("a",) * len(tokenizer))
    assert plan_stages(recipe, task, student, [teacher], None).stored
    with pytest.raises(InputError, match="examples are of 128 tokens, and the teacher 'student' reads at most 40"):
        plan_stages(recipe, task, teacher, [student], None)


@pytest.mark.parametrize("length", [4, 5, 7, 16])
def test_packing_loses_nothing_but_the_last_rest_and_ends_each_row(tokenizer, length):
    encoded = encode_text(text(LINES * 5), tokenizer, length)
    flat = [token for ids in encoded["input_ids"] for token in ids]
    whole = [
        t
        for line in LINES * 5
        for t in [*tokenizer(line, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    assert flat == whole[: len(flat)]
    assert len(whole) - len(flat) < length
    assert set(encoded["length"]) == {length}
    assert encoded["row"][:] == list(range(len(encoded)))


def test_packing_does_not_depend_on_how_rows_are_batched(tokenizer):
    many = LINES * 700  # several batches of `map`
    encoded = encode_text(text(many), tokenizer, 64)
    whole = [
        t for line in many for t in [*tokenizer(line, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    assert [token for ids in encoded["input_ids"] for token in ids] == whole[: 64 * len(encoded)]


def test_rows_on_their_own_keep_every_token(tokenizer):
    encoded = encode_text(text(LINES), tokenizer, 4, packed=False)
    lengths = [len(tokenizer(line, add_special_tokens=False)["input_ids"]) + 1 for line in LINES]
    kept = [n - (n % 4 == 1) for n in lengths]  # a single token has nothing before it to be predicted from
    assert sum(encoded["length"]) == sum(kept)


def test_of_a_conversation_the_answer_alone_is_predicted_up_to_its_end(tokenizer):
    (example,) = encode_chat(chat(TALK), tokenizer, 64)
    answer = example["input_ids"][example["first"] :]
    assert tokenizer.decode(answer[:-1]).strip() == "the soup was cold"
    assert answer[-1] == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True, return_dict=False)
    assert example["input_ids"][: example["first"]] == prompt


def test_conversations_without_a_template_still_end_their_prompt_before_the_answer(tokenizer):
    plain = make_chat_tokenizer()
    plain.chat_template = None
    (example,) = encode_chat(chat(TALK), plain, 64)
    assert plain.decode(example["input_ids"][example["first"] : -1]).strip() == "the soup was cold"
    assert "how was the soup" in plain.decode(example["input_ids"][: example["first"]])


def test_long_conversations_are_cut_and_those_without_room_left_out(tokenizer):
    (whole,) = encode_chat(chat(TALK), tokenizer, 64)
    limit = whole["first"] + 2
    longer = [*TALK[:1], {"role": "user", "content": "how was the soup " * 9}, TALK[2]]
    (cut,) = encode_chat(chat(TALK, longer), tokenizer, limit)
    assert cut["input_ids"] == whole["input_ids"][:limit]
    with pytest.raises(InputError, match=f"within {whole['first']} tokens"):
        encode_chat(chat(TALK), tokenizer, whole["first"])


def test_each_position_predicts_the_next_token_and_padding_none(tokenizer):
    examples = [*encode_chat(chat(TALK, [*TALK[1:2], {"role": "assistant", "content": "old bread"}]), tokenizer, 64)]
    batch = CausalBatches(tokenizer)(examples)
    flat = batch["input_ids"].flatten()
    assert torch.equal(flat[batch["positions"] + 1], batch["targets"])
    expected = sum(len(e["input_ids"]) - e["first"] for e in examples)
    assert len(batch["targets"]) == expected
    assert batch["attention_mask"].sum(-1).tolist() == [len(e["input_ids"]) for e in examples]
    rows = (batch["positions"] // batch["input_ids"].shape[1]).tolist()
    for number, example in enumerate(examples):
        mine = batch["targets"][[row == number for row in rows]]
        assert mine.tolist() == example["input_ids"][example["first"] :]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_padding_changes_nothing_before_it_although_models_are_told_of_none(kind, tokenizer):
    model = make_causal(tokenizer, kind).eval()
    examples = [*encode_chat(chat(TALK, TALK[1:]), tokenizer, 64)]
    assert len({len(example["input_ids"]) for example in examples}) == 2
    batch = CausalBatches(tokenizer)(examples)
    with torch.no_grad():
        together = model(**causal_inputs(batch)).logits
        for row, example in enumerate(examples):
            alone = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_the_loss_is_transformers_own(tokenizer):
    model = make_causal(tokenizer)
    examples = [*encode_chat(chat(TALK, TALK[1:]), tokenizer, 64)]
    batch = CausalBatches(tokenizer)(examples)
    labels = torch.full_like(batch["input_ids"], -100)
    for number, example in enumerate(examples):
        labels[number, example["first"] : len(example["input_ids"])] = torch.tensor(
            example["input_ids"][example["first"] :]
        )
    with torch.no_grad():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)
    ours = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1)[batch["positions"]], batch["targets"])
    assert ours.item() == pytest.approx(output.loss.item(), rel=1e-6)


def test_what_cannot_be_read_is_refused(tokenizer):
    with pytest.raises(InputError, match="1 rows of text make no example of 64 tokens"):
        encode_text(text(["bread"]), tokenizer, 64)
    bare = make_chat_tokenizer()
    bare.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        encode_text(text(LINES), bare, 8)
    assert np.all(np.array(encode_text(text(LINES), tokenizer, 8)["first"]) == 1)
