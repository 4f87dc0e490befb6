"""LayerDrop: which layers run, what the others return, and that the model is as before afterwards."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, LABELS, make_model, make_reviews, make_tokenizer, numbered
from transformers import AutoConfig, DeiTForImageClassification, PreTrainedModel, ViTForImageClassification

from limbeck.anatomy import layer_list
from limbeck.errors import InputError
from limbeck.students import keep_layers
from limbeck.tasks import Task, collate, encode
from limbeck.tasks.text import model_inputs
from limbeck.training.layer_drop import drop_layers

VISION = ("vit", "deit")
EVERY = (*ARCHITECTURES, "mobilebert", "gpt2", *VISION)
NONE_LEFT = 1 - 1e-12


def make(kind: str, dropout: bool = True, seed: int = 0) -> PreTrainedModel:
    """A random classifier of four layers, of text or of images."""
    if kind in VISION:
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
        config = AutoConfig.for_model(kind, image_size=8, patch_size=4, num_labels=2, initializer_range=0.2, **shape)
        model = (ViTForImageClassification if kind == "vit" else DeiTForImageClassification)(config)
    elif kind == "gpt2":
        model = make_model(kind, seed=seed, n_positions=64, bos_token_id=2, eos_token_id=3)
    else:
        more = {"intra_bottleneck_size": 16, "embedding_size": 16} if kind == "mobilebert" else {}
        model = make_model(kind, seed=seed, **more)
    return model.train() if dropout else without_dropout(model)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # some attention keeps its rate as a number
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model.train()


def batch_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    if model.config.model_type in VISION:
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)}
    ids = torch.tensor([[2, 70, 81, 92, 3, 0], [2, 75, 99, 101, 102, 3]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def run(model: PreTrainedModel, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    return model(**batch_of(model), **options)


def ran(model: PreTrainedModel) -> list[bool]:
    """Which layers got a gradient from the last backward pass."""
    layers = [[p.grad for p in layer.parameters() if p.grad is not None] for layer in layer_list(model)[1]]
    return [bool(gradients) for gradients in layers]


@pytest.mark.parametrize("kind", EVERY)
def test_a_probability_of_zero_is_the_baseline_bit_by_bit(kind):
    model = make(kind)
    expected = run(model, 1).logits
    after = torch.get_rng_state()
    with drop_layers(model, 0.0):
        assert torch.equal(run(model, 1).logits, expected)
        assert torch.equal(torch.get_rng_state(), after)  # nothing more was drawn
        assert not any("forward" in vars(layer) for layer in layer_list(model)[1])


@pytest.mark.parametrize("kind", EVERY)
def test_the_layers_that_run_compute_what_the_model_cut_to_them_does(kind):
    model = make(kind, dropout=False)
    path, stack = layer_list(model)
    seen = set()
    with drop_layers(model, 0.5):
        for seed in range(12):
            model.zero_grad()
            out = run(model, seed, output_hidden_states=True)
            out.logits.sum().backward()
            active = [index for index, one in enumerate(ran(model)) if one]
            seen.add(tuple(active))
            assert len(out.hidden_states) == len(stack) + 1
            for index in set(range(len(stack) - 1)) - set(active):  # the last one's may be normed afterwards
                assert torch.equal(out.hidden_states[index + 1], out.hidden_states[index])
            if active and (kind != "modernbert" or active[0] == 0):  # else its layer 0 cannot be left out for good
                cut = without_dropout(keep_layers(model, active))
                torch.testing.assert_close(run(cut, seed).logits, out.logits, atol=1e-5, rtol=1e-5)
    assert len(seen) > 4
    assert any(0 < len(active) < 4 for active in seen)
    assert path


@pytest.mark.parametrize("kind", EVERY)
def test_all_layers_may_be_skipped(kind):
    model = make(kind)
    with drop_layers(model, NONE_LEFT):
        out = run(model, 0)
        out.logits.sum().backward()
    assert ran(model) == [False] * 4
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.base_model.parameters())  # embeddings


@pytest.mark.parametrize("kind", EVERY)
def test_evaluation_uses_every_layer_and_draws_nothing(kind):
    model = make(kind).eval()
    expected = run(model, 0).logits
    with drop_layers(model, 0.9):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        for _ in range(3):
            assert torch.equal(model(**batch_of(model)).logits, expected)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", EVERY)
def test_the_model_is_as_before_within_and_after(kind):
    model = make(kind)
    before = copy.deepcopy(model.state_dict())
    own = [set(vars(layer)) for layer in layer_list(model)[1]]
    with drop_layers(model, 0.5):
        run(model, 0).logits.sum().backward()
        assert list(model.state_dict()) == list(before)
    with pytest.raises(KeyError), drop_layers(model, 0.5):
        raise KeyError
    assert [set(vars(layer)) for layer in layer_list(model)[1]] == own
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.zero_grad()
    run(model, 0).logits.sum().backward()
    assert ran(model) == [True] * 4


@pytest.mark.parametrize("probability", [0.2, 0.5])
def test_so_many_layers_run_as_expected_each_by_itself(probability):
    model, forwards = make("distilbert"), 500
    layers = layer_list(model)[1]
    ids = torch.tensor([[2, 70, 3]])
    run = np.zeros((forwards, 4))
    at = 0

    def note(layer: int) -> Any:
        return lambda *_: run.__setitem__((at, layer), 1.0)

    hooks = [layer.attention.register_forward_hook(note(index)) for index, layer in enumerate(layers)]
    torch.manual_seed(0)
    with drop_layers(model, probability), torch.no_grad():
        for at in range(-20, forwards):
            if at == 0:
                run[:] = 0
            model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    error = np.sqrt(probability * (1 - probability) / forwards)  # of a layer's share
    np.testing.assert_allclose(run.mean(0), 1 - probability, atol=4 * error)
    assert run.sum(1).mean() == pytest.approx(4 * (1 - probability), abs=4 * 2 * error)  # N (1 - p)
    assert np.abs(np.corrcoef(run.T) - np.eye(4)).max() < 4 / np.sqrt(forwards)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_a_run_that_starts_within_draws_what_it_would_have_drawn(kind):
    """The first forward pass after a resume is like any other, although a layer's form is not known yet."""
    model = make(kind)
    for seed in range(8):
        with drop_layers(model, 0.5):
            for warm in range(8):  # all layers have been seen
                run(model, warm)
            expected, state = run(model, seed).logits, torch.get_rng_state()
        with drop_layers(model, 0.5):
            assert torch.equal(run(model, seed).logits, expected)
            assert torch.equal(torch.get_rng_state(), state)


def test_gradient_checkpointing_recomputes_the_same_layers():
    plain, saving = make("bert", dropout=False), make("bert", dropout=False)
    saving.gradient_checkpointing_enable()
    for seed in range(6):
        for model in (plain, saving):
            model.zero_grad()
            with drop_layers(model, 0.5):
                run(model, seed).logits.sum().backward()
        for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad)


def test_shared_layers_are_refused():
    with (
        pytest.raises(InputError, match=r"training\.layer_drop is 0\.2, but albert has no single stack"),
        drop_layers(make_model("albert"), 0.2),
    ):
        pass
    with drop_layers(make_model("albert"), 0.0):
        pass


def test_a_model_trained_with_it_can_be_cut():
    """Half of the layers left out costs a model trained with LayerDrop less than one trained without."""
    task, tokenizer = Task("classification", LABELS), make_tokenizer()
    learn = encode(numbered(make_reviews(300)), tokenizer, task, 32)
    test = collate(list(encode(numbered(make_reviews(200, seed=9)), tokenizer, task, 32)), tokenizer)
    cuts = {"every other": [0, 2, 4, 6], "first": [0, 1, 2, 3], "last": [4, 5, 6, 7]}
    loss: dict[float, dict[str, float]] = {0.0: {}, 0.5: {}}
    for probability, losses in loss.items():
        model = make_model(seed=0, initializer_range=0.05, num_hidden_layers=8).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        order = np.random.default_rng(0)
        with drop_layers(model, probability):
            for _ in range(110):
                batch = collate(learn.__getitems__(order.choice(len(learn), 32).tolist()), tokenizer)
                model(**model_inputs(batch), labels=batch["labels"]).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        for name, layers in cuts.items():
            with torch.no_grad():
                losses[name] = (
                    keep_layers(model, layers).eval()(**model_inputs(test), labels=test["labels"]).loss.item()
                )
    assert loss[0.5]["every other"] < loss[0.0]["every other"], loss
    assert max(loss[0.5].values()) < max(loss[0.0].values()) / 2, loss
