"""The whole way through the command line and the library: files, resuming, reuse, refusals."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import LABELS, killed_after, make_reviews, make_tokenizer, save_model, write_csv
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file, save_file

import limbeck
from limbeck.checkpoints import open_classifier
from limbeck.errors import InputError
from limbeck.folder import RunFolder
from limbeck.recipe import dump, load, packaged

QUICK = [
    "task.max_length=32",
    "training.epochs=2",
    "training.batch_size=16",
    "training.learning_rate=1e-3",
    "evaluation.resamples=100",
    "evaluation.speed=false",
]
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MODEL_KEYS = {"quality", "retention", "fidelity", "calibration", "size", "speed"}


def test_distill_writes_everything_and_goes_on(
    command: Any, tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path
) -> None:
    words = ["distill", "hinton", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", f"output={tmp_path}/a", *QUICK]
    words[-1] = "evaluation.speed=true"
    code, printed = command(*words)
    assert code == 0, printed
    run = tmp_path / "a"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "knowledge" not in path.parts}
    assert names == {
        "recipe.yaml", "run.json", "environment.json", "metrics.json", "report.html",
        "logs/student.json", "logs/baseline.json",
        *(f"student/{name}" for name in (*MODEL_FILES, "README.md", "model.onnx", "model_int8.onnx")),
        *(f"baseline/{name}" for name in MODEL_FILES),
    }  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["version"] == 1
    for name in ("teacher", "student", "baseline", "student_onnx", "student_int8"):
        assert set(metrics[name]) >= MODEL_KEYS, name
        assert metrics[name]["speed"]["latency_ms_p50"] > 0
    assert metrics["student_onnx"]["max_logit_difference"] < 1e-4
    assert metrics["training"]["student"]["initialisation"] == {"from": "teacher", "layers": [0, 3]}
    losses = [entry for entry in metrics["training"]["student"]["history"]["distill"] if "loss" in entry]
    assert losses
    assert all(e["loss"] == pytest.approx(0.9 * e["soft_targets"] + 0.1 * e["hard_labels"], rel=1e-3) for e in losses)
    store = load_from_disk(str(next((run / "knowledge").iterdir())))
    assert len(store) == metrics["data"]["transfer"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    (run / "stages" / "student-1-distill" / "checkpoint-5").mkdir(parents=True)  # as a kill at the end leaves them
    (run / "stages" / "baseline-1-distill").mkdir()
    code, printed = command(*words)
    assert code == 0
    assert not (run / "stages").exists()
    assert "reused the trained model" in printed
    assert "the teacher was not asked" in printed
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    code, printed = command("distill", str(run / "recipe.yaml"))
    assert code == 0, printed
    assert "reused" in printed
    code, printed = command("report", str(run))
    assert code == 0
    assert "report.html" in printed


@pytest.mark.parametrize("method", ["hinton", "fine-tune"])
def test_a_killed_process_resumes(
    method: str, tmp_path: Path, tiny_teacher_dir: Path, tiny_model_dir: Path, reviews_csv: Path
) -> None:
    teacher = f"teacher={tiny_teacher_dir}" if "teacher" in packaged()[method]["about"]["needs"][:12] else ""
    alone = f"student={tiny_model_dir}"
    verb = "distill" if teacher else "train"
    words = [verb, method, teacher or alone, f"data={reviews_csv}", f"output={tmp_path}/a", "export=[]", *QUICK]
    script = (
        "import os, sys\n"
        "from transformers import Trainer\n"
        "save = Trainer._save_checkpoint\n"
        "def die(self, *args, **kwargs):\n"
        "    save(self, *args, **kwargs)\n"
        "    os.kill(os.getpid(), 9)\n"
        "Trainer._save_checkpoint = die\n"
        "from limbeck import cli\n"
        "cli.main()\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    again = subprocess.run([sys.executable, "-m", "limbeck", *words], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr
    model = "student" if teacher else "model"
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    (history,) = metrics["training"]["student"]["history"].values()
    assert [entry["epoch"] for entry in history if "eval_accuracy" in entry] == [1.0, 2.0]
    assert (tmp_path / "a" / "report.html").exists()
    check = (
        "import sys; sys.modules['limbeck'] = None\n"
        "from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T\n"
        f"m, t = M.from_pretrained('{tmp_path}/a/{model}'), T.from_pretrained('{tmp_path}/a/{model}')\n"
        "print(m.config.id2label, m(**t('a good soup', return_tensors='pt')).logits.tolist())\n"
    )
    opened = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert opened.returncode == 0, opened.stderr
    student = open_classifier(f"{tmp_path}/a/{model}")
    logits = student.model(**student.tokenizer("a good soup", return_tensors="pt")).logits.tolist()
    assert opened.stdout.strip() == f"{student.model.config.id2label} {logits}"


def test_the_library_takes_objects(tmp_path: Path, tiny_teacher_dir: Path, reviews: list[dict[str, Any]]) -> None:
    model, tokenizer, _ = open_classifier(str(tiny_teacher_dir))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = {word.split("=")[0]: yaml.safe_load(word.split("=")[1]) for word in QUICK}
    arguments = {"teacher": (model, tokenizer), "data": Dataset.from_list(reviews), "output": tmp_path / "a",
                 "student": {"layers": [1]}, "baseline": False, "export": [], **settings}  # fmt: skip
    run = limbeck.distill(**arguments)
    assert run.model.config.num_hidden_layers == 1
    assert run.metrics["student"]["size"]["parameters"] < run.metrics["teacher"]["size"]["parameters"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    recipe = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())
    assert recipe["teacher"]["models"][0]["model"].startswith("memory:")
    assert limbeck.distill(**arguments).metrics == run.metrics
    with pytest.raises(limbeck.InputError, match="in memory"):
        limbeck.distill(tmp_path / "a" / "recipe.yaml")
    with pytest.raises(limbeck.InputError, match=r"give \(model, tokenizer\)"):
        limbeck.distill(teacher=model, data=Dataset.from_list(reviews), output=tmp_path / "b")


def test_label_then_distill_reuses_what_was_said(
    command: Any, tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path, unlabelled_csv: Path
) -> None:
    shared = [f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", f"data.unlabelled={unlabelled_csv}",
              f"knowledge={tmp_path}/k", "teacher.features=[-1]", "export=[]", *QUICK]  # fmt: skip
    code, printed = command("label", *shared, f"output={tmp_path}/a")
    assert code == 0, printed
    assert "146 examples" in printed  # 120 less a tenth for test and a tenth for validation, and 50 unlabelled
    code, printed = command("distill", *shared, f"output={tmp_path}/b")
    assert code == 0, printed
    assert "reused 146 examples" in printed
    training = json.loads((tmp_path / "b" / "metrics.json").read_text())["training"]
    steps = {name: training[name]["history"]["distill"][-1]["step"] for name in ("student", "baseline")}
    assert steps["student"] == 20  # 146 examples in batches of 16, twice
    assert abs(steps["baseline"] - steps["student"]) <= 1  # as much training on the 96 labelled ones


def test_text_without_labels_is_labelled_whole(
    command: Any, tmp_path: Path, tiny_teacher_dir: Path, unlabelled_csv: Path
) -> None:
    code, printed = command("label", f"teacher={tiny_teacher_dir}", f"data={unlabelled_csv}", f"output={tmp_path}/a")
    assert code == 0, printed
    assert "no label column" in printed
    (store,) = (tmp_path / "a" / "knowledge").iterdir()
    said = load_from_disk(str(store))
    assert (len(said), said.column_names) == (50, ["text", "logits"])


def test_train_then_distill_from_the_run_folder(
    command: Any, tmp_path: Path, tiny_model_dir: Path, reviews_csv: Path
) -> None:
    code, printed = command("train", f"student={tiny_model_dir}", f"data={reviews_csv}", f"output={tmp_path}/t", *QUICK)
    assert code == 0, printed
    words = [f"teacher={tmp_path}/t", f"data={reviews_csv}", "baseline=false", "export=[]", *QUICK]
    code, printed = command("distill", *words, f"output={tmp_path}/d")
    assert code == 0, printed
    code, printed = command("evaluate", f"{tmp_path}/d", f"data={reviews_csv}", f"teacher={tmp_path}/t",
                            f"output={tmp_path}/m.json", "resamples=100", "speed=false")  # fmt: skip
    assert code == 0, printed
    assert json.loads((tmp_path / "m.json").read_text())["student"]["fidelity"]["agreement"] > 0.5


@pytest.mark.parametrize("kind", ["multi-label", "regression", "pair"])
def test_other_tasks_end_to_end(kind: str, tmp_path: Path) -> None:
    rows = make_reviews(90)
    good = [row["label"] == LABELS[1] for row in rows]
    columns: dict[str, list[Any]] = {"text": [row["text"] for row in rows]}
    settings: dict[str, Any] = {}
    if kind == "multi-label":
        columns["labels"] = [["nice", "any"] if each else ["any"] if i % 3 else [] for i, each in enumerate(good)]
        settings["task"] = "multi-label"
    elif kind == "regression":
        columns["score"] = [float(each) + 0.01 * i for i, each in enumerate(good)]
        settings["task"] = "regression"
    else:
        columns = {"sentence1": columns["text"], "sentence2": columns["text"][::-1], "label": [int(e) for e in good]}
    data = Dataset.from_dict(columns)
    quick = {word.split("=")[0]: yaml.safe_load(word.split("=")[1]) for word in QUICK} | settings
    base = save_model(tmp_path / "base")
    teacher = limbeck.train(base, data=data, output=tmp_path / "t", **quick)
    run = limbeck.distill(teacher=tmp_path / "t", data=data, output=tmp_path / "d", **quick)
    assert run.metrics["task"]["pair"] == (kind == "pair")
    assert teacher.metrics["student"]["size"] == run.metrics["teacher"]["size"]
    expected = {"multi-label": "multi_label_classification", "regression": "regression"}
    assert run.model.config.problem_type == expected.get(kind, "single_label_classification")
    assert run.metrics["student_onnx"]["max_logit_difference"] < 1e-4
    assert (tmp_path / "d" / "report.html").stat().st_size > 10_000


def test_two_processes_train_one_student(tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path) -> None:
    words = ["distill", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", "baseline=false", "export=[]", *QUICK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Accelerate starts several processes only when told --multi_gpu; where there is no GPU they speak over gloo.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "limbeck"]  # fmt: skip
    two = [*launch, *words, f"output={tmp_path}/two", "training.batch_size=8"]
    done = subprocess.run(two, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one = subprocess.run([sys.executable, "-m", "limbeck", *words, f"output={tmp_path}/one"], capture_output=True,
                         text=True, env=environment)  # fmt: skip
    assert one.returncode == 0, one.stderr[-3000:]
    stores = [sorted((tmp_path / name / "knowledge").rglob("*.arrow")) for name in ("one", "two")]
    assert stores[0][0].read_bytes() == stores[1][0].read_bytes()
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    steps = [metric["training"]["student"]["history"]["distill"][-1]["step"] for metric in metrics]
    assert steps[0] == steps[1]  # 16 examples to a step on one process, 8 on each of two
    assert "report:" in done.stdout
    assert done.stdout.count("report:") == 1


def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path
) -> None:
    """Two processes are killed after a checkpoint; one goes on, and the student is that of one process throughout."""
    quick = [
        "training.epochs=3",
        "training.precision=float32",
        "training.dropout=false",
        "training.checkpoint_steps=5",
        "training.learning_rate=1e-3",
    ]
    words = ["distill", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", "baseline=false", "export=[]", "seed=3",
             *quick, "evaluation.resamples=100", "evaluation.speed=false"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    dying = killed_after(10) + "from limbeck.cli import main\nmain()\n"
    (tmp_path / "dying.py").write_text(dying)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    two = [*launch, str(tmp_path / "dying.py"), *words, f"output={tmp_path}/two", "training.batch_size=8"]
    assert subprocess.run(two, capture_output=True, text=True, env=environment, timeout=300).returncode != 0
    assert list((tmp_path / "two").rglob("checkpoint-*/trainer_state.json"))
    limbeck = [sys.executable, "-m", "limbeck", *words]
    other = subprocess.run(
        [*limbeck, f"output={tmp_path}/two", "training.batch_size=8"], capture_output=True, text=True, env=environment
    )
    assert "its training.examples of an update is 16, yours is 8" in other.stderr
    for name in ("two", "one"):
        done = subprocess.run(
            [*limbeck, f"output={tmp_path}/{name}", "training.batch_size=16"], capture_output=True, text=True,
            env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("going on from" in done.stderr) == (name == "two")
    one, two_then_one = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert (value - two_then_one[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize("more", [[], ["training.layer_drop=0.5"], ["training.dropout=false"]])
def test_a_profile_says_where_time_goes_and_changes_nothing(
    more: list[str], tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from limbeck.cli import app, main

    words = [f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", "baseline=false", "export=[]", "training.epochs=2"]
    words += ["training.batch_size=4", "evaluation.resamples=100", "evaluation.speed=false", *more]
    for name, told in (("plain", []), ("told", ["--profile"])):
        with pytest.raises(SystemExit) as done:
            main(lambda told=told, name=name: app(["distill", *words, f"output={tmp_path}/{name}", *told]))
        assert done.value.code == 0
    assert "above the floor (" in capsys.readouterr().err
    found = json.loads((tmp_path / "told" / "logs" / "profile-student-1-distill.json").read_text())
    assert found["updates"] == 30
    low, high = found["quartiles"]
    assert low <= found["above the floor"] <= high
    assert found["floor"] > 0
    parts = {"data", "knowledge or teacher", "forward", "terms", "backward", "update", "clipping, logging, waiting"}
    assert set(found["profiled"]) == parts
    assert all(seconds > 0 for seconds in found["profiled"].values())
    assert (tmp_path / "told" / "logs" / "profile-student-1-distill.trace.json").is_file()
    one, two = ((tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("plain", "told"))
    assert one == two


# --- what is refused, each in a sentence and before training ---------------------------------------------------------


def _pickled(folder: Path, source: Path) -> Path:
    shutil.copytree(source, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def _wrong_tokenizer(folder: Path, source: Path) -> Path:
    shutil.copytree(source, folder)
    make_tokenizer(extra=[f"word{i}" for i in range(500)]).save_pretrained(folder)
    return folder


def _table(folder: Path, **columns: Any) -> Path:
    rows = make_reviews(40)
    for name, change in columns.items():
        for index, row in enumerate(rows):
            row[name] = change(index, row)
    return write_csv(folder / "bad.csv", rows)


BAD: dict[str, tuple[Callable[[Path, Path], list[str]], str]] = {
    "missing file": (lambda f, t: ["data=nowhere.csv"], "no file or folder 'nowhere.csv'"),
    "wrong column": (lambda f, t: ["data.label=lable"],
                     "column 'lable', which is not in the data; did you mean 'label'"),
    "empty text": (lambda f, t: [f"data={_table(f, text=lambda i, r: '' if i == 6 else r['text'])}"],
                   "1 of 40 texts in column 'text' of the train data are empty (first: row 7)"),
    "NaN label": (lambda f, t: [f"data={_table(f, label=lambda i, r: '' if i == 2 else r['label'])}"],
                  "1 of 40 labels in column 'label' are missing or not finite (first: row 3)"),
    "one class": (lambda f, t: [f"data={_table(f, label=lambda i, r: 'positive')}"], "two classes are needed"),
    "other labels": (lambda f, t: [f"data={_table(f, label=lambda i, r: 'spam' if i % 2 else 'ham')}"],
                     "the data's labels are ham, spam, the teacher's are negative, positive"),
    "tokenizer": (lambda f, t: [f"teacher={_wrong_tokenizer(f / 'm', t)}"], "they do not fit"),
    "unknown key": (lambda f, t: ["training.epoch=3"], "training: unknown key 'epoch'; did you mean 'epochs'?"),
    "temperature": (lambda f, t: ["stages.distill.objectives.soft_targets.temperature=-2"],
                    "temperature: input should be greater than 0, not -2"),
    "pickle": (lambda f, t: [f"teacher={_pickled(f / 'm', t)}"], "pytorch_model.bin, a pickle that could run code"),
    "larger student": (lambda f, t: ["student.shape={hidden_size: 64, intermediate_size: 256}"],
                       "more than the teacher's"),
    "too many layers": (lambda f, t: ["student.layers=9"], "student.layers is 9, but the teacher has 4 layers"),
    "unknown method": (lambda f, t: ["hintn"], "no recipe 'hintn'"),
    "metric": (lambda f, t: ["evaluation.metric=acuracy"], "did you mean 'accuracy'?"),
    "length": (lambda f, t: ["task.max_length=4000"], "task.max_length is 4000, but bert reads at most"),
    "layer to keep": (lambda f, t: ["teacher.features=[7]"], "asks for layer 7"),
    "regression teacher": (lambda f, t: ["task=regression", f"data={_table(f, label=lambda i, r: i / 7)}"],
                           "the teacher has 2 outputs"),
    "no teacher": (lambda f, t: ["teacher="], "give teacher="),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_sentence_and_exit_code_2(
    case: str, command: Any, tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path
) -> None:
    make, expected = BAD[case]
    words = [f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", f"output={tmp_path}/out", "export=[]", *QUICK]
    code, printed = command("distill", *words, *make(tmp_path, tiny_teacher_dir))
    assert code == 2, printed
    assert expected in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "student").exists()


def test_another_run_s_folder_is_refused(command: Any, tmp_path: Path, tiny_teacher_dir: Path, reviews: Any) -> None:
    data = write_csv(tmp_path / "d.csv", reviews)
    words = [
        f"teacher={tiny_teacher_dir}",
        f"data={data}",
        "baseline=false",
        "export=[]",
        f"output={tmp_path}/a",
        *QUICK,
    ]
    assert command("distill", *words)[0] == 0
    code, printed = command("distill", *words, "training.epochs=1")
    assert code == 2
    assert "holds another run: its training.epochs is 2.0, yours is 1.0" in printed
    write_csv(data, reviews[:-1])
    code, printed = command("distill", *words)
    assert code == 2
    assert "the data changed since" in printed
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "student").mkdir()
    code, printed = command("distill", *[w for w in words if "output" not in w], f"output={tmp_path}/mine")
    assert code == 2
    assert "holds student, which the run would overwrite" in printed


def test_what_decides_the_student_makes_another_run_and_what_does_not_does_not(tmp_path: Path) -> None:
    given = {"teacher": {"models": ["A", "B"]}, "data": "d.csv", "output": str(tmp_path)}
    server = {"model": "m", "server": "http://localhost:1/v1", "http": {"body": {"inputs": "{text}"}, "label": "label"}}
    served = {**given, "teacher": server, "student": "S"}
    patient = {**given, "training.patience": 2}
    folder = RunFolder(tmp_path)
    for before, after, key in (
        (given, {**given, "evaluation.metric": "f1_macro"}, None),  # the last checkpoint is kept, whatever is measured
        (patient, {**patient, "evaluation.metric": "f1_macro"}, "evaluation.metric"),
        (patient, {**patient, "evaluation.resamples": 200}, None),
        (served, {**served, "teacher.timeout": 3, "teacher.limit": {"calls": 5}}, None),
        (served, {**served, "teacher.http.body": {"inputs": "{text}", "limit": 5}}, "teacher.models.0.http.body.limit"),
    ):
        folder.recipe.write_text(dump(load("hinton", before)), "utf-8")
        if key is None:
            folder.check(load("hinton", after))
            continue
        with pytest.raises(InputError, match=re.escape(f"its {key} is")):
            folder.check(load("hinton", after))


def test_a_changed_teacher_is_noticed(command: Any, tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path) -> None:
    teacher = shutil.copytree(tiny_teacher_dir, tmp_path / "teacher")
    words = [f"teacher={teacher}", f"data={reviews_csv}", "baseline=false", "export=[]", *QUICK]
    assert command("distill", *words, f"output={tmp_path}/a", f"knowledge={tmp_path}/k")[0] == 0
    weights = load_file(teacher / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 0.5
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    code, printed = command("distill", *words, f"output={tmp_path}/a", f"knowledge={tmp_path}/k")
    assert code == 2
    assert "teacher" in printed
    assert "changed since" in printed
    code, printed = command("distill", *words, f"output={tmp_path}/b", f"knowledge={tmp_path}/k")
    assert code == 0, printed
    assert "made with other teacher" in printed
    assert len(list((tmp_path / "k").iterdir())) == 2


def test_a_damaged_shard_is_named_and_mended(
    command: Any, tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path
) -> None:
    words = [f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", f"output={tmp_path}/a", *QUICK]
    assert command("label", *words)[0] == 0
    (shard,) = (tmp_path / "a" / "knowledge").rglob("*.arrow")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    code, printed = command("distill", *words)
    assert code == 2
    assert "shard-00000.arrow is damaged" in printed
    shard.unlink()
    assert command("label", *words)[0] == 0
    assert shard.read_bytes() == whole


def test_a_full_disk_is_foreseen(
    command: Any, tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    words = [f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", f"output={tmp_path}/a", *QUICK]
    code, printed = command("distill", *words)
    assert code == 2
    assert "needs about" in printed
    assert "are free" in printed


def test_a_disk_that_fills_part_way_loses_nothing(
    command: Any, tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", f"output={tmp_path}/a", "baseline=false",
             "export=[]", *QUICK]  # fmt: skip
    with monkeypatch.context() as broken:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device", "model.safetensors")

        broken.setattr("limbeck.training.stages.save_model", full)
        code, printed = command("distill", *words)
    assert code == 1
    assert "the disk is full while writing model.safetensors" in printed
    code, printed = command("distill", *words)
    assert code == 0, printed
    assert "going on from" in printed


def test_schema_methods_doctor_and_help(command: Any) -> None:
    code, printed = command("schema")
    assert code == 0
    assert json.loads(printed)["title"] == "Recipe"
    code, printed = command("methods", "show", "hinton")
    assert code == 0
    assert yaml.safe_load(printed)["stages"][0]["objectives"]["soft_targets"]["temperature"] == 2
    code, printed = command("methods", "show", "hintom")
    assert code == 2
    assert "hinton" in printed
    assert "0 2 4 7 9 11" in command("methods", "layers")[1]
    assert "float32" in command("doctor")[1] or "bfloat16" in command("doctor")[1]
    code, printed = command("distill", "--help")
    assert code == 0
    assert "teacher=DIR" in printed


def test_docs_are_those_of_the_schema_and_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parent.parent
    monkeypatch.syspath_prepend(root / "docs")
    generate: Any = importlib.import_module("generate")
    assert (root / "docs" / "recipe.md").read_text() == generate.render(), "run make docs"
    readme = (root / "README.md").read_text()
    assert readme == generate.readme(readme), "run make docs"
    for page in generate.pages():
        assert page.read_text() == generate.page(page.read_text()), "run make docs"
