"""IB-BERT, MobileBERT's teacher: a BERT whose layers hand on narrow states (Sun et al. 2020, section 3.1).

Transformers' MobileBERT has all its parts but one: there queries and keys read the wide states within a layer, here the
narrow ones between layers, as in the paper's table 1. Importing this module makes `AutoModel...from_pretrained` open
it.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    MobileBertConfig,
    MobileBertForMaskedLM,
    MobileBertForSequenceClassification,
    MobileBertModel,
)


class IBBertConfig(MobileBertConfig):
    """The sizes of an IB-BERT; IB-BERT-large's, 293M parameters, when nothing is given."""

    model_type = "ib-bert"
    hidden_act: str = "gelu"
    intra_bottleneck_size: int = 1024
    intermediate_size: int = 4096
    num_feedforward_networks: int = 1
    key_query_shared_bottleneck: bool = False
    normalization_type: str = "layer_norm"


class IBBertModel(MobileBertModel):
    """The body; states of `hidden_size` between layers, of `intra_bottleneck_size` within."""

    config_class = IBBertConfig

    def __init__(self, config: IBBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer)
        for layer in self.encoder.layer:
            attention = layer.attention.self
            attention.query = nn.Linear(config.hidden_size, attention.all_head_size)
            attention.key = nn.Linear(config.hidden_size, attention.all_head_size)
        self.post_init()


class IBBertForMaskedLM(MobileBertForMaskedLM):
    """IB-BERT that fills in words."""

    config_class = IBBertConfig

    def __init__(self, config: IBBertConfig) -> None:
        super().__init__(config)
        self.mobilebert = IBBertModel(config, add_pooling_layer=False)
        self.post_init()


class IBBertForSequenceClassification(MobileBertForSequenceClassification):
    """IB-BERT that classifies."""

    config_class = IBBertConfig

    def __init__(self, config: IBBertConfig) -> None:
        super().__init__(config)
        self.mobilebert = IBBertModel(config)
        self.post_init()


def _register() -> None:
    kinds: dict[Any, type[Any]] = {
        AutoModel: IBBertModel,
        AutoModelForMaskedLM: IBBertForMaskedLM,
        AutoModelForSequenceClassification: IBBertForSequenceClassification,
    }
    AutoConfig.register(IBBertConfig.model_type, IBBertConfig, exist_ok=True)
    for auto, kind in kinds.items():
        auto.register(IBBertConfig, kind, exist_ok=True)


_register()
