"""The sizes of a model that objectives depend on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes.

    Attributes:
        layers: their number.
        width: of a hidden state.
        heads: attention heads of a layer; 0 of a network that does not attend.
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
        # No transformer: nothing that terms on layers could look at.
        depth, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
        return Shape(depth, width, 0, config.model_type)
    heads, inner = config.num_attention_heads, getattr(config, "true_hidden_size", None)  # MobileBERT's bottleneck
    head = getattr(config, "head_dim", None) or (inner or config.hidden_size) // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return Shape(
        config.num_hidden_layers, config.hidden_size, heads, config.model_type, queries=heads * head, keys=shared * head
    )


def outside_embeddings(model: PreTrainedModel) -> int:
    """The number of a model's parameters that are in no table of embeddings. What a table shares is the table's."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    inside = {id(weight) for weight in tables}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in inside)
