"""A recipe's stages as the phases that are trained one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.recipe.schema import Recipe, Stage
from limbeck.students.layers import check_layers, chosen_layers


@dataclass(frozen=True)
class Phase:
    """A stage, or of a progressive one the turn of one layer.

    Attributes:
        stage: what is learnt, with the phase's own share of the epochs.
        name: in folders and logs.
        only: the one layer, counted from 1, that is trained and compared.
    """

    stage: Stage
    name: str
    only: int | None = None


def phases_of(stages: Sequence[Stage], recipe: Recipe, depth: int) -> list[Phase]:
    """The stages in order, progressive ones layer by layer (Sun et al. 2020, section 3.5).

    Args:
        stages: the recipe's.
        recipe: its `training` is what a stage's own starts from.
        depth: the student's layers.
    """
    found: list[Phase] = []
    for stage in stages:
        if stage.keep is not None:
            depth = len(kept_layers(stage, depth))
        if not stage.progressive:
            found.append(Phase(stage, stage.name))
            continue
        share = {"epochs": recipe.training_of(stage).epochs / depth}
        turn = stage.model_copy(update={"training": stage.training | share})
        later = turn.model_copy(update={"keep": None})
        turns = [turn if layer == 1 else later for layer in range(1, depth + 1)]
        found += [Phase(each, f"{stage.name}-{layer}", layer) for layer, each in enumerate(turns, 1)]
    return found


def kept_layers(stage: Stage, depth: int) -> list[int]:
    """The layers that a stage which cuts the student keeps.

    Raises:
        InputError: more than there are, or others than there are.
    """
    assert stage.keep is not None
    layers = chosen_layers(stage.keep, stage.pattern, depth, f"stages.{stage.name}.keep", "the student")
    check_layers(layers, depth)
    return layers
