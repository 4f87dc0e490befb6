"""Everything that a server answered about texts: written down at once, found again by any later run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset

from limbeck import hardware
from limbeck.errors import InputError
from limbeck.files import locked, read_json, write_json
from limbeck.journal import Journal, read_journals

Kind = Literal["scores", "label", "wrong", "refused"]


class Entry(NamedTuple):
    """One answer.

    Attributes:
        text: names the example; see `names_of`.
        kind: `scores` (a log-probability or log-odds for each label), `label` (a label's number, of multi-label tasks
            a list of them), `wrong` (none of the labels; the first of what was said), or `refused` (why).
        value: of the kind.
        prompt_tokens: that it took; none where the server does not count.
        tokens: of the answer, likewise.
    """

    text: str
    kind: Kind
    value: Any
    prompt_tokens: int | None = None
    tokens: int | None = None


class Book:
    """The answers of one server, asked in one way, about any texts.

    A line is appended for each answer and flushed to the disk before the next is taken, so that a kill costs those
    under way at most. Nothing is ever deleted. Only one process writes at a time; others wait.

    Args:
        root: the folder that keeps knowledge; the book is `root/asked/KEY`.
        spec: what the answers depend on besides the text, as JSON values.

    Attributes:
        kind: what the server's usable answers are, `scores` or `label`; none before the first.

    Raises:
        InputError: the folder holds another server's answers.
    """

    def __init__(self, root: Path, spec: dict[str, Any]) -> None:
        spec = json.loads(json.dumps(spec, sort_keys=True))  # as it is read back
        key = hashlib.sha256(json.dumps(spec).encode()).hexdigest()
        self.folder, self.spec = root / "asked" / key[:16], spec
        note = self.folder / "spec.json"
        if note.is_file() and read_json(note) != spec:
            raise InputError(f"{self.folder} holds answers to something else; move it away")
        self.read()

    def read(self) -> None:
        """Take in what stands on the disk."""
        self._entries: dict[str, list[Entry]] = {}
        self.kind: Kind | None = None
        for record in read_journals(self.folder):
            self._take(Entry(*record))

    @contextmanager
    def writing(self) -> Iterator[Journal]:
        """The journal that this process writes, with no other at work; what others wrote before is taken in."""
        waiting = f"teacher: another process is asking this server; waiting until it is done ({self.folder})"
        with (
            locked(self.folder, waiting),
            Journal(self.folder, hardware.processes().process_index) as journal,
        ):
            if not (self.folder / "spec.json").is_file():
                write_json(self.folder / "spec.json", self.spec)
            self.read()
            yield journal

    def add(self, journal: Journal, entries: Sequence[Entry]) -> None:
        """Write answers down."""
        journal.write([list(entry) for entry in entries])
        for entry in entries:
            self._take(entry)

    def answer(self, text: str) -> Entry | None:
        """The answer that can be learnt from, if there is one."""
        return next((each for each in self._entries.get(text, ()) if each.kind in ("scores", "label")), None)

    def wrong(self, text: str) -> list[str]:
        """What was said that is none of the labels."""
        return [each.value for each in self._entries.get(text, ()) if each.kind == "wrong"]

    def settled(self, text: str, tries: int) -> bool:
        """Whether there is nothing more to ask about an example."""
        found = self._entries.get(text, ())
        return (
            self.answer(text) is not None or len(self.wrong(text)) >= tries or any(e.kind == "refused" for e in found)
        )

    def entries(self, texts: Iterable[str]) -> list[Entry]:
        """All about these examples."""
        return [entry for text in dict.fromkeys(texts) for entry in self._entries.get(text, ())]

    def _take(self, entry: Entry) -> None:
        self._entries.setdefault(entry.text, []).append(entry)
        if self.kind is None and entry.kind in ("scores", "label"):
            self.kind = entry.kind


def names_of(texts: Dataset) -> list[str]:
    """What examples are named by in a book: a digest of their content, so that equal ones are asked about once."""
    columns = [texts[name][:] for name in ("text", "text_pair") if name in texts.column_names]
    return [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:32] for row in zip(*columns, strict=True)]
