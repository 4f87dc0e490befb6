"""Asking the teacher over a transfer set, shard by shard, going on where an earlier run stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate.utils import broadcast_object_list
from datasets import Dataset, Features
from rich.progress import track

from limbeck import hardware
from limbeck.errors import LimbeckError
from limbeck.files import locked, require_space
from limbeck.images import image_bytes
from limbeck.knowledge import store
from limbeck.knowledge.mirror import Mirror
from limbeck.knowledge.store import VERSION, Request, Store
from limbeck.progress import console, say
from limbeck.signals import Asked
from limbeck.tasks import Task

Write = Callable[[Path, int, Dataset], None]
"""Makes a shard whole or not at all, of the store's folder, the shard's number and its examples."""


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


@dataclass(frozen=True)
class Work:
    """Who makes shards, and where they go besides the folder that holds stores.

    Attributes:
        ray: workers on a Ray cluster, in the place of the processes of this run.
        workers: of Ray; one for each GPU of the cluster when not given, or one for each machine where there are none.
        url: of a place that keeps stores, too; what is there is not made again.
    """

    ray: bool = False
    workers: int | None = None
    url: str | None = None


HERE = Work()


def label_texts(
    teacher: Asked, texts: Dataset, task: Task, root: Path, features: Sequence[int] = (), work: Work = HERE
) -> Store:
    """Ask the teacher once about every example, or reuse what it said.

    Several processes (`accelerate launch`) share the work; each writes its own shards. Killed at any moment, the
    same call goes on, and the finished store is byte for byte that of an uninterrupted run.

    Args:
        teacher: who is asked.
        texts: the transfer set, the task's columns.
        task: what is predicted.
        root: the folder that holds stores; this one goes to `root/KEY`.
        features: layers whose [CLS] state is kept too, counted from 1.
        work: who makes the shards.

    Raises:
        InputError: a damaged shard of an earlier run, or too little disk.
    """
    request = describe_request(teacher, texts, task, features)

    def write(folder: Path, index: int, part: Dataset) -> None:
        store.write_shard(folder, request, index, part, teacher.ask(part, request.features))

    width = 4 * request.outputs + sum(len(str(texts[name][0])) for name in request.beside)
    folder = keep_shards(root, request, texts, width, write, lambda made: store.features_of(made, request), work)
    return Store(folder).verify()


def keep_shards(
    root: Path,
    request: Request,
    examples: Dataset,
    width: int,
    write: Write,
    features: Callable[[Path], Features],
    work: Work,
) -> Path:
    """Make the shards of a store that are not there yet. Of several runs that want the same one makes them.

    Args:
        root: the folder that holds stores.
        request: what is kept.
        examples: of what.
        width: bytes of an example, about.
        write: makes a shard whole or not at all.
        features: the columns, once all shards are there.
        work: who makes them.

    Returns:
        The store's folder.

    Raises:
        InputError: as `label_texts`.
        LimbeckError: the cluster, or the place behind the URL, failed; the same call goes on.
    """
    group = hardware.processes()
    folder = root / request.key[:16]
    mirror = Mirror(work.url, request.key[:16]) if work.url else None
    missing = group.is_main_process and not store.is_finished(folder, request)
    waiting = f"knowledge: another run is making {folder}; waiting until it is done"
    with locked(folder, waiting) if missing else nullcontext():
        if missing and not store.is_finished(folder, request):
            store.reopen(folder)  # all look at its manifest below
            if mirror is not None:
                mirror.fetch(folder, request.shards)
        _fill(folder, request, examples, width, write, features, work, mirror)
    return folder


def _fill(
    folder: Path,
    request: Request,
    examples: Dataset,
    width: int,
    write: Write,
    features: Callable[[Path], Features],
    work: Work,
    mirror: Mirror | None,
) -> None:
    """Make a store's missing shards, where some are; the main process has its lock."""
    group = hardware.processes()
    group.wait_for_everyone()
    whole, done = _agreed(folder, request, mirror)
    _fetch_elsewhere(folder, request, mirror)
    if whole:
        say(f"knowledge: reused {request.rows:,} examples from {folder}; the teacher was not asked")
        return
    differing = store.what_differs(folder.parent, request)
    if differing and not done:
        say(f"knowledge: what is under {folder.parent} was made with other {differing}; it is left alone")
    if done:
        say(f"knowledge: {len(done)} of {request.shards} shards are there from an earlier run; going on")
    open_shards = [index for index in range(request.shards) if index not in done]
    require_space(folder, len(open_shards) * request.shard_rows * width, "labelling")
    started = time.monotonic()
    _make(open_shards[group.process_index :: group.num_processes], folder, request, examples, write, work, mirror)
    group.wait_for_everyone()
    if group.is_main_process:
        if mirror is not None and group.num_processes > 1:
            mirror.fetch(folder, request.shards)  # those of other machines
        if not store.is_finished(folder, request):
            store.finish(folder, request, features(folder))
        if mirror is not None:
            mirror.finish(folder)
        seconds = time.monotonic() - started
        say(f"knowledge: the teacher was asked about {request.rows:,} examples in {seconds:.1f} s; kept in {folder}")
    group.wait_for_everyone()
    _fetch_elsewhere(folder, request, mirror)


def _agreed(folder: Path, request: Request, mirror: Mirror | None) -> tuple[bool, list[int]]:
    """Whether the whole store is there, or which of its shards: the main process looks, and all go by that.

    What it has is behind the URL afterwards, for machines that do not share its folder.
    """
    group, found = hardware.processes(), [(False, list[int]())]
    if group.is_main_process:
        whole = (folder / "manifest.json").is_file()
        found = [(whole, [] if whole else sorted(store.finished_shards(folder, request)))]
        if mirror is not None and whole and not mirror.finished:
            mirror.finish(folder)
        elif mirror is not None and not whole and group.num_processes > 1:
            mirror.push_missing(folder, found[0][1])
    agreed: tuple[bool, list[int]] = broadcast_object_list(found)[0]
    return agreed


def _fetch_elsewhere(folder: Path, request: Request, mirror: Mirror | None) -> None:
    """Bring what is behind the URL to machines that do not share the main process's folder, once to each."""
    group = hardware.processes()
    if mirror is None or group.num_processes == 1:
        return
    if group.is_local_main_process and not group.is_main_process and not store.is_finished(folder, request):
        mirror.fetch(folder, request.shards)
    group.wait_for_everyone()


def _make(
    mine: Sequence[int],
    folder: Path,
    request: Request,
    examples: Dataset,
    write: Write,
    work: Work,
    mirror: Mirror | None,
) -> None:
    """Make shards, here or by workers."""
    hidden = not hardware.processes().is_main_process
    shown = partial(track, total=len(mine), description="Labelling", console=console, disable=hidden)
    parts = ((index, _part(examples, request, index)) for index in mine)
    if not work.ray:
        for index, part in shown(parts):
            write(folder, index, part)
            if mirror is not None:
                mirror.push(folder, index)
        return
    from limbeck.knowledge import cluster

    for _ in shown(cluster.write_shards(parts, examples.features, folder, write, work.workers, mirror)):
        pass
    if mirror is not None:
        mirror.fetch(folder, request.shards)
    lost = [index for index in mine if not (folder / store.shard_name(index)).is_file()]
    if lost:
        raise LimbeckError(
            f"{len(lost)} shards were made by workers, but are not in {folder}, which their machines do not share; "
            "give knowledge=URL of a place that all of them reach"
        )


def _part(examples: Dataset, request: Request, index: int) -> Dataset:
    """A shard's examples."""
    first = index * request.shard_rows
    return examples.select(range(first, min(first + request.shard_rows, request.rows)))
