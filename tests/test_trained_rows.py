"""Training only the rows of the embeddings that occur: the same student as by training them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS, make_model, make_tokenizer, numbered
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from limbeck.checkpoints import Checkpoint
from limbeck.data import Splits
from limbeck.signals import Signals
from limbeck.students import build_student
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel
from limbeck.training import Teaching, train_stages, trained_rows
from limbeck.training.trained_rows import TrainedRows, occurring
from limbeck.training.trainer import DistillationTrainer

TWO = Task("classification", LABELS)


@pytest.fixture
def train(tiny_teacher: Checkpoint, reviews: list[dict[str, Any]], tiny_recipe: Any) -> Any:
    """Trains half of the teacher; returns its weights and what was logged."""
    table = numbered(reviews)
    transfer = table.select(range(48))
    splits = Splits(transfer, table.select(range(48, 80)), table.select(range(80, 120)), transfer)

    class Said:
        logits = torch.from_numpy(HuggingFaceModel(tiny_teacher, TWO, 32).ask(transfer).logits)

        def signals(self, batch: dict[str, torch.Tensor]) -> Signals:
            return Signals(self.logits[batch["row"]])

    def go(output: Path, **overrides: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        settings = {"training.weight_decay": 0.5, "training.learning_rate": 1e-2, "training.max_grad_norm": 0.1}
        recipe = tiny_recipe("hinton", output=str(output), **settings, **overrides)
        student = build_student(recipe.student, None, tiny_teacher, TWO, 0)
        trained = train_stages("student", student, recipe.stages, recipe, TWO, splits, Teaching(Said()))
        go.start = build_student(recipe.student, None, tiny_teacher, TWO, 0).model.state_dict()
        return trained.checkpoint.model.state_dict(), trained.history["distill"]

    return go


NAME = "bert.embeddings.word_embeddings.weight"


def test_the_student_is_that_of_training_all_rows(train, tmp_path, monkeypatch):
    ours, said = train(tmp_path / "some")
    monkeypatch.setattr(trained_rows, "WORTHWHILE", 0)
    theirs, told = train(tmp_path / "all")
    assert list(ours) == list(theirs)
    start, untouched = train.start[NAME], (train.start[NAME] / theirs[NAME]).std(1) < 1e-3
    assert 10 < untouched.sum() < 0.9 * len(start)
    factor = (theirs[NAME] / start)[untouched].mean()
    assert factor < 0.99  # decayed all the same
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=2e-5), name
    assert torch.allclose(ours[NAME][untouched], theirs[NAME][untouched], atol=1e-7)
    for one, other in zip(said, told, strict=True):
        for key in {"loss", "grad_norm", "eval_accuracy"} & set(other):
            assert one[key] == pytest.approx(other[key], rel=1e-3), key


def test_only_those_rows_have_moments(train, tmp_path, monkeypatch):
    sizes = []
    whole = DistillationTrainer.create_optimizer

    def create_optimizer(self: Any, *args: Any) -> Any:
        made = whole(self, *args)
        table = self.model.get_submodule("bert.embeddings.word_embeddings")
        sizes.append((type(table), len(table.weight)))
        assert not any(table.others is p for g in made.param_groups for p in g["params"])
        return made

    monkeypatch.setattr(DistillationTrainer, "create_optimizer", create_optimizer)
    weights, _ = train(tmp_path)
    kind, rows = sizes[0]
    assert kind is TrainedRows
    assert rows < len(weights[NAME])


def test_a_killed_run_goes_on_to_the_same_weights(train, tmp_path, monkeypatch):
    every = {"training.checkpoint_steps": 2}
    whole, _ = train(tmp_path / "whole", **every)
    step = DistillationTrainer.training_step

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", **every)
    monkeypatch.setattr(DistillationTrainer, "training_step", step)
    found, _ = train(tmp_path / "killed", **every)
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


def test_words_that_do_not_occur_are_read_as_they_are():
    table = nn.Embedding(10, 4, padding_idx=0)
    some = TrainedRows(table, torch.tensor([0, 2, 5]))
    ids = torch.tensor([[0, 1, 2], [5, 9, 2]])
    assert torch.equal(some(ids), table(ids))
    some(ids).square().sum().backward()
    table(ids).square().sum().backward()
    assert torch.equal(some.weight.grad, table.weight.grad[[0, 2, 5]])
    assert some.others.grad is None
    with torch.no_grad():
        some.decayed *= 0.5
        some.weight += 1
    expected = 0.5 * table.weight.detach()
    expected[[0, 2, 5]] = table.weight.detach()[[0, 2, 5]] + 1
    assert torch.allclose(some.whole(), expected)
    assert torch.allclose(some(ids), expected[ids])


def test_rows_are_those_of_the_examples():
    learn = Dataset.from_dict({"input_ids": [[3, 4], [4], [], [9, 9]]})
    assert occurring(learn, 12).tolist() == [3, 4, 9]
    assert occurring(learn, 12, {0, None}).tolist() == [0, 3, 4, 9]
    assert set(occurring(learn.select([0, 1]), 12).tolist()) >= {3, 4}


@pytest.mark.parametrize("why", ["frozen", "tied", "mostly needed", "not wanted", "no ids"])
def test_other_embeddings_are_left_alone(why, tmp_path):
    tokenizer = make_tokenizer()
    model = make_model()
    if why == "frozen":
        model.get_input_embeddings().weight.requires_grad_(False)
    if why == "tied":
        shape = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
        model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape))
    ids = list(range(200)) if why == "mostly needed" else [3, 4]
    learn = Dataset.from_dict({"pixel_values" if why == "no ids" else "input_ids": [ids]})
    before = model.get_input_embeddings()
    with trained_rows.trained_rows(model, learn, 0.1, why != "not wanted") as decay:
        assert model.get_input_embeddings() is before
        assert decay.rows is None
        decay.on_optimizer_step(None, None, None)


def test_a_configuration_without_padding_is_none(tmp_path):
    """Networks over images and tables have no tokens at all."""
    model = make_model()
    learn = Dataset.from_dict({"input_ids": [[3, 4]]})
    del model.config.pad_token_id
    with trained_rows.trained_rows(model, learn, 0.1, True) as decay:
        assert decay.rows is not None
