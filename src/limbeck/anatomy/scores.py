"""Attention scores before softmax, as each architecture makes them, from its queries and keys.

A model keeps its fast kernel, which never shows the scores; for the few layers that a loss reads they are computed
once more. All functions take the attention module, queries and keys [B, h, n, d_k], and the inputs that the module
got by name, and return [B, h, n, n]. The padding mask is not added; places that the architecture never looks at are
-inf.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

Inputs = dict[str, Any]


def scaled(module: nn.Module, query: torch.Tensor, key: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Scaled dot products (Vaswani et al. 2017, section 3.2.1)."""
    found: torch.Tensor = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    return found


def with_position_bias(module: nn.Module, query: torch.Tensor, key: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """MPNet: a learnt bias by distance is added."""
    bias: torch.Tensor = inputs["position_bias"]
    return scaled(module, query, key, inputs) + bias


def causal(module: nn.Module, query: torch.Tensor, key: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """GPT-2: no token looks ahead."""
    length = query.shape[-2]
    ahead = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    return scaled(module, query, key, inputs).masked_fill(ahead, -math.inf)


def rotary_causal(module: nn.Module, query: torch.Tensor, key: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Llama and its like: rotary positions; several query heads share a key head.

    Some normalise queries and keys first (Qwen3, Gemma 3), have layers without positions (SmolLM3), scale in a way of
    their own or cap the scores (Gemma 2), or look back at a window only.
    """
    traits: Any = module
    if hasattr(module, "q_norm"):
        query, key = traits.q_norm(query), traits.k_norm(key)
    if getattr(module, "use_rope", True):
        query, key = apply_rotary_pos_emb(query, key, *inputs["position_embeddings"])
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    found: torch.Tensor = query * traits.scaling @ key.transpose(-1, -2)
    cap = getattr(module, "attn_logit_softcapping", None)
    if cap is not None:
        found = torch.tanh(found / cap) * cap
    place = torch.arange(query.shape[-2], device=query.device)
    back = place[:, None] - place
    window = getattr(module, "sliding_window", getattr(traits.config, "sliding_window", None))
    unseen = back < 0 if window is None else (back < 0) | (back >= window)
    return found.masked_fill(unseen, -math.inf)


def rotary_windowed(module: nn.Module, query: torch.Tensor, key: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """ModernBERT: rotary positions; some layers look at a window only."""
    query, key = apply_rotary_pos_emb(query, key, *inputs["position_embeddings"])
    found = scaled(module, query, key, inputs)
    window = getattr(module, "sliding_window", None)
    if window is None:
        return found
    place = torch.arange(query.shape[-2], device=query.device)
    return found.masked_fill((place[:, None] - place).abs() >= window, -math.inf)


def disentangled(module: nn.Module, query: torch.Tensor, key: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """DeBERTa: content to content, content to position and position to content (He et al. 2021, section 3.1)."""
    batch, heads, length, width = query.shape
    kinds: Any = module.pos_att_type
    factor = 1 + ("c2p" in kinds) + ("p2c" in kinds)
    found = query @ key.transpose(-1, -2) / math.sqrt(width * factor)
    if module.relative_attention:
        # Queries and keys of an autocast pass are narrower than what its weights make of positions outside of it.
        dtype = inputs["rel_embeddings"].dtype
        flat = [each.reshape(batch * heads, length, width).to(dtype) for each in (query, key)]
        bias: Any = module.disentangled_attention_bias
        added = bias(*flat, inputs["relative_pos"], inputs["rel_embeddings"], factor)
        found = found + added.view(batch, heads, length, length)
    return found
