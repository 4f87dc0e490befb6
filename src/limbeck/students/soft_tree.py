"""The soft decision tree of Frosst and Hinton 2017: a student whose every decision can be looked at.

A tree of depth D has 2^D - 1 inner nodes and 2^D leaves. Inner node i sends an input x to the right with probability
p_i(x) = sigmoid(beta_i (w_i . x + b_i)) (section 2); a leaf says the same distribution over classes whatever x is. An
input takes all paths at once, each with the probability that its nodes give it. Nodes are numbered level by level from
the root, each level from left to right, and so are leaves.

Importing this module makes `AutoModelForImageClassification` (images), `AutoModelForSequenceClassification` (text) and
`AutoModel` (feature vectors) open trees.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    initialization,
)
from transformers.utils import ModelOutput

from limbeck.signals import Paths
from limbeck.students.vectors import VectorConfig, flat, register

MOST_LEVELS = 16
"""65,536 leaves: above, one batch's path probabilities would take gigabytes."""


class SoftTreeConfig(VectorConfig):
    """A soft decision tree.

    Attributes:
        depth: decisions on the way to a leaf.
        beta: the inverse temperature that gates start with; the higher, the harder they decide.
        learn_beta: whether each node learns its own from there.
        inference: what logits are when the model does not train: of the `mixture` of all leaves, weighted by path
            probability, or of the one `leaf` of the greatest, whose path explains the answer whole.
        vocab_size: of text; its tokens' embeddings have `num_features` numbers.
        pad_token_id: of text.
    """

    model_type = "soft-tree"
    depth: int = 8
    beta: float = 1.0
    learn_beta: bool = True
    inference: Literal["mixture", "leaf"] = "mixture"
    vocab_size: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__post_init__(**kwargs)
        if not 1 <= self.depth <= MOST_LEVELS:
            raise ValueError(f"depth is {self.depth}; give 1 to {MOST_LEVELS}")
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta:g}; give a number above 0")
        if self.inference not in ("mixture", "leaf"):
            raise ValueError(f"inference is '{self.inference}'; give mixture or leaf")


@dataclass
class SoftTreeOutput(ModelOutput):
    """What a tree says.

    Attributes:
        logits: float32 [B, C]; their softmax is the mixture of the leaves' distributions, or one leaf's.
        paths: how the inputs went through the tree.
    """

    logits: torch.Tensor | None = None
    paths: Paths | None = None


class SoftTree(nn.Module):
    """Gates and leaves.

    Args:
        config: the tree's sizes.
    """

    def __init__(self, config: SoftTreeConfig) -> None:
        super().__init__()
        self.depth = config.depth
        nodes = 2**config.depth - 1
        self.gates = nn.Linear(config.width, nodes)
        self.beta = nn.Parameter(torch.full((nodes,), config.beta))
        self.leaves = nn.Parameter(torch.zeros(nodes + 1, config.num_labels))

    def forward(self, vectors: torch.Tensor) -> Paths:
        """Vectors [B, m] to their paths, float32 under autocast, too."""
        device = vectors.device.type
        # A path's probability is a product of many, and a bfloat16 has three digits.
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            decided = self.beta * self.gates(vectors.to(self.gates.weight.dtype))
            right, left = F.logsigmoid(decided), F.logsigmoid(-decided)
            path = torch.zeros_like(decided[:, :1])
            levels = []
            for level in range(self.depth):
                levels.append(path)
                here = slice(2**level - 1, 2 ** (level + 1) - 1)
                path = torch.stack([path + left[:, here], path + right[:, here]], -1).flatten(1)
            leaves, logs = path.exp(), self.leaves.log_softmax(-1)
            return Paths(right.exp(), torch.cat(levels, 1).exp(), leaves, leaves @ logs)

    def mixture(self, paths: Paths) -> torch.Tensor:
        """Log-probabilities [B, C] of the leaves' distributions, weighted by path probability."""
        device = paths.leaves.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            mixed = paths.leaves @ self.leaves.softmax(-1)
        return mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log()

    def likeliest(self, paths: Paths) -> torch.Tensor:
        """Log-probabilities [B, C] of the one leaf of the greatest path probability."""
        return self.leaves.log_softmax(-1)[paths.leaves.argmax(-1)]


class _SoftTreeModel(PreTrainedModel):
    """What trees over all kinds of input share."""

    config_class = SoftTreeConfig
    base_model_prefix = ""

    def __init__(self, config: SoftTreeConfig) -> None:
        super().__init__(config)
        self.tree = SoftTree(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SoftTree):
            reach = module.gates.in_features**-0.5  # as PyTorch's own linear layers
            initialization.uniform_(module.gates.weight, -reach, reach)
            initialization.uniform_(module.gates.bias, -reach, reach)
            initialization.constant_(module.beta, self.config.beta)
            # Equal leaves would leave the gates without a gradient.
            initialization.normal_(module.leaves)
        elif isinstance(module, nn.Embedding):
            initialization.normal_(module.weight)

    def train(self, mode: bool = True) -> Self:
        """As any model's; what is never trained is frozen here, because opening a model thaws all of it."""
        self.tree.beta.requires_grad_(self.config.learn_beta)
        super().train(mode)
        return self

    def _answer(self, vectors: torch.Tensor) -> SoftTreeOutput:
        paths = self.tree(vectors)
        one = self.config.inference == "leaf" and not self.training
        return SoftTreeOutput(self.tree.likeliest(paths) if one else self.tree.mixture(paths), paths)


class SoftTreeForImageClassification(_SoftTreeModel):
    """A tree over pixels."""

    main_input_name = "pixel_values"

    def __init__(self, config: SoftTreeConfig) -> None:
        super().__init__(config)
        self.post_init()
        self.train()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> SoftTreeOutput:  # noqa: ANN401
        """Images [B, C, H, W].

        Raises:
            ValueError: images of another size.
        """
        return self._answer(flat(pixel_values, self.config))


class SoftTreeForFeatureClassification(_SoftTreeModel):
    """A tree over vectors of features."""

    main_input_name = "features"

    def __init__(self, config: SoftTreeConfig) -> None:
        super().__init__(config)
        self.post_init()
        self.train()

    def forward(self, features: torch.Tensor, **kwargs: Any) -> SoftTreeOutput:  # noqa: ANN401
        """Vectors [B, m].

        Raises:
            ValueError: vectors of another size.
        """
        return self._answer(flat(features, self.config))


class _Words(nn.Module):
    """Embeddings under the name that BERT and its like have for them, so that theirs can be taken."""

    def __init__(self, config: SoftTreeConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size or 1, config.width)


class SoftTreeForSequenceClassification(_SoftTreeModel):
    """A tree over the mean of a text's input embeddings, which are never trained: they are a teacher's.

    Word order and context are lost, so this is for what a bag of words can tell.
    """

    def __init__(self, config: SoftTreeConfig) -> None:
        super().__init__(config)
        self.embeddings = _Words(config)
        self.post_init()
        self.train()

    def train(self, mode: bool = True) -> Self:
        """As any tree's; the embeddings are frozen."""
        self.embeddings.word_embeddings.weight.requires_grad_(False)
        super().train(mode)
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace them."""
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> SoftTreeOutput:
        """Token numbers int64 [B, n]; the mask [B, n] is 0 for padding."""
        states = self.embeddings.word_embeddings(input_ids)
        if attention_mask is None:
            return self._answer(states.mean(1))
        kept = attention_mask[..., None].to(states.dtype)
        return self._answer((states * kept).sum(1) / kept.sum(1).clamp(min=1))


register(
    SoftTreeConfig,
    {
        AutoModel: SoftTreeForFeatureClassification,
        AutoModelForImageClassification: SoftTreeForImageClassification,
        AutoModelForSequenceClassification: SoftTreeForSequenceClassification,
    },
)
