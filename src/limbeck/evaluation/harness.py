"""Benchmarks for causal language models, through lm-eval (the `harness` extra).

Prompts, answers and scores are those of lm-eval's own tasks; ours are only the files that they may be read from
(`benchmark_files`), the draw of examples and the standard errors.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from datasets.utils import logging as datasets_logging
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck import __version__, extras, hardware
from limbeck.errors import InputError
from limbeck.evaluation.benchmark_files import BENCHMARKS, ENDINGS, find_file, read_split
from limbeck.recipe.sections import nearest

LOWER_IS_BETTER = ("perplexity",)
SPARE_TOKENS, MOST_TOKENS = 8, 256


class Loaded(NamedTuple):
    """A benchmark that is ready to be run.

    Attributes:
        name: a key of `BENCHMARKS`.
        task: lm-eval's task with its examples.
        source: the file, or the hub's data set.
        drawn: numbers of the examples to measure, ascending.
        available: how many there are.
    """

    name: str
    task: Any
    source: str
    drawn: list[int]
    available: int


class Plan(NamedTuple):
    """What to measure: nothing about it can be wrong any more. The same for every model."""

    benchmarks: list[Loaded]
    settings: dict[str, Any]


def plan_benchmarks(
    names: Sequence[str] | None = None,
    data: Path | None = None,
    limit: int | None = None,
    shots: int = 0,
    seed: int = 0,
) -> Plan:
    """Read benchmarks and draw their examples, for `measure`.

    Args:
        names: keys of `BENCHMARKS`; all that `data` has files of when not given.
        data: a folder as docs/benchmarks.md describes; the hub's data sets, as lm-eval reads them, when not given.
        limit: how many examples of each benchmark, drawn by `seed`; all when not given.
        shots: examples with their answers in the prompt, drawn by `seed` from another split than the measured one.
        seed: fixes both draws, alike for every model.

    Raises:
        InputError: lm-eval is not installed, an unknown name, a missing file, wrong columns.
    """
    if shots < 0:
        raise InputError(f"shots is {shots}; give 0 or more examples")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; give 1 or more examples of each benchmark")
    for name in names or []:
        if name not in BENCHMARKS:
            raise InputError(f"no benchmark '{name}'; {nearest(name, list(BENCHMARKS))}")
    if data is not None and not data.is_dir():
        raise InputError(f"no folder '{data}' with benchmarks; see docs/benchmarks.md for what it holds")
    chosen = list(dict.fromkeys(names)) if names else available_benchmarks(data)
    files = {name: _files(name, data, shots) for name in chosen} if data else {}
    extras.require("harness", "measuring benchmarks")
    with _quiet():
        loaded = [_load(name, files.get(name), limit, shots, seed) for name in chosen]
    settings = {"data": str(data) if data else "hub", "limit": limit, "shots": shots, "seed": seed}
    return Plan(loaded, settings)


def measure(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 8
) -> dict[str, Any]:
    """Measure a causal language model on published benchmarks.

    Args:
        plan: what to measure.
        model: on the device and in the precision that it is to be measured in; not changed.
        tokenizer: the model's; not changed.
        batch_size: examples computed at a time.

    Returns:
        `versions` and `settings`, and by benchmark in `tasks`: `task` and `version` (lm-eval's), `source`, `examples`
        of `available`, `metrics` with `value` and `stderr` (none of a single example), `scores` (by metric, one number
        per example in the file's order; of perplexity the log-probability of the last word, in nats) and `seconds`.
        `acc`, `acc_norm` and `exact_match` are shares from 0 to 1.

    Raises:
        InputError: the tokenizer has no end.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token; set tokenizer.eos_token and save it again")
    training, found = model.training, {}
    with _quiet():
        # lm-eval sets the padding token and side of the tokenizer that it gets
        wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_size)
        for name, task, source, drawn, available in plan.benchmarks:
            started = time.perf_counter()
            task.set_config(key="num_fewshot", value=plan.settings["shots"])
            task.set_fewshot_seed(seed=plan.settings["seed"])
            if task.OUTPUT_TYPE == "generate_until":
                longest = _answer_tokens(task, drawn, tokenizer)
                task.set_config(key="generation_kwargs", value={"max_gen_toks": longest}, update=True)
            # lm-eval's own standard error of perplexity resamples 100,000 times; ours is `_figure`
            some = {name: drawn} if len(drawn) < available else None
            answer = evaluate(wrapped, {"tasks": {name: task}}, samples=some, bootstrap_iters=0)
            scores = _scores(answer["samples"][name], list(task.aggregation()))
            found[name] = {
                "task": BENCHMARKS[name].task,
                "version": task.VERSION,
                "source": source,
                "examples": len(drawn),
                "available": available,
                "metrics": {metric: _figure(metric, np.array(values)) for metric, values in scores.items()},
                "scores": scores,
                "seconds": time.perf_counter() - started,
            }
    model.train(training)
    machine = {"batch_size": batch_size, "device": model.device.type, "dtype": str(model.dtype).split(".")[-1]}
    return {"versions": versions(), "settings": plan.settings | machine, "tasks": found}


def draw(available: int, limit: int | None, seed: int) -> list[int]:
    """The examples that are measured, in the file's order: files are often sorted by kind, so not the first ones."""
    if limit is None or limit >= available:
        return list(range(available))
    return sorted(np.random.default_rng(seed).choice(available, limit, replace=False).tolist())


def retention(student: dict[str, Any], teacher: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """How much of the teacher's score the student keeps, by metric, with the standard error of the paired ratio.

    The student's over the teacher's; of perplexity, where less is better, the teacher's over the student's. Standard
    errors by the delta method over the examples, which must be the same ones.

    Args:
        student: an entry of `tasks` (see `measure`).
        teacher: the same benchmark's entry of the teacher.

    Raises:
        InputError: other examples.
    """
    found: dict[str, dict[str, float | None]] = {}
    for metric, values in student["scores"].items():
        mine, theirs = np.array(values, np.float64), np.array(teacher["scores"][metric], np.float64)
        if len(mine) != len(theirs):
            raise InputError(f"{len(mine)} examples of the student, {len(theirs)} of the teacher; measure both alike")
        if metric in LOWER_IS_BETTER:
            ratio = float(np.exp(mine.mean() - theirs.mean()))
            found[metric] = {"value": ratio, "stderr": _standard_error(ratio * (mine - theirs))}
        elif theirs.any():
            ratio = float(mine.mean() / theirs.mean())
            found[metric] = {"value": ratio, "stderr": _standard_error((mine - ratio * theirs) / theirs.mean())}
        else:
            found[metric] = {"value": None, "stderr": None}
    return found


def versions() -> dict[str, str]:
    """The packages that figures depend on."""
    packages = {name: hardware.version(name) for name in ("lm_eval", "transformers", "torch", "datasets")}
    return {"limbeck": __version__, **packages}


# --- loading ------------------------------------------------------------------------------------------------------


def available_benchmarks(data: Path | None) -> list[str]:
    """The benchmarks that a folder has files of; without one all but StoryCloze, which is given on request only.

    Raises:
        InputError: the folder has none.
    """
    if data is None:
        return [name for name in BENCHMARKS if name != "storycloze"]
    found = [name for name, benchmark in BENCHMARKS.items() if find_file(data, name, benchmark.measured)]
    if not found:
        raise InputError(f"{data} holds no benchmark, such as lambada/test.jsonl; see docs/benchmarks.md for the files")
    return found


def _files(name: str, data: Path, shots: int) -> dict[str, Path]:
    """The files of a benchmark by the names that its task gets for them: `test`, and `train` where there is one."""
    benchmark = BENCHMARKS[name]
    measured = find_file(data, name, benchmark.measured)
    if measured is None:
        raise InputError(
            f"no file {data / name / benchmark.measured}{ENDINGS[0]} (or {', '.join(ENDINGS[1:])}); "
            "see docs/benchmarks.md for what it holds"
        )
    shown = next((path for split in benchmark.shown if (path := find_file(data, name, split))), None)
    if shots and shown is None:
        splits = " or ".join(f"{split}{ENDINGS[0]}" for split in benchmark.shown)
        raise InputError(
            f"{name} with {shots} shots needs {splits} in {data / name}: examples in the prompt are never drawn from "
            "those that are measured; add the file or take --shots 0"
        )
    return {"test": measured} | ({"train": shown} if shots and shown else {})


def _load(name: str, files: dict[str, Path] | None, limit: int | None, shots: int, seed: int) -> Loaded:
    import lm_eval
    from lm_eval.tasks import TaskManager

    benchmark = BENCHMARKS[name]
    changes: dict[str, Any] = {}
    if name == "webquestions":
        # Its target is a list of numbers, which lm-eval 0.4 cannot put into a prompt; the first accepted answer can.
        changes["fewshot_config"] = {"doc_to_target": _first_answer}
    if files:
        tables = {split: Dataset.from_list(read_split(path, benchmark)) for split, path in files.items()}
        _require_examples(name, shots, len(tables["train"]) if "train" in tables else 0)
        changes |= {
            "custom_dataset": lambda **_: tables,
            "training_split": "train" if "train" in tables else None,
            "validation_split": None,
            "test_split": "test",
        }
    # The folder of one task instead of all 14,000 files of lm-eval, which take a quarter of a minute to index.
    folder = Path(lm_eval.__file__).parent / "tasks" / benchmark.package
    manager = TaskManager(include_defaults=False, include_path=folder)
    try:
        # a group of one: the documented way to take a task with changes
        loaded = manager.load({"group": name, "task": [{"task": benchmark.task, **changes}]})
    except Exception as error:  # no connection, a data set that moved; datasets raises a dozen kinds
        if files:
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the hub did not give {name}: {reason}; give a folder of files with --data (docs/benchmarks.md)"
        ) from None
    task = loaded["tasks"][benchmark.task]
    if not files and shots:
        measured = task.config.test_split or task.config.validation_split
        shown = task.config.training_split or task.config.validation_split
        if shown in (None, measured):
            raise InputError(f"the hub's {name} has no other examples than the measured ones; take --shots 0")
        _require_examples(name, shots, len(task.fewshot_docs()))
    source, available = str(files["test"]) if files else str(task.config.dataset_path), len(task.eval_docs)
    return Loaded(name, task, source, draw(available, limit, seed), available)


def _require_examples(name: str, shots: int, there: int) -> None:
    if shots > there:
        raise InputError(f"{name} has {there} examples for the prompt, {shots} shots were asked for")


def _first_answer(row: dict[str, Any]) -> str:
    return str(row["answers"][0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of lm-eval about models in memory and few shots, and the bars of `datasets`."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets_logging.enable_progress_bar()


def _answer_tokens(task: Any, drawn: list[int], tokenizer: PreTrainedTokenizerBase) -> int:  # noqa: ANN401
    """Tokens after which an answer that still goes on is longer than all that are accepted, so surely wrong.

    lm-eval's own 256 cost a model that does not stop by itself many times the time, for the same scores.
    """
    accepted = [answer for row in task.eval_docs.select(drawn) for answer in _as_list(task.doc_to_target(row))]
    longest = max(len(ids) for ids in tokenizer(accepted, add_special_tokens=False)["input_ids"])
    return min(longest + SPARE_TOKENS, MOST_TOKENS)


def _as_list(answers: str | list[str]) -> list[str]:
    return answers if isinstance(answers, list) else [answers]


# --- figures ------------------------------------------------------------------------------------------------------


def _scores(samples: list[dict[str, Any]], metrics: list[str]) -> dict[str, list[float]]:
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return {metric: [float(sample[metric]) for sample in ordered] for metric in metrics}


def _figure(metric: str, scores: np.ndarray) -> dict[str, float | None]:
    """A metric over examples and its standard error; of perplexity by the delta method, exp(-m) times that of m."""
    error = _standard_error(scores)
    if metric in LOWER_IS_BETTER:
        value = float(np.exp(-scores.mean()))
        return {"value": value, "stderr": None if error is None else value * error}
    return {"value": float(scores.mean()), "stderr": error}


def _standard_error(scores: np.ndarray) -> float | None:
    return float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
