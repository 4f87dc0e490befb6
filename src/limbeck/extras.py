"""The optional packages, by the extra that brings them."""

from __future__ import annotations

import importlib.util

from limbeck.errors import InputError

EXTRAS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "api": ("httpx2",),
    "gguf": ("gguf",),
    "harness": ("lm_eval",),
    "rules": ("llguidance", "jsonschema"),
    "vision": ("kornia",),
    "sklearn": ("skops",),
    "tags": ("textblob",),
    "ray": ("ray",),
    "s3": ("s3fs",),
    "deepspeed": ("deepspeed",),
}


def installed(extra: str) -> bool:
    """Whether all packages of an extra are there."""
    return all(importlib.util.find_spec(name) for name in EXTRAS[extra])


def require(extra: str, feature: str) -> None:
    """Refuse a feature whose optional packages are missing.

    Raises:
        InputError: names the extra and how to install it.
    """
    if not installed(extra):
        raise InputError(f"{feature} needs the '{extra}' extra; install it with: pip install 'limbeck[{extra}]'")
