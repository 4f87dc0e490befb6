"""Training no more of a classifier's embeddings than the rows that its examples have.

Two thirds of a small student's weights are its word embeddings, and most of their rows never occur in the examples of a
task. Their gradient is zero, yet a step fills it, measures its norm, clips it and updates two moments that stay zero.
Leaving them out changes nothing: all that AdamW does to such a row is its decay, which is kept as one number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WORTHWHILE = 0.75
"""The largest part of the rows for which leaving the others out is worth a second look-up."""


class TrainedRows(nn.Module):
    """Stands in for an embedding while it is trained.

    Args:
        table: the embedding.
        rows: those that are trained, ascending and without repeats, int64 [R].
    """

    def __init__(self, table: nn.Embedding, rows: torch.Tensor) -> None:
        super().__init__()
        full = table.weight.detach()
        rows = rows.to(full.device)
        self.weight = nn.Parameter(full[rows].clone())
        places = torch.full((len(full),), -1, device=full.device)
        places[rows] = torch.arange(len(rows), device=full.device)
        # Frozen parameters and not buffers, which DistributedDataParallel would send around in every step.
        self.others = nn.Parameter(full.clone(), requires_grad=False)
        self.decayed = nn.Parameter(torch.ones((), device=full.device), requires_grad=False)
        self.places = nn.Parameter(places, requires_grad=False)
        padding = table.padding_idx
        self.padding_idx = None if padding is None else max(int(places[padding]), 0)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """States [..., d] of ids int64 [...]; of rows that are not trained, too, as a validation has them."""
        places = self.places[ids]
        trained = F.embedding(places.clamp(min=0), self.weight, self.padding_idx)
        others = F.embedding(ids, self.others) * self.decayed
        return torch.where((places >= 0).unsqueeze(-1), trained, others)

    @torch.no_grad()
    def whole(self) -> torch.Tensor:
        """All rows as they are now [V, d]."""
        found = self.others * self.decayed
        found[self.places >= 0] = self.weight
        return found


class Decay(TrainerCallback):
    """What an update's weight decay does to the rows that are not trained.

    Args:
        rows: of the model; none where all are trained.
        rate: AdamW's weight decay.
    """

    def __init__(self, rows: TrainedRows | None, rate: float) -> None:
        self.rows, self.rate = rows, rate

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Once an update is made, and not skipped as one that overflowed."""
        if self.rows is not None and not getattr(optimizer, "step_was_skipped", False):
            self.rows.decayed.mul_(1 - optimizer.param_groups[0]["lr"] * self.rate)


@contextmanager
def trained_rows(model: PreTrainedModel, learn: Dataset, decay: float, wanted: bool) -> Iterator[Decay]:
    """Within this block, the rows of the model's word embeddings that `learn` does not have are no part of training.

    Nothing changes where the embeddings are frozen, shared with a head over the vocabulary, or mostly needed.

    Args:
        model: what is trained.
        learn: all that it learns from, with `input_ids`.
        decay: AdamW's weight decay.
        wanted: whether `learn` has all the words that the model will be shown in training.
    """
    found = _embedding(model) if wanted and "input_ids" in learn.column_names else None
    padding = {getattr(model.config, "pad_token_id", None), found[1].padding_idx if found else None}
    rows = occurring(learn, len(found[1].weight), padding) if found else torch.zeros(0)
    if found is None or len(rows) > WORTHWHILE * len(found[1].weight):
        yield Decay(None, decay)
        return
    name, table = found
    parent, _, last = name.rpartition(".")
    some = TrainedRows(table, rows).train(table.training)
    setattr(model.get_submodule(parent), last, some)
    try:
        yield Decay(some, decay)
    finally:
        table.weight.data = some.whole()
        setattr(model.get_submodule(parent), last, table)


def occurring(learn: Dataset, size: int, padding: Collection[int | None] = ()) -> torch.Tensor:
    """The rows of a vocabulary that occur in a dataset's `input_ids`, ascending, int64 [R]; with those of padding."""
    seen = np.zeros(size, dtype=bool)
    for chunk in learn.data.column("input_ids").chunks:
        seen[chunk.flatten().to_numpy(zero_copy_only=False)] = True
    seen[[row for row in padding if row is not None and 0 <= row < size]] = True
    return torch.from_numpy(seen.nonzero()[0])


def _embedding(model: PreTrainedModel) -> tuple[str, nn.Embedding] | None:
    """The model's word embeddings and their name, where they are trained and nothing else uses their weights."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    # Not a subclass, which may do more than look rows up.
    if type(table) is not nn.Embedding or not table.weight.requires_grad or table.max_norm is not None:
        return None
    if sum(weight is table.weight for _, weight in model.named_parameters(remove_duplicate=False)) != 1:
        return None
    return next((name, module) for name, module in model.named_modules() if module is table)
