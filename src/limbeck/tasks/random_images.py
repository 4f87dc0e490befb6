"""Training images changed at random, and mixed with each other (Touvron et al. 2021, section 4 and table 9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from limbeck import extras
from limbeck.recipe.schema import ImageChanges
from limbeck.tasks.images import ImageReader
from limbeck.tasks.text import Batch


class RandomImages:
    """Makes batches of changed images. What is drawn follows from seed, epoch and the batch's examples alone.

    Changes of place and colour are kornia's (the `vision` extra). Mixup (Zhang et al. 2018) and CutMix (Yun et al.
    2019) mix each image with another of the batch, as timm does: one of them by a coin's throw where both are given.

    Args:
        reader: how the student reads images.
        changes: the recipe's section.
        classes: of the task.
        seed: of the run.
        epoch: says which epoch it is.

    Raises:
        InputError: kornia is not installed.
    """

    def __init__(
        self, reader: ImageReader, changes: ImageChanges, classes: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.reader, self.changes, self.classes = reader, changes, classes
        self.seed, self.epoch = seed, epoch
        self._one_by_one = _pipeline(changes, reader.size[1:])

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        """`pixel_values` float32 [B, C, H, W]; `labels` float32 [B, classes] where they are mixed or smoothed."""
        drawn = np.random.SeedSequence([self.seed, self.epoch(), *(int(example["row"]) for example in examples)])
        # kornia draws from the global generator; those of accelerators, which dropout draws from, are left alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(drawn.generate_state(1, np.uint64)[0] >> 1))
            batch = self.reader.collate(examples, self._change)
            return self._mixed(batch)

    def _change(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes [B, C, H, W], changed one by one; float32."""
        changed: torch.Tensor = self._one_by_one(pixels.float() / 255)
        return changed * 255

    def _mixed(self, batch: Batch) -> Batch:
        """The batch's images mixed in pairs, and their labels with them."""
        if "labels" in batch and (self.changes.mixup or self.changes.cutmix or self.changes.smoothing):
            batch["labels"] = self._soft(batch["labels"])
        methods = [name for name in ("mixup", "cutmix") if getattr(self.changes, name)]
        if not methods:
            return batch
        method = methods[int(torch.randint(len(methods), ()))]
        alpha = float(getattr(self.changes, method))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(batch["row"]))
        pixels = batch["pixel_values"]
        if method == "mixup":
            batch["pixel_values"] = share * pixels + (1 - share) * pixels[other]
        else:
            top, bottom, left, right = _box(pixels.shape[2:], 1 - share)
            mixed = pixels.clone()
            mixed[:, :, top:bottom, left:right] = pixels[other][:, :, top:bottom, left:right]
            batch["pixel_values"] = mixed
            share = 1 - (bottom - top) * (right - left) / pixels[0, 0].numel()  # the box may end at an edge
        if "labels" in batch:
            batch["labels"] = share * batch["labels"] + (1 - share) * batch["labels"][other]
        return batch

    def _soft(self, labels: torch.Tensor) -> torch.Tensor:
        """Class numbers [B] as distributions [B, classes], some of each spread evenly; NaN where there is no label."""
        known = labels >= 0
        sharp = F.one_hot(labels.clamp(min=0), self.classes).float()
        soft = (1 - self.changes.smoothing) * sharp + self.changes.smoothing / self.classes
        return soft.masked_fill(~known[:, None], float("nan"))


def _pipeline(changes: ImageChanges, size: tuple[int, int]) -> nn.Module:
    """The changes of single images, in DeiT's order."""
    extras.require("vision", "change training images at random")
    from kornia import augmentation as k

    steps: list[nn.Module] = []
    if changes.resized_crop:
        steps.append(k.RandomResizedCrop(size, scale=(changes.resized_crop, 1.0), resample="bicubic"))
    if changes.crop:
        steps.append(k.RandomCrop(size, padding=changes.crop))
    if changes.flip:
        steps.append(k.RandomHorizontalFlip(p=0.5))
    if changes.randaugment:
        steps.append(k.auto.RandAugment(n=2, m=changes.randaugment))
    if changes.erase:
        steps.append(k.RandomErasing(p=changes.erase))
    return nn.Sequential(*steps)


def _box(size: torch.Size, share: float) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box of a share of an image, its middle anywhere."""
    half = [int(side * share**0.5) // 2 for side in size]
    middle = [int(torch.randint(side, ())) for side in size]
    (top, bottom), (left, right) = (
        (max(m - h, 0), min(m + h, side)) for m, h, side in zip(middle, half, size, strict=True)
    )
    return top, bottom, left, right
