"""What sections cannot say of each other in recipes of causal language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.recipe.served_checks import LABELLED, check_answerer, check_labeller

if TYPE_CHECKING:
    from limbeck.recipe.schema import Recipe, Stage
    from limbeck.recipe.terms import SoftTargets


def check_words(recipe: Recipe) -> None:
    """Refuse terms that the words kept of a causal language model's teacher cannot serve."""
    if recipe.assistant is not None:
        raise ValueError("assistant is about masked-lm stages, and the task is causal-lm; drop it with assistant=null")
    soft = {stage.name: stage.objectives.soft_targets for stage in recipe.stages if stage.objectives.soft_targets}
    if recipe.teacher is None or recipe.teacher.words is None:
        return
    keep = recipe.teacher.words.keep
    _check_own_answers(recipe, keep)
    if keep == "nothing":
        return
    if len({stage.on == "train" for stage in recipe.stages if stage.name in soft}) > 1:
        raise ValueError(
            "stages learn soft_targets from the data's answers and from the teacher's, and words are kept of one; give "
            "teacher.words=nothing"
        )
    _check_forms(soft, keep)
    if keep == "dense":
        return
    temperatures = sorted({term.temperature for term in soft.values()})
    if len(temperatures) > 1:
        raise ValueError(
            f"the stages' temperatures are {' and '.join(f'{t:g}' for t in temperatures)}, and {keep} is kept at one; "
            "give one temperature, or teacher.words=dense or nothing"
        )


def _check_own_answers(recipe: Recipe, keep: str) -> None:
    """Refuse kept words where the student's own answers are learnt from."""
    for stage in recipe.stages:
        if stage.on_policy is not None and stage.objectives.needs_teacher and keep != "nothing":
            raise ValueError(
                f"stage '{stage.name}' learns from the student's own answers, on which no words are kept; give "
                "teacher.words=nothing or leave it out"
            )


def _check_forms(soft: dict[str, SoftTargets], keep: str) -> None:
    """Refuse forms of the loss that need words which are not kept."""
    for name, term in soft.items():
        if term.form == "mse":
            raise ValueError(
                f"stage '{name}' compares logits (soft_targets.form=mse), of which {keep} keeps "
                f"{'the probabilities alone' if keep == 'dense' else 'few'}; give teacher.words=nothing or another form"
            )
        if keep == "sampled" and term.form not in ("kl", "cross-entropy"):
            raise ValueError(
                f"stage '{name}' has soft_targets.form={term.form}, which needs tokens that are kept for certain, and "
                "teacher.words=sampled keeps none; give teacher.words=head_and_tail or nothing"
            )


def check_causal(recipe: Recipe, stage: Stage) -> None:
    """Refuse what a causal language model cannot learn from, or has no choice of."""
    for name in ("hard_labels", "masked_lm", "feature_map"):
        if getattr(stage.objectives, name) is not None:
            raise ValueError(f"stage '{stage.name}' has {name}, which no causal-lm can learn from; use next_token")
    if stage.objectives.hidden is not None and stage.objectives.hidden.form == "cls":
        raise ValueError(
            f"stage '{stage.name}' compares first tokens (hidden.form=cls), which of a causal-lm have seen nothing; "
            "use mse or cosine"
        )
    if stage.objectives.policy_gradient is not None and stage.on_policy is None:
        raise ValueError(
            f"stage '{stage.name}' has policy_gradient, which is about the student's own answers; give it on_policy"
        )
    if stage.on is not None and recipe.data.generation is None:
        raise ValueError(
            f"stage '{stage.name}' has on={stage.on}, and without data.generation a causal-lm has one set of examples; "
            "leave it out"
        )
    if stage.task is not None:
        raise ValueError(f"stage '{stage.name}' has a task, which a causal-lm has no choice of; leave it out")


def check_generation(recipe: Recipe) -> None:
    """Refuse answers that nobody can give or learn from."""
    models = recipe.teacher.models if recipe.teacher is not None else []
    given = recipe.data.generation
    served = [model for model in models if model.server is not None]
    if recipe.teacher is not None and recipe.teacher.general is not None and recipe.teacher.general.server:
        raise ValueError("teacher.general gives signals, which a server does not; give a model opened here")
    if served and recipe.task.kind in LABELLED:
        check_labeller(recipe)
    elif served:
        _check_server(recipe, served[0].model)
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
    if recipe.task.kind == "regression":
        raise ValueError(f"the teacher '{name}' is behind a server, which says labels and no numbers; give another one")
    for stage in recipe.stages:
        if stage.objectives.needs_teacher:
            terms = ", ".join(stage.objectives.names)
            raise ValueError(f"{why}, and stage '{stage.name}' ({terms}) needs them; use the recipe seqkd")
    if recipe.data.generation is None:
        raise ValueError(f"{why}; learn from its answers with the recipe seqkd, which has data.generation")
    if recipe.student.model is None and recipe.student.shape is None:
        raise ValueError(f"no student can be cut from '{name}', which is behind a server; add student=MODEL")
    check_answerer(recipe)
