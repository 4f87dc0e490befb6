"""Running a recipe's stages: resume where an earlier run stopped, save a clean model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EarlyStoppingCallback, EvalPrediction, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from limbeck import hardware
from limbeck.checkpoints import Checkpoint, max_length, open_classifier
from limbeck.data import Splits
from limbeck.files import read_json, require_space, write_json
from limbeck.objectives import build_terms
from limbeck.progress import say
from limbeck.recipe.schema import Recipe, Stage, Training
from limbeck.signals import SignalSource
from limbeck.tasks import Task, collate, encode
from limbeck.training.checkpointing import Bars, Clock, last_checkpoint, save_model
from limbeck.training.trainer import DistillationTrainer

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
    source: SignalSource | None,
) -> Trained:
    """Train a model through stages and save it as `OUTPUT/name`.

    Args:
        name: `student` or `baseline`; names the folder.
        start: the model before training; changed in place.
        stages: the phases in order.
        recipe: settings, seed and output folder.
        task: what is predicted.
        splits: the examples. Stages with a teacher learn from the transfer set, others from the labelled part.
        source: the teacher's signals for the transfer set.

    Raises:
        InputError: too little disk for checkpoints.
    """
    folder = Path(recipe.output) / name
    log_file = Path(recipe.output) / "logs" / f"{name}.json"
    if log_file.exists() and (folder / "config.json").exists():
        say(f"{name}: reused the trained model in {folder}")
        log = read_json(log_file)
        return Trained(open_classifier(str(folder)), log["history"], log["seconds"])
    size = sum(p.numel() * p.element_size() for p in start.model.parameters())
    # Two checkpoints of weights and two AdamW moments, one more being written, the result.
    require_space(folder, 10 * size, f"training the {name}")
    places = Path(recipe.output) / "stages"
    workplaces = [places / f"{name}-{number}-{stage.name}" for number, stage in enumerate(stages, 1)]
    done: dict[str, dict[str, Any]] = {}
    for stage, workplace in zip(stages, workplaces, strict=True):
        done[stage.name] = _run_stage(start, stage, recipe, task, splits, source, workplace)
    history = {stage: record["history"] for stage, record in done.items()}
    seconds = {stage: record["seconds"] for stage, record in done.items()}
    group = hardware.processes()
    if group.is_main_process:
        save_model(start, folder)
        log_file.parent.mkdir(exist_ok=True)
        write_json(log_file, {"history": history, "seconds": seconds})
        for workplace in workplaces:
            shutil.rmtree(workplace, ignore_errors=True)
        if not any(places.iterdir()):
            places.rmdir()
    group.wait_for_everyone()
    return Trained(Checkpoint(start.model, start.tokenizer, str(folder)), history, seconds)


def _run_stage(
    checkpoint: Checkpoint,
    stage: Stage,
    recipe: Recipe,
    task: Task,
    splits: Splits,
    source: SignalSource | None,
    workplace: Path,
) -> dict[str, Any]:
    """One stage; its record is kept in `workplace/done.json` and its weights in `workplace/model`."""
    model, tokenizer, _ = checkpoint
    if (workplace / "done.json").exists():
        say(f"stage {stage.name}: done in an earlier run")
        model.load_state_dict(open_classifier(str(workplace / "model")).model.state_dict())
        record: dict[str, Any] = read_json(workplace / "done.json")
        return record
    group = hardware.processes()
    terms = build_terms(stage.objectives, task)
    asks = any(term.needs_teacher for term in terms)
    length = max_length(model, tokenizer, recipe.task.max_length)
    with group.main_process_first():
        learn = encode(splits.transfer if asks else splits.train, tokenizer, task, length)
        validate = encode(splits.validation, tokenizer, task, length)
    validate = validate.select(np.argsort(validate["length"][:], kind="stable"))  # batches of like length
    cut = float(np.mean(np.asarray(learn["length"][:]) == length))
    if cut > 0.01:
        say(f"stage {stage.name}: {cut:.0%} of the examples reach the limit of {length} tokens and may have been cut")
    training = recipe.training_of(stage)
    metric = task.main_metric(recipe.evaluation.metric)
    stopping: list[TrainerCallback] = [EarlyStoppingCallback(training.patience)] if training.patience else []
    trainer = DistillationTrainer(
        terms=terms,
        source=source if asks else None,
        model=model,
        args=_arguments(training, recipe, workplace, len(learn), metric),
        train_dataset=learn,
        eval_dataset=validate,
        data_collator=partial(collate, tokenizer=tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda prediction: _metrics(prediction, task),
        callbacks=stopping,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bars(metric))
    resumed = last_checkpoint(workplace)
    if resumed:
        say(f"stage {stage.name}: going on from {resumed}")
    clock = Clock(workplace / "seconds.json")
    trainer.add_callback(clock)
    trainer.train(resume_from_checkpoint=resumed)
    record = {"history": trainer.state.log_history, "seconds": clock.seconds}
    if group.is_main_process:
        save_model(checkpoint, workplace / "model")
        write_json(workplace / "done.json", record)
    group.wait_for_everyone()
    return record


def _arguments(training: Training, recipe: Recipe, workplace: Path, examples: int, metric: str) -> TrainingArguments:
    group = hardware.processes()
    precision = hardware.pick_precision(training.precision)
    per_step = training.batch_size * training.gradient_accumulation * group.num_processes
    steps = max(1, round(examples / per_step * training.epochs))
    rhythm: dict[str, Any] = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if training.checkpoint_steps is not None:
        every = training.checkpoint_steps
        rhythm = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": every, "save_steps": every}
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
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=hardware.device().type == "cpu",
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        label_names=["labels"],
        load_best_model_at_end=training.patience is not None,
        metric_for_best_model=metric,
        greater_is_better=True,
        save_total_limit=2,  # the best and the last, or the last two in case a kill tears one
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,  # it would wait for the device every step
        report_to=training.report_to or "none",
        seed=recipe.seed,
        ddp_find_unused_parameters=False,
        **rhythm,
    )


def _metrics(prediction: EvalPrediction, task: Task) -> dict[str, float]:
    predicted = task.predict(np.asarray(prediction.predictions))
    return {name: metric(np.asarray(prediction.label_ids), predicted) for name, metric in task.metrics.items()}
