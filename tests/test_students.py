"""Students: what is kept of the teacher, what is new, and how a student says where it came from."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS, make_model, make_tokenizer, save_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertForMaskedLM,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    PreTrainedModel,
)
from typer.testing import CliRunner

from limbeck import api
from limbeck.anatomy import layer_list
from limbeck.checkpoints import Checkpoint, open_classifier
from limbeck.cli import app
from limbeck.errors import InputError
from limbeck.recipe.schema import Student
from limbeck.students import PATTERNS, as_distilbert, build_student, keep_layers, layers_of_pattern, layers_table
from limbeck.students.importance import block_influence
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
    with pytest.raises(
        InputError, match=r"student\.layers is 7, but the teacher has 6 layers; keep at least 1 and at most 6"
    ):
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
    with pytest.raises(InputError, match="cannot be kept; the model's layers are 0 to 3, each at most once") as caught:
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
        ({"layers": "half", "pattern": "first"}, [0, 1]),
        ({"layers": "all"}, [0, 1, 2, 3]),
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


@pytest.mark.parametrize("architecture", STACKS)
@torch.no_grad()
def test_influence_is_measured_in_any_encoder(architecture: str) -> None:
    model, tokenizer, text = make_model(architecture).eval(), make_tokenizer(), "the film was good and late"
    ids = torch.tensor([tokenizer(text).input_ids])
    states = model.base_model(input_ids=ids, output_hidden_states=True).hidden_states[:-1]  # the last may be normed
    expected = [1 - torch.cosine_similarity(one, other, dim=-1).mean() for one, other in itertools.pairwise(states)]
    found = block_influence(model, tokenizer, [text])
    assert found[:-1] == pytest.approx([float(each) for each in expected], abs=1e-5)
    student = Student(layers=1, pattern="influence")
    made = build_student(student, None, Checkpoint(model, tokenizer, "t"), TWO, 0, texts=[text])
    assert made.model.config.limbeck["initialisation"]["layers"] == [found.index(max(found))]


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


# --- layers of another checkpoint -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "layers"),
    [
        ({"layers": 2}, [0, 3]),
        ({"layers": 2, "pattern": "alternate"}, [0, 2]),
        ({"layers": [1, 2, 3]}, [1, 2, 3]),
        ({"layers": "all"}, [0, 1, 2, 3]),
    ],
)
def test_another_checkpoint_can_be_cut(student, layers, tmp_path):
    folder = save_model(tmp_path / "deep", seed=5)
    expected = keep_layers(make_model(seed=5), layers).state_dict()
    for given in (None, Checkpoint(make_model(seed=5), make_tokenizer(), "")):
        built = build_student(Student(model=str(folder), **student), given, teacher(), TWO, 0).model
        assert built.config.num_hidden_layers == len(layers)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in built.state_dict().items())
        kind = "checkpoint" if given is None else "model object"
        assert built.config.limbeck["initialisation"] == {"from": kind, "model": str(folder), "layers": layers}
    with pytest.raises(InputError, match=r"student\.layers is 5, but student\.model has 4 layers"):
        build(teacher(num_hidden_layers=6), model=str(folder), layers=5)


# --- fresh shapes of another architecture -----------------------------------------------------------------------------

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}


def shape_for(kind: str, **changes: Any) -> dict[str, Any]:
    """A small shape in the architecture's own words."""
    shape = {"model_type": kind, **SMALL, **changes}
    if kind == "distilbert":
        shape["hidden_dim"] = shape.pop("intermediate_size")
    return shape


@pytest.mark.parametrize("kind", [*STACKS, "albert", "mobilebert", "deberta-v2"])
def test_a_fresh_shape_of_another_architecture(kind, tmp_path):
    from_teacher = teacher(kind="roberta", vocabulary=210, max_position_embeddings=50, pad_token_id=0)
    more = {"mobilebert": {"intra_bottleneck_size": 8}, "modernbert": {"local_attention": 8}}.get(kind, {})
    shape = shape_for(kind, **more)
    student = build_student(Student(shape=shape), None, from_teacher, TWO, 0)
    config = student.model.config
    assert config.model_type == kind
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    assert student.model.get_input_embeddings().num_embeddings == config.vocab_size == 210  # padded beyond the tokens
    assert config.pad_token_id == from_teacher.tokenizer.pad_token_id
    for name, token in (("cls_token_id", 2), ("sep_token_id", 3)):
        assert getattr(config, name, None) in (None, token)
    assert config.id2label == dict(enumerate(LABELS))
    assert config.limbeck == {"initialisation": {"from": "random weights", "shape": shape}}
    # The teacher reads 49 tokens: 50 positions, of which RoBERTa leaves as many unused as its padding index and one.
    rows = next((m for n, m in student.model.named_modules() if n.endswith("position_embeddings")), None)
    assert config.max_position_embeddings == 49 + (2 if kind in ("roberta", "mpnet") else 0)
    if isinstance(rows, nn.Embedding):
        assert rows.num_embeddings == config.max_position_embeddings
    with torch.no_grad():
        student.model.eval()(input_ids=torch.full((1, 49), 70), attention_mask=torch.ones(1, 49, dtype=torch.long))
    student.model.save_pretrained(tmp_path)
    student.tokenizer.save_pretrained(tmp_path)
    again = open_classifier(str(tmp_path))
    assert type(again.model) is type(student.model)
    torch.testing.assert_close(outputs(again.model).logits, outputs(student.model).logits, atol=1e-5, rtol=1e-5)
    assert ("token_type_ids" in again.tokenizer.model_input_names) == (
        kind in ("bert", "roberta", "electra", "albert", "mobilebert", "deberta-v2")
    )
    assert "token_type_ids" in from_teacher.tokenizer.model_input_names


def test_given_positions_and_derived_settings_are_kept():
    assert build(teacher(), shape=shape_for("roberta", max_position_embeddings=40)).config.max_position_embeddings == 40
    mobile = build(teacher(), shape=shape_for("mobilebert", intra_bottleneck_size=8))
    wider = build(Checkpoint(mobile, make_tokenizer(), ""), shape={"intra_bottleneck_size": 12})
    assert wider.mobilebert.encoder.layer[0].attention.self.query.weight.shape == (12, 12)


def test_a_fresh_shape_without_a_teacher(tmp_path):
    make_tokenizer(extra=["word"]).save_pretrained(tmp_path)
    made = build_student(Student(shape=shape_for("electra"), tokenizer=str(tmp_path)), None, None, TWO, 0)
    assert made.model.config.vocab_size == len(made.tokenizer) == len(make_tokenizer()) + 1
    assert made.model.config.max_position_embeddings == 512  # the architecture's own
    assert made.model.config.limbeck["initialisation"]["tokenizer"] == str(tmp_path)
    needs = r"without a teacher a fresh shape needs .* add student\."
    with pytest.raises(InputError, match=needs + "tokenizer=FOLDER"):
        build(None, shape=shape_for("electra"))
    with pytest.raises(InputError, match=needs + "shape.model_type=ARCHITECTURE"):
        build(None, shape={"hidden_size": 16}, tokenizer=str(tmp_path))
    with pytest.raises(InputError, match=r"student\.embeddings are the teacher's, and there is none"):
        build(None, shape=shape_for("electra"), tokenizer=str(tmp_path), embeddings=True)


def test_another_tokenizer_sets_the_vocabulary(tmp_path):
    make_tokenizer(extra=["one", "more"]).save_pretrained(tmp_path)
    for shape in (shape_for("bert"), dict(SMALL)):
        made = build_student(Student(shape=shape, tokenizer=str(tmp_path)), None, teacher(), TWO, 0)
        assert made.model.config.vocab_size == len(made.tokenizer) == len(make_tokenizer()) + 2
        assert made.tokenizer.tokenize("more") == ["more"]


def test_wrong_architectures_entries_and_tokenizers_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no architecture 'distillbert' that classifies; did you mean 'distilbert'"):
        build(teacher(), shape={"model_type": "distillbert"})
    with pytest.raises(InputError, match=r"student\.shape: mobilebert has no 'intra_size'"):
        build(teacher(), shape={"model_type": "mobilebert", "intra_size": 8})
    with pytest.raises(InputError, match=r"student\.shape: distilbert has no 'intermediate_size'"):
        build(teacher(), shape={"model_type": "distilbert", "intermediate_size": 8})
    with pytest.raises(InputError, match=r"student\.shape does not make a bert: .*hidden size"):
        build(teacher(), shape={"model_type": "bert", "hidden_size": 15, "num_attention_heads": 2})
    with pytest.raises(InputError, match=r"student\.shape does not make a bert: .*hidden_size"):
        build(teacher(), shape={"model_type": "bert", "hidden_size": "wide"})
    with pytest.raises(InputError, match=r"student\.tokenizer '.*nothing' is neither a tokenizer's folder nor"):
        build(teacher(), shape=dict(SMALL), tokenizer=str(tmp_path / "nothing"))


def test_a_fresh_language_model():
    made = build_student(Student(shape=shape_for("distilbert")), None, teacher(), Task("masked-lm", ()), 0).model
    assert isinstance(made, DistilBertForMaskedLM)
    with pytest.raises(InputError, match="no architecture 'bart-like' that fills in words; did you mean 'bart'"):
        build(teacher(), Task("masked-lm", ()), shape={"model_type": "bart-like"})


@pytest.mark.parametrize("entries", [{"embeddings": True, "layers": 2}, {"tokenizer": "x", "model": "y"}])
def test_entries_about_fresh_shapes_are_not_ignored(entries):
    with pytest.raises(InputError, match="is about a fresh shape; give student"):
        build(teacher(), **entries)


# --- the teacher's embeddings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*STACKS, "albert", "mobilebert"])
def test_a_fresh_shape_starts_with_the_teachers_embeddings(kind):
    more = {"intra_bottleneck_size": 8, "embedding_size": 12} if kind == "mobilebert" else {}
    from_teacher = teacher(kind=kind, seed=3, **more)
    depth = {"num_hidden_layers": 2}
    made = build(from_teacher, shape=depth, embeddings=True)
    plain = build(from_teacher, shape=depth)
    with torch.no_grad():
        ids = torch.tensor([[2, 70, 81, 92, 3]])
        first, theirs, random = (outputs_of_embeddings(each, ids) for each in (made, from_teacher.model, plain))
    assert torch.equal(first, theirs)
    assert not torch.allclose(random, theirs)
    copied = made.config.limbeck["initialisation"]["embeddings"]
    assert made.config.limbeck["initialisation"]["from"] == "random weights"
    assert any("word_embeddings" in name or "tok_embeddings" in name for name in copied)
    assert ("embeddings_project.weight" in copied) == (kind == "electra")
    assert ("embeddings.embedding_transformation.weight" in copied) == (kind == "mobilebert")
    old, new = from_teacher.model.state_dict(), made.state_dict()
    layer = f"{layer_list(made)[0]}.1." if kind != "albert" else "albert.encoder.albert_layer_groups."
    weights = [name for name in new if name.startswith(layer) and new[name].dim() == 2]
    assert weights
    assert not any(torch.equal(new[name], old[name]) for name in weights)  # all else is fresh


def outputs_of_embeddings(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What the first layer reads."""
    return model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[0]


def test_distilberts_embeddings_come_from_bert_by_name():
    from_teacher = teacher()
    shape = {"model_type": "distilbert", "hidden_size": 32, "n_heads": 2, "n_layers": 1}
    made = build(from_teacher, shape=shape, embeddings=True)
    theirs = from_teacher.model.bert.embeddings
    assert torch.equal(made.distilbert.embeddings.word_embeddings.weight, theirs.word_embeddings.weight)
    assert torch.equal(made.distilbert.embeddings.position_embeddings.weight, theirs.position_embeddings.weight)


def test_embeddings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"word_embeddings.weight is 200x16 in the student and 200x32 in the teacher"):
        build(teacher(), shape={"hidden_size": 16}, embeddings=True)
    with pytest.raises(InputError, match=r"modernbert and the teacher's bert the first alone has embeddings\.tok_"):
        build(teacher(), shape=shape_for("modernbert", hidden_size=32), embeddings=True)
    words = make_tokenizer().get_vocab()
    make_tokenizer(extra=["other"]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"of the teacher's {len(words)} tokens, .* has {len(words) + 1} others"):
        build(teacher(), shape=dict(SMALL), embeddings=True, tokenizer=str(tmp_path))


# --- DistilBERT from BERT ---------------------------------------------------------------------------------------------


def make_language_model(seed: int = 0) -> BertForMaskedLM:
    config = make_model().config
    torch.manual_seed(seed)
    model = BertForMaskedLM(config).eval()
    for parameter in model.parameters():  # biases and norms too, which start as zeros and ones
        nn.init.normal_(parameter, std=0.3)
    return model


def test_distilbert_with_all_of_berts_layers_computes_the_same():
    bert = make_language_model()
    ours = as_distilbert(bert, [0, 1, 2, 3])
    assert isinstance(ours, DistilBertForMaskedLM)
    student, expected = outputs(ours), outputs(bert)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    for mine, theirs in zip(student.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[mask], theirs[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(student.logits[mask], expected.logits[mask], atol=1e-4, rtol=1e-4)
    assert expected.logits[mask].std() > 0.5


def test_distilberts_layers_are_those_named_and_copies():
    bert = make_language_model()
    before = copy.deepcopy(bert.state_dict())
    ours = as_distilbert(bert, [0, 3])
    assert ours.config.num_hidden_layers == 2
    query = ours.distilbert.transformer.layer[1].attention.q_lin
    assert torch.equal(query.weight, bert.bert.encoder.layer[3].attention.self.query.weight)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in bert.state_dict().items())


def test_a_distilbert_student_of_the_recipe(tmp_path):
    from_teacher = teacher()
    made, again, other = (
        build_student(Student(layers=2, architecture="distilbert"), None, from_teacher, TWO, seed) for seed in (1, 1, 2)
    )
    assert isinstance(made.model, DistilBertForSequenceClassification)
    assert made.model.config.limbeck["initialisation"] == {
        "from": "teacher",
        "layers": [0, 3],
        "architecture": "distilbert",
        "random": ["pre_classifier", "classifier"],
    }
    assert made.model.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(made.model.pre_classifier.weight, again.model.pre_classifier.weight)  # seeded
    assert not torch.equal(made.model.pre_classifier.weight, other.model.pre_classifier.weight)
    assert torch.equal(outputs(made.model).hidden_states[1], outputs(other.model).hidden_states[1])
    kept = outputs(keep_layers(from_teacher.model, [0, 3])).hidden_states[-1]
    torch.testing.assert_close(outputs(made.model).hidden_states[-1][1], kept[1], atol=1e-5, rtol=1e-5)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_input_names == ["input_ids", "attention_mask"]
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(opened).logits, outputs(made.model).logits)


def test_a_checkpoint_can_become_a_distilbert(tmp_path):
    made = build(None, model=str(save_model(tmp_path / "bert")), architecture="distilbert")
    assert made.config.num_hidden_layers == 4
    assert made.config.limbeck["initialisation"]["layers"] == [0, 1, 2, 3]


def test_distilbert_is_cut_from_bert_alone():
    with pytest.raises(InputError, match=r"can be cut from a bert alone, and this is a roberta \(RobertaFor"):
        build(teacher(kind="roberta"), architecture="distilbert")
    with pytest.raises(InputError, match=r"give student\.shape\.model_type=distilbert instead"):
        build(teacher(), shape={"hidden_size": 16}, architecture="distilbert")
    with pytest.raises(InputError, match="the model's layers are 0 to 3"):
        build(teacher(), layers=[7], architecture="distilbert")


# --- limbeck cut ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "layers"), [({"layers": 2}, [0, 2]), ({"layers": "half"}, [0, 2]), ({"layers": [3, 1]}, [3, 1])]
)
def test_cut_writes_a_shallower_model_with_its_tokenizer(settings, layers, tmp_path, tiny_teacher_dir):
    folder = api.cut(tiny_teacher_dir, tmp_path / "a" / "cut", **settings)
    cut, whole = open_classifier(str(folder)), open_classifier(str(tiny_teacher_dir))
    expected = keep_layers(whole.model, layers).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in cut.model.state_dict().items())
    assert cut.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    origin = {"from": "checkpoint", "model": str(tiny_teacher_dir), "layers": layers}
    assert cut.model.config.limbeck == {"initialisation": origin}
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["cut"]


def test_cut_refuses_what_cannot_be(tmp_path, tiny_teacher_dir):
    out = tmp_path / "out"
    for layers, message in (
        (5, r"layers is 5, but the model has 4 layers; keep at least 1 and at most 4"),
        (0, r"layers is 0, but the model has 4 layers"),
        ([0, 4], r"layers \[0, 4\] cannot be kept; the model's layers are 0 to 3"),
        ("third", r"layers is 'third'; give a number such as 3"),
        ([0, True], r"layers is \[0, True\]; give a number"),
    ):
        with pytest.raises(InputError, match=message):
            api.cut(tiny_teacher_dir, out, layers)
    with pytest.raises(InputError, match="no pattern 'alternat'; did you mean 'alternate'"):
        api.cut(tiny_teacher_dir, out, 2, "alternat")
    with pytest.raises(InputError, match="albert has no single stack of 4 layers to cut"):
        api.cut((make_model("albert"), make_tokenizer()), out, 2)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("years of work", "utf-8")
    with pytest.raises(InputError, match="is in use; give a folder that does not exist yet"):
        api.cut(tiny_teacher_dir, out, 2)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_the_cut_command(tmp_path: Path, tiny_teacher_dir: Path):
    out = tmp_path / "cut"
    result = CliRunner().invoke(app, ["cut", str(tiny_teacher_dir), str(out), "layers=3", "pattern=first"])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(out)
    assert open_classifier(str(out)).model.config.limbeck["initialisation"]["layers"] == [0, 1, 2]
    for words, message in (
        (["layers=3"], "give a model, a folder and the layers to keep"),
        ([str(tiny_teacher_dir), str(tmp_path / "b")], "give a model, a folder and the layers to keep"),
        ([str(tiny_teacher_dir), str(tmp_path / "b"), "layers=3", "patern=last"], "did you mean 'pattern'"),
    ):
        failed = CliRunner().invoke(app, ["cut", *words])
        assert isinstance(failed.exception, InputError)
        assert message in str(failed.exception)
