"""Models that are split over the processes of a run, where one device has no room for the whole (FSDP, DeepSpeed)."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

import torch
from accelerate.utils import parse_flag_from_env
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from limbeck import hardware
from limbeck.anatomy import layer_list
from limbeck.errors import InputError
from limbeck.progress import say
from limbeck.recipe import Recipe
from limbeck.zero import check_zero, zero

_OWN_WEIGHTS = ("q_norm", "disentangled_attention_bias")
"""Modules of a layer that its attention scores are computed with, besides queries and keys."""


def sharded() -> bool:
    """Whether Accelerate splits what is trained over the processes."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def check_sharding(recipe: Recipe) -> None:
    """Refuse what training cannot do with models that are split, before any is opened; each process is to open all.

    Raises:
        InputError: the first version of FSDP, dropped layers, answers of a split model's own, or what `check_zero`
            refuses.
    """
    # Every process opens its models and draws fresh weights by itself; theirs would stay empty on all but one.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if zero():
        check_zero(recipe)
    version = os.environ.get("FSDP_VERSION", "1")
    if sharded() and version != "2":
        raise InputError(
            f"Accelerate's configuration asks for version {version} of FSDP, and training needs version 2; "
            "set fsdp_version: 2 there"
        )
    for stage in recipe.stages:
        drop = recipe.training_of(stage).layer_drop
        if drop and sharded():  # processes that skip other layers would wait for each other
            raise InputError(
                f"stage {stage.name} skips layers at random (training.layer_drop is {drop:g}), which FSDP cannot do; "
                "launch without FSDP"
            )
        # Each process would stop at another word, and the others wait for it.
        if stage.on_policy is not None and sharded():
            raise InputError(
                f"stage {stage.name} learns from the student's own answers, which a student that FSDP splits cannot "
                "give; launch without FSDP"
            )
        if stage.on_policy is not None and stage.on_policy.teacher_share and recipe.teacher and recipe.teacher.sharded:
            raise InputError(
                f"stage {stage.name} mixes the teacher's words into answers (on_policy.teacher_share is "
                f"{stage.on_policy.teacher_share:g}), which a teacher that is split cannot give; drop teacher.sharded"
            )


def check_split(recipe: Recipe, student: PreTrainedModel, teachers: Sequence[PreTrainedModel]) -> None:
    """Refuse models that cannot be split as the run asks, before anything costly.

    Args:
        recipe: says whether the teacher is split.
        student: what Accelerate splits, if it does.
        teachers: all that may run along.

    Raises:
        InputError: Accelerate's layer is none of the student's, a teacher without a stack of layers, or attention
            scores that take weights beside the queries' and keys'.
    """
    names = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "") if sharded() else ""
    own = {type(module).__name__ for module in student.modules()}
    for name in filter(None, (each.strip() for each in names.split(","))):
        if name not in own:
            layers = sorted(own & set(student._no_split_modules or ())) or ["its layers' class"]
            raise InputError(
                f"Accelerate's configuration has FSDP split {name}, and a {type(student).__name__} has none; "
                f"set fsdp_transformer_layer_cls_to_wrap to {' or '.join(layers)}"
            )
    split_teachers = list(teachers) if recipe.teacher is not None and recipe.teacher.sharded else []
    if split_teachers and hardware.processes().num_processes == 1:
        say("teacher.sharded: there is one process, so that nothing is split")
    for model in split_teachers:
        try:
            layer_list(model)
        except InputError:
            raise InputError(
                f"teacher.sharded splits layer by layer, and a {type(model).__name__} has no single stack of layers; "
                "drop it"
            ) from None
    reads = any(stage.objectives.attention is not None for stage in recipe.stages)
    for model in [*split_teachers, *([student] if sharded() else [])] if reads else []:
        if any(hasattr(module, name) for module in model.modules() for name in _OWN_WEIGHTS):
            raise InputError(
                f"attention scores of a {type(model).__name__} take weights that a split model does not have at hand; "
                "learn relations instead of attention, or do not split it"
            )


def split(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model of which each process has a part, to be run by all of them at once.

    A layer is whole only while it runs; what is beside the layers stays whole once it has run.

    Raises:
        InputError: the architecture has no single stack of layers.
    """
    own = copy.deepcopy(model.cpu()).requires_grad_(False)
    for layer in layer_list(own)[1]:
        fully_shard(layer)
    fully_shard(own, reshard_after_forward=False)  # a head is used after the forward pass, too
    return own


def whole_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of a model that FSDP split or DeepSpeed trained, whole, on the CPU.

    All processes must call it, and each has all of them.
    """
    model.tie_weights()  # a body that was split without its head has other parameters now
    named = model.state_dict(keep_vars=True)
    found: dict[int, torch.Tensor] = {}  # one for all names of a weight: they stay tied
    for weight in named.values():
        if id(weight) not in found:
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            found[id(weight)] = whole.detach().cpu()
    return {name: found[id(weight)] for name, weight in named.items()}
