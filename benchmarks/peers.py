"""Limbeck against other ways to distil a classifier, each a whole run, in one interleaved run: A B C A B C ...

    python benchmarks/peers.py --teacher TEACHER --data TABLE --test TABLE [--language MODEL --text TEXT]
                               [--regressor TEACHER --pairs TRAIN TEST]
                               [--cases classification tinybert labelling pairs masked-lm] [--rounds 5]

Same teacher, student (half of the teacher's layers), texts, batch size and epochs on every side; each round has its own
seed, and each side's student is judged on TEST, in float32. Limbeck's time holds tokenising, asking the teacher once,
training, and a validation and a checkpoint per epoch, in bfloat16 where the machine has it; the others are in float32
where nothing else is said, which is what they do by themselves. What it is measured against:

- `trainer`: transformers' `Trainer` with the teacher in `compute_loss`, as tutorials have it; batches padded to their
  longest text, a validation and a checkpoint per epoch. `trainer, bfloat16`: told to use that, its teacher, too.
- `textbrewer, 128`: TextBrewer's `GeneralDistiller` as in its own SST-2 notebook: texts padded to 128 tokens, a
  checkpoint per epoch.
- `textbrewer, longest`: the same with padding per batch, which that notebook does not show.
- `floor`, of labelling: the teacher's bare forward pass on ready tensors, texts sorted by length.
- `sentence-transformers`, of pairs: its recipe for cross-encoders: the teacher's scores of all pairs, then its trainer
  with `MSELoss`, in bfloat16 where the machine has it, as its examples do. TEACHER scores a pair by one number, and the
  tables have pairs in `sentence1` and `sentence2`, and a `score`; judged by Spearman's correlation.
- `distilbert's loop`, of masked-lm: see peer_distilbert.py; MODEL fills in masked words, TEXT is plain text.

In `tinybert` the student learns embeddings, attention and hidden states, by TextBrewer's `hidden_mse` and
`attention_mse`. Run it on a quiet machine. Needs the extra `bench`. Writes benchmarks/results/peers.json, where cases
of a machine without bfloat16 (or with ONEDNN_MAX_CPU_ISA=AVX2) have names of their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer_distilbert
import torch
import torch.nn.functional as F
from datasets import Dataset
from intervals import interval, ratios
from scipy.stats import spearmanr
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import MSELoss
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, get_linear_schedule_with_warmup

from limbeck import hardware, recipe
from limbeck.checkpoints import Checkpoint, open_for
from limbeck.folder import RunFolder
from limbeck.preparing import Prepared, prepare
from limbeck.run import ask_teacher, train
from limbeck.tasks.text import model_inputs
from limbeck.teachers import HuggingFaceModel
from limbeck.training.checkpointing import save_model

RESULTS = Path("benchmarks/results/peers.json")
BATCH, EPOCHS, RATE, TEMPERATURE, SOFT = 16, 3, 1e-4, 2.0, 0.9  # the demo's
Side = Callable[[str, int], tuple[float, Checkpoint | None]]
"""Seconds and the student, of a folder and a seed."""


def ready_for(
    method: str, options: argparse.Namespace, folder: str, seed: int, **changes: Any
) -> tuple[recipe.Recipe, Prepared]:
    """Models and texts, opened for one side."""
    settings = {
        "seed": seed,
        "teacher": options.teacher,
        "data": options.data,
        "output": folder,
        "baseline": False,
        "export": [],
        "student.layers": options.layers,
        "student.shape": None,
        "training.learning_rate": RATE,
        "training.batch_size": BATCH,
        "training.epochs": EPOCHS,
    }
    rules = recipe.load(method, settings | changes)
    ready = prepare(rules, {}, RunFolder(Path(folder)))
    ready.splits.train = ready.splits.transfer = ready.splits.train.select(range(options.examples))
    ready.splits.validation = ready.splits.validation.select(range(min(100, len(ready.splits.validation))))
    return rules, ready


def limbeck(method: str, options: argparse.Namespace, **changes: Any) -> Side:
    def run(folder: str, seed: int) -> tuple[float, Checkpoint]:
        rules, ready = ready_for(method, options, folder, seed, **changes)
        started = time.perf_counter()
        trained = train(rules, ready, ask_teacher(rules, ready) if ready.plan.stored else None)
        return time.perf_counter() - started, trained["student"].checkpoint

    return run


def usual(folder: str, seed: int, bfloat16: bool) -> dict[str, Any]:
    """Training arguments of those peers that train by transformers' `Trainer`."""
    return {
        "output_dir": folder,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "learning_rate": RATE,
        "warmup_steps": 0.1,
        "bf16": bfloat16,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": hardware.device().type == "cpu",
        "seed": seed,
    }


def trainer(options: argparse.Namespace, bfloat16: bool = False) -> Side:
    """Transformers' `Trainer` with the teacher in `compute_loss`, in float32 as tutorials have it, or in bfloat16."""

    def run(folder: str, seed: int) -> tuple[float, Checkpoint]:
        _, ready = ready_for("hinton", options, f"{folder}/unused", seed)
        teacher, student = ready.teachers[0].model.eval(), ready.student.model
        tokenizer = ready.teachers[0].tokenizer

        class Distilling(Trainer):
            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
                outputs = model(**inputs)
                with torch.no_grad(), hardware.autocast("bfloat16" if bfloat16 else "float32"):
                    said = teacher(**{k: v for k, v in inputs.items() if k != "labels"}).logits
                soft = F.kl_div(
                    F.log_softmax(outputs.logits / TEMPERATURE, -1),
                    F.softmax(said / TEMPERATURE, -1),
                    reduction="batchmean",
                )
                loss = SOFT * TEMPERATURE**2 * soft + (1 - SOFT) * outputs.loss
                return (loss, outputs) if return_outputs else loss

        started = time.perf_counter()
        parts = [
            Dataset.from_dict({**tokenizer(part["text"][:], truncation=True), "labels": part["label"][:]})
            for part in (ready.splits.train, ready.splits.validation)
        ]
        arguments = TrainingArguments(weight_decay=0.01, **usual(folder, seed, bfloat16))
        distilling = Distilling(
            model=student,
            args=arguments,
            train_dataset=parts[0],
            eval_dataset=parts[1],
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        distilling.train()
        took = time.perf_counter() - started
        distilling.accelerator.unwrap_model(student, keep_fp32_wrapper=False)  # to be judged without autocast
        return took, ready.student

    return run


def textbrewer(options: argparse.Namespace, padding: str, layers: bool = False) -> Side:
    """As in TextBrewer's examples/notebook_examples/sst2.ipynb: logits, or embeddings, attention and hidden states."""

    def run(folder: str, seed: int) -> tuple[float, Checkpoint]:
        _, ready = ready_for("hinton", options, f"{folder}/unused", seed)
        torch.manual_seed(seed)
        teacher, student = ready.teachers[0].model.cpu().eval(), ready.student.model
        tokenizer = ready.teachers[0].tokenizer
        matches = []
        if layers:
            for model in (teacher, student):
                model.set_attn_implementation("eager")
                model.config.output_hidden_states = model.config.output_attentions = True
            deep, few = teacher.config.num_hidden_layers, student.config.num_hidden_layers
            pairs = [(few_ * deep // few, few_) for few_ in range(few + 1)]
            matches += [_match("hidden", "hidden_mse", high, low) for high, low in pairs]
            matches += [_match("attention", "attention_mse", high - 1, low - 1) for high, low in pairs[1:]]
        started = time.perf_counter()
        texts, labels = ready.splits.train["text"][:], ready.splits.train["label"][:]
        fixed = {"padding": "max_length", "max_length": 128} if padding == "128" else {"padding": False}
        encoded = tokenizer(texts, truncation=True, **fixed)
        examples = [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
        ]

        def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            gold = torch.tensor([example["labels"] for example in batch])
            inputs = [{k: v for k, v in example.items() if k != "labels"} for example in batch]
            return {**tokenizer.pad(inputs, return_tensors="pt"), "labels": gold}

        def told(_: Any, outputs: Any) -> dict[str, Any]:
            if layers:
                return {"hidden": outputs.hidden_states, "attention": outputs.attentions}
            return {"logits": outputs.logits, "losses": outputs.loss}

        loader = DataLoader(examples, sampler=RandomSampler(examples), batch_size=BATCH, collate_fn=collate)
        optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
        weights = {"kd_loss_weight": 0 if layers else SOFT, "hard_label_weight": 0 if layers else 1 - SOFT}
        distiller = GeneralDistiller(
            train_config=TrainingConfig(device="cpu", output_dir=folder),
            distill_config=DistillationConfig(temperature=TEMPERATURE, intermediate_matches=matches, **weights),
            model_T=teacher,
            model_S=student,
            adaptor_T=told,
            adaptor_S=told,
        )
        steps = len(loader) * EPOCHS
        schedule = {"num_warmup_steps": int(0.1 * steps), "num_training_steps": steps}
        with distiller:
            distiller.train(
                optimizer,
                loader,
                EPOCHS,
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args=schedule,
                max_grad_norm=1.0,
                callback=None,
            )
        return time.perf_counter() - started, ready.student

    return run


def _match(feature: str, loss: str, teacher: int, student: int) -> dict[str, Any]:
    return {"feature": feature, "loss": loss, "layer_T": teacher, "layer_S": student, "weight": 1}


def labelling(options: argparse.Namespace) -> dict[str, Side]:
    """Asking the teacher, and its bare forward pass over the same batches on ready tensors."""

    def ask(folder: str, seed: int) -> tuple[float, None]:
        rules, ready = ready_for("hinton", options, folder, seed)
        started = time.perf_counter()
        ask_teacher(rules, ready)
        return time.perf_counter() - started, None

    def floor(folder: str, seed: int) -> tuple[float, None]:
        _, ready = ready_for("hinton", options, folder, seed)
        teacher = HuggingFaceModel(ready.teachers[0], ready.task, None, 64, hardware.pick_precision())
        encoded = teacher.reader.encode(ready.splits.transfer)
        order = sorted(range(len(encoded)), key=encoded["length"][:].__getitem__, reverse=True)
        batches = [
            model_inputs(teacher.reader.collate(list(encoded.select(order[start : start + teacher.batch_size]))))
            for start in range(0, len(order), teacher.batch_size)
        ]
        started = time.perf_counter()
        for batch in batches:
            teacher.forward(batch)
        return time.perf_counter() - started, None

    return {"limbeck": ask, "floor": floor}


def table_of_pairs(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of that case."""
    data = {"data.train": options.pairs[0], "data.test": options.pairs[1], "data": None}
    return {"teacher": options.regressor, "task": "regression", "data.label": "score", **data}


def pairs(options: argparse.Namespace) -> dict[str, Side]:
    """A regressor of pairs, of another one's scores."""
    table = table_of_pairs(options)

    def cross_encoder(folder: str, seed: int) -> tuple[float, Checkpoint]:
        _, ready = ready_for("hinton", options, f"{folder}/unused", seed, **table)
        able = hardware.pick_precision() == "bfloat16"
        models = []
        for name, model in (("teacher", ready.teachers[0]), ("student", ready.student)):
            save_model(model, Path(folder, name))
            models.append(CrossEncoder(f"{folder}/{name}", num_labels=1, device=hardware.device().type))
        teacher, student = models
        started = time.perf_counter()
        parts = []
        for part in (ready.splits.train, ready.splits.validation):
            both = {name: part[name][:] for name in ("text", "text_pair")}
            with hardware.autocast("bfloat16" if able else "float32"):
                scores = teacher.predict(list(zip(*both.values(), strict=True)), activation_fn=nn.Identity())
            parts.append(Dataset.from_dict({**both, "label": scores.tolist()}))
        arguments = CrossEncoderTrainingArguments(**usual(folder, seed, able))
        CrossEncoderTrainer(
            model=student, args=arguments, train_dataset=parts[0], eval_dataset=parts[1], loss=MSELoss(student)
        ).train()
        seconds = time.perf_counter() - started
        student.save_pretrained(f"{folder}/trained")
        return seconds, open_for(ready.task, f"{folder}/trained")

    return {"limbeck": limbeck("hinton", options, **table), "sentence-transformers": cross_encoder}


def masked_lm(options: argparse.Namespace) -> dict[str, Side]:
    """The stage on plain text, an epoch of it."""

    def ready_on_text(folder: str, seed: int) -> tuple[recipe.Recipe, Prepared]:
        settings = {
            "teacher": options.language,
            "data": options.text,
            "output": folder,
            "seed": seed,
            "export": [],
            "student.layers": options.layers,
            "task.packed": False,
            "training.batch_size": BATCH,
            "training.epochs": 1,
        }
        rules = recipe.load("distilbert-pretrain", settings)
        ready = prepare(rules, {}, RunFolder(Path(folder)))
        some = ready.splits.train.select(range(min(options.examples, len(ready.splits.train))))
        ready.splits.train = ready.splits.transfer = ready.splits.corpus = some
        assert ready.splits.corpus_held is not None
        ready.splits.corpus_held = ready.splits.corpus_held.select(range(BATCH))  # that loop validates nothing
        return rules, ready

    def ours(folder: str, seed: int) -> tuple[float, None]:
        rules, ready = ready_on_text(folder, seed)
        started = time.perf_counter()
        train(rules, ready, None)
        return time.perf_counter() - started, None

    def loop(folder: str, seed: int) -> tuple[float, None]:
        rules, ready = ready_on_text(folder, seed)
        return peer_distilbert.train(ready, BATCH, rules.training.learning_rate, seed), None

    return {"limbeck": ours, "distilbert's loop": loop}


def quality(case: str, student: Checkpoint, options: argparse.Namespace, folder: str) -> float:
    """Of a side's student on the test table: accuracy, of pairs Spearman's correlation."""
    table = table_of_pairs(options) if case == "pairs" else {"data.test": options.test}
    _, ready = ready_for("hinton", options, folder, 0, **table)
    said = ready.task.predict(HuggingFaceModel(student, ready.task).ask(ready.splits.test).logits)
    labels = ready.splits.test["label"][:]
    return float(spearmanr(said, labels).statistic if case == "pairs" else (said == labels).mean())


def sides_of(case: str, options: argparse.Namespace) -> dict[str, Side]:
    """The sides of a case, Limbeck's first."""
    if case == "labelling":
        return labelling(options)
    if case == "masked-lm":
        return masked_lm(options)
    if case == "pairs":
        return pairs(options)
    if case == "classification":
        able = hardware.pick_precision() == "bfloat16"
        return {
            "limbeck": limbeck("hinton", options),
            "trainer": trainer(options),
            **({"trainer, bfloat16": trainer(options, bfloat16=True)} if able else {}),
            "textbrewer, longest": textbrewer(options, "longest"),
            "textbrewer, 128": textbrewer(options, "128"),
        }
    own = {"stages.general": None, "stages.prediction": None, "stages.intermediate.training.epochs": EPOCHS}
    return {
        "limbeck": limbeck("tinybert", options, **own),
        "textbrewer, longest": textbrewer(options, "longest", layers=True),
        "textbrewer, 128": textbrewer(options, "128", layers=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--language", help="a masked language model, for masked-lm")
    parser.add_argument("--text", help="plain text, for masked-lm")
    parser.add_argument("--regressor", help="a teacher that scores pairs, for pairs")
    parser.add_argument("--pairs", nargs=2, metavar=("TRAIN", "TEST"), help="its tables")
    known = ["classification", "tinybert", "labelling", "pairs", "masked-lm"]
    parser.add_argument("--cases", nargs="+", choices=known, default=known[:3])
    parser.add_argument("--examples", type=int, default=800)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text())["cases"] if RESULTS.exists() else {}
    for case in options.cases:
        sides = sides_of(case, options)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        right: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(options.rounds):
            for name, run in sides.items():
                with tempfile.TemporaryDirectory() as folder:
                    took, student = run(f"{folder}/run", turn)
                    seconds[name].append(took)
                    if student is not None and case in ("classification", "pairs"):
                        right[name].append(quality(case, student, options, f"{folder}/judged"))
                print(f"{case}, round {turn + 1}: {name} {took:.1f} s, {right[name][-1:]}", flush=True)
        bare = hardware.pick_precision() == "float32"
        found[f"{case}, float32" if bare else case] = {
            "machine": hardware.describe(),
            "versions": {
                name: hardware.version(name) for name in ("textbrewer", "transformers", "sentence-transformers")
            },
            "examples": options.examples,
            "epochs": 1 if case == "masked-lm" else EPOCHS,
            "batch_size": BATCH,
            "rounds": options.rounds,
            "seconds": seconds,
            "over limbeck": {
                name: ratios(times, seconds["limbeck"]) for name, times in seconds.items() if name != "limbeck"
            },
            "accuracy": {name: interval(each) for name, each in right.items() if each},
            "accuracy over": {
                name: interval([ours - theirs for ours, theirs in zip(right["limbeck"], each, strict=True)])
                for name, each in right.items()
                if each and name != "limbeck"
            },
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
