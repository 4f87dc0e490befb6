"""A teacher in memory, for signals of every token, which are too many to keep, and of images that change each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from limbeck import hardware
from limbeck.anatomy import Capture, StatesAt, VocabularyHead, WordsAt
from limbeck.sharding import split
from limbeck.signals import Signals, SignalSource, Wanted
from limbeck.tasks.causal_lm import causal_inputs
from limbeck.tasks.text import Batch, model_inputs


class LiveTeacher:
    """Runs the teacher on each batch of the student's own tokens or images, in evaluation mode and without gradients.

    Args:
        model: reads with the student's tokenizer. Without `wanted.logits` its body alone is run.
        wanted: the signals.
        precision: what the forward pass computes in.
        causal: the model is a causal language model, whose words are given a few positions at a time.
        inputs: makes what the model reads of the student's batch, where it is not the same.
        sharded: split a copy of the model over the processes; the model itself stays as it is.

    Raises:
        InputError: inner signals are wanted of an architecture that is not known.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        wanted: Wanted,
        precision: str,
        causal: bool = False,
        inputs: Callable[[Batch], Batch] = model_inputs,
        sharded: bool = False,
    ) -> None:
        asked = model if wanted.logits else model.base_model
        self._own = sharded and hardware.processes().num_processes > 1
        self.model = (split(asked) if self._own else asked.to(hardware.device())).eval()
        self.capture = Capture(self.model, wanted)
        self.precision = precision
        self._words: WordsAt | StatesAt | None = StatesAt(self.model) if causal and wanted.logits else None
        self._inputs = causal_inputs if causal else inputs

    @torch.no_grad()
    def signals(self, batch: Batch) -> Signals:
        """The signals about a batch of tokens; words at its `positions` where it has some."""
        if "positions" in batch and self.capture.wanted.logits:
            self._words = self._words or WordsAt(self.model)
            self._words.positions = batch["positions"]
        with hardware.autocast(self.precision):
            output = self.model(**self._inputs(batch))
        if self._words is not None:
            self._words.positions = None  # whoever runs the model otherwise gets all of it
        if not isinstance(self._words, StatesAt):
            return self.capture.signals(getattr(output, "logits", None))
        said = self.capture.signals()
        said.at_words = _Live(self._words.take(), self._words.head, self.precision)
        return said

    def close(self) -> None:
        """Take the hooks away and leave the accelerator's memory to others."""
        self.capture.close()
        if self._words:
            self._words.close()
        if not self._own:
            self.model.cpu()


class LiveTeachers:
    """Several teachers that run along for what is inside of them; what they say together comes from elsewhere.

    Args:
        teachers: each for its own signals.
        together: their outputs as one; none where no term reads these.
    """

    def __init__(self, teachers: Sequence[LiveTeacher], together: SignalSource | None) -> None:
        self.teachers, self.together = list(teachers), together

    def signals(self, batch: Batch) -> Signals:
        """The signals about a batch, those of each teacher as `members`."""
        said = self.together.signals(batch) if self.together is not None else Signals()
        said.members = [teacher.signals(batch) for teacher in self.teachers]
        return said

    def close(self) -> None:
        """See `LiveTeacher.close`."""
        for teacher in self.teachers:
            teacher.close()


class _Live:
    def __init__(self, states: torch.Tensor, head: VocabularyHead, precision: str) -> None:
        self.states, self.head, self.precision = states, head, precision

    @torch.no_grad()
    def words(self, some: slice) -> torch.Tensor:
        with hardware.autocast(self.precision):
            return self.head(self.states[some])
