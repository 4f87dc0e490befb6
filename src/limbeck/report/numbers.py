"""Numbers as people read them: shares as percentages, correlations as decimals, times and sizes in one unit."""

from __future__ import annotations

import math
from typing import Any

# Metrics as they stand in a sentence. A name that is not here stands for itself.
PHRASES = {
    "accuracy": "accuracy",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "exact_match": "exact match",
    "mcc": "Matthews correlation",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "r2": "R2",
    "mae": "mean absolute error",
}
SHARES = ("accuracy", "f1_macro", "f1_micro", "exact_match")
"""The metrics that are shares of something, and so read as percentages."""


def known(value: Any) -> float | None:  # noqa: ANN401
    """A number, or None for what was not measured, is not a number or is not finite (a ratio to a zero score)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def phrase(metric: str) -> str:
    """A metric's name inside a sentence."""
    return PHRASES.get(metric, metric)


def title(metric: str) -> str:
    """A metric's name as a heading."""
    name = phrase(metric)
    return name[:1].upper() + name[1:]


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage: 0.9134 is `91.3 %`, and 1 is `100 %`."""
    return "100 %" if value == 1 else f"{100 * value:.{digits}f} %"


def rough_percent(value: float) -> str:
    """A share without false precision: `62 %`, but `0.8 %`."""
    return percent(value, 0 if value >= 0.02 else 1)


def score(metric: str, value: Any) -> str:  # noqa: ANN401
    """A metric's value in its own unit; empty when it is not known."""
    number = known(value)
    if number is None:
        return ""
    return percent(number) if metric in SHARES else f"{number:.2f}" if metric == "perplexity" else f"{number:.3f}"


def bounds(metric: str, low: Any, high: Any) -> str:  # noqa: ANN401
    """An interval in the metric's unit, without the unit's sign: `90.1 to 92.4`; empty when it is not known."""
    ends = [known(low), known(high)]
    texts = [score(metric, end).removesuffix(" %") for end in ends if end is not None]
    return " to ".join(texts) if len(texts) == 2 else ""


def difference(metric: str, value: float) -> str:
    """A signed difference of two scores: `+1.9` points for shares, `+0.019` for others. The minus is a true one."""
    text = f"{100 * value:+.1f}" if metric in SHARES else f"{value:+.3f}"
    return text.replace("-", "\u2212") if any(digit in text for digit in "123456789") else text.lstrip("+-")


def count(value: float) -> str:
    """A number of parameters: `66.4 M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def significant(value: float) -> str:
    """Three figures, never in scientific notation: `1,240`, `12.4`, `0.012`."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def times(value: float) -> str:
    """A ratio: `1.9x`, `12x`."""
    return f"{value:.1f}x" if value < 10 else f"{value:,.0f}x"


def p_value(value: float) -> str:
    """`p = 0.03`, `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min 5 s`, `3 h 4 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
