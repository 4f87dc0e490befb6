"""BiLSTM students, of one text or of a pair (Tang et al. 2019, section 3).

Importing this module makes `AutoModelForSequenceClassification.from_pretrained` open them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import relu
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

RANDOM = 0.25
"""Vectors that are not given are drawn uniformly from minus to plus this, as the paper's are."""


class BiLSTMConfig(PreTrainedConfig):
    """The sizes of a BiLSTM; the paper's for SST-2, 0.96M parameters outside the vectors, when nothing is given.

    Attributes:
        embedding_size: of a vector.
        channels: 1 for vectors that are trained, 2 for a copy of them beside that stays as it is.
        hidden_size: of each direction's state.
        num_hidden_layers: LSTMs on top of each other.
        classifier_size: of the layer between the states and the logits.
        hidden_dropout_prob: of that layer, and between LSTMs.
        pair: whether an example is two texts, told apart by `token_type_ids`.
        max_position_embeddings: tokens read of an example. The network itself has no limit.
    """

    model_type = "bilstm"
    vocab_size: int = 30522
    embedding_size: int = 300
    channels: int = 2
    hidden_size: int = 150
    num_hidden_layers: int = 1
    classifier_size: int = 200
    hidden_dropout_prob: float | int = 0.1
    pair: bool = False
    max_position_embeddings: int = 512
    pad_token_id: int | None = 0


class BiLSTMForSequenceClassification(PreTrainedModel):
    """Vectors, a bidirectional LSTM, a layer with ReLU and dropout, and logits.

    A text is what the last forward and the last backward state say of it, [2h]; padding is not read. The two texts a, b
    of a pair are read by the same LSTM each on its own, and compared as [a; b; |a - b|; a * b], [8h].

    Args:
        config: its sizes.

    Raises:
        ValueError: another number of channels than 1 or 2.
    """

    config_class = BiLSTMConfig
    base_model_prefix = "bilstm"
    main_input_name = "input_ids"

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        if config.channels not in (1, 2):
            raise ValueError(f"channels is {config.channels}; give 1 (trained vectors) or 2 (and a copy that stays)")
        self.num_labels = config.num_labels
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        if config.channels == 2:
            self.embeddings_static = nn.Embedding(config.vocab_size, config.embedding_size)
            self.embeddings_static.weight.requires_grad_(False)
        self.lstm = nn.LSTM(
            config.channels * config.embedding_size,
            config.hidden_size,
            config.num_hidden_layers,
            batch_first=True,
            bidirectional=True,
            dropout=config.hidden_dropout_prob if config.num_hidden_layers > 1 else 0.0,
        )
        self.dense = nn.Linear((8 if config.pair else 2) * config.hidden_size, config.classifier_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.classifier_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own ranges, but for the vectors; weights that were loaded stay."""
        bound = RANDOM
        if isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
        for weight in module.parameters(recurse=False):
            init.uniform_(weight, -bound, bound)

    def get_input_embeddings(self) -> nn.Embedding:
        """The vectors that are trained."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Others."""
        self.embeddings = value

    @torch.no_grad()
    def set_vectors(self, vectors: torch.Tensor) -> None:
        """Start every channel from these vectors, float [V, d]."""
        self.embeddings.weight.copy_(vectors)
        if self.config.channels == 2:
            self.embeddings_static.weight.copy_(vectors)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **_: Any,  # noqa: ANN401
    ) -> SequenceClassifierOutput:
        """Logits [B, C], and with labels the loss that transformers' classifiers have.

        Args:
            input_ids: tokens, int64 [B, n].
            attention_mask: 1 for those to read, in one run for each text, 0 for padding; all when not given.
            token_type_ids: 0 for the tokens of a pair's first text, 1 for the second's; not read otherwise.
            labels: as transformers' classifiers take them.

        Raises:
            ValueError: a model of pairs is not told which token is of which text.
        """
        read = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if self.config.pair:
            if token_type_ids is None:
                raise ValueError("a model of text pairs needs token_type_ids, 0 for the first text and 1 for the second")
            both = torch.cat([read & (token_type_ids == 0), read & (token_type_ids == 1)])
            first, second = self._encode(input_ids.repeat(2, 1), both).chunk(2)
            encoded = torch.cat([first, second, (first - second).abs(), first * second], dim=-1)
        else:
            encoded = self._encode(input_ids, read)
        logits = self.classifier(self.dropout(relu(self.dense(encoded))))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _encode(self, ids: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """The last states of both directions, [B, 2h], over the one run of tokens in each row that is to be read.

        Of a row without any they are zeros.
        """
        lengths, start = read.sum(1), read.long().argmax(1)
        steps = torch.arange(ids.shape[1], device=ids.device)
        aligned = ids.gather(1, (start[:, None] + steps).clamp(max=ids.shape[1] - 1))
        # Packed sequences do not export; the other way computes on padding and leaves it behind.
        encode = self.encode_padded if torch.compiler.is_exporting() else self.encode_packed
        return encode(aligned, lengths) * (lengths > 0)[:, None]

    def encode_packed(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The last states [B, 2h] of texts that begin at each row's first token, int64 [B, n], and are int64 [B] long.

        Waits for the device: PyTorch packs by lengths in the main memory.
        """
        tokens = pack_padded_sequence(ids, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        vectors = self._vectors(tokens.data)
        packed = PackedSequence(vectors, tokens.batch_sizes, tokens.sorted_indices, tokens.unsorted_indices)
        _, (last, _) = self.lstm(packed)
        return torch.cat([last[-2], last[-1]], dim=-1)

    def encode_padded(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """What `encode_packed` gives, by operations that can be exported.

        Padding follows the text, so that a forward LSTM has not seen it at the text's last token. The backward one is a
        forward one over the text turned round within its length.
        """
        steps = torch.arange(ids.shape[1], device=ids.device)
        end = (lengths - 1).clamp(min=0)[:, None]
        turned = (end - steps).clamp(min=0)[..., None]
        states = self._vectors(ids)
        for layer in range(self.config.num_hidden_layers):
            forward = self._one_way(states, f"l{layer}")
            backward = self._one_way(states.gather(1, turned.expand(-1, -1, states.shape[-1])), f"l{layer}_reverse")
            states = torch.cat([forward, backward.gather(1, turned.expand_as(backward))], dim=-1)
        last = end[..., None].expand(-1, 1, forward.shape[-1])
        return torch.cat([forward.gather(1, last), backward.gather(1, last)], dim=-1).squeeze(1)

    def _one_way(self, states: torch.Tensor, name: str) -> torch.Tensor:
        """The states [B, n, h] of one of the LSTM's directions, from left to right."""
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self.lstm, f"{kind}_{name}") for kind in kinds]
        zero = states.new_zeros(1, states.shape[0], self.config.hidden_size)
        out: torch.Tensor = torch.lstm(states, (zero, zero), weights, True, 1, 0.0, False, False, True)[0]
        return out

    def _vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """The channels' vectors of tokens, one after the other."""
        tuned = self.embeddings(ids)
        return tuned if self.config.channels == 1 else torch.cat([self.embeddings_static(ids), tuned], dim=-1)


AutoConfig.register(BiLSTMConfig.model_type, BiLSTMConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BiLSTMConfig, BiLSTMForSequenceClassification, exist_ok=True)
