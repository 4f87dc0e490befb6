"""What this machine can do and which extras are there."""

from __future__ import annotations

import shutil

from transformers.utils import is_liger_kernel_available

from limbeck import extras, hardware
from limbeck.signals import Wanted
from limbeck.training.kernels import kernels_for


def findings() -> list[tuple[str, str, str]]:
    """Rows of (what, found, consequence)."""
    machine = hardware.describe()
    precision = machine["precision"]
    free = shutil.disk_usage(".").free
    rows = [
        ("limbeck", hardware.version("limbeck"), f"Python {machine['python']}, {machine['system']}"),
        ("torch", str(machine["torch"]), f"transformers {hardware.version('transformers')}"),
        ("device", str(machine["gpu"] or machine["cpu"]), machine["device"]),
        ("cores", str(machine["cores"]), f"{machine['threads']} threads used"),
        ("precision", precision, reason_for(precision, machine["device"])),
        ("disk", f"{free / 1e9:.0f} GB free", "here"),
    ]
    there = is_liger_kernel_available()
    if machine["device"] != "cuda":
        reason = "they need a CUDA device"
    else:
        reason = "in training causal-lm students" if there else "pip install 'limbeck[liger]'"
    rows.append(("fused kernels", "yes" if kernels_for(machine["device"], there, Wanted()) else "no", reason))
    for extra in extras.EXTRAS:
        there = extras.installed(extra)
        rows.append((f"extra '{extra}'", "yes" if there else "no", "" if there else f"pip install 'limbeck[{extra}]'"))
    return rows


def reason_for(precision: str, device: str) -> str:
    """Why students are trained in this precision on this device."""
    if device == "mps":
        return "lower precision is used on CUDA GPUs and on CPUs, not on Apple's GPUs"
    return {
        "bfloat16": "the hardware computes in it",
        "float16": "this GPU has no bfloat16",
        "float32": "no AVX512-BF16, AMX or GPU; bfloat16 would be emulated and slower",
    }[precision]
