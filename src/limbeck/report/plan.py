"""What `limbeck plan` prints."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Column, Table

from limbeck.files import megabytes
from limbeck.sizing import Plan

_COLUMNS = ("student", "recipe", "size", "latency", "faster", "asking", "training", "disk", "memory")


def plan_table(plan: Plan) -> Table:
    """A row for the teacher and for each student; the chosen one has a star. Narrow enough for 80 columns."""
    table = Table(*(Column(title, overflow="fold") for title in _COLUMNS), box=None, pad_edge=False)
    teacher = plan.teacher
    table.add_row("teacher", "", megabytes(teacher["bytes"]), f"{teacher['latency_ms']:.1f} ms", "1.0x")
    for each in plan.proposals:
        table.add_row(
            f"{each.name} *" if each is plan.best and plan.target.given else each.name,
            each.recipe,
            megabytes(each.bytes),
            f"{each.latency_ms:.1f} ms",
            f"{each.speedup:.1f}x",
            duration(each.labelling_seconds),
            duration(each.training_seconds),
            megabytes(each.knowledge_bytes),
            "" if each.memory_bytes is None else f"{each.memory_bytes / 1e6:,.0f} MB",
        )
    return table


def advice(plan: Plan) -> str:
    """What to do now."""
    if not plan.target.given:
        return "give --speedup, --latency or --megabytes to have a student chosen"
    if plan.best is None:
        return f"none of these is {plan.target}; ask for less, or distill a student.shape of your own"
    settings = " ".join(f"{key}={_typed(value)}" for key, value in plan.best.settings.items())
    return f"* the largest that is {plan.target}: limbeck distill {plan.best.recipe} {settings} teacher=... data=..."


def duration(seconds: float) -> str:
    """For reading."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _typed(value: Any) -> str:  # noqa: ANN401
    """A setting as it is typed in a shell."""
    text = json.dumps(value).replace('"', "")
    return f"'{text}'" if isinstance(value, dict) else text
