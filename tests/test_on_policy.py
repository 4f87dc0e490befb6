"""The student's own answers: drawn as it says, the same in a resumed run, and the gradient that MiniLLM means."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import make_causal, make_chat_tokenizer
from datasets import Dataset
from torch import nn
from transformers import GenerationConfig

from limbeck.anatomy import VocabularyHead
from limbeck.errors import InputError
from limbeck.objectives import NextToken, PolicyGradient, SoftTargets
from limbeck.recipe import terms
from limbeck.recipe.schema import OnPolicy
from limbeck.signals import Signals
from limbeck.tasks import Task
from limbeck.tasks.causal_lm import CausalBatches
from limbeck.training.on_policy import OwnAnswers, advantages

TOKENIZER = make_chat_tokenizer()
SECTION = OnPolicy(share=0.5, max_new_tokens=12)


def a_batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    sizes = [(20, 5), (9, 4), (31, 30), (14, 1)]
    examples = [
        {"input_ids": torch.randint(3, 300, (n,), generator=random).tolist(), "first": f, "row": i}
        for i, (n, f) in enumerate(sizes)
    ]
    return CausalBatches(TOKENIZER)(examples)


@pytest.fixture(scope="module")
def student():
    return make_causal(TOKENIZER)


def test_the_share_of_updates_is_the_recipes_and_follows_from_the_seed():
    own = OwnAnswers(SECTION, TOKENIZER, 0, None)
    asked = [own.wanted(update) for update in range(2000)]
    assert 0.45 < sum(asked) / 2000 < 0.55
    assert asked == [OwnAnswers(SECTION, TOKENIZER, 0, None).wanted(update) for update in range(2000)]
    assert all(OwnAnswers(OnPolicy(share=1), TOKENIZER, 0, None).wanted(update) for update in range(50))


def test_answers_go_on_from_the_prompts_and_end_where_the_student_ends(student):
    batch = a_batch()
    made = OwnAnswers(SECTION, TOKENIZER, 0, None)(student, batch, 3, 0)
    width, new_width = batch["input_ids"].shape[1], made["input_ids"].shape[1]
    firsts = [5, 4, 30, 7]  # of plain text, all of which is to be predicted, the first half is the prompt
    for row, first in enumerate(firsts):
        assert made["input_ids"][row, :first].tolist() == batch["input_ids"][row, :first].tolist()
        mine = made["positions"] // new_width == row
        said = made["targets"][mine]
        assert 1 <= len(said) <= 12
        assert (made["positions"][mine] % new_width).min() == first - 1
        assert (said[:-1] != TOKENIZER.eos_token_id).all()
        assert len(said) == 12 or said[-1] == TOKENIZER.eos_token_id
    assert width == 31
    assert "own" in made


def test_answers_end_at_every_token_that_ends_one(student):
    batch = a_batch()
    said = {}
    for ends in ((), range(3, 400, 3)):
        made = OwnAnswers(OnPolicy(share=1, max_new_tokens=30), TOKENIZER, 0, None, ends)(student, batch, 0, 0)
        rows = made["positions"] // made["input_ids"].shape[1]
        said[len(ends)] = [made["targets"][rows == row].tolist() for row in range(4)]
    for before, answer in zip(said[0], said[len(range(3, 400, 3))], strict=True):
        end = next(place for place, token in enumerate(before) if token % 3 == 0 or token == TOKENIZER.eos_token_id)
        assert answer == before[: end + 1]


def test_the_same_update_gives_the_same_answers_whatever_was_drawn_before(student):
    own, batch = OwnAnswers(SECTION, TOKENIZER, 0, None), a_batch()
    first = own(student, batch, 3, 0)["input_ids"]
    torch.rand(17)
    state = torch.get_rng_state()
    again = own(student, batch, 3, 0)["input_ids"]
    assert torch.equal(torch.get_rng_state(), state)  # dropout goes on as if nothing had been drawn
    assert torch.equal(first, again)
    assert not torch.equal(first, own(student, batch, 4, 0)["input_ids"])
    assert not torch.equal(first, own(student, batch, 3, 1)["input_ids"])


def test_no_gradient_reaches_the_sampling_and_training_mode_is_kept(student):
    student.train()
    made = OwnAnswers(SECTION, TOKENIZER, 0, None)(student, a_batch(), 0, 0)
    assert student.training
    assert all(not tensor.requires_grad for tensor in made.values())
    student.eval()


def test_the_frequencies_of_answers_are_the_students_probabilities(student):
    one = CausalBatches(TOKENIZER)([{"input_ids": [7, 8, 9, 10], "first": 3, "row": 0}] * 400)
    made = OwnAnswers(OnPolicy(share=1, max_new_tokens=1, temperature=0.7), TOKENIZER, 0, None)(student, one, 0, 0)
    with torch.no_grad():
        p = (student(input_ids=torch.tensor([[7, 8, 9]])).logits[0, -1] / 0.7).softmax(-1)
    counts = torch.bincount(made["targets"], minlength=len(p)) / 400
    best = p.topk(5).indices
    torch.testing.assert_close(counts[best], p[best], atol=0.08, rtol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_rows_that_pad_the_vocabulary_and_the_models_own_settings_are_left_aside(shared):
    """Of rows that no token has, the student's and the teacher's, however likely they are."""
    likely = []
    for seed in (0, 5):
        model = make_causal(TOKENIZER, seed=seed)
        model.resize_token_embeddings(len(TOKENIZER) + 8)
        with torch.no_grad():
            model.get_output_embeddings().weight[-8:] = 50 * model.get_output_embeddings().weight[0]
        model.generation_config = GenerationConfig(min_p=0.9, no_repeat_ngram_size=1, suppress_tokens=[7])
        likely.append(model)
    own = likely[0].generation_config
    section = OnPolicy(share=1, max_new_tokens=12, teacher_share=0.5 if shared else 0)
    made = OwnAnswers(section, TOKENIZER, 0, likely[1] if shared else None)(likely[0], a_batch(), 0, 0)
    assert made["targets"].max() < len(TOKENIZER)
    assert likely[0].generation_config is own
    plain = make_causal(TOKENIZER)
    free = OwnAnswers(section, TOKENIZER, 0, None)(plain, a_batch(), 0, 0)
    plain.generation_config = own
    assert torch.equal(OwnAnswers(section, TOKENIZER, 0, None)(plain, a_batch(), 0, 0)["targets"], free["targets"])
    if shared:
        assert made["importance"].isfinite().all()


def test_prompts_that_leave_too_little_room_are_refused():
    examples = Dataset.from_dict({"first": [1, 20, 9], "length": [40, 30, 30]})
    own = OwnAnswers(SECTION, TOKENIZER, 0, None)
    own.check(examples, "distill", 32)
    own.check(examples, "distill", None)
    with pytest.raises(
        InputError, match=r"stage 'distill': the prompt of example 1 has 20 tokens, which with .*=12 is"
    ):
        own.check(examples, "distill", 31)


def test_a_mixture_draws_from_both_and_says_how_likely_each_was(student):
    teacher = make_causal(TOKENIZER, seed=5)
    section = OnPolicy(share=1, max_new_tokens=6, teacher_share=0.4)
    batch = a_batch()
    made = OwnAnswers(section, TOKENIZER, 0, teacher)(student, batch, 0, 0)
    with torch.no_grad():
        inputs = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
        q, p = (
            model(**inputs)
            .logits.flatten(0, 1)[made["positions"]]
            .softmax(-1)
            .gather(-1, made["targets"][:, None])[:, 0]
            for model in (student, teacher)
        )
    torch.testing.assert_close(made["importance"], q / (0.4 * p + 0.6 * q), rtol=1e-3, atol=1e-4)


def test_true_tokens_are_not_asked_of_the_students_own_answers(student):
    term = NextToken(terms.NextToken(), Task("causal-lm", tuple(map(str, range(len(TOKENIZER))))))
    made = OwnAnswers(SECTION, TOKENIZER, 0, None)(student, a_batch(), 0, 0)
    logits = torch.randn(len(made["targets"]), len(TOKENIZER), requires_grad=True)
    total = term.total(Signals(logits=logits), None, made)
    total.backward()
    assert term.count(made) == 0
    assert total == 0
    assert (logits.grad == 0).all()


class Identity(VocabularyHead):
    """A head whose states are the logits."""

    def __init__(self, size: int) -> None:
        self.linear = nn.Linear(size, size, bias=False)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return states


class Told:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def words(self, some: slice) -> torch.Tensor:
        return self.logits[some]


def test_the_estimators_mean_is_the_gradient_of_the_divergence_of_whole_answers():
    """All answers of four tokens over two words, each weighed by its probability: an expectation, not a sample."""
    length, size = 4, 2
    generator = torch.Generator().manual_seed(0)
    # A distribution for each step and each of its possible pasts.
    shape = (length, size ** (length - 1), size)
    mine, its = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    mine.requires_grad_()
    answers = list(itertools.product(range(size), repeat=length))

    def past(answer: tuple[int, ...], step: int) -> int:
        return sum(token * size**place for place, token in enumerate(answer[:step]))

    def rows(table: torch.Tensor, answer: tuple[int, ...]) -> torch.Tensor:
        return torch.stack([table[step, past(answer, step)] for step in range(length)])

    def log_probability(table: torch.Tensor, answer: tuple[int, ...]) -> torch.Tensor:
        logs = rows(table, answer).log_softmax(-1)
        return logs[torch.arange(length), torch.tensor(answer)].sum()

    q = torch.stack([log_probability(mine, answer) for answer in answers])
    p = torch.stack([log_probability(its, answer) for answer in answers])
    (exact,) = torch.autograd.grad((q.exp() * (q - p)).sum(), mine)

    task = Task("causal-lm", ("a", "b"))
    loss = [
        SoftTargets(terms.SoftTargets(temperature=1.0, form="reverse-kl"), task),
        PolicyGradient(terms.PolicyGradient(length_normalised=False), task),
    ]
    mean = torch.zeros_like(mine)
    for answer, log in zip(answers, q.tolist(), strict=True):
        batch = {
            "targets": torch.tensor(answer),
            "positions": torch.arange(length),
            "input_ids": torch.zeros(1, length + 1, dtype=torch.long),
            "own": torch.ones(()),
        }
        s, t = rows(mine, answer), rows(its, answer)
        found = advantages(batch, s.detach().float(), Identity(size), Told(t.float()), size, normalised=False)
        total = sum(term.total(Signals(logits=s), Signals(logits=t), batch | {"advantages": found}) for term in loss)
        (gradient,) = torch.autograd.grad(total, mine)
        mean += torch.tensor(log).exp() * gradient
    torch.testing.assert_close(mean, exact, rtol=1e-4, atol=1e-5)


def test_rewards_are_the_mean_of_what_follows_in_the_same_answer():
    random = torch.Generator().manual_seed(0)
    s, t = (torch.randn(5, 7, generator=random) for _ in range(2))
    batch = {
        "targets": torch.tensor([1, 2, 3, 4, 5]),
        "positions": torch.tensor([2, 3, 4, 10, 11]),  # two answers in rows eight wide
        "input_ids": torch.zeros(2, 8, dtype=torch.long),
    }
    r = (t.log_softmax(-1) - s.log_softmax(-1)).gather(-1, batch["targets"][:, None])[:, 0]
    for normalised, expected in (
        (True, [(r[1] + r[2]) / 2, r[2], 0, r[4], 0]),
        (False, [r[1] + r[2], r[2], 0, r[4], 0]),
    ):
        found = advantages(batch, s, Identity(7), Told(t), 7, normalised)
        assert found.tolist() == pytest.approx([float(each) for each in expected], abs=1e-5)


def test_the_reverse_divergence_picks_one_mode_of_two():
    """A student that can have one mode only chooses; the forward one lies between them (Gu et al. 2024, figure 2)."""
    places = torch.arange(21.0)
    teacher = torch.logsumexp(torch.stack([-((places - 4) ** 2) / 2, -((places - 16) ** 2) / 2]), 0)[None]
    means = {}
    for form in ("kl", "reverse-kl"):
        centre = torch.tensor(9.0, requires_grad=True)
        spread = torch.tensor(1.0, requires_grad=True)
        optimizer = torch.optim.Adam([centre, spread], 0.1)
        term = SoftTargets(terms.SoftTargets(temperature=1.0, form=form), Task("causal-lm", tuple(map(str, range(21)))))
        batch = {"targets": torch.zeros(1, dtype=torch.long), "positions": torch.zeros(1, dtype=torch.long)}
        for _ in range(400):
            logits = -((places - centre) ** 2)[None] / (2 * spread**2 + 0.1)
            loss = term.total(Signals(logits=logits), Signals(logits=teacher), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        means[form] = centre.item()
    assert abs(means["kl"] - 10) < 1
    assert min(abs(means["reverse-kl"] - 4), abs(means["reverse-kl"] - 16)) < 1
