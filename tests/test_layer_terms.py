"""Terms on the insides of models against float64 formulas of one unpadded example at a time, and their known laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.anatomy import Shape
from limbeck.errors import InputError
from limbeck.objectives import (
    TERMS,
    Attention,
    Contrastive,
    Embedding,
    FeatureMap,
    Hidden,
    Relations,
    Shapes,
    Term,
    build_terms,
)
from limbeck.objectives.layer_maps import resolve
from limbeck.recipe import terms
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task

Array = np.ndarray
Insides = dict[tuple[str, int], Array]  # (kind of signal, layer) to its array
TASK = Task("classification", ("a", "b"))
LENGTHS = (5, 1, 3, 4, 2, 5, 2, 3)
B, WIDTH = len(LENGTHS), max(LENGTHS)
NARROW, WIDE, HEADS = 6, 12, 3


def shapes(student: int = NARROW, teacher: int = WIDE, layers: tuple[int, int] = (2, 4), heads: int = HEADS) -> Shapes:
    return Shapes(Shape(layers[0], student, heads), Shape(layers[1], teacher, HEADS))


def states(*names: tuple[str, int], width: int, seed: int) -> Insides:
    random = np.random.default_rng(seed)
    return {name: random.normal(0.3, 1.5, (B, WIDTH, width)) for name in names}


def scores(*layers: int, seed: int, window: int = WIDTH) -> Insides:
    """Scores of which tokens further apart than the window are never looked at."""
    random = np.random.default_rng(seed)
    far = np.abs(np.subtract.outer(np.arange(WIDTH), np.arange(WIDTH))) > window
    drawn = {("scores", layer): random.normal(0, 2, (B, HEADS, WIDTH, WIDTH)) for layer in layers}
    return {name: np.where(far, -np.inf, array) for name, array in drawn.items()}


# --- formulas: one example without padding, float64 ------------------------------------------------------------------


def softmax(row: Array) -> Array:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def kl(p: Array, q: Array) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def project(s: Array, weight: Array | None) -> Array:
    return s if weight is None else np.stack([weight @ row for row in s])


def embedding_formula(s: Insides, t: Insides, weight: Array | None) -> float:
    mine, its = project(s["hidden", 0], weight), t["hidden", 0]
    return sum(np.mean((a - b) ** 2) for a, b in zip(mine, its, strict=True))


def mse_formula(s: Insides, t: Insides, weight: Array | None) -> float:
    total = 0.0
    for mine, its in ((1, 2), (2, 4)):
        for a, b in zip(project(s["hidden", mine], weight), t["hidden", its], strict=True):
            total += np.mean((a - b) ** 2)
    return total


def cosine_formula(s: Insides, t: Insides, weight: Array | None) -> float:
    total = 0.0
    for mine, its in ((1, 2), (2, 4)):
        for a, b in zip(project(s["hidden", mine], weight), t["hidden", its], strict=True):
            total += (1 - a @ b / np.sqrt((a @ a) * (b @ b))) / 2
    return total


def cls_formula(s: Insides, t: Insides, weight: Array | None) -> float:
    total = 0.0
    for mine, its in ((1, 2), (2, 4)):
        a, b = project(s["hidden", mine], weight)[0], t["features", its]
        total += np.mean((a / np.sqrt(a @ a) - b / np.sqrt(b @ b)) ** 2) / 2
    return total


def squares_formula(s: Insides, t: Insides, weight: None) -> float:
    total = 0.0
    for mine, its in ((1, 2), (2, 4)):
        for a, b in zip(s["scores", mine].flat, t["scores", its].flat, strict=True):
            if a != -np.inf and b != -np.inf:
                total += (a - b) ** 2 / HEADS
    return total


def attention_kl_formula(s: Insides, t: Insides, weight: None) -> float:
    total = 0.0
    for mine, its in ((1, 2), (2, 4)):
        for a, b in zip(s["scores", mine], t["scores", its], strict=True):
            for row, its_row in zip(a, b, strict=True):
                looks = row != -np.inf
                total += kl(softmax(its_row[looks]), softmax(row[looks])) / HEADS / 2
    return total


def relations_formula(kinds: tuple[str, ...], heads: int) -> Callable[..., float]:
    def formula(s: Insides, t: Insides, weight: None) -> float:
        total = 0.0
        for kind in kinds:
            for head in range(heads):
                mine, its = (np.split(x[kind, layer], heads, axis=1)[head] for x, layer in ((s, 2), (t, 4)))
                for i in range(len(mine)):
                    rows = (np.array([x[i] @ other for other in x]) / np.sqrt(x.shape[1]) for x in (its, mine))
                    total += kl(*(softmax(row) for row in rows)) / heads / len(kinds)
        return total

    return formula


def feature_map_formula(s: Insides, t: Insides, weight: None) -> float:
    def parts(x: Array) -> tuple[float, float, Array]:
        mean = x.sum() / len(x)
        variance = ((x - mean) ** 2).sum() / len(x)
        return mean, variance, (x - mean) / np.sqrt(variance)

    total = 0.0
    for mine, its in ((1, 2), (2, 4)):
        for a, b in zip(s["hidden", mine], t["hidden", its], strict=True):
            (mean, variance, normal), (its_mean, its_variance, its_normal) = parts(a), parts(b)
            shape = np.mean((normal - its_normal) ** 2)
            total += (100 * shape + 5000 * (mean - its_mean) ** 2 + 5 * abs(variance - its_variance)) / 2
    return total


def contrastive_formula(s: Insides, t: Insides, weight: Array | None) -> float:
    mine, its = project(s["hidden", 2], weight), t["hidden", 4]
    mine, its = (x / np.sqrt((x * x).sum(-1, keepdims=True)) for x in (mine, its))
    return sum(-np.log(softmax(np.array([a @ b for b in its]) / 0.5)[i]) for i, a in enumerate(mine))


# --- one case for each term and form ---------------------------------------------------------------------------------


@dataclass
class Case:
    """A term, what both models say, and the formula of one example."""

    term: Any
    student: Insides
    teacher: Insides
    formula: Callable[[Insides, Insides, Array | None], float]
    count: Callable[[int], int] = field(default=lambda length: length)

    @property
    def weight(self) -> Array | None:
        parameters = [p.detach().double().numpy() for p in self.term.parameters()] if hasattr(self.term, "to") else []
        return parameters[0] if parameters else None


def of_hidden(form: str, formula: Callable[..., float], width: int) -> Case:
    term = Hidden(terms.Hidden(form=form), TASK, shapes(teacher=width))
    student = states(("hidden", 1), ("hidden", 2), width=NARROW, seed=1)
    if form != "cls":
        return Case(term, student, states(("hidden", 2), ("hidden", 4), width=width, seed=2), formula)
    features = states(("features", 2), ("features", 4), width=width, seed=2)
    return Case(term, student, {name: array[:, 0] for name, array in features.items()}, formula, lambda length: 1)


def of_embedding(width: int) -> Case:
    term = Embedding(terms.Embedding(), TASK, shapes(teacher=width))
    student = states(("hidden", 0), width=NARROW, seed=1)
    return Case(term, student, states(("hidden", 0), width=width, seed=2), embedding_formula)


def of_attention(form: str, formula: Callable[..., float], windows: tuple[int, int] = (WIDTH, WIDTH)) -> Case:
    term = Attention(terms.Attention(form=form), TASK, shapes())
    student, teacher = scores(1, 2, seed=1, window=windows[0]), scores(2, 4, seed=2, window=windows[1])
    return Case(
        term, student, teacher, formula, (lambda length: length**2) if form == "mse" else (lambda length: length)
    )


def of_relations(kinds: tuple[str, ...], heads: int | None) -> Case:
    term = Relations(terms.Relations(of=list(kinds), heads=heads), TASK, shapes())
    student = states(*((kind, 2) for kind in kinds), width=NARROW, seed=1)
    teacher = states(*((kind, 4) for kind in kinds), width=WIDE, seed=2)
    return Case(term, student, teacher, relations_formula(kinds, heads or HEADS))


def of_feature_map() -> Case:
    term = FeatureMap(terms.FeatureMap(), TASK, shapes(teacher=NARROW))
    student = states(("hidden", 1), ("hidden", 2), width=NARROW, seed=1)
    return Case(term, student, states(("hidden", 2), ("hidden", 4), width=NARROW, seed=2), feature_map_formula)


def of_contrastive(width: int) -> Case:
    term = Contrastive(terms.Contrastive(temperature=0.5), TASK, shapes(teacher=width))
    student, teacher = states(("hidden", 2), width=NARROW, seed=1), states(("hidden", 4), width=width, seed=2)
    return Case(term, student, teacher, contrastive_formula)


CASES: dict[str, Callable[[], Case]] = {
    "embedding": lambda: of_embedding(NARROW),
    "embedding, projected": lambda: of_embedding(WIDE),
    "mse": lambda: of_hidden("mse", mse_formula, NARROW),
    "mse, projected": lambda: of_hidden("mse", mse_formula, WIDE),
    "cosine": lambda: of_hidden("cosine", cosine_formula, NARROW),
    "cosine, projected": lambda: of_hidden("cosine", cosine_formula, WIDE),
    "cls": lambda: of_hidden("cls", cls_formula, NARROW),
    "cls, projected": lambda: of_hidden("cls", cls_formula, WIDE),
    "scores": lambda: of_attention("mse", squares_formula),
    "scores, teacher with a window": lambda: of_attention("mse", squares_formula, (WIDTH, 1)),
    "scores, both with a window": lambda: of_attention("mse", squares_formula, (1, 2)),
    "attention": lambda: of_attention("kl", attention_kl_formula),
    "attention, teacher with a window": lambda: of_attention("kl", attention_kl_formula, (WIDTH, 1)),
    "attention, both with a window": lambda: of_attention("kl", attention_kl_formula, (1, 2)),
    "values": lambda: of_relations(("values",), None),
    "queries, keys and values": lambda: of_relations(("queries", "keys", "values"), 2),
    "feature map": lambda: of_feature_map(),
    "contrastive": lambda: of_contrastive(NARROW),
    "contrastive, projected": lambda: of_contrastive(WIDE),
}
PROJECTED = [name for name in CASES if "projected" in name]


@pytest.fixture(params=CASES)
def case(request) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]()


@pytest.fixture(params=PROJECTED)
def projected(request) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]()


def as_batch(lengths: tuple[int, ...], width: int = WIDTH, left: int = 0) -> dict[str, torch.Tensor]:
    """A batch of examples that begin after `left` tokens of padding."""
    at = torch.arange(width) - left
    mask = (at >= 0) & (at < torch.tensor(lengths)[:, None])
    return {"attention_mask": mask.long(), "row": torch.arange(len(lengths))}


def as_signals(insides: Insides, dtype: torch.dtype = torch.float32, learns: bool = False) -> Signals:
    signals = Signals()
    for (kind, layer), array in insides.items():
        getattr(signals, kind)[layer] = torch.tensor(array, dtype=dtype, requires_grad=learns)
    return signals


def run(
    term: Term, student: Insides, teacher: Insides, batch: dict[str, torch.Tensor] | None = None
) -> tuple[float, Insides]:
    """The total and its gradient by the student's signals."""
    s, t = as_signals(student, learns=True), as_signals(teacher, learns=True)
    total = term.total(s, t, batch or as_batch(LENGTHS))
    assert total.ndim == 0
    assert total.dtype == torch.float32
    total.backward()
    assert all(getattr(t, kind)[layer].grad is None for kind, layer in teacher), "the teacher must not learn"
    gradient = {(kind, layer): getattr(s, kind)[layer].grad.double().numpy() for kind, layer in student}
    return total.item(), gradient


def example(insides: Insides, number: int) -> Insides:
    """One example's signals without padding."""
    length = LENGTHS[number]
    cut = {"features": lambda a: a, "scores": lambda a: a[:, :length, :length]}
    return {name: cut.get(name[0], lambda a: a[:length])(array[number]) for name, array in insides.items()}


def padding(kind: str, array: Array, batch: dict[str, torch.Tensor]) -> Array:
    """Where an array is about padding."""
    valid = batch["attention_mask"].bool().numpy()
    if kind == "scores":
        return np.broadcast_to(~(valid[:, None, :, None] & valid[:, None, None, :]), array.shape)
    if kind == "features":
        return np.zeros(array.shape, bool)
    return np.broadcast_to(~valid[..., None], array.shape)


def differences(formula: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (formula(up) - formula(down)) / (2 * step)
    return gradient


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * max(1.0, np.abs(expected).max()))


# --- values and gradients --------------------------------------------------------------------------------------------


def test_the_value_is_the_formulas(case):
    value, _ = run(case.term, case.student, case.teacher)
    each = [case.formula(example(case.student, i), example(case.teacher, i), case.weight) for i in range(B)]
    assert sum(each) > 0.1
    assert value == pytest.approx(sum(each), rel=1e-5)
    assert case.term.count(as_batch(LENGTHS)).item() == sum(map(case.count, LENGTHS))


def test_the_gradient_is_that_of_finite_differences(case):
    _, gradient = run(case.term, case.student, case.teacher)
    for number in (2, 3):
        mine, its = example(case.student, number), example(case.teacher, number)
        for name, array in mine.items():
            expected = differences(lambda at, n=name, m=mine, t=its: case.formula(m | {n: at}, t, case.weight), array)
            close(example(gradient, number)[name], expected)


def test_the_projections_gradient_is_that_of_finite_differences(projected):
    run(projected.term, projected.student, projected.teacher)
    (weight,) = projected.term.parameters()
    assert weight.shape == (WIDE, NARROW)

    def formula(at: Array) -> float:
        each = ((example(projected.student, i), example(projected.teacher, i)) for i in range(B))
        return sum(projected.formula(s, t, at) for s, t in each)

    close(weight.grad.double().numpy(), differences(formula, projected.weight))


# --- padding, splits, precision --------------------------------------------------------------------------------------


def test_padding_contributes_exactly_nothing(case):
    batch = as_batch(LENGTHS)
    value, gradient = run(case.term, case.student, case.teacher, batch)
    random = np.random.default_rng(5)

    def garbage(insides: Insides) -> Insides:
        return {
            name: np.where(padding(name[0], a, batch) & (a != -np.inf), random.choice([-1e4, 0, 1e4, 3e38], a.shape), a)
            for name, a in insides.items()
        }

    changed, changed_gradient = run(case.term, garbage(case.student), garbage(case.teacher), batch)
    assert changed == value
    for name, array in changed_gradient.items():
        assert (array[padding(name[0], array, batch)] == 0).all()
        np.testing.assert_array_equal(array, gradient[name])


@pytest.mark.parametrize("side", ["left", "right"])
def test_more_padding_changes_nothing(case, side):
    if side == "left" and getattr(case.term, "form", "") == "cls":
        pytest.skip("[CLS] is the first token")
    extra = (3, 0) if side == "left" else (0, 3)
    batch = as_batch(LENGTHS, WIDTH + 3, left=extra[0])

    def padded(insides: Insides) -> Insides:
        widths = {"scores": [(0, 0), (0, 0), extra, extra], "features": [(0, 0), (0, 0)]}
        return {
            name: np.pad(a, widths.get(name[0], [(0, 0), extra, (0, 0)]), constant_values=1e4)
            for name, a in insides.items()
        }

    value, gradient = run(case.term, case.student, case.teacher)
    more, more_gradient = run(case.term, padded(case.student), padded(case.teacher), batch)
    assert more == pytest.approx(value, rel=1e-6)
    for name, array in padded(gradient).items():
        about = padding(name[0], array, batch)
        assert (more_gradient[name][about] == 0).all()
        close(more_gradient[name][~about], array[~about])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_totals_and_counts_add_up_over_any_split(case, size):
    value, gradient = run(case.term, case.student, case.teacher)
    total, count = 0.0, 0
    for start in range(0, B, size):
        rows = slice(start, start + size)
        batch = as_batch(LENGTHS[rows])
        s, t = ({name: a[rows] for name, a in x.items()} for x in (case.student, case.teacher))
        part, part_gradient = run(case.term, s, t, batch)
        total, count = total + part, count + case.term.count(batch).item()
        for name, array in part_gradient.items():
            close(array, gradient[name][rows])
    assert total == pytest.approx(value, rel=1e-5)
    assert count == case.term.count(as_batch(LENGTHS)).item()


def test_maps_too_many_for_one_chunk_give_the_same(case, monkeypatch):
    value, gradient = run(case.term, case.student, case.teacher)
    monkeypatch.setattr("limbeck.objectives.divergence.ON_CPU", 3 * WIDTH * WIDTH)
    chunked, chunked_gradient = run(case.term, case.student, case.teacher)
    assert chunked == pytest.approx(value, rel=1e-6)
    for name, array in chunked_gradient.items():
        close(array, gradient[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_signals_are_summed_in_float32_even_under_autocast(case, dtype):
    s, t, batch = as_signals(case.student, dtype), as_signals(case.teacher, dtype), as_batch(LENGTHS)
    wider = [as_signals(x, dtype) for x in (case.student, case.teacher)]
    for signals in wider:
        for kind in ("features", "hidden", "queries", "keys", "values", "scores"):
            setattr(signals, kind, {layer: x.float() for layer, x in getattr(signals, kind).items()})
    exact = case.term.total(*wider, batch)
    assert torch.equal(case.term.total(s, t, batch), exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(case.term.total(s, t, batch), exact)


# --- laws ------------------------------------------------------------------------------------------------------------


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    same = shapes(NARROW, NARROW, layers=(2, 2))
    names = [(kind, layer) for kind in ("hidden", "queries", "keys", "values") for layer in (0, 1, 2)]
    insides = states(*names, width=NARROW, seed=1) | scores(1, 2, seed=2, window=2)
    features = {("features", layer): insides["hidden", layer][:, 0] for layer in (1, 2)}
    sections = {
        Embedding: [terms.Embedding()],
        Hidden: [terms.Hidden(form=form) for form in ("mse", "cosine", "cls")],
        Attention: [terms.Attention(form=form) for form in ("mse", "kl")],
        Relations: [terms.Relations(of=["queries", "keys", "values"], heads=2)],
        FeatureMap: [terms.FeatureMap()],
    }
    for term, each in sections.items():
        for section in each:
            built = term(section, TASK, same)
            assert not isinstance(built, nn.Module) or not list(built.parameters())
            total = built.total(as_signals(insides, learns=True), as_signals(insides | features), as_batch(LENGTHS))
            assert total.item() == pytest.approx(0, abs=1e-5)
            total.backward()  # a graph is there even so


def test_the_length_of_the_teachers_cls_state_means_nothing():
    case = CASES["cls"]()
    value, gradient = run(case.term, case.student, case.teacher)
    for factor in (0.01, 37.0):
        scaled, again = run(case.term, case.student, {name: factor * a for name, a in case.teacher.items()})
        assert scaled == pytest.approx(value, rel=1e-5)
        for name in gradient:
            close(again[name], gradient[name])


def test_cls_is_two_minus_twice_the_cosine_over_the_width():
    case = CASES["cls"]()
    value, _ = run(case.term, case.student, case.teacher)
    expected = 0.0
    for mine, its in ((1, 2), (2, 4)):
        for a, b in zip(case.student["hidden", mine][:, 0], case.teacher["features", its], strict=True):
            expected += (2 - 2 * a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / NARROW / 2
    assert value == pytest.approx(expected, rel=1e-5)


def test_cls_reads_the_first_token_alone():
    case = CASES["cls"]()
    _, gradient = run(case.term, case.student, case.teacher)
    for array in gradient.values():
        assert (array[:, 1:] == 0).all()
        assert (array[:, 0] != 0).all()


def test_rotating_the_teachers_values_within_heads_changes_nothing_but_mixing_heads_does():
    case = CASES["values"]()
    random = np.random.default_rng(3)
    size = WIDE // HEADS
    within = np.zeros((WIDE, WIDE))
    for head in range(HEADS):
        at = slice(head * size, (head + 1) * size)
        within[at, at] = np.linalg.qr(random.normal(size=(size, size)))[0]
    across = np.linalg.qr(random.normal(size=(WIDE, WIDE)))[0]
    value, _ = run(case.term, case.student, case.teacher)
    rotated, mixed = (
        run(case.term, case.student, {n: a @ by for n, a in case.teacher.items()})[0] for by in (within, across)
    )
    assert rotated == pytest.approx(value, rel=1e-5)
    assert mixed != pytest.approx(value, rel=1e-2)


def test_with_the_attentions_heads_the_relation_of_values_is_minilms():
    case = CASES["values"]()
    value, _ = run(case.term, case.student, case.teacher)
    expected = 0.0
    for number, length in enumerate(LENGTHS):
        relations = []
        for insides in (case.teacher["values", 4], case.student["values", 2]):
            v = (
                insides[number, :length].reshape(length, HEADS, -1).transpose(1, 0, 2)
            )  # [h, n, d_k], as attention has it
            logits = np.einsum("hid,hjd->hij", v, v) / np.sqrt(v.shape[-1])
            relations.append(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
        expected += (relations[0] * np.log(relations[0] / relations[1])).sum() / HEADS
    assert value == pytest.approx(expected, rel=1e-5)


def test_relations_of_several_kinds_are_their_mean():
    case = CASES["queries, keys and values"]()
    value, _ = run(case.term, case.student, case.teacher)
    alone = []
    for kind in ("queries", "keys", "values"):
        term = Relations(terms.Relations(of=[kind], heads=2), TASK, shapes())
        alone.append(run(term, {(kind, 2): case.student[kind, 2]}, {(kind, 4): case.teacher[kind, 4]})[0])
    assert value == pytest.approx(np.mean(alone), rel=1e-5)


def test_attention_learns_to_leave_the_teachers_window():
    case = CASES["attention, teacher with a window"]()
    _, gradient = run(case.term, case.student, case.teacher)
    outside = case.teacher["scores", 2] == -np.inf
    seen = ~padding("scores", outside, as_batch(LENGTHS))
    assert (gradient["scores", 1][outside & seen] > 0).all()  # descent lowers these scores


def test_a_row_with_no_key_in_common_contributes_nothing():
    case = CASES["attention"]()
    one = (0, slice(None), 2)  # the third query of the first example
    s, t = ({name: array.copy() for name, array in x.items()} for x in (case.student, case.teacher))
    value, _ = run(case.term, s, t)
    for array in s.values():
        array[one][:, :3] = -np.inf
    for array in t.values():
        array[one][:, 3:] = -np.inf
    less, gradient = run(case.term, s, t)
    assert 0 < less < value
    for array in gradient.values():
        assert (array[one] == 0).all()
        assert np.isfinite(array).all()


@pytest.mark.parametrize("part", ["normalised", "mean", "variance"])
def test_a_feature_maps_parts_see_only_their_own_difference(part):
    weights = dict.fromkeys(("normalised", "mean", "variance"), 0.0) | {part: 2.0}
    term = FeatureMap(terms.FeatureMap(**weights, layers={-1: -1}), TASK, shapes(teacher=NARROW))
    teacher = states(("hidden", 4), width=NARROW, seed=2)
    t = teacher["hidden", 4]
    mean = t.mean(-1, keepdims=True)
    values = {
        "mean": run(term, {("hidden", 2): t + 1}, teacher)[0],
        "variance": run(term, {("hidden", 2): mean + 2 * (t - mean)}, teacher)[0],
        "normalised": run(term, {("hidden", 2): mean - (t - mean)}, teacher)[0],
    }
    assert values.pop(part) > 1
    np.testing.assert_allclose(list(values.values()), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "section", "combine"),
    [
        ("mse", terms.Hidden(), np.sum),
        ("cosine", terms.Hidden(form="cosine"), np.mean),
        ("cls", terms.Hidden(form="cls"), np.mean),
        ("scores", terms.Attention(), np.sum),
        ("attention", terms.Attention(form="kl"), np.mean),
        ("feature map", terms.FeatureMap(), np.mean),
    ],
)
def test_layers_are_summed_in_tinyberts_terms_and_averaged_in_the_others(name, section, combine):
    case, alone = CASES[name](), []
    for mine, its in ((1, 2), (2, 4)):
        section.layers = {mine: its}
        term = type(case.term)(section, TASK, shapes(teacher=NARROW))
        s = {name: array for name, array in case.student.items() if name[1] == mine}
        t = {name: array for name, array in case.teacher.items() if name[1] == its}
        alone.append(run(term, s, t)[0])
    assert run(case.term, case.student, case.teacher)[0] == pytest.approx(combine(alone), rel=1e-5)


def test_one_projection_serves_all_layers_and_is_there_only_where_widths_differ():
    for width, number in ((NARROW, 0), (WIDE, 1)):
        for term in (of_hidden("mse", mse_formula, width).term, of_embedding(width).term):
            assert isinstance(term, nn.Module)
            assert len(list(term.parameters())) == number


# --- layer maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "expected"),
    [
        ("uniform", 6, 12, [2, 4, 6, 8, 10, 12]),
        ("uniform", 4, 12, [3, 6, 9, 12]),
        ("uniform", 12, 12, list(range(1, 13))),
        ("uniform", 5, 12, [2, 5, 7, 10, 12]),  # 2.4, 4.8, 7.2, 9.6, 12
        ("uniform", 4, 6, [2, 3, 5, 6]),  # 1.5 and 4.5 are rounded up
        ("uniform", 1, 12, [12]),
        ("skip", 6, 12, [2, 4, 6, 8, 10]),
        ("skip", 3, 12, [4, 8]),
        ("skip", 6, 24, [4, 8, 12, 16, 20]),
        ("last", 6, 12, [7, 8, 9, 10, 11]),
        ("last", 3, 12, [10, 11]),
        ("last", 2, 2, [1]),
    ],
)
def test_named_maps(layers, student, teacher, expected):
    assert resolve(layers, student, teacher) == dict(enumerate(expected, 1))


def test_named_maps_rise_and_end_at_the_last_layers():
    for teacher in range(1, 30):
        for student in range(1, teacher + 1):
            uniform = resolve("uniform", student, teacher)
            assert list(uniform) == list(range(1, student + 1))
            numbers = list(uniform.values())
            assert numbers == sorted(set(numbers))
            assert (numbers[0] >= 1, numbers[-1]) == (True, teacher)
            if student > 1:
                assert resolve("skip", student, teacher) == {m: n for m, n in uniform.items() if m < student}


def test_explicit_maps_count_from_both_ends():
    assert resolve({-1: -1}, 6, 12) == {6: 12}
    assert resolve({-1: -2, 1: 2, 0: 0}, 6, 24) == {6: 23, 1: 2, 0: 0}
    assert resolve({6: 20}, 6, 24) == {6: 20}
    assert resolve({1: 4, 2: 4}, 2, 4) == {1: 4, 2: 4}
    assert resolve({12: 1}, 12, 6) == {12: 1}


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "says"),
    [
        ("uniform", 8, 6, "the student has 8 layers and the teacher 6; give the student at most 6"),
        ("last", 8, 6, "layers=last needs a teacher as deep"),
        ("skip", 1, 12, "the student has 1 layer to the teacher's 12; use layers=uniform"),
        ("last", 1, 12, "layers=last leaves out the last layer"),
        ({}, 6, 12, "maps none of the student's 6 layers to one of the teacher's 12"),
        (
            {7: 12},
            6,
            12,
            "7: 12, but the student has 6 layers and the teacher 12; use 1 to 6, or -6 to -1, for the stu",
        ),
        ({6: 13}, 6, 12, "use 1 to 12, or -12 to -1, for the teacher"),
        ({-7: 1}, 6, 12, "for the student"),
        ({1: -13}, 6, 12, "for the teacher"),
        ({0: 3}, 6, 12, "goes with 0 alone; use 1 to 6 for the student, 1 to 12 for the teacher"),
        ({3: 0}, 6, 12, "goes with 0 alone"),
        ({6: 11, -1: 12}, 6, 12, "-1: 12, but layer 6 of the student's 6 already has another"),
    ],
)
def test_maps_that_cannot_be_are_refused(layers, student, teacher, says):
    with pytest.raises(InputError, match=says):
        resolve(layers, student, teacher)


@pytest.mark.parametrize(
    "given",
    [
        {"attention": {"layers": {0: 0}}},
        {"relations": {"layers": {0: 0}}},
        {"hidden": {"form": "cls", "layers": {0: 0}}},
    ],
)
def test_what_the_first_layer_reads_has_no_attention_and_no_stored_features(given):
    with pytest.raises(InputError, match="there is no layer 0 here"):
        build_terms(terms.Objectives(**given), TASK, shapes())


def test_hidden_may_include_what_the_first_layer_reads():
    (term,) = build_terms(terms.Objectives(hidden={"layers": {0: 0, -1: -1}}), TASK, shapes())
    assert (term.student.hidden, term.teacher.hidden) == ({0, 2}, {0, 4})


# --- built from the recipe -------------------------------------------------------------------------------------------


def test_terms_say_which_signals_they_read():
    given = {
        "relations": {"of": ["queries", "values"]},
        "attention": 1,
        "hidden": {"form": "cls", "layers": "skip"},
        "embedding": 1,
        "soft_targets": 1,
        "masked_lm": 1,
        "hard_labels": 0.5,
    }
    built = {term.name: term for term in build_terms(terms.Objectives(**given), TASK, shapes())}
    assert list(built) == [name for name in TERMS if name in given]
    last, its_last = frozenset({2}), frozenset({4})
    read = {name: (term.student, term.teacher) for name, term in built.items()}
    assert read == {
        "hard_labels": (Wanted(logits=True), Wanted()),
        "soft_targets": (Wanted(logits=True), Wanted(logits=True)),
        "masked_lm": (Wanted(logits=True), Wanted()),
        "embedding": (Wanted(hidden=frozenset({0})), Wanted(hidden=frozenset({0}))),
        "hidden": (Wanted(hidden=frozenset({1})), Wanted(features=frozenset({2}))),
        "attention": (Wanted(scores=frozenset({1, 2})), Wanted(scores=frozenset({2, 4}))),
        "relations": (Wanted(queries=last, values=last), Wanted(queries=its_last, values=its_last)),
    }
    assert not (built["hidden"].teacher | built["soft_targets"].teacher).by_token  # so a store can serve both
    assert built["hard_labels"].weight == 0.5


def test_a_phase_looks_at_one_layer():
    everything = terms.Objectives(hidden={"layers": "uniform"}, attention={"layers": {-1: 3, 1: 1}}, embedding=1)
    built = {term.name: term for term in build_terms(everything, TASK, shapes(), only=2)}
    assert (built["hidden"].student.hidden, built["hidden"].teacher.hidden) == ({2}, {4})
    assert (built["attention"].student.scores, built["attention"].teacher.scores) == ({2}, {3})
    assert built["embedding"].student.hidden == {0}
    assert everything.hidden.layers == "uniform"
    with pytest.raises(
        InputError, match="hidden has a teacher layer for the student's layers 1 but none for layer 2 of 2"
    ):
        build_terms(terms.Objectives(hidden={"layers": "skip"}), TASK, shapes(), only=2)


@pytest.mark.parametrize("name", ["embedding", "hidden", "attention", "relations", "feature_map"])
def test_terms_on_layers_need_shapes_and_a_teacher(name):
    objectives = terms.Objectives(**{name: 1})
    with pytest.raises(ValueError, match=f"{name} needs the shapes"):
        build_terms(objectives, TASK)
    (term,) = build_terms(objectives, TASK, shapes(NARROW, NARROW))
    insides = states(("hidden", 0), width=NARROW, seed=1)
    with pytest.raises(ValueError, match=f"{name} needs the teacher's signals"):
        term.total(as_signals(insides), None, as_batch(LENGTHS))


def test_attention_refuses_other_numbers_of_heads():
    with pytest.raises(
        InputError, match=r"student has 4 heads and the teacher 3; give student.shape num_attention_heads=3"
    ):
        build_terms(terms.Objectives(attention=1), TASK, shapes(heads=4))


def test_feature_maps_refuse_other_widths():
    with pytest.raises(
        InputError, match=r"student's are 6 wide and the teacher's 12; give student.shape hidden_size=12"
    ):
        build_terms(terms.Objectives(feature_map=1), TASK, shapes())


@pytest.mark.parametrize("heads", [4, 5])
def test_relations_refuse_heads_that_do_not_divide_a_width(heads):
    with pytest.raises(
        InputError, match=rf"into {heads} heads, but .* 6 wide .* 12; give relations.heads a divisor of 6"
    ):
        of_relations(("values",), heads)
