"""What a soft tree decides by, as numbers for the report: its upper gates, where examples end, one example's path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn

from limbeck.checkpoints import Checkpoint
from limbeck.signals import Asked
from limbeck.students.soft_tree import SoftTreeConfig, SoftTreeOutput
from limbeck.tasks import Task

LEVELS = {"image": 4, "features": 3, "text": 3}
"""Decisions from the root on that are told of; below, whole branches are."""
SIDE = 32
"""Filters and images are told in at most so many pixels a side."""
NAMES = 3
"""Features or words that are told of a gate, on each side."""
MOST_CLASSES = 12
COMMON = 0.01
"""Words are told of a gate where at least this share of the examples has them."""

Array = NDArray[Any]
KINDS = {"pixel_values": "image", "features": "features", "input_ids": "text"}


def describe_tree(student: Checkpoint, asked: Asked, test: Dataset, task: Task) -> dict[str, Any] | None:
    """A soft tree in numbers, over the test examples.

    What a gate looks at is told as the filter of its weights, scaled to whole numbers from -127 (left) to 127 (right);
    of feature vectors as the features with the greatest weights times their standard deviation; of text as the words
    of at least `COMMON` of the examples whose embeddings speak most for either side.

    Args:
        student: the model with what it reads with; a processor with `names` names the features.
        asked: the same model; it is asked about the examples once more.
        test: the examples.
        task: what is predicted.

    Returns:
        None of a student that is no tree. Else `depth`; `inputs` (image, features or text); `nodes`, those of the upper
        levels in order with `came` (the share of the examples), `right` (the share of these) and what they look at;
        `ends`, the branches or leaves below these with `came` and `classes` (name, share); `path`, of the first example
        its `label`, `predicted`, what it is, its `steps` along the likeliest path (`node`, `right`, `probability`, what
        is looked at or what of the example spoke most), and `leaf` with `number`, `probability` and `classes`.
    """
    if student.model.config.model_type != SoftTreeConfig.model_type:
        return None
    with _watched(student.model) as seen:
        asked.ask(test)
    with _watched(student.model) as one:
        logits = np.asarray(asked.ask(test.select([0])).logits)
    gates = _gates_of(student, seen)
    levels = min(LEVELS[seen.kind], student.model.config.depth)
    nodes = [
        {"came": _share(seen.came[i]), "right": _share(seen.right[i] / max(seen.came[i], 1e-12))} | gates.told(i)
        for i in range(2**levels - 1)
    ]
    path = _path(student, one, gates, task)
    example = test[0]
    path["predicted"] = task.labels[int(task.predict(logits)[0])]
    path["label"] = task.labels[int(example["label"])] if example.get("label", -1) >= 0 else None
    if seen.kind == "text":
        path["text"] = " / ".join(str(example[name]) for name in ("text", "text_pair") if name in example)
    depth = int(student.model.config.depth)
    return {
        "depth": depth,
        "inputs": seen.kind,
        "nodes": nodes,
        "ends": _ends(student, seen, levels, task),
        "path": path,
    }


class _Seen:
    """Sums over the inputs that a tree was asked about.

    Attributes:
        kind: of input.
        examples: how many.
        came: of each inner node the share that came; `right`, the share that came and went right; `leaves`, each
            leaf's share.
        last: the last batch's inputs; `gates` and `ended`, its gates and leaves.
        sums: of feature vectors, their sum and that of their squares.
        words: of text, in how many examples each token is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kind, self.examples = "features", 0
        self.came: Any = 0.0
        self.right: Any = 0.0
        self.leaves: Any = 0.0
        self.sums: Any = 0.0
        self.words: Array = np.zeros(0)
        self.model = model

    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: SoftTreeOutput) -> None:
        """Take a forward pass in."""
        assert output.paths is not None
        paths = {name: each.double().cpu().numpy() for name, each in vars(output.paths).items()}
        name = next(name for name in KINDS if name in kwargs)
        self.kind, self.last = KINDS[name], kwargs[name].detach().cpu().numpy()
        self.gates, self.ended = paths["gates"], paths["leaves"]
        before, count = self.examples, len(self.last)
        self.examples += count
        new = {"came": paths["nodes"], "right": paths["nodes"] * paths["gates"], "leaves": paths["leaves"]}
        for key, values in new.items():
            setattr(self, key, (getattr(self, key) * before + values.sum(0)) / self.examples)
        if self.kind == "features":
            x = self.last.astype(np.float64)
            self.sums = self.sums + np.stack([x.sum(0), np.square(x).sum(0)])
        elif self.kind == "text":
            self.mask = kwargs.get("attention_mask", torch.ones_like(kwargs[name])).cpu().numpy()
            vocabulary = self.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
            self.words = self.words if len(self.words) else np.zeros(vocabulary)
            for ids, kept in zip(self.last, self.mask, strict=True):
                self.words[np.unique(ids[kept > 0])] += 1


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Seen]:
    """What a tree is asked while the context lasts."""
    seen = _Seen(model)
    handle = model.register_forward_hook(seen.add, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


class _Gates:
    """What the gates look at.

    Args:
        weights: beta_i w_i, float64 [nodes, m].
    """

    def __init__(self, weights: Array) -> None:
        self.weights = weights

    def told(self, node: int) -> dict[str, Any]:
        """Of a node in general."""
        raise NotImplementedError

    def spoke(self, node: int, one: _Seen) -> dict[str, Any]:
        """Of a node as one example came to it."""
        return self.told(node)


class _Filters(_Gates):
    def __init__(self, weights: Array, shape: tuple[int, int, int]) -> None:
        super().__init__(weights)
        self.shape = shape

    def told(self, node: int) -> dict[str, Any]:
        image = smaller(self.weights[node].reshape(self.shape).mean(0))
        return {"filter": np.rint(127 * image / max(np.abs(image).max(), 1e-12)).astype(int).tolist()}


class _Named(_Gates):
    """Gates whose inputs have names; `scores` [nodes, names] says how far each name pushes to the right."""

    def __init__(self, weights: Array, scores: Array, names: list[str]) -> None:
        super().__init__(weights)
        self.scores, self.names = scores, names

    def told(self, node: int) -> dict[str, Any]:
        order = np.argsort(self.scores[node])
        left = [int(i) for i in order[:NAMES] if self.scores[node, i] < 0]
        right = [int(i) for i in order[::-1][:NAMES] if self.scores[node, i] > 0]
        return {"left_names": [self.names[i] for i in left], "right_names": [self.names[i] for i in right]}


class _Features(_Named):
    def spoke(self, node: int, one: _Seen) -> dict[str, Any]:
        return _strongest(self.names, self.weights[node] * one.last[0])


class _Words(_Named):
    def __init__(self, weights: Array, student: Checkpoint, seen: _Seen) -> None:
        self.reader = student[1]
        self.table = student.model.get_input_embeddings().weight.detach().double().cpu().numpy()
        special = self.reader.all_special_ids
        common = np.setdiff1d(np.flatnonzero(seen.words >= max(COMMON * seen.examples, 1)), special)
        middle = np.average(self.table, axis=0, weights=seen.words)
        super().__init__(weights, weights @ (self.table[common] - middle).T, self.pieces(common.tolist()))

    def spoke(self, node: int, one: _Seen) -> dict[str, Any]:
        ids = [int(i) for i in one.last[0][one.mask[0] > 0] if i not in self.reader.all_special_ids]
        return _strongest(self.pieces(ids), self.table[ids] @ self.weights[node])

    def pieces(self, ids: list[int]) -> list[str]:
        """Tokens without the sign that some tokenizers put where a word starts."""
        return [str(token).lstrip("\u2581\u0120") for token in self.reader.convert_ids_to_tokens(ids)]


def _gates_of(student: Checkpoint, seen: _Seen) -> _Gates:
    tree, config = student.model.tree, student.model.config
    weights = (tree.beta[:, None] * tree.gates.weight).detach().double().cpu().numpy()
    if seen.kind == "image":
        return _Filters(weights, config.image_shape)
    if seen.kind == "text":
        return _Words(weights, student, seen)
    names = getattr(student[1], "names", None) or [f"feature {number + 1}" for number in range(config.width)]
    mean, square = seen.sums / seen.examples
    return _Features(weights, weights * np.sqrt(np.maximum(square - mean**2, 0)), list(names))


def _strongest(names: list[str], scores: Array) -> dict[str, Any]:
    """The names that speak most for either side, strongest first, with `right` where for that."""
    best: dict[str, float] = {}
    for name, score in zip(names, scores.tolist(), strict=True):
        best[name] = best.get(name, 0.0) + score
    order = sorted(best, key=lambda name: -abs(best[name]))[:NAMES]
    return {"spoke": [[name, best[name] > 0] for name in order]}


def _path(student: Checkpoint, one: _Seen, gates: _Gates, task: Task) -> dict[str, Any]:
    """The likeliest path of one example, from the root to its leaf."""
    depth, leaf = int(student.model.config.depth), int(one.ended[0].argmax())
    steps, node = [], 0
    for level in range(depth):
        right = bool(leaf >> (depth - 1 - level) & 1)
        probability = one.gates[0, node] if right else 1 - one.gates[0, node]
        steps.append({"node": node, "right": right, "probability": _share(probability)} | gates.spoke(node, one))
        node = 2 * node + 1 + right
    classes = _classes(_leaf_shares(student)[leaf], task)
    found = {"steps": steps, "leaf": {"number": leaf, "probability": _share(one.ended[0, leaf]), "classes": classes}}
    if one.kind == "image":
        image = np.moveaxis(np.stack([smaller(channel) for channel in one.last[0]]), 0, -1)
        low, high = image.min(), image.max()
        found["image"] = np.rint(255 * (image - low) / max(high - low, 1e-12)).astype(int).tolist()
    return found


def _ends(student: Checkpoint, seen: _Seen, levels: int, task: Task) -> list[dict[str, Any]]:
    """The branches below the upper levels: how many examples end there, and what their leaves say together."""
    came = seen.leaves.reshape(2**levels, -1)
    shares = _leaf_shares(student).reshape(*came.shape, -1)
    total = came.sum(1)
    mixed = (came[..., None] * shares).sum(1) / np.maximum(total, 1e-300)[:, None]
    return [{"came": _share(share), "classes": _classes(each, task)} for share, each in zip(total, mixed, strict=True)]


def _leaf_shares(student: Checkpoint) -> Array:
    leaves = student.model.tree.leaves.detach().double().cpu()
    return np.asarray(leaves.softmax(-1).numpy())


def _classes(shares: Array, task: Task) -> list[list[Any]]:
    """Classes with their shares, in order; of many the greatest alone."""
    kept = np.sort(np.argsort(-shares, kind="stable")[:MOST_CLASSES])
    return [[task.labels[int(i)], _share(shares[i])] for i in kept]


def _share(value: float) -> float:
    return round(float(value), 5)


def smaller(image: Array) -> Array:
    """An image [H, W] of at most `SIDE` pixels a side, each the mean of those that it stands for."""
    for axis in (0, 1):
        parts = np.array_split(image, min(image.shape[axis], SIDE), axis=axis)
        image = np.stack([part.mean(axis) for part in parts], axis=axis)
    return image
