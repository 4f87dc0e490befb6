"""Which examples make an update, in which order, and which process learns from which of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import BatchSampler, Sampler

GROUPED = 50
"""Batches that are sorted by length together, as transformers has it."""


class LengthGroupedByEpoch(Sampler[int]):
    """Batches of like length in an order that follows from seed and epoch alone.

    As transformers' sampler: examples are drawn in groups of 50 batches, and each group is cut into batches by length.
    That one takes smaller groups of few examples, down to no grouping at all, where batches can hold more padding than
    words. Here few examples are one group. Batches then come in any order, the longest first, so that
    memory runs out at once or not at all, and what is left for a last, smaller batch is drawn from all examples: it
    weighs more, and would be the shortest ones every time.

    Transformers draws the order from the global generator. A run that goes on within an epoch would then see another
    order and so some examples twice and others never; and processes whose dropout drew differently would disagree.

    Args:
        batch_size: examples that are grouped, a whole update's.
        lengths: by example.
        seed: of the run.
        epoch: says which epoch it is.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]) -> None:
        self.batch_size, self.lengths = batch_size, torch.tensor(lengths)
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        drawn = torch.randperm(len(self), generator=generator)
        full = len(drawn) - len(drawn) % self.batch_size
        starts = range(0, full, GROUPED * self.batch_size)
        groups = [drawn[start : min(start + GROUPED * self.batch_size, full)] for start in starts]
        groups = [group[longest_first(self.lengths[group])] for group in groups]
        batches = torch.cat([drawn[:0], *groups]).view(-1, self.batch_size)
        batches = batches[torch.randperm(len(batches), generator=generator)]
        if len(batches):
            first = int(self.lengths[batches].amax(1).argmax())
            batches[[0, first]] = batches[[first, 0]]
        return iter([*batches.flatten().tolist(), *drawn[full:].tolist()])


def longest_first(lengths: torch.Tensor | list[int]) -> torch.Tensor:
    """int64 [N]: examples of `lengths` [N] by length, equal ones in their order."""
    return torch.as_tensor(lengths).argsort(descending=True, stable=True)


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
