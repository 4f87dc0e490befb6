"""SST-2 with few queries: what a student learns from the same number of answers, by how they were chosen.

    python benchmarks/active.py TEACHER --data DATA --student MODEL [--budgets 100 300 1000] [--seeds 0 1 2]

TEACHER is a classifier's folder, fine-tuned on the task; DATA holds `sst2/{train_sentences,dev,test}.tsv`; MODEL is a
pretrained encoder. The student learns from the teacher's answers alone, no label of the training data is read by it or
by what chooses. Figures are of the published test split; differences from random choice are paired by seed. Runs that
are finished are reused; the table is written anew after each to benchmarks/results/active.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from intervals import interval

from limbeck import hardware

CHOICES = ("random", "uncertainty", "diversity")


def run(choose: str, budget: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run: its figures, and those of the students that chose."""
    folder: Path = options.runs / f"{choose}-{budget}-{seed}"
    if not (folder / "metrics.json").exists():
        data = options.data / "sst2"
        queries = f"{{budget: {budget}, choose: {choose}, rounds: {options.rounds}}}"
        words = [
            *(
                f"data.{name}={data / file}.tsv"
                for name, file in zip(("train", "validation", "test"), options.splits, strict=True)
            ),
            f"teacher={{model: {options.teacher}, queries: {queries}}}",
            f"student={{model: {options.student}, layers: {options.layers}}}",
            "stages.distill.objectives.hard_labels=null",
            f"training={{epochs: {options.epochs}, learning_rate: {options.rate}, batch_size: 16}}",
            *("task.max_length=64", "export=[]", "evaluation.speed=false", "evaluation.resamples=200"),
            *("baseline=false", f"knowledge={options.runs / 'knowledge'}", f"seed={seed}", f"output={folder}"),
        ]
        print("limbeck distill", *words, flush=True)
        subprocess.run([sys.executable, "-m", "limbeck", "distill", "hinton", *words], check=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "choose": choose,
        "budget": budget,
        "seed": seed,
        "accuracy": metrics["student"]["quality"]["accuracy"]["value"],
        "agreement": metrics["student"]["fidelity"]["agreement"],
        "teacher": metrics["teacher"]["quality"]["accuracy"]["value"],
        "curve": [[each["queries"], each["quality"]["accuracy"]["value"]] for each in metrics["queries"]["curve"]],
    }


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By budget and choice: figures over seeds, and the difference from random choice."""

    def of(choose: str, budget: int) -> dict[int, dict[str, Any]]:
        return {row["seed"]: row for row in rows if (row["choose"], row["budget"]) == (choose, budget)}

    found = []
    for budget, choose in dict.fromkeys((row["budget"], row["choose"]) for row in rows):
        mine, control = of(choose, budget), of("random", budget)
        entry: dict[str, Any] = {"choose": choose, "budget": budget, "seeds": sorted(mine)}
        for name in ("accuracy", "agreement", "teacher"):
            entry[name] = interval([mine[seed][name] for seed in entry["seeds"]])
        both = sorted(set(mine) & set(control))
        if both and choose != "random":
            gains = [mine[seed]["accuracy"] - control[seed]["accuracy"] for seed in both]
            entry["over random"] = interval(gains)
        found.append(entry)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="a classifier's folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--student", required=True, help="a pretrained encoder")
    parser.add_argument("--layers", default="all", help="of the student, as student.layers takes them")
    parser.add_argument("--splits", nargs=3, default=["train_sentences", "dev", "test"], help="files, without .tsv")
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--budgets", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--rate", type=float, default=1e-4, help="the learning rate")
    parser.add_argument("--runs", type=Path, default=Path("runs/active"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/active.json"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for budget in options.budgets:
        for seed in options.seeds:
            for choose in options.choices:
                rows.append(run(choose, budget, seed, options))
                settings = {name: getattr(options, name) for name in ("rounds", "epochs", "rate", "layers")}
                names = {"teacher": options.teacher.name, "student": Path(options.student).name}
                result = {"machine": hardware.describe(), **names, "settings": settings, "rows": rows}
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(result | {"table": table(rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
