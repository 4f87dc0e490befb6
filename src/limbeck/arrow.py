"""Folders of Arrow shards that `datasets.load_from_disk` opens, written so that a shard that is there is whole."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features

from limbeck.files import sha256, sync_folder, write_json


def write_shard(path: Path, table: pa.Table, note: Path, about: dict[str, Any]) -> None:
    """Write a shard aside and flush it, note its digest, and only then rename it into place.

    Args:
        path: the shard.
        table: its rows.
        note: the JSON file for `about` and the shard's `sha256`.
        about: what else to note.
    """
    # A name of its own: on a cluster a worker that was given up may still be writing when another has taken its place.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with partial.open("wb") as file:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        file.flush()
        os.fsync(file.fileno())
    write_json(note, {**about, "sha256": sha256(partial)})
    os.replace(partial, path)
    for left in path.parent.glob(f"{path.name}*.partial"):  # by a kill, or by such a worker
        left.unlink(missing_ok=True)
    sync_folder(path.parent)


def describe_shards(folder: Path, features: Features, files: list[str], fingerprint: str) -> None:
    """Write the two files by which `datasets` knows a folder."""
    write_json(folder / "dataset_info.json", {"features": features.to_dict(), "citation": "", "description": ""})
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)


def fixed_rows(values: np.ndarray) -> pa.Array:
    """A matrix as one list of fixed length a row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
