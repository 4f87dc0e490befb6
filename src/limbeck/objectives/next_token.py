"""Learning to go on with a text."""

from __future__ import annotations

from limbeck.objectives.masked_lm import MaskedLM


class NextToken(MaskedLM):
    """Cross entropy with the token that follows each of the batch's `positions`.

    Inputs: student logits [N, V] there; `targets` int64 [N], the tokens that follow. The batch leaves out what is not
    to be learnt (the prompt, padding), so the head never computes it.
    """

    name = "next_token"
