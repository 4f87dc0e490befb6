"""Training: the gradient of a global batch, what is logged, and runs that were interrupted."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.data_loader import BatchSamplerShard
from conftest import LABELS, make_model, make_tokenizer, numbered
from datasets import Dataset
from gradients import (
    SHARD_ROWS,
    UNEVEN,
    capture_gradient,
    label_eleven,
    mixed_examples,
    objective,
    said_by_teacher,
    train_on_eight,
)
from safetensors.torch import load_file, save_file
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    get_linear_schedule_with_warmup,
)

from limbeck.checkpoints import Checkpoint, open_classifier
from limbeck.data import Splits
from limbeck.errors import InputError
from limbeck.knowledge import store
from limbeck.objectives import build_terms
from limbeck.objectives.term import examples as examples_of
from limbeck.recipe import Recipe
from limbeck.signals import Signals
from limbeck.students import build_student
from limbeck.tasks import Task, collate, encode
from limbeck.teachers import HuggingFaceModel
from limbeck.training import Teaching, checkpointing, lessons, stages, train_stages
from limbeck.training.checkpointing import last_checkpoint, link_model, save_model
from limbeck.training.order import EvenParts, unused
from limbeck.training.trainer import DistillationTrainer, on_device

TWO = Task("classification", LABELS)
TESTS = Path(__file__).parent


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


# --- one denominator ------------------------------------------------------------------------------------------------


def micro_gradient(size: int, per_micro_batch: bool = False) -> dict[str, torch.Tensor]:
    """The gradient of the eight examples by plain autograd; optionally the wrong mean of micro-batches' means."""
    model, tokenizer = make_model(), make_tokenizer()
    encoded = encode(mixed_examples(), tokenizer, TWO, 32)
    terms = build_terms(objective(), TWO)
    source = said_by_teacher()
    batches = [collate(encoded.__getitems__(list(range(i, i + size))), tokenizer) for i in range(0, 8, size)]
    counts = [sum(term.count(batch).item() for batch in batches) for term in terms]
    for batch in batches:
        logits = model(**{k: v for k, v in batch.items() if k not in ("row", "labels")}).logits
        for term, count in zip(terms, counts, strict=True):
            total = term.total(Signals(logits), source.signals(batch), batch)
            share = max(term.count(batch).item(), 1) * len(batches) if per_micro_batch else count
            (term.weight * total / share).backward(retain_graph=True)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert set(one) == set(other)
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_any_split_of_a_global_batch_gives_the_same_gradient(batch_size, accumulation, tmp_path):
    gradient, _ = capture_gradient(tmp_path, batch_size, accumulation)
    exact = micro_gradient(8)
    assert max(tensor.abs().max() for tensor in exact.values()) > 0.05
    assert distance(gradient, exact) < 1e-6
    if batch_size < 8:  # unlabelled examples lie unevenly, so that the mean of means is another gradient
        assert distance(micro_gradient(batch_size, per_micro_batch=True), exact) > 1e-3


def test_the_last_update_of_an_epoch_may_be_smaller(tmp_path):
    """Eight examples as 3 + 3 and 2: the second update's denominator is its own two examples."""
    _, history = capture_gradient(tmp_path, 3, 2, steps=2, learning_rate=0.0, every=1)
    model, tokenizer, source = make_model(), make_tokenizer(), said_by_teacher()
    encoded = encode(mixed_examples(), tokenizer, TWO, 32)
    for entry, rows in zip(history, (range(6), range(6, 8)), strict=True):
        batch = collate(encoded.__getitems__(list(rows)), tokenizer)
        logits = model(**{k: v for k, v in batch.items() if k not in ("row", "labels")}).logits
        for term in build_terms(objective(), TWO):
            mean = term.total(Signals(logits), source.signals(batch), batch) / term.count(batch)
            assert entry[term.name] == pytest.approx(mean.item(), rel=1e-5)


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("examples", [1, 7, 12, 16, 31])
def test_processes_together_see_each_example_once_and_as_one_process_would(examples, processes):
    batches = BatchSampler(SequentialSampler(range(examples)), 2, drop_last=False)
    parts = EvenParts(batches, processes)
    shards = [list(BatchSamplerShard(parts, processes, each, even_batches=False)) for each in range(processes)]
    assert {len(shard) for shard in shards} == {-(-examples // (2 * processes))}
    assert all(len(BatchSamplerShard(parts, processes, each, even_batches=False)) == len(shards[0]) for each in (0, 1))
    for each, shard in enumerate(shards):
        if unused(examples, 2, processes, each):
            shard.pop()
    updates = [[row for shard in shards for row in (shard[k] if k < len(shard) else [])] for k in range(len(shards[0]))]
    whole = list(BatchSampler(SequentialSampler(range(examples)), 2 * processes, drop_last=False))
    assert updates == whole


def test_two_processes_give_the_gradient_and_the_knowledge_of_one(tmp_path, monkeypatch):
    """Runs gradients.py under torchrun: labelling, one update as 2x4 and 2x2x2 examples, and a stage to its end."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(TESTS / "gradients.py")]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "two")], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(store, "SHARD_ROWS", SHARD_ROWS)
    label_eleven(tmp_path / "one")
    exact = micro_gradient(8)
    _, history = capture_gradient(tmp_path / "here", 8, 1)
    for name in ("4x1", "2x2"):
        for rank in (0, 1):
            found = torch.load(tmp_path / "two" / f"{name}-{rank}.pt")
            assert distance(found["gradient"], exact) < 1e-6, (name, rank)
            for term in ("soft_targets", "hard_labels", "loss"):
                assert found["history"][0][term] == pytest.approx(history[0][term], rel=1e-5), (name, rank, term)
    for size, examples, accumulation in UNEVEN:
        update = 2 * size * accumulation
        gradient, history = capture_gradient(tmp_path / "here", update, 1, 2, 0.0, examples=examples)
        for rank in (0, 1):
            found = torch.load(tmp_path / "two" / f"last-{size}-{examples}-{rank}.pt")
            assert distance(found["gradient"], gradient) < 1e-6, (size, examples, rank)
            for entry, expected in zip(found["history"], history, strict=True):
                assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-5), (size, examples, rank)
    here, _ = capture_gradient(tmp_path / "here", 8, 1, bf16=True)
    largest = max(tensor.abs().max().item() for tensor in exact.values())
    for name in ("4x1-0", "4x1-1", "2x2-0", "2x2-1"):  # exchanged in bfloat16, in which autocast computed them
        found = torch.load(tmp_path / "two" / f"bfloat16-{name}.pt")
        assert all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in found.values())
        assert distance(found, here) < 0.01 * largest
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / n / "knowledge").glob("*/*")} for n in ("one", "two")
    )
    assert len([name for name in one if name.endswith(".arrow")]) == 4
    assert one == two  # each process wrote its own shards, and the store is byte for byte that of one process
    alone = train_on_eight(tmp_path / "one", 8).history["hinton"]
    trained = json.loads((tmp_path / "two" / "run" / "logs" / "student.json").read_text())["history"]["hinton"]
    assert [entry["step"] for entry in trained] == [entry["step"] for entry in alone]
    assert trained[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)
    accuracies = [[entry["eval_accuracy"] for entry in each if "eval_accuracy" in entry] for each in (trained, alone)]
    assert accuracies[0] == accuracies[1]
    assert files(tmp_path / "two" / "run") == files(tmp_path / "one" / "run")
    open_classifier(str(tmp_path / "two" / "run"))


# --- nothing was bought with quality ----------------------------------------------------------------------------------


def test_the_student_is_that_of_a_plain_loop(train, tiny_teacher, tmp_path, monkeypatch):
    """Knowledge kept, rows of embeddings left out, fused updates: the student of a loop that does none of it."""
    batches: list[dict[str, torch.Tensor]] = []
    whole = DistillationTrainer.training_step

    def training_step(self: DistillationTrainer, model: Any, inputs: Any, *args: Any) -> torch.Tensor:
        batches.append({name: tensor.clone() for name, tensor in inputs.items()})
        return whole(self, model, inputs, *args)

    monkeypatch.setattr(DistillationTrainer, "training_step", training_step)
    settings = {"training.dropout": False, "training.weight_decay": 0.1, "training.learning_rate": 1e-3}
    ours = train(tmp_path, **settings).checkpoint.model.state_dict()

    recipe = train.recipe
    objectives, training = recipe.stages[0].objectives, recipe.training
    student = build_student(recipe.student, None, tiny_teacher, TWO, 0).model.eval()
    decayed = [p for n, p in student.named_parameters() if not n.endswith("bias") and "LayerNorm" not in n]
    others = [p for n, p in student.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, foreach=False)
    warmup = math.ceil(training.warmup * len(batches))
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, len(batches))
    soft, hard = objectives.soft_targets, objectives.hard_labels
    for batch in batches:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            said = tiny_teacher.model(**inputs).logits
        logits = student(**inputs).logits
        warm = soft.temperature
        divergence = F.kl_div((logits / warm).log_softmax(-1), (said / warm).softmax(-1), reduction="batchmean")
        loss = soft.weight * warm**2 * divergence + hard.weight * F.cross_entropy(logits, batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), training.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for name, tensor in student.state_dict().items():
        if not name.endswith("key.bias"):  # its gradient is rounding's alone: a softmax does not change with it
            assert torch.allclose(ours[name], tensor, atol=2e-5), name


# --- what is logged -------------------------------------------------------------------------------------------------


def test_logged_terms_are_the_means_over_the_updates(tmp_path):
    _, history = capture_gradient(tmp_path, 2, 1, steps=4, learning_rate=0.0, every=2)
    model, tokenizer, source = make_model(), make_tokenizer(), said_by_teacher()
    encoded = encode(mixed_examples(), tokenizer, TWO, 32)
    terms = build_terms(objective(), TWO)
    expected = []
    for rows in ([0, 1], [2, 3], [4, 5], [6, 7]):
        batch = collate(encoded.__getitems__(rows), tokenizer)
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k not in ("row", "labels")}).logits
        totals = [term.total(Signals(logits), source.signals(batch), batch).item() for term in terms]
        counts = [max(term.count(batch).item(), 1) for term in terms]
        expected.append([total / count for total, count in zip(totals, counts, strict=True)])
    for entry, updates in zip(history, (expected[:2], expected[2:]), strict=True):
        means = np.mean(updates, axis=0)
        for term, mean in zip(terms, means, strict=True):
            assert entry[term.name] == pytest.approx(mean, rel=1e-4)
        loss = sum(term.weight * mean for term, mean in zip(terms, means, strict=True))
        assert entry["loss"] == pytest.approx(loss, rel=1e-3)


def test_the_loss_needs_the_counts(tmp_path):
    trainer = DistillationTrainer.__new__(DistillationTrainer)
    with pytest.raises(TypeError, match="needs the counts"):
        trainer.compute_loss(make_model(), {})


def test_a_batch_goes_to_a_device_without_the_rows_by_which_knowledge_is_read(tiny_teacher, reviews):
    encoded = encode(numbered(reviews).select(range(4)), tiny_teacher.tokenizer, TWO, 32)
    moved = on_device(collate(list(encoded), tiny_teacher.tokenizer), torch.device("meta"))  # nothing can be read there
    assert {name for name, each in moved.items() if not each.is_meta} == {"row"}
    assert Memory(np.eye(4)).signals(moved).logits.tolist() == np.eye(4).tolist()
    assert examples_of(moved).is_meta


def test_the_trainer_leaves_rows_where_they_are(monkeypatch):
    trainer, rows = DistillationTrainer.__new__(DistillationTrainer), torch.arange(4)
    monkeypatch.setattr(
        Trainer, "_prepare_input", lambda self, data: {key: each.to("meta") for key, each in data.items()}
    )
    given = trainer._prepare_inputs({"input_ids": torch.zeros(4, 2), "row": rows})
    assert given["input_ids"].is_meta
    assert given["row"] is rows


# --- stages ---------------------------------------------------------------------------------------------------------


class Memory:
    """A teacher's signals in memory, which notes the rows that were asked for."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = torch.from_numpy(logits)
        self.rows: list[int] = []

    def signals(self, batch: dict[str, torch.Tensor]) -> Signals:
        self.rows += batch["row"].tolist()
        return Signals(self.logits[batch["row"]])


Trainable = Callable[..., Any]


@pytest.fixture
def splits(reviews: list[dict[str, Any]]) -> Splits:
    table = numbered(reviews)
    unlabelled = Dataset.from_dict({"text": [row["text"] + " too" for row in reviews[:16]], "label": [-100] * 16})
    transfer = Dataset.from_list(list(table.select(range(48))) + list(unlabelled))
    return Splits(table.select(range(48)), table.select(range(48, 80)), table.select(range(80, 120)), transfer)


@pytest.fixture
def train(tiny_teacher: Checkpoint, splits: Splits, tiny_recipe: Callable[..., Recipe]) -> Trainable:
    """Trains two layers of the teacher in a folder, as often as it is called."""
    source = Memory(HuggingFaceModel(tiny_teacher, TWO, 32).ask(splits.transfer).logits)

    def go(output: Path, method: str = "hinton", name: str = "student", **overrides: Any) -> Any:
        recipe = tiny_recipe(method, **{"output": str(output), "training.epochs": 3, **overrides})
        student = build_student(recipe.student, None, tiny_teacher, TWO, 0)
        source.rows.clear()
        go.source, go.recipe, go.start = source, recipe, student
        return train_stages(name, student, recipe.stages, recipe, TWO, splits, Teaching(source))

    return go


def same(one: Any, other: Any) -> bool:
    ours, theirs = one.checkpoint.model.state_dict(), other.checkpoint.model.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def kill_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    whole = DistillationTrainer.training_step

    def training_step(self: DistillationTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == step:
            raise Killed
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", training_step)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of the micro-steps that were computed."""
    taken: list[int] = []
    whole = DistillationTrainer.training_step

    def training_step(self: DistillationTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        taken.append(self.state.global_step)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", training_step)
    return taken


def test_training_learns_and_leaves_one_clean_folder(train, tmp_path):
    trained = train(tmp_path / "run", **{"training.epochs": 4})
    history = trained.history["distill"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 16  # 64 examples in batches of 16, four epochs
    assert np.mean(losses[-4:]) < 0.75 * np.mean(losses[:4])  # it starts from the teacher's layers
    entry = next(entry for entry in history if "loss" in entry)
    assert entry["loss"] == pytest.approx(0.9 * entry["soft_targets"] + 0.1 * entry["hard_labels"], rel=1e-3)
    assert [e["eval_accuracy"] for e in history if "eval_accuracy" in e][-1] > 0.9
    assert set(train.source.rows) == set(range(64))  # the transfer set, the unlabelled part too
    assert trained.seconds["distill"] > 0
    weights = open_classifier(str(tmp_path / "run" / "student")).model.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in trained.checkpoint.model.state_dict().items())
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    expected = {f"student/{name}" for name in {"config.json", "model.safetensors"} | tokenizer}
    assert files(tmp_path / "run") == {*expected, "logs/student.json"}
    assert json.loads((tmp_path / "run" / "logs" / "student.json").read_text())["history"] == trained.history


def test_without_a_teacher_the_labelled_part_is_learnt(train, steps, tmp_path):
    trained = train(tmp_path, "fine-tune", "model", **{"training.epochs": 2, "student": {"layers": 2}})
    assert train.source.rows == []
    assert len(steps) == 2 * 3  # 48 examples
    assert "hard_labels" in trained.history["fine-tune"][0]
    assert "soft_targets" not in trained.history["fine-tune"][0]


def test_the_same_seed_gives_the_same_model_and_another_seed_another(train, tmp_path):
    one, again, other = (
        train(tmp_path / name, **{"training.epochs": 1, "seed": seed}) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(one, again)
    assert not same(one, other)


@pytest.mark.parametrize(("settings", "kept"), [({}, 2), ({"training.patience": 2}, 1)])
def test_the_last_weights_are_kept_and_with_patience_the_best(train, tmp_path, monkeypatch, settings, kept):
    seen: list[dict[str, torch.Tensor]] = []
    scores = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(lessons, "_metrics", lambda prediction, task: {"accuracy": next(scores)})
    whole = stages.Bars.on_evaluate

    def on_evaluate(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seen.append({key: tensor.clone() for key, tensor in kwargs["model"].state_dict().items()})
        whole(self, args, state, control, **kwargs)

    monkeypatch.setattr(stages.Bars, "on_evaluate", on_evaluate)
    weights = train(tmp_path, **settings).checkpoint.model.state_dict()
    del weights["bert.embeddings.word_embeddings.weight"]  # in training only the rows that occur are there
    equal = [all(torch.equal(tensor, each[key]) for key, tensor in weights.items()) for each in seen]
    assert equal == [number == kept for number in range(3)]


def test_early_stopping_stops(train, steps, tmp_path):
    trained = train(tmp_path, **{"training.epochs": 20, "training.patience": 2, "training.learning_rate": 1e-12})
    validations = [entry["epoch"] for entry in trained.history["distill"] if "eval_accuracy" in entry]
    assert validations == [1, 2, 3]  # the first is the best there is; two more do not improve on it
    assert len(steps) == 12


def test_stages_follow_one_another(train, steps, tmp_path):
    two = [
        {"name": "soft", "objectives": {"soft_targets": 1}, "training": {"epochs": 1}},
        {"name": "hard", "objectives": {"hard_labels": 1}, "training": {"epochs": 2, "batch_size": 8}},
    ]
    trained = train(tmp_path, stages=two)
    assert list(trained.history) == ["soft", "hard"]
    assert "hard_labels" not in trained.history["soft"][0]
    assert len(steps) == 4 + 2 * 6  # 64 in 16s, then 48 in 8s twice
    assert trained.checkpoint.model is train.start.model


@pytest.mark.parametrize(
    "training",
    [
        {"checkpoint_steps": 3},
        {"checkpoint_steps": 1000},
        {"epochs": 0.5},
        {"schedule": "cosine", "warmup": 0.0},
        {"schedule": "constant", "max_grad_norm": 0.0},
        {"gradient_accumulation": 3, "precision": "bfloat16"},
    ],
)
def test_settings_run_to_the_end(training, train, tmp_path):
    trained = train(tmp_path, **{"training.epochs": 1, **{f"training.{key}": value for key, value in training.items()}})
    history = trained.history["distill"]
    assert any("eval_accuracy" in entry for entry in history)
    assert all(np.isfinite(entry["loss"]) for entry in history if "loss" in entry)
    assert trained.checkpoint.model.dtype == torch.float32
    assert not (tmp_path / "stages").exists() or not files(tmp_path / "stages")


def test_training_in_bfloat16_leaves_a_float32_model(train, tiny_teacher, tmp_path, monkeypatch):
    seen: set[tuple[str, bool]] = set()
    whole = DistillationTrainer._weigh

    def weigh(self: DistillationTrainer, output: Any, *args: Any) -> Any:
        seen.add((self.args.output_dir[-4:], "_original_forward" in vars(self.model)))  # autocast is around it
        return whole(self, output, *args)

    monkeypatch.setattr(DistillationTrainer, "_weigh", weigh)
    two = [{"name": name, "objectives": {"soft_targets": 1}} for name in ("soft", "more")]
    model = train(tmp_path, **{"stages": two, "training.epochs": 1, "training.precision": "bfloat16"}).checkpoint.model
    assert seen == {("soft", True), ("more", True)}
    assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & set(vars(model))
    inputs = tiny_teacher.tokenizer(["a fine film", "a bad plot"], return_tensors="pt", padding=True)
    saved = open_classifier(str(tmp_path / "student")).model.eval()
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, saved(**inputs).logits)  # rounded nowhere


# --- interrupted ----------------------------------------------------------------------------------------------------


@pytest.fixture
def whole_run(train: Trainable, tmp_path: Path) -> Any:
    return train(tmp_path / "whole")


def losses(trained: Any) -> list[tuple[float, float]]:
    return [(entry["step"], entry["loss"]) for entry in trained.history["distill"] if "loss" in entry]


@pytest.mark.parametrize("step", [2, 4, 7, 11])
def test_a_resumed_run_ends_in_the_same_weights(step, train, whole_run, steps, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        kill_at_step(patch, step)
        with pytest.raises(Killed):
            train(tmp_path / "cut")
    assert not (tmp_path / "cut" / "student").exists()
    finished = step // 4 * 4  # a checkpoint per epoch of four steps
    workplace = tmp_path / "cut" / "stages" / "student-1-distill"
    if finished:
        torn = shutil.copytree(workplace / f"checkpoint-{finished}", workplace / f"checkpoint-{finished + 1}")
        (torn / "trainer_state.json").unlink()
    steps.clear()
    capsys.readouterr()
    resumed = train(tmp_path / "cut")
    assert steps == list(range(finished, 12))
    assert ("going on from" in capsys.readouterr().err) == (finished > 0)
    assert same(resumed, whole_run)
    assert losses(resumed) == losses(whole_run)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_run_resumed_within_an_epoch_ends_in_the_same_weights(train, tmp_path, monkeypatch):
    settings = {"training.checkpoint_steps": 3, "training.batch_size": 4, "training.gradient_accumulation": 4}
    whole = train(tmp_path / "whole", **settings)
    kill_at_step(monkeypatch, 7)
    with pytest.raises(Killed):
        train(tmp_path / "cut", **settings)
    monkeypatch.undo()
    assert same(train(tmp_path / "cut", **settings), whole)


def test_a_checkpoint_of_other_weights_is_refused_in_a_sentence(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at_step(patch, 7)
        with pytest.raises(Killed):
            train(tmp_path / "cut")
    kept = tmp_path / "cut" / "stages" / "student-1-distill" / "checkpoint-4" / "model.safetensors"
    weights = load_file(kept)
    name, tensor = next(iter(weights.items()))
    for other, said in ({name: tensor[:-1]}, f"{name} is"), ({"more": tensor.clone()}, "and nothing here"):
        save_file(weights | other, kept, {"format": "pt"})
        with pytest.raises(
            InputError, match=rf"stopped by another version of limbeck: .*{said}.* start the stage anew"
        ):
            train(tmp_path / "cut")


@pytest.mark.parametrize("where", ["done.json", "model", "student", "logs"])
def test_killed_after_the_last_step(where, train, whole_run, steps, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kept_json, kept_model, kept_link = stages.write_json, stages.save_model, stages.link_model

        def write_json(path: Path, value: Any) -> None:
            if path.name == where or path.parent.name == where:
                raise Killed
            kept_json(path, value)

        def save(checkpoint: Checkpoint, folder: Path) -> None:
            if folder.name == where:
                raise Killed
            kept_model(checkpoint, folder)

        def link(saved: Path, folder: Path) -> None:
            if folder.name == where:
                raise Killed
            kept_link(saved, folder)

        patch.setattr(stages, "write_json", write_json)
        patch.setattr(stages, "save_model", save)
        patch.setattr(stages, "link_model", link)
        with pytest.raises(Killed):
            train(tmp_path / "cut")
    steps.clear()
    resumed = train(tmp_path / "cut")
    assert steps == []
    assert same(resumed, whole_run)
    assert losses(resumed) == losses(whole_run)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_disk_that_cannot_link_gets_copies(tmp_path, monkeypatch):
    def refused(source: str, target: str) -> None:
        raise OSError("not here")

    save_model(Checkpoint(make_model(), make_tokenizer(), "m"), tmp_path / "saved")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "left.txt").write_text("of an earlier run")
    link_model(tmp_path / "saved", tmp_path / "linked")
    monkeypatch.setattr(checkpointing.os, "link", refused)
    link_model(tmp_path / "saved", tmp_path / "other")
    weights = [tmp_path / name / "model.safetensors" for name in ("saved", "linked", "other")]
    assert weights[1].samefile(weights[0])
    assert not weights[2].samefile(weights[0])
    assert files(tmp_path / "saved") == files(tmp_path / "linked") == files(tmp_path / "other")


def test_the_time_of_all_runs_is_counted(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at_step(patch, 5)
        killed = DistillationTrainer.training_step

        def slowly(self: DistillationTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
            time.sleep(1.0 if self.state.global_step == 1 else 0)
            return killed(self, *args, **kwargs)

        patch.setattr(DistillationTrainer, "training_step", slowly)
        with pytest.raises(Killed):
            train(tmp_path)
    assert train(tmp_path).seconds["distill"] > 1.0


def test_a_finished_model_is_reused(train, whole_run, steps, tmp_path, capsys):
    again = train(tmp_path / "whole")
    assert steps == []
    assert "reused the trained model" in capsys.readouterr().err
    assert same(again, whole_run)
    assert again.history == whole_run.history
    assert again.seconds == whole_run.seconds


def test_a_finished_stage_is_not_trained_again(train, steps, tmp_path, monkeypatch, capsys):
    two = [
        {"name": "first", "objectives": {"soft_targets": 1}, "training": {"epochs": 1}},
        {"name": "second", "objectives": {"hard_labels": 1}, "training": {"epochs": 2}},
    ]
    whole = train(tmp_path / "whole", stages=two)
    with monkeypatch.context() as patch:
        begin = DistillationTrainer.training_step

        def training_step(self: DistillationTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.source is None and self.state.global_step == 1:
                raise Killed
            return begin(self, *args, **kwargs)

        patch.setattr(DistillationTrainer, "training_step", training_step)
        with pytest.raises(Killed):
            train(tmp_path / "cut", stages=two)
    steps.clear()
    resumed = train(tmp_path / "cut", stages=two)
    assert "stage first: done in an earlier run" in capsys.readouterr().err
    assert len(steps) == 2 * 3
    assert train.source.rows == []
    assert same(resumed, whole)
    assert list(resumed.history) == ["first", "second"]


def test_half_written_checkpoints_are_ignored_and_removed(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((5, "{}"), (20, '{"epoch": 1}'), (100, '{"epoch": '), (300, None), (90, "")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-5"]


# --- what is left behind ----------------------------------------------------------------------------------------------


def test_a_student_opens_without_limbeck(train, tmp_path):
    trained = train(tmp_path, **{"training.epochs": 1})
    folder, texts = tmp_path / "student", ["a good film", "the awful soup was bad and poor", "we felt happy"]
    code = """
import sys
sys.modules["limbeck"] = None  # any import of it fails
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    get_linear_schedule_with_warmup,
)
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
batch = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2:], padding=True, return_tensors="pt")
with torch.no_grad():
    torch.save([model(**batch).logits, model.config.id2label, model.config.limbeck], "logits.pt")
"""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code, folder, *texts], check=True, cwd=tmp_path, env=clean, timeout=120)
    logits, names, origin = torch.load(tmp_path / "logits.pt")
    expected = HuggingFaceModel(trained.checkpoint, TWO, 32).ask(Dataset.from_dict({"text": texts})).logits
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 0.01
    assert names == dict(enumerate(LABELS))
    assert origin == {"initialisation": {"from": "teacher", "layers": [0, 3]}}


def test_saving_replaces_a_folder_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "leftover.bin").write_bytes(b"")
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "half").write_bytes(b"")
    model = make_model()
    save_model(Checkpoint(model, make_tokenizer(), "m"), folder)
    assert files(tmp_path) == {
        f"model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    opened = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, opened[key]) for key, tensor in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder).tokenize("good soup") == ["good", "soup"]
