"""Reading a model's inner signals while it runs, by hooks on just the layers that are wanted.

The model computes as ever, with its fast attention kernel; a hook keeps a reference to a tensor that is there anyway.
"""

from __future__ import annotations

import inspect
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from limbeck.anatomy.layers import layer_list
from limbeck.anatomy.parts import Parts, Scores, language_head, parts_of
from limbeck.signals import Signals, Wanted


class Capture:
    """Hooks on a model for the signals that a loss reads.

    Args:
        model: any model of an architecture in the table of parts.
        wanted: by kind the layers, absolute numbers; 0 is what the first layer reads.

    Raises:
        InputError: something is wanted of an architecture that is not known.
    """

    def __init__(self, model: PreTrainedModel, wanted: Wanted) -> None:
        self.wanted = wanted
        self.heads = int(getattr(model.config, "num_attention_heads", 0))
        self._found: dict[tuple[str, int], Any] = {}
        self._handles: list[Any] = []
        states = wanted.hidden | wanted.features
        inner = wanted.queries | wanted.keys | wanted.values | wanted.scores
        if states or inner:
            parts, (_, layers) = parts_of(model), layer_list(model)
            self._parts, self._layers = parts, layers
            self._handles.append(model.base_model.register_forward_pre_hook(self._forget))
            for number in states:
                self._watch_state(model, number)
            for number in inner:
                self._watch_attention(layers[number - 1], number, parts)

    def signals(self, logits: torch.Tensor | None = None) -> Signals:
        """What the last forward pass said; forgotten here afterwards."""
        found, self._found = self._found, {}
        features = {number: found["hidden", number][:, 0] for number in self.wanted.features}
        hidden = {number: found["hidden", number] for number in self.wanted.hidden}
        flat = {
            kind: {number: found[kind, number] for number in getattr(self.wanted, kind)}
            for kind in ("queries", "keys", "values")
        }
        scores = {number: self._scores(found, number) for number in self.wanted.scores}
        return Signals(logits, features, hidden, flat["queries"], flat["keys"], flat["values"], scores)

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watch_state(self, model: PreTrainedModel, number: int) -> None:
        if number < len(self._layers):
            # What a layer reads is what the layer before it wrote, or the embeddings.
            hook = partial(self._keep_input, number)
            self._handles.append(self._layers[number].register_forward_pre_hook(hook, with_kwargs=True))
            return
        norm = self._parts.final_norm
        last = model.base_model.get_submodule(norm) if norm else self._layers[-1]
        self._handles.append(last.register_forward_hook(partial(self._keep_output, ("hidden", number))))

    def _watch_attention(self, layer: nn.Module, number: int, parts: Parts) -> None:
        attention = layer.get_submodule(parts.attention)
        paths = {"queries": parts.query, "keys": parts.key, "values": parts.value}
        if number in self.wanted.scores:
            names = list(inspect.signature(attention.forward).parameters)
            hook = partial(self._keep_inputs, number, names)
            self._handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))
        if parts.query == parts.value:
            fused = partial(self._keep_parts, number)
            self._handles.append(attention.get_submodule(parts.query).register_forward_hook(fused))
            return
        for kind, path in paths.items():
            scored = kind != "values" and number in self.wanted.scores
            if scored or number in getattr(self.wanted, kind):
                keep = partial(self._keep_output, (kind, number))
                self._handles.append(attention.get_submodule(path).register_forward_hook(keep))

    def _scores(self, found: dict[tuple[str, int], Any], number: int) -> torch.Tensor:
        attention, inputs = found["inputs", number]
        query, key = found["queries", number], found["keys", number]
        width = query.shape[-1] // self.heads
        split = [each.unflatten(-1, (-1, width)).transpose(1, 2) for each in (query, key)]
        compute: Scores = self._parts.scores
        return compute(attention, split[0], split[1], inputs)

    def _forget(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._found = {}  # of a pass whose signals nobody asked for, such as a validation's

    def _keep_input(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._found["hidden", number] = args[0] if args else kwargs["hidden_states"]

    def _keep_inputs(
        self, number: int, names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._found["inputs", number] = (module, dict(zip(names, args, strict=False)) | kwargs)

    def _keep_output(self, place: tuple[str, int], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        # The first call counts: DeBERTa runs the same projections again on its relative positions.
        self._found.setdefault(place, output[0] if isinstance(output, tuple) else output)

    def _keep_parts(self, number: int, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        for kind, part in zip(("queries", "keys", "values"), output.chunk(3, dim=-1), strict=True):
            self._found[kind, number] = part


class WordsAt:
    """Makes a masked language model's head compute its words at some positions alone: logits [N, V], not [B, n, V].

    Args:
        model: a masked language model.

    Raises:
        InputError: its head is not known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.positions: torch.Tensor | None = None
        """Flat indices into B * n, int64 [N]; all positions where none are given."""
        self._handle = language_head(model).register_forward_pre_hook(self._select)

    def _select(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.positions is None:
            return None
        return (args[0].flatten(0, 1).index_select(0, self.positions), *args[1:])

    def close(self) -> None:
        """Take the hook away."""
        self._handle.remove()
