"""Limbeck's command line on CPU processes under FSDP, which Accelerate does on accelerators alone; for torchrun.

What is tested is what Limbeck does about weights that are split. That PyTorch splits them on CPUs, too, is PyTorch's.
"""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from limbeck.cli import main

whole = AcceleratorState.__init__


def with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    whole(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin


AcceleratorState.__init__ = with_fsdp  # type: ignore[method-assign]
main()
