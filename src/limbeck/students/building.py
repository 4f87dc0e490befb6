"""From the recipe's `student` section to a model ready to train."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from limbeck.checkpoints import Checkpoint, open_classifier
from limbeck.errors import InputError
from limbeck.recipe.schema import Student
from limbeck.recipe.sections import nearest
from limbeck.students.layers import keep_layers, keep_settings, layers_of_pattern
from limbeck.tasks import Task


def build_student(
    student: Student, given: Checkpoint | None, teacher: Checkpoint | None, task: Task, seed: int
) -> Checkpoint:
    """The student before training. How it was made is recorded in its configuration as `limbeck`.

    Args:
        student: the recipe's section; nothing given means half of the teacher's layers.
        given: a model object that the caller brought for `student.model`; copied.
        teacher: the (first) teacher, for its layers or configuration; never changed.
        task: sets the head; a checkpoint that brings another head gets a new one.
        seed: fixes what is initialised at random.

    Raises:
        InputError: layers, names or shapes that cannot be.
    """
    torch.manual_seed(seed)
    if given is not None:
        if given.model.config.num_labels != task.outputs:
            raise InputError(
                f"the student's model has {given.model.config.num_labels} outputs, the task has {task.outputs} "
                f"({', '.join(task.labels)}); make it with num_labels={task.outputs}"
            )
        return _record(copy.deepcopy(given), {"from": "model object", "model": student.model})
    if student.model is not None:
        checkpoint = open_classifier(student.model, student.revision, student.trust_remote_code, head=task.config)
        return _record(checkpoint, {"from": "checkpoint", "model": student.model})
    if teacher is None:
        raise InputError("without a teacher the student's start must be given; add student=MODEL")
    if student.shape is not None:
        return _fresh(student.shape, teacher, task)
    depth = int(teacher.model.config.num_hidden_layers)
    kept = student.layers if student.layers is not None else max(depth // 2, 1)
    layers = kept if isinstance(kept, list) else layers_of_pattern(student.pattern, depth, kept)
    made = Checkpoint(keep_layers(teacher.model, layers), teacher.tokenizer, "student")
    return _record(made, {"from": "teacher", "layers": layers})


def _fresh(shape: dict[str, Any], teacher: Checkpoint, task: Task) -> Checkpoint:
    config = copy.deepcopy(teacher.model.config)
    depth = shape.get("num_hidden_layers")
    if isinstance(depth, int) and depth < config.num_hidden_layers:
        keep_settings(config, range(depth))
    for name, value in shape.items():
        if not hasattr(config, name):
            known = [key for key in config.to_dict() if not key.startswith("_")]
            raise InputError(f"student.shape: {config.model_type} has no '{name}'; {nearest(name, known)}")
        setattr(config, name, value)
    config.update(task.config)
    try:
        type(config).from_dict(config.to_dict())  # what saving and opening will check
        model = AutoModelForSequenceClassification.from_config(config)
    except Exception as error:  # each architecture checks its own shapes in its own way
        raise InputError(f"student.shape does not make a {config.model_type}: {' '.join(str(error).split())}") from None
    return _record(Checkpoint(model, teacher.tokenizer, "student"), {"from": "random weights", "shape": shape})


def _record(checkpoint: Checkpoint, origin: dict[str, Any]) -> Checkpoint:
    checkpoint.model.config.limbeck = {"initialisation": origin}
    return checkpoint
