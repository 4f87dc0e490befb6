"""Which of a teacher's layers a student keeps, and keeping them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from limbeck.anatomy import layer_list
from limbeck.errors import InputError
from limbeck.recipe.schema import Depth

# A pattern keeps `kept` of `depth` layers, counted from 0.
PATTERNS: dict[str, Callable[[int, int], list[int]]] = {
    "first": lambda depth, kept: list(range(kept)),
    "last": lambda depth, kept: list(range(depth - kept, depth)),
    "alternate": lambda depth, kept: [i * depth // kept for i in range(kept)],
    "spaced": lambda depth, kept: [round(i * (depth - 1) / max(kept - 1, 1)) for i in range(kept)],
}
"""`first` and `last` keep a block (PKD's students start from the first). `alternate` keeps every other layer, or
every third, from layer 0 on. `spaced` spreads them evenly with both ends: 12 to 6 is DistilBERT's 0 2 4 7 9 11."""


def layers_of_pattern(
    pattern: str, depth: int, kept: int, key: str = "student.layers", model: str = "the teacher"
) -> list[int]:
    """The layers that `pattern` keeps.

    Args:
        pattern: one of `PATTERNS`.
        depth: the model's layers.
        kept: how many of them.
        key: what the user gave `kept` as, for the message.
        model: what the user calls the model, for the message.

    Raises:
        InputError: more are to be kept than there are, or none.
    """
    _check_number(kept, depth, key, model)
    return PATTERNS[pattern](depth, kept)


def _check_number(kept: int, depth: int, key: str, model: str) -> None:
    if not 1 <= kept <= depth:
        raise InputError(f"{key} is {kept}, but {model} has {depth} layers; keep at least 1 and at most {depth}")


def chosen_layers(
    layers: Depth,
    pattern: str,
    depth: int,
    key: str = "student.layers",
    model: str = "the teacher",
    influence: Callable[[], list[float]] | None = None,
) -> list[int]:
    """The layers that a recipe keeps: those named, or so many (`half` is at least one) by the pattern.

    Args:
        layers: as in the recipe.
        pattern: one of `PATTERNS`, or `influence`.
        depth: the model's layers.
        key: where the recipe says it, for the message.
        model: what the user calls the model, for the message.
        influence: measures how much each layer does, for that pattern; called where layers are to be left out.

    Raises:
        InputError: see `layers_of_pattern`; layers named are checked by `keep_layers`.
    """
    if isinstance(layers, list):
        return layers
    numbers = {"half": max(depth // 2, 1), "all": depth}
    kept = numbers[layers] if isinstance(layers, str) else layers
    if pattern != "influence":
        return layers_of_pattern(pattern, depth, kept, key, model)
    _check_number(kept, depth, key, model)
    if kept == depth:
        return list(range(depth))
    assert influence is not None
    each = influence()
    return sorted(sorted(range(depth), key=lambda layer: -each[layer])[:kept])


def layers_table(depths: Sequence[int] = (6, 12, 24)) -> list[tuple[int, int, str, list[int]]]:
    """Rows of (teacher's layers, student's layers, pattern, layers kept) for the usual sizes."""
    return [
        (depth, kept, pattern, layers_of_pattern(pattern, depth, kept))
        for depth in depths
        for kept in (depth // 2, depth // 3, depth // 4)
        if kept > 0
        for pattern in PATTERNS
    ]


def keep_settings(config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Cut a configuration's lists of one setting per layer, such as `layer_types`, to these layers."""
    for name, value in list(vars(config).items()):
        per_layer = "layer" in name or name == "attention_window"  # Longformer's
        if per_layer and isinstance(value, (list, tuple)) and len(value) == config.num_hidden_layers:
            setattr(config, name, [value[layer] for layer in layers])


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Refuse layers that cannot be kept of a model with so many.

    Raises:
        InputError: a layer that is not there, or is named twice; none at all.
    """
    if any(not 0 <= layer < depth for layer in layers) or len(set(layers)) < len(layers) or not layers:
        raise InputError(
            f"layers {list(layers)} cannot be kept; the model's layers are 0 to {depth - 1}, each at most once"
        )


def keep_layers(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A copy of `teacher` with only these layers, in this order; all other weights are the teacher's.

    Args:
        teacher: any transformer with one stack of layers.
        layers: layer numbers counted from 0.

    Raises:
        InputError: a layer that is not there, or is named twice; an architecture without a stack to cut, or with a
            layer that does not fit in its new place.
    """
    path, stack = layer_list(teacher)
    depth = len(stack)
    check_layers(layers, depth)
    config = copy.deepcopy(teacher.config)
    keep_settings(config, layers)
    config.num_hidden_layers = len(layers)
    student = type(teacher)(config)
    place = {f"{path}.{old}.": f"{path}.{new}." for new, old in enumerate(layers)}
    weights = {}
    for name, tensor in teacher.state_dict().items():
        prefix = ".".join(name.split(".")[: path.count(".") + 2]) + "."
        if not name.startswith(f"{path}."):
            weights[name] = tensor
        elif prefix in place:
            weights[place[prefix] + name.removeprefix(prefix)] = tensor
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:  # ModernBERT's layer 0 has no norm of its own
        raise InputError(
            f"{config.model_type} does not build all its layers alike, so layers {list(layers)} do not fit in each "
            f"other's places ({' '.join(str(error).split())[:200]}); keep layer 0 first, or give student.shape"
        ) from None
    student.generation_config = copy.deepcopy(getattr(teacher, "generation_config", None))
    return student
