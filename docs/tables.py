"""The measured tables of the pages, but for those of encoder systems, as Markdown, from benchmarks/results."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def fill(text: str) -> str:
    """A page with each `<!-- table: NAME -->` filled in."""
    end = "<!-- end of table -->"
    for name in re.findall(r"<!-- table: ([\w-]+) -->", text):
        start = f"<!-- table: {name} -->"
        before, _, rest = text.partition(start)
        after = rest.partition(end)[2] if end in rest else rest
        file = FILES.get(name, name.replace("-", "_"))
        path = RESULTS / f"{file}.json"
        content = TABLES[name](json.loads(path.read_text("utf-8"))) if path.exists() else "Not measured yet."
        text = f"{before}{start}\n{content}\n{end}{after}"
    return text


def words(found: dict[str, Any]) -> str:
    """What each format of kept words loses."""
    rows = [["", "bytes a token", "cosine at the head's weights", "cosine at the last states", "KL", "packed", "read"]]
    for name, each in found["formats"].items():
        cells = [_span(each[key], 4) for key in ("head weights", "last states")]
        rates = [f"{each[key]:,.0f}/s" if key in each else "" for key in ("pack", "unpack")]
        rows.append([name, f"{each['bytes']:,}", *cells, f"{each['kl']['mean']:.4f}", *rates])
    note = (
        f"{found['batches']} batches of {found['tokens']:,} tokens, {found['draws']} draws each; means with 95 % t "
        f"intervals over batches. Teacher {found['teacher']}; {found['student']}. KL is that of all words from what is "
        "kept, the rest spread evenly, in nats a token. "
    )
    return markdown(rows) + f"\n\n{note}On {machine(found)}, by `python benchmarks/words.py`."


def students(found: dict[str, Any]) -> str:
    """Half of a language model's layers, by what it learnt from."""
    lambada = found["teacher's lambada"] is not None
    header = ["", "KL to the teacher", "perplexity", "accuracy", "agrees with teacher"]
    rows = [header + (["LAMBADA accuracy", "LAMBADA perplexity"] if lambada else []) + ["seeds"]]
    teacher = found["rows"][0]["teacher"]
    cells = ["teacher", "", f"{teacher['perplexity']:.2f}", f"{100 * teacher['accuracy']:.1f} %", ""]
    if lambada:
        its = found["teacher's lambada"]
        cells += [f"{100 * its['acc']:.1f} %", f"{its['perplexity']:.1f}"]
    rows.append([*cells, ""])
    for each in found["table"]:
        cells = [each["row"], _span(each["kl"], 3), _span(each["perplexity"], 1)]
        cells += [percent(each[key]) for key in ("accuracy", "agreement")]
        if "lambada acc" in each:
            cells += [percent(each["lambada acc"]), _span(each["lambada perplexity"], 0)]
        elif lambada:
            cells += ["", ""]
        rows.append([*cells, str(len(each["seeds"]))])
    passes = "one pass" if found["epochs"] == 1 else f"{found['epochs']:g} passes"
    note = (
        f"{found['tokens']:,} tokens of Wikipedia in examples of {found['length']}, batches of {found['batch_size']}, "
        f"{passes}; {found['examples']} held-out examples. Means with 95 % t intervals over seeds, each with its own "
        "text. "
    )
    if lambada:
        note += f"LAMBADA's first {found['lambada examples']:,} examples. "
    machines = "; ".join(dict.fromkeys(machine(row) for row in found["rows"]))
    command = "python benchmarks/language_students.py" + (
        f" --epochs {found['epochs']:g} --tokens {found['tokens']}" if found["epochs"] != 1 else ""
    )
    return markdown(rows) + f"\n\n{note}On {machines}, by `{command}`."


def label_rules(found: dict[str, Any]) -> str:
    """Classifiers with and without rules."""
    if "labels" not in found:
        return "Not measured yet."
    rows = [["", "test", "use", "accuracy", "breaks a hard rule", "breaks a soft rule", "over the plain student"]]
    for each in found["labels"]["table"]:
        cells = [percent(each[key]) for key in ("accuracy", "hard", "soft")]
        points = _points(each.get("over the plain student"))
        rows.append([each["model"], each["test"], each["use"], *cells, points])
    return markdown(rows) + f"\n\nOn {machine(found['labels'])}, by `python benchmarks/rules.py`."


def text_rules(found: dict[str, Any]) -> str:
    """Generated answers with and without rules."""
    if "text" not in found:
        return "Not measured yet."
    rows = [
        ["model", "way of answering", "breaks a hard rule", "breaks a soft rule", "right", "answers a second", "of"]
    ]
    ends: dict[str, str] = {}
    for each in found["text"]:
        cells = [f"{100 * each[key]:.1f} %" for key in ("hard", "soft", "accuracy")]
        rate = f"{each['per second']:.2f}" if "per second" in each else ""
        rows.append([each["model"], each["way"], *cells, rate, f"{each['examples']:,}"])
        ends[each["model"]] = f"end after {each['longest']} tokens, on {machine(each)}"
    notes = "; ".join(f"those of {model} {end}" for model, end in ends.items())
    note = f"Answers that are cut break the hard rule: {notes}; by `python benchmarks/rules.py`."
    return markdown(rows) + f"\n\n{note}"


def figurative(found: dict[str, Any]) -> str:
    """Both forms of the Figurative Distiller from end to end."""
    heads = ["accuracy", "perplexity", "KL to the teacher", "agrees with teacher"]
    rows = [["", *heads, "breaks a hard rule", "a soft one", "held to rules: hard", "soft", "accuracy", "seeds"]]
    for each in found["table"]:
        cells = [percent(each["accuracy"]), _span(each["perplexity"], 1)]
        compared = each["row"] != "teacher"
        cells += [_span(each["kl"], 3) if compared else "", percent(each["agreement"]) if compared else ""]
        cells += [percent(each[kind]) for kind in ("hard", "soft")]
        cells += [percent(each[f"held {kind}"]) if f"held {kind}" in each else "" for kind in ("hard", "soft")]
        rows.append([each["row"], *cells, _points(each.get("held accuracy")), str(len(each["seeds"]))])
    note = (
        f"{found['prompts']} requests, one pass a stage; accuracy to agreement are of the next token of the data's "
        "answers to 100 others, rules of 64 answers. Means with 95 % t intervals over seeds. "
    )
    return markdown(rows) + f"\n\n{note}On {machine(found)}, by `python benchmarks/figurative.py`."


def benchmarks(found: dict[str, Any]) -> str:
    """The paper's four tables, ours beside them."""
    parts = [f"**{title.capitalize()}**\n\n{markdown(rows)}" for title, rows in found["tables"].items()]
    settings = found["settings"]
    limit = "all" if settings["limit"] is None else f"{settings['limit']:,}"
    note = (
        f"The rows named *paper* are {found['paper']}'s own figures, not measured here. {limit} examples of each, "
        f"{settings['shots']} shots; ± is the standard error over examples. "
    )
    return "\n\n".join([*parts, f"{note}On {machine(found)}, by `python benchmarks/llm.py`."])


def peer_trl(found: dict[str, Any]) -> str:
    """The same training by Limbeck and by TRL."""
    parts = []
    for kind, job in found.items():
        rows = [["", "tokens a second", "over TRL's", "peak memory above the weights", "over TRL's"]]
        rates, peaks = job["tokens per second"], job["peak bytes above the weights"]
        for side, rate in rates.items():
            peer = "trl, checkpointing" if side.endswith("checkpointing") else "trl"
            cells = ["", _range(job["speed"].get(f"{side} over {peer}"), "x")]
            cells += ["", _range(job["memory"].get(f"{side} over {peer}"), "x")]
            cells[0] = f"{rate['median']:,.0f}"
            cells[2] = f"{peaks[side]['median'] / 1e6:,.0f} MB" if side in peaks else ""
            rows.append([side, *cells])
        options, told, versions = job["options"], job["job"], job["versions"]
        parts.append(
            f"**{kind.capitalize()}**\n\n{markdown(rows)}\n\n{told['student']['layers']} layers of "
            f"{told['teacher']['name']}, updates of {options['batch']} examples of up to {options['length']} tokens, "
            f"of which {told['predicted'] / sum(told['tokens']):.0%} are to be predicted; medians of "
            f"{options['rounds']} rounds of one interleaved run, ratios with their range. The losses of both sides "
            f"differ by {job['largest difference of losses']:.0e} at most. TRL {versions['trl']}, transformers "
            f"{versions['transformers']}, on {machine(job)}, by `python benchmarks/peer_trl.py`."
        )
    return "\n\n".join(parts)


def active(found: dict[str, Any]) -> str:
    """Students by the number of queries and how they were chosen."""
    rows = [["queries", "chosen by", "accuracy", "agrees with teacher", "over random", "seeds"]]
    for each in found["table"]:
        points = _points(each.get("over random"))
        cells = [percent(each[key]) for key in ("accuracy", "agreement")]
        rows.append([f"{each['budget']:,}", each["choose"], *cells, points, str(len(each["seeds"]))])
    its, teacher = found["settings"], found["table"][0]["teacher"]["mean"]
    note = (
        f"SST-2's test split; the teacher {found['teacher']} is right in {100 * teacher:.1f} %, the student starts "
        f"from {found['student']}. {its['rounds']} rounds, {its['epochs']:g} epochs. Means over seeds with 95 % t "
        "intervals, differences in points, paired by seed. "
    )
    return markdown(rows) + f"\n\n{note}On {machine(found)}, by `python benchmarks/active.py`."


def api_calls(found: dict[str, Any]) -> str:
    """What a server that fails was asked and charged, and how long it took."""
    rows = [["", "texts", "labelled", "requests", "useful answers charged", "charged twice", "seconds", "fastest"]]
    for name, each in (("one run", found["whole"]), ("killed", found["killed"])):
        title = name if not each["kills"] else f"killed {each['kills']} times"
        counts = [f"{each[key]:,}" for key in ("calls", "labelled right", "requests", "useful answers charged")]
        twice = str(each["texts charged twice for a useful answer"])
        rows.append([title, *counts, twice, f"{each['seconds']:.1f}", f"{each['fastest possible']:.1f}"])
    whole, share = found["whole"], sum(found["chance"].values())
    note = (
        f"A local server that allows {whole['rate']:g} requests per second, of which {100 * share:.1f} % meet 429 "
        "with or without Retry-After, 500, 503, an answer too late, cut off, torn, or none of the labels. *Fastest* is "
        f"all texts at its rate, as if none failed; one run took {100 * whole['over the fastest']:.1f} % longer. "
    )
    return markdown(rows) + f"\n\n{note}On {machine(found)}, by `python benchmarks/api_calls.py`."


def images(part: str) -> Callable[[dict[str, Any]], str]:
    """A part of the benchmark of images."""

    def table(found: dict[str, Any]) -> str:
        if part not in found:
            return "Not measured yet."
        rows = [["", "accuracy", "over the same without a teacher", "parameters", "seeds"]]
        for each in found[part]["table"]:
            points = _points(each.get("over the control"))
            count = f"{each['parameters']:,}"
            rows.append([each["row"], percent(each["accuracy"]), points, count, str(len(each["seeds"]))])
        closed = [f"{e['row']}: {percent(e['gap closed'])}" for e in found[part]["table"] if "gap closed" in e]
        note = f"Of the gap between one and all is closed by {'; '.join(closed)}. " if closed else ""
        if part == "deit":
            its = found[part]
            note = f"{its['images']:,} images of CIFAR-10's first {its['classes']} classes, {its['epochs']:g} epochs. "
        note += "Test split; means over seeds with 95 % t intervals, differences in points, paired by seed. "
        return markdown(rows) + f"\n\n{note}On {machine(found[part])}, by `python benchmarks/images.py`."

    return table


def bilstm(found: dict[str, Any]) -> str:
    """A BiLSTM on SST-2 by what it learnt from."""
    teacher = found["teacher"]
    header = ["learnt from", "texts", "accuracy", "kept", "agrees with teacher", "over no teacher", "over logits"]
    rows = [[*header, "steps", "seeds"]]
    for each in found["table"]:
        cells = [percent(each[key]) for key in ("accuracy", "retention", "agreement")]
        cells += [_points(each.get(f"over {other}")) for other in ("no teacher", "logits")]
        rows.append(
            [each["row"], f"{each['texts']:,}", *cells, f"{each['steps']['mean']:,.0f}", str(len(each["seeds"]))]
        )
    last = found["table"][-1]
    ratio = teacher["outside the embeddings"] / last["outside the embeddings"]
    vectors = f"the word vectors {found['vectors']}" if found["vectors"] else "the teacher's embeddings"
    note = (
        f"SST-2 test. The teacher, a {teacher['kind']}, has an accuracy of {100 * teacher['accuracy']:.1f} % and "
        f"{teacher['outside the embeddings'] / 1e6:.1f}M parameters outside its embeddings; the student, on {vectors}, "
        f"{last['outside the embeddings'] / 1e6:.2f}M, {ratio:.0f} times fewer. Altered texts are up to "
        f"{found['copies']} copies of each. Every row keeps the checkpoint that was best on dev. Means over seeds with "
        "95 % t intervals, differences in points, paired by seed. "
    )
    return markdown(rows) + f"\n\n{note}On {machine(found)}, by `python benchmarks/bilstm.py`."


def tables(found: dict[str, Any]) -> str:
    """A small network on made-up rows of tables."""
    names = [name for name in ("digits", "clusters") if name in found]
    rows = [["learnt from", *(cell for name in names for cell in (name, "over labels"))]]
    for place, first in enumerate(found[names[0]]["table"]):
        cells = [first["row"]]
        for name in names:
            each = found[name]["table"][place]
            cells += [percent(each["accuracy"]), _points(each.get("over labels"))]
        rows.append(cells)
    seeds = len(found[names[0]]["table"][-1]["seeds"])
    sets = {
        "digits": "half of scikit-learn's 1,797 images as 64 numbers",
        "clusters": "1,000 rows of `make_classification` in four classes of four clusters each",
    }
    told = "; ".join(f"`{name}`: {sets[name]}" for name in names)
    note = (
        f"Accuracy of rows that nobody learnt from. {told}. MUNGE with a probability of 0.2 and a sharpness of 4, "
        f"chosen on other splits. The teacher is ExtraTrees of {found['trees']} trees, the student 256 units. "
        f"Every row takes {found['steps']:,} steps. Means over {seeds} seeds, each with its own split or rows, with "
        "95 % t intervals; differences in points, paired by seed. "
    )
    return markdown(rows) + f"\n\n{note}On {machine(found)}, by `python benchmarks/tables.py`."


def peers(found: dict[str, Any]) -> str:
    """Other ways to distil a classifier, by how many times as long they take."""
    rows = [["", "against", "times as long", "Limbeck's accuracy over its", "examples", "rounds"]]
    for case, each in found["cases"].items():
        for name, ratio in each["over limbeck"].items():
            better = each.get("accuracy over", {}).get(name)
            cells = [_range(ratio, ""), _points(better) if better else "", f"{each['examples']:,}", str(each["rounds"])]
            rows.append([case, name, *cells])
    machines = dict.fromkeys(machine(each) for each in found["cases"].values())
    note = (
        "Medians and extremes over the rounds of one interleaved run for each case; accuracy in points (of pairs "
        "Spearman's correlation times 100), with 95 % t intervals over the rounds, each with a seed of its own. On "
        f"{'; '.join(machines)}, by "
    )
    return markdown(rows) + f"\n\n{note}`python benchmarks/peers.py`."


def processes(found: dict[str, Any]) -> str:
    """Two processes' rates over one's, and Ray's workers' over theirs."""
    rows, machines = [["", "against", "rate", "batch", "examples", "rounds"]], []
    ray = found.get("ray")
    for batch, both in found.get("processes", {}).items():
        counts = [batch, f"{both['examples']:,}", str(both["rounds"])]
        rows += [
            [f"{name}, 2 processes", "1 process", _range(both["times"][name], ""), *counts] for name in both["times"]
        ]
        machines.append(machine(both))
    if ray:
        few, many = ray["sizes"]
        for size in ray["whole"]:
            counts = ["", f"{int(size):,}", str(ray["rounds"])]
            rows.append(["labelling, Ray", "2 processes", _range(_inverse(ray["whole"][size]), ""), *counts])
        rate = _range(_inverse(ray["beyond the first quarter"]), "")
        rows.append(
            ["labelling, Ray, without its start", "2 processes", rate, "", f"{many - few:,}", str(ray["rounds"])]
        )
        machines.append(machine(ray))
    note = (
        "Processes and workers of one thread each, the same global batch; medians and extremes over rounds. On "
        f"{'; '.join(dict.fromkeys(machines))}, by "
    )
    return markdown(rows) + f"\n\n{note}`python benchmarks/processes.py`."


def overhead(found: dict[str, Any]) -> str:
    """An update's time above the floor, and where it goes."""
    parts = list(next(iter(found["batches"].values()))["shares"])
    rows = [["batches of", "an update", "above the floor", *parts]]
    for batch, each in found["batches"].items():
        above = _range({name: 100 * value for name, value in each["above the floor"].items()}, " %")
        shares = [f"{100 * each['shares'][name]:.1f} %" for name in parts]
        rows.append([batch, f"{each['milliseconds']:.0f} ms", above, *shares])
    note = (
        f"Medians and extremes over {found['rounds']} runs of 30 updates; shares are of 20 more, under PyTorch's "
        f"profiler. On {machine(found)}, by "
    )
    return markdown(rows) + f"\n\n{note}`python benchmarks/overhead.py`."


def gpu(found: dict[str, Any]) -> str:
    """What each device gets out of each path."""
    rows = [["device", "case", "path", "tokens per second", "of the roofline", "peak memory"]]
    notes = []
    for device, each in found.items():
        notes.append(f"{device}: {each['date']}, {each['batch']} texts of {each['length']} tokens")
        for case, paths in each["cases"].items():
            for path, figures in paths.items():
                peak = figures["peak bytes"]
                cells = [f"{figures['tokens per second']:,.0f}", f"{100 * figures['of the roofline']:.0f} %"]
                rows.append([device, case, path, *cells, "" if peak is None else f"{peak / 1e6:,.0f} MB"])
    return markdown(rows) + f"\n\n{'; '.join(notes)}. By `python benchmarks/gpu.py`."


def _inverse(ratio: dict[str, float]) -> dict[str, float]:
    return {"median": 1 / ratio["median"], "low": 1 / ratio["high"], "high": 1 / ratio["low"]}


def candidates(found: dict[str, Any]) -> str:
    """Ways to ask a teacher, and how much of training's batches is padding."""
    rows = [["a teacher's forward pass", "rate", "probabilities are off by"]]
    for name, each in found["labelling"].items():
        rows.append([name, _range(each["rate"], ""), f"{100 * each['mean distance']:.3f} points"])
    padded = " and ".join(f"{100 * share:.1f} % in batches of {size}" for size, share in found["padding"].items())
    note = (
        f"Rates over the first row's, medians and extremes of {found['rounds']} rounds, all ways in turn; "
        f"{found['examples']:,} of SST-2's sentences sorted by length, in batches of {found['batch_size']}. Of a "
        f"training epoch's tokens padding is {padded}. On {machine(found)}, by "
    )
    return markdown(rows) + f"\n\n{note}`python benchmarks/candidates.py`."


def plan(found: dict[str, Any]) -> str:
    """What was predicted of students, over what was found."""
    names = {"latency_ms": "latency", "training_seconds": "training", "knowledge_bytes": "knowledge"}
    rows = [["student", "recipe", *names.values()]]
    units = {"latency_ms": ("ms", 1.0), "training_seconds": ("s", 1.0), "knowledge_bytes": ("MB", 1e-6)}
    for each in found["rows"]:
        cells = []
        for name in names:
            unit, scale = units[name]
            said, was = (scale * statistics.median(each[name][key]) for key in ("predicted", "found"))
            ratio = [f"{round(100 * (each[name]['ratio'][key] - 1)):+d}" for key in ("median", "low", "high")]
            cells.append(f"{said:.1f} {unit}, was {was:.1f}: {ratio[0]} % ({ratio[1]} to {ratio[2]})")
        rows.append([each["student"], each["recipe"], *cells])
    note = f"SST-2's sentences, {found['epochs']:g} epoch of each stage; medians and extremes of {found['rounds']} "
    note += f"rounds, each with a plan and runs of its own. On {machine(found)}, by "
    return markdown(rows) + f"\n\n{note}`python benchmarks/plan.py`."


def stores(found: dict[str, Any]) -> str:
    """Opening, verifying and reading a large store; labelling by size."""
    read, size = found["reading"], found["verifying"]["bytes"] / 1e6
    own = [each / 1e6 for each in read["bytes after 0, 200 and 2,000 batches"]]
    rows = [
        [f"a store of {found['rows']:,} examples ({size:,.0f} MB)", ""],
        ["opened", f"{1e3 * found['opening']['seconds']:.0f} ms"],
        ["opened, and an example read", f"{1e3 * found['opening']['with one example']:.0f} ms"],
        ["all digests compared", f"{found['verifying']['seconds']:.1f} s"],
        ["examples read at random", f"{read['rows a second']:,.0f}/s"],
        ["memory beside the mapped files, before and after 512,000 examples", f"{own[0]:,.0f} and {own[2]:,.0f} MB"],
    ]
    rows += [
        [f"labelling {each['texts']:,} texts, the most memory beyond the models", f"{each['bytes'] / 1e6:,.0f} MB"]
        for each in found["labelling"]
    ]
    return markdown(rows) + f"\n\nOn {machine(found)}, by `python benchmarks/stores.py`."


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "words": words,
    "language-students": students,
    "language-passes": students,
    "label-rules": label_rules,
    "text-rules": text_rules,
    "figurative": figurative,
    "llm": benchmarks,
    "peer-trl": peer_trl,
    "active": active,
    "api-calls": api_calls,
    "bilstm": bilstm,
    "tables": tables,
    "images-trees": images("trees"),
    "images-ensemble": images("ensemble"),
    "images-deit": images("deit"),
    "peers": peers,
    "plan": plan,
    "processes": processes,
    "candidates": candidates,
    "overhead": overhead,
    "gpu": gpu,
    "stores": stores,
}
FILES = {
    "label-rules": "rules",
    "text-rules": "rules",
    "images-trees": "images",
    "images-ensemble": "images",
    "images-deit": "images",
}
"""The file of results where it has another name than the table."""


def machine(found: dict[str, Any]) -> str:
    """What figures were measured on."""
    its = found["machine"]
    what = f"one {its['gpu']}" if its["gpu"] else f"{its['cores']} cores of {its['cpu']}"
    return f"{what} ({'; '.join(filter(None, (its['precision'], its.get('note'))))})"


def markdown(rows: list[list[str]]) -> str:
    """A table, of which the first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _half(figure: dict[str, Any], scale: float, digits: int) -> str:
    return "" if figure["half"] is None else f" ± {scale * figure['half']:.{digits}f}"


def _span(figure: dict[str, Any], digits: int) -> str:
    return f"{figure['mean']:.{digits}f}{_half(figure, 1, digits)}"


def _points(gain: dict[str, Any] | None) -> str:
    """A difference of shares, in points; nothing of what there is none."""
    return "" if gain is None else f"{100 * gain['mean']:+.1f}{_half(gain, 100, 1)}"


def _range(figure: dict[str, float] | None, unit: str) -> str:
    if figure is None:
        return ""
    return f"{figure['median']:.2f}{unit} ({figure['low']:.2f} to {figure['high']:.2f})"


def percent(figure: dict[str, Any]) -> str:
    """A mean over seeds with its interval, in per cent."""
    return f"{100 * figure['mean']:.1f}{_half(figure, 100, 1)} %"
