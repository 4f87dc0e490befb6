"""The sizes of a model that objectives depend on."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes.

    Attributes:
        layers: their number.
        width: of a hidden state.
        heads: attention heads of a layer.
        name: the architecture, for messages.
        queries: width of a layer's queries, all heads together; None where it is that of a hidden state.
        keys: of its keys, and of its values.
    """

    layers: int
    width: int
    heads: int
    name: str = "model"
    queries: int | None = None
    keys: int | None = None


def shape_of(model: PreTrainedModel) -> Shape:
    """A model's sizes, from its configuration; zeros of one that is no transformer."""
    config = model.config
    if not hasattr(config, "num_attention_heads"):
        return Shape(0, 0, 0, config.model_type)  # no transformer: nothing that terms on layers could look at
    heads, inner = config.num_attention_heads, getattr(config, "true_hidden_size", None)  # MobileBERT's bottleneck
    head = getattr(config, "head_dim", None) or (inner or config.hidden_size) // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return Shape(
        config.num_hidden_layers, config.hidden_size, heads, config.model_type, queries=heads * head, keys=shared * head
    )
