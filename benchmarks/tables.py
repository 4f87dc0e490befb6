"""Tables: a small network that learns from a forest on made-up rows, by how many there are and how they are made.

    python benchmarks/tables.py [--sets digits clusters] [--seeds 0 1 2 3 4] [--steps 3000]

The curve of Bucila et al. 2006, section 4, on what scikit-learn brings along: `digits`, half of its 1,797 images as 64
numbers to learn from, and `clusters`, 1,000 rows of `make_classification` (10 numbers, 8 of them informative, four
classes of four clusters each), drawn anew for each seed. The teacher is ExtraTrees of 500 trees. All rows of a table
have the same network of 256 units and the same number of steps, and keep its last state: the held-out tenth is too
small to tell checkpoints apart, and the first of the many that are best by it is an early one. Figures are of rows that
neither teacher nor student has seen; nothing is chosen by them. Runs that are finished are reused; the table is written
anew after each to benchmarks/results/tables.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from intervals import interval
from sklearn.datasets import load_digits, make_classification
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import train_test_split
from skops.io import dump

import limbeck
from limbeck import hardware

RESULTS = Path("benchmarks/results/tables.json")
TREES, BATCH = 500, 128
COPIES = (1, 3, 10, 30)
MUNGE = {"by": "munge", "probability": 0.2, "sharpness": 4}
"""Chosen on splits of two other seeds; with 0.5 and 1, rows are so far from real ones that more of them do harm."""
LABELS, NOTHING = "labels", "teacher, training rows alone"
ROWS: dict[str, dict[str, Any] | None] = {
    LABELS: None,
    NOTHING: None,
    **{f"munge, {count} a row": MUNGE | {"copies": count} for count in COPIES},
    **{f"{by.replace('_', ' ')}, 10 a row": {"by": by, "copies": 10} for by in ("marginals", "naive_bayes")},
}
"""Made-up rows of each row of the table."""


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """All rows, their classes, and how many are learnt from."""
    numbers, classes = load_digits(return_X_y=True)
    return numbers, classes, len(numbers) // 2


def clusters(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """As `digits`; the test split is 5,000 rows."""
    settings = {"n_features": 10, "n_informative": 8, "n_redundant": 2, "n_classes": 4, "n_clusters_per_class": 4}
    numbers, classes = make_classification(6000, **settings, flip_y=0.05, random_state=seed)
    return numbers, classes, 1000


SETS = {"digits": digits, "clusters": clusters}


def prepare(name: str, seed: int, place: Path) -> float:
    """Write the table's splits and the teacher; the teacher's accuracy on the test split."""
    place.mkdir(parents=True, exist_ok=True)
    numbers, classes, count = SETS[name](seed)
    table = pd.DataFrame(numbers, columns=[f"x{number}" for number in range(numbers.shape[1])])
    table["label"] = [f"class {label}" for label in classes]
    learn, test = train_test_split(table, train_size=count, random_state=seed, stratify=table["label"])
    train, held = train_test_split(learn, test_size=0.1, random_state=seed, stratify=learn["label"])
    for use, rows in (("train", train), ("validation", held), ("test", test)):
        rows.to_csv(place / f"{use}.csv", index=False)
    forest = ExtraTreesClassifier(TREES, random_state=seed, n_jobs=1)
    forest.fit(train.drop(columns="label").to_numpy(), train["label"])
    dump(forest, place / "forest.skops")
    return float(forest.score(test.drop(columns="label").to_numpy(), test["label"]))


def run(row: str, seed: int, place: Path, steps: int) -> float:
    """One student's accuracy on the test split."""
    made, folder = ROWS[row], place / row.replace(", ", "-").replace(" ", "-")
    if not (folder / "metrics.json").exists():
        rows = len(pd.read_csv(place / "train.csv")) * (1 + (made["copies"] if made else 0))
        limbeck.distill(
            "bucila",
            teacher=place / "forest.skops",
            data={use: str(place / f"{use}.csv") for use in ("train", "validation", "test")} | {"synthetic": made},
            output=folder,
            **({"stages.distill.objectives": {"hard_labels": 1}} if row == LABELS else {}),
            **{
                "training.epochs": steps / -(-rows // BATCH),  # an epoch's last batch may be a smaller one
                "training.checkpoint_steps": steps,
                "evaluation.speed": False,
                "evaluation.resamples": 100,
            },
            seed=seed,
            baseline=False,
            export=[],
        )
    metrics = json.loads((folder / "metrics.json").read_text())
    return float(metrics["student"]["quality"]["accuracy"]["value"])


def table(rows: list[dict[str, Any]], teacher: list[float]) -> list[dict[str, Any]]:
    """By row: accuracy over seeds, and over the student of labels, paired by seed; the teacher first."""
    found: list[dict[str, Any]] = [{"row": "teacher", "accuracy": interval(teacher)}]
    labels = {row["seed"]: row["accuracy"] for row in rows if row["row"] == LABELS}
    for name in ROWS:
        mine = {row["seed"]: row["accuracy"] for row in rows if row["row"] == name}
        if not mine:
            continue
        entry: dict[str, Any] = {"row": name, "seeds": sorted(mine), "accuracy": interval(list(mine.values()))}
        if name != LABELS:
            entry["over labels"] = interval([mine[seed] - labels[seed] for seed in mine])
        found.append(entry)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/tables"))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result |= {"machine": hardware.describe(), "trees": TREES, "steps": options.steps}
    for name in options.sets:
        rows: list[dict[str, Any]] = []
        teacher: list[float] = []
        for seed in options.seeds:
            place = options.output / name / str(seed)
            teacher.append(prepare(name, seed, place))
            for row in ROWS:
                rows.append({"row": row, "seed": seed, "accuracy": run(row, seed, place, options.steps)})
                RESULTS.parent.mkdir(exist_ok=True)
                result[name] = {"rows": rows, "table": table(rows, teacher)}
                RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
