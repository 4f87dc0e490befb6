"""Students: which layers are kept, that their weights are the teacher's, and how a student says where it came from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import LABELS, make_model, make_tokenizer, save_model
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    PreTrainedModel,
)

from limbeck.anatomy import layer_list
from limbeck.checkpoints import Checkpoint, open_classifier
from limbeck.errors import InputError
from limbeck.recipe.schema import Student
from limbeck.students import PATTERNS, build_student, keep_layers, layers_of_pattern, layers_table
from limbeck.tasks import Task

TWO = Task("classification", LABELS)
STACKS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "electra": "electra.encoder.layer",
    "mpnet": "mpnet.encoder.layer",
    "modernbert": "model.layers",
}


def teacher(**options: Any) -> Checkpoint:
    return Checkpoint(make_model(**options), make_tokenizer(), "teacher")


def build(teacher: Checkpoint | None, task: Task = TWO, seed: int = 0, **student: Any) -> PreTrainedModel:
    return build_student(Student(**student), None, teacher, task, seed).model


@torch.no_grad()
def outputs(model: PreTrainedModel) -> Any:
    ids = torch.tensor([[2, 70, 81, 92, 3, 0], [2, 75, 99, 101, 102, 3]])
    return model.eval()(input_ids=ids, attention_mask=(ids > 0).long(), output_hidden_states=True)


# --- which layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "depth", "kept", "layers"),
    [
        ("spaced", 12, 6, [0, 2, 4, 7, 9, 11]),  # DistilBERT
        ("spaced", 12, 4, [0, 4, 7, 11]),
        ("spaced", 12, 3, [0, 6, 11]),
        ("spaced", 12, 2, [0, 11]),
        ("spaced", 12, 1, [0]),
        ("spaced", 6, 3, [0, 2, 5]),
        ("spaced", 24, 12, [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]),
        ("spaced", 4, 2, [0, 3]),
        ("alternate", 12, 6, [0, 2, 4, 6, 8, 10]),
        ("alternate", 12, 4, [0, 3, 6, 9]),
        ("alternate", 24, 6, [0, 4, 8, 12, 16, 20]),
        ("first", 12, 6, [0, 1, 2, 3, 4, 5]),
        ("last", 12, 6, [6, 7, 8, 9, 10, 11]),
        ("last", 12, 1, [11]),
    ],
)
def test_pattern_tables(pattern, depth, kept, layers):
    assert layers_of_pattern(pattern, depth, kept) == layers


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_keeps_so_many_different_layers_in_order(pattern):
    for depth in range(1, 33):
        for kept in range(1, depth + 1):
            layers = layers_of_pattern(pattern, depth, kept)
            assert len(layers) == kept
            assert layers == sorted(set(layers))
            assert layers[0] >= 0
            assert layers[-1] < depth
        assert layers == list(range(depth))  # all of them
    with pytest.raises(InputError, match=r"student\.layers is 7, but the teacher has 6 layers; keep at most 6"):
        layers_of_pattern(pattern, 6, 7)


def test_the_printed_table_holds_what_is_built():
    rows = layers_table()
    assert (12, 6, "spaced", [0, 2, 4, 7, 9, 11]) in rows
    assert {row[2] for row in rows} == set(PATTERNS)
    assert all(layers == layers_of_pattern(pattern, depth, kept) for depth, kept, pattern, layers in rows)


# --- keeping them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [[0, 3], [1], [0, 1, 3], [2, 0]])
def test_kept_layers_are_the_teachers(architecture, layers):
    name, model = architecture
    if name == "modernbert" and layers[0] != 0:
        with pytest.raises(InputError, match=r"modernbert does not build all its layers alike, .* keep layer 0 first"):
            keep_layers(model, layers)
        return
    path, stack = layer_list(model)
    assert path == STACKS[name]
    assert len(stack) == 4
    before = copy.deepcopy(model.state_dict())
    student = keep_layers(model, layers)
    assert student.config.num_hidden_layers == len(layer_list(student)[1]) == len(layers)
    weights = student.state_dict()
    for new, old in enumerate(layers):
        kept = {key: tensor for key, tensor in before.items() if key.startswith(f"{path}.{old}.")}
        assert len(kept) > 3
        for key, tensor in kept.items():
            assert torch.equal(weights.pop(key.replace(f"{path}.{old}.", f"{path}.{new}.")), tensor), key
    outside = {key: tensor for key, tensor in before.items() if not key.startswith(f"{path}.")}
    assert set(weights) == set(outside)
    assert all(torch.equal(weights[key], tensor) for key, tensor in outside.items())
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())  # nothing moved
    ours, theirs = dict(student.named_parameters()), dict(model.named_parameters())
    assert not {p.data_ptr() for p in ours.values()} & {p.data_ptr() for p in theirs.values()}  # a copy, not a view


def test_all_layers_kept_is_the_teacher(architecture):
    _, model = architecture
    student, expected = outputs(keep_layers(model, [0, 1, 2, 3])), outputs(model)
    assert torch.equal(student.logits, expected.logits)
    for ours, theirs in zip(student.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(ours, theirs)


def test_the_first_layers_compute_what_the_teachers_do(architecture):
    _, model = architecture
    student, expected = outputs(keep_layers(model, [0, 1, 3])), outputs(model)
    for layer in range(3):  # the embeddings and the layers before the gap
        assert torch.equal(student.hidden_states[layer], expected.hidden_states[layer])
    assert not torch.allclose(student.logits, expected.logits)


def test_a_cut_student_survives_saving(architecture, tmp_path):
    _, model = architecture
    student = keep_layers(model, [0, 2])
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(again) is type(student)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in student.state_dict().items())
    torch.testing.assert_close(outputs(again).logits, outputs(student).logits, atol=1e-5, rtol=1e-5)


def test_modernberts_layer_types_are_cut_along():
    model = make_model("modernbert")
    assert model.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert keep_layers(model, [0, 2]).config.layer_types == ["full_attention", "sliding_attention"]
    assert keep_layers(model, [0, 3]).config.layer_types == ["full_attention", "full_attention"]
    assert len(model.config.layer_types) == 4


def test_settings_that_are_no_layers_are_left_alone():
    student = keep_layers(make_model(labels=("a", "b", "c", "d")), [0, 3])
    assert student.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}


@pytest.mark.parametrize("layers", [[4], [-1], [0, 0], [], [0, 1, 2, 3, 4]])
def test_wrong_layers_are_refused(layers):
    with pytest.raises(InputError, match="the teacher's layers are 0 to 3, each at most once") as caught:
        keep_layers(make_model(), layers)
    assert str(layers) in str(caught.value)


def test_shared_layers_and_two_stacks_are_refused_in_a_sentence():
    with pytest.raises(
        InputError, match=r"albert has no single stack of 4 layers to cut \(it shares .* student\.shape"
    ):
        keep_layers(make_model("albert"), [0, 1])
    size = {
        "d_model": 16,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "vocab_size": 50,
        "max_position_embeddings": 32,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    for decoder in (2, 1):
        bart = BartForSequenceClassification(BartConfig(encoder_layers=2, decoder_layers=decoder, **size, **heads))
        with pytest.raises(InputError, match=r"bart has no single stack of 2 layers to cut \(two stacks\)"):
            keep_layers(bart, [0])


def test_settings_by_layer_are_cut_with_the_layers():
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    config = LongformerConfig(vocab_size=50, attention_window=[2, 4, 6, 8], max_position_embeddings=32, **shape)
    student = keep_layers(LongformerForSequenceClassification(config), [1, 3])
    assert student.config.attention_window == [4, 8]


# --- building from the recipe -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "layers"),
    [
        ({}, [0, 3]),
        ({"layers": 2}, [0, 3]),
        ({"layers": 3}, [0, 2, 3]),
        ({"layers": 2, "pattern": "alternate"}, [0, 2]),
        ({"pattern": "last"}, [2, 3]),
        ({"layers": [1, 2], "pattern": "first"}, [1, 2]),
    ],
)
def test_layers_of_the_recipe(student, layers, tmp_path):
    from_teacher = teacher()
    model = build(from_teacher, **student)
    assert model.config.limbeck == {"initialisation": {"from": "teacher", "layers": layers}}
    expected = keep_layers(from_teacher.model, layers).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert open_classifier(str(tmp_path)).model.config.limbeck == model.config.limbeck
    assert not hasattr(from_teacher.model.config, "limbeck")


def test_half_of_one_layer_is_one():
    assert build(teacher(num_hidden_layers=1)).config.num_hidden_layers == 1


def test_too_many_layers_are_refused():
    with pytest.raises(InputError, match=r"student\.layers is 5, but the teacher has 4 layers"):
        build(teacher(), layers=5)


def test_another_checkpoint(tmp_path):
    folder = save_model(tmp_path / "small", seed=5, hidden_size=16)
    built = build_student(Student(model=str(folder)), None, teacher(), TWO, 0)
    assert built.model.config.hidden_size == 16
    assert built.model.config.limbeck == {"initialisation": {"from": "checkpoint", "model": str(folder)}}
    expected = make_model(seed=5, hidden_size=16).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in built.model.state_dict().items())


def test_another_checkpoints_head_is_made_for_the_task(tmp_path):
    folder = save_model(tmp_path / "small", labels=("x", "y", "z"), seed=5)
    made, again, other = (build(None, seed=seed, model=str(folder)) for seed in (1, 1, 2))
    assert made.config.id2label == dict(enumerate(LABELS))
    assert made.config.problem_type == "single_label_classification"
    assert made.classifier.weight.shape == (2, 32)
    assert torch.equal(made.classifier.weight, again.classifier.weight)  # seeded
    assert not torch.equal(made.classifier.weight, other.classifier.weight)
    assert torch.equal(made.bert.pooler.dense.weight, make_model(seed=5).bert.pooler.dense.weight)


def test_a_model_object_is_copied():
    given = teacher(seed=4)
    built = build_student(Student(model="memory:x"), given, teacher(), TWO, 0).model
    assert built is not given.model
    assert torch.equal(built.classifier.weight, given.model.classifier.weight)
    assert built.config.limbeck["initialisation"]["from"] == "model object"
    assert not hasattr(given.model.config, "limbeck")
    with pytest.raises(InputError, match=r"has 3 outputs, the task has 2 \(negative, positive\)"):
        build_student(Student(model="memory:x"), teacher(labels=("a", "b", "c")), teacher(), TWO, 0)


def test_a_fresh_shape():
    from_teacher = teacher()
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    made, again, other = (build(from_teacher, seed=seed, shape=shape) for seed in (1, 1, 2))
    assert (made.config.hidden_size, made.config.intermediate_size, made.config.num_hidden_layers) == (16, 24, 3)
    assert made.config.num_attention_heads == 2  # the teacher's
    assert made.bert.encoder.layer[2].intermediate.dense.weight.shape == (24, 16)
    assert made.config.limbeck == {"initialisation": {"from": "random weights", "shape": shape}}
    assert made.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(made.classifier.weight, again.classifier.weight)
    assert not torch.equal(made.classifier.weight, other.classifier.weight)
    assert from_teacher.model.config.hidden_size == 32


@pytest.mark.parametrize("kind", ["distilbert", "albert", "modernbert"])
def test_a_fresh_shape_of_fewer_layers_survives_saving(kind, tmp_path):
    made = build(teacher(kind=kind), shape={"num_hidden_layers": 2})
    made.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.num_hidden_layers == 2
    torch.testing.assert_close(outputs(again).logits, outputs(made).logits, atol=1e-5, rtol=1e-5)


def test_impossible_shapes_are_refused():
    with pytest.raises(InputError, match=r"student\.shape: bert has no 'hidden_siz'; did you mean 'hidden_size'"):
        build(teacher(), shape={"hidden_siz": 16})
    with pytest.raises(InputError, match=r"student\.shape does not make a bert: .*hidden size"):
        build(teacher(), shape={"hidden_size": 15})
    with pytest.raises(InputError, match=r"student\.shape does not make a modernbert: .*layer_types"):
        build(teacher(kind="modernbert"), shape={"num_hidden_layers": 6})


def test_without_a_teacher_a_start_is_needed():
    with pytest.raises(InputError, match="add student=MODEL"):
        build(None)
