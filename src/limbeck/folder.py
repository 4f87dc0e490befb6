"""A run's folder: whose it is, and what is in it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from limbeck import hardware
from limbeck.errors import InputError
from limbeck.files import read_json, write_atomic, write_json
from limbeck.images import image_bytes, is_image
from limbeck.recipe import Recipe, dump, load
from limbeck.rules.file import standalone

_OURS = (
    "run.json",
    "metrics.json",
    "report.html",
    "rules.yaml",
    "student",
    "baseline",
    "model",
    "assistant",
    "stages",
    "logs",
)
# What may change between two runs of the same command without making it another run.
_FREE = ("output", "knowledge", "labelling", "profile", "evaluation", "export", "about")
_OF_SERVERS = ("timeout", "key", "rate", "price", "limit")
_FREE_WITHIN = (
    "teacher.sharded",
    "training.report_to",
    "stages.training.report_to",
    "data.generation.token_limit",
    *(f"teacher.{which}.{name}" for which in ("models", "general") for name in _OF_SERVERS),
)
_SPLIT = ("batch_size", "gradient_accumulation")
_PACKAGES = ("limbeck", "torch", "transformers", "datasets", "accelerate", "numpy", "scikit-learn", "onnxruntime")


class RunFolder:
    """The folder of one run.

    Args:
        path: the recipe's `output`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def recipe(self) -> Path:
        """The resolved recipe; `limbeck distill` of it does the run again."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """The measured figures."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def check(self, recipe: Recipe) -> None:
        """Refuse a folder that holds something else, before anything is loaded.

        Raises:
            InputError: files that are no run's, or a run of a recipe that differs; names the first difference.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output={self.path} is a file; give a folder")
        if self.recipe.is_file():
            identity = self.path / "run.json"
            shared = read_json(identity).get("processes", 1) if identity.is_file() else 1
            before = _essential(_as_read_today(self.recipe), shared)
            now = _essential(yaml.safe_load(dump(recipe)), hardware.processes().num_processes)
            key, was, wanted = _first_difference(before, now) or ("", None, None)
            if key:
                raise InputError(
                    f"{self.path} holds another run: its {key} is {was!r}, yours is {wanted!r}; "
                    "give another output=FOLDER"
                )
        taken = [name for name in _OURS if (self.path / name).exists()]
        if taken and not self.recipe.is_file():
            raise InputError(
                f"{self.path} holds {taken[0]}, which the run would overwrite, but no run of Limbeck; "
                "give another output=FOLDER"
            )

    def claim(self, recipe: Recipe, content: dict[str, str]) -> None:
        """Write the run's identity, or compare with the one that is there.

        Args:
            recipe: the resolved recipe.
            content: fingerprints by name of what the recipe only points at: the data, the teacher, the student's start.

        Raises:
            InputError: the same recipe, but a file it points at has changed since.
        """
        identity = self.path / "run.json"
        if identity.is_file():
            before = read_json(identity)["content"]
            changed = [name for name in content if before.get(name) != content[name]]
            if changed:
                raise InputError(
                    f"{self.path} holds a run of this recipe, but the {' and the '.join(changed)} changed since; "
                    "give another output=FOLDER"
                )
        if hardware.processes().is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.recipe, dump(recipe))
            write_json(identity, {"content": content, "processes": hardware.processes().num_processes})
            if recipe.rules is not None:
                write_atomic(self.path / "rules.yaml", standalone(recipe.rules))
            versions = {name: hardware.version(name) for name in _PACKAGES}
            write_json(self.path / "environment.json", {"machine": hardware.describe(), "packages": versions})
        hardware.processes().wait_for_everyone()


def fingerprint(value: object) -> str:
    """SHA-256 of a value's YAML or text."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def table_fingerprint(table: Dataset) -> str:
    """SHA-256 of a table's values, column by column."""
    digest = hashlib.sha256()
    for column in table.column_names:
        for value in image_bytes(table, column) if is_image(table, column) else table[column]:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _as_read_today(path: Path) -> Any:  # noqa: ANN401
    """A run's recipe; entries that came with a later version stand at what they are when not given."""
    saved = yaml.safe_load(path.read_text("utf-8"))
    try:
        return yaml.safe_load(dump(load(saved)))
    except InputError:  # an entry that is no more
        return saved


def _essential(recipe: dict[str, Any], processes: int) -> dict[str, Any]:
    """What makes a run the one it is. How a global batch is split among processes and micro-steps does not."""
    whole = recipe["training"]
    for training in (*(stage["training"] for stage in recipe["stages"]), whole):
        split = [training.get(name, whole[name]) for name in _SPLIT]
        if training is whole or any(name in training for name in _SPLIT):
            training["examples of an update"] = math.prod(split) * processes
    for training in (whole, *(stage["training"] for stage in recipe["stages"])):
        for name in _SPLIT:
            training.pop(name, None)
    kept = {key: _without_free(value, key) for key, value in recipe.items() if key not in _FREE}
    trainings = [recipe["training"], *(stage["training"] for stage in recipe["stages"])]
    if any(each.get("patience") for each in trainings):  # the metric and what it is measured on choose the checkpoint
        kept["evaluation"] = {name: recipe["evaluation"].get(name) for name in ("metric", "examples")}
    return kept


def _without_free(value: Any, path: str) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_without_free(each, path) for each in value]
    if not isinstance(value, dict):
        return value
    return {k: _without_free(v, f"{path}.{k}") for k, v in value.items() if f"{path}.{k}" not in _FREE_WITHIN}


def _first_difference(a: Any, b: Any, path: str = "") -> tuple[str, Any, Any] | None:  # noqa: ANN401
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            found = _first_difference(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for i, (x, y) in pairs if (found := _first_difference(x, y, f"{path}.{i}"))), None)
    return None if a == b else (path, a, b)
