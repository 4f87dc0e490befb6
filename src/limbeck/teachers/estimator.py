"""A scikit-learn estimator that answers about text or tables; read from skops files, never from pickles."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from limbeck import extras
from limbeck.errors import InputError
from limbeck.files import sha256
from limbeck.signals import Signals
from limbeck.tasks import Task

_TREE = "sklearn.tree._tree.Tree"
"""Not trusted by skops: it runs no code, but scikit-learn follows its nodes blindly, so that they are checked here."""
_LEAST = 1e-6
"""The least probability kept: a forest says 0 and 1, whose logarithms no student can reach."""


def open_estimator(name: str) -> Any:  # noqa: ANN401
    """The estimator in a skops file.

    Raises:
        InputError: skops is not installed, no such file, not readable, or it holds types that are not scikit-learn's,
            which could run code when opened.
    """
    extras.require("sklearn", f"opening {name}")
    import skops.io

    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"no file '{name}'; check the path")
    try:
        strange = [name for name in skops.io.get_untrusted_types(file=path) if name != _TREE]
        if not strange:
            return _checked(skops.io.load(path, trusted=[_TREE]), name)
    except InputError:
        raise
    except Exception as error:  # a broken file, or one of another version of scikit-learn
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{name} does not open as a scikit-learn estimator: {reason}") from None
    raise InputError(
        f"{name} holds {', '.join(strange[:3])}, which skops does not know to be safe; save an estimator of "
        "scikit-learn's own parts"
    )


def _checked(estimator: Any, name: str) -> Any:  # noqa: ANN401
    """The estimator, none of whose trees points outside of its own nodes and columns."""
    for tree in _trees(estimator, set()):
        left, right, feature = tree.children_left, tree.children_right, tree.feature
        inner = left != -1
        children = np.concatenate([left[inner], right[inner]])
        wrong = (children < 0) | (children >= tree.node_count)
        columns = (feature[inner] < 0) | (feature[inner] >= tree.n_features)
        if wrong.any() or columns.any() or (right[~inner] != -1).any():
            raise InputError(f"{name} holds a damaged tree, whose nodes point nowhere; save the estimator again")
    return estimator


def _trees(value: Any, seen: set[int]) -> Iterator[Any]:  # noqa: ANN401
    """The trees within an estimator."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if type(value).__name__ == "Tree":
        yield value
    elif isinstance(value, (list, tuple, dict)) or (isinstance(value, np.ndarray) and value.dtype == object):
        for each in value.values() if isinstance(value, dict) else list(value):
            yield from _trees(each, seen)
    elif type(value).__module__.startswith("sklearn."):
        yield from _trees(vars(value) if hasattr(value, "__dict__") else [], seen)


def labels_of_estimator(name: str) -> tuple[str, ...]:
    """The names of an estimator's classes in the order of its outputs; its one output's of a regressor.

    Raises:
        InputError: see `open_estimator`.
    """
    estimator = open_estimator(name)
    return tuple(map(str, estimator.classes_)) if hasattr(estimator, "classes_") else ("value",)


class EstimatorTeacher:
    """An estimator that is asked for its class probabilities, or a regressor for its values.

    A pipeline over text gets a list of texts (of pairs, both joined by a space); one over a table a pandas frame of the
    columns where it was fitted on one, else their numbers in the order of the task's columns.

    Args:
        name: its file.
        task: what is predicted.

    Raises:
        InputError: see `open_estimator`; one that tells no probabilities, or has other classes than the task; images.
    """

    precision = "float64"

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.task = name, task
        self.estimator = open_estimator(name)
        if task.inputs == "image" or task.kind == "multi-label":
            what = "images" if task.inputs == "image" else "several labels at once"
            raise InputError(f"{name} is a scikit-learn estimator, not asked about {what}; give another teacher")
        if task.kind == "classification" and not hasattr(self.estimator, "predict_proba"):
            raise InputError(
                f"{name} is a {type(self.estimator).__name__}, which tells no probabilities; save one that does, such "
                "as CalibratedClassifierCV around it"
            )
        if task.kind == "classification" and set(self.labels) != set(task.labels):
            raise InputError(
                f"the classes of {name} are {', '.join(self.labels[:8])}, the task's labels "
                f"{', '.join(task.labels[:8])}; give a matching teacher or data"
            )
        # In the order of the task's labels, which are another model's or the recipe's.
        own = {str(label): place for place, label in enumerate(getattr(self.estimator, "classes_", ()))}
        self._order = [own[label] for label in task.labels] if task.kind == "classification" else []

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its classes, in the order of the task's where they are the same."""
        if self.task.kind == "regression":
            return self.task.labels
        own = tuple(map(str, self.estimator.classes_))
        return self.task.labels if set(own) == set(self.task.labels) else own

    @cached_property
    def parameters(self) -> int:
        """The numbers that it was fitted to: those of all arrays in its file."""
        count = 0
        with zipfile.ZipFile(Path(self.name).expanduser()) as file:
            for member in file.namelist():
                if member.endswith(".npy"):
                    with file.open(member) as content:
                        array = np.lib.format.read_array(content, allow_pickle=False)
                    count += array.size * max(len(array.dtype.names or ()), 1)
        return count

    @property
    def bytes(self) -> int:
        """The file's size."""
        return Path(self.name).expanduser().stat().st_size

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The file's content."""
        return {"estimator": sha256(Path(self.name).expanduser())}

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """Log-probabilities float32 [N, C], none below log 1e-6, or values [N, 1].

        Raises:
            InputError: hidden states are asked for; examples that the estimator was not fitted for.
        """
        if features:
            raise InputError(f"teacher.features are a network's layers, and {self.name} has none; leave them out")
        return Signals(self._answer(self._inputs(texts)))

    def runner(self, texts: Dataset) -> Callable[[], None]:
        """A function that asks once about these examples, read beforehand."""
        inputs = self._inputs(texts)

        def run() -> None:
            self._answer(inputs)

        return run

    def _inputs(self, examples: Dataset) -> Any:  # noqa: ANN401
        if self.task.inputs == "text":
            return [" ".join(row) for row in zip(*(examples[name][:] for name in self.task.columns), strict=True)]
        frame = examples.select_columns(list(self.task.columns)).to_pandas()
        known = getattr(self.estimator, "feature_names_in_", None)
        if known is None:
            return np.asarray(frame)
        missing = [name for name in known if name not in frame.columns]
        if missing:
            raise InputError(f"{self.name} reads column '{missing[0]}', which is not among the features; add it")
        return frame[list(known)]

    def _answer(self, inputs: Any) -> np.ndarray:  # noqa: ANN401
        try:
            if self.task.kind == "regression":
                return np.asarray(self.estimator.predict(inputs), dtype=np.float32).reshape(-1, 1)
            said = np.asarray(self.estimator.predict_proba(inputs))
        except (ValueError, TypeError) as error:  # scikit-learn's own checks of what it is given
            raise InputError(f"{self.name} cannot read these examples: {' '.join(str(error).split())[:300]}") from None
        return np.asarray(np.log(np.maximum(said[:, self._order], _LEAST)), dtype=np.float32)
