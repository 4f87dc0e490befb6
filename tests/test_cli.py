"""What the command line and the functions behind it refuse, each in a sentence, before anything costly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import LABELS, make_model, make_tokenizer, save_model, write_jsonl
from test_report import RECIPE, bare

import limbeck
from limbeck.doctor import reason_for
from limbeck.errors import InputError
from limbeck.given import resolve

QUICK = {"resamples": 100, "speed": False}


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "model=X", "data=Y"], "unknown key 'model'; the model to train is given as student=MODEL"),
        (["train", "settings=X", "data=Y"], "unknown key 'settings'"),
        (["train", "fine-tune", "pretrain", "data=Y"], "'fine-tune' and 'pretrain' are given where one recipe goes"),
        (["train", "fine-tune", "recipe=pretrain"], "'fine-tune' and recipe=pretrain are given, but one recipe goes"),
        (["distill", "hinton", "pkd"], "'hinton' and 'pkd' are given where one recipe goes; settings are KEY=VALUE"),
        (["distill", "hinton", "recipe=x"], "'hinton' and recipe=x are given, but one recipe goes"),
        (["distill", "settings=x"], "unknown key 'settings'"),
        (["label", "hinton", "pkd"], "where one recipe goes"),
        (["generate", "seqkd", "recipe=x"], "but one recipe goes"),
        (["evaluate", "A", "B", "data=Y"], "'A' and 'B' are given where one model goes"),
        (["evaluate", "A", "model=B", "data=Y"], "'A' and model=B are given, but one model goes"),
        (["evaluate", "model=B", "data=Y"], "unknown key 'model'"),
        (["evaluate", "A", "settings=B", "data=Y"], "unknown key 'settings'"),
        (["evaluate", "no/model", "data=no.csv", "resamples=50"], "resamples: input should be greater than"),
        (["evaluate", "no/model", "data=no.csv", "speed=perhaps"], "speed: input should be a valid boolean"),
        (["evaluate", "no/model", "data=no.csv", "output=no/such/dir/m.json"], "to write m.json into"),
        (["evaluate", "no/model", "data=no.csv", "output=."], "is a folder; give a file to write"),
        (["benchmark", "no/model", "--output", "."], "is a folder; give a file to write"),
        (["export", "no/model", "out", "formats=int4"], "did you mean 'int8'?"),
    ],
)
def test_a_mistaken_line_is_refused_in_a_sentence(words: list[str], says: str, command: Any) -> None:
    code, printed = command(*words)
    assert code == 2, printed
    assert says in flat(printed)


# --- the report again -----------------------------------------------------------------------------------------------


def test_a_report_needs_the_recipe_but_not_the_model(command: Any, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(bare()))
    code, printed = command("report", str(tmp_path))
    assert code == 2
    assert "holds no recipe.yaml" in flat(printed)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code, printed = command("report", str(tmp_path))
    assert code == 0, printed
    assert "no model card" in printed
    assert (tmp_path / "report.html").stat().st_size > 0


# --- several teachers -----------------------------------------------------------------------------------------------


def test_teachers_in_a_tuple_are_several_teachers(tmp_path: Path) -> None:
    recipe, _ = resolve("hinton", {"teacher": ("A", Path("B")), "data": "d", "output": tmp_path})
    assert [each.model for each in recipe.teacher.models] == ["A", "B"]
    pair = (make_model("bert"), make_tokenizer())
    recipe, objects = resolve("hinton", {"teacher": (pair, "B"), "data": "d", "output": tmp_path})
    assert [each.model for each in recipe.teacher.models] == [*objects, "B"]
    recipe, objects = resolve("hinton", {"teacher": pair, "data": "d", "output": tmp_path})
    assert [each.model for each in recipe.teacher.models] == [*objects]


def test_a_model_object_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    model = make_model("bert")
    for wrong in (model, (model, model), [model], (model, "B")):
        with pytest.raises(InputError, match="needs its tokenizer beside it"):
            limbeck.distill(teacher=wrong, data="d", output=tmp_path)
    with pytest.raises(InputError, match="one model is needed here, not 2"):
        limbeck.distill(teacher="t", student=("A", "B"), data="d", output=tmp_path)
    with pytest.raises(InputError, match="one model is needed here, not 2"):
        limbeck.export(("A", "B"), tmp_path / "out")


# --- models and examples that do not fit ----------------------------------------------------------------------------


def test_a_teacher_whose_labels_stand_in_another_order_is_refused(tmp_path: Path, reviews_csv: Path) -> None:
    student = save_model(tmp_path / "s")
    for labels in (LABELS[::-1], (*LABELS, "neutral"), ("ham", "spam")):
        teacher = save_model(tmp_path / "t", labels)
        with pytest.raises(
            InputError, match=f"{', '.join(labels)}, those of .* are negative, positive; give a teacher"
        ):
            limbeck.evaluate(student, reviews_csv, teacher=teacher, **QUICK)
        shutil.rmtree(teacher)
    unnamed = save_model(tmp_path / "u", None)
    assert limbeck.evaluate(student, reviews_csv, teacher=unnamed, **QUICK)["student"]["fidelity"]["agreement"] >= 0
    more = save_model(tmp_path / "m", None, num_labels=3)
    with pytest.raises(InputError, match="LABEL_0, LABEL_1, LABEL_2, those of"):
        limbeck.evaluate(student, reviews_csv, teacher=more, **QUICK)


def test_a_model_of_another_problem_is_not_measured(tmp_path: Path, reviews_csv: Path) -> None:
    student = save_model(tmp_path / "s")
    other = save_model(tmp_path / "o", problem_type="multi_label_classification")
    for model, teacher in ((other, None), (student, other)):
        with pytest.raises(InputError, match="o' was trained for multi_label_classification, the task is classifica"):
            limbeck.evaluate(model, reviews_csv, teacher=teacher, **QUICK)


def test_models_that_read_something_else_are_not_asked(
    tmp_path: Path,
    tiny_teacher_dir: Path,
    image_teacher: Path,
    images_npz: Path,
    unlabelled_csv: Path,
    reviews_csv: Path,
) -> None:
    named = save_model(tmp_path / "n", None)
    with pytest.raises(InputError, match="reads text, and the examples are images"):
        limbeck.evaluate(named, images_npz, **QUICK)
    unnamed = write_jsonl(tmp_path / "d.jsonl", [{"text": f"word {n}", "label": n % 2} for n in range(20)])
    with pytest.raises(InputError, match="reads images, and the examples are text"):
        limbeck.evaluate(image_teacher, unnamed, **QUICK)
    with pytest.raises(InputError, match="reads images, and the examples are text"):
        limbeck.label(teacher=image_teacher, data=unlabelled_csv, output=tmp_path / "run")
    other = save_model(tmp_path / "o", problem_type="multi_label_classification")
    with pytest.raises(InputError, match="was trained for multi_label_classification"):
        limbeck.label(teacher=other, data=unlabelled_csv, output=tmp_path / "run")


def test_the_reason_for_a_precision_is_the_device_s() -> None:
    assert "AVX512" in reason_for("float32", "cpu")
    assert "Apple" in reason_for("float32", "mps")
    assert "computes in it" in reason_for("bfloat16", "cuda")
