"""The demo over several seeds: retention, agreement and int8's cost, with means and 95 % t intervals.

    python benchmarks/demo_seeds.py [--seeds 0 1 2]

A seed fixes the split, the teacher's training and the student's. Prints a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import t

from limbeck import hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/demo-seeds"))
    options = parser.parse_args()
    rows: list[dict[str, float]] = []
    for seed in options.seeds:
        folder = options.output / str(seed)
        started = time.monotonic()
        subprocess.run([sys.executable, "demo/demo.py", "--seed", str(seed), "--output", str(folder)], check=True)
        metrics = json.loads((folder / "metrics.json").read_text())
        accuracy = {
            name: metrics[name]["quality"]["accuracy"]["value"]
            for name in ("teacher", "student", "baseline", "student_int8")
        }
        speed = {name: metrics[name]["speed"] for name in ("teacher", "student", "student_int8")}
        rows.append(
            {
                **{f"accuracy of the {name.replace('_', ' ')}": value for name, value in accuracy.items()},
                "retention of the student": metrics["student"]["retention"],
                "retention of the baseline": metrics["baseline"]["retention"],
                "agreement of the student": metrics["student"]["fidelity"]["agreement"],
                "agreement of the baseline": metrics["baseline"]["fidelity"]["agreement"],
                "agreement, student minus baseline": metrics["student"]["fidelity"]["agreement"]
                - metrics["baseline"]["fidelity"]["agreement"],
                "int8 minus student, points": 100 * (accuracy["student_int8"] - accuracy["student"]),
                "latency, teacher over student": speed["teacher"]["latency_ms_p50"]
                / speed["student"]["latency_ms_p50"],
                "latency, teacher over int8": speed["teacher"]["latency_ms_p50"]
                / speed["student_int8"]["latency_ms_p50"],
                "seconds (when not resumed)": time.monotonic() - started,
            }
        )
    table = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
        table[name] = {
            "mean": values.mean(),
            "low": values.mean() - half,
            "high": values.mean() + half,
            "values": values.tolist(),
        }
    result = {"seeds": options.seeds, "machine": hardware.describe(), "figures": table}
    Path("benchmarks/results").mkdir(exist_ok=True)
    Path("benchmarks/results/demo_seeds.json").write_text(json.dumps(result, indent=1) + "\n")
    print("| figure | mean | 95 % interval | by seed |\n|---|---|---|---|")
    for name, figure in table.items():
        by_seed = ", ".join(f"{value:.4g}" for value in figure["values"])
        print(f"| {name} | {figure['mean']:.4g} | {figure['low']:.4g} to {figure['high']:.4g} | {by_seed} |")


if __name__ == "__main__":
    main()
