"""Text examples to tensors: tokenised once, padded per batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from limbeck.files import scratch
from limbeck.tasks.task import Task

Batch = dict[str, torch.Tensor]

IN_MEMORY = 20_000
"""Examples of a table on disk whose tokens may be held in memory."""

# What a batch says about its examples besides the model's inputs.
UNUSED = "unused"
"""In a batch that only keeps a process busy: it counts for nothing."""
_ABOUT = ("row", "labels", "positions", "targets", "own", "importance", "advantages", UNUSED)


def model_inputs(batch: Batch) -> Batch:
    """The part of a batch that a model reads."""
    return {name: tensor for name, tensor in batch.items() if name not in _ABOUT}


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int) -> Dataset:
    """Tokenise the examples.

    Args:
        dataset: columns `text`, `text_pair` for pairs, and optionally `label`.
        tokenizer: the tokenizer of the model that will read them.
        task: says whether an example is one text or two.
        max_length: longer examples are cut to so many tokens.

    Returns:
        Columns `input_ids`, `token_type_ids` where the model reads them for pairs, `length`, `row` (the example's
        number in `dataset`) and `labels` where there were some.
    """

    def tokenise(columns: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        return _tokenise(columns, tokenizer, task, max_length) | {"row": rows}

    # By default `map` hashes the whole tokenizer to name the result, which takes a second each time.
    identity = (dataset._fingerprint, tokenizer.name_or_path, task.kind, task.pair, max_length)
    return dataset.map(
        tokenise,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        load_from_cache_file=False,
        new_fingerprint=Hasher.hash(identity),
        desc="Tokenising",
        **place_of_result(dataset, IN_MEMORY),
    )


def place_of_result(dataset: Dataset, most: int = 0) -> dict[str, Any]:
    """Where `dataset.map` puts what it makes: of a table on disk of more rows than `most` a file of this process's own.

    By default it would lie beside the dataset, in a user's folder or among kept knowledge, and stay there.
    """
    if not dataset.cache_files or len(dataset) <= most:
        return {"keep_in_memory": True}
    return {"cache_file_name": str(scratch() / f"{uuid4().hex}.arrow")}


def encode_batch(texts: Dataset, tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int) -> Batch:
    """A few examples as one batch, without the cost of making a dataset of their tokens."""
    columns = _tokenise(texts[:], tokenizer, task, max_length) | {"row": list(range(len(texts)))}
    return collate(
        [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)], tokenizer
    )


def _tokenise(
    columns: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int
) -> dict[str, list[Any]]:
    segments = task.pair and "token_type_ids" in tokenizer.model_input_names
    encoded = tokenizer(
        columns["text"],
        columns["text_pair"] if task.pair else None,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=segments,
    )
    out = {"input_ids": encoded["input_ids"], "length": [len(ids) for ids in encoded["input_ids"]]}
    if segments:
        out["token_type_ids"] = encoded["token_type_ids"]
    if "label" in columns:
        out["labels"] = columns["label"]
    return out


def collate(examples: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Pad to the longest of the batch.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids` int64 [B, n]; `row` int64 [B]; `labels` int64 or float32.
    """
    lengths = np.array([len(example["input_ids"]) for example in examples])
    width = int(lengths.max())
    kept = np.arange(width) < lengths[:, None]
    if tokenizer.padding_side == "left":
        kept = kept[:, ::-1].copy()
    batch = {"attention_mask": torch.from_numpy(kept.astype(np.int64))}
    for name, filler in (("input_ids", tokenizer.pad_token_id), ("token_type_ids", tokenizer.pad_token_type_id)):
        if name in examples[0]:
            padded = np.full(kept.shape, filler, dtype=np.int64)
            padded[kept] = np.concatenate([example[name] for example in examples])
            batch[name] = torch.from_numpy(padded)
    return batch | labels_of(examples)


def labels_of(examples: list[dict[str, Any]]) -> Batch:
    """`row` int64 [B], and `labels` int64 or float32 where there are some."""
    about = {"row": torch.tensor([int(example["row"]) for example in examples])}
    if "labels" in examples[0]:
        labels = np.array([example["labels"] for example in examples])
        about["labels"] = torch.from_numpy(labels.astype(np.int64 if labels.dtype.kind in "iu" else np.float32))
    return about


def length_sorted_batches(encoded: Dataset, size: int) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
    """Batches of similar length, longest first (a batch too big for memory fails at once), with their row numbers."""
    order = np.argsort(-np.asarray(encoded["length"][:]), kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, encoded.__getitems__(rows.tolist())
