"""Writes docs/recipe.md from the schema, the figures of README and the pages from benchmarks/results: `make docs`.

A test compares what is there with what this writes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tables

from limbeck.recipe import json_schema, packaged

INTRO = """# The recipe

<!-- Made by `make docs` from src/limbeck/recipe/schema.py, data.py, teacher.py, served.py and terms.py. -->

A recipe is a whole run as one YAML file. The plain case:

```yaml
teacher: runs/teacher          # a model folder, a run's folder, or a name on the hub
data: reviews.csv              # csv, tsv, jsonl, parquet, a saved datasets folder, or a name on the hub
student: {layers: 3}
output: runs/a
stages:
  - name: distill
    objectives:
      soft_targets: {weight: 0.9, temperature: 2}
      hard_labels: 0.1
```

A packaged method brings its stages along, so that on the command line the same run is

```sh
limbeck distill hinton teacher=runs/teacher data=reviews.csv student.layers=3 output=runs/a
```

- `key=value` sets any entry; dots go down, list items go by number or by `name`:
  `stages.distill.objectives.soft_targets.temperature=4`.
- Where a section has a *short form*, a bare value sets that field: `data: reviews.csv` is `data: {train: reviews.csv}`.
- Unknown keys are refused with the nearest known name, before anything is loaded.
- `limbeck schema > recipe.schema.json` gives editors completion.
- Packaged methods: METHODS (`limbeck methods show NAME` prints one).
"""


def kind(entry: dict[str, Any]) -> str:
    """A field's type for reading."""
    if "$ref" in entry:
        name = entry["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(kind(each) for each in entry["anyOf"] if each.get("type") != "null"))
    if entry.get("type") == "array":
        return f"list of {kind(entry.get('items', {}))}"
    limits = [f"{word} {entry[key]}" for key, word in LIMITS.items() if key in entry]
    return " ".join([NAMES.get(entry.get("type", ""), "any value"), *limits])


NAMES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
}
LIMITS = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "up to"}


def section(name: str, schema: dict[str, Any], short: str | None) -> list[str]:
    """One section's heading and table."""
    lines = [f"## {name}", "", schema.get("description", "").strip()]
    if short:
        lines += ["", f"Short form: a bare value is `{short}`."]
    lines += ["", "| key | what | values | default |", "|---|---|---|---|"]
    for key, entry in schema["properties"].items():
        default = entry.get("default")
        shown = "needed" if key in schema.get("required", []) else "" if default is None else f"`{default}`"
        if isinstance(default, dict):  # a section's own defaults stand in its own table
            shown = "" if "$ref" in entry or not default else f"`{default}`".replace("'", "")
        described = " ".join(entry.get("description", "").split())  # a row is a line
        lines.append(f"| `{key}` | {described} | {kind(entry)} | {shown} |")
    return [*lines, ""]


def render() -> str:
    """The whole page."""
    from limbeck.recipe import data, schema, teacher, terms

    whole = json_schema()
    methods = ", ".join(f"`{name}`" for name in packaged())
    lines = [INTRO.replace("METHODS", methods)]
    lines += section("Recipe", whole, None)
    for name, definition in whole["$defs"].items():
        definition = next((e for e in definition.get("anyOf", []) if "properties" in e), definition)
        model = next(getattr(room, name) for room in (data, schema, teacher, terms) if hasattr(room, name))
        lines += section(name, definition, model.shorthand)
    return "\n".join(lines).rstrip() + "\n"


ROOT = Path(__file__).parent.parent
MODELS = {
    "teacher": "teacher (6 layers)",
    "student": "**student (3 layers)**",
    "baseline": "same student, no teacher",
    "student_onnx": "student, ONNX",
    "student_int8": "student, int8 ONNX",
}


def results() -> str:
    """The README's table of the demo over several seeds."""
    found = json.loads((ROOT / "benchmarks/results/demo_seeds.json").read_text("utf-8"))
    figure, seeds, size = found["figures"], len(found["seeds"]), found["examples"]
    lines = [
        "| | accuracy | kept | agrees with teacher | KL | size | latency | throughput |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in MODELS.items():
        get = {key.split(".")[1]: value for key, value in figure.items() if key.startswith(f"{name}.")}
        teacher = name == "teacher"
        cells = [
            _percent(get["accuracy"]),
            "" if teacher else _percent(get["retention"]),
            "" if teacher else _percent(get["agreement"]),
            "" if teacher else f"{get['kl']['mean']:.3f}",
            f"{get['megabytes']['mean']:.0f} MB",
            "1x" if teacher else f"{get['speedup']['mean']:.1f}x faster",
            "1x" if teacher else f"{get['throughput_ratio']['mean']:.1f}x",
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    gain, right = figure["agreement gained over the baseline"], figure["accuracy gained over the baseline"]
    lines += [
        "",
        f"Movie-review sentences, {size['train']:,} to train on and {size['test']:,} to test on; means over {seeds} "
        "seeds (split, teacher and student) with 95 % t intervals; latency at batch size 1, throughput at 32, on "
        f"{tables.machine(found)}. The teacher's outputs add {100 * gain['mean']:.1f} points of agreement "
        f"({100 * gain['low']:.1f} to {100 * gain['high']:.1f}) over the same student trained on the labels alone, and "
        f"{100 * right['mean']:.1f} of accuracy ({100 * right['low']:.1f} to {100 * right['high']:.1f}). "
        "By `python benchmarks/demo_seeds.py`.",
    ]
    return "\n".join(lines)


def speed() -> str:
    """The README's sentence on training speed."""
    cases = json.loads((ROOT / "benchmarks/results/peers.json").read_text("utf-8"))["cases"]
    found = cases.get("classification") or cases["classification, float32"]
    ratios = found["over limbeck"]

    def times(name: str) -> str:
        each = ratios[name]
        return f"{each['median']:.2f} times ({each['low']:.2f} to {each['high']:.2f})"

    told = "trainer, bfloat16"
    bfloat16 = f" ({times(told)} if it is told to use bfloat16, as Limbeck does by itself)" if told in ratios else ""
    return (
        f"Distilling half of all-MiniLM-L6-v2's layers on {found['examples']:,} sentences of SST-2 "
        f"({found['epochs']} epochs, batch size {found['batch_size']}; labelling, validation and checkpoints included) "
        "takes transformers' `Trainer` with "
        f"the teacher in its loss **{times('trainer')}** as long{bfloat16}, TextBrewer "
        f"{found['versions']['textbrewer']}'s `GeneralDistiller` {times('textbrewer, longest')} with batches padded to "
        "their longest sentence, and "
        f"{times('textbrewer, 128')} set up as in its own SST-2 notebook, which pads to 128 tokens; medians and "
        f"extremes of {found['rounds']} rounds of one interleaved run. On {tables.machine(found)}, by `python "
        "benchmarks/peers.py`. [More of it](docs/performance.md)."
    )


def language_speed() -> str:
    """The README's sentence on training a language model, where that was measured."""
    path = ROOT / "benchmarks/results/peer_trl.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if not found:
        return ""
    job = found.get("plain text") or next(iter(found.values()))
    fast, small = job["speed"]["limbeck over trl"], job["memory"]["limbeck over trl"]
    three = job["speed"]["limbeck, asking and 3 epochs over trl"]
    return (
        f"\n\nTraining half of {job['job']['teacher']['name']} on what the teacher said of each token is "
        f"**{fast['median']:.1f} times faster** ({fast['low']:.1f} to {fast['high']:.1f}) than TRL "
        f"{job['versions']['trl']}'s `GKDTrainer` on the same text with the same loss, {three['median']:.1f} times "
        f"over three epochs with the asking counted, in {small['median']:.0%} of its memory above the weights; see "
        f"[the whole table](docs/systems/sequence.md#against-trl). On {tables.machine(job)}, by "
        "`python benchmarks/peer_trl.py`."
    )


SYSTEMS = {
    "hinton": ("soft targets", "soft targets, augmented"),
    "distilbert": ("distilbert", "soft targets, random weights", "soft targets, general-distilled"),
    "pkd": ("pkd-skip", "pkd-last"),
    "tinybert": (
        "tinybert",
        "tinybert without augmentation",
        "tinybert without the intermediate stage",
        "tinybert without the general stage",
        "soft targets, general-distilled",
    ),
    "minilm": ("minilm", "minilmv2"),
    "well-read": ("well-read", "soft targets, pre-trained", "no teacher, pre-trained"),
    "layerdrop": ("layerdrop", "layerdrop without dropping"),
    "mobilebert": ("mobilebert",),
}
"""The rows of benchmarks/systems.py that a page of docs/systems shows beside the controls."""
CONTROLS = ("no teacher", "soft targets")
TEACHERS = {"minilm": "all-MiniLM-L6-v2", "mpnet": "all-mpnet-base-v2", "ib-bert": "an IB-BERT of 4 layers"}
STUDENTS = {
    "half": "half of the teacher's layers",
    "small": "a small student, from random weights",
    "thin": "a MobileBERT of 4 layers, from random weights",
}


def evidence(name: str) -> str:
    """A system's measured table, beside the same student without a teacher and with plain soft targets."""
    path = ROOT / "benchmarks/results/systems.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {"table": []}
    lines: list[str] = []
    note = "Test split; means over seeds with 95 % t intervals, differences in points, paired by seed"
    mine = SYSTEMS.get(name, ())
    groups = dict.fromkeys((e["group"], e["model"], e["task"]) for e in found["table"] if e["system"] in mine)
    for group in groups:
        rows = [e for e in found["table"] if (e["group"], e["model"], e["task"]) == group]
        rows = [e for e in rows if e["system"] in (*CONTROLS, *mine)]
        teacher = rows[0]["teacher"]["mean"]
        timed = any(entry.get("processor seconds") for entry in rows)
        if timed and "processor" not in note:
            note += "; the processor's time is that of the whole command"
        header = ["", "accuracy", "kept", "agrees with teacher", "over no teacher", "over soft targets", "parameters"]
        header += ["steps", *(["processor"] if timed else []), "seeds"]
        table = [header]
        for entry in rows:
            cells = [tables.percent(entry[key]) for key in ("accuracy", "retention", "agreement")]
            cells += [_points(entry.get(f"over {control}")) for control in CONTROLS]
            cells += [f"{entry['parameters'] / 1e6:.1f}M", f"{entry['steps']:,}"]
            spent = entry.get("processor seconds")
            cells += ["" if spent is None else f"{spent['mean'] / 60:.0f} min"] if timed else []
            table.append([entry["system"], *cells, str(len(entry["seeds"]))])
        what = f"{TEACHERS[group[1]]} (accuracy {100 * teacher:.1f} %), {STUDENTS[group[0]]}"
        lines += [f"**{group[2].upper()}, {what}**", "", tables.markdown(table)]
        runs = [r for r in found["rows"] if (r["group"], r["model"], r["task"]) == group]
        machines = dict.fromkeys(tables.machine(r) for r in runs if r["system"] in (*CONTROLS, *mine))
        fast = found.get("speed", {}).get(f"{group[0]}, {group[1]}")
        faster = (
            f" The student is {fast['times']:.1f} times as fast as the teacher, one text at a time." if fast else ""
        )
        lines += ["", f"On {'; '.join(machines)}.{faster}", ""]
    if not lines:
        return "Not measured yet."
    return "\n".join([*lines, f"{note}. By `python benchmarks/systems.py`."])


def costs() -> str:
    """What a step of each system costs, and what capturing costs."""
    found = json.loads((ROOT / "benchmarks/results/step_cost.json").read_text("utf-8"))
    lines = [
        "| step | over teacher's forward pass and student's plain step | 5 % to 95 % of steps |",
        "|---|---|---|",
        *(f"| {n} | {c['ratio']:.2f}x | {c['low']:.2f}x to {c['high']:.2f}x |" for n, c in found["steps"].items()),
    ]
    capture = found["capture"]
    hooks, attentions = capture["hooks over bare"], capture["output_attentions over bare"]
    return "\n".join(
        [
            *lines,
            "",
            f"Reading the last layer's queries, keys and values adds {hooks:.1f} ms to a forward pass of "
            f"{capture['bare']:.0f} ms, `output_attentions=True` {attentions:.0f} ms (32 texts of 128 tokens, "
            f"all-MiniLM-L6-v2). Medians of one interleaved run on {tables.machine(found)}, "
            "by `python benchmarks/step_cost.py`.",
        ]
    )


def _points(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    half = "" if figure["half"] is None else f" ± {100 * figure['half']:.1f}"
    return f"{100 * figure['mean']:+.1f}{half}"


def pages() -> list[Path]:
    """The pages that have, or may have, measured tables."""
    names = ("rules", "words", "api_teachers", "performance")
    return [*(ROOT / "docs/systems").glob("*.md"), *(ROOT / f"docs/{name}.md" for name in names)]


def page(text: str) -> str:
    """A page with its measured tables filled in."""
    text = tables.fill(text)
    if "<!-- costs -->" in text:
        before, _, rest = text.partition("<!-- costs -->")
        text = f"{before}<!-- costs -->\n{costs()}\n<!-- end of costs -->{rest.partition('<!-- end of costs -->')[2]}"
    for name in re.findall(r"<!-- evidence: ([\w-]+) -->", text):
        start, end = f"<!-- evidence: {name} -->", "<!-- end of evidence -->"
        before, _, rest = text.partition(start)
        after = rest.partition(end)[2] if end in rest else rest
        text = f"{before}{start}\n{evidence(name)}\n{end}{after}"
    return text


def _percent(figure: dict[str, float]) -> str:
    half = 100 * (figure["high"] - figure["mean"])
    return f"{100 * figure['mean']:.1f} ± {half:.1f} %"


def readme(text: str) -> str:
    """The README with its figures filled in."""
    for name, content in (("results", results()), ("speed", speed() + language_speed())):
        before, _, rest = text.partition(f"<!-- {name}: made by make docs -->")
        _, _, after = rest.partition(f"<!-- end of {name} -->")
        text = f"{before}<!-- {name}: made by make docs -->\n{content}\n<!-- end of {name} -->{after}"
    return text


if __name__ == "__main__":
    (ROOT / "docs/recipe.md").write_text(render(), "utf-8")
    (ROOT / "README.md").write_text(readme((ROOT / "README.md").read_text("utf-8")), "utf-8")
    for each in pages():
        each.write_text(page(each.read_text("utf-8")), "utf-8")
