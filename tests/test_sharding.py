"""Students and teachers that are split over processes: the student is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import killed_after, make_causal, make_chat_tokenizer, make_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from limbeck.checkpoints import open_classifier
from limbeck.errors import InputError
from limbeck.recipe import load
from limbeck.sharding import check_sharding, check_split

TESTS = Path(__file__).parent
SAME = [
    "training.dropout=false",
    "training.precision=float32",
    "training.learning_rate=1e-3",
    "training.epochs=2",
    "seed=3",
    "baseline=false",
    "export=[]",
    "evaluation.resamples=100",
    "evaluation.speed=false",
]


def split_run(
    layer: str, *words: str, before: str = "", folder: Path, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """`limbeck` on processes under FSDP as `accelerate launch` starts it, with CPUs in the place of GPUs."""
    script = folder / "limbeck_sharded.py"
    script.write_text(before + (TESTS / "sharded.py").read_text().replace("from __future__ import annotations\n", ""))
    settings = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": layer,
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        str(script),
    ]
    done = subprocess.run(
        [*launch, *words], capture_output=True, text=True, env=os.environ | settings, timeout=300, check=False
    )
    assert done.returncode == 0 or before, done.stderr[-6000:]
    return done


def differ(one: Path, other: Path) -> float:
    """The largest difference of two students' weights."""
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    # Keys' biases have no gradient but rounding's: a softmax does not change with them.
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours if not name.endswith("key.bias"))


def test_a_split_student_that_was_killed_and_went_on_in_four_processes_is_that_of_one(
    tmp_path, tiny_teacher_dir, reviews_csv, command
):
    words = ["distill", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", *SAME]
    two = [*words, "training.batch_size=8", f"output={tmp_path / 'two'}"]
    assert split_run("BertLayer", *two, before=killed_after(1), folder=tmp_path).returncode != 0
    assert list((tmp_path / "two").rglob("checkpoint-*/pytorch_model_fsdp_0/.metadata"))
    code, printed = command(*words, "training.batch_size=16", f"output={tmp_path / 'two'}")
    assert code == 2
    assert (
        "stage distill was stopped under FSDP and this run is without FSDP or DeepSpeed; launch as before, or remove"
        in printed
    )
    four = [*words, "training.batch_size=4", f"output={tmp_path / 'two'}"]
    assert "going on from" in split_run("BertLayer", *four, folder=tmp_path, processes=4).stderr
    assert command(*words, "training.batch_size=16", f"output={tmp_path / 'one'}")[0] == 0
    assert differ(tmp_path / "one", tmp_path / "two") < 1e-5
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert metrics[0]["student"]["quality"] == metrics[1]["student"]["quality"]
    open_classifier(str(tmp_path / "two"))


def test_layers_of_a_split_teacher_are_learnt_by_a_split_student(tmp_path, tiny_teacher_dir, reviews_csv, command):
    words = ["distill", "tinybert", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", "stages.general=null", *SAME]
    words += ["student.shape={num_hidden_layers: 2, hidden_size: 16, intermediate_size: 32}"]
    two = [*words, "teacher.sharded=true", "training.batch_size=8", f"output={tmp_path / 'two'}"]
    split_run("BertLayer", *two, folder=tmp_path)
    assert command(*words, "training.batch_size=16", f"output={tmp_path / 'one'}")[0] == 0
    assert differ(tmp_path / "one", tmp_path / "two") < 1e-5
    assert not [name for name in load_file(tmp_path / "two" / "student" / "model.safetensors") if "limbeck" in name]


def test_what_is_within_split_layers_is_learnt(tmp_path, tiny_teacher_dir, reviews_csv, corpus_txt, command):
    """The last layer's own output is no part of MiniLM's loss, from which FSDP sees that its weights are needed."""
    words = ["distill", "minilmv2", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", f"data.corpus={corpus_txt}"]
    words += ["student.shape={num_hidden_layers: 2, hidden_size: 16, intermediate_size: 32}", "stages.fine-tune=null"]
    words += ["stages.general.task.max_length=32", *SAME]
    words += ["stages.general.objectives.relations.heads=4", "stages.general.training.epochs=0.5"]
    two = [*words, "teacher.sharded=true", "training.batch_size=8", f"output={tmp_path / 'two'}"]
    split_run("BertLayer", *two, folder=tmp_path)
    assert command(*words, "training.batch_size=16", f"output={tmp_path / 'one'}")[0] == 0
    assert differ(tmp_path / "one", tmp_path / "two") < 1e-5


def test_words_of_a_split_teacher_are_learnt_by_a_split_student(tmp_path, corpus_txt, command):
    tokenizer = make_chat_tokenizer()
    make_causal(tokenizer).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    words = ["distill", "word-kd", f"teacher={tmp_path / 'teacher'}", f"data={corpus_txt}", "teacher.words=nothing"]
    words += ["student={layers: 2}", "task.max_length=32", *SAME, "training.epochs=0.5", "evaluation.examples=16"]
    two = [*words, "teacher.sharded=true", "training.batch_size=4", f"output={tmp_path / 'two'}"]
    split_run("LlamaDecoderLayer", *two, folder=tmp_path)
    assert command(*words, "training.batch_size=8", f"output={tmp_path / 'one'}")[0] == 0
    assert differ(tmp_path / "one", tmp_path / "two") < 1e-5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "student")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


UNUSED: dict[str, Any] = {"teacher": "unused", "data": "unused", "output": "unused"}


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "asks for version 1 of FSDP, and training needs version 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {}, "which a student that FSDP splits cannot give"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            {"training.layer_drop": 0.5, "training.dropout": True},
            "skips layers at random (training.layer_drop is 0.5), which FSDP cannot do",
        ),
        (
            {},
            {"teacher.sharded": True, "stages.distill.on_policy.teacher_share": 0.2},
            "mixes the teacher's words into answers (on_policy.teacher_share is 0.2)",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(settings, changes, said, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        check_sharding(load("gkd", UNUSED | changes))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "recipe", "student", "teacher", "said"),
    [
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer"}, {}, "bert", "bert",
         "has FSDP split LlamaDecoderLayer, and a BertForSequenceClassification has none; set "
         "fsdp_transformer_layer_cls_to_wrap to BertEmbeddings or BertLayer"),
        ({}, {"teacher.sharded": True}, "bert", "albert", "a AlbertForSequenceClassification has no single stack"),
        ({}, {"teacher.sharded": True}, "bert", "deberta-v2", "scores of a DebertaV2ForSequenceClassification take"),
        ({}, {}, "deberta-v2", "bert", "attention scores of a DebertaV2ForSequenceClassification take weights"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_split_are_refused(settings, recipe, student, teacher, said, monkeypatch):
    for name, value in {"ACCELERATE_USE_FSDP": "true", **settings}.items():
        monkeypatch.setenv(name, value)
    made = load("tinybert", {**UNUSED, "stages.general": None, "student.shape": {"num_hidden_layers": 1}, **recipe})
    with pytest.raises(InputError) as refused:
        check_split(made, make_model(student), [make_model(teacher)])
    assert said in str(refused.value)
