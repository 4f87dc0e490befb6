"""What `limbeck plan` predicts, against what then happens.

    python benchmarks/plan.py TEACHER --data TRAIN DEV TEST [--students "3 layers"] [--epochs 1]

TEACHER is a fine-tuned classifier. Students are planned, some of them are distilled as the plan says, and their
latency, training time, size and knowledge are compared. Run it on a quiet machine: both sides are times. Writes
benchmarks/results/plan.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import limbeck
from limbeck import hardware
from limbeck.sizing import Proposal

RESULTS = Path("benchmarks/results/plan.json")


def compare(proposal: Proposal, metrics: dict[str, Any]) -> dict[str, Any]:
    """Predicted and found, and their ratio."""
    found = {
        "parameters": (proposal.parameters, metrics["student"]["size"]["parameters"]),
        "latency_ms": (proposal.latency_ms, metrics["student"]["speed"]["latency_ms_p50"]),
        "training_seconds": (proposal.training_seconds, sum(metrics["training"]["student"]["seconds"].values())),
        "knowledge_bytes": (proposal.knowledge_bytes, metrics["knowledge"]["bytes"]),
    }
    return {name: {"predicted": a, "found": b, "ratio": a / b} for name, (a, b) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a classifier's folder")
    parser.add_argument("--data", nargs=3, required=True, metavar=("TRAIN", "DEV", "TEST"))
    parser.add_argument(
        "--students", nargs="+", default=["3 layers", "2 layers", "1 layer"], help="as the plan names them"
    )
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/plan"))
    options = parser.parse_args()
    train, dev, test = options.data
    settings = {
        "teacher": options.teacher,
        "data": {"train": train, "validation": dev, "test": test},
        "task.max_length": 64,
        "training.epochs": options.epochs,
        "evaluation.resamples": 100,
    }
    plan = limbeck.plan(**settings)
    rows = []
    for proposal in plan.proposals:
        if proposal.name not in options.students:
            continue
        place = options.output / proposal.name.replace(" ", "-")
        short = {"output": place, "export": [], "baseline": False}
        run = limbeck.distill(proposal.recipe, **settings, **proposal.settings, **short)
        rows.append({"student": proposal.name, "recipe": proposal.recipe, **compare(proposal, run.metrics)})
        print(json.dumps(rows[-1], indent=1))
    RESULTS.write_text(
        json.dumps({"machine": hardware.describe(), "epochs": options.epochs, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
