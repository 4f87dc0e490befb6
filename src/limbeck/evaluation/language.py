"""Causal language models on the same text, token by token, all in one pass: nothing of a vocabulary's size is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from limbeck import hardware
from limbeck.anatomy import StatesAt
from limbeck.checkpoints import Checkpoint, tokenizer_fingerprint
from limbeck.evaluation import quality as q
from limbeck.evaluation.answer_rules import add_answer_rules
from limbeck.evaluation.evaluate import SHOWN
from limbeck.evaluation.generation_speed import generation_speed
from limbeck.evaluation.statistics import figure, interval, paired_test, resamples, sums, token_means
from limbeck.progress import say
from limbeck.recipe.schema import Evaluation
from limbeck.rules.answers import AnswerRules
from limbeck.tasks import Task
from limbeck.tasks.causal_lm import CausalBatches, causal_inputs
from limbeck.tasks.task import Array
from limbeck.tasks.text import length_sorted_batches

BATCH = 8
CONTEXT = 24
"""Tokens shown before one on which teacher and student differ."""
PER_TOKEN = ("loss", "right", "top", "confidence", "kl")


def evaluate_language(
    models: dict[str, Checkpoint],
    test: Dataset,
    task: Task,
    settings: Evaluation,
    seed: int,
    rules: AnswerRules | None = None,
) -> dict[str, Any]:
    """Measure causal language models on held-out text.

    Args:
        models: by name: `teacher`, `student`, `baseline`, `student_gguf`; those there are. A teacher that reads with
            another tokenizer is left out: its tokens are not the student's.
        test: examples of `limbeck.tasks.causal_lm` in the student's tokens.
        task: whose labels are the vocabulary.
        settings: resamples, whether to time generation.
        seed: of the resamples, over examples.
        rules: also measure the models' answers under them; `test` then has a column `prompt`.

    Returns:
        As `evaluate_models`. `quality` has `accuracy` (the share of tokens that were likeliest) and `perplexity`;
        `fidelity` the share of tokens on which a model and the teacher have the same likeliest one, and the mean
        KL(teacher || model) in nats a token, over the tokens of the tokenizer. `speed` is about generating, of all
        models but the baseline, which is built like the student.
    """
    tokenizer = models["student"].tokenizer
    teacher = models.get("teacher")
    if teacher is not None and tokenizer_fingerprint(teacher.tokenizer) != tokenizer_fingerprint(tokenizer):
        say(f"evaluation: '{teacher.name}' reads other tokens than the student, so it is not measured beside it")
        models = {name: model for name, model in models.items() if name != "teacher"}
    where, said = _read(models, test, task.outputs)
    draws = list(resamples(len(test), settings.resamples, seed))
    measured: dict[str, Any] = {}
    values: dict[str, dict[str, Array]] = {}
    for name, checkpoint in models.items():
        mine = said[name]
        figures, values[name] = _quality(where, mine, len(test), draws)
        size = sum(p.numel() for p in checkpoint.model.parameters())
        file = Path(checkpoint.name)
        width = next(checkpoint.model.parameters()).element_size()
        measured[name] = {
            "quality": figures,
            "calibration": q.calibration_curve(mine["confidence"], mine["right"] == 1),
            "slices": {"class": {}, "length": {}},
            "size": {"parameters": size, "bytes": file.stat().st_size if file.is_file() else size * width},
            "speed": None,
        }
    if "teacher" in models:
        for name, each in measured.items():
            main = (each["quality"]["accuracy"], values[name]["accuracy"])
            its = (measured["teacher"]["quality"]["accuracy"], values["teacher"]["accuracy"])
            each |= q.retention(*main, *its)
            same = (said[name]["top"] == said["teacher"]["top"]).astype(np.float64)
            agreement = token_means(where[0], same, len(test), draws)
            each["fidelity"] = {
                "agreement": float(same.mean()),
                "agreement_interval": list(interval(agreement)),
                "kl": float(said[name]["kl"].mean()),
            }
    if rules is not None:
        add_answer_rules(measured, rules, models, test, task.outputs, settings.resamples, seed)
    if settings.speed:
        timed = {name: checkpoint.model for name, checkpoint in models.items() if name != "baseline"}
        for name, speed in generation_speed(timed).items():
            measured[name]["speed"] = speed
    measured["comparisons"] = _comparisons(where, said, measured, values, len(test))
    measured["disagreements"] = _disagreements(test, where, said, tokenizer)
    return measured


@torch.no_grad()  # in inference mode a model that is moved to its device could never be trained again
def _read(models: dict[str, Checkpoint], test: Dataset, vocabulary: int) -> tuple[Array, dict[str, dict[str, Array]]]:
    """The example of each token, int64 [T], and by model what it said of each, float32 [T] by `PER_TOKEN`.

    Also under `place` the token's number in its example.
    """
    collate = CausalBatches(models["student"].tokenizer)
    names = sorted(models, key=lambda name: name != "teacher")  # the others are compared with it
    stops = {name: StatesAt(models[name].model.to(hardware.device()).eval()) for name in names}
    found: dict[str, list[Array]] = {name: [] for name in names}
    rows: list[Array] = []
    try:
        for numbers, examples in length_sorted_batches(test, BATCH):
            batch = {name: tensor.to(hardware.device()) for name, tensor in collate(examples).items()}
            states = {}
            for name, stop in stops.items():
                stop.positions = batch["positions"]
                models[name].model(**causal_inputs(batch))
                states[name] = stop.take()
            for some in stops["student"].head.chunks(len(batch["targets"])):
                teacher = None
                for name, stop in stops.items():
                    logits = stop.head(states[name][some])[:, :vocabulary].log_softmax(-1)
                    teacher = logits if name == "teacher" else teacher
                    found[name].append(_per_token(logits, teacher, batch["targets"][some]))
            length = batch["input_ids"].shape[1]
            at = batch["positions"].cpu().numpy()
            rows.append(np.stack([np.asarray(numbers)[at // length], at % length + 1]))
    finally:
        for stop in stops.values():
            stop.close()
    where = np.concatenate(rows, 1)
    said = {name: dict(zip(PER_TOKEN, np.concatenate(parts, 1), strict=True)) for name, parts in found.items()}
    return where, said


def _per_token(logits: torch.Tensor, teacher: torch.Tensor | None, targets: torch.Tensor) -> Array:
    """What one model says of some tokens [5, c], in the order of `PER_TOKEN`, from log-probabilities [c, V]."""
    peak, top = logits.max(-1)
    loss = -logits.gather(-1, targets[:, None])[:, 0]
    kl = (teacher.exp() * (teacher - logits)).sum(-1) if teacher is not None else torch.zeros_like(loss)
    return torch.stack([loss, (top == targets).float(), top.float(), peak.exp(), kl]).double().cpu().numpy()


def _quality(
    where: Array, said: dict[str, Array], examples: int, draws: list[Array]
) -> tuple[dict[str, Any], dict[str, Array]]:
    values = {
        "accuracy": token_means(where[0], said["right"], examples, draws),
        "perplexity": np.exp(token_means(where[0], said["loss"], examples, draws)),
    }
    whole = {"accuracy": said["right"].mean(), "perplexity": np.exp(said["loss"].mean())}
    return {name: figure(float(whole[name]), values[name]) for name in values}, values


def _comparisons(
    where: Array,
    said: dict[str, dict[str, Array]],
    measured: dict[str, Any],
    values: dict[str, dict[str, Array]],
    examples: int,
) -> dict[str, Any]:
    found = {}
    counts = sums(where[0], np.ones(where.shape[1]), examples)
    for other in ("teacher", "baseline"):
        if other in said:
            each = [sums(where[0], said[name]["right"], examples) / counts for name in ("student", other)]
            mine, its = (measured[name]["quality"]["accuracy"]["value"] for name in ("student", other))
            found[f"student_vs_{other}"] = {
                "metric": "accuracy",
                "difference": figure(mine - its, values["student"]["accuracy"] - values[other]["accuracy"]),
                "p_value": paired_test(*each),
            }
    return found


def _disagreements(
    test: Dataset, where: Array, said: dict[str, dict[str, Array]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """The tokens at which the student is farthest from the teacher, of those where their likeliest ones differ."""
    if "teacher" not in said:
        return []
    distance = np.where(said["student"]["top"] != said["teacher"]["top"], said["student"]["kl"], -1)
    shown = []
    for token in np.argsort(-distance, kind="stable")[:SHOWN]:
        if distance[token] < 0:
            break
        row, place = (int(number) for number in where[:, token])
        ids = test[row]["input_ids"]
        entry = {
            "text": tokenizer.decode(ids[max(0, place - CONTEXT) : place]),
            "label": tokenizer.decode([ids[place]]),
        }
        for name in ("teacher", "student"):
            entry[name] = tokenizer.decode([int(said[name]["top"][token])])
            entry[f"{name}_confidence"] = float(said[name]["confidence"][token])
        shown.append(entry)
    return shown
