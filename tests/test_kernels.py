"""Fused kernels: where they are chosen, and that a model is afterwards what it was."""

from __future__ import annotations

import pytest
import torch
from causal import make_causal
from transformers.models.llama import modeling_llama

from limbeck.signals import Wanted
from limbeck.training.kernels import fused_kernels, kernels_for, recorded

LAYER = frozenset([2])


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
@pytest.mark.parametrize("installed", [True, False])
def test_they_are_used_on_cuda_where_they_are_installed(device: str, installed: bool) -> None:
    assert bool(kernels_for(device, installed, Wanted(logits=True))) == (device == "cuda" and installed)


@pytest.mark.parametrize(
    ("reads", "rope"),
    [
        (Wanted(logits=True), True),
        (Wanted(logits=True, hidden=LAYER, values=LAYER), True),
        (Wanted(queries=LAYER), False),
        (Wanted(keys=LAYER), False),
        (Wanted(scores=LAYER), False),
    ],
)
def test_nothing_writes_over_queries_and_keys_that_are_read(reads: Wanted, rope: bool) -> None:
    chosen = kernels_for("cuda", True, reads)
    assert chosen["rope"] == rope
    assert not chosen["cross_entropy"], "the head is applied to the kept states alone"
    assert not chosen["fused_linear_cross_entropy"], "the head is applied to the kept states alone"


def test_without_kernels_a_model_is_left_alone() -> None:
    model = make_causal()
    before = [dict(vars(module)) for module in model.modules()]
    with fused_kernels(model, {}):
        assert [dict(vars(module)) for module in model.modules()] == before


def test_what_was_replaced_is_put_back_and_what_came_later_stays() -> None:
    model, ids = make_causal(), torch.tensor([[5, 6, 7]])
    expected, own, mlp = model(ids).logits, modeling_llama.LlamaMLP, model.model.layers[1].mlp

    class Other(own):  # type: ignore[misc, valid-type]
        pass

    with recorded(model) as undo:
        mlp.forward = lambda x: 2 * own.forward(mlp, x)
        modeling_llama.LlamaMLP = Other
    model.later = True
    try:
        assert not torch.equal(model(ids).logits, expected)
        assert isinstance(make_causal().model.layers[0].mlp, Other)
    finally:
        for change in undo:
            change()
    assert torch.equal(model(ids).logits, expected)
    assert modeling_llama.LlamaMLP is own
    assert model.later
