"""Writes docs/recipe.md from the recipe's schema: `make docs`. A test compares the two."""

from __future__ import annotations

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


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(render(), "utf-8")
