"""kill -9 at random moments of labelling and of training; the same command must finish each time.

    python benchmarks/kill.py [--kills 50] [--seed 0]

Each trial starts a run in a new folder, kills it at a moment drawn uniformly from an uninterrupted run's duration,
and runs the same command again. The knowledge must then be byte for byte the uninterrupted run's, and so must the
student's weights. Models and text are tiny and made here; the code is the one real runs use. Prints JSON; exit 1 if
any trial differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from limbeck import api, hardware

WORDS = ("the", "a", "film", "plot", "it", "was", "is", "very", "good", "great", "fine", "bad", "poor", "awful")


def make_inputs(folder: Path, rows: int) -> tuple[str, str, str]:
    """A tiny teacher, labelled sentences and unlabelled ones."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    teacher = folder / "teacher"
    BertForSequenceClassification(config).save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(4, 20)))

    labelled = {"text": [sentence() for _ in range(600)], "label": [i % 2 for i in range(600)]}
    datasets.Dataset.from_dict(labelled).to_csv(folder / "labelled.csv", index=False)
    datasets.Dataset.from_dict({"text": [sentence() for _ in range(rows)]}).to_csv(folder / "more.csv", index=False)
    return str(teacher), str(folder / "labelled.csv"), str(folder / "more.csv")


def start(job: Callable[[], object]) -> int:
    """Run a job in a forked process, silently; imports are there already, so kills hit the work itself."""
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    status = 1
    torch.set_num_threads(1)  # tiny products gain nothing from a second thread
    try:
        job()
        status = 0
    finally:
        os._exit(status)


def finish(job: Callable[[], object]) -> tuple[int, float]:
    """Run a job to its end: exit status and seconds."""
    started = time.monotonic()
    _, status = os.waitpid(start(job), 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - started


def digest(folder: Path, pattern: str) -> dict[str, str]:
    """SHA-256 of every file that matches, by path below the folder."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def trials(
    name: str, job: Callable[[Path], object], patterns: list[str], kills: int, scratch: Path
) -> dict[str, object]:
    """Kill, rerun and compare, `kills` times."""

    def compared(folder: Path) -> list[dict[str, str]]:
        return [digest(folder, pattern) for pattern in patterns]

    reference = scratch / f"{name}-whole"
    status, seconds = finish(lambda: job(reference))
    if status or not all(compared(reference)):
        sys.exit(f"{name}: the uninterrupted run failed")
    killed = same = 0
    failures = []
    attempt = 0
    while killed < kills:
        attempt += 1
        folder = scratch / f"{name}-{attempt}"
        child = start(lambda folder=folder: job(folder))
        moment = random.uniform(0, seconds)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            continue  # it had finished before the kill
        killed += 1
        status, _ = finish(lambda folder=folder: job(folder))
        equal = status == 0 and compared(folder) == compared(reference)
        same += equal
        if not equal:
            failures.append({"seconds": moment, "status": status})
    return {"kills": killed, "finished with equal bytes": same, "seconds of a whole run": seconds, "failures": failures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=30000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        teacher, labelled, more = make_inputs(scratch, options.rows)
        common = {"teacher": teacher, "baseline": False, "export": []}

        def label(folder: Path) -> object:
            return api.label(data={"train": labelled, "unlabelled": more}, output=folder, **common)

        def distill(folder: Path) -> object:
            speed = {"evaluation.speed": False, "training.checkpoint_steps": 5, "evaluation.resamples": 100}
            return api.distill(data=labelled, output=folder, **common, **speed)

        result = {
            "machine": hardware.describe(),
            "seed": options.seed,
            "labelling": trials("label", label, ["knowledge/*/*"], options.kills, scratch),
            "training": trials("train", distill, ["knowledge/*/*", "student/*.safetensors"], options.kills, scratch),
        }
    Path("benchmarks/results").mkdir(exist_ok=True)
    Path("benchmarks/results/kill.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(any(each["failures"] for each in result.values()))


if __name__ == "__main__":
    main()
