"""Texts that were made, kept as Arrow shards that `datasets.load_from_disk` opens.

Shard i is made from a fixed range of the original examples, its digest noted in `shard-i.json`. When all are there, the
files that `datasets` looks for and `manifest.json` are written. Equal requests give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, load_from_disk

from limbeck.arrow import describe_shards, write_shard
from limbeck.errors import InputError
from limbeck.files import LOCK, locked, read_json, sha256, write_json

Row = tuple[Any, ...]


@dataclass(frozen=True)
class TextShards:
    """A folder of made texts, finished or not.

    Attributes:
        root: the folder it stands in, under its key.
        spec: everything that the texts depend on, as JSON values.
        features: the columns; a row has their values in this order.
        count: the number of shards.
        what: what the texts are, for messages.
    """

    root: Path
    spec: dict[str, Any]
    features: Features
    count: int
    what: str

    @property
    def key(self) -> str:
        """SHA-256 of the specification."""
        return hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Where the shards lie."""
        return self.root / self.key[:16]

    def done(self) -> set[int]:
        """The shards that are there, verified.

        Raises:
            InputError: the folder is something else's, or a shard's bytes are not those that were written.
        """
        names = {path.name for path in self.folder.iterdir()} - {LOCK} if self.folder.is_dir() else set()
        ours = any(name.startswith(("shard-", "journal-")) or name == "manifest.json" for name in names)
        if self.folder.is_file() or (names and not ours):
            raise InputError(f"{self.folder} holds something else than {self.what}; move it away")
        manifest = self.folder / "manifest.json"
        if manifest.is_file():
            self._check_owner(manifest)
        return {index for index in range(self.count) if self._is_there(index)}

    def is_finished(self) -> bool:
        """Whether all shards and the manifest are there; verified.

        Raises:
            InputError: as `done`.
        """
        return len(self.done()) == self.count and (self.folder / "manifest.json").is_file()

    def locked(self) -> AbstractContextManager[None]:
        """The folder's lock, held while its shards are made; another run that wants the same waits, and says so."""
        return locked(self.folder, f"{self.what}: another run is making {self.folder}; waiting until it is done")

    def write(self, index: int, rows: list[Row]) -> None:
        """Write one shard, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        schema = self.features.arrow_schema
        columns = [pa.array([row[place] for row in rows], field.type) for place, field in enumerate(schema)]
        path = self._shard(index)
        table = pa.table(columns, schema=schema)
        write_shard(path, table, path.with_suffix(".json"), {"key": self.key, "rows": len(rows)})

    def read(self, index: int) -> list[Row]:
        """The rows of a shard."""
        with pa.memory_map(str(self._shard(index))) as source:
            table = pa.ipc.open_stream(source).read_all()
        return list(zip(*(table[name].to_pylist() for name in self.features), strict=True))

    def finish(self) -> None:
        """Write the manifest and the files that make the folder a `datasets` one."""
        rows = sum(read_json(self._shard(index).with_suffix(".json"))["rows"] for index in range(self.count))
        files = [self._shard(index).name for index in range(self.count)]
        describe_shards(self.folder, self.features, files, self.key[:16])
        write_json(self.folder / "manifest.json", {"key": self.key, "spec": self.spec, "rows": rows})

    def load(self) -> Dataset:
        """The finished texts, mapped into memory.

        Raises:
            InputError: one of the folder's files is damaged.
        """
        try:
            return load_from_disk(str(self.folder))
        except Exception as error:  # whatever a broken JSON or Arrow file makes datasets raise
            raise InputError(f"{self.folder} is damaged ({error}); delete it and run the same command again") from None

    def _shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.arrow"

    def _is_there(self, index: int) -> bool:
        path = self._shard(index)
        note = path.with_suffix(".json")
        if not (path.is_file() and note.is_file()):
            return False
        self._check_owner(note)
        found, written = sha256(path), read_json(note).get("sha256")
        if found != written:
            raise InputError(
                f"{path} is damaged (SHA-256 {found[:16]}, written as {str(written)[:16]}); delete this file and run "
                "the same command: only its part is made again"
            )
        return True

    def _check_owner(self, path: Path) -> None:
        found = read_json(path)
        key = found.get("key") if isinstance(found, dict) else None
        if key != self.key:
            raise InputError(
                f"{path} belongs to {self.what} with key {str(key)[:16]}, this run needs {self.key[:16]}; move "
                f"{self.folder} away"
            )
