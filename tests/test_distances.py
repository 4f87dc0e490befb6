"""Distances between distributions against float64 formulas, over all words and over the few that were kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.errors import InputError
from limbeck.knowledge.formats import Format, pack, unpack
from limbeck.objectives import SoftTargets
from limbeck.objectives.distances import FORMS, distance
from limbeck.recipe import terms
from limbeck.signals import Signals, SparseWords
from limbeck.tasks import Task

N, V = 7, 40
TEMPERATURES = (1.0, 2.5)
BETAS = (0.1, 0.5, 0.9)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - np.log(q)), 0).sum(-1)


def of_distributions(p: np.ndarray, q: np.ndarray, form: str, temperature: float, beta: float) -> np.ndarray:
    if form == "total-variation":
        return temperature * np.abs(p - q).sum(-1) / 2
    m = beta * p + (1 - beta) * q
    value = {
        "kl": lambda: kl(p, q),
        "reverse-kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, m) + (1 - beta) * kl(q, m),
        "cross-entropy": lambda: -(p * np.log(q)).sum(-1),
    }[form]()
    return temperature**2 * value


def formula(s: np.ndarray, t: np.ndarray, form: str, temperature: float, beta: float = 0.5) -> np.ndarray:
    return of_distributions(softmax(t / temperature), softmax(s / temperature), form, temperature, beta)


def gradient(function, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    found = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        found[index] = (function(up).sum() - function(down).sum()) / (2 * step)
    return found


@pytest.fixture(scope="module")
def logits() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(0, 2, (N, V)), random.normal(0, 2, (N, V))


def ours(s: np.ndarray, t, form: str, temperature: float, beta: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    mine = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    its = torch.tensor(t, dtype=torch.float32) if isinstance(t, np.ndarray) else t
    found = distance(mine, its, form, temperature, beta)
    found.sum().backward()
    return found.detach().numpy(), mine.grad.numpy()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_are_the_formulas(logits, form, temperature):
    s, t = logits
    for beta in BETAS if form == "jsd" else (0.5,):
        value, slope = ours(s, t, form, temperature, beta)
        np.testing.assert_allclose(value, formula(s, t, form, temperature, beta), rtol=1e-5, atol=1e-6)
        expected = gradient(lambda x, b=beta: formula(x, t, form, temperature, b), s)
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["kl", "reverse-kl", "jsd"])
def test_the_gradients_scale_hardly_depends_on_a_high_temperature(logits, form):
    s, t = logits
    sizes = [np.linalg.norm(ours(s, t, form, temperature)[1]) for temperature in (50.0, 200.0)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)  # without T^2 it would be sixteen times smaller


def test_forward_and_reverse_differ_where_supports_do_and_agree_at_a_high_temperature(logits):
    s, t = logits
    cold = [ours(s, t, form, 1.0)[0].sum() for form in ("kl", "reverse-kl")]
    hot = [ours(s, t, form, 100.0)[0].sum() for form in ("kl", "reverse-kl")]
    assert abs(cold[0] / cold[1] - 1) > 0.05
    assert hot[0] == pytest.approx(hot[1], rel=0.02)


def test_half_way_the_jsd_is_symmetric_and_at_most_log_two(logits):
    s, t = logits
    there, back = ours(s, t, "jsd", 1.0)[0], ours(t, s, "jsd", 1.0)[0]
    np.testing.assert_allclose(there, back, rtol=1e-5)
    far = ours(np.eye(N, V) * 100, np.eye(N, V)[::-1].copy() * 100, "jsd", 1.0)[0]
    assert far.max() <= np.log(2) + 1e-6
    assert far.max() > 0.99 * np.log(2)


def test_near_its_ends_the_jsd_is_the_forward_and_the_reverse_kl(logits):
    s, t = logits
    small = 1e-4
    np.testing.assert_allclose(formula(s, t, "jsd", 1, small), small * formula(s, t, "kl", 1), rtol=2e-2)
    np.testing.assert_allclose(ours(s, t, "jsd", 1.0, small)[0], small * formula(s, t, "kl", 1), rtol=3e-2)
    np.testing.assert_allclose(ours(s, t, "jsd", 1.0, 1 - small)[0], small * formula(s, t, "reverse-kl", 1), rtol=3e-2)


@pytest.mark.parametrize("form", FORMS)
def test_padding_of_the_vocabulary_has_no_probability(logits, form):
    s, t = logits
    wide = np.concatenate([s, np.full((N, 3), 4.0)], 1)
    value, slope = ours(wide, t, form, 1.0)
    if form in ("kl", "cross-entropy"):
        p = np.concatenate([softmax(t), np.zeros((N, 3))], 1)
        np.testing.assert_allclose(value, of_distributions(p, softmax(wide), form, 1.0, 0.5), rtol=1e-5)
        assert (slope[:, V:] > 0).all()  # the student is told to leave them
    else:
        np.testing.assert_allclose(value, formula(s, t, form, 1.0), rtol=1e-5)
        assert (slope[:, V:] == 0).all()


def test_a_teachers_padded_logits_are_never_read(logits):
    s, t = logits
    task = Task("causal-lm", tuple(map(str, range(V))))
    term = SoftTargets(terms.SoftTargets(temperature=1.0), task)
    padded = np.concatenate([t, np.full((N, 5), 50.0)], 1)
    batch = {"positions": torch.arange(N), "targets": torch.arange(N)}
    losses = [
        term.total(Signals(logits=torch.tensor(s).float()), Signals(logits=torch.tensor(x).float()), batch).item()
        for x in (t, padded)
    ]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(formula(s, t, "kl", 1.0).sum(), rel=1e-5)


def test_forms_about_one_distribution_are_refused_for_several_labels():
    with pytest.raises(InputError, match="form=jsd is about one distribution"):
        SoftTargets(terms.SoftTargets(form="jsd"), Task("multi-label", ("a", "b")))


# --- sparse words ----------------------------------------------------------------------------------------------------


def kept(t: np.ndarray, kind: str, head: int, sampled: int, temperature: float = 1.0, bits: int = 16, seed: int = 0):
    form = Format(kind, head, sampled, bits, t.shape[1], temperature)
    uniform = torch.rand(len(t), sampled, generator=torch.Generator().manual_seed(seed))
    packed = pack(torch.tensor(t, dtype=torch.float32), form, uniform)
    assert packed.shape == (len(t), form.width)
    assert packed.dtype == torch.uint8
    return unpack(packed, form)


def test_dense_words_are_all_there(logits):
    _, t = logits
    np.testing.assert_allclose(kept(t, "dense", 0, 0).float().numpy(), np.log(softmax(t)), atol=5e-3)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_head_holds_the_likeliest_words_and_the_entropy_is_the_teachers(logits, temperature, bits):
    _, t = logits
    words = kept(t, "head_and_tail", 5, 4, temperature, bits)
    p = softmax(t / temperature)
    best = np.argsort(-p, 1)[:, :5]
    assert [set(row) for row in words.ids[:, :5].tolist()] == [set(row) for row in best.tolist()]
    exact = np.log(np.take_along_axis(p, words.ids[:, :5].numpy(), 1))
    np.testing.assert_allclose(words.logs.numpy(), exact, atol={8: 1 / 32, 16: 1 / 4096}[bits] + 1e-6)
    np.testing.assert_allclose(words.entropy.numpy(), -(p * np.log(p)).sum(-1), rtol=2e-3)
    rest = [set(row[5:]) & set(row[:5]) for row in words.ids.tolist()]
    assert rest == [set()] * N  # the drawn ones are of the tail


@pytest.mark.parametrize(("vocabulary", "size"), [(200, 1), (256, 1), (257, 2), (65536, 2), (65537, 3), (151936, 3)])
def test_ids_take_as_few_whole_bytes_as_fit(vocabulary, size):
    form = Format("head_and_tail", 3, 2, 16, vocabulary)
    assert form.id_bytes == size
    t = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    t[:, -1] = 30.0  # the largest id must survive
    words = unpack(pack(t, form, torch.rand(4, 2)), form)
    assert (words.ids[:, 0] == vocabulary - 1).all()
    assert words.ids.max() < vocabulary


@pytest.mark.parametrize(("kind", "head", "sampled"), [("sampled", 0, 3), ("head_and_tail", 4, 3)])
def test_what_is_drawn_stands_for_the_tail_on_average(logits, kind, head, sampled):
    _, t = logits
    row = t[:1]
    draws = [kept(row.repeat(500, 0), kind, head, sampled, seed=seed) for seed in range(40)]
    total = np.zeros(V)
    for words in draws:
        np.add.at(total, words.ids[:, :head].numpy(), words.logs.exp().numpy())
        np.add.at(total, words.ids[:, head:].numpy(), (words.tail[:, None] / sampled).expand(-1, sampled).numpy())
    np.testing.assert_allclose(total / 20000, softmax(row)[0], atol=4e-3)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("form", ["kl", "cross-entropy"])
@pytest.mark.parametrize(("kind", "head", "sampled"), [("sampled", 0, 2), ("head_and_tail", 3, 2)])
def test_value_and_gradient_are_right_on_average_over_all_draws(form, temperature, kind, head, sampled):
    """On a fine grid of each part's draw, all weighed alike: an expectation, not a sample; the parts simply add up."""
    random = np.random.default_rng(1)
    s, t = random.normal(0, 1.5, (1, 9)), random.normal(0, 1.5, (1, 9))
    grid = (np.arange(4000) + 0.5) / 4000
    uniform = torch.tensor(np.stack([grid] * sampled, 1), dtype=torch.float32)
    layout = Format(kind, head, sampled, 16, 9, temperature)
    many = len(uniform)
    words = unpack(pack(torch.tensor(t, dtype=torch.float32).expand(many, -1), layout, uniform), layout)
    value, slope = ours(s.repeat(many, 0), words, form, temperature)
    assert value.mean() == pytest.approx(formula(s, t, form, temperature)[0], rel=2e-3, abs=1e-3 * temperature**2)
    expected = gradient(lambda x: formula(x, t, form, temperature), s)
    np.testing.assert_allclose(slope.mean(0), expected[0], atol=2e-3)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("form", FORMS)
def test_over_the_kept_words_and_one_bucket_it_is_the_formula_of_their_masses(logits, form, temperature):
    s, t = logits
    words = kept(t, "top_k", 6, 0, temperature)
    ids = words.ids.numpy()

    def bucketed(x: np.ndarray) -> np.ndarray:
        p = softmax(x / temperature)
        head = np.take_along_axis(p, ids, 1)
        return np.concatenate([head, 1 - head.sum(-1, keepdims=True)], 1)

    def expected(x: np.ndarray) -> np.ndarray:
        return of_distributions(bucketed(t), bucketed(x), form, temperature, 0.5)

    value, slope = ours(s, words, form, temperature)
    np.testing.assert_allclose(value, expected(s), rtol=5e-3, atol=2e-3)
    np.testing.assert_allclose(slope, gradient(expected, s), rtol=2e-2, atol=2e-3)
    if form != "cross-entropy":
        assert (value <= formula(s, t, form, temperature) + 2e-3).all()  # coarser is never farther


def test_the_top_is_not_renormalised(logits):
    """A teacher that is renormalised over its top would tell the student to leave the tail."""
    _, t = logits
    words = kept(t, "top_k", 3, 0)
    _, slope = ours(np.log(softmax(t)), words, "kl", 1.0)
    assert np.abs(slope).max() < 1e-3  # a student that is the teacher has nothing to learn
    _, drawn = ours(np.log(softmax(t)), kept(t, "head_and_tail", V - 1, 1), "kl", 1.0)
    assert np.abs(drawn).max() < 1e-3


def test_words_kept_at_another_temperature_or_without_a_head_are_refused(logits):
    s, t = logits
    with pytest.raises(ValueError, match=r"kept at temperature 1, the loss is at 2"):
        distance(torch.tensor(s).float(), kept(t, "top_k", 3, 0), "kl", 2.0)
    with pytest.raises(ValueError, match="reverse-kl needs tokens that are kept for certain"):
        distance(torch.tensor(s).float(), kept(t, "sampled", 0, 4), "reverse-kl", 1.0)


def test_a_teacher_that_is_sure_leaves_no_tail():
    t = np.zeros((2, V))
    t[:, 7] = 200.0
    for kind, head, sampled in (("head_and_tail", 4, 3), ("sampled", 0, 3), ("top_k", 4, 0)):
        words: SparseWords = kept(t, kind, head, sampled)
        value, slope = ours(np.zeros((2, V)), words, "kl", 1.0)
        np.testing.assert_allclose(value, np.log(V), rtol=1e-3)
        assert np.isfinite(slope).all()
