"""What `limbeck plan` predicts, against what then happens.

    python benchmarks/plan.py TEACHER --data TRAIN DEV TEST [--students "3 layers"] [--epochs 1] [--rounds 3]

TEACHER is a fine-tuned classifier. Students are planned, some of them are distilled as the plan says, and their
latency, training time, size and knowledge are compared, several times over. Run it on a quiet machine: both sides are
times. Writes benchmarks/results/plan.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from intervals import ratios

import limbeck
from limbeck import hardware
from limbeck.sizing import Proposal

RESULTS = Path("benchmarks/results/plan.json")


def both(proposal: Proposal, metrics: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """What was predicted, and what was found."""
    return {
        "parameters": (proposal.parameters, metrics["student"]["size"]["parameters"]),
        "latency_ms": (proposal.latency_ms, metrics["student"]["speed"]["latency_ms_p50"]),
        "training_seconds": (proposal.training_seconds, sum(metrics["training"]["student"]["seconds"].values())),
        "knowledge_bytes": (proposal.knowledge_bytes, metrics["knowledge"]["bytes"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a classifier's folder")
    parser.add_argument("--data", nargs=3, required=True, metavar=("TRAIN", "DEV", "TEST"))
    parser.add_argument(
        "--students", nargs="+", default=["3 layers", "2 layers", "1 layer"], help="as the plan names them"
    )
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=3)
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
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(options.rounds):
        for proposal in limbeck.plan(**settings).proposals:
            if proposal.name not in options.students:
                continue
            place = options.output / f"{proposal.name.replace(' ', '-')}-{turn}"
            short = {"output": place, "export": [], "baseline": False}
            run = limbeck.distill(proposal.recipe, **settings, **proposal.settings, **short)
            row = rows.setdefault(proposal.name, {"student": proposal.name, "recipe": proposal.recipe})
            for name, (predicted, found) in both(proposal, run.metrics).items():
                entry = row.setdefault(name, {"predicted": [], "found": []})
                entry["predicted"].append(predicted)
                entry["found"].append(found)
                entry["ratio"] = ratios(entry["predicted"], entry["found"])
            print(f"round {turn + 1}", json.dumps(row, indent=1), flush=True)
    result = {"machine": hardware.describe(), "epochs": options.epochs, "rounds": options.rounds}
    RESULTS.write_text(json.dumps(result | {"rows": list(rows.values())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
