"""Limbeck distils a big model into a small one you can ship, and proves what was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.errors import InputError, LimbeckError

if TYPE_CHECKING:
    from limbeck.api import benchmark, check_rules, cut, distill, evaluate, export, generate, label, plan, train
    from limbeck.recipe import Recipe
    from limbeck.run import Run

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "LimbeckError",
    "Recipe",
    "Run",
    "benchmark",
    "check_rules",
    "cut",
    "distill",
    "evaluate",
    "export",
    "generate",
    "label",
    "plan",
    "train",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load torch and transformers only when something is used that needs them."""
    if name == "Recipe":
        from limbeck.recipe import Recipe

        return Recipe
    if name == "Run":
        from limbeck.run import Run

        return Run
    if name in __all__[4:]:
        from limbeck import api

        return getattr(api, name)
    raise AttributeError(f"module 'limbeck' has no attribute '{name}'")
