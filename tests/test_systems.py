"""Every packaged system through the command line: run, interrupted, resumed; what its student is, and its claims."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FILLER, GOOD, LABELS, make_causal, make_chat_tokenizer, make_tokenizer, write_jsonl
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from limbeck.recipe import load, packaged
from limbeck.students.ib_bert import IBBertConfig
from limbeck.training.trainer import DistillationTrainer

QUICK = [
    "task.max_length=32",
    "training.batch_size=16",
    "training.learning_rate=1e-3",
    "training.epochs=2",
    "evaluation.resamples=100",
    "evaluation.speed=false",
    "export=[]",
    "baseline=false",
]
SMALL = "student.shape={num_hidden_layers: 2, hidden_size: 16, intermediate_size: 32}"
TEXT_ALONE = ("pretrain", "ib-bert", "distilbert-pretrain")
CAUSAL = ("word-kd", "gkd", "minillm", "seqkd", "figurative", "figurative-unsupervised")
OTHER_INPUTS = ("deit", "bucila")
NO_TEACHER = ("fine-tune", "pretrain", "ib-bert")
LESS: dict[str, list[str]] = {
    "tinybert": [SMALL, *(f"stages.{name}.training.epochs=2" for name in ("general", "intermediate", "prediction"))],
    "minilm": [SMALL],
    "minilmv2": [SMALL, "stages.general.objectives.relations.heads=8"],
    "well-read": [SMALL],
    "soft-tree": ["student.shape.depth=3", "student.embeddings=true", "training.learning_rate=0.02"],
    "bilstm": ["student.shape.hidden_size=8", "student.shape.classifier_size=16", "data.augmentation.copies=1"],
    "deit": [
        *(f"student.shape.{name}" for name in ("num_hidden_layers=1", "hidden_size=8", "intermediate_size=16")),
        *(f"student.shape.{name}" for name in ("num_attention_heads=2", "patch_size=4")),
        "data.test=0.3",
    ],
    "bucila": [
        "student.shape.hidden_sizes=[4]",
        "data.features=[size, weight, colour]",
        "data.synthetic.copies=2",
    ],
    "mobilebert": [
        *(f"student.shape.{name}" for name in ("num_hidden_layers=2", "hidden_size=32", "intra_bottleneck_size=16")),
        *(f"student.shape.{name}" for name in ("num_attention_heads=2", "embedding_size=16", "intermediate_size=32")),
        "stages.transfer.training.epochs=4",
        "stages.words.training.epochs=2",
    ],
    "ib-bert": [
        *(f"student.shape.{name}" for name in ("num_hidden_layers=2", "hidden_size=32", "intra_bottleneck_size=48")),
        *(f"student.shape.{name}" for name in ("num_attention_heads=2", "embedding_size=16", "intermediate_size=64")),
    ],
}


@pytest.fixture(scope="session")
def ib_bert_dirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny random IB-BERT that classifies, and one that fills in words."""
    root = tmp_path_factory.mktemp("ib-bert")
    config = IBBertConfig(
        vocab_size=200, num_hidden_layers=2, hidden_size=32, intra_bottleneck_size=48, intermediate_size=64,
        num_attention_heads=2, embedding_size=16, max_position_embeddings=64, initializer_range=0.1,
        id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    torch.manual_seed(0)
    for name, kind in (("classifier", AutoModelForSequenceClassification), ("words", AutoModelForMaskedLM)):
        kind.from_config(config).save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
    return root / "classifier", root / "words"


@pytest.fixture(scope="session")
def causal_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random language model that writes text."""
    root = tmp_path_factory.mktemp("causal")
    tokenizer = make_chat_tokenizer()
    make_causal(tokenizer).save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


@pytest.fixture(scope="session")
def chat_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with answers."""
    rows = [
        {"prompt": f"how was the {word}?", "completion": f"the {word} was {mood}"} for word in FILLER for mood in GOOD
    ]
    return write_jsonl(tmp_path_factory.mktemp("chat") / "chat.jsonl", rows[:60])


@pytest.fixture(scope="session")
def prompts_jsonl(tmp_path_factory: pytest.TempPathFactory, chat_jsonl: Path) -> Path:
    """The prompts alone."""
    rows = [{"prompt": json.loads(line)["prompt"]} for line in chat_jsonl.read_text().splitlines()]
    return write_jsonl(tmp_path_factory.mktemp("chat") / "prompts.jsonl", rows)


@pytest.fixture
def words_for(
    tiny_teacher_dir: Path,
    tiny_language_model_dir: Path,
    tiny_model_dir: Path,
    ib_bert_dirs: tuple[Path, Path],
    corpus_txt: Path,
    reviews_csv: Path,
    unlabelled_csv: Path,
    causal_dir: Path,
    chat_jsonl: Path,
    prompts_jsonl: Path,
    images_folder: Path,
    image_teacher: Path,
    table_csv: Path,
    table_teacher: Path,
) -> Callable[[str, Path], list[str]]:
    """The command line that runs a system on tiny models."""

    def words(system: str, output: Path) -> list[str]:
        if system in CAUSAL:
            data = {"word-kd": corpus_txt, "figurative-unsupervised": prompts_jsonl}.get(system, chat_jsonl)
            kind = [f"data={data}", f"teacher={causal_dir}"]
            if system in ("gkd", "minillm"):
                kind += ["stages.distill.on_policy.max_new_tokens=6"]
            if system in ("seqkd", "figurative", "figurative-unsupervised"):  # a random teacher never ends an answer
                kind += ["data.generation.max_new_tokens=6", "data.generation.cut=keep"]
            return ["distill", system, f"output={output}", *QUICK, *kind, *LESS.get(system, [])]
        if system in OTHER_INPUTS:
            inputs, teacher = {"deit": (images_folder, image_teacher), "bucila": (table_csv, table_teacher)}[system]
            line = ["distill", system, f"output={output}", *QUICK, f"data={inputs}", f"teacher={teacher}"]
            return [*line, *LESS[system]]
        line = ["train" if system in NO_TEACHER else "distill", system, f"output={output}", *QUICK]
        line += [f"data={corpus_txt if system in TEXT_ALONE else reviews_csv}", *LESS.get(system, [])]
        if system == "mobilebert":
            line += [f"teacher={ib_bert_dirs[0]}", f"teacher.general={ib_bert_dirs[1]}"]
        elif system == "distilbert-pretrain":
            line += [f"teacher={tiny_language_model_dir}"]
        elif system not in NO_TEACHER:
            line += [f"teacher={tiny_teacher_dir}"]
        if system in ("tinybert", "minilm", "minilmv2"):
            line += [f"teacher.general={tiny_language_model_dir}"]
        if system == "tinybert":
            line += [f"data.augmentation={tiny_language_model_dir}", "data.augmentation.copies=1"]
        if system == "well-read":
            line += [f"data.unlabelled={unlabelled_csv}"]
        if system == "ib-bert":
            line += [f"student.tokenizer={tiny_model_dir}"]
        if system in ("fine-tune", "pretrain"):
            line += [f"student={tiny_model_dir if system == 'fine-tune' else tiny_language_model_dir}"]
        if any("task" in stage for stage in packaged()[system]["stages"]):
            line += [f"data.corpus={corpus_txt}"]
        return line

    return words


def stage_name(phase: str) -> str:
    """`transfer-1` is a turn of the stage `transfer`."""
    return re.sub(r"-\d+$", "", phase)


class StopError(Exception):
    """Stands for a kill."""


@pytest.fixture
def in_parts(command: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Gives a command again and again, stopped after so many checkpoints, one more every time, until it ends well."""
    whole = DistillationTrainer._save_checkpoint

    def run(words: list[str]) -> None:
        stopped, printed = 0, "never ended"
        for allowed in range(12):
            left = [allowed]

            def stop_after_saving(self: DistillationTrainer, *args: Any, left: list[int] = left, **more: Any) -> None:
                whole(self, *args, **more)
                left[0] -= 1
                if left[0] < 0:
                    raise StopError

            with monkeypatch.context() as patched:
                patched.setattr(DistillationTrainer, "_save_checkpoint", stop_after_saving)
                try:
                    code, printed = command(*words)
                except StopError:
                    stopped += 1
                    continue
            assert code == 0, printed
            assert stopped > 0
            return
        raise AssertionError(printed)

    return run


@pytest.mark.parametrize("system", sorted(packaged()))
def test_it_runs_is_interrupted_and_ends_in_the_same_student(
    system: str, command: Any, words_for: Any, in_parts: Any, tmp_path: Path
) -> None:
    code, printed = command(*words_for(system, tmp_path / "whole"))
    assert code == 0, printed
    in_parts(words_for(system, tmp_path / "parts"))
    name = "model" if system in NO_TEACHER else "student"
    weights, resumed = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "parts"))
    assert weights.keys() == resumed.keys()
    assert not [key for key in weights if "limbeck" in key], "a projection reached the student's file"
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in weights.items())
    metrics = json.loads((tmp_path / "parts" / "metrics.json").read_text())
    known = {stage["name"] for stage in packaged()[system]["stages"]}
    assert {stage_name(name) for name in metrics["training"]["student"]["history"]} == known
    assert (tmp_path / "parts" / "report.html").exists()
    assert (tmp_path / "parts" / name / "README.md").exists()
    assert not (tmp_path / "parts" / "stages").exists()
    ours = system in ("ib-bert", "bilstm")
    opens = "import limbeck.students" if ours else "import sys; sys.modules['limbeck'] = None"
    if system in CAUSAL:
        _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "parts" / name, output_loading_info=True)
        assert not info["missing_keys"]
        return
    if system in OTHER_INPUTS:
        auto = AutoModelForImageClassification if system == "deit" else AutoModel
        _, info = auto.from_pretrained(tmp_path / "parts" / name, output_loading_info=True)
        assert not info["missing_keys"]
        return
    kind = "MaskedLM" if system in TEXT_ALONE else "SequenceClassification"
    script = (
        f"{opens}\nfrom transformers import AutoModelFor{kind} as M, AutoTokenizer as T\n"
        f"place = '{tmp_path}/parts/{name}'\n"
        "m, info = M.from_pretrained(place, output_loading_info=True)\n"
        "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "m(**T.from_pretrained(place)('a good soup', return_tensors='pt'))\n"
    )
    if ours or system in ("tinybert", "mobilebert"):
        opened = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert opened.returncode == 0, opened.stderr
    else:  # the same in this process, which spares a start
        auto = AutoModelForMaskedLM if system in TEXT_ALONE else AutoModelForSequenceClassification
        _, info = auto.from_pretrained(tmp_path / "parts" / name, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]


NARROW = "assistant.shape={hidden_size: 16, intermediate_size: 32}"
VARIANTS: dict[str, tuple[str, list[str], list[str]]] = {
    "mobilebert, joint": ("mobilebert", ["stages.transfer.progressive=false"], ["transfer", "words", "fine-tune"]),
    "mobilebert, auxiliary": (
        "mobilebert",
        ["stages.words.objectives.feature_map=1", "stages.words.objectives.attention={form: kl}"],
        ["words", "fine-tune"],
    ),
    "minilm, assistant": ("minilm", [NARROW], ["general", "fine-tune"]),
    "minilmv2, assistant": ("minilmv2", [NARROW], ["general", "fine-tune"]),
    "layerdrop, labels": ("layerdrop", ["stages.fine-tune.objectives={hard_labels: 1}"], ["pretrain", "fine-tune"]),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_on_the_pages_run_and_go_on_too(
    variant: str, command: Any, words_for: Any, in_parts: Any, tmp_path: Path
) -> None:
    system, more, stages = VARIANTS[variant]

    def words(output: Path) -> list[str]:
        line = words_for(system, output)
        if "auxiliary" in variant:
            line = [word for word in line if not word.startswith("stages.transfer.")] + ["stages.transfer=null"]
        return [*line, *more]

    code, printed = command(*words(tmp_path / "whole"))
    assert code == 0, printed
    in_parts(words(tmp_path / "parts"))
    for model in ("student", "assistant") if "assistant" in variant else ("student",):
        one, other = (load_file(tmp_path / run / model / "model.safetensors") for run in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    history = json.loads((tmp_path / "parts" / "metrics.json").read_text())["training"]["student"]["history"]
    assert list(history) == stages
    if "auxiliary" in variant:
        logged = [entry for entry in history["words"] if "loss" in entry]
        assert all({"masked_lm", "soft_targets", "feature_map", "attention"} <= entry.keys() for entry in logged)


def test_a_model_trained_with_layers_dropped_is_cut_and_fine_tuned_without_any_teacher(
    command: Any, tiny_language_model_dir: Path, corpus_txt: Path, reviews_csv: Path, tmp_path: Path
) -> None:
    """The two runs on LayerDrop's page."""
    dropped = ["train", "pretrain", f"student={tiny_language_model_dir}", f"data={corpus_txt}", *QUICK[:-1]]
    code, printed = command(*dropped, "training.layer_drop=0.5", f"output={tmp_path / 'dropped'}")
    assert code == 0, printed
    start = f"{{model: {tmp_path / 'dropped'}, layers: 2, pattern: alternate}}"
    last = ["train", f"student={start}", f"data={reviews_csv}", *QUICK[:-1], f"output={tmp_path / 'cut'}"]
    code, printed = command(*last)
    assert code == 0, printed
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut" / "model").config
    assert config.num_hidden_layers == 2
    assert config.limbeck["initialisation"]["layers"] == [0, 2]


def test_the_recipes_are_the_papers() -> None:
    """The objectives and schedules that the papers state, as far as a recipe holds them."""
    base = {"data": "d", "teacher": "t", "output": "o"}
    stages = {}
    for name, content in packaged().items():
        if name not in (*NO_TEACHER, "distilbert-pretrain"):
            on_text = any("task" in stage for stage in content["stages"])
            stages[name] = {s.name: s for s in load(name, base | ({"data.corpus": "c"} if on_text else {})).stages}
    pretrain = load("distilbert-pretrain", base).stages[0].objectives
    assert (pretrain.soft_targets.weight, pretrain.masked_lm.weight, pretrain.hidden.weight) == (5, 2, 1)
    assert (pretrain.hidden.form, pretrain.hidden.layers, pretrain.soft_targets.temperature) == ("cosine", {-1: -1}, 2)
    schedule = load("distilbert-pretrain", base).training
    assert (schedule.learning_rate, schedule.warmup, schedule.weight_decay, schedule.max_grad_norm) == (
        5e-4,
        0.05,
        0,
        5,
    )
    for name, layers in (("pkd-skip", "skip"), ("pkd-last", "last")):
        patient = stages[name]["distill"].objectives
        assert (patient.hidden.form, patient.hidden.layers, patient.hidden.weight) == ("cls", layers, 500)
        soft = patient.soft_targets
        assert (soft.weight, soft.temperature, patient.hard_labels.weight) == (0.7, 10, 0.3)
    tiny = stages["tinybert"]
    assert list(tiny) == ["general", "intermediate", "prediction"]
    for name in ("general", "intermediate"):
        assert tiny[name].objectives.names == ["embedding", "hidden", "attention"]
        assert tiny[name].objectives.attention.form == "mse"
    assert tiny["prediction"].objectives.names == ["soft_targets"]
    assert tiny["prediction"].objectives.soft_targets.temperature == 1
    assert [stage.training["epochs"] for stage in tiny.values()] == [3, 20, 3]
    assert (tiny["intermediate"].training["schedule"], tiny["intermediate"].training["warmup"]) == ("constant", 0)
    mini = stages["minilm"]["general"].objectives
    assert (mini.attention.form, mini.attention.layers, mini.relations.of) == ("kl", {-1: -1}, ["values"])
    assert stages["minilmv2"]["general"].objectives.relations.of == ["queries", "keys", "values"]
    assert stages["minilmv2"]["general"].objectives.relations.heads == 48
    rates = {name: stages[name]["general"].training["learning_rate"] for name in ("minilm", "minilmv2")}
    assert rates == {"minilm": 3e-4, "minilmv2": 6e-4}
    mobile = stages["mobilebert"]
    assert {mobile[name].training["learning_rate"] for name in ("transfer", "words")} == {1.5e-3}
    assert mobile["transfer"].progressive
    assert (mobile["words"].objectives.masked_lm.weight, mobile["words"].objectives.soft_targets.weight) == (0.5, 0.5)
    assert stages["layerdrop"]["pretrain"].training["layer_drop"] == 0.5
    assert "layer_drop" not in stages["layerdrop"]["fine-tune"].training
    assert list(stages["well-read"]) == ["pretrain", "distill", "fine-tune"]
    logits = stages["bilstm"]["distill"].objectives
    assert (logits.names, logits.soft_targets.form) == (["soft_targets"], "mse")
    made = load("bilstm", base).data.augmentation
    assert (made.mask, made.same_tag, made.ngram, made.copies) == (0.1, 0.1, 0.25, 20)
    words = stages["word-kd"]["distill"].objectives
    assert (words.names, words.soft_targets.weight, words.soft_targets.temperature) == (["soft_targets"], 1, 1)
    assert list(stages["figurative"]) == ["examples", "task"]
    assert stages["figurative"]["task"].objectives.names == ["soft_targets", "next_token"]
    assert stages["figurative-unsupervised"]["examples"].objectives.names == ["soft_targets", "contrastive"]


def test_a_stage_is_left_out_with_null(command: Any, words_for: Any, tmp_path: Path) -> None:
    words = [word for word in words_for("tinybert", tmp_path / "a") if "general" not in word and "corpus" not in word]
    code, printed = command(*words, "stages.general=null", "stages.prediction.objectives.hard_labels=1")
    assert code == 0, printed
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert list(metrics["training"]["student"]["history"]) == ["intermediate", "prediction"]


def test_every_system_says_what_it_is(command: Any) -> None:
    for name, content in packaged().items():
        assert {"title", "paper", "needs", "student"} <= set(content["about"]), name
    code, printed = command("methods")
    assert code == 0
    shown = "".join(printed.split())
    for name, content in packaged().items():
        for part in ("title", "paper", "needs", "student"):
            words = content["about"][part]
            assert name in shown
            assert "".join(words.split()) in shown, f"{name}: {part} is not printed"


def test_a_report_of_language_models_tells_how_fast_they_generate(command: Any, words_for: Any, tmp_path: Path) -> None:
    words = words_for("word-kd", tmp_path / "a")
    code, printed = command(*words, "training.epochs=1", "evaluation.speed=true", "baseline=true")
    assert code == 0, printed
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    for name in ("teacher", "student"):
        speed = metrics[name]["speed"]
        for rate in ("new_tokens_per_second", "prompt_tokens_per_second"):
            assert 0 < speed[rate]["low"] <= speed[rate]["median"] <= speed[rate]["high"]
        assert (speed["prompt_tokens"], speed["new_tokens"], speed["batch_size"]) == (64, 16, 1)
    assert metrics["baseline"]["speed"] is None
    for page in ("report.html", "student/README.md"):
        assert "New tokens/s" in (tmp_path / "a" / page).read_text()
    assert "Tokens/s" in printed
