"""Rules on a real case of each kind: film reviews classified, and sentiments written as JSON.

    python benchmarks/rules.py --data DATA --models MODELS [--parts labels text student] [--seeds 0 1 2]
                               [--examples 1000] [--ways free "hard rules" ...]

DATA holds `imdb_cad/{orig_train,orig_dev,orig_test,revised_test}.tsv` and `sst2/{train_sentences,test}.tsv`; MODELS
holds `minilm` (all-MiniLM-L6-v2) and a language model as a folder or a .gguf file, by default
`smollm2/SmolLM2-135M-Instruct.Q4_1.gguf`; more of these, such as students of it, are given by --language.

labels: a fine-tuned teacher, and for each seed a student of half its layers distilled without and with the rules of
rules_reviews.yaml. All are measured as they are and held to the rules in use, on the reviews' own test split and on
the same reviews rewritten to say the opposite, of which none was trained on.

text: held-out sentences answered freely; under the hard rule of rules_answers.yaml; with its soft rules too, at
several weights; and as the best of four samples, re-ranked. Counted are the answers that break a rule, those that name
the right sentiment, and answers per second.

student: half of the (first) language model's layers, taught by its answers under the rules to other sentences
(`seqkd`), and then asked as in text.

What is finished is kept in --output and reused; the figures are written anew after each part to
benchmarks/results/rules.json, those of text beside what other models and ways of answering have there. On 2 cores
without other work: labels about 15 minutes for the teacher and as many for each seed, text about 75 minutes for each
language model and 1,000 examples.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intervals import interval
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import limbeck
from limbeck import hardware
from limbeck.checkpoints import open_causal
from limbeck.rules import RuleBook, load_rules, rerank, violations
from limbeck.rules.tokens import RulesProcessor, TokenRules

HERE = Path(__file__).parent
RESULTS = Path("benchmarks/results/rules.json")
REVIEWS, ANSWERS = HERE / "rules_reviews.yaml", HERE / "rules_answers.yaml"
TESTS = {"reviews": "orig_test", "rewritten reviews": "revised_test"}
COMMON = ["export=[]", "evaluation.resamples=200", "evaluation.speed=false", "task.max_length=256"]
WEIGHTS = (2.0, 8.0)
WAYS: dict[str, float | None] = {
    "free": None,
    "hard rules": None,
    **{f"all rules, soft ones at {weight:g}": weight for weight in WEIGHTS},
    "best of samples": None,  # of a quarter of the sentences: four times the work
}
"""Ways of answering, and the soft rules' weight where they are followed."""
PROMPTS = 600
"""Sentences that the student learns from, the last of the training split."""
SAMPLES = 4
LONGEST = 480
"""Tokens of an answer: a reason of 100 letters, none of which need more than four, and the form around it."""
ASK = 'Say of each sentence about a film whether it is "positive" or "negative", and why, as JSON.'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parts = ["labels", "text", "student"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="of answering")
    parser.add_argument("--language", nargs="+", default=["smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"])
    parser.add_argument("--output", type=Path, default=Path("runs/rules"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--examples", type=int, default=1000, help="held-out sentences to answer")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=32, help="sentences answered at once")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if "labels" in options.parts:
        for rows in labels(options):
            write(labels={"machine": hardware.describe(), "rows": rows, "table": table(rows)})
    if "text" in options.parts:
        for name in options.language:
            text(Path(name).stem, options.models / name, options)
    if "student" in options.parts:
        teacher = options.models / options.language[0]
        text(f"half of {teacher.stem}", taught(teacher, options) / "student", options)


def write(**found: Any) -> None:
    """Keep what other parts wrote before."""
    RESULTS.parent.mkdir(exist_ok=True)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(before | found, indent=1) + "\n")


# --- labels -------------------------------------------------------------------------------------------------------


def run(*words: str) -> None:
    """One command, as a user gives it."""
    print("limbeck", *words, flush=True)
    subprocess.run([sys.executable, "-m", "limbeck", *words], check=True)


def labels(options: argparse.Namespace) -> Any:
    """The rows so far, after each model."""
    data = options.data / "imdb_cad"
    places = [f"data.train={data / 'orig_train.tsv'}", f"data.validation={data / 'orig_dev.tsv'}"]
    places += [
        f"data.test={data / 'orig_test.tsv'}",
        f"training.epochs={options.epochs}",
        "training.learning_rate=1e-4",
    ]
    teacher = options.output / "teacher"
    if not (teacher / "metrics.json").exists():
        run("train", f"student={options.models / 'minilm'}", *places, *COMMON, f"output={teacher}")
    rows = [{"model": "teacher", "seed": 0, **measure(teacher / "model", options)}]
    yield rows
    for seed in options.seeds:
        for name, more in (("student", []), ("student taught with rules", [f"rules={REVIEWS}"])):
            folder = options.output / name.replace(" ", "-") / str(seed)
            if not (folder / "metrics.json").exists():
                words = [f"teacher={teacher}", *places, *COMMON, *more, f"seed={seed}", "student.layers=half"]
                words += ["baseline=false", f"knowledge={options.output / 'knowledge'}", f"output={folder}"]
                run("distill", "hinton", *words)
            rows.append({"model": name, "seed": seed, **measure(folder / "student", options)})
            yield rows


def measure(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One model on both tests, as it is and held to the rules."""
    kept = model.parent / "rules.json"
    if not kept.exists():
        found = {}
        for test, name in TESTS.items():
            data = options.data / "imdb_cad" / f"{name}.tsv"
            settings = {"rules": REVIEWS, "max_length": 256, "resamples": 200, "speed": False}
            metrics = limbeck.evaluate(model, data, **settings)
            mine, held = metrics["student"], metrics["student"]["rules"]["with_rules"]
            found[test] = {
                "as it is": rates(mine["quality"], mine["rules"]["violations"]),
                "held to rules": rates(held["quality"], held["violations"]),
                "by rule": mine["rules"]["violations"]["by_rule"],
                "labels": metrics["rules"]["labels"]["by_rule"],
                "applies": {rule["name"]: rule["applies"] for rule in metrics["rules"]["rules"]},
            }
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def rates(quality: dict[str, Any], broken: dict[str, Any]) -> dict[str, float]:
    return {"accuracy": quality["accuracy"]["value"], **{kind: broken[kind]["value"] for kind in ("hard", "soft")}}


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds with 95 % t intervals, and differences from the plain student paired by seed."""
    found = []
    plain = {row["seed"]: row for row in rows if row["model"] == "student"}
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        for test in TESTS:
            for use in ("as it is", "held to rules"):
                entry: dict[str, Any] = {"model": model, "test": test, "use": use, "seeds": len(mine)}
                for figure in ("accuracy", "hard", "soft"):
                    entry[figure] = interval([row[test][use][figure] for row in mine])
                both = [row for row in mine if row["seed"] in plain]
                if both and model != "teacher":
                    gains = [
                        row[test][use]["accuracy"] - plain[row["seed"]][test]["as it is"]["accuracy"] for row in both
                    ]
                    entry["over the plain student"] = interval(gains)
                found.append(entry)
    return found


# --- text ---------------------------------------------------------------------------------------------------------


def rules_of(way: str) -> RuleBook | None:
    """What an answer is held to while it is written."""
    if way == "free":
        return None
    book = load_rules(ANSWERS)
    if WAYS[way] is not None:
        return reweighted(book, WAYS[way])
    return RuleBook(tuple(rule for rule in book.rules if rule.hard))


def text(name: str, path: Path, options: argparse.Namespace) -> None:
    """Each way of answering, with its row written as soon as it is there."""
    examples = read(options.data / "sst2" / "test.tsv")[: options.examples]
    sentences, truth = [each["sentence"] for each in examples], [each["label"] for each in examples]
    book = load_rules(ANSWERS)
    model = tokenizer = None
    for way in options.ways:
        count = len(examples) // SAMPLES if way == "best of samples" else len(examples)
        kept = options.output / f"{name}-{way}-{count}.json".replace(" ", "-").replace(",", "")
        if not kept.exists():
            if model is None:
                model, tokenizer = open_language(path)
            started = time.monotonic()
            outputs = answer(
                model, tokenizer, sentences[:count], rules_of(way), way, reweighted(book, WEIGHTS[-1]), options.batch
            )
            kept.write_text(json.dumps({"seconds": time.monotonic() - started, "outputs": outputs}))
        found = json.loads(kept.read_text())
        right = [mood(output) == ("negative", "positive")[int(label)]
                 for output, label in zip(found["outputs"], truth[:count], strict=True)]  # fmt: skip
        row = {
            "model": name,
            "way": way,
            "machine": hardware.describe(),
            "longest": LONGEST,
            "examples": count,
            **violations(book, sentences[:count], found["outputs"]),
            "accuracy": float(np.mean(right)),
            "per second": count / found["seconds"],
            "words": float(np.mean([len(output.split()) for output in found["outputs"]])),
        }
        before = json.loads(RESULTS.read_text()).get("text", []) if RESULTS.exists() else []
        others = [each for each in before if (each["model"], each["way"]) != (name, way)]
        write(text=sorted([*others, row], key=lambda each: (each["model"], list(WAYS).index(each["way"]))))


def taught(teacher: Path, options: argparse.Namespace) -> Path:
    """The run of a student that learnt from its teacher's answers under the rules."""
    folder: Path = options.output / "student-that-writes"
    if not (folder / "metrics.json").exists():
        prompts = options.output / "prompts.jsonl"
        sentences = [each["sentence"] for each in read(options.data / "sst2" / "train_sentences.tsv")]
        lines = [json.dumps({"messages": turns(sentence)}) for sentence in sentences[-PROMPTS:]]
        prompts.write_text("\n".join(lines) + "\n")
        words = [f"teacher={teacher}", f"data={prompts}", f"rules={ANSWERS}", f"output={folder}"]
        words += ["student.layers=half", "student.pattern=spaced"]
        words += ["baseline=false", "export=[]", "data.generation.max_new_tokens=128", "training.learning_rate=3e-4"]
        run("distill", "seqkd", *words, "evaluation.resamples=200", "evaluation.speed=false")
    return folder


def read(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def reweighted(book: RuleBook, weight: float) -> RuleBook:
    """The same rules, all soft ones at one weight."""
    return RuleBook(tuple(rule if rule.hard else rule.model_copy(update={"weight": weight}) for rule in book.rules))


def open_language(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer, _ = open_causal(str(path))
    tokenizer.padding_side = "left"
    precision = getattr(torch, hardware.pick_precision("auto"))
    return model.to(hardware.device(), precision).eval(), tokenizer


SHOWN = [  # from the training split
    (
        "a thoughtful , moving piece that faces difficult issues with honesty and beauty .",
        "positive",
        "honest and moving",
    ),
    (
        "the plot is romantic comedy boilerplate from start to finish .",
        "negative",
        "the plot is nothing but boilerplate",
    ),
]


def turns(sentence: str) -> list[dict[str, str]]:
    """The prompt, with two answered examples before it."""
    said = [{"role": "system", "content": ASK}]
    for shown, sentiment, reason in SHOWN:
        said.append({"role": "user", "content": shown})
        said.append({"role": "assistant", "content": json.dumps({"sentiment": sentiment, "reason": reason})})
    return [*said, {"role": "user", "content": sentence}]


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: list[str],
    rules: RuleBook | None,
    way: str,
    choose: RuleBook,
    batch: int,
) -> list[str]:
    """An answer to each sentence: the likeliest token after the other, or the best of several samples."""
    ready = TokenRules(rules, tokenizer, model.config.vocab_size) if rules is not None else None
    many = SAMPLES if way == "best of samples" else 1
    torch.manual_seed(0)
    outputs: list[str] = []
    for start in range(0, len(sentences), batch):
        some = sentences[start : start + batch]
        prompts = [tokenizer.apply_chat_template(turns(each), tokenize=False, add_generation_prompt=True)
                   for each in some]  # fmt: skip
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        found = model.generate(
            **inputs, max_new_tokens=LONGEST, do_sample=many > 1, num_return_sequences=many, output_scores=many > 1,
            return_dict_in_generate=True, pad_token_id=tokenizer.pad_token_id,
            logits_processor=[RulesProcessor(ready, some)] if ready is not None else None,
        )  # fmt: skip
        ids = found.sequences[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        if many > 1:
            each = model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
            sums = each.nan_to_num(neginf=0).sum(-1).view(-1, many).tolist()  # padding after the end has -inf
            several = [texts[place : place + many] for place in range(0, len(texts), many)]
            chosen = rerank(choose, some, several, sums)
            texts = [candidates[number] for candidates, number in zip(several, chosen, strict=True)]
        outputs += texts
        print(f"{way}: {len(outputs)} of {len(sentences)}: {texts[-1]}", flush=True)
    return outputs


def mood(output: str) -> str | None:
    """The sentiment that an answer names, where it can be read."""
    try:
        found = json.loads(output)
    except ValueError:
        return None
    return found.get("sentiment") if isinstance(found, dict) else None


if __name__ == "__main__":
    main()
