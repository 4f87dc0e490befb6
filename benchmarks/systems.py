"""Every encoder system on real tasks with real teachers, at equal student and equal steps, over several seeds.

    python benchmarks/systems.py --data DATA --models MODELS [--groups half small thin] [--tasks sst2 mrpc]
                                 [--seeds 0 1 2]
    python benchmarks/systems.py --data DATA --models MODELS --speed

DATA holds `sst2/{train_sentences,dev,test}.tsv`, `mrpc/{train,dev,test}.tsv` and a plain-text corpus; MODELS holds
pretrained encoders as folders (`minilm`: all-MiniLM-L6-v2, `mpnet`: all-mpnet-base-v2). Teachers are fine-tuned first;
MobileBERT's, an IB-BERT, is trained on the corpus from random weights before that.
Runs that are finished are reused; the table is written anew after each one to benchmarks/results/systems.json, from
which `make docs` fills docs/systems. Rows that this file has already and that are not asked for stay. What a step costs
is measured by step_cost.py. Figures are of the published test split; nothing is chosen by it. A row has the processor's
time of its command, of all cores, which other work beside it does not change much: data, what was not yet asked of the
teacher, training and judging. `--speed`, for a quiet machine, only times each shape of student beside its teacher.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intervals import interval

from limbeck import evaluate, hardware
from limbeck.report.table import speed_up

RESULTS = Path("benchmarks/results/systems.json")
COMMON = ["export=[]", "evaluation.resamples=200", "evaluation.speed=false", "training.batch_size=32"]
TASKS = {
    "sst2": ("sst2/train_sentences.tsv", "sst2/dev.tsv", "sst2/test.tsv", 64),
    "mrpc": ("mrpc/train.tsv", "mrpc/dev.tsv", "mrpc/test.tsv", 128),
}
TEACHERS = {
    ("minilm", "sst2"): {"learning_rate": 1e-4, "epochs": 3},
    ("minilm", "mrpc"): {"learning_rate": 1e-4, "epochs": 4},
    ("mpnet", "sst2"): {"learning_rate": 3e-5, "epochs": 2},
    ("mpnet", "mrpc"): {"learning_rate": 3e-5, "epochs": 3},
    ("ib-bert", "sst2"): {"learning_rate": 2e-4, "epochs": 4},
}
HALF_DEPTH = {"minilm": 3, "mpnet": 6}
EPOCHS = {"minilm": 3, "mpnet": 7}
"""Of the halves. MPNet's was still gaining a point an epoch on the development split after three."""
SMALL = {  # at most a seventh of the teacher's parameters outside the embeddings
    "minilm": "{num_hidden_layers: 3, hidden_size: 192, intermediate_size: 768}",
    "mpnet": "{num_hidden_layers: 4, hidden_size: 312, intermediate_size: 1200}",
    "ib-bert": "{model_type: mobilebert, classifier_activation: false, num_hidden_layers: 4, hidden_size: 192, "
    "num_attention_heads: 4, embedding_size: 128, intra_bottleneck_size: 64, intermediate_size: 128}",
}
IB_BERT = "{model_type: ib-bert, num_hidden_layers: 4, hidden_size: 192, num_attention_heads: 4, embedding_size: 128, "
IB_BERT += "intra_bottleneck_size: 384, intermediate_size: 768}"
LABELS_ALONE = "stages.distill.objectives={hard_labels: 1}"


@dataclass(frozen=True)
class System:
    """One row of the table: a recipe with what differs from it, and the general student that it starts from."""

    recipe: str
    settings: list[str] = field(default_factory=list)
    start: str | None = None


# Half of the teacher's layers, all from the same start and over the same steps. Other starts: the same shape with
# random weights, the same half after DistilBERT's losses on plain text, and for LayerDrop's two rows the whole model
# after masked words on plain text, with layers dropped and without.
HALF = {
    "no teacher": System("hinton", [LABELS_ALONE]),
    "soft targets": System("hinton"),
    "distilbert": System("distilbert"),
    "pkd-skip": System("pkd-skip"),
    "pkd-last": System("pkd-last"),
    "soft targets, random weights": System("hinton", start="random"),
    "soft targets, general-distilled": System("hinton", start="distilled"),
    "layerdrop": System("layerdrop", ["stages.pretrain=null"], "dropped"),
    "layerdrop without dropping": System("layerdrop", ["stages.pretrain=null"], "language"),
}

# Small students from random weights. What a language teaches is learnt once, over the plain text, and serves all seeds
# and tasks; the rest takes the same number of steps in every row: those of two passes over the augmented set.
GENERAL = {
    "tinybert": System("tinybert", ["stages.intermediate=null", "stages.prediction=null"]),
    "minilm": System("minilm", ["stages.fine-tune=null"]),
    "minilmv2": System("minilmv2", ["stages.fine-tune=null"]),
    "well-read": System("well-read", ["stages.distill=null", "stages.fine-tune=null"]),
    "mobilebert": System("mobilebert", ["stages.fine-tune=null"]),
}
STAGES = {"well-read": ["pretrain"], "mobilebert": ["transfer", "words"]}
"""Those on plain text, where they are not one that is called general."""
AUGMENTED = ["data.augmentation=LANGUAGE", "data.augmentation.copies=COPIES"]


def passes(stages: dict[str, float], rate: float) -> list[str]:
    """Epochs of stages, and their learning rate."""
    words = [f"stages.{name}.training.epochs={epochs:g}" for name, epochs in stages.items()]
    return [*words, *(f"stages.{name}.training.learning_rate={rate}" for name in stages)]


def small_systems(copies: int, rate: float) -> dict[str, System]:
    """The rows for small students; without the altered copies an epoch is `copies + 1` times shorter."""
    more = copies + 1
    no_general = "stages.general=null"
    return {
        "no teacher": System("hinton", [LABELS_ALONE, *passes({"distill": 2 * more}, rate)]),
        "soft targets": System("hinton", passes({"distill": 2 * more}, rate)),
        "soft targets, augmented": System("hinton", [*AUGMENTED, *passes({"distill": 2}, rate)]),
        "no teacher, pre-trained": System("hinton", [LABELS_ALONE, *passes({"distill": 2 * more}, rate)], "well-read"),
        "soft targets, pre-trained": System("hinton", passes({"distill": 2 * more}, rate), "well-read"),
        "soft targets, general-distilled": System("hinton", passes({"distill": 2 * more}, rate), "tinybert"),
        "tinybert": System(
            "tinybert", [no_general, *AUGMENTED, *passes({"intermediate": 1, "prediction": 1}, rate)], "tinybert"
        ),
        "tinybert without augmentation": System(
            "tinybert", [no_general, *passes({"intermediate": more, "prediction": more}, rate)], "tinybert"
        ),
        "tinybert without the intermediate stage": System(
            "tinybert",
            [no_general, "stages.intermediate=null", *AUGMENTED, *passes({"prediction": 2}, rate)],
            "tinybert",
        ),
        "tinybert without the general stage": System(
            "tinybert", [no_general, *AUGMENTED, *passes({"intermediate": 1, "prediction": 1}, rate)]
        ),
        "minilm": System("minilm", [no_general, *passes({"fine-tune": 2 * more}, rate)], "minilm"),
        "minilmv2": System("minilmv2", [no_general, *passes({"fine-tune": 2 * more}, rate)], "minilmv2"),
        "well-read": System(
            "well-read", ["stages.pretrain=null", *passes({"distill": more, "fine-tune": more}, rate)], "well-read"
        ),
    }


GROUPS = ["half", "small", "thin"]


def thin_systems(copies: int, rate: float) -> dict[str, System]:
    """The rows for a MobileBERT, in as many steps as those of small students."""
    epochs = 2 * (copies + 1)
    return {
        "no teacher": System("hinton", [LABELS_ALONE, *passes({"distill": epochs}, rate)]),
        "soft targets": System("hinton", passes({"distill": epochs}, rate)),
        "mobilebert": System(
            "mobilebert",
            ["stages.transfer=null", "stages.words=null", *passes({"fine-tune": epochs}, rate)],
            "mobilebert",
        ),
    }


def systems_of(group: str, options: argparse.Namespace) -> dict[str, System]:
    """A group's rows."""
    makers = {"small": small_systems, "thin": thin_systems}
    return makers[group](options.copies, options.small_rate) if group in makers else HALF


def limbeck(*words: str) -> None:
    """One command, as a user gives it."""
    print("limbeck", *words, flush=True)
    subprocess.run([sys.executable, "-m", "limbeck", *words], check=True)


def data_words(task: str, data: Path) -> list[str]:
    train, dev, test, length = TASKS[task]
    places = [f"data.train={data / train}", f"data.validation={data / dev}", f"data.test={data / test}"]
    return [*places, f"task.max_length={length}"]


def teacher_of(model: str, task: str, options: argparse.Namespace) -> Path:
    """The fine-tuned teacher; trained here when it is not there yet."""
    folder: Path = options.output / "teachers" / f"{model}-{task}"
    if not (folder / "metrics.json").exists():
        settings = [f"training.{key}={value}" for key, value in TEACHERS[model, task].items()]
        words = [*data_words(task, options.data), *COMMON, *settings, f"output={folder}"]
        limbeck("train", f"student={backbone(model, options)}", *words)
    return folder


def backbone(model: str, options: argparse.Namespace) -> Path:
    """What a teacher is before its task. An IB-BERT is trained here, from random weights."""
    if model != "ib-bert":
        return Path(options.models / model)
    folder: Path = options.output / "ib-bert"
    if not (folder / "metrics.json").exists():
        words = [f"data={options.corpus}", f"student.shape={IB_BERT}", f"student.tokenizer={options.models / 'minilm'}"]
        words += [f"training.epochs={options.general_epochs:g}", "training.learning_rate=5e-4", *COMMON]
        limbeck("train", "ib-bert", *words, f"output={folder}")
    return folder


def language_model(model: str, name: str, options: argparse.Namespace) -> Path:
    """The backbone with a head for masked words: `language`, for augmentation, or `dropped`, trained by LayerDrop."""
    folder: Path = options.output / f"{model}-{name}"
    if not (folder / "metrics.json").exists():
        words = [f"data={options.corpus}", "training.epochs=0.5", "training.learning_rate=2e-4", *COMMON[:-1]]
        if name == "dropped":
            words += ["training.layer_drop=0.5"]
        limbeck("train", "pretrain", f"student={options.models / model}", *words, f"output={folder}")
    return folder


def distilled_half(model: str, options: argparse.Namespace) -> Path:
    """Half of the backbone's layers after DistilBERT's losses on plain text: a general student."""
    folder: Path = options.output / f"{model}-distilled"
    if not (folder / "metrics.json").exists():
        words = [f"teacher={language_model(model, 'language', options)}", f"data={options.corpus}", *COMMON]
        limbeck(
            "distill",
            "distilbert-pretrain",
            *words,
            *passes({"distill": options.general_epochs}, 2e-4),
            f"output={folder}",
        )
    return folder


def start_of(name: str | None, model: str, options: argparse.Namespace) -> str:
    """The student of a row of the halves, as a recipe has it."""
    if name is None:
        return "student={layers: half, pattern: spaced}"
    if name == "random":
        return f"student.shape={{num_hidden_layers: {HALF_DEPTH[model]}}}"
    folder = distilled_half(model, options) if name == "distilled" else language_model(model, name, options)
    return f"student={{model: {folder}, layers: all}}"


def parameters(folder: Path) -> dict[str, int]:
    """All of a student's parameters, and those outside its embeddings."""
    from limbeck.checkpoints import open_classifier

    model = open_classifier(str(folder)).model
    embeddings = sum(p.numel() for n, p in model.base_model.named_parameters() if n.startswith("embeddings"))
    total = sum(p.numel() for p in model.parameters())
    return {"parameters": total, "outside the embeddings": total - embeddings}


def general_student(name: str, model: str, task: str, options: argparse.Namespace) -> Path:
    """A small student after a system's stage on plain text alone; its classifier is still random."""
    folder: Path = options.output / f"general-{model}" / name
    if not (folder / "metrics.json").exists():
        system = GENERAL[name]
        words = [f"teacher={teacher_of(model, task, options)}", *data_words(task, options.data), *COMMON]
        words += [f"data.corpus={options.corpus}", f"student.shape={SMALL[model]}", "baseline=false"]
        words += passes(dict.fromkeys(STAGES.get(name, ["general"]), options.general_epochs), 5e-4)
        if name != "well-read":
            words += [f"teacher.general={backbone(model, options)}"]
        limbeck("distill", system.recipe, *words, *system.settings, f"output={folder}")
    return folder


def run(group: str, name: str, model: str, task: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One system on one task with one seed: its figures."""
    system = systems_of(group, options)[name]
    folder: Path = options.output / f"{group}-{model}-{task}" / name.replace(" ", "-").replace(",", "") / str(seed)
    if not (folder / "metrics.json").exists():
        words = [f"teacher={teacher_of(model, task, options)}", *data_words(task, options.data), *COMMON]
        words += [f"seed={seed}", "baseline=false", f"knowledge={options.output / 'knowledge'}", f"output={folder}"]
        settings = system.settings
        if group == "half":
            words += [f"training.epochs={EPOCHS[model]}", "training.learning_rate=1e-4"]
            words += [start_of(system.start, model, options)]
        elif system.start is not None:
            words += [f"student={general_student(system.start, model, task, options) / 'student'}"]
        else:
            words += [f"student.shape={SMALL[model]}"]
        if any("LANGUAGE" in word for word in settings):
            language = str(language_model(model, "language", options))
            settings = [w.replace("LANGUAGE", language).replace("COPIES", str(options.copies)) for w in settings]
        before = _processor_seconds()
        limbeck("distill", system.recipe, *words, *settings)
        (folder / "processor.json").write_text(json.dumps(_processor_seconds() - before))
    metrics = json.loads((folder / "metrics.json").read_text())
    main = metrics["task"]["metric"]
    return {
        main: metrics["student"]["quality"][main]["value"],
        "teacher": metrics["teacher"]["quality"][main]["value"],
        "retention": metrics["student"]["retention"],
        "agreement": metrics["student"]["fidelity"]["agreement"],
        "steps": sum(max(e["step"] for e in h) for h in metrics["training"]["student"]["history"].values()),
        **parameters(folder / "student"),
        "processor seconds": json.loads(spent.read_text()) if (spent := folder / "processor.json").exists() else None,
    }


def _processor_seconds() -> float:
    """Of all commands that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def places_of(group: str, options: argparse.Namespace) -> list[tuple[str, str]]:
    """A group's teachers and tasks. An IB-BERT is trained for SST-2 alone."""
    if group == "thin":
        return [("ib-bert", task) for task in options.tasks if ("ib-bert", task) in TEACHERS]
    return [(model, task) for model in options.teachers for task in options.tasks]


def speeds(options: argparse.Namespace) -> dict[str, Any]:
    """How many times as fast as its teacher a student of each shape is, one text at a time, on SST-2's test split."""
    found: dict[str, Any] = {}
    for group in options.groups:
        for model, task in places_of(group, options):
            students = sorted((options.output / f"{group}-{model}-sst2").glob("*/*/student"))
            if students and task == "sst2":
                teacher, test = teacher_of(model, task, options), str(options.data / TASKS[task][2])
                metrics = evaluate(str(students[0]), test, teacher=str(teacher), max_length=64, resamples=100)
                found[f"{group}, {model}"] = {"times": speed_up(metrics, "student"), "machine": hardware.describe()}
    return found


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By group, teacher, task and system: figures over seeds, and paired differences from the two controls."""
    found = []

    def of(key: tuple[str, ...]) -> dict[int, dict[str, Any]]:
        return {r["seed"]: r for r in rows if (r["group"], r["model"], r["task"], r["system"]) == key}

    names = list(HALF | small_systems(1, 1) | thin_systems(1, 1))
    keys = dict.fromkeys((r["group"], r["model"], r["task"], r["system"]) for r in rows)
    for key in sorted(keys, key=lambda key: (*key[:2], list(TASKS).index(key[2]), names.index(key[3]))):
        mine = of(key)
        entry: dict[str, Any] = dict(zip(("group", "model", "task", "system"), key, strict=True))
        entry["seeds"] = sorted(mine)
        for name in ("accuracy", "teacher", "retention", "agreement"):
            entry[name] = interval([mine[seed][name] for seed in entry["seeds"]])
        same = ("steps", "parameters", "outside the embeddings", "machine")
        entry |= {name: next(iter(mine.values()))[name] for name in same}
        spent = [row["processor seconds"] for row in mine.values() if row.get("processor seconds")]
        entry["processor seconds"] = interval(spent) if spent else None
        for control in ("no teacher", "soft targets"):
            other = of((*key[:3], control))
            both = sorted(set(mine) & set(other))
            if both and key[3] != control:
                entry[f"over {control}"] = interval([mine[s]["accuracy"] - other[s]["accuracy"] for s in both])
        found.append(entry)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, help="plain text; DATA/wiki_squad_paragraphs when not given")
    parser.add_argument("--output", type=Path, default=Path("runs/systems"))
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--teachers", nargs="+", choices=["minilm", "mpnet"], default=["minilm", "mpnet"])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--systems", nargs="+", help="these rows only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--copies", type=int, default=3, help="altered copies of each training text")
    parser.add_argument("--general-epochs", type=float, default=1, help="passes over the plain text")
    parser.add_argument("--small-rate", type=float, default=3e-4, help="the small students' learning rate on the task")
    parser.add_argument("--speed", action="store_true", help="time the students that are there, and stop")
    options = parser.parse_args()
    options.corpus = options.corpus or options.data / "wiki_squad_paragraphs" / "train.txt.gz"
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    if options.speed:
        result["speed"] = result.get("speed", {}) | speeds(options)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        return
    rows: list[dict[str, Any]] = result["rows"]
    for group in options.groups:
        for model, task in places_of(group, options):
            for seed in options.seeds:
                for name in systems_of(group, options):
                    if options.systems and name not in options.systems:
                        continue
                    place = {"group": group, "model": model, "task": task, "system": name, "seed": seed}
                    figures = run(group, name, model, task, seed, options)
                    rows = [row for row in rows if any(row[key] != value for key, value in place.items())]
                    rows.append(place | figures | {"machine": hardware.describe()})
                    RESULTS.parent.mkdir(exist_ok=True)
                    result |= {"copies": options.copies, "rows": rows, "table": table(rows)}
                    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
