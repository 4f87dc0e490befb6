"""Limbeck against TextBrewer 0.2.1's GeneralDistiller: the whole training of one student, in one interleaved run.

    python benchmarks/peer_textbrewer.py --teacher runs/demo/teacher/model --data .cache/demo/reviews.csv

Same teacher, student (half of the teacher's layers), sentences, batch size and epochs. Limbeck's time holds
tokenising, asking the teacher once, training, a validation and a checkpoint per epoch. TextBrewer's holds
tokenising, training with its teacher in the loop and its checkpoint per epoch. TextBrewer runs in two settings:
`max_length`, as its own SST-2 notebook does it (every sentence padded to 128 tokens), and `longest`, which that
notebook does not show: padding per batch. Needs the extra `bench`. Prints JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch.utils.data import DataLoader, RandomSampler
from transformers import get_linear_schedule_with_warmup

from limbeck import data, hardware, recipe
from limbeck.checkpoints import Checkpoint, label_names, open_classifier
from limbeck.data import Splits
from limbeck.preparing import Prepared
from limbeck.run import ask_teacher, train
from limbeck.students import build_student

BATCH, EPOCHS, RATE = 16, 3, 1e-4  # the demo's


def limbeck_seconds(rules: recipe.Recipe, ready: Prepared, folder: str) -> float:
    """Ask the teacher once, then train on what it said."""
    rules = rules.model_copy(update={"output": folder})
    mine = Prepared(ready.task, ready.splits, ready.teachers, copy.deepcopy(ready.student))
    started = time.perf_counter()
    train(rules, mine, ask_teacher(rules, mine.teachers, mine.task, mine.splits.transfer))
    return time.perf_counter() - started


def textbrewer_seconds(ready: Prepared, folder: str, padding: str) -> float:
    """As in TextBrewer's examples/notebook_examples/sst2.ipynb, with logits as the only feature."""
    teacher, student = ready.teachers[0].model, copy.deepcopy(ready.student.model)
    tokenizer = ready.teachers[0].tokenizer
    teacher.cpu().eval()
    started = time.perf_counter()
    texts, labels = ready.splits.train["text"][:], ready.splits.train["label"][:]
    fixed = {"padding": "max_length", "max_length": 128} if padding == "max_length" else {"padding": False}
    encoded = tokenizer(texts, truncation=True, **fixed)
    examples = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        gold = torch.tensor([example["labels"] for example in batch])
        inputs = [{k: v for k, v in example.items() if k != "labels"} for example in batch]
        return {**tokenizer.pad(inputs, return_tensors="pt"), "labels": gold}

    loader = DataLoader(examples, sampler=RandomSampler(examples), batch_size=BATCH, collate_fn=collate)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    steps = len(loader) * EPOCHS
    distiller = GeneralDistiller(
        train_config=TrainingConfig(device="cpu", output_dir=folder),
        distill_config=DistillationConfig(temperature=2, kd_loss_weight=0.9, hard_label_weight=0.1),
        model_T=teacher,
        model_S=student,
        adaptor_T=lambda batch, outputs: {"logits": outputs.logits},
        adaptor_S=lambda batch, outputs: {"logits": outputs.logits, "losses": outputs.loss},
    )
    schedule = {"num_warmup_steps": int(0.1 * steps), "num_training_steps": steps}
    with distiller:
        distiller.train(
            optimizer,
            loader,
            EPOCHS,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args=schedule,
            max_grad_norm=1.0,
            callback=None,
        )
    return time.perf_counter() - started


def prepare(options: argparse.Namespace) -> tuple[recipe.Recipe, Prepared]:
    """Models and sentences, opened once for both sides."""
    rules = recipe.load(
        "hinton",
        {
            "teacher": options.teacher,
            "data": options.data,
            "output": "unused",
            "baseline": False,
            "seed": options.seed,
            "student.layers": options.layers,
            "training.learning_rate": RATE,
            "training.batch_size": BATCH,
            "training.epochs": EPOCHS,
        },
    )
    teacher: Checkpoint = open_classifier(options.teacher)
    raw = data.read_all(rules.data)
    columns = data.find_columns(raw.train, rules.data)
    task = data.resolve_task(raw.train, columns, "classification", None, label_names(teacher.model.config))
    splits = data.split(raw, columns, task, options.seed)
    kept = splits.train.select(range(options.examples))
    splits = Splits(kept, splits.validation.select(range(min(100, len(splits.validation)))), splits.test, kept)
    return rules, Prepared(task, splits, [teacher], build_student(rules.student, None, teacher, task, options.seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rules, ready = prepare(options)
    seconds: dict[str, list[float]] = {"limbeck": [], "max_length": [], "longest": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            seconds["limbeck"].append(limbeck_seconds(rules, ready, f"{folder}/run"))
            for padding in ("max_length", "longest"):
                seconds[padding].append(textbrewer_seconds(ready, f"{folder}/{padding}", padding))
    ratios = {
        name: sorted(theirs / ours for theirs, ours in zip(seconds[name], seconds["limbeck"], strict=True))
        for name in ("max_length", "longest")
    }
    result = {
        "options": {**vars(options), "batch_size": BATCH, "epochs": EPOCHS},
        "machine": hardware.describe(),
        "versions": {name: hardware.version(name) for name in ("limbeck", "textbrewer", "transformers", "torch")},
        "seconds": seconds,
        "textbrewer over limbeck": {
            name: {"median": statistics.median(each), "low": each[0], "high": each[-1]} for name, each in ratios.items()
        },
    }
    Path("benchmarks/results").mkdir(exist_ok=True)
    Path("benchmarks/results/peer_textbrewer.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
