"""A student of another class than its teacher with the teacher's weights: DistilBERT from BERT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from limbeck.errors import InputError
from limbeck.students.layers import keep_layers

_LAYER = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_LANGUAGE_HEAD = {
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
    "cls.predictions.decoder": "vocab_projector",
}


def as_distilbert(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A DistilBERT with these layers of a BERT (Sanh et al. 2019, section 3; the authors' `extract_distilbert.py`).

    The authors drop the token types. Here the row of the first segment is added to every position, where BERT adds it
    too, so that on single texts the embeddings stay what the kept layers were trained on; the second segment's row is
    lost. A masked language model keeps its head. A classifier's head is new and random: BERT's pooler ends in a tanh,
    DistilBERT's in a ReLU. DistilBERT's norms always have an epsilon of 1e-12.

    Args:
        model: a `BertForSequenceClassification` or `BertForMaskedLM`; not changed.
        layers: layer numbers counted from 0.

    Returns:
        A `DistilBertForSequenceClassification` or `DistilBertForMaskedLM`.

    Raises:
        InputError: another class of model; see also `keep_layers`.
    """
    classifies = isinstance(model, BertForSequenceClassification)
    if not classifies and not isinstance(model, BertForMaskedLM):
        raise InputError(
            f"student.architecture is distilbert, which can be cut from a bert alone, and this is a "
            f"{model.config.model_type} ({type(model).__name__}); leave student.architecture out"
        )
    cut = keep_layers(model, layers)
    config = _config(cut)
    student = DistilBertForSequenceClassification(config) if classifies else DistilBertForMaskedLM(config)
    theirs = cut.state_dict()
    positions, types = (theirs[f"bert.embeddings.{name}_embeddings.weight"] for name in ("position", "token_type"))
    modules = {"bert.embeddings.LayerNorm": "distilbert.embeddings.LayerNorm"} | ({} if classifies else _LANGUAGE_HEAD)
    for layer in range(len(layers)):
        for old, new in _LAYER.items():
            modules[f"bert.encoder.layer.{layer}.{old}"] = f"distilbert.transformer.layer.{layer}.{new}"
    weights: dict[str, torch.Tensor] = {
        "distilbert.embeddings.word_embeddings.weight": theirs["bert.embeddings.word_embeddings.weight"],
        "distilbert.embeddings.position_embeddings.weight": positions + types[0],
    }
    for old, new in modules.items():
        weights |= {f"{new}.{part}": theirs[f"{old}.{part}"] for part in ("weight", "bias")}
    head = {name: tensor for name, tensor in student.state_dict().items() if classifies and "distilbert" not in name}
    student.load_state_dict(weights | head)
    return student.train(model.training)


def _config(bert: PreTrainedModel) -> DistilBertConfig:
    config = bert.config
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation=config.hidden_act,
        initializer_range=config.initializer_range,
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=config.tie_word_embeddings,
        id2label=config.id2label,
        label2id=config.label2id,
        problem_type=config.problem_type,
    )
