"""The Hugging Face Trainer with Limbeck's loss: weighted terms, one denominator per global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from limbeck.objectives import Term
from limbeck.signals import Signals, SignalSource
from limbeck.tasks.text import Batch


class LengthGroupedByEpoch(LengthGroupedSampler):
    """Batches of like length in an order that follows from seed and epoch alone.

    Transformers draws the order from the global generator. A run that goes on within an epoch would then see another
    order and so some examples twice and others never; and processes whose dropout drew differently would disagree.

    Args:
        batch_size: examples that are grouped, a whole update's.
        lengths: by example.
        seed: of the run.
        epoch: says which epoch it is.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(super().__iter__())


class DistillationTrainer(Trainer):
    """Trains a student on a weighted sum of terms.

    It differs from `Trainer` in the loss and in the order of examples. Each term's sum is divided by its count over
    the whole global batch: all accumulation micro-steps and all processes, so that 1x8, 2x4 and 8x1 give the same
    gradient. The teacher is whatever `source` is; the trainer hands it row numbers and gets tensors.

    Args:
        terms: the loss.
        source: where the teacher's signals come from; none when no term needs a teacher.
        kwargs: `Trainer`'s own.
    """

    def __init__(self, *, terms: Sequence[Term], source: SignalSource | None, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.terms = list(terms)
        self.source = source
        self.loss_is_scaled_for_ga = True
        self._sums: torch.Tensor | None = None
        self._batches = 0

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:  # noqa: ANN401
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = (train_dataset or self.train_dataset)["length"][:]
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedByEpoch(size, lengths, self.args.seed, lambda: int(self.state.epoch or 0))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor]:
        """The micro-batches of one update, and each term's count over all of them on all processes, float32 [terms]."""
        batches = list(islice(epoch_iterator, num_batches))
        counts = torch.zeros(len(self.terms), device=device)
        for batch in batches:
            counts += torch.stack([term.count(batch) for term in self.terms]).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        self._batches += bool(batches)
        return batches, counts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401
        """This micro-batch's share of the global batch's loss, times the number of processes (DDP averages)."""
        if not isinstance(num_items_in_batch, torch.Tensor):
            raise TypeError("the loss needs the counts that get_batch_samples makes")
        outputs = model(**{k: v for k, v in inputs.items() if k not in ("row", "labels")})
        student, teacher = Signals(outputs.logits), None
        if self.source is not None:
            found = self.source.signals(inputs["row"])
            device = outputs.logits.device
            teacher = Signals(found.logits.to(device), {k: v.to(device) for k, v in found.features.items()})
        sums = torch.stack([term.total(student, teacher, inputs) for term in self.terms])
        losses = sums / num_items_in_batch.clamp(min=1)
        weighted = [term.weight * each for term, each in zip(self.terms, losses, strict=True)]
        loss = torch.stack(weighted).sum() * self.args.world_size
        # Summed on the device and read only when logged: no synchronisation per step.
        self._sums = losses.detach() if self._sums is None else self._sums + losses.detach()
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Logits and labels of a validation batch; the metrics judge, not the loss."""
        inputs = self._prepare_inputs(inputs)
        with torch.inference_mode(), self.compute_loss_context_manager():
            logits = model(**{k: v for k, v in inputs.items() if k not in ("row", "labels")}).logits
        return None, logits.float(), inputs["labels"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each term's mean, unweighted, since the last log."""
        if "loss" in logs and self._sums is not None:
            # A process holds its share of each update's mean; the shares of all add up to it.
            sums = self.accelerator.reduce(self._sums, "sum") if self.args.world_size > 1 else self._sums
            values = (sums / max(self._batches, 1)).tolist()
            logs |= {term.name: value for term, value in zip(self.terms, values, strict=True)}
            self._sums, self._batches = None, 0
        super().log(logs, start_time)
