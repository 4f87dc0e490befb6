"""Students whose optimiser and gradients DeepSpeed splits over the processes of a run (ZeRO, stages 1 and 2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from accelerate.utils.deepspeed import HfDeepSpeedConfig

from limbeck.errors import InputError
from limbeck.extras import require
from limbeck.recipe import Recipe

_RECIPES = {
    "optimizer": "training.learning_rate and training.weight_decay",
    "scheduler": "training.schedule and training.warmup",
    "train_micro_batch_size_per_gpu": "training.batch_size",
    "train_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation",
}
"""What a recipe says, and DeepSpeed's own file must not say otherwise."""


def zero() -> bool:
    """Whether Accelerate has DeepSpeed train."""
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def check_zero(recipe: Recipe) -> None:
    """Refuse what DeepSpeed cannot do here, and a configuration that says something else than the recipe.

    Raises:
        InputError: DeepSpeed is missing, splits the weights, trains otherwise than the recipe says, or would have to
            skip layers.
    """
    require("deepspeed", "what Accelerate's configuration asks for")
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # `accelerate config` always says 1
    said = _configuration()
    stage = int(said.get("zero_optimization", {}).get("stage", 0))
    if stage > 2:
        raise InputError(
            f"Accelerate's configuration asks for stage {stage} of DeepSpeed's ZeRO, and training takes 1 and 2; give "
            "2, or split weights by FSDP: distributed_type: FSDP and fsdp_version: 2"
        )
    for name, settings in _RECIPES.items():
        if said.get(name, "auto") != "auto":
            raise InputError(
                f"DeepSpeed's configuration has {name}: {said[name]}, which the recipe says ({settings}); "
                f'leave it out there, or say "auto"'
            )
    clipping = said.get("gradient_clipping", "auto")
    for stage_of in recipe.stages:
        training = recipe.training_of(stage_of)
        if clipping != "auto" and float(clipping) != training.max_grad_norm:
            raise InputError(
                f"DeepSpeed's configuration clips gradients at {clipping}, stage {stage_of.name} at "
                f"{training.max_grad_norm:g}; give training.max_grad_norm={clipping}, or leave it out there"
            )
        if training.layer_drop:  # processes that skip other layers would wait for each other
            raise InputError(
                f"stage {stage_of.name} skips layers at random (training.layer_drop is {training.layer_drop:g}), which "
                "DeepSpeed cannot do; launch without it"
            )


def _configuration() -> dict[str, Any]:
    """DeepSpeed's own file, or what `accelerate config` asked for in its place."""
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file:
        try:
            found: dict[str, Any] = HfDeepSpeedConfig(file).config
        except ValueError as error:
            raise InputError(f"DeepSpeed's configuration '{file}' cannot be read: {error}") from None
        return found
    clipping = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "none")
    return {
        "zero_optimization": {"stage": os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")},
        "gradient_clipping": "auto" if clipping == "none" else clipping,
    }


def written_by_zero(checkpoint: Path) -> int:
    """How many processes of DeepSpeed wrote a checkpoint; 0 where it is none of theirs."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))


def full_weight(weight: torch.Tensor) -> torch.Tensor | None:
    """A weight as its optimiser has it, in float32, though DeepSpeed's model may have it in bfloat16.

    None where that rounded what is not trained: whoever had the model before has it still.
    """
    if hasattr(weight, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        found: torch.Tensor = safe_get_full_fp32_param(weight)
        return found.detach().clone()
    return None if weight.dtype in (torch.bfloat16, torch.float16) else weight.detach()
