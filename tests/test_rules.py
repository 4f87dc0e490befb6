"""Rules about labels: what may be written, the exact projection, and a run that is held to them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOOD, LABELS, make_model, make_reviews, make_tokenizer, numbered
from datasets import Dataset, load_from_disk
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logsumexp, rel_entr, softmax

import limbeck
from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError
from limbeck.recipe import Recipe, load
from limbeck.rules import LabelRules, apply, load_rules
from limbeck.rules.conditions import applies
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel, Ruled

ANIMALS = Task("classification", ("cat", "dog", "fish", "bird"))
TOPICS = Task("multi-label", ("a", "b", "c", "d", "e"))
NOT_GOOD = [{"name": "said good", "when": list(GOOD), "allow": "positive"}]


def book(*entries: dict[str, Any]) -> Any:
    return load_rules([{"name": f"rule {number}"} | entry for number, entry in enumerate(entries)])


def one_text(count: int) -> dict[str, list[str]]:
    return {"text": ["a text"] * count}


# --- conditions ---------------------------------------------------------------------------------------------------

TEXTS = {"text": ["A cat sat", "Concatenate", "the CAT  food", "no pet", "cat and no dog at all"]}


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (["cat"], [1, 0, 1, 0, 1]),
        ("cat food", [0, 0, 1, 0, 0]),
        ({"words": ["cat", "pet"]}, [1, 0, 1, 1, 1]),
        ({"matches": "cat"}, [1, 1, 0, 0, 1]),
        (["c*", "nothing"], [1, 1, 1, 0, 1]),
        (["cat fo*"], [0, 0, 1, 0, 0]),
        ({"matches": "(?i)^.{0,6}cat"}, [1, 1, 1, 0, 1]),
        ({"min_words": 3}, [1, 0, 1, 0, 1]),
        ({"min_words": 2, "max_words": 3}, [1, 0, 1, 1, 0]),
        ({"words": "cat", "unless": ["dog"]}, [1, 0, 1, 0, 0]),
        ({"any": [["pet"], {"max_words": 1}]}, [0, 1, 0, 1, 0]),
        ({"unless": {"any": [["cat"], ["pet"]]}}, [0, 1, 0, 0, 0]),
    ],
)
def test_a_rule_is_about_the_texts_that_meet_all_of_its_condition(when, expected):
    rules = book({"when": when, "allow": ["cat"]}).rules
    assert applies(rules, TEXTS)[:, 0].tolist() == [bool(each) for each in expected]
    assert applies(rules, Dataset.from_dict(TEXTS))[:, 0].tolist() == [bool(each) for each in expected]


def test_a_condition_on_a_pair_looks_at_both_texts_or_the_one_it_names():
    pairs = {"text": ["a cat", "a dog"], "text_pair": ["a dog", "a dog"]}
    whens = [["cat"], {"words": "cat", "part": "text"}, {"words": "cat", "part": "text_pair"}, {"matches": "t\na"}]
    rules = book(*({"when": when, "allow": "cat"} for when in whens)).rules
    assert applies(rules, pairs).tolist() == [[True, True, False, True], [False] * 4]
    with pytest.raises(InputError, match="part of a pair, and the examples are single texts"):
        LabelRules(load_rules([{"name": "x", "when": whens[1], "allow": "cat"}]), ANIMALS)


# --- one label ----------------------------------------------------------------------------------------------------


def test_the_projection_is_the_nearest_distribution_that_pays_for_what_it_breaks():
    rules = LabelRules(
        book({"forbid": "fish"}, {"allow": ["cat", "fish"], "weight": 0.7}, {"forbid": ["cat"], "weight": 2}), ANIMALS
    )
    logits = np.random.default_rng(0).normal(size=(3, 4))
    found = softmax(rules.project(logits, one_text(3)), axis=1)
    for p, q in zip(softmax(logits, axis=1), found, strict=True):
        broken = np.array([[0, 1, 0, 1], [1, 0, 0, 0]]).T @ [0.7, 2]  # by label: what its soft rules cost
        expected = p * np.exp(-broken) * [1, 1, 0, 1]
        np.testing.assert_allclose(q, expected / expected.sum(), rtol=1e-12, atol=0)

        def cost(free: np.ndarray, p: np.ndarray = p, broken: np.ndarray = broken) -> float:
            other = np.insert(softmax(free), 2, 0)
            return float(rel_entr(other, p).sum() + other @ broken)

        best = minimize(cost, np.zeros(3), options={"gtol": 1e-9})
        np.testing.assert_allclose(np.insert(softmax(best.x), 2, 0), q, atol=1e-6)


def test_hard_rules_project_once_and_for_all():
    rules = LabelRules(book({"forbid": ["fish", "dog"]}, {"when": ["text"], "forbid": "bird"}), ANIMALS)
    logits = np.random.default_rng(1).normal(size=(5, 4)) * 30
    texts = {"text": ["a text", "other", "a text", "b", "c"]}
    once = rules.project(logits, texts)
    np.testing.assert_array_equal(rules.project(once, texts), once)
    assert (softmax(once, axis=1)[:, 1:3] == 0).all()
    assert softmax(once / 20, axis=1)[:, 1:3].max() < 1e-200  # at any temperature in use
    again = rules.project(once.astype(np.float32), texts)
    np.testing.assert_allclose(softmax(again, axis=1), softmax(once, axis=1), atol=1e-6)


def test_a_text_that_no_rule_is_about_is_left_alone():
    rules = LabelRules(book({"when": ["text"], "allow": "cat"}), ANIMALS)
    logits = np.random.default_rng(2).normal(size=(2, 4)).astype(np.float32)
    found = rules.project(logits, {"text": ["nothing", "a text"]})
    np.testing.assert_array_equal(found[0], logits[0])
    assert found[1].argmax() == 0
    np.testing.assert_array_equal(
        apply(book({"when": ["text"], "allow": "cat"}), logits, ["nothing", "a text"], ANIMALS.labels), found
    )


# --- several labels -----------------------------------------------------------------------------------------------

RELATED = [
    {"implies": {"a": ["b", "c"]}},
    {"excludes": ["c", "d"], "weight": 0.8},
    {"forbid": ["a", "e"], "weight": 1.5},
    {"implies": {"e": "d"}, "weight": 0.3},
]


def by_hand(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All 32 settings of the five labels, and the projected distribution over them."""
    states = np.array(list(itertools.product([0, 1], repeat=5)))
    p = np.prod(np.where(states, expit(logits), expit(-logits)), axis=1)
    a, b, c, d, e = states.T
    cost = 0.8 * (c & d) + 1.5 * (a | e) + 0.3 * (e & (1 - d))
    q = p * np.exp(-cost) * (1 - (a & (1 - (b & c))))
    return states, q / q.sum()


def test_marginals_are_those_of_the_joint_distribution_that_relations_leave():
    rules = LabelRules(book(*RELATED), TOPICS)
    logits = np.random.default_rng(3).normal(size=(6, 5)) * 2
    found = rules.project(logits, one_text(6))
    for row, answer in zip(logits, found, strict=True):
        states, q = by_hand(row)
        np.testing.assert_allclose(expit(answer), q @ states, rtol=1e-10)


def test_labels_without_relations_are_moved_alone():
    rules = LabelRules(book({"forbid": "a"}, {"require": "b"}, {"forbid": ["c"], "weight": 2}), TOPICS)
    logits = np.random.default_rng(4).normal(size=(3, 5))
    found = rules.project(logits, one_text(3))
    np.testing.assert_array_equal(found[:, 3:], logits[:, 3:])
    np.testing.assert_allclose(found[:, 2], logits[:, 2] - 2, rtol=1e-12)
    assert (found[:, 0] == -1e4).all()
    assert (found[:, 1] == 1e4).all()
    hard = LabelRules(book({"forbid": "a"}, {"require": "b"}), TOPICS)
    once = hard.project(logits, one_text(3))
    np.testing.assert_array_equal(hard.project(once, one_text(3)), once)


def test_predictions_from_the_marginals_break_no_hard_rule():
    draw = np.random.default_rng(5)
    free = 0
    for _ in range(60):
        one, two, three, four = (str(each) for each in draw.permutation(TOPICS.labels)[:4])
        hard = [{"implies": {one: [two, three]}}, {"excludes": [three, four]}, {"implies": {four: one}}]
        rules = LabelRules(book(*hard, {"excludes": [one, "e"], "weight": 0.4}), TOPICS)
        logits = draw.normal(size=(50, 5)) * 3 + 1
        free += rules.broken(TOPICS.predict(logits), one_text(50))[:, :3].sum()
        held = TOPICS.predict(rules.project(logits, one_text(50)))
        assert not rules.broken(held, one_text(50))[:, :3].any()
    assert free > 1000


def test_many_labels_of_which_one_at_most_is_set_are_no_problem_when_the_rule_is_hard():
    names = tuple(f"label {number}" for number in range(40))
    task = Task("multi-label", names)
    logits = np.random.default_rng(6).normal(size=(3, 40))
    found = LabelRules(book({"excludes": list(names)}), task).project(logits, one_text(3))
    joint = np.concatenate([np.zeros((3, 1)), logits], axis=1)
    np.testing.assert_allclose(expit(found), softmax(joint, axis=1)[:, 1:], rtol=1e-10)
    with pytest.raises(InputError, match="'rule 0' tie 40 labels together, which leaves more than 4,096"):
        LabelRules(book({"excludes": list(names), "weight": 1}), task)


def test_what_breaks_a_rule_is_counted_where_the_rule_is_about_the_text():
    rules = LabelRules(book(*RELATED, {"when": ["text"], "allow": ["a", "b"], "weight": 1}, {"require": "a"}), TOPICS)
    predicted = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 0, 0]])
    texts = {"text": ["a text", "a text", "none"]}
    expected = [[1, 0, 1, 0, 0, 0], [0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1]]
    assert rules.broken(predicted, texts).astype(int).tolist() == expected
    one = LabelRules(book({"allow": "cat"}, {"when": ["text"], "forbid": ["bird"]}), ANIMALS)
    assert one.broken(np.array([0, 3, 3]), texts).astype(int).tolist() == [[0, 0], [1, 1], [1, 0]]


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no list of rules; write '- name"),
        ("rules: []", "no list of rules"),
        ("- just words", "rule 1 is 'just words'"),
        ("- {name: x, alow: [cat]}", "rule 'x': unknown key 'alow'; did you mean 'allow'"),
        ("- {allow: cat}", "rule '1': name: missing"),
        ("- {name: x}", "rule 'x': demands nothing; give one of allow, forbid"),
        ("- {name: x, allow: cat, forbid: dog}", "rule 'x': demands allow, forbid; make a rule of each"),
        ("- {name: x, allow: cat}\n- {name: x, forbid: dog}", "two rules are named 'x'"),
        ("- {name: x, allow: cat}\n- {name: y, regex: a}", "'x' is about labels and 'y' about generated text"),
        ("- {name: x, allow: cat, weight: heavy}", "weight"),
        ("- {name: x, allow: cat, weight: 0}", "weight"),
        ("- {name: x, allow: []}", "allow"),
        ("- {name: x, allow: [true]}", "YAML reads this as true; put it in quotes"),
        ("- {name: x, avoid: [false]}", "YAML reads this as false; put it in quotes"),
        ("- {name: x, allow: cat, when: {wrods: [a]}}", "unknown key 'wrods'; did you mean 'words'"),
        ("- {name: x, allow: cat, when: {}}", "an empty condition; give words"),
        ("- {name: x, allow: cat, when: {matches: '('}}", r"'\(' is no regular expression"),
        ("- {name: x, regex: '[a'}", r"'\[a' is no regular expression"),
        ("- {name: x, json_schema: there.json}", "json_schema names the file '.*there.json', which is not there"),
        ("- {name: x", "is not YAML"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(content, message, tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as refusal:
        load_rules(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("task", "entries", "message"),
    [
        (ANIMALS, [{"allow": "dgo"}], "names the label 'dgo'; did you mean 'dog'"),
        (ANIMALS, [{"require": "dog"}], "has require, which is about several labels at once"),
        (ANIMALS, [{"regex": "a"}], "has regex, which is about generated text, and the task is classification"),
        (ANIMALS, [{"forbid": list(ANIMALS.labels)}], "the hard rule 'rule 0' leaves no label"),
        (ANIMALS, [{"allow": "dog"}, {"forbid": "dog"}], "hard rules 'rule 0' and 'rule 1' leave no label; give one"),
        (ANIMALS, [{"allow": "dog"}, {"when": ["x"], "forbid": "dog"}], "'rule 0' and 'rule 1' leave no label"),
        (TOPICS, [{"require": ["a", "b"]}, {"excludes": ["a", "b"]}], "'rule 0' and 'rule 1' leave no label"),
        (TOPICS, [{"implies": {"a": "f"}}], "names the label 'f'"),
        (Task("regression", ("y",)), [{"allow": "y"}], "the task is regression"),
    ],
)
def test_rules_that_do_not_fit_the_task_are_refused(task, entries, message):
    with pytest.raises(InputError, match=message):
        LabelRules(book(*entries), task)


def test_rules_that_contradict_each_other_on_some_text_alone_are_refused_there():
    rules = LabelRules(book({"when": ["meows"], "allow": "cat"}, {"when": ["barks"], "allow": "dog"}), ANIMALS)
    rules.check({"text": ["it meows", "it barks"]})
    with pytest.raises(InputError, match=r"'rule 0' and 'rule 1' leave no label.*on the text 'it meows and barks'"):
        rules.check({"text": ["it meows", "it meows and barks"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": {"kind": "regression"}},
            "rules are for classification, multi-label and causal-lm, and the task is regression",
        ),
        ({"stages.distill.objectives.soft_targets.form": "mse"}, "rules change probabilities"),
    ],
)
def test_a_recipe_in_which_rules_could_not_act_is_refused(changes, message):
    given = {"data": "d.csv", "teacher": "t", "output": "o", "rules": "r.yaml", **changes}
    with pytest.raises(InputError, match=message):
        load("hinton", given)


# --- a run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def rules_yaml(tmp_path: Path) -> Path:
    """A hard rule that is right, and a soft one about length that is nonsense."""
    path = tmp_path / "rules.yaml"
    path.write_text(
        f"- {{name: said good, when: [{', '.join(GOOD)}], allow: positive}}\n"
        "- {name: long is bad, when: {min_words: 9}, forbid: positive, weight: 1.5}\n"
    )
    return path


def test_a_ruled_model_answers_as_the_rules_say_and_is_another_teacher():
    tokenizer = make_tokenizer()
    inner = HuggingFaceModel(Checkpoint(make_model(), tokenizer, "x"), Task("classification", LABELS), 32)
    ruled = Ruled(inner, LabelRules(load_rules(NOT_GOOD), inner.task))
    texts = numbered(make_reviews(20, seed=2)).remove_columns("label")
    free, held = inner.ask(texts, (1,)), ruled.ask(texts, (1,))
    np.testing.assert_array_equal(held.features[1], free.features[1])
    good = np.array([any(word in text.split() for word in GOOD) for text in texts["text"]])
    np.testing.assert_array_equal(held.logits[~good], free.logits[~good])
    assert held.logits.dtype == np.float32
    assert (held.logits[good].argmax(1) == 1).all()
    assert (softmax(held.logits[good], axis=1)[:, 0] == 0).all()
    other = Ruled(inner, LabelRules(load_rules([NOT_GOOD[0] | {"weight": 3}]), inner.task))
    assert len({json.dumps(each.fingerprint) for each in (inner, ruled, other)}) == 3
    assert (ruled.labels, ruled.bytes, ruled.parameters) == (inner.labels, inner.bytes, inner.parameters)
    ruled.runner(texts)()


def test_a_student_learns_from_the_teacher_that_rules_corrected(
    tiny_recipe: Callable[..., Recipe], rules_yaml: Path, tmp_path: Path
) -> None:
    rules_yaml.write_text(rules_yaml.read_text().replace("allow: positive", "allow: negative"))  # the labels disagree
    shared = {"knowledge": str(tmp_path / "k")}
    free = tiny_recipe("hinton", **shared)
    held = tiny_recipe(
        "hinton", rules=str(rules_yaml), output=str(tmp_path / "held"), **shared, **{"training.epochs": 6}
    )
    without, run = limbeck.distill(free), limbeck.distill(held)
    stores = [load_from_disk(str(path)).with_format("numpy")[:] for path in sorted((tmp_path / "k").iterdir())]
    assert len(stores) == 2  # the rules are part of the key
    said = {bool((softmax(each["logits"], axis=1) == 0).any()): each for each in stores}
    expected = LabelRules(load_rules(rules_yaml), Task("classification", LABELS)).project(
        said[False]["logits"], {"text": said[False]["text"].tolist()}
    )
    np.testing.assert_allclose(log_softmax(said[True]["logits"], 1), log_softmax(expected, 1), atol=1e-4)
    metrics = run.metrics
    assert metrics["teacher"]["quality"] == without.metrics["teacher"]["quality"]  # the teacher's column is its own
    assert "rules" not in without.metrics
    assert "rules" not in without.metrics["teacher"]
    teacher, student = (metrics[name]["rules"] for name in ("teacher", "student"))
    assert teacher["violations"]["hard"]["value"] > 0.4
    assert student["violations"]["hard"]["value"] < 0.1
    assert metrics["rules"]["labels"]["hard"]["value"] == 0.5
    for name in ("teacher", "student"):
        kept = metrics[name]["rules"]["with_rules"]
        assert kept["violations"]["hard"]["value"] == 0
        gain = kept["quality"]["accuracy"]["value"] - metrics[name]["quality"]["accuracy"]["value"]
        assert kept["difference"]["value"] == pytest.approx(gain)
    page = run.report.read_text("utf-8")
    assert "Held to the rules" in page
    assert "said good" in page
    assert "Held to the rules" not in without.report.read_text("utf-8")
    assert load_rules(run.folder / "rules.yaml") == load_rules(rules_yaml)
    rules_yaml.write_text("# a remark\n" + rules_yaml.read_text())
    assert limbeck.distill(held).metrics == metrics
    rules_yaml.write_text(rules_yaml.read_text().replace("1.5", "2"))
    with pytest.raises(InputError, match="the rules changed since"):
        limbeck.distill(held)


def test_rates_and_quality_with_rules_are_those_of_a_count_by_hand(
    command: Any,
    tiny_model_dir: Path,
    rules_yaml: Path,
    reviews_csv: Path,
    reviews: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    code, printed = command(
        "evaluate", str(tiny_model_dir), f"data={reviews_csv}", f"rules={rules_yaml}", f"output={tmp_path}/m.json",
        "resamples=100", "speed=false", "max_length=32",
    )  # fmt: skip
    assert code == 0, printed
    found = json.loads((tmp_path / "m.json").read_text())
    checkpoint = limbeck.checkpoints.open_classifier(str(tiny_model_dir))
    model = HuggingFaceModel(checkpoint, Task("classification", LABELS), 32)
    logits = model.ask(numbered(reviews)).logits
    good = np.array([bool(set(row["text"].split()) & set(GOOD)) for row in reviews])
    long = np.array([len(row["text"].split()) >= 9 for row in reviews])
    truth = np.array([LABELS.index(row["label"]) for row in reviews])
    free = logits.argmax(1)
    moved = logits - np.outer(long, [0, 1.5])
    held = np.where(good, 1, moved.argmax(1))
    rules = found["student"]["rules"]
    assert rules["violations"]["by_rule"] == {
        "said good": pytest.approx((good & (free == 0)).mean()),
        "long is bad": pytest.approx((long & (free == 1)).mean()),
    }
    assert rules["with_rules"]["violations"]["soft"]["value"] == pytest.approx((long & (held == 1)).mean())
    assert rules["with_rules"]["quality"]["accuracy"]["value"] == pytest.approx((held == truth).mean())
    assert [each["applies"] for each in found["rules"]["rules"]] == [good.sum(), long.sum()]
    assert found["rules"]["labels"]["by_rule"]["long is bad"] == pytest.approx((long & (truth == 1)).mean())


def test_rules_are_refused_before_anything_costly(
    tiny_recipe: Callable[..., Recipe], rules_yaml: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="straight from the teacher, whose outputs no rules have corrected"):
        limbeck.distill(tiny_recipe("distilbert", rules=str(rules_yaml)))
    rules_yaml.write_text("- {name: said good, when: [good], allow: postive}")
    with pytest.raises(InputError, match="did you mean 'positive'"):
        limbeck.distill(tiny_recipe(rules=str(rules_yaml)))
    with pytest.raises(InputError, match="no rules file"):
        limbeck.distill(tiny_recipe(rules=str(tmp_path / "none.yaml")))
    assert not (tmp_path / "run").exists()


def test_log_sum_of_the_projection_is_stable_far_from_zero():
    rules = LabelRules(book({"forbid": "cat"}), ANIMALS)
    logits = np.array([[900.0, -900, -901, -905]])
    found = softmax(rules.project(logits, one_text(1)), axis=1)
    expected = np.exp(logits[0, 1:] - logsumexp(logits[0, 1:]))
    np.testing.assert_allclose(found[0], [0, *expected], rtol=1e-12)
