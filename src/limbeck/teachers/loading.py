"""Opening what the recipe names as teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from limbeck import hardware
from limbeck.checkpoints import Checkpoint, label_names
from limbeck.recipe.teacher import Teacher
from limbeck.signals import Asked
from limbeck.tasks import Task
from limbeck.teachers.api import ApiTeacher
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.estimator import EstimatorTeacher
from limbeck.teachers.huggingface import HuggingFaceModel
from limbeck.teachers.specialists import WithSpecialists


def open_teacher(
    checkpoints: Sequence[Checkpoint],
    teacher: Teacher,
    task: Task,
    length: int | None,
    precision: str = "auto",
    root: Path | None = None,
    validation: Dataset | None = None,
) -> Asked:
    """The recipe's models as one that can be asked.

    Args:
        checkpoints: those that are opened here, in the recipe's order.
        teacher: the recipe's section.
        task: what is predicted.
        length: tokens kept of an example.
        precision: what models here compute in.
        root: the folder that keeps knowledge, and so what servers answered; needed where there is a server.
        validation: labelled examples; needed where models are weighed by them.

    Raises:
        InputError: see `EstimatorTeacher`, `Ensemble` and `WithSpecialists`.
    """
    picked, opened = hardware.pick_precision(precision), iter(checkpoints)
    members: list[Asked] = []
    for each in teacher.models:
        if each.network:
            checkpoint = next(opened)
            own = replace(task, labels=label_names(checkpoint.model.config)) if each.others else task
            members.append(HuggingFaceModel(checkpoint, own, length, teacher.batch_size, picked))
        elif each.server is None:
            members.append(EstimatorTeacher(each.model, task))
        else:
            assert root is not None
            members.append(ApiTeacher(each, task, root))
    pairs = list(zip(members, teacher.models, strict=True))
    general = [(member, model.weight) for member, model in pairs if model.others is None]
    if teacher.weigh == "validation":
        assert validation is not None
        general = [(member, weight * _score(member, validation, task)) for member, weight in general]
    whole = general[0][0]
    if len(general) > 1:
        alike, weights = zip(*general, strict=True)
        whole = Ensemble(alike, weights, teacher.combine, task, teacher.weigh == "confidence")
    specialists = [(member, model.others) for member, model in pairs if model.others is not None]
    return WithSpecialists(whole, specialists, task) if specialists else whole


def _score(member: Asked, validation: Dataset, task: Task) -> float:
    """A model's main metric on labelled examples, at least a thousandth: one that is of no use has no say."""
    metric = task.metrics[task.main_metric(None)]
    predicted = task.predict(np.asarray(member.ask(validation).logits))
    return max(float(metric(np.array(validation["label"][:]), predicted)), 1e-3)
