"""What callers of the library give, as objects or by name: models, examples and recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck import recipe as recipe_room
from limbeck.checkpoints import Checkpoint, open_classifier, weights_fingerprint
from limbeck.errors import InputError
from limbeck.recipe import Recipe

Model: TypeAlias = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]
Examples: TypeAlias = str | Path | Mapping[str, Any] | Dataset | DatasetDict


def checkpoint_of(model: Model) -> Checkpoint:
    """A classifier given either way."""
    return in_memory(model) or open_classifier(str(model))


def in_memory(model: Any) -> Checkpoint | None:  # noqa: ANN401
    """A pair of a model object and what it reads with; none where the model is named.

    Raises:
        InputError: neither.
    """
    if _is_pair(model):
        return Checkpoint(model[0], model[1], "")
    if isinstance(model, PreTrainedModel):
        raise InputError("a model object needs its tokenizer beside it: give (model, tokenizer)")
    if isinstance(model, (list, tuple)):
        raise InputError(f"one model is needed here, not {len(model)}; give a folder, a name or (model, tokenizer)")
    return None


def _is_pair(model: Any) -> bool:  # noqa: ANN401
    """Whether this is `(model, tokenizer)`, and not several models."""
    if not isinstance(model, tuple) or len(model) != 2 or not isinstance(model[0], PreTrainedModel):
        return False
    return not isinstance(model[1], (str, Path, tuple, PreTrainedModel))


def resolve(recipe: Any, given: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:  # noqa: ANN401
    """The checked recipe with objects replaced by the names that stand for them, and the objects by those names."""
    objects: dict[str, Any] = {}
    named = ("teacher", "data", "student", "output")  # of the others None is a value: `stages.general=null`
    values = {key: value for key, value in given.items() if value is not None or key not in named}
    if "teacher" in values:
        teacher = values["teacher"]
        many = isinstance(teacher, (list, tuple)) and not _is_pair(teacher)
        values["teacher"] = [name_model(each, objects) for each in teacher] if many else name_model(teacher, objects)
    if "student" in values:
        values["student"] = name_model(values["student"], objects)
    if "data" in values:
        values["data"] = name_data(values["data"], objects)
    if "output" in values:
        values["output"] = str(values["output"])
    return recipe_room.load(recipe, values), objects


def name_model(model: Any, objects: dict[str, Any]) -> Any:  # noqa: ANN401
    """What stands for a model in a recipe; an object is put into `objects` under that name."""
    checkpoint = in_memory(model)
    if checkpoint is not None:
        name = f"memory:{weights_fingerprint(checkpoint.model)[:16]}"
        objects[name] = checkpoint
        return name
    return str(model) if isinstance(model, Path) else model


def name_data(examples: Any, objects: dict[str, Any]) -> Any:  # noqa: ANN401
    """Likewise of examples."""
    if isinstance(examples, (Dataset, DatasetDict)):
        parts = examples.values() if isinstance(examples, DatasetDict) else [examples]
        name = "memory:" + "-".join(part._fingerprint for part in parts)
        objects[name] = examples
        return name
    if isinstance(examples, Mapping):
        return {key: name_data(value, objects) for key, value in examples.items()}
    return str(examples) if isinstance(examples, Path) else examples
