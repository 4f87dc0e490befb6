"""A teacher's answers: the tokens that its probabilities say, drawn by each prompt's seed alone, made once and kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Held, both, make_tokenizer, write_jsonl
from datasets import Dataset, DatasetDict, load_from_disk
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, LlamaConfig

from limbeck.checkpoints import Checkpoint
from limbeck.data.chat import CHAT
from limbeck.errors import InputError
from limbeck.examples import language
from limbeck.folder import RunFolder
from limbeck.generation import (
    Answer,
    Answers,
    LocalTeacher,
    answered,
    answered_splits,
    answers,
    generate,
    make_answers,
)
from limbeck.generation.local import SeededSampling
from limbeck.recipe import dump, load
from limbeck.recipe.data import Generation

TEMPLATE = (
    "{% for m in messages %}[CLS]{{ m.role }} : {{ m.content }}[SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS]assistant : {% endif %}"
)
TEXTS = ("the book", "a good film was long and the ending felt sad", "soup", "we said it", "staff old day", "they", "a")
RECIPE: dict[str, Any] = {
    "task": "causal-lm",
    "data": {"generation": {"max_new_tokens": 6, "cut": "keep"}},
    "stages": [{"name": "distill", "objectives": {"next_token": 1}}],
}


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


class Dying(LocalTeacher):
    """A teacher that is killed after some batches."""

    lives = 0
    asked = 0

    def answer(self, parts: Any, known: Any) -> Iterator[list[Answer]]:
        for batch in super().answer(parts, known):
            if self.asked == self.lives:
                raise Killed
            self.asked += 1
            yield batch


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


def language_model(seed: int = 0, ends: int = 1, **config: Any) -> Checkpoint:
    """A tiny random Llama whose answers end at any of the first tokens after [SEP]; with a chat template."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, **config}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=200, pad_token_id=0, **sizes, **config)).eval()
    model.generation_config.eos_token_id = list(range(3, 3 + ends))
    tokenizer = make_tokenizer(chat_template=TEMPLATE, eos_token="[SEP]")
    return Checkpoint(model, tokenizer, "tiny")


def prompts(*texts: str) -> Dataset:
    turns = [[{"role": "user", "content": text}] for text in texts or TEXTS]
    return Dataset.from_dict({"messages": turns}, features=CHAT)


def run(
    root: Path, teacher: Checkpoint | None = None, texts: Dataset | None = None, seed: int = 0, **settings: Any
) -> Answers:
    given = Generation(**{"max_new_tokens": 8, "batch_size": 3, **settings})
    return generate(
        LocalTeacher(teacher or language_model(), given), prompts() if texts is None else texts, given, root, seed
    )


def said(found: Answers) -> list[str]:
    return [messages[-1]["content"] for messages in found.table["messages"]]


def store_of(root: Path) -> Path:
    (folder,) = (root / "answers").iterdir()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def recipe_file(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(RECIPE))
    return path


def prompt_ids(checkpoint: Checkpoint, text: str) -> list[int]:
    rendered = f"[CLS]user : {text}[SEP][CLS]assistant : "
    ids: list[int] = checkpoint.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return ids


@torch.no_grad()
def by_hand(checkpoint: Checkpoint, text: str, new: int, ends: set[int]) -> tuple[str, bool, int]:
    """The likeliest token each time, one prompt alone, without padding or cache."""
    ids = prompt_ids(checkpoint, text)
    start = len(ids)
    while len(ids) - start < new:
        ids.append(int(checkpoint.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            return checkpoint.tokenizer.decode(ids[start:-1], skip_special_tokens=True).strip(), False, len(ids) - start
    return checkpoint.tokenizer.decode(ids[start:], skip_special_tokens=True).strip(), True, new


# --- what is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [1, 20])
def test_greedy_answers_in_padded_batches_are_the_likeliest_token_each_time(tmp_path, ends):
    teacher = language_model(ends=ends)
    found = run(tmp_path, teacher)
    expected = [by_hand(teacher, text, 8, set(range(3, 3 + ends))) for text in TEXTS]
    got = list(zip(said(found), found.table["cut"], found.table["tokens"], strict=True))
    assert got == expected
    assert any(cut for _, cut, _ in got)
    assert ends == 1 or not all(cut for _, cut, _ in got)
    assert found.table["prompt_tokens"][:] == [len(prompt_ids(teacher, text)) for text in TEXTS]
    assert found.table["row"][:] == list(range(len(TEXTS)))


def test_beams_are_those_of_transformers_for_each_prompt_alone(tmp_path):
    teacher = language_model()
    found = run(tmp_path, teacher, beams=3)
    for text, answer in zip(TEXTS, said(found), strict=True):
        ids = torch.tensor([prompt_ids(teacher, text)])
        out = teacher.model.generate(ids, num_beams=3, max_new_tokens=8, do_sample=False, eos_token_id=3)
        new = [token for token in out[0, ids.shape[1] :].tolist() if token != 3]
        assert answer == teacher.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert said(found) != said(run(tmp_path, teacher))


def test_draws_follow_the_softmax_at_the_temperature_among_the_top_p():
    scores = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -8.0]])
    shares = torch.softmax(scores[0].double() / 1.5, -1).numpy()
    assert shares[:3].sum() < 0.9 < shares[:4].sum()
    for top_p, kept in ((1.0, 6), (0.9, 4)):
        draws = [
            int(SeededSampling(1.5, top_p, [seed], torch.device("cpu"))(torch.zeros(1, 1).long(), scores).argmax())
            for seed in range(4000)
        ]
        counts = np.bincount(draws, minlength=6)
        assert counts[kept:].sum() == 0
        assert chisquare(counts[:kept], 4000 * shares[:kept] / shares[:kept].sum()).pvalue > 0.001


def test_sampled_answers_depend_on_the_seed_and_not_on_the_batch(tmp_path):
    drawn = {size: said(run(tmp_path / str(size), batch_size=size, temperature=1.5, top_p=0.95)) for size in (1, 3, 7)}
    assert drawn[1] == drawn[3] == drawn[7]
    assert drawn[3] != said(run(tmp_path, temperature=1.5, top_p=0.95, seed=1))


def test_samples_of_a_prompt_differ_and_stand_beside_each_other(tmp_path):
    found = run(tmp_path, texts=prompts("a", "soup"), temperature=2, samples=4)
    assert found.table["row"][:] == [0] * 4 + [1] * 4
    assert found.table["sample"][:] == [0, 1, 2, 3] * 2
    assert len(set(said(found))) > 5
    assert said(found)[:2] == said(run(tmp_path, texts=prompts("a"), temperature=2, samples=2))


def test_the_models_own_generation_settings_are_left_aside_and_the_model_unchanged(tmp_path):
    plain, odd = language_model(), language_model()
    odd.model.train()
    odd.model.generation_config.update(repetition_penalty=5.0, do_sample=True, top_k=3, max_length=9, num_beams=4)
    before = odd.model.generation_config.to_dict()
    weights = {name: tensor.clone() for name, tensor in odd.model.state_dict().items()}
    assert said(run(tmp_path / "a", odd)) == said(run(tmp_path / "b", plain))
    assert odd.model.generation_config.to_dict() == before
    assert odd.model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in odd.model.state_dict().items())


def test_in_bfloat16_weights_are_rounded_and_rotary_frequencies_are_not(monkeypatch):
    if not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("this torch cannot be told what the hardware does")
    teacher = language_model()
    monkeypatch.setattr("limbeck.hardware.pick_precision", lambda: "bfloat16")
    copy = LocalTeacher(teacher, Generation())._working_copy()
    assert {weight.dtype for weight in copy.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in copy.buffers()} == {torch.float32}
    assert {weight.dtype for weight in teacher.model.parameters()} == {torch.float32}


# --- what is kept -------------------------------------------------------------------------------------------------


def test_the_folder_is_a_dataset_of_prompts_with_their_answers(tmp_path):
    found = run(tmp_path)
    table = load_from_disk(str(found.folder))
    assert table.features == answers.FEATURES
    assert [messages[0] for messages in table["messages"]] == [{"role": "user", "content": text} for text in TEXTS]
    assert all([turn["role"] for turn in messages] == ["user", "assistant"] for messages in table["messages"])


def test_what_was_answered_is_reused_without_asking(tmp_path, capsys):
    first = run(tmp_path)
    given = Generation(max_new_tokens=8, batch_size=2)
    again = generate(Dying(language_model(), given), prompts(), given, tmp_path, 0)
    assert again.table["messages"][:] == first.table["messages"][:]
    assert "the teacher was not asked" in capsys.readouterr().err


@pytest.mark.parametrize("batches", range(5))
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_killed_after_any_batch_the_same_call_goes_on_to_the_same_bytes(tmp_path, monkeypatch, batches, temperature):
    monkeypatch.setattr(answers, "SHARD_PROMPTS", 3)
    settings = Generation(max_new_tokens=8, batch_size=2, temperature=temperature)
    generate(LocalTeacher(language_model(), settings), prompts(), settings, tmp_path / "whole", 4)
    dying = Dying(language_model(), settings)
    dying.lives = batches
    with pytest.raises(Killed):
        generate(dying, prompts(), settings, tmp_path / "killed", 4)
    journal = next(store_of(tmp_path / "killed").glob("journal-*"))
    journal.write_bytes(journal.read_bytes()[:-9])  # torn in the middle of its last line
    other = Dying(language_model(), settings)
    other.lives = 5
    generate(other, prompts(), settings, tmp_path / "killed", 4)
    lost = bool(batches) and batches not in (2, 4)  # after these the last line stood in a shard already
    assert other.asked == 5 - batches + lost
    assert files(store_of(tmp_path / "killed")) == files(store_of(tmp_path / "whole"))
    assert not list(store_of(tmp_path / "killed").glob("journal-*"))


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": 1}, {"template": 1}, {"texts": 1}, {"max_new_tokens": 9}, {"temperature": 0.6}, {"beams": 2},
        {"ends": 2},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_the_answers_depend_on_gives_another_folder(tmp_path, change):
    first = run(tmp_path).folder
    teacher = language_model(change.pop("teacher", 0), change.pop("ends", 1))
    if change.pop("template", None):
        teacher.tokenizer.chat_template = TEMPLATE + " "
    texts = prompts(*TEXTS[1:]) if change.pop("texts", None) else prompts()
    assert run(tmp_path, teacher, texts, **change).folder != first


def test_what_the_answers_do_not_depend_on_gives_the_same_folder(tmp_path):
    first = run(tmp_path).folder
    assert run(tmp_path, batch_size=7).folder == first
    assert run(tmp_path, cut="keep").folder == first
    assert run(tmp_path, seed=5).folder == first  # nothing is drawn
    assert run(tmp_path, temperature=1).folder != run(tmp_path, temperature=1, seed=5).folder


def test_of_two_runs_at_once_one_asks_and_the_other_waits_and_reuses(tmp_path, capsys):
    held, teachers = Held(), [language_model(), language_model()]
    passes = []
    teachers[0].model.register_forward_pre_hook(lambda *_: held())
    teachers[1].model.register_forward_pre_hook(lambda *_: passes.append(1))
    found, said = both(lambda: run(tmp_path, teachers[0]), lambda: run(tmp_path, teachers[1]), held, capsys)
    assert not passes
    assert said.count(f"another run is making {store_of(tmp_path)}; waiting until it is done") == 1
    assert found[0].table.to_list() == found[1].table.to_list()


def test_a_damaged_shard_and_a_foreign_folder_are_named(tmp_path):
    folder = run(tmp_path).folder
    shard = folder / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-8] + b"damaged!")
    with pytest.raises(InputError, match=r"shard-00000.arrow is damaged .* delete this file"):
        run(tmp_path)
    for path in folder.iterdir():
        path.unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else than a teacher's answers; move it away"):
        run(tmp_path)


def test_cut_and_empty_answers_are_left_out_of_what_is_learnt(tmp_path, capsys):
    found = run(tmp_path, language_model(ends=20), max_new_tokens=4)
    cut, texts = found.table["cut"][:], said(found)
    assert {True, False} == set(cut)
    kept = [text for text, was_cut in zip(texts, cut, strict=True) if text and not was_cut]
    usable = found.usable(cut=False)
    assert usable.features == CHAT
    assert [messages[-1]["content"] for messages in usable["messages"]] == kept
    assert f"{sum(cut)} of 7 answers were cut and are left out" in capsys.readouterr().err
    assert len(found.usable(cut=True)) == sum(map(bool, texts))
    with pytest.raises(InputError, match=r"none of the 7 answers .* 7 were cut .* give data.generation.cut=keep"):
        run(tmp_path, max_new_tokens=2).usable(cut=False)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    teacher = language_model()
    teacher.tokenizer.chat_template = None
    with pytest.raises(InputError, match="the tokenizer of 'tiny' has no chat template"):
        run(tmp_path, teacher)


def test_a_prompt_that_leaves_no_room_is_refused_before_any_is_answered(tmp_path):
    long = " ".join(["film"] * 60)
    with pytest.raises(
        InputError, match=r"row 2 of the prompts has \d+ tokens, .*max_new_tokens=8 is more than the 64"
    ):
        run(tmp_path, texts=prompts("soup", long))
    assert not (tmp_path / "answers").exists()


def test_a_prompt_that_the_template_does_not_take_is_refused(tmp_path):
    teacher = language_model()
    refuse = "{% if 'sad' in messages[0].content %}{{ raise_exception('no sad ones') }}{% endif %}"
    teacher.tokenizer.chat_template = refuse + TEMPLATE
    with pytest.raises(InputError, match="the chat template of 'tiny' does not take row 2 of the prompts: no sad ones"):
        run(tmp_path, teacher)


def test_no_prompts_are_refused(tmp_path):
    with pytest.raises(InputError, match="there are no prompts"):
        run(tmp_path, texts=prompts("a").select([]))


# --- from a recipe ------------------------------------------------------------------------------------------------


def recipe(tmp_path: Path, **overrides: Any) -> Any:
    given = {"teacher": "tiny", "data": "unread.jsonl", "output": str(tmp_path / "run"), **overrides}
    return load(RECIPE, given)


def test_the_training_prompts_are_answered_in_place_of_their_own_answers(tmp_path):
    train = Dataset.from_list([{"prompt": text, "completion": "its own answer"} for text in TEXTS])
    table = answered(recipe(tmp_path), [language_model()], train, tmp_path)
    assert table.features == CHAT
    assert [messages[:-1] for messages in table["messages"]] == prompts()["messages"][:]
    expected = [by_hand(language_model(), text, 6, {3})[0] for text in TEXTS]
    assert [messages[-1]["content"] for messages in table["messages"]] == expected


def test_other_prompts_may_be_chat_or_a_line_each(tmp_path):
    train = Dataset.from_list([{"text": "plain text, which asks nothing"}])
    with pytest.raises(InputError, match=r"data.train is plain text, which asks nothing; give data.generation.prompts"):
        answered(recipe(tmp_path), [language_model()], train, tmp_path)
    lines = tmp_path / "lines.txt"
    lines.write_text("the book\n\nsoup\n")
    chat = write_jsonl(tmp_path / "chat.jsonl", [{"instruction": "the book"}, {"instruction": "soup"}])
    found = [
        make_answers(recipe(tmp_path, **{"data.generation.prompts": str(path)}), [language_model()], train, tmp_path)
        for path in (lines, chat)
    ]
    assert found[0].folder == found[1].folder
    assert [messages[0]["content"] for messages in found[0].table["messages"]] == ["the book", "soup"]


def asked_alone(tmp_path: Path, **overrides: Any) -> tuple[Any, Any]:
    """A recipe on 20 prompts without answers, and its splits before anybody answered."""
    rows = [{"prompt": f"{word} {text}"} for word in ("the", "a", "we") for text in TEXTS][:20]
    data = write_jsonl(tmp_path / "prompts.jsonl", rows)
    made = recipe(tmp_path, **{"data": str(data), "baseline": False, "data.test": 0.2, **overrides})
    return made, language(made, {}, language_model())[1]


def prompts_of(table: Dataset) -> list[str]:
    return [messages[-2]["content"] for messages in table["messages"]]


def test_prompts_alone_are_answered_whole_and_every_split_takes_its_own(tmp_path):
    made, splits = asked_alone(tmp_path)
    found = answered_splits(made, [language_model()], splits, tmp_path)
    assert found.transfer is found.train
    for name in ("train", "validation", "test"):
        table, before = getattr(found, name), getattr(splits, name)
        assert prompts_of(table) == [messages[-1]["content"] for messages in before["messages"]]
        expected = [by_hand(language_model(), text, 6, {3})[0] for text in prompts_of(table)]
        assert [messages[-1]["content"] for messages in table["messages"]] == expected
    assert sorted(prompts_of(found.train) + prompts_of(found.validation) + prompts_of(found.test)) == sorted(
        json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()
    )
    whole = Dataset.from_json(str(tmp_path / "prompts.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert make_answers(made, [language_model()], whole, tmp_path).folder == store_of(tmp_path)
    assert "the validation and test examples came without answers, and the teacher's own stand in" in splits.notices[0]


def test_of_several_samples_one_is_measured_and_all_are_learnt_from(tmp_path):
    made, splits = asked_alone(tmp_path, **{"data.generation.samples": 3, "data.generation.temperature": 1})
    found = answered_splits(made, [language_model()], splits, tmp_path)
    assert len(found.test) <= len(splits.test)  # an empty answer is left out
    assert len(set(prompts_of(found.test))) == len(found.test)
    assert len(found.train) > 2 * len(splits.train)


def test_answers_that_are_there_are_what_is_measured(tmp_path):
    given = write_jsonl(tmp_path / "test.jsonl", [{"prompt": text, "completion": "its own"} for text in TEXTS])
    made, splits = asked_alone(tmp_path, **{"data.test": str(given)})
    found = answered_splits(made, [language_model()], splits, tmp_path)
    assert {messages[-1]["content"] for messages in found.test["messages"]} == {"its own"}
    assert splits.notices[0].startswith("the validation examples came without answers")


def test_what_learns_from_answers_is_refused_where_there_are_none(tmp_path):
    with pytest.raises(InputError, match=r"prompts.jsonl holds prompts without answers, and the baseline.*baseline=fa"):
        asked_alone(tmp_path, baseline=True)
    with pytest.raises(InputError, match=r"and stage 'distill' learns from the data's answers; .* stages.distill=null"):
        asked_alone(tmp_path, **{"stages.distill.on": "train"})
    with pytest.raises(InputError, match="column 'prompt' but none named 'completion'"):
        asked_alone(tmp_path, **{"data.generation": None})
    rows = [{"instruction": "soup", "output": "good"}, {"instruction": "the book", "output": ""}]
    mixed = write_jsonl(tmp_path / "mixed.jsonl", rows)
    with pytest.raises(InputError, match="row 2"):
        asked_alone(tmp_path, data=str(mixed))


def test_the_command_answers_and_says_where_and_at_what_cost(tmp_path, command):
    model, tokenizer, _ = language_model()
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the book"}, {"prompt": "soup"}])
    words = ["generate", str(recipe_file(tmp_path)), f"teacher={tmp_path / 'teacher'}", f"data={data}"]
    code, printed = command(*words, f"output={tmp_path / 'run'}")
    assert code == 0
    folder = store_of(tmp_path / "run" / "knowledge")
    assert f"2 answers in {folder}\ncost: " in printed
    found = load_from_disk(str(folder))
    assert said(Answers(folder, found)) == [by_hand(language_model(), text, 6, {3})[0] for text in ("the book", "soup")]


def test_of_data_with_answers_the_command_answers_the_prompts_that_a_run_learns_from(tmp_path, command):
    model, tokenizer, _ = teacher = language_model()
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    rows = [{"prompt": f"{word} {text}", "completion": "its own"} for word in ("the", "a") for text in TEXTS]
    data = write_jsonl(tmp_path / "chat.jsonl", rows)
    given = {"teacher": str(tmp_path / "teacher"), "data": str(data), "output": str(tmp_path / "run")}
    words = ["generate", str(recipe_file(tmp_path)), *(f"{key}={value}" for key, value in given.items())]
    code, printed = command(*words)
    assert code == 0, printed
    folder = store_of(tmp_path / "run" / "knowledge")
    _, splits = language(recipe(tmp_path, **given), {}, teacher)
    assert 0 < len(splits.train) < len(rows)
    again = make_answers(recipe(tmp_path, **given), [teacher], splits.train, tmp_path / "run" / "knowledge")
    assert again.folder == folder

    lines = tmp_path / "lines.txt"
    lines.write_text("the book\nsoup\n")
    words = [word for word in words if not word.startswith(("data=", "output="))]
    code, printed = command(
        *words, f"data={lines}", f"data.generation.prompts={lines}", f"output={tmp_path}/lines", "knowledge=null"
    )
    assert code == 0, printed
    assert len(load_from_disk(str(store_of(tmp_path / "lines" / "knowledge")))) == 2


def test_prompts_in_splits_of_their_own_are_answered_each_by_itself(tmp_path):
    rows = [{"prompt": f"{word} {text}"} for word in ("the", "a", "we") for text in TEXTS]
    parts = {"train": rows[:12], "validation": rows[12:15], "test": rows[15:]}
    DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(tmp_path / "saved")
    made = recipe(tmp_path, data=str(tmp_path / "saved"), baseline=False)
    found = answered_splits(made, [language_model()], language(made, {}, language_model())[1], tmp_path)
    for name, part in parts.items():
        assert set(prompts_of(getattr(found, name))) <= {row["prompt"] for row in part}
        assert len(getattr(found, name)) > 0


def test_a_run_may_go_on_with_another_limit_key_or_timeout_and_not_with_another_model(tmp_path):
    served = {"teacher": {"server": "http://localhost:1/v1", "model": "a"}, "student": "small"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(dump(recipe(tmp_path, **served)))
    free = {"teacher.key": "OTHER", "teacher.timeout": 5, "data.generation.token_limit": 50}
    RunFolder(tmp_path / "run").check(recipe(tmp_path, **served, **free))
    with pytest.raises(InputError, match=r"its teacher.models.0.model is 'a', yours is 'b'"):
        RunFolder(tmp_path / "run").check(recipe(tmp_path, **served, **{"teacher.model": "b"}))


def refusal(**overrides: Any) -> str:
    given = {"data": "a.jsonl", "output": "run", "teacher.model": "tiny", **overrides}
    with pytest.raises(InputError) as caught:
        load(RECIPE, {key: value for key, value in given.items() if value is not ...})
    return str(caught.value)


def test_entries_that_do_not_go_together_are_refused():
    served = {"teacher.server": "http://localhost:1/v1", "student": "small"}
    assert "at temperature 0 all would be equal" in refusal(**{"data.generation.samples": 2})
    assert "at temperature 0 nothing is sampled" in refusal(**{"data.generation.top_p": 0.5})
    assert "beams is 2, which searches" in refusal(**{"data.generation": {"beams": 2, "temperature": 1}})
    assert "a server has no beams" in refusal(**served, **{"data.generation.beams": 2})
    assert "token_limit is for a teacher behind a server" in refusal(**{"data.generation.token_limit": 2})
    plain = {"task": "classification", "stages.distill.objectives": {"hard_labels": 1}}
    assert "data.generation is for task causal-lm" in refusal(**plain)
    assert "takes one teacher, and 2 are given" in refusal(teacher=["a", "b"], **{"teacher.model": ...})
    assert "takes one teacher, and none is given" in refusal(**{"teacher.model": ...}, student="small")


def test_a_server_gives_answers_alone():
    served = {"teacher.server": "http://localhost:1/v1", "student": "small"}
    load(RECIPE, {"data": "a.jsonl", "output": "run", "teacher.model": "tiny", **served})
    said = refusal(**served, **{"stages.distill.objectives": {"soft_targets": 1}})
    assert "behind a server, which answers prompts but gives no signals, and stage 'distill' (soft_targets)" in said
    assert "use the recipe seqkd" in said
    assert "learn from its answers with the recipe seqkd" in refusal(**served, **{"data.generation": None})
    assert "no student can be cut from 'tiny', which is behind a server; add student=MODEL" in refusal(
        **{"teacher.server": "http://localhost:1/v1"}
    )


@pytest.mark.parametrize("key", ["sk-abc123", "gsk_abc123", "hf_abc", "A KEY"])
def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(key):
    said = refusal(**{"teacher.server": "http://localhost:1/v1", "student": "small", "teacher.key": key})
    assert "key names the environment variable" in said
    assert key not in said


@pytest.mark.parametrize(
    "address", ["localhost:8000/v1", "http://me:secret@host/v1", "ftp://host", "http://h?k=secret"]
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(address):
    said = refusal(**{"teacher.server": address, "student": "small"})
    assert "server must be an address such as http://localhost:8000/v1" in said
    assert "secret" not in said.replace("a secret", "")


def test_data_given_on_the_command_line_keeps_the_methods_generation():
    for data in ("a.jsonl", {"train": "a.jsonl"}):
        made = load(RECIPE, {"teacher": "tiny", "data": data, "output": "run"})
        assert (made.data.train.path, made.data.generation.max_new_tokens) == ("a.jsonl", 6)
        assert load(json.loads(json.dumps(made.model_dump(mode="json")))) == made
    assert "max_new_tokens: 6" in dump(made)
