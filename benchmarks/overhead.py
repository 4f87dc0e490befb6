"""How far an update from stored knowledge is above the student alone, and where its time goes.

    python benchmarks/overhead.py --teacher TEACHER --data TRAIN DEV TEST [--rounds 5] [--batches 32 16]

Each round is a run of `limbeck distill --profile hinton` with a seed of its own: 30 updates in turn with the floor on
the same batches, then 20 under PyTorch's profiler. The student has half of the teacher's layers; what the teacher says
is kept from the first run on. Run it on a quiet machine. Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from limbeck import hardware

RESULTS = Path("benchmarks/results/overhead.json")
UPDATES = 60
"""Enough for what a profile takes."""


def profile(options: argparse.Namespace, batch: int, seed: int, folder: str) -> dict[str, Any]:
    """What `--profile` wrote."""
    train, dev, test = options.data
    epochs = UPDATES * batch / (len(train.read_text("utf-8").splitlines()) - 1)
    output = f"{folder}/{batch}-{seed}"
    words = ["distill", "--profile", "hinton", f"teacher={options.teacher}", f"data.train={train}", f"seed={seed}"]
    words += [f"data.validation={dev}", f"data.test={test}", "student.layers=half", f"training.batch_size={batch}"]
    words += [
        f"training.epochs={epochs:.4f}",
        "training.checkpoint_steps=100000",
        "task.max_length=64",
        "baseline=false",
    ]
    words += ["export=[]", "evaluation.speed=false", "evaluation.teacher=false", "evaluation.resamples=100"]
    words += [f"knowledge={folder}/knowledge", f"output={output}"]
    done = subprocess.run([sys.executable, "-m", "limbeck", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(Path(output, "logs", "profile-student-1-distill.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", nargs=3, type=Path, required=True, metavar=("TRAIN", "DEV", "TEST"))
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 16], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds: dict[int, list[dict[str, Any]]] = {batch: [] for batch in options.batches}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.rounds):
            for batch, each in rounds.items():
                each.append(profile(options, batch, seed, folder))
                print(f"round {seed + 1}: batches of {batch}, {each[-1]['above the floor']:+.1%}", flush=True)
    found: dict[str, Any] = {"machine": hardware.describe(), "rounds": options.rounds, "batches": {}}
    for batch, each in rounds.items():
        above = sorted(one["above the floor"] for one in each)
        parts = {name: statistics.mean(one["profiled"][name] for one in each) for name in each[0]["profiled"]}
        whole = sum(parts.values())
        found["batches"][str(batch)] = {
            "milliseconds": 1e3 * statistics.median(one["seconds"] for one in each),
            "above the floor": {"median": statistics.median(above), "low": above[0], "high": above[-1]},
            "updates": sum(one["updates"] for one in each),
            "shares": {name: value / whole for name, value in parts.items()},
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
