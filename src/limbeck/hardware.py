"""What this machine can do: devices, precision, threads."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import metadata
from typing import Any

import torch
from accelerate import PartialState

Precision = str
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@cache
def device() -> torch.device:
    """The device that this process computes on."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device, which is not waited for: a GPU copies it when it comes to that."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def processes() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started."""
    return PartialState(cpu=device().type == "cpu")


def pick_precision(wanted: Precision = "auto") -> Precision:
    """`auto` resolved: bfloat16 where the hardware computes in it, float16 on older GPUs, else float32."""
    if wanted != "auto":
        return wanted
    kind = device().type
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if kind == "cpu" and _cpu_has_bfloat16() else "float32"


def autocast(precision: Precision) -> AbstractContextManager[Any]:
    """The context in which a forward pass runs in this precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device().type, dtype=DTYPES[precision])


def synchronise() -> None:
    """Wait until a GPU has done what it was given, so that a time is that of the work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_has_bfloat16() -> bool:
    """AVX512-BF16 or AMX. Without them bfloat16 is emulated and far slower than float32."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE"):
        return False
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def describe() -> dict[str, Any]:
    """The machine in the terms that a timing needs beside it."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": device().type,
        "gpu": gpu,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": pick_precision(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def version(package: str) -> str:
    """An installed package's version, or `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
