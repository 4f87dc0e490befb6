r"""The four tables of the Figurative Distiller paper, for a teacher and students of your own beside the paper's rows.

    python benchmarks/llm.py --teacher TEACHER --students half=DIR third=DIR --temperatures 1=DIR 2=DIR \
        --data FOLDER --output runs/llm [--limit 500] [--shots 0] [--speed]

Models are folders, runs' folders, hub names or .gguf files; FOLDER is as docs/benchmarks.md describes (the hub when not
given). Language modelling and completion (LAMBADA, StoryCloze, HellaSwag); answering questions (Natural Questions,
WebQuestions, TriviaQA); and the same two for students of two temperatures. Beside each score its standard error, below
each student what it keeps of the teacher, on the same examples. With --speed also tokens per second and memory, all
models in turn.

One file per model and benchmark under --output: run again, the same command measures only what is missing or was made
by other weights, settings or versions. Writes benchmarks/results/llm.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from limbeck import hardware
from limbeck.checkpoints import Checkpoint, open_causal, place
from limbeck.errors import InputError
from limbeck.evaluation.generation_speed import measure_generation
from limbeck.evaluation.harness import (
    LOWER_IS_BETTER,
    available_benchmarks,
    measure,
    plan_benchmarks,
    retention,
    versions,
)
from limbeck.files import read_json, sha256, write_json
from limbeck.progress import say

RESULT = Path("benchmarks/results/llm.json")
# Title, benchmark, metric. HellaSwag by length, as the GPT-3 rows are; the paper does not say how it counts.
LANGUAGE = [
    ("LAMBADA acc", "lambada", "acc"),
    ("LAMBADA ppl", "lambada", "perplexity"),
    ("StoryCloze acc", "storycloze", "acc"),
    ("HellaSwag acc_norm", "hellaswag", "acc_norm"),
]
QUESTIONS = [
    ("Natural Questions", "nq_open", "exact_match"),
    ("WebQuestions", "webquestions", "exact_match"),
    ("TriviaQA", "triviaqa", "exact_match"),
]
# Gholami and Omar 2023, "Can a student Large Language Model perform as well as it's teacher?" (arXiv 2310.02421), with
# the GPT-3 rows that it repeats (Brown et al. 2020). None of these were measured here.
SOURCE = "Gholami and Omar 2023, arXiv 2310.02421"
PAPER: dict[str, list[tuple[str, list[float]]]] = {
    "language": [
        ("paper: GPT-3, 0 shots", [76.2, 3.00, 83.2, 78.9]),
        ("paper: GPT-3, 1 shot", [72.5, 3.35, 84.7, 78.1]),
        ("paper: GPT-3, few shots", [86.4, 1.92, 87.7, 79.3]),
        ("paper: teacher, 950M", [67.1, 9.2, 80.5, 72.6]),
        ("paper: student, 320M", [52.47, 13.53, 61.28, 63.52]),
    ],
    "questions": [
        ("paper: GPT-3, 0 shots", [14.6, 14.4, 64.3]),
        ("paper: GPT-3, 1 shot", [23.0, 25.3, 68.0]),
        ("paper: GPT-3, few shots", [29.9, 41.5, 71.2]),
        ("paper: teacher, 950M", [27.5, 40.6, 69.2]),
        ("paper: student, 320M", [19.61, 30.52, 53.61]),
    ],
    "language, by temperature": [
        ("paper: student, T=1", [52.47, 13.53, 61.28, 63.52]),
        ("paper: student, T=2", [49.40, 14.69, 59.29, 60.59]),
    ],
    "questions, by temperature": [
        ("paper: student, T=1", [19.61, 30.52, 53.61]),
        ("paper: student, T=2", [17.19, 27.87, 48.50]),
    ],
}
TEACHER_ROW = 3  # of the paper's rows without temperatures


class Models:
    """The models by name; opened when first needed, one at a time unless all are asked for."""

    def __init__(self, paths: dict[str, str]) -> None:
        self.paths = paths
        self.digests = {name: _digest(path) for name, path in paths.items()}
        self._open: dict[str, Checkpoint] = {}

    def open(self, name: str, alone: bool = True) -> Checkpoint:
        """A model; `alone` lets go of the others first."""
        if name not in self._open:
            if alone:
                self._open.clear()
            self._open[name] = open_causal(self.paths[name])
            self._open[name].model.to(hardware.device())
        return self._open[name]


def _digest(path: str) -> str:
    """What tells one model's weights from another's; of a model on the hub its name."""
    where = Path(place(path)).expanduser()
    if where.is_file():
        return sha256(where)
    if not where.is_dir():
        return path
    files = sorted(
        file for pattern in ("*.safetensors", "config.json", "tokenizer.json") for file in where.glob(pattern)
    )
    return " ".join(f"{file.name}:{sha256(file)[:16]}" for file in files)


def scores(models: Models, tasks: list[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By model and benchmark what `measure` found, from files where they are finished."""
    found: dict[str, dict[str, Any]] = {name: {} for name in models.paths}
    plans = {task: plan_benchmarks([task], options.data, options.limit, options.shots, options.seed) for task in tasks}
    for name in models.paths:
        for task, plan in plans.items():
            file = options.output / f"{name}-{task}.json"
            key = {"weights": models.digests[name], "settings": plan.settings, "versions": versions()}
            kept = read_json(file) if file.is_file() else {}
            if kept.get("key") != key:
                model, tokenizer, _ = models.open(name)
                result = measure(plan, model, tokenizer, options.batch_size)["tasks"][task]
                kept = {"key": key, "parameters": model.num_parameters(), "result": result}
                write_json(file, kept)
            found[name][task] = kept["result"] | {"parameters": kept["parameters"]}
            say(f"{name}, {task}: {_summary(kept['result'])}")
    return found


def speeds(models: Models, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second and memory, all models in turn, from the file where it is finished."""
    file = options.output / "speed.json"
    key = {"weights": models.digests, "versions": versions(), "machine": hardware.describe()}
    kept = read_json(file) if file.is_file() else {}
    if kept.get("key") != key:
        opened = {name: models.open(name, alone=False).model for name in models.paths}
        kept = {"key": key, "result": measure_generation(opened)}
        write_json(file, kept)
    result: dict[str, Any] = kept["result"]
    return result


def _summary(result: dict[str, Any]) -> str:
    figures = (f"{metric} {_value(metric, each)}" for metric, each in result["metrics"].items())
    return f"{', '.join(figures)} ({result['examples']:,} of {result['available']:,}, {result['seconds']:.0f} s)"


def _value(metric: str, figure: dict[str, Any] | None) -> str:
    """A figure with its standard error; shares in per cent."""
    if figure is None or figure["value"] is None:
        return "-"
    scale = 1 if metric in LOWER_IS_BETTER else 100
    error = "" if figure["stderr"] is None else f" ± {scale * figure['stderr']:.2f}"
    return f"{scale * figure['value']:.2f}{error}"


def table(
    columns: list[tuple[str, str, str]],
    found: dict[str, dict[str, Any]],
    students: list[str],
    paper: list[tuple[str, list[float]]],
    paper_teacher: list[float],
) -> list[list[str]]:
    """A table's rows: the header, the paper's with what its students keep, then ours likewise."""
    rows = [["", *(name for name, _, _ in columns)]]
    for name, values in paper:
        rows.append([name, *(f"{value:.2f}" for value in values)])
        if "student" in name:
            kept = [
                t / v if metric in LOWER_IS_BETTER else v / t
                for v, t, (_, _, metric) in zip(values, paper_teacher, columns, strict=True)
            ]
            rows.append(["- of its teacher, %", *(f"{100 * value:.1f}" for value in kept)])
    for name in ("teacher", *students):
        mine = found[name]
        size = next((f", {each['parameters'] / 1e6:.0f}M" for each in mine.values()), "")
        cells = [_value(metric, mine[task]["metrics"][metric] if task in mine else None) for _, task, metric in columns]
        rows.append([f"{name}{size}", *cells])
        if name != "teacher":
            kept_ours = {task: retention(mine[task], found["teacher"][task]) for task in mine}
            cells = [_value("", kept_ours[task][metric] if task in mine else None) for _, task, metric in columns]
            rows.append(["- of the teacher, %", *cells])
    return rows


def markdown(title: str, rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"### {title}", "", lines[0], "|---" * len(rows[0]) + "|", *lines[1:], ""])


def speed_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = [["", "batch", "prompt tokens/s", "new tokens/s", "MB above the weights"]]
    for name, batches in found.items():
        for batch, each in batches.items():
            cells = [_span(each[key], 1) for key in ("prompt_tokens_per_second", "new_tokens_per_second")]
            rows.append([name, batch.removeprefix("batch_"), *cells, _span(each["peak_bytes"], 1e6)])
    return rows


def _span(figure: dict[str, float] | None, unit: float) -> str:
    if figure is None:
        return "-"
    return f"{figure['median'] / unit:.1f} ({figure['low'] / unit:.1f} to {figure['high'] / unit:.1f})"


def _pairs(words: list[str], what: str) -> dict[str, str]:
    for word in words:
        if "=" not in word:
            raise InputError(f"--{what} {word}: give NAME=MODEL")
    return dict(word.split("=", 1) for word in words)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--students", nargs="*", default=[], metavar="NAME=MODEL")
    parser.add_argument("--temperatures", nargs="*", default=[], metavar="T=MODEL")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args(words)
    students = _pairs(options.students, "students")
    temperatures = {f"T={name}": path for name, path in _pairs(options.temperatures, "temperatures").items()}
    models = Models({"teacher": options.teacher, **students, **temperatures})
    wanted = list(dict.fromkeys(task for _, task, _ in (*LANGUAGE, *QUESTIONS)))
    tasks = options.tasks or [task for task in wanted if task in available_benchmarks(options.data)]
    for task in set(wanted) - set(tasks):
        say(f"{task} is left out: no files of it, or not asked for")
    options.output.mkdir(parents=True, exist_ok=True)
    found = scores(models, tasks, options)
    groups = {"": list(students), ", by temperature": list(temperatures)}
    tables = {
        name + suffix: table(columns, found, names, PAPER[name + suffix], PAPER[name][TEACHER_ROW][1])
        for suffix, names in groups.items()
        for name, columns in (("language", LANGUAGE), ("questions", QUESTIONS))
    }
    result: dict[str, Any] = {
        "machine": hardware.describe(),
        "versions": versions(),
        "settings": {key: getattr(options, key) for key in ("limit", "shots", "seed", "batch_size")},
        "paper": SOURCE,
        "scores": {
            name: {
                task: {key: each[key] for key in ("metrics", "examples", "available", "parameters", "seconds")}
                for task, each in mine.items()
            }
            for name, mine in found.items()
        },
    }
    if options.speed:
        result["speed"] = speeds(models, options)
        tables["speed"] = speed_rows(result["speed"])
    options.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.result, result | {"tables": tables})
    for title, rows in tables.items():
        print(markdown(title, rows))


if __name__ == "__main__":
    main()
