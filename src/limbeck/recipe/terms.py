"""The recipe's sections that make up a loss: one for each term of `limbeck.objectives`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.recipe.sections import Count, Positive, Section


class TermSection(Section):
    """One term of a loss."""

    shorthand: ClassVar[str | None] = "weight"
    weight: Positive = 1.0
    """Its share of the loss."""


class HardLabels(TermSection):
    """Cross entropy with the true labels (multi-label: per label; regression: squared error)."""


class SoftTargets(TermSection):
    """The teacher's outputs as targets, at a temperature."""

    temperature: Positive = 2.0
    """Both models' logits are divided by it, and the loss is multiplied by its square. Regression has none."""
    positions: Literal["all", "masked"] = "all"
    """masked-lm: learn from the teacher's words at every token, or at the masked ones alone."""
    form: Literal["kl", "reverse-kl", "jsd", "total-variation", "cross-entropy", "mse", "hard"] = "kl"
    """Forward or reverse KL divergence; the generalised Jensen-Shannon divergence; the total variation; the cross
    entropy, which has the forward KL's gradient; the squared error of the logits; or the cross entropy with the
    teacher's likeliest class (DeiT's hard distillation). The last two know no temperature."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of `jsd`: near 0 like the forward KL divergence, near 1 like the reverse."""


class PathCrossEntropy(TermSection):
    """Cross entropy of a soft tree's leaves, weighted by the probability of ending there."""

    targets: Literal["teacher", "labels"] = "teacher"
    """What the leaves are to say: the teacher's distribution, or the true class."""
    temperature: Positive = 1.0
    """The teacher's logits are divided by it."""


class Balance(TermSection):
    """A penalty on a soft tree's nodes that send most examples the same way."""

    weight: Positive = 0.1
    """Its share of the loss."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """What a node counts for, for each level that it is deeper than the root."""
    window: Annotated[float, Field(ge=1)] = 1.0
    """The updates over which the root's average runs; twice as many with each level."""


LayerMap = Literal["uniform", "skip", "last"] | dict[int, int]
"""Which teacher layer each student layer learns from; see `limbeck.objectives.layer_maps`."""


class MaskedLM(TermSection):
    """Cross entropy with the masked words of plain text."""


class NextToken(TermSection):
    """Cross entropy with the tokens that follow: of plain text all, of a conversation the last answer's."""


class PolicyGradient(TermSection):
    """What the student's own answers lead to: the part of the reverse KL divergence that looks ahead (MiniLLM)."""

    length_normalised: bool = True
    """Take the mean of the rewards that follow, not their sum: without it short answers are favoured."""


class Contrastive(TermSection):
    """Tell the teacher's state of a token from its states of the others."""

    temperature: Positive = 0.05
    """Cosines are divided by it."""


class Embedding(TermSection):
    """Squared error of what the first layer reads, token by token."""


class Hidden(TermSection):
    """The states after mapped layers."""

    form: Literal["mse", "cosine", "cls"] = "mse"
    """Squared error by token, through a learnt projection where widths differ, summed over layers; one minus the
    cosine by token; or the squared error of normalised [CLS] states."""
    layers: LayerMap = "uniform"
    """`uniform` (every n-th teacher layer), `skip` (the same without the last), `last` (the teacher's last ones but the
    very last), or `{student layer: teacher layer}`, counted from 1 or from the end."""


class Attention(TermSection):
    """The attention of mapped layers, head by head."""

    form: Literal["mse", "kl"] = "mse"
    """Squared error of the scores before softmax, summed over layers; or KL divergence of the distributions."""
    layers: LayerMap = "uniform"
    """As of `hidden`."""


class Relations(TermSection):
    """KL divergence of scaled dot products among a layer's values, and among its queries and keys."""

    of: Annotated[list[Literal["queries", "keys", "values"]], Field(min_length=1)] = ["values"]
    """Relations among which vectors; their mean."""
    heads: Count | None = None
    """Relation heads that the vectors are split into again. The teacher's attention heads when not given."""
    layers: LayerMap = {-1: -1}
    """As of `hidden`."""


class FeatureMap(TermSection):
    """MobileBERT's feature map transfer: states after mapped layers, normalised, and their mean and variance."""

    normalised: Annotated[float, Field(ge=0)] = 100.0
    """The share of the squared error of the normalised states."""
    mean: Annotated[float, Field(ge=0)] = 5000.0
    """The share of the squared difference of their means."""
    variance: Annotated[float, Field(ge=0)] = 5.0
    """The share of the absolute difference of their variances."""
    layers: LayerMap = "uniform"
    """As of `hidden`."""


class Objectives(Section):
    """The loss: a weighted sum of these terms."""

    hard_labels: HardLabels | None = None
    """Learn from the true labels."""
    soft_targets: SoftTargets | None = None
    """Learn from the teacher's outputs."""
    path_cross_entropy: PathCrossEntropy | None = None
    """Learn a soft tree, from the teacher's outputs or the true labels."""
    balance: Balance | None = None
    """Have a soft tree use all of its branches."""
    masked_lm: MaskedLM | None = None
    """Learn to fill in the masked words of plain text."""
    next_token: NextToken | None = None
    """Learn to go on with a text."""
    policy_gradient: PolicyGradient | None = None
    """Learn from what its own answers lead to."""
    embedding: Embedding | None = None
    """Learn from the teacher's embeddings."""
    hidden: Hidden | None = None
    """Learn from the teacher's hidden states."""
    attention: Attention | None = None
    """Learn from the teacher's attention."""
    relations: Relations | None = None
    """Learn from the relations among the teacher's queries, keys and values."""
    feature_map: FeatureMap | None = None
    """Learn from the teacher's hidden states as MobileBERT does."""
    contrastive: Contrastive | None = None
    """Learn to tell the teacher's states apart."""

    @model_validator(mode="after")
    def _at_least_one(self) -> Objectives:
        if not self.names:
            raise ValueError(f"no objective; give at least one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def names(self) -> list[str]:
        """The terms that are there."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @property
    def taught(self) -> list[str]:
        """The terms that learn from a teacher."""
        alone = {"hard_labels", "masked_lm", "next_token", "balance"}
        if self.path_cross_entropy is not None and self.path_cross_entropy.targets == "labels":
            alone.add("path_cross_entropy")
        return [name for name in self.names if name not in alone]

    @property
    def needs_teacher(self) -> bool:
        """Whether some term learns from a teacher."""
        return bool(self.taught)
