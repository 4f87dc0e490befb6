"""Opening what the recipe names as teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limbeck import hardware
from limbeck.checkpoints import Checkpoint
from limbeck.recipe.teacher import Teacher
from limbeck.signals import Asked
from limbeck.tasks import Task
from limbeck.teachers.api import ApiTeacher
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.huggingface import HuggingFaceModel


def open_teacher(
    checkpoints: Sequence[Checkpoint],
    teacher: Teacher,
    task: Task,
    length: int | None,
    precision: str = "auto",
    root: Path | None = None,
) -> Asked:
    """The recipe's models as one that can be asked.

    Args:
        checkpoints: those that are opened here, in the recipe's order.
        teacher: the recipe's section.
        task: what is predicted.
        length: tokens kept of an example.
        precision: what models here compute in.
        root: the folder that keeps knowledge, and so what servers answered; needed where there is a server.
    """
    picked, opened = hardware.pick_precision(precision), iter(checkpoints)
    members: list[Asked] = []
    for each in teacher.models:
        if each.server is None:
            members.append(HuggingFaceModel(next(opened), task, length, teacher.batch_size, picked))
        else:
            assert root is not None
            members.append(ApiTeacher(each, task, root))
    if len(members) == 1:
        return members[0]
    return Ensemble(members, [model.weight for model in teacher.models], teacher.combine, task)
