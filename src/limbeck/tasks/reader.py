"""How a model reads labelled examples, by the kind of input."""

from __future__ import annotations

from typing import Any, Protocol

from datasets import Dataset

from limbeck.checkpoints import Checkpoint, max_length, tokenizer_fingerprint
from limbeck.tasks.features import FeatureReader
from limbeck.tasks.images import ImageReader
from limbeck.tasks.task import Task
from limbeck.tasks.text import Batch, collate, encode, encode_batch


class Reader(Protocol):
    """Makes a model's inputs of examples: once what can be stored, then batches of it."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the inputs depend on besides the examples."""

    def encode(self, examples: Dataset) -> Dataset:
        """What `collate` takes: the model's inputs, `row` (the example's number), `length`, `labels` if any."""

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """A batch: the model's inputs, `row` int64 [B], `labels` int64 or float32."""

    def batch(self, examples: Dataset) -> Batch:
        """A few examples as one batch."""


class TextReader:
    """Reads one text or a pair with a tokenizer; see `limbeck.tasks.text`.

    Args:
        checkpoint: the model and its tokenizer.
        task: says whether an example is one text or two.
        length: tokens kept of an example; the model's own limit when not given.

    Raises:
        InputError: more tokens are wanted than the model reads.
    """

    def __init__(self, checkpoint: Checkpoint, task: Task, length: int | None) -> None:
        self.tokenizer, self.task = checkpoint.tokenizer, task
        self.length = max_length(checkpoint.model, checkpoint.tokenizer, length)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Tokenizer and truncation."""
        return {"tokenizer": tokenizer_fingerprint(self.tokenizer), "max_length": self.length}

    def encode(self, examples: Dataset) -> Dataset:
        """Their tokens; see `encode`."""
        return encode(examples, self.tokenizer, self.task, self.length)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Padded to the longest; see `collate`."""
        return collate(examples, self.tokenizer)

    def batch(self, examples: Dataset) -> Batch:
        """A few texts as one batch."""
        return encode_batch(examples, self.tokenizer, self.task, self.length)


def reader_of(checkpoint: Checkpoint, task: Task, length: int | None = None) -> Reader:
    """How this model reads the task's examples; `length` is about text.

    Raises:
        InputError: see `TextReader`, `ImageReader` and `FeatureReader`.
    """
    if task.inputs == "image":
        return ImageReader(checkpoint)
    if task.inputs == "features":
        return FeatureReader(checkpoint)
    return TextReader(checkpoint, task, length)
