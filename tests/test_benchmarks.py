"""Benchmarks of causal language models: the same figures as by hand, from local files, without a network."""

from __future__ import annotations

import gzip
import json
import math
import runpy
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FILLER, write_csv, write_jsonl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

import limbeck
from limbeck.errors import InputError
from limbeck.evaluation.benchmark_files import BENCHMARKS
from limbeck.evaluation.generation_speed import generation_speed, measure_generation
from limbeck.evaluation.harness import draw, plan_benchmarks, retention

STORY = {f"InputSentence{n}": f"the actor was {word}." for n, word in enumerate(("short", "long", "old", "new"), 1)}
HELLASWAG = [
    {"ctx": "Soup making: the actor is at the hotel. he", "endings": ["felt very long", "was old", "and", "a film"]},
    {"ctx": "Reading: [step] the book was", "endings": ["new [title] but old", "light", "a bread", "at night"]},
    {"ctx": "Music: we looked at the staff and they", "endings": ["seemed", "this is it", "somewhat", "in the room"]},
]
END = {"bos_token_id": 0, "eos_token_id": 0}
CHOICES = [
    {"question": "the soup was", "choices": ["long and old", "light"], "label": 1},
    {"question": "the book is for", "choices": ["a room", "the music and the staff"], "label": 0},
    {"question": "they felt", "choices": ["new", "rather short in the hotel"], "label": 1},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges: any text goes in and comes out as it was."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=["<end>"])
    backend.train_from_iterator([f"{a} {b}" for a in FILLER for b in FILLER], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, initializer_range=0.3, **shape)
    made = LlamaForCausalLM(config).eval()
    words = [
        token.startswith("Ġ") and len(token) > 1 for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    ]
    with torch.no_grad():
        made.lm_head.weight[~torch.tensor(words)] *= 0.1  # what it likes to say are words, not pieces of them
    return made


def log_probability(model: Any, tokenizer: Any, context: str, ending: str) -> tuple[float, bool]:
    """Of an ending after its context, and whether it is what the model itself would say, by the definition."""
    whole, before = tokenizer(context + ending)["input_ids"], len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    places = range(before, len(whole))
    likeliest = all(int(logits[place - 1].argmax()) == whole[place] for place in places)
    return sum(float(logits[place - 1, whole[place]]) for place in places), likeliest


def own_words(model: Any, tokenizer: Any, contexts: Sequence[str]) -> list[tuple[str, str]]:
    """Contexts after which the model itself would say a word, and that word."""
    found: list[tuple[str, str]] = []
    for context in contexts:
        with torch.no_grad():
            next_token = model(torch.tensor([tokenizer(context)["input_ids"]])).logits[0, -1].argmax()
        word = tokenizer.decode(next_token)
        if word.strip() and word.startswith(" ") and log_probability(model, tokenizer, context, word)[1]:
            found.append((context, word.strip()))
    assert len(found) >= 2, "the random model never says a word of its own"
    return found


def choices_by_hand(
    model: Any, tokenizer: Any, rows: Sequence[tuple[str, Sequence[str], int]]
) -> tuple[list[float], list[float]]:
    """Right by log-probability, and by log-probability per character of the choice."""
    plain, normed = [], []
    for context, endings, label in rows:
        scores = np.array([log_probability(model, tokenizer, context, " " + ending)[0] for ending in endings])
        plain.append(float(scores.argmax() == label))
        normed.append(float((scores / [len(ending) for ending in endings]).argmax() == label))
    return plain, normed


def write_all(folder: Path) -> Path:
    """Every benchmark in its documented layout, three examples each."""
    questions = [{"question": f"who was {name}", "answers": ["the actor", name]} for name in ("it", "they", "we")]
    rows: dict[str, list[dict[str, Any]]] = {
        "lambada/test": [{"text": f"the {word} was very long"} for word in FILLER[:3]],
        "hellaswag/val": [{**row, "label": n} for n, row in enumerate(HELLASWAG)],
        "nq_open/test": questions,
        "nq_open/dev": [{"question": f"what is {word}", "answers": [word, "x"]} for word in FILLER[:6]],
        "webquestions/test": [{**row, "question": row["question"] + "?", "id": "w"} for row in questions],
        "webquestions/train": [{"question": f"what is {word}?", "answers": [word, "a"]} for word in FILLER[4:9]],
        "triviaqa/test": questions,
        "triviaqa/train": questions[::-1],
        "piqa/val": CHOICES,
        "openbookqa/test": CHOICES,
    }
    for name, content in rows.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / f"{name}.jsonl", content)
    (folder / "storycloze").mkdir()
    ends = {"RandomFifthSentenceQuiz1": "it was a very long night.", "RandomFifthSentenceQuiz2": "soup."}
    stories = [{"InputStoryid": n, **STORY, **ends, "AnswerRightEnding": 1 + n % 2} for n in range(3)]
    write_csv(folder / "storycloze" / "test.csv", stories)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return write_all(folder)


# --- scores by hand -----------------------------------------------------------------------------------------------


def test_lambada_is_what_the_models_own_probabilities_say(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    said = [
        f"{context} {word}" for context, word in own_words(model, tokenizer, [f"the {word} was" for word in FILLER])
    ]
    texts = [said[0], "the room was light and the soup", said[1], "they felt it at night", "we looked for the bread"]
    (tmp_path / "lambada").mkdir()
    with gzip.open(tmp_path / "lambada" / "test.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    parts = [text.rpartition(" ") for text in texts]
    by_hand = [log_probability(model, tokenizer, context, " " + word) for context, _, word in parts]
    logs, right = np.array([each[0] for each in by_hand]), np.array([float(each[1]) for each in by_hand])
    assert 0 < right.mean() < 1
    for batch_size in (1, 3):
        found = limbeck.benchmark((model, tokenizer), ["lambada"], data=tmp_path, batch_size=batch_size)["tasks"][
            "lambada"
        ]
        np.testing.assert_allclose(found["scores"]["perplexity"], logs, rtol=1e-4)
        assert found["scores"]["acc"] == right.tolist()
        assert found["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(-logs.mean()), rel=1e-4)
        error = math.exp(-logs.mean()) * math.sqrt(logs.var(ddof=1) / 5)
        assert found["metrics"]["perplexity"]["stderr"] == pytest.approx(error, rel=1e-4)
        assert found["metrics"]["acc"]["value"] == pytest.approx(right.mean())
        assert found["metrics"]["acc"]["stderr"] == pytest.approx(math.sqrt(right.var(ddof=1) / 5))
        assert (found["examples"], found["available"]) == (5, 5)


def test_hellaswag_counts_characters_of_the_ending(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    contexts = [
        "Soup making: the actor is at the hotel. he",
        "Reading: the book was",  # brackets are left over from a website
        "Music: we looked at the staff and they",
    ]
    endings = [row["endings"] for row in HELLASWAG]
    endings[1] = ["new. but old", *endings[1][1:]]
    unlabelled = [(context, ends, 0) for context, ends in zip(contexts, endings, strict=True)]
    labels = [0, 1, 2]
    rows = [(context, ends, label) for (context, ends, _), label in zip(unlabelled, labels, strict=True)]
    (tmp_path / "hellaswag").mkdir()
    write_jsonl(
        tmp_path / "hellaswag" / "val.jsonl", [{**row, "label": n} for row, n in zip(HELLASWAG, labels, strict=True)]
    )
    plain, normed = choices_by_hand(model, tokenizer, rows)
    found = limbeck.benchmark((model, tokenizer), ["hellaswag"], data=tmp_path)["tasks"]["hellaswag"]
    assert found["scores"] == {"acc": plain, "acc_norm": normed}


def test_hellaswag_as_published_reads_alike(tmp_path: Path) -> None:
    published = {
        "activity_label": "Soup making",
        "ctx_a": "the actor is at the hotel.",
        "ctx_b": "He",
        "ctx": "the actor is at the hotel. He",
        "endings": HELLASWAG[0]["endings"],
        "label": 3,
    }
    ours = {"ctx": "Soup making: the actor is at the hotel. He", "endings": HELLASWAG[0]["endings"], "label": 3}
    found = []
    for name, row in (("a", published), ("b", ours)):
        (tmp_path / name / "hellaswag").mkdir(parents=True)
        write_jsonl(tmp_path / name / "hellaswag" / "val.jsonl", [row])
        document = plan_benchmarks(["hellaswag"], tmp_path / name).benchmarks[0].task.eval_docs[0]
        found.append({key: document[key] for key in ("query", "choices", "label")})
    assert found[0] == found[1]


def test_choices_are_scored_after_their_prompts(model: Any, tokenizer: Any, data: Path) -> None:
    prompts = {
        "piqa": [f"Question: {row['question']}\nAnswer:" for row in CHOICES],
        "openbookqa": [row["question"] for row in CHOICES],
    }
    found = limbeck.benchmark((model, tokenizer), ["piqa", "openbookqa", "storycloze"], data=data)["tasks"]
    for name, contexts in prompts.items():
        rows = [(context, row["choices"], row["label"]) for context, row in zip(contexts, CHOICES, strict=True)]
        plain, normed = choices_by_hand(model, tokenizer, rows)
        assert found[name]["scores"] == {"acc": plain, "acc_norm": normed}, name
    story, ends = " ".join(STORY.values()), ["it was a very long night.", "soup."]
    expected, _ = choices_by_hand(model, tokenizer, [(story, ends, n % 2) for n in range(3)])
    assert found["storycloze"]["scores"] == {"acc": expected}


# --- answers that are written -------------------------------------------------------------------------------------


class Scripted(GPT2LMHeadModel):
    """Says what a script says: after a text that ends with a key, its reply. Keeps the texts that it was given."""

    script: dict[str, str]
    tokenizer: Any
    seen: set[str]

    def prepare_inputs_for_generation(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **_: Any) -> CausalLMOutput:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, ids in enumerate(input_ids):
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            key = max((key for key in self.script if key in text), key=text.rfind)
            before, said = text[: text.rfind(key) + len(key)], text[text.rfind(key) + len(key) :]
            self.seen.add(before)
            for place in range(len(ids)):
                logits[row, place, self.tokenizer.eos_token_id] = 1
            left = self.tokenizer(self.script[key][len(said) :])["input_ids"]
            if left and self.script[key].startswith(said):
                logits[row, -1, left[0]] = 2
        return CausalLMOutput(logits=logits)


@pytest.fixture
def scripted(tokenizer: Any) -> Callable[[dict[str, str]], Scripted]:
    def make(script: dict[str, str]) -> Scripted:
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=1024, n_embd=8, n_layer=1, n_head=1, **END)
        made = Scripted(config).eval()
        made.script, made.tokenizer, made.seen = script, tokenizer, set()
        return made

    return make


REPLIES = {  # the reply, the accepted answers, right for Natural Questions, right for TriviaQA
    "capital": (" PARIS!\nQ: x", ["Lyon", "Paris"], 1, 1),
    "tower": (" the tower", ["Tower"], 1, 0),  # only Natural Questions leaves out articles
    "river": (" a Seine\n", ["the Seine"], 1, 0),
    "dot": (" Mont St. Michel", ["Mont St. Michel"], 0, 0),  # writing stops at a full stop
    "near": (" Pari", ["Paris"], 0, 0),
    "endless": (" Paris" * 40, ["Paris"], 0, 0),
    "silent": ("", ["Paris"], 0, 0),
}


@pytest.mark.parametrize("name", ["nq_open", "triviaqa"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_exact_match_compares_normalised_answers(
    name: str, batch_size: int, scripted: Any, tokenizer: Any, tmp_path: Path
) -> None:
    start, end = ("Q: ", "?\nA:") if name == "nq_open" else ("Question: ", "?\nAnswer:")
    model = scripted({f"{start}{key}{end}": reply for key, (reply, *_) in REPLIES.items()})
    (tmp_path / name).mkdir()
    rows = [{"question": key, "answers": answers} for key, (_, answers, *_) in REPLIES.items()]
    write_jsonl(tmp_path / name / "test.jsonl", rows)
    found = limbeck.benchmark((model, tokenizer), [name], data=tmp_path, batch_size=batch_size)["tasks"][name]
    assert found["scores"]["exact_match"] == [each[2 if name == "nq_open" else 3] for each in REPLIES.values()]
    head = "Answer these questions:\n\n" if name == "nq_open" else ""
    assert {f"{head}{start}{key}{end}" for key in REPLIES} <= model.seen


def test_webquestions_ask_whether_the_model_would_write_an_answer(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    said = own_words(model, tokenizer, [f"Question: what is {word}?\nAnswer:" for word in FILLER])[:3]
    rows = [
        {"question": context.removeprefix("Question: ").removesuffix("\nAnswer:"), "answers": answers}
        for (context, _), answers in zip(said, (["zebra", said[0][1]], ["zebra", "quince"], [said[2][1]]), strict=True)
    ]
    (tmp_path / "webquestions").mkdir()
    write_jsonl(tmp_path / "webquestions" / "test.jsonl", rows)
    found = limbeck.benchmark((model, tokenizer), ["webquestions"], data=tmp_path)["tasks"]["webquestions"]
    assert found["scores"]["exact_match"] == [1, 0, 1]


# --- the draw -----------------------------------------------------------------------------------------------------


def test_examples_in_the_prompt_come_from_another_split(scripted: Any, tokenizer: Any, data: Path) -> None:
    script = {f"Q: who was {name}?\nA:": " it\n" for name in ("it", "they", "we")}
    prompts = []
    for seed in (0, 0, 1):
        model = scripted(script)
        limbeck.benchmark((model, tokenizer), ["nq_open"], data=data, shots=2, seed=seed, batch_size=1)
        prompts.append(sorted(model.seen))
    assert prompts[0] == prompts[1] != prompts[2]
    for prompt in prompts[0]:
        head, *questions = prompt.split("Q: ")
        assert head == "Answer these questions:\n\n"
        assert len(questions) == 3
        assert all(question.startswith("what is") for question in questions[:2])
        assert questions[2].startswith("who was")
        words = [question.removeprefix("what is ").split("?")[0] for question in questions[:2]]
        assert [question.split("A: ")[1].strip() for question in questions[:2]] == words


def test_webquestions_shows_an_answer_in_words(data: Path) -> None:
    task = plan_benchmarks(["webquestions"], data, shots=2).benchmarks[0].task
    task.set_fewshot_seed(seed=0)
    prompt = task.fewshot_context(task.eval_docs[0], 2)
    answers = [part.split("\n\n")[0] for part in prompt.split("Answer: ")[1:]]
    assert len(answers) == 2
    assert set(answers) <= {*FILLER[4:9], "a"}


def test_a_limit_draws_the_same_examples_for_every_model(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "lambada").mkdir()
    write_jsonl(tmp_path / "lambada" / "test.jsonl", [{"text": f"the {word} is very new"} for word in FILLER])
    everything = limbeck.benchmark((model, tokenizer), ["lambada"], data=tmp_path)["tasks"]["lambada"]["scores"][
        "perplexity"
    ]
    found = limbeck.benchmark((model, tokenizer), ["lambada"], data=tmp_path, limit=7, seed=3)["tasks"]["lambada"]
    drawn = draw(len(FILLER), 7, seed=3)
    assert drawn == sorted(set(drawn))
    assert drawn != list(range(7))
    np.testing.assert_allclose(found["scores"]["perplexity"], np.array(everything)[drawn], rtol=1e-5)
    assert (found["examples"], found["available"]) == (7, len(FILLER))
    assert draw(5, 9, 0) == draw(5, None, 0) == [0, 1, 2, 3, 4]


def test_everything_runs_without_a_network(
    model: Any, tokenizer: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    side = tokenizer.padding_side
    model.train()
    found = limbeck.benchmark((model, tokenizer), None, data=data)
    assert list(found["tasks"]) == list(BENCHMARKS)
    for task in found["tasks"].values():
        assert task["examples"] == 3
        assert all(math.isfinite(metric["value"]) for metric in task["metrics"].values())
    assert found["settings"]["dtype"] == "float32"
    assert found["versions"]["lm_eval"] != "not installed"
    assert model.training
    model.eval()
    assert (tokenizer.padding_side, tokenizer.pad_token) == (side, None)


# --- retention ----------------------------------------------------------------------------------------------------


def test_retention_is_the_ratio_with_a_paired_error() -> None:
    draws = np.random.default_rng(0)
    teacher = draws.random(4000) < 0.6
    student = np.where(draws.random(4000) < 0.8, teacher, draws.random(4000) < 0.3)
    logs = draws.normal(-3, 1, 4000), draws.normal(-2.5, 1, 4000)
    sides = [
        {"scores": {"acc": side.astype(float).tolist(), "perplexity": log.tolist()}}
        for side, log in zip((student, teacher), logs, strict=True)
    ]
    found = retention(*sides)
    assert found["acc"]["value"] == pytest.approx(student.mean() / teacher.mean())
    assert found["perplexity"]["value"] == pytest.approx(math.exp(-logs[1].mean()) / math.exp(-logs[0].mean()))
    rows = draws.integers(0, 4000, (2000, 4000))
    resampled = student[rows].mean(1) / teacher[rows].mean(1)
    assert found["acc"]["stderr"] == pytest.approx(resampled.std(), rel=0.1)
    resampled = np.exp(logs[0][rows].mean(1) - logs[1][rows].mean(1))
    assert found["perplexity"]["stderr"] == pytest.approx(resampled.std(), rel=0.1)
    assert retention(sides[0], sides[0])["acc"] == {"value": 1.0, "stderr": 0.0}
    nothing = {"scores": {"acc": [0.0, 0.0]}}
    assert retention({"scores": {"acc": [1.0, 0.0]}}, nothing)["acc"]["value"] is None
    with pytest.raises(InputError, match="2 examples of the student, 4000 of the teacher"):
        retention(nothing, {"scores": {"acc": sides[0]["scores"]["acc"]}})


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "settings", "sentence"),
    [
        (["lambda"], {}, "no benchmark 'lambda'; did you mean 'lambada'"),
        (["lambada"], {"limit": 0}, "limit is 0"),
        (["lambada"], {"shots": -1}, "shots is -1"),
        (["hellaswag"], {"shots": 1}, r"hellaswag with 1 shots needs train.jsonl in .*never drawn from those"),
        (["nq_open"], {"shots": 7}, "nq_open has 6 examples for the prompt, 7 shots"),
        (["lambada"], {"data": Path("nowhere")}, "no folder 'nowhere'"),
    ],
)
def test_mistakes_are_said_in_a_sentence(names: list[str], settings: dict[str, Any], sentence: str, data: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        plan_benchmarks(names, **{"data": data, **settings})


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("lambada", '{"sentence": "a b"}', "has the columns sentence; this benchmark reads text"),
        ("lambada", '{"text": "word"}', "example 1 of .* cannot be scored: text has no last word"),
        ("lambada", '{"text": "a b"', "does not read as JSON lines"),
        ("lambada", '["a b"]', "must be an object"),
        ("lambada", "\n", "holds no examples"),
        ("openbookqa", '{"question": "a", "choices": ["b", "c"], "label": 2}', "label 2, but 2 choices"),
        ("nq_open", '{"question": "a", "answers": []}', "answers is \\[\\]; it must be a list"),
        ("nq_open", '{"question": "a", "answers": "b"}', "answers is 'b'; it must be a list"),
        ("triviaqa", '{"question": "a", "answers": ["b"]}\n{"question": "a"}', "example 2 of .* no column 'answers'"),
    ],
)
def test_files_that_do_not_fit_are_named(name: str, content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "test.jsonl").write_text(content)
    with pytest.raises(InputError, match=sentence):
        plan_benchmarks([name], tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*lambada.test\.jsonl \(or \.jsonl\.gz, \.csv\)"):
        plan_benchmarks(["lambada"], tmp_path)
    with pytest.raises(InputError, match="holds no benchmark"):
        plan_benchmarks(None, tmp_path)


def test_the_hubs_data_sets_are_read_as_lm_eval_does(
    model: Any, tokenizer: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` takes a folder of the data set's name for the data set."""
    lambada, questions = tmp_path / "EleutherAI" / "lambada_openai", tmp_path / "google-research-datasets" / "nq_open"
    for folder in (lambada, questions):
        folder.mkdir(parents=True)
    (lambada / "test.jsonl").write_bytes((data / "lambada" / "test.jsonl").read_bytes())
    rows = [{"question": f"what is {word}", "answer": [word]} for word in FILLER[:6]]
    write_jsonl(questions / "train.jsonl", rows[2:])
    write_jsonl(questions / "validation.jsonl", rows[:2])
    monkeypatch.chdir(tmp_path)
    here, there = (
        limbeck.benchmark((model, tokenizer), ["lambada"], data=folder)["tasks"]["lambada"] for folder in (data, None)
    )
    assert here["scores"] == there["scores"]
    assert there["source"] == "EleutherAI/lambada_openai"
    with pytest.raises(InputError, match="the hub's lambada has no other examples than the measured ones"):
        plan_benchmarks(["lambada"], shots=1)
    with pytest.raises(InputError, match="nq_open has 4 examples for the prompt, 5 shots"):
        plan_benchmarks(["nq_open"], shots=5)
    task = plan_benchmarks(["nq_open"], shots=4).benchmarks[0].task
    assert sorted(task.fewshot_docs()["question"]) == sorted(row["question"] for row in rows[2:])
    assert task.eval_docs["question"][:] == [row["question"] for row in rows[:2]]


def test_without_a_folder_the_hub_is_asked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the hub did not give lambada: .*; give a folder of files with --data"):
        plan_benchmarks(["lambada"])


def test_lm_eval_that_is_missing_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'limbeck\[harness\]'"):
        plan_benchmarks(["lambada"], data)


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def saved(model: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """A run's folder with its student."""
    model.save_pretrained(tmp_path / "run" / "student")
    tokenizer.save_pretrained(tmp_path / "run" / "student")
    return tmp_path / "run"


def test_the_command_prints_a_table_and_writes_json(
    saved: Path, model: Any, tokenizer: Any, data: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    file = tmp_path / "found.json"
    words = ["--tasks", "lambada, hellaswag", "--data", str(data), "--limit", "2", "--output", str(file)]
    code, printed = command("benchmark", str(saved), *words)
    assert code == 0, printed
    assert all(word in printed for word in ("lambada", "perplexity", "acc_norm", "2 of 3"))
    written = json.loads(file.read_text())
    assert list(written) == ["model", "parameters", "versions", "settings", "tasks"]
    assert written["parameters"] == model.num_parameters()
    assert written["settings"]["limit"] == 2
    expected = limbeck.benchmark((model, tokenizer), ["lambada"], data=data, limit=2)["tasks"]["lambada"]["metrics"]
    for metric, figure in written["tasks"]["lambada"]["metrics"].items():
        assert figure == pytest.approx(expected[metric], rel=1e-4)
    direct = limbeck.benchmark((model, tokenizer), ["lambada"], data=data, limit=2)
    assert direct["tasks"]["lambada"]["metrics"] == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.gguf"], "no GGUF file 'nowhere.gguf'"),
        (["./nowhere"], "no model folder './nowhere'"),
        (["RUN", "--tasks", "hellaswags"], "did you mean 'hellaswag'?"),
        (["RUN", "--output", "nowhere/a.json"], "to write a.json into"),
    ],
)
def test_mistakes_end_the_command_with_a_sentence(
    words: list[str], sentence: str, saved: Path, data: Path, command: Callable[..., tuple[int, str]]
) -> None:
    words = [str(saved) if word == "RUN" else word for word in words]
    code, printed = command("benchmark", *words, "--data", str(data))
    assert code == 2
    assert sentence in printed.replace("\n", " ")


# --- speed --------------------------------------------------------------------------------------------------------


def test_generation_is_timed_to_the_last_token_even_of_a_model_that_would_stop(model: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    stopping = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=64, n_embd=8, n_layer=1, n_head=1, eos_token_id=3, bos_token_id=3)
    )
    with torch.no_grad():
        for weight in stopping.transformer.parameters():
            weight.zero_()
        stopping.transformer.ln_f.bias.fill_(1.0)
        stopping.transformer.wte.weight[3] = 1.0  # the end of the text is always the likeliest token
    lengths = []
    stopping.register_forward_hook(lambda _, __, output: lengths.append(output.logits.shape[0]))
    found = measure_generation({"a": model, "b": stopping}, prompt_tokens=5, new_tokens=4, batches=(1, 3), rounds=2)
    assert list(found) == ["a", "b"]
    runs = 1 + 3 + 2  # one to get ready, three for memory, two timed; four forward passes each
    assert (lengths.count(1), lengths.count(3)) == (4 * runs, 4 * runs)
    for batches in found.values():
        assert list(batches) == ["batch_1", "batch_3"]
        for figures in batches.values():
            for rate in ("prompt_tokens_per_second", "new_tokens_per_second"):
                assert 0 < figures[rate]["low"] <= figures[rate]["median"] <= figures[rate]["high"]


def test_memory_grows_with_what_is_held(tokenizer: Any) -> None:
    torch.manual_seed(0)
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=1024, **wide))
    found = measure_generation({"m": model}, prompt_tokens=256, new_tokens=2, batches=(1, 16), rounds=1)["m"]
    if found["batch_1"]["peak_bytes"] is None:
        pytest.skip("this system does not say how much memory a process held")
    keys_and_values = 4 * 2 * 256 * 256 * 4  # layers, both, width, positions, bytes
    assert 16 * keys_and_values < found["batch_16"]["peak_bytes"]["median"] < 16 * keys_and_values + 200e6


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"new_tokens": 1}, "new_tokens is 1"), ({"prompt_tokens": 1020, "new_tokens": 5}, "has 1024 positions")],
)
def test_more_tokens_than_positions_are_refused(model: Any, settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        measure_generation({"m": model}, **settings)


def test_a_report_times_generation_in_a_few_tokens_even_where_positions_are_few(model: Any) -> None:
    torch.manual_seed(0)
    short = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=20, n_embd=8, n_layer=1, n_head=1))
    lengths = []
    model_handle = model.register_forward_hook(lambda _, args, kwargs, __: lengths.append(args), with_kwargs=True)
    both = generation_speed({"student": model, "teacher": short})
    alone = generation_speed({"student": model})
    model_handle.remove()
    assert [(each["prompt_tokens"], each["new_tokens"]) for each in both.values()] == [(10, 10)] * 2
    assert (alone["student"]["prompt_tokens"], alone["student"]["new_tokens"]) == (64, 16)
    assert len(lengths) == 5 * (10 + 16)  # to get ready, for memory, and three that are timed
    assert alone["student"]["precision"] == "float32"
    assert alone["student"]["new_tokens_per_second"]["median"] > 0


# --- the paper's tables -------------------------------------------------------------------------------------------


def test_the_papers_tables_are_filled_and_go_on_where_they_stopped(
    saved: Path, model: Any, tokenizer: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    other = LlamaForCausalLM(model.config)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    main = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "llm.py"))["main"]
    words = ["--teacher", str(saved), "--students", f"half={tmp_path / 'other'}", "--temperatures", f"2={saved}"]
    words += ["--data", str(data), "--output", str(tmp_path / "work"), "--result", str(tmp_path / "llm.json")]
    main(words)
    tables = json.loads((tmp_path / "llm.json").read_text())["tables"]
    assert list(tables) == ["language", "questions", "language, by temperature", "questions, by temperature"]
    direct = {
        name: limbeck.benchmark((each, tokenizer), ["lambada"], data=data)["tasks"]["lambada"]
        for name, each in (("teacher", model), ("half", other.eval()))
    }
    rows = {row[0]: row[1:] for row in tables["language"]}
    size = f"{model.num_parameters() / 1e6:.0f}M"
    for name, found in direct.items():
        perplexity = found["metrics"]["perplexity"]
        assert rows[f"{name}, {size}"][1] == f"{perplexity['value']:.2f} ± {perplexity['stderr']:.2f}"
    kept = retention(direct["half"], direct["teacher"])["perplexity"]
    assert tables["language"][-1][2] == f"{100 * kept['value']:.2f} ± {100 * kept['stderr']:.2f}"
    assert rows["paper: student, 320M"] == ["52.47", "13.53", "61.28", "63.52"]
    paper_kept = tables["language"][[row[0] for row in tables["language"]].index("paper: student, 320M") + 1]
    assert paper_kept[1:] == ["78.2", "68.0", "76.1", "87.5"]
    assert [row[0] for row in tables["questions, by temperature"]][-2:] == [f"T=2, {size}", "- of the teacher, %"]
    assert tables["language, by temperature"][-1][2] == "100.00 ± 0.00"  # the same weights
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert len(files) == 3 * 6
    (tmp_path / "work" / "T=2-lambada.json").unlink()
    other.lm_head.weight.data.mul_(2)
    other.save_pretrained(tmp_path / "other")
    main(words)
    again = {path.name for path, time in files.items() if path.stat().st_mtime_ns != time}
    asked = {f"half-{name}.json" for name in BENCHMARKS if name not in ("piqa", "openbookqa")}
    assert again == asked | {"T=2-lambada.json"}  # other weights; a file that was lost
    assert "| paper: student, T=2 | 17.19 | 27.87 | 48.50 |" in capsys.readouterr().out
