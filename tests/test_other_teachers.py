"""Estimators, weights and specialists among teachers, and made-up rows for them to label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from datasets import Dataset
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from limbeck.errors import InputError
from limbeck.recipe import load
from limbeck.signals import Signals
from limbeck.tasks import Task
from limbeck.teachers.ensemble import Ensemble, certainty, mean_signals
from limbeck.teachers.estimator import EstimatorTeacher, open_estimator
from limbeck.teachers.specialists import WithSpecialists, combine_specialists

QUICK = ["training.epochs=2", "evaluation.resamples=100", "evaluation.speed=false", "export=[]", "baseline=false"]
COLUMNS = "data.features=[size, weight, colour]"
MLP = "student.shape={model_type: mlp, hidden_sizes: [8]}"
TABLE = Task("classification", ("n", "p"), inputs="features", features=("a", "b"))


def numbers(count: int = 60) -> tuple[Dataset, np.ndarray]:
    """Two columns and which of them is the larger."""
    values = np.random.default_rng(0).normal(size=(count, 2))
    labels = np.where(values[:, 0] > values[:, 1], "p", "n")
    return Dataset.from_dict({"a": values[:, 0], "b": values[:, 1]}), labels


def saved(estimator: Any, path: Path) -> str:
    """An estimator's file."""
    skops.io.dump(estimator, path)
    return str(path)


# --- estimators ---------------------------------------------------------------------------------------------------


def test_an_estimator_says_the_logarithms_of_its_probabilities_in_the_task_s_order(tmp_path: Path) -> None:
    table, labels = numbers()
    forest = RandomForestClassifier(10, random_state=0).fit(table.to_pandas(), labels)
    name = saved(forest, tmp_path / "forest.skops")
    said = EstimatorTeacher(name, TABLE).ask(table).logits
    np.testing.assert_allclose(np.exp(said), np.maximum(forest.predict_proba(table.to_pandas()), 1e-6), rtol=1e-5)
    turned = Task("classification", ("p", "n"), inputs="features", features=("b", "a"))
    np.testing.assert_allclose(EstimatorTeacher(name, turned).ask(table).logits, said[:, ::-1])
    teacher = EstimatorTeacher(name, TABLE)
    assert teacher.parameters > 10 * 3
    assert (
        teacher.fingerprint
        != EstimatorTeacher(
            saved(LogisticRegression().fit(table.to_pandas(), labels), tmp_path / "l.skops"), TABLE
        ).fingerprint
    )


def test_a_forest_teaches_a_network_through_the_command_line(
    command: Any, table_csv: Path, table_teacher: Path, tmp_path: Path
) -> None:
    words = ["distill", "bucila", f"teacher={table_teacher}", f"data={table_csv}", COLUMNS, *QUICK]
    code, printed = command(*words, "training.epochs=10", f"output={tmp_path}/run")
    assert code == 0, printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["teacher"]["quality"]["accuracy"]["value"] > 0.8
    assert metrics["data"]["transfer"] == 11 * metrics["data"]["train"]
    assert metrics["student"]["fidelity"]["agreement"] > 0.6


@pytest.mark.parametrize("by", ["marginals", "naive_bayes"])
def test_rows_are_made_up_in_other_ways_too(
    by: str, command: Any, table_csv: Path, table_teacher: Path, tmp_path: Path
) -> None:
    words = [
        f"teacher={table_teacher}",
        f"data={table_csv}",
        COLUMNS,
        f"data.synthetic={{by: {by}, copies: 2}}",
        *QUICK,
    ]
    code, printed = command("distill", "bucila", *words, f"output={tmp_path}/run")
    assert code == 0, printed


def test_an_estimator_that_cannot_teach_is_one_sentence(tmp_path: Path) -> None:
    table, labels = numbers()
    frame = table.to_pandas()
    machine = saved(LinearSVC().fit(frame, labels), tmp_path / "svc.skops")
    with pytest.raises(InputError, match="tells no probabilities"):
        EstimatorTeacher(machine, TABLE)
    line = saved(LogisticRegression().fit(frame, labels), tmp_path / "line.skops")
    with pytest.raises(InputError, match="the classes of"):
        EstimatorTeacher(line, Task("classification", ("x", "y"), inputs="features", features=("a", "b")))
    with pytest.raises(InputError, match="not asked about images"):
        EstimatorTeacher(line, Task("classification", ("n", "p"), inputs="image"))
    with pytest.raises(InputError, match="leave them out"):
        EstimatorTeacher(line, TABLE).ask(table, [1])
    one = EstimatorTeacher(line, Task("classification", ("n", "p"), inputs="features", features=("a",)))
    with pytest.raises(InputError, match="reads column 'b'"):
        one.ask(table)
    with pytest.raises(InputError, match="no file"):
        open_estimator(str(tmp_path / "nowhere.skops"))
    (tmp_path / "torn.skops").write_bytes(b"no archive")
    with pytest.raises(InputError, match="does not open"):
        open_estimator(str(tmp_path / "torn.skops"))


class Strange:
    """No part of scikit-learn."""


def test_what_is_not_scikit_learn_s_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not know to be safe"):
        open_estimator(saved(Strange(), tmp_path / "strange.skops"))


def test_a_tree_that_points_outside_of_itself_is_refused(tmp_path: Path) -> None:
    table, labels = numbers()
    forest = RandomForestClassifier(2, random_state=0).fit(table.to_pandas(), labels)
    tree = forest.estimators_[0].tree_
    tree.children_left[0] = 10_000
    with pytest.raises(InputError, match="damaged tree"):
        open_estimator(saved(forest, tmp_path / "crafted.skops"))


# --- weights ------------------------------------------------------------------------------------------------------


class Says:
    """A model that says what it is told to."""

    parameters, bytes, precision = 1, 1, "float32"

    def __init__(self, logits: Any, labels: tuple[str, ...] = ("a", "b", "c")) -> None:
        self.logits, self.labels = np.asarray(logits, dtype=np.float32), labels
        self.fingerprint = {"logits": self.logits.tolist()}

    def ask(self, texts: Dataset, features: Any = ()) -> Signals:
        return Signals(self.logits)

    def runner(self, texts: Dataset) -> Any:
        return lambda: None


THREE = Task("classification", ("a", "b", "c"))
ROWS = Dataset.from_dict({"text": ["x", "y"]})


def test_certainty_is_one_of_a_sure_model_and_none_of_an_even_one() -> None:
    found = certainty(np.array([[50.0, 0, 0], [1, 1, 1], [np.log(0.5), np.log(0.5), -50]]), THREE)
    np.testing.assert_allclose(found, [1, 1e-6, 1 - np.log(2) / np.log(3)], atol=1e-6)
    both = certainty(np.array([[50.0, 0.0]]), Task("multi-label", ("a", "b")))
    np.testing.assert_allclose(both, [0.5], atol=1e-6)


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_by_confidence_the_sure_member_counts_example_by_example(combine: str) -> None:
    draw = np.random.default_rng(0)
    logits = [draw.normal(size=(2, 3)) * 3 for _ in range(2)]
    said = Ensemble([Says(each) for each in logits], [1.0, 2.0], combine, THREE, by_confidence=True).ask(ROWS).logits
    p = [softmax(each, axis=-1) for each in logits]
    sure = [1 + (each * np.log(each)).sum(-1) / np.log(3) for each in p]
    shares = np.stack([sure[0], 2 * sure[1]])
    shares = (shares / shares.sum(0))[..., None]
    if combine == "probabilities":
        np.testing.assert_allclose(np.exp(said), (shares * np.stack(p)).sum(0), rtol=1e-4)
    else:
        np.testing.assert_allclose(said, (shares * np.stack(logits)).sum(0), rtol=1e-4)


def test_weights_for_every_example_that_are_equal_are_one_weight_each() -> None:
    draw = np.random.default_rng(1)
    logits = [draw.normal(size=(4, 3)) for _ in range(2)]
    for combine in ("probabilities", "logits"):
        one = mean_signals(logits, [1, 3], "classification", combine)
        many = mean_signals(logits, np.repeat([[1.0], [3.0]], 4, axis=1), "classification", combine)
        np.testing.assert_allclose(one, many, rtol=1e-6)


def test_the_better_teacher_counts_more_by_validation(
    command: Any, table_csv: Path, table_teacher: Path, tmp_path: Path
) -> None:
    frame = Dataset.from_csv(str(table_csv)).to_pandas()
    useless = LogisticRegression().fit(frame[["weight"]], frame["label"])
    poor = saved(useless, tmp_path / "poor.skops")
    manifests = []
    for weigh in ("given", "validation"):
        words = [f"teacher.models=[{table_teacher}, {poor}]", f"teacher.weigh={weigh}", f"data={table_csv}", COLUMNS]
        code, printed = command("distill", "bucila", *words, *QUICK, f"output={tmp_path}/{weigh}")
        assert code == 0, printed
        manifest = next((tmp_path / weigh / "knowledge").glob("*/manifest.json"))
        manifests.append(json.loads(manifest.read_text())["spec"]["teacher"]["weights"])
    assert manifests[0] == [1, 1]
    assert 1 >= manifests[1][0] > manifests[1][1] > 0


# --- specialists --------------------------------------------------------------------------------------------------


def test_the_distribution_between_a_generalist_and_specialists_is_the_minimum() -> None:
    draw = np.random.default_rng(0)
    generalist, classes = draw.normal(size=(6, 5)), [[0, 1, 2], [2, 3]]
    specialists = [draw.normal(size=(6, 4)), draw.normal(size=(6, 3))]
    found = combine_specialists(generalist, specialists, classes)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-6)
    for row in range(6):
        g = softmax(generalist[row])
        active = [m for m, own in enumerate(classes) if g.argmax() in own]

        def loss(z: np.ndarray, g: np.ndarray = g, row: int = row, active: list[int] = active) -> float:
            q = softmax(z)
            total = (g * np.log(g / q)).sum()
            for m in active:
                p = softmax(specialists[m][row])
                lumped = np.append(q[classes[m]], 1 - q[classes[m]].sum())
                total += (p * np.log(p / lumped)).sum()
            return float(total)

        best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(np.exp(found[row]), softmax(best.x), atol=1e-4)
        if not active:
            np.testing.assert_allclose(found[row], log_softmax(generalist[row]), rtol=1e-5)


def test_specialists_are_asked_by_their_own_labels() -> None:
    general = Says([[2.0, 1, 0], [0, 0, 3]])
    special = Says([[0.0, 5, 0], [0, 0, 9]], ("b", "rest", "a"))
    whole = WithSpecialists(general, [(special, "rest")], THREE)
    found = whole.ask(ROWS).logits
    expected = combine_specialists(general.logits, [special.logits[:, [0, 2, 1]]], [[1, 0]])
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(found[1], log_softmax(general.logits[1]), rtol=1e-5)
    with pytest.raises(InputError, match="others is all others"):
        WithSpecialists(general, [(special, "all others")], THREE)
    with pytest.raises(InputError, match="tells z apart"):
        WithSpecialists(general, [(Says([[0.0, 1]], ("z", "rest")), "rest")], THREE)


def test_a_specialist_is_trained_and_teaches_beside_a_generalist(command: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(120, 2))
    labels = np.select([values[:, 0] > 0.5, values[:, 1] > 0], ["right", "top"], "bottom")
    np.savez(tmp_path / "points.npz", x=values, y=labels)
    common = [f"data={tmp_path}/points.npz", *QUICK[1:4], "training.learning_rate=1e-2"]
    own = ["task.labels=[top, bottom]", "task.others=elsewhere"]
    code, printed = command("train", *common, *own, MLP, "training.epochs=3", f"output={tmp_path}/special")
    assert code == 0, printed
    assert json.loads((tmp_path / "special" / "metrics.json").read_text())["task"]["labels"] == [
        "top",
        "bottom",
        "elsewhere",
    ]
    code, printed = command("train", *common, MLP, "training.epochs=3", f"output={tmp_path}/general")
    assert code == 0, printed
    teachers = f"teacher.models=[{tmp_path}/general, {{model: {tmp_path}/special, others: elsewhere}}]"
    small = "student.shape={model_type: mlp, hidden_sizes: [4]}"
    code, printed = command("distill", "hinton", *common, *QUICK, teachers, small, f"output={tmp_path}/run")
    assert code == 0, printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["teacher"]["size"]["parameters"] > 2 * metrics["student"]["size"]["parameters"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"teacher": {"models": [{"model": "a", "others": "x"}, "b"]}}, "a model of all classes before it"),
        ({"teacher": {"models": ["a"], "weigh": "confidence"}}, "there is one teacher"),
        ({"teacher": {"models": ["a", "b"], "weigh": "confidence"}, "task": "regression"}, "no probabilities"),
        ({"task": {"others": "x"}}, "give task.labels"),
        ({"data.synthetic": 3, "stages.distill.objectives.soft_targets": None}, "data.synthetic=null"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load("hinton", {"teacher": "t", "data": "d", "output": "o"} | settings)


def test_made_up_rows_of_text_are_refused(
    command: Any, reviews_csv: Path, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    words = [f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", "data.synthetic=2", f"output={tmp_path}/run"]
    code, printed = command("distill", "hinton", *words)
    assert code == 2
    assert "data.synthetic=null" in " ".join(printed.split())
