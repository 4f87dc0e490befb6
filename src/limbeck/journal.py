"""What was answered since the last whole shard, so that a kill costs no answer twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

PATTERN = "journal-*.jsonl"


class Journal:
    """A file of lines that is only ever appended to; open it with `with`.

    Args:
        folder: where it lies.
        number: of the process that writes it; each has its own.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / f"journal-{number}.jsonl"

    def __enter__(self) -> Journal:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab")
        if self._file.tell():
            self._file.write(b"\n")  # whatever a kill tore stays a line of its own
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def write(self, records: Iterable[list[Any]]) -> None:
        """Append records, each a list of JSON values, and flush them to the disk."""
        self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def read_journals(folder: Path) -> Iterator[list[Any]]:
    """The records of all processes' journals in a folder; torn lines are passed over."""
    for path in sorted(folder.glob(PATTERN)):
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # a kill came in the middle of it
                continue
            if isinstance(record, list):
                yield record


def remove_journals(folder: Path) -> None:
    """Delete them, when all that they hold stands in shards."""
    for path in folder.glob(PATTERN):
        path.unlink()
