"""Learning to go on with a text."""

from __future__ import annotations

import torch

from limbeck.objectives.masked_lm import MaskedLM
from limbeck.signals import Signals
from limbeck.tasks.text import Batch


class NextToken(MaskedLM):
    """Cross entropy with the token that follows each of the batch's `positions`.

    Inputs: student logits [N, V] there; `targets` int64 [N], the tokens that follow. The batch leaves out what is not
    to be learnt (the prompt, padding), so the head never computes it.

    A batch of the student's own answers (`own`) has no true tokens and contributes nothing.
    """

    name = "next_token"

    def count(self, batch: Batch) -> torch.Tensor:
        """The tokens to be predicted."""
        return super().count(batch) * (0 if "own" in batch else 1)

    def total(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        """The loss summed over them."""
        return student.logits.sum() * 0 if "own" in batch else super().total(student, teacher, batch)
