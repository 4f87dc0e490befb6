"""Tokens per second and memory of causal language models, all models in turn on the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from limbeck import hardware
from limbeck.errors import InputError
from limbeck.evaluation.memory import PeakMemory

PROMPT_TOKENS, NEW_TOKENS, BATCHES, ROUNDS, MEMORY_ROUNDS = 128, 64, (1, 8), 5, 3
REPORT_PROMPT, REPORT_NEW, REPORT_ROUNDS = 64, 16, 3
"""A report's generation: a few seconds a model."""


class _Clock(StoppingCriteria):
    """Notes when each token is there; stops nothing."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ANN401
        self.wait()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def measure_generation(
    models: dict[str, PreTrainedModel],
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    batches: tuple[int, ...] = BATCHES,
    rounds: int = ROUNDS,
    memory_rounds: int = MEMORY_ROUNDS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Time greedy generation of a fixed number of tokens after random prompts, with `generate` and its cache.

    In each round every model meets every batch size before the next round comes, so that a change of the machine's
    pace meets them all. A model is measured on the device and in the precision that it is in.

    Args:
        models: by name; not changed but for `eval()`.
        prompt_tokens: length of each prompt; random ids of the model's vocabulary.
        new_tokens: tokens made for each prompt, 2 or more; the end of the text is not among them.
        batches: numbers of prompts at a time.
        rounds: repetitions, after one that is not counted.
        memory_rounds: repetitions by which memory is measured, not timed.
        seed: fixes the prompts.

    Returns:
        By model and then by batch size (`batch_1`, ...): `prompt_tokens_per_second` (all prompts, until the first new
        token is there), `new_tokens_per_second` (all rows, the tokens after the first) and `peak_bytes` (the most
        memory above the weights at any time of a run, over the runs that are not timed: allocated by PyTorch on
        CUDA, resident on the CPU under Linux, None elsewhere), each with `median`, `low` and `high` (the extremes).

    Raises:
        InputError: fewer than two new tokens, or more tokens than a model has positions for.
    """
    if new_tokens < 2:
        raise InputError(f"new_tokens is {new_tokens}; give 2 or more, as the first one is the prompt's")
    for name, model in models.items():
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions and prompt_tokens + new_tokens > positions:
            raise InputError(
                f"{prompt_tokens} prompt tokens and {new_tokens} new ones, but {name} has {positions} positions; "
                "give fewer"
            )
    cases = [(name, size) for name in models for size in batches]
    prompts = {
        (name, size): torch.from_numpy(
            np.random.default_rng(seed).integers(
                0, models[name].config.get_text_config().vocab_size, (size, prompt_tokens)
            )
        ).to(models[name].device)
        for name, size in cases
    }
    times = {case: np.empty((2, rounds)) for case in cases}
    peaks: dict[tuple[str, int], list[int | None]] = {case: [] for case in cases}
    for name, size in cases:
        _run(models[name], prompts[name, size], new_tokens)  # the first run allocates and picks kernels
    for _ in range(memory_rounds):
        for name, size in cases:
            peaks[name, size].append(_peak(models[name], prompts[name, size], new_tokens))
    for turn in range(rounds):
        for name, size in cases:
            times[name, size][:, turn] = _run(models[name], prompts[name, size], new_tokens)
    found: dict[str, dict[str, Any]] = {name: {} for name in models}
    for name, size in cases:
        first, rest = times[name, size]
        found[name][f"batch_{size}"] = {
            "prompt_tokens_per_second": _spread(size * prompt_tokens / first),
            "new_tokens_per_second": _spread(size * (new_tokens - 1) / rest),
            "peak_bytes": None if None in peaks[name, size] else _spread(np.array(peaks[name, size])),
        }
    return found


def generation_speed(models: dict[str, PreTrainedModel]) -> dict[str, dict[str, Any]]:
    """What a report says of the models' speed: `measure_generation`, short and one prompt at a time.

    Models of few positions get a shorter prompt, all the same.

    Returns:
        By model: `prompt_tokens_per_second`, `new_tokens_per_second` and `peak_bytes` as `measure_generation` gives
        them; `prompt_tokens`, `new_tokens`, `batch_size`, `threads`, `precision`.
    """
    positions = [getattr(model.config, "max_position_embeddings", None) for model in models.values()]
    room = min((each for each in positions if each), default=REPORT_PROMPT + REPORT_NEW)
    new = max(2, min(REPORT_NEW, room // 2))
    prompt = max(1, min(REPORT_PROMPT, room - new))
    found = measure_generation(models, prompt, new, (1,), REPORT_ROUNDS, 1)
    return {
        name: {
            **found[name]["batch_1"],
            "prompt_tokens": prompt,
            "new_tokens": new,
            "batch_size": 1,
            "threads": torch.get_num_threads(),
            "precision": str(model.dtype).removeprefix("torch."),
        }
        for name, model in models.items()
    }


def _run(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds until the first new token, and from there to the last."""
    clock = _Clock(hardware.synchronise)
    # What is not said here, `generate` takes from the model's own settings: an end of the text, say.
    count = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    settings = GenerationConfig(**count, do_sample=False, num_beams=1, repetition_penalty=1.0, pad_token_id=0)
    model.eval()
    hardware.synchronise()
    started = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return clock.times[0] - started, clock.times[-1] - clock.times[0]


def _peak(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int) -> int | None:
    """Bytes above what is held before, at the highest."""
    memory = PeakMemory(model.device)
    _run(model, prompts, new_tokens)
    return memory.read()


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(values)), "low": float(values.min()), "high": float(values.max())}
