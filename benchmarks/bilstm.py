"""A BiLSTM on SST-2 by what it learnt from: labels, a teacher's logits, and those of altered texts too; several seeds.

    python benchmarks/bilstm.py TEACHER --data DATA [--seeds 0 1 2] [--copies 20] [--epochs 3] [--vectors FILE]

TEACHER is a fine-tuned classifier; DATA holds `train_sentences.tsv`, `dev.tsv` and `test.tsv`. All rows have the same
student and the same settings, may take the same number of steps, and keep the checkpoint that is best on dev; they stop
once it has not been beaten for `--patience` validations. Runs that are finished are reused; the table is written anew
after each one to benchmarks/results/bilstm.json, from which `make docs` fills docs/systems/bilstm.md. Figures are of
the published test split; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from intervals import interval

import limbeck.students  # noqa: F401  (makes transformers open BiLSTMs)
from limbeck import hardware
from limbeck.anatomy import outside_embeddings
from limbeck.checkpoints import open_classifier

RESULTS = Path("benchmarks/results/bilstm.json")
NO_COPIES = "data.augmentation=null"
ROWS = {
    "no teacher": [NO_COPIES, "stages.distill.objectives={hard_labels: 1}"],
    "logits": [NO_COPIES],
    "logits, altered texts too": [],
}
"""What differs from the recipe."""
BARS = {"size": 0.1, "over no teacher": 0.015, "retention": 0.94}
"""The student's parameters outside the embeddings over the teacher's, at most; the others at least."""


def run(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One student's figures; it is trained here when it is not there yet."""
    folder: Path = options.output / name.replace(" ", "-").replace(",", "") / str(seed)
    altered = NO_COPIES not in ROWS[name]
    if not (folder / "metrics.json").exists():
        places = {"train": "train_sentences.tsv", "validation": "dev.tsv", "test": "test.tsv"}
        words = ["distill", "bilstm", f"teacher={options.teacher}", *ROWS[name], f"seed={seed}", f"output={folder}"]
        words += [f"data.{use}={options.data / file}" for use, file in places.items()]
        words += [f"knowledge={options.output / 'knowledge'}", "baseline=false", "export=[]"]
        words += ["evaluation.speed=false", "evaluation.resamples=200", "task.max_length=64"]
        words += [f"student.shape.hidden_size={options.hidden_size}", f"training.learning_rate={options.rate}"]
        # An epoch over the altered texts is so many over the others.
        words += [f"training.epochs={options.epochs * (1 if altered else options.copies + 1):g}"]
        words += [f"training.patience={options.patience}", f"training.checkpoint_steps={options.checkpoint_steps}"]
        if altered:
            words += [f"data.augmentation.copies={options.copies}"]
        if options.vectors:
            words += ["student.embeddings=false", f"student.vectors={options.vectors}"]
        print("limbeck", *words, flush=True)
        subprocess.run([sys.executable, "-m", "limbeck", *words], check=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    student = open_classifier(str(folder / "student")).model
    return {
        "row": name,
        "seed": seed,
        "accuracy": metrics["student"]["quality"]["accuracy"]["value"],
        "retention": metrics["student"]["retention"],
        "agreement": metrics["student"]["fidelity"]["agreement"],
        "teacher": metrics["teacher"]["quality"]["accuracy"]["value"],
        "texts": metrics["data"]["transfer"],
        "steps": max(entry["step"] for entry in metrics["training"]["student"]["history"]["distill"]),
        "seconds": metrics["training"]["student"]["seconds"]["distill"],
        "parameters": sum(weight.numel() for weight in student.parameters()),
        "outside the embeddings": outside_embeddings(student),
    }


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By row: figures over seeds, and what it gains over the others, paired by seed."""
    found = []
    for name in dict.fromkeys(row["row"] for row in rows):
        mine = {row["seed"]: row for row in rows if row["row"] == name}
        entry: dict[str, Any] = {"row": name, "seeds": sorted(mine)}
        for figure in ("accuracy", "retention", "agreement", "steps"):
            entry[figure] = interval([mine[seed][figure] for seed in entry["seeds"]])
        first = next(iter(mine.values()))
        entry |= {figure: first[figure] for figure in ("texts", "parameters", "outside the embeddings")}
        for other in ROWS:
            theirs = {row["seed"]: row for row in rows if row["row"] == other}
            both = sorted(set(mine) & set(theirs))
            if both and other != name:
                entry[f"over {other}"] = interval([mine[s]["accuracy"] - theirs[s]["accuracy"] for s in both])
        found.append(entry)
    return found


def bars(found: list[dict[str, Any]], teacher: dict[str, Any]) -> dict[str, bool]:
    """Which of `BARS` the student with all that the recipe has holds, by its means."""
    best = found[-1]
    gain = best.get("over no teacher")
    return {
        "size": best["outside the embeddings"] <= BARS["size"] * teacher["outside the embeddings"],
        "over no teacher": gain is not None and gain["mean"] >= BARS["over no teacher"],
        "retention": best["retention"]["mean"] >= BARS["retention"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a fine-tuned classifier's folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/bilstm"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--copies", type=int, default=20, help="altered copies of each training text")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the altered texts")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--hidden-size", type=int, default=128, help="of the LSTM's states, each direction")
    parser.add_argument("--patience", type=int, default=10, help="validations")
    parser.add_argument("--checkpoint-steps", type=int, default=400, help="steps between validations")
    parser.add_argument("--vectors", help="word vectors in GloVe's format; the teacher's embeddings when not given")
    options = parser.parse_args()
    opened = open_classifier(options.teacher)
    teacher: dict[str, Any] = {
        "kind": f"{opened.model.config.model_type} with {opened.model.config.num_hidden_layers} layers",
        "parameters": sum(weight.numel() for weight in opened.model.parameters()),
        "outside the embeddings": outside_embeddings(opened.model),
    }
    del opened
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name in options.rows:
            rows.append(run(name, seed, options))
            teacher["accuracy"] = rows[-1]["teacher"]
            ordered = sorted(rows, key=lambda row: list(ROWS).index(row["row"]))
            found = table(ordered)
            settings = {"copies": options.copies, "vectors": Path(options.vectors).name if options.vectors else None}
            result = {"machine": hardware.describe(), **settings, "teacher": teacher, "rows": ordered, "table": found}
            options.results.parent.mkdir(exist_ok=True)
            options.results.write_text(json.dumps(result | {"bars": bars(found, teacher)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
