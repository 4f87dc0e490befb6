"""Images to tensors: resized and cropped once into bytes, scaled and normalised per batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from limbeck.errors import InputError
from limbeck.tasks.text import Batch, labels_of, place_of_result

if TYPE_CHECKING:
    from limbeck.checkpoints import Checkpoint

_MODES = {1: "L", 3: "RGB"}
_BLOCK = 256
_PROBES = ((96, 64), (64, 96))
"""Sizes of images that tell whether a processor makes one size of all."""


class ImageReader:
    """Reads images with a model's image processor.

    What the processor does to the pixels' places (resizing, cropping) is done once; the bytes are kept. Rescaling and
    normalising are done for each batch, after any random changes of the training images (see `RandomImages`).

    Args:
        checkpoint: the model and its image processor.

    Raises:
        InputError: a model of neither 1 nor 3 channels, or a processor that pads or cuts into patches itself.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.processor: BaseImageProcessor = checkpoint.processor
        self.channels = int(getattr(checkpoint.model.config, "num_channels", 3))
        if self.channels not in _MODES:
            raise InputError(
                f"'{checkpoint.name}' reads images of {self.channels} channels; grey (1) or RGB (3) are read"
            )
        self._mean, self._scale = (_by_channel(each, self.channels) for each in _normalisation(self.processor))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The processor's settings and the number of channels."""
        return {"images": processor_fingerprint(self.processor), "channels": self.channels}

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what the processor makes of any image, whatever settings it has them from.

        Raises:
            InputError: they depend on the image.
        """
        height, width = self._pixels([Image.new(_MODES[self.channels], size) for size in _PROBES]).shape[-2:]
        return int(height), int(width)

    def encode(self, examples: Dataset) -> Dataset:
        """Columns `pixels` (uint8, flat), `row`, `length` (1: all alike) and `labels`, as numpy arrays.

        Raises:
            InputError: images that cannot be opened, or that come out in different sizes.
        """
        size = self._pixels(examples.select(range(1))["image"]).shape[1:]
        columns = Features(
            {
                "pixels": List(Value("uint8"), length=int(np.prod(size))),
                "row": Value("int64"),
                "length": Value("int64"),
            }
        )
        if "label" in examples.column_names:
            columns["labels"] = examples.features["label"]

        def read(part: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
            pixels = self._pixels(part["image"], size)
            found = {"pixels": list(pixels.reshape(len(rows), -1)), "row": rows, "length": [1] * len(rows)}
            return found | ({"labels": part["label"]} if "label" in part else {})

        try:
            encoded = examples.map(
                read,
                batched=True,
                batch_size=_BLOCK,
                with_indices=True,
                remove_columns=examples.column_names,
                features=columns,
                load_from_cache_file=False,
                desc="Reading images",
                **place_of_result(examples),
            )
        except OSError as error:
            if error.errno is not None:
                raise  # of the disk
            raise InputError(f"an image cannot be read to its end ({error}); remove damaged ones") from None
        self.size = size
        return encoded.with_format("numpy")

    def collate(
        self, examples: list[dict[str, Any]], change: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> Batch:
        """`pixel_values` float32 [B, C, H, W], `row` int64 [B], `labels`; their bytes changed first where told how."""
        flat = torch.from_numpy(np.stack([example["pixels"] for example in examples]))
        pixels = flat.reshape(len(examples), *self.size)
        return {"pixel_values": self.normalise(pixels if change is None else change(pixels))} | labels_of(examples)

    def batch(self, examples: Dataset) -> Batch:
        """A few images as one batch."""
        pixels = torch.from_numpy(self._pixels(examples["image"][:]))
        return {"pixel_values": self.normalise(pixels), "row": torch.arange(len(examples))}

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes [B, C, H, W] as the model reads them, float32."""
        return (pixels.float() - self._mean.to(pixels.device)) * self._scale.to(pixels.device)

    def bytes_of(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What `normalise` was given, float32."""
        return pixel_values / self._scale.to(pixel_values.device) + self._mean.to(pixel_values.device)

    def _pixels(self, images: list[Any], size: tuple[int, ...] | None = None) -> np.ndarray:
        """PIL images as the processor's pixels, uint8 [B, C, H, W]."""
        converted = [image.convert(_MODES[self.channels]) for image in images]
        found = self.processor(converted, do_convert_rgb=False, do_rescale=False, do_normalize=False)["pixel_values"]
        shapes = {np.shape(each) for each in found} | ({size} if size else set())
        if len(shapes) > 1:
            sizes = " and ".join(f"{h} x {w}" for _, h, w in sorted(shapes)[:2])
            raise InputError(
                f"images come out of the image processor as {sizes} pixels; give a model whose processor resizes "
                "all to one size"
            )
        pixels: np.ndarray = np.clip(np.rint(np.stack(found)), 0, 255).astype(np.uint8)
        return pixels


def as_the_teacher_reads(ours: ImageReader, theirs: ImageReader, batch: Batch) -> Batch:
    """A batch of images as another model is to be shown them: the same pixels, scaled as it was taught."""
    return {"pixel_values": theirs.normalise(ours.bytes_of(batch["pixel_values"]))}


def what_differs(ours: ImageReader, theirs: ImageReader) -> str | None:
    """The setting by which two models would see other pixels of an image; none where they see the same."""
    if ours.channels != theirs.channels:
        return f"{ours.channels} and {theirs.channels} channels"
    for name in ("size", "do_resize", "do_center_crop", "crop_size", "resample"):
        mine, other = (getattr(each.processor, name, None) for each in (ours, theirs))
        if mine != other and not (name == "crop_size" and not ours.processor.do_center_crop):
            return f"{name} {mine} and {other}"
    return None


def processor_fingerprint(processor: BaseImageProcessor) -> str:
    """SHA-256 of an image processor's settings."""
    settings = {key: value for key, value in processor.to_dict().items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _normalisation(processor: BaseImageProcessor) -> tuple[Any, Any]:
    """What to take from a byte and what to multiply the rest with, so that it is as the processor says."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return 0.0, factor
    mean, deviation = np.atleast_1d(processor.image_mean), np.atleast_1d(processor.image_std)
    return mean / factor, factor / deviation


def _by_channel(values: Any, channels: int) -> torch.Tensor:  # noqa: ANN401
    """Values per channel, or one for all, as float32 [C, 1, 1]."""
    return torch.tensor(np.broadcast_to(np.asarray(values, dtype=np.float32).reshape(-1), channels).copy())[
        :, None, None
    ]
