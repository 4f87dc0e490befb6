"""One update on eight examples, in one process or several; test_training.py uses it, and runs it under torchrun."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conftest import LABELS, make_model, make_reviews, make_tokenizer
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from limbeck import hardware
from limbeck.checkpoints import Checkpoint
from limbeck.data import Splits
from limbeck.knowledge import label_texts, store
from limbeck.objectives import build_terms
from limbeck.recipe import load
from limbeck.recipe.terms import Objectives
from limbeck.signals import Signals
from limbeck.tasks import Task, collate, encode
from limbeck.teachers import HuggingFaceModel
from limbeck.training import DistillationTrainer, Teaching, Trained, train_stages

TWO = Task("classification", LABELS)
SHARD_ROWS = 3
UNEVEN = ((3, 8, 1), (3, 7, 1), (1, 7, 2), (2, 7, 1))
"""Examples a process, in all, and parts of an update: two epochs' worth of updates, of which the last is smaller."""
CERTAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}


def objective() -> Objectives:
    """Both terms."""
    return Objectives(soft_targets={"weight": 0.7, "temperature": 3}, hard_labels=0.3)


def mixed_examples() -> Dataset:
    """Eight examples of differing lengths; five of them without a label, unevenly."""
    rows = make_reviews(8, seed=11)
    known = (0, 3, 6)
    labels = [LABELS.index(row["label"]) if i in known else -100 for i, row in enumerate(rows)]
    return Dataset.from_dict({"text": [row["text"] for row in rows], "label": labels})


class Said:
    """A teacher's logits by row."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def signals(self, batch: dict[str, torch.Tensor]) -> Signals:
        return Signals(self.logits[batch["row"]])


def said_by_teacher() -> Said:
    return Said(torch.randn(8, 2, generator=torch.Generator().manual_seed(3)) * 2)


class Gradient(TrainerCallback):
    """Keeps the gradient of the last update as the optimiser is about to see it."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = {name: parameter.grad.clone() for name, parameter in kwargs["model"].named_parameters()}


def capture_gradient(
    folder: Path,
    batch_size: int,
    accumulation: int,
    steps: int = 1,
    learning_rate: float = 1e-3,
    every: int = 1,
    bf16: bool = False,
    examples: int = 8,
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Train on the eight examples, or the first of them; the last update's gradient and what was logged."""
    tokenizer, gradient = make_tokenizer(), Gradient()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=learning_rate,
        max_grad_norm=0,
        logging_steps=every,
        train_sampling_strategy="sequential",
        save_strategy="no",
        eval_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        use_cpu=True,
        bf16=bf16,
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(
        terms=build_terms(objective(), TWO),
        source=said_by_teacher(),
        model=make_model(**CERTAIN),
        args=arguments,
        train_dataset=encode(mixed_examples().select(range(examples)), tokenizer, TWO, 32),
        data_collator=partial(collate, tokenizer=tokenizer),
        processing_class=tokenizer,
        callbacks=[gradient],
    )
    trainer.train()
    return gradient.found, [entry for entry in trainer.state.log_history if "loss" in entry]


def label_eleven(folder: Path) -> None:
    """Ask a teacher about eleven examples: four shards of `SHARD_ROWS`, the last of two."""
    teacher = HuggingFaceModel(Checkpoint(make_model(seed=5), make_tokenizer(), "teacher"), TWO, 32)
    texts = Dataset.from_list([{"text": row["text"]} for row in make_reviews(11, seed=2)])
    label_texts(teacher, texts, TWO, folder / "knowledge")


def train_on_eight(folder: Path, batch_size: int) -> Trained:
    """A stage of two epochs on the eight examples, to its end."""
    settings = {"epochs": 2, "batch_size": batch_size, "learning_rate": 1e-3, "precision": "float32"}
    stage = {"name": "hinton", "objectives": objective().model_dump()}
    recipe = load(
        {"data": "unused", "teacher": "unused", "output": str(folder / "run"), "stages": [stage], "training": settings}
    )
    table = mixed_examples()
    known = table.filter(lambda row: row["label"] >= 0)
    student = Checkpoint(make_model(**CERTAIN), make_tokenizer(), "student")
    splits = Splits(known, known, known, table)
    return train_stages("student", student, recipe.stages, recipe, TWO, splits, Teaching(said_by_teacher()))


def main(folder: Path) -> None:
    """What each of the test's processes does."""
    rank = hardware.processes().process_index
    store.SHARD_ROWS = SHARD_ROWS
    label_eleven(folder)
    for batch_size, accumulation in ((4, 1), (2, 2)):
        gradient, history = capture_gradient(folder / "trainer", batch_size, accumulation)
        torch.save({"gradient": gradient, "history": history}, folder / f"{batch_size}x{accumulation}-{rank}.pt")
    for batch_size, accumulation in ((4, 1), (2, 2)):
        gradient, _ = capture_gradient(folder / "trainer", batch_size, accumulation, bf16=True)
        torch.save(gradient, folder / f"bfloat16-{batch_size}x{accumulation}-{rank}.pt")
    for size, examples, accumulation in UNEVEN:
        gradient, history = capture_gradient(folder / "trainer", size, accumulation, 2, 0.0, examples=examples)
        torch.save({"gradient": gradient, "history": history}, folder / f"last-{size}-{examples}-{rank}.pt")
    train_on_eight(folder, 4)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
