"""Rules about the answers of a run's models: one file for several tokenizers, and a batch of answers at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from limbeck.checkpoints import Checkpoint, ends_of, tokenizer_fingerprint
from limbeck.rules.file import RuleBook
from limbeck.rules.text import TextRules
from limbeck.rules.tokens import TokenRules


class AnswerRules:
    """Rules about generated text, for whichever models of a run write it or learn to.

    Args:
        book: the rules.

    Attributes:
        text: the same over whole answers.

    Raises:
        InputError: as `TextRules`.
    """

    def __init__(self, book: RuleBook) -> None:
        self.book, self.text = book, TextRules(book)
        self._ready: dict[tuple[str, int, tuple[int, ...]], TokenRules] = {}

    def of(self, checkpoint: Checkpoint) -> TokenRules:
        """The rules in the tokens of a causal language model, made once for all models that share these.

        Raises:
            InputError: as `TokenRules`.
        """
        model, tokenizer, _ = checkpoint
        width, ends = model.config.get_text_config().vocab_size, ends_of(checkpoint)
        key = (tokenizer_fingerprint(tokenizer), width, tuple(ends))
        if key not in self._ready:
            self._ready[key] = TokenRules(self.book, tokenizer, width, ends or None)
        return self._ready[key]


class Held:
    """What the rules allow at each token of a batch of answers. Of equal masks, as most are, one is kept.

    Args:
        rules: in the answers' tokens.
        prompts: the texts that the rules' conditions look at, one for each answer.
        answers: token ids.
    """

    def __init__(self, rules: TokenRules, prompts: Sequence[str], answers: Sequence[Sequence[int]]) -> None:
        self.rules = rules
        numbers: dict[bytes, int] = {}
        kept, rows = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            for mask in rules.masks(prompt, answer):
                content = mask.numpy().tobytes()
                if content not in numbers:
                    numbers[content] = len(numbers)
                    kept.append(mask.clone())
                rows.append(numbers[content])
        self._masks, self._rows = torch.stack(kept), torch.tensor(rows)

    def project(self, logits: torch.Tensor, some: slice) -> torch.Tensor:
        """`TokenRules.project` of the logits [c, V] from which these of the batch's tokens are predicted."""
        masks, rows = torch.unique(self._rows[some], return_inverse=True)
        return self.rules.project(logits, self._masks[masks], rows)
