"""Where a step's time goes, and how much of it is more than training the student alone would take.

The floor is the student's own forward pass, a loss on its outputs, the backward pass and the update, on tensors that
are ready: no teacher, no data work, no terms, no logging. What a step takes above it is the cost of distillation.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from limbeck import hardware
from limbeck.files import write_json
from limbeck.progress import say
from limbeck.recipe.schema import Training

SKIPPED, TIMED, PROFILED = 5, 30, 20
"""Updates before, for kernels to be picked and memory to be allocated; then those timed, then those profiled."""
_PREFIX = "limbeck: "


def region(name: str) -> Any:  # noqa: ANN401
    """Marks a part of a step for the profile; next to nothing where none is running."""
    return record_function(_PREFIX + name)


class Profile(TrainerCallback):
    """Times some updates of a phase, each in turn with the floor on the same batches, and profiles some more.

    In turn, because a machine's speed drifts by more than what is to be found. The floor goes once before the update,
    too, untimed: whoever is first to see a batch's shape has the kernels for it made, which both would have to pay.

    Args:
        path: the JSON file for it; PyTorch's trace goes beside it, for Chrome's or Perfetto's viewer.
        floor: makes what takes an update's batches through the student alone; none where that would compute a whole
            vocabulary, which training does not, or where the student is split.
    """

    def __init__(self, path: Path, floor: Callable[[], Callable[[Any], None]] | None) -> None:
        self.path, self.floor = path, floor
        self._batches: list[Any] = []
        self._seconds: list[float] = []
        self._floors: list[float] = []
        self._run: Callable[[Any], None] | None = None
        self._updates, self._profiled = 0, 0
        self._whole: list[float] = []
        self._since: float | None = None
        self._profile: Any = None
        self._done = False

    def saw(self, batches: list[Any]) -> None:
        """Keeps the batches of an update that is timed, and has the kernels for their shapes made."""
        self._batches = [] if self._done else batches
        if self.floor is not None and self._since is not None and self._profile is None and not self._done:
            began = time.perf_counter()
            self._take_floor()
            self._since += time.perf_counter() - began  # is none of the update's

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Times after the first updates, then profiles, then is done."""
        self._updates += 1
        if self._done or self._updates < SKIPPED:
            return
        hardware.synchronise()
        if self._profile is not None:
            self._profiled += 1
            if self._since is not None:
                self._whole.append(time.perf_counter() - self._since)
            if self._profiled == PROFILED:
                self._finish()
            self._since = time.perf_counter()
            return
        if self._since is not None:
            self._seconds.append(time.perf_counter() - self._since)
            if self.floor is not None:
                self._floors.append(self._take_floor())
        if len(self._seconds) == TIMED:
            self._start()
        self._since = time.perf_counter()

    def _between(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """What is between updates belongs to none."""
        self._since = None

    on_epoch_end = on_evaluate = on_save = _between

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """A short phase is profiled as far as it goes."""
        if self._profile is not None:
            self._finish()
        elif not self._done:
            say(f"profile: too few updates were left ({self._updates}; it takes {SKIPPED + TIMED + 1})")

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()

    def _finish(self) -> None:
        self._profile.stop()
        found = {event.key: event.cpu_time_total / 1e6 for event in self._profile.key_averages()}
        self._profile.export_chrome_trace(str(self.path.with_suffix(".trace.json")))
        self._profile, self._done = None, True
        count = max(self._profiled, 1)
        names = ("data", "step", "loss", "terms", "knowledge")
        seconds = {name: found.get(_PREFIX + name, 0.0) / count for name in names}
        parts = {
            "data": seconds["data"],
            "knowledge or teacher": seconds["knowledge"],
            "forward": seconds["loss"] - seconds["terms"] - seconds["knowledge"],
            "terms": seconds["terms"],
            "backward": seconds["step"] - seconds["loss"],
            "update": sum(took for key, took in found.items() if key.startswith("Optimizer.")) / count,
        }
        step, whole = float(np.mean(self._seconds)), float(np.mean(self._whole or [0.0]))
        parts["clipping, logging, waiting"] = max(0.0, whole - sum(parts.values()))
        whole = sum(parts.values())
        result = {"updates": len(self._seconds), "seconds": step, "profiled": parts}
        said = ""
        if self._floors:
            above = np.divide(self._seconds, self._floors) - 1
            low, middle, high = (float(value) for value in np.quantile(above, [0.25, 0.5, 0.75]))
            result |= {"floor": float(np.mean(self._floors)), "above the floor": middle, "quartiles": [low, high]}
            said = f", {middle:+.1%} above the floor ({low:+.1%} to {high:+.1%})"
        self._batches, self._run = [], None
        write_json(self.path, result)
        shares = ", ".join(f"{name} {value / whole:.1%}" for name, value in parts.items())
        say(f"profile: {1e3 * step:.1f} ms an update{said} ({shares}); {self.path}")

    def _take_floor(self) -> float:
        """Take the update's batches through the student alone; seconds."""
        assert self.floor is not None
        with torch.random.fork_rng():  # the copy's dropout takes nothing from the training's
            self._run = self._run or self.floor()
            started = time.perf_counter()
            self._run(self._batches)
            hardware.synchronise()
            return time.perf_counter() - started


def student_alone(
    model: nn.Module,
    inputs: Callable[[Any], dict[str, Any]],
    autocast: Any,  # noqa: ANN401
    training: Training,
) -> Callable[[list[Any]], None]:
    """The floor: a copy of the student that learns nothing in particular, with the same kind of update."""
    own, rate = copy.deepcopy(model).train(training.dropout), training.learning_rate
    optimizer = torch.optim.AdamW([p for p in own.parameters() if p.requires_grad], lr=rate, fused=True)

    def run(batches: list[Any]) -> None:
        for batch in batches:
            with autocast():
                output = own(**inputs(batch))
                logits = output.logits if getattr(output, "logits", None) is not None else output[0]
                loss = logits.float().square().mean()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return run
