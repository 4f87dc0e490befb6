"""What a run tells its user as it goes: one console, one voice, the main process only."""

from __future__ import annotations

import os

from rich.console import Console

console = Console(stderr=True, highlight=False)


def say(sentence: str) -> None:
    """Print a line, once however many processes run."""
    if os.environ.get("RANK", "0") == "0":
        console.print(sentence, markup=False, soft_wrap=True)
