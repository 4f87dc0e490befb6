"""The order of training: each example once, few padding, and the same order whenever a run goes on."""

from __future__ import annotations

import pytest
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from limbeck.training.order import GROUPED, LengthGroupedByEpoch, longest_first

LENGTHS = torch.randint(3, 60, (5000,), generator=torch.Generator().manual_seed(0)).tolist()


def batches(lengths: list[int], size: int, epoch: int = 0, seed: int = 0) -> list[list[int]]:
    order = list(LengthGroupedByEpoch(size, lengths, seed, lambda: epoch))
    return [order[start : start + size] for start in range(0, len(order), size)]


def padding(found: list[list[int]], lengths: list[int]) -> float:
    """Padding over words."""
    needed = sum(lengths[row] for batch in found for row in batch)
    return sum(max(lengths[row] for row in batch) * len(batch) for batch in found) / needed - 1


@pytest.mark.parametrize("examples", [0, 1, 7, 8, 9, 64, 401, 8 * GROUPED, 8 * GROUPED + 3, 1000])
def test_each_example_once_and_the_longest_first(examples: int) -> None:
    lengths = LENGTHS[:examples]
    order = list(LengthGroupedByEpoch(8, lengths, 0, lambda: 0))
    assert sorted(order) == list(range(examples))
    assert len(LengthGroupedByEpoch(8, lengths, 0, lambda: 0)) == examples
    full = order[: examples - examples % 8]
    if full:
        assert max(lengths[row] for row in full[:8]) == max(lengths[row] for row in full)


def test_the_order_follows_from_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = batches(LENGTHS, 8)
    torch.manual_seed(2)
    assert batches(LENGTHS, 8) == first
    assert batches(LENGTHS, 8, epoch=1) != first
    assert batches(LENGTHS, 8, seed=1) == batches(LENGTHS, 8, epoch=1)


@pytest.mark.parametrize(("examples", "size"), [(400, 16), (1024, 64), (1024, 256)])
def test_few_examples_are_grouped_as_well_as_many(examples: int, size: int) -> None:
    lengths = LENGTHS[:examples]
    mine = padding(batches(lengths, size), lengths)
    theirs = get_length_grouped_indices(lengths, size, generator=torch.Generator().manual_seed(0))
    others = padding([theirs[start : start + size] for start in range(0, examples, size)], lengths)
    assert mine < others / 2


def test_lengths_do_not_fall_over_an_epoch() -> None:
    means = torch.tensor([[LENGTHS[row] for row in batch] for batch in batches(LENGTHS[:4800], 16)]).float().mean(1)
    place = torch.arange(len(means)).float()
    assert abs(torch.corrcoef(torch.stack([means, place]))[0, 1]) < 0.2  # sorted, it would be -1


def test_what_is_left_is_drawn_from_all_examples() -> None:
    lengths = list(range(401))
    last = [batches(lengths, 16, epoch)[-1] for epoch in range(40)]
    assert {len(batch) for batch in last} == {1}
    assert len({batch[0] for batch in last}) > 20


def test_a_validation_is_read_by_length() -> None:
    assert longest_first([3, 9, 3, 5]).tolist() == [1, 3, 0, 2]
