"""Fused kernels for causal language models on CUDA, from the package liger-kernel (Hsu et al. 2024)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from limbeck import hardware
from limbeck.progress import say
from limbeck.signals import Wanted

TOLERANCE = 1e-3


def kernels_for(device: str, installed: bool, reads: Wanted) -> dict[str, bool]:
    """Which of Liger's kernels take the place of a causal language model's own code in training.

    Never its losses: they are computed by the model from labels, and here it has none; `over_vocabulary` does what the
    fused linear cross entropy does, for every term. Norms and feed-forward networks always; the rotary embedding unless
    queries or keys are read, which it writes over where they lie.

    Args:
        device: the kind of device.
        installed: whether liger-kernel can be imported.
        reads: the signals that the loss reads of student and teacher.

    Returns:
        Liger's switches; what has none is on. None at all where nothing is replaced.
    """
    if device != "cuda" or not installed:
        return {}
    seen = bool(reads.queries or reads.keys or reads.scores)
    return {"rope": not seen, "cross_entropy": False, "fused_linear_cross_entropy": False}


@contextmanager
def fused_kernels(model: PreTrainedModel, switches: dict[str, bool]) -> Iterator[None]:
    """Train with Liger's kernels; afterwards model and architecture are as before, so that they run anywhere.

    They are tried on three tokens first, and left out where the model then says something else.

    Args:
        model: on its device, or about to go there.
        switches: see `kernels_for`.
    """
    if not switches:
        yield
        return
    model.to(hardware.device())
    expected = _say_something(model)
    with recorded(model) as changes:
        apply_liger_kernel(model, switches)
    with ExitStack() as undo:
        for change in changes:
            undo.callback(change)
        off = float((_say_something(model) - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not off <= TOLERANCE:
            undo.close()
            say(f"training: without Liger's kernels, whose logits of a {type(model).__name__} are {off:.1%} off")
        elif changes:
            say("training: with Liger's fused kernels")
        yield


@contextmanager
def recorded(model: PreTrainedModel) -> Iterator[list[Callable[[], None]]]:
    """Watch what the block sets in a model's modules and in its architecture's code.

    Returns:
        After the block what undoes each of these, and nothing that was set later.
    """
    code = vars(sys.modules[type(model).__module__])
    before, modules = dict(code), [(module, set(vars(module))) for module in model.modules()]
    undo: list[Callable[[], None]] = []
    yield undo
    undo += [partial(code.__setitem__, name, value) for name, value in before.items() if code[name] is not value]
    undo += [partial(delattr, module, name) for module, names in modules for name in vars(module).keys() - names]


@torch.no_grad()
def _say_something(model: PreTrainedModel) -> torch.Tensor:
    """Logits float32 of three tokens [3, V]."""
    training = model.training
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    logits: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits[0].float()
    model.train(training)
    return logits
