"""From a file, a packaged method's name or a mapping, plus `key=value` overrides, to a checked recipe."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from limbeck.errors import InputError
from limbeck.recipe.schema import Recipe
from limbeck.recipe.sections import Section, nearest


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's booleans. To the older one `on`, `off`, `yes` and `no` are booleans, too: as keys and as labels."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_TRUTH = re.compile("^(?:true|True|TRUE|false|False|FALSE)$")
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", _TRUTH, list("tTfF"))


def read_yaml(text: str) -> Any:  # noqa: ANN401
    """A YAML text's content.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, _Yaml)


def packaged() -> dict[str, dict[str, Any]]:
    """The recipes that come with Limbeck, by name."""
    folder = resources.files("limbeck.recipes")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {Path(name).stem: read_yaml((folder / name).read_text("utf-8")) for name in names}


def load(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: a YAML file's path, a packaged method's name, the mapping itself, or a recipe.
        overrides: dotted keys and their values, such as `{"training.epochs": 1}`; list items by number or `name`. None
            drops an item of a list, such as a stage.

    Raises:
        InputError: the file is missing or not YAML, or the recipe does not fit the schema.
    """
    given = recipe.model_dump(exclude_unset=True) if isinstance(recipe, Recipe) else _read(recipe)
    raw = copy.deepcopy(dict(given))
    for key, value in (overrides or {}).items():
        _set(raw, key.split("."), copy.deepcopy(value), key)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["training.epochs=1", ...]` as a mapping; values are read as YAML."""
    overrides = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            overrides[key.strip()] = read_yaml(text) if text.strip() else None
        except yaml.YAMLError:
            raise InputError(f"the value of '{key}' is not YAML: {text}; quote it") from None
    return overrides


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, for editors. A stage's `training` is a partial `Training`."""
    schema = Recipe.model_json_schema()
    stage = schema["$defs"]["Stage"]["properties"]["training"]
    stage.update({"$ref": "#/$defs/Training"})
    return schema


def explain(error: ValidationError) -> str:
    """Every problem of a recipe in one line each: where, what, and the value that was given."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if not _is_union_branch(part))
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] not in ("unknown_key", "value_error", "missing"):
            what = f"{what[0].lower()}{what[1:]}, not {problem['input']!r}"
        elif problem["type"] == "missing":
            what = f"missing; give {where}=..."
        lines.append(f"{where}: {what}" if where else what)
    return "; ".join(dict.fromkeys(lines))


def _is_union_branch(part: int | str) -> bool:
    """Pydantic names the branch of a union in the location; readers of a recipe never wrote it."""
    known = ("Source", "str", "int", "float", "constrained-float", "constrained-int")
    return isinstance(part, str) and (part in known or "[" in part)


def _read(recipe: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(recipe, Mapping):
        return recipe
    path, known = Path(recipe), packaged()
    if str(recipe) in known:
        return known[str(recipe)]
    if not path.is_file():
        hint = nearest(str(recipe), list(known)) if path.suffix not in (".yaml", ".yml") else "check the path"
        raise InputError(f"no recipe '{recipe}': neither a file nor a packaged method; {hint}")
    try:
        raw = read_yaml(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, Mapping):
        raise InputError(f"{path} holds {type(raw).__name__}, not the keys of a recipe; see docs/recipe.md")
    return raw


def _set(raw: dict[str, Any], parts: list[str], value: Any, key: str) -> None:  # noqa: ANN401
    """Set one dotted key, opening shorthands on the way (`teacher: DIR`, then `teacher.combine=logits`)."""
    node: Any = raw
    section: type[Section] | None = Recipe
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            index = _index(node, part, key)
            if last and value is None:
                del node[index]
                return
            if last:
                node[index] = value
                return
            node[index] = _with_keys(section.expand(node[index]) if section else node[index], part, key)
            node = node[index]
            continue
        inner = _section_of(section, part)
        if last:
            node[part] = _completed(node.get(part), inner, value)
            return
        child = node.get(part)
        if inner is not None and not _is_list(section, part):
            child = inner.expand(child)
        node[part] = _with_keys({} if child is None else child, part, key)
        node, section = node[part], inner


def _completed(before: Any, section: type[Section] | None, value: Any) -> Any:  # noqa: ANN401
    """A section's new value. One that a method leaves unfinished, as `data` without `train`, keeps its entries."""
    if section is None or section.shorthand is None or value is None or not isinstance(before, dict):
        return value
    needed = section.model_fields[section.shorthand].is_required() and section.shorthand not in before
    given = section.expand(value)
    return {**before, **given} if needed and isinstance(given, Mapping) else value


def _with_keys(value: Any, part: str, key: str) -> dict[str, Any] | list[Any]:  # noqa: ANN401
    if not isinstance(value, (dict, list)):
        raise InputError(f"cannot set '{key}': '{part}' is {value!r}, which has no keys")
    return value


def _is_list(section: type[Section] | None, name: str) -> bool:
    field = section.model_fields.get(name) if section else None
    return field is not None and get_origin(field.annotation) is list


def _index(items: list[Any], part: str, key: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise InputError(f"cannot set '{key}': no item '{part}' among {[n for n in names if n] or len(items)}")


def _section_of(section: type[Section] | None, name: str) -> type[Section] | None:
    """The section class behind a field, through `X | None` and `list[X]`."""
    field = section.model_fields.get(name) if section else None
    queue = [field.annotation] if field else []
    while queue:
        kind = queue.pop(0)
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
        queue.extend(get_args(kind))
    return None
