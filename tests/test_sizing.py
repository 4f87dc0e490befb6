"""`limbeck plan`: what it proposes can be made, and is what it said."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_model, make_tokenizer
from test_knowledge import content

import limbeck
from limbeck import preparing, recipe, sizing
from limbeck.errors import InputError
from limbeck.folder import RunFolder
from limbeck.report import advice, plan_table
from limbeck.sizing import Plan, Proposal, Target


def proposal(**changes: object) -> Proposal:
    values = {
        "name": "a", "recipe": "hinton", "settings": {"student.layers": 1}, "parameters": 10, "bytes": 40_000_000,
        "latency_ms": 5.0, "speedup": 2.0, "labelling_seconds": 1.0, "training_seconds": 1.0, "knowledge_bytes": 1,
        "memory_bytes": None,
    }  # fmt: skip
    return Proposal(**(values | changes))


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(), True),
        (Target(speedup=2), True),
        (Target(speedup=2.1), False),
        (Target(latency=5), True),
        (Target(latency=4.9), False),
        (Target(megabytes=40), True),
        (Target(megabytes=39), False),
        (Target(speedup=2, latency=5, megabytes=39), False),
    ],
)
def test_a_target_is_met_where_all_of_it_is(target, met):
    assert target.met_by(proposal()) is met


def test_the_largest_student_that_meets_the_target_is_chosen_and_named():
    large = proposal(name="large", parameters=30, speedup=1.5)
    middle, small = proposal(name="middle", parameters=20), proposal(name="small", speedup=4)
    plan = Plan({"parameters": 40, "bytes": 160, "latency_ms": 10.0}, [large, middle, small], Target(speedup=2))
    assert plan.best is middle
    assert "limbeck distill hinton student.layers=1" in advice(plan)
    assert plan_table(plan).row_count == 4
    none = Plan(plan.teacher, plan.proposals, Target(speedup=9, megabytes=1))
    assert none.best is None
    assert advice(none).startswith("none of these is 9 times faster and at most 1 MB large; ask for less")
    assert "to have a student chosen" in advice(Plan(plan.teacher, plan.proposals, Target()))
    shaped = proposal(settings={"student.shape": {"num_hidden_layers": 1}, "stages.general": None}, speedup=9)
    assert "student.shape='{num_hidden_layers: 1} stages.general=null" not in advice(
        Plan(plan.teacher, [shaped], none.target)
    )
    assert "student.shape='{num_hidden_layers: 1}' stages.general=null" in advice(Plan({}, [shaped], Target(speedup=9)))


def test_what_is_proposed_is_what_is_made(tiny_teacher_dir: Path, reviews_csv: Path, tmp_path: Path):
    before = content(tiny_teacher_dir)
    settings = {"training.epochs": 1, "evaluation.resamples": 100}
    plan = limbeck.plan(teacher=str(tiny_teacher_dir), data=str(reviews_csv), speedup=0.01, **settings)
    assert content(tiny_teacher_dir) == before
    assert [each.parameters for each in plan.proposals] == sorted((p.parameters for p in plan.proposals), reverse=True)
    assert {each.recipe for each in plan.proposals} == {"hinton", "tinybert"}
    assert plan.best is plan.proposals[0]
    for each in plan.proposals:
        assert min(each.latency_ms, each.labelling_seconds, each.training_seconds, each.knowledge_bytes) > 0
        assert each.speedup == pytest.approx(plan.teacher["latency_ms"] / each.latency_ms)
    best = plan.best
    short = {"baseline": False, "export": []}
    made = limbeck.distill(
        best.recipe, teacher=str(tiny_teacher_dir), data=str(reviews_csv), output=tmp_path, **best.settings, **settings,
        **short,
    )  # fmt: skip
    metrics = made.metrics
    assert best.parameters == metrics["student"]["size"]["parameters"]
    assert best.bytes == pytest.approx(metrics["student"]["size"]["bytes"], rel=0.1)
    assert best.knowledge_bytes == pytest.approx(metrics["knowledge"]["bytes"], rel=0.3)


@pytest.mark.parametrize(("every", "saves"), [({}, 2), ({"training.checkpoint_steps": 3}, 6)])
def test_validations_and_checkpoints_are_counted(every, saves, tiny_teacher_dir, reviews_csv, tmp_path, monkeypatch):
    """Of 16 updates in two epochs: as if an update took a second, a validation 100 and a checkpoint 10,000."""
    for name, seconds in (("step", 1), ("validation", 100), ("checkpoint", 10_000)):
        monkeypatch.setattr(sizing._Stopwatch, name, seconds)
    settings = {"teacher": str(tiny_teacher_dir), "data": str(reviews_csv), "output": str(tmp_path), "export": []}
    rules = recipe.load("hinton", settings | {"training.epochs": 2, "training.batch_size": 12, **every})
    ready = preparing.prepare(rules, {}, RunFolder(tmp_path))
    assert len(ready.splits.train) == 96
    seconds, _ = sizing._training(rules, ready)
    assert seconds == 16 + saves * 10_100


def test_objects_are_planned_like_files(reviews):
    from datasets import Dataset

    model = make_model()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    plan = limbeck.plan(
        teacher=(model, make_tokenizer()), data=Dataset.from_list(reviews[:64]), **{"training.epochs": 1}
    )
    assert plan.proposals
    assert all((value == start[name]).all() for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speedup": 0}, "speedup=0 is no target; give a number above 0"),
        ({"megabytes": -1}, "megabytes=-1 is no target"),
        ({"student": {"layers": 1}}, "plan proposes students itself; leave student out"),
        ({"student.layers": 1}, "plan proposes students itself; leave student out"),
        ({"task": "causal-lm"}, "plan is about classifiers and regressors, not causal-lm"),
        ({"training.epoch": 1}, "unknown key"),
    ],
)
def test_what_cannot_be_planned_is_refused(settings, message, tiny_teacher_dir: Path, reviews_csv: Path):
    with pytest.raises(InputError, match=message):
        limbeck.plan(teacher=str(tiny_teacher_dir), data=str(reviews_csv), **settings)


def test_the_command_prints_a_table(tiny_teacher_dir: Path, reviews_csv: Path, capsys):
    from limbeck.cli import app, main

    with pytest.raises(SystemExit):
        main(lambda: app(["plan", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", "--speedup", "0.01"]))
    shown = capsys.readouterr().out
    assert "asking" in shown
    assert "limbeck distill hinton student.layers=" in shown
    for words, said in ((["x", "teacher=a", "data=b"], "'x' is no setting"), (["data=b"], "give teacher=...")):
        with pytest.raises(SystemExit):
            main(lambda words=words: app(["plan", *words]))
        assert said in capsys.readouterr().err
