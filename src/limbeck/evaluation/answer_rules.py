"""How often the answers of causal language models break rules, and what holding them to the rules costs in quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import GenerationConfig, LogitsProcessorList

from limbeck import hardware
from limbeck.anatomy import StatesAt
from limbeck.checkpoints import Checkpoint, ends_of
from limbeck.evaluation.rules import listed, violations
from limbeck.evaluation.statistics import figure, resamples, sums, token_means
from limbeck.generation.local import written
from limbeck.progress import say
from limbeck.rules.answers import AnswerRules, Held
from limbeck.rules.labels import CERTAIN
from limbeck.rules.tokens import RulesProcessor
from limbeck.tasks.causal_lm import CausalBatches, causal_inputs
from limbeck.tasks.task import Array

PROMPTS = 64
"""Test prompts that are answered: each token of an answer is a forward pass, of every model."""
BATCH = 32
SHORTEST, LONGEST = 32, 256
"""Tokens of an answer: half as many again as the longest reference has, within these."""
ANSWERERS = ("teacher", "student", "baseline")
"""The models that are measured, not their exports."""


class _Words(NamedTuple):
    """What a model says of the references' T tokens.

    Attributes:
        loss: the negative log-likelihood of each in nats, float64 [T].
        right: whether it is the likeliest, 0 or 1, float64 [T].
    """

    loss: Array
    right: Array


def add_answer_rules(
    measured: dict[str, Any],
    rules: AnswerRules,
    models: dict[str, Checkpoint],
    test: Dataset,
    vocabulary: int,
    count: int,
    seed: int,
) -> None:
    """Add `rules` to what was measured of the models, and to the whole; see docs/metrics.md.

    The models answer some of the prompts greedily, in float32, the student also held to the rules by constrained
    decoding. What the rules cost is measured on the references, the data's own answers to the same prompts: token by
    token under each model's distribution as it is and projected onto the rules.

    Args:
        measured: what `metrics.json` holds, by model; changed in place.
        rules: about answers.
        models: by name, with the same tokenizer.
        test: examples of `limbeck.tasks.causal_lm` with their `prompt`.
        vocabulary: tokens that the models share.
        count: bootstrap resamples.
        seed: of these, and of the choice of prompts.
    """
    some = test
    if len(test) > PROMPTS:
        some = test.select(np.sort(np.random.default_rng(seed).permutation(len(test))[:PROMPTS]))
    models = {name: models[name] for name in ANSWERERS if name in models}
    student = models["student"]
    ends = ends_of(student)
    references = [ids[first:] for ids, first in zip(some["input_ids"], some["first"], strict=True)]
    longest = max(map(len, references))
    limit = min(max(SHORTEST, longest * 3 // 2), LONGEST)
    say(f"evaluation: {len(some)} test prompts are answered in up to {limit} tokens, to count what breaks the rules")

    def judged(answers: Sequence[Sequence[int]]) -> dict[str, Any]:
        texts = [_text(student, answer, ends) for answer in answers]
        found = violations(rules.text.rules, rules.text.broken(some["prompt"][:], texts), count, seed)
        return {"violations": found, "cut": _cut(answers, ends)}

    said = _read(models, rules, some, vocabulary)
    rows = np.repeat(np.arange(len(some)), [len(answer) for answer in references])
    kept = sums(rows, said["student"][1].loss > CERTAIN / 2, len(some)) == 0
    draws = list(resamples(len(some), count, seed))
    for name, checkpoint in models.items():
        free, held = (_cost(rows, each, kept, draws) for each in said[name])
        free |= judged(_answers(checkpoint, some, limit, None))
        if name == "student":
            held |= judged(_answers(checkpoint, some, limit, rules))
        gain = [token_means(rows, each.right, len(some), draws) for each in said[name]]
        value = held["quality"]["accuracy"]["value"] - free["quality"]["accuracy"]["value"]
        held["difference"] = {"metric": "accuracy", **figure(value, gain[1] - gain[0])}
        measured[name]["rules"] = free | {"with_rules": held}
    measured["rules"] = {
        "rules": listed(rules.text.rules, rules.text.applies(some["prompt"][:])),
        "labels": judged(references)["violations"],
        "prompts": len(some),
        "max_new_tokens": limit,
        "references_that_keep_hard_rules": int(kept.sum()),
    }


def _text(checkpoint: Checkpoint, answer: Sequence[int], ends: list[int]) -> str:
    """An answer up to its end, as text."""
    end = next((place for place, token in enumerate(answer) if token in ends), None)
    return str(checkpoint.tokenizer.decode(answer[:end], skip_special_tokens=True)).strip()


def _cut(answers: Sequence[Sequence[int]], ends: list[int]) -> float:
    """The share of answers that reached the limit."""
    return float(np.mean([not any(token in ends for token in answer) for answer in answers]))


def _answers(checkpoint: Checkpoint, some: Dataset, limit: int, rules: AnswerRules | None) -> list[list[int]]:
    """Greedy answers in the order of the examples, as token ids with their ends and whatever pads them."""
    model, tokenizer, _ = checkpoint
    prompts = [ids[:first] for ids, first in zip(some["input_ids"], some["first"], strict=True)]
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        limit = min(limit, positions - max(map(len, prompts)))
    ends = ends_of(checkpoint)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    config = GenerationConfig(max_new_tokens=limit, do_sample=False, eos_token_id=ends, pad_token_id=padding)
    found: list[list[int]] = [[]] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    model.to(hardware.device()).eval()
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            steps = LogitsProcessorList()
            if rules is not None:
                steps.append(RulesProcessor(rules.of(checkpoint), [some["prompt"][place] for place in places]))
            rows = written(model, [prompts[place] for place in places], config, steps)
            for place, row in zip(places, rows, strict=True):
                found[place] = row
    return found


@torch.inference_mode()
def _read(
    models: dict[str, Checkpoint], rules: AnswerRules, some: Dataset, vocabulary: int
) -> dict[str, tuple[_Words, _Words]]:
    """By model what it says of the references' tokens, as it is and projected onto the rules."""
    ready, collate = rules.of(models["student"]), CausalBatches(models["student"].tokenizer)
    stops = {name: StatesAt(each.model.to(hardware.device()).eval()) for name, each in models.items()}
    found: dict[str, tuple[list[Array], list[Array]]] = {name: ([], []) for name in models}
    try:
        for start in range(0, len(some), BATCH):
            examples = [some[place] for place in range(start, min(start + BATCH, len(some)))]
            batch = {name: tensor.to(hardware.device()) for name, tensor in collate(examples).items()}
            answers = [each["input_ids"][each["first"] :] for each in examples]
            held = Held(ready, [each["prompt"] for each in examples], answers)
            for name, stop in stops.items():
                stop.positions = batch["positions"]
                models[name].model(**causal_inputs(batch))
                states = stop.take()
                for part in stop.head.chunks(len(states)):
                    logits = stop.head(states[part])[:, :vocabulary]
                    for each, kept in zip((logits, held.project(logits, part)), found[name], strict=True):
                        kept.append(_per_token(each, batch["targets"][part]))
    finally:
        for stop in stops.values():
            stop.close()
    return {name: (_Words(*np.concatenate(a, 1)), _Words(*np.concatenate(b, 1))) for name, (a, b) in found.items()}


def _per_token(logits: torch.Tensor, targets: torch.Tensor) -> Array:
    """Negative log-likelihood and whether it is the likeliest, of each target, float64 [2, c]."""
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return torch.stack([loss, (logits.argmax(-1) == targets).float()]).double().cpu().numpy()


def _cost(rows: Array, words: _Words, kept: Array, draws: list[Array]) -> dict[str, Any]:
    """`quality`: accuracy over all tokens of the references, perplexity over those of the ones that can be written.

    A reference that the hard rules forbid somewhere has no likelihood under them.
    """
    accuracy = figure(words.right.mean(), token_means(rows, words.right, len(kept), draws))
    mine, perplexity = kept[rows], None
    if mine.any():
        spread = np.exp(token_means(rows[mine], words.loss[mine], len(kept), draws))
        perplexity = figure(float(np.exp(words.loss[mine].mean())), spread[np.isfinite(spread)])
    return {"quality": {"accuracy": accuracy, "perplexity": perplexity}}
