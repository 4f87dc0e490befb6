"""Students with random weights that read images or tables of features."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, ViTImageProcessorPil
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError
from limbeck.recipe.schema import Student
from limbeck.recipe.sections import nearest
from limbeck.students.dense import MLPConfig, SmallCNNConfig
from limbeck.students.fresh import refuse_unknown
from limbeck.students.soft_tree import SoftTreeConfig
from limbeck.tasks import Task
from limbeck.tasks.features import FeatureProcessor
from limbeck.tasks.images import ImageReader

_LOOKED_AT = 1000
"""Images whose mean and deviation a student without a teacher is given."""


def fresh_other(
    student: Student, teacher: Checkpoint | None, task: Task, examples: Dataset
) -> tuple[Checkpoint, dict[str, Any]]:
    """A model of the recipe's `student.shape` for examples that are not text, and the record of how it was made.

    Args:
        student: `shape`: with `model_type`, an architecture's own entries; without, the teacher's that differ.
        teacher: lends its configuration and what it reads with.
        task: sets the head.
        examples: to learn from; of a student that reads otherwise than a teacher they give sizes, means and deviations.

    Raises:
        InputError: unknown names, impossible sizes, entries about text.
    """
    for name in ("embeddings", "tokenizer"):
        if getattr(student, name):
            raise InputError(f"student.{name} is about text, and the examples are of {task.inputs}; leave it out")
    shape = dict(student.shape or {})
    kind = shape.pop("model_type", None)
    if kind is None and teacher is None:
        raise InputError("without a teacher a fresh shape needs its architecture; add student.shape.model_type=NAME")
    if task.inputs == "image":
        checkpoint = _of_images(kind, shape, teacher, task, examples)
    else:
        checkpoint = _of_features(kind, shape, teacher, task, examples)
    return checkpoint, {"from": "random weights", "shape": student.shape}


def _of_images(
    kind: str | None, shape: dict[str, Any], teacher: Checkpoint | None, task: Task, examples: Dataset
) -> Checkpoint:
    ours = (MLPConfig, SmallCNNConfig, SoftTreeConfig)
    known = [*MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, *(each.model_type for each in ours)]
    config = _config(kind, known, "classifies images", teacher)
    asked = shape.get("image_size")
    its = _size(teacher) if teacher is not None and teacher.inputs == "image" else None
    if teacher is not None and its is not None and asked in (None, its):
        processor = copy.deepcopy(teacher.processor)
        size, channels = its, getattr(teacher.model.config, "num_channels", 3)
    else:
        first = examples[0]["image"]
        size = asked or (first.size[0] if first.size[0] == first.size[1] else [first.size[1], first.size[0]])
        channels = shape.get("num_channels", 1 if first.mode in ("1", "L") else 3)
        processor = _processor(size, channels, examples)
    given = {"image_size": size, "num_channels": channels} | shape
    return Checkpoint(_model(AutoModelForImageClassification, config, given, task), processor, "student")


def _of_features(
    kind: str | None, shape: dict[str, Any], teacher: Checkpoint | None, task: Task, examples: Dataset
) -> Checkpoint:
    config = _config(kind, [MLPConfig.model_type, SoftTreeConfig.model_type], "reads features", teacher)
    processor = FeatureProcessor.fit(examples, task.features)
    return Checkpoint(_model(AutoModel, config, {"num_features": processor.width} | shape, task), processor, "student")


def _config(kind: str | None, known: list[str], does: str, teacher: Checkpoint | None) -> PreTrainedConfig:
    """The architecture's own configuration, or the teacher's."""
    if kind is None:
        assert teacher is not None
        return copy.deepcopy(teacher.model.config)
    if kind not in known:
        raise InputError(f"student.shape: no architecture '{kind}' that {does}; {nearest(str(kind), known)}")
    return AutoConfig.for_model(kind)


def _model(auto: Any, config: PreTrainedConfig, given: dict[str, Any], task: Task) -> Any:  # noqa: ANN401
    """A model of random weights."""
    refuse_unknown(config, given)
    try:
        return auto.from_config(type(config).from_dict(config.to_dict() | given | task.config))
    except Exception as error:  # each architecture checks its own shapes in its own way
        raise InputError(f"student.shape does not make a {config.model_type}: {' '.join(str(error).split())}") from None


def _size(teacher: Checkpoint) -> int | list[int] | None:
    """Pixels a side of the images that a teacher reads: one number, or height and width; none where they vary."""
    try:
        height, width = ImageReader(teacher).sides
    except InputError:
        return None
    return height if height == width else [height, width]


def _processor(size: Any, channels: int, examples: Dataset) -> ViTImageProcessorPil:  # noqa: ANN401
    """Resizing to a size, and these examples' own mean and deviation."""
    height, width = (size, size) if isinstance(size, int) else size
    some = examples.select(np.linspace(0, len(examples) - 1, min(len(examples), _LOOKED_AT)).astype(int))
    mode = "L" if channels == 1 else "RGB"
    pixels = [np.asarray(image.convert(mode).resize((width, height)), dtype=np.float64) for image in some["image"]]
    flat = torch.from_numpy(np.stack(pixels).reshape(-1, channels) / 255)
    return ViTImageProcessorPil(
        size={"height": height, "width": width},
        image_mean=flat.mean(0).tolist(),
        image_std=[each or 1.0 for each in flat.std(0).tolist()],
    )
