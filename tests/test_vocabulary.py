"""The head in chunks: the same loss and gradient as with all logits at once, and nothing as large in memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import make_causal, make_chat_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from limbeck.anatomy import StatesAt, VocabularyHead, check_head
from limbeck.anatomy import vocabulary as heads
from limbeck.errors import InputError
from limbeck.knowledge.formats import Format, pack, unpack
from limbeck.objectives import NextToken, SoftTargets, vocabulary
from limbeck.objectives.known_gradient import with_gradients
from limbeck.recipe import terms
from limbeck.signals import Signals
from limbeck.tasks import Task
from limbeck.tasks.causal_lm import CausalBatches
from limbeck.training import DistillationTrainer

TOKENIZER = make_chat_tokenizer()
TASK = Task("causal-lm", tuple(map(str, range(len(TOKENIZER)))))


class Live:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def words(self, some: slice) -> torch.Tensor:
        return self.logits[some]


def a_batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    examples = [
        {"input_ids": torch.randint(3, 300, (n,), generator=random).tolist(), "first": f, "row": i}
        for i, (n, f) in enumerate([(20, 5), (9, 1), (31, 30), (14, 2)])
    ]
    return CausalBatches(TOKENIZER)(examples)


def a_loss(form: str) -> list:
    soft = terms.SoftTargets(weight=0.7, temperature=1.5, form=form)
    return [SoftTargets(soft, TASK), NextToken(terms.NextToken(weight=0.3), TASK)]


def chunked(model, batch, loss, teacher) -> tuple[torch.Tensor, torch.Tensor]:
    stop = StatesAt(model)
    stop.positions = batch["positions"]
    try:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        assert output.logits.shape[1] == 0
        scales = torch.tensor([term.weight / len(batch["targets"]) for term in loss])
        return vocabulary.over_vocabulary(loss, scales, stop.take(), stop.head, teacher, batch)
    finally:
        stop.close()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", ["kl", "reverse-kl", "jsd", "total-variation"])
def test_chunks_give_the_loss_and_gradient_of_all_logits_at_once(kind, tied, form, monkeypatch):
    changes = {"head_dim": 8, "final_logit_softcapping": 5.0} if kind == "gemma2" else {}
    model = make_causal(TOKENIZER, kind, tie_word_embeddings=tied, **changes)
    teacher_model = make_causal(TOKENIZER, kind, seed=1, **changes)
    batch, loss = a_batch(), a_loss(form)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        t = teacher_model(**inputs).logits.flatten(0, 1)[batch["positions"]]
    s = model(**inputs).logits.flatten(0, 1)[batch["positions"]]
    p, q = (t.double() / 1.5).log_softmax(-1), (s.double() / 1.5).log_softmax(-1)
    m = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    soft = {
        "kl": lambda: (p.exp() * (p - q)).sum(),
        "reverse-kl": lambda: (q.exp() * (q - p)).sum(),
        "jsd": lambda: ((p.exp() * (p - m)).sum() + (q.exp() * (q - m)).sum()) / 2,
        "total-variation": lambda: (p.exp() - q.exp()).abs().sum() / 2 / 1.5,
    }[form]() * 1.5**2
    hard = F.cross_entropy(s.double(), batch["targets"], reduction="sum")
    count = len(batch["targets"])
    dense = 0.7 * soft / count + 0.3 * hard / count
    dense.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    for limit in (1, 3 * len(TOKENIZER), 10**9):
        monkeypatch.setattr(heads, "ON_CPU", limit)
        model.zero_grad()
        totals, value = chunked(model, batch, loss, Live(t))
        assert value.item() == pytest.approx(dense.item(), rel=1e-5)
        assert totals.tolist() == pytest.approx([soft.item(), hard.item()], rel=1e-5)
        (2 * value).backward()  # a scaled loss scales the gradient
        for name, parameter in model.named_parameters():
            difference = (parameter.grad / 2 - expected[name]).norm() / expected[name].norm().clamp(min=1e-6)
            assert difference < 1e-5, name


def test_stored_words_give_the_gradient_of_the_same_words_at_once():
    model, batch = make_causal(TOKENIZER), a_batch()
    loss = a_loss("kl")
    t = torch.randn(len(batch["targets"]), len(TOKENIZER), generator=torch.Generator().manual_seed(3)) * 2
    form = Format("head_and_tail", 6, 5, 16, len(TOKENIZER), 1.5)
    words = unpack(pack(t, form, torch.rand(len(t), 5, generator=torch.Generator().manual_seed(4))), form)

    class Kept:
        def words(self, some: slice):
            return words[some]

    gradients = []
    for limit in (10**9, 5 * len(TOKENIZER)):
        heads.ON_CPU, before = limit, heads.ON_CPU
        try:
            model.zero_grad()
            _, value = chunked(model, batch, loss, Kept())
        finally:
            heads.ON_CPU = before
        value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


def test_prompts_and_padding_never_reach_the_head(monkeypatch):
    model, batch = make_causal(TOKENIZER), a_batch()
    head, multiply, called = model.get_output_embeddings(), F.linear, []

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight.shape == head.weight.shape:
            called.append(x.shape[:-1].numel())
        return multiply(x, weight, bias)

    monkeypatch.setattr(F, "linear", counted)
    chunked(model, batch, a_loss("kl"), Live(torch.randn(len(batch["targets"]), len(TOKENIZER))))
    # The model's own call computes nothing; then come the positions before the 15 + 8 + 1 + 12 tokens to be predicted.
    assert called[0] == 0
    assert sum(called) == len(batch["targets"]) == 36


def test_nothing_of_the_size_of_all_logits_is_kept_or_made(monkeypatch):
    wide = make_causal(TOKENIZER, vocab_size=5000)
    batch = CausalBatches(TOKENIZER)([{"input_ids": [5] * 100, "first": 1, "row": i} for i in range(4)])
    monkeypatch.setattr(heads, "ON_CPU", 8 * 5000)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found is not wide.get_output_embeddings().weight:
                largest = max(largest, found.numel())
            return found

    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept = max(kept, tensor.numel())
        return tensor

    loss = [SoftTargets(terms.SoftTargets(), Task("causal-lm", tuple(map(str, range(5000)))))]
    teacher = Live(torch.zeros(396, 5000))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), Watch():
        _, value = chunked(wide, batch, loss, teacher)
    head = wide.get_output_embeddings().weight.numel()
    assert largest <= max(head, 396 * 5000 // 8)  # 396 * 5000 logits are twelve times the head
    assert kept <= head
    value.backward()


def test_without_gradients_only_the_totals_are_computed():
    model, batch = make_causal(TOKENIZER), a_batch()
    t = Live(torch.randn(len(batch["targets"]), len(TOKENIZER), generator=torch.Generator().manual_seed(0)))
    totals, _ = chunked(model, batch, a_loss("kl"), t)
    with torch.no_grad():
        again, value = chunked(model, batch, a_loss("kl"), t)
    assert again.tolist() == pytest.approx(totals.tolist())
    assert not value.requires_grad


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "mistral", "gemma2", "granite", "cohere"])
def test_the_head_on_kept_states_makes_the_models_logits(kind):
    changes = {
        "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
        "granite": {"logits_scaling": 4.0},
        "cohere": {"logit_scale": 0.25},
    }.get(kind, {})
    model = make_causal(TOKENIZER, kind, **changes)
    check_head(model, "it")
    stop = StatesAt(model)
    ids = torch.arange(10, 22)[None]
    expected = model(input_ids=ids).logits[0]
    stop.positions = torch.tensor([1, 4, 11])
    model(input_ids=ids)
    torch.testing.assert_close(stop.head(stop.take()), expected[[1, 4, 11]], rtol=1e-5, atol=1e-5)
    stop.close()


def test_a_head_that_does_more_is_refused():
    model = make_causal(TOKENIZER)
    forward = model.forward

    def odd(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = odd
    with pytest.raises(InputError, match="more to its logits than its head says"):
        check_head(model, "odd")
    with pytest.raises(InputError, match="no linear head"):
        VocabularyHead(model.model)


def test_a_loss_with_known_gradients_is_used_up_by_its_backward_pass():
    at, gradient = torch.ones(3, requires_grad=True), torch.tensor([1.0, 2.0, 3.0])
    loss = with_gradients(torch.tensor(5.0), [at], [gradient])
    (2 * loss).backward(retain_graph=True)
    assert at.grad.tolist() == [2.0, 4.0, 6.0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Waiting(TorchDispatchMode):
    """Notes what would make a GPU's host wait: a tensor's size or value that depends on what was computed.

    What transformers does within the model's body is its own matter.
    """

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.ours = True
        body.register_forward_pre_hook(lambda *_: setattr(self, "ours", False))
        body.register_forward_hook(lambda *_: setattr(self, "ours", True))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        masks = [m for m in args[1] if m is not None] if name.startswith(("aten.index.", "aten.index_put")) else []
        if self.ours and ("nonzero" in name or "local_scalar" in name or any(m.dtype == torch.bool for m in masks)):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["head_and_tail", "dense"])
def test_a_training_step_never_waits_for_the_device(kind, tmp_path):
    model, batch = make_causal(TOKENIZER).train(), a_batch()
    t = torch.randn(len(batch["targets"]), len(TOKENIZER), generator=torch.Generator().manual_seed(3)) * 2
    sizes = (6, 5) if kind == "head_and_tail" else (0, 0)
    form = Format(kind, *sizes, 16, len(TOKENIZER), 1.5)
    kept = pack(t, form, torch.rand(len(t), 5, generator=torch.Generator().manual_seed(4))[:, : sizes[1]])

    class Kept:
        def signals(self, batch):
            return Signals(at_words=self)

        def words(self, some: slice):
            return unpack(kept[some], form)

    stop, loss = StatesAt(model), a_loss("kl")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = DistillationTrainer(
        terms=loss, source=Kept(), words=stop, model=model, args=arguments, data_collator=CausalBatches(TOKENIZER)
    )
    _, counts = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    assert counts.tolist() == [len(t)] * 2
    with Waiting(model.base_model) as waiting:
        value = trainer.compute_loss(model, batch, num_items_in_batch=counts)
        value.backward()
    stop.close()
    trainer.capture.close()
    assert waiting.seen == []
    expected, whole = chunked(model, batch, loss, Kept())
    assert value.item() == pytest.approx(whole.item(), rel=1e-6)
    assert trainer._sums.tolist() == pytest.approx((expected / counts).tolist(), rel=1e-6)
