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
        self.train(self.training)

    def train(self, mode: bool = True) -> BiLSTMForSequenceClassification:
        """As every module's, and freeze the copy of the vectors: opening a file, which ends in `eval`, thaws it."""
        super().train(mode)
        if self.config.channels == 2:
            self.embeddings_static.weight.requires_grad_(False)
        return self

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
                raise ValueError(
                    "a model of text pairs needs token_type_ids, 0 for the first text and 1 for the second"
                )
            both = torch.cat([read & (token_type_ids == 0), read & (token_type_ids == 1)])
            states = self._encode(torch.cat([input_ids, input_ids]), both)
            first, second = states.view(2, input_ids.shape[0], -1)  # len() would fix the batch of an export
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
        encode = self._encode_in_onnx if torch.onnx.is_in_onnx_export() else self._encode_packed
        return encode(aligned, lengths) * (lengths > 0)[:, None]

    def _encode_packed(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The last states [B, 2h] of texts that begin at each row's first token, int64 [B, n], and are int64 [B] long.

        Waits for the device: PyTorch packs by lengths in the main memory.
        """
        tokens = pack_padded_sequence(ids, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        vectors = self._vectors(tokens.data)
        packed = PackedSequence(vectors, tokens.batch_sizes, tokens.sorted_indices, tokens.unsorted_indices)
        # In bfloat16 a CPU takes eight times as long over a packed LSTM as in float32, and autocast on CUDA knows of
        # float16 alone, which nothing scales the gradients for.
        with torch.autocast(ids.device.type, enabled=False):
            _, (last, _) = self.lstm(packed)
        return torch.cat([last[-2], last[-1]], dim=-1)

    def _encode_in_onnx(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The same as ONNX operators, which take lengths themselves; computes nothing, but is exported."""
        states, lengths = self._vectors(ids).transpose(0, 1), lengths.clamp(min=1).int()
        length, size = states.shape[:2]
        for layer in range(self.config.num_hidden_layers):
            weights = [self._in_onnx_order(f"{kind}_l{layer}") for kind in ("weight_ih", "weight_hh")]
            biases = [self._in_onnx_order(f"{kind}_l{layer}") for kind in ("bias_ih", "bias_hh")]
            all_states, last, _ = torch.onnx.ops.symbolic_multi_out(
                "LSTM",
                (states, *weights, torch.cat(biases, dim=-1), lengths),
                {"direction": "bidirectional", "hidden_size": self.config.hidden_size},
                dtypes=(states.dtype,) * 3,
                shapes=((length, 2, size, self.config.hidden_size), *((2, size, self.config.hidden_size),) * 2),
            )
            states = all_states.transpose(1, 2).flatten(2)  # [n, B, 2h]
        return last.transpose(0, 1).flatten(1)

    def _in_onnx_order(self, name: str) -> torch.Tensor:
        """A weight of both directions; PyTorch has the gates in the order input, forget, cell, output."""
        both = []
        for suffix in ("", "_reverse"):
            weight = getattr(self.lstm, name + suffix)
            both.append(weight.unflatten(0, (4, -1))[[0, 3, 1, 2]].flatten(0, 1))
        return torch.stack(both)

    def _vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """The channels' vectors of tokens, one after the other."""
        tuned = self.embeddings(ids)
        return tuned if self.config.channels == 1 else torch.cat([self.embeddings_static(ids), tuned], dim=-1)


AutoConfig.register(BiLSTMConfig.model_type, BiLSTMConfig, exist_ok=True)
AutoModelForSequenceClassification.register(BiLSTMConfig, BiLSTMForSequenceClassification, exist_ok=True)
