"""What sections cannot say of each other: refusals that take the whole recipe."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import ValidationError

from limbeck.recipe.language_checks import check_causal, check_generation, check_words
from limbeck.recipe.served_checks import check_queries

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
    if recipe.task.kind in ("masked-lm", "causal-lm"):
        _check_text_alone(recipe)
    if recipe.task.kind == "causal-lm":
        check_words(recipe)
    elif recipe.teacher is not None and recipe.teacher.words is not None:
        raise ValueError(f"teacher.words is about causal-lm, and the task is {recipe.task.kind}; drop teacher.words")
    if recipe.rules is not None:
        _check_rules(recipe)
    if recipe.task.others is not None and (recipe.task.kind != "classification" or len(recipe.task.labels or []) < 1):
        raise ValueError(
            f"task.others={recipe.task.others} stands for the labels that are not in task.labels; give "
            "task.labels=[...] of a classification"
        )
    if recipe.teacher is not None and recipe.teacher.weigh == "confidence" and recipe.task.kind == "regression":
        raise ValueError("a regression says no probabilities to be sure by; give teacher.weigh=given or validation")
    _check_specialists(recipe)
    check_generation(recipe)
    check_queries(recipe)
    _refuse_idle(recipe)
    _check_patience(recipe)
    _check_export(recipe)
    _check_names(recipe.stages)
    if recipe.teacher is None and recipe.student.model is None and recipe.student.shape is None:
        raise ValueError("without a teacher the student's start must be given; add student=MODEL")


def _check_specialists(recipe: Recipe) -> None:
    """Refuse specialists of what is not told apart in classes, and shares for them."""
    for model in recipe.teacher.models if recipe.teacher is not None else []:
        if model.others is None:
            continue
        if recipe.task.kind != "classification":
            raise ValueError(
                f"the teacher '{model.model}' is a specialist (others={model.others}), which is about classes, and the "
                f"task is {recipe.task.kind}; leave it out"
            )
        if model.weight != 1:
            raise ValueError(
                f"the teacher '{model.model}' is a specialist (others={model.others}) and has weight {model.weight:g}; "
                "specialists have no shares, so drop weight"
            )


def _check_export(recipe: Recipe) -> None:
    """Refuse forms that models of the task do not come in."""
    forms = {"masked-lm": (), "causal-lm": ("gguf", "gguf-q8")}.get(recipe.task.kind, ("onnx", "int8"))
    wrong = [name for name in recipe.export.formats if name not in forms]
    if wrong:
        raise ValueError(
            f"export.formats has {wrong[0]}, which models of task {recipe.task.kind} are not exported to; "
            f"give export=[{', '.join(forms)}]"
        )


def _check_rules(recipe: Recipe) -> None:
    """Refuse rules where there is nothing to rule, or where what they do would not reach the student."""
    if recipe.task.kind not in ("classification", "multi-label", "causal-lm"):
        raise ValueError(
            f"rules are for classification, multi-label and causal-lm, and the task is {recipe.task.kind}; drop them"
        )
    if recipe.task.kind == "causal-lm" and recipe.task.packed:
        raise ValueError(
            "rules are about answers to prompts, and task.packed is about plain text, which has none; drop one of them"
        )
    for stage in recipe.stages:
        soft = stage.objectives.soft_targets
        if soft is not None and soft.form == "mse" and not stage.on_text:
            raise ValueError(
                f"stage '{stage.name}' learns logits by mse, and rules change probabilities, down to zero; "
                "use soft_targets.form kl, or drop rules"
            )


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
        "data.synthetic": (recipe.data.synthetic is not None and labels_alone, "learns from a teacher's answers"),
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


def _check_patience(recipe: Recipe) -> None:
    """Refuse to wait for a metric that no stage has: what is learnt from layers alone is not validated."""
    predicts = {"soft_targets", "hard_labels", "path_cross_entropy", "masked_lm", "next_token", "policy_gradient"}
    causal = recipe.task.kind == "causal-lm"
    without = [stage for stage in recipe.stages if not causal and not predicts & set(stage.objectives.names)]
    for stage in without:
        if stage.training.get("patience") is not None:
            raise ValueError(
                f"stage '{stage.name}' has patience {stage.training['patience']}, and what is learnt from layers alone "
                "has no validation metric to stop by; leave it out"
            )
    if recipe.training.patience is not None and len(without) == len(recipe.stages):
        raise ValueError(
            f"training.patience is {recipe.training.patience}, and what is learnt from layers alone has no validation "
            "metric to stop by; leave it out"
        )


def _check_text_alone(recipe: Recipe) -> None:
    """Refuse what a language model's run has no use for."""
    if recipe.teacher is not None and len(recipe.teacher.models) > 1:
        raise ValueError(
            f"task {recipe.task.kind} takes one teacher, and {len(recipe.teacher.models)} are given; keep one"
        )
    for name in ("corpus", "unlabelled", "augmentation", "synthetic"):
        if getattr(recipe.data, name) is not None:
            raise ValueError(
                f"data.{name} is for tasks with labels, and the task is {recipe.task.kind}; give all text as "
                f"data.train and leave data.{name} out"
            )


def _check_terms(recipe: Recipe, stage: Stage) -> None:
    """Refuse a term without its teacher, or of another task."""
    on_text, causal = stage.on_text, recipe.task.kind == "causal-lm"
    for name in stage.objectives.names:
        if recipe.teacher is None and name in stage.objectives.taught:
            raise ValueError(f"stage '{stage.name}' has {name}, which needs a teacher; give teacher=...")
        if not causal and name in ("next_token", "policy_gradient"):
            raise ValueError(f"stage '{stage.name}' has {name}, which is about task causal-lm; use another term")
        if on_text and name == "hard_labels":
            raise ValueError(f"stage '{stage.name}' is about plain text, which has no hard_labels; use masked_lm")
        if name in ("path_cross_entropy", "balance") and (on_text or recipe.task.kind != "classification"):
            about = "masked-lm" if on_text else recipe.task.kind
            raise ValueError(
                f"stage '{stage.name}' has {name}, which is about a soft tree that tells classes apart, and its task "
                f"is {about}; use another term"
            )
        if not on_text and name == "masked_lm":
            raise ValueError(f"stage '{stage.name}' has masked_lm, which is about plain text; add task: masked-lm")


def _check_stage(recipe: Recipe, stage: Stage) -> None:
    """Refuse what cannot be: a term without its teacher or its text."""
    on_text = stage.on_text
    causal = recipe.task.kind == "causal-lm"
    if causal:
        check_causal(recipe, stage)
    elif stage.on_policy is not None:
        raise ValueError(f"stage '{stage.name}' has on_policy, which is about task causal-lm; drop it")
    _check_terms(recipe, stage)
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
    if training.gradient_checkpointing and not training.dropout:
        raise ValueError(
            f"stage '{stage.name}' has gradient_checkpointing with dropout off, which turns both off; set dropout to "
            "true, which changes nothing where the student's configuration has none"
        )
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
