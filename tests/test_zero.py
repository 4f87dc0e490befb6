"""DeepSpeed trains students on two processes: the student is that of one process, or the run is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import killed_after, make_causal, make_chat_tokenizer
from safetensors.torch import load_file
from test_sharding import SAME, UNUSED, differ
from transformers import AutoModelForCausalLM

from limbeck import extras
from limbeck.errors import InputError
from limbeck.recipe import load
from limbeck.zero import check_zero

FILE = {
    "zero_optimization": {"stage": 2},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


def zero_run(*words: str, folder: Path, before: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """`limbeck` on two processes with DeepSpeed, as `accelerate launch` starts it."""
    script = folder / "limbeck_zero.py"
    # DeepSpeed would compile a way through shared memory, in which processes wait for each other by spinning.
    plain = "import importlib\nimportlib.import_module('deepspeed.comm.torch').build_shm_op = lambda: None\n"
    script.write_text(f"{before}\n{plain}from limbeck.cli import main\nmain()\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    own |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    # What `accelerate config` always says, and a recipe says better.
    own |= {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}
    done = subprocess.run(
        [*launch, *words], capture_output=True, text=True, env=os.environ | own | settings, timeout=600, check=False
    )
    assert done.returncode == 0 or before, done.stderr[-6000:]
    return done


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("zero") / "deepspeed.json"
    path.write_text(json.dumps(FILE))
    return str(path)


def test_a_student_that_was_killed_is_that_of_one_process(tmp_path, tiny_teacher_dir, reviews_csv, command, file):
    words = ["distill", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", *SAME, "training.max_grad_norm=0.1"]
    words += ["training.schedule=constant", "training.patience=9"]  # so that the best checkpoint is taken at the end
    two = [*words, "training.batch_size=4", "training.gradient_accumulation=2", f"output={tmp_path / 'two'}"]
    own = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": file}
    assert zero_run(*two, before=killed_after(1), folder=tmp_path, **own).returncode != 0
    assert list((tmp_path / "two").rglob("checkpoint-*/global_step*/*_optim_states.pt"))
    whole = [*words, "training.batch_size=16", f"output={tmp_path / 'two'}"]
    code, printed = command(*whole)
    assert code == 2
    assert "was stopped under DeepSpeed and this run is without FSDP or DeepSpeed; launch as before" in printed
    assert "going on from" in zero_run(*two, folder=tmp_path, **own).stderr
    assert command(*words, "training.batch_size=16", f"output={tmp_path / 'one'}")[0] == 0
    assert differ(tmp_path / "one", tmp_path / "two") < 1e-5
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert metrics[0]["student"]["quality"] == metrics[1]["student"]["quality"]


def test_stages_on_layers_are_learnt_one_after_the_other(tmp_path, tiny_teacher_dir, reviews_csv, command):
    words = ["distill", "tinybert", f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", "stages.general=null", *SAME]
    words += ["student.shape={num_hidden_layers: 2, hidden_size: 16, intermediate_size: 32}"]
    words += ["training.weight_decay=0"]  # of the head, too, which the first stage does not reach, as with FSDP
    two = [*words, "training.batch_size=8", f"output={tmp_path / 'two'}", "--profile"]
    zero_run(*two, folder=tmp_path, ACCELERATE_DEEPSPEED_ZERO_STAGE="1")
    assert command(*words, "training.batch_size=16", f"output={tmp_path / 'one'}")[0] == 0
    assert differ(tmp_path / "one", tmp_path / "two") < 1e-5
    assert not [name for name in load_file(tmp_path / "two" / "student" / "model.safetensors") if "limbeck" in name]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_words_are_learnt_with_a_tied_head(precision, tmp_path, corpus_txt, command):
    tokenizer = make_chat_tokenizer()
    make_causal(tokenizer).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    words = ["distill", "word-kd", f"teacher={tmp_path / 'teacher'}", f"data={corpus_txt}", "student={layers: 2}"]
    words += ["task.max_length=32", *SAME, "training.epochs=0.5", "evaluation.examples=16"]
    words += [f"training.precision={precision}"]
    zero_run(*words, "training.batch_size=4", f"output={tmp_path / 'two'}", folder=tmp_path)
    assert command(*words, "training.batch_size=8", f"output={tmp_path / 'one'}")[0] == 0
    assert (
        command(*words, "training.batch_size=8", "training.learning_rate=1e-9", f"output={tmp_path / 'start'}")[0] == 0
    )
    moved = differ(tmp_path / "start", tmp_path / "one")
    assert differ(tmp_path / "one", tmp_path / "two") < (1e-5 if precision == "float32" else 0.2 * moved)
    saved = load_file(tmp_path / "two" / "student" / "model.safetensors")
    assert {str(weight.dtype) for weight in saved.values()} == {"torch.float32"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "student")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("said", "changes", "refused"),
    [
        ({"zero_optimization": {"stage": 3}}, {}, "asks for stage 3 of DeepSpeed's ZeRO, and training takes 1 and 2"),
        ({"zero_optimization": {}}, {}, "asks for stage 0 of DeepSpeed's ZeRO"),
        ({"zero_optimization": {"stage": "auto"}}, {}, "asks for stage auto of DeepSpeed's ZeRO"),
        ({"optimizer": {"type": "Adam"}}, {}, "has {'type': 'Adam'} for optimizer, which the recipe says"),
        ({"train_batch_size": 16}, {}, "has 16 for train_batch_size, which the recipe says (training.batch_size)"),
        ({"train_micro_batch_size_per_gpu": 4}, {}, 'which the recipe says (training.batch_size); say "auto" there'),
        ({"gradient_clipping": 0.5}, {}, "has 0.5 for gradient_clipping"),
        ({"bf16": {"enabled": True}}, {}, "for bf16, which the recipe says (training.precision); leave it out there"),
        ({}, {"training.precision": "float16"}, "stage distill trains in float16"),
        ({}, {"training.layer_drop": 0.5, "training.dropout": True}, "(training.layer_drop is 0.5), which DeepSpeed"),
        (None, {}, "DeepSpeed's configuration '"),
    ],
)
def test_what_deepspeed_cannot_do_here_is_refused(said, changes, refused, tmp_path, monkeypatch):
    path = tmp_path / "deepspeed.json"
    if said is not None:
        path.write_text(json.dumps(FILE | said))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    made: dict[str, Any] = {**UNUSED, **changes}
    with pytest.raises(InputError) as error:
        check_zero(load("hinton", made))
    assert refused in str(error.value)


@pytest.mark.parametrize("name", ["gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu"])
def test_where_a_file_says_nothing_deepspeed_has_a_default_of_its_own(name, tmp_path, monkeypatch):
    (tmp_path / "deepspeed.json").write_text(json.dumps({key: each for key, each in FILE.items() if key != name}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "deepspeed.json"))
    with pytest.raises(InputError, match=f"has nothing for {name}, which the recipe says"):
        check_zero(load("hinton", UNUSED))
    (tmp_path / "deepspeed.json").write_text(json.dumps(FILE | {"bf16": {"enabled": "auto"}}))
    check_zero(load("hinton", UNUSED))


def test_clipping_that_accelerate_asks_for_must_be_the_recipes(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "1.0")
    check_zero(load("hinton", UNUSED))
    with pytest.raises(InputError, match=r"clips gradients at 1\.0, stage distill at 0\.3"):
        check_zero(load("hinton", UNUSED | {"training.max_grad_norm": 0.3}))
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    with pytest.raises(InputError, match=r"needs the 'deepspeed' extra"):
        check_zero(load("hinton", UNUSED))
