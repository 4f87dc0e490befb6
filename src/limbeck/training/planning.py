"""What a run's stages need of the teacher, and whether these models can give it: checked before anything costly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

from transformers import PreTrainedModel

from limbeck.anatomy import Shape, check_head, language_head, language_head_path, parts_of, shape_of
from limbeck.checkpoints import Checkpoint, tokenizer_fingerprint
from limbeck.errors import InputError
from limbeck.objectives import FromEach, Shapes, Term, build_terms
from limbeck.recipe.schema import Recipe, Stage
from limbeck.recipe.served_checks import OUTPUTS
from limbeck.signals import Wanted
from limbeck.students.soft_tree import SoftTreeConfig
from limbeck.tasks import Task
from limbeck.tasks.images import ImageReader, what_differs
from limbeck.training.phases import Phase, kept_layers, phases_of
from limbeck.training.words import example_length


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
        InputError: a layer, width, number of heads or tokenizer that does not fit; inner signals of an architecture
            that is not known; words of a model without a head for them.
    """
    shape, stored, features = shape_of(student.model), False, set[int]()
    stages = [stage for stage in recipe.stages if on_text is None or stage.on_text == on_text]
    for each in teachers if task.kind == "causal-lm" else []:
        _check_length(recipe, student, each)
    for phase in phases_of(stages, recipe, shape.layers):
        if recipe.training_of(phase.stage).gradient_checkpointing and not student.model.supports_gradient_checkpointing:
            raise InputError(
                f"a {type(student.model).__name__} cannot compute its layers once more; set "
                "training.gradient_checkpointing to false, or give a student of another architecture"
            )
        if phase.stage.keep is not None:
            shape = replace(shape, layers=len(kept_layers(phase.stage, shape.layers)))
        asked = [general] if phase.stage.on_text and general else [] if phase.stage.on_text else list(teachers)
        _check_attends(phase, recipe, student, asked)
        terms = terms_of(phase, recipe, task, shape, [each.model for each in asked])
        mine, its = wanted_of(terms)
        _check_kinds(phase, recipe, task, student, mine)
        if phase.stage.on_text and mine.logits:
            language_head_path(student.model)
        if its == Wanted():
            continue
        if not asked:  # behind a server, or no network: it shows its outputs alone
            _check_outputs_alone(phase, recipe, its)
            stored = True
            continue
        _check_insides(phase, recipe, task, student, mine, asked, its)
        several = shares_of(recipe, phase.stage) is not None
        labels = recipe.task.kind != "causal-lm"  # whose teacher's words are held to the rules wherever they are said
        at_once = its.by_token and its.logits and not several  # several teachers' outputs are kept beforehand
        if recipe.rules is not None and labels and not phase.stage.on_text and at_once:
            raise InputError(
                f"stage '{phase.stage.name}' learns from the teacher's layers and its outputs at once, straight from "
                "the teacher, whose outputs no rules have corrected; make two stages of it, or drop rules"
            )
        if phase.stage.on_text:
            continue
        live = asks_live(recipe, its, phase.stage)
        stored |= not live or (several and its.logits)
        features |= frozenset() if live else its.features
    return Plan(stored, tuple(sorted(features)))


def _check_length(recipe: Recipe, student: Checkpoint, teacher: Checkpoint) -> None:
    """Refuse a causal language model that cannot read the whole of the student's examples, where it is shown them."""
    if tokenizer_fingerprint(student.tokenizer) != tokenizer_fingerprint(teacher.tokenizer):
        return  # such a one answers prompts alone
    ours, its = example_length(student, recipe.task), example_length(teacher, recipe.task)
    if its < ours:
        raise InputError(
            f"the examples are of {ours} tokens, and the teacher '{teacher.name}' reads at most {its}; "
            f"give task.max_length={its}"
        )


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
    if its.inside:
        raise InputError(
            f"stage '{stage}' learns from a teacher's layers, and '{name}' shows none; use soft_targets, or a teacher "
            "opened here"
        )
    if recipe.training_of(phase.stage).images is not None:
        raise InputError(
            f"stage '{stage}' changes the images at random (training.images), and '{name}' would have to be asked "
            "about each change; leave training.images out, or use a teacher opened here"
        )


def _check_attends(phase: Phase, recipe: Recipe, student: Checkpoint, teachers: Sequence[Checkpoint]) -> None:
    """Refuse what is about layers that attend, of a network without such."""
    stage, training = phase.stage, recipe.training_of(phase.stage)
    asked = [name for name in stage.objectives.names if name not in OUTPUTS]
    models = [student, *(teachers if asked else [])]
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
    teachers: Sequence[Checkpoint],
    its: Wanted,
) -> None:
    """Refuse signals that these models do not have, or that cannot be compared."""
    stage = phase.stage
    causal = task.kind == "causal-lm"
    for checkpoint, wanted in (*((each, its) for each in teachers), (student, mine)):
        if causal and wanted.logits:
            check_head(checkpoint.model, checkpoint.name)
        if wanted.inside:
            parts_of(checkpoint.model)
    changed = recipe.training_of(stage).images is not None
    if changed and (shares_of(recipe, stage) is not None or recipe.rules is not None):
        raise InputError(
            f"stage '{stage.name}' changes the images at random (training.images), and then one teacher must be asked "
            "each time, without rules; give one teacher and no rules, or leave training.images out"
        )
    if stage.on_text or causal or its.by_token or changed:
        for each in teachers:
            check_same_inputs(student, each, task, stage.on_text, causal)
    if stage.on_text and its.logits:
        (teacher,) = teachers
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


def shares_of(recipe: Recipe, stage: Stage) -> list[float] | None:
    """The weights of those teachers that are networks, where a stage's teacher is several models."""
    if recipe.teacher is None or stage.on_text or len(recipe.teacher.models) == 1:
        return None
    return [each.weight for each in recipe.teacher.models if each.network]


def wanted_of_each(terms: list[Term], teachers: int) -> list[Wanted]:
    """What the terms read of each teacher; of several only what is inside of them."""
    several = [term for term in terms if isinstance(term, FromEach)]
    if not several:
        return [wanted_of(terms)[1]] * teachers
    return [reduce(or_, (term.parts[number].teacher for term in several)) for number in range(teachers)]


def terms_of(
    phase: Phase, recipe: Recipe, task: Task, student: Shape, teachers: Sequence[PreTrainedModel]
) -> list[Term]:
    """The phase's loss, checked against the sizes of all models; terms on layers look at each teacher.

    Raises:
        InputError: a layer, width or number of heads that does not fit.
    """
    kind = Task("masked-lm", ()) if phase.stage.on_text else task

    def built(teacher: PreTrainedModel | None) -> list[Term]:
        shapes = Shapes(student, shape_of(teacher)) if teacher is not None else None
        return build_terms(phase.stage.objectives, kind, shapes, phase.only)

    terms, shares = built(next(iter(teachers), None)), shares_of(recipe, phase.stage)
    if shares is None or not any(term.teacher.inside for term in terms):
        return terms
    each = [terms, *(built(teacher) for teacher in teachers[1:])]
    return [FromEach(parts, shares) if parts[0].teacher.inside else parts[0] for parts in zip(*each, strict=True)]


def asks_live(recipe: Recipe, its: Wanted, stage: Stage) -> bool:
    """Whether a stage that is not about plain text needs the teacher at hand: what it reads is not kept."""
    if recipe.training_of(stage).images is not None:
        return True  # no two images are the same
    assert recipe.teacher is not None
    words = recipe.teacher.words
    several = shares_of(recipe, stage) is not None and bool(its.features)
    return (
        its.by_token or several or (recipe.task.kind == "causal-lm" and words is not None and words.keep == "nothing")
    )


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
