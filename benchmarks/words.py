"""What is lost when a few tokens of a teacher's distribution are kept: bytes, gradients and speed of each format.

    python benchmarks/words.py --teacher MODEL --text FILE [--student MODEL] [--batches 4] [--tokens 4096] [--draws 3]

The student is one distilled from the teacher, such as language_students.py leaves, or else the teacher without `--drop`
of its layers, spread evenly, untrained: so far off that formats hardly differ. For each batch of tokens the gradient of
the forward KL divergence by the head's weights, and its mean over the batch by the last hidden states, is found from
all of the teacher's words and from what each format keeps; the figure is the cosine of the two, mean and 95 % t
interval over batches, each the mean of some draws. `distillkit` is a reference of DistillKit's recommended form,
written after its description: the 128 likeliest tokens, 16 of their log-probabilities exact in bfloat16, the others by
a polynomial of degree 4 and a square root of their places, fitted in float32, renormalised over the 128. The fit is
ill-conditioned unless places are counted from 0 to 1, an option of its that is not recommended: both are measured.

Rates are medians of repeated packing and unpacking of one batch on the processor, all formats in turn; `--batches 0`
measures these alone and leaves the other figures as they are. Writes benchmarks/results/words.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from intervals import interval

from limbeck import hardware
from limbeck.anatomy import StatesAt
from limbeck.checkpoints import open_causal
from limbeck.knowledge.formats import Format, pack, unpack
from limbeck.signals import SparseWords
from limbeck.students.layers import keep_layers, layers_of_pattern
from limbeck.tasks.causal_lm import CausalBatches, encode_text

RESULTS = Path("benchmarks/results/words.json")
CHUNK = 128
DISTILLKIT = {"distillkit": False, "distillkit, places from 0 to 1": True}
CASES = {
    "dense": ("dense", 0, 0, 16),
    "top-15": ("top_k", 15, 0, 16),
    "top-20, 8 bits": ("top_k", 20, 0, 8),
    "31 sampled": ("sampled", 0, 31, 16),
    "4 + 23": ("head_and_tail", 4, 23, 16),
    "6 + 19": ("head_and_tail", 6, 19, 16),
    "8 + 15": ("head_and_tail", 8, 15, 16),
    "10 + 11": ("head_and_tail", 10, 11, 16),
    "12 + 7": ("head_and_tail", 12, 7, 16),
    "14 + 3": ("head_and_tail", 14, 3, 16),
    "10 + 16, 8 bits": ("head_and_tail", 10, 16, 8),
    "12 + 13, 8 bits": ("head_and_tail", 12, 13, 8),
    "14 + 10, 8 bits": ("head_and_tail", 14, 10, 8),
    "5 + 5": ("head_and_tail", 5, 5, 16),
    "22 + 21": ("head_and_tail", 22, 21, 16),
    "top-128": ("top_k", 128, 0, 16),
}


def distillkit(
    logs: torch.Tensor, normalised: bool, k: int = 128, exact: int = 16, degree: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and probabilities [N, k] as DistillKit's recommended form gives them back, or with its `normalize_t`."""
    values, ids = logs.topk(k, -1)
    places = torch.arange(k - exact, dtype=torch.float32, device=logs.device)
    if normalised:
        places = places / (k - exact - 1)
    terms = torch.stack([places.sqrt(), *(places**power for power in range(degree + 1))], 1)
    fit = values[:, exact:] @ torch.linalg.pinv(terms, atol=1e-5).T
    back = torch.cat([values[:, :exact].bfloat16().float(), fit @ terms.T], 1)
    return ids, back.softmax(-1)


def weights_of(words: SparseWords) -> torch.Tensor:
    """What the loss takes each kept token's probability to be, [N, k + n]."""
    parts = [words.logs.exp()]
    if words.drawn:
        parts.append((words.tail / words.drawn)[:, None].expand(-1, words.drawn))
    return torch.cat(parts, -1)


@torch.inference_mode()
def states_of(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, StatesAt]:
    """The last states at every position that predicts a token."""
    stop = StatesAt(model.eval())
    batch = {name: batch[name].to(model.device) for name in ("positions", "input_ids", "attention_mask")}
    stop.positions = batch["positions"]
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    states = stop.take()
    stop.close()
    return states, stop


class Sums:
    """A distribution's part of the gradient: the sum of its probabilities [V], and of them times the states [V, d]."""

    def __init__(self, head: torch.Tensor) -> None:
        self.mass, self.outer, self.kl = head.new_zeros(len(head)), torch.zeros_like(head), 0.0

    def add_all(self, p: torch.Tensor, x: torch.Tensor) -> None:
        """Probabilities of all words [c, V] at states [c, d]."""
        self.mass[: p.shape[1]] += p.sum(0)
        self.outer[: p.shape[1]].addmm_(p.T, x)

    def add(self, ids: torch.Tensor, p: torch.Tensor, x: torch.Tensor) -> None:
        """Probabilities of some words [c, k]."""
        self.mass.index_add_(0, ids.flatten(), p.flatten())
        self.outer.index_add_(0, ids.flatten(), (p[..., None] * x[:, None]).flatten(0, 1))


@torch.inference_mode()
def one_batch(
    teacher: Any,
    student: Any,
    batch: dict[str, torch.Tensor],
    draws: int,
    vocabulary: int,
    seed: int,
) -> dict[str, list[dict[str, float]]]:
    """By case, for each draw: the two cosines, and KL(all words || the head, the rest spread evenly)."""
    (its, its_stop), (mine, my_stop) = states_of(teacher, batch), states_of(student, batch)
    weight = my_stop.head.linear.weight
    keys = [(name, draw) for name, case in CASES.items() for draw in range(draws if case[2] else 1)]
    sums = {key: Sums(weight) for key in [*keys, *((name, 0) for name in DISTILLKIT)]}
    of_student, exact = Sums(weight), Sums(weight)
    random = torch.Generator().manual_seed(seed)
    for start in range(0, len(its), CHUNK):
        some = slice(start, start + CHUNK)
        logits, x = its_stop.head(its[some])[:, :vocabulary], mine[some]
        logs = logits.log_softmax(-1)
        of_student.add_all(my_stop.head(x).softmax(-1), x)
        exact.add_all(logs.exp(), x)
        for key, found in sums.items():
            if key[0] in DISTILLKIT:
                ids, p = distillkit(logs, DISTILLKIT[key[0]])
                found.add(ids, p, x)
                found.kl += spread(logs, ids, p)
                continue
            kind, head, sampled, bits = CASES[key[0]]
            form = Format(kind, head, sampled, bits, vocabulary)
            uniform = torch.rand(len(x), sampled, generator=random).to(x.device)
            words = unpack(pack(logits, form, uniform), form)
            if isinstance(words, torch.Tensor):
                p = words.float().softmax(-1)
                found.add_all(p, x)
                found.kl += float((logs.exp() * (logs - words.float().log_softmax(-1))).sum())
            else:
                found.add(words.ids, weights_of(words), x)
                if kind == "top_k":  # the loss moves the student's tail as one, in proportion to what it has there
                    found.add_all(tail_of_student(my_stop.head(x), words), x)
                found.kl += spread(logs, words.ids[:, :head], words.logs.exp())
    truth = (of_student.outer - exact.outer, (of_student.mass - exact.mass) @ weight)
    result: dict[str, list[dict[str, float]]] = {}
    for (name, _), found in sums.items():
        given = (of_student.outer - found.outer, (of_student.mass - found.mass) @ weight)
        cosines = [cosine(a, b) for a, b in zip(given, truth, strict=True)]
        entry = {"head weights": cosines[0], "last states": cosines[1], "kl": found.kl / len(its)}
        result.setdefault(name, []).append(entry)
    return result


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two tensors; summed in float64, as millions of products are."""
    products = [float((x.double() * y.double()).sum()) for x, y in ((a, b), (a, a), (b, b))]
    return products[0] / (products[1] * products[2]) ** 0.5


def tail_of_student(logits: torch.Tensor, words: SparseWords) -> torch.Tensor:
    """The teacher's tail mass spread as the student spreads its own [c, V]: what one bucket for the rest amounts to."""
    q = logits.softmax(-1).scatter(-1, words.ids, 0.0)
    return q * (words.tail[:, None] / q.sum(-1, keepdim=True).clamp(min=1e-9))


def spread(logs: torch.Tensor, ids: torch.Tensor, p: torch.Tensor) -> float:
    """KL(all words || p at ids, what is left spread evenly over the others), summed over tokens, nats."""
    left = (1 - p.sum(-1, keepdim=True)).clamp(min=1e-6)
    others = logs.shape[-1] - ids.shape[-1]
    guess = (left / others).log().expand_as(logs).scatter(-1, ids, p.clamp(min=1e-12).log())
    return float((logs.exp() * (logs - guess)).sum())


def rates(teacher: Any, batch: dict[str, torch.Tensor], vocabulary: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of packing (logits given) and unpacking, all formats in turn."""
    with torch.inference_mode():
        states, stop = states_of(teacher, batch)
        logits = stop.head(states[:512])[:, :vocabulary].cpu()
    count = len(logits)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, (kind, head, sampled, bits) in CASES.items():
            form, uniform = Format(kind, head, sampled, bits, vocabulary), torch.rand(count, sampled)
            started = time.perf_counter()
            packed = torch.cat([pack(logits[k : k + 64], form, uniform[k : k + 64]) for k in range(0, count, 64)])
            between = time.perf_counter()
            unpack(packed, form)
            times[name].append((between - started, time.perf_counter() - between))
    medians = {name: np.median(np.array(each), 0) for name, each in times.items()}
    return {name: {"pack": count / float(each[0]), "unpack": count / float(each[1])} for name, each in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--student", help="a distilled student; the teacher without --drop layers when not given")
    parser.add_argument("--drop", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    opened = open_causal(options.teacher)
    depth = opened.model.config.num_hidden_layers
    if options.student is None:
        student = keep_layers(opened.model, layers_of_pattern("spaced", depth, depth - options.drop))
        about = f"the student is the teacher without {options.drop} of its {depth} layers, untrained"
    else:
        student = open_causal(options.student).model
        about = f"the student has {student.config.num_hidden_layers} of its {depth} layers, distilled"
    lines = [line for line in options.text.read_text("utf-8").split("\n") if line.strip()]
    encoded = encode_text(Dataset.from_dict({"text": lines}), opened.tokenizer, 256)
    vocabulary = max(opened.tokenizer.get_vocab().values()) + 1
    collate, each = CausalBatches(opened.tokenizer), options.tokens // 256
    order = np.random.default_rng(0).permutation(len(encoded))
    for model in (opened.model, student):
        model.to(hardware.device(), torch.float32)
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(options.batches):
        batch = collate([encoded[int(row)] for row in order[number * each : (number + 1) * each]])
        for name, draws in one_batch(opened.model, student, batch, options.draws, vocabulary, number).items():
            means = {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0]}
            found.setdefault(name, []).append(means)
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if found:
        result = {"machine": hardware.describe(), "teacher": Path(options.teacher).name, "student": about}
        result |= {"tokens": options.tokens, "batches": options.batches, "draws": options.draws, "formats": {}}
    for name, batches in found.items():
        width = 312 if name in DISTILLKIT else Format(*CASES[name], vocabulary).width
        figures = {key: interval([b[key] for b in batches]) for key in ("head weights", "last states", "kl")}
        result["formats"][name] = {"bytes": width, **figures}
    if options.rounds:
        batch = collate([encoded[int(row)] for row in order[:each]])
        result["machine of the rates"] = hardware.describe()
        for name, speed in rates(opened.model, batch, vocabulary, options.rounds).items():
            result["formats"][name] |= speed
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for name, entry in result["formats"].items():
        told = " ".join(f"{key} {entry[key]['mean']:.4f}" for key in ("head weights", "last states", "kl"))
        print(f"{name:18} {entry['bytes']:6} B  {told}  pack {entry.get('pack', 0):,.0f}/s")


if __name__ == "__main__":
    main()
