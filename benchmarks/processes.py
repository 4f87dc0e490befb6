"""One process against two of one thread each, and Ray's workers against both: rates of labelling and training.

    python benchmarks/processes.py --teacher TEACHER --data TRAIN DEV TEST [--batch 64] [--examples 2048]
                                   [--rounds 5] [--ray 16384]

TEACHER is a fine-tuned classifier, TRAIN a labelled table. The global batch is the same on both sides, so that they do
the same updates; figures of several batches stay beside each other. Times are those that a run itself takes: asking the
teacher, and training, with a validation and a checkpoint, which a quarter of the examples has, too: what is beyond it
is updates alone. Ray's are of labelling alone, of `--ray` examples (texts again and again, numbered); its workers start
once, which is told apart in the same way. Run it on a quiet machine of two cores or more. Writes
benchmarks/results/processes.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from intervals import ratios

from limbeck import hardware

RESULTS = Path("benchmarks/results/processes.json")
ASKED = re.compile(r"the teacher was asked about ([\d,]+) examples in ([\d.]+) s")


def limbeck(words: list[str], processes: int) -> str:
    """One command on processes of one thread each; what it said."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "limbeck", *words]
    # Ray gives way to everything else on a machine, which nothing but it runs on here.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stderr + done.stdout


def asked(said: str) -> float:
    """Seconds that asking the teacher took."""
    found = ASKED.search(said)
    assert found is not None, said[-2000:]
    return float(found[2])


def whole_run(table: Path, options: argparse.Namespace, processes: int) -> dict[str, float]:
    """Seconds of labelling and training in a run."""
    _, dev, test = options.data
    with tempfile.TemporaryDirectory() as folder:
        words = ["distill", f"teacher={options.teacher}", f"data.train={table}", f"data.validation={dev}"]
        words += [f"data.test={test}", "student.layers=3", "baseline=false", "export=[]", f"output={folder}/run"]
        words += ["evaluation.teacher=false", "evaluation.speed=false", "evaluation.resamples=100", "training.epochs=1"]
        words += [
            f"training.batch_size={options.batch // processes}",
            "task.max_length=64",
            "training.checkpoint_steps=1000",
        ]
        said = limbeck(words, processes)
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text())
    return {"labelling": asked(said), "training": sum(metrics["training"]["student"]["seconds"].values())}


def several(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Whole runs of one process and of two, of all examples and of a quarter."""
    sizes = (options.examples // 4, options.examples)
    tables = {size: repeated(options.data[0], size, folder) for size in sizes}
    took: dict[int, dict[int, list[dict[str, float]]]] = {n: {size: [] for size in sizes} for n in (1, 2)}
    for turn in range(options.rounds):
        for processes, by_size in took.items():
            for size, runs in by_size.items():
                runs.append(whole_run(tables[size], options, processes))
                print(f"round {turn + 1}: {processes} processes, {size} examples, {runs[-1]}", flush=True)

    def seconds(name: str, processes: int) -> list[float]:
        return [run[name] for run in took[processes][options.examples]]

    def beyond(processes: int) -> list[float]:
        few, many = (took[processes][size] for size in sizes)
        return [b["training"] - a["training"] for a, b in zip(few, many, strict=True)]

    return {
        "machine": hardware.describe(),
        "batch": options.batch,
        "examples": options.examples,
        "rounds": options.rounds,
        "seconds": took,
        "times": {
            "labelling": ratios(seconds("labelling", 1), seconds("labelling", 2)),
            "training": ratios(seconds("training", 1), seconds("training", 2)),
            "training, updates alone": ratios(beyond(1), beyond(2)),
        },
    }


def label(table: Path, options: argparse.Namespace, how: str) -> float:
    """Seconds of labelling alone."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["label", f"teacher={options.teacher}", f"data={table}", f"output={folder}/run", "task.max_length=64"]
        ray = ["--engine", "ray", "--workers", "2"] if how == "ray" else []
        return asked(limbeck([*words, *ray], {"one": 1, "two": 2, "ray": 1}[how]))


def repeated(source: Path, rows: int, folder: str) -> Path:
    """A table of so many of the source's texts, from its start and again, each with its number."""
    with source.open(newline="") as lines:
        examples = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    name = next(iter(examples[0]))
    path = Path(folder, f"{rows}.csv")
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, examples[0].keys())
        writer.writeheader()
        for row in range(rows):
            example = examples[row % len(examples)]
            writer.writerow({**example, name: f"{example[name]} {row // len(examples) or ''}".strip()})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", nargs=3, type=Path, required=True, metavar=("TRAIN", "DEV", "TEST"))
    parser.add_argument("--batch", type=int, default=64, help="the global batch")
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--ray", type=int, default=16384, help="examples that Ray labels; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if options.rounds:
            found.setdefault("processes", {})[str(options.batch)] = several(options, folder)
        if options.ray:
            sizes = (options.ray // 4, options.ray)
            tables = {size: repeated(options.data[0], size, folder) for size in sizes}
            seconds: dict[str, dict[int, list[float]]] = {how: {size: [] for size in sizes} for how in ("two", "ray")}
            for turn in range(options.rounds):
                for how, by_size in seconds.items():
                    for size, each in by_size.items():
                        each.append(label(tables[size], options, how))
                        print(f"round {turn + 1}: {how}, {size} examples, {each[-1]} s", flush=True)
            few, many = sizes
            beyond = {how: [b - a for a, b in zip(each[few], each[many], strict=True)] for how, each in seconds.items()}
            found["ray"] = {
                "machine": hardware.describe(),
                "sizes": sizes,
                "rounds": options.rounds,
                "seconds": seconds,
                "whole": {str(size): ratios(seconds["ray"][size], seconds["two"][size]) for size in sizes},
                "beyond the first quarter": ratios(beyond["ray"], beyond["two"]),
            }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({batch: each["times"] for batch, each in found.get("processes", {}).items()}, indent=1))
    print(json.dumps(found.get("ray", {}).get("whole"), indent=1))


if __name__ == "__main__":
    main()
