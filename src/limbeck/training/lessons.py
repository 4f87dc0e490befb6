"""What a stage works on: the model that is trained, its examples, its terms, and whoever teaches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel

from limbeck import hardware
from limbeck.anatomy import (
    Shape,
    StatesAt,
    WordsAt,
    check_head,
    language_head,
    language_head_path,
    parts_of,
    shape_of,
)
from limbeck.checkpoints import Checkpoint, max_length, tokenizer_fingerprint
from limbeck.data import Splits
from limbeck.errors import InputError
from limbeck.objectives import Shapes, Term, build_terms
from limbeck.progress import say
from limbeck.recipe.schema import Recipe, Stage, Training
from limbeck.recipe.served_checks import OUTPUTS
from limbeck.rules.answers import AnswerRules
from limbeck.signals import SignalSource, Wanted
from limbeck.students.language_model import language_model
from limbeck.students.soft_tree import SoftTreeConfig
from limbeck.tasks import Task
from limbeck.tasks.causal_lm import CausalBatches
from limbeck.tasks.images import ImageReader, as_the_teacher_reads, what_differs
from limbeck.tasks.masked_lm import TEXT_LENGTH, MaskedBatches, encode_corpus
from limbeck.tasks.random_images import RandomImages
from limbeck.tasks.reader import Reader, TextReader, reader_of
from limbeck.tasks.text import Batch, model_inputs
from limbeck.teachers import LiveTeacher, RuledWords
from limbeck.training.on_policy import OwnAnswers
from limbeck.training.phases import Phase, kept_layers, phases_of
from limbeck.training.words import encode_language, language_metrics, sample


@dataclass
class Teaching:
    """Whoever teaches the stages of a run.

    Attributes:
        knowledge: what the teacher said about the transfer set.
        teacher: the teacher's model, for signals of every token.
        general: the language model that teaches the stages on plain text.
        rules: about answers; that the words of a teacher which runs along are held to.
    """

    knowledge: SignalSource | None = None
    teacher: Checkpoint | None = None
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
            if isinstance(each, (WordsAt, StatesAt, LiveTeacher, RuledWords)):
                each.close()


def terms_of(phase: Phase, task: Task, student: Shape, teacher: PreTrainedModel | None) -> list[Term]:
    """The phase's loss, checked against the sizes of both models.

    Raises:
        InputError: a layer, width or number of heads that does not fit.
    """
    kind = Task("masked-lm", ()) if phase.stage.on_text else task
    shapes = Shapes(student, shape_of(teacher)) if teacher is not None else None
    return build_terms(phase.stage.objectives, kind, shapes, phase.only)


@dataclass(frozen=True)
class Plan:
    """What a run's stages need of the teacher.

    Attributes:
        stored: some stage reads what can be kept on disk.
        features: the layers whose [CLS] state it reads.
    """

    stored: bool
    features: tuple[int, ...]


def plan_stages(
    recipe: Recipe,
    task: Task,
    student: Checkpoint,
    teachers: Sequence[Checkpoint],
    general: Checkpoint | None,
    on_text: bool | None = None,
) -> Plan:
    """Build every phase's terms once, so that what cannot be is refused before anything costly.

    Args:
        recipe: the stages.
        task: what is predicted.
        student: before training.
        teachers: the teacher's models.
        general: the language model that teaches the stages on plain text.
        on_text: look at the stages on plain text alone.

    Raises:
        InputError: a layer, width, number of heads or tokenizer that does not fit; inner signals of several teachers,
            or of an architecture that is not known; words of a model without a head for them.
    """
    shape, stored, features = shape_of(student.model), False, set[int]()
    stages = [stage for stage in recipe.stages if on_text is None or stage.on_text == on_text]
    for phase in phases_of(stages, recipe, shape.layers):
        if recipe.training_of(phase.stage).gradient_checkpointing and not student.model.supports_gradient_checkpointing:
            raise InputError(
                f"a {type(student.model).__name__} cannot compute its layers once more; set "
                "training.gradient_checkpointing to false, or give a student of another architecture"
            )
        if phase.stage.keep is not None:
            shape = replace(shape, layers=len(kept_layers(phase.stage, shape.layers)))
        teacher = general if phase.stage.on_text else next(iter(teachers), None)
        _check_attends(phase, recipe, student, *([teacher] if teacher else []))
        terms = terms_of(phase, task, shape, teacher.model if teacher else None)
        mine, its = wanted_of(terms)
        _check_kinds(phase, recipe, task, student, mine)
        if phase.stage.on_text and mine.logits:
            language_head_path(student.model)
        if its == Wanted():
            continue
        if teacher is None:  # behind a server, or no network: it shows its outputs alone
            _check_outputs_alone(phase, recipe, its)
            stored = True
            continue
        many = 1 if phase.stage.on_text else len(teachers)
        _check_insides(phase, recipe, task, student, mine, teacher, its, many)
        labels = recipe.task.kind != "causal-lm"  # whose teacher's words are held to the rules wherever they are said
        if recipe.rules is not None and labels and not phase.stage.on_text and its.by_token and its.logits:
            raise InputError(
                f"stage '{phase.stage.name}' learns from the teacher's layers and its outputs at once, straight from "
                "the teacher, whose outputs no rules have corrected; make two stages of it, or drop rules"
            )
        if not (phase.stage.on_text or asks_live(recipe, its, phase.stage)):
            stored = True
            features |= its.features
    return Plan(stored, tuple(sorted(features)))


def _check_kinds(phase: Phase, recipe: Recipe, task: Task, student: Checkpoint, mine: Wanted) -> None:
    """Refuse what is about images, or about trees, where there are none."""
    if recipe.training_of(phase.stage).images is not None and task.inputs != "image":
        raise InputError(
            f"stage '{phase.stage.name}' changes images (training.images), and the examples are {task.inputs}; "
            "drop it with training.images=null"
        )
    if mine.paths and student.model.config.model_type != SoftTreeConfig.model_type:
        raise InputError(
            f"stage '{phase.stage.name}' learns a soft tree, and the student is a "
            f"{student.model.config.model_type}; give student.shape.model_type=soft-tree, or use soft_targets"
        )


def _check_outputs_alone(phase: Phase, recipe: Recipe, its: Wanted) -> None:
    """Refuse what takes a network opened here, of a teacher that is none."""
    assert recipe.teacher is not None
    name, stage = recipe.teacher.models[0].model, phase.stage.name
    if its.by_token or its.features:
        raise InputError(
            f"stage '{stage}' learns from a teacher's layers, and '{name}' shows none; use soft_targets, or a teacher "
            "opened here"
        )
    if recipe.training_of(phase.stage).images is not None:
        raise InputError(
            f"stage '{stage}' changes the images at random (training.images), and '{name}' would have to be asked "
            "about each change; leave training.images out, or use a teacher opened here"
        )


def _check_attends(phase: Phase, recipe: Recipe, *models: Checkpoint) -> None:
    """Refuse what is about layers that attend, of a network without such."""
    stage, training = phase.stage, recipe.training_of(phase.stage)
    asked = [name for name in stage.objectives.names if name not in OUTPUTS]
    asked += [name for name, given in (("keep", stage.keep), ("layer_drop", training.layer_drop)) if given]
    without = [each.model.config.model_type for each in models if not shape_of(each.model).heads]
    if asked and without:
        raise InputError(
            f"stage '{stage.name}' has {asked[0]}, which is about layers that attend, and a {without[0]} has none; "
            "use soft_targets and hard_labels alone, or a model of another architecture"
        )


def _check_insides(
    phase: Phase,
    recipe: Recipe,
    task: Task,
    student: Checkpoint,
    mine: Wanted,
    teacher: Checkpoint,
    its: Wanted,
    teachers: int,
) -> None:
    """Refuse signals that these models do not have, or that cannot be compared."""
    stage = phase.stage
    if (its.by_token or its.features) and teachers > 1:
        raise InputError(
            f"stage '{stage.name}' learns from a teacher's layers, and there are {teachers} teachers; "
            "several teach by soft_targets only, so give one"
        )
    causal = task.kind == "causal-lm"
    for checkpoint, wanted in ((teacher, its), (student, mine)):
        if causal and wanted.logits:
            check_head(checkpoint.model, checkpoint.name)
        if wanted.by_token or wanted.features:
            parts_of(checkpoint.model)
    changed = recipe.training_of(stage).images is not None
    if changed and (teachers > 1 or recipe.rules is not None):
        raise InputError(
            f"stage '{stage.name}' changes the images at random (training.images), and then one teacher must be asked "
            "each time, without rules; give one teacher and no rules, or leave training.images out"
        )
    if stage.on_text or causal or its.by_token or changed:
        check_same_inputs(student, teacher, task, stage.on_text, causal)
    if stage.on_text and its.logits:
        language_head(teacher.model)
        sizes = [checkpoint.model.config.vocab_size for checkpoint in (student, teacher)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"the student has words for {sizes[0]} tokens, '{teacher.name}' for {sizes[1]}; "
                f"give a student with vocab_size {sizes[1]}"
            )


def wanted_of(terms: list[Term]) -> tuple[Wanted, Wanted]:
    """What the terms read of the student and of the teacher."""
    return (
        reduce(or_, (term.student for term in terms), Wanted()),
        reduce(or_, (term.teacher for term in terms), Wanted()),
    )


def prepare_lesson(
    phase: Phase, student: Checkpoint, recipe: Recipe, task: Task, splits: Splits, teaching: Teaching
) -> Lesson:
    """Everything that training a phase takes.

    Raises:
        InputError: the teacher's and the student's tokens differ where signals of every token are compared.
    """
    on_text = phase.stage.on_text
    teacher = teaching.general if on_text else teaching.teacher
    torch.manual_seed(recipe.seed)  # projections and fresh heads
    terms = terms_of(phase, task, shape_of(student.model), teacher.model if teacher else None)
    mine, its = wanted_of(terms)
    source: SignalSource | None = teaching.knowledge if its != Wanted() else None
    causal = task.kind == "causal-lm"
    if teacher is not None and its != Wanted() and (on_text or asks_live(recipe, its, phase.stage)):
        check_same_inputs(student, teacher, task, on_text, causal)
        precision = hardware.pick_precision(recipe.training_of(phase.stage).precision)
        source = LiveTeacher(teacher.model, its, precision, causal, _inputs_for(teacher, student, task))
    if causal:
        return _about_language(phase, student, recipe, splits, terms, mine, source, teaching.rules)
    if on_text:
        return _about_text(phase, student, recipe, splits, terms, mine, source, teacher)
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
        own = OwnAnswers(section, student.tokenizer, recipe.seed, mixed)
    table = splits.train if phase.stage.on == "train" else splits.transfer
    learn = encode_language(table, student, recipe.task, prompts=rules is not None)
    if rules is not None and isinstance(source, LiveTeacher):
        source = RuledWords(source, rules.of(student), learn["prompt"])
    watched = encode_language(splits.validation, student, recipe.task)
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


def asks_live(recipe: Recipe, its: Wanted, stage: Stage) -> bool:
    """Whether a stage that is not about plain text needs the teacher at hand: what it reads is not kept."""
    if recipe.training_of(stage).images is not None:
        return True  # no two images are the same
    assert recipe.teacher is not None
    words = recipe.teacher.words
    return its.by_token or (recipe.task.kind == "causal-lm" and words is not None and words.keep == "nothing")


def _inputs_for(teacher: Checkpoint, student: Checkpoint, task: Task) -> Callable[[Batch], Batch]:
    """What makes the teacher's inputs of the student's batch."""
    if task.inputs != "image":
        return model_inputs
    return partial(as_the_teacher_reads, ImageReader(student), ImageReader(teacher))


def check_same_inputs(
    student: Checkpoint, teacher: Checkpoint, task: Task, on_text: bool = False, causal: bool = False
) -> None:
    """Refuse to ask a teacher about a student's batches that it would not read as the student does.

    Raises:
        InputError: see `check_same_tokens`; image processors that leave other pixels; a table, of which both would have
            to be given the same numbers.
    """
    if task.inputs == "image":
        differing = what_differs(ImageReader(student), ImageReader(teacher))
        if differing is not None:
            raise InputError(
                f"'{student.name}' and '{teacher.name}' look at other pixels of an image ({differing}), so they cannot "
                "be shown the same batch; give a student of the teacher's image size, or leave training.images out"
            )
    elif task.inputs == "features":
        raise InputError(
            f"the layers of '{teacher.name}' cannot be learnt from: it and the student each read a table in their own "
            "way; use soft_targets"
        )
    else:
        check_same_tokens(student, teacher, task.pair and not on_text, causal)


def check_same_tokens(student: Checkpoint, teacher: Checkpoint, pair: bool, causal: bool = False) -> None:
    """Refuse to compare signals of tokens that are not the same.

    Raises:
        InputError: the tokenizers differ; of pairs only one of the models is told which text a token is from.
    """
    other = "learn from the teacher's answers (seqkd)" if causal else "use soft_targets"
    told = ["token_type_ids" in each.tokenizer.model_input_names for each in (student, teacher)]
    if pair and told[0] != told[1]:
        raise InputError(
            f"'{(student if told[0] else teacher).name}' reads which text of a pair a token is from, and "
            f"'{(teacher if told[0] else student).name}' does not, so their tokens cannot be compared; "
            "give a student of the teacher's architecture, or use soft_targets"
        )
    if tokenizer_fingerprint(student.tokenizer) != tokenizer_fingerprint(teacher.tokenizer):
        raise InputError(
            f"the tokenizers of '{student.name}' and '{teacher.name}' differ, so their tokens cannot be compared; "
            f"give a student with the teacher's tokenizer, or {other}"
        )


def _metrics(prediction: EvalPrediction, task: Task) -> dict[str, float]:
    predicted = task.predict(np.asarray(prediction.predictions))
    return {name: metric(np.asarray(prediction.label_ids), predicted) for name, metric in task.metrics.items()}


def _words_right(prediction: EvalPrediction) -> dict[str, float]:
    right, asked = np.asarray(prediction.predictions).sum(0)
    return {"accuracy": float(right / max(asked, 1))}
