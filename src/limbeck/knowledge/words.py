"""What a causal language model said about the words of a transfer set, on disk: bytes of a fixed width a token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from limbeck import arrow, hardware
from limbeck.anatomy import StatesAt
from limbeck.checkpoints import Checkpoint, tokenizer_fingerprint, vocabulary_size, weights_fingerprint
from limbeck.errors import InputError
from limbeck.knowledge.formats import Format, pack, unpack
from limbeck.knowledge.labelling import HERE, Work, keep_shards
from limbeck.knowledge.store import Request, Verified, head_of, note_of, shard_name
from limbeck.rules.answers import Held
from limbeck.rules.tokens import TokenRules
from limbeck.signals import Signals, SparseWords
from limbeck.tasks.causal_lm import CausalBatches, causal_inputs
from limbeck.tasks.text import length_sorted_batches

_FEATURES = Features({"input_ids": List(Value("int32")), "first": Value("int32"), "words": Value("large_binary")})
SHARD_BYTES = 2**25


def describe_words(
    teacher: Checkpoint,
    encoded: Dataset,
    form: Format,
    precision: str,
    seed: int,
    rules: TokenRules | None = None,
) -> Request:
    """What a store of words depends on: weights, tokenizer, precision, the examples' tokens, the format and its draws.

    With rules also these, what ends an answer, and the prompts that they look at.

    Args:
        teacher: who is asked.
        encoded: examples of `limbeck.tasks.causal_lm`.
        form: what is kept.
        precision: what the teacher computes in.
        seed: of the draws.
        rules: that the words are projected onto; the examples then have a column `prompt`.
    """
    digest, tokens = hashlib.sha256(), 0
    for part in encoded.with_format("arrow").iter(4096):
        ids, first = (part.column(name).combine_chunks() for name in ("input_ids", "first"))
        values, lengths = ids.flatten().to_numpy(), ids.value_lengths().to_numpy()
        tokens += int((lengths - first.to_numpy()).sum())
        for array in (lengths, first.to_numpy(), values):
            digest.update(array.astype("<i4").tobytes())
    spec = {
        "format": 1,  # of words; what is kept of labels has its own
        "teacher": {
            "weights": weights_fingerprint(teacher.model),
            "tokenizer": tokenizer_fingerprint(teacher.tokenizer),
            "precision": precision,
        },
        "text": digest.hexdigest(),
        "signals": form.spec,
        "seed": seed if form.sampled else None,
    }
    if rules is not None:
        prompts = hashlib.sha256(json.dumps(encoded["prompt"][:]).encode()).hexdigest()
        spec["rules"] = {"rules": rules.text.book.fingerprint, "ends": rules.eos, "prompts": prompts}
    mean = max(1, tokens * form.width // max(len(encoded), 1))
    return Request(spec, len(encoded), form.vocabulary, shard_rows=max(1, SHARD_BYTES // mean))


def label_words(
    teacher: Checkpoint,
    encoded: Dataset,
    form: Format,
    root: Path,
    seed: int,
    batch_size: int,
    precision: str,
    rules: TokenRules | None = None,
    work: Work = HERE,
) -> WordStore:
    """Ask a causal language model once about every token that is to be predicted, or reuse what it said.

    With rules each distribution is projected onto what they allow there, given the prompt and the answer up to it,
    before its temperature is taken and some of it is kept.

    Args:
        teacher: who is asked.
        encoded: examples of `limbeck.tasks.causal_lm`.
        form: what is kept.
        root: the folder that holds stores; this one goes to `root/KEY`.
        seed: of the draws; each example's follow from it and the example's number alone.
        batch_size: examples per forward pass.
        precision: what the teacher computes in.
        rules: in the teacher's tokens; the examples then have a column `prompt`.
        work: who makes the shards.

    Raises:
        InputError: a damaged shard of an earlier run, or too little disk.
    """
    request = describe_words(teacher, encoded, form, precision, seed, rules)

    def write(folder: Path, index: int, part: Dataset) -> None:
        teacher.model.to(hardware.device())
        said = _ask(teacher, part, form, seed, batch_size, precision, rules)
        table = pa.table(
            {
                "input_ids": pa.array(part["input_ids"][:], pa.list_(pa.int32())),
                "first": pa.array(part["first"][:], pa.int32()),
                "words": pa.array([each.tobytes() for each in said], pa.large_binary()),
            }
        )
        metadata = {
            **_FEATURES.arrow_schema.metadata,
            b"limbeck": json.dumps(head_of(request), sort_keys=True).encode(),
        }
        table = table.cast(_FEATURES.arrow_schema).replace_schema_metadata(metadata).combine_chunks()
        path = folder / shard_name(index)
        arrow.write_shard(path, table, folder / note_of(path.name), {"rows": len(part)})

    width = SHARD_BYTES // request.shard_rows
    return WordStore(keep_shards(root, request, encoded, width, write, lambda folder: _FEATURES, work)).verify()


class WordStore(Verified[tuple[np.ndarray, np.ndarray]]):
    """What was kept of each token's distribution, mapped into memory; a signal source for training. As `Verified`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _open_shard)
        self.format = Format(**self.manifest["spec"]["signals"])

    def signals(self, batch: dict[str, torch.Tensor]) -> Signals:
        """What the teacher said at the `positions` of examples `row`, unpacked where the batch is."""
        parts = []
        for shard, row in (divmod(row, self.shard_rows) for row in batch["row"].tolist()):
            ends, content = self.shard(shard)
            parts.append(content[ends[row] : ends[row + 1]])
        flat = np.concatenate(parts).reshape(-1, self.format.width)
        if len(flat) != len(batch["positions"]):
            raise RuntimeError(f"{len(flat)} words are kept of examples with {len(batch['positions'])}")
        return Signals(at_words=_Kept(hardware.send(torch.from_numpy(flat), batch["positions"].device), self.format))


class _Kept:
    def __init__(self, packed: torch.Tensor, form: Format) -> None:
        self.packed, self.form = packed, form

    def words(self, some: slice) -> torch.Tensor | SparseWords:
        return unpack(self.packed[some], self.form)


@torch.inference_mode()
def _ask(
    teacher: Checkpoint,
    examples: Dataset,
    form: Format,
    seed: int,
    batch_size: int,
    precision: str,
    rules: TokenRules | None,
) -> list[np.ndarray]:
    """The packed words of each example, uint8 [tokens, width]."""
    model, device = teacher.model.eval(), teacher.model.device
    collate = CausalBatches(teacher.tokenizer)
    found: list[np.ndarray] = [np.empty(0, np.uint8)] * len(examples)
    stop = StatesAt(model)
    try:
        for rows, batch_of in length_sorted_batches(examples, batch_size):
            batch = collate(batch_of)
            stop.positions = batch["positions"].to(device)
            batch["input_ids"] = batch["input_ids"].to(device)
            with hardware.autocast(precision):
                model(**causal_inputs(batch))
            states = stop.take()
            sizes = [len(each["input_ids"]) - each["first"] for each in batch_of]
            draws = [
                np.random.default_rng([seed, each["row"]]).random((size, form.sampled), dtype=np.float32)
                for each, size in zip(batch_of, sizes, strict=True)
            ]
            uniform = torch.from_numpy(np.concatenate(draws)).to(device)
            held = _held(rules, batch_of) if rules is not None else None
            packed = []
            with hardware.autocast(precision):  # once: when it ends it forgets the weights that it has cast
                for some in stop.head.chunks(len(states)):
                    logits = stop.head(states[some])[:, : form.vocabulary]
                    with torch.autocast(device.type, enabled=False):
                        if held is not None:
                            logits = held.project(logits, some)
                        packed.append(pack(logits, form, uniform[some]).cpu().numpy())
            parts = np.split(np.concatenate(packed), np.cumsum(sizes)[:-1])
            for row, part in zip(rows, parts, strict=True):
                found[int(row)] = part
    finally:
        stop.close()
    return found


def _held(rules: TokenRules, examples: Sequence[Mapping[str, Any]]) -> Held:
    """What the rules allow at the tokens of some examples that are to be predicted."""
    answers = [each["input_ids"][each["first"] :] for each in examples]
    return Held(rules, [each["prompt"] for each in examples], answers)


def _open_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where each example's words end, and the bytes of all, as views of the mapped file."""
    column = pa.ipc.open_stream(pa.memory_map(str(path))).read_all().column("words").chunk(0)
    _, offsets, content = column.buffers()
    return np.frombuffer(offsets, np.int64)[: len(column) + 1], np.frombuffer(content, np.uint8)


def words_format(
    keep: str, head: int, sampled: int, bits: int, tokenizer: PreTrainedTokenizerBase, temperature: float
) -> Format:
    """A format for a tokenizer's vocabulary, which may be smaller than the models' padded ones.

    Raises:
        InputError: more tokens are to be kept than there are.
    """
    size = vocabulary_size(tokenizer)
    if head + sampled >= size:
        raise InputError(f"teacher.words keeps {head + sampled} tokens of {size}; keep fewer, or give words=dense")
    return Format(keep, head, sampled, bits, size, 1.0 if keep == "dense" else temperature)  # type: ignore[arg-type]
