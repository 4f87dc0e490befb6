"""Writing files so that a process killed at any moment leaves the old file or the new one, never a torn one."""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from limbeck.errors import InputError, LimbeckError
from limbeck.progress import say

LOCK = "lock"
"""The file in a folder by which runs that would write there wait for each other."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file: to a neighbour first, flushed to the disk, then renamed into place."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write JSON as `write_atomic` does; keys keep their order, so equal values give equal bytes."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file of ours.

    Raises:
        InputError: not readable as JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run the same command again") from None


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def locked(folder: Path, waiting: str) -> Iterator[None]:
    """Hold a folder's lock, so that one run at a time writes there. A kill lets go of it.

    Args:
        folder: made where it is missing.
        waiting: what to say, once, where another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@cache
def scratch() -> Path:
    """A folder for what this process alone needs for a while; gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="limbeck-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def sha256(path: Path) -> str:
    """A file's SHA-256 as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse early when the disk cannot hold what a run will write.

    Raises:
        InputError: fewer than `needed` bytes are free.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{what} needs about {megabytes(needed)} in {folder}, where {megabytes(free)} are free; "
            "free some space or give another output=FOLDER"
        )


def megabytes(size: float) -> str:
    """A size in bytes for reading."""
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def full_disk_explained() -> Iterator[None]:
    """Turn a full disk part-way, in whatever form a library reports it, into a sentence."""
    try:
        yield
    except LimbeckError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            file = getattr(error, "filename", None)
            where = f" while writing {file}" if file else ""
            raise LimbeckError(
                f"the disk is full{where}; what was finished is kept: free some space and run the same command again"
            ) from None
        raise
