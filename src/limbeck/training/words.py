"""Stages of causal language models: their examples, and what is kept of the teacher's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction

from limbeck import hardware
from limbeck.checkpoints import Checkpoint, ends_of, max_length
from limbeck.data import Splits
from limbeck.knowledge import WordStore, label_words, words_format
from limbeck.knowledge.labelling import HERE, Work
from limbeck.progress import say
from limbeck.recipe import Recipe
from limbeck.recipe.schema import Task
from limbeck.rules.answers import AnswerRules
from limbeck.tasks.causal_lm import encode_chat, encode_text

TEXT_LENGTH = 512
"""Tokens of an example where the recipe does not say."""


def example_length(checkpoint: Checkpoint, task: Task) -> int:
    """Tokens of an example that a model reads: the recipe's `max_length`, else what it can, at most `TEXT_LENGTH`.

    Raises:
        InputError: `max_length` is more than it can.
    """
    length = max_length(checkpoint.model, checkpoint.tokenizer, task.max_length)
    return length if task.max_length is not None else min(length, TEXT_LENGTH)


def encode_language(table: Dataset, checkpoint: Checkpoint, task: Task, prompts: bool = False) -> Dataset:
    """Plain text or conversations as a model's tokens; see `limbeck.tasks.causal_lm`.

    Args:
        table: column `text` or `messages`.
        checkpoint: the model that will read them.
        task: the recipe's: `max_length` and `packed`.
        prompts: of conversations, keep the text that rules look at as column `prompt`.
    """
    length = example_length(checkpoint, task)
    if "messages" not in table.column_names:
        return encode_text(table, checkpoint.tokenizer, length, task.packed is not False)
    encoded = encode_chat(table, checkpoint.tokenizer, length, prompts, ends_of(checkpoint))
    lost = len(table) - len(encoded)
    if lost:
        say(f"data: {lost} of {len(table)} conversations have no answer within {length} tokens and are left out")
    return encoded


def sample(encoded: Dataset, count: int, seed: int) -> Dataset:
    """So many of the examples, drawn at random, in their order."""
    if len(encoded) <= count:
        return encoded
    return encoded.select(np.sort(np.random.default_rng(seed).permutation(len(encoded))[:count]))


def ask_for_words(
    recipe: Recipe,
    splits: Splits,
    teacher: Checkpoint,
    student: Checkpoint,
    root: Path,
    rules: AnswerRules | None = None,
    work: Work = HERE,
) -> WordStore:
    """What the teacher says of the words that the recipe's stages learn from it, kept at their temperature.

    Args:
        recipe: its stages, and what is kept.
        splits: the examples.
        teacher: who is asked.
        student: whose examples these are: of its length, and ending where its answers end.
        root: the folder that holds stores.
        rules: that the teacher is held to.
        work: who asks.
    """
    assert recipe.teacher is not None
    assert recipe.teacher.words is not None
    words = recipe.teacher.words
    stage = next(stage for stage in recipe.stages if stage.objectives.soft_targets is not None)
    assert stage.objectives.soft_targets is not None
    temperature = stage.objectives.soft_targets.temperature
    form = words_format(words.keep, *words.counts, words.bits, teacher.tokenizer, temperature)
    table = splits.train if stage.on == "train" else splits.transfer
    with hardware.processes().main_process_first():
        encoded = encode_language(table, student, recipe.task, prompts=rules is not None)
    precision, ruled = hardware.pick_precision("auto"), rules.of(teacher) if rules is not None else None
    size = recipe.teacher.batch_size
    return label_words(teacher, encoded, form, root, recipe.seed, size, precision, ruled, work)


def language_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Of sums over batches [batches, 3] (negative log-likelihood, right, asked): accuracy and perplexity."""
    loss, right, asked = np.asarray(prediction.predictions, dtype=np.float64).sum(0)
    return {"accuracy": float(right / asked), "perplexity": float(np.exp(loss / asked))}
