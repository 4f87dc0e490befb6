"""Every term against an independent float64 formula, its gradient against finite differences, and its known laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import InputError
from limbeck.objectives import TERMS, HardLabels, MaskedLM, SoftTargets, build_terms, labelled
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task

Array = np.ndarray
N, C = 6, 4
TASKS = {
    "classification": Task("classification", ("a", "b", "c", "d")),
    "multi-label": Task("multi-label", ("a", "b", "c", "d")),
    "regression": Task("regression", ("value",)),
}
KINDS, FORMS = tuple(TASKS), ("kl", "cross-entropy", "mse")


def draw(kind: str, seed: int = 0, scale: float = 2.0) -> Array:
    return np.random.default_rng(seed).normal(0, scale, (N, TASKS[kind].outputs))


def draw_labels(kind: str, missing: tuple[int, ...] = ()) -> Array:
    random = np.random.default_rng(9)
    labels: Array = {
        "classification": random.integers(0, C, N),
        "multi-label": random.integers(0, 2, (N, C)).astype(np.float32),
        "regression": random.normal(size=N).astype(np.float32),
    }[kind]
    for row in missing:
        labels[row] = -100 if kind == "classification" else np.nan
    return labels


def soft(kind: str, form: str = "kl", temperature: float = 1.0) -> SoftTargets:
    return SoftTargets(terms.SoftTargets(form=form, temperature=temperature), TASKS[kind])


def hard(kind: str) -> HardLabels:
    return HardLabels(terms.HardLabels(), TASKS[kind])


def value_and_gradient(
    term: Any, student: Array, teacher: Array | None, labels: Array | None = None
) -> tuple[float, Array]:
    s = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    t = None if teacher is None else Signals(torch.tensor(teacher, dtype=torch.float32))
    batch = {"row": torch.arange(len(student))}
    if labels is not None:
        batch["labels"] = torch.from_numpy(labels)
    total = term.total(Signals(s), t, batch)
    assert total.ndim == 0
    assert total.dtype == torch.float32
    total.backward()
    return total.item(), s.grad.numpy().astype(np.float64)


def differences(formula: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """The gradient by central differences, in float64."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (formula(up) - formula(down)) / (2 * step)
    return gradient


# Written from the definitions, one example at a time, in another way than the package does.


def softmax(row: Array) -> Array:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def sigmoid(value: Array) -> Array:
    return 1 / (1 + np.exp(-value))


def soft_formula(kind: str, form: str, temperature: float, s: Array, t: Array) -> float:
    total = 0.0
    for mine, its in zip(s, t, strict=True):
        if form == "mse" or kind == "regression":
            total += np.mean((mine - its) ** 2)
        elif kind == "classification":
            p, q = softmax(its / temperature), softmax(mine / temperature)
            ratio = np.log(p / q) if form == "kl" else -np.log(q)
            total += temperature**2 * np.sum(p * ratio)
        else:
            p, q = sigmoid(its / temperature), sigmoid(mine / temperature)
            on = p * (np.log(p / q) if form == "kl" else -np.log(q))
            off = (1 - p) * (np.log((1 - p) / (1 - q)) if form == "kl" else -np.log(1 - q))
            total += temperature**2 * np.mean(on + off)
    return total


def hard_formula(kind: str, s: Array, labels: Array) -> float:
    total = 0.0
    for mine, label in zip(s, labels, strict=True):
        if kind == "classification":
            total += 0.0 if label == -100 else -np.log(softmax(mine)[label])
        elif np.isnan(label).any():
            continue
        elif kind == "multi-label":
            total += np.mean([-np.log(sigmoid(m if on else -m)) for m, on in zip(mine, label, strict=True)])
        else:
            total += (mine[0] - label) ** 2
    return float(total)


# --- values and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_soft_targets(kind, form, temperature):
    s, t = draw(kind, 1), draw(kind, 2)
    value, gradient = value_and_gradient(soft(kind, form, temperature), s, t)
    assert value == pytest.approx(soft_formula(kind, form, temperature, s, t), rel=1e-5)
    expected = differences(lambda at: soft_formula(kind, form, temperature, at, t), s)
    np.testing.assert_allclose(gradient, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("missing", [(), (0,), (1, 2, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_hard_labels(kind, missing):
    s, labels = draw(kind, 1), draw_labels(kind, missing)
    value, gradient = value_and_gradient(hard(kind), s, None, labels)
    assert value == pytest.approx(hard_formula(kind, s, labels), rel=1e-5)
    expected = differences(lambda at: hard_formula(kind, at, labels), s)
    np.testing.assert_allclose(gradient, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["kl", "cross-entropy"])
def test_the_gradient_is_t_times_the_difference_of_probabilities(form):
    s, t = draw("classification", 1), draw("classification", 2)
    for temperature in (1.0, 3.0):
        _, gradient = value_and_gradient(soft("classification", form, temperature), s, t)
        p, q = (np.stack([softmax(row / temperature) for row in each]) for each in (t, s))
        np.testing.assert_allclose(gradient, temperature * (q - p), atol=1e-6)
        s_, t_ = draw("multi-label", 1), draw("multi-label", 2)
        _, gradient = value_and_gradient(soft("multi-label", form, temperature), s_, t_)
        expected = temperature * (sigmoid(s_ / temperature) - sigmoid(t_ / temperature)) / C
        np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_hard_labels_gradient_is_probability_minus_label():
    s, labels = draw("classification"), draw_labels("classification")
    _, gradient = value_and_gradient(hard("classification"), s, None, labels)
    np.testing.assert_allclose(gradient, np.stack([softmax(row) for row in s]) - np.eye(C)[labels], atol=1e-6)


# --- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(kind, form):
    s = draw(kind)
    value, gradient = value_and_gradient(soft(kind, form, 2.0), s, s)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    if form == "cross-entropy" and kind != "regression":
        assert value > 1  # the teacher's entropy remains
    else:
        assert value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["classification", "multi-label"])
def test_kl_and_cross_entropy_differ_by_the_teachers_entropy_alone(kind):
    t = draw(kind, 2)
    gaps = []
    for seed in (3, 4):
        s = draw(kind, seed)
        kl, kl_gradient = value_and_gradient(soft(kind, "kl", 3.0), s, t)
        cross, cross_gradient = value_and_gradient(soft(kind, "cross-entropy", 3.0), s, t)
        np.testing.assert_allclose(kl_gradient, cross_gradient, atol=1e-6)
        gaps.append(cross - kl)
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)
    assert gaps[0] == pytest.approx(value_and_gradient(soft(kind, "cross-entropy", 3.0), t, t)[0], rel=1e-4)


def test_a_high_temperature_matches_centred_logits():
    s, t = draw("classification", 1), draw("classification", 2)
    centred = (s - s.mean(-1, keepdims=True)) - (t - t.mean(-1, keepdims=True))
    errors = []
    for temperature in (10.0, 100.0):
        _, gradient = value_and_gradient(soft("classification", "kl", temperature), s, t)
        errors.append(np.abs(gradient - centred / C).max())
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 5  # it falls as 1/T


def test_the_factor_keeps_the_gradients_scale():
    s, t = draw("classification", 1), draw("classification", 2)
    temperatures = (1.0, 2.0, 4.0, 8.0, 16.0)
    norms = []
    for temperature in temperatures:
        norms.append(np.linalg.norm(value_and_gradient(soft("classification", "kl", temperature), s, t)[1]))
    assert max(norms) / min(norms) < 4
    bare = [norm / temperature**2 for norm, temperature in zip(norms, temperatures, strict=True)]
    assert bare == sorted(bare, reverse=True)
    assert bare[0] / bare[-1] > 50  # without the factor a high temperature hardly teaches


def test_a_constant_added_to_all_logits_counts_for_mse_alone():
    s, t = draw("classification", 1), draw("classification", 2)
    for form in ("kl", "cross-entropy"):
        term = soft("classification", form, 2.0)
        value, gradient = value_and_gradient(term, s, t)
        shifted, shifted_gradient = value_and_gradient(term, s + 5, t - 3)
        assert shifted == pytest.approx(value, rel=1e-4)
        np.testing.assert_allclose(shifted_gradient, gradient, atol=1e-5)
    value, _ = value_and_gradient(soft("classification", "mse"), s, t)
    assert value_and_gradient(soft("classification", "mse"), s + 5, t)[0] > value + 10
    for kind in ("classification", "regression"):
        labels = draw_labels(kind)
        value, _ = value_and_gradient(hard(kind), draw(kind), None, labels)
        shifted, _ = value_and_gradient(hard(kind), draw(kind) + 5, None, labels)
        assert (shifted == pytest.approx(value, rel=1e-4)) == (kind == "classification")


def test_the_temperature_means_nothing_to_mse_and_regression():
    for kind, form in (("classification", "mse"), ("regression", "kl"), ("regression", "mse")):
        s, t = draw(kind, 1), draw(kind, 2)
        values = {value_and_gradient(soft(kind, form, temperature), s, t)[0] for temperature in (1.0, 7.0)}
        assert len(values) == 1


@pytest.mark.parametrize("form", ["kl", "cross-entropy"])
@pytest.mark.parametrize("kind", ["classification", "multi-label"])
def test_sure_models_stay_finite(kind, form):
    s, t = draw(kind, 1, scale=300), draw(kind, 2, scale=300)
    value, gradient = value_and_gradient(soft(kind, form, 1.0), s, t)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    value, gradient = value_and_gradient(hard(kind), s, None, draw_labels(kind))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_logits_are_summed_in_float32(kind):
    s, t = (torch.tensor(draw(kind, seed)).bfloat16() for seed in (1, 2))
    batch = {"row": torch.arange(N), "labels": torch.from_numpy(draw_labels(kind))}
    for term in (soft(kind), hard(kind)):
        total = term.total(Signals(s), Signals(t), batch)
        exact = term.total(Signals(s.float()), Signals(t.float()), batch)
        assert total.dtype == torch.float32
        assert torch.equal(total, exact)


# --- what counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_unlabelled_examples_contribute_exactly_nothing(kind):
    missing = (1, 4)
    s, labels = draw(kind), draw_labels(kind, missing)
    batch = {"row": torch.arange(N), "labels": torch.from_numpy(labels)}
    assert labelled(batch["labels"]).tolist() == [row not in missing for row in range(N)]
    assert hard(kind).count(batch).item() == N - len(missing)
    assert soft(kind).count(batch).item() == N
    value, gradient = value_and_gradient(hard(kind), s, None, labels)
    assert (gradient[list(missing)] == 0).all()
    assert (gradient[0] != 0).any()
    kept = [row for row in range(N) if row not in missing]
    alone, _ = value_and_gradient(hard(kind), s[kept], None, labels[kept])
    assert value == pytest.approx(alone, rel=1e-6)
    changed = s.copy()
    changed[list(missing)] = 1e4
    assert value_and_gradient(hard(kind), changed, None, labels)[0] == value


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_labels_is_zero_and_has_a_zero_gradient(kind):
    labels = draw_labels(kind, tuple(range(N)))
    value, gradient = value_and_gradient(hard(kind), draw(kind), None, labels)
    assert value == 0
    assert (gradient == 0).all()
    assert hard(kind).count({"labels": torch.from_numpy(labels)}).item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_totals_add_up_over_any_split(kind):
    s, t, labels = draw(kind, 1), draw(kind, 2), draw_labels(kind, (2,))
    for term in (soft(kind), hard(kind)):
        whole, _ = value_and_gradient(term, s, t, labels)
        parts = [value_and_gradient(term, s[a:b], t[a:b], labels[a:b])[0] for a, b in ((0, 1), (1, 4), (4, N))]
        assert whole == pytest.approx(sum(parts), rel=1e-5)


def test_soft_targets_without_a_teacher_are_an_error():
    with pytest.raises(ValueError, match="needs the teacher's signals"):
        soft("classification").total(Signals(torch.zeros(1, C)), None, {"row": torch.zeros(1)})


def test_the_teacher_does_not_learn():
    s, t = (torch.tensor(draw("classification", seed), requires_grad=True) for seed in (1, 2))
    for form in FORMS:
        soft("classification", form).total(Signals(s), Signals(t), {"row": torch.arange(N)}).backward()
    assert s.grad is not None
    assert t.grad is None


# --- masked words -----------------------------------------------------------------------------------------------------

TEXT = Task("masked-lm", ())
TARGETS = np.array([-100, 3, -100, 0, 1, -100])


def words(targets: Array = TARGETS) -> dict[str, torch.Tensor]:
    """A batch of two texts of which `targets` are about the valid tokens."""
    at = torch.arange(len(targets))
    return {"row": torch.arange(2), "positions": at, "targets": torch.from_numpy(targets)}


def value_and_gradient_of_words(term: Any, s: Array, t: Array, targets: Array = TARGETS) -> tuple[float, Array]:
    logits = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    total = term.total(Signals(logits), Signals(torch.tensor(t, dtype=torch.float32)), words(targets))
    total.backward()
    return total.item(), logits.grad.double().numpy()


def soft_words(positions: str, form: str = "kl") -> SoftTargets:
    return SoftTargets(terms.SoftTargets(form=form, temperature=2, positions=positions), TEXT)


def test_masked_lm_is_the_cross_entropy_of_the_masked_words():
    term, s = MaskedLM(terms.MaskedLM(), TEXT), draw("classification", 1)
    value, gradient = value_and_gradient_of_words(term, s, s)
    assert value == pytest.approx(hard_formula("classification", s, TARGETS), rel=1e-5)
    np.testing.assert_allclose(
        gradient, differences(lambda at: hard_formula("classification", at, TARGETS), s), atol=1e-5, rtol=1e-4
    )
    assert (gradient[TARGETS == -100] == 0).all()
    assert term.count(words()).item() == 3
    none = np.full(N, -100)
    assert value_and_gradient_of_words(term, s, s, none)[0] == 0
    assert term.count(words(none)).item() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("positions", "kept"), [("all", np.arange(N)), ("masked", np.flatnonzero(TARGETS != -100))])
def test_soft_targets_over_the_vocabulary(form, positions, kept):
    term, s, t = soft_words(positions, form), draw("classification", 1), draw("classification", 2)
    value, gradient = value_and_gradient_of_words(term, s, t)
    assert term.count(words()).item() == len(kept)
    assert value == pytest.approx(soft_formula("classification", form, 2, s[kept], t[kept]), rel=1e-5)
    expected = differences(lambda at: soft_formula("classification", form, 2, at[kept], t[kept]), s)
    np.testing.assert_allclose(gradient, expected, atol=1e-5, rtol=1e-4)
    rest = np.setdiff1d(np.arange(N), kept)
    assert (gradient[rest] == 0).all()


def test_totals_over_words_add_up_over_any_split():
    s, t = draw("classification", 1), draw("classification", 2)
    for term in (MaskedLM(terms.MaskedLM(), TEXT), soft_words("all"), soft_words("masked")):
        whole, _ = value_and_gradient_of_words(term, s, t)
        parts = [(s[a:b], t[a:b], TARGETS[a:b]) for a, b in ((0, 1), (1, 4), (4, N))]
        assert whole == pytest.approx(sum(value_and_gradient_of_words(term, *part)[0] for part in parts), rel=1e-5)
        assert term.count(words()) == sum(term.count(words(targets)) for _, _, targets in parts)


def test_low_precision_words_are_summed_in_float32():
    s, t = (torch.tensor(draw("classification", seed)).bfloat16() for seed in (1, 2))
    for term in (MaskedLM(terms.MaskedLM(), TEXT), soft_words("all"), soft_words("masked")):
        total = term.total(Signals(s), Signals(t), words())
        assert total.dtype == torch.float32
        assert torch.equal(total, term.total(Signals(s.float()), Signals(t.float()), words()))


def test_masked_positions_without_masks_are_refused():
    with pytest.raises(InputError, match="positions=masked is about masked words, but the task is regression"):
        SoftTargets(terms.SoftTargets(positions="masked"), TASKS["regression"])


# --- from the recipe --------------------------------------------------------------------------------------------------


def test_terms_are_built_from_the_recipe():
    assert list(TERMS) == list(terms.Objectives.model_fields)
    section = terms.Objectives(soft_targets={"weight": 0.9, "temperature": 4, "form": "mse"}, hard_labels=0.1)
    built = {term.name: term for term in build_terms(section, TASKS["classification"])}
    assert list(built) == ["hard_labels", "soft_targets"]
    assert (built["soft_targets"].weight, built["soft_targets"].temperature) == (0.9, 4)
    assert built["soft_targets"].form == "mse"
    assert (built["soft_targets"].student, built["soft_targets"].teacher) == (Wanted(logits=True), Wanted(logits=True))
    assert built["hard_labels"].weight == 0.1
    assert (built["hard_labels"].student, built["hard_labels"].teacher) == (Wanted(logits=True), Wanted())
    only = build_terms(terms.Objectives(hard_labels=1), TASKS["regression"])
    assert [term.name for term in only] == ["hard_labels"]
