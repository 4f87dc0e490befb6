"""Means over seeds with their intervals, as every table here gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import t


def interval(values: list[float]) -> dict[str, Any]:
    """Mean, half of its 95 % t interval (none of a single value), and the values."""
    half = None
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return {"mean": float(np.mean(values)), "half": half, "values": values}
