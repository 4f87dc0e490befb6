"""Drawings of a soft tree: its upper gates with the branches below them, and one example's path."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from limbeck.report.drawing import COLOURS, canvas, to_svg
from limbeck.report.numbers import percent

Tree = dict[str, Any]
"""What `limbeck.evaluation.trees.describe_tree` tells."""

WIDTH = 936
"""Points; the page shows these drawings as wide as it is."""
LEFT, RIGHT = COLOURS["baseline"], COLOURS["student"]
"""What speaks for either side."""
_LINE = 12.5


def draw_tree(tree: Tree) -> Markup:
    """The upper levels of a tree, the flow of the examples through them, and what the branches below say."""
    ends = tree["ends"]
    levels = len(ends).bit_length() - 1
    image = tree["inputs"] == "image"
    column = WIDTH / len(ends)
    size = min(column * 0.84, 54) if image else 3 * _LINE + 2
    step = 104 if image else 100
    bottom = 74
    height = bottom + levels * step + 18
    with canvas((WIDTH / 72, height / 72)) as axes:
        _prepare(axes, height)
        places = [
            _place(level, j, height - 14 - size / 2 - level * step) for level in range(levels) for j in range(2**level)
        ]
        tops = [_place(levels, j, bottom) for j in range(len(ends))]
        for number, node in enumerate(tree["nodes"]):
            for side, (x, y) in enumerate([*places, *tops][2 * number + 1 : 2 * number + 3]):
                came = node["came"] * (node["right"] if side else 1 - node["right"])
                start = places[number]
                line = {
                    "color": (LEFT, RIGHT)[side],
                    "linewidth": 0.6 + 9 * came,
                    "alpha": 0.75,
                    "solid_capstyle": "round",
                }
                gap = size / 2 if 2 * number + 1 + side < len(places) else 0
                axes.plot([start[0], x], [start[1] - size / 2 - 2, y + gap + 2], zorder=1, **line)
        for (x, y), node in zip(places, tree["nodes"], strict=True):
            _gate(axes, node, x, y, size)
        for (x, y), end in zip(tops, ends, strict=True):
            _bars(axes, end["classes"], x, y - 6, column * 0.86, 34)
            axes.text(x, y - 66, percent(end["came"], 0), fontsize=8.5, color=COLOURS["muted"], ha="center")
        told = ", ".join(f"{percent(end['came'], 0)} {_likeliest(end['classes'])[0]}" for end in ends)
        return to_svg(axes, "tree", f"The upper {levels} levels of the tree. Branches from the left: {told}.")


def draw_path(tree: Tree) -> Markup:
    """The likeliest path of one example from the root to its leaf."""
    path = tree["path"]
    steps, image = path["steps"], tree["inputs"] == "image"
    cells = len(steps) + 1 + image
    column = WIDTH / cells
    height, size = 104, min(column * 0.62, 54)
    middle = height - 10 - 27
    with canvas((WIDTH / 72, height / 72)) as axes:
        _prepare(axes, height)
        centres = [(place + 0.5) * column for place in range(cells)]
        if image:
            _picture(axes, np.array(path["image"]) / 255, centres[0], middle, size)
            centres = centres[1:]
        for x, step in zip(centres, steps, strict=False):
            colour = RIGHT if step["right"] else LEFT
            if image:
                _filter(axes, step["filter"], x, middle, size)
            else:
                for line, (name, right) in enumerate(step["spoke"]):
                    y = middle + 14 - _LINE * line
                    axes.text(x, y, _cut(name, column), fontsize=8.5, color=RIGHT if right else LEFT, ha="center")
            side = f"{'right' if step['right'] else 'left'} {percent(step['probability'], 0)}"
            axes.text(x, 22, side, fontsize=8.5, color=colour, ha="center")
            arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.2}
            axes.annotate("", (x + column / 2 + 6, middle), (x + column / 2 - 6, middle), arrowprops=arrow)
        leaf = path["leaf"]
        _bars(axes, leaf["classes"], centres[len(steps)], middle + 22, column * 0.86, 40)
        axes.text(
            centres[len(steps)],
            6,
            f"path {percent(leaf['probability'], 0)}",
            fontsize=8.5,
            ha="center",
            color=COLOURS["muted"],
        )
        turns = ", ".join(f"{'right' if step['right'] else 'left'} {percent(step['probability'], 0)}" for step in steps)
        told = f"One example's likeliest path: {turns}; the leaf says {_likeliest(leaf['classes'])[0]}."
        return to_svg(axes, "path", told)


def _prepare(axes: Axes, height: float) -> None:
    """Axes whose units are points."""
    axes.set(xlim=(0, WIDTH), ylim=(0, height), autoscale_on=False)
    axes.set_axis_off()
    axes.set_position((0, 0, 1, 1))
    axes.set_in_layout(False)


def _place(level: int, number: int, y: float) -> tuple[float, float]:
    return (number + 0.5) * WIDTH / 2**level, y


def _gate(axes: Axes, node: dict[str, Any], x: float, y: float, size: float) -> None:
    """What a gate looks at: its filter, or names beside it."""
    if "filter" in node:
        _filter(axes, node["filter"], x, y, size)
        return
    axes.plot(x, y, "o", color=COLOURS["muted"], markersize=5)
    for key, colour, align, shift in (("left_names", LEFT, "right", -8), ("right_names", RIGHT, "left", 8)):
        for line, name in enumerate(node[key]):
            height = y + _LINE * (len(node[key]) - 1) / 2 - _LINE * line
            axes.text(x + shift, height, _cut(name, 110), fontsize=9, color=colour, ha=align, va="center")


def _filter(axes: Axes, values: list[list[int]], x: float, y: float, size: float) -> None:
    """Weights: the more of either side's colour, the more they speak for it."""
    weights = np.array(values) / 127
    pixels = np.empty((*weights.shape, 4))
    pixels[..., :3] = np.where(weights[..., None] < 0, to_rgb(LEFT), to_rgb(RIGHT))
    pixels[..., 3] = np.abs(weights)
    _picture(axes, pixels, x, y, size)


def _picture(axes: Axes, pixels: np.ndarray, x: float, y: float, size: float) -> None:
    """An image with a frame; one channel is grey."""
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, -1)
    tall, wide = (edge * size / max(pixels.shape[:2]) / 2 for edge in pixels.shape[:2])
    axes.imshow(pixels, extent=(x - wide, x + wide, y - tall, y + tall), interpolation="none", aspect="auto", zorder=2)
    corner, size_ = (x - wide, y - tall), (2 * wide, 2 * tall)
    axes.add_patch(Rectangle(corner, *size_, fill=False, edgecolor=COLOURS["line"], linewidth=0.8, zorder=3))


def _bars(axes: Axes, classes: list[list[Any]], x: float, top: float, width: float, height: float) -> None:
    """A distribution over classes: a bar each, and the name of the greatest."""
    step = min(width / len(classes), 18)
    base = top - height
    best = _likeliest(classes)
    for place, (name, share) in enumerate(classes):
        colour = COLOURS["ink"] if name == best[0] else COLOURS["muted"]
        left = x + (place - len(classes) / 2 + 0.1) * step
        axes.bar(left, height * share, 0.8 * step, base, align="edge", color=colour, linewidth=0)
    axes.plot([x - width / 2, x + width / 2], [base, base], color=COLOURS["line"], linewidth=0.8)
    axes.text(x, base - 4, _cut(str(best[0]), width), fontsize=9, ha="center", va="top")


def _likeliest(classes: list[list[Any]]) -> tuple[str, float]:
    name, share = max(classes, key=lambda each: each[1])
    return str(name), float(share)


def _cut(name: str, width: float) -> str:
    """A name that fits."""
    most = max(int(width / 5), 3)
    return name if len(name) <= most else f"{name[: most - 1]}\u2026"
