"""Learning from the student's own answers (Agarwal et al. 2024, GKD; Gu et al. 2024, MiniLLM)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from limbeck.anatomy import VocabularyHead
from limbeck.checkpoints import vocabulary_size
from limbeck.errors import InputError
from limbeck.generation.local import written
from limbeck.recipe.schema import OnPolicy
from limbeck.signals import SparseWords, WordSource
from limbeck.tasks.causal_lm import CausalBatches
from limbeck.tasks.text import Batch


class OwnAnswers:
    """Replaces the answers of some batches by what the student says itself.

    Whether an update is about its own answers, and what they are, follows from the seed and the update's number alone,
    so that a run which is resumed goes on with the same ones. No gradient reaches the sampling. Only tokens that the
    tokenizer knows are drawn: a vocabulary is often padded, and a padding row means nothing to anybody.

    Args:
        section: how often, how long, at which temperature, and with how much of the teacher.
        tokenizer: of the student.
        seed: of the run.
        teacher: whose words are mixed in where `section.teacher_share` says so.
        ends: the tokens that end an answer, besides the tokenizer's own; see `ends_of`.
    """

    def __init__(
        self,
        section: OnPolicy,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        teacher: PreTrainedModel | None,
        ends: Collection[int] = (),
    ) -> None:
        self.section, self.tokenizer, self.seed, self.teacher = section, tokenizer, seed, teacher
        self.ends = sorted({tokenizer.eos_token_id, *ends} - {None})
        self.collate = CausalBatches(tokenizer)
        self.vocabulary = vocabulary_size(tokenizer)

    def check(self, examples: Dataset, stage: str, positions: int | None) -> None:
        """Refuse prompts that leave an answer too little room in the `positions` tokens that the student reads.

        Raises:
            InputError: names the example, counted from 1.
        """
        room = self.section.max_new_tokens
        for row, (first, whole) in enumerate(zip(examples["first"], examples["length"], strict=True)):
            length = _prompt(first, whole)
            if positions is not None and length + room > positions:
                raise InputError(
                    f"stage '{stage}': the prompt of example {row + 1} has {length} tokens, which with "
                    f"on_policy.max_new_tokens={room} is more than the {positions} that the student reads; lower that "
                    "number or task.max_length"
                )

    def wanted(self, update: int) -> bool:
        """Whether this update is about the student's own answers."""
        return bool(np.random.default_rng([self.seed, update]).random() < self.section.share)

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, batch: Batch, update: int, part: int) -> Batch:
        """The batch with the student's answers to its prompts, on the model's device.

        Args:
            model: the student.
            batch: as `CausalBatches` makes it.
            update: the update's number.
            part: the micro-batch's number in it, over all processes.

        Returns:
            `targets` are what the student said, and `own` says so: to terms on true tokens they are none.
            With some of the teacher mixed in, `importance` float32 [N]: the student's probability of each token, at
            the sampling's temperature, over that with which it was drawn.
        """
        prompts = self._prompts(batch)
        steps, mixing = LogitsProcessorList([_Known(self.vocabulary)]), None
        if self.teacher is not None:
            longest = max(map(len, prompts))
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
            mixing = _Mixture(self.teacher, mask, self.section, self.vocabulary)
            steps.append(mixing)
        config = GenerationConfig(
            max_new_tokens=self.section.max_new_tokens,
            do_sample=True,
            temperature=self.section.temperature,
            top_k=0,
            top_p=1.0,
            pad_token_id=self.collate.padding,
            eos_token_id=self.ends or None,
        )
        training = model.training
        model.eval()
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.default_rng([self.seed, update, part]).integers(2**31)))
            said = written(model, prompts, config, steps)
        model.train(training)
        answers = [self._up_to_end(tokens) for tokens in said]
        examples = [
            {"input_ids": [*prompt, *answer], "first": len(prompt), "row": row}
            for prompt, answer, row in zip(prompts, answers, batch["row"].tolist(), strict=True)
        ]
        made = {name: tensor.to(model.device) for name, tensor in self.collate(examples).items()}
        made["own"] = torch.ones((), dtype=torch.bool)
        if mixing:
            ratios = mixing.ratios(torch.tensor([tokens[-1:] for tokens in said], device=model.device))
            made["importance"] = torch.cat([ratios[row, : len(answer)] for row, answer in enumerate(answers)])
        return made

    def _prompts(self, batch: Batch) -> list[list[int]]:
        """What comes before each answer; of plain text, all of which is to be predicted, its first half."""
        width = batch["input_ids"].shape[1]
        rows, places = batch["positions"] // width, batch["positions"] % width
        found = []
        for row, tokens in enumerate(batch["input_ids"].tolist()):
            first = int(places[rows == row].min()) + 1
            length = int(batch["attention_mask"][row].sum())
            found.append(tokens[: _prompt(first, length)])
        return found

    def _up_to_end(self, tokens: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[: end + 1]


def _prompt(first: int, length: int) -> int:
    """How much of an example of so many tokens comes before an answer; `first` is the first token to be predicted."""
    return first if first > 1 else max(1, length // 2)


class _Known(LogitsProcessor):
    """Leaves the tokens below `vocabulary` alone."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        padding = max(0, scores.shape[-1] - self.vocabulary)
        return F.pad(scores[:, : scores.shape[-1] - padding], (0, padding), value=-torch.inf)


class _Mixture(LogitsProcessor):
    """Draws from a mixture of teacher and student (Gu et al. 2024, section 2.2), and remembers each token's ratio."""

    def __init__(self, teacher: PreTrainedModel, mask: torch.Tensor, section: OnPolicy, vocabulary: int) -> None:
        self.teacher, self.mask, self.section, self.vocabulary = teacher, mask, section, vocabulary
        last_alone = "logits_to_keep" in inspect.signature(teacher.forward).parameters
        self.keep = {"logits_to_keep": 1} if last_alone else {}
        self.cache = None
        self.before: torch.Tensor | None = None
        self._parts: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.before is not None:
            self._parts.append(self.before.gather(-1, input_ids[:, -1:]))
        fresh = input_ids if self.cache is None else input_ids[:, -1:]
        grown = torch.ones(len(input_ids), input_ids.shape[1] - self.mask.shape[1], dtype=torch.long)
        mask = torch.cat([self.mask, grown.to(self.mask.device)], 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -fresh.shape[1] :]
        given = {"input_ids": fresh, "attention_mask": mask, "position_ids": positions}
        output = self.teacher(**given, past_key_values=self.cache, use_cache=True, **self.keep)
        self.cache = output.past_key_values
        # The sampler divides by the temperature later; the mixture is of the distributions it will draw from.
        heat = self.section.temperature
        q = (scores.float() / heat).log_softmax(-1)
        p = _fitted(output.logits[:, -1, : self.vocabulary].float() / heat, q.shape[-1]).log_softmax(-1)
        share = self.section.teacher_share
        mixed = torch.logaddexp(p + math.log(share), q + math.log1p(-share))
        self.before = (q - mixed).exp()
        return mixed * heat

    def ratios(self, last: torch.Tensor) -> torch.Tensor:
        """The student's probability over the mixture's of each token drawn, float32 [B, new tokens]; `last` [B, 1]."""
        assert self.before is not None
        return torch.cat([*self._parts, self.before.gather(-1, last)], 1)


def _fitted(logits: torch.Tensor, width: int) -> torch.Tensor:
    """Logits over as many tokens as the student has; those that only it has get none."""
    short = width - logits.shape[-1]
    return F.pad(logits, (0, short), value=-1e30) if short > 0 else logits[:, :width]


@torch.no_grad()
def advantages(
    batch: Batch, states: torch.Tensor, head: VocabularyHead, teacher: WordSource, vocabulary: int, normalised: bool
) -> torch.Tensor:
    """What each token of the student's own answers leads to: MiniLLM's R of the tokens after it, float32 [N].

    With r = log p(y) - log q(y) of each token, the mean of r over the tokens of the same answer that follow (Gu et al.
    2024, equation 5), or their sum, which makes the estimator that of the KL divergence of whole answers.

    Args:
        batch: the answers.
        states: the student's states at its positions [N, d].
        head: the student's.
        teacher: what the teacher says there.
        vocabulary: the tokens that both know.
        normalised: the mean, not the sum.
    """
    reward = torch.empty(len(states), device=states.device)
    for some in head.chunks(len(states)):
        targets = batch["targets"][some, None]
        said = teacher.words(some)
        if isinstance(said, SparseWords):
            raise TypeError("rewards need all of the teacher's words")
        p = said[:, :vocabulary].float().log_softmax(-1).gather(-1, targets.clamp(max=vocabulary - 1))
        q = head(states[some]).log_softmax(-1).gather(-1, targets)
        reward[some] = (p - q)[:, 0]
    rows = batch["positions"] // batch["input_ids"].shape[1]
    sizes = torch.bincount(rows, minlength=len(batch["input_ids"]))
    ends = sizes.cumsum(0)[rows]
    total = torch.cat([reward.new_zeros(1), reward.double().cumsum(0)])
    at = torch.arange(len(reward), device=reward.device)
    later = (total[ends] - total[at + 1]).float()
    return later / (ends - at - 1).clamp(min=1) if normalised else later
