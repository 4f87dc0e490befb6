"""Models that are split over the processes of a run, where one device has no room for the whole (FSDP)."""

from __future__ import annotations

import copy
import os

import torch
from accelerate.utils import parse_flag_from_env
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from limbeck.anatomy import layer_list
from limbeck.errors import InputError
from limbeck.recipe import Recipe


def sharded() -> bool:
    """Whether Accelerate splits what is trained over the processes."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def check_sharding(recipe: Recipe) -> None:
    """Refuse what training cannot do with models that are split.

    Raises:
        InputError: DeepSpeed, the first version of FSDP, or answers of a split model's own.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise InputError(
            "Accelerate's configuration asks for DeepSpeed, which training cannot do; give one with "
            "distributed_type: FSDP and fsdp_version: 2, which splits the same"
        )
    version = os.environ.get("FSDP_VERSION", "1")
    if sharded() and version != "2":
        raise InputError(
            f"Accelerate's configuration asks for version {version} of FSDP, and training needs version 2; "
            "set fsdp_version: 2 there"
        )
    # Each process would stop at another word, and the others wait for it.
    for stage in recipe.stages:
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


def whole_weights(model: PreTrainedModel) -> dict[str, torch.Tensor] | None:
    """The weights of a model that is split, on the CPU; none where it is whole.

    All processes must call it, and each has all of them.
    """
    named = model.state_dict(keep_vars=True)
    if not any(isinstance(weight, DTensor) for weight in named.values()):
        return None
    found: dict[int, torch.Tensor] = {}  # one for all names of a weight: they stay tied
    for weight in named.values():
        if id(weight) not in found:
            part = weight.detach()
            found[id(weight)] = (part.full_tensor() if isinstance(part, DTensor) else part).cpu()
    return {name: found[id(weight)] for name, weight in named.items()}
