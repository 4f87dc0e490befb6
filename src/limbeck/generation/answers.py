"""A teacher's answers to prompts, asked for once and kept: sequence-level knowledge (Kim and Rush 2016)."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, Value
from rich.progress import Progress, TextColumn

from limbeck import hardware
from limbeck.data.chat import CHAT, Messages, prompt_text
from limbeck.data.text_shards import Row, TextShards
from limbeck.errors import InputError, LimbeckError
from limbeck.files import require_space
from limbeck.folder import table_fingerprint
from limbeck.journal import Journal, read_journals, remove_journals
from limbeck.progress import console, say
from limbeck.recipe.data import Generation
from limbeck.rules import TextRules

VERSION = 1
SHARD_PROMPTS = 256
FEATURES = Features(
    {
        "messages": CHAT["messages"],
        "row": Value("int64"),
        "sample": Value("int32"),
        "cut": Value("bool"),
        "tokens": Value("int32"),
        "prompt_tokens": Value("int32"),
    }
)
"""A row of the store: the prompt with its answer as the last message; the rest is as of `Ask` and `Answer`."""


class Ask(NamedTuple):
    """A prompt to be answered.

    Attributes:
        row: its number among the prompts.
        sample: the answer's number among those to this prompt.
        messages: the prompt, which ends with the user.
        seed: fixes the draws of this one answer; below 2**31.
    """

    row: int
    sample: int
    messages: Messages
    seed: int


class Answer(NamedTuple):
    """What was answered.

    Attributes:
        row: as of `Ask`.
        sample: as of `Ask`.
        text: without white space around it.
        cut: whether it ended at the limit of tokens instead of by itself.
        tokens: of the answer, with the one that ends it; none where a server does not count.
        prompt_tokens: of the prompt, likewise.
    """

    row: int
    sample: int
    text: str
    cut: bool
    tokens: int | None
    prompt_tokens: int | None


class Answerer(Protocol):
    """A teacher that can answer prompts: a model here, or one behind a server."""

    @property
    def divides(self) -> bool:
        """Whether each of several processes answers its share; otherwise the main one answers all."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What its answers depend on besides prompts, settings and seed."""

    def check(self, prompts: Dataset) -> None:
        """Refuse prompts that it cannot answer, before the first is asked."""

    def answer(self, parts: Iterable[list[Ask]], known: Container[tuple[int, int]]) -> Iterator[list[Answer]]:
        """Answers, some at a time and in any order; it may end early where it may spend no more.

        Args:
            parts: what to answer, a shard at a time.
            known: the row and sample of what need not be answered again.
        """


@dataclass(frozen=True)
class Answers:
    """Answers on disk.

    Attributes:
        folder: where they lie; `datasets.load_from_disk` opens it.
        table: the columns of `FEATURES`, in the order of the prompts.
    """

    folder: Path
    table: Dataset

    def of(self, rows: Iterable[int], every: bool) -> Answers:
        """Those to some of the prompts, by their numbers: every one, or of several samples the first."""
        wanted, pairs = set(rows), zip(self.table["row"], self.table["sample"], strict=True)
        kept = [at for at, (row, sample) in enumerate(pairs) if row in wanted and (every or sample == 0)]
        return Answers(self.folder, self.table.select(kept))

    def usable(self, cut: bool, rules: TextRules | None = None) -> Dataset:
        """The column `messages` of those to learn from: no empty answers, and cut ones only if `cut`.

        Args:
            cut: whether cut answers are.
            rules: none that breaks a hard one is.

        Raises:
            InputError: none is left.
        """
        texts = [messages[-1]["content"] for messages in self.table["messages"]]
        was_cut = self.table["cut"][:]
        kept = [row for row, text in enumerate(texts) if text and (cut or not was_cut[row])]
        empty, dropped = texts.count(""), sum(was_cut)
        if not kept:
            raise InputError(
                f"none of the {len(texts):,} answers in {self.folder} can be learnt from: {dropped:,} were cut and "
                f"{empty:,} are empty; raise data.generation.max_new_tokens, or give data.generation.cut=keep"
            )
        if empty:
            say(f"generation: {empty:,} of {len(texts):,} answers are empty and left out")
        if dropped:
            say(f"generation: {dropped:,} of {len(texts):,} answers were cut and are {'kept' if cut else 'left out'}")
        left = self.table.select(kept).select_columns("messages")
        return self._keeping(left, rules) if rules is not None else left

    def _keeping(self, answers: Dataset, rules: TextRules) -> Dataset:
        """Those that break no hard rule. A server is not told the rules; here a text may be cut, or end in a corner."""
        prompts, texts = zip(
            *((prompt_text(turns), turns[-1]["content"]) for turns in answers["messages"]), strict=True
        )
        kept = np.flatnonzero(np.isfinite(rules.cost(prompts, texts)))
        broken = len(texts) - len(kept)
        if not len(kept):
            raise InputError(
                f"every one of the {len(texts):,} answers in {self.folder} breaks a hard rule, so that none is left to "
                "learn from; say in the prompts what is wanted, or give the rules numbers as weights"
            )
        if broken:
            say(f"generation: {broken:,} of {len(texts):,} answers break a hard rule and are left out")
        return answers.select(kept) if broken else answers

    def cost(self) -> str:
        """What all of them took, for reading."""
        counts = [pc.sum(self.table.data.column(name)).as_py() for name in ("prompt_tokens", "tokens")]
        cut = sum(self.table["cut"][:])
        of_cut = f"; {cut:,} answers were cut" if cut else ""
        if None in counts:
            return f"the server did not count tokens{of_cut}"
        return f"{counts[0]:,} tokens of prompts and {counts[1]:,} of answers{of_cut}"


def generate(teacher: Answerer, prompts: Dataset, settings: Generation, root: Path, seed: int) -> Answers:
    """Have each prompt answered once, or reuse what was answered.

    The answers lie in `root/answers/KEY`, the key being of the teacher, the prompts, the settings and, where there is
    something to draw, the seed. Killed at any moment, the same call goes on. Of a local teacher the finished files are
    byte for byte those of an uninterrupted run, with the same batch size, thread count, number of processes and
    machine; each answer is drawn with a seed of its own, so that other batches change it only where rounding turns one
    of its choices.

    Args:
        teacher: who is asked.
        prompts: column `messages`, each ending with the user; see `without_answers`.
        settings: the recipe's section.
        root: the folder that keeps what can be reused, such as a run's knowledge.
        seed: fixes the draws.

    Raises:
        InputError: no prompts, prompts that cannot be answered, a damaged or foreign folder, or too little disk.
        LimbeckError: a server failed, or `settings.token_limit` is reached; what it answered is kept.
    """
    if len(prompts) == 0:
        raise InputError("there are no prompts to answer; give data.generation.prompts=FILE")
    spec = _describe(teacher, prompts, settings, seed)
    shards = TextShards(root / "answers", spec, FEATURES, -(-len(prompts) // SHARD_PROMPTS), "a teacher's answers")
    group = hardware.processes()
    missing = not shards.is_finished()
    if missing:
        teacher.check(prompts)
    with shards.locked() if missing and group.is_main_process else nullcontext():
        group.wait_for_everyone()  # where answers are missing, the main process has the lock now
        finished = shards.is_finished()
        group.wait_for_everyone()  # all have looked before one writes
        if finished:
            found = Answers(shards.folder, shards.load())
            say(f"generation: reused {len(found.table):,} answers from {shards.folder}; the teacher was not asked")
            return found
        started = time.monotonic()
        _make(teacher, prompts, settings, shards, seed)
        group.wait_for_everyone()
        if group.is_main_process:
            shards.finish()
            remove_journals(shards.folder)
        group.wait_for_everyone()
    found = Answers(shards.folder, shards.load())
    say(
        f"generation: {len(found.table):,} answers to {len(prompts):,} prompts in {time.monotonic() - started:.1f} s, "
        f"{found.cost()}; kept in {shards.folder}"
    )
    return found


def _make(teacher: Answerer, prompts: Dataset, settings: Generation, shards: TextShards, seed: int) -> None:
    group = hardware.processes()
    done = shards.done()
    group.wait_for_everyone()
    todo = [index for index in range(shards.count) if index not in done]
    share = todo[group.process_index :: group.num_processes] if teacher.divides else todo
    work = _Work(shards, prompts, settings, seed, share if teacher.divides or group.is_main_process else [])
    known = work.known
    if group.is_main_process and (done or known):
        say(f"generation: {len(done)} of {shards.count} shards and {len(known):,} answers more are there; going on")
    require_space(shards.folder, work.total * settings.max_new_tokens * 6, "keeping the answers")
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[tokens]:,} tokens"))
    with (
        Journal(shards.folder, group.process_index) as journal,
        Progress(*columns, console=console, disable=not group.is_main_process) as progress,
    ):
        bar = progress.add_task("Asking the teacher", total=work.total, completed=work.answered, tokens=0)
        for answers in teacher.answer(work.parts(), known):
            journal.write([list(answer) for answer in answers])
            work.add(answers)
            progress.update(bar, completed=work.answered, tokens=work.tokens)
    if work.answered < work.total:
        raise LimbeckError(
            f"stopped after {work.tokens:,} tokens, as data.generation.token_limit is {settings.token_limit:,}; "
            f"{work.answered:,} of {work.total:,} answers are kept: the same command goes on"
        )


class _Work:
    """The shards that one process makes: what is asked, what was answered, and what is whole enough to be written.

    Attributes:
        answered: how many answers there are.
        tokens: what was spent on those that `add` brought.
    """

    def __init__(
        self, shards: TextShards, prompts: Dataset, settings: Generation, seed: int, indices: Sequence[int]
    ) -> None:
        self.shards, self.prompts, self.settings, self.seed = shards, prompts, settings, seed
        self._found: dict[int, dict[tuple[int, int], Answer]] = {index: {} for index in indices}
        self._open: dict[int, list[Ask]] = {}
        for answer in (Answer(*record) for record in read_journals(shards.folder)):
            if answer.row // SHARD_PROMPTS in self._found:
                self._found[answer.row // SHARD_PROMPTS][answer.row, answer.sample] = answer
        self.answered, self.tokens = len(self.known), 0
        rows = sum(min(SHARD_PROMPTS, len(prompts) - index * SHARD_PROMPTS) for index in indices)
        self.total = rows * settings.samples

    @property
    def known(self) -> set[tuple[int, int]]:
        """The row and sample of what was answered and not yet written."""
        return {key for each in self._found.values() for key in each}

    def parts(self) -> Iterator[list[Ask]]:
        """What is to be asked, a shard at a time; one whose answers are all there is written instead."""
        for index in list(self._found):
            self._open[index] = _asks(self.prompts, self.settings, index, self.seed)
            if not self._close(index):
                yield self._open[index]

    def add(self, answers: Sequence[Answer]) -> None:
        """Take answers, and write the shards that they make whole."""
        for answer in answers:
            index, key = answer.row // SHARD_PROMPTS, (answer.row, answer.sample)
            self.answered += key not in self._found[index]
            self._found[index][key] = answer
            self.tokens += (answer.tokens or 0) + (answer.prompt_tokens or 0)
        for index in {answer.row // SHARD_PROMPTS for answer in answers}:
            self._close(index)

    def _close(self, index: int) -> bool:
        """Write a shard if it is whole, and forget it."""
        asks, found = self._open[index], self._found[index]
        whole = len(found) == len(asks)
        if whole:
            self.shards.write(index, [_row(ask, found[ask.row, ask.sample]) for ask in asks])
            del self._open[index], self._found[index]
        return whole


def _asks(prompts: Dataset, settings: Generation, index: int, seed: int) -> list[Ask]:
    """All that a shard needs, in its order."""
    start = index * SHARD_PROMPTS
    part = prompts[start : start + SHARD_PROMPTS]["messages"]
    return [
        Ask(row, sample, messages, int(np.random.SeedSequence([seed, row, sample]).generate_state(1)[0] >> 1))
        for row, messages in enumerate(part, start)
        for sample in range(settings.samples)
    ]


def _row(ask: Ask, answer: Answer) -> Row:
    """What the store keeps of an answer."""
    messages = [*ask.messages, {"role": "assistant", "content": answer.text}]
    return (messages, ask.row, ask.sample, answer.cut, answer.tokens, answer.prompt_tokens)


def _describe(teacher: Answerer, prompts: Dataset, settings: Generation, seed: int) -> dict[str, Any]:
    """What the answers depend on, by content."""
    names = ("max_new_tokens", "temperature", "top_p", "beams", "samples")
    return {
        "format": VERSION,
        "teacher": teacher.fingerprint,
        "prompts": table_fingerprint(prompts.select_columns("messages")),
        **{name: getattr(settings, name) for name in names},
        "seed": seed if settings.temperature > 0 else None,
    }
