"""Exported students answer as the PyTorch ones do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model, make_tokenizer
from datasets import Dataset

import limbeck
from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError
from limbeck.exporting import OnnxModel, export_model
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel

TASK = Task("classification", ("negative", "positive"))
TEXTS = ["good soup", "the bad plot", "a very long and good story " * 8, "soup"]


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_onnx_equals_pytorch_and_int8_is_near(kind: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(kind), make_tokenizer(), kind)
    texts = Dataset.from_dict({"text": TEXTS})
    files = export_model(checkpoint, tmp_path, ["onnx", "int8"])
    expected = HuggingFaceModel(checkpoint, TASK, 32).ask(texts).logits
    exact = OnnxModel(files["onnx"], checkpoint, TASK, 32, batch_size=3).ask(texts).logits
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    rough = OnnxModel(files["int8"], checkpoint, TASK, 32).ask(texts).logits
    assert 0 < np.abs(rough - expected).max() < 0.1
    assert files["int8"].stat().st_size < files["onnx"].stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model_int8.onnx"]


def test_pairs_keep_their_token_types(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model("bert"), make_tokenizer(), "pairs")
    task = Task("classification", ("negative", "positive"), pair=True)
    pairs = Dataset.from_dict({"text": TEXTS, "text_pair": TEXTS[::-1]})
    files = export_model(checkpoint, tmp_path, ["onnx"], pair=True)
    model = OnnxModel(files["onnx"], checkpoint, task, 32)
    assert "token_type_ids" in model.inputs
    np.testing.assert_allclose(
        model.ask(pairs).logits, HuggingFaceModel(checkpoint, task, 32).ask(pairs).logits, atol=1e-5
    )


def test_a_run_s_own_files_are_kept(tmp_path: Path, tiny_teacher: Checkpoint) -> None:
    (tmp_path / "model.onnx").write_bytes(b"kept")
    assert export_model(tiny_teacher, tmp_path, ["onnx"], keep=True)["onnx"].read_bytes() == b"kept"


def test_another_model_s_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"another's")
    model = make_model("bert", num_hidden_layers=1)
    (path,) = limbeck.export((model, make_tokenizer()), tmp_path, ["onnx"])
    checkpoint, texts = Checkpoint(model, make_tokenizer(), "second"), Dataset.from_dict({"text": TEXTS})
    expected = HuggingFaceModel(checkpoint, TASK, 32).ask(texts).logits
    np.testing.assert_allclose(OnnxModel(path, checkpoint, TASK, 32).ask(texts).logits, expected, atol=1e-5)


def test_what_a_killed_export_leaves_is_cleared(tmp_path: Path, tiny_teacher: Checkpoint) -> None:
    (tmp_path / "export.partial").mkdir()
    (tmp_path / "export.partial" / "prepared.onnx").write_bytes(b"half a mod")
    for name in ("model.onnx", "model_int8.onnx"):
        (tmp_path / name).write_bytes(b"there")  # as when the kill comes after the last rename
    export_model(tiny_teacher, tmp_path, ["onnx", "int8"], keep=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model_int8.onnx"]


def test_one_form_may_be_named_alone(tmp_path: Path, tiny_teacher_dir: Path) -> None:
    (path,) = limbeck.export(tiny_teacher_dir, tmp_path / "out", "int8")
    assert path == tmp_path / "out" / "model_int8.onnx"
    assert path.stat().st_size > 0
    assert [each.name for each in path.parent.iterdir()] == ["model_int8.onnx"]


@pytest.mark.parametrize(
    ("formats", "says"),
    [(["gguf"], "'gguf'.* known here: int8, onnx"), ("int4", "did you mean 'int8'"), (None, "'None'"), ([], "empty")],
)
def test_other_forms_are_refused_before_anything_is_opened(formats: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        limbeck.export("no/such/model", tmp_path / "out", formats)
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_to_export_into(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file; give a folder"):
        limbeck.export("no/such/model", tmp_path / "out")


def test_a_missing_extra_is_named(tmp_path: Path, tiny_teacher: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'limbeck\[onnx\]'"):
        export_model(tiny_teacher, tmp_path, ["onnx"])
