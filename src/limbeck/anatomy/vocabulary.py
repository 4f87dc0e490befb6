"""The head of a causal language model: from the last states to logits over the vocabulary, and how to do without it.

The logits of a batch are by far its largest tensor: 64 texts of 1,024 tokens over 50,000 words are 13 GB. Training and
labelling stop the model before its head and apply the head to a few states at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from limbeck.errors import InputError

TOLERANCE = 1e-3
ON_CPU, ON_GPU = 2**22, 2**27
"""Logits of a chunk: what a processor's cache holds, and half a gigabyte."""


class VocabularyHead:
    """A causal language model's head as two steps: a linear map, and what the architecture does to its result.

    Args:
        model: a causal language model.

    Raises:
        InputError: its head is no linear map.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        linear = model.get_output_embeddings()
        if not isinstance(linear, nn.Linear):
            raise InputError(
                f"a {type(model).__name__} has no linear head over a vocabulary; give a causal language model instead"
            )
        self.linear = linear
        config = model.config.get_text_config()
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
        # Cohere multiplies by the one, Granite divides by the other.
        self.scale = float(getattr(config, "logit_scale", None) or 1) / float(getattr(config, "logits_scaling", 1) or 1)

    def chunks(self, count: int) -> list[slice]:
        """Runs of positions, in order, whose logits fit the limit."""
        words = self.linear.weight.shape[0]
        step = max(1, (ON_CPU if self.linear.weight.device.type == "cpu" else ON_GPU) // words)
        return [slice(start, start + step) for start in range(0, count, step)]

    def finish(self, raw: torch.Tensor) -> torch.Tensor:
        """Logits float32 from the linear map's result."""
        logits = raw.float()
        if self.scale != 1:
            logits = logits * self.scale
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Logits float32 [N, V] of states [N, d]."""
        # Not the module's own call, which `StatesAt` stops.
        return self.finish(F.linear(states.to(self.linear.weight.dtype), self.linear.weight, self.linear.bias))


class StatesAt:
    """Makes a causal language model stop before its head and keeps the states at some positions.

    The head's module still runs, on no states at all, so that wrappers and hooks around it see a call.

    Args:
        model: a causal language model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.head = VocabularyHead(model)
        self.positions: torch.Tensor | None = None
        """Flat indices into B * n, int64 [N]; the model is as ever where there are none."""
        self._states: torch.Tensor | None = None
        self._handle = self.head.linear.register_forward_pre_hook(self._stop)

    def take(self) -> torch.Tensor:
        """The states [N, d] of the last forward pass; forgotten here afterwards."""
        if self._states is None:
            raise RuntimeError("the model did not reach its head")
        states, self._states = self._states, None
        return states

    def _stop(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.positions is None:
            return None
        self._states = args[0].flatten(0, 1).index_select(0, self.positions)
        return (args[0][:, :0], *args[1:])

    def close(self) -> None:
        """Take the hook away."""
        self._handle.remove()


@torch.no_grad()
def check_head(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose logits are more than its head makes of its last states, by trying it on three tokens.

    Raises:
        InputError: it does something to them that is not known here.
    """
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    training = model.training
    model.eval()
    stop = StatesAt(model)
    try:
        expected = model(input_ids=ids).logits[0].float()
        stop.positions = torch.arange(3, device=model.device)
        model(input_ids=ids)
        found = stop.head(stop.take())
    finally:
        stop.close()
        model.train(training)
    worst = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not worst <= TOLERANCE:
        raise InputError(
            f"'{name}' ({model.config.model_type}) does more to its logits than its head says (they differ by "
            f"{worst:.1%}); use a model of another architecture"
        )
