"""What a training step of each system costs over the teacher's forward pass and the student's plain step.

    python benchmarks/step_cost.py --teacher TEACHER --data TRAIN_TABLE --corpus TEXT [--rounds 20]

TEACHER is a fine-tuned classifier; TRAIN_TABLE a labelled table of its task. On the same batches, in turn: the
teacher's forward pass, the student's plain step (forward, a loss on its own output, backward, AdamW), and the system's
step (teacher, student, terms, backward, AdamW). All are in the precision that a run has here, and update the rows of
the embeddings that a run would. Also: what capturing the last layer's queries, keys and values costs over a bare
forward pass, against `output_attentions=True`. Writes benchmarks/results/step_cost.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from limbeck import hardware, preparing
from limbeck import run as line
from limbeck.anatomy import Capture
from limbeck.folder import RunFolder
from limbeck.recipe import load
from limbeck.signals import Wanted
from limbeck.tasks.causal_lm import causal_inputs
from limbeck.tasks.text import model_inputs
from limbeck.training import Teaching
from limbeck.training.lessons import prepare_lesson
from limbeck.training.phases import phases_of
from limbeck.training.stages import as_trained, trainer_for
from limbeck.training.trained_rows import trained_rows

CAPTURE_ROUNDS = 30
SMALL_SHAPE = {"num_hidden_layers": 3, "hidden_size": 192, "intermediate_size": 768}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "distilbert": ("distilbert", "distill", {}),
    "pkd-skip": ("pkd-skip", "distill", {"student": {"layers": 3}}),
    "tinybert, half the layers": ("tinybert", "intermediate", {"student": {"layers": 3}}),
    "tinybert, small": ("tinybert", "intermediate", {}),
    "tinybert, general": ("tinybert", "general", {}),
    "minilm": ("minilm", "general", {}),
    "minilmv2": ("minilmv2", "general", {}),
    "minilmv2, 24 relation heads": ("minilmv2", "general", {"stages.general.objectives.relations.heads": 24}),
}
"""The last: relation heads of width 16 for this teacher of width 384, as the paper's 48 are for 768."""


def median_times(rounds: int, functions: list[Callable[[Any], None]], batches: list[Any]) -> np.ndarray:
    """Seconds [functions, rounds * batches], each batch met by every function, which take turns at being first."""
    for function in functions:
        function(batches[0])
    found = np.empty((len(functions), rounds, len(batches)))
    for turn in range(rounds):
        for number, batch in enumerate(batches):
            for step in range(len(functions)):
                place = (turn + number + step) % len(functions)
                hardware.synchronise()
                started = time.perf_counter()
                functions[place](batch)
                hardware.synchronise()
                found[place, turn, number] = time.perf_counter() - started
    return found.reshape(len(functions), -1)


@dataclass
class Steps:
    """What a stage's update consists of, and what it is compared with.

    Attributes:
        batches: of the stage, on the device.
        teach: the teacher's forward pass.
        plain: an update of a copy of the student on a loss of its own output.
        system: the stage's update.
    """

    batches: list[Any]
    teach: Callable[[Any], None]
    plain: Callable[[Any], None]
    system: Callable[[Any], None]


@contextmanager
def steps_of(method: str, stage_name: str, settings: dict[str, Any], batches: int) -> Iterator[Steps]:
    """A recipe's stage, ready to be trained."""
    recipe = load(method, settings)
    ready = preparing.prepare(recipe, {}, RunFolder(Path(recipe.output)))
    phase = next(p for p in phases_of(recipe.stages, recipe, 3) if p.stage.name == stage_name)
    knowledge = line.ask_teacher(recipe, ready) if ready.plan.stored and not phase.stage.on_text else None
    teaching = Teaching(knowledge, ready.teachers, ready.general)
    plain = copy.deepcopy(ready.student.model)
    lesson = prepare_lesson(phase, ready.student, recipe, ready.task, ready.splits, teaching)
    training = recipe.training_of(phase.stage)
    with (
        as_trained(lesson, phase, training),
        trained_rows(plain, lesson.learn, training.weight_decay, lesson.words is None),
    ):
        trainer = trainer_for(lesson, phase, recipe, ready.task, ready.student, Path(recipe.output) / "w")
        trainer.accelerator.prepare_model(lesson.model)  # for the precision that a run has
        precision, device = hardware.pick_precision(), hardware.device()
        causal = recipe.task.kind == "causal-lm"
        body = not lesson.wanted.logits and not causal
        plain = (plain.base_model if body else plain).train().to(device)
        lesson.model.train()
        optimizer = trainer.create_optimizer()
        settings_of = {"lr": 1e-5, "fused": True}
        plain_optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], **settings_of)
        teacher = (teaching.general if phase.stage.on_text else teaching.teachers[0]).model.eval()
        asked = (teacher if lesson.wanted.logits or causal else teacher.base_model).to(device)
        told = causal_inputs if causal else model_inputs

        @torch.no_grad()
        def teach(batch: Any) -> None:
            with hardware.autocast(precision):
                asked(**told(batch))

        def plain_step(batch: Any) -> None:
            with hardware.autocast(precision):
                output = plain(**told(batch))
            if causal:
                loss = F.cross_entropy(output.logits.flatten(0, 1)[batch["positions"]].float(), batch["targets"])
            else:
                loss = output[0].square().mean() if body else F.cross_entropy(output.logits.float(), batch["labels"])
            loss.backward()
            plain_optimizer.step()
            plain_optimizer.zero_grad()

        def system_step(batch: Any) -> None:
            counts = torch.stack([term.count(batch) for term in trainer.terms]).float()
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts).backward()
            optimizer.step()
            optimizer.zero_grad()

        few = [batch for batch, _ in zip(trainer.get_train_dataloader(), range(batches), strict=False)]
        yield Steps(few, teach, plain_step, system_step)
    lesson.close()


def case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One system's ratio."""
    method, stage_name, changes = CASES[name]
    small = {} if "student" in changes or method == "distilbert" else {"student.shape": SMALL_SHAPE}
    settings = {"teacher": str(options.teacher), "data": str(options.data), "data.corpus": str(options.corpus)}
    settings |= {"task.max_length": 64, "output": tempfile.mkdtemp(), "export": [], **small, **changes}
    if "general" not in stage_name:
        settings.pop("data.corpus")
    if method == "tinybert" and "general" not in stage_name:
        settings["stages.general"] = None
    with steps_of(method, stage_name, settings, options.batches) as steps:
        times = median_times(options.rounds, [steps.teach, steps.plain, steps.system], steps.batches)
    ratios = times[2] / (times[0] + times[1])
    low, high = np.quantile(ratios, [0.05, 0.95])
    return {
        "ratio": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
        "milliseconds": dict(zip(("teacher", "plain", "system"), (1e3 * np.median(times, 1)).tolist(), strict=True)),
    }


def capture_cost(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds over a bare forward pass: hooks on the last layer, and `output_attentions=True`."""
    from limbeck.checkpoints import open_classifier

    model = open_classifier(str(options.teacher)).model.eval()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    last = frozenset([model.config.num_hidden_layers])
    hooked = copy.deepcopy(model)
    capture = Capture(hooked, Wanted(queries=last, keys=last, values=last))
    ids = torch.randint(1000, 20000, (32, 128))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @torch.no_grad()
    def bare(batch: Any) -> None:
        model(**batch)

    @torch.no_grad()
    def hooks(batch: Any) -> None:
        hooked(**batch)
        capture.signals()

    @torch.no_grad()
    def attentions(batch: Any) -> None:
        eager(**batch, output_attentions=True)

    times = 1e3 * median_times(CAPTURE_ROUNDS, [bare, hooks, attentions], [inputs])
    return {
        "bare": float(np.median(times[0])),
        "hooks over bare": float(np.median(times[1] - times[0])),
        "output_attentions over bare": float(np.median(times[2] - times[0])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "data", "corpus"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    options = parser.parse_args()
    torch.manual_seed(0)
    result = {"machine": hardware.describe(), "capture": capture_cost(options)}
    result["steps"] = {name: case(name, options) for name in options.cases}
    Path("benchmarks/results/step_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
