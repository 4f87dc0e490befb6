"""Rules in recipes of causal language models: words kept and running along, answers written and measured under them."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import make_causal, make_chat_tokenizer, write_jsonl
from datasets import Dataset
from test_generation import Dying, Killed, files, store_of
from test_generation_server import serve  # noqa: F401
from transformers import LogitsProcessorList
from transformers.convert_slow_tokenizer import bytes_to_unicode

import limbeck
from limbeck.anatomy import StatesAt
from limbeck.checkpoints import Checkpoint, open_causal
from limbeck.data.chat import CHAT, prompt_text
from limbeck.errors import InputError
from limbeck.evaluation import evaluate_language
from limbeck.generation import Answers, LocalTeacher, answered, generate
from limbeck.knowledge import label_words, words, words_format
from limbeck.knowledge.formats import Format, pack, unpack
from limbeck.objectives import SoftTargets, vocabulary
from limbeck.recipe import load, terms
from limbeck.recipe.data import Generation
from limbeck.recipe.schema import Evaluation, OnPolicy
from limbeck.rules import load_rules, violations
from limbeck.rules.answers import AnswerRules
from limbeck.rules.file import standalone
from limbeck.signals import Wanted
from limbeck.tasks import Task
from limbeck.tasks.causal_lm import CausalBatches, encode_chat
from limbeck.teachers import LiveTeacher, RuledWords
from limbeck.training.on_policy import OwnAnswers

TOKENIZER = make_chat_tokenizer()
SIZE = len(TOKENIZER)
TASK = Task("causal-lm", tuple(map(str, range(SIZE))))
MOODS, COLOURS = ("good", "sad", "so sad"), ("red", "blue")
NOUNS = ("soup", "staff", "room", "story", "night", "film", "music", "bread", "day", "actor")
BOOK = [
    {"name": "a mood", "when": ["mood"], "answers": list(MOODS)},
    {"name": "a colour", "when": ["colour"], "answers": list(COLOURS)},
    {"name": "not sad", "when": {"matches": "mood|other"}, "avoid": ["sad*"], "weight": 1.5},
]


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def talks() -> Dataset:
    """Prompts that one rule or another is about, or none; two answers break a hard rule."""
    pairs = [("the mood of soup", "so sad"), ("a colour", "blue"), ("other things", "it was sad and long")]
    pairs += [("nothing at all", "the film was bad"), ("the mood", "bad mood"), ("mood and colour", "red")]
    return Dataset.from_dict({"messages": [talk(*pair) for pair in pairs]}, features=CHAT)


def model(seed: int = 0, **changes: Any) -> Checkpoint:
    return Checkpoint(make_causal(TOKENIZER, seed=seed, **changes), TOKENIZER, f"model {seed}")


def book(*entries: dict[str, Any]) -> AnswerRules:
    return AnswerRules(load_rules([{"name": f"rule {number}"} | entry for number, entry in enumerate(entries)]))


def kept(root: Path, teacher: Checkpoint, rules: AnswerRules | None, keep: str = "dense", **more: Any) -> Any:
    """A store of what a teacher says of `talks`."""
    form = words_format(keep, *more.pop("counts", (0, 0)), 16, TOKENIZER, more.pop("temperature", 1.0))
    table = more.pop("table", None) or talks().select(range(5))
    encoded = encode_chat(table, TOKENIZER, 64, prompts=True)
    ready = rules.of(teacher) if rules is not None else None
    return label_words(teacher, encoded, form, root, 0, 2, "float32", ready), encoded


def goes_on(text: bytes) -> bool:
    """Whether some text that begins so has no word that begins with `sad`."""
    try:
        read = codecs.getincrementaldecoder("utf-8")().decode(text)
    except UnicodeDecodeError:
        return False
    return re.search(r"(?<!\w)sad", read, re.IGNORECASE) is None


@torch.no_grad()
def by_hand(teacher: Checkpoint, encoded: Dataset) -> torch.Tensor:
    """The teacher's words at each token of the answers under `BOOK`, by going through all texts that keep the rules."""
    found = []
    spelled = {text: TOKENIZER(text)["input_ids"] for text in (*MOODS, *COLOURS)}
    pieces = [TOKENIZER.decode([token]) for token in range(SIZE)]
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    special = set(TOKENIZER.added_tokens_decoder)
    of_bytes = [
        None if token in special else bytes(letters[letter] for letter in TOKENIZER.convert_ids_to_tokens(token))
        for token in range(SIZE)
    ]
    for example in encoded:
        ids, first, prompt = example["input_ids"], example["first"], example["prompt"]
        logits = teacher.model(torch.tensor([ids])).logits[0, first - 1 : -1]
        texts = MOODS if "mood" in prompt else COLOURS if "colour" in prompt else None
        broken = soft_broken = False
        for place, row in enumerate(logits):
            said = ids[first : first + place]
            before, p = TOKENIZER.decode(said), row.softmax(-1)
            if texts is not None and not broken:
                p = p * torch.tensor([any(text.startswith(before + piece) for text in texts) for piece in pieces])
                p[TOKENIZER.eos_token_id] = row.softmax(-1)[TOKENIZER.eos_token_id] * (before in texts)
                fits = [text for text in texts if text.startswith(before)]
                if len(fits) == 1 and fits[0] != before:  # a text that is forced comes in its usual tokens
                    p = p * F.one_hot(torch.tensor(spelled[fits[0]][place]), SIZE)
            if ("mood" in prompt or "other" in prompt) and not soft_broken:
                happy = [piece is not None and goes_on(before.encode() + piece) for piece in of_bytes]
                happy[TOKENIZER.eos_token_id] = True
                p = torch.where(torch.tensor(happy), p, p * np.exp(-1.5))
            found.append(p / p.sum())
            broken |= texts is not None and float(p[ids[first + place]]) == 0
            soft_broken |= not goes_on(TOKENIZER.decode([*said, ids[first + place]]).encode())
    return torch.stack(found)


# --- what the teacher is made to say --------------------------------------------------------------------------------


def test_kept_words_are_the_teachers_projected_onto_the_rules_given_the_prompt_and_the_answer_so_far(tmp_path):
    teacher = model()
    store, encoded = kept(tmp_path, teacher, book(*BOOK))
    batch = CausalBatches(TOKENIZER)([*encoded])
    found = store.signals(batch).at_words.words(slice(None)).float().softmax(-1)
    expected = by_hand(teacher, encoded)
    assert (expected == 0).any()
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(("form", "temperature"), [("kl", 1.0), ("kl", 3.0), ("jsd", 2.0), ("total-variation", 1.0)])
def test_words_kept_densely_and_a_teacher_that_runs_along_teach_the_same(tmp_path, form, temperature):
    teacher, student, rules = model(), model(1, num_hidden_layers=2), book(*BOOK)
    store, encoded = kept(tmp_path, teacher, rules)
    batch = CausalBatches(TOKENIZER)([*encoded])
    live = LiveTeacher(teacher.model, Wanted(logits=True), "float32", causal=True)
    ruled = RuledWords(live, rules.of(teacher), encoded["prompt"])
    loss = [SoftTargets(terms.SoftTargets(form=form, temperature=temperature), TASK)]
    stop, found = StatesAt(student.model), []
    for source in (store, ruled, live):
        stop.positions = batch["positions"]
        student.model.zero_grad()
        student.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        said = source.signals(batch).at_words
        scales = torch.tensor([1 / len(batch["targets"])])
        _, value = vocabulary.over_vocabulary(loss, scales, stop.take(), stop.head, said, batch)
        value.backward()
        found.append((value.item(), torch.cat([p.grad.flatten() for p in student.model.parameters()])))
    stop.close()
    ruled.close()
    (stored, its), (along, same), (free, other) = found
    assert stored == pytest.approx(along, rel=1e-3)
    assert (its - same).norm() / same.norm() < 2e-3
    assert abs(free - along) > 0.01 * along
    assert (other - same).norm() / same.norm() > 0.1


def test_a_temperature_softens_the_projected_distribution(tmp_path):
    teacher, rules = model(), book(*BOOK)
    store, encoded = kept(tmp_path, teacher, rules, "top_k", counts=(SIZE - 1, 0), temperature=2.0)
    batch = CausalBatches(TOKENIZER)([*encoded])
    said = store.signals(batch).at_words.words(slice(None))
    expected = by_hand(teacher, encoded).sqrt()  # softmax(log p / 2)
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(said.logs.exp(), expected.gather(-1, said.ids), rtol=2e-2, atol=1e-6)


def test_what_is_drawn_from_a_projected_tail_keeps_the_rules_or_weighs_nothing(tmp_path):
    teacher = model()
    store, encoded = kept(tmp_path, teacher, book(*BOOK), "head_and_tail", counts=(3, 4))
    batch = CausalBatches(TOKENIZER)([*encoded])
    said = store.signals(batch).at_words.words(slice(None))
    allowed = by_hand(teacher, encoded).gather(-1, said.ids) > 0
    assert allowed[:, 3:].all()
    assert (said.logs.exp()[~allowed[:, :3]] < 1e-6).all()
    single = torch.full((1, 300), -1e4)
    single[0, 7] = 0
    form = Format("head_and_tail", 3, 4, 16, 300)
    assert unpack(pack(single, form, torch.rand(1, 4)), form).ids[0, 3:].tolist() == [7] * 4


def test_a_store_made_with_other_rules_or_for_other_prompts_is_never_reused(tmp_path, capsys):
    teacher = model()
    heavier = [*BOOK[:2], BOOK[2] | {"weight": 3}]
    renamed = talks().select(range(5)).map(lambda row: row, load_from_cache_file=False)
    folders = [kept(tmp_path, teacher, rules)[0].folder for rules in (None, book(*BOOK), book(*heavier))]
    assert len(set(folders)) == 3
    capsys.readouterr()
    assert kept(tmp_path, teacher, book(*BOOK), table=renamed)[0].folder == folders[1]
    assert "the teacher was not asked" in capsys.readouterr().err
    assert kept(tmp_path, teacher, None)[0].folder == folders[0]


def test_labelling_with_rules_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "SHARD_BYTES", 300)
    teacher, rules = model(), book(*BOOK)
    how = {"keep": "head_and_tail", "counts": (3, 4)}
    store, _ = kept(tmp_path, teacher, rules, **how)
    before = files_of(store.folder)
    shards = [name for name in before if name.endswith(".arrow")]
    assert len(shards) > 1
    (store.folder / shards[1]).unlink()
    (store.folder / "manifest.json").unlink()
    again, _ = kept(tmp_path, teacher, rules, **how)
    after = files_of(again.folder)
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_students_own_answers_are_judged_by_the_teacher_under_the_rules_of_their_prompts():
    teacher, student, rules = model(), model(1), book(*BOOK)
    encoded = encode_chat(talks().select(range(5)), TOKENIZER, 64, prompts=True)
    batch = CausalBatches(TOKENIZER)([*encoded])
    own = OwnAnswers(OnPolicy(max_new_tokens=9), TOKENIZER, 0, None)(student.model, batch, 0, 0)
    live = LiveTeacher(teacher.model, Wanted(logits=True), "float32", causal=True)
    said = live.signals(own).at_words.words(slice(None))
    ruled = RuledWords(live, rules.of(teacher), encoded["prompt"])
    at = ruled.signals(own).at_words
    found = torch.cat([at.words(slice(0, 5)), at.words(slice(5, None))])
    ruled.close()
    rows = own["positions"] // own["input_ids"].shape[1]
    for row in range(5):
        masks = rules.of(teacher).masks(encoded["prompt"][row], own["targets"][rows == row].tolist())
        expected = rules.of(teacher).project(said[rows == row], masks)
        torch.testing.assert_close(found[rows == row], expected, rtol=0, atol=0)
    assert not torch.equal(found, said)


def test_nothing_is_projected_after_the_token_that_ends_an_answer():
    rules = book({"answers": ["good"]}).of(model())
    ids = [*TOKENIZER("good")["input_ids"], TOKENIZER.eos_token_id, *TOKENIZER("\n")["input_ids"]]
    masks = rules.masks("p", ids)
    assert (masks[-1] == -1).all()
    assert not (masks[:-1] == -1).all()
    assert rules.follows("p", ids)
    assert rules.follows("p", ids[:1])  # cut
    assert not rules.follows("p", [ids[0], *ids[2:]])
    assert not rules.follows("p", ids[1::-1])


def test_conditions_look_at_every_turn_before_the_answer():
    turns = [{"role": "system", "content": "say a mood"}, *talk("of soup", "sad"), *talk("and bread", "good")]
    assert prompt_text(turns) == "say a mood\nof soup\nsad\nand bread"
    assert prompt_text(turns[:-1]) == "say a mood\nof soup\nsad\nand bread"


# --- what the teacher is made to write ------------------------------------------------------------------------------


def asked(table: Dataset) -> Dataset:
    return table.map(lambda row: {"messages": row["messages"][:-1]}, features=CHAT)


def said(found: Answers) -> list[str]:
    return [messages[-1]["content"] for messages in found.table["messages"]]


@pytest.mark.parametrize("way", [{}, {"temperature": 2.0, "samples": 3}, {"beams": 3}])
def test_a_teachers_answers_keep_the_hard_rules_and_are_kept_under_them(tmp_path, way):
    settings = Generation(max_new_tokens=20, batch_size=2, **way)
    prompts = asked(talks().select([0, 1, 4]))
    rules = book(*BOOK)
    held = generate(LocalTeacher(model(), settings, rules.of(model())), prompts, settings, tmp_path, 0)
    free = generate(LocalTeacher(model(), settings), prompts, settings, tmp_path, 0)
    assert held.folder != free.folder
    texts = [prompt_text(messages) for messages in held.table["messages"]]
    assert violations(rules.text, texts, said(held))["hard"] == 0
    assert violations(rules.text, texts, said(free))["hard"] == 1
    assert not any(held.table["cut"][:])
    again = LocalTeacher(model(), settings, book(BOOK[0]).of(model()))
    assert again.fingerprint != LocalTeacher(model(), settings, rules.of(model())).fingerprint


def test_a_soft_rule_moves_the_teachers_answers_as_its_weight_says(tmp_path):
    settings = Generation(max_new_tokens=12, temperature=1.0, samples=24)
    prompts, rates = asked(talks().select([0, 4])), []
    for weight in (1e-3, 1.0, 20):
        rules = book({"answers": ["good", "sad", "so so"]}, {"avoid": "so*", "weight": weight})
        found = generate(LocalTeacher(model(), settings, rules.of(model())), prompts, settings, tmp_path, 0)
        rate = violations(rules.text, [prompt_text(messages) for messages in found.table["messages"]], said(found))
        assert rate["hard"] == 0
        rates.append(rate["soft"])
    assert rates[0] > rates[1] > rates[2] == 0


def test_answers_under_rules_go_on_after_a_kill_to_the_same_bytes(tmp_path):
    settings = Generation(max_new_tokens=12, batch_size=2, temperature=1.0)
    prompts, rules = asked(talks().select(range(5))), book(*BOOK)
    generate(LocalTeacher(model(), settings, rules.of(model())), prompts, settings, tmp_path / "whole", 4)
    dying = Dying(model(), settings, rules.of(model()))
    dying.lives = 1
    with pytest.raises(Killed):
        generate(dying, prompts, settings, tmp_path / "torn", 4)
    generate(LocalTeacher(model(), settings, rules.of(model())), prompts, settings, tmp_path / "torn", 4)
    assert files(store_of(tmp_path / "torn")) == files(store_of(tmp_path / "whole"))


def test_answers_of_a_server_that_break_a_hard_rule_are_left_out_and_counted(tmp_path, serve, capsys):  # noqa: F811
    server, rules = serve(), tmp_path / "rules.yaml"
    rules.write_text("- {name: no red, avoid: red*}\n- {name: brief, max_words: 1, weight: 2}")
    given = {
        "task": "causal-lm",
        "data": {"train": "unread.jsonl", "generation": {"max_new_tokens": 7}},
        "stages": [{"name": "distill", "objectives": {"next_token": 1}}],
        "teacher": {"model": "teacher", "server": server.address},
        "student": "small",
        "output": str(tmp_path / "run"),
        "rules": str(rules),
    }
    train = Dataset.from_list([{"prompt": text} for text in ("a red hat", "blue", "redder", "a blue hat")])
    found = answered(load(given), [], train, tmp_path)
    kept_texts = [messages[-1]["content"] for messages in found["messages"]]
    assert len(kept_texts) == 2
    assert all("red" not in text for text in kept_texts)
    assert "2 of 4 answers break a hard rule and are left out" in capsys.readouterr().err
    asked_before = len(server.requests)
    rules.write_text("- {name: none of it, avoid: [red*, blue*]}")
    with pytest.raises(InputError, match=r"every one of the 4 answers .* breaks a hard rule"):
        answered(load(given), [], train, tmp_path)
    assert len(server.requests) == asked_before  # what it said does not depend on the rules


# --- what is measured -----------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(checkpoint: Checkpoint, ids: list[int], new: int) -> str:
    start = len(ids)
    while len(ids) - start < new:
        ids = [*ids, int(checkpoint.model(torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == TOKENIZER.eos_token_id:
            return str(TOKENIZER.decode(ids[start:-1])).strip()
    return str(TOKENIZER.decode(ids[start:])).strip()


def test_rates_and_costs_are_those_of_a_count_by_hand():
    models, rules = {"teacher": model(), "student": model(1, num_hidden_layers=2)}, book(*BOOK)
    test = encode_chat(talks().select(range(5)), TOKENIZER, 64, prompts=True)
    found = evaluate_language(models, test, TASK, Evaluation(resamples=100), 0, rules)
    about = found["rules"]
    assert (about["prompts"], about["max_new_tokens"], about["references_that_keep_hard_rules"]) == (5, 32, 4)
    assert [each["applies"] for each in about["rules"]] == [2, 1, 3]
    assert about["labels"]["by_rule"] == {"a mood": 0.2, "a colour": 0, "not sad": 0.4}
    targets = torch.tensor([token for row in test for token in row["input_ids"][row["first"] :]])
    sizes = [len(row["input_ids"]) - row["first"] for row in test]
    fits = torch.tensor(np.repeat([True, True, True, True, False], sizes))
    for name, checkpoint in models.items():
        mine = found[name]["rules"]
        texts = [greedy(checkpoint, row["input_ids"][: row["first"]], 32) for row in test]
        counted = violations(rules.text, test["prompt"][:], texts)
        assert mine["violations"]["hard"]["value"] == pytest.approx(counted["hard"])
        assert mine["violations"]["by_rule"] == {
            rule: pytest.approx(each["broken"]) for rule, each in counted["by_rule"].items()
        }
        p = by_hand(checkpoint, test)
        free = torch.cat(
            [
                checkpoint.model(torch.tensor([row["input_ids"]])).logits[0, row["first"] - 1 : -1].softmax(-1)
                for row in test
            ]
        ).detach()
        for side, q in ((mine, free), (mine["with_rules"], p)):
            right = (q.argmax(-1) == targets).float().mean().item()
            assert side["quality"]["accuracy"]["value"] == pytest.approx(right)
            loss = -q[fits].gather(-1, targets[fits, None]).log().mean()
            assert side["quality"]["perplexity"]["value"] == pytest.approx(loss.exp().item(), rel=1e-3)
        gain = mine["with_rules"]["quality"]["accuracy"]["value"] - mine["quality"]["accuracy"]["value"]
        assert mine["with_rules"]["difference"]["value"] == pytest.approx(gain)
    assert found["student"]["rules"]["with_rules"]["violations"]["hard"]["value"] == 0
    assert found["student"]["rules"]["with_rules"]["cut"] <= 0.4  # those that a hard rule bounds all end
    assert "violations" not in found["teacher"]["rules"]["with_rules"]
    without = evaluate_language(models, test, TASK, Evaluation(resamples=100), 0)
    assert "rules" not in without
    assert without["student"]["quality"] == found["student"]["quality"]


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """A teacher, data and rules on disk."""
    teacher = model()
    teacher.model.save_pretrained(tmp_path / "teacher")
    TOKENIZER.save_pretrained(tmp_path / "teacher")
    rows = [
        {"prompt": f"{what} of the {noun} {number}", "completion": f'{{"it": "{words[number % len(words)]}"}}'}
        for number in range(4)
        for what, words in (("mood", ("good", "sad")), ("colour", COLOURS))
        for noun in NOUNS
    ]
    write_jsonl(tmp_path / "talks.jsonl", rows)
    schema = {"type": "object", "properties": {"it": {"enum": [*MOODS, *COLOURS]}}, "required": ["it"]}
    (tmp_path / "form.json").write_text(json.dumps(schema | {"additionalProperties": False}))
    (tmp_path / "rules.yaml").write_text(
        "- {name: the form, json_schema: form.json}\n- {name: cheerful, avoid: [sad*], weight: 2}\n"
    )
    return {"teacher": str(tmp_path / "teacher"), "data": str(tmp_path / "talks.jsonl")}


def words_for(tmp_path: Path, places: dict[str, str], name: str, **more: str) -> list[str]:
    given = {
        **places,
        "student.layers": "2",
        "knowledge": str(tmp_path / "knowledge"),
        "output": str(tmp_path / name),
        "training.learning_rate": "5e-3",
        "training.schedule": "constant",
        "training.epochs": "6",
        "training.precision": "float32",
        "evaluation.resamples": "100",
        "baseline": "false",
        **more,
    }
    return [f"{key}={value}" for key, value in given.items()]


def test_a_student_learns_from_words_held_to_rules_and_breaks_none_in_use(tmp_path, places, command):
    rules = {"rules": str(tmp_path / "rules.yaml")}
    code, printed = command("distill", "word-kd", *words_for(tmp_path, places, "held", **rules))
    assert code == 0, printed
    assert "evaluation: 8 test prompts are answered" in printed
    metrics = json.loads((tmp_path / "held" / "metrics.json").read_text())
    teacher, student = (metrics[name]["rules"] for name in ("teacher", "student"))
    assert teacher["violations"]["hard"]["value"] == 1
    assert student["violations"]["hard"]["value"] < 0.5  # what the teacher was made to say was learnt
    assert student["with_rules"]["violations"]["hard"]["value"] == 0
    assert student["with_rules"]["cut"] == 0
    assert metrics["rules"]["labels"]["hard"]["value"] == 0
    assert student["with_rules"]["violations"]["soft"]["value"] <= student["violations"]["soft"]["value"]
    assert metrics["rules"]["references_that_keep_hard_rules"] == 8
    page = (tmp_path / "held" / "report.html").read_text("utf-8")
    assert "Held to the rules" in page
    assert "Broken by the references" in page
    card = (tmp_path / "held" / "student" / "README.md").read_text("utf-8")
    assert "Held to the run's `rules.yaml` in use, a hard rule is broken in 0.0 % of 8 answers" in card
    copied = tmp_path / "held" / "rules.yaml"
    (tmp_path / "form.json").rename(tmp_path / "elsewhere.json")
    book_of_run = load_rules(copied)  # stands for itself, without the file that the original points at
    assert book_of_run.rules[0].json_schema["required"] == ["it"]
    in_use(tmp_path / "held" / "student", AnswerRules(book_of_run))
    (tmp_path / "elsewhere.json").rename(tmp_path / "form.json")
    again = words_for(tmp_path, places, "held", **rules)
    assert command("distill", "word-kd", *again)[0] == 0
    assert json.loads((tmp_path / "held" / "metrics.json").read_text()) == metrics
    (tmp_path / "rules.yaml").write_text("- {name: the form, json_schema: form.json}")
    code, printed = command("distill", "word-kd", *again)
    assert code != 0
    assert "the rules changed since" in printed


def in_use(folder: Path, rules: AnswerRules) -> None:
    """Hold the saved student to the run's copy of the rules, as docs/rules.md does, on prompts that it never saw."""
    from limbeck.rules.tokens import RulesProcessor, TokenRules

    checkpoint = open_causal(str(folder))
    tokenizer = checkpoint.tokenizer
    ready = TokenRules(rules.book, tokenizer, checkpoint.model.config.vocab_size)
    prompts = [f"{what} of {noun}" for what in ("mood", "colour", "smell") for noun in NOUNS]
    tokenizer.padding_side = "left"
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    inputs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    steps = LogitsProcessorList([RulesProcessor(ready, prompts)])
    written = checkpoint.model.generate(**inputs, max_new_tokens=40, logits_processor=steps)
    answers = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert violations(rules.text, prompts, answers)["hard"] == 0


def test_the_student_is_the_same_whether_the_ruled_words_were_kept_or_said_along(tmp_path, places, command):
    more = {"rules": str(tmp_path / "rules.yaml"), "training.epochs": "0.5", "evaluation.examples": "2"}
    found = []
    for keep in ("dense", "nothing"):
        again = words_for(tmp_path, places, keep, **more, **{"teacher.words": keep})
        code, printed = command("distill", "word-kd", *again)
        assert code == 0, printed
        student = open_causal(str(tmp_path / keep / "student")).model
        found.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    start = torch.cat([p.detach().flatten() for p in found_start(places).parameters()])
    assert (found[0] - found[1]).norm() / (found[1] - start).norm() < 0.02


def found_start(places: dict[str, str]) -> Any:
    """The student before training."""
    from limbeck.students.layers import keep_layers

    teacher = open_causal(places["teacher"]).model
    layers = json.loads((Path(places["teacher"]).parent / "dense" / "student" / "config.json").read_text())["limbeck"]
    return keep_layers(teacher, layers["initialisation"]["layers"])


def test_answers_generated_under_the_rules_teach_them(tmp_path, places, command):
    more = {"rules": str(tmp_path / "rules.yaml"), "data.generation.max_new_tokens": "24", "baseline": "true"}
    code, printed = command("distill", "seqkd", *words_for(tmp_path, places, "seq", **more))
    assert code == 0, printed
    assert "training answers looked at" not in printed  # the data's answers are not learnt from
    metrics = json.loads((tmp_path / "seq" / "metrics.json").read_text())
    assert metrics["teacher"]["rules"]["violations"]["hard"]["value"] == 1
    assert metrics["student"]["rules"]["violations"]["hard"]["value"] < 0.5
    assert set(metrics["baseline"]["rules"]["with_rules"]) == {"quality", "difference"}


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("- {name: a, allow: positive}", {}, "rule 'a' has allow, which is about labels, and this is about generated"),
        (
            "- {name: a, when: [mood], answers: good}\n- {name: b, when: {matches: 'soup 3'}, answers: bad}",
            {},
            r"no text keeps the hard rules 'a' and 'b' .*\(on the prompt 'mood of the soup 3'\)",
        ),
        (
            "- {name: a, when: [mood], answers: [good]}\n- {name: b, answers: bad, weight: 2}",
            {},
            "no text that keeps the hard rule 'a' keeps the rule 'b', so that it would change nothing",
        ),
        (
            "- {name: a, max_words: 3}",
            {"stages.distill.objectives.soft_targets.form": "reverse-kl"},
            "stage 'distill' learns by reverse KL divergence, which is infinite .* the hard rule 'a' forbids",
        ),
        ("- {name: a, answer: good}", {}, "did you mean 'answers'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(content, more, message, tmp_path, places, command):
    (tmp_path / "rules.yaml").write_text(content)
    given = dict(each.split("=", 1) for each in words_for(tmp_path, places, "run", **more))
    recipe = load("word-kd", given | {"rules": str(tmp_path / "rules.yaml")})
    with pytest.raises(InputError, match=message) as error:
        limbeck.distill(recipe)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_plain_text_has_no_prompts_for_rules(tmp_path, places):
    (tmp_path / "lines.txt").write_text("the soup was good and the room was long\n" * 60)
    given = dict(each.split("=", 1) for each in words_for(tmp_path, places, "run", data=str(tmp_path / "lines.txt")))
    recipe = load("word-kd", given | {"rules": str(tmp_path / "rules.yaml")})
    with pytest.raises(InputError, match=r"rules are about answers to prompts, and data.train is plain text"):
        limbeck.distill(recipe)
    with pytest.raises(InputError, match=r"rules are about answers to prompts, and task.packed is about plain text"):
        load("word-kd", given | {"rules": str(tmp_path / "rules.yaml"), "task.packed": True})


def test_answers_in_the_data_that_could_not_be_written_under_the_rules_are_counted(tmp_path, places, command):
    rows = [json.loads(line) for line in Path(places["data"]).read_text().splitlines()]
    for row in rows[:40]:
        row["completion"] = row["completion"].replace(": ", ":")  # another style of JSON than is written in use
    write_jsonl(Path(places["data"]), rows)
    more = {
        "rules": str(tmp_path / "rules.yaml"),
        "training.epochs": "0.1",
        "data.test": "0.1",
        "data.validation": "0.1",
    }
    code, printed = command("distill", "word-kd", *words_for(tmp_path, places, "run", **more))
    assert code == 0, printed
    assert "of 64 training answers looked at are none that could be written under the hard rules" in printed.replace(
        "65 training", "64 training"
    )


def test_a_copy_of_the_rules_is_the_file_unless_it_points_at_others(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("# why\n- {name: a, max_words: 3}\n")
    assert standalone(path) == path.read_bytes()
    (tmp_path / "it.lark").write_text('start: "a"+')
    path.write_text("# why\n- {name: a, grammar: it.lark}\n")
    assert yaml.safe_load(standalone(path)) == [{"name": "a", "grammar": 'start: "a"+'}]


def test_models_that_share_tokens_share_what_is_made_of_the_rules():
    rules = book(BOOK[0])
    assert rules.of(model()) is rules.of(model(1))
    wider = model(2, vocab_size=SIZE + 8)
    assert rules.of(wider) is not rules.of(model())
