"""ONNX through `torch.onnx`, dynamic int8 through ONNX Runtime, and running either like any other model."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from limbeck import extras
from limbeck.checkpoints import Checkpoint, label_names, max_length
from limbeck.errors import LimbeckError
from limbeck.files import sha256
from limbeck.signals import Signals
from limbeck.tasks import Task
from limbeck.tasks.images import ImageReader
from limbeck.tasks.reader import reader_of
from limbeck.tasks.text import Batch, length_sorted_batches

FILES = {"onnx": "model.onnx", "int8": "model_int8.onnx"}


def require_onnx() -> None:
    """Refuse early when the optional packages are missing.

    Raises:
        InputError: names the extra.
    """
    extras.require("onnx", "export to onnx or int8")


def export_model(
    checkpoint: Checkpoint, folder: Path, formats: Sequence[str], pair: bool = False, keep: bool = False
) -> dict[str, Path]:
    """Write the model's ONNX forms beside its Hugging Face files, each whole or not at all.

    Args:
        checkpoint: the trained model.
        folder: where the files go: `model.onnx`, `model_int8.onnx`.
        formats: `onnx` (float32), `int8` (weights of matrix products and embeddings in int8, activations quantised
            on the fly).
        pair: the inputs have token types where the model reads them.
        keep: forms that are there are this very model's, so that they need not be made again.

    Returns:
        The files by format.

    Raises:
        InputError: the `onnx` extra is missing.
        LimbeckError: the architecture cannot be traced.
    """
    if not formats:
        return {}
    require_onnx()
    wanted = {name: folder / FILES[name] for name in formats}
    scratch = folder / "export.partial"  # always the same, so that what a kill leaves is found again
    shutil.rmtree(scratch, ignore_errors=True)
    if keep and all(path.exists() for path in wanted.values()):
        return wanted
    scratch.mkdir()
    try:
        plain = scratch / FILES["onnx"]
        _trace(checkpoint, plain, pair)
        if "int8" in formats:
            _quantise(plain, scratch / FILES["int8"])
        for name, path in wanted.items():
            os.replace(scratch / FILES[name], path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return wanted


class _Logits(nn.Module):
    """The model as a function of its input tensors alone."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def _trace(checkpoint: Checkpoint, path: Path, pair: bool) -> None:
    model = checkpoint.model
    device = model.device
    example, axes = _example(checkpoint, pair)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Logits(model.cpu().eval(), list(example)),
                tuple(example.values()),
                str(path),
                input_names=list(example),
                output_names=["logits"],
                dynamic_shapes=((axes,) * len(example),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise LimbeckError(
            f"{model.config.model_type} cannot be exported to ONNX: {reason}; drop export=..."
        ) from error
    finally:
        model.to(device)


def _example(checkpoint: Checkpoint, pair: bool) -> tuple[dict[str, torch.Tensor], dict[int, Any]]:
    """Two examples to trace the model with, and the sizes that may be others."""
    model, axes = checkpoint.model, {0: torch.export.Dim("batch")}
    if checkpoint.inputs == "features":
        return {"features": torch.zeros(2, checkpoint.processor.width)}, axes
    if checkpoint.inputs == "image":
        reader = ImageReader(checkpoint)
        return {"pixel_values": torch.zeros(2, reader.channels, *reader.sides)}, axes
    names = ["input_ids", "attention_mask"]
    if pair and "token_type_ids" in checkpoint.tokenizer.model_input_names:
        names.append("token_type_ids")
    ids = torch.arange(2 * 9).reshape(2, 9) % model.get_input_embeddings().weight.shape[0]
    example = {n: ids if n == "input_ids" else torch.ones_like(ids) * (n == "attention_mask") for n in names}
    return example, axes | {1: torch.export.Dim("length", max=max_length(model, checkpoint.tokenizer, None))}


def _quantise(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    model = onnx.load(source)
    if any(node.op_type == "LSTM" for node in model.graph.node):
        # Its weights in ONNX's order; they are quantised only where they stand in the file as they are used.
        fold_constants(model, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
        remove_unused_nodes(model)
    del model.graph.value_info[:]  # the exporter's shapes contradict ONNX's own inference, which stops at that
    prepared = source.with_name("prepared.onnx")
    onnx.save(model, prepared)
    with _quiet(None):
        # 7-bit weights: without VNNI, sums of 8-bit products overflow 16 bits and saturate silently.
        quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


class _quiet:  # noqa: N801
    """Exporters log at length what concerns their authors."""

    def __init__(self, *names: str | None) -> None:
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)


class OnnxModel:
    """An exported student that answers about examples on the CPU, with as many threads as PyTorch uses.

    Args:
        path: the ONNX file.
        checkpoint: the student it came from, for what it reads with, labels and number of parameters.
        task: what is predicted.
        length: tokens kept of a text.
        batch_size: examples per forward pass.
    """

    def __init__(
        self, path: Path, checkpoint: Checkpoint, task: Task, length: int | None, batch_size: int = 64
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Idle threads would otherwise spin after each run and take the cores from whoever runs next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.path, self.task, self.batch_size = path, task, batch_size
        self.reader = reader_of(checkpoint, task, length)
        self.labels = label_names(checkpoint.model.config)
        self.parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
        self.precision = "int8" if path.name == FILES["int8"] else "float32"

    @property
    def bytes(self) -> int:
        """The file's size."""
        return self.path.stat().st_size

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The file's content and how examples are read."""
        return {"weights": sha256(self.path), "precision": self.precision, **self.reader.fingerprint}

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """Logits float32 [N, C] in the order of `texts`; an exported student has no hidden states."""
        encoded = self.reader.encode(texts)
        logits = np.empty((len(encoded), self.task.outputs), dtype=np.float32)
        for rows, examples in length_sorted_batches(encoded, self.batch_size):
            logits[rows] = self._run(self._arrays(self.reader.collate(examples)))
        return Signals(logits)

    def runner(self, texts: Dataset) -> Callable[[], None]:
        """A function that runs the model once on these texts as one batch; they are read beforehand."""
        inputs = self._arrays(self.reader.batch(texts))

        def run() -> None:
            self._run(inputs)

        return run

    def _arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        return {name: batch[name].numpy() for name in self.inputs}

    def _run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(self.session.run(["logits"], inputs)[0])
