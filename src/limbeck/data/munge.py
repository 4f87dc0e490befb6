"""Made-up rows like those of a table, for a teacher to label: the generators of Bucila et al. 2006, section 3.

A table's columns are continuous (numbers) or nominal (anything else). Of three generators `munge` stays closest to the
table and takes the joint distribution along, `naive_bayes` takes a mixture's, and `marginals` takes none. All follow
from their seed alone, and none looks at labels: leave the label column out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import minmax_scale

from limbeck.errors import InputError
from limbeck.recipe.data import Synthetic

Numbers = NDArray[np.float64]
Codes = NDArray[np.int64]
Table: TypeAlias = pd.DataFrame | Dataset


@dataclass(frozen=True)
class MixedTable:
    """A table as two matrices.

    Attributes:
        names: all columns in their order.
        continuous: names of those that are numbers.
        nominal: names of the others.
        numbers: float64 [n, continuous].
        codes: of the nominal columns, numbers of `values`, int64 [n, nominal].
        values: of each nominal column, what it holds.
    """

    names: tuple[str, ...]
    continuous: tuple[str, ...]
    nominal: tuple[str, ...]
    numbers: Numbers
    codes: Codes
    values: tuple[NDArray[np.object_], ...]

    @classmethod
    def of(cls, table: Table, nominal: Sequence[str] | None = None) -> MixedTable:
        """Split a table's columns.

        Args:
            table: the rows.
            nominal: the nominal columns; those that hold no numbers when not given. Truth values are no numbers.

        Raises:
            InputError: no rows, a column that is not there, a value that is missing or infinite, or text in a
                continuous column.
        """
        frame = table.to_pandas() if isinstance(table, Dataset) else table
        if not len(frame) or not len(frame.columns):
            raise InputError(f"{len(frame)} rows of {len(frame.columns)} columns say nothing; give a table with both")
        names = tuple(map(str, frame.columns))
        if nominal is None:
            classes = [n for n in names if isinstance(table, Dataset) and isinstance(table.features[n], ClassLabel)]
            numeric = frame.select_dtypes("number").columns
            nominal = [name for name in names if name not in numeric or name in classes]
        absent = [name for name in nominal if name not in names]
        if absent:
            raise InputError(f"no column '{absent[0]}' in the table; it has {', '.join(names)}")
        for name in names:
            if frame[name].isna().any():
                raise InputError(f"column '{name}' has missing values; fill them in or leave such rows out")
        continuous = tuple(name for name in names if name not in nominal)
        numbers = np.empty((len(frame), len(continuous)))
        for place, name in enumerate(continuous):
            try:
                numbers[:, place] = frame[name].to_numpy(dtype=np.float64)
            except (TypeError, ValueError):
                raise InputError(f"column '{name}' is not of numbers; name it in nominal") from None
        if not np.isfinite(numbers).all():
            wrong = continuous[int(np.flatnonzero(~np.isfinite(numbers).all(0))[0])]
            raise InputError(f"column '{wrong}' has infinite values; leave such rows out")
        kept = tuple(name for name in names if name in nominal)
        pairs = [pd.factorize(frame[name]) for name in kept]
        codes = np.stack([found for found, _ in pairs], 1) if pairs else np.empty((len(frame), 0), dtype=np.int64)
        return cls(names, continuous, kept, numbers, codes, tuple(np.asarray(v, dtype=object) for _, v in pairs))

    @property
    def scaled(self) -> Numbers:
        """The continuous columns from 0 to 1; one that never changes is 0."""
        return np.asarray(minmax_scale(self.numbers)) if self.continuous else self.numbers

    def table(self, numbers: Numbers, codes: Codes) -> pd.DataFrame:
        """Rows of these columns: float64 for the continuous ones, what they held for the nominal ones."""
        made = {name: numbers[:, place] for place, name in enumerate(self.continuous)}
        held = zip(self.nominal, self.values, codes.T, strict=True)
        found = {name: pd.Series(values[column]).infer_objects() for name, values, column in held}
        return pd.DataFrame({name: (made | found)[name] for name in self.names})


def munge(
    table: Table, copies: int, p: float = 0.5, s: float = 1.0, seed: int = 0, nominal: Sequence[str] | None = None
) -> pd.DataFrame:
    """MUNGE(T, k, p, s) of Bucila et al. 2006, algorithm 1: rows near the table's, which keep its dependences.

    `copies` times: in a copy of the table every row e in turn meets its nearest other row e'. With probability p each,
    a nominal attribute's two values are swapped, and a continuous one's are drawn anew, each around the other:
    e ~ N(e', sd) and e' ~ N(e, sd) from the old values, with sd = |e - e'| / s. Both rows are edited in place, so that
    a row later in the table, or met again, is found as edited.

    Nearest is by Euclidean distance over the continuous columns, scaled to [0, 1], and Hamming distance over the
    nominal ones: the root of the sum of squares and of the number of differing names. It is found once, in the table as
    it was given; of equal distances, and where rows are equal, any but the row itself.

    Args:
        table: the rows, without labels.
        copies: k; the result has k times as many rows.
        p: the chance of each attribute to be changed when two rows meet.
        s: the greater, the closer continuous values stay to those in the table.
        seed: fixes the draws.
        nominal: the nominal columns; those that hold no numbers when not given.

    Returns:
        The copies one after the other, without the table itself, columns as in the table.

    Raises:
        InputError: fewer than two rows, p outside [0, 1], s or copies not above 0; see `MixedTable.of`.
    """
    columns = MixedTable.of(table, nominal)
    if copies < 1 or not 0 <= p <= 1 or not s > 0:
        raise InputError(f"copies={copies}, p={p:g}, s={s:g}: give copies from 1, p from 0 to 1 and s above 0")
    if len(columns.numbers) < 2:
        raise InputError("a table of one row has no other row to be near; give two or more")
    meetings = _meetings(_nearest(columns))
    generator = np.random.default_rng(seed)
    made = [_munged(columns, meetings, p, s, generator) for _ in range(copies)]
    return columns.table(np.concatenate([each[0] for each in made]), np.concatenate([each[1] for each in made]))


def marginals(table: Table, rows: int, seed: int = 0, nominal: Sequence[str] | None = None) -> pd.DataFrame:
    """RANDOM of Bucila et al. 2006: every attribute drawn by itself from its values in the table.

    Args:
        table: the rows, without labels.
        rows: how many to make.
        seed: fixes the draws.
        nominal: the nominal columns; those that hold no numbers when not given.

    Raises:
        InputError: see `MixedTable.of`.
    """
    columns, generator = MixedTable.of(table, nominal), np.random.default_rng(seed)
    parts = [_shuffled(part, rows, generator) for part in (columns.numbers, columns.codes)]
    return columns.table(parts[0], parts[1])


def naive_bayes(
    table: Table, rows: int, components: int = 20, seed: int = 0, nominal: Sequence[str] | None = None
) -> pd.DataFrame:
    """Rows of a mixture in whose components attributes are independent, as of Bucila et al.'s NBE.

    The components are those of scikit-learn's Gaussian mixture with diagonal covariances over the scaled continuous
    columns and the nominal ones as indicators. A row draws its component, then each continuous attribute from that
    component's normal distribution and each nominal one from its names' shares in it. The paper's estimator (Lowd and
    Domingos 2005) chooses the number of components itself; here it is given.

    Args:
        table: the rows, without labels.
        rows: how many to make.
        components: of the mixture; at most as many as there are different rows.
        seed: fixes the mixture and the draws.
        nominal: the nominal columns; those that hold no numbers when not given.

    Raises:
        InputError: no components; see `MixedTable.of`.
    """
    columns, generator = MixedTable.of(table, nominal), np.random.default_rng(seed)
    if components < 1:
        raise InputError(f"components={components}: give 1 or more")
    scaled = columns.scaled
    points = np.concatenate([scaled, *_indicators(columns)], axis=1)
    count = min(components, len(np.unique(points, axis=0)))
    mixture = GaussianMixture(count, covariance_type="diag", reg_covar=1e-4, random_state=seed).fit(points)
    drawn = generator.choice(count, rows, p=mixture.weights_)
    wide = len(columns.continuous)
    means, deviations = mixture.means_[:, :wide], np.sqrt(mixture.covariances_[:, :wide])
    low = columns.numbers.min(0)
    numbers = low + generator.normal(means[drawn], deviations[drawn]) * (columns.numbers.max(0) - low)
    belongs = mixture.predict_proba(points)
    codes = np.empty((rows, len(columns.nominal)), dtype=np.int64)
    for place, indicator in enumerate(_indicators(columns)):
        shares = belongs.T @ indicator  # [components, names]
        heights = np.cumsum(shares / shares.sum(1, keepdims=True), axis=1)[drawn]
        codes[:, place] = (generator.random((rows, 1)) * heights[:, -1:] >= heights).sum(1)
    return columns.table(numbers, codes)


def made_up(table: Dataset, columns: Sequence[str], settings: Synthetic, seed: int) -> Dataset:
    """Rows like a table's, as the recipe asks for them; columns as the table's, without labels.

    Raises:
        InputError: as the generators.
    """
    known = table.select_columns(list(columns))
    count = settings.copies * len(known)
    if settings.by == "munge":
        found = munge(known, settings.copies, settings.probability, settings.sharpness, seed)
    else:
        found = marginals(known, count, seed) if settings.by == "marginals" else naive_bayes(known, count, seed=seed)
    return Dataset.from_pandas(found, features=known.features, preserve_index=False)


def _indicators(columns: MixedTable) -> list[Numbers]:
    """Of each nominal column a matrix [n, names] of which name each row holds."""
    pairs = zip(columns.codes.T, columns.values, strict=True)
    return [(codes[:, None] == np.arange(len(values))).astype(np.float64) for codes, values in pairs]


def _nearest(columns: MixedTable) -> Codes:
    """The number of each row's nearest other row, int64 [n]."""
    # Two names that differ are two indicators that do: halved, their squares count 1, as in Hamming's distance.
    parts = [columns.scaled, *(indicator / np.sqrt(2) for indicator in _indicators(columns))]
    found = NearestNeighbors(n_neighbors=1).fit(np.concatenate(parts, axis=1))
    return np.asarray(found.kneighbors(return_distance=False)[:, 0])  # of the fitted rows, never a row itself


def _meetings(nearest: Codes) -> list[tuple[Codes, Codes]]:
    """Rows in turn and whom they meet, in groups in which no row is twice: each is as good as one after the other."""
    last = [0] * len(nearest)
    turn = np.empty(len(nearest), dtype=np.int64)
    for row, other in enumerate(nearest.tolist()):
        turn[row] = last[row] = last[other] = max(last[row], last[other]) + 1
    order = np.argsort(turn, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(turn[order])) + 1)
    return [(rows, nearest[rows]) for rows in groups]


def _munged(
    columns: MixedTable, meetings: list[tuple[Codes, Codes]], p: float, s: float, generator: np.random.Generator
) -> tuple[Numbers, Codes]:
    """One copy of the table after all meetings."""
    numbers, codes = columns.numbers.copy(), columns.codes.copy()
    draw = generator.random(numbers.shape) < p
    swap = generator.random(codes.shape) < p
    noise = generator.standard_normal((2, *numbers.shape))
    for rows, others in meetings:
        mine, its = numbers[rows], numbers[others]
        deviation = np.abs(mine - its) / s
        numbers[rows] = np.where(draw[rows], its + deviation * noise[0, rows], mine)
        numbers[others] = np.where(draw[rows], mine + deviation * noise[1, rows], its)
        first, second = codes[rows], codes[others]
        codes[rows] = np.where(swap[rows], second, first)
        codes[others] = np.where(swap[rows], first, second)
    return numbers, codes


def _shuffled(matrix: NDArray[Any], rows: int, generator: np.random.Generator) -> NDArray[Any]:
    """Each column drawn by itself, with replacement."""
    return np.take_along_axis(matrix, generator.integers(0, len(matrix), (rows, matrix.shape[1])), axis=0)
