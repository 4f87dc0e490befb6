"""`limbeck plan`: which students would meet a target, what they would cost to make, and by which recipe.

Nothing is modelled where it can be measured: each student is built as a run would build it, timed on the run's own
examples like a finished one, and trained for a few batches. What a forward pass or a step costs does not depend on what
the weights are, so that neither a trained student nor the teacher's answers are needed.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.progress import track
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from limbeck import hardware
from limbeck.anatomy import shape_of
from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError
from limbeck.evaluation import text_lengths
from limbeck.evaluation.memory import PeakMemory
from limbeck.evaluation.speed import measure_speed
from limbeck.folder import RunFolder
from limbeck.given import resolve
from limbeck.preparing import Prepared, prepare
from limbeck.progress import console, say
from limbeck.recipe import Recipe
from limbeck.signals import Asked, Signals
from limbeck.teachers import HuggingFaceModel, open_teacher
from limbeck.training import Teaching
from limbeck.training.checkpointing import Bars
from limbeck.training.lessons import Lesson, prepare_lesson
from limbeck.training.order import LengthGroupedByEpoch
from limbeck.training.phases import Phase, phases_of
from limbeck.training.stages import as_trained, trainer_for

BATCHES = 12
"""Of training that are timed, after as many that are not."""
ASKED, VALIDATED = 256, 1024
"""Examples that the teacher is asked about, and at most so many that a validation is timed on."""


@dataclass(frozen=True)
class Target:
    """What the student is to be; what is not given does not matter.

    Attributes:
        speedup: how many times faster than the teacher it answers, one example at a time.
        latency: milliseconds that an answer takes here, one example at a time.
        megabytes: of its weights in float32.
    """

    speedup: float | None = None
    latency: float | None = None
    megabytes: float | None = None

    def met_by(self, proposal: Proposal) -> bool:
        """Whether a student is small and fast enough."""
        return (
            (self.speedup is None or proposal.speedup >= self.speedup)
            and (self.latency is None or proposal.latency_ms <= self.latency)
            and (self.megabytes is None or proposal.bytes <= 1e6 * self.megabytes)
        )

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return any(value is not None for value in (self.speedup, self.latency, self.megabytes))

    def __str__(self) -> str:
        said = [
            f"{self.speedup:g} times faster" if self.speedup else "",
            f"at most {self.latency:g} ms slow" if self.latency else "",
            f"at most {self.megabytes:g} MB large" if self.megabytes else "",
        ]
        return " and ".join(filter(None, said))


@dataclass(frozen=True)
class Proposal:
    """A student that could be made, and what it would be and cost.

    Attributes:
        name: the student in words.
        recipe: the packaged method to make it by.
        settings: what to give beside the teacher and the data.
        parameters: of the student.
        bytes: of its weights in float32.
        latency_ms: the median answer to one example, as the report measures it.
        speedup: the teacher's latency over it.
        labelling_seconds: asking the teacher about the transfer set.
        training_seconds: the student's stages with validations and checkpoints, without a baseline.
        knowledge_bytes: what is kept of what the teacher said, on disk.
        memory_bytes: the most that training takes beyond the models; none where it cannot be told.
    """

    name: str
    recipe: str
    settings: dict[str, Any]
    parameters: int
    bytes: int
    latency_ms: float
    speedup: float
    labelling_seconds: float
    training_seconds: float
    knowledge_bytes: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Plan:
    """Students by size, the largest first.

    Attributes:
        teacher: its parameters, bytes and latency.
        proposals: all that were looked at.
        target: what was asked for.
    """

    teacher: dict[str, float]
    proposals: list[Proposal]
    target: Target

    @property
    def best(self) -> Proposal | None:
        """The largest student that meets the target: of two that are small enough the larger one loses less."""
        return next((each for each in self.proposals if self.target.met_by(each)), None)


def plan_students(settings: Mapping[str, Any], target: Target) -> Plan:
    """Look at students of a teacher: fewer of its layers, and narrower ones.

    Args:
        settings: what `distill` will be given but for the student: names or objects, teacher and data among them.
        target: what the student is to be.

    Raises:
        InputError: as `run`; a task or teacher of which students cannot be planned.
    """
    with tempfile.TemporaryDirectory(prefix="limbeck-plan-") as folder:
        given = dict(settings) | {"output": f"{folder}/0", "export": [], "baseline": False}
        task = given.get("task", {})
        kind = given.get("task.kind") or (task.get("kind") if isinstance(task, Mapping) else task)
        if kind in ("masked-lm", "causal-lm"):
            raise InputError(f"plan is about classifiers and regressors, not {kind}; try distill itself")
        first, objects = resolve("hinton", given)
        ready = prepare(first, objects, RunFolder(Path(first.output)))
        if not ready.teachers:
            raise InputError("plan times the teacher, which is behind a server here; give teacher=MODEL")
        say("plan: timing the teacher and its students")
        asked = _teacher(first, ready)
        labelling = _labelling_rate(asked, ready)
        runs = {}
        for number, (name, method, changes) in enumerate(_candidates(ready, given), 1):
            recipe, _ = resolve(method, given | {"output": f"{folder}/{number}"} | changes)
            runs[name] = (method, changes, recipe, prepare(recipe, objects, RunFolder(Path(recipe.output))))
        if not runs:
            raise InputError(
                "the teacher has one layer, and no student of it can be planned; give distill student.shape"
            )
        speed = _speeds(asked, {name: run[3] for name, run in runs.items()}, first, ready)
        proposals = []
        for name, (method, changes, recipe, made) in track(runs.items(), "Training a few batches", console=console):
            seconds, memory = _training(recipe, made)
            parameters = sum(p.numel() for p in made.student.model.parameters())
            rows = len(made.splits.transfer) * _copies(recipe)
            proposals.append(
                Proposal(
                    name=name,
                    recipe=method,
                    settings=changes,
                    parameters=parameters,
                    bytes=sum(p.numel() * p.element_size() for p in made.student.model.parameters()),
                    latency_ms=speed[name],
                    speedup=speed["teacher"] / speed[name],
                    labelling_seconds=rows * labelling if made.plan.stored else 0.0,
                    training_seconds=seconds,
                    knowledge_bytes=rows * _row_bytes(made) if made.plan.stored else 0,
                    memory_bytes=memory,
                )
            )
    teacher = {"parameters": asked.parameters or 0, "bytes": asked.bytes or 0, "latency_ms": speed["teacher"]}
    return Plan(teacher, sorted(proposals, key=lambda each: -each.parameters), target)


def _candidates(ready: Prepared, given: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Students worth a look: name, method, and the settings that make them."""
    if any(key == "student" or key.startswith("student.") for key in given):
        raise InputError("plan proposes students itself; leave student out")
    shape = shape_of(ready.teachers[0].model)
    depths = sorted({round(shape.layers * share) for share in (3 / 4, 1 / 2, 1 / 3, 1 / 4, 1 / 6)} - {0}, reverse=True)
    found: list[tuple[str, str, dict[str, Any]]] = [
        (f"{layers} layer{'s' if layers > 1 else ''}", "hinton", {"student.layers": layers})
        for layers in depths
        if layers < shape.layers
    ]
    config = ready.teachers[0].model.config
    heads = getattr(config, "num_attention_heads", 0)
    if ready.task.inputs != "text" or not heads or not hasattr(config, "intermediate_size"):
        return found
    general = {} if _has_text(given) else {"stages.general": None}
    for share, layers in (
        (2, max(1, shape.layers // 2)),
        (2, max(1, shape.layers // 3)),
        (4, max(1, shape.layers // 3)),
    ):
        width = max(heads, config.hidden_size // share // heads * heads)
        sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
        name = f"{layers} x {width}"
        if all(name != other for other, _, _ in found):
            found.append((name, "tinybert", {"student.shape": sizes, **general}))
    return found


def _has_text(given: Mapping[str, Any]) -> bool:
    """Whether plain text is given, which TinyBERT's first stage learns from."""
    data = given.get("data")
    return "data.corpus" in given or (isinstance(data, Mapping) and "corpus" in data)


def _teacher(recipe: Recipe, ready: Prepared) -> Asked:
    assert recipe.teacher is not None
    validation = ready.splits.validation
    return open_teacher(ready.teachers, recipe.teacher, ready.task, recipe.task.max_length, validation=validation)


def _labelling_rate(teacher: Asked, ready: Prepared) -> float:
    """Seconds that the teacher takes for an example of the transfer set."""
    rows = np.random.default_rng(0).permutation(len(ready.splits.transfer))[:ASKED]
    some = ready.splits.transfer.select(np.sort(rows))
    teacher.ask(some.select(range(min(32, len(some)))))
    started = time.perf_counter()
    teacher.ask(some)
    return (time.perf_counter() - started) / len(some)


def _speeds(teacher: Asked, runs: Mapping[str, Prepared], recipe: Recipe, ready: Prepared) -> dict[str, float]:
    """The median latency of all models in milliseconds, measured as the report does it."""
    length = recipe.task.max_length
    models: dict[str, Asked] = {name: HuggingFaceModel(made.student, made.task, length) for name, made in runs.items()}
    exact = HuggingFaceModel(ready.teachers[0], ready.task, length) if len(ready.teachers) == 1 else teacher
    found = measure_speed(
        {"teacher": exact} | models, ready.splits.test, text_lengths(ready.splits.test, ready.task), 0
    )
    return {name: float(each["latency_ms_p50"]) for name, each in found.items()}


def _copies(recipe: Recipe) -> int:
    """How many times as many examples as there are altered copies make of them."""
    return 1 + (recipe.data.augmentation.copies if recipe.data.augmentation is not None else 0)


def _row_bytes(ready: Prepared) -> int:
    """Bytes of an example in a store: its texts, logits and states."""
    texts = [name for name in ready.task.columns if ready.task.inputs == "text"]
    some = ready.splits.transfer.select(range(min(ASKED, len(ready.splits.transfer))))
    width = sum(np.mean([len(text.encode()) + 4 for text in some[name]]) for name in texts)
    states = 2 * shape_of(ready.teachers[0].model).width * len(ready.plan.features)
    return int(width + 4 * ready.task.outputs + states)


def _training(recipe: Recipe, ready: Prepared) -> tuple[float, int | None]:
    """Seconds that a recipe's stages take, and the most memory beyond the models."""
    teaching = Teaching(_Silent(ready), ready.teachers, ready.general)
    student = Checkpoint(copy.deepcopy(ready.student.model), ready.student.processor, ready.student.name)
    seconds, memory = 0.0, 0
    for phase in phases_of(recipe.stages, recipe, shape_of(student.model).layers):
        lesson = prepare_lesson(phase, student, recipe, ready.task, ready.splits, teaching)
        try:
            took, most = _phase(lesson, phase, recipe, ready, student)
        finally:
            lesson.close()
        seconds, memory = seconds + took, max(memory, most or 0)
    return seconds, memory or None


def _phase(
    lesson: Lesson, phase: Phase, recipe: Recipe, ready: Prepared, student: Checkpoint
) -> tuple[float, int | None]:
    """Seconds of a phase, from a few of its batches, one validation and one checkpoint; and its most memory."""
    training = recipe.training_of(phase.stage)
    per_step = training.batch_size * training.gradient_accumulation * hardware.processes().num_processes
    rows = len(lesson.learn) * (1 if phase.stage.on_text else _copies(recipe))
    steps = max(1, round(rows / per_step * training.epochs))
    held = lesson.validate
    some = replace(
        lesson,
        learn=lesson.learn.select(_updates(lesson.learn, per_step, recipe.seed)),
        validate=None if held is None else held.select(range(min(len(held), VALIDATED))),
    )
    stage = phase.stage.model_copy(update={"training": phase.stage.training | {"epochs": 2, "checkpoint_steps": None}})
    watch = _Stopwatch()
    memory = PeakMemory(hardware.device())
    with as_trained(lesson, phase, training) as decay, tempfile.TemporaryDirectory(prefix="limbeck-plan-") as folder:
        trainer = trainer_for(some, replace(phase, stage=stage), recipe, ready.task, student, Path(folder))
        trainer.args.save_strategy = SaveStrategy.EPOCH
        trainer.args.train_sampling_strategy = "sequential"  # the updates as they are
        trainer.remove_callback(Bars)
        trainer.add_callback(decay)
        trainer.add_callback(watch)
        trainer.train()
        trainer.capture.close()
    every = training.checkpoint_steps
    saves = max(1, round(training.epochs) if every is None else -(-steps // every))
    seconds = watch.step * steps + saves * watch.checkpoint
    seconds += saves * watch.validation * (len(held) / len(some.validate) if held and some.validate else 0)
    return seconds, memory.read()


def _updates(learn: Dataset, size: int, seed: int) -> list[int]:
    """The examples of some of the run's own updates, evenly spaced: a random draw would be padded more."""
    order = list(LengthGroupedByEpoch(size, learn["length"][:], seed, lambda: 0))
    updates = [order[start : start + size] for start in range(0, len(order), size)]
    spaced = np.linspace(0, len(updates) - 1, min(BATCHES, len(updates))).round().astype(int)
    return [row for number in spaced for row in updates[number]]


class _Stopwatch(TrainerCallback):
    """Seconds of a step, a validation and a checkpoint, in the second of two epochs."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self.steps: dict[str, int] = {}

    def _mark(self, name: str, step: int) -> None:
        self.marks[name], self.steps[name] = time.perf_counter(), step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """A second time overwrites the first."""
        self._mark("begin", state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """The steps are done."""
        self._mark("end", state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """The validation is done."""
        self._mark("evaluated", state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """The checkpoint is written."""
        self._mark("saved", state.global_step)

    @property
    def step(self) -> float:
        """Seconds of an update."""
        return (self.marks["end"] - self.marks["begin"]) / max(1, self.steps["end"] - self.steps["begin"])

    @property
    def validation(self) -> float:
        """Seconds of the validation."""
        return self.marks.get("evaluated", self.marks["end"]) - self.marks["end"]

    @property
    def checkpoint(self) -> float:
        """Seconds of a checkpoint."""
        before = self.marks.get("evaluated", self.marks["end"])
        return max(0.0, self.marks.get("saved", before) - before)


class _Silent:
    """In the place of knowledge: signals of the right form that say nothing."""

    def __init__(self, ready: Prepared) -> None:
        self.outputs, self.features = ready.task.outputs, ready.plan.features
        self.width = shape_of(ready.teachers[0].model).width

    def signals(self, batch: dict[str, torch.Tensor]) -> Signals:
        """Zeros."""
        rows = len(batch["row"])
        states = {layer: torch.zeros(rows, self.width, dtype=torch.float16) for layer in self.features}
        return Signals(torch.zeros(rows, self.outputs), states)
