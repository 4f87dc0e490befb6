"""What a BiLSTM reads with: a tokenizer that tells a pair's texts apart, and vectors for its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from limbeck.checkpoints import Checkpoint
from limbeck.data.word_vectors import table_of
from limbeck.errors import InputError
from limbeck.recipe.schema import Student
from limbeck.students.bilstm import RANDOM

# Words as the files of vectors have them: "isn't" is `is` and `n't`, "film's" is `film` and `'s`.
_WORD = r"\w+?(?=n't\b)|n't\b|'(?:s|re|ve|m|ll|d)\b|\w+|[^\w\s]"
FREQUENT = 20_000
"""Words taken from the beginning of a file of vectors, where the frequent ones stand, besides those of the text."""
_SPECIAL = ("unk", "pad", "mask", "cls", "sep", "bos", "eos")


def reading(
    student: Student,
    tokenizer: PreTrainedTokenizerBase | None,
    owner: Checkpoint | None,
    texts: Sequence[str],
) -> tuple[PreTrainedTokenizerFast, torch.Tensor | None]:
    """The tokenizer that a BiLSTM reads with, and its vectors, float32 [V, d]; none where they are random.

    Args:
        student: the recipe's section: `vectors` from a file, `embeddings` of the teacher, or random ones.
        tokenizer: the teacher's or the recipe's own; of no use but for its mask token where vectors are from a file.
        owner: the model whose input embeddings `student.embeddings` are.
        texts: all that will be learnt from; their words make up the vocabulary of vectors from a file.

    Raises:
        InputError: no file, no teacher, another tokenizer than the teacher's, or one without a tokenizer.json.
    """
    if student.vectors is not None:
        mask = tokenizer.mask_token if tokenizer is not None else None
        length = tokenizer.model_max_length if tokenizer is not None else 512
        return from_file(Path(student.vectors).expanduser(), texts, mask or "[MASK]", length)
    assert tokenizer is not None
    if not tokenizer.is_fast:
        raise InputError(
            f"the {type(tokenizer).__name__} that the student is to read with has no tokenizer.json; "
            "give student.tokenizer=FOLDER with one, or student.vectors=FILE"
        )
    ours = numbered(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), tokenizer)
    if not student.embeddings:
        return ours, None
    table = owner_of_embeddings(ours, owner).model.get_input_embeddings().weight
    return ours, table.detach().float().cpu()[: len(ours)]


def owner_of_embeddings(tokenizer: PreTrainedTokenizerBase, teacher: Checkpoint | None) -> Checkpoint:
    """The teacher, whose embeddings a student that reads with this tokenizer is to have.

    Raises:
        InputError: there is none, or its tokens are others.
    """
    if teacher is None:
        raise InputError("student.embeddings are the teacher's, and there is none; give teacher=MODEL or leave it out")
    if tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise InputError(
            f"student.embeddings are those of the teacher's {len(teacher.tokenizer)} tokens, and student.tokenizer "
            f"has {len(tokenizer)} others; leave one of the two out"
        )
    return teacher


def numbered(backend: Tokenizer, like: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A tokenizer that puts no special tokens around texts and numbers those of a pair 0 and 1.

    A text is then read the same wherever in a pair it stands.

    Args:
        backend: its tokens; changed in place.
        like: whose special tokens and length it has.
    """
    backend.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    backend.no_truncation()
    backend.no_padding()
    special = {f"{name}_token": getattr(like, f"{name}_token") for name in _SPECIAL}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=like.model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{name: token for name, token in special.items() if token is not None},
    )


def from_file(
    path: Path, texts: Sequence[str], mask: str = "[MASK]", length: int = 512
) -> tuple[PreTrainedTokenizerFast, torch.Tensor]:
    """A word-level tokenizer, and vectors from a text file in GloVe's format, float32 [V, d].

    The vocabulary has the words of the text that are in the file or stand in the text more than once, and the file's
    first `FREQUENT`. All others are one unknown word, which the text's own words that are alone teach. Words without a
    vector in the file draw theirs from torch's global generator; padding's is zero.

    Args:
        path: the file, `.gz` or not; a word's first spelling counts whatever its case.
        texts: all that will be learnt from.
        mask: the special token that stands for a word left out.
        length: tokens read of an example.

    Raises:
        InputError: not readable, rows of unequal width, or none of the text's words is in it.
    """
    if not path.is_file():
        raise InputError(f"no word vectors at student.vectors={path}; check the path")
    normalizer, splitter = Normalizers([NFC(), Replace("’", "'"), Lowercase()]), _splitter()  # noqa: RUF001
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    known = table_of(path, set(counts), FREQUENT, normalizer.normalize_str)
    if not any(word in known for word in counts):
        raise InputError(
            f"{path} knows none of the {len(counts):,} words of the training text; give vectors of its language"
        )
    words = [word for word in known if word in counts or len(splitter.pre_tokenize_str(word)) == 1]
    words += sorted(word for word, count in counts.items() if count > 1 and word not in known)
    special = ["[PAD]", "[UNK]", mask]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, *words]))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    like = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", mask_token=mask, model_max_length=length
    )
    width = len(next(iter(known.values())))
    vectors = torch.empty(len(vocabulary), width).uniform_(-RANDOM, RANDOM)
    vectors[0] = 0
    found = [word for word in words if word in known]
    vectors[[vocabulary[word] for word in found]] = torch.stack([torch.from_numpy(known[word]) for word in found])
    return numbered(backend, like), vectors


def _splitter() -> Any:  # noqa: ANN401
    """Keeps what `_WORD` matches."""
    return Split(Regex(_WORD), behavior="removed", invert=True)
