"""Layers of several teachers: each term looks at each of them, and what they say together is the ensemble's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model, make_reviews, make_tokenizer, numbered, save_model, write_csv
from test_invariants import QUICK, TWO, classifier, recipe_of

from limbeck.checkpoints import Checkpoint, open_classifier
from limbeck.data import Splits
from limbeck.objectives import FromEach
from limbeck.recipe import Recipe
from limbeck.signals import Signals
from limbeck.tasks.text import model_inputs
from limbeck.training import Teaching
from limbeck.training.lessons import prepare_lesson
from limbeck.training.phases import Phase, phases_of

WIDE = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 6}
"""Beside the others' 4 layers of 32."""


def teachers() -> list[Checkpoint]:
    return [classifier(1), Checkpoint(make_model(seed=2, **WIDE), make_tokenizer(), "wide")]


def recipe_with(output: Path, objectives: dict[str, Any], weights: tuple[float, ...] = (3, 1)) -> Recipe:
    recipe = recipe_of(output, {"name": "s", "objectives": objectives})
    assert recipe.teacher is not None
    first = recipe.teacher.models[0]
    recipe.teacher.models = [first.model_copy(update={"weight": weight}) for weight in weights]
    return recipe


def lesson_of(recipe: Recipe, knowledge: Any = None) -> tuple[Any, Checkpoint, Phase]:
    rows = numbered(make_reviews(8))
    student = classifier(3, num_hidden_layers=2, hidden_size=16, intermediate_size=32)
    (phase,) = phases_of(recipe.stages, recipe, 2)
    splits = Splits(rows, rows, rows, rows)
    return prepare_lesson(phase, student, recipe, TWO, splits, Teaching(knowledge, teachers())), student, phase


def states(checkpoint: Checkpoint, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    found: tuple[torch.Tensor, ...] = checkpoint.model(**model_inputs(batch), output_hidden_states=True).hidden_states
    return tuple(each.double() for each in found)


def test_a_term_on_layers_is_the_weighted_mean_over_teachers_of_any_width_and_depth(tmp_path):
    """L = sum_k w_k / sum(w) * sum over layers of the mean squared error through teacher k's own projection."""
    recipe = recipe_with(tmp_path, {"hidden": {"layers": "uniform"}})
    lesson, student, _ = lesson_of(recipe)
    (term,) = lesson.terms
    assert isinstance(term, FromEach)
    batch = lesson.collate(lambda: 0)([lesson.learn[number] for number in range(4)])
    said = lesson.source.signals(batch)
    its = states(student, batch)
    told = Signals(hidden=dict(enumerate(each.float() for each in its)))
    found = term.total(told, said, batch)
    expected, mask = torch.zeros((), dtype=torch.float64), batch["attention_mask"].bool()
    for share, part, teacher, pairs in zip(
        (0.75, 0.25), term.parts, teachers(), ({1: 2, 2: 4}, {1: 3, 2: 6}), strict=True
    ):
        assert part.pairs == pairs
        for mine, theirs in pairs.items():
            projected = its[mine] @ part.projection.linear.weight.double().T
            square = (projected - states(teacher, batch)[theirs]).square().mean(-1)
            expected = expected + share * square[mask].sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    expected_gradients = torch.autograd.grad(expected, [part.projection.linear.weight for part in term.parts])
    for part, gradient in zip(term.parts, expected_gradients, strict=True):
        torch.testing.assert_close(part.projection.linear.weight.grad, gradient.float(), rtol=1e-4, atol=1e-5)
    lesson.close()


def test_outputs_are_those_that_were_kept_of_all_and_layers_are_each_ones_own(tmp_path):
    class Kept:
        def signals(self, batch: dict[str, torch.Tensor]) -> Signals:
            return Signals(batch["row"][:, None] * torch.ones(1, 2))

    recipe = recipe_with(tmp_path, {"soft_targets": 1, "hidden": {"form": "cls", "layers": {-1: -1}}})
    lesson, _, _ = lesson_of(recipe, Kept())
    batch = lesson.collate(lambda: 0)([lesson.learn[number] for number in (5, 2)])
    said = lesson.source.signals(batch)
    assert said.logits.tolist() == [[5, 5], [2, 2]]
    assert not said.features
    for member, teacher, layer in zip(said.members, teachers(), (4, 6), strict=True):
        torch.testing.assert_close(
            member.features[layer].double(), states(teacher, batch)[-1][:, 0], rtol=1e-4, atol=1e-4
        )
        assert member.logits is None
    lesson.close()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("places")
    save_model(root / "NARROW", initializer_range=0.05)
    save_model(root / "WIDE", initializer_range=0.05, seed=2, **WIDE)
    save_model(root / "OTHER", seed=3, tokenizer=make_tokenizer(extra=["quince"]), vocabulary=210)
    write_csv(root / "DATA.csv", make_reviews(60))
    return {path.stem: str(path) for path in root.iterdir()}


def words(places: dict[str, str], method: str, output: Path, *more: str) -> list[str]:
    quick = [f"{key}={value}" for key, value in QUICK.items()]
    line = ["distill", method, f"output={output}", f"data={places['DATA']}", "student.layers=2", *quick, *more]
    return [word.replace("PLACE/", str(Path(places["WIDE"]).parent) + "/") for word in line]


@pytest.mark.parametrize("method", ["distilbert", "pkd-skip"])
def test_recipes_on_layers_take_several_teachers_from_the_command_line(method, command, places, tmp_path):
    line = words(places, method, tmp_path / "out", "teacher=[PLACE/NARROW, {model: PLACE/WIDE, weight: 2}]")
    code, printed = command(*line)
    assert code == 0, printed
    student = open_classifier(str(tmp_path / "out")).model
    assert student.config.hidden_size == 32
    assert not [name for name, _ in student.named_parameters() if "limbeck" in name]
    before = {name: np.array(weight.detach()) for name, weight in student.named_parameters()}
    code, printed = command(*line)  # again: all is there
    assert code == 0, printed
    assert "reused the trained model" in printed
    after = open_classifier(str(tmp_path / "out")).model
    assert all(np.array_equal(weight.detach(), before[name]) for name, weight in after.named_parameters())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["teacher=[PLACE/NARROW, PLACE/OTHER]"], "the tokenizers of"),
        (
            ["teacher=[PLACE/NARROW, PLACE/WIDE]", "stages.distill.objectives.hidden={layers: {1: 5}}"],
            "the student has 2 layers and the teacher 4",
        ),
    ],
)
def test_teachers_that_cannot_be_learnt_from_together_are_refused_first(more, expected, command, places, tmp_path):
    code, printed = command(*words(places, "distilbert", tmp_path / "out", *more))
    assert code == 2, printed
    assert expected in " ".join(printed.split())
    assert not (tmp_path / "out").exists()
