"""The recipe: what is read, what is refused and how, and the schema that editors use."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from typing import Any

import pytest
import yaml

from limbeck.errors import InputError
from limbeck.recipe import Recipe, dump, json_schema, load, packaged, parse_overrides

PLAIN = {"data": "reviews.csv", "teacher": "teacher", "output": "run"}
ALONE = {"data": "reviews.csv", "student": "model", "output": "run"}


def minimal(name: str, raw: dict[str, Any]) -> dict[str, Any]:
    """The least that a packaged recipe is used with; plain text for those with stages on it."""
    if name == "ib-bert":
        return {"data": "reviews.csv", "student": raw["student"] | {"tokenizer": "tokens"}, "output": "run"}
    if name in ("fine-tune", "pretrain"):
        return ALONE
    on_text = any("task" in stage for stage in raw["stages"])
    return PLAIN | ({"data": {"train": "reviews.csv", "corpus": "wiki.txt"}} if on_text else {})


MINIMAL = {name: minimal(name, raw) for name, raw in packaged().items()}
TWO_STAGES = [
    {"name": "general", "task": "masked-lm", "objectives": {"hidden": 1}},
    {"name": "last", "objectives": {"soft_targets": 1}},
]
ON_TEXT = {"stages": TWO_STAGES, "data.corpus": "wiki.txt"}


def refusal(overrides: dict[str, Any], recipe: Any = "hinton") -> str:
    with pytest.raises(InputError) as caught:
        load(recipe, {**PLAIN, **overrides})
    return str(caught.value)


def entry(value: Any, at: str) -> Any:
    """What stands in a recipe at a dotted place."""
    for part in at.split("."):
        value = value[int(part)] if isinstance(value, (list, dict)) else getattr(value, part)
    return value


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", packaged())
def test_packaged_recipes_load_with_minimal_overrides(name):
    recipe = load(name, MINIMAL[name])
    assert recipe.about is not None
    assert "https://" in recipe.about.paper
    assert recipe.stages
    assert recipe.data.train.path == "reviews.csv"


def test_packaged_recipes_ask_for_plain_text_only_where_a_stage_is_on_it():
    asking = [name for name, overrides in MINIMAL.items() if "corpus" in overrides["data"]]
    assert asking == ["layerdrop", "minilm", "minilmv2", "mobilebert", "tinybert", "well-read"]
    for name in asking:
        first = packaged()[name]["stages"][0]["name"]
        said = f"stage '{first}' is about plain text; give data.corpus=FILE, or leave the stage out with stages.{first}"
        assert said in refusal({}, name)
    assert load("distilbert-pretrain", PLAIN).stages[0].on_text  # the recipe's task is the stage's


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
    assert resolved["stages"][0]["objectives"]["soft_targets"] == {
        "weight": 0.9,
        "temperature": 2.0,
        "positions": "all",
        "form": "kl",
        "beta": 0.5,
    }
    assert resolved["teacher"]["models"][0]["model"] == "teacher"


def test_words_that_older_yaml_took_for_booleans_stay_words(tmp_path):
    text = "task: {labels: [no, yes, off]}\nstages:\n  - {name: a, on: train, objectives: {hard_labels: 1}}\n"
    (tmp_path / "r.yaml").write_text(text)
    recipe = load(tmp_path / "r.yaml", {**PLAIN, "student": "s"})
    assert recipe.task.labels == ["no", "yes", "off"]
    assert load("hinton", {**PLAIN, **parse_overrides(["task.labels=[no, yes]"])}).task.labels == ["no", "yes"]
    assert recipe.stages[0].on == "train"
    assert load("hinton", {**PLAIN, **parse_overrides(["baseline=false"])}).baseline is False


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
    folder = resources.files("limbeck.recipes")
    assert all(len((folder / f"{name}.yaml").read_text("utf-8").splitlines()) < 30 for name in packaged())


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
        ({"student": "small", "student.layers": 2}, "student.layers", 2),
        ({"student": "small", "student.layers": 2}, "student.model", "small"),
        ({"student.architecture": "distilbert"}, "student.architecture", "distilbert"),
        ({"student.shape.model_type": "electra", "student.tokenizer": "t"}, "student.shape", {"model_type": "electra"}),
        ({"student.shape": {}, "student.embeddings": True}, "student.embeddings", True),
        (ON_TEXT | {"assistant": "middle"}, "assistant.model", "middle"),
        (ON_TEXT | {"assistant.layers": "half"}, "assistant.layers", "half"),
        (ON_TEXT | {"teacher.general": "language"}, "teacher.general.model", "language"),
        (ON_TEXT | {"teacher": {"model": "A", "general": "language"}}, "teacher.general.model", "language"),
        (ON_TEXT, "data.corpus.path", "wiki.txt"),
        ({"data.augmentation": "language"}, "data.augmentation.copies", 20),
        ({"data.augmentation": "language", "data.augmentation.copies": 3}, "data.augmentation.model", "language"),
        ({"training.layer_drop": 0.5}, "training.layer_drop", 0.5),
        ({"training.dropout": False}, "training.dropout", False),
        ({"stages.distill.keep": "half"}, "stages.0.keep", "half"),
        ({"stages.distill.keep": [0, 2]}, "stages.0.keep", [0, 2]),
        ({"stages.distill.keep": 2, "stages.distill.pattern": "last"}, "stages.0.pattern", "last"),
        ({"stages.distill.on": "train"}, "stages.0.on", "train"),
        ({"stages.distill.objectives.hidden": 3}, "stages.0.objectives.hidden.weight", 3),
        ({"stages.distill.objectives.hidden.form": "cls"}, "stages.0.objectives.hidden.layers", "uniform"),
        ({"stages.distill.objectives.hidden.layers": {-1: -1}}, "stages.0.objectives.hidden.layers", {-1: -1}),
        ({"stages.distill.objectives.embedding": 2}, "stages.0.objectives.embedding.weight", 2),
        ({"stages.distill.objectives.attention.form": "kl"}, "stages.0.objectives.attention.form", "kl"),
        ({"stages.distill.objectives.relations": 1}, "stages.0.objectives.relations.layers", {-1: -1}),
        ({"stages.distill.objectives.relations.of": ["keys"]}, "stages.0.objectives.relations.of", ["keys"]),
        ({"stages.distill.objectives.feature_map.mean": 0}, "stages.0.objectives.feature_map.mean", 0),
        ({"stages": TWO_STAGES, "stages.general": None}, "stages.0.name", "last"),
        ({"stages": TWO_STAGES, "stages.0": None}, "stages.0.name", "last"),
        ({"stages": TWO_STAGES, "data.corpus": "wiki.txt"}, "stages.0.task.mask", 0.15),
        (
            {"stages": TWO_STAGES, "data.corpus": "wiki.txt", "stages.general.task.packed": True},
            "stages.0.task.packed",
            True,
        ),
    ],
)
def test_overrides_and_shorthands(overrides, at, expected):
    assert entry(load("hinton", {**PLAIN, **overrides}), at) == expected


@pytest.mark.parametrize(
    ("words", "at", "expected"),
    [
        (["stages.general=null"], "stages.0.name", "intermediate"),
        (["stages.general="], "stages.0.name", "intermediate"),
        (["stages.prediction.keep=half", "stages.general=null"], "stages.1.keep", "half"),
        (["stages.intermediate.objectives.hidden.layers={-1: -1}"], "stages.1.objectives.hidden.layers", {-1: -1}),
        (["stages.intermediate.objectives.attention.layers={1: 3, 2: 6}"], "stages.1.objectives.attention.layers.1", 3),
        (["student.shape={hidden_size: 8}"], "student.shape", {"hidden_size": 8}),
        (["student.shape=null", "student.layers=2"], "student.layers", 2),
    ],
)
def test_overrides_as_words_of_the_command_line(words, at, expected):
    corpus = [] if any("general" in word for word in words) else ["data.corpus=wiki.txt"]
    assert entry(load("tinybert", PLAIN | parse_overrides([*corpus, *words])), at) == expected


def test_a_dropped_stage_stays_dropped(tmp_path):
    recipe = load("tinybert", PLAIN | parse_overrides(["stages.general=null"]))
    assert [stage.name for stage in recipe.stages] == ["intermediate", "prediction"]
    assert packaged()["tinybert"]["stages"][0]["name"] == "general"
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe))
    assert load(path) == recipe


def test_a_stage_is_about_what_the_recipe_is_about():
    general, last = load({**PLAIN, "stages": TWO_STAGES}, {"data.corpus": "wiki.txt"}).stages
    assert general.on_text
    assert not last.on_text
    only = {"name": "only", "objectives": {"masked_lm": 1}}
    recipe = load({**PLAIN, "task": {"kind": "masked-lm", "packed": True, "mask": 0.3}, "stages": [only]})
    assert recipe.stages[0].on_text
    assert recipe.stages[0].task == recipe.task


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
        (
            {"student": "m", "student.shape": {"hidden_size": 8}},
            "model and shape exclude each other; keep one (model=n",
        ),
        ({"student.layers": 2, "student.shape": {"hidden_size": 8}}, "layers and shape exclude each other; keep one"),
        ({"student.architecture": "bert"}, "student.architecture: input should be 'distilbert', not 'bert'"),
        ({"student.tokenzer": "t"}, "student: unknown key 'tokenzer'; did you mean 'tokenizer'?"),
        ({"assistant.layer": 3}, "assistant: unknown key 'layer'; did you mean 'layers'?"),
        ({"teacher.generel": "t"}, "teacher: unknown key 'generel'; did you mean 'general'?"),
        (
            {"data.augmentation.copies": 2},
            "data.augmentation: nothing alters the texts; give model=MODEL, or some of mask",
        ),
        ({"data.augmentation": {"model": "m", "probability": 0}}, "data.augmentation.probability: input should be gr"),
        ({"task.mask": 1}, "task.mask: input should be less than 1, not 1"),
        ({"training.layer_drop": 1}, "training.layer_drop: input should be less than 1, not 1"),
        ({"stages.distill.keep": 0}, "stages.0.keep: input should be greater than or equal to 1, not 0"),
        ({"stages.distill.keep": "third"}, "stages.0.keep: input should be 'half' or 'all', not 'third'"),
        ({"stages.distill.on": "test"}, "stages.0.on: input should be 'train' or 'transfer', not 'test'"),
        (
            {"stages.distill.objectives.hidden.layers": "first"},
            "input should be 'uniform', 'skip' or 'last', not 'first'",
        ),
        (
            {"stages.distill.objectives.relations.of": ["words"]},
            "input should be 'queries', 'keys' or 'values', not 'wo",
        ),
        ({"stages.distill": None}, "stages: list should have at least 1 item"),
        ({"stages.first": None}, "cannot set 'stages.first': no item 'first' among ['distill']"),
        ({"student.layers": 0}, "student.layers: input should be greater than or equal to 1, not 0"),
        ({"teacher": None}, "stage 'distill' has soft_targets, which needs a teacher; give teacher=..."),
        ({"teacher": []}, "teacher.models"),
        ({"stages.distill.objectives": {}}, "no objective; give at least one of hard_labels, soft_targets"),
        ({"stages.distill.training.epochs": 0}, "stages.distill.training: epochs: input should be greater than 0"),
        ({"stages.first.training.epochs": 1}, "no item 'first' among ['distill']"),
        ({"stages.3.training.epochs": 1}, "no item '3'"),
        ({"data.train.path.x": 1}, "'path' is 'reviews.csv', which has no keys"),
        ({"data.validation": 1.5}, "data.validation: input should be less than 1, not 1.5"),
        (
            {"task": "multilabel"},
            "input should be 'classification', 'multi-label', 'regression', 'masked-lm' or 'causal-lm', not 'mul",
        ),
        ({"training.precision": "int8"}, "training.precision: input should be 'auto', 'float32'"),
        ({"export": ["tflite"]}, "export.formats.0: input should be 'onnx', 'int8', 'gguf' or 'gguf-q8', not 'tflite'"),
        ({"stages.0.name": "a b"}, "stages.0.name"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
    ],
)
def test_refusals_name_place_value_and_way_out(overrides, said):
    assert said in refusal(overrides)


def staged(**stage: Any) -> dict[str, Any]:
    """Overrides that give the recipe this one stage."""
    return {"stages": [{"name": "a", **stage}]}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (staged(objectives={"hidden": 1}) | {"teacher": None}, "stage 'a' has hidden, which needs a teacher; give tea"),
        (
            staged(task="masked-lm", objectives={"hard_labels": 1}),
            "stage 'a' is about plain text, which has no hard_labels; use masked_lm",
        ),
        (
            staged(objectives={"masked_lm": 1}),
            "stage 'a' has masked_lm, which is about plain text; add task: masked-lm",
        ),
        (
            staged(task="regression", objectives={"hard_labels": 1}),
            "stage 'a' has task regression; its own can only be masked-lm, so leave it out",
        ),
        (
            staged(task="masked-lm", objectives={"masked_lm": 1}),
            "stage 'a' is about plain text; give data.corpus=FILE, or leave the stage out with stages.a=null",
        ),
        (
            staged(objectives={"soft_targets": {"positions": "masked"}}),
            "stage 'a' has no masked words; leave soft_targets.positions out",
        ),
        *(
            (
                staged(objectives={name: 1}) | {"training.layer_drop": 0.1},
                "stage 'a' has layer_drop, and the attention of a layer left out cannot be learnt from; set layer_drop "
                "to 0, or leave attention and relations out",
            )
            for name in ("attention", "relations")
        ),
        (
            staged(objectives={"soft_targets": 1}, training={"gradient_checkpointing": True, "dropout": False}),
            "stage 'a' has gradient_checkpointing with dropout off, which turns both off; set dropout to true, which "
            "changes nothing where the student's configuration has none",
        ),
        *(
            (
                staged(progressive=True, objectives={"hidden": 1, name: 1}),
                f"stage 'a' is progressive, and {name} is not about one layer; use hidden, attention, relations, "
                "feature_map, or set progressive to false",
            )
            for name in ("hard_labels", "soft_targets", "embedding")
        ),
        (
            staged(objectives={"soft_targets": 1}, on="train") | {"teacher.queries": 5},
            "stage 'a' learns the teacher's answers to all labelled examples (on: train), and teacher.queries asks "
            "about some alone; drop on",
        ),
        (
            staged(objectives={"soft_targets": 1}, on="train")
            | {"teacher": {"model": "m", "server": "http://localhost:1/v1"}, "student": "n"},
            "stage 'a' learns the teacher's answers to all labelled examples (on: train), and the teacher 'm' may "
            "leave some without an answer; drop on",
        ),
        (
            {"teacher": ["A", {"model": "B", "others": "rest"}], "task": "multi-label"},
            "the teacher 'B' is a specialist (others=rest), which is about classes, and the task is multi-label",
        ),
        (
            {"teacher": ["A", {"model": "B", "others": "rest", "weight": 2}]},
            "the teacher 'B' is a specialist (others=rest) and has weight 2; specialists have no shares, so drop weig",
        ),
        (
            staged(objectives={"soft_targets": 1}, training={"layer_drop": 2}),
            "stages.a.training: layer_drop: input should be less than 1, not 2",
        ),
    ],
)
def test_stages_that_cannot_be_are_refused(overrides, said):
    assert said in refusal(overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"teacher": ["A", "B"]}, "task masked-lm takes one teacher, and 2 are given; keep one"),
        (
            {"export": ["onnx", "int8"]},
            "export.formats has onnx, which models of task masked-lm are not exported to; give export=[]",
        ),
        *(
            (
                {f"data.{name}": "more"},
                f"data.{name} is for tasks with labels, and the task is masked-lm; give all text as data.train and "
                f"leave data.{name} out",
            )
            for name in ("corpus", "unlabelled", "augmentation")
        ),
        ({"stages.distill.objectives.hard_labels": 1}, "stage 'distill' is about plain text, which has no hard_labels"),
        ({"teacher": None}, "stage 'distill' has soft_targets, which needs a teacher"),
    ],
)
def test_what_a_language_model_has_no_use_for_is_refused(overrides, said):
    assert load("distilbert-pretrain", PLAIN).task.kind == "masked-lm"
    assert said in refusal(overrides, "distilbert-pretrain")


SOFT = "stages.distill.objectives.soft_targets"
TWICE = {"name": "again", "objectives": {"soft_targets": {"weight": 1, "temperature": 4}}}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            {"teacher.words": "dense", f"{SOFT}.form": "mse"},
            "stage 'distill' compares logits (soft_targets.form=mse), of which dense keeps the probabilities alone; "
            "give teacher.words=nothing or another form",
        ),
        ({f"{SOFT}.form": "mse"}, "compares logits (soft_targets.form=mse), of which head_and_tail keeps few; give"),
        (
            {"teacher.words": "sampled", f"{SOFT}.form": "jsd"},
            "soft_targets.form=jsd, which needs tokens that are kept for certain, and teacher.words=sampled keeps none",
        ),
        (
            {"stages": [{"name": "distill", "objectives": {"soft_targets": 1}}, TWICE]},
            "the stages' temperatures are 2 and 4, and head_and_tail is kept at one; give one temperature, or",
        ),
        (
            {"stages.distill.on_policy": {"share": 1}, "teacher.words": "top_k"},
            "own answers, on which no words are kept; give teacher.words=nothing or leave it out",
        ),
        ({"assistant": "small"}, "assistant is about masked-lm stages, and the task is causal-lm; drop it with"),
    ],
)
def test_what_kept_words_cannot_serve_is_refused(overrides, said):
    assert said in refusal(overrides, "word-kd")


def test_terms_that_look_into_layers_may_go_with_layer_drop_or_stay_alone():
    allowed = staged(objectives={"hidden": 1, "soft_targets": 1}) | {"training.layer_drop": 0.1}
    assert load("hinton", PLAIN | allowed).training.layer_drop == 0.1
    every = {"hidden": 1, "attention": 1, "relations": 1, "feature_map": 1}
    recipe = load("hinton", PLAIN | staged(progressive=True, objectives=every))
    assert recipe.stages[0].objectives.names == list(every)
    assert recipe.stages[0].objectives.needs_teacher
    alone = staged(task="masked-lm", objectives={"masked_lm": 1}) | {"data.corpus": "wiki.txt", "teacher": None}
    assert not load("hinton", PLAIN | alone | {"student": "m"}).stages[0].objectives.needs_teacher


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
    known |= {"maximum"}
    known |= {
        "minItems",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "const",
        "pattern",
        "default",
        "title",
        "description",
    }
    assert set(schema) <= known | {"$defs", "$schema"}, set(schema) - known
    if "$ref" in schema and not fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root):
        return False
    if "anyOf" in schema and not any(fits(value, option, root) for option in schema["anyOf"]):
        return False
    if ("enum" in schema and value not in schema["enum"]) or ("const" in schema and value != schema["const"]):
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
        under = value <= schema.get("maximum", value) and value < schema.get("exclusiveMaximum", value + 1)
        return value >= low and value > above and under
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
        {"stages": [{"name": "a", "objectives": {"hidden": {"layers": "first"}}}]},
        {"stages": [{"name": "a", "objectives": {"relations": {"of": []}}}]},
        {"stages": [{"name": "a", "objectives": {"soft_targets": 1}, "keep": "third"}]},
        {"task": {"mask": 1}},
        {"student": {"architecture": "bert"}},
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


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"data.corpus": "wiki.txt"}, "data.corpus is given, but no stage is about plain text; drop it with"),
        ({"teacher.general": "A"}, "teacher.general is given, but no stage learns from a teacher on plain text"),
        (
            {"training.layer_drop": 0.1, "training.dropout": False},
            "stage 'distill' has layer_drop with dropout off, which turns both off; set one of them",
        ),
        (
            {"data.augmentation": "A", "stages.distill.objectives": {"hard_labels": 1}},
            "data.augmentation is given, but no stage learns from a teacher's answers; drop it with",
        ),
        ({"assistant": "A"}, "assistant is given, but no stage learns from a teacher on plain text"),
        (
            {"training.patience": 2, "stages.distill.objectives": {"hidden": 1}},
            "training.patience is 2, and what is learnt from layers alone has no validation metric to stop by; leave",
        ),
        (
            {"stages": [{**TWO_STAGES[0], "training": {"patience": 2}}, TWO_STAGES[1]], "data.corpus": "wiki.txt"},
            "stage 'general' has patience 2, and what is learnt from layers alone has no validation metric to stop by",
        ),
    ],
)
def test_entries_that_no_stage_uses_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        load("hinton", PLAIN | given)


def test_patience_is_for_the_stages_that_are_validated() -> None:
    assert load("hinton", PLAIN | ON_TEXT | {"training.patience": 2}).training.patience == 2


def test_a_stage_is_not_named_like_a_turn_of_another() -> None:
    layers = {"feature_map": 1}
    stages = [
        {"name": "a", "task": "masked-lm", "progressive": True, "objectives": layers},
        {"name": "a-1", "objectives": {"hard_labels": 1}},
    ]
    with pytest.raises(InputError, match="stage 'a-1' is named like a turn of the progressive 'a'; rename it"):
        load(PLAIN, {"stages": stages, "data.corpus": "wiki.txt"})
