"""What a stage works on: the model that is trained, its examples, its terms, and whoever teaches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel

from limbeck import hardware
from limbeck.anatomy import (
    StatesAt,
    WordsAt,
    shape_of,
)
from limbeck.checkpoints import Checkpoint, ends_of, max_length
from limbeck.data import Splits
from limbeck.objectives import Term
from limbeck.progress import say
from limbeck.recipe.schema import Recipe, Training
from limbeck.rules.answers import AnswerRules
from limbeck.signals import SignalSource, Wanted
from limbeck.students.language_model import language_model
from limbeck.tasks import Task
from limbeck.tasks.causal_lm import CausalBatches
from limbeck.tasks.images import ImageReader, as_the_teacher_reads
from limbeck.tasks.masked_lm import TEXT_LENGTH, MaskedBatches, encode_corpus
from limbeck.tasks.random_images import RandomImages
from limbeck.tasks.reader import Reader, TextReader, reader_of
from limbeck.tasks.text import Batch, model_inputs
from limbeck.teachers import LiveTeacher, LiveTeachers, RuledWords
from limbeck.training.on_policy import OwnAnswers
from limbeck.training.phases import Phase
from limbeck.training.planning import asks_live, check_same_inputs, shares_of, terms_of, wanted_of, wanted_of_each
from limbeck.training.words import encode_language, language_metrics, sample


@dataclass
class Teaching:
    """Whoever teaches the stages of a run.

    Attributes:
        knowledge: what the teacher said about the transfer set.
        teachers: the teacher's models, for what is inside of them.
        general: the language model that teaches the stages on plain text.
        rules: about answers; that the words of a teacher which runs along are held to.
    """

    knowledge: SignalSource | None = None
    teachers: Sequence[Checkpoint] = ()
    general: Checkpoint | None = None
    rules: AnswerRules | None = None


@dataclass
class Lesson:
    """A phase, ready for the trainer.

    Attributes:
        model: what is trained: the student, its body, or its body under a language model's head.
        terms: the loss.
        source: the teacher's signals.
        wanted: what the terms read of the student.
        words: where the student's words are read, or its states before they become words.
        learn: tokenised examples to learn from.
        validate: tokenised examples to judge by, where the phase trains what the metric measures.
        collate: makes batches; takes the running epoch.
        metrics: of a validation.
        own_answers: makes batches of the student's own answers.
        watch: makes a validation's batches, where they are made otherwise.
    """

    model: PreTrainedModel
    terms: list[Term]
    source: SignalSource | None
    wanted: Wanted
    words: WordsAt | StatesAt | None
    learn: Dataset
    validate: Dataset | None
    collate: Callable[[Callable[[], int]], Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]]
    metrics: Callable[[EvalPrediction], dict[str, float]] | None
    own_answers: OwnAnswers | None = None
    watch: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]] | None = None

    def close(self) -> None:
        """Leave the models as they were."""
        for each in (self.words, self.source):
            if isinstance(each, (WordsAt, StatesAt, LiveTeacher, LiveTeachers, RuledWords)):
                each.close()


def prepare_lesson(
    phase: Phase, student: Checkpoint, recipe: Recipe, task: Task, splits: Splits, teaching: Teaching
) -> Lesson:
    """Everything that training a phase takes.

    Raises:
        InputError: the teacher's and the student's tokens differ where signals of every token are compared.
    """
    on_text = phase.stage.on_text
    teachers = [teaching.general] if on_text and teaching.general else [] if on_text else list(teaching.teachers)
    torch.manual_seed(recipe.seed)  # projections and fresh heads
    terms = terms_of(phase, recipe, task, shape_of(student.model), [each.model for each in teachers])
    mine, its = wanted_of(terms)
    source: SignalSource | None = teaching.knowledge if its != Wanted() else None
    causal = task.kind == "causal-lm"
    if teachers and its != Wanted() and (on_text or asks_live(recipe, its, phase.stage)):
        for each in teachers:
            check_same_inputs(student, each, task, on_text, causal)
        precision = hardware.pick_precision(recipe.training_of(phase.stage).precision)
        sharded = recipe.teacher is not None and recipe.teacher.sharded
        live = [
            LiveTeacher(each.model, wanted, precision, causal, _inputs_for(each, student, task), sharded)
            for each, wanted in zip(teachers, wanted_of_each(terms, len(teachers)), strict=True)
        ]
        several = shares_of(recipe, phase.stage) is not None
        source = LiveTeachers(live, source if its.logits else None) if several else live[0]
    if causal:
        return _about_language(phase, student, recipe, splits, terms, mine, source, teaching.rules)
    if on_text:
        return _about_text(phase, student, recipe, splits, terms, mine, source, next(iter(teachers), None))
    reader = reader_of(student, task, recipe.task.max_length)
    asks = its != Wanted() if phase.stage.on is None else phase.stage.on == "transfer"
    with hardware.processes().main_process_first():
        learn = reader.encode(splits.transfer if asks else splits.train)
        validate = reader.encode(splits.validation) if mine.logits else None
    if isinstance(reader, TextReader):
        cut = float(np.mean(np.asarray(learn["length"][:]) == reader.length))
        if cut > 0.01:
            limit = f"the limit of {reader.length} tokens and may have been cut"
            say(f"stage {phase.name}: {cut:.0%} of the examples reach {limit}")
    return Lesson(
        model=student.model,
        terms=terms,
        source=source,
        wanted=mine,
        words=None,
        learn=learn,
        validate=validate,
        collate=lambda epoch: _changed(reader, recipe.training_of(phase.stage), task, recipe.seed, epoch),
        watch=reader.collate,
        metrics=partial(_metrics, task=task) if mine.logits else None,
    )


def _changed(reader: Reader, training: Training, task: Task, seed: int, epoch: Callable[[], int]) -> Any:  # noqa: ANN401
    """What makes a stage's batches: the reader, or random changes of images."""
    if training.images is None or not isinstance(reader, ImageReader):
        return reader.collate
    return RandomImages(reader, training.images, task.outputs, seed, epoch)


def _about_text(
    phase: Phase,
    student: Checkpoint,
    recipe: Recipe,
    splits: Splits,
    terms: list[Term],
    mine: Wanted,
    source: SignalSource | None,
    teacher: Checkpoint | None,
) -> Lesson:
    settings = phase.stage.task
    assert settings is not None  # it is what makes the stage one on text
    tokenizer = student.tokenizer
    model = language_model(student.model, teacher) if mine.logits else student.model.base_model
    length = max_length(student.model, tokenizer, settings.max_length)
    if settings.max_length is None:
        length = min(length, TEXT_LENGTH)
    assert splits.corpus is not None
    held: Dataset | None = None
    with hardware.processes().main_process_first():
        learn = encode_corpus(splits.corpus, tokenizer, length, bool(settings.packed))
        if mine.logits and splits.corpus_held is not None:
            held = encode_corpus(splits.corpus_held, tokenizer, length, bool(settings.packed))
    soft = phase.stage.objectives.soft_targets
    every = soft is not None and soft.positions == "all"
    mask = settings.mask if mine.logits else 0.0
    return Lesson(
        model=model,
        terms=terms,
        source=source,
        wanted=mine,
        words=WordsAt(model) if mine.logits else None,
        learn=learn,
        validate=held,
        collate=lambda epoch: MaskedBatches(tokenizer, mask, settings.whole_words, every, recipe.seed, epoch),
        metrics=_words_right if held is not None else None,
    )


def _about_language(
    phase: Phase,
    student: Checkpoint,
    recipe: Recipe,
    splits: Splits,
    terms: list[Term],
    mine: Wanted,
    source: SignalSource | None,
    rules: AnswerRules | None,
) -> Lesson:
    section, own = phase.stage.on_policy, None
    if section is not None:
        mixed = source.model if section.teacher_share and isinstance(source, LiveTeacher) else None
        own = OwnAnswers(section, student.tokenizer, recipe.seed, mixed, ends_of(student))
    table = splits.train if phase.stage.on == "train" else splits.transfer
    with hardware.processes().main_process_first():
        learn = encode_language(table, student, recipe.task, prompts=rules is not None)
        if own is not None:
            own.check(learn, phase.stage.name, getattr(student.model.config, "max_position_embeddings", None))
        watched = encode_language(splits.validation, student, recipe.task)
    if rules is not None and isinstance(source, LiveTeacher):
        source = RuledWords(source, rules.of(student), learn["prompt"])
    return Lesson(
        model=student.model,
        terms=terms,
        source=source,
        wanted=mine,
        words=StatesAt(student.model),
        learn=learn,
        validate=sample(watched, max(1, recipe.evaluation.examples // 2), recipe.seed),
        collate=lambda epoch: CausalBatches(student.tokenizer),
        metrics=language_metrics,
        own_answers=own,
    )


def _inputs_for(teacher: Checkpoint, student: Checkpoint, task: Task) -> Callable[[Batch], Batch]:
    """What makes the teacher's inputs of the student's batch."""
    if task.inputs != "image":
        return model_inputs
    return partial(as_the_teacher_reads, ImageReader(student), ImageReader(teacher))


def _metrics(prediction: EvalPrediction, task: Task) -> dict[str, float]:
    predicted = task.predict(np.asarray(prediction.predictions))
    return {name: metric(np.asarray(prediction.label_ids), predicted) for name, metric in task.metrics.items()}


def _words_right(prediction: EvalPrediction) -> dict[str, float]:
    right, asked = np.asarray(prediction.predictions).sum(0)
    return {"accuracy": float(right / max(asked, 1))}
