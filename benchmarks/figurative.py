"""The Figurative Distiller from end to end: a teacher's examples, the task's own, and a house style as rules.

    python benchmarks/figurative.py --teacher MODEL --data DATA [--seeds 0 1 2] [--rows "T=1" ...]

DATA holds `instruct_rasbt/train.jsonl`, small requests with short answers. The first are learnt from, the last 100 are
measured on, 50 before them are watched. Students have two thirds of the teacher's layers, those that do most to the
text. Its examples are written under rules_house.yaml, its words are held to it, and so are the students' answers in
the end. Rows: the supervised form at two temperatures, with "no teacher" beside the first (the same start, as many
updates, the data's answers alone), and the unsupervised form, which sees no answer of the data.

Measured on the data's own answers: accuracy and perplexity of the next token, KL to the teacher and agreement with it;
and on 64 prompts the answers that break a rule, as they come and held to the rules. Runs that are finished are reused;
the figures are written anew after each. Some 15 minutes of a core for each row and seed with SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from intervals import interval, paired

from limbeck import hardware
from limbeck.files import read_json, write_atomic, write_json
from limbeck.folder import RunFolder

RESULTS = Path("benchmarks/results/figurative.json")
RULES = Path(__file__).parent / "rules_house.yaml"
ROWS = {
    "T=1": ["figurative"],
    "T=2": ["figurative", "stages.task.objectives.soft_targets.temperature=2", "baseline=false"],
    "unsupervised": ["figurative-unsupervised"],
}
COMMON = ["student.layers=20", "student.pattern=influence", "export=[]", "evaluation.speed=false"]
COMMON += ["evaluation.resamples=200", f"rules={RULES}"]
WATCHED, MEASURED = 50, 100


def files(options: argparse.Namespace) -> dict[str, Path]:
    """The parts of the data, and the prompts alone of what is learnt from."""
    lines = (options.data / "instruct_rasbt" / "train.jsonl").read_text("utf-8").splitlines()
    parts = {"train": lines[: options.prompts], "validation": lines[-MEASURED - WATCHED : -MEASURED]}
    parts["test"] = lines[-MEASURED:]
    asked = [{key: json.loads(line)[key] for key in ("instruction", "input")} for line in parts["train"]]
    parts["prompts"] = [json.dumps({"prompt": "\n\n".join(filter(None, each.values()))}) for each in asked]
    places = {}
    for name, content in parts.items():
        places[name] = options.output / f"{name}.jsonl"
        if not places[name].exists():
            write_atomic(places[name], "\n".join(content) + "\n")
    return places


def one(name: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row's figures with one seed, and those of what is beside it."""
    folder: Path = options.output / name.replace("=", "") / str(seed)
    if not RunFolder(folder).metrics.exists():
        places = files(options)
        train = places["prompts" if name == "unsupervised" else "train"]
        command = ["distill", *ROWS[name], f"teacher={options.teacher}", f"data.train={train}", f"seed={seed}"]
        command += [f"data.{part}={places[part]}" for part in ("validation", "test")]
        command += [*COMMON, f"knowledge={options.output / 'knowledge'}", f"output={folder}"]
        print("limbeck", *command, flush=True)
        subprocess.run([sys.executable, "-m", "limbeck", *command], check=True)
    metrics = read_json(RunFolder(folder).metrics)
    models = {"teacher": "teacher", name: "student"} | ({"no teacher": "baseline"} if "baseline" in metrics else {})
    return [{"row": row, "seed": seed, **figures(metrics[model])} for row, model in models.items()]


def figures(model: dict[str, Any]) -> dict[str, float]:
    """Of one model what the table has."""
    found = {key: model["quality"][key]["value"] for key in ("accuracy", "perplexity")}
    found |= {key: model["fidelity"][key] for key in ("kl", "agreement") if model.get("fidelity")}
    ruled = model["rules"]
    found |= {kind: ruled["violations"][kind]["value"] for kind in ("hard", "soft")}
    if "with_rules" in ruled:
        held = ruled["with_rules"]
        found |= {
            f"held {kind}": held["violations"][kind]["value"] for kind in ("hard", "soft") if "violations" in held
        }
        found["held accuracy"] = held["difference"]["value"]
    return found


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By row: figures over seeds, and of students the paired differences from no teacher."""
    by_row: dict[str, dict[int, dict[str, float]]] = {}
    for entry in rows:
        figures_of = {key: value for key, value in entry.items() if key not in ("row", "seed")}
        by_row.setdefault(entry["row"], {})[entry["seed"]] = figures_of
    found = []
    for name in ("teacher", *ROWS, "no teacher"):
        seeds = by_row.get(name, {})
        if not seeds:
            continue
        if name == "teacher":  # the same whatever the seed
            seeds = dict([next(iter(seeds.items()))])
        mine: dict[str, Any] = {"row": name, "seeds": sorted(seeds)}
        mine |= {key: interval([seeds[seed][key] for seed in sorted(seeds)]) for key in next(iter(seeds.values()))}
        if name not in ("teacher", "no teacher"):
            mine["over no teacher"] = paired(seeds, by_row.get("no teacher", {}))
        found.append(mine)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/figurative"))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=600, help="requests to learn from")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    asked = {"prompts": options.prompts, "teacher": Path(options.teacher).name}
    before = read_json(RESULTS) if RESULTS.exists() else {}
    rows: list[dict[str, Any]] = before["rows"] if asked.items() <= before.items() else []
    for seed in options.seeds:
        for name in options.rows:
            made = one(name, seed, options)
            new = {(each["row"], each["seed"]) for each in made}
            rows = [each for each in rows if (each["row"], each["seed"]) not in new] + made
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            write_json(RESULTS, asked | {"machine": hardware.describe(), "rows": rows, "table": table(rows)})


if __name__ == "__main__":
    main()
