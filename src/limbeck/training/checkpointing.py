"""Checkpoints that can be trusted after a crash, a clean model at the end, and quiet progress bars."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from limbeck import hardware
from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError
from limbeck.files import read_json, sync_folder, write_json
from limbeck.progress import say
from limbeck.sharding import sharded
from limbeck.zero import written_by_zero, zero


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint, and none of those that a kill left half-written: they are removed.

    The Trainer writes `trainer_state.json` last, so a checkpoint is whole when that file reads as JSON.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    whole = next((path for path in found if _is_whole(path)), None)
    group = hardware.processes()
    group.wait_for_everyone()
    if group.is_main_process:
        for path in found:
            if not _is_whole(path):
                shutil.rmtree(path)
    group.wait_for_everyone()
    return str(whole) if whole else None


def _is_whole(path: Path) -> bool:
    try:
        json.loads((path / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


def check_same_form(stage: str, checkpoint: Path) -> None:
    """Refuse a checkpoint of a split model for one that is whole or split otherwise, and the other way round."""
    writers, here = written_by_zero(checkpoint), hardware.processes().num_processes
    split = "under DeepSpeed" if writers else "under FSDP"
    before = "without FSDP or DeepSpeed" if (checkpoint / "optimizer.pt").is_file() else split
    now = "under DeepSpeed" if zero() else "under FSDP" if sharded() else "without FSDP or DeepSpeed"
    if writers and zero() and writers != here:
        before, now = f"with {writers} processes under DeepSpeed", f"with {here}"
    if before != now:
        raise InputError(
            f"stage {stage} was stopped {before} and this run is {now}; launch as before, or "
            f"remove {checkpoint.parent} to start the stage anew"
        )


def check_same_shapes(stage: str, checkpoint: Path, model: nn.Module) -> None:
    """Refuse a checkpoint whose weights are not the model's, as another version of this code may have left."""
    weights = checkpoint / "model.safetensors"
    if sharded() or zero() or not weights.is_file():
        return
    here = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    with safe_open(weights, "pt") as kept:
        for name in kept.keys():  # noqa: SIM118  (it is no mapping)
            there = kept.get_slice(name).get_shape()
            if 0 in here.get(name, []):
                continue  # a buffer that takes its size from the first batch, or from what is loaded
            if there != here.get(name):
                raise InputError(
                    f"stage {stage} was stopped by another version of limbeck: {name} is {there} in "
                    f"{checkpoint} and {here.get(name, 'nothing')} here; go on with that version, or remove "
                    f"{checkpoint.parent} to start the stage anew"
                )


def save_model(checkpoint: Checkpoint, folder: Path) -> None:
    """Save the model and what it reads with as one folder that appears whole or not at all."""
    with _whole(folder) as partial:
        partial.mkdir(parents=True)
        checkpoint.model.save_pretrained(partial)
        checkpoint.processor.save_pretrained(partial)


def link_model(saved: Path, folder: Path) -> None:
    """What `save_model` wrote, in a second place: the same files where the disk can share them, else copies."""
    with _whole(folder) as partial:
        shutil.copytree(saved, partial, copy_function=_link)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A neighbour to be made and filled, which takes the folder's place at the end."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    sync_folder(folder.parent)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class Clock(TrainerCallback):
    """The wall time of training over all runs that a stage takes, noted with each checkpoint."""

    def __init__(self, note: Path) -> None:
        self.note = note
        self.earlier: float = read_json(note) if note.exists() else 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """So far."""
        return self.earlier + time.monotonic() - self.started

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Note the time; a run that goes on from this checkpoint adds to it."""
        if state.is_world_process_zero:
            write_json(self.note, self.seconds)


class Bars(ProgressCallback):
    """The Trainer's progress bar with the loss beside it, and one line per validation."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = metric

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Show the loss in the bar instead of printing a dictionary."""
        if logs and self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Say the validation metric."""
        super().on_evaluate(args, state, control, **kwargs)
        value = (metrics or {}).get(f"eval_{self.metric}")
        if value is not None and state.epoch is not None:
            say(f"  epoch {state.epoch:.2f}: validation {self.metric} {value:.4f}")
