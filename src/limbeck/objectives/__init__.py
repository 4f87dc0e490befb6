"""The terms of a loss. Each states what it needs, counts its valid positions, and returns one scalar sum."""

from limbeck.objectives.hard_labels import HardLabels
from limbeck.objectives.soft_targets import SoftTargets
from limbeck.objectives.term import Term, labelled
from limbeck.recipe.schema import Objectives
from limbeck.tasks import Task

TERMS: dict[str, type[HardLabels] | type[SoftTargets]] = {"hard_labels": HardLabels, "soft_targets": SoftTargets}


def build_terms(objectives: Objectives, task: Task) -> list[Term]:
    """The terms that a stage's recipe names."""
    given = {name: getattr(objectives, name) for name in TERMS}
    return [TERMS[name](section, task) for name, section in given.items() if section is not None]


__all__ = ["TERMS", "HardLabels", "SoftTargets", "Term", "build_terms", "labelled"]
