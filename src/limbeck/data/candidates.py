"""What could stand in the place of each word of a text: a masked language model's words, or the nearest ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from rich.progress import track

from limbeck import hardware
from limbeck.anatomy import WordsAt
from limbeck.checkpoints import Checkpoint
from limbeck.data.words import others, read_words, spellings, whole_words
from limbeck.progress import console
from limbeck.tasks import collate

_BATCH = 256


class Slot(NamedTuple):
    """A word at `text[start:end]` and what it may be replaced by, at least one word."""

    start: int
    end: int
    candidates: list[str]


class _Question(NamedTuple):
    """Which words belong at `place` of the tokens `ids`, other than `own`?"""

    ids: list[int]
    place: int
    own: set[str]


class Candidates:
    """Candidates for the words of texts (Jiao et al. 2020, algorithm 1, lines 4 to 11).

    A word of one piece is masked and the language model's likeliest whole words at its place are taken; a word of
    several pieces has the nearest words that are given. Every masked word costs a forward pass of its text.

    Args:
        model: the masked language model; runs on this process's device, where the hardware has it in bfloat16.
        neighbours: candidates by word, for words of several pieces; others have none.
        count: candidates a word, at most.
        length: tokens read of a text; words beyond have no candidates.

    Raises:
        InputError: the model's head is not known.
    """

    def __init__(self, model: Checkpoint, neighbours: Mapping[str, list[str]], count: int, length: int) -> None:
        self.model, self.tokenizer, _ = model
        self.neighbours = neighbours
        self.count = count
        self.length = length
        self.vocabulary = whole_words(self.tokenizer)
        # A word is left out under its spelling in the text and under its piece's, which may lack accents.
        self.kept = min(count + 2 * spellings(self.vocabulary.values()), len(self.vocabulary))
        self.model.to(hardware.device()).eval()

    def of(self, texts: Sequence[str], title: str) -> dict[str, list[Slot]]:
        """The slots of each text, in order; equal texts are asked about once. `title` stands beside the progress."""
        unique = list(dict.fromkeys(texts))
        read = read_words(unique, self.tokenizer, self.length)
        questions: list[_Question] = []
        for text, (ids, words) in zip(unique, read, strict=True):
            for start, end, pieces in words:
                if len(pieces) == 1:
                    piece = self.vocabulary.get(ids[pieces[0]], "")
                    questions.append(_Question(ids, pieces[0], {text[start:end].casefold(), piece.casefold()}))
        answers = iter(self._ask(questions, title))
        slots: dict[str, list[Slot]] = {}
        for text, (_, words) in zip(unique, read, strict=True):
            found = [
                Slot(start, end, next(answers) if len(pieces) == 1 else self.neighbours.get(text[start:end], []))
                for start, end, pieces in words
            ]
            slots[text] = [slot for slot in found if slot.candidates]
        return slots

    @torch.inference_mode()
    def _ask(self, questions: list[_Question], title: str) -> list[list[str]]:
        """The model's words for each question, likeliest first."""
        ids = torch.tensor(list(self.vocabulary), device=hardware.device())
        words = list(self.vocabulary.values())
        answers: list[list[str]] = [[] for _ in questions]
        if not words:
            return answers
        # Longest first: little padding, and a batch too big for memory fails at once.
        order = sorted(range(len(questions)), key=lambda number: -len(questions[number].ids))
        starts = range(0, len(order), _BATCH)
        head = WordsAt(self.model)
        try:
            for start in track(starts, title, console=console, transient=True, disable=not questions):
                numbers = order[start : start + _BATCH]
                logits = self._forward(head, [questions[number] for number in numbers])
                best = logits.index_select(1, ids).topk(self.kept).indices.tolist()
                for number, row in zip(numbers, best, strict=True):
                    answers[number] = others((words[entry] for entry in row), questions[number].own, self.count)
        finally:
            head.close()
        return answers

    def _forward(self, head: WordsAt, questions: list[_Question]) -> torch.Tensor:
        """The vocabulary's logits, float32 [B, V], at the questions' places."""
        examples = []
        for row, (ids, place, _) in enumerate(questions):
            masked = [*ids[:place], self.tokenizer.mask_token_id, *ids[place + 1 :]]
            examples.append({"input_ids": masked, "row": row})
        batch = collate(examples, self.tokenizer)
        del batch["row"]
        width = batch["input_ids"].shape[1]
        left = self.tokenizer.padding_side == "left"
        places = [row * width + q.place + (width - len(q.ids)) * left for row, q in enumerate(questions)]
        head.positions = torch.tensor(places, device=hardware.device())
        with hardware.autocast(hardware.pick_precision()):
            logits: torch.Tensor = self.model(**{k: v.to(hardware.device()) for k, v in batch.items()}).logits
        return logits.float()
