"""Feature vectors to tensors: numbers standardised, names one-hot."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from transformers import BatchFeature, FeatureExtractionMixin

from limbeck.arrow import fixed_rows
from limbeck.errors import InputError
from limbeck.tasks.text import Batch, labels_of

if TYPE_CHECKING:
    from limbeck.checkpoints import Checkpoint


class FeatureProcessor(FeatureExtractionMixin):
    """Makes a model's inputs of a table's columns; saved beside the model as `preprocessor_config.json`.

    Args:
        columns: by column in order `{"name", "mean", "std"}` of a number, or `{"name", "values"}` of a nominal one.
    """

    model_input_names = ["features"]

    def __init__(self, columns: list[dict[str, Any]], **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.columns = columns

    @classmethod
    def fit(cls, table: Dataset, names: tuple[str, ...]) -> FeatureProcessor:
        """Means, deviations and names as they are in these examples."""
        columns: list[dict[str, Any]] = []
        for name in names:
            values = table[name][:]
            if is_nominal(table, name):
                columns.append({"name": name, "values": sorted(set(map(str, values)))})
            else:
                found = np.asarray(values, dtype=np.float64)
                # A column that never changes says nothing, and must not be divided by zero.
                columns.append({"name": name, "mean": float(found.mean()), "std": float(found.std()) or 1.0})
        return cls(columns)

    @property
    def width(self) -> int:
        """Numbers of an input."""
        return sum(len(column.get("values", [None])) for column in self.columns)

    @property
    def names(self) -> list[str]:
        """What each number of an input is."""
        return [
            name
            for column in self.columns
            for name in (
                [f"{column['name']}={v}" for v in column["values"]] if "values" in column else [column["name"]]
            )
        ]

    def __call__(self, table: Any, return_tensors: str | None = None) -> BatchFeature:  # noqa: ANN401
        """`features` float32 [N, m] of the examples of a table, by column name; tensors if `return_tensors` is `pt`.

        A name that was not there when the processor was made is none of those known: all zeros.

        Raises:
            InputError: a column is missing, or holds something else than finite numbers.
        """
        parts = []
        for column in self.columns:
            try:
                values = table[column["name"]][:]
            except KeyError:
                raise InputError(f"the model reads column '{column['name']}', which the data do not have") from None
            if "values" in column:
                parts.append(np.array(list(map(str, values)))[:, None] == np.array(column["values"])[None])
            else:
                parts.append(((_numbers(values, column["name"]) - column["mean"]) / column["std"])[:, None])
        matrix = np.concatenate(parts, axis=1).astype(np.float32)
        return BatchFeature({"features": matrix}, tensor_type=return_tensors)


class FeatureReader:
    """Reads columns of a table with a model's feature processor.

    Args:
        checkpoint: the model and its feature processor.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.processor: FeatureProcessor = checkpoint.processor

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The columns and how they are scaled."""
        content = json.dumps(self.processor.columns, sort_keys=True)
        return {"features": hashlib.sha256(content.encode()).hexdigest()}

    def encode(self, examples: Dataset) -> Dataset:
        """Columns `features`, `row`, `length` (1: all alike) and `labels`, as numpy arrays."""
        matrix = self.processor(examples)["features"]
        count = len(examples)
        columns = {"features": fixed_rows(matrix), "row": np.arange(count), "length": np.ones(count, dtype=np.int64)}
        features = {"features": List(Value("float32"), length=matrix.shape[1]), "row": Value("int64")}
        features["length"] = Value("int64")
        if "label" in examples.column_names:
            columns["labels"] = examples["label"][:]
            features["labels"] = examples.features["label"]
        return Dataset.from_dict(columns, features=Features(features)).with_format("numpy")

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """`features` float32 [B, m], `row` int64 [B], `labels`."""
        features = torch.from_numpy(np.stack([example["features"] for example in examples]))
        return {"features": features} | labels_of(examples)

    def batch(self, examples: Dataset) -> Batch:
        """A few examples as one batch."""
        return self.collate(list(self.encode(examples)))


def _numbers(values: Any, name: str) -> np.ndarray:  # noqa: ANN401
    """A column of numbers as float64, refused where it holds something else."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.full(len(values), np.nan)
        for row, value in enumerate(values):
            with suppress(TypeError, ValueError):
                found[row] = value
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(f"the model reads numbers from column '{name}', which holds {values[row]!r} in row {row + 1}")
    return found


def is_nominal(table: Dataset, name: str) -> bool:
    """Whether a column holds names (text, truth values, class labels) and not numbers to compute with."""
    feature = table.features[name]
    return not (isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "float")))
