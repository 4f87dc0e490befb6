"""Means over seeds with their intervals, and ratios of times over rounds, as every table here gives them."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from scipy.stats import t


def interval(values: list[float]) -> dict[str, Any]:
    """Mean, half of its 95 % t interval (none of a single value), and the values."""
    half = None
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return {"mean": float(np.mean(values)), "half": half, "values": values}


def paired(mine: dict[int, dict[str, float]], others: dict[int, dict[str, float]]) -> dict[str, Any]:
    """By figure the difference of rows over the seeds that both have; empty where there are none."""
    both = sorted(set(mine) & set(others))
    keys = [key for key in mine[both[0]] if key in others[both[0]]] if both else []
    return {key: interval([mine[seed][key] - others[seed][key] for seed in both]) for key in keys}


def ratios(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times as long the slow ones took, round by round: median and extremes."""
    each = sorted(one / other for one, other in zip(slow, fast, strict=True))
    return {"median": statistics.median(each), "low": each[0], "high": each[-1]}
