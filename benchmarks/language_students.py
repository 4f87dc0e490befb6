"""Half of a language model's layers, trained by its teacher's kept words and by the text alone, over several seeds.

    python benchmarks/language_students.py --teacher MODEL --data DATA [--seeds 0 1 2] [--rows "labels" ...]
    python benchmarks/language_students.py --teacher MODEL --data DATA --epochs 4 --tokens 24576 --lambada 500 \
        --results benchmarks/results/language_passes.json
    python benchmarks/language_students.py --teacher MODEL --data DATA --text FILE ... --epochs 6 --seeds 0 \
        --rows "labels" "kept words" "kept words, T=2" --results benchmarks/results/language_long.json

DATA holds `wiki_squad_paragraphs/{train.txt.gz,dev.txt}` and, for LAMBADA, `lambada/test.jsonl`. Each seed has its own
part of the text, of `--tokens` tokens, which all its rows learn from in the same order; the start is the same for all,
spaced layers, but for rows "by influence", which choose them by their own text.
"labels, equal time" reads more of it (with the seed's next text), for as long as a kept-words row takes, which asks the
teacher once and then learns for `--epochs`: benchmarks/peer_trl.py measures both rates, 289 tokens of the text a second
and 169 with the teacher asked, so that asking costs 0.7 of one pass. Measured are accuracy, perplexity and KL to the
teacher on held-out text, and LAMBADA. Runs that are finished are reused; the figures are written anew after each,
beside those of the same settings that are there already.

With --text all of these files is learnt from, by all rows and seeds alike: plain text, or lines of JSON whose `prompt`
and `completion` are joined; both may be compressed with gzip.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intervals import interval, paired

from limbeck import hardware
from limbeck.checkpoints import open_causal
from limbeck.evaluation.harness import measure, plan_benchmarks
from limbeck.files import read_json, write_atomic, write_json
from limbeck.folder import RunFolder

RESULTS = Path("benchmarks/results/language_students.json")
LETTERS = 5.2
"""Letters of the text for each token, at least: what is left over is not read."""
ASKING = 0.7
"""What asking the teacher costs, in passes of learning from the text."""
COMMON = ["baseline=false", "export=[]", "evaluation.resamples=200", "evaluation.speed=false"]


@dataclass(frozen=True)
class Row:
    """Alpha of the text itself and 1 - alpha of the teacher's words at a temperature; which layers it starts from."""

    alpha: float
    temperature: float = 1
    words: str = "head_and_tail"
    equal_time: bool = False
    pattern: str = "spaced"


ROWS = {
    "labels": Row(1),
    "labels, equal time": Row(1, equal_time=True),
    "kept words": Row(0.5),
    "all words": Row(0.5, words="nothing"),  # of the teacher running along: nothing is kept, nothing is lost
    "kept words, alpha 0": Row(0),
    "kept words, T=2": Row(0.5, 2),
    "kept words, alpha 0, T=2": Row(0, 2),
    "top-15 and tail": Row(0.5, words="top_k"),
    "kept words, layers by influence": Row(0.5, pattern="influence"),
    "kept words, alpha 0, layers by influence": Row(0, pattern="influence"),
    "labels, equal time, layers by influence": Row(1, equal_time=True, pattern="influence"),
}
SETTINGS = ("tokens", "length", "batch_size", "rate", "examples", "epochs")
CONTROLS = ("labels", "labels, equal time", "all words", "kept words", "labels, equal time, layers by influence")


def texts(data: Path, seed: int, options: argparse.Namespace) -> tuple[Path, Path]:
    """A seed's text, and as much as is read in equal time; with --text all of it, both times."""
    if options.text:
        place: Path = options.output / "text.txt"
        keep(place, lambda: "\n".join(line for file in options.text for line in lines_of(file)))
        return place, place
    whole = gzip.decompress((data / "wiki_squad_paragraphs" / "train.txt.gz").read_bytes()).decode()
    letters = int(options.tokens * LETTERS)
    more = 1 + ASKING / options.epochs
    start = whole.index("\n", int(seed * more * letters))
    if start + more * letters > len(whole):
        raise SystemExit(f"seed {seed} needs more text than there is: fewer --tokens, or lower seeds")
    places = []
    for times in (1, more):
        place = options.output / f"text-{seed}-{times:g}.txt"
        keep(place, lambda end=start + int(times * letters): whole[start:end])
        places.append(place)
    return places[0], places[1]


def keep(place: Path, content: Callable[[], str]) -> None:
    """Write a text once; other processes may be reading it."""
    if not place.exists():
        write_atomic(place, content())


def lines_of(file: Path) -> Iterator[str]:
    """A file's lines; of JSON, prompt and completion of each as one."""
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    for line in content.decode().split("\n"):
        if ".jsonl" in file.suffixes and line:
            example = json.loads(line)
            line = " ".join(f"{example['prompt']} {example['completion']}".split())
        if line.strip():
            yield line


def settings(row: Row, text: Path, seed: int, options: argparse.Namespace) -> list[str]:
    """A row's recipe."""
    held_out = (options.data / "wiki_squad_paragraphs" / "dev.txt").read_text("utf-8")
    for name, part in (("validation", held_out[:20_000]), ("test", held_out[20_000:])):
        keep(options.output / f"{name}.txt", lambda part=part: part)
    objectives = f"next_token: {row.alpha}" if row.alpha else ""
    if row.alpha < 1:
        soft = f"soft_targets: {{weight: {1 - row.alpha}, temperature: {row.temperature}}}"
        objectives = ", ".join(filter(None, (objectives, soft)))
    words = [f"data.train={text}", *(f"data.{name}={options.output / name}.txt" for name in ("validation", "test"))]
    words += [f"task.max_length={options.length}", f"stages.distill.objectives={{{objectives}}}", f"seed={seed}"]
    words += [f"training.batch_size={options.batch_size}", f"training.learning_rate={options.rate}"]
    words += [f"training.epochs={options.epochs:g}", f"teacher.batch_size={options.batch_size}"]
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
        words = settings(row, long if row.equal_time else short, seed, options)
        command = [
            "distill",
            "word-kd",
            f"teacher={options.teacher}",
            "student.layers=half",
            f"student.pattern={row.pattern}",
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
            over = paired(seeds, by_row.get(control, {}))
            if over and control != name:
                mine[f"over {control}"] = over
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
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--text", type=Path, nargs="+", help="learnt from in the place of --tokens of DATA's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--lambada", type=int, default=1000, help="examples of LAMBADA; 0 for none")
    options = parser.parse_args()
    asked: dict[str, Any] = {key: getattr(options, key) for key in SETTINGS} | {"teacher": Path(options.teacher).name}
    asked |= {"text": [file.name for file in options.text or []], "lambada examples": options.lambada}
    parts = [str(asked[key]) for key in SETTINGS] + [Path(name).stem for name in asked["text"]]
    options.output = options.output / "-".join(parts)  # a run's folder says of which settings it is
    options.output.mkdir(parents=True, exist_ok=True)
    before = read_json(options.results) if options.results.exists() else {}
    rows: list[dict[str, Any]] = before["rows"] if asked.items() <= before.items() else []
    for seed in options.seeds:
        for name in options.rows:
            row = {"row": name, "seed": seed} | one(name, seed, options) | {"machine": hardware.describe()}
            rows = [each for each in rows if (each["row"], each["seed"]) != (name, seed)] + [row]
            result = asked | {"teacher's lambada": lambada(options.teacher, options.output / "lambada.json", options)}
            write_json(options.results, result | {"rows": rows, "table": table(rows)})


if __name__ == "__main__":
    main()
