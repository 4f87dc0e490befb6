"""What sections cannot say of each other where a teacher behind a server labels text, or each query costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.recipe.schema import Recipe, Stage

LABELLED = ("classification", "multi-label")
"""Tasks whose labels a server can say."""
OUTPUTS = ("soft_targets", "hard_labels", "path_cross_entropy", "balance")
"""Terms that read nothing of a teacher but its outputs."""


def check_labeller(recipe: Recipe) -> None:
    """Refuse what a server that labels text cannot teach."""
    assert recipe.teacher is not None
    served = [model for model in recipe.teacher.models if model.server is not None]
    name = served[0].model
    if recipe.labelling.engine == "ray":
        raise ValueError(f"the teacher '{name}' is behind a server, which one process asks; drop labelling.engine=ray")
    why = f"the teacher '{name}' is behind a server, which shows its labels and no layers"
    taught = [stage for stage in recipe.stages if not stage.on_text and stage.objectives.needs_teacher]
    for stage in taught:
        other = next((term for term in stage.objectives.names if term not in OUTPUTS), None)
        if other is not None:
            raise ValueError(f"{why}, and stage '{stage.name}' learns from them by {other}; use soft_targets")
    if not taught:
        raise ValueError(f"no stage learns from the teacher '{name}', which costs; give a stage soft_targets")
    _check_answered(taught, f"the teacher '{name}' may leave some without an answer")
    if recipe.teacher.features:
        raise ValueError(f"{why}; leave teacher.features out")
    if recipe.teacher.general is None and any(s.on_text and s.objectives.needs_teacher for s in recipe.stages):
        raise ValueError(f"{why}, and a stage on plain text learns from them; give teacher.general=MODEL")
    cut = recipe.student.model is None and (recipe.student.shape is None or "model_type" not in recipe.student.shape)
    if cut and len(served) == len(recipe.teacher.models):
        raise ValueError(f"no student can be cut from '{name}', which is behind a server; add student=MODEL")
    if len(recipe.teacher.models) == 1 and (
        (served[0].http is not None and served[0].http.label is not None)
        or (served[0].chat is not None and served[0].chat.probabilities is False)
    ):
        check_labels_alone(taught, name)


def _check_answered(stages: Iterable[Stage], why: str) -> None:
    """Refuse to learn the answers to all labelled examples where there may not be all."""
    for stage in stages:
        if stage.on == "train":
            raise ValueError(
                f"stage '{stage.name}' learns the teacher's answers to all labelled examples (on: train), and {why}; "
                "drop on, and the stage learns from those that were answered"
            )


def check_labels_alone(stages: Iterable[Stage], teacher: str) -> None:
    """Refuse distances that a label without probabilities leaves without a meaning.

    Raises:
        ValueError: a stage compares logits, or is infinite wherever the student says anything but the label.
    """
    for stage in stages:
        soft = stage.objectives.soft_targets
        if soft is not None and not stage.on_text and soft.form in ("mse", "reverse-kl"):
            why = "compares logits" if soft.form == "mse" else "is infinite wherever the teacher says never"
            raise ValueError(
                f"stage '{stage.name}' has soft_targets.form={soft.form}, which {why}, and the teacher '{teacher}' "
                "gives labels alone, without probabilities; use form kl"
            )


def check_queries(recipe: Recipe) -> None:
    """Refuse to choose queries where there is nothing to choose, or nobody to choose by."""
    queries = recipe.teacher.queries if recipe.teacher is not None else None
    if queries is None:
        return
    kind = recipe.task.kind
    if kind in ("masked-lm", "causal-lm"):
        raise ValueError(f"teacher.queries is about labels, and the task is {kind}; drop it")
    if kind == "regression" and queries.choose == "uncertainty":
        raise ValueError("a regression says no probabilities to be unsure by; give teacher.queries.choose=diversity")
    taught = [stage for stage in recipe.stages if not stage.on_text and stage.objectives.needs_teacher]
    others = {(stage.name, term) for stage in taught for term in stage.objectives.names if term not in OUTPUTS}
    if not taught:
        raise ValueError("teacher.queries is given, but no stage learns from the teacher's outputs; drop it")
    _check_answered(taught, "teacher.queries asks about some alone")
    if others:
        stage, term = min(others)
        raise ValueError(
            f"teacher.queries counts outputs that are asked for once, and stage '{stage}' has {term}, for which the "
            "teacher is run again and again; drop one of them"
        )


def check_answerer(recipe: Recipe) -> None:
    """Refuse, of a teacher behind a server that answers prompts, what is about labels."""
    for model in recipe.teacher.models if recipe.teacher is not None else []:
        for name in ("chat", "http", "price", "limit"):
            if getattr(model, name) is not None:
                hint = "; of answers the limit is data.generation.token_limit" if name in ("price", "limit") else ""
                raise ValueError(f"teacher.{name} is about labels, and the task is {recipe.task.kind}; drop it{hint}")
