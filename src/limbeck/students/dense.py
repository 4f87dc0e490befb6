"""Small students for images and vectors of features: networks of full layers, and a convolutional one.

The first are those of Bucila et al. 2006 (one hidden layer) and Hinton et al. 2015 (two, on MNIST), the second of the
kind that teaches Frosst and Hinton's trees. Importing this module makes `AutoModelForImageClassification` (images) and
`AutoModel` (feature vectors) open them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from limbeck.students.vectors import VectorConfig, flat, register, scale_for_relu


class MLPConfig(VectorConfig):
    """A network of full layers with rectifiers between them.

    Attributes:
        hidden_sizes: units of each hidden layer; none makes it a linear model.
        dropout: the chance of a hidden unit to be dropped in training.
        input_dropout: the chance of an input to be dropped in training.
    """

    model_type = "mlp"
    hidden_sizes: list[int] | tuple[int, ...] = (800, 800)
    dropout: float = 0.0
    input_dropout: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__post_init__(**kwargs)
        self.require_counts("hidden_sizes", list(self.hidden_sizes))
        self.require_share("dropout", self.dropout)
        self.require_share("input_dropout", self.input_dropout)


class SmallCNNConfig(VectorConfig):
    """A convolutional network of LeNet's kind: convolution, rectifier and pooling by two, again; full layers.

    Attributes:
        channels: of each convolution.
        kernel_size: of all of them, odd; edges are padded.
        hidden_sizes: units of each hidden full layer.
        dropout: the chance of a unit of these, and of what they read, to be dropped in training.
    """

    model_type = "small-cnn"
    channels: list[int] | tuple[int, ...] = (32, 64)
    kernel_size: int = 5
    hidden_sizes: list[int] | tuple[int, ...] = (256,)
    dropout: float = 0.25

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__post_init__(**kwargs)
        self.require_counts("channels", list(self.channels))
        self.require_counts("hidden_sizes", list(self.hidden_sizes))
        self.require_share("dropout", self.dropout)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}; give an odd number")
        height, width = self.image_shape[1:]
        if min(height, width) >> len(self.channels) == 0:
            raise ValueError(
                f"{len(self.channels)} poolings by two leave nothing of {height} x {width} pixels; give fewer channels"
            )


def full_layers(width: int, hidden: list[int], outputs: int, dropout: float) -> nn.Sequential:
    """Full layers with rectifiers and dropout between them, from `width` inputs to `outputs` logits."""
    sizes = [width, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class _MLP(PreTrainedModel):
    config_class = MLPConfig
    base_model_prefix = ""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.drop = nn.Dropout(config.input_dropout)
        self.layers = full_layers(config.width, list(config.hidden_sizes), config.num_labels, config.dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        scale_for_relu(module)

    def _answer(self, inputs: torch.Tensor) -> ImageClassifierOutputWithNoAttention:
        return ImageClassifierOutputWithNoAttention(logits=self.layers(self.drop(flat(inputs, self.config))))


class MLPForImageClassification(_MLP):
    """Full layers over pixels."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> ImageClassifierOutputWithNoAttention:  # noqa: ANN401
        """Images [B, C, H, W].

        Raises:
            ValueError: images of another size.
        """
        return self._answer(pixel_values)


class MLPForFeatureClassification(_MLP):
    """Full layers over vectors of features; of a regression the one logit is the value."""

    main_input_name = "features"

    def forward(self, features: torch.Tensor, **kwargs: Any) -> ImageClassifierOutputWithNoAttention:  # noqa: ANN401
        """Vectors [B, m].

        Raises:
            ValueError: vectors of another size.
        """
        return self._answer(features)


class SmallCNNForImageClassification(PreTrainedModel):
    """The convolutional network."""

    config_class = SmallCNNConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, config: SmallCNNConfig) -> None:
        super().__init__(config)
        depth, height, width = config.image_shape
        blocks: list[nn.Module] = []
        for channels in config.channels:
            convolution = nn.Conv2d(depth, channels, config.kernel_size, padding=config.kernel_size // 2)
            blocks += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
            depth, height, width = channels, height // 2, width // 2
        self.convolutions = nn.Sequential(*blocks)
        self.drop = nn.Dropout(config.dropout)
        hidden = list(config.hidden_sizes)
        self.layers = full_layers(depth * height * width, hidden, config.num_labels, config.dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        scale_for_relu(module)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> ImageClassifierOutputWithNoAttention:  # noqa: ANN401
        """Images [B, C, H, W].

        Raises:
            ValueError: images of another size.
        """
        if tuple(pixel_values.shape[1:]) != self.config.image_shape:
            sizes = [" x ".join(map(str, each)) for each in (self.config.image_shape, pixel_values.shape[1:])]
            raise ValueError(f"the model reads images of {sizes[0]}, and these are of {sizes[1]}")
        states = self.convolutions(pixel_values).flatten(1)
        return ImageClassifierOutputWithNoAttention(logits=self.layers(self.drop(states)))


register(
    MLPConfig, {AutoModel: MLPForFeatureClassification, AutoModelForImageClassification: MLPForImageClassification}
)
register(SmallCNNConfig, {AutoModelForImageClassification: SmallCNNForImageClassification})
