"""Students whose optimiser and gradients DeepSpeed splits over the processes of a run (ZeRO, stages 1 and 2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import convert_outputs_to_fp32, parse_flag_from_env
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers import PreTrainedModel

from limbeck import hardware
from limbeck.errors import InputError
from limbeck.extras import require
from limbeck.recipe import Recipe

_AUTO = {
    "train_micro_batch_size_per_gpu": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation",
    "gradient_clipping": "training.max_grad_norm",
}
"""What a file of DeepSpeed's must leave to the recipe: where it has nothing, DeepSpeed has a default of its own."""
_ABSENT = {
    "train_batch_size": "training.batch_size",
    "optimizer": "training.learning_rate and training.weight_decay",
    "scheduler": "training.schedule and training.warmup",
    "bf16": "training.precision",
    "fp16": "training.precision",
}


def zero() -> bool:
    """Whether Accelerate has DeepSpeed train."""
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def check_zero(recipe: Recipe) -> None:
    """Refuse what DeepSpeed cannot do here, and a configuration that says something else than the recipe.

    Raises:
        InputError: DeepSpeed is missing, splits the weights or nothing, trains otherwise than the recipe says, in
            float16, or would have to skip layers.
    """
    require("deepspeed", "what Accelerate's configuration asks for")
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # `accelerate config` always says 1
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # see `computed_in`
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    said = _read(file) if file else {}
    level = said.get("zero_optimization", {}).get("stage", 0)
    if not file:
        level = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if str(level) not in ("1", "2"):
        raise InputError(
            f"Accelerate's configuration asks for stage {level} of DeepSpeed's ZeRO, and training takes 1 and 2; give "
            "one of these, or split weights by FSDP: distributed_type: FSDP and fsdp_version: 2"
        )
    for name, setting in (_AUTO | _ABSENT).items():
        found = said.get(name, "auto" if name in _ABSENT or not file else "nothing")
        if found != "auto" and not (isinstance(found, dict) and found.get("enabled", True) in ("auto", False)):
            raise InputError(
                f"DeepSpeed's configuration has {found} for {name}, which the recipe says ({setting}); "
                + ('say "auto" there' if name in _AUTO else "leave it out there")
            )
    clipping = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "none") if not file else "none"
    for stage in recipe.stages:
        training = recipe.training_of(stage)
        if clipping != "none" and float(clipping) != training.max_grad_norm:
            raise InputError(
                f"Accelerate's configuration clips gradients at {clipping}, stage {stage.name} at "
                f"{training.max_grad_norm:g}; give training.max_grad_norm={clipping}, or leave it out there"
            )
        if hardware.pick_precision(training.precision) == "float16":
            raise InputError(
                f"stage {stage.name} trains in float16, whose gradients nothing would scale under DeepSpeed; "
                "give training.precision=bfloat16 or float32"
            )
        if training.layer_drop:  # processes that skip other layers would wait for each other
            raise InputError(
                f"stage {stage.name} skips layers at random (training.layer_drop is {training.layer_drop:g}), which "
                "DeepSpeed cannot do; launch without it"
            )


def _read(file: str) -> dict[str, Any]:
    """DeepSpeed's own file."""
    try:
        found: dict[str, Any] = HfDeepSpeedConfig(file).config
    except ValueError as error:
        raise InputError(f"DeepSpeed's configuration '{file}' cannot be read: {error}") from None
    return found


@contextmanager
def computed_in(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Under DeepSpeed, autocast around the model's own pass and nothing else, as Accelerate has it without.

    DeepSpeed's bfloat16 would be that of the whole model: its weights, its norms, and the batch's numbers, too.
    """
    if not zero() or precision == "float32":
        yield
        return
    before = vars(model).get("forward")
    inner: Callable[..., Any] = hardware.autocast(precision)(model.forward)  # type: ignore[operator]
    model.forward = convert_outputs_to_fp32(inner)
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def written_by_zero(checkpoint: Path) -> int:
    """How many processes of DeepSpeed wrote a checkpoint; 0 where it is none of theirs."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
