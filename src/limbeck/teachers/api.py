"""A teacher behind an API: asked once about each text, whatever else happens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from rich.progress import Progress, TextColumn

from limbeck import hardware
from limbeck.errors import InputError, LimbeckError
from limbeck.progress import console, say
from limbeck.recipe.served import Chat
from limbeck.recipe.teacher import TeacherModel
from limbeck.remote import RETRIES, Client, RefusedError
from limbeck.remote.spending import cost, told
from limbeck.rules.labels import CERTAIN
from limbeck.signals import Asked, Signals
from limbeck.tasks import Task
from limbeck.teachers.book import Book, Entry, names_of
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.questions import ChatQuestions, Example, HttpQuestions, Questions
from limbeck.teachers.ruled import Ruled

HOPELESS = 20
"""So many examples without a usable answer, and none with one, end the run."""


class ApiTeacher:
    """A classifier behind a server, by chat completions or by a mapping.

    What it answers stands in a book under `root`, keyed by server, model, labels and the way of asking, and by the
    content of each text. So any later run, on other data or another student, pays for new texts alone.

    Answers are log-probabilities (multi-label: log-odds), or labels alone. Of the latter the logits are 0 for the label
    and -1e4 for the others (multi-label: 1e4 and -1e4), whose softmax is one-hot at any temperature, and `Signals.hard`
    says so.

    Args:
        teacher: the recipe's section.
        task: classification or multi-label.
        root: the folder that keeps knowledge.
        retries: how often a request is tried again that fails for now.

    Raises:
        InputError: see `Client`, `ChatQuestions` and `HttpQuestions`.
    """

    def __init__(self, teacher: TeacherModel, task: Task, root: Path, retries: int = RETRIES) -> None:
        self.client, self.task, self.name = Client(teacher, retries), task, teacher.model
        self.questions: Questions
        if teacher.http is not None:
            self.questions = HttpQuestions(self.client, teacher.model, teacher.http, task)
        else:
            self.questions = ChatQuestions(self.client, teacher.model, teacher.chat or Chat(), task)
        self._spec = {
            "server": self.client.address,
            "task": task.kind,
            "labels": list(task.labels),
            **self.questions.spec,
        }
        self.book = Book(root, self._spec)

    @property
    def labels(self) -> tuple[str, ...]:
        """The task's labels."""
        return self.task.labels

    @property
    def parameters(self) -> None:
        """Not known."""
        return None

    @property
    def bytes(self) -> None:
        """Not known."""
        return None

    @property
    def precision(self) -> str:
        """Not known."""
        return "the server's"

    @property
    def hard(self) -> bool:
        """Whether its answers are labels alone; known after the first."""
        return self.book.kind == "label"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The server, the model's name, the way of asking and of answering; what stands behind them cannot be seen."""
        return {**self._spec, "answers": self.book.kind}

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        """Its answers in the order of `texts`: logits float32 [N, C]; those that are not known yet are asked for.

        Raises:
            InputError: features are asked for; see also `fill`.
            LimbeckError: some example has no usable answer, or see `fill`.
        """
        if features:
            raise InputError("teacher.features are a model's layers, which a server does not show")
        self.fill(texts)
        found = [self.book.answer(name) for name in names_of(texts)]
        if None in found:
            raise LimbeckError(f"{self.client.address} has no usable answer to {found.count(None):,} of the examples")
        return Signals(np.stack([self._logits(entry) for entry in found if entry is not None]), hard=self.hard)

    def runner(self, texts: Dataset) -> Callable[[], None] | None:
        """None: each run would cost, and be about the network."""
        return None

    def answered(self, texts: Dataset) -> list[bool]:
        """Which examples have a usable answer."""
        return [self.book.answer(name) is not None for name in names_of(texts)]

    def fill(self, texts: Dataset) -> None:
        """Ask about every example that was not asked about yet.

        Equal examples are asked about once. One whose answer is none of the labels is asked about again, as often as
        the recipe says, and then left out, as is one that the server refuses to answer.

        Raises:
            InputError: the server, the key, the model or the mapping is wrong; nothing that it answers is usable.
            LimbeckError: the server kept failing, or a limit is reached; what it answered is kept.
        """
        examples = dict(zip(names_of(texts), _rows(texts), strict=True))
        if all(self.book.settled(name, self.questions.tries) for name in examples):
            return
        with self.book.writing() as journal:
            queue = deque(name for name in examples if not self.book.settled(name, self.questions.tries))
            if not queue:  # another process has asked meanwhile
                return
            if self.book.kind is None:
                self.client.check(self.questions.path)
            spent, total = self.client.spending, len(examples)
            columns = (*Progress.get_default_columns(), TextColumn("{task.fields[spent]}"))
            with Progress(*columns, console=console) as progress:
                bar = progress.add_task("Asking the teacher", total=total, completed=total - len(queue), spent="")
                first = _FirstAlone(queue, lambda: self.book.kind is not None)

                async def job(name: str) -> Entry:
                    return await self._one(name, examples[name])

                with closing(self.client.run(first.draw, job, self.client.rate.at_once)) as answers:
                    for entries in answers:
                        self.book.add(journal, entries)
                        first.under_way -= len(entries)
                        again = [e.text for e in entries if not self.book.settled(e.text, self.questions.tries)]
                        queue.extend(again)
                        progress.update(bar, advance=len(entries) - len(again), spent=spent.told())
                        self._refuse_hopeless(examples)
        settled = sum(self.book.settled(name, self.questions.tries) for name in examples)
        if settled < total:
            raise LimbeckError(
                f"stopped after {spent.told()}, as {spent.limits()}; {settled:,} of {total:,} examples are answered "
                "and kept: the same command goes on"
            )
        repeated = f"; {self.client.repeated:,} requests were tried again" if self.client.repeated else ""
        say(f"teacher: {self.name} was asked, {spent.told()}{repeated}; kept in {self.book.folder}")

    def spent(self, texts: Sequence[Dataset]) -> dict[str, Any]:
        """What these examples took over all runs.

        Returns:
            `examples` asked about, `left_out` of them, `calls`, `prompt_tokens`, `tokens`, `money`, and these in words.
        """
        entries = self.book.entries(name for table in texts for name in names_of(table))
        paid = [entry for entry in entries if entry.kind != "refused"]
        counts = (
            len(paid),
            sum(entry.prompt_tokens or 0 for entry in paid),
            sum(entry.tokens or 0 for entry in paid),
        )
        asked = {entry.text for entry in entries}
        return {
            "examples": len(asked),
            "left_out": sum(self.book.answer(name) is None for name in asked),
            **dict(zip(("calls", "prompt_tokens", "tokens"), counts, strict=True)),
            "money": cost(self.client.spending.price, *counts),
            "told": told(self.client.spending.price, *counts),
        }

    async def _one(self, name: str, example: Example) -> Entry:
        hard = None if self.book.kind is None else self.hard
        try:
            return await self.questions.ask(name, example, self.book.wrong(name), hard)
        except RefusedError as error:
            if self.book.kind is None:  # it has not answered anything: the fault is not this example's
                raise InputError(f"{self.client.address} refused to answer with {error}") from None
            return Entry(name, "refused", str(error)[:300])

    def _refuse_hopeless(self, examples: dict[str, Example]) -> None:
        """Stop where nothing that comes is usable."""
        if self.book.kind is not None:
            return
        wrong = [said for name in examples for said in self.book.wrong(name)]
        done = sum(self.book.settled(name, self.questions.tries) for name in examples)
        if done >= min(HOPELESS, len(examples)):
            raise InputError(
                f"none of the first {len(wrong):,} answers of {self.client.address} is one of the labels "
                f"{', '.join(self.task.labels)}; the last was '{wrong[-1]}'"
            )

    def _logits(self, entry: Entry) -> np.ndarray:
        if entry.kind == "scores":
            return np.array(entry.value, dtype=np.float32)
        low, high = -CERTAIN, CERTAIN if self.task.kind == "multi-label" else 0.0
        logits = np.full(self.task.outputs, low, dtype=np.float32)
        logits[entry.value] = high
        return logits


class _FirstAlone:
    """A queue of which only one is drawn at a time until the first usable answer: it shows what the others can be."""

    def __init__(self, queue: deque[str], known: Callable[[], bool]) -> None:
        self.queue, self.known, self.under_way = queue, known, 0

    def draw(self) -> str | None:
        if not self.queue or (self.under_way and not self.known()):
            return None
        self.under_way += 1
        return self.queue.popleft()


def behind_api(teacher: Asked) -> list[ApiTeacher]:
    """The teachers behind an API that a teacher is made of."""
    if isinstance(teacher, Ruled):
        return behind_api(teacher.model)
    if isinstance(teacher, Ensemble):
        return [each for member in teacher.members for each in behind_api(member)]
    return [teacher] if isinstance(teacher, ApiTeacher) else []


def labels_alone(teacher: Asked) -> bool:
    """Whether a teacher's probabilities are 0 and 1 because it states none."""
    if isinstance(teacher, Ruled):
        return labels_alone(teacher.model)
    return isinstance(teacher, ApiTeacher) and teacher.hard


def ask_servers(teacher: Asked, texts: Dataset) -> list[int]:
    """Have the members behind an API answer, by one process of several; the places of what all of them answered.

    Raises:
        InputError: see `ApiTeacher.fill`; nothing is answered.
        LimbeckError: see `ApiTeacher.fill`.
    """
    group, members = hardware.processes(), behind_api(teacher)
    if not members:
        return list(range(len(texts)))
    for member in members:
        if group.is_main_process:
            member.fill(texts)
        group.wait_for_everyone()
        member.book.read()
    told = zip(*(member.answered(texts) for member in members), strict=True)
    found = [place for place, each in enumerate(told) if all(each)]
    if not found:
        raise InputError(f"the server gave no usable answer to any of {len(texts):,} examples")
    return found


def _rows(texts: Dataset) -> list[Example]:
    columns = [name for name in ("text", "text_pair") if name in texts.column_names]
    return [dict(zip(columns, row, strict=True)) for row in zip(*(texts[name][:] for name in columns), strict=True)]
