"""Matplotlib figures as SVG that lives inside a page: the page's fonts and colours, dark mode included."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
}
MARKERS = {"teacher": "s", "student": "o", "baseline": "D", "student_onnx": "^", "student_int8": "v"}
SIZE = (5.4, 3.5)
"""Inches of 72 units. About as wide as a phone, so that text there is not scaled down."""

_STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, and set in the page's font
    "text.parse_math": False,  # names are the user's, a dollar in them is a dollar
    "font.size": 9.5,
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
    figure = axes.figure
    buffer = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([\w-]+)"', lambda found: found.group(0) if found.group(1) in used else "", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role.replace('_', '-')})")
    box = re.search(r'viewBox="[^"]+"', text)
    inner = text[text.index(">") + 1 :]
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box.group(0) if box else ""} role="img"'
    # Assembled from matplotlib's own escaped output; the description is escaped here.
    return Markup(head) + Markup(' aria-label="{}">').format(description) + Markup(inner.strip())  # noqa: S704


def place_labels(axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write a label beside each point where it hides neither another label nor a point.

    Args:
        axes: axes whose limits are final.
        points: (x, y, label, colour).
    """
    axes.figure.draw_without_rendering()  # lays the axes out; their place decides what overlaps
    dots = axes.figure.dpi / 72
    frame = axes.get_window_extent()
    centres = [axes.transData.transform((x, y)) / dots for x, y, _, _ in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    for (x, y), (data_x, data_y, label, colour) in zip(centres, points, strict=True):
        width = 5.4 * len(label)
        best: tuple[float, float, float, str] | None = None
        for shift in (0, 12, -12, 24, -24, 36, -36):
            for side, left in (("left", x + 9), ("right", x - 9 - width)):
                box = (left, y + shift - 6, left + width, y + shift + 6)
                hidden = sum(_overlap(box, other) for other in taken)
                outside = max(0.0, frame.x0 / dots - box[0]) + max(0.0, box[2] - frame.x1 / dots)
                outside += max(0.0, frame.y0 / dots - box[1]) + max(0.0, box[3] - frame.y1 / dots)
                cost = hidden + 40 * outside + abs(shift) * 0.5
                if best is None or cost < best[0]:
                    best = (cost, shift, left, side)
        if best is None:
            continue
        _, shift, left, side = best
        taken.append((left, y + shift - 6, left + width, y + shift + 6))
        offset = (9 if side == "left" else -9, shift)
        axes.annotate(
            label, (data_x, data_y), offset, textcoords="offset points", ha=side, va="center", color=colour
        )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))

