"""Images: soft decision trees, ensembles in one network, and DeiT, each against the same student without a teacher.

    python benchmarks/images.py --data DATA [--parts trees ensemble deit] [--seeds 0 1 2]

DATA holds `mnist/{train,test}.npz` (x, y) and `cifar10/{train,test}_jpeg.npz`. A tenth of the training images is held
out to look at; figures are of the published test split, and nothing is chosen by it.

- trees (Frosst and Hinton 2017, section 3): a convolutional teacher, and soft trees of depth 8 learnt from labels and
  from the teacher.
- ensemble (Hinton et al. 2015, section 3): five networks of full layers that differ by their seeds alone, learnt from a
  sixth of MNIST; one of the same kind learnt from their mean, on the same images and on the others without labels. How
  much of the gap between a member and all is closed.
- deit (Touvron et al. 2021, table 3): a small DeiT for a part of CIFAR-10 in classes and images, without a teacher,
  with soft and with hard targets of a convolutional teacher.

Runs that are finished are reused; the table is written anew after each to benchmarks/results/images.json.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from intervals import interval
from PIL import Image

from limbeck import hardware

RESULTS = Path("benchmarks/results/images.json")
COMMON = ["export=[]", "evaluation.resamples=200", "evaluation.speed=false", "baseline=false", "data.validation=0.1"]
CNN = "student.shape={model_type: small-cnn}"
TREE = "student.shape={model_type: soft-tree, depth: 8}"
DENSE = "student.shape={model_type: mlp, hidden_sizes: [300, 300], dropout: 0.2}"
DEIT = [
    f"student.shape.{name}={value}"
    for name, value in {
        "patch_size": 4,
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 192,
    }.items()
]
CHANGES = "training.images={flip: true, crop: 3}"
MEMBERS = 5


def limbeck(output: Path, *words: str) -> dict[str, Any]:
    """One command, as a user gives it; what it measured."""
    if not (output / "metrics.json").exists():
        command = [*words, f"output={output}", *COMMON]
        print("limbeck", *command, flush=True)
        subprocess.run([sys.executable, "-m", "limbeck", *command], check=True)
    metrics: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return metrics


def accuracy(metrics: dict[str, Any], model: str = "student") -> float:
    """On the test split."""
    return float(metrics[model]["quality"]["accuracy"]["value"])


def trees(options: argparse.Namespace, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """A teacher, and trees from labels and from it."""
    place = options.output / "trees" / str(seed)
    data = mnist(options)
    words = [CNN, *data, f"seed={seed}", "training.epochs=8", "training.batch_size=128", "training.learning_rate=1e-3"]
    teacher = limbeck(place / "teacher", "train", *words)
    yield "convolutional teacher", {"accuracy": accuracy(teacher), **size(teacher)}
    for name, targets in (("tree, labels", "labels"), ("tree, distilled", "teacher")):
        words = [f"teacher={place / 'teacher'}", *data, TREE, f"seed={seed}", "training.epochs=20"]
        words += [f"stages.distill.objectives.path_cross_entropy.targets={targets}"]
        found = limbeck(place / name.replace(", ", "-"), "distill", "soft-tree", *words)
        yield name, {"accuracy": accuracy(found), **size(found)}


def ensemble(options: argparse.Namespace, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Members, all of them, and one that learnt from all."""
    place = options.output / "ensemble" / str(seed)
    data = mnist(options, 10_000)
    settings = ["training.epochs=20", "training.batch_size=64", "training.learning_rate=1e-3"]
    members = []
    for number in range(MEMBERS):
        words = [DENSE, *data, f"seed={100 * seed + number}", *settings]
        members.append(limbeck(place / f"member-{number}", "train", *words))
    yield "one network", {"accuracy": float(np.mean([accuracy(each) for each in members])), **size(members[0])}
    teachers = ", ".join(str(place / f"member-{number}") for number in range(MEMBERS))
    rest = [f"data.unlabelled={mnist_rest(options, 10_000)}", "training.epochs=10"]
    for name, more in zip(DISTILLED, ([], rest), strict=True):
        words = [f"teacher=[{teachers}]", *data, DENSE, f"seed={100 * seed + MEMBERS}", *settings, *more]
        found = limbeck(place / name.replace(", ", "-").replace(" ", "-"), "distill", "hinton", *words)
        if not more:
            yield f"{MEMBERS} networks", {"accuracy": accuracy(found, "teacher"), **size(found, "teacher")}
        yield name, {"accuracy": accuracy(found), **size(found)}


def deit(options: argparse.Namespace, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """A convolutional teacher, and DeiT without and with it."""
    place = options.output / "deit" / str(seed)
    data = cifar(options)
    settings = [f"seed={seed}", CHANGES, "training.batch_size=64"]
    shape = "student.shape={model_type: small-cnn, channels: [32, 64, 128], kernel_size: 3, dropout: 0.3}"
    words = [shape, *data, *settings, f"training.epochs={options.teacher_epochs}", "training.learning_rate=1e-3"]
    teacher = limbeck(place / "teacher", "train", *words)
    yield "convolutional teacher", {"accuracy": accuracy(teacher), **size(teacher)}
    objectives = {
        "DeiT, no teacher": "{hard_labels: 1}",
        "DeiT, soft": "{hard_labels: 0.9, soft_targets: {weight: 0.1, temperature: 3}}",
        "DeiT, hard": "{hard_labels: 0.5, soft_targets: {weight: 0.5, form: hard}}",
    }
    for name, terms in objectives.items():
        words = [f"teacher={place / 'teacher'}", *data, *DEIT, *settings, f"training.epochs={options.epochs}"]
        words += [f"stages.distill.objectives={terms}", "training.warmup=0.1", "training.learning_rate=1e-3"]
        found = limbeck(place / name.lower().replace(", ", "-").replace(" ", "-"), "distill", "deit", *words)
        yield name, {"accuracy": accuracy(found), **size(found)}


def size(metrics: dict[str, Any], model: str = "student") -> dict[str, int]:
    """A model's parameters."""
    return {"parameters": metrics[model]["size"]["parameters"]}


def mnist(options: argparse.Namespace, count: int | None = None) -> list[str]:
    """MNIST, or its first images, as the recipe's entries."""
    train = options.data / "mnist" / "train.npz"
    if count is not None:
        train = options.output / f"mnist-{count}.npz"
        with np.load(options.data / "mnist" / "train.npz") as whole:
            np.savez(train, x=whole["x"][:count], y=whole["y"][:count])
    return [f"data.train={train}", f"data.test={options.data / 'mnist' / 'test.npz'}"]


def mnist_rest(options: argparse.Namespace, count: int) -> Path:
    """MNIST's other training images, without labels."""
    place: Path = options.output / f"mnist-after-{count}.npz"
    with np.load(options.data / "mnist" / "train.npz") as whole:
        np.savez(place, x=whole["x"][count:])
    return place


def cifar(options: argparse.Namespace) -> list[str]:
    """Some classes of CIFAR-10, as arrays."""
    words = []
    for name, count in (("train", options.images), ("test", None)):
        place = options.output / f"cifar-{options.classes}-{options.images}-{name}.npz"
        if not place.exists():
            with np.load(options.data / "cifar10" / f"{name}_jpeg.npz") as file:
                ends, content, labels = file["offsets"], file["data"], file["y"]
            rows = np.flatnonzero(labels < options.classes)[:count]
            files = (io.BytesIO(content[ends[row] : ends[row + 1]].tobytes()) for row in rows)
            np.savez(place, x=np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]), y=labels[rows])
        words.append(f"data.{name}={place}")
    return words


DISTILLED = ("one network, distilled", "one network, distilled, more images")
PARTS = {"trees": trees, "ensemble": ensemble, "deit": deit}
CONTROLS = {
    "tree, distilled": "tree, labels",
    **{name: "one network" for name in (f"{MEMBERS} networks", *DISTILLED)},
    **{name: "DeiT, no teacher" for name in ("DeiT, soft", "DeiT, hard")},
}
"""The row that another is compared with."""


def table(rows: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """By row: accuracy over seeds, and the difference from the control, paired by seed; the gap that was closed."""
    by_row: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_row.setdefault(row["row"], {})[row["seed"]] = row
    found = []
    for name, seeds in by_row.items():
        control = by_row.get(CONTROLS.get(name, ""), {})
        entry: dict[str, Any] = {
            "row": name,
            "seeds": sorted(seeds),
            "parameters": next(iter(seeds.values()))["parameters"],
        }
        entry["accuracy"] = interval([seeds[seed]["accuracy"] for seed in entry["seeds"]])
        both = [seed for seed in entry["seeds"] if seed in control]
        if both:
            entry["over the control"] = interval([seeds[s]["accuracy"] - control[s]["accuracy"] for s in both])
        found.append(entry)
        if name in DISTILLED:
            every = by_row[f"{MEMBERS} networks"]
            gaps = [(seeds[s]["accuracy"] - control[s]["accuracy"]) / (every[s]["accuracy"] - control[s]["accuracy"])
                    for s in entry["seeds"]]  # fmt: skip
            entry["gap closed"] = interval(gaps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/images"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--classes", type=int, default=10, help="of CIFAR-10, the first ones")
    parser.add_argument("--images", type=int, default=10_000, help="of CIFAR-10 to learn from")
    parser.add_argument("--epochs", type=float, default=15, help="of DeiT")
    parser.add_argument("--teacher-epochs", type=float, default=10, help="of DeiT's teacher")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in options.parts:
        rows: list[dict[str, Any]] = []
        for seed in options.seeds:
            for name, figures in PARTS[part](options, seed):
                rows.append({"row": name, "seed": seed, **figures})
                told = {"machine": hardware.describe(), "rows": rows, "table": table(rows, part)}
                if part == "deit":
                    told |= {"classes": options.classes, "images": options.images, "epochs": options.epochs}
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(result | {part: told}, indent=1) + "\n")
        result = json.loads(RESULTS.read_text())


if __name__ == "__main__":
    main()
