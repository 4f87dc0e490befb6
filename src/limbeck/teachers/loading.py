"""Opening what the recipe names as teacher."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck import hardware
from limbeck.checkpoints import Checkpoint
from limbeck.recipe.teacher import Teacher
from limbeck.signals import Asked
from limbeck.tasks import Task
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.huggingface import HuggingFaceModel


def open_teacher(
    checkpoints: Sequence[Checkpoint], teacher: Teacher, task: Task, length: int | None, precision: str = "auto"
) -> Asked:
    """The opened models as one that can be asked."""
    picked = hardware.pick_precision(precision)
    members = [HuggingFaceModel(each, task, length, teacher.batch_size, picked) for each in checkpoints]
    if len(members) == 1:
        return members[0]
    return Ensemble(members, [model.weight for model in teacher.models], teacher.combine, task)
