"""BiLSTM students: what they compute, what they read with, how they are made, saved and exported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import FILLER, GOOD, LABELS, make_model, make_reviews, make_tokenizer, write_csv
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from limbeck.anatomy import outside_embeddings
from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError
from limbeck.exporting import OnnxModel, export_model
from limbeck.recipe import load
from limbeck.recipe.schema import Student
from limbeck.students import build_student, word_level
from limbeck.students.bilstm import BiLSTMConfig, BiLSTMForSequenceClassification
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel

ONE = Task("classification", LABELS)
PAIR = Task("classification", LABELS, pair=True)
SIZES = {"vocab_size": 200, "embedding_size": 12, "hidden_size": 7, "classifier_size": 9}
TEXTS = ["good soup", "the bad plot", "a very long and good story " * 4, "soup"]


def bilstm(seed: int = 0, **changes: Any) -> BiLSTMForSequenceClassification:
    torch.manual_seed(seed)
    model = BiLSTMForSequenceClassification(BiLSTMConfig(**{**SIZES, **changes})).eval()
    if model.config.channels == 2:  # apart, so that what reads one for the other is seen
        nn.init.normal_(model.embeddings_static.weight)
    return model


def reader(model: BiLSTMForSequenceClassification) -> Checkpoint:
    """The model with the tests' tokenizer, as a BiLSTM reads with it."""
    tokenizer, _ = word_level.reading(Student(shape={"model_type": "bilstm"}), make_tokenizer(), None, [])
    return Checkpoint(model, tokenizer, "student")


def teacher(**changes: Any) -> Checkpoint:
    return Checkpoint(make_model(**changes), make_tokenizer(), "teacher")


def glove(path: Path, words: list[str], width: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """A file of vectors, and what is in it."""
    draw = np.random.default_rng(seed)
    table = {word: draw.normal(size=width).round(4).astype(np.float32) for word in words}
    path.write_text("".join(f"{word} {' '.join(map(str, each.tolist()))}\n" for word, each in table.items()), "utf-8")
    return table


def one_direction(vectors: torch.Tensor, model: nn.LSTM, suffix: str) -> torch.Tensor:
    """The last state of an LSTM over vectors [n, d], written out: gates are input, forget, cell, output."""
    weights = [getattr(model, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    state = cell = torch.zeros(model.hidden_size)
    for vector in vectors:
        gates = weights[0] @ vector + weights[2] + weights[1] @ state + weights[3]
        into, forget, new, out = gates.chunk(4)
        cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
        state = out.sigmoid() * cell.tanh()
    return state


def encoded(model: BiLSTMForSequenceClassification, ids: list[int]) -> torch.Tensor:
    """What a text is to the model, by `one_direction`."""
    tokens = torch.tensor(ids)
    tables = ["embeddings_static", "embeddings"][2 - model.config.channels :]
    vectors = torch.cat([getattr(model, name).weight[tokens] for name in tables], dim=-1)
    return torch.cat([one_direction(vectors, model.lstm, ""), one_direction(vectors.flip(0), model.lstm, "_reverse")])


def logits_of(model: BiLSTMForSequenceClassification, features: torch.Tensor) -> torch.Tensor:
    wide = (model.dense.weight @ features + model.dense.bias).clamp(min=0)
    return model.classifier.weight @ wide + model.classifier.bias


def batch(*rows: tuple[list[int], list[int]], left: bool = False, padding: int = 3) -> dict[str, torch.Tensor]:
    """Pairs as a batch with more padding than it needs, of a token that means something elsewhere."""
    width = max(len(first) + len(second) for first, second in rows) + padding
    out: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "token_type_ids": []}
    for first, second in rows:
        free = width - len(first) - len(second)
        for name, values, filler in (
            ("input_ids", first + second, 17),
            ("attention_mask", [1] * (width - free), 0),
            ("token_type_ids", [0] * len(first) + [1] * len(second), 0),
        ):
            out[name].append([filler] * free + values if left else values + [filler] * free)
    return {name: torch.tensor(values) for name, values in out.items()}


# --- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@torch.no_grad()
def test_logits_of_one_text_are_those_of_the_formula(channels: int) -> None:
    model = bilstm(channels=channels)
    rows = [[5, 9, 11, 40], [6], [70, 71, 72, 73, 74, 75, 76]]
    found = model(**batch(*((row, []) for row in rows))).logits
    expected = torch.stack([logits_of(model, encoded(model, row)) for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_pair_is_two_texts_read_alike_and_compared() -> None:
    model = bilstm(pair=True)
    rows = [([5, 9, 11], [40, 41]), ([6], [7, 8, 9, 10, 11])]
    found = model(**batch(*rows)).logits
    for row, logits in zip(rows, found, strict=True):
        first, second = (encoded(model, text) for text in row)
        features = torch.cat([first, second, (first - second).abs(), first * second])
        torch.testing.assert_close(logits, logits_of(model, features), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="needs token_type_ids, 0 for the first text and 1 for the second"):
        model(input_ids=torch.tensor([[5, 6]]))


@pytest.mark.parametrize("pair", [False, True])
@torch.no_grad()
def test_any_padding_gives_the_same_logits(pair: bool) -> None:
    model = bilstm(pair=pair, num_hidden_layers=2)
    rows = [([5, 9, 11], [40, 41]), ([6], [7, 8, 9, 10, 11])]
    alone = torch.cat([model(**batch(row, padding=0)).logits for row in rows])
    for left in (False, True):
        for padding in (0, 1, 9):
            found = model(**batch(*rows, left=left, padding=padding)).logits
            torch.testing.assert_close(found, alone, atol=1e-6, rtol=1e-5)


def test_padding_gets_no_gradient() -> None:
    model = bilstm()
    model(**batch(([5, 9, 11], []), ([6], []))).logits.sum().backward()
    touched = model.embeddings.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == [5, 6, 9, 11]


@torch.no_grad()
def test_a_text_without_tokens_is_zeros() -> None:
    model = bilstm(pair=True)
    found = model(**batch(([5, 9], []), ([5, 9], [3]))).logits[0]
    first = encoded(model, [5, 9])
    nothing = torch.zeros_like(first)
    expected = logits_of(model, torch.cat([first, nothing, first.abs(), nothing]))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_lstm_computes_in_float32_on_a_cpu_whatever_the_rest_does() -> None:
    model = bilstm(pair=True)
    rows = batch(([5, 9, 11], [40, 41]), ([6], [7, 8]))
    seen = []
    model.lstm.register_forward_hook(lambda module, inputs, output: seen.append(output[1][0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**rows).logits
    assert (seen, logits.dtype) == ([torch.float32], torch.bfloat16)
    torch.testing.assert_close(logits.float(), model(**rows).logits, atol=0.01, rtol=0.05)


def test_the_papers_student_has_its_size() -> None:
    with torch.device("meta"):
        model = BiLSTMForSequenceClassification(BiLSTMConfig())
    assert round(outside_embeddings(model) / 1e6, 2) == 0.96
    assert model.embeddings.weight.shape == model.embeddings_static.weight.shape == (30522, 300)


def test_the_copy_of_the_vectors_stays_and_the_others_learn() -> None:
    model = bilstm()
    vectors = torch.randn(200, 12)
    model.set_vectors(vectors)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.1)
    outputs = model(**batch(([5, 9, 11], [])), labels=torch.tensor([1]))
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([1]))
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    optimizer.step()
    assert torch.equal(model.embeddings_static.weight, vectors)
    assert not torch.equal(model.embeddings.weight[[5, 9, 11]], vectors[[5, 9, 11]])


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="channels is 3; give 1"):
        bilstm(channels=3)


def test_it_opens_where_limbeck_students_is_imported(tmp_path: Path) -> None:
    model, tokenizer, _ = reader(bilstm(pair=True, id2label=dict(enumerate(LABELS))))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = model(**tokenizer("good soup", "bad soup", return_tensors="pt")).logits.tolist()
    script = (
        "import limbeck.students\n"
        "from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T\n"
        f"m, info = M.from_pretrained('{tmp_path}', output_loading_info=True)\n"
        "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "assert not m.embeddings_static.weight.requires_grad\n"
        f"print(m(**T.from_pretrained('{tmp_path}')('good soup', 'bad soup', return_tensors='pt')).logits.tolist())\n"
    )
    opened = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert opened.returncode == 0, opened.stderr
    np.testing.assert_allclose(json.loads(opened.stdout), expected, atol=1e-6)


# --- export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [False, True])
def test_onnx_equals_pytorch_and_int8_is_near(pair: bool, tmp_path: Path) -> None:
    sizes = {"embedding_size": 64, "hidden_size": 40}  # so large that nothing is folded by the way
    checkpoint = reader(bilstm(pair=pair, num_hidden_layers=1 + pair, **sizes))
    task = PAIR if pair else ONE
    columns = {"text": TEXTS} | ({"text_pair": TEXTS[::-1]} if pair else {})
    texts = Dataset.from_dict(columns)
    files = export_model(checkpoint, tmp_path, ["onnx", "int8"], pair=pair)
    expected = HuggingFaceModel(checkpoint, task, 32).ask(texts).logits
    for size in (1, 3):
        exact = OnnxModel(files["onnx"], checkpoint, task, 32, batch_size=size).ask(texts).logits
        np.testing.assert_allclose(exact, expected, atol=1e-5)
    rough = OnnxModel(files["int8"], checkpoint, task, 32).ask(texts).logits
    assert 0 < np.abs(rough - expected).max() < 0.1
    assert files["int8"].stat().st_size < files["onnx"].stat().st_size
    operations = [node.op_type for node in onnx.load(files["int8"]).graph.node]
    assert operations.count("DynamicQuantizeLSTM") == 1 + pair, "the LSTM's weights are to be int8, too"


# --- what it reads with -------------------------------------------------------------------------------------------


def test_words_of_a_file_and_of_the_text_make_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_level, "FREQUENT", 3)
    words = ["the", "good", "u.s.", "film", "Soup", "soup", "n't", "is", "late"]
    table = glove(tmp_path / "v.txt", words)
    texts = ["The film isn’t GOOD, xyzzy xyzzy", "soup is once"]  # noqa: RUF001
    tokenizer, vectors = word_level.from_file(tmp_path / "v.txt", texts, mask="<mask>", length=40)
    vocabulary = tokenizer.get_vocab()
    # `late` is neither frequent nor in the text, `once` stands there once and has no vector, `u.s.` is no one token.
    assert set(vocabulary) == {"[PAD]", "[UNK]", "<mask>", "the", "good", "film", "soup", "n't", "is", "xyzzy"}
    assert tokenizer.tokenize("The film isn't GOOD") == ["the", "film", "is", "n't", "good"]
    assert tokenizer.tokenize("a <mask> film") == ["[UNK]", "<mask>", "film"]
    assert vectors.shape == (len(vocabulary), 5)
    for word in ("the", "good", "film", "n't", "is"):
        np.testing.assert_array_equal(vectors[vocabulary[word]].numpy(), table[word])
    np.testing.assert_array_equal(vectors[vocabulary["soup"]].numpy(), table["Soup"])  # of two spellings the first
    assert vectors[vocabulary["[PAD]"]].abs().sum() == 0
    assert 0 < vectors[vocabulary["xyzzy"]].abs().max() <= 0.25
    assert (tokenizer.mask_token, tokenizer.model_max_length) == ("<mask>", 40)


def test_vectors_of_another_language_are_refused(tmp_path: Path) -> None:
    glove(tmp_path / "v.txt", ["und", "der"])
    with pytest.raises(InputError, match="knows none of the 2 words of the training text; give vectors of its"):
        word_level.from_file(tmp_path / "v.txt", ["good soup"])
    with pytest.raises(InputError, match=r"no word vectors at student\.vectors=nowhere\.txt; check the path"):
        word_level.from_file(Path("nowhere.txt"), ["good soup"])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_texts_of_a_pair_are_told_apart_and_read_alike(kind: str, tmp_path: Path) -> None:
    theirs = make_tokenizer()
    if kind == "roberta":
        from tokenizers.processors import RobertaProcessing

        theirs.backend_tokenizer.post_processor = RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
        theirs.model_input_names = ["input_ids", "attention_mask"]
    ours = word_level.numbered(theirs.backend_tokenizer, theirs)
    ours.save_pretrained(tmp_path)
    for tokenizer in (ours, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.get_vocab() == theirs.get_vocab()
        one = tokenizer("good soup")["input_ids"]
        both = tokenizer("good soup", "good soup")
        assert both["input_ids"] == one + one
        assert both["token_type_ids"] == [0] * len(one) + [1] * len(one)
        assert tokenizer.decode(one) == "good soup"
        assert tokenizer.mask_token == theirs.mask_token


# --- making one ---------------------------------------------------------------------------------------------------


def test_it_starts_from_the_teachers_embeddings() -> None:
    owner = teacher()
    made = build_student(
        Student(shape={"model_type": "bilstm", "hidden_size": 8}, embeddings=True), None, owner, PAIR, 0
    )
    table = owner.model.get_input_embeddings().weight[: len(made.tokenizer)]
    for name in ("embeddings", "embeddings_static"):
        assert torch.equal(getattr(made.model, name).weight, table)
    config = made.model.config
    assert (config.embedding_size, config.channels, config.pair) == (32, 2, True)
    assert config.max_position_embeddings == owner.model.config.max_position_embeddings
    assert config.limbeck["initialisation"]["embeddings"] == ["embeddings.weight"]


def test_it_starts_from_a_files_vectors(tmp_path: Path) -> None:
    table = glove(tmp_path / "v.txt", [*FILLER, *GOOD])
    student = Student(shape={"model_type": "bilstm", "channels": 1}, vectors=str(tmp_path / "v.txt"))
    made = build_student(student, None, teacher(), ONE, 0, texts=["a good film"])
    row = made.tokenizer.get_vocab()["good"]
    np.testing.assert_array_equal(made.model.embeddings.weight[row].detach().numpy(), table["good"])
    assert made.model.config.vocab_size == len(made.tokenizer)
    assert made.tokenizer.mask_token == "[MASK]"
    again = build_student(student, None, teacher(), ONE, 0, texts=["a good film"])
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), again.model.parameters(), strict=True))


def test_it_starts_from_random_vectors() -> None:
    made = build_student(Student(shape={"model_type": "bilstm", "embedding_size": 20}), None, teacher(), ONE, 0)
    assert made.model.config.channels == 1
    assert made.model.embeddings.weight.shape == (200, 20) or len(made.tokenizer) == len(made.model.embeddings.weight)
    assert 0.2 < made.model.embeddings.weight.abs().max() <= 0.25


@pytest.mark.parametrize(
    ("section", "task", "said"),
    [
        ({"shape": {"channels": 2}}, ONE, "student.shape.channels is 2, a copy that stays of vectors that are given"),
        ({"shape": {"embedding_size": 7}, "embeddings": True}, ONE, "embedding_size is 7, and the vectors that are"),
        ({"shape": {"heads": 7}}, ONE, "student.shape: bilstm has no 'heads'"),
        ({"shape": {"channels": 3}, "embeddings": True}, ONE, "student.shape does not make a bilstm: channels is 3"),
        ({"shape": {}}, Task("masked-lm", ()), "no architecture 'bilstm' that fills in words"),
    ],
)
def test_shapes_that_cannot_be_are_refused(section: dict[str, Any], task: Task, said: str) -> None:
    student = Student.model_validate({**section, "shape": {"model_type": "bilstm", **section["shape"]}})
    with pytest.raises(InputError, match=said):
        build_student(student, None, teacher(), task, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student.vectors": "v.txt"}, "embeddings and vectors exclude each other; keep one"),
        (
            {"student": {"shape": {"model_type": "bilstm"}, "vectors": "v.txt", "tokenizer": "t"}},
            "tokenizer and vectors exclude each other",
        ),
        ({"student": {"shape": {"model_type": "bert"}, "vectors": "v.txt"}}, "vectors are what a bilstm starts with"),
    ],
)
def test_entries_that_exclude_each_other_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load("bilstm", {"data": "d.csv", "teacher": "t", "output": "o", **changes})


# --- the whole way ------------------------------------------------------------------------------------------------

QUICK = [
    "task.max_length=32",
    "training={epochs: 2, batch_size: 16, learning_rate: 0.01, precision: float32}",
    "evaluation={resamples: 100, speed: false}",
    "student.shape.hidden_size=8",
    "student.shape.classifier_size=8",
    "baseline=false",
]
LESS = ["data.augmentation.copies=1", "data.augmentation.same_tag=0", "export=[]"]


def test_a_run_on_pairs_with_word_vectors_is_exported(tmp_path: Path, tiny_teacher_dir: Path, command: Any) -> None:
    rows = make_reviews(60)
    pairs = [
        {"first": a["text"], "second": b["text"], "label": a["label"]}
        for a, b in zip(rows, reversed(rows), strict=True)
    ]
    data = write_csv(tmp_path / "pairs.csv", pairs)
    glove(tmp_path / "v.txt", [*FILLER, *GOOD])
    words = ["distill", "bilstm", f"teacher={tiny_teacher_dir}", f"data={data}", "data.text=[first,second]", *QUICK]
    words += ["student.embeddings=false", f"student.vectors={tmp_path / 'v.txt'}", *LESS[:2], "export=[onnx,int8]"]
    code, printed = command(*words, f"output={tmp_path / 'run'}")
    assert code == 0, printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["student_onnx"]["quality"] == metrics["student"]["quality"]
    assert metrics["data"]["transfer"] > metrics["data"]["train"]
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "student")
    assert made.config.pair
    assert "v.txt" in (tmp_path / "run" / "report.html").read_text()


def test_what_is_about_layers_is_refused_before_the_teacher_is_asked(
    tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path, command: Any
) -> None:
    words = ["distill", "bilstm", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", *QUICK, *LESS]
    for term in ("hidden", "attention", "relations", "embedding", "feature_map"):
        code, printed = command(*words, f"stages.distill.objectives.{term}=1", f"output={tmp_path / term}")
        assert code == 2
        assert f"stage 'distill' has {term}, which is about layers that attend, and a bilstm has none" in printed
    code, printed = command(*words, "stages.distill.training.layer_drop=0.2", f"output={tmp_path / 'drop'}")
    assert code == 2
    assert "stage 'distill' has layer_drop" in printed
    assert not list(tmp_path.glob("*/knowledge"))


def test_it_can_teach_and_be_gone_on_with(
    tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path, command: Any
) -> None:
    common = [f"data={reviews_csv}", *(word for word in QUICK if "shape" not in word)]
    first = [f"teacher={tiny_teacher_dir}", *LESS, "student.shape.hidden_size=8", "student.shape.classifier_size=8"]
    assert command("distill", "bilstm", *common, *first, f"output={tmp_path / 'a'}")[0] == 0
    code, printed = command(
        "distill", "hinton", *common, "export=[]", f"teacher={tmp_path / 'a'}", f"student={tmp_path / 'a'}",
        f"output={tmp_path / 'b'}",
    )  # fmt: skip
    assert code == 0, printed
    code, printed = command(
        "distill", *common, "export=[]", f"teacher={tmp_path / 'a'}", "student.layers=1", f"output={tmp_path / 'c'}"
    )
    assert code == 2
    assert "bilstm has no single stack of 1 layers to cut" in printed
