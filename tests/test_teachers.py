"""Asking teachers: the answer depends on the text alone, and several teachers combine as the formulas say."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, LABELS, make_model, make_reviews, make_tokenizer, save_model
from datasets import Dataset
from scipy.special import expit, log_softmax, logit, softmax

from limbeck.checkpoints import Checkpoint, open_classifier
from limbeck.errors import InputError
from limbeck.recipe.teacher import Teacher
from limbeck.tasks import Task
from limbeck.teachers import Ensemble, HuggingFaceModel, open_teacher
from limbeck.teachers.ensemble import mean_signals

TWO = Task("classification", LABELS)
PAIR = Task("classification", LABELS, pair=True)
MANY = Task("multi-label", LABELS)


@pytest.fixture(scope="module")
def texts() -> Dataset:
    return Dataset.from_list([{"text": row["text"]} for row in make_reviews(37, seed=3)])


def teacher(
    seed: int = 0, task: Task = TWO, kind: str = "bert", batch_size: int = 8, **config: Any
) -> HuggingFaceModel:
    model = make_model(kind, task.labels, seed, **config)
    return HuggingFaceModel(Checkpoint(model, make_tokenizer(), f"teacher {seed}"), task, 32, batch_size)


def directly(model: HuggingFaceModel, texts: Dataset) -> Any:
    """What transformers says one example at a time, without padding."""
    outputs = []
    for row in texts:
        pair = (row["text_pair"],) if "text_pair" in row else ()
        encoded = model.processor(row["text"], *pair, return_tensors="pt", truncation=True, max_length=32)
        if not pair or "token_type_ids" not in model.processor.model_input_names:
            encoded.pop("token_type_ids", None)
        with torch.no_grad():
            outputs.append(model.model(**encoded, output_hidden_states=True))
    return outputs


# --- one model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_answers_are_those_of_single_unpadded_examples(kind, texts):
    model = teacher(kind=kind)
    answer = model.ask(texts, features=(1, 4))
    outputs = directly(model, texts)
    assert answer.logits.dtype == np.float32
    np.testing.assert_allclose(answer.logits, torch.cat([o.logits for o in outputs]), atol=2e-5)
    for layer in (1, 4):
        states = np.stack([o.hidden_states[layer][0, 0] for o in outputs])
        assert answer.features[layer].dtype == np.float16
        np.testing.assert_allclose(answer.features[layer], states, atol=5e-3, rtol=2e-3)
    assert np.ptp(answer.logits, axis=0).min() > 0.01  # the fixture's answers differ at all


def test_answers_do_not_depend_on_batch_size_or_order(texts):
    one = teacher(batch_size=5).ask(texts, (2,))
    order = np.random.default_rng(0).permutation(len(texts))
    for size in (1, 7, 64):
        other = teacher(batch_size=size).ask(texts.select(order), (2,))
        np.testing.assert_allclose(other.logits, one.logits[order], atol=1e-5)
        np.testing.assert_allclose(other.features[2], one.features[2][order], atol=5e-3)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_batches_at_once_are_answered_as_one_after_the_other(kind, texts, monkeypatch):
    before = torch.get_num_threads()
    model, forward, calls = teacher(kind=kind, batch_size=2), HuggingFaceModel.forward, itertools.count()
    three_at_once = threading.Barrier(3, timeout=30)

    def watched(self: HuggingFaceModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if torch.get_num_threads() != 1 or next(calls) < 3:
            three_at_once.wait()
        return forward(self, batch)

    try:
        torch.set_num_threads(1)
        one = model.ask(texts).logits
        monkeypatch.setattr(HuggingFaceModel, "forward", watched)
        torch.set_num_threads(3)
        np.testing.assert_allclose(model.ask(texts).logits, one, atol=1e-6)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(model, "forward", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.ask(texts)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_pairs_are_read_with_segments():
    pairs = Dataset.from_list([{"text": r["text"], "text_pair": r["text"][:9]} for r in make_reviews(9)])
    model = teacher(task=PAIR)
    answer = model.ask(pairs)
    np.testing.assert_allclose(answer.logits, torch.cat([o.logits for o in directly(model, pairs)]), atol=2e-5)
    swapped = pairs.rename_columns({"text": "text_pair", "text_pair": "text"})
    assert np.abs(model.ask(swapped).logits - answer.logits).max() > 0.01


def test_layers_are_counted_from_1_and_from_the_end(texts):
    answer = teacher().ask(texts, (4, -1, -4))
    assert list(answer.features) == [4, -1, -4]
    np.testing.assert_array_equal(answer.features[4], answer.features[-1])
    np.testing.assert_array_equal(answer.features[-4], teacher().ask(texts, (1,)).features[1])
    for wrong in (0, 5, -5):
        with pytest.raises(InputError, match=f"asks for layer {wrong}; 'teacher 0' has layers 1 to 4"):
            teacher().ask(texts, (wrong,))


def test_dropout_is_off_and_nothing_is_learnt(texts):
    model = make_model(hidden_dropout_prob=0.5).train()
    asked = HuggingFaceModel(Checkpoint(model, make_tokenizer(), "m"), TWO)
    np.testing.assert_array_equal(asked.ask(texts).logits, asked.ask(texts).logits)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_answers_are_float32_and_near(texts):
    exact = teacher().ask(texts).logits
    model = teacher()
    model.precision = "bfloat16"
    rough = model.ask(texts).logits
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1


def test_what_a_teacher_says_of_itself(texts):
    model = teacher()
    assert model.labels == LABELS
    assert model.parameters == sum(p.numel() for p in model.model.parameters())
    prints = [
        model.fingerprint,
        teacher(seed=1).fingerprint,
        HuggingFaceModel(Checkpoint(make_model(), make_tokenizer(), "m"), TWO, 16).fingerprint,
        HuggingFaceModel(Checkpoint(make_model(), make_tokenizer(), "m"), TWO, 32, precision="bfloat16").fingerprint,
        HuggingFaceModel(Checkpoint(make_model(), make_tokenizer(extra=["wine"]), "m"), TWO, 32).fingerprint,
    ]
    assert all(a != b for i, a in enumerate(prints) for b in prints[:i])
    assert teacher(batch_size=3).fingerprint == model.fingerprint  # what the answer does not depend on


# --- several as one -------------------------------------------------------------------------------------------------


def ensemble(seeds: list[int], combine: str, weights: list[float] | None = None, task: Task = TWO) -> Ensemble:
    return Ensemble([teacher(seed, task) for seed in seeds], weights or [1.0] * len(seeds), combine, task)


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
@pytest.mark.parametrize("task", [TWO, MANY])
def test_copies_of_one_teacher_are_that_teacher(combine, task, texts):
    alone = teacher(task=task).ask(texts).logits
    copies = ensemble([0, 0, 0], combine, [1.0, 2.0, 0.5], task).ask(texts).logits
    assert copies.dtype == np.float32
    np.testing.assert_allclose(task.probabilities(copies), task.probabilities(alone), atol=1e-6)
    if task is MANY or combine == "logits":
        np.testing.assert_allclose(copies, alone, atol=1e-5)


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
@pytest.mark.parametrize("task", [TWO, MANY])
def test_order_is_irrelevant(combine, task, texts):
    forward = ensemble([0, 1, 2], combine, [1.0, 2.0, 3.0], task).ask(texts).logits
    backward = ensemble([2, 0, 1], combine, [3.0, 1.0, 2.0], task).ask(texts).logits
    np.testing.assert_allclose(forward, backward, atol=1e-5)


def test_means_of_asked_models(texts):
    members = [teacher(seed).ask(texts).logits.astype(np.float64) for seed in (0, 1)]
    p = [softmax(each, -1) for each in members]
    mean = TWO.probabilities(ensemble([0, 1], "probabilities", [1.0, 3.0]).ask(texts).logits)
    np.testing.assert_allclose(mean, 0.25 * p[0] + 0.75 * p[1], atol=1e-6)
    mean = TWO.probabilities(ensemble([0, 1], "logits", [1.0, 3.0]).ask(texts).logits)
    geometric = p[0] ** 0.25 * p[1] ** 0.75
    np.testing.assert_allclose(mean, geometric / geometric.sum(-1, keepdims=True), atol=1e-6)


@pytest.fixture
def stack() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (4, 20, 5)).astype(np.float32)


SHARES = (1.0, 2.0, 3.0, 4.0)


def test_mean_of_probabilities_is_arithmetic(stack):
    found = mean_signals(stack, SHARES, "classification", "probabilities")
    share = np.array(SHARES) / sum(SHARES)
    expected = np.tensordot(share, softmax(stack.astype(np.float64), -1), 1)
    np.testing.assert_allclose(softmax(found.astype(np.float64), -1), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=1e-5)  # they are log-probabilities
    found = mean_signals(stack, SHARES, "multi-label", "probabilities")
    expected = np.tensordot(share, expit(stack.astype(np.float64)), 1)
    np.testing.assert_allclose(expit(found.astype(np.float64)), expected, rtol=1e-5)
    np.testing.assert_allclose(found, logit(expected), atol=1e-4)


def test_mean_of_logits_is_geometric(stack):
    share = np.array(SHARES) / sum(SHARES)
    for kind in ("classification", "multi-label"):
        found = mean_signals(stack, SHARES, kind, "logits")
        np.testing.assert_allclose(found, np.tensordot(share, stack.astype(np.float64), 1), atol=1e-5)
    found = mean_signals(stack, SHARES, "classification", "logits").astype(np.float64)
    geometric = np.exp(np.tensordot(share, log_softmax(stack.astype(np.float64), -1), 1))
    np.testing.assert_allclose(softmax(found, -1), geometric / geometric.sum(-1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_the_two_means_differ_and_regression_has_one(combine, stack):
    arithmetic = softmax(mean_signals(stack, SHARES, "classification", "probabilities"), -1)
    assert np.abs(arithmetic - softmax(mean_signals(stack, SHARES, "classification", "logits"), -1)).max() > 0.05
    values = stack[..., :1]
    expected = np.average(values, axis=0, weights=SHARES)
    np.testing.assert_allclose(mean_signals(values, SHARES, "regression", combine), expected, atol=1e-5)


def test_only_the_ratio_of_weights_counts(stack):
    for combine in ("probabilities", "logits"):
        one = mean_signals(stack, SHARES, "classification", combine)
        np.testing.assert_allclose(mean_signals(stack, [10 * s for s in SHARES], "classification", combine), one)


@pytest.mark.parametrize("kind", ["classification", "multi-label"])
def test_sure_teachers_combine_without_overflow(kind):
    sure = np.array([[[1000.0, -1000.0]], [[-1000.0, 1000.0]]])
    found = mean_signals(sure, [1, 1], kind, "probabilities")
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0, 0], found[0, 1], atol=1e-6)


def test_differing_label_sets_are_refused():
    members = [teacher(), teacher(task=Task("classification", LABELS[::-1]))]
    with pytest.raises(InputError, match="labels differ: negative, positive and positive, negative"):
        Ensemble(members, [1, 1], "logits", TWO)


def test_ensembles_give_no_features(texts):
    with pytest.raises(InputError, match="several teachers give logits only"):
        ensemble([0, 1], "logits").ask(texts, (1,))


def test_the_fingerprint_of_an_ensemble_covers_all_its_answer_depends_on():
    prints = [
        ensemble([0, 1], "logits").fingerprint,
        ensemble([0, 2], "logits").fingerprint,
        ensemble([0, 1], "probabilities").fingerprint,
        ensemble([0, 1], "logits", [1.0, 2.0]).fingerprint,
        Ensemble([teacher(0), teacher(1)], [1.0, 1.0], "logits", MANY).fingerprint,
    ]
    assert all(a != b for i, a in enumerate(prints) for b in prints[:i])
    assert ensemble([0, 1], "logits").fingerprint == prints[0]


def opened(section):
    return [open_classifier(each.model) for each in section.models]


def test_open_teacher(tmp_path, texts):
    folders = [str(save_model(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    one = Teacher(models=[folders[0]])
    assert isinstance(open_teacher(opened(one), one, TWO, 32), HuggingFaceModel)
    both = Teacher(models=[folders[0], {"model": folders[1], "weight": 3}], combine="logits", batch_size=4)
    several = open_teacher(opened(both), both, TWO, 32, "float32")
    assert several.members[0].batch_size == 4
    assert several.parameters == 2 * teacher().parameters
    expected = ensemble([0, 1], "logits", [1.0, 3.0]).ask(texts).logits
    np.testing.assert_allclose(several.ask(texts).logits, expected, atol=1e-5)
