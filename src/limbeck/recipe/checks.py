"""What sections cannot say of each other: refusals that take the whole recipe."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import ValidationError

if TYPE_CHECKING:
    from limbeck.recipe.schema import Recipe, Stage


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe whose parts do not fit together.

    Raises:
        ValueError: one sentence, which pydantic makes the recipe's.
    """
    for stage in recipe.stages:
        try:
            recipe.training_of(stage)
        except ValidationError as error:
            from limbeck.recipe.loading import explain

            raise ValueError(f"stages.{stage.name}.training: {explain(error)}") from None
        _check_stage(recipe, stage)
    if recipe.task.kind == "masked-lm":
        _check_text_alone(recipe)
    _check_generation(recipe)
    _refuse_idle(recipe)
    _check_names(recipe.stages)
    if recipe.teacher is None and recipe.student.model is None and recipe.student.shape is None:
        raise ValueError("without a teacher the student's start must be given; add student=MODEL")


def _check_generation(recipe: Recipe) -> None:
    """Refuse answers that nobody can give or learn from."""
    models = recipe.teacher.models if recipe.teacher is not None else []
    given = recipe.data.generation
    served = [model for model in models if model.server is not None]
    if served or (recipe.teacher is not None and recipe.teacher.general is not None and recipe.teacher.general.server):
        _check_server(recipe, (served or models)[0].model)
    if given is None:
        return
    if recipe.task.kind != "causal-lm":
        raise ValueError(
            f"data.generation is for task causal-lm, and the task is {recipe.task.kind}; set task=causal-lm"
        )
    if len(models) != 1:
        raise ValueError(f"data.generation takes one teacher, and {len(models) or 'none'} is given; give teacher=MODEL")
    if served and given.beams > 1:
        raise ValueError(
            f"data.generation.beams is {given.beams}, and a server has no beams to search with; set it to 1"
        )
    if not served and given.token_limit is not None:
        raise ValueError(
            "data.generation.token_limit is for a teacher behind a server; drop it, or give teacher.server"
        )


def _check_server(recipe: Recipe, name: str) -> None:
    """Refuse a teacher behind a server where signals or its layers are needed."""
    assert recipe.teacher is not None
    why = f"the teacher '{name}' is behind a server, which answers prompts but gives no signals"
    if recipe.teacher.general is not None:
        raise ValueError("teacher.general gives signals, which a server does not; give models opened here")
    for stage in recipe.stages:
        if stage.objectives.needs_teacher:
            terms = ", ".join(stage.objectives.names)
            raise ValueError(f"{why}, and stage '{stage.name}' ({terms}) needs them; use the recipe seqkd")
    if recipe.data.generation is None:
        raise ValueError(f"{why}; learn from its answers with the recipe seqkd, which has data.generation")
    if recipe.student.model is None and recipe.student.shape is None:
        raise ValueError(f"no student can be cut from '{name}', which is behind a server; add student=MODEL")


def _check_names(stages: list[Stage]) -> None:
    """Refuse two phases of one name: their folders and histories would be one."""
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ValueError(f"two stages share a name: {', '.join(names)}")
    for stage in stages:
        turns = [name for name in names if stage.progressive and re.fullmatch(f"{stage.name}-[0-9]+", name)]
        if turns:
            raise ValueError(f"stage '{turns[0]}' is named like a turn of the progressive '{stage.name}'; rename it")


def _refuse_idle(recipe: Recipe) -> None:
    """Refuse entries that no stage has a use for: a reader would believe that they did something."""
    on_text = [stage for stage in recipe.stages if stage.on_text]
    taught = [stage for stage in on_text if stage.objectives.needs_teacher]
    labels_alone = not any(stage.objectives.needs_teacher for stage in recipe.stages if not stage.on_text)
    idle = {
        "data.corpus": (recipe.data.corpus is not None and not on_text, "is about plain text"),
        "data.augmentation": (
            recipe.data.augmentation is not None and labels_alone,
            "learns from a teacher's answers",
        ),
        "teacher.general": (
            recipe.teacher is not None and recipe.teacher.general is not None and not taught,
            "learns from a teacher on plain text",
        ),
        "assistant": (recipe.assistant is not None and not taught, "learns from a teacher on plain text"),
    }
    for name, (is_idle, use) in idle.items():
        if is_idle:
            raise ValueError(f"{name} is given, but no stage {use}; drop it with {name}=null")
    if recipe.task.kind == "masked-lm" and recipe.teacher is not None and recipe.teacher.general is not None:
        raise ValueError("of task masked-lm the teacher itself is the language model; drop teacher.general")


def _check_text_alone(recipe: Recipe) -> None:
    """Refuse what a language model's run has no use for."""
    if recipe.teacher is not None and len(recipe.teacher.models) > 1:
        raise ValueError(f"task masked-lm takes one teacher, and {len(recipe.teacher.models)} are given; keep one")
    if recipe.export.formats:
        raise ValueError(
            f"export.formats {', '.join(recipe.export.formats)} are for classifiers, and the task is masked-lm; "
            "give export=[]"
        )
    for name in ("corpus", "unlabelled", "augmentation"):
        if getattr(recipe.data, name) is not None:
            raise ValueError(
                f"data.{name} is for tasks with labels, and the task is masked-lm; give all text as data.train and "
                f"leave data.{name} out"
            )


def _check_stage(recipe: Recipe, stage: Stage) -> None:
    """Refuse what cannot be: a term without its teacher or its text."""
    on_text = stage.on_text
    for name in stage.objectives.names:
        if recipe.teacher is None and name not in ("hard_labels", "masked_lm"):
            raise ValueError(f"stage '{stage.name}' has {name}, which needs a teacher; give teacher=...")
        if on_text and name == "hard_labels":
            raise ValueError(f"stage '{stage.name}' is about plain text, which has no hard_labels; use masked_lm")
        if not on_text and name == "masked_lm":
            raise ValueError(f"stage '{stage.name}' has masked_lm, which is about plain text; add task: masked-lm")
    if stage.task is not None and not stage.on_text:
        raise ValueError(
            f"stage '{stage.name}' has task {stage.task.kind}; its own can only be masked-lm, so leave it out"
        )
    if stage.on_text and recipe.task.kind != "masked-lm" and recipe.data.corpus is None:
        raise ValueError(
            f"stage '{stage.name}' is about plain text; give data.corpus=FILE, or leave the stage out with "
            f"stages.{stage.name}=null"
        )
    given = stage.objectives
    if given.soft_targets is not None and given.soft_targets.positions == "masked" and not on_text:
        raise ValueError(f"stage '{stage.name}' has no masked words; leave soft_targets.positions out")
    _check_layers(recipe, stage)


def _check_layers(recipe: Recipe, stage: Stage) -> None:
    """Refuse what layers that are left out, or trained one by one, cannot do."""
    given, training = stage.objectives, recipe.training_of(stage)
    if training.layer_drop and not training.dropout:
        raise ValueError(f"stage '{stage.name}' has layer_drop with dropout off, which turns both off; set one of them")
    if training.layer_drop and (given.attention or given.relations):
        raise ValueError(
            f"stage '{stage.name}' has layer_drop, and the attention of a layer left out cannot be learnt from; "
            "set layer_drop to 0, or leave attention and relations out"
        )
    about_layers = ("hidden", "attention", "relations", "feature_map")
    others = [name for name in stage.objectives.names if name not in about_layers]
    if stage.progressive and others:
        raise ValueError(
            f"stage '{stage.name}' is progressive, and {others[0]} is not about one layer; "
            f"use {', '.join(about_layers)}, or set progressive to false"
        )
