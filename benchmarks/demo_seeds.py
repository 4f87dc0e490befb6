"""The demo over several seeds: means and 95 % t intervals of what was kept.

    python benchmarks/demo_seeds.py [--seeds 0 1 2]

A seed fixes the split, the teacher's training and the student's. Runs that are finished are reused. Writes
benchmarks/results/demo_seeds.json, from which `make docs` fills the README's table.
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

MODELS = ("teacher", "student", "baseline", "student_onnx", "student_int8")


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """One seed's figures by name."""
    found = {}
    for name in MODELS:
        model = metrics[name]
        found |= {
            f"{name}.accuracy": model["quality"]["accuracy"]["value"],
            f"{name}.retention": model["retention"],
            f"{name}.agreement": model["fidelity"]["agreement"],
            f"{name}.kl": model["fidelity"]["kl"],
            f"{name}.ece": model["calibration"]["ece"],
            f"{name}.megabytes": model["size"]["bytes"] / 1e6,
            f"{name}.speedup": metrics["teacher"]["speed"]["latency_ms_p50"] / model["speed"]["latency_ms_p50"],
            f"{name}.throughput_ratio": model["speed"]["throughput"] / metrics["teacher"]["speed"]["throughput"],
        }
    found["agreement gained over the baseline"] = found["student.agreement"] - found["baseline.agreement"]
    found["accuracy gained over the baseline"] = found["student.accuracy"] - found["baseline.accuracy"]
    found["accuracy lost by int8"] = found["student.accuracy"] - found["student_int8.accuracy"]
    return found


def summary(values: list[float]) -> dict[str, Any]:
    """Mean and 95 % t interval."""
    found = interval(values)
    mean, half = found["mean"], found["half"] or 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/demo-seeds"))
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        folder = options.output / str(seed)
        subprocess.run([sys.executable, "demo/demo.py", "--seed", str(seed), "--output", str(folder)], check=True)
        metrics = json.loads((folder / "metrics.json").read_text())
        rows.append(figures(metrics))
    result = {
        "seeds": options.seeds,
        "machine": hardware.describe(),
        "examples": {name: metrics["data"][name] for name in ("train", "validation", "test")},
        "figures": {name: summary([row[name] for row in rows]) for name in rows[0]},
    }
    Path("benchmarks/results").mkdir(exist_ok=True)
    Path("benchmarks/results/demo_seeds.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, figure in result["figures"].items():
        print(f"{name:40} {figure['mean']:.4f}  ({figure['low']:.4f} to {figure['high']:.4f})  {figure['values']}")


if __name__ == "__main__":
    main()
