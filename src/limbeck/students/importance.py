"""Which units and layers of a model matter on a text.

Units by how active they are (Muralidharan et al. 2024, "Minitron", section 2.2).

Of every channel the absolute activation is averaged over the tokens of an example, and over examples the root of the
sum of squares is taken, which is the combination that the authors settle on. Channels of hidden states are judged by
what the norms put out, neurons by what the projection down reads, and a key and value head by all that its query heads
hand to the attention's output. One pass measures all three, on the whole model.

Layers by how far they turn the hidden states (Men et al. 2024, "ShortGPT", section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.anatomy import layer_list, parts_of

TEXTS, LENGTH, BATCH = 64, 128, 16
"""How many texts are read, how many tokens of each, and how many texts at a time."""


@dataclass(frozen=True)
class Importance:
    """How much each unit matters; more is more.

    Attributes:
        channels: of hidden states, float32 [d].
        neurons: of each kept layer's feed-forward network, float32 [f].
        groups: of each kept layer's key and value heads with their query heads, float32 [g].
    """

    channels: torch.Tensor
    neurons: list[torch.Tensor]
    groups: list[torch.Tensor]


def measure_importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    layers: Sequence[int],
    norms: Callable[[nn.Module], list[nn.Module]],
) -> Importance:
    """Run the model over the first `TEXTS` texts and read its activations; nothing of it is changed.

    Args:
        model: a transformer in the table of parts.
        tokenizer: its own.
        texts: text like that which the student will see.
        layers: those to look at, counted from 0.
        norms: the norms of hidden states within a module.
    """
    parts, stack = parts_of(model), layer_list(model)[1]
    groups = int(getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads)
    kept = [stack[layer] for layer in layers]
    outside = [each for each in norms(model) if not any(each in norms(layer) for layer in stack)]
    watched = {
        "norms": [*outside, *(norm for layer in kept for norm in norms(layer))],
        "neurons": [layer.get_submodule(parts.feed_forward[1]) for layer in kept],
        "heads": [layer.get_submodule(parts.attention_output) for layer in kept],
    }
    squares: dict[tuple[str, int], torch.Tensor] = {}

    def watch(kind: str, number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            seen = output if kind == "norms" else args[0]
            sizes = (seen.detach().float().abs() * mask).sum(1) / mask.sum(1)
            squares[kind, number] = squares.get((kind, number), 0) + sizes.square().sum(0)

        return hook

    handles = [
        module.register_forward_hook(watch(kind, number))
        for kind, modules in watched.items()
        for number, module in enumerate(modules)
    ]
    with _at_rest(model, handles):
        for inputs, mask in _batches(model, tokenizer, texts):  # noqa: B007  (the hooks read the mask)
            model.base_model(**inputs)
    found = {
        kind: [squares[kind, number].sqrt().cpu() for number in range(len(each))] for kind, each in watched.items()
    }
    return Importance(
        channels=torch.stack(found["norms"]).sum(0),
        neurons=found["neurons"],
        groups=[each.view(groups, -1).norm(dim=1) for each in found["heads"]],
    )


def block_influence(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[float]:
    """Of each layer one minus the cosine between what it reads and what it writes, the mean over tokens.

    Args:
        model: any transformer with one stack of layers.
        tokenizer: its own.
        texts: text like that which the student will see; the first `TEXTS` are read.
    """
    stack = layer_list(model)[1]
    turned = torch.zeros(len(stack))

    def watch(number: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: tuple[Any, ...]) -> None:
            read = args[0] if args else named["hidden_states"]
            written = output[0] if isinstance(output, tuple) else output  # a tensor alone, of most
            cosine = nn.functional.cosine_similarity(read.float(), written.float(), dim=-1)
            turned[number] += float(((1 - cosine) * mask[..., 0]).sum())

        return hook

    handles = [layer.register_forward_hook(watch(number), with_kwargs=True) for number, layer in enumerate(stack)]
    tokens = 0.0
    with _at_rest(model, handles):
        for inputs, mask in _batches(model, tokenizer, texts):
            model.base_model(**inputs)
            tokens += float(mask.sum())
    return (turned / max(tokens, 1)).tolist()


def norm_scales(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    channels: Sequence[int],
    norms: Callable[[nn.Module], list[nn.Module]],
) -> dict[str, float]:
    """By each norm's name the factor that keeps its outputs' size when it sees these channels alone.

    A norm divides by the root mean square of what it reads. That of the kept channels, the most active ones, is larger
    than that of all; without the factor every layer of the narrower model would read smaller states than it was
    trained on. The factor is the mean ratio of the two over the tokens.
    """
    kept = torch.tensor(channels, device=model.device)
    names = {module: name for name, module in model.named_modules()}
    sums: dict[str, torch.Tensor] = {}

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        squares = args[0].detach().float().square()
        ratio = (squares[..., kept].mean(-1, keepdim=True) / squares.mean(-1, keepdim=True)).sqrt() * mask
        sums[names[module]] = sums.get(names[module], 0) + ratio.sum()

    handles = [norm.register_forward_pre_hook(hook) for norm in norms(model)]
    tokens = 0.0
    with _at_rest(model, handles):
        for inputs, mask in _batches(model, tokenizer, texts):
            model.base_model(**inputs)
            tokens += float(mask.sum())
    return {name: float(total) / tokens for name, total in sums.items()}


@contextmanager
def _at_rest(model: PreTrainedModel, handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Nothing of the model is changed, and the hooks are gone in the end."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


def _batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Inputs of the model and their mask [B, n, 1]; examples without a token are left out."""
    length = min(LENGTH, int(model.config.max_position_embeddings))
    rows = tokenizer(list(texts[:TEXTS]), truncation=True, max_length=length, verbose=False)["input_ids"]
    rows = sorted((row for row in rows if row), key=len)  # little padding
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        longest = len(batch[-1])
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=model.device)
        yield {"input_ids": ids, "attention_mask": mask}, mask[..., None]
