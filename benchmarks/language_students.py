"""Half of a language model's layers, trained by its teacher's kept words and by the text alone, over several seeds.

    python benchmarks/language_students.py --teacher MODEL --data DATA [--seeds 0 1 2] [--rows "labels" ...]

DATA holds `wiki_squad_paragraphs/{train.txt.gz,dev.txt}` and, for LAMBADA, `lambada/test.jsonl`. Each seed has its own
part of the text, of `--tokens` tokens, which all its rows learn from in the same order; the start is the same for all.
"labels, half as many again" reads so many more tokens (with the seed's next text), which takes longer than asking the
teacher of a kept-words row and learning from it (benchmarks/peer_trl.py measures both rates). Measured are accuracy,
perplexity and KL to the teacher on held-out text, and LAMBADA. Runs that are finished are reused; the figures are
written anew after each to benchmarks/results/language_students.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intervals import interval

from limbeck import hardware
from limbeck.checkpoints import open_causal
from limbeck.evaluation.harness import measure, plan_benchmarks
from limbeck.files import read_json, write_json
from limbeck.folder import RunFolder

RESULTS = Path("benchmarks/results/language_students.json")
LETTERS = 5.2
"""Letters of the text for each token, at least: what is left over is not read."""
COMMON = ["baseline=false", "export=[]", "evaluation.resamples=200", "evaluation.speed=false"]


@dataclass(frozen=True)
class Row:
    """What a student learns: alpha of the text itself, 1 - alpha of the teacher's words at a temperature."""

    alpha: float
    temperature: float = 1
    words: str = "head_and_tail"
    tokens: float = 1


ROWS = {
    "labels": Row(1),
    "labels, half as many again": Row(1, tokens=1.5),
    "kept words": Row(0.5),
    "all words": Row(0.5, words="nothing"),  # of the teacher running along: nothing is kept, nothing is lost
    "kept words, alpha 0": Row(0),
    "kept words, T=2": Row(0.5, 2),
    "kept words, alpha 0, T=2": Row(0, 2),
    "top-15 and tail": Row(0.5, words="top_k"),
}
CONTROLS = ("labels", "labels, half as many again", "all words")


def texts(data: Path, seed: int, options: argparse.Namespace) -> tuple[Path, Path]:
    """A seed's text, and half as much again after it."""
    whole = gzip.decompress((data / "wiki_squad_paragraphs" / "train.txt.gz").read_bytes()).decode()
    letters = int(options.tokens * LETTERS)
    start = whole.index("\n", int(seed * 1.5 * letters))
    places = []
    for times in (1, 1.5):
        place: Path = options.output / f"text-{seed}-{times}.txt"
        place.write_text(whole[start : start + int(times * letters)], "utf-8")
        places.append(place)
    return places[0], places[1]


def settings(row: Row, text: Path, seed: int, options: argparse.Namespace) -> list[str]:
    """A row's recipe."""
    held_out = (options.data / "wiki_squad_paragraphs" / "dev.txt").read_text("utf-8")
    for name, part in (("validation", held_out[:20_000]), ("test", held_out[20_000:])):
        (options.output / f"{name}.txt").write_text(part, "utf-8")
    objectives = f"next_token: {row.alpha}" if row.alpha else ""
    if row.alpha < 1:
        soft = f"soft_targets: {{weight: {1 - row.alpha}, temperature: {row.temperature}}}"
        objectives = ", ".join(filter(None, (objectives, soft)))
    words = [f"data.train={text}", *(f"data.{name}={options.output / name}.txt" for name in ("validation", "test"))]
    words += [f"task.max_length={options.length}", f"stages.distill.objectives={{{objectives}}}", f"seed={seed}"]
    words += [f"training.batch_size={options.batch_size}", f"training.learning_rate={options.rate}"]
    words += [f"evaluation.examples={options.examples}", f"knowledge={options.output / 'knowledge'}"]
    if row.alpha < 1 and row.words != "head_and_tail":
        words += [f"teacher.words={row.words}"]
    return [*words, *COMMON]


def one(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row's figures with one seed."""
    row = ROWS[name]
    folder: Path = options.output / name.replace(" ", "-").replace(",", "") / str(seed)
    if not RunFolder(folder).metrics.exists():
        short, long = texts(options.data, seed, options)
        words = settings(row, long if row.tokens > 1 else short, seed, options)
        command = [
            "distill",
            "word-kd",
            f"teacher={options.teacher}",
            "student.layers=half",
            *words,
            f"output={folder}",
        ]
        print("limbeck", *command, flush=True)
        subprocess.run([sys.executable, "-m", "limbeck", *command], check=True)
    metrics = read_json(RunFolder(folder).metrics)
    student = metrics["student"]
    found: dict[str, Any] = {key: student["quality"][key]["value"] for key in ("accuracy", "perplexity")}
    found |= {"kl": student["fidelity"]["kl"], "agreement": student["fidelity"]["agreement"]}
    found |= {"seconds": sum(metrics["training"]["student"]["seconds"].values())}
    teacher = {key: metrics["teacher"]["quality"][key]["value"] for key in ("accuracy", "perplexity")}
    return found | {"teacher": teacher, "lambada": lambada(folder / "student", folder / "lambada.json", options)}


def lambada(model: Path | str, kept: Path, options: argparse.Namespace) -> dict[str, float] | None:
    """Accuracy and perplexity on LAMBADA's first examples; none without its file."""
    if not options.lambada:
        return None
    if not kept.exists():
        checkpoint = open_causal(str(model))
        plan = plan_benchmarks(["lambada"], options.data, options.lambada, 0, 0)
        measured = measure(plan, checkpoint.model.to(hardware.device()), checkpoint.tokenizer, 8)["tasks"]["lambada"]
        write_json(kept, {key: measured["metrics"][key]["value"] for key in ("acc", "perplexity")})
    found: dict[str, float] = read_json(kept)
    return found


def flat(entry: dict[str, Any]) -> dict[str, float]:
    """An entry's figures by name."""
    found = {key: float(entry[key]) for key in ("accuracy", "perplexity", "kl", "agreement")}
    return found | {f"lambada {key}": value for key, value in (entry["lambada"] or {}).items()}


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By row: figures over seeds, and paired differences from the controls."""
    found = []
    by_row: dict[str, dict[int, dict[str, float]]] = {}
    for entry in rows:
        by_row.setdefault(entry["row"], {})[entry["seed"]] = flat(entry)
    for name, seeds in by_row.items():
        first = next(iter(seeds.values()))
        mine: dict[str, Any] = {"row": name, "seeds": sorted(seeds)}
        mine |= {key: interval([each[key] for each in seeds.values()]) for key in first}
        for control in CONTROLS:
            both = sorted(set(seeds) & set(by_row.get(control, {})))
            if both and control != name:
                mine[f"over {control}"] = {
                    key: interval([seeds[seed][key] - by_row[control][seed][key] for seed in both]) for key in first
                }
        found.append(mine)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/language-students"))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=49_152)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--examples", type=int, default=100, help="held-out examples of --length tokens")
    parser.add_argument("--lambada", type=int, default=1000, help="examples of LAMBADA; 0 for none")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name in options.rows:
            rows.append({"row": name, "seed": seed} | one(name, seed, options))
            result = {key: getattr(options, key) for key in ("tokens", "length", "batch_size", "rate", "examples")}
            result |= {"machine": hardware.describe(), "teacher": Path(options.teacher).name, "rows": rows}
            result |= {"teacher's lambada": lambada(options.teacher, options.output / "lambada.json", options)}
            RESULTS.write_text(json.dumps(result | {"table": table(rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
