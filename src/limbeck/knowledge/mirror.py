"""A store of knowledge behind a URL, such as a bucket: shards go there as they are made, and come from there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from limbeck.errors import InputError, LimbeckError
from limbeck.files import read_json, sha256, write_json
from limbeck.knowledge.store import note_of, shard_name
from limbeck.progress import say

MANIFEST = "manifest.json"
FETCHED = "manifest.json.fetched"
BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"}
STREAMS = 8
"""Files on their way at once."""


def is_url(place: str) -> bool:
    """Whether this names what `fsspec` opens rather than a folder here."""
    return "://" in place


class Mirror:
    """One store's folder behind a URL. It is opened when it is first used, by each process for itself.

    A shard goes there before the note with its digest, and the manifest last, so that what a kill leaves is taken for
    nothing. Nothing there is locked: two runs that make the same store at once both ask the teacher, and leave the
    same bytes.

    Args:
        url: of all knowledge, as `fsspec` knows it: s3://, gs://, hf://, sftp://, file://, ...
        key: the store's folder below.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = f"{url.rstrip('/')}/{key}", key
        self._opened: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Connections stay in the process that made them."""
        return self.__dict__ | {"_opened": None}

    def check(self) -> None:
        """Refuse a URL that nothing here opens, or where nothing can be written.

        Raises:
            InputError: names the package that is missing, or what the other side said.
        """
        if self.url.startswith(("http://", "https://")):
            raise InputError(f"knowledge={self.url.rpartition('/')[0]} can be read alone; give a URL to write to")
        fs, base = self._open()
        try:
            self._make_folder(base)
            fs.pipe_file(f"{base}/.limbeck", b"")
        except Exception as error:
            raise InputError(f"knowledge={self.url.rpartition('/')[0]} cannot be written to ({_said(error)})") from None

    def fetch(self, folder: Path, shards: int) -> None:
        """Bring here what is there and not here yet, verified: a whole store, or what was made of it so far.

        Raises:
            InputError: a shard's bytes are not those that were sent.
            LimbeckError: the connection failed.
        """
        (folder / "progress").mkdir(parents=True, exist_ok=True)
        present, last = self._listed(""), list[str]()
        if MANIFEST in present:
            self._get(folder, [FETCHED], {FETCHED: MANIFEST})
            made = {shard["file"]: shard for shard in read_json(folder / FETCHED)["shards"]}
            (folder / FETCHED).unlink()
            there = {name: shard for name, shard in made.items() if name in present}
            if len(there) == len(made):
                last = ["dataset_info.json", "state.json", MANIFEST]
            for name, shard in there.items():  # where a shard was deleted it is an unfinished store again
                write_json(folder / note_of(name), {"rows": shard["rows"], "sha256": shard["sha256"]})
            digests = {name: shard["sha256"] for name, shard in there.items()}
        else:
            noted = self._listed("progress")
            notes = [note_of(shard_name(index)) for index in range(shards)]
            notes = [note for note in notes if Path(note).name in noted]
            self._get(folder, [note for note in notes if not (folder / note).is_file()])
            digests = {Path(note).stem: read_json(folder / note)["sha256"] for note in notes}
        missing = [name for name in digests if not (folder / name).is_file()]
        if missing:
            say(f"knowledge: {len(missing)} shards come from {self.url}")
            self._get(folder, missing)
        for name in missing:
            if sha256(folder / name) != digests[name]:
                (folder / name).unlink()
                raise InputError(
                    f"knowledge shard {self.url}/{name} is damaged (its SHA-256 is not {digests[name][:16]}); delete "
                    "it there and run the same command: only its examples are asked again"
                )
        if last:
            self._get(folder, last)
            shutil.rmtree(folder / "progress")

    def push(self, folder: Path, index: int) -> None:
        """Send a finished shard, then its note.

        Raises:
            LimbeckError: the connection failed; what was sent is kept.
        """
        name = shard_name(index)
        self._put(folder, [name])
        self._put(folder, [note_of(name)])

    def push_missing(self, folder: Path, indices: Iterable[int]) -> None:
        """Send those of the finished shards that are not there."""
        present, noted = self._listed(""), self._listed("progress")
        for index in indices:
            name = shard_name(index)
            if name not in present or Path(note_of(name)).name not in noted:
                self.push(folder, index)

    def finish(self, folder: Path) -> None:
        """Send a finished store: the shards that are not there, then what makes it one, the manifest last."""
        present, noted = self._listed(""), self._listed("progress")
        names = [shard["file"] for shard in read_json(folder / MANIFEST)["shards"]]
        self._put(folder, [n for n in names if n not in present or Path(note_of(n)).name not in noted])
        self._put(folder, ["dataset_info.json", "state.json"])
        self._put(folder, [MANIFEST])
        fs, base = self._open()
        if noted:
            fs.rm(f"{base}/progress", recursive=True)

    @property
    def finished(self) -> bool:
        """Whether a whole store is there."""
        return self._there(MANIFEST)

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            try:
                self._opened = fsspec.core.url_to_fs(self.url)
            except (ImportError, ValueError) as error:
                raise InputError(f"knowledge={self.url.rpartition('/')[0]} cannot be opened: {error}") from None
        return self._opened

    def _make_folder(self, folder: str) -> None:
        fs, _ = self._open()
        if not BUCKETS & {fs.protocol, *fs.protocol}:  # they have no folders, and some would make a bucket
            fs.makedirs(folder, exist_ok=True)

    def _there(self, name: str) -> bool:
        fs, base = self._open()
        try:
            fs.invalidate_cache()
            return bool(fs.exists(f"{base}/{name}"))
        except Exception as error:
            raise InputError(f"knowledge={self.url} cannot be reached ({_said(error)})") from None

    def _listed(self, folder: str) -> set[str]:
        fs, base = self._open()
        fs.invalidate_cache()
        try:
            return {Path(name).name for name in fs.ls(f"{base}/{folder}".rstrip("/"), detail=False)}
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise LimbeckError(f"{self.url} cannot be listed ({_said(error)}); run the same command again") from None

    def _get(self, folder: Path, names: Iterable[str], called: dict[str, str] | None = None) -> None:
        fs, base = self._open()

        def get(name: str) -> None:
            partial = folder / f"{name}.partial"
            fs.get_file(f"{base}/{(called or {}).get(name, name)}", str(partial))
            os.replace(partial, folder / name)

        self._all(get, names)

    def _put(self, folder: Path, names: Iterable[str]) -> None:
        fs, base = self._open()

        def put(name: str) -> None:
            self._make_folder(f"{base}/{name}".rpartition("/")[0])
            fs.put_file(str(folder / name), f"{base}/{name}")

        self._all(put, names)

    def _all(self, move: Any, names: Iterable[str]) -> None:  # noqa: ANN401
        try:
            with ThreadPoolExecutor(STREAMS) as pool:
                list(pool.map(move, names))
        except Exception as error:
            raise LimbeckError(
                f"{self.url} broke off ({_said(error)}); what arrived is kept: run the same command again"
            ) from None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
