"""Made-up rows: MUNGE against the algorithm as printed, its laws, and the two baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset
from sklearn.neighbors import KNeighborsRegressor

from limbeck.data.munge import marginals, munge, naive_bayes
from limbeck.errors import InputError


def mixed(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": random.uniform(20, 90, rows),
            "job": random.choice(["cook", "clerk", "none"], rows),
            "pay": random.lognormal(8, 1, rows),
            "owner": random.random(rows) < 0.3,
        }
    )


def plain_munge(table: pd.DataFrame, copies: int, p: float, s: float, seed: int) -> pd.DataFrame:
    """Algorithm 1 as it is printed, one row and one attribute after the other, with brute-force neighbours."""
    names = list(table.columns)
    numeric = [name for name in names if name in ("age", "pay")]
    nominal = [name for name in names if name not in numeric]
    random, out = np.random.default_rng(seed), []
    low, high = table[numeric].min(), table[numeric].max()
    scaled = (table[numeric] - low) / (high - low)
    nearest = []
    for i in range(len(table)):
        squares = ((scaled - scaled.iloc[i]) ** 2).sum(axis=1) + (table[nominal] != table[nominal].iloc[i]).sum(axis=1)
        squares.iloc[i] = np.inf
        nearest.append(int(squares.to_numpy().argmin()))
    for _ in range(copies):
        rows = table.to_dict("records")
        draw = random.random((len(rows), len(numeric))) < p
        swap = random.random((len(rows), len(nominal))) < p
        noise = random.standard_normal((2, len(rows), len(numeric)))
        for i, e in enumerate(rows):
            other = rows[nearest[i]]
            for a, name in enumerate(numeric):
                if draw[i, a]:
                    sd = abs(e[name] - other[name]) / s
                    e[name], other[name] = other[name] + sd * noise[0, i, a], e[name] + sd * noise[1, i, a]
            for a, name in enumerate(nominal):
                if swap[i, a]:
                    e[name], other[name] = other[name], e[name]
        out += rows
    return pd.DataFrame(out, columns=names)


def test_it_is_the_algorithm_as_printed_row_after_row() -> None:
    table = mixed()
    found = munge(table, 3, p=0.6, s=1.5, seed=4)
    pd.testing.assert_frame_equal(found, plain_munge(table, 3, 0.6, 1.5, 4))


def test_with_no_chance_of_change_it_copies() -> None:
    table = mixed()
    pd.testing.assert_frame_equal(munge(table, 2, p=0), pd.concat([table, table], ignore_index=True))


@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
def test_nominal_values_change_places_but_not_their_numbers(p: float) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({name: random.choice(list("abcdef"), 50) for name in ("one", "two", "three", "four", "five")})
    for seed in range(3):
        found = munge(table, 1, p=p, seed=seed)
        for name in table:
            assert sorted(found[name]) == sorted(table[name])
    assert not found.equals(table)


def test_a_great_s_makes_changes_exchanges() -> None:
    table = mixed()
    found = munge(table, 1, p=0.5, s=np.inf, seed=1)
    for name in ("age", "pay"):
        np.testing.assert_array_equal(np.sort(found[name]), np.sort(table[name]))
        assert not found[name].equals(table[name])


def test_equal_rows_meet_each_other_and_never_themselves() -> None:
    table = pd.DataFrame({"x": [0.0, 0.0, 0.0, 5.0, 5.1], "kind": ["a", "a", "a", "b", "c"]})
    found = munge(table, 200, p=1.0, s=1e9, seed=0)
    parts = found["x"].round(3).to_numpy().reshape(200, 5)
    assert (parts[:, :3] == 0).all()
    assert set(map(tuple, parts[:, 3:])) <= {(5.0, 5.1), (5.1, 5.0)}


def test_columns_that_never_change_and_single_kinds_of_column_work() -> None:
    table = pd.DataFrame({"x": [1.0, 1.0, 1.0], "y": [0.0, 1.0, 3.0]})
    assert (munge(table, 2)["x"] == 1).all()
    names = pd.DataFrame({"a": ["x", "y", "x"], "b": ["1", "2", "2"]})
    for make in (munge, marginals, naive_bayes):
        assert list(make(names, 2).columns) == ["a", "b"]
        assert (make(table, 2)["x"] == 1).all()


@pytest.mark.parametrize("make", [munge, marginals, naive_bayes])
def test_the_seed_says_it_all_and_columns_stay_what_they_are(make: Any) -> None:
    table = mixed()
    first, again, other = make(table, 4, seed=1), make(table, 4, seed=1), make(table, 4, seed=2)
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    assert list(first.columns) == list(table.columns)
    assert first["owner"].dtype == bool
    assert first["age"].dtype == np.float64
    assert set(first["job"]) <= {"cook", "clerk", "none"}
    assert len(first) == (240 if make is munge else 4)


def test_a_dataset_is_a_table_whose_classes_are_names() -> None:
    rows = Dataset.from_dict({"x": [0.1, 0.5, 0.9], "kind": [0, 1, 1]}).cast_column(
        "kind", ClassLabel(names=["a", "b"])
    )
    assert sorted(munge(rows, 1, p=1.0)["kind"]) == [0, 1, 1]
    numbers = Dataset.from_dict({"x": [0.1, 0.5, 0.9], "kind": [0, 1, 2]})
    assert sorted(munge(numbers, 1, p=1.0, nominal=["kind"])["kind"]) == [0, 1, 2]


def test_marginals_keep_each_column_and_no_dependence() -> None:
    x = np.random.default_rng(0).normal(size=2000)
    found = marginals(pd.DataFrame({"x": x, "y": 2 * x}), 5000)
    assert set(found["x"]) <= set(x)
    assert found["x"].std() == pytest.approx(x.std(), rel=0.05)
    assert abs(np.corrcoef(found["x"], found["y"])[0, 1]) < 0.05


def test_a_mixture_keeps_what_its_components_tell_apart() -> None:
    random = np.random.default_rng(0)
    side = random.random(2000) < 0.3
    x = np.where(side, 5.0, -5.0) + random.normal(size=2000)
    table = pd.DataFrame({"x": x, "y": 3 * x + random.normal(size=2000), "side": np.where(side, "right", "left")})
    found = naive_bayes(table, 4000, components=2)
    right = found["side"] == "right"
    assert right.mean() == pytest.approx(side.mean(), abs=0.03)
    assert ((found["x"] > 0) == right).mean() > 0.99
    assert found["x"][right].mean() == pytest.approx(5, abs=0.2)
    assert found["y"][right].std() == pytest.approx(table["y"][side].std(), rel=0.1)
    within = np.corrcoef(found["x"][right], found["y"][right])[0, 1]
    assert abs(within) < 0.1, "attributes of a component are independent"


def test_a_student_errs_less_with_more_rows_and_more_on_rows_off_the_tables_dependence() -> None:
    random = np.random.default_rng(0)

    def examples(rows: int) -> np.ndarray:
        x = random.uniform(-1, 1, rows)
        return np.stack([x, x**2 + random.normal(0, 0.05, rows)], 1)

    def teacher(points: np.ndarray) -> np.ndarray:
        return np.sin(6 * points[:, 0]) + 4 * points[:, 1]

    table, test = pd.DataFrame(examples(60), columns=["x", "y"]), examples(2000)

    def error(rows: pd.DataFrame) -> float:
        points = np.concatenate([table.to_numpy(), rows.to_numpy()])
        student = KNeighborsRegressor(3).fit(points, teacher(points))
        return float(np.mean((student.predict(test) - teacher(test)) ** 2))

    alone = error(table.iloc[:0])
    made = {k: np.mean([error(munge(table, k, p=0.5, s=1.0, seed=seed)) for seed in range(5)]) for k in (1, 5, 40)}
    assert alone > made[1] > made[5] > made[40]
    assert np.mean([error(marginals(table, 40 * 60, seed=seed)) for seed in range(5)]) > 1.5 * made[40]


@pytest.mark.parametrize(
    ("table", "settings", "said"),
    [
        (pd.DataFrame({"x": [1.0, np.nan]}), {}, "'x' has missing values"),
        (pd.DataFrame({"x": [1.0, np.inf]}), {}, "'x' has infinite values"),
        (pd.DataFrame({"x": ["a", "b"]}), {"nominal": []}, "'x' is not of numbers"),
        (pd.DataFrame({"x": [1.0, 2.0]}), {"nominal": ["y"]}, "no column 'y'"),
        (pd.DataFrame({"x": [1.0]}), {}, "one row"),
        (pd.DataFrame({"x": []}), {}, "0 rows"),
        (pd.DataFrame({"x": [1.0, 2.0]}), {"p": 1.5}, "p from 0 to 1"),
        (pd.DataFrame({"x": [1.0, 2.0]}), {"s": 0}, "s above 0"),
    ],
)
def test_what_cannot_be_munged_is_refused(table: pd.DataFrame, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        munge(table, 2, **settings)
