"""From the recipe's `student` section to a model ready to train."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from limbeck.anatomy import shape_of
from limbeck.checkpoints import Checkpoint, open_causal, open_classifier, open_language_model
from limbeck.errors import InputError
from limbeck.progress import say
from limbeck.recipe.schema import Depth, Student
from limbeck.students.conversion import as_distilbert
from limbeck.students.fresh import fresh_student, tokenizer_for
from limbeck.students.importance import TEXTS, block_influence
from limbeck.students.layers import check_layers, chosen_layers, keep_layers
from limbeck.students.other_inputs import fresh_other
from limbeck.students.width import check_width, choose_units, cut_width
from limbeck.tasks import Task


def build_student(
    student: Student,
    given: Checkpoint | None,
    teacher: Checkpoint | None,
    task: Task,
    seed: int,
    general: Checkpoint | None = None,
    texts: Sequence[str] | None = None,
    examples: Dataset | None = None,
) -> Checkpoint:
    """The student before training. How it was made is recorded in its configuration as `limbeck`.

    Args:
        student: the recipe's section; nothing given means half of the teacher's layers.
        given: a model object that the caller brought for `student.model`; copied.
        teacher: the (first) teacher, for its layers, configuration or embeddings; never changed.
        task: sets the head; a checkpoint that brings another head gets a new one.
        seed: fixes what is initialised at random.
        general: the language model that teaches first; a fresh shape's embeddings are taken from it.
        texts: text like that to be trained on, by which the units of a narrower student are chosen, without any they
            are the first; and its layers by their influence. Of `student.vectors` all of it: its words are the
            vocabulary.
        examples: to learn from; a fresh shape that reads images or features is made to read these.

    Raises:
        InputError: layers, names or shapes that cannot be; entries that the others leave without a meaning.
    """
    torch.manual_seed(seed)
    _refuse_idle_entries(student)
    if student.shape is not None and examples is not None and task.inputs != "text":
        return _record(*fresh_other(student, teacher, task, examples))
    if student.shape is not None:
        return _record(*fresh_student(student, teacher, task, general or teacher, texts or ()))
    if given is not None:
        if task.kind not in ("masked-lm", "causal-lm") and given.model.config.num_labels != task.outputs:
            raise InputError(
                f"the student's model has {given.model.config.num_labels} outputs, the task has {task.outputs} "
                f"({', '.join(task.labels)}); make it with num_labels={task.outputs}"
            )
        return _cut(given, student, task, {"from": "model object", "model": student.model}, texts)
    if student.model is not None:
        where = (student.model, student.revision, student.trust_remote_code)
        opened = _open(task, *where)
        return _cut(opened, student, task, {"from": "checkpoint", "model": student.model}, texts)
    if teacher is None:
        raise InputError("without a teacher the student's start must be given; add student=MODEL")
    return _cut(teacher, student, task, {"from": "teacher"}, texts)


def _open(task: Task, name: str, revision: str | None, trust_remote_code: bool) -> Checkpoint:
    """A checkpoint to start from; of classifiers and masked language models the head may be new."""
    if task.kind == "causal-lm":
        return open_causal(name, revision, trust_remote_code)
    if task.kind == "masked-lm":
        return open_language_model(name, revision, trust_remote_code, head=False)
    return open_classifier(name, revision, trust_remote_code, head=task.config)


def cut_model(checkpoint: Checkpoint, layers: Depth, pattern: str) -> Checkpoint:
    """A copy of a model with only these of its layers, recorded as a checkpoint's.

    Args:
        checkpoint: the model; not changed.
        layers: how many to keep (a number, `half`, `all`), or which, counted from 0.
        pattern: which layers a number keeps.

    Raises:
        InputError: see `keep_layers`.
    """
    depth = _depth(checkpoint)
    kept = chosen_layers(layers, pattern, depth, "layers", "the model")
    made = Checkpoint(keep_layers(checkpoint.model, kept), checkpoint.processor, checkpoint.name)
    origin = {"from": "checkpoint", "model": checkpoint.name} if checkpoint.name else {"from": "model object"}
    return _record(made, origin | {"layers": kept})


def _depth(checkpoint: Checkpoint) -> int:
    """A model's layers."""
    depth = shape_of(checkpoint.model).layers
    if not depth:
        raise InputError(
            f"'{checkpoint.name}' is a {checkpoint.model.config.model_type}, which has no layers to keep; give "
            "student.shape={...} or student=MODEL"
        )
    return depth


def _refuse_idle_entries(student: Student) -> None:
    if student.shape is None:
        for name in ("embeddings", "tokenizer"):
            if getattr(student, name):
                raise InputError(f"student.{name} is about a fresh shape; give student.shape={{...}} or leave it out")
    elif student.architecture is not None:
        raise InputError(
            "student.architecture is about layers kept of a BERT, not about a fresh shape; give "
            f"student.shape.model_type={student.architecture} instead"
        )


def _cut(
    source: Checkpoint, student: Student, task: Task, origin: dict[str, Any], texts: Sequence[str] | None
) -> Checkpoint:
    """A copy of `source` with the layers and widths that the recipe keeps.

    Of a teacher half of the layers by default, else all.
    """
    uncut = student.layers is None and student.width is None and student.architecture is None
    if uncut and student.model is not None:
        return _record(Checkpoint(copy.deepcopy(source.model), source.processor, source.name), origin)
    kept: Depth = "half" if student.model is None and student.width is None else "all"
    if student.layers is not None:
        kept = student.layers
    whose = "the teacher" if student.model is None else "student.model"
    depth = _depth(source)
    layers = chosen_layers(
        kept, student.pattern_of(task.kind), depth, model=whose, influence=lambda: _influence(source, texts)
    )
    origin = origin | {"layers": layers}
    if student.width is not None:
        if student.architecture is not None:
            raise InputError("student.width and student.architecture exclude each other; leave one of them out")
        sizes = check_width(student.width, source.model.config)
        check_layers(layers, depth)
        units, how = choose_units(source, sizes, layers, texts)
        model = cut_width(keep_layers(source.model, layers), units, layers)
        return _record(Checkpoint(model, source.processor, "student"), origin | {"width": sizes, "units": how})
    if student.architecture is None:
        return _record(Checkpoint(keep_layers(source.model, layers), source.processor, "student"), origin)
    model = as_distilbert(source.model, layers)
    origin["architecture"] = student.architecture
    if hasattr(model, "pre_classifier"):
        origin["random"] = ["pre_classifier", "classifier"]
    return _record(Checkpoint(model, tokenizer_for(model, source.tokenizer), "student"), origin)


def _influence(source: Checkpoint, texts: Sequence[str] | None) -> list[float]:
    """How much each layer does to these texts.

    Raises:
        InputError: there are none.
    """
    if not texts:
        raise InputError(
            "pattern=influence keeps the layers that do most to the training text, and there is none here; give "
            "pattern=spaced, or the layers by number"
        )
    say(f"student: looking at what each layer does to {min(len(texts), TEXTS)} texts, to keep those that do most")
    return block_influence(source.model, source.tokenizer, texts)


def _record(checkpoint: Checkpoint, origin: dict[str, Any]) -> Checkpoint:
    checkpoint.model.config.limbeck = {"initialisation": origin}
    return checkpoint
