"""Images in tables: the bytes that they are, and small copies to show."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
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
        if value is None or (value["bytes"] is None and not (value["path"] and Path(value["path"]).is_file())):
            raise InputError(f"image {row + 1} in column '{column}' is missing; remove such rows")
        yield value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()


def check_images(table: Dataset, column: str, name: str) -> None:
    """Refuse images that cannot be opened; of some formats only their beginning is looked at.

    Args:
        table: the examples.
        column: where the images are.
        name: of the data, for the message.

    Raises:
        InputError: a missing or damaged image; names the row.
    """
    for row, content in enumerate(image_bytes(table, column)):
        try:
            PIL.Image.open(io.BytesIO(content)).verify()
        except (OSError, SyntaxError, ValueError) as error:  # what PIL's formats raise of damaged files
            raise InputError(
                f"image {row + 1} in column '{column}' of the {name} data cannot be opened ({error}); remove such rows"
            ) from None


def thumbnail(image: Any, side: int = 96) -> str:  # noqa: ANN401
    """A PIL image of at most so many pixels a side as a `data:` address."""
    small = image.convert("RGB" if image.mode not in ("L", "RGB") else image.mode)
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
