"""What a device gets out of labelling and of an update: tokens per second, memory, and the part of its roofline.

    python benchmarks/gpu.py [--batch 32] [--length 128] [--updates 20] [--rounds 5] [--tiny]

Models are made here, of random weights: a BERT of base size with half of its layers as the student, and a language
model of the shape of SmolLM2-135M with half of its layers; texts are random words, all of `--length` tokens. Paths:

- `labelling`: the teacher's forward pass in float32, in the run's precision, and that compiled by torch.compile.
- `classification`: an update of the student alone (a loss on its own output), in the same three ways, and Limbeck's
  from stored knowledge.
- `tinybert`: an update on embeddings, attention and hidden states, beside the teacher's forward pass and the student
  alone.
- `language model`: an update of the student alone over the whole vocabulary, Limbeck's from stored words, and that with
  Liger's kernels where they are installed: they replace an architecture's code, so that this one is not in turn.

The roofline is what a product of two large square matrices reaches here in the run's precision; the work is that which
PyTorch counts in the path's plain form, the same for all paths of a case. Memory is what an update takes at its most,
beyond models and moments. Medians over rounds, in turn. Texts have most of the words, so that all rows of the
embeddings are trained on every side. `--tiny` tries the script on small models. Writes benchmarks/results/gpu.json, a
place for each device.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_cost import Steps, median_times, steps_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import is_liger_kernel_available

from limbeck import hardware
from limbeck.evaluation.memory import PeakMemory
from limbeck.tasks.text import model_inputs
from limbeck.training import stages

RESULTS = Path("benchmarks/results/gpu.json")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Run = Callable[[Any], Any]


def tokenizer_of(words: int) -> PreTrainedTokenizerFast:
    """One token a word, `w0` and so on, and BERT's special ones."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *(f"w{n}" for n in range(words - 5))])}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"mask_token": "[MASK]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=own, model_max_length=512, **names)


def saved(model: PreTrainedModel, words: int, folder: Path) -> str:
    """A model with its tokenizer on disk."""
    model.save_pretrained(folder)
    tokenizer_of(words).save_pretrained(folder)
    return str(folder)


def made(folder: Path, tiny: bool) -> tuple[str, str]:
    """The two teachers."""
    torch.manual_seed(0)
    bert = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    llama = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    llama |= {"intermediate_size": 128}
    if not tiny:
        bert = {}
        llama = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
        llama |= {"intermediate_size": 1536}
    words, more = (30_522, 49_152) if not tiny else (500, 500)
    names = {"label2id": {"no": 0, "yes": 1}, "id2label": {0: "no", 1: "yes"}}
    classifier = BertForSequenceClassification(BertConfig(vocab_size=words, **names, **bert))
    language = LlamaForCausalLM(
        LlamaConfig(vocab_size=more, tie_word_embeddings=True, pad_token_id=0, bos_token_id=2, eos_token_id=3, **llama)
    )
    return saved(classifier, words, folder / "bert"), saved(language, more, folder / "llama")


def texts(folder: Path, options: argparse.Namespace, words: int) -> tuple[str, str]:
    """A labelled table and a plain text of random words."""
    draw = random.Random(0)
    lines = [
        " ".join(f"w{draw.randrange(words - 5)}" for _ in range(options.length - 2))
        for _ in range(options.batch * options.updates + 4 * options.batch)
    ]
    table, plain = folder / "table.csv", folder / "text.txt"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((line, draw.choice(["no", "yes"])) for line in lines)
    plain.write_text("\n".join(lines) + "\n")
    return str(table), str(plain)


def peak(precision: str, tiny: bool) -> float:
    """Floating-point operations per second of a product of two square matrices."""
    size = 8192 if torch.cuda.is_available() else 512 if tiny else 2048
    one = torch.randn(size, size, device=hardware.device(), dtype=hardware.DTYPES[precision])
    best = float("inf")
    for _ in range(10):
        hardware.synchronise()
        started = time.perf_counter()
        one @ one
        hardware.synchronise()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def measured(paths: dict[str, Run], work: Run, batches: list[Any], rounds: int, roof: float) -> dict[str, Any]:
    """Figures of each path; `work` is the plain form whose operations are counted."""
    counter = FlopCounterMode(display=False)
    with counter:
        work(batches[0])
    operations, tokens = counter.get_total_flops(), batches[0]["input_ids"].numel()
    peaks: dict[str, int | None] = {}
    for name, run in paths.items():
        run(batches[0])  # compiles, and makes an optimiser's moments
        memory = PeakMemory(hardware.device())
        run(batches[0])
        hardware.synchronise()
        peaks[name] = memory.read()
    seconds = dict(zip(paths, np.median(median_times(rounds, list(paths.values()), batches), 1).tolist(), strict=True))
    return {
        name: {
            "milliseconds": 1e3 * took,
            "tokens per second": tokens / took,
            "of the roofline": operations / took / roof,
            "peak bytes": peaks[name],
        }
        for name, took in seconds.items()
    }


def alone(model: PreTrainedModel, precision: str, compiled: bool = False) -> Run:
    """An update of a copy of the student on a loss of its own output."""
    own = copy.deepcopy(model).to(hardware.device()).train()
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-5, fused=True)
    run = torch.compile(own) if compiled else own

    def update(batch: Any) -> None:
        with hardware.autocast(precision):
            loss = run(**model_inputs(batch)).logits.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def classifiers(teacher: str, table: str, options: argparse.Namespace, folder: str, roof: float) -> dict[str, Any]:
    """Labelling, an update from stored knowledge, and TinyBERT's."""
    own = BertForSequenceClassification.from_pretrained(teacher).to(hardware.device()).eval()
    able = hardware.pick_precision()
    compiled = torch.compile(own)

    def ask(model: Any, precision: str) -> Run:
        def run(batch: Any) -> None:
            with torch.no_grad(), hardware.autocast(precision):
                model(**model_inputs(batch))

        return run

    settings = {"teacher": teacher, "data": table, "export": [], "task.max_length": options.length}
    settings |= {"training.batch_size": options.batch, "baseline": False}
    layers = own.config.num_hidden_layers // 2
    found: dict[str, Any] = {}
    half = {**settings, "student.layers": layers, "output": f"{folder}/hinton"}
    with steps_of("hinton", "distill", half, options.updates) as steps:
        labelling = {"float32": ask(own, "float32"), able: ask(own, able), f"{able}, compiled": ask(compiled, able)}
        found["labelling"] = measured(labelling, labelling[able], steps.batches, options.rounds, roof)
        student = copy.deepcopy(own)
        student.bert.encoder.layer = student.bert.encoder.layer[:layers]
        updates = {
            "student alone, float32": alone(student, "float32"),
            f"student alone, {able}": alone(student, able),
            f"student alone, {able}, compiled": alone(student, able, compiled=True),
            "limbeck": steps.system,
        }
        plain = updates[f"student alone, {able}"]
        found["classification"] = measured(updates, plain, steps.batches, options.rounds, roof)
    del labelling, updates, plain, compiled, own
    tiny = {**settings, "student": {"layers": layers}, "stages.general": None, "output": f"{folder}/tinybert"}
    with steps_of("tinybert", "intermediate", tiny, options.updates) as steps:
        both = beside(steps)
        found["tinybert"] = measured(
            {"teacher and student alone": both, "limbeck": steps.system}, both, steps.batches, options.rounds, roof
        )
    return found


def beside(steps: Steps) -> Run:
    """The teacher's forward pass, then the student's plain update."""

    def run(batch: Any) -> None:
        steps.teach(batch)
        steps.plain(batch)

    return run


def language(teacher: str, text: str, options: argparse.Namespace, folder: str, roof: float) -> dict[str, Any]:
    """An update from stored words."""
    settings = {"teacher": teacher, "data": text, "export": [], "task.max_length": options.length}
    settings |= {"training.batch_size": options.batch, "baseline": False, "student.layers": "half"}
    able = is_liger_kernel_available() and torch.cuda.is_available()
    kept = stages.is_liger_kernel_available
    found: dict[str, Any] = {}
    for name, installed in (("limbeck", False), *([("limbeck, Liger", True)] if able else [])):
        with ExitStack() as undo:
            undo.callback(setattr, stages, "is_liger_kernel_available", kept)
            stages.is_liger_kernel_available = lambda installed=installed: installed
            how = {**settings, "output": f"{folder}/words-{installed}", "knowledge": f"{folder}/words"}
            steps = undo.enter_context(steps_of("word-kd", "distill", how, options.updates))
            paths = {"student alone": steps.plain} if not installed else {}
            found |= measured(paths | {name: steps.system}, steps.plain, steps.batches, options.rounds, roof)
    return {"language model": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--updates", type=int, default=20, help="batches that every path meets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    roof = peak(hardware.pick_precision(), options.tiny)
    with tempfile.TemporaryDirectory() as folder:
        bert, llama = made(Path(folder), options.tiny)
        table, text = texts(Path(folder), options, 500 if options.tiny else 30_522)
        cases = classifiers(bert, table, options, folder, roof) | language(llama, text, options, folder, roof)
    machine = hardware.describe()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    said = {"date": str(date.today()), "machine": machine, "operations per second": roof, "tiny": options.tiny}
    said |= {name: getattr(options, name) for name in ("batch", "length", "rounds")}
    found[machine["gpu"] or machine["cpu"]] = said | {"cases": cases}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
