"""Latency and throughput, all models in turn so that a change of the machine's pace meets them all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from limbeck.signals import Asked

SINGLES, ROUNDS, BATCH, BATCHES = 50, 3, 32, 4


def measure_speed(
    models: dict[str, Asked], texts: Dataset, lengths: np.ndarray | None, seed: int
) -> dict[str, dict[str, Any]]:
    """Time forward passes on ready tensors; reading the examples is not counted, being the same for all.

    Latency is at batch size 1 over a sample, throughput at batch size 32 (of texts with others of like length).

    Returns:
        By model that can be timed: `latency_ms_p50`, `latency_ms_p95`, `throughput` in examples per second,
        `batch_size` of the throughput, `threads`, `precision`.
    """
    generator = np.random.default_rng(seed)
    sample = generator.permutation(len(texts))
    singles = [[int(row)] for row in sample[:SINGLES]]
    wide = np.sort(sample[: BATCH * BATCHES])
    if lengths is not None:
        wide = wide[np.argsort(lengths[wide], kind="stable")]
    batches = [wide[start : start + BATCH].tolist() for start in range(0, len(wide), BATCH)]
    timed = {name: model for name, model in models.items() if model.runner(texts.select(singles[0])) is not None}
    one = _time(timed, texts, singles)
    many = _time(timed, texts, batches)
    return {
        name: {
            "latency_ms_p50": float(np.quantile(one[name], 0.5) * 1e3),
            "latency_ms_p95": float(np.quantile(one[name], 0.95) * 1e3),
            "throughput": float(len(wide) / np.median(many[name], axis=0).sum()),
            "batch_size": BATCH,
            "threads": torch.get_num_threads(),
            "precision": model.precision,
        }
        for name, model in timed.items()
    }


def _time(models: dict[str, Asked], texts: Dataset, batches: list[list[int]]) -> dict[str, np.ndarray]:
    """Seconds [rounds, batches] by model; each batch meets every model before the next batch comes."""
    runners: dict[str, list[Callable[[], None]]] = {
        name: [run for rows in batches if (run := model.runner(texts.select(rows)))] for name, model in models.items()
    }
    seconds = {name: np.empty((ROUNDS, len(batches))) for name in models}
    for name in models:
        runners[name][0]()  # the first run allocates and picks kernels
    for turn in range(ROUNDS):
        for number in range(len(batches)):
            for name in models:
                started = time.perf_counter()
                runners[name][number]()
                seconds[name][turn, number] = time.perf_counter() - started
    return seconds
