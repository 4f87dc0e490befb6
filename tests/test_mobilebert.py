"""MobileBERT and its teacher (Sun et al. 2020): transformers' own classes are both, as far as these tests say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import LABELS, make_tokenizer
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    MobileBertConfig,
    MobileBertForSequenceClassification,
    MobileBertModel,
)
from transformers.models.mobilebert.modeling_mobilebert import NoNorm

from limbeck.checkpoints import Checkpoint
from limbeck.recipe.schema import Student
from limbeck.students import build_student
from limbeck.tasks import Task

# Table 1 of the paper. Queries and keys come from a bottleneck of their own, which the paper's teacher has not: see
# `test_the_teachers_size`.
TEACHER: dict[str, Any] = {
    "hidden_size": 512,
    "intra_bottleneck_size": 1024,
    "intermediate_size": 4096,
    "num_feedforward_networks": 1,
    "num_attention_heads": 4,
    "normalization_type": "layer_norm",
    "hidden_act": "gelu",
}
TINY: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 16,
    "embedding_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def parameters(config: MobileBertConfig) -> int:
    """The body's parameters, counted without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in MobileBertModel(config).parameters())


def tiny_student(**changes: Any) -> MobileBertConfig:
    return MobileBertConfig(**TINY, intra_bottleneck_size=8, intermediate_size=16, **changes)


def tiny_teacher(**changes: Any) -> MobileBertConfig:
    own = {name: TEACHER[name] for name in ("num_feedforward_networks", "normalization_type", "hidden_act")}
    return MobileBertConfig(**TINY, **own, intra_bottleneck_size=32, intermediate_size=64, **changes)


def test_the_students_shape():
    config = MobileBertConfig()
    with torch.device("meta"):
        model = MobileBertModel(config)
    assert len(model.encoder.layer) == 24
    layer = model.encoder.layer[0]
    assert len(layer.ffn) + 1 == 4
    assert layer.bottleneck.input.dense.weight.shape == (128, 512)
    assert layer.output.bottleneck.dense.weight.shape == (512, 128)
    assert layer.attention.self.value.weight.shape == (128, 512)
    assert isinstance(layer.output.LayerNorm, NoNorm)
    assert model.embeddings.embedding_transformation.weight.shape == (512, 3 * 128)  # trigrams


def test_the_students_size():
    """24.8 M of the paper's 25.3 M are the body; the rest is the pre-training heads, less the tied embeddings."""
    body = parameters(MobileBertConfig())
    words, width = 30522, 512
    heads = width * width + width + 2 * width + words + 2 * width + 2  # transform, its norm, word biases, next sentence
    assert body == 24_844_544
    assert body + heads == pytest.approx(25.3e6, rel=0.01)


def test_the_teachers_size():
    """The paper's teacher attends to the 512-wide states; transformers must widen them for queries and keys first."""
    config = MobileBertConfig(**TEACHER)
    width, inner, wide = 512, 1024, 4096
    norms = 2 * (3 * inner + width)  # after the bottleneck, attention, the feed-forward; the last one back in 512
    bottlenecks = (width * inner + inner) + (inner * width + width)
    feed_forward = (inner * wide + wide) + (wide * inner + inner)
    attention_output = inner * inner + inner
    papers = 3 * (width * inner + inner)
    shared = (width * inner + inner) + 2 * inner + 2 * (inner * inner + inner) + (width * inner + inner)
    embeddings = 30522 * 128 + (512 + 2) * width + (3 * 128 * width + width) + 2 * width
    pooler = width * width + width
    rest = embeddings + pooler + 24 * (norms + bottlenecks + feed_forward + attention_output)
    assert rest + 24 * papers == pytest.approx(293e6, rel=0.01)
    assert parameters(config) == rest + 24 * shared
    assert parameters(config) == pytest.approx(332e6, rel=0.01)


def test_the_teachers_own_attention_is_not_there():
    config = tiny_teacher(key_query_shared_bottleneck=False)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MobileBertModel(config)(torch.full((1, 4), 70))


def test_no_norm_starts_as_the_identity():
    states = torch.randn(2, 3, 16)
    norm = NoNorm(16)
    assert torch.equal(norm(states), states)
    with torch.no_grad():
        norm.weight.fill_(2.0)
        norm.bias.fill_(-1.0)
    assert torch.equal(norm(states), 2 * states - 1)


@torch.no_grad()
def test_feature_maps_are_of_one_width():
    ids = torch.tensor([[2, 70, 81, 92, 3]])
    teacher, student = MobileBertModel(tiny_teacher()).eval(), MobileBertModel(tiny_student()).eval()
    assert teacher.encoder.layer[0].bottleneck.input.dense.out_features == 32
    assert student.encoder.layer[0].bottleneck.input.dense.out_features == 8
    theirs, ours = (model(ids, output_hidden_states=True).hidden_states for model in (teacher, student))
    assert [each.shape for each in theirs] == [each.shape for each in ours] == [(1, 5, 16)] * 3
    assert MobileBertConfig().hidden_size == TEACHER["hidden_size"] == 512  # the real ones likewise


@pytest.mark.parametrize("config", [tiny_student, tiny_teacher])
def test_it_learns_and_opens_elsewhere(config, tmp_path):
    torch.manual_seed(0)
    model = MobileBertForSequenceClassification(config(num_labels=2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids, labels = torch.tensor([[2, 70, 81, 92, 3], [2, 75, 99, 101, 3]]), torch.tensor([1, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = model(ids, labels=labels).loss
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert model(ids, labels=labels).loss < first
    layers = [name for name in before if ".layer.1." in name and name.endswith("weight")]
    assert layers
    assert not any(torch.equal(model.state_dict()[name], before[name]) for name in layers)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(again) is MobileBertForSequenceClassification
    torch.testing.assert_close(again.eval()(ids).logits, model.eval()(ids).logits)


def test_the_recipes_student_takes_the_teachers_embeddings():
    """As in the paper: both have them in the same sizes."""
    torch.manual_seed(0)
    teacher = MobileBertForSequenceClassification(tiny_teacher(id2label=dict(enumerate(LABELS))))
    with torch.no_grad():
        nn.init.normal_(teacher.mobilebert.embeddings.embedding_transformation.bias)
    shape = {
        "intra_bottleneck_size": 8,
        "intermediate_size": 16,
        "num_feedforward_networks": 4,
        "hidden_act": "relu",
    }
    checkpoint = Checkpoint(teacher, make_tokenizer(), "teacher")
    student = Student(shape=shape, embeddings=True)
    made = build_student(student, None, checkpoint, Task("classification", LABELS), 0).model
    assert len(made.mobilebert.encoder.layer[0].ffn) == 3
    assert made.mobilebert.encoder.layer[0].attention.self.query.weight.shape == (8, 8)
    theirs = teacher.mobilebert.embeddings.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in made.mobilebert.embeddings.state_dict().items())
