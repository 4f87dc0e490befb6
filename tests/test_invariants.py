"""What must hold of every encoder system whatever its sizes: whole models, the trainer and the command line.

Run as a script it is one of the processes of `test_two_processes_give_the_gradient_of_one`.
"""

from __future__ import annotations

import copy
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FILLER, LABELS, make_model, make_reviews, make_tokenizer, numbered, save_model, write_csv
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TrainerCallback,
)

from limbeck import hardware, opening, preparing
from limbeck import run as run_room
from limbeck.anatomy import Capture, WordsAt, layer_list, shape_of
from limbeck.checkpoints import Checkpoint, open_classifier
from limbeck.data import Splits
from limbeck.evaluation import evaluate_models
from limbeck.folder import RunFolder
from limbeck.knowledge import label_texts
from limbeck.objectives import Shapes, Term, build_terms
from limbeck.recipe import Recipe, load
from limbeck.recipe.schema import Evaluation, Student
from limbeck.recipe.terms import Objectives
from limbeck.signals import Signals, Wanted
from limbeck.students import build_student, keep_layers
from limbeck.students.ib_bert import IBBertConfig
from limbeck.tasks import Task, collate, encode
from limbeck.tasks.cloze import cloze
from limbeck.tasks.masked_lm import MaskedBatches, encode_corpus
from limbeck.tasks.text import model_inputs
from limbeck.teachers import HuggingFaceModel, LiveTeacher
from limbeck.training import Teaching, Trained, plan_stages, train_stages
from limbeck.training.checkpointing import last_checkpoint
from limbeck.training.lessons import prepare_lesson
from limbeck.training.phases import Phase, phases_of
from limbeck.training.planning import wanted_of
from limbeck.training.stages import TERMS_MODULE, extra_weights, only_layer, trainer_for
from limbeck.training.trainer import DistillationTrainer

TWO = Task("classification", LABELS)
WORDS = Task("masked-lm", tuple(str(number) for number in range(200)))
TASKS = {"task": TWO, "text": WORDS}
NARROW = {"hidden_size": 16, "intermediate_size": 32}
SYSTEMS: dict[str, dict[str, Any]] = {
    "distilbert": {"soft_targets": 5, "hidden": {"form": "cosine", "layers": {-1: -1}}},
    "tinybert": {"embedding": 1, "hidden": 1, "attention": 1},
    "mobilebert": {"feature_map": 1, "attention": {"form": "kl"}},
    "minilm": {"attention": {"form": "kl", "layers": {-1: -1}}, "relations": 1},
    "minilmv2": {"relations": {"of": ["queries", "keys", "values"], "heads": 8}},
}


# --- small things to train --------------------------------------------------------------------------------------------


def word_model(seed: int = 0, **config: Any) -> Checkpoint:
    """A random masked language model."""
    settings = make_model(initializer_range=0.1, **config).config
    torch.manual_seed(seed)
    return Checkpoint(AutoModelForMaskedLM.from_config(settings).eval(), make_tokenizer(), "words")


def classifier(seed: int = 0, **config: Any) -> Checkpoint:
    """A random classifier."""
    return Checkpoint(make_model(seed=seed, **config), make_tokenizer(), "classifier")


def a_copy(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(copy.deepcopy(checkpoint.model), checkpoint.tokenizer, "copy")


def some_splits(rows: int = 32) -> Splits:
    """Labelled examples, more without labels, and plain text."""
    table = numbered(make_reviews(rows, seed=3))
    more = Dataset.from_dict({"text": [row["text"] for row in make_reviews(8, seed=4)], "label": [-100] * 8})
    text = Dataset.from_dict({"text": [row["text"] for row in make_reviews(rows, seed=6)]})
    return Splits(table, table, table, Dataset.from_list([*table, *more]), corpus=text, corpus_held=text)


def recipe_of(output: Path, *stages: dict[str, Any], kind: str = "task", **training: Any) -> Recipe:
    """A recipe of these stages for labelled examples (`task`), or for plain text alone (`text`)."""
    quick = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"}
    on_text = kind == "task" and any("task" in stage for stage in stages)
    data = {"train": "unused"} | ({"corpus": "unused"} if on_text else {})
    return load({
        "task": TASKS[kind].kind, "data": data, "teacher": "unused", "output": str(output), "baseline": False,
        "stages": list(stages), "training": quick | training,
    })  # fmt: skip


def train(
    output: Path, student: Checkpoint, stages: list[dict[str, Any]], teaching: Teaching, kind: str = "task", **more: Any
) -> Trained:
    """Stages from beginning to end."""
    splits = more.pop("splits", None) or some_splits()
    recipe = recipe_of(output, *stages, kind=kind, **more)
    return train_stages("student", student, recipe.stages, recipe, TASKS[kind], splits, teaching)


@contextmanager
def trainer_of(
    phase: Phase,
    recipe: Recipe,
    student: Checkpoint,
    teaching: Teaching,
    task: Task = TWO,
    splits: Splits | None = None,
) -> Iterator[DistillationTrainer]:
    """The very trainer of a phase."""
    lesson = prepare_lesson(phase, student, recipe, task, splits or some_splits(), teaching)
    with ExitStack() as stack:
        stack.callback(lesson.close)
        stack.enter_context(extra_weights(lesson.model, lesson.terms))
        stack.enter_context(only_layer(lesson.model, phase.only))
        yield trainer_for(lesson, phase, recipe, task, student, Path(recipe.output) / "work")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def read(model: PreTrainedModel, wanted: Wanted, batch: dict[str, torch.Tensor]) -> Signals:
    """What a student says of a batch, with gradients."""
    body = model if wanted.logits else model.base_model
    words = WordsAt(model) if wanted.logits and "positions" in batch else None
    with Capture(body, wanted) as capture:
        if words:
            words.positions = batch["positions"]
        output = body(**model_inputs(batch))
        if words:
            words.close()
        return capture.signals(getattr(output, "logits", None))


def totals(
    terms: list[Term], student: PreTrainedModel, teacher: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    mine, its = wanted_of(terms)
    source = LiveTeacher(teacher, its, "float32")
    signals = read(student, mine, batch), source.signals(batch)
    source.close()
    return {term.name: term.total(*signals, batch) for term in terms}


def masked_batch(size: int = 8, text: Dataset | None = None) -> dict[str, torch.Tensor]:
    tokenizer = make_tokenizer()
    encoded = encode_corpus(text or some_splits().corpus, tokenizer, 32, packed=False)
    return MaskedBatches(tokenizer, 0.3, False, True, 0, lambda: 0)(encoded.__getitems__(list(range(size))))


def shapes_of(student: Checkpoint, teacher: Checkpoint) -> Shapes:
    return Shapes(shape_of(student.model), shape_of(teacher.model))


# --- nothing to learn, nothing from padding ---------------------------------------------------------------------------


@pytest.mark.parametrize(("system", "kind"), [*((name, "text") for name in SYSTEMS), ("distilbert", "task")])
def test_a_copy_of_the_teacher_without_dropout_has_nothing_to_learn(system, kind, tmp_path):
    """Equal depth, widths and weights: every term is zero as the trainer logs it; with dropout no term is."""
    teacher = classifier(5) if kind == "task" else word_model(5)
    teaching = Teaching(None, [teacher], teacher)
    objectives = SYSTEMS[system]
    stage = {"name": "s", "objectives": objectives}
    for dropout in (False, True):
        settings: dict[str, Any] = {"dropout": dropout, "epochs": 1, "learning_rate": 1e-30, "splits": some_splits(8)}
        trained = train(tmp_path / str(dropout), a_copy(teacher), [stage], teaching, kind, **settings)
        logged = [entry for entry in trained.history["s"] if "loss" in entry]
        for name in objectives:
            values = [entry[name] for entry in logged]
            assert max(values) > 1e-4 if dropout else max(map(abs, values)) < 1e-6, (name, values)


@pytest.mark.parametrize("system", SYSTEMS)
def test_more_padding_changes_no_total_and_no_count(system):
    """Of whole models, on masked text; `masked_lm` beside the system's own terms."""
    teacher = word_model(5)
    student = word_model(1, num_hidden_layers=2, **(NARROW if system in ("tinybert", "minilmv2") else {}))
    terms = build_terms(Objectives(masked_lm=1, **SYSTEMS[system]), WORDS, shapes_of(student, teacher))
    batch = masked_batch()
    length, extra = batch["input_ids"].shape[1], 5
    assert (batch["attention_mask"] == 0).any()
    longer = {name: torch.nn.functional.pad(batch[name], (0, extra)) for name in ("input_ids", "attention_mask")}
    row, column = batch["positions"] // length, batch["positions"] % length
    longer = batch | longer | {"positions": row * (length + extra) + column}
    assert [term.count(batch).item() for term in terms] == [term.count(longer).item() for term in terms]
    with torch.no_grad():
        short, long = (totals(terms, student.model, teacher.model, each) for each in (batch, longer))
    for name, total in short.items():
        assert total > 0.1, name
        assert long[name].item() == pytest.approx(total.item(), rel=1e-5), name


@pytest.mark.parametrize(("system", "drop"), [*((system, 0.0) for system in SYSTEMS), ("distilbert", 0.4)])
def test_layers_that_are_computed_once_more_change_no_student(system, drop, tmp_path):
    """With dropout, which draws the same the second time, and with layers left out."""
    teacher, stage = word_model(5), {"name": "s", "objectives": SYSTEMS[system]}
    start = word_model(1, num_hidden_layers=2, **(NARROW if system in ("tinybert", "minilmv2") else {}))
    students, passes = {}, {}
    for wanted in (False, True):
        student, passes[wanted] = a_copy(start), 0

        def count(module: torch.nn.Module, _: Any, wanted: bool = wanted) -> None:
            passes[wanted] += module.training

        layer_list(student.model)[1][0].attention.register_forward_pre_hook(count)
        settings = {"gradient_checkpointing": wanted, "layer_drop": drop}
        train(tmp_path / str(wanted), student, [stage], Teaching(general=teacher), "text", **settings)
        students[wanted] = weights(student.model)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in student.model.modules())
        assert not student.model.get_input_embeddings()._forward_hooks
    assert passes[True] == 2 * passes[False] > 0
    assert same(students[False], students[True])


# --- DistilBERT -------------------------------------------------------------------------------------------------------


def about_topics(lines: int, seed: int) -> Dataset:
    """Lines of words from one of five topics each, so that the others tell much about a word that is hidden."""
    draw = np.random.default_rng(seed)
    topics = np.array_split(np.array(FILLER), 5)
    return Dataset.from_dict({"text": [" ".join(draw.choice(topics[draw.integers(5)], 10)) for _ in range(lines)]})


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A language model that has learnt the topics. Do not change it."""
    text = about_topics(480, 1)
    splits = Splits(text, text, text, text, corpus=text)
    stage = {"name": "words", "objectives": {"masked_lm": 1}}
    settings = {"epochs": 8, "batch_size": 32, "learning_rate": 4e-3, "dropout": False}
    output = tmp_path_factory.mktemp("taught")
    return train(output, word_model(2), [stage], Teaching(), "text", splits=splits, **settings).checkpoint


@torch.no_grad()
def word_loss(model: PreTrainedModel) -> float:
    """Cross entropy of masked words, by the model's own loss."""
    batch = masked_batch(64, text=about_topics(64, 2))
    places = torch.full(batch["input_ids"].shape, -100).flatten()
    places[batch["positions"]] = batch["targets"]
    return float(model.eval()(**model_inputs(batch), labels=places.view_as(batch["input_ids"])).loss)


def test_the_teachers_layers_are_a_better_start_than_random_ones(taught, tmp_path):
    """Before any training and after as much of it, all else being the teacher's."""
    students = {name: build_student(Student(layers=3), None, taught, WORDS, 0) for name in ("layers", "random")}
    fresh = word_model(7, num_hidden_layers=3).model.base_model.encoder
    students["random"].model.base_model.encoder.load_state_dict(fresh.state_dict())
    before = {name: word_loss(student.model) for name, student in students.items()}
    assert word_loss(taught.model) < before["layers"] < before["random"] - 0.2
    stage, text = {"name": "s", "objectives": SYSTEMS["distilbert"] | {"masked_lm": 2}}, about_topics(96, 3)
    splits = Splits(text, text, text, text, corpus=text)
    for name, student in students.items():
        train(tmp_path / name, student, [stage], Teaching(general=taught), "text", splits=splits)
    after = {name: word_loss(student.model) for name, student in students.items()}
    assert after["layers"] < after["random"] - 0.1


# --- PKD --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(tiny_teacher: Checkpoint, tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Any]:
    """Trains a recipe from kept knowledge, with the hidden term or without; counts the teacher's forward passes."""
    splits = some_splits()

    def go(name: str, method: str, hidden: bool = True, **changes: Any) -> Any:
        recipe = tiny_recipe(method, output=str(tmp_path / name), **changes)
        if not hidden:
            recipe.stages[0].objectives.hidden = None
        student = build_student(recipe.student, None, tiny_teacher, TWO, 0)
        plan = plan_stages(recipe, TWO, student, [tiny_teacher], None)
        asked = HuggingFaceModel(tiny_teacher, TWO, 32)
        go.store = label_texts(asked, splits.transfer, TWO, tmp_path / "knowledge", plan.features)
        passes: list[int] = []
        handle = tiny_teacher.model.register_forward_hook(lambda *_: passes.append(1))
        train_stages("student", student, recipe.stages, recipe, TWO, splits, Teaching(go.store, [tiny_teacher]))
        handle.remove()
        go.plan, go.passes, go.splits = plan, len(passes), splits
        return weights(student.model)

    return go


def test_pkd_without_the_patient_term_is_plain_distillation(patient):
    """Bit for bit: only that term differs between the two recipes."""
    place = "stages.distill.objectives."
    plain = {f"{place}soft_targets": {"weight": 0.7, "temperature": 10}, f"{place}hard_labels": 0.3}
    hinton = patient("hinton", "hinton", **plain, **{"student.pattern": "first"})
    without = patient("without", "pkd-skip", hidden=False)
    assert same(without, hinton)
    assert not same(patient("pkd", "pkd-skip"), hinton)


def test_pkds_states_come_from_the_store_and_are_those_of_the_live_teacher(patient, tiny_teacher):
    """The teacher is asked once, and not run while the student learns."""
    patient("pkd", "pkd-last")
    assert patient.plan.stored
    assert patient.plan.features == (4 - 2 + 1,)  # of the student's two layers all but the last
    assert patient.passes == 0
    tokenizer, layers = tiny_teacher.tokenizer, frozenset(patient.plan.features)
    batch = collate(list(encode(patient.splits.transfer, tokenizer, TWO, 32)), tokenizer)
    live = LiveTeacher(tiny_teacher.model, Wanted(logits=True, features=layers), "float32").signals(batch)
    kept = patient.store.signals(batch)
    assert torch.allclose(kept.logits, live.logits, atol=1e-5)
    for layer in layers:
        assert live.features[layer].abs().max() > 1
        torch.testing.assert_close(kept.features[layer].float(), live.features[layer], rtol=1e-3, atol=1e-4)


# --- TinyBERT ---------------------------------------------------------------------------------------------------------


class StopError(Exception):
    """Stands for a kill."""


class StopAt(TrainerCallback):
    """Stops a run after so many updates, once its checkpoint is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            raise StopError


@dataclass
class End:
    """What a trainer left behind."""

    model: dict[str, torch.Tensor]
    projections: dict[str, torch.Tensor]


def run_phase(
    recipe: Recipe, student: Checkpoint, teaching: Teaching, task: Task = TWO, stop: int | None = None
) -> tuple[End, End]:
    """The weights before and after a recipe's one phase, or where it stopped."""
    phase = phases_of(recipe.stages, recipe, 2)[0]
    with trainer_of(phase, recipe, student, teaching, task) as trainer:

        def now() -> End:
            everything = weights(trainer.model)
            own = {name: tensor for name, tensor in everything.items() if name.startswith(TERMS_MODULE)}
            return End({name: tensor for name, tensor in everything.items() if name not in own}, own)

        before = now()
        if stop is not None:
            trainer.add_callback(StopAt(stop))
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(Path(trainer.args.output_dir)))
        except StopError:
            assert stop is not None
        optimised = {id(each) for group in trainer.optimizer.param_groups for each in group["params"]}
        terms = dict(trainer.model.named_parameters())
        assert all(id(terms[name]) in optimised for name in before.projections)
        return before, now()


@pytest.mark.parametrize("kind", ["task", "text"])
def test_a_projection_is_trained_checkpointed_and_resumed_but_never_saved_with_the_student(kind, tmp_path):
    teacher = classifier(5) if kind == "task" else word_model(5)
    start = (
        classifier(1, num_hidden_layers=2, **NARROW) if kind == "task" else word_model(1, num_hidden_layers=2, **NARROW)
    )
    stage, teaching = {"name": "s", "objectives": SYSTEMS["tinybert"]}, Teaching(None, [teacher], teacher)
    folders = [tmp_path / name for name in ("whole", "parts")]
    whole, parts = (recipe_of(folder, stage, kind=kind, checkpoint_steps=3) for folder in folders)
    before, end = run_phase(whole, a_copy(start), teaching, TASKS[kind])
    assert {name.split(".")[1] for name in end.projections} == {"embedding", "hidden"}
    assert changed(before.projections, end.projections) == set(before.projections)
    run_phase(parts, a_copy(start), teaching, TASKS[kind], stop=3)
    kept = load_file(tmp_path / "parts" / "work" / "checkpoint-3" / "model.safetensors")
    assert set(before.projections) <= set(kept)
    student = a_copy(start)
    _, resumed = run_phase(parts, student, teaching, TASKS[kind])
    assert same(resumed.model, end.model)
    assert same(resumed.projections, end.projections)
    assert not [name for name in weights(student.model) if name.startswith(TERMS_MODULE)]
    trained = train(tmp_path / "saved", a_copy(start), [stage], teaching, kind)
    saved = load_file(tmp_path / "saved" / "student" / "model.safetensors")
    assert set(saved) <= set(weights(start.model))
    assert trained.checkpoint.model.config.hidden_size == 16


@pytest.mark.parametrize("kind", ["task", "text"])
def test_layers_are_learnt_without_touching_head_and_pooler(kind, tmp_path):
    """TinyBERT's general and intermediate stages, under weight decay."""
    teacher, student = classifier(5), classifier(1, num_hidden_layers=2, **NARROW)
    before = weights(student.model)
    stage = {"name": "s", "objectives": SYSTEMS["tinybert"]} | ({"task": "masked-lm"} if kind == "text" else {})
    train(tmp_path, student, [stage], Teaching(None, [teacher], teacher), weight_decay=0.5)
    touched = changed(before, weights(student.model))
    left = {name for name in before if name.startswith(("classifier.", "bert.pooler."))}
    assert touched == set(before) - left


# --- MobileBERT -------------------------------------------------------------------------------------------------------


class Gradients(TrainerCallback):
    """Keeps the last update's gradients as the optimiser is about to see them."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = dict(kwargs["model"].named_parameters())
        self.found = {name: each.grad.clone() for name, each in parameters.items() if each.grad is not None}


@pytest.fixture(scope="module")
def mobile() -> tuple[Checkpoint, Checkpoint]:
    """An IB-BERT and a MobileBERT of three layers, of one width between layers."""
    sizes = {
        "vocab_size": 200, "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "embedding_size": 16,
        "max_position_embeddings": 64, "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    teacher = IBBertConfig(**sizes, intra_bottleneck_size=48, intermediate_size=64)
    student = AutoConfig.for_model("mobilebert", **sizes, intra_bottleneck_size=16, intermediate_size=32)
    made = [AutoModelForSequenceClassification.from_config(config).eval() for config in (teacher, student)]
    return Checkpoint(made[0], make_tokenizer(), "ib-bert"), Checkpoint(made[1], make_tokenizer(), "mobilebert")


def test_in_its_turn_one_layer_alone_is_trained_and_in_all_turns_each_once(mobile, tmp_path):
    teacher, student = mobile[0], a_copy(mobile[1])
    stage = {"name": "s", "task": "masked-lm", "progressive": True, "objectives": SYSTEMS["mobilebert"]}
    recipe = recipe_of(tmp_path, stage, epochs=3)
    phases = phases_of(recipe.stages, recipe, 3)
    assert [phase.only for phase in phases] == [1, 2, 3]
    assert sum(recipe.training_of(phase.stage).epochs for phase in phases) == 3
    seen: list[list[int]] = []
    moved: list[set[str]] = []
    for phase in phases:
        before, gradients = weights(student.model), Gradients()
        with trainer_of(phase, recipe, student, Teaching(None, [teacher], teacher)) as trainer:
            assert not hasattr(trainer.model, TERMS_MODULE)  # maps of one width need no projection
            trainer.add_callback(gradients)
            seen.append([row for batch in trainer.get_train_dataloader() for row in batch["row"].tolist()])
            trainer.train()
            shutil.rmtree(trainer.args.output_dir)
        layer = f"encoder.layer.{phase.only - 1}."
        assert gradients.found
        assert all(name.startswith(layer) for name in gradients.found)
        moved.append(changed(before, weights(student.model)))
        assert moved[-1] == {f"mobilebert.{name}" for name, each in gradients.found.items() if each.abs().max() > 0}
    layers = {name for name in weights(student.model) if ".encoder.layer." in name}
    assert all(parameter.requires_grad for parameter in student.model.parameters())
    # A shift of the keys (their bias) leaves attention as it is, but for rounding; all else of a layer is trained.
    assert layers - set.union(*moved) <= {name for name in layers if name.endswith("key.bias")}
    assert sum(map(len, moved)) == len(set.union(*moved))
    assert len({tuple(order) for order in seen}) == 3  # each turn has its own order, as it sees only a part


@pytest.mark.parametrize("only", [1, 2, 3])
def test_a_turns_loss_reaches_no_layer_above_its_own(mobile, only):
    """Of the loss itself, with nothing frozen."""
    teacher, student = mobile[0], a_copy(mobile[1])
    terms = build_terms(Objectives(**SYSTEMS["mobilebert"]), WORDS, shapes_of(student, teacher), only)
    sum(totals(terms, student.model, teacher.model, masked_batch()).values()).backward()
    reached = {name for name, each in student.model.named_parameters() if each.grad is not None and each.grad.any()}
    assert {int(name.split(".")[3]) for name in reached if ".encoder.layer." in name} == set(range(only))


# --- MiniLM -----------------------------------------------------------------------------------------------------------


def test_relations_of_values_over_the_attentions_heads_are_minilms():
    """Equations 5 to 7 in float64, from the value projections of plain transformers models without hooks."""
    teacher, student = word_model(5, num_attention_heads=4), word_model(1, num_attention_heads=4, **NARROW)
    batch = masked_batch()
    (term,) = build_terms(Objectives(relations={"of": ["values"], "heads": 4}), WORDS, shapes_of(student, teacher))
    with torch.no_grad():
        found = totals([term], student.model, teacher.model, batch)["relations"] / term.count(batch)
        related = []
        for each in (student, teacher):
            model = copy.deepcopy(each.model).double()
            states = model.base_model(**model_inputs(batch), output_hidden_states=True).hidden_states[-2]
            related.append(model.base_model.encoder.layer[-1].attention.self.value(states).numpy())
    total, tokens = 0.0, 0
    for example, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        tokens += length
        for head in range(4):
            rows = []
            for values in related:
                vectors = np.split(values[example, :length], 4, axis=-1)[head]
                powers = np.exp(vectors @ vectors.T / math.sqrt(vectors.shape[1]))
                rows.append(powers / powers.sum(-1, keepdims=True))
            total += (rows[1] * np.log(rows[1] / rows[0])).sum() / 4
    assert found.item() == pytest.approx(total / tokens, rel=1e-5)


def test_a_student_of_other_heads_learns_from_relations(tmp_path):
    teacher, student = word_model(5), word_model(1, num_hidden_layers=2, num_attention_heads=4, **NARROW)
    stage = {"name": "s", "objectives": SYSTEMS["minilmv2"]}
    trained = train(tmp_path, student, [stage], Teaching(general=teacher), "text", epochs=6, learning_rate=1e-2)
    losses = [entry["relations"] for entry in trained.history["s"] if "loss" in entry]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models and files, by what command lines below call them."""
    root = tmp_path_factory.mktemp("places")
    save_model(root / "TEACHER", initializer_range=0.05)
    save_model(root / "OTHER", seed=3, tokenizer=make_tokenizer(extra=["quince"]), vocabulary=210)
    save_model(root / "SHARED", kind="albert")
    word_model(4).model.save_pretrained(root / "GENERAL")
    make_tokenizer().save_pretrained(root / "GENERAL")
    write_csv(root / "DATA.csv", make_reviews(60))
    (root / "CORPUS.txt").write_text("".join(row["text"] + "\n" for row in make_reviews(60, seed=5)), "utf-8")
    return {path.stem: str(path) for path in root.iterdir()}


QUICK = {
    "task.max_length": 32, "training.batch_size": 16, "training.learning_rate": 1e-3, "training.epochs": 1,
    "training.precision": "float32", "evaluation.resamples": 100, "evaluation.speed": False, "export": [],
    "baseline": False,
}  # fmt: skip


def test_the_assistant_learns_first_then_teaches_and_is_reused(places, tmp_path, capsys):
    settings: dict[str, Any] = {
        **QUICK,
        "data": places["DATA"],
        "data.corpus": places["CORPUS"],
        "teacher": places["TEACHER"],
        "teacher.general": places["GENERAL"],
        "student": {"shape": {"num_hidden_layers": 2, **NARROW}},
        "assistant": {"shape": NARROW},
        "stages.general.training.epochs": 4,
        "output": str(tmp_path / "run"),
    }
    recipe, folder = load("minilm", settings), RunFolder(tmp_path / "run")
    student = run_room.train(recipe, preparing.prepare(recipe, {}, folder), None)["student"].checkpoint.model
    assistant = open_classifier(str(tmp_path / "run" / "assistant"))
    assert (assistant.model.config.num_hidden_layers, assistant.model.config.hidden_size) == (4, 16)
    # The student's stages once more by hand: taught by the assistant it is the run's, by the general model another.
    found = {}
    for name, general in (("assistant", assistant), ("general", word_model(4))):
        again = load("minilm", settings | {"output": str(tmp_path / name)})
        ready = preparing.prepare(again, {}, RunFolder(tmp_path / name))
        teaching = Teaching(None, ready.teachers, general)
        train_stages("student", ready.student, again.stages, again, ready.task, ready.splits, teaching)
        found[name] = weights(ready.student.model)
    assert same(found["assistant"], weights(student))
    assert not same(found["general"], found["assistant"])
    shutil.rmtree(tmp_path / "run" / "student")
    (tmp_path / "run" / "logs" / "student.json").unlink()
    written = (tmp_path / "run" / "assistant" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    rerun = run_room.train(recipe, preparing.prepare(recipe, {}, folder), None)["student"].checkpoint.model
    assert same(weights(rerun), weights(student))
    assert "assistant: reused the trained model" in capsys.readouterr().err
    assert (tmp_path / "run" / "assistant" / "model.safetensors").stat().st_mtime_ns == written


# --- LayerDrop and Well-Read ------------------------------------------------------------------------------------------


def stages_of(method: str, output: Path, **changes: Any) -> Recipe:
    settings = {"data": "unused", "data.corpus": "unused", "teacher": "unused", "output": str(output)}
    return load(method, {**QUICK, **settings, "training.batch_size": 8, **changes})


def test_layerdrops_student_is_cut_to_every_other_layer_and_fine_tuned_without_it(tmp_path):
    """The second stage is a plain stage on every other layer of what the first stage made, bit for bit."""
    splits, teacher = some_splits(), classifier(5)
    store = label_texts(HuggingFaceModel(teacher, TWO, 32), splits.transfer, TWO, tmp_path / "knowledge")
    teaching, start = Teaching(store, [teacher]), classifier(1)
    start.model.config.limbeck = {"initialisation": "random"}
    whole, first, plain = (stages_of("layerdrop", tmp_path / name) for name in ("whole", "first", "plain"))
    student = train_stages("student", a_copy(start), whole.stages, whole, TWO, splits, teaching).checkpoint
    made = train_stages("student", a_copy(start), first.stages[:1], first, TWO, splits, teaching).checkpoint.model
    cut = Checkpoint(keep_layers(made, [0, 2]), start.tokenizer, "cut")
    stage = plain.stages[1].model_copy(update={"keep": None})
    assert plain.training_of(stage).layer_drop == 0
    assert plain.training_of(plain.stages[0]).layer_drop == 0.5
    trained = train_stages("student", cut, [stage], plain, TWO, splits, teaching).checkpoint
    assert same(weights(student.model), weights(trained.model))
    assert student.model.config.num_hidden_layers == 2
    assert student.model.config.limbeck["kept by stage fine-tune"] == [0, 2]


def test_well_read_students_are_distilled_without_labels_and_pretrained_without_a_teacher(tmp_path):
    splits, teacher = some_splits(), classifier(5)
    store = label_texts(HuggingFaceModel(teacher, TWO, 32), splits.transfer, TWO, tmp_path / "knowledge")
    found: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for name in ("as they are", "flipped"):

        def relabel(row: dict[str, Any], flip: bool = name == "flipped") -> dict[str, Any]:
            return {"label": 1 - row["label"] if flip and row["label"] >= 0 else row["label"]}

        tables = (each.map(relabel) for each in (splits.train, splits.validation, splits.test, splits.transfer))
        labelled = Splits(*tables, corpus=splits.corpus, corpus_held=splits.corpus_held)
        student = classifier(1, num_hidden_layers=2)
        for until, part in (("distill", slice(2)), ("fine-tune", slice(2, 3))):
            recipe = stages_of("well-read", tmp_path / f"{name} {until}")
            args = (recipe.stages[part], recipe, TWO, labelled, Teaching(store, [teacher]))
            train_stages("student", student, *args)
            found[name, until] = weights(student.model)
    assert same(found["as they are", "distill"], found["flipped", "distill"])
    assert not same(found["as they are", "fine-tune"], found["flipped", "fine-tune"])
    # The first stage asks nobody.
    assert opening.general(recipe, [teacher]) is None
    phase, student = phases_of(recipe.stages, recipe, 2)[0], classifier(1)
    lesson = prepare_lesson(phase, student, recipe, TWO, splits, Teaching(store, [teacher]))
    assert lesson.source is None
    lesson.close()


# --- one gradient whatever the split ----------------------------------------------------------------------------------

SPLIT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "layers": (SYSTEMS["tinybert"], NARROW),
    "layers of text": (SYSTEMS["tinybert"], NARROW),
    "words of text": (SYSTEMS["distilbert"] | {"masked_lm": 2}, {}),
}
Gradient = dict[str, torch.Tensor]


def lesson_of_eight(folder: Path, case: str, **training: Any) -> tuple[Recipe, Checkpoint, Teaching, Splits]:
    """Eight examples of differing lengths, of which some are much shorter than others."""
    objectives, shape = SPLIT[case]
    text = case.endswith("text")
    teacher = word_model(5) if text else classifier(5)
    stage = {"name": "s", "objectives": objectives} | ({"task": "masked-lm"} if text else {})
    table = numbered(make_reviews(8, seed=11))
    lines = table.select_columns("text")
    splits = Splits(table, table, table, table, corpus=lines, corpus_held=lines)
    recipe = recipe_of(folder, stage, dropout=False, max_grad_norm=0, **training)
    student = classifier(1, num_hidden_layers=2, **shape)  # its pooler is there on text, too
    return recipe, student, Teaching(None, [teacher], teacher), splits


def one_update(
    folder: Path, case: str, size: int, accumulation: int
) -> tuple[Gradient, dict[str, float], list[Gradient]]:
    """The trainer's gradient, what it logs, and the same gradient by autograd: of all at once, and of pairs' means."""
    settings = {"epochs": 1, "batch_size": size, "gradient_accumulation": accumulation}
    recipe, student, teaching, splits = lesson_of_eight(folder, case, **settings)
    phase, gradients = phases_of(recipe.stages, recipe, 2)[0], Gradients()
    with trainer_of(phase, recipe, student, teaching, TWO, splits) as trainer:
        expected = [by_autograd(trainer, pairs) for pairs in (False, True)]
        trainer.add_callback(gradients)
        trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    return gradients.found, logged, expected


def by_autograd(trainer: DistillationTrainer, pairs: bool) -> Gradient:
    rows = [[0, 1], [2, 3], [4, 5], [6, 7]] if pairs else [list(range(8))]
    model, loss = trainer.model.eval(), torch.zeros(())
    for batch in (trainer.data_collator(trainer.train_dataset.__getitems__(each)) for each in rows):
        if trainer.words:
            trainer.words.positions = batch["positions"]
        signals = trainer.capture.signals(getattr(model(**model_inputs(batch)), "logits", None))
        said = trainer.source.signals(batch)
        loss = loss + sum(t.weight * t.total(signals, said, batch) / t.count(batch) for t in trainer.terms) / len(rows)
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: each for name, each in zip(named, found, strict=True) if each is not None}


def distance(one: Gradient, other: Gradient) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("case", SPLIT)
def test_any_split_of_a_global_batch_gives_the_same_gradient(case, tmp_path):
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        found, _, (exact, of_pairs) = one_update(tmp_path / str(size), case, size, accumulation)
        scale = max(each.abs().max().item() for each in exact.values())
        assert distance(found, exact) < 1e-5 * scale
        assert distance(of_pairs, exact) > 1e-2 * scale  # the mean of means is another
        assert any(name.startswith(TERMS_MODULE) for name in found) == (case != "words of text")
        assert not any("pooler" in name or "classifier" in name for name in found)


def test_two_processes_give_the_gradient_of_one(tmp_path):
    """Of projections, too, over 2x2x2 examples; weights without a gradient do no harm, and stages run to their end."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, str(tmp_path)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for case in SPLIT:
        _, logged, (exact, _) = one_update(tmp_path / "one", case, 8, 1)
        scale = max(each.abs().max().item() for each in exact.values())
        for rank in (0, 1):
            found, theirs = torch.load(tmp_path / f"{case}-{rank}.pt")
            assert distance(found, exact) < 1e-5 * scale, (case, rank)
            for name in (*SPLIT[case][0], "loss"):
                assert theirs[name] == pytest.approx(logged[name], rel=1e-4), (case, rank, name)
    recipe, student, teaching, splits = lesson_of_eight(tmp_path / "alone", "words of text")
    alone = train_stages("student", student, recipe.stages, recipe, TWO, splits, teaching).history["s"]
    together = torch.load(tmp_path / "history.pt")
    assert [entry["step"] for entry in together] == [entry["step"] for entry in alone]
    for mine, theirs in zip(alone, together, strict=True):
        for name in {"loss", "eval_accuracy"} & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name


def main(folder: Path) -> None:
    """What each of the two processes does."""
    rank = hardware.processes().process_index
    for case in SPLIT:
        found, logged, _ = one_update(folder / "two", case, 2, 2)
        torch.save((found, logged), folder / f"{case}-{rank}.pt")
    recipe, student, teaching, splits = lesson_of_eight(folder / "together", "words of text", batch_size=4)
    trained = train_stages("student", student, recipe.stages, recipe, TWO, splits, teaching)
    if rank == 0:
        torch.save(trained.history["s"], folder / "history.pt")
    torch.distributed.destroy_process_group()


# --- masks ------------------------------------------------------------------------------------------------------------


def test_validation_masks_are_the_same_each_time_and_training_masks_are_not(tmp_path):
    """Of a model that stays as it is."""
    stage = {"name": "s", "objectives": {"masked_lm": 1}}
    settings = {"epochs": 3, "batch_size": 32, "learning_rate": 1e-30, "weight_decay": 0, "dropout": False}
    history = train(tmp_path, word_model(1), [stage], Teaching(), "text", **settings).history["s"]
    accuracies = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    losses = [entry["masked_lm"] for entry in history if "loss" in entry]
    assert len(accuracies) == len(losses) == 3
    assert len(set(accuracies)) == 1
    assert len(set(losses)) == 3


def test_a_masked_stage_that_is_stopped_within_an_epoch_goes_on_with_the_same_masks(tmp_path):
    teacher, start = word_model(5), word_model(1, num_hidden_layers=2)
    stage = {"name": "s", "objectives": SYSTEMS["distilbert"] | {"masked_lm": 2}}
    whole, parts = (recipe_of(tmp_path / name, stage, kind="text", checkpoint_steps=3) for name in ("whole", "parts"))
    teaching = Teaching(general=teacher)
    _, end = run_phase(whole, a_copy(start), teaching, WORDS)
    run_phase(parts, a_copy(start), teaching, WORDS, stop=6)  # of four updates an epoch
    _, resumed = run_phase(parts, a_copy(start), teaching, WORDS)
    assert same(resumed.model, end.model)


# --- how a language model is measured ---------------------------------------------------------------------------------


def test_a_copy_agrees_with_its_teacher_and_accuracy_is_that_of_a_plain_model(taught, tmp_path):
    taught.model.save_pretrained(tmp_path)
    rows = cloze(about_topics(60, 4), taught.tokenizer, 32, 0)
    task = Task("masked-lm", WORDS.labels)
    asked = {name: HuggingFaceModel(a_copy(taught), task, 32) for name in ("teacher", "student")}
    measured = evaluate_models(asked, rows, task, Evaluation(resamples=100, speed=False), 0)["student"]
    assert measured["fidelity"]["agreement"] == 1
    assert measured["fidelity"]["kl"] == pytest.approx(0, abs=1e-6)
    assert measured["retention"] == 1
    plain, right = AutoModelForMaskedLM.from_pretrained(tmp_path).eval(), 0
    for row in rows:
        ids = taught.tokenizer(row["text"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = plain(input_ids=ids).logits
        right += int(logits[ids == taught.tokenizer.mask_token_id][0].argmax() == row["label"])
    assert measured["quality"]["accuracy"]["value"] == pytest.approx(right / len(rows), abs=1e-9)
    assert 0.1 < right / len(rows) < 0.9


# --- what cannot be, refused before anything costly -------------------------------------------------------------------

SMALL = "student.shape={num_hidden_layers: 2, hidden_size: 16, intermediate_size: 32%s}"
LAYERS = "stages=[{name: s, objectives: {hidden: 1, attention: 1}}]"
MAPS = "stages=[{name: s, objectives: {feature_map: 1}}]"
TEXT = "data.corpus=CORPUS"
ALONE = "student.shape={model_type: %s, num_hidden_layers: 2, num_attention_heads: 2, hidden_size: 16%s}"
SHARES = "albert runs the weights of one layer again and again"
REFUSED: dict[str, tuple[str, list[str], str]] = {
    "heads": ("minilm", [TEXT, SMALL % ", num_attention_heads: 4"], "the student has 4 heads and the teacher 2"),
    "widths": ("hinton", [MAPS, SMALL % ""], "the student's are 16 wide and the teacher's 32"),
    "a deeper student": ("hinton", [LAYERS, "student.shape={num_hidden_layers: 5, hidden_size: 16}"],
                         "the student has 5 layers and the teacher 4"),
    "another tokenizer": ("hinton", [LAYERS, SMALL % "", "student.tokenizer=OTHER"], "the tokenizers of"),
    "another tokenizer on text": ("minilm", [TEXT, SMALL % "", "student.tokenizer=OTHER"], "the tokenizers of"),
    "albert teaches": ("hinton", [LAYERS, "teacher=SHARED", ALONE % ("bert", ", intermediate_size: 16")], SHARES),
    "albert learns": ("hinton", [LAYERS, ALONE % ("albert", ", intermediate_size: 16, embedding_size: 8")], SHARES),
    "no words": ("well-read", [TEXT, "student.shape={model_type: gpt2, n_layer: 1, n_embd: 16, n_head: 2}"],
                 "gpt2 has no masked language model's head"),
    "layers kept later": ("layerdrop", [TEXT, "stages.fine-tune.keep=[0, 9]"], "layers [0, 9] cannot be kept"),
    "a stage that is not there": ("hinton", ["stages.distil=null"], "no item 'distil' among"),
    "text for no stage": ("hinton", [TEXT], "data.corpus is given, but no stage is about plain text"),
    "no text": ("minilm", [SMALL % ""], "give data.corpus=FILE, or leave the stage out"),
}  # fmt: skip


def command_line(places: dict[str, str], method: str, output: Path, words: list[str]) -> list[str]:
    quick = [f"{key}={value}" for key, value in QUICK.items()]
    line = ["teacher=TEACHER", "data=DATA", *words]
    for name, place in places.items():
        line = [word.replace(name, place) for word in line]
    return ["distill", method, f"output={output}", *quick, *line]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence_before_anything_costly(case, command, places, tmp_path):
    method, words, expected = REFUSED[case]
    code, printed = command(*command_line(places, method, tmp_path / "out", words))
    assert code == 2, printed
    assert expected in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["hinton", "pkd-last"])
def test_whole_texts_may_be_read_with_another_tokenizer(method, command, places, tmp_path):
    """Logits and [CLS] states are about an example, whatever its tokens."""
    words = [SMALL % "", "student.tokenizer=OTHER"]
    code, printed = command(*command_line(places, method, tmp_path / "out", words))
    assert code == 0, printed
    assert open_classifier(str(tmp_path / "out")).model.config.vocab_size == len(make_tokenizer(extra=["quince"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
