"""Large stores: opening, verifying and reading millions of examples, and the memory of labelling more and more.

    python benchmarks/stores.py TEACHER [--rows 10000000] [--texts 1000 10000 100000]

TEACHER is a fine-tuned classifier, best a small one. Each figure is of a process of its own. Writes
benchmarks/results/stores.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Value

from limbeck import hardware, label
from limbeck.evaluation.memory import PeakMemory
from limbeck.knowledge import Store, store
from limbeck.signals import Signals

RESULTS = Path("benchmarks/results/stores.json")
BATCH = 256


def make(folder: Path, rows: int) -> float:
    """A store of short texts and two logits an example; seconds."""
    request = store.Request({"rows": rows}, rows, 2, (), {"text": Value("string")})
    store.finished_shards(folder, request)
    started = time.perf_counter()
    for index in range(request.shards):
        numbers = range(index * request.shard_rows, min((index + 1) * request.shard_rows, rows))
        texts = Dataset.from_dict({"text": [f"a short sentence, which is number {number}" for number in numbers]})
        logits = np.stack([np.asarray(numbers, np.float32)] * 2, 1)
        store.write_shard(folder, request, index, texts, Signals(logits))
    store.finish(folder, request, store.features_of(folder, request))
    return time.perf_counter() - started


def opening(folder: Path) -> dict[str, Any]:
    """Opened, and one example read."""
    started = time.perf_counter()
    found = Store(folder)
    opened = time.perf_counter() - started
    found.signals({"row": torch.tensor([len(found) // 2])})
    return {"seconds": opened, "with one example": time.perf_counter() - started}


def verifying(folder: Path) -> dict[str, Any]:
    """All shards' digests."""
    started = time.perf_counter()
    found = Store(folder).verify()
    return {"seconds": time.perf_counter() - started, "bytes": found.size}


def reading(folder: Path) -> dict[str, Any]:
    """Batches of examples drawn at random over all of the store, as training reads them; memory that is not the files'.

    Mapped pages count as resident while the system has room for them, and are given back as soon as it has not.
    """
    found = Store(folder).verify()
    draws = torch.randint(len(found), (2000, BATCH), generator=torch.Generator().manual_seed(0))
    own = [_own_memory()]
    started = time.perf_counter()
    for number, rows in enumerate(draws, 1):
        assert (found.signals({"row": rows}).logits[:, 0] == rows).all()
        if number in (200, 2000):
            own.append(_own_memory())
    seconds = time.perf_counter() - started
    return {"rows a second": draws.numel() / seconds, "bytes after 0, 200 and 2,000 batches": own}


def labelling(teacher: str, texts: int) -> dict[str, Any]:
    """The most memory beyond the models, and the rate."""
    table = Dataset.from_dict({"text": [f"a short sentence, which is number {number}" for number in range(texts)]})
    with tempfile.TemporaryDirectory() as folder:
        label(teacher=teacher, data=table.select(range(32)), output=f"{folder}/first")
        memory, started = PeakMemory(hardware.device()), time.perf_counter()
        label(teacher=teacher, data=table, output=f"{folder}/second")
        return {"texts": texts, "bytes": memory.read(), "seconds": time.perf_counter() - started}


def _own_memory() -> int:
    """Bytes that this process holds for itself, files that it maps left out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def alone(*words: str) -> Any:
    """A figure from a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--texts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "opening": opening,
        "verifying": verifying,
        "reading": reading,
    }
    if options.part in parts:
        print(json.dumps(parts[options.part](options.folder)))
        return
    if options.part == "labelling":
        print(json.dumps(labelling(options.teacher, options.texts[0])))
        return
    found: dict[str, Any] = {"machine": hardware.describe(), "rows": options.rows}
    with tempfile.TemporaryDirectory() as folder:
        found["making"] = {"seconds": make(Path(folder), options.rows)}
        for part in parts:
            found[part] = alone(options.teacher, "--part", part, "--folder", folder)
    found["labelling"] = [alone(options.teacher, "--part", "labelling", "--texts", str(n)) for n in options.texts]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
