"""A local Hugging Face model that answers about examples; teachers and evaluated students alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from limbeck import hardware
from limbeck.anatomy import Capture, WordsAt, shape_of
from limbeck.checkpoints import Checkpoint, label_names, place, weights_fingerprint
from limbeck.errors import InputError
from limbeck.signals import Signals, Wanted
from limbeck.tasks import Task
from limbeck.tasks.reader import reader_of
from limbeck.tasks.text import Batch, length_sorted_batches, model_inputs

ABREAST = 4
"""Batches that CPUs work on at once, at most: each holds its own states."""


class HuggingFaceModel:
    """A classifier in evaluation mode on this process's device.

    Args:
        checkpoint: the model and what it reads with.
        task: what is predicted.
        length: tokens kept of a text; the model's own limit when not given.
        batch_size: examples per forward pass.
        precision: `float32`, `bfloat16` or `float16`; the forward pass runs under autocast, answers are float32.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        task: Task,
        length: int | None = None,
        batch_size: int = 64,
        precision: str = "float32",
    ) -> None:
        self.model, self.processor, self.name = checkpoint
        self.task = task
        self.reader = reader_of(checkpoint, task, length)
        self.batch_size = batch_size
        self.precision = precision
        self._words = WordsAt(self.model) if task.kind == "masked-lm" else None
        self.model.to(hardware.device()).eval()

    def __getstate__(self) -> dict[str, Any]:
        """On its way to another machine the model is on the CPU, which every machine has."""
        self.model.cpu()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self.model.to(hardware.device())

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the outputs."""
        return self.task.labels if self._words else label_names(self.model.config)

    @property
    def parameters(self) -> int:
        """The number of parameters, shared ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def bytes(self) -> int:
        """The size of its safetensors files, or what they would take where it was never saved."""
        files = list(Path(place(self.name)).glob("*.safetensors")) if self.name else []
        stored = sum(file.stat().st_size for file in files)
        return stored or sum(p.numel() * p.element_size() for p in self.model.parameters())

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Weights, how examples are read, and precision."""
        return {"weights": weights_fingerprint(self.model), "precision": self.precision, **self.reader.fingerprint}

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B, C] for prepared inputs; of a language model those at each example's one mask."""
        if self._words is not None:
            self._words.positions = (batch["input_ids"].flatten() == self.processor.mask_token_id).nonzero()[:, 0]
        with hardware.autocast(self.precision):
            logits: torch.Tensor = self.model(**batch).logits
        if self._words is not None:
            self._words.positions = None
        return logits

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """Answers in the order of `texts`: logits float32 [N, C]; [CLS] states float16 [N, d] after layers `features`.

        The states are keyed by the numbers as they were asked for, counted from 1 or, if negative, from the end.

        Raises:
            InputError: a layer that the model does not have.
        """
        layers = {number: self._layer(number) for number in features}
        encoded = self.reader.encode(texts)
        logits = np.empty((len(encoded), self.task.outputs), dtype=np.float32)
        states: dict[int, np.ndarray] = {}
        with Capture(self.model, Wanted(features=frozenset(layers.values()))) as capture:
            for rows, said in self._answered(encoded, alone=bool(layers)):
                logits[rows] = said.float().cpu().numpy()
                found = capture.signals().features
                for number, layer in layers.items():
                    cls = found[layer].to(torch.float16).cpu().numpy()
                    states.setdefault(number, np.empty((len(encoded), cls.shape[1]), dtype=np.float16))[rows] = cls
        return Signals(logits, states)

    def _answered(self, encoded: Dataset, alone: bool) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Row numbers and logits, longest texts first; on CPUs several batches at once, each by some of the cores.

        A batch's small operations keep few cores busy, and each length that is met needs kernels of its own, which one
        core makes. Not where anything is read from within the model (`alone`): hooks know no batches.
        """
        batches = (
            (rows, self._place(self.reader.collate(examples)))
            for rows, examples in length_sorted_batches(encoded, self.batch_size)
        )
        threads = torch.get_num_threads()
        workers = min(threads, ABREAST) if self.model.device.type == "cpu" and not (alone or self._words) else 1
        if workers == 1:
            yield from ((rows, self.forward(batch)) for rows, batch in batches)
            return
        shares = deque(threads // workers + (number < threads % workers) for number in range(workers))
        waiting: deque[tuple[np.ndarray, Future[torch.Tensor]]] = deque()
        try:
            with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(shares.popleft())) as pool:
                for rows, batch in batches:
                    waiting.append((rows, pool.submit(self.forward, batch)))
                    if len(waiting) > 2 * workers:
                        rows, answer = waiting.popleft()
                        yield rows, answer.result()
                yield from ((rows, answer.result()) for rows, answer in waiting)
        finally:
            torch.set_num_threads(threads)  # what a thread says of itself is what new ones begin with

    def runner(self, texts: Dataset) -> Callable[[], None]:
        """A function that runs the model once on these texts as one batch; they are read beforehand."""
        batch = self._place(self.reader.batch(texts))

        def run() -> None:
            self.forward(batch)
            hardware.synchronise()

        return run

    def _place(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.model.device) for name, tensor in model_inputs(batch).items()}

    def _layer(self, number: int) -> int:
        depth = shape_of(self.model).layers
        if not depth:
            raise InputError(
                f"teacher.features asks for layer {number}, and '{self.name}' has none, as it is a "
                f"{self.model.config.model_type}; leave teacher.features out"
            )
        if not (1 <= number <= depth or -depth <= number <= -1):
            raise InputError(f"teacher.features asks for layer {number}; '{self.name}' has layers 1 to {depth}")
        return number if number > 0 else depth + 1 + number
