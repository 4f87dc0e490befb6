"""How often models break rules, and what holding them to the rules does to their quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from limbeck.evaluation import quality as q
from limbeck.evaluation.statistics import figure, resamples
from limbeck.rules import LabelRules, Rule
from limbeck.rules.conditions import Flags
from limbeck.tasks.task import Array


def add_rules(
    measured: dict[str, Any],
    rules: LabelRules | None,
    test: Dataset,
    labels: Array,
    logits: dict[str, Array],
    main: str,
    count: int,
    seed: int,
) -> None:
    """Add `rules` to what was measured of each model, and to the whole: what they are, and how often labels break them.

    Args:
        measured: what `metrics.json` holds, by model; changed in place. Without rules it stays as it is.
        rules: as of `measure_rules`, like the rest.
        test: the examples.
        labels: their true labels.
        logits: by model.
        main: the metric whose difference is stated.
        count: bootstrap resamples.
        seed: of the resamples.
    """
    if rules is None:
        return
    for name, each in measured.items():
        each["rules"] = measure_rules(rules, test, labels, logits[name], main, count, seed)
    measured["rules"] = {
        "rules": listed(rules.rules, rules.applies(test)),
        "labels": violations(rules.rules, rules.broken(labels, test), count, seed),
    }


def measure_rules(
    rules: LabelRules, test: Dataset, labels: Array, logits: Array, main: str, count: int, seed: int
) -> dict[str, Any]:
    """One model without and with rules on the same examples.

    Args:
        rules: about the task's labels.
        test: the N examples.
        labels: their true labels.
        logits: the model's own, [N, C].
        main: the metric whose difference is stated.
        count: bootstrap resamples.
        seed: of the resamples.

    Returns:
        `violations`, and under `with_rules` the `violations`, the `quality` in every metric, and the `difference` of
        the main metric, with rules less without.
    """
    task = rules.task
    free, held = task.predict(logits), task.predict(rules.project(logits, test))
    without, draws = q.quality(task, labels, free, count, seed)
    quality, draws_held = q.quality(task, labels, held, count, seed)
    gain = quality[main]["value"] - without[main]["value"]
    return {
        "violations": violations(rules.rules, rules.broken(free, test), count, seed),
        "with_rules": {
            "violations": violations(rules.rules, rules.broken(held, test), count, seed),
            "quality": quality,
            "difference": {"metric": main, **figure(gain, draws_held[main] - draws[main])},
        },
    }


def listed(rules: Sequence[Rule], about: Flags) -> list[dict[str, Any]]:
    """Each rule as `metrics.json` states it, from which rules are about which examples, bool [N, R]."""
    numbers = about.sum(0).tolist()
    return [{"name": r.name, "weight": r.weight, "applies": n} for r, n in zip(rules, numbers, strict=True)]


def violations(rules: Sequence[Rule], broken: Flags, count: int, seed: int) -> dict[str, Any]:
    """The share of examples on which some hard rule is broken, and some soft one; null where there are none such.

    Args:
        rules: R rules.
        broken: bool [N, R].
        count: bootstrap resamples behind the intervals.
        seed: of the resamples.
    """
    hard = np.array([rule.hard for rule in rules])
    found: dict[str, Any] = {}
    for name, mine in (("hard", hard), ("soft", ~hard)):
        some = np.asarray(broken[:, mine].any(axis=1), dtype=np.float64)
        draws = np.array([some[rows].mean() for rows in resamples(len(some), count, seed)])
        found[name] = figure(some.mean(), draws) if mine.any() else None
    shares = broken.mean(0).tolist()
    return found | {"by_rule": {rule.name: share for rule, share in zip(rules, shares, strict=True)}}
