"""Tables from NumPy's .npz files: images or vectors of features, with their labels."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pillow

from limbeck.errors import InputError

INPUTS = ("x", "X", "images", "image", "data", "features")
LABELS = ("y", "Y", "labels", "label", "target", "targets")
_ENDS = {"train": "_train", "validation": "_val", "test": "_test"}


def read_npz(path: Path) -> Dataset | DatasetDict:
    """The examples of a file of arrays.

    Inputs are called `x` or `images`, labels `y` or `labels`; with `_train`, `_val`, `_test` after them there are
    several splits, as in Keras' mnist.npz. Bytes [N, H, W] or [N, H, W, C] are images, numbers [N, m] are features,
    called `x0`, `x1`, ... unless there is an array `feature_names`.

    Raises:
        InputError: not readable, no such arrays, other shapes or types, or as many labels as there are no inputs.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:  # broken, or pickles
        raise InputError(f"{path} cannot be read as arrays: {' '.join(str(error).split())[:300]}") from None
    found = {split: _table(path, arrays, end) for split, end in _ENDS.items() if _named(arrays, INPUTS, end)}
    if found:
        return DatasetDict(found)
    return _table(path, arrays, "")


def _table(path: Path, arrays: dict[str, np.ndarray], end: str) -> Dataset:
    names = _named(arrays, INPUTS, end), _named(arrays, LABELS, end)
    if names[0] is None:
        raise InputError(
            f"{path} has arrays {', '.join(arrays)}; inputs are read from x or images, labels from y or labels"
        )
    inputs = arrays[names[0]]
    content: dict[str, Any] = {}
    features: dict[str, Any] = {}
    if inputs.ndim in (3, 4) and inputs.dtype == np.uint8 and inputs.shape[3:] in ((), (1,), (3,)):
        pictures = inputs[..., 0] if inputs.shape[3:] == (1,) else inputs
        content["image"] = [Pillow.fromarray(each) for each in pictures]
        features["image"] = Image()
    elif inputs.ndim == 2 and inputs.dtype.kind in "iuf":
        called = arrays.get("feature_names", np.array([f"x{number}" for number in range(inputs.shape[1])]))
        if called.shape != inputs.shape[1:] or len({*map(str, called)}) != len(called):
            raise InputError(
                f"{path} has {inputs.shape[1]} features and feature_names of shape {called.shape}; give each a name of "
                "its own"
            )
        for name, column in zip(map(str, called), inputs.T, strict=True):
            content[name], features[name] = column.astype(np.float64), Value("float64")
    else:
        raise InputError(
            f"array '{names[0]}' of {path} is {inputs.dtype} of shape {inputs.shape}; images are uint8 [N, H, W] or "
            "[N, H, W, C] with 1 or 3 channels, features are numbers [N, m]"
        )
    if names[1] is not None:
        labels = arrays[names[1]]
        if labels.shape != inputs.shape[:1]:
            raise InputError(f"{path} has {len(inputs)} inputs and labels of shape {labels.shape}; give one for each")
        content["label"] = labels.tolist()
        features["label"] = Value(
            "float64" if labels.dtype.kind == "f" else "string" if labels.dtype.kind in "US" else "int64"
        )
    return Dataset.from_dict(content, features=Features(features))


def _named(arrays: dict[str, np.ndarray], names: tuple[str, ...], end: str) -> str | None:
    return next((f"{name}{end}" for name in names if f"{name}{end}" in arrays), None)
