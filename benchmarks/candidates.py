"""Ways to ask a teacher faster, and what packing could save: what is taken, and what is not.

    python benchmarks/candidates.py --teacher TEACHER --data TABLE [--examples 1024] [--rounds 5]

TEACHER is a fine-tuned classifier, TABLE a labelled one. The teacher's forward pass over texts sorted by length, all
variants in turn: in bfloat16 by autocast, a batch at a time; in float32; with all weights in bfloat16; with its linear
layers in 8 bits (PyTorch's dynamic quantisation, on the processor alone); in bfloat16 by autocast, several batches at
once, as Limbeck asks on CPUs. Beside each rate how far the probabilities are from float32's. Then, by counting, how
much of training's batches is padding: the most that packing without any could save. Run it on a quiet machine. Writes
benchmarks/results/candidates.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from intervals import ratios

from limbeck import hardware, recipe
from limbeck.checkpoints import Checkpoint
from limbeck.folder import RunFolder
from limbeck.preparing import prepare
from limbeck.tasks import Task, encode
from limbeck.teachers import HuggingFaceModel
from limbeck.training.order import LengthGroupedByEpoch

RESULTS = Path("benchmarks/results/candidates.json")
BATCH, LENGTH = 32, 128
BASE = "bfloat16, a batch at a time"


def eight_bits(model: Any) -> Any:
    """The model with dynamically quantised linear layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves to another package, which has no kernels for processors
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)


def rates(teacher: Checkpoint, task: Task, encoded: Dataset, rounds: int) -> dict[str, Any]:
    """Of each variant: times as fast as the first, and how far it is from float32."""

    def asked(model: Any, precision: str, alone: bool) -> Callable[[], list[torch.Tensor]]:
        checkpoint = Checkpoint(model, teacher.processor, "")
        who = HuggingFaceModel(checkpoint, task, LENGTH, BATCH, precision)
        return lambda: [said for _, said in who._answered(encoded, alone)]

    model = teacher.model
    variants = {
        BASE: asked(model, "bfloat16", alone=True),
        "float32, a batch at a time": asked(model, "float32", alone=True),
        "weights in bfloat16, a batch at a time": asked(copy.deepcopy(model).bfloat16(), "float32", alone=True),
        "linear layers in 8 bits, a batch at a time": asked(eight_bits(model), "float32", alone=True),
        "bfloat16, several batches at once (as Limbeck asks)": asked(model, "bfloat16", alone=False),
    }
    exact = torch.cat(variants["float32, a batch at a time"]()).float().softmax(-1)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    apart = {}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            began = time.perf_counter()
            said = run()
            took = time.perf_counter() - began
            if turn:  # the first is for kernels to be made
                seconds[name].append(took)
                print(f"round {turn}: {name} {took:.2f} s", flush=True)
            apart[name] = (torch.cat(said).float().softmax(-1) - exact).abs().mean().item()
    return {
        name: {"seconds": each, "rate": ratios(seconds[BASE], each), "mean distance": apart[name]}
        for name, each in seconds.items()
    }


def padding(lengths: list[int], size: int) -> float:
    """The share of a training epoch's tokens that is padding."""
    order = list(LengthGroupedByEpoch(size, lengths, 0, lambda: 0))
    batches = [[lengths[row] for row in order[start : start + size]] for start in range(0, len(order), size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    settings = {"teacher": options.teacher, "data": options.data, "output": "runs/candidates", "export": []}
    ready = prepare(recipe.load("hinton", settings), {}, RunFolder(Path("runs/candidates")))
    teacher = ready.teachers[0]
    encoded = encode(ready.splits.train, teacher.processor, ready.task, LENGTH)
    lengths = encoded["length"][:]
    some = encoded.select(range(min(options.examples, len(lengths))))
    found = {
        "machine": hardware.describe(),
        "examples": len(some),
        "batch_size": BATCH,
        "rounds": options.rounds,
        "labelling": rates(teacher, ready.task, some, options.rounds),
        "padding": {str(size): padding(lengths, size) for size in (16, 32)},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
