"""Matplotlib figures as SVG that lives inside a page: the page's fonts and colours, dark mode included."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours by role. They are written into the SVG as `var(--role)`, so that the page's stylesheet has the last word;
# what stands here is what the page uses on white, and so must equal its stylesheet.
COLOURS = {
    "ink": "#1d2430",
    "muted": "#5f6876",
    "line": "#d8dce3",
    "teacher": "#7a4bc2",
    "student": "#1c6dd0",
    "baseline": "#b9610b",
    "student_onnx": "#0d856d",
    "student_int8": "#be2f78",
    "student_gguf": "#0d856d",
    "student_gguf_q8": "#be2f78",
}
MARKERS = {"teacher": "s", "student": "o", "baseline": "D", "student_onnx": "^", "student_int8": "v"} | {
    "student_gguf": "^",
    "student_gguf_q8": "v",
}
SIZE = (5.4, 3.5)
"""Inches of 72 units. About as wide as a phone, so that text there is not scaled down."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""
Place = tuple[float, float, float, str]
"""Where a label may stand: what standing there costs, its offset to the right and up, its alignment."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, and set in the page's font
    "text.parse_math": False,  # names are the user's, a dollar in them is a dollar
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def canvas(size: tuple[float, float] = SIZE) -> Iterator[Axes]:
    """One plot's axes in the style of the page."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=size, layout="constrained").subplots()


def to_svg(axes: Axes, name: str, description: str) -> Markup:
    """The finished plot as an `<svg>` element. To be called inside `canvas`.

    Args:
        axes: what `canvas` gave.
        name: one word, unlike those of the page's other plots; keeps their inner ids apart and repeatable.
        description: what the plot shows, for those who do not see it.
    """
    figure = cast(Figure, axes.figure)
    buffer = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found.group(0) if found.group(1) in used else "", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role.replace('_', '-')})")
    box = re.search(r'viewBox="[^"]+"', text)
    inner = text[text.index(">") + 1 :]
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box.group(0) if box else ""} role="img"'
    # Assembled from matplotlib's own escaped output; the description is escaped here.
    return Markup(head) + Markup(' aria-label="{}">').format(description) + Markup(inner.strip())


@dataclass(frozen=True)
class Point:
    """A labelled point with its error bar, in data units."""

    x: float
    y: float
    low: float
    high: float
    label: str
    colour: str


def place_labels(axes: Axes, points: Sequence[Point]) -> None:
    """Write a label beside each point where it hides neither another label nor a point nor an error bar.

    Args:
        axes: axes whose limits are final.
        points: what is drawn there.
    """
    figure = cast(Figure, axes.figure)
    figure.draw_without_rendering()  # lays the axes out; their place decides what overlaps
    dots = figure.dpi / 72
    left, bottom, right, top = (float(edge) / dots for edge in axes.get_window_extent().extents)
    frame = (left, bottom, right, top)
    taken: list[Box] = []
    for point in points:
        x, low, y, high = _in_points(axes, point, dots)
        taken += [(x - 5, y - 5, x + 5, y + 5), (x - 2, low, x + 2, high)]
    for point in points:
        x, low, y, high = _in_points(axes, point, dots)
        width = 5.6 * len(point.label)
        beside = [(shift, side) for shift in (0, 13, -13, 26, -26, 39, -39) for side in ("left", "right")]
        places: list[Place] = [
            (abs(shift) / 2, 9.0 if side == "left" else -9.0, float(shift), side) for shift, side in beside
        ]
        places += [(8.0, 0.0, high - y + 8, "center"), (8.0, 0.0, low - y - 8, "center")]

        best = min(places, key=partial(_cost, x=x, y=y, width=width, frame=frame, taken=taken))
        taken.append(_box(best, x, y, width))
        style: dict[str, Any] = {"textcoords": "offset points", "ha": best[3], "va": "center", "color": point.colour}
        axes.annotate(point.label, (point.x, point.y), best[1:3], **style)


def _in_points(axes: Axes, point: Point, dots: float) -> tuple[float, float, float, float]:
    """A point's x and its low, middle and high y on the page, in 1/72 inch."""
    corners = axes.transData.transform([(point.x, y) for y in (point.low, point.y, point.high)]) / dots
    return float(corners[0][0]), float(corners[0][1]), float(corners[1][1]), float(corners[2][1])


def _cost(place: Place, x: float, y: float, width: float, frame: Box, taken: Sequence[Box]) -> float:
    """What a label in this place hides and how far it leaves the frame."""
    box = _box(place, x, y, width)
    outside = max(0.0, frame[0] - box[0], box[2] - frame[2], frame[1] - box[1], box[3] - frame[3])
    return place[0] + 40 * outside + sum(_overlap(box, other) for other in taken)


def _box(place: Place, x: float, y: float, width: float) -> Box:
    _, right, up, align = place
    left = x + right - {"left": 0.0, "center": width / 2, "right": width}[align]
    return (left, y + up - 6, left + width, y + up + 6)


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
