"""The on-disk store of signals: Arrow shards that `datasets.load_from_disk` opens, and a manifest.

A store is a folder named by its key. Shard i holds examples i*R up to (i+1)*R in order, as an Arrow stream whose schema
metadata carries the manifest's specification, its digest noted under `progress/` until all are there. Then the files
that `datasets` looks for are written, and `manifest.json` that lists them. Equal requests give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value

from limbeck import arrow
from limbeck.errors import InputError
from limbeck.files import read_json, sha256, write_json
from limbeck.signals import Signals

VERSION = 2
SHARD_ROWS = 1024
ABREAST = 8
"""Processes that have as much to do each, as far as there is enough for them."""
MOST_SHARDS = 512
"""Each is a file that stays open while it is mapped, and systems allow a process about a thousand."""


Shard = TypeVar("Shard")


@dataclass(frozen=True)
class Request:
    """What is asked of whom: the content that a store depends on, and its layout.

    Attributes:
        spec: everything that the signals depend on, as JSON values.
        rows: the number of examples.
        outputs: logits per example.
        features: layers whose [CLS] state is kept.
        beside: the columns of the examples that are kept beside the signals.
        shard_rows: examples of a shard; when not given so many that shards are alike and not too many.
    """

    spec: dict[str, Any]
    rows: int
    outputs: int
    features: tuple[int, ...] = ()
    beside: dict[str, Value] = field(default_factory=dict)
    shard_rows: int = 0

    def __post_init__(self) -> None:
        if not self.shard_rows:
            shards = min(-(-self.rows // SHARD_ROWS), MOST_SHARDS)
            step = min(ABREAST, 2 ** max(shards - 1, 0).bit_length())
            shards = max(-(-shards // step) * step, 1)
            object.__setattr__(self, "shard_rows", max(-(-self.rows // shards), 1))

    @property
    def key(self) -> str:
        """SHA-256 of the specification; names the store."""
        return hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.rows // self.shard_rows)


class Verified(Generic[Shard]):
    """A complete store. It opens at once whatever its size: a shard's bytes are verified when they are first needed.

    Args:
        folder: the store's folder.
        open_shard: maps a shard's file.

    Raises:
        InputError: it is not complete; when a shard is used, that its bytes are not those that were written.
    """

    def __init__(self, folder: Path, open_shard: Callable[[Path], Shard]) -> None:
        if not (folder / "manifest.json").is_file():
            raise InputError(f"{folder} is no finished knowledge store; run limbeck label to finish it")
        self.folder = folder
        self.manifest: dict[str, Any] = read_json(folder / "manifest.json")
        self.shard_rows = int(self.manifest["shards"][0]["rows"]) if self.manifest["shards"] else SHARD_ROWS
        self._open_shard = open_shard
        self._opened: dict[int, Shard] = {}
        self._verified = False

    def verify(self) -> Self:
        """Verify all shards now, several at a time.

        Raises:
            InputError: a shard's bytes are not those that were written; names the first one.
        """
        shards = self.manifest["shards"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets go of the interpreter's lock
            list(pool.map(lambda shard: verify_shard(self.folder / shard["file"], shard["sha256"]), shards))
        self._verified = True
        return self

    def shard(self, index: int) -> Shard:
        """A shard, mapped into memory."""
        if index not in self._opened:
            shard = self.manifest["shards"][index]
            if not self._verified:
                verify_shard(self.folder / shard["file"], shard["sha256"])
            self._opened[index] = self._open_shard(self.folder / shard["file"])
        return self._opened[index]

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum((self.folder / shard["file"]).stat().st_size for shard in self.manifest["shards"])


class Store(Verified[dict[str, np.ndarray]]):
    """Logits and [CLS] states by example, mapped into memory; a signal source for training. As `Verified`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _open_shard)

    def signals(self, batch: dict[str, torch.Tensor]) -> Signals:
        """The signals of examples `row`, int64 [B]: logits float32 [B, C], features float16 [B, d] by layer."""
        places = [divmod(row, self.shard_rows) for row in batch["row"].tolist()]
        columns = {
            name: torch.from_numpy(np.stack([self.shard(shard)[name][row] for shard, row in places]))
            for name in self.shard(places[0][0])
        }
        logits = columns.pop("logits")
        return Signals(logits, {int(name.removeprefix("cls_")): states for name, states in columns.items()})


class Joined:
    """Several stores as one, their examples one after the other; a signal source for training.

    Args:
        stores: of the same teacher, labels and features.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self._starts = np.cumsum([0, *map(len, self.stores)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(store.size for store in self.stores)

    def signals(self, batch: dict[str, torch.Tensor]) -> Signals:
        """As `Store.signals`; examples are counted through all stores."""
        rows = batch["row"].cpu()
        whose = torch.bucketize(rows, torch.from_numpy(self._starts[1:]), right=True)
        places = [torch.nonzero(whose == number)[:, 0] for number in range(len(self.stores))]
        parts = [
            store.signals({"row": rows[place] - int(start)})
            for store, start, place in zip(self.stores, self._starts, places, strict=False)
            if len(place)
        ]
        order = torch.argsort(torch.cat(places))
        states = {layer: torch.cat([part.features[layer] for part in parts])[order] for layer in parts[0].features}
        return Signals(torch.cat([part.logits for part in parts])[order], states)


def shard_name(index: int) -> str:
    """A shard's file name."""
    return f"shard-{index:05d}.arrow"


def note_of(name: str) -> str:
    """The file, within a store's folder, of a finished shard's digest until all of them are there."""
    return f"progress/{name}.json"


def verify_shard(path: Path, digest: str) -> None:
    """Compare a shard's bytes with the digest noted when it was written.

    Raises:
        InputError: missing or different.
    """
    found = sha256(path) if path.is_file() else "missing"
    if found != digest:
        raise InputError(
            f"knowledge shard {path} is damaged (SHA-256 {found[:16]}, written as {digest[:16]}); "
            "delete this file and run the same command: only its examples are asked again"
        )


def finished_shards(folder: Path, request: Request) -> set[int]:
    """The shards that an earlier run finished, verified; what it left half-written is removed."""
    (folder / "progress").mkdir(parents=True, exist_ok=True)
    for partial in folder.rglob("*.partial"):
        partial.unlink(missing_ok=True)
    done = {}
    for index in range(request.shards):
        path, note = folder / shard_name(index), folder / note_of(shard_name(index))
        if path.exists() and note.exists():
            done[index] = (path, read_json(note)["sha256"])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda found: verify_shard(*found), done.values()))
    return set(done)


def write_shard(folder: Path, request: Request, index: int, texts: Dataset, signals: Signals) -> None:
    """Write one shard, whole or not at all."""
    columns: dict[str, pa.Array] = {
        name: pa.array(texts[name][:], feature.pa_type) for name, feature in request.beside.items()
    }
    columns["logits"] = arrow.fixed_rows(signals.logits)
    for layer in request.features:
        columns[f"cls_{layer}"] = arrow.fixed_rows(signals.features[layer])
    features = _features(
        request, {name: len(array[0]) for name, array in columns.items() if name not in request.beside}
    )
    metadata = {**features.arrow_schema.metadata, b"limbeck": json.dumps(head_of(request), sort_keys=True).encode()}
    table = pa.table(columns).cast(features.arrow_schema).replace_schema_metadata(metadata).combine_chunks()
    path = folder / shard_name(index)
    arrow.write_shard(path, table, folder / note_of(path.name), {"rows": len(texts)})


def features_of(folder: Path, request: Request) -> Features:
    """The columns of a finished store's shards."""
    first = _open_shard(folder / shard_name(0))
    return _features(request, {name: column.shape[1] for name, column in first.items()})


def finish(folder: Path, request: Request, features: Features) -> None:
    """Write the manifest and the files that make the folder a `datasets` one, then drop the progress notes."""
    files = [shard_name(index) for index in range(request.shards)]
    notes = [read_json(folder / note_of(name)) for name in files]
    if sum(note["rows"] for note in notes) != request.rows:
        raise RuntimeError(f"shards of {sum(note['rows'] for note in notes)} examples where {request.rows} were asked")
    shards = [{"file": name, **note} for name, note in zip(files, notes, strict=True)]
    arrow.describe_shards(folder, features, files, request.key[:16])
    write_json(folder / "manifest.json", {**head_of(request), "rows": request.rows, "shards": shards})
    shutil.rmtree(folder / "progress", ignore_errors=True)


def is_finished(folder: Path, request: Request) -> bool:
    """Whether the manifest is there and no shard is missing.

    Raises:
        InputError: the folder's manifest is that of another request.
    """
    if not (folder / "manifest.json").is_file():
        return False
    manifest = read_json(folder / "manifest.json")
    if manifest["key"] != request.key:
        raise InputError(
            f"{folder} holds knowledge with key {manifest['key'][:16]}, this run needs {request.key[:16]} "
            f"(other {', '.join(differing(manifest['spec'], request))}); move that folder away"
        )
    if all((folder / shard["file"]).is_file() for shard in manifest["shards"]):
        shutil.rmtree(folder / "progress", ignore_errors=True)  # a kill right after the manifest leaves it
        return True
    return False


def reopen(folder: Path) -> None:
    """Make a store of which a shard was deleted an unfinished one again; one without a manifest is that already."""
    if not (folder / "manifest.json").is_file():
        return
    (folder / "progress").mkdir(exist_ok=True)
    for shard in read_json(folder / "manifest.json")["shards"]:
        write_json(folder / note_of(shard["file"]), {k: shard[k] for k in ("rows", "sha256")})
    (folder / "manifest.json").unlink()


def what_differs(root: Path, request: Request) -> str | None:
    """Why no store under `root` answers this request: what the most similar one was made from differently."""
    specs = [read_json(path)["spec"] for path in sorted(root.glob("*/manifest.json"))]
    closest = min((differing(spec, request) for spec in specs), key=len, default=None)
    return ", ".join(closest) if closest else None


def differing(spec: dict[str, Any], request: Request) -> list[str]:
    """The parts of a specification that are not the request's."""
    return [name for name in request.spec if spec.get(name) != request.spec[name]]


def head_of(request: Request) -> dict[str, Any]:
    """What a shard and the manifest say of the request."""
    return {"version": VERSION, "key": request.key, "spec": request.spec}


def _features(request: Request, widths: dict[str, int]) -> Features:
    columns: dict[str, Any] = dict(request.beside)
    for name, width in widths.items():
        columns[name] = List(Value("float32" if name == "logits" else "float16"), length=width)
    return Features(columns)


def _open_shard(path: Path) -> dict[str, np.ndarray]:
    """The signal columns as [rows, width] views of the mapped file; nothing is read until it is used."""
    table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    columns = {}
    for name in table.column_names:
        if pa.types.is_fixed_size_list(table.schema.field(name).type):
            flat = table.column(name).chunk(0).flatten().to_numpy(zero_copy_only=True)
            columns[name] = flat.reshape(len(table), -1)
    return columns
