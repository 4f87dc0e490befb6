"""Choosing what to ask: by what the student says and how it sees texts, in rounds, each query spent once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_reviews, write_csv
from datasets import Dataset
from scipy.special import softmax
from scipy.stats import entropy

from limbeck import api
from limbeck.errors import InputError
from limbeck.knowledge import Joined, Store, label_texts
from limbeck.querying import most_uncertain, spread_out
from limbeck.recipe import Recipe
from limbeck.run import run
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel

TWO = Task("classification", ("negative", "positive"))

# --- choosing -----------------------------------------------------------------------------------------------------


def test_the_least_sure_are_those_of_most_entropy_or_of_the_smallest_margin() -> None:
    p = softmax(np.random.default_rng(0).normal(size=(200, 5)) * 2, -1)
    assert most_uncertain(p, "classification", "entropy", 20) == np.argsort(-entropy(p, axis=-1)).tolist()[:20]
    ranked = np.sort(p, -1)
    assert most_uncertain(p, "classification", "margin", 20) == np.argsort(ranked[:, -1] - ranked[:, -2]).tolist()[:20]
    assert most_uncertain(np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]), "classification", "entropy", 2) == [1, 2]


def test_of_several_labels_each_counts_on_its_own() -> None:
    p = np.array([[0.5, 0.99, 0.99], [0.7, 0.3, 0.6], [0.01, 0.02, 0.99]])
    assert most_uncertain(p, "multi-label", "margin", 3) == [0, 1, 2]  # by the one that is least sure
    assert most_uncertain(p, "multi-label", "entropy", 3) == [1, 0, 2]  # by all


def test_the_core_set_takes_the_farthest_each_time() -> None:
    points = np.array([[0.0, 0], [10, 0], [0, 4], [1, 0], [10, 1]])
    generator = np.random.default_rng(0)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    taken = [0]
    for row in spread_out(points, [0], 4, "core-set", generator):
        left = [each for each in range(5) if each not in taken]
        assert distance[row, taken].min() == max(distance[each, taken].min() for each in left)
        taken.append(row)


def test_k_means_plus_plus_draws_by_squared_distance_and_never_twice() -> None:
    points = np.array([[0.0], [1.0], [2.0], [3.0]])
    draws = [spread_out(points, [0], 1, "k-means++", np.random.default_rng(seed))[0] for seed in range(3000)]
    counts = np.bincount(draws, minlength=4) / 3000
    np.testing.assert_allclose(counts, np.array([0, 1, 4, 9]) / 14, atol=0.03)
    copies = np.zeros((6, 2))
    assert sorted(spread_out(copies, [2], 5, "k-means++", np.random.default_rng(0))) == [0, 1, 3, 4, 5]


def test_joined_stores_are_one(tmp_path: Path, tiny_teacher: Any) -> None:
    texts = Dataset.from_list([{"text": row["text"]} for row in make_reviews(30, seed=3)])
    model = HuggingFaceModel(tiny_teacher, TWO, 32, 8)
    whole = label_texts(model, texts, TWO, tmp_path, (4,))
    parts: list[Store] = [
        label_texts(model, texts.select(range(*ends)), TWO, tmp_path, (4,)) for ends in ((0, 11), (11, 30))
    ]
    joined = Joined(parts)
    assert (len(joined), joined.size) == (30, parts[0].size + parts[1].size)
    rows = {"row": torch.tensor([29, 0, 11, 10, 3, 11])}
    torch.testing.assert_close(joined.signals(rows).logits, whole.signals(rows).logits, atol=1e-5, rtol=1e-4)
    assert joined.signals(rows).features[4].shape == whole.signals(rows).features[4].shape
    assert joined.signals({"row": torch.tensor([20])}).logits.shape == (1, 2)


# --- rounds -------------------------------------------------------------------------------------------------------


def recipe_of(tiny_recipe: Any, **queries: Any) -> Recipe:
    given = {f"teacher.queries.{name}": value for name, value in {"budget": 24, "rounds": 3, **queries}.items()}
    return tiny_recipe(**{"training.epochs": 1, "student.layers": 2, **given})


def asked(folder: Path) -> list[list[int]]:
    return [json.loads(path.read_text())["rows"] for path in sorted((folder / "queries").glob("round-*.json"))]


def texts_kept(knowledge: Path) -> list[str]:
    return [text for path in knowledge.glob("*/manifest.json") for text in Dataset.load_from_disk(path.parent)["text"]]


@pytest.mark.parametrize("choose", ["uncertainty", "diversity", "random"])
def test_the_teacher_is_asked_about_the_budget_and_nothing_else(tiny_recipe, choose, capfd):
    recipe = recipe_of(tiny_recipe, choose=choose)
    done = run(recipe)
    rounds = asked(done.folder)
    assert [len(rows) for rows in rounds] == [8, 8, 8]
    assert len({row for rows in rounds for row in rows}) == 24
    kept = texts_kept(done.folder / "knowledge")
    assert len(kept) == len(set(kept)) == 24
    metrics = done.metrics
    assert metrics["data"]["transfer"] == metrics["knowledge"]["examples"] == 24
    curve = metrics["queries"]["curve"]
    assert [each["queries"] for each in curve] == [8, 16, 24]
    assert curve[-1]["quality"] == metrics["student"]["quality"]
    page = done.report.read_text()
    assert "Quality and queries" in page
    assert "24 examples of the transfer set in 3 rounds" in page
    assert not list(done.folder.glob("round-*"))
    assert "24 of 24 asked" in capfd.readouterr().err


def test_what_is_chosen_is_what_the_student_is_least_sure_of(tiny_recipe, monkeypatch):
    """The second round's are the top of the entropy of the student that the first round's taught."""
    from limbeck import querying

    seen: list[tuple[np.ndarray, list[int]]] = []
    inner = querying.rounds.most_uncertain

    def watched(probabilities: np.ndarray, *args: Any) -> list[int]:
        seen.append((probabilities, inner(probabilities, *args)))
        return seen[-1][1]

    monkeypatch.setattr(querying.rounds, "most_uncertain", watched)
    done = run(recipe_of(tiny_recipe, rounds=2))
    (probabilities, places), rounds = seen[0], asked(done.folder)
    pool = [row for row in range(len(probabilities) + 12) if row not in rounds[0]]
    assert sorted(pool[place] for place in places) == rounds[1]
    doubt = entropy(probabilities, axis=-1)
    assert doubt[places].min() >= np.delete(doubt, places).max()


def test_a_run_that_is_stopped_between_rounds_goes_on_with_the_same_choices(tiny_recipe, tmp_path):
    whole = run(recipe_of(tiny_recipe))
    again = recipe_of(tiny_recipe, **{}).model_copy(update={"output": str(tmp_path / "stopped")})
    run(again)
    folder = tmp_path / "stopped"
    for name in ("metrics.json", "queries/round-3.json", "logs/student.json"):  # as if it had been killed before
        (folder / name).unlink()
    done = run(again)
    assert asked(folder) == asked(whole.folder)
    assert done.metrics["queries"]["curve"] == whole.metrics["queries"]["curve"]


def test_more_than_there_is_cannot_be_asked(tiny_recipe):
    with pytest.raises(InputError, match=r"budget is 500, and there are 96 examples to ask about"):
        run(recipe_of(tiny_recipe, budget=500))


def test_label_has_no_student_to_choose_by(tiny_teacher_dir, reviews_csv, tmp_path):
    given = {"teacher": {"model": str(tiny_teacher_dir), "queries": 20}, "output": tmp_path / "run"}
    with pytest.raises(InputError, match=re.escape("chosen by a student in training; use distill")):
        api.label(data=str(reviews_csv), **given)


def test_queries_choose_from_unlabelled_text_too(tiny_recipe, unlabelled_csv, tmp_path):
    more = write_csv(tmp_path / "few.csv", make_reviews(60, seed=11))
    recipe = recipe_of(tiny_recipe, rounds=2, budget=40).model_copy(deep=True)
    settings = {"data": {"train": str(more), "unlabelled": str(unlabelled_csv)}}
    done = run(Recipe.model_validate(recipe.model_dump(exclude_unset=True) | settings))
    assert max(row for rows in asked(done.folder) for row in rows) >= 48  # of 48 labelled and 50 more
    assert done.metrics["data"]["transfer"] == 40
