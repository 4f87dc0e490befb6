"""Tasks: predictions, probabilities and metrics against the libraries they stand for; examples as tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import LABELS, make_tokenizer
from datasets import Dataset, Features, List, Value, load_from_disk
from scipy import special, stats
from sklearn import metrics

from limbeck.errors import InputError
from limbeck.tasks import Task, collate, encode, text

THREE = Task("classification", ("a", "b", "c"))
MANY = Task("multi-label", ("a", "b", "c"))
VALUE = Task("regression", ("score",))
PAIR = Task("classification", LABELS, pair=True)


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


# --- predictions and metrics ----------------------------------------------------------------------------------------


def test_classification_against_scikit_learn(draw):
    logits, labels = draw.normal(size=(50, 3)).astype(np.float32), draw.integers(0, 3, 50)
    predicted = THREE.predict(logits)
    assert (predicted == np.argmax(logits, 1)).all()
    expected = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    np.testing.assert_allclose(THREE.probabilities(logits), expected, rtol=1e-12)
    assert {name: metric(labels, predicted) for name, metric in THREE.metrics.items()} == pytest.approx(
        {
            "accuracy": (labels == predicted).mean(),
            "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
            "mcc": metrics.matthews_corrcoef(labels, predicted),
        }
    )


def test_multi_label_against_scikit_learn(draw):
    logits, labels = draw.normal(size=(50, 3)).astype(np.float32), draw.integers(0, 2, (50, 3)).astype(np.float32)
    predicted = MANY.predict(logits)
    assert (predicted == (special.expit(logits) > 0.5)).all()
    np.testing.assert_allclose(MANY.probabilities(logits), 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-12)
    assert {name: metric(labels, predicted) for name, metric in MANY.metrics.items()} == pytest.approx(
        {
            "f1_micro": metrics.f1_score(labels, predicted, average="micro"),
            "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
            "exact_match": (labels == predicted).all(1).mean(),
        }
    )
    assert MANY.metrics["f1_micro"](np.zeros((2, 3)), np.zeros((2, 3))) == 0  # nothing to find, nothing found


def test_regression_against_scipy(draw):
    logits, labels = draw.normal(size=(50, 1)).astype(np.float32), draw.normal(size=50)
    predicted = VALUE.predict(logits)
    assert (predicted == logits[:, 0]).all()
    assert (VALUE.probabilities(logits) == logits).all()
    assert {name: metric(labels, predicted) for name, metric in VALUE.metrics.items()} == pytest.approx(
        {
            "spearman": stats.spearmanr(labels, predicted)[0],
            "pearson": np.corrcoef(labels, predicted)[0, 1],
            "r2": 1 - ((labels - predicted) ** 2).sum() / ((labels - labels.mean()) ** 2).sum(),
            "mae": np.abs(labels - predicted).mean(),
        }
    )
    assert VALUE.metrics["spearman"](labels, np.ones(50)) == 0  # a constant correlates with nothing


def test_probabilities_of_huge_logits_are_finite():
    huge = np.array([[1e4, -1e4, 0]], dtype=np.float32)
    np.testing.assert_allclose(THREE.probabilities(huge), [[1, 0, 0]])
    np.testing.assert_allclose(MANY.probabilities(huge), [[1, 0, 0.5]])


def test_main_metric():
    assert [task.main_metric(None) for task in (THREE, MANY, VALUE)] == ["accuracy", "f1_micro", "spearman"]
    assert THREE.main_metric("mcc") == "mcc"
    with pytest.raises(InputError, match="'acuracy' does not rank classification models; did you mean 'accuracy'"):
        THREE.main_metric("acuracy")
    for name in ("mae", "accuracy"):  # less is better; another kind's
        with pytest.raises(InputError, match="does not rank regression models"):
            VALUE.main_metric(name)


def test_config_states_the_task():
    assert THREE.config == {
        "num_labels": 3,
        "id2label": {0: "a", 1: "b", 2: "c"},
        "label2id": {"a": 0, "b": 1, "c": 2},
        "problem_type": "single_label_classification",
    }
    assert MANY.config["problem_type"] == "multi_label_classification"
    assert VALUE.config["problem_type"] == "regression"
    assert VALUE.outputs == 1


def test_missing_labels():
    assert THREE.missing_label() == -100
    assert np.isnan(VALUE.missing_label())
    assert np.isnan(MANY.missing_label()).tolist() == [True] * 3


# --- encoding -----------------------------------------------------------------------------------------------------


def single(*texts: str, **columns: list) -> Dataset:
    return Dataset.from_dict({"text": list(texts), **columns})


def test_encode_single_texts(tokenizer):
    encoded = encode(single("good soup", "the film was awful", label=[1, 0]), tokenizer, THREE, 32)
    assert encoded.column_names == ["input_ids", "length", "labels", "row"]
    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"]) == ["[CLS]", "good", "soup", "[SEP]"]
    assert encoded["length"][:] == [4, 6]
    assert encoded["row"][:] == [0, 1]
    assert encoded["labels"][:] == [1, 0]
    assert "labels" not in encode(single("good"), tokenizer, THREE, 32).column_names


@pytest.mark.parametrize("most", [0, 100])
def test_encode_leaves_nothing_beside_a_table_on_disk(tokenizer, tmp_path, monkeypatch, most):
    monkeypatch.setattr(text, "IN_MEMORY", most)
    single("good", "bad film", label=[1, 0]).save_to_disk(tmp_path / "table")
    table, before = load_from_disk(tmp_path / "table"), sorted((tmp_path / "table").iterdir())
    assert table.cache_files
    assert encode(table, tokenizer, THREE, 32)["length"][:] == [3, 4]
    assert sorted((tmp_path / "table").iterdir()) == before


def test_encode_numbers_rows_across_batches_and_selections(tokenizer):
    many = single(*[f"text {i}" for i in range(2500)]).select(range(2499, -1, -1))
    encoded = encode(many, tokenizer, THREE, 32)
    assert encoded["row"][:] == list(range(2500))
    assert encoded[0]["input_ids"] == tokenizer("text 2499")["input_ids"]


def test_encode_cuts_long_texts(tokenizer):
    encoded = encode(single("good " * 50, "good"), tokenizer, THREE, 8)
    assert encoded["length"][:] == [8, 3]
    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"])[-1] == "[SEP]"


def test_encode_pairs_with_segments(tokenizer):
    pairs = Dataset.from_dict({"text": ["good soup"], "text_pair": ["bad"]})
    row = encode(pairs, tokenizer, PAIR, 32)[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "good", "soup", "[SEP]", "bad", "[SEP]"]
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_encode_pairs_cuts_the_longer_text(tokenizer):
    pairs = Dataset.from_dict({"text": ["good " * 40, "good soup"], "text_pair": ["bad soup", "bad " * 40]})
    first, second = encode(pairs, tokenizer, PAIR, 12)
    assert first["length"] == second["length"] == 12
    tokens = tokenizer.convert_ids_to_tokens(first["input_ids"])
    assert tokens == ["[CLS]", *["good"] * 7, "[SEP]", "bad", "soup", "[SEP]"]
    assert first["token_type_ids"] == [0] * 9 + [1] * 3
    tokens = tokenizer.convert_ids_to_tokens(second["input_ids"])
    assert tokens == ["[CLS]", "good", "soup", "[SEP]", *["bad"] * 7, "[SEP]"]


def test_a_model_without_segments_gets_none():
    plain = make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    pairs = Dataset.from_dict({"text": ["good soup"], "text_pair": ["bad"]})
    assert "token_type_ids" not in encode(pairs, plain, PAIR, 32).column_names


# --- collating ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_collate_pads_as_the_tokenizer_does(side):
    tokenizer = make_tokenizer(padding_side=side)
    pairs = Dataset.from_dict(
        {"text": ["good soup", "the film was quite awful"], "text_pair": ["bad", "it was"], "label": [1, -100]}
    )
    batch = collate(list(encode(pairs, tokenizer, PAIR, 32)), tokenizer)
    expected = tokenizer(pairs["text"][:], pairs["text_pair"][:], padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert batch[name].dtype == torch.int64
        assert torch.equal(batch[name], expected[name]), name
    assert batch["row"].tolist() == [0, 1]
    assert batch["labels"].tolist() == [1, -100]
    assert batch["labels"].dtype == torch.int64


def test_collate_keeps_the_order_it_is_given(tokenizer):
    encoded = encode(single("good", "the film was awful", "bad soup"), tokenizer, THREE, 32)
    batch = collate(encoded.__getitems__([2, 0]), tokenizer)
    assert batch["row"].tolist() == [2, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert set(batch) == {"input_ids", "attention_mask", "row"}


@pytest.mark.parametrize(
    ("labels", "feature", "dtype"),
    [
        ([2, -100], Value("int64"), torch.int64),
        ([[1.0, 0.0], [float("nan")] * 2], List(Value("float32"), length=2), torch.float32),
        ([0.25, float("nan")], Value("float32"), torch.float32),
    ],
)
def test_label_types(labels, feature, dtype, tokenizer):
    table = Dataset.from_dict(
        {"text": ["good", "bad"], "label": labels}, features=Features({"text": Value("string"), "label": feature})
    )
    batch = collate(list(encode(table, tokenizer, THREE, 32)), tokenizer)
    assert batch["labels"].dtype == dtype
    np.testing.assert_array_equal(batch["labels"].numpy(), np.array(labels))
