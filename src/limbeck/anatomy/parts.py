"""Where each architecture keeps its parts. The one table; everything that looks inside a model goes through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from limbeck.anatomy import scores
from limbeck.errors import InputError
from limbeck.recipe.sections import nearest

Scores = Callable[[nn.Module, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]


@dataclass(frozen=True)
class Parts:
    """Paths of modules, within a layer unless said otherwise.

    Attributes:
        attention: the module that attends; it has the queries', keys' and values' projections.
        query: the projection within `attention`. One projection for all three has the same path for each.
        key: likewise.
        value: likewise.
        attention_output: the projection of the attended values.
        feed_forward: the projections up and down. A gated one's gate and up share the first where they are one module.
        embeddings: within the body.
        final_norm: within the body, where the last hidden state is the normalised one.
        language_head: within the masked language model: the head's first module, which reads the last hidden state.
        scores: attention scores [B, h, n, n] from queries and keys [B, h, n, d_k] and the inputs of `attention`.
    """

    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    feed_forward: tuple[str, str]
    embeddings: str = "embeddings"
    final_norm: str | None = None
    language_head: str | None = None
    scores: Scores = scores.scaled


_BERT = Parts(
    attention="attention.self",
    query="query",
    key="key",
    value="value",
    attention_output="attention.output.dense",
    feed_forward=("intermediate.dense", "output.dense"),
    language_head="cls",
)
_ROBERTA = replace(_BERT, language_head="lm_head")
_VIT = Parts(
    attention="attention",
    query="q_proj",
    key="k_proj",
    value="v_proj",
    attention_output="attention.o_proj",
    feed_forward=("mlp.fc1", "mlp.fc2"),
)
_LLAMA = Parts(
    attention="self_attn",
    query="q_proj",
    key="k_proj",
    value="v_proj",
    attention_output="self_attn.o_proj",
    feed_forward=("mlp.up_proj", "mlp.down_proj"),
    embeddings="embed_tokens",
    final_norm="norm",
    scores=scores.rotary_causal,
)

PARTS: dict[str, Parts] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": replace(_BERT, language_head="generator_predictions"),
    "mobilebert": _BERT,
    "ib-bert": _BERT,
    "distilbert": Parts(
        attention="attention",
        query="q_lin",
        key="k_lin",
        value="v_lin",
        attention_output="attention.out_lin",
        feed_forward=("ffn.lin1", "ffn.lin2"),
        language_head="vocab_transform",
    ),
    "mpnet": Parts(
        attention="attention.attn",
        query="q",
        key="k",
        value="v",
        attention_output="attention.attn.o",
        feed_forward=("intermediate.dense", "output.dense"),
        language_head="lm_head",
        scores=scores.with_position_bias,
    ),
    "deberta-v2": replace(_BERT, query="query_proj", key="key_proj", value="value_proj", scores=scores.disentangled),
    "modernbert": Parts(
        attention="attn",
        query="Wqkv",
        key="Wqkv",
        value="Wqkv",
        attention_output="attn.Wo",
        feed_forward=("mlp.Wi", "mlp.Wo"),
        final_norm="final_norm",
        language_head="head",
        scores=scores.rotary_windowed,
    ),
    "vit": _VIT,
    "deit": _VIT,
    "gpt2": Parts(
        attention="attn",
        query="c_attn",
        key="c_attn",
        value="c_attn",
        attention_output="attn.c_proj",
        feed_forward=("mlp.c_fc", "mlp.c_proj"),
        embeddings="wte",
        final_norm="ln_f",
        scores=scores.causal,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
}


def parts_of(model: PreTrainedModel) -> Parts:
    """The paths of a model's parts.

    Raises:
        InputError: an architecture that shares one layer's weights, or that is not in the table.
    """
    kind = model.config.model_type
    if kind == "albert":
        raise InputError(
            "albert runs the weights of one layer again and again, so none of its layers can be learnt from or cut on "
            "its own; use soft_targets, or a teacher of another architecture"
        )
    if kind not in PARTS:
        raise InputError(
            f"where {kind} keeps its layers' parts is not known; {nearest(kind, list(PARTS))} "
            "soft_targets and hard_labels work with any architecture"
        )
    return PARTS[kind]


def language_head(model: PreTrainedModel) -> nn.Module:
    """The first module of a masked language model's head.

    Raises:
        InputError: see `language_head_path`; a model with another head, such as a classifier.
    """
    path = language_head_path(model)
    try:
        module: nn.Module = model.get_submodule(path)
    except AttributeError:
        raise InputError(
            f"a {type(model).__name__} has no head that fills in words; give a masked language model instead"
        ) from None
    return module


def language_head_path(model: PreTrainedModel) -> str:
    """Where masked language models of a model's architecture keep their head's first module.

    Raises:
        InputError: as `parts_of`, or an architecture without such a head.
    """
    kind = model.config.model_type
    if kind == "albert":
        return "predictions"
    if kind == "deberta-v2" and not model.config.legacy:
        return "lm_predictions"
    path = parts_of(model).language_head
    if path is None:
        raise InputError(f"{kind} has no masked language model's head; use an encoder such as bert")
    return path
