"""Asking the teacher over a transfer set, shard by shard, going on where an earlier run stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from datasets import Dataset, Features
from rich.progress import track

from limbeck import hardware
from limbeck.files import locked, require_space
from limbeck.images import image_bytes
from limbeck.knowledge import store
from limbeck.knowledge.store import VERSION, Request, Store
from limbeck.progress import console, say
from limbeck.signals import Asked
from limbeck.tasks import Task


def describe_request(teacher: Asked, texts: Dataset, task: Task, features: Sequence[int] = ()) -> Request:
    """What labelling these texts by this teacher depends on. A change of any part gives another key."""
    digest = hashlib.sha256()
    for column in task.columns:
        digest.update(f"{column} {len(texts)}\n".encode())
        for value in image_bytes(texts, column) if task.inputs == "image" else texts[column]:
            encoded = value if isinstance(value, bytes) else str(value).encode()
            digest.update(f"{len(encoded)}:".encode())
            digest.update(encoded)
    spec = {
        "format": VERSION,
        "teacher": teacher.fingerprint,
        "labels": list(teacher.labels),
        task.inputs: digest.hexdigest(),
        "signals": {"logits": "float32", "features": {"layers": list(features), "dtype": "float16"}},
    }
    # Images are not copied beside what is said of them: a row's number finds them.
    beside = {column: texts.features[column] for column in task.columns if task.inputs != "image"}
    return Request(spec, len(texts), task.outputs, tuple(features), beside)


def label_texts(teacher: Asked, texts: Dataset, task: Task, root: Path, features: Sequence[int] = ()) -> Store:
    """Ask the teacher once about every example, or reuse what it said.

    Several processes (`accelerate launch`) share the work; each writes its own shards. Killed at any moment, the
    same call goes on, and the finished store is byte for byte that of an uninterrupted run.

    Args:
        teacher: who is asked.
        texts: the transfer set, the task's columns.
        task: what is predicted.
        root: the folder that holds stores; this one goes to `root/KEY`.
        features: layers whose [CLS] state is kept too, counted from 1.

    Raises:
        InputError: a damaged shard of an earlier run, or too little disk.
    """
    request = describe_request(teacher, texts, task, features)

    def write(folder: Path, index: int, rows: range) -> None:
        part = texts.select(rows)
        store.write_shard(folder, request, index, part, teacher.ask(part, request.features))

    width = 4 * request.outputs + sum(len(str(texts[name][0])) for name in request.beside)
    return Store(keep_shards(root, request, width, write, lambda folder: store.features_of(folder, request)))


def keep_shards(
    root: Path,
    request: Request,
    width: int,
    write: Callable[[Path, int, range], None],
    features: Callable[[Path], Features],
) -> Path:
    """Make the shards of a store that are not there yet. Of several runs that want the same one makes them.

    Args:
        root: the folder that holds stores.
        request: what is kept, of how many examples.
        width: bytes of an example, about.
        write: makes a shard whole or not at all; takes the store's folder, the shard's number and its examples.
        features: the columns, once all shards are there.

    Returns:
        The store's folder.

    Raises:
        InputError: as `label_texts`.
    """
    group = hardware.processes()
    folder = root / request.key[:16]
    missing = group.is_main_process and not store.is_finished(folder, request)
    waiting = f"knowledge: another run is making {folder}; waiting until it is done"
    with locked(folder, waiting) if missing else nullcontext():
        if missing and not store.is_finished(folder, request):
            store.reopen(folder)  # all look at its manifest below
        _fill(folder, request, width, write, features)
    return folder


def _fill(
    folder: Path,
    request: Request,
    width: int,
    write: Callable[[Path, int, range], None],
    features: Callable[[Path], Features],
) -> None:
    """Make a store's missing shards, where some are; the main process has its lock."""
    group = hardware.processes()
    group.wait_for_everyone()
    if (folder / "manifest.json").is_file():
        say(f"knowledge: reused {request.rows:,} examples from {folder}; the teacher was not asked")
        return
    done = store.finished_shards(folder, request)
    group.wait_for_everyone()
    differing = store.what_differs(folder.parent, request)
    if differing and not done:
        say(f"knowledge: what is under {folder.parent} was made with other {differing}; it is left alone")
    if done:
        say(f"knowledge: {len(done)} of {request.shards} shards are there from an earlier run; going on")
    open_shards = [index for index in range(request.shards) if index not in done]
    require_space(folder, len(open_shards) * request.shard_rows * width, "labelling")
    started = time.monotonic()
    mine = open_shards[group.process_index :: group.num_processes]
    shards = track(mine, "Labelling", console=console) if group.is_main_process else mine
    for index in shards:
        first = index * request.shard_rows
        write(folder, index, range(first, min(first + request.shard_rows, request.rows)))
    group.wait_for_everyone()
    if group.is_main_process:
        store.finish(folder, request, features(folder))
        seconds = time.monotonic() - started
        say(f"knowledge: the teacher was asked about {request.rows:,} examples in {seconds:.1f} s; kept in {folder}")
    group.wait_for_everyone()
