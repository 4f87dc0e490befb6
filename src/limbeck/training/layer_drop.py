"""LayerDrop: training a model so that it can do with fewer of its layers (Fan, Grave and Joulin 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from limbeck.anatomy import layer_list
from limbeck.errors import InputError


@contextmanager
def drop_layers(model: PreTrainedModel, probability: float) -> Iterator[None]:
    """Within this block, skip layers at random in training (section 3.2 of the paper).

    In training mode each layer of the stack is skipped with `probability` at each forward pass, independently of the
    others: what it reads, it returns, at no cost, and its weights get no gradient. Nothing is rescaled. In evaluation
    mode all layers are used. The draws come from torch's global CPU generator, which the Trainer's checkpoints keep;
    a probability of 0 draws nothing and changes nothing. Names and values of the weights stay as they are.

    Processes draw by themselves, so DistributedDataParallel must look for unused parameters. What happens within a
    skipped layer cannot be observed: its attention, queries, keys and values are missing in that step.

    Args:
        model: a transformer with one stack of layers; the stack that its forward pass runs.
        probability: of each layer to be skipped, from 0 to below 1. For keeping r of N layers later, 1 - r/N.

    Raises:
        InputError: the architecture has no such stack.
    """
    if probability == 0:
        yield
        return
    try:
        _, layers = layer_list(model)
    except InputError:
        raise InputError(
            f"training.layer_drop is {probability}, but {model.config.model_type} has no single stack of layers of "
            "which some could be skipped; set it to 0"
        ) from None
    earlier = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _Sometimes(layer, layer.forward, probability)
    try:
        yield
    finally:
        for layer, forward in zip(layers, earlier, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


class _Sometimes:
    """The layer's forward pass, or what it read, in the form that the layer returns: MPNet's is a tuple.

    An object rather than a function, so that a copy of the model has its own, of its own layers.
    """

    def __init__(self, layer: nn.Module, forward: Callable[..., Any], probability: float) -> None:
        self.layer, self.forward, self.probability = layer, forward, probability
        self.returns_tuple: bool | None = None

    def __call__(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not self.layer.training or torch.rand((), device="cpu").item() >= self.probability:
            output = self.forward(hidden, *args, **kwargs)
            self.returns_tuple = isinstance(output, tuple)
            return output
        if self.returns_tuple is None:
            # Run once to see its form, leaving no trace: a run that is resumed here draws what it would have drawn.
            devices = [hidden.device] if hidden.is_cuda else []
            with torch.no_grad(), torch.random.fork_rng(devices):
                self.returns_tuple = isinstance(self.forward(hidden, *args, **kwargs), tuple)
        return (hidden,) if self.returns_tuple else hidden
