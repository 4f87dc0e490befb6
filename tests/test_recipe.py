"""The recipe: what is read, what is refused and how, and the schema that editors use."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from limbeck.errors import InputError
from limbeck.recipe import Recipe, dump, json_schema, load, packaged, parse_overrides

PLAIN = {"data": "reviews.csv", "teacher": "teacher", "output": "run"}
MINIMAL: dict[str, dict[str, Any]] = {name: PLAIN for name in packaged()} | {
    "fine-tune": {"data": "reviews.csv", "student": "model", "output": "run"}
}


def refusal(overrides: dict[str, Any], recipe: Any = "hinton") -> str:
    with pytest.raises(InputError) as caught:
        load(recipe, {**PLAIN, **overrides})
    return str(caught.value)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", packaged())
def test_packaged_recipes_load_with_minimal_overrides(name):
    recipe = load(name, MINIMAL[name])
    assert recipe.about is not None
    assert "arxiv.org" in recipe.about.paper
    assert recipe.stages
    assert recipe.data.train.path == "reviews.csv"


@pytest.mark.parametrize("name", packaged())
def test_dump_reads_back_as_an_equal_recipe(name, tmp_path):
    changes = {"stages.0.training.epochs": 5, "data.text": ["a", "b"], "task.labels": ["nein", "jä"], "seed": 4}
    recipe = load(name, MINIMAL[name] | changes)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe), "utf-8")
    assert load(path) == recipe
    assert dump(load(path)) == dump(recipe)
    assert load(path).training_of(recipe.stages[0]).epochs == 5
    assert load(path).task.labels == ["nein", "jä"]


def test_the_resolved_recipe_states_every_default():
    text = dump(load("hinton", PLAIN))
    resolved = yaml.safe_load(text)
    assert resolved["training"]["learning_rate"] == 5e-5
    assert resolved["stages"][0]["objectives"]["soft_targets"] == {"weight": 0.9, "temperature": 2.0, "form": "kl"}
    assert resolved["teacher"]["models"][0]["model"] == "teacher"


def test_hinton_is_what_the_paper_says():
    recipe = load("hinton", PLAIN)
    soft, hard = recipe.stages[0].objectives.soft_targets, recipe.stages[0].objectives.hard_labels
    assert (soft.weight, soft.temperature, soft.form) == (0.9, 2, "kl")
    assert hard.weight == pytest.approx(0.1)
    assert recipe.baseline


def test_a_plain_recipe_is_short(tmp_path):
    text = """\
data: reviews.csv
teacher: teacher
student: {layers: 6}
stages:
  - name: distill
    objectives:
      soft_targets: {weight: 0.9, temperature: 2}
      hard_labels: 0.1
output: run
"""
    assert len(text.splitlines()) < 15
    path = tmp_path / "plain.yaml"
    path.write_text(text)
    recipe = load(path)
    assert recipe.student.layers == 6
    assert recipe.stages[0].objectives.hard_labels.weight == 0.1
    assert all(len(yaml.safe_dump(raw).splitlines()) < 25 for raw in packaged().values())


def test_a_recipe_and_a_mapping_load_too():
    recipe = load("hinton", PLAIN)
    assert load(recipe) == recipe
    again = load(recipe, {"training.epochs": 1})
    assert (again.training.epochs, recipe.training.epochs) == (1, 3)
    assert load({**packaged()["hinton"], **PLAIN}) == recipe


def test_loading_leaves_the_callers_values_alone():
    overrides = {**PLAIN, "teacher": ["A", "B"], "teacher.combine": "logits", "teacher.models.0.weight": 2}
    load("hinton", overrides)
    assert overrides["teacher"] == ["A", "B"]
    raw = packaged()["hinton"] | PLAIN
    load(raw, {"stages.distill.training.epochs": 1})
    assert "training" not in raw["stages"][0]


def test_importing_the_recipe_costs_no_torch():
    code = "import limbeck.recipe, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- shorthands and overrides ---------------------------------------------------------------------------------------


def test_parse_overrides_reads_yaml():
    pairs = ["training.epochs=1", "student.layers=[0, 3]", "data=a=b.csv", "baseline=false", "task.labels=", "x=null"]
    assert parse_overrides(pairs) == {
        "training.epochs": 1,
        "student.layers": [0, 3],
        "data": "a=b.csv",
        "baseline": False,
        "task.labels": None,
        "x": None,
    }
    with pytest.raises(InputError, match=r"'student\.layers' is not YAML: \[1"):
        parse_overrides(["student.layers=[1"])


@pytest.mark.parametrize(
    ("overrides", "at", "expected"),
    [
        ({"data": "a.csv"}, "data.train.path", "a.csv"),
        ({"data.train.split": "dev"}, "data.train.path", "reviews.csv"),
        ({"data.train.split": "dev"}, "data.train.split", "dev"),
        ({"data.validation": "v.csv"}, "data.validation.path", "v.csv"),
        ({"data.validation": 0.25}, "data.validation", 0.25),
        ({"task": "regression"}, "task.kind", "regression"),
        ({"task": "regression", "task.max_length": 16}, "task.kind", "regression"),
        ({"student": "small"}, "student.model", "small"),
        ({"export": ["int8"]}, "export.formats", ["int8"]),
        ({"teacher.combine": "logits"}, "teacher.models.0.model", "teacher"),
        ({"teacher.combine": "logits"}, "teacher.combine", "logits"),
        ({"teacher": {"model": "A", "weight": 2, "combine": "logits"}}, "teacher.models.0.weight", 2),
        ({"teacher": {"model": "A", "weight": 2, "combine": "logits"}}, "teacher.combine", "logits"),
        ({"teacher": ["A", "B"]}, "teacher.models.1.model", "B"),
        ({"teacher": ["A", "B"], "teacher.models.1.weight": 3}, "teacher.models.1.weight", 3),
        ({"teacher": ["A", "B"], "teacher.models.1.weight": 3}, "teacher.models.0.model", "A"),
        ({"teacher": {"models": ["A", "B"]}, "teacher.models.0.revision": "r"}, "teacher.models.0.revision", "r"),
        ({"stages.distill.objectives.soft_targets": 0.5}, "stages.0.objectives.soft_targets.weight", 0.5),
        ({"stages.distill.objectives.hard_labels": None}, "stages.0.objectives.hard_labels", None),
        ({"stages.0.objectives.hard_labels.weight": 7}, "stages.0.objectives.hard_labels.weight", 7),
        ({"stages.distill.objectives.soft_targets.temperature": 4}, "stages.0.objectives.soft_targets.weight", 0.9),
        ({"stages.distill.objectives.soft_targets.temperature": 4}, "stages.0.objectives.soft_targets.temperature", 4),
    ],
)
def test_overrides_and_shorthands(overrides, at, expected):
    value: Any = load("hinton", {**PLAIN, **overrides})
    for part in at.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    assert value == expected


def test_a_stage_differs_from_the_recipe_only_where_it_says_so():
    recipe = load("hinton", {**PLAIN, "training.batch_size": 4, "stages.distill.training.learning_rate": 0.1})
    own = recipe.training_of(recipe.stages[0])
    assert (own.batch_size, own.learning_rate, own.epochs) == (4, 0.1, 3)
    assert recipe.training.learning_rate == 5e-5


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"trainin.epochs": 1}, "unknown key 'trainin'; did you mean 'training'?"),
        ({"training.epoch": 1}, "training: unknown key 'epoch'; did you mean 'epochs'?"),
        ({"stages.distill.training.batchsize": 1}, "stages.distill.training: unknown key 'batchsize'; did you mean 'b"),
        (
            {"stages.distill.objectives.soft_targets.temprature": 1},
            "stages.0.objectives.soft_targets: unknown key 'temprature'; did you mean 'temperature'?",
        ),
        ({"stages.0.objectives.softtarget": 1}, "did you mean 'soft_targets'?"),
        ({"export.xyzzy": 1}, "known here: formats"),
        (
            {"stages.distill.objectives.soft_targets.temperature": -1},
            "stages.0.objectives.soft_targets.temperature: input should be greater than 0, not -1",
        ),
        ({"stages.distill.objectives.hard_labels": 0}, "hard_labels.weight: input should be greater than 0, not 0"),
        ({"student.layers": 2, "student.model": "m"}, "layers and model exclude each other"),
        ({"student": "m", "student.shape": {"hidden_size": 8}}, "model and shape exclude each other"),
        ({"student.layers": 0}, "student.layers: input should be greater than or equal to 1, not 0"),
        ({"teacher": None}, "stage 'distill' has soft_targets, which need a teacher; give teacher=..."),
        ({"teacher": []}, "teacher.models"),
        ({"stages.distill.objectives": {}}, "no objective; give at least one of hard_labels, soft_targets"),
        ({"stages.distill.training.epochs": 0}, "stages.distill.training: epochs: input should be greater than 0"),
        ({"stages.first.training.epochs": 1}, "no item 'first' among ['distill']"),
        ({"stages.3.training.epochs": 1}, "no item '3'"),
        ({"data.train.path.x": 1}, "'path' is 'reviews.csv', which has no keys"),
        ({"data.validation": 1.5}, "data.validation: input should be less than 1, not 1.5"),
        ({"task": "multilabel"}, "input should be 'classification', 'multi-label' or 'regression', not 'multilabel'"),
        ({"training.precision": "int8"}, "training.precision: input should be 'auto', 'float32'"),
        ({"export": ["tflite"]}, "export.formats.0: input should be 'onnx' or 'int8', not 'tflite'"),
        ({"stages.0.name": "a b"}, "stages.0.name"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
    ],
)
def test_refusals_name_place_value_and_way_out(overrides, said):
    assert said in refusal(overrides)


def test_no_message_shows_pydantics_own_names():
    for overrides in ({"student.layers": "x"}, {"data.validation": 2}, {"data.text": 3}, {"teacher": 3}, {"data": 3}):
        assert not re.search(r"constrained|\bSource\b|list\[|function-", refusal(overrides)), overrides


def test_missing_parts_are_named():
    with pytest.raises(InputError, match=r"data: missing; give data=\.\.\.") as caught:
        load("hinton", {"teacher": "t"})
    assert "output: missing; give output=..." in str(caught.value)


def test_a_teacher_or_a_students_start_is_needed():
    assert "add student=MODEL" in refusal({"teacher": None}, "fine-tune")
    assert load("fine-tune", {**PLAIN, "teacher": None, "student": "m"}).teacher is None


def test_stages_must_differ_in_name():
    stage = {"name": "same", "objectives": {"hard_labels": 1}}
    assert "two stages share a name: same, same" in refusal({"stages": [stage, stage]})


def test_unknown_recipes_are_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean 'hinton'"):
        load("hintn")
    with pytest.raises(InputError, match="check the path"):
        load("hinton.yaml")
    for content, said in (("a: [", "is not YAML"), ("- a\n", "holds list, not the keys of a recipe")):
        path = tmp_path / "recipe.yaml"
        path.write_text(content)
        with pytest.raises(InputError, match=said):
            load(path)


# --- the schema for editors -----------------------------------------------------------------------------------------


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value fits a JSON Schema, by the keywords that ours uses. Unknown keywords fail the test."""
    known = {"anyOf", "$ref", "type", "properties", "additionalProperties", "required", "items", "enum", "minimum"}
    known |= {"minItems", "exclusiveMinimum", "exclusiveMaximum", "const", "pattern", "default", "title", "description"}
    assert set(schema) <= known | {"$defs", "$schema"}, set(schema) - known
    if "$ref" in schema and not fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root):
        return False
    if "anyOf" in schema and not any(fits(value, option, root) for option in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    kind = schema.get("type")
    if kind == "null":
        return value is None
    if kind is not None and (not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if isinstance(value, dict):
        inner = schema.get("properties", {})
        unknown_allowed = schema.get("additionalProperties", True)
        if (not unknown_allowed and not set(value) <= set(inner)) or not set(schema.get("required", ())) <= set(value):
            return False
        return all(fits(value[key], inner[key], root) for key in value if key in inner)
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(fits(v, schema.get("items", {}), root) for v in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, above = schema.get("minimum", value), schema.get("exclusiveMinimum", value - 1)
        return value >= low and value > above and value < schema.get("exclusiveMaximum", value + 1)
    return not isinstance(value, str) or re.search(schema.get("pattern", ""), value) is not None


def valid(raw: dict[str, Any]) -> bool:
    schema = json_schema()
    ours = fits(raw, schema, schema)
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        return ours
    Draft202012Validator.check_schema(schema)
    assert Draft202012Validator(schema).is_valid(raw) == ours
    return ours


@pytest.mark.parametrize("name", packaged())
def test_the_schema_takes_the_packaged_and_the_resolved_recipes(name):
    assert valid(packaged()[name] | MINIMAL[name])
    assert valid(yaml.safe_load(dump(load(name, MINIMAL[name]))))


@pytest.mark.parametrize(
    ("teacher", "takes"),
    [
        ("A", True),
        (["A", "B"], True),
        ([{"model": "A", "weight": 2}, "B"], True),
        ({"model": "A"}, True),
        ({"model": "A", "weight": 2, "batch_size": 8}, True),
        ({"models": ["A"], "combine": "logits"}, True),
        ({"modell": "A"}, False),
        ({"models": ["A"], "combine": "mean"}, False),
        (3, False),
        ([], False),
    ],
)
def test_the_schema_takes_what_loading_takes(teacher, takes):
    raw = packaged()["hinton"] | PLAIN | {"teacher": teacher}
    assert valid(raw) == takes
    if takes:
        assert isinstance(load(raw), Recipe)
    else:
        with pytest.raises(InputError):
            load(raw)


@pytest.mark.parametrize(
    "wrong",
    [
        {"trainin": {"epochs": 1}},
        {"training": {"epochs": -1}},
        {"training": {"precision": "int4"}},
        {"task": "multilabel"},
        {"data": {"validation": 0.1}},
        {"stages": []},
        {"stages": [{"name": "a", "objectives": {"soft_targets": 1}, "training": {"epoch": 1}}]},
        {"stages": [{"name": "a", "objectives": {"soft_targets": {"temperature": 0}}}]},
    ],
)
def test_the_schema_refuses_what_loading_refuses(wrong):
    raw = packaged()["hinton"] | PLAIN | wrong
    assert not valid(raw)
    with pytest.raises(InputError):
        load(raw)


def test_every_setting_is_described():
    schema = json_schema()

    def objects(node: Any) -> Any:
        if isinstance(node, dict):
            if "properties" in node:
                yield node
            for value in node.values():
                yield from objects(value)
        elif isinstance(node, list):
            for value in node:
                yield from objects(value)

    found = list(objects(schema))
    assert len(found) > 12
    for node in found:
        assert node.get("description"), node.get("title")
        for name, setting in node["properties"].items():
            meant = schema["$defs"].get(setting.get("$ref", "").rpartition("/")[2], {})
            described = setting.get("description") or meant.get("description")
            assert described, f"{node['title']}.{name}"
