"""Running a recipe's stages: resume where an earlier run stopped, save a clean model."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import or_
from pathlib import Path
from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.utils import is_liger_kernel_available

from limbeck import hardware
from limbeck.anatomy import StatesAt, layer_list, shape_of
from limbeck.checkpoints import Checkpoint, open_for
from limbeck.data import Splits
from limbeck.files import read_json, require_space, write_json
from limbeck.objectives import Term
from limbeck.progress import say
from limbeck.recipe.schema import Recipe, Stage, Training
from limbeck.sharding import sharded, whole_weights
from limbeck.students import keep_layers
from limbeck.tasks import Task
from limbeck.tasks.text import model_inputs
from limbeck.training.checkpointing import (
    Bars,
    Clock,
    check_same_form,
    check_same_shapes,
    last_checkpoint,
    link_model,
    save_model,
)
from limbeck.training.kernels import fused_kernels, kernels_for
from limbeck.training.layer_drop import drop_layers
from limbeck.training.lessons import Lesson, Teaching, prepare_lesson
from limbeck.training.phases import Phase, kept_layers, phases_of
from limbeck.training.planning import wanted_of
from limbeck.training.profiling import Profile, student_alone
from limbeck.training.trained_rows import Decay, trained_rows
from limbeck.training.trainer import DistillationTrainer
from limbeck.zero import computed_in, zero

TERMS_MODULE = "limbeck_terms"
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass
class Trained:
    """A model after its stages.

    Attributes:
        checkpoint: the model, as saved.
        history: by stage, what was logged: losses by term, validation metrics, step, epoch, learning rate.
        seconds: wall time of training by stage, over all runs it took.
    """

    checkpoint: Checkpoint
    history: dict[str, list[dict[str, Any]]]
    seconds: dict[str, float]


def train_stages(
    name: str,
    start: Checkpoint,
    stages: Sequence[Stage],
    recipe: Recipe,
    task: Task,
    splits: Splits,
    teaching: Teaching,
) -> Trained:
    """Train a model through stages and save it as `OUTPUT/name`.

    Args:
        name: `student`, `baseline`, `assistant` or `model`; names the folder.
        start: the model before training; changed in place.
        stages: the phases in order.
        recipe: settings, seed and output folder.
        task: what is predicted.
        splits: the examples. Stages with a teacher learn from the transfer set, others from the labelled part.
        teaching: whoever teaches.

    Raises:
        InputError: too little disk for checkpoints.
    """
    folder = Path(recipe.output) / name
    log_file = Path(recipe.output) / "logs" / f"{name}.json"
    places = Path(recipe.output) / "stages"
    if log_file.exists() and (folder / "config.json").exists():
        if hardware.processes().is_main_process:
            _clear(places, name)  # a kill right after the log was written leaves them
        say(f"{name}: reused the trained model in {folder}")
        log = read_json(log_file)
        return Trained(open_for(task, str(folder)), log["history"], log["seconds"])
    size = sum(p.numel() * p.element_size() for p in start.model.parameters())
    # Two checkpoints of weights and two AdamW moments, one more being written, the result.
    require_space(folder, 10 * size, f"training the {name}")
    phases = phases_of(stages, recipe, shape_of(start.model).layers)
    workplaces = [places / f"{name}-{number}-{phase.name}" for number, phase in enumerate(phases, 1)]
    done: dict[str, dict[str, Any]] = {}
    checkpoint = start
    for phase, workplace in zip(phases, workplaces, strict=True):
        checkpoint, done[phase.name] = _run_phase(checkpoint, phase, recipe, task, splits, teaching, workplace)
    history = {phase: record["history"] for phase, record in done.items()}
    seconds = {phase: record["seconds"] for phase, record in done.items()}
    group = hardware.processes()
    if group.is_main_process:
        link_model(workplaces[-1] / "model", folder)
        log_file.parent.mkdir(exist_ok=True)
        write_json(log_file, {"history": history, "seconds": seconds})
        _clear(places, name)
    group.wait_for_everyone()
    return Trained(Checkpoint(checkpoint.model, checkpoint.processor, str(folder)), history, seconds)


def _clear(places: Path, name: str) -> None:
    """Remove a model's workplaces, and their folder with the last."""
    for workplace in places.glob(f"{name}-*"):
        shutil.rmtree(workplace, ignore_errors=True)
    if places.is_dir() and not any(places.iterdir()):
        places.rmdir()


def _run_phase(
    checkpoint: Checkpoint,
    phase: Phase,
    recipe: Recipe,
    task: Task,
    splits: Splits,
    teaching: Teaching,
    workplace: Path,
) -> tuple[Checkpoint, dict[str, Any]]:
    """One phase: the student after it and its record, kept as `workplace/model` and `workplace/done.json`."""
    if (workplace / "done.json").exists():
        say(f"stage {phase.name}: done in an earlier run")
        opened = open_for(task, str(workplace / "model"))
        return Checkpoint(opened.model, checkpoint.processor, checkpoint.name), read_json(workplace / "done.json")
    if phase.stage.keep is not None:
        checkpoint = _cut(checkpoint, phase.stage)
    unsplit = copy.deepcopy(checkpoint.model) if sharded() or zero() else None
    lesson = prepare_lesson(phase, checkpoint, recipe, task, splits, teaching)
    try:
        record = _train(lesson, phase, recipe, task, checkpoint, workplace)
    finally:
        lesson.close()
    if unsplit is not None:  # what is split stays so; what follows needs it whole
        unsplit.load_state_dict(whole_weights(checkpoint.model))
        checkpoint = Checkpoint(unsplit, checkpoint.processor, checkpoint.name)
    group = hardware.processes()
    if group.is_main_process:
        save_model(checkpoint, workplace / "model")
        write_json(workplace / "done.json", record)
    group.wait_for_everyone()
    return checkpoint, record


def _cut(checkpoint: Checkpoint, stage: Stage) -> Checkpoint:
    """The student with the layers that the stage keeps, and a record of it."""
    layers = kept_layers(stage, checkpoint.model.config.num_hidden_layers)
    model = keep_layers(checkpoint.model, layers)
    model.config.limbeck = checkpoint.model.config.limbeck | {f"kept by stage {stage.name}": layers}
    return Checkpoint(model, checkpoint.processor, checkpoint.name)


def _train(
    lesson: Lesson, phase: Phase, recipe: Recipe, task: Task, checkpoint: Checkpoint, workplace: Path
) -> dict[str, Any]:
    with as_trained(lesson, phase, recipe.training_of(phase.stage)) as decay:
        trainer = trainer_for(lesson, phase, recipe, task, checkpoint, workplace)
        trainer.add_callback(decay)
        resumed = last_checkpoint(workplace)
        if resumed:
            check_same_form(phase.name, Path(resumed))
            check_same_shapes(phase.name, Path(resumed), trainer.model)
            say(f"stage {phase.name}: going on from {resumed}")
        clock = Clock(workplace / "seconds.json")
        trainer.add_callback(clock)
        trainer.train(resume_from_checkpoint=resumed)
        trainer.capture.close()
    return {"history": trainer.state.log_history, "seconds": clock.seconds}


@contextmanager
def as_trained(lesson: Lesson, phase: Phase, training: Training) -> Iterator[Decay]:
    """The model as the phase trains it, and afterwards as it was; gives what the trainer must call back."""
    model = lesson.model
    with (
        fused_kernels(model, _kernels(lesson)),
        unprepared(model),
        computed_in(model, hardware.pick_precision(training.precision)),
        extra_weights(model, lesson.terms),
        only_layer(model, phase.only),
        drop_layers(model, training.layer_drop),
        recomputed(model, training.gradient_checkpointing),
        trained_rows(model, lesson.learn, training.weight_decay, _few_words(lesson)) as decay,
    ):
        yield decay


def _few_words(lesson: Lesson) -> bool:
    """Whether all words that training shows the model stand in its examples; what is split stays as it is."""
    return lesson.words is None and not sharded() and not zero()


def _kernels(lesson: Lesson) -> dict[str, bool]:
    """The fused kernels that train a causal language model here."""
    if not isinstance(lesson.words, StatesAt):
        return {}
    return kernels_for(hardware.device().type, is_liger_kernel_available(), or_(*wanted_of(lesson.terms)))


def trainer_for(
    lesson: Lesson, phase: Phase, recipe: Recipe, task: Task, checkpoint: Checkpoint, workplace: Path
) -> DistillationTrainer:
    """The trainer of a phase, with the recipe's settings; see `extra_weights` for the terms' own weights."""
    training = recipe.training_of(phase.stage)
    metric = "accuracy" if phase.stage.on_text else task.main_metric(recipe.evaluation.metric)
    patience = training.patience if lesson.validate is not None else None
    stopping: list[TrainerCallback] = [EarlyStoppingCallback(patience)] if patience else []
    # Each layer's turn is a small part of an epoch: in one order for all, they would see the same few examples.
    seed = (recipe.seed + (phase.only or 1) - 1) % 2**32
    trainer = DistillationTrainer(
        terms=lesson.terms,
        source=lesson.source,
        words=lesson.words,
        own_answers=lesson.own_answers,
        dropout=training.dropout,
        precision=hardware.pick_precision(training.precision),
        profile=_profile(lesson, recipe, training, workplace) if recipe.profile else None,
        eval_collator=lesson.watch or lesson.collate(lambda: 0),  # a validation's masks are the same every time
        model=lesson.model,
        args=_arguments(training, seed, workplace, len(lesson.learn), metric, lesson),
        train_dataset=lesson.learn,
        eval_dataset=lesson.validate,
        processing_class=checkpoint.processor,
        compute_metrics=lesson.metrics,
        callbacks=stopping,
    )
    trainer.data_collator = lesson.collate(lambda: int(trainer.state.epoch or 0))
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bars(metric))
    return trainer


def _profile(lesson: Lesson, recipe: Recipe, training: Training, workplace: Path) -> Profile:
    """A profile of a phase, compared with the floor where the student's forward pass is what training runs."""
    logs = Path(recipe.output) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    group = hardware.processes()
    number = "" if group.num_processes == 1 else f"-{group.process_index}"
    autocast = partial(hardware.autocast, hardware.pick_precision(training.precision))
    floor = partial(student_alone, lesson.model, model_inputs, autocast, training)
    without = lesson.words is not None or sharded() or zero()  # a split student has no copy
    return Profile(logs / f"profile-{workplace.name}{number}.json", None if without else floor)


@contextmanager
def extra_weights(model: PreTrainedModel, terms: Sequence[Term]) -> Iterator[None]:
    """Train and checkpoint the terms' own weights and averages with the model; they are gone from it afterwards.

    As a part of the model they are in its optimiser, its checkpoints and its gradients' exchange between processes.
    """
    own = {t.name: t for t in terms if isinstance(t, nn.Module) and t.state_dict()}
    if own:
        model.add_module(TERMS_MODULE, nn.ModuleDict(own))
    try:
        yield
    finally:
        if own:
            delattr(model, TERMS_MODULE)


@contextmanager
def unprepared(model: PreTrainedModel) -> Iterator[None]:
    """Take away afterwards what accelerate's `prepare` leaves on a model.

    Its autocast stays around `forward`: whoever evaluates or exports the model later would get the training's precision
    for the one asked for. And by its mark the next stage's trainer would not put its own there.
    """
    own, left = vars(model), ("forward", "_original_forward", "_is_accelerate_prepared")
    before = {name: own[name] for name in left if name in own}
    try:
        yield
    finally:
        for name in left:
            own.pop(name, None)
        own.update(before)


@contextmanager
def recomputed(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Keep what each layer reads alone for the backward pass, which computes the rest once more."""
    if not wanted:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers before 5.23 has no other names
        # The reentrant way would lose the gradient of what hooks keep of a layer; it alone needs the embeddings' hook.
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()


@contextmanager
def only_layer(model: PreTrainedModel, number: int | None) -> Iterator[None]:
    """Freeze all but one layer, counted from 1, and what belongs to the terms; nothing where there is no number."""
    if number is None:
        yield
        return
    path, _ = layer_list(model)
    kept = (f"{path}.{number - 1}.", f"{TERMS_MODULE}.")
    frozen = [p for n, p in model.named_parameters() if not n.startswith(kept) and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _arguments(
    training: Training, seed: int, workplace: Path, examples: int, metric: str, lesson: Lesson
) -> TrainingArguments:
    group = hardware.processes()
    precision = hardware.pick_precision(training.precision)
    per_step = training.batch_size * training.gradient_accumulation * group.num_processes
    steps = max(1, round(examples / per_step * training.epochs))
    rhythm: dict[str, Any] = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if training.checkpoint_steps is not None:
        every = training.checkpoint_steps
        rhythm = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": every, "save_steps": every}
    if lesson.validate is None:
        rhythm["eval_strategy"] = "no"
    inner = lesson.wanted.by_token or lesson.wanted.features
    return TrainingArguments(
        output_dir=str(workplace),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=2 * training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        warmup_steps=training.warmup,
        lr_scheduler_type=_SCHEDULES[training.schedule],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=precision == "bfloat16" and not zero(),  # see `computed_in`
        fp16=precision == "float16",
        use_cpu=hardware.device().type == "cpu",
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        label_names=["labels"],
        load_best_model_at_end=training.patience is not None and lesson.validate is not None,
        metric_for_best_model=metric,
        greater_is_better=True,
        save_total_limit=2,  # the best and the last, or the last two in case a kill tears one
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,  # it would wait for the device every step
        report_to=training.report_to or "none",
        seed=seed,
        # A loss on inner layers leaves the head, and layers above, without gradients; one on words the body's pooler;
        # LayerDrop what it skips.
        ddp_find_unused_parameters=bool(inner or lesson.words or training.layer_drop),
        **rhythm,
    )
