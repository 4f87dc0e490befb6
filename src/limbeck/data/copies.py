"""Altered copies of the examples' texts, however they are altered: made once, all different, and kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from limbeck import hardware
from limbeck.data.text_shards import Row, TextShards
from limbeck.errors import InputError
from limbeck.files import require_space
from limbeck.progress import say
from limbeck.tasks import Task

SHARD_ROWS = 2048

Alter = Callable[[int, list[Row], str], Iterable[Row]]
"""Copies of rows, from the first one's number, the rows, and a title to show beside the progress."""


def text_columns(texts: Dataset, task: Task) -> Dataset:
    """The columns that are altered: `text`, and for pairs `text_pair`."""
    return texts.select_columns(["text", "text_pair"] if task.pair else ["text"])


def altered_copies(
    texts: Dataset, root: Path, spec: dict[str, Any], copies: int, prepare: Callable[[], Alter], how: str
) -> Dataset:
    """Copies of texts, in `root/augmented/KEY`.

    Killed at any moment, the same call goes on, and the finished files are byte for byte those of an uninterrupted run.
    Of several processes the main one makes them; all return them.

    Args:
        texts: the columns that are altered.
        root: the folder that keeps what can be reused, such as a run's knowledge.
        spec: all that the copies depend on, as JSON values.
        copies: of a text, at most.
        prepare: does what takes long and gives the function that alters; not called where all is there.
        how: what to say where nothing came out.

    Returns:
        The new rows, each different from the others and from all originals.

    Raises:
        InputError: no new text at all, a damaged or foreign folder, or too little disk.
    """
    features = Features({name: Value("string") for name in texts.column_names})
    shards = TextShards(root / "augmented", spec, features, -(-len(texts) // SHARD_ROWS), "augmented texts")
    group = hardware.processes()
    made = False
    if group.is_main_process and not shards.is_finished():
        with shards.locked():
            if not shards.is_finished():  # by another run that had the lock
                _make(texts, shards, copies, prepare, how)
                made = True
    group.wait_for_everyone()
    found = shards.load()
    if not made:
        say(f"augmentation: reused {len(found):,} altered texts from {shards.folder}; no model was asked")
    return found


def _make(texts: Dataset, shards: TextShards, copies: int, prepare: Callable[[], Alter], how: str) -> None:
    started = time.monotonic()
    done = shards.done()
    if done:
        say(f"augmentation: {len(done)} of {shards.count} shards are there from an earlier run; going on")
    size = sum(len(value.encode()) for name in shards.features for value in texts[name])
    require_space(shards.folder, size * copies, "augmentation")
    alter = prepare()
    seen = {_digest(row) for row in rows_of(texts)}
    originals = len(seen)
    for index in range(shards.count):
        if index in done:
            seen.update(_digest(row) for row in shards.read(index))
            continue
        start = index * SHARD_ROWS
        rows = rows_of(texts.select(range(start, min(start + SHARD_ROWS, len(texts)))))
        new = []
        for copy in alter(start, rows, f"Augmenting, part {index + 1} of {shards.count}"):
            digest = _digest(copy)
            if digest not in seen:
                seen.add(digest)
                new.append(copy)
        shards.write(index, new)
    made = len(seen) - originals
    if not made:
        raise InputError(f"none of the {len(texts):,} texts could be altered: {how}")
    shards.finish()
    say(
        f"augmentation: {made:,} altered texts of {len(texts):,} made in {time.monotonic() - started:.1f} s; "
        f"kept in {shards.folder}"
    )


def rows_of(texts: Dataset) -> list[Row]:
    """The rows of a table as tuples."""
    return list(zip(*(texts[name][:] for name in texts.column_names), strict=True))


def _digest(row: Row) -> bytes:
    """Stands for a row among those seen, which may be millions."""
    return hashlib.blake2b(repr(row).encode(), digest_size=16).digest()
