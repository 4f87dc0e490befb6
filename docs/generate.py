"""Writes docs/recipe.md from the recipe's schema and the README's figures from benchmarks/results: `make docs`.

A test compares what is there with what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.recipe import json_schema, packaged

INTRO = """# The recipe

<!-- Made by `make docs` from src/limbeck/recipe/schema.py; change that. -->

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
        if isinstance(default, dict):
            shown = ""
        lines.append(f"| `{key}` | {entry.get('description', '')} | {kind(entry)} | {shown} |")
    return [*lines, ""]


def render() -> str:
    """The whole page."""
    from limbeck.recipe import schema as classes

    whole = json_schema()
    methods = ", ".join(f"`{name}`" for name in packaged())
    lines = [INTRO.replace("METHODS", methods)]
    lines += section("Recipe", whole, None)
    for name, definition in whole["$defs"].items():
        definition = next((e for e in definition.get("anyOf", []) if "properties" in e), definition)
        lines += section(name, definition, getattr(classes, name).shorthand)
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
        f"{_machine(found)}. The teacher's outputs add {100 * gain['mean']:.1f} points of agreement "
        f"({100 * gain['low']:.1f} to {100 * gain['high']:.1f}) over the same student trained on the labels alone, and "
        f"{100 * right['mean']:.1f} of accuracy ({100 * right['low']:.1f} to {100 * right['high']:.1f}). "
        "By `python benchmarks/demo_seeds.py`.",
    ]
    return "\n".join(lines)


def speed() -> str:
    """The README's sentence on training speed."""
    found = json.loads((ROOT / "benchmarks/results/peer_textbrewer.json").read_text("utf-8"))
    ratios, options = found["textbrewer over limbeck"], found["options"]
    documented, dynamic = ratios["max_length"], ratios["longest"]
    return (
        f"Training the demo's student ({options['examples']:,} sentences, {options['epochs']} epochs, "
        f"batch size {options['batch_size']}; labelling, "
        f"validation and checkpoints included) is **{documented['median']:.1f} times faster** "
        f"({documented['low']:.1f} to {documented['high']:.1f} over {options['rounds']} rounds of one interleaved "
        "run) than TextBrewer 0.2.1's `GeneralDistiller` set up as in its own SST-2 notebook, which pads every "
        "sentence to 128 tokens. Given batches padded to their own longest sentence, TextBrewer takes "
        f"{dynamic['median']:.1f} times as long ({dynamic['low']:.1f} to {dynamic['high']:.1f}). "
        f"On {_machine(found)}, by `python benchmarks/peer_textbrewer.py`."
    )


def _percent(figure: dict[str, float]) -> str:
    half = 100 * (figure["high"] - figure["mean"])
    return f"{100 * figure['mean']:.1f} ± {half:.1f} %"


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return f"{machine['cores']} cores of {machine['gpu'] or machine['cpu']} ({machine['precision']})"


def readme(text: str) -> str:
    """The README with its figures filled in."""
    for name, content in (("results", results()), ("speed", speed())):
        before, _, rest = text.partition(f"<!-- {name}: made by make docs -->")
        _, _, after = rest.partition(f"<!-- end of {name} -->")
        text = f"{before}<!-- {name}: made by make docs -->\n{content}\n<!-- end of {name} -->{after}"
    return text


if __name__ == "__main__":
    (ROOT / "docs/recipe.md").write_text(render(), "utf-8")
    (ROOT / "README.md").write_text(readme((ROOT / "README.md").read_text("utf-8")), "utf-8")
