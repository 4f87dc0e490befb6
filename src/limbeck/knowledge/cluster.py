"""Shards of a store made by workers on a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
from datasets import Dataset, Features

from limbeck import extras
from limbeck.errors import InputError, LimbeckError
from limbeck.files import scratch
from limbeck.knowledge.mirror import Mirror
from limbeck.knowledge.store import note_of, shard_name
from limbeck.progress import say

if TYPE_CHECKING:
    from limbeck.knowledge.labelling import Write

_SHARD = "limbeck_shard"


def write_shards(
    parts: Iterable[tuple[int, Dataset]],
    features: Features,
    folder: Path,
    write: Write,
    workers: int | None,
    mirror: Mirror | None,
) -> Iterator[int]:
    """Have workers make shards, by Ray Data. Each holds the teacher once; one that dies is replaced, its shard redone.

    A shard is whole or not there, and made again it has the same bytes, so that nothing is in the store twice.

    Args:
        parts: numbers of shards, and their examples.
        features: the examples' columns.
        folder: the store's; of workers on other machines, too, unless there is a mirror.
        write: makes a shard.
        workers: how many; one for each GPU when not given, or one for each machine where there are none.
        mirror: where the workers leave the shards in the place of the folder.

    Yields:
        The numbers of shards, as they are done.

    Raises:
        InputError: Ray is not installed, or has fewer GPUs or cores than workers.
        LimbeckError: a worker failed otherwise than by dying.
    """
    extras.require("ray", "labelling on a cluster")
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    if not ray.is_initialized():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what a large teacher cannot help
        ray.init(include_dashboard=False, logging_level=logging.ERROR)  # RAY_ADDRESS names a cluster
    have = ray.cluster_resources()
    gpus, cores = int(have.get("GPU", 0)), int(have.get("CPU", 1))
    nodes = [int(node["Resources"].get("CPU", 0)) or 1 for node in ray.nodes() if node["Alive"]]
    machines = len(nodes)
    count = workers or gpus or machines
    if count > (gpus or cores):
        what = f"{gpus} GPUs" if gpus else f"{cores} cores"
        raise InputError(f"labelling.workers={count}, but the cluster has {what}; give at most as many")
    needs: dict[str, Any] = (
        {"num_gpus": 1} if gpus else {"num_cpus": cores_each(nodes, count) if workers else min(nodes)}
    )
    say(f"knowledge: {count} workers of a Ray cluster with {machines} machines, {cores} cores and {gpus} GPUs")
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    tables = [_numbered(index, part) for index, part in parts]
    try:
        made = ray.data.from_arrow(tables).map_batches(
            _Worker,
            fn_constructor_args=(ray.put(write), features, None if mirror else str(folder), mirror),
            batch_size=None,  # a block is a shard
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=count),
            **needs,
        )
        for batch in made.iter_batches(batch_size=1, batch_format="pyarrow"):
            yield batch.column(_SHARD)[0].as_py()
    except RayError as error:
        # Ray has the worker's own error as a line of a text alone.
        said = re.findall(r"^[\w.]*(?:Error|Exception): .*$", str(error), re.MULTILINE) or [type(error).__name__]
        raise LimbeckError(f"a worker failed ({said[0]}); what is done is kept: run the same command again") from None


def cores_each(machines: list[int], workers: int) -> int:
    """How many cores each worker gets: as many as leave room for all of them on machines of so many cores."""
    return next(each for each in range(max(machines), 0, -1) if sum(cores // each for cores in machines) >= workers)


def _numbered(index: int, part: Dataset) -> pa.Table:
    """A shard's examples as one block that knows its number."""
    table = part.with_format("arrow")[:].combine_chunks()
    return table.append_column(_SHARD, pa.array([index] * len(table), pa.int32()))


class _Worker:
    """A process that holds the teacher."""

    def __init__(self, write: Any, features: Features, folder: str | None, mirror: Mirror | None) -> None:  # noqa: ANN401
        import ray

        self.write: Write = ray.get(write) if isinstance(write, ray.ObjectRef) else write
        self.features, self.mirror = features, mirror
        self.folder = Path(folder) if folder else scratch()
        (self.folder / "progress").mkdir(parents=True, exist_ok=True)
        datasets.disable_progress_bars()

    def __call__(self, block: pa.Table) -> pa.Table:
        index = block.column(_SHARD)[0].as_py()
        table = block.drop_columns([_SHARD]).cast(self.features.arrow_schema)
        info = datasets.DatasetInfo(features=self.features)
        self.write(self.folder, index, Dataset(datasets.table.InMemoryTable(table), info=info))
        if self.mirror is not None:
            self.mirror.push(self.folder, index)
            for name in (shard_name(index), note_of(shard_name(index))):
                (self.folder / name).unlink()
        return pa.table({_SHARD: pa.array([index], pa.int32())})
