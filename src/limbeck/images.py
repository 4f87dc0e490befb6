"""Images in tables: the bytes that they are, and small copies to show."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Image

from limbeck.errors import InputError


def is_image(table: Dataset, column: str) -> bool:
    """Whether a column holds images."""
    return isinstance(table.features[column], Image)


def image_bytes(table: Dataset, column: str = "image") -> Iterator[bytes]:
    """Each image's file as it is stored, not decoded.

    Raises:
        InputError: an image without content.
    """
    for row, value in enumerate(table.cast_column(column, Image(decode=False))[column]):
        if value is None or (value["bytes"] is None and not value["path"]):
            raise InputError(f"image {row + 1} in column '{column}' is missing; remove such rows")
        yield value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()


def thumbnail(image: Any, side: int = 96) -> str:  # noqa: ANN401
    """A PIL image of at most so many pixels a side as a `data:` address."""
    small = image.convert("RGB" if image.mode not in ("L", "RGB") else image.mode)
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
