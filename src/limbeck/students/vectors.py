"""What students that read numbers share: the size of their input, as images, feature vectors or mean embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedConfig, PreTrainedModel, initialization

from limbeck.tasks.features import FeatureProcessor


class VectorConfig(PreTrainedConfig):
    """What is read: images of `num_channels` and `image_size`, or vectors of `num_features`.

    Attributes:
        num_channels: of an image.
        image_size: its height and width, or one number for both.
        num_features: numbers of a feature vector, or of a word's embedding; where it is given, no images are read.
    """

    num_channels: int = 1
    image_size: int | list[int] | tuple[int, ...] = 28
    num_features: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.num_channels, height, width

    @property
    def reads(self) -> str:
        """`features`, `text` or `image`."""
        if self.num_features is None:
            return "image"
        return "features" if getattr(self, "vocab_size", None) is None else "text"

    @property
    def width(self) -> int:
        """The numbers of one input."""
        return math.prod(self.image_shape) if self.num_features is None else self.num_features

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__post_init__(**kwargs)
        if self.width < 1:
            raise ValueError(f"inputs of {self.width} numbers; give num_features, or num_channels and image_size")

    def require_counts(self, name: str, values: list[int]) -> None:
        """Refuse sizes that are no whole numbers from 1.

        Raises:
            ValueError: names the entry.
        """
        if any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in values):
            raise ValueError(f"{name} is {values}; give whole numbers from 1")

    def require_share(self, name: str, value: float) -> None:
        """Refuse a chance of dropping inputs that leaves none.

        Raises:
            ValueError: names the entry.
        """
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value:g}; give a number from 0 up to, but not including, 1")


def scale_for_relu(module: nn.Module) -> None:
    """Weights that keep the scale of what goes through a rectifier (He et al. 2015, eq. 10); biases of zero."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        initialization.kaiming_uniform_(module.weight, nonlinearity="relu")
        initialization.zeros_(module.bias)


def flat(inputs: torch.Tensor, config: VectorConfig) -> torch.Tensor:
    """Images [B, C, H, W] or vectors [B, m] as vectors [B, m].

    Raises:
        ValueError: they are of another size than the model was made for.
    """
    vectors = inputs.flatten(1)
    if vectors.shape[1] != config.width:
        raise ValueError(f"the model reads {config.width} numbers, and an input has {vectors.shape[1]}")
    return vectors


def register(config: type[PreTrainedConfig], kinds: dict[Any, type[PreTrainedModel]]) -> None:
    """Make `AutoConfig` know a configuration, and each auto class a model of it and what makes its features."""
    AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto, kind in kinds.items():
        auto.register(config, kind, exist_ok=True)
    if AutoModel in kinds:
        AutoFeatureExtractor.register(config, FeatureProcessor, exist_ok=True)
