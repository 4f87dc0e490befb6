"""The terms of a loss. Each states what it needs, counts its valid positions, and returns one scalar sum."""

from collections.abc import Callable

from limbeck.objectives.attention import Attention
from limbeck.objectives.contrastive import Contrastive
from limbeck.objectives.embedding import Embedding
from limbeck.objectives.feature_map import FeatureMap
from limbeck.objectives.hard_labels import HardLabels
from limbeck.objectives.hidden import Hidden
from limbeck.objectives.layer_maps import one_layer
from limbeck.objectives.masked_lm import MaskedLM
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.policy_gradient import PolicyGradient
from limbeck.objectives.relations import Relations
from limbeck.objectives.several import FromEach
from limbeck.objectives.soft_targets import SoftTargets
from limbeck.objectives.soft_tree import Balance, PathCrossEntropy
from limbeck.objectives.term import Shapes, Term, labelled, need_shapes, valid
from limbeck.recipe.terms import Objectives
from limbeck.tasks import Task

TERMS: dict[str, Callable[..., Term]] = {
    "hard_labels": HardLabels,
    "soft_targets": SoftTargets,
    "path_cross_entropy": PathCrossEntropy,
    "balance": Balance,
    "masked_lm": MaskedLM,
    "next_token": NextToken,
    "policy_gradient": PolicyGradient,
    "embedding": Embedding,
    "hidden": Hidden,
    "attention": Attention,
    "relations": Relations,
    "feature_map": FeatureMap,
    "contrastive": Contrastive,
}


def build_terms(
    objectives: Objectives, task: Task, shapes: Shapes | None = None, only: int | None = None
) -> list[Term]:
    """The terms that a stage's recipe names, in the order of `TERMS`.

    Args:
        objectives: the recipe's.
        task: what the stage is about.
        shapes: sizes of student and teacher; only terms on their insides need them.
        only: a student layer, from 1, for terms on layers to look at alone; they then use just its pair of their map.

    Raises:
        InputError: a term cannot be between these two models, or its map lacks the layer `only`.
        ValueError: a term needs shapes and there are none.
    """
    terms = []
    for name, term in TERMS.items():
        section = getattr(objectives, name)
        if section is None:
            continue
        if only is not None and "layers" in type(section).model_fields:
            pair = one_layer(name, section.layers, need_shapes(shapes, name), only)
            section = section.model_copy(update={"layers": pair})
        terms.append(term(section, task, shapes))
    return terms


__all__ = [
    "TERMS",
    "Attention",
    "Balance",
    "Contrastive",
    "Embedding",
    "FeatureMap",
    "FromEach",
    "HardLabels",
    "Hidden",
    "MaskedLM",
    "NextToken",
    "PathCrossEntropy",
    "PolicyGradient",
    "Relations",
    "Shapes",
    "SoftTargets",
    "Term",
    "build_terms",
    "labelled",
    "valid",
]
