"""Soft decision trees: the model, its two terms, and what is told of it."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LABELS, make_model, make_tokenizer
from datasets import Dataset
from gradients import Gradient
from sklearn.datasets import load_digits
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    TrainingArguments,
)

from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError
from limbeck.evaluation import describe_tree
from limbeck.exporting import OnnxModel, export_model
from limbeck.objectives import Balance, PathCrossEntropy
from limbeck.recipe import load, terms
from limbeck.recipe.schema import Student
from limbeck.report.trees import draw_path, draw_tree
from limbeck.run import run
from limbeck.signals import Signals
from limbeck.students import build_student
from limbeck.students.soft_tree import (
    SoftTreeConfig,
    SoftTreeForFeatureClassification,
    SoftTreeForImageClassification,
    SoftTreeForSequenceClassification,
)
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel
from limbeck.training import DistillationTrainer

M, C = 5, 3
TASK = Task("classification", ("a", "b", "c"))
TWO = Task("classification", LABELS)


def make_tree(depth: int = 3, seed: int = 0, **settings: Any) -> SoftTreeForFeatureClassification:
    torch.manual_seed(seed)
    model = SoftTreeForFeatureClassification(
        SoftTreeConfig(depth=depth, **{"num_features": M, "num_labels": C, **settings})
    )
    with torch.no_grad():
        model.tree.beta.add_(torch.rand_like(model.tree.beta))
    return model


def draw(rows: int = 7, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, M, generator=torch.Generator().manual_seed(seed))


def by_hand(model: Any, x: np.ndarray) -> dict[str, Any]:
    """One input's path probabilities and leaf distributions, node by node in float64."""
    tree = model.tree
    w, b, beta, phi = (
        each.detach().double().numpy() for each in (tree.gates.weight, tree.gates.bias, tree.beta, tree.leaves)
    )
    leaves, came, right = [], {}, {}

    def walk(node: int, probability: float, level: int) -> None:
        if level == tree.depth:
            leaves.append(probability)
            return
        gate = 1 / (1 + math.exp(-beta[node] * (w[node] @ x + b[node])))
        came[node], right[node] = probability, gate
        walk(2 * node + 1, probability * (1 - gate), level + 1)
        walk(2 * node + 2, probability * gate, level + 1)

    walk(0, 1.0, 0)
    shares = np.exp(phi - phi.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return {"leaves": np.array(leaves), "came": came, "right": right, "shares": shares}


def signals(model: Any, x: torch.Tensor) -> Signals:
    output = model(x)
    return Signals(output.logits, paths=output.paths)


# --- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_paths_are_those_found_node_by_node_and_their_probabilities_sum_to_one(depth: int) -> None:
    model, x = make_tree(depth), draw()
    paths = model(x).paths
    assert torch.allclose(paths.leaves.sum(-1), torch.ones(len(x)))
    for row in range(len(x)):
        expected = by_hand(model, x[row].double().numpy())
        np.testing.assert_allclose(paths.leaves[row].detach(), expected["leaves"], rtol=1e-5)
        np.testing.assert_allclose(
            paths.nodes[row].detach(), list(dict(sorted(expected["came"].items())).values()), rtol=1e-5
        )
        np.testing.assert_allclose(
            paths.gates[row].detach(), list(dict(sorted(expected["right"].items())).values()), rtol=1e-5
        )


def test_the_logits_are_those_of_the_mixture_of_leaves() -> None:
    model, x = make_tree(), draw()
    probabilities = model(x).logits.softmax(-1).detach()
    for row in range(len(x)):
        hand = by_hand(model, x[row].double().numpy())
        np.testing.assert_allclose(probabilities[row], hand["leaves"] @ hand["shares"], rtol=1e-5)


def test_one_leaf_can_answer_alone_but_not_in_training() -> None:
    model, x = make_tree(inference="leaf"), draw()
    trained = model.train()(x).logits
    assert torch.equal(trained, make_tree()(x).logits)
    answers = model.eval()(x).logits.softmax(-1).detach()
    for row in range(len(x)):
        hand = by_hand(model, x[row].double().numpy())
        np.testing.assert_allclose(answers[row], hand["shares"][hand["leaves"].argmax()], rtol=1e-5)


def test_gates_that_are_certain_leave_finite_logits_and_gradients() -> None:
    model = make_tree(depth=6)
    model(1e4 * draw()).logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_paths_are_float32_under_autocast() -> None:
    model, x = make_tree().eval(), draw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x)
    assert torch.equal(half.logits, model(x).logits)
    assert half.paths.expected.dtype == torch.float32


def test_a_fixed_beta_is_not_trained() -> None:
    model = make_tree(learn_beta=False, beta=2.0)
    assert not model.tree.beta.requires_grad
    assert make_tree().tree.beta.requires_grad


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"depth": 40}, "depth is 40"),
        ({"beta": -1.0}, "beta is -1"),
        ({"num_features": 0}, "inputs of 0 numbers"),
    ],
)
def test_impossible_trees_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SoftTreeConfig(**settings)


def test_inputs_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="reads 5 numbers, and an input has 4"):
        make_tree()(draw()[:, :4])


def test_trees_open_with_the_auto_classes(tmp_path: Path) -> None:
    images = SoftTreeForImageClassification(SoftTreeConfig(depth=2, image_size=[4, 6], num_channels=2, num_labels=C))
    words = SoftTreeForSequenceClassification(SoftTreeConfig(depth=2, num_features=M, vocab_size=9, num_labels=C))
    kinds = (
        (make_tree(), AutoModel),
        (images, AutoModelForImageClassification),
        (words, AutoModelForSequenceClassification),
    )
    given = (draw(), torch.randn(7, 2, 4, 6), torch.arange(14).reshape(7, 2) % 9)
    for number, ((model, auto), inputs) in enumerate(zip(kinds, given, strict=True)):
        model.save_pretrained(tmp_path / str(number))
        opened = auto.from_pretrained(tmp_path / str(number))
        assert type(opened) is type(model)
        assert torch.equal(opened(inputs).logits, model.eval()(inputs).logits)
    assert not opened.get_input_embeddings().weight.requires_grad


def test_text_is_the_mean_of_its_tokens_embeddings_without_padding() -> None:
    torch.manual_seed(0)
    model = SoftTreeForSequenceClassification(
        SoftTreeConfig(depth=2, num_features=M, vocab_size=9, num_labels=C)
    ).eval()
    ids, mask = torch.tensor([[3, 4, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    table = model.get_input_embeddings().weight
    mean = torch.stack([(table[3] + table[4]) / 2, (table[5] + table[6] + table[7]) / 3])
    assert torch.allclose(model(ids, mask).logits, model._answer(mean).logits)
    wider = model(torch.cat([ids, torch.zeros_like(ids)], 1), torch.cat([mask, torch.zeros_like(mask)], 1)).logits
    assert torch.equal(wider, model(ids, mask).logits)
    model(ids, mask).logits.sum().backward()
    assert table.grad is None


@pytest.mark.parametrize("inference", ["mixture", "leaf"])
def test_image_trees_trace_to_onnx(inference: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    config = SoftTreeConfig(depth=3, image_size=4, num_labels=C, inference=inference)
    model = SoftTreeForImageClassification(config).eval()

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=pixel_values).logits

    batch = torch.export.Dim("batch")
    example, path = torch.randn(2, 1, 4, 4), str(tmp_path / "tree.onnx")
    torch.onnx.export(
        Logits().eval(), (example,), path, input_names=["pixel_values"], dynamic_shapes=({0: batch},), dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip
    wide = torch.randn(5, 1, 4, 4)
    found = onnxruntime.InferenceSession(path).run(None, {"pixel_values": wide.numpy()})[0]
    np.testing.assert_allclose(found, model(wide).logits.detach(), atol=1e-5)


def test_text_trees_are_exported_like_any_student(tmp_path: Path) -> None:
    student = text_tree()
    files = export_model(student, tmp_path, ["onnx"])
    texts = Dataset.from_dict({"text": ["good soup", "the bad plot was very long and sad", "soup"]})
    expected = HuggingFaceModel(student, TWO, 32).ask(texts).logits
    np.testing.assert_allclose(OnnxModel(files["onnx"], student, TWO, 32).ask(texts).logits, expected, atol=1e-5)


# --- as a recipe's student ----------------------------------------------------------------------------------------


def text_tree(**shape: Any) -> Checkpoint:
    teacher = Checkpoint(make_model(), make_tokenizer(), "teacher")
    section = Student(shape={"model_type": "soft-tree", "depth": 3, **shape}, embeddings=True)
    return build_student(section, None, teacher, TWO, 0)


def test_a_text_student_reads_the_teachers_embeddings_and_never_trains_them() -> None:
    student = text_tree(depth=2)
    table = student.model.get_input_embeddings().weight
    assert torch.equal(table, make_model().get_input_embeddings().weight)
    assert not table.requires_grad
    assert student.model.config.depth == 2
    assert "token_type_ids" not in student.tokenizer.model_input_names


def test_a_text_student_without_the_teachers_embeddings_is_refused() -> None:
    teacher = Checkpoint(make_model(), make_tokenizer(), "teacher")
    with pytest.raises(InputError, match="soft-tree reads the teacher's embeddings"):
        build_student(Student(shape={"model_type": "soft-tree"}), None, teacher, TWO, 0)


def test_impossible_shapes_are_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="depth is 99; give 1 to 16"):
        text_tree(depth=99)
    with pytest.raises(InputError, match="soft-tree has no 'dept'; did you mean 'depth'"):
        text_tree(dept=3)


STAGE = {"name": "one", "objectives": {"path_cross_entropy": {"targets": "teacher"}}}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"task": "regression"}, "path_cross_entropy, which is about a soft tree .* its task is regression"),
        ({"teacher": None, "student.model": "m"}, "path_cross_entropy, which needs a teacher"),
        ({"stages": [{"name": "a", "objectives": {"balance": 1}, "task": "masked-lm"}]}, "its task is masked-lm"),
        ({"stages": [{"name": "a", "objectives": {"balance": {"window": 0.5}}}]}, "window"),
    ],
)
def test_terms_of_trees_are_refused_where_they_mean_nothing(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load({"data": "d", "teacher": "t", "output": "o", "stages": [STAGE]}, overrides)


def test_labels_alone_teach_a_tree_without_a_teacher() -> None:
    stage = {"name": "one", "objectives": {"path_cross_entropy": {"targets": "labels"}, "balance": 0.1}}
    recipe = load({"data": "d", "student": {"model": "m"}, "output": "o", "stages": [stage]})
    assert not recipe.stages[0].objectives.needs_teacher


def test_a_student_that_is_no_tree_is_refused(tiny_recipe: Any) -> None:
    with pytest.raises(InputError, match="learns a soft tree, and the student is a bert"):
        run(tiny_recipe("soft-tree", **{"student": {"layers": 1}}))


# --- the terms ----------------------------------------------------------------------------------------------------


def batch_of(rows: int, labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    return {"row": torch.arange(rows)} | ({} if labels is None else {"labels": torch.tensor(labels)})


def path_term(**settings: Any) -> PathCrossEntropy:
    return PathCrossEntropy(terms.PathCrossEntropy(**settings), TASK)


def path_loss(model: Any, x: torch.Tensor, targets: np.ndarray) -> float:
    total = 0.0
    for row in range(len(x)):
        hand = by_hand(model, x[row].double().numpy())
        total += sum(-p * (targets[row] * np.log(q)).sum() for p, q in zip(hand["leaves"], hand["shares"], strict=True))
    return total


def test_the_loss_is_each_leafs_cross_entropy_weighted_by_its_path() -> None:
    model, x, labels = make_tree(), draw(), [0, 1, 2, 2, 1, 0, 0]
    found = path_term(targets="labels").total(signals(model, x), None, batch_of(7, labels))
    assert found.item() == pytest.approx(path_loss(model, x, np.eye(C)[labels]), rel=1e-5)
    logits = torch.randn(7, C, generator=torch.Generator().manual_seed(3)) * 2
    for temperature in (1.0, 4.0):
        soft = np.exp(logits.double().numpy() / temperature)
        soft /= soft.sum(1, keepdims=True)
        term = path_term(temperature=temperature)
        found = term.total(signals(model, x), Signals(logits), batch_of(7))
        assert found.item() == pytest.approx(path_loss(model, x, soft), rel=1e-5)
        assert term.count(batch_of(7)) == 7


def test_it_is_an_upper_bound_of_the_mixtures_cross_entropy() -> None:
    for seed in range(20):
        model, x = make_tree(seed=seed), draw(seed=seed)
        labels = torch.randint(0, C, (7,), generator=torch.Generator().manual_seed(seed))
        bound = path_term(targets="labels").total(signals(model, x), None, {"labels": labels, "row": labels})
        assert bound >= nn.functional.cross_entropy(model(x).logits, labels, reduction="sum") - 1e-5


def test_examples_without_a_label_count_for_nothing() -> None:
    model, x = make_tree(), draw(4)
    term = path_term(targets="labels")
    whole = term.total(signals(model, x), None, batch_of(4, [1, -100, 2, -100]))
    known = term.total(signals(model, x[[0, 2]]), None, batch_of(2, [1, 2]))
    assert torch.allclose(whole, known)
    assert term.count(batch_of(4, [1, -100, 2, -100])) == 2


def test_the_path_losss_gradient_is_the_finite_difference() -> None:
    model, x = make_tree(depth=2).double(), draw(3).double()
    term, batch = path_term(targets="labels"), batch_of(3, [0, 2, 1])
    term.total(signals(model, x), None, batch).backward()
    for parameter in model.parameters():
        for index in np.ndindex(parameter.shape):
            sides = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter[index] += step
                    sides.append(term.total(signals(model, x), None, batch).item())
                    parameter[index] -= step
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(parameter.grad[index].item(), abs=1e-6)


def test_other_tasks_have_no_leaves_to_learn() -> None:
    with pytest.raises(InputError, match="the task is regression"):
        PathCrossEntropy(terms.PathCrossEntropy(), Task("regression", ("value",)))


def balance(**settings: Any) -> Balance:
    return Balance(terms.Balance(**settings), TASK)


def penalty(model: Any, batches: list[torch.Tensor], decay: float, window: float) -> float:
    """The penalty after these updates, from its definition; the newest last."""
    came: dict[int, float] = {}
    right: dict[int, float] = {}
    for x in batches:
        hands = [by_hand(model, each.double().numpy()) for each in x]
        for node in hands[0]["came"]:
            level = int(math.log2(node + 1))
            keep = 1 - 1 / (window * 2**level)
            came[node] = keep * came.get(node, 0.0) + sum(hand["came"][node] for hand in hands)
            right[node] = keep * right.get(node, 0.0) + sum(hand["came"][node] * hand["right"][node] for hand in hands)
    total = 0.0
    for node, share in ((node, right[node] / came[node]) for node in came):
        total -= decay ** int(math.log2(node + 1)) * 0.5 * (math.log(share) + math.log(1 - share))
    return total


def test_the_penalty_is_of_running_averages_over_windows_that_double_with_depth() -> None:
    model, term = make_tree(), balance(decay=0.6, window=1.5)
    batches = [draw(rows, seed) for seed, rows in enumerate((7, 3, 5))]
    for count, x in enumerate(batches, 1):
        told = signals(model, x)
        term.begin(term.sums(told.paths).detach())
        value = term.total(told, None, batch_of(len(x))) / term.count(batch_of(len(x)))
        assert value.item() == pytest.approx(penalty(model, batches[:count], 0.6, 1.5), rel=1e-5)


def test_a_node_that_sends_half_each_way_costs_log_2_and_no_node_costs_less() -> None:
    model, x = make_tree(depth=1), draw(50)
    costs = []
    for bias in np.linspace(-3, 3, 25):
        with torch.no_grad():
            model.tree.gates.weight.zero_()
            model.tree.gates.bias.fill_(float(bias))
        term, told = balance(), signals(model, x)
        term.begin(term.sums(told.paths).detach())
        costs.append(term.total(told, None, batch_of(50)).item() / 50)
    assert min(costs) == costs[12] == pytest.approx(math.log(2), rel=1e-5)


def test_the_penaltys_gradient_is_the_finite_difference_however_the_batch_is_split() -> None:
    model, x = make_tree(depth=3).double(), draw(8).double()
    term = balance()
    term.begin(term.sums(signals(model, x).paths).detach())
    for size in (8, 4, 3, 1):
        model.zero_grad()
        for part in x.split(size):
            (term.total(signals(model, part), None, batch_of(len(part))) / 8).backward()
        for parameter in (model.tree.gates.weight, model.tree.gates.bias, model.tree.beta):
            index = (0,) * parameter.ndim
            sides = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter[index] += step
                sides.append(penalty(model, [x], 0.5, 1.0))
                with torch.no_grad():
                    parameter[index] -= step
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(parameter.grad[index].item(), abs=1e-5)


def test_a_node_that_decides_all_one_way_is_pushed_back_by_a_finite_gradient() -> None:
    model, x = make_tree(depth=1), draw(20)
    with torch.no_grad():
        model.tree.gates.bias.fill_(14.0)
        model.tree.gates.weight.zero_()
    term, told = balance(), signals(model, x)
    term.begin(term.sums(told.paths).detach())
    term.total(told, None, batch_of(20)).backward()
    assert 0 < model.tree.gates.bias.grad.item() < math.inf


def test_the_average_is_kept_in_checkpoints() -> None:
    model, one, other = make_tree(), balance(), balance()
    one.begin(one.sums(signals(model, draw()).paths).detach())
    other.load_state_dict(one.state_dict())
    more = signals(model, draw(4, 9))
    for term in (one, other):
        term.begin(term.sums(more.paths).detach())
    assert torch.equal(one.average, other.average)


def test_the_loss_needs_the_whole_batchs_sums_first() -> None:
    with pytest.raises(ValueError, match="call begin"):
        balance().total(signals(make_tree(), draw()), None, batch_of(7))


def train_on_eight(folder: Path, size: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Three updates on eight examples each; the last one's gradient."""
    gradient = Gradient()
    x = torch.randn(24, M, generator=torch.Generator().manual_seed(4))
    table = Dataset.from_dict(
        {"features": x.tolist(), "row": range(24), "labels": [(0, 1, 2, -100)[i % 4] for i in range(24)]}
    )

    def together(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    trainer = DistillationTrainer(
        terms=[path_term(targets="labels"), balance(weight=0.5)],
        source=None,
        model=make_tree(),
        args=TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            max_steps=3, learning_rate=0.05, max_grad_norm=0, train_sampling_strategy="sequential", save_strategy="no",
            remove_unused_columns=False, label_names=["labels"], report_to="none", use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=table,
        data_collator=together,
        callbacks=[gradient],
    )  # fmt: skip
    trainer.train()
    return gradient.found


def test_the_gradient_does_not_depend_on_how_a_global_batch_is_split(tmp_path: Path) -> None:
    whole = train_on_eight(tmp_path, 8, 1)
    for size, accumulation in ((4, 2), (1, 8)):
        parts = train_on_eight(tmp_path, size, accumulation)
        for name, expected in whole.items():
            assert torch.allclose(parts[name], expected, atol=1e-5), name


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def train_on_digits(weight: float, steps: int = 300) -> Any:
    x, y = digits()
    torch.manual_seed(0)
    model = SoftTreeForFeatureClassification(SoftTreeConfig(depth=5, num_features=64, num_labels=10))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0)
    fit, even = path_term(targets="labels"), balance()
    for step in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=torch.Generator().manual_seed(step))
        told = signals(model, x[rows])
        even.begin(even.sums(told.paths).detach())
        batch = {"row": rows, "labels": y[rows]}
        loss = fit.total(told, None, batch) + weight * even.total(told, None, batch)
        optimiser.zero_grad()
        (loss / 64).backward()
        optimiser.step()
    return model.eval()


def test_without_the_penalty_branches_die_and_with_it_they_live() -> None:
    x, y = digits()
    used, right = {}, {}
    for weight in (0.0, 0.1):
        model = train_on_digits(weight)
        with torch.no_grad():
            told = model(x)
        used[weight] = int((told.paths.leaves.mean(0) > 0.1 / 32).sum())
        right[weight] = (told.logits.argmax(-1) == y).float().mean().item()
    assert used[0.1] >= 20
    assert used[0.0] <= 14
    assert right[0.1] > right[0.0]


# --- what is told of a tree ---------------------------------------------------------------------------------------


class Asks:
    """Asks a model about tensors in place of a dataset's rows."""

    def __init__(self, model: Any, name: str, inputs: torch.Tensor) -> None:
        self.model, self.name, self.inputs = model, name, inputs

    @torch.no_grad()
    def ask(self, texts: Dataset, features: Any = ()) -> Signals:
        parts = [self.model(**{self.name: part}).logits for part in self.inputs[texts["row"][:]].split(5)]
        return Signals(torch.cat(parts).numpy())


class Reads:
    names = ("length", "width", "height", "weight", "age")


def check_drawings(tree: dict[str, Any]) -> str:
    drawn = [draw_tree(tree), draw_path(tree)]
    for svg in drawn:
        ET.fromstring(str(svg))
        assert "http" not in str(svg).replace("http://www.w3.org/", "")
    return "".join(map(str, drawn))


def test_a_tree_over_features_is_told_by_their_names() -> None:
    model, x = make_tree(depth=4).eval(), draw(40)
    with torch.no_grad():
        model.tree.gates.weight[0] = torch.tensor([0.0, 5.0, 0.0, -3.0, 0.0])
    test = Dataset.from_dict({"row": range(40), "label": [1] * 40})
    tree = describe_tree(Checkpoint(model, Reads(), "t"), Asks(model, "features", x), test, TASK)
    assert (tree["depth"], tree["inputs"], len(tree["nodes"]), len(tree["ends"])) == (4, "features", 7, 8)
    assert (tree["nodes"][0]["left_names"], tree["nodes"][0]["right_names"]) == (["weight"], ["width"])
    hands = [by_hand(model, each.double().numpy()) for each in x]
    assert tree["nodes"][2]["came"] == pytest.approx(np.mean([hand["came"][2] for hand in hands]), abs=1e-4)
    ends = np.mean([hand["leaves"].reshape(8, 2).sum(1) for hand in hands], axis=0)
    np.testing.assert_allclose([end["came"] for end in tree["ends"]], ends, atol=1e-4)
    mixed = sum(hand["leaves"][6:8] @ hand["shares"][6:8] for hand in hands) / (40 * ends[3])
    np.testing.assert_allclose([share for _, share in tree["ends"][3]["classes"]], mixed, atol=1e-3)
    leaf = int(hands[0]["leaves"].argmax())
    assert tree["path"]["leaf"]["number"] == leaf
    assert [step["right"] for step in tree["path"]["steps"]] == [bool(int(bit)) for bit in f"{leaf:04b}"]
    product = math.prod(step["probability"] for step in tree["path"]["steps"])
    assert product == pytest.approx(tree["path"]["leaf"]["probability"], abs=1e-3)
    assert (tree["path"]["label"], tree["path"]["predicted"] in TASK.labels) == ("b", True)
    assert "weight" in check_drawings(tree)


def test_a_tree_over_images_is_told_by_its_filters() -> None:
    torch.manual_seed(0)
    config = SoftTreeConfig(depth=5, image_size=[64, 32], num_channels=3, num_labels=C)
    model = SoftTreeForImageClassification(config).eval()
    test = Dataset.from_dict({"row": range(8), "label": [0] * 8})
    asks = Asks(model, "pixel_values", torch.randn(8, 3, 64, 32))
    tree = describe_tree(Checkpoint(model, None, "t"), asks, test, TASK)
    told = np.array(tree["nodes"][4]["filter"])
    weights = model.tree.gates.weight[4].detach().reshape(3, 64, 32).mean(0).reshape(32, 2, 32).mean(1)
    np.testing.assert_allclose(told / 127, weights / weights.abs().max(), atol=0.01)
    assert np.array(tree["path"]["image"]).shape == (32, 32, 3)
    assert len(tree["path"]["steps"]) == 5
    assert check_drawings(tree).count("data:image/png;base64,") == 15 + 5 + 1


def test_a_tree_over_text_is_told_by_words() -> None:
    student = text_tree()
    good, bad = (student.tokenizer.convert_tokens_to_ids(word) for word in ("good", "bad"))
    with torch.no_grad():
        table = student.model.get_input_embeddings().weight
        student.model.tree.gates.weight[0] = table[good] - table[bad]
    words = ["good soup", "bad soup", "the good film", "the bad film"]
    test = Dataset.from_dict({"text": words, "label": [1, 0, 1, 0]})
    tree = describe_tree(student, HuggingFaceModel(student, TWO, 32), test, TWO)
    assert (tree["nodes"][0]["right_names"][0], tree["nodes"][0]["left_names"][0]) == ("good", "bad")
    assert tree["path"]["steps"][0]["spoke"][0] == ["good", True]
    assert tree["path"]["text"] == "good soup"
    check_drawings(tree)


def test_nothing_is_told_of_a_student_that_is_no_tree() -> None:
    checkpoint = Checkpoint(make_model(), make_tokenizer(), "bert")
    texts = Dataset.from_dict({"text": ["good soup"], "label": [1]})
    assert describe_tree(checkpoint, HuggingFaceModel(checkpoint, TWO, 32), texts, TWO) is None


def test_a_run_tells_of_its_tree_and_the_baseline_learns_it_by_the_same_loss(tiny_recipe: Any, tmp_path: Path) -> None:
    shape = {"student.shape.depth": 2, "student.embeddings": True}
    done = run(tiny_recipe("soft-tree", baseline=True, **shape))
    tree = done.metrics["student"]["tree"]
    assert (tree["depth"], tree["inputs"], len(tree["nodes"]), len(tree["ends"])) == (2, "text", 3, 4)
    for name in ("student", "baseline"):
        (logs,) = done.metrics["training"][name]["history"].values()
        losses = [log for log in logs if "loss" in log]
        assert losses[-1]["path_cross_entropy"] < losses[0]["path_cross_entropy"]
        assert all(log["balance"] > math.log(2) for log in losses)
    page = done.report.read_text("utf-8")
    assert "How the student decides" in page
    assert "The upper 2 of 2 levels." in page
    assert "path cross entropy (targets teacher" in page
