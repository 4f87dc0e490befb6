"""The small dense and convolutional students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification

from limbeck.students.dense import (
    MLPConfig,
    MLPForFeatureClassification,
    MLPForImageClassification,
    SmallCNNConfig,
    SmallCNNForImageClassification,
)

MODELS: dict[str, tuple[Any, str, tuple[int, ...], Any]] = {
    "features": (
        lambda: MLPForFeatureClassification(MLPConfig(num_features=6, hidden_sizes=[8], num_labels=3)),
        "features", (6,), AutoModel,
    ),
    "images": (
        lambda: MLPForImageClassification(
            MLPConfig(image_size=[4, 5], num_channels=3, hidden_sizes=[8, 7], num_labels=3)
        ),
        "pixel_values", (3, 4, 5), AutoModelForImageClassification,
    ),
    "convolutions": (
        lambda: SmallCNNForImageClassification(
            SmallCNNConfig(
                image_size=[9, 10], num_channels=3, channels=[4, 5], kernel_size=3, hidden_sizes=[8], num_labels=3
            )
        ),
        "pixel_values", (3, 9, 10), AutoModelForImageClassification,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_they_open_with_the_auto_classes(kind: str, tmp_path: Path) -> None:
    make, name, shape, auto = MODELS[kind]
    model = make().eval()
    model.save_pretrained(tmp_path)
    opened, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert type(opened) is type(model)
    x = torch.randn(4, *shape)
    logits = opened(**{name: x}).logits
    assert logits.shape == (4, 3)
    assert torch.equal(logits, model(**{name: x}).logits)


@pytest.mark.parametrize("kind", MODELS)
def test_they_trace_to_onnx(kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    make, name, shape, _ = MODELS[kind]

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make().eval()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.model(**{name: inputs}).logits

    logits, path = Logits().eval(), str(tmp_path / "model.onnx")
    torch.onnx.export(
        logits, (torch.randn(2, *shape),), path, input_names=[name], dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    x = torch.randn(5, *shape)
    found = onnxruntime.InferenceSession(path).run(None, {name: x.numpy()})[0]
    np.testing.assert_allclose(found, logits(x).detach(), atol=1e-5)


def test_without_hidden_layers_it_is_linear() -> None:
    model = MLPForFeatureClassification(MLPConfig(num_features=6, hidden_sizes=[], num_labels=3))
    x, (layer,) = torch.randn(4, 6), model.layers
    assert torch.allclose(model(x).logits, x @ layer.weight.T + layer.bias)


def test_the_convolutional_network_is_what_its_name_says() -> None:
    torch.manual_seed(0)
    model = MODELS["convolutions"][0]().eval()
    first, second = (each for each in model.convolutions if isinstance(each, nn.Conv2d))
    x = torch.randn(2, 3, 9, 10)
    states = nn.functional.max_pool2d(first(x).clamp(min=0), 2)
    states = nn.functional.max_pool2d(second(states).clamp(min=0), 2).flatten(1)
    hidden, out = (each for each in model.layers if isinstance(each, nn.Linear))
    assert states.shape == (2, 5 * 2 * 2)
    assert torch.allclose(model(x).logits, out(hidden(states).clamp(min=0)), atol=1e-6)


def test_dropout_acts_in_training_alone_on_inputs_and_hidden_units() -> None:
    for setting in ("dropout", "input_dropout"):
        config = MLPConfig(num_features=6, hidden_sizes=[50], num_labels=3, **{setting: 0.5})
        model, x = MLPForFeatureClassification(config), torch.randn(4, 6)
        assert torch.equal(model.eval()(x).logits, model(x).logits)
        assert not torch.equal(model.train()(x).logits, model(x).logits)


def test_the_scale_of_what_goes_through_is_kept() -> None:
    torch.manual_seed(0)
    model = MLPForFeatureClassification(MLPConfig(num_features=300, hidden_sizes=[300] * 6, num_labels=300))
    logits = model(torch.randn(64, 300)).logits
    assert 0.5 < logits.std() < 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MLPConfig(hidden_sizes=[8, 0]), "hidden_sizes is"),
        (lambda: MLPConfig(dropout=1.0), "dropout is 1"),
        (lambda: SmallCNNConfig(kernel_size=4), "give an odd number"),
        (lambda: SmallCNNConfig(image_size=8, channels=[4] * 4), "leave nothing of 8 x 8 pixels"),
    ],
)
def test_impossible_shapes_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="reads images of 3 x 9 x 10, and these are of 3 x 9 x 9"):
        MODELS["convolutions"][0]()(torch.randn(2, 3, 9, 9))
    with pytest.raises(ValueError, match="reads 60 numbers, and an input has 48"):
        MODELS["images"][0]()(torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("kind", ["mlp", "small-cnn"])
def test_they_learn_digits(kind: str) -> None:
    data = load_digits()
    x, y = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    torch.manual_seed(0)
    model: Any = MLPForImageClassification(MLPConfig(image_size=8, hidden_sizes=[64], num_labels=10))
    if kind == "small-cnn":
        config = SmallCNNConfig(image_size=8, channels=[8, 16], kernel_size=3, hidden_sizes=[32], num_labels=10)
        model = SmallCNNForImageClassification(config)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(200):
        rows = torch.randint(0, 1500, (64,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]).logits, y[rows]).backward()
        optimiser.step()
    with torch.no_grad():
        right = (model.eval()(x[1500:]).logits.argmax(-1) == y[1500:]).float().mean()
    assert right > 0.8
