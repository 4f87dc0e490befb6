"""Plain text to tensors for masked language models: cut or packed once, masked anew whenever it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from limbeck import __version__
from limbeck.checkpoints import tokenizer_fingerprint
from limbeck.errors import InputError
from limbeck.tasks.text import Batch, collate

Array = NDArray[Any]
TEXT_LENGTH = 128
"""Tokens of a plain-text example where the recipe does not say."""
SPECIAL, WITHIN, START = -1, 0, 1
"""What the column `words` says of a token: no part of the text, or it goes on with a word, or begins one."""
_FEWEST = 3  # tokens of text that make an example
_FEATURES = Features({"input_ids": List(Value("int32")), "words": List(Value("int8")), "length": Value("int32")})


def encode_corpus(table: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, packed: bool) -> Dataset:
    """Tokenise the lines of a corpus and cut them to examples with special tokens around each.

    Args:
        table: column `text`, a line a row.
        tokenizer: the tokenizer of the models that will read them.
        max_length: the most tokens of an example, special ones included.
        packed: join all lines with separators and cut blocks of `max_length`; else an example is a line, and a longer
            line becomes several examples.

    Returns:
        Columns `input_ids`; `words`, int8 for each token: 1 begins a word (or what the cut left of one), 0 goes on with
        it, -1 is a special token (the unknown token among them); `length`; `row`, the example's own number. The rest of
        a line (packed: of the corpus) with fewer than three tokens is dropped, nothing else.

    Raises:
        InputError: no room for three tokens beside the special ones, no separator to pack with, or no example.
    """
    cut = _Cutter(tokenizer, max_length, packed)

    def chunks(columns: dict[str, list[str]], rows: list[int]) -> dict[str, list[Any]]:
        return cut(columns["text"], last=rows[-1] == len(table) - 1)

    rules = (tokenizer_fingerprint(tokenizer), tokenizer.all_special_ids, __version__)
    identity = (table._fingerprint, rules, max_length, packed)
    encoded = table.map(
        chunks,
        batched=True,
        with_indices=True,
        remove_columns=table.column_names,
        features=_FEATURES,
        load_from_cache_file=True,  # the phases of a stage, and the next run, read the same examples
        keep_in_memory=not table.cache_files,
        new_fingerprint=Hasher.hash(identity),
        desc="Tokenising",
    )
    if len(encoded) == 0:
        raise InputError(f"none of the {len(table)} lines of the corpus has {_FEWEST} tokens; give longer text")
    numbers = np.arange(len(encoded), dtype=np.int64)
    return encoded.add_column("row", numbers, new_fingerprint=Hasher.hash((*identity, "row")))


class _Cutter:
    """Lines to examples, batch after batch; packing carries what does not fill a block to the next batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, packed: bool) -> None:
        self.tokenizer, self.packed = tokenizer, packed
        self.special = np.array(tokenizer.all_special_ids)
        bare, framed = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
        before = next(k for k in range(len(framed)) if framed[k : k + len(bare)] == bare)
        self.head, self.tail = _special(framed[:before]), _special(framed[before + len(bare) :])
        self.room = max_length - self.head.shape[1] - self.tail.shape[1]
        if self.room < _FEWEST:
            raise InputError(
                f"task.max_length {max_length} leaves room for {self.room} tokens beside the special ones; raise it to "
                f"{max_length - self.room + _FEWEST} at least"
            )
        separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        if packed and separator is None:
            raise InputError(f"the tokenizer {tokenizer.name_or_path} has no separator to pack with; use packed=false")
        self.separator = separator
        self.left = _special([])

    def __call__(self, lines: list[str], last: bool) -> dict[str, list[Any]]:
        bodies = self._read(lines)
        if self.packed:
            bodies = [self._join(bodies, last)]
        pieces = [body[:, k : k + self.room] for body in bodies for k in range(0, body.shape[1], self.room)]
        examples = [self._frame(piece) for piece in pieces if self._enough(piece)]
        return {
            "input_ids": [tokens[0] for tokens in examples],
            "words": [tokens[1] for tokens in examples],
            "length": [tokens.shape[1] for tokens in examples],
        }

    def _read(self, lines: list[str]) -> list[Array]:
        """The tokens of each line [2, n]: their ids, and what `words` says of them."""
        read = self.tokenizer(
            lines,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        tokens = []
        for line, ids in enumerate(read["input_ids"]):
            # A slow tokenizer knows no words; `MaskedBatches` refuses to mask them whole.
            words = read.word_ids(line) if self.tokenizer.is_fast else range(len(ids))
            special = np.isin(ids, self.special)
            begins = np.diff(np.array(words, dtype=np.int64), prepend=-1) != 0
            begins[1:] |= special[:-1]
            tokens.append(np.array([ids, np.where(special, SPECIAL, np.where(begins, START, WITHIN))], dtype=np.int32))
        return tokens

    def _join(self, bodies: list[Array], last: bool) -> Array:
        """What was left and these lines with separators between, as far as they fill blocks; at the end all of it."""
        separator = _special([self.separator])
        flat = np.concatenate([self.left, *(part for body in bodies if body.size for part in (body, separator))], 1)
        full = max(flat.shape[1] - 1, 0) if last else flat.shape[1] // self.room * self.room  # no last separator
        self.left = flat[:, full:]
        return flat[:, :full]

    def _enough(self, piece: Array) -> bool:
        return piece.shape[1] == self.room or int(np.sum(piece[0] != self.separator)) >= _FEWEST

    def _frame(self, piece: Array) -> Array:
        tokens = np.concatenate([self.head, piece, self.tail], axis=1)
        first = self.head.shape[1]
        if tokens[1, first] == WITHIN:
            tokens[1, first] = START
        return tokens


def _special(ids: list[int]) -> Array:
    """Special tokens [2, n] as `_Cutter._read` gives those of a line."""
    return np.array([ids, [SPECIAL] * len(ids)], dtype=np.int32)


class MaskedBatches:
    """Collate examples of `encode_corpus`, masking them as BERT does (Devlin et al. 2019, section 3.1).

    Of the tokens that are not special each is chosen with probability `mask`, and at least one of an example that has
    any. Of the chosen 80 % become the mask token, 10 % a random ordinary one, and 10 % stay. The draws follow from
    seed, epoch and the example's `row` alone.

    Args:
        tokenizer: the tokenizer that the examples were encoded with.
        mask: the share to choose; 0 leaves the text as it is.
        whole_words: choose words, with all their pieces, instead of tokens.
        every: give the positions of all tokens but padding, not only of the chosen ones.
        seed: of the run.
        epoch: says which pass this is. It is called in the process that collates.

    Raises:
        InputError: no mask token; words are wanted of a tokenizer that does not tell them.
    """

    # transformers' DataCollatorForLanguageModeling draws from one running generator: a run that is resumed within an
    # epoch would draw other masks, and an example's mask would depend on its neighbours in the batch.

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask: float,
        whole_words: bool,
        every: bool,
        seed: int,
        epoch: Callable[[], int],
    ) -> None:
        if mask > 0 and tokenizer.mask_token_id is None:
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path} has no mask token, so its model cannot learn masked words; "
                "use a masked language model such as BERT"
            )
        if mask > 0 and whole_words and not tokenizer.is_fast:
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path} does not tell which pieces make a word; use whole_words=false"
            )
        self.tokenizer, self.mask, self.whole_words, self.every = tokenizer, mask, whole_words, every
        self.seed, self.epoch = seed, epoch
        self.ordinary = np.setdiff1d(list(tokenizer.get_vocab().values()), tokenizer.all_special_ids)

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        """A batch, padded to its longest example.

        Returns:
            `input_ids` and `attention_mask` int64 [B, n]; `row` int64 [B]; unless `mask` is 0, `positions` int64 [N],
            indices into the B * n tokens, ascending, and `targets` int64 [N]: the true token, or -100 where it was not
            chosen.
        """
        batch = collate(examples, self.tokenizer)
        if self.mask == 0:
            return batch
        real = batch["attention_mask"].bool()
        true = batch["input_ids"][real]  # the tokens of all examples, one after another [T]
        chosen, shown = self._mask(true.numpy(), examples)
        batch["input_ids"][real] = torch.from_numpy(shown)
        targets = true.masked_fill(torch.from_numpy(~chosen), -100)
        wanted = slice(None) if self.every else torch.from_numpy(chosen)
        positions = real.flatten().nonzero().squeeze(1)
        return batch | {"positions": positions[wanted], "targets": targets[wanted]}

    def _mask(self, ids: Array, examples: list[dict[str, Any]]) -> tuple[Array, Array]:
        """Of the tokens [T] of all examples: which are chosen, and what the model is shown."""
        epoch = self.epoch()
        lengths = [len(example["input_ids"]) for example in examples]
        words = np.concatenate([example["words"] for example in examples])
        pick, how, which = np.concatenate(
            [
                np.random.default_rng([self.seed, epoch, example["row"]]).random((3, length))
                for example, length in zip(examples, lengths, strict=True)
            ],
            axis=1,
        )
        usable = words != SPECIAL
        if self.whole_words:  # all pieces go by the draw of the first
            begins = words == START
            pick[usable] = pick[begins][np.cumsum(begins)[usable] - 1]
        pick[~usable] = 1.0
        lowest = np.minimum.reduceat(pick, np.cumsum([0, *lengths[:-1]]))  # at least that one is chosen
        chosen = usable & (pick <= np.repeat(np.maximum(lowest, self.mask), lengths))
        random = self.ordinary[(which * len(self.ordinary)).astype(np.int64)]
        shown = np.where(how < 0.8, self.tokenizer.mask_token_id, np.where(how < 0.9, random, ids))
        return chosen, np.where(chosen, shown, ids)
