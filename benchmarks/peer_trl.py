"""Limbeck against TRL's offline GKD: tokens per second and memory of the same training, in one interleaved run.

    python benchmarks/peer_trl.py --teacher MODEL --data TEXT_OR_CONVERSATIONS [--work .cache/peer_trl]

Same teacher, same student (every second of its layers), same examples in the same batches and order, same optimiser,
schedule, precision and threads; the forward KL divergence at every token that is to be predicted, at temperature 1.

- `limbeck`: the recipe `word-kd` on soft targets alone, as it comes: the teacher is asked once, some words are kept.
- `limbeck, teacher along`: the same with `teacher.words=nothing`, all words of a teacher that is run on each batch.
- `trl`: `GKDTrainer` with `lmbda=0`, `beta=0` and without gradient checkpointing, which makes it faster. Of TRL's
  trainers that learn from given answers it is the one for a common vocabulary; its `DistillationTrainer` learns from
  the student's own answers alone.
- `..., checkpointing`: with gradient checkpointing, TRL's default. Its other default, bfloat16, both sides use where
  the hardware computes in it. Neither uses Liger's kernels, which need a GPU.

Every measurement is a process of its own, in turn: round by round each side once. A process trains `1 + --steps`
updates through the side's own trainer, validation and checkpoints off. Seconds are from the end of one update to the
end of the next, the first not counted. Peak memory is the resident set's high-water mark (on CUDA what is allocated)
over all updates, less what is held just before the first: both models are loaded and touched by then, so it holds
activations, logits, gradients and the optimiser's moments. Asking the teacher is timed as a whole, tokenising and
fingerprints included, and counted fully against one epoch and a third against each of three.

After every round it is checked that the job is the same: the first loss of both trainers agrees to 1e-4 where all
words are kept (a process of its own, not timed), and so does every loss where the teacher runs along.

What is measured is kept in the folder `--work`, so that the same command goes on. Needs the extra `bench`. Writes
benchmarks/results/peer_trl.json, where plain text and conversations each have a place.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback

from limbeck import data, hardware, preparing, recipe
from limbeck import run as line
from limbeck.checkpoints import Checkpoint, open_causal
from limbeck.evaluation.memory import PeakMemory
from limbeck.folder import RunFolder, fingerprint
from limbeck.recipe.data import Source
from limbeck.students.layers import keep_layers
from limbeck.tasks.causal_lm import chat_tokens
from limbeck.training import Teaching
from limbeck.training.checkpointing import save_model
from limbeck.training.lessons import prepare_lesson
from limbeck.training.phases import phases_of
from limbeck.training.stages import recomputed, trainer_for
from limbeck.training.trainer import LengthGroupedByEpoch
from limbeck.training.words import encode_language

KEPT = {
    "limbeck": "head_and_tail",
    "limbeck, checkpointing": "head_and_tail",
    "limbeck, teacher along": "nothing",
    "limbeck, all words kept": "dense",
}
PEERS = ("trl", "trl, checkpointing")
TIMED = ("trl", "limbeck", "limbeck, teacher along", "trl, checkpointing", "limbeck, checkpointing")
TOLERANCE = 1e-4


class Watch(TrainerCallback):
    """When each update ended, and the most memory above what is held before the first."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.peak: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember what is held."""
        self.memory = PeakMemory(hardware.device())
        if self.memory.read() is None:
            raise SystemExit("this system does not tell a process's peak memory; Linux does, and CUDA")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time."""
        if hardware.device().type == "cuda":
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))
        self.peak = self.memory.read()

    def figures(self, trainer: Any) -> dict[str, Any]:
        """What is kept of a process."""
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        seconds, of_processors = np.diff(np.array(self.ends).T).tolist()
        figures = {"seconds": seconds, "processor_seconds": of_processors, "peak_bytes": self.peak}
        return figures | {"losses": losses}


def rules_of(options: argparse.Namespace, place: Path, side: str, output: str) -> recipe.Recipe:
    """The recipe of Limbeck's side, whose training settings TRL's side takes, too."""
    settings = {
        "teacher.model": str(place / "teacher"),
        "teacher.words": KEPT.get(side, "nothing"),
        "teacher.batch_size": options.batch,
        "student.model": str(place / "student"),
        "data.train": str(place / "train.jsonl"),
        "data.validation": str(place / "held.jsonl"),
        "data.test": str(place / "held.jsonl"),
        "task.max_length": options.length,
        "stages.distill.objectives.soft_targets": {"form": "kl", "temperature": 1},
        "training.batch_size": options.batch,
        "training.gradient_checkpointing": side.endswith("checkpointing"),
        "evaluation.examples": 1,
        "baseline": False,
        "seed": options.seed,
        "output": output,
    }
    if side == "limbeck, checkpointing":  # what asking costs is measured without it
        settings["knowledge"] = str(place / "knowledge")
    return recipe.load("word-kd", settings)


def limbeck_side(options: argparse.Namespace, place: Path, side: str) -> dict[str, Any]:
    """Ask the teacher where its words are kept, then train on what it said."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        rules = rules_of(options, place, side, f"{folder}/run")
        ready = preparing.prepare(rules, {}, RunFolder(Path(rules.output)))
        knowledge, asking = None, {}
        if ready.plan.stored:
            memory, started = PeakMemory(hardware.device()), time.perf_counter()
            knowledge = line.ask_teacher(rules, ready)
            asking = {"asking_seconds": time.perf_counter() - started, "asking_peak_bytes": memory.read()}
        (phase,) = phases_of(rules.stages, rules, ready.student.model.config.num_hidden_layers)
        lesson = prepare_lesson(
            phase, ready.student, rules, ready.task, ready.splits, Teaching(knowledge, ready.teachers)
        )
        with recomputed(lesson.model, rules.training.gradient_checkpointing):
            trainer = trainer_for(lesson, phase, rules, ready.task, ready.student, Path(folder) / "stage")
            trainer.args.eval_strategy = trainer.args.save_strategy = "no"
            watch = Watch()
            trainer.add_callback(watch)
            trainer.train()
        lesson.close()
        return asking | watch.figures(trainer)


def trl_side(options: argparse.Namespace, place: Path, side: str) -> dict[str, Any]:
    """The same examples in the same order through TRL's own collator and trainer."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    with tempfile.TemporaryDirectory(dir=place) as folder:
        rules = rules_of(options, place, side, folder)
        training, precision = rules.training, hardware.pick_precision()
        student, teacher = (open_causal(str(place / name)) for name in ("student", "teacher"))
        for weight in (*student.model.parameters(), *teacher.model.parameters()):
            weight.abs().sum()  # what is mapped from a file is read now, not in the first update
        examples = [
            {
                "prompt": "",  # where it ends is told by the mask
                "input_ids": row["input_ids"],
                "completion_mask": [0] * row["first"] + [1] * (row["length"] - row["first"]),
            }
            for row in ordered(rules, student)
        ]
        tokenizer = student.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        settings = GKDConfig(
            output_dir=folder,
            lmbda=0.0,
            beta=0.0,
            seq_kd=False,
            gradient_checkpointing=training.gradient_checkpointing,
            max_length=options.length,
            num_train_epochs=1,
            per_device_train_batch_size=options.batch,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.schedule,
            warmup_steps=training.warmup,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            optim="adamw_torch_fused",
            bf16=precision == "bfloat16",
            fp16=precision == "float16",
            use_cpu=hardware.device().type == "cpu",
            train_sampling_strategy="sequential",
            eval_strategy="no",
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            seed=rules.seed,
        )
        trainer = GKDTrainer(
            model=student.model,
            teacher_model=teacher.model.to(hardware.device()),
            args=settings,
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
        )
        watch = Watch()
        trainer.add_callback(watch)
        trainer.train()
        return watch.figures(trainer)


def table_of(source: Source) -> Dataset:
    """Plain text or conversations, as Limbeck reads them."""
    table = data.read(source, "train")
    return data.read_chat(table) if data.is_chat(table) else data.read_corpus(source)


def ordered(rules: recipe.Recipe, student: Checkpoint) -> list[dict[str, Any]]:
    """Limbeck's examples in the order in which its trainer takes them."""
    encoded = encode_language(table_of(rules.data.train), student, rules.task)
    lengths = encoded["length"][:]
    return [encoded[row] for row in LengthGroupedByEpoch(rules.training.batch_size, lengths, rules.seed, lambda: 0)]


def pick(table: Dataset, order: Iterator[int], count: int, length: int, tokenizer: Any) -> list[int]:
    """Rows, in this order, that make just so many examples."""
    chosen, filled = [], 0
    for row in order:
        if filled >= count * length:
            break
        if "messages" in table.column_names:
            prompt, answer = chat_tokens(table[row]["messages"], tokenizer)
            taken = length if answer and len(prompt) < length else 0  # an example each
        else:
            taken = len(tokenizer(table[row]["text"], add_special_tokens=False)["input_ids"]) + 1
        if taken and filled + taken < (count + 1) * length:
            chosen.append(row)
            filled += taken
    return chosen


def set_up(options: argparse.Namespace, place: Path) -> None:
    """Models and examples as files, the same for every process."""
    teacher = open_causal(options.teacher)
    student = keep_layers(teacher.model, list(range(0, teacher.model.config.num_hidden_layers, 2)))
    table = table_of(Source(path=options.data))
    order = iter(np.random.default_rng(options.seed).permutation(len(table)).tolist())
    count = options.batch * (1 + options.steps)
    for name, examples in (("held", 1), ("train", count)):
        rows = pick(table, order, examples, options.length, teacher.tokenizer)
        table.select(rows).to_json(place / f"{name}.jsonl")
    for name, model in (("teacher", teacher.model), ("student", student)):
        save_model(Checkpoint(model, teacher.tokenizer, ""), place / name)
    encoded = ordered(rules_of(options, place, "trl", "unused"), teacher)
    if len(encoded) != count:
        raise SystemExit(f"{options.data} makes {len(encoded)} examples of {options.length} tokens; {count} are needed")
    told = {
        "kind": "conversations" if "messages" in table.column_names else "plain text",
        "tokens": [
            sum(row["length"] for row in step)
            for step in (encoded[k : k + options.batch] for k in range(0, count, options.batch))
        ],
        "predicted": sum(row["length"] - row["first"] for row in encoded),
        "teacher": {"name": Path(options.teacher).name, "parameters": teacher.model.num_parameters()},
        "student": {"layers": student.config.num_hidden_layers, "parameters": student.num_parameters()},
    }
    (place / "job.json").write_text(json.dumps(told))


def check(rounds: list[dict[str, dict[str, Any]]], kept: dict[str, Any]) -> float:
    """The largest difference of two losses that should be equal.

    Raises:
        SystemExit: it is not the same job.
    """
    pairs = [(kept["losses"][0], rounds[0]["trl"]["losses"][0])]
    for found in rounds:
        pairs += zip(found["limbeck, teacher along"]["losses"], found["trl"]["losses"], strict=True)
        pairs += zip(found["trl, checkpointing"]["losses"], found["trl"]["losses"], strict=True)
        pairs += zip(found["limbeck, checkpointing"]["losses"], found["limbeck"]["losses"], strict=True)
    worst = max(abs(a - b) for a, b in pairs)
    if not worst <= TOLERANCE:
        raise SystemExit(f"the losses differ by {worst:.1e}, so this is not the same job: {pairs}")
    return worst


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summary(rounds: list[dict[str, dict[str, Any]]], tokens: list[int]) -> dict[str, Any]:
    """Tokens a second and bytes of each side, and Limbeck's over TRL's, round by round."""
    timed = sum(tokens[1:])
    rates: dict[str, list[float]] = {side: [timed / sum(found[side]["seconds"]) for found in rounds] for side in TIMED}
    asking = [sum(tokens) / found["limbeck"]["asking_seconds"] for found in rounds]
    for epochs in (1, 3):
        rates[f"limbeck, asking and {epochs} epoch{'s' * (epochs > 1)}"] = [
            epochs / (epochs / trained + 1 / asked) for trained, asked in zip(rates["limbeck"], asking, strict=True)
        ]
    peaks: dict[str, list[float]] = {side: [found[side]["peak_bytes"] for found in rounds] for side in TIMED}
    peaks["limbeck, asking"] = [found["limbeck"]["asking_peak_bytes"] for found in rounds]

    def over(values: dict[str, list[float]]) -> dict[str, Any]:
        return {
            f"{ours} over {theirs}": spread([a / b for a, b in zip(values[ours], values[theirs], strict=True)])
            for ours in values
            for theirs in PEERS
            if ours not in PEERS
        }

    return {
        "tokens per second": {side: spread(each) for side, each in (rates | {"limbeck, asking": asking}).items()},
        "peak bytes above the weights": {side: spread(each) for side, each in peaks.items()},
        "speed": over(rates),
        "memory": over(peaks),
    }


def measured(options: argparse.Namespace, place: Path, side: str, name: str) -> dict[str, Any]:
    """A side's figures, from a process of its own or from an earlier start of this command."""
    file = place / f"{name}.json"
    if not file.exists():
        print(f"{name} ...", file=sys.stderr, flush=True)
        own = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--into", str(file)]
        subprocess.run(own, check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="a folder or a .gguf file")
    parser.add_argument("--data", required=True, help="a table of plain text or of conversations")
    parser.add_argument("--length", type=int, default=512, help="tokens of an example")
    parser.add_argument("--batch", type=int, default=8, help="examples of an update")
    parser.add_argument("--steps", type=int, default=1, help="updates that are timed in each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".cache/peer_trl"))
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/peer_trl.json"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    job = {name: getattr(options, name) for name in ("teacher", "data", "length", "batch", "steps", "seed")}
    place = options.work / fingerprint(job)[:12]
    if options.side == "set up":
        set_up(options, place)
        return
    if options.side:
        side = limbeck_side if options.side in KEPT else trl_side
        found = side(options, place, options.side)
        options.into.write_text(json.dumps(found | {"machine": hardware.describe()}))
        return
    place.mkdir(parents=True, exist_ok=True)
    told = measured(options, place, "set up", "job")
    kept = measured(options, place, "limbeck, all words kept", "all words kept")
    rounds = []
    for number in range(1, options.rounds + 1):
        rounds.append({side: measured(options, place, side, f"{side} {number}") for side in TIMED})
        worst = check(rounds, kept)
    versions = {name: hardware.version(name) for name in ("limbeck", "trl", "transformers", "accelerate", "torch")}
    named = {"teacher": Path(options.teacher).name, "data": "/".join(Path(options.data).parts[-2:])}
    result = {
        "machine": rounds[0]["trl"]["machine"],
        "versions": versions,
        "options": {**job, **named, "rounds": options.rounds},
        "job": told,
        "largest difference of losses": worst,
        **summary(rounds, told["tokens"]),
        "rounds": rounds,
    }
    jobs = json.loads(options.result.read_text()) if options.result.exists() else {}
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(jobs | {told["kind"]: result}, indent=1) + "\n")
    print(json.dumps({name: result[name] for name in ("tokens per second", "speed", "memory")}, indent=1))


if __name__ == "__main__":
    main()
