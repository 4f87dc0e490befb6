"""Which examples make an update, in which order, and which process learns from which of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import BatchSampler
from transformers.trainer_pt_utils import LengthGroupedSampler


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


class EvenParts(BatchSampler):
    """Batches for several processes in turn, of which those of an epoch's last update share what is left.

    Accelerate fills that update up with the epoch's first examples, which one process would not learn from twice. Here
    each process gets a part, as large as the others' but for one example. Where there are fewer examples than
    processes, those that come last get one that is another's, to have something to compute: `unused` tells which.

    Args:
        batches: as one process would have them.
        processes: the number of them.
    """

    def __init__(self, batches: BatchSampler, processes: int) -> None:
        super().__init__(batches.sampler, batches.batch_size, drop_last=False)
        self.processes = processes

    def __len__(self) -> int:
        size = self.batch_size * self.processes
        return self.processes * -(-len(self.sampler) // size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.sampler)
        left = len(rows) % (self.batch_size * self.processes)
        for start in range(0, len(rows) - left, self.batch_size):
            yield rows[start : start + self.batch_size]
        if left:
            for part in np.array_split(rows[-left:], self.processes):
                yield part.tolist() or rows[-1:]


def unused(examples: int, batch_size: int, processes: int, process: int) -> bool:
    """Whether a process has no example of its own in an epoch's last update."""
    left = examples % (batch_size * processes)
    return 0 < left <= process
