"""Cutting a model's width: channels of its hidden states, neurons of its feed-forward networks, heads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from limbeck.anatomy import layer_list
from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError
from limbeck.recipe.schema import Width
from limbeck.students.importance import TEXTS, Importance, measure_importance, norm_scales

Axis = Literal["channels", "neurons", "queries", "keys"] | None
# What each dimension of a weight is, by the end of its name; the longest that fits counts.
_LLAMA: dict[str, tuple[Axis, ...]] = {
    "embed_tokens.weight": (None, "channels"),
    "lm_head.weight": (None, "channels"),
    "score.weight": (None, "channels"),
    "q_proj.weight": ("queries", "channels"),
    "q_proj.bias": ("queries",),
    "k_proj.weight": ("keys", "channels"),
    "k_proj.bias": ("keys",),
    "v_proj.weight": ("keys", "channels"),
    "v_proj.bias": ("keys",),
    "o_proj.weight": ("channels", "queries"),
    "o_proj.bias": ("channels",),
    "gate_proj.weight": ("neurons", "channels"),
    "gate_proj.bias": ("neurons",),
    "up_proj.weight": ("neurons", "channels"),
    "up_proj.bias": ("neurons",),
    "down_proj.weight": ("channels", "neurons"),
    "down_proj.bias": ("channels",),
    "input_layernorm.weight": ("channels",),
    "post_attention_layernorm.weight": ("channels",),
    "norm.weight": ("channels",),
    "q_norm.weight": (None,),
    "k_norm.weight": (None,),
}
_BERT: dict[str, tuple[Axis, ...]] = {
    "embeddings.weight": (None, "channels"),
    "LayerNorm.weight": ("channels",),
    "LayerNorm.bias": ("channels",),
    "query.weight": ("queries", "channels"),
    "query.bias": ("queries",),
    "key.weight": ("keys", "channels"),
    "key.bias": ("keys",),
    "value.weight": ("keys", "channels"),
    "value.bias": ("keys",),
    "attention.output.dense.weight": ("channels", "queries"),
    "attention.output.dense.bias": ("channels",),
    "intermediate.dense.weight": ("neurons", "channels"),
    "intermediate.dense.bias": ("neurons",),
    "output.dense.weight": ("channels", "neurons"),
    "output.dense.bias": ("channels",),
    "pooler.dense.weight": ("channels", "channels"),
    "pooler.dense.bias": ("channels",),
    "transform.dense.weight": ("channels", "channels"),
    "transform.dense.bias": ("channels",),
    "classifier.weight": (None, "channels"),
    "classifier.bias": (None,),
    "decoder.weight": (None, "channels"),
    "decoder.bias": (None,),
    "predictions.bias": (None,),
}
_AXES = {"bert": _BERT, "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "smollm3": _LLAMA}


@dataclass(frozen=True)
class Units:
    """What is kept, each in ascending order.

    Attributes:
        channels: of the hidden states.
        neurons: of each layer.
        groups: key and value heads of each layer; the query heads that share one stay with it.
        scales: by a norm's name, in the model before any layer was left out, what its weight is multiplied with.
    """

    channels: list[int]
    neurons: list[list[int]]
    groups: list[list[int]]
    scales: dict[str, float]


def check_width(width: Width, config: PreTrainedConfig) -> dict[str, int]:
    """All widths of the student, by their names in the configuration.

    Args:
        width: what the recipe says.
        config: of the model to cut.

    Raises:
        InputError: an architecture whose widths are not known; more than there is; heads that cannot be cut together.
    """
    if config.model_type not in _AXES:
        raise InputError(
            f"student.width cuts {', '.join(_AXES)}, and this is a {config.model_type}; leave width out, or give "
            "student.shape={...} for a fresh model"
        )
    theirs = _sizes(config)
    ours = theirs | {name: value for name, value in width.model_dump().items() if value is not None}
    shared = theirs["num_attention_heads"] // theirs["num_key_value_heads"]
    if width.num_key_value_heads is None:
        ours["num_key_value_heads"] = max(ours["num_attention_heads"] // shared, 1)
    if width.num_attention_heads is None:
        ours["num_attention_heads"] = ours["num_key_value_heads"] * shared
    for name, value in ours.items():
        if value > theirs[name]:
            raise InputError(f"student.width.{name} is {value}, and the model has {theirs[name]}; give at most that")
    if ours["head_dim"] != theirs["head_dim"]:
        raise InputError(
            f"student.width.head_dim is {ours['head_dim']}, and the model's heads have {theirs['head_dim']} channels, "
            "which cannot be cut; leave head_dim out and give fewer num_attention_heads"
        )
    if ours["num_attention_heads"] != ours["num_key_value_heads"] * shared:
        raise InputError(
            f"student.width has {ours['num_attention_heads']} query heads and {ours['num_key_value_heads']} key and "
            f"value heads, and in the model {shared} query heads share one; give "
            f"num_attention_heads={shared * ours['num_key_value_heads']}"
        )
    whole = ours["num_attention_heads"] * ours["head_dim"]
    if config.model_type == "bert" and ours["hidden_size"] != whole:
        raise InputError(
            f"student.width has hidden_size {ours['hidden_size']} and {ours['num_attention_heads']} heads of "
            f"{ours['head_dim']}, and in bert the heads make up the hidden states; give hidden_size={whole}"
        )
    return ours


def choose_units(
    source: Checkpoint, sizes: dict[str, int], layers: Sequence[int], texts: Sequence[str] | None
) -> tuple[Units, str]:
    """The most active units on a text, or without a text the first; and how they were chosen, for the record.

    Args:
        source: the whole model; not changed.
        sizes: see `check_width`.
        layers: those that stay, counted from 0.
        texts: text like that which the student will see.
    """
    wanted = [sizes[name] for name in ("hidden_size", "intermediate_size", "num_key_value_heads")]
    found, scales, how = _first(source.model.config, len(layers)), {}, "first"
    if texts:
        found = measure_importance(source.model, source.tokenizer, texts, layers, _norms)
        how = f"importance on {min(len(texts), TEXTS)} texts"
    channels = _top(found.channels, wanted[0])
    if texts and len(channels) < source.model.config.hidden_size:
        scales = norm_scales(source.model, source.tokenizer, texts, channels, _norms)
    neurons = [_top(each, wanted[1]) for each in found.neurons]
    return Units(channels, neurons, [_top(each, wanted[2]) for each in found.groups], scales), how


def cut_width(model: PreTrainedModel, units: Units, layers: Sequence[int] | None = None) -> PreTrainedModel:
    """A copy of a model with only these units; with all of them it is the model bit for bit.

    Args:
        model: an architecture that `check_width` takes; not changed.
        units: those that stay, of each of its layers.
        layers: the numbers that its layers had where the units' scales were measured, if others.

    Raises:
        InputError: a weight that is in no place where this architecture has any.
    """
    old = _sizes(model.config)
    config = copy.deepcopy(model.config)
    config.hidden_size, config.intermediate_size = len(units.channels), len(units.neurons[0])
    shared = old["num_attention_heads"] // old["num_key_value_heads"]
    config.num_attention_heads = len(units.groups[0]) * shared
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = len(units.groups[0])
        if config.hidden_size // config.num_attention_heads != old["head_dim"] or getattr(config, "head_dim", None):
            config.head_dim = old["head_dim"]
    student = type(model)(config)
    path, stack = layer_list(model)
    numbers = range(len(stack)) if layers is None else layers
    channels = torch.tensor(units.channels)
    weights = {}
    for name, tensor in model.state_dict().items():
        number = int(name.removeprefix(f"{path}.").split(".")[0]) if name.startswith(f"{path}.") else 0
        groups = units.groups[number]
        kept = {
            "channels": channels,
            "neurons": torch.tensor(units.neurons[number]),
            "queries": _blocks(groups, shared * old["head_dim"]),
            "keys": _blocks(groups, old["head_dim"]),
        }
        measured = name
        if name.startswith(f"{path}."):
            measured = f"{path}.{numbers[number]}.{name.removeprefix(f'{path}.{number}.')}"
        for dimension, axis in enumerate(_axes(name, model.config.model_type)):
            if axis is not None:
                tensor = tensor.index_select(dimension, kept[axis].to(tensor.device))
        weights[name] = tensor * units.scales.get(measured.removesuffix(".weight"), 1.0)
    student.load_state_dict(weights)
    student.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return student


def _sizes(config: PreTrainedConfig) -> dict[str, int]:
    heads = int(config.num_attention_heads)
    return {
        "hidden_size": int(config.hidden_size),
        "intermediate_size": int(config.intermediate_size),
        "num_attention_heads": heads,
        "num_key_value_heads": int(getattr(config, "num_key_value_heads", None) or heads),
        "head_dim": int(getattr(config, "head_dim", None) or config.hidden_size // heads),
    }


def _axes(name: str, kind: str) -> tuple[Axis, ...]:
    table = _AXES[kind]
    fitting = [end for end in table if name == end or name.endswith((f".{end}", f"_{end}"))]
    if not fitting:
        raise InputError(f"student.width does not know what {name} of this {kind} is; leave width out")
    return table[max(fitting, key=len)]


def _norms(module: nn.Module) -> list[nn.Module]:
    """The norms of hidden states; not those of queries and keys, nor one within a head that fills in words."""
    outside = ("q_norm", "k_norm", "transform.LayerNorm")
    return [
        each
        for name, each in module.named_modules()
        if type(each).__name__.endswith(("RMSNorm", "LayerNorm")) and not name.endswith(outside)
    ]


def _first(config: PreTrainedConfig, layers: int) -> Importance:
    sizes = _sizes(config)
    falling = [
        -torch.arange(sizes[name], dtype=torch.float32)
        for name in ("hidden_size", "intermediate_size", "num_key_value_heads")
    ]
    return Importance(falling[0], [falling[1]] * layers, [falling[2]] * layers)


def _top(importance: torch.Tensor, kept: int) -> list[int]:
    best: Any = importance.argsort(descending=True, stable=True)[:kept].sort().values.tolist()
    return list(best)


def _blocks(numbers: Sequence[int], width: int) -> torch.Tensor:
    """Numbers of rows, a block of them for each of `numbers`."""
    return (torch.tensor(numbers)[:, None] * width + torch.arange(width)).flatten()
