"""The most memory that this process takes above what it held before."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch


class PeakMemory:
    """Counts from when it is made: what PyTorch allocates on CUDA; on the CPU what is resident, under Linux alone.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._before: int | None = None
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        elif device.type == "cpu" and sys.platform == "linux":
            # Not every C library trims, and a sandbox may keep the marks: then the memory is not told.
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # free memory that the process still holds would hide what is taken
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
                self._before = _status("VmRSS")

    def read(self) -> int | None:
        """Bytes until now; None where they cannot be told."""
        if self._before is None:
            return None
        return max((torch.cuda.max_memory_allocated() if self._on_gpu else _status("VmHWM")) - self._before, 0)


def _status(field: str) -> int:
    """A field of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))
