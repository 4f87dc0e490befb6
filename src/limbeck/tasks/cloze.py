"""Single words to fill in: how a masked language model is measured."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from limbeck.errors import InputError

EXAMPLES = 1000
"""Every answer is a distribution over the vocabulary, some 120 kB; more would not fit a small machine's memory."""


def cloze(lines: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int) -> Dataset:
    """One word of each line hidden behind the mask token.

    Only words of letters that are one token are asked for: of others the mask would not say how many tokens.

    Args:
        lines: column `text`; at most 1,000 are used.
        tokenizer: the models'.
        max_length: words beyond so many tokens are not asked for.
        seed: which lines and words.

    Returns:
        Columns `text`, with the mask token in it, and `label`, the hidden token's id.

    Raises:
        InputError: no mask token; no line with such a word.
    """
    if tokenizer.mask_token is None:
        raise InputError(f"the tokenizer of {type(tokenizer).__name__} has no mask token; set tokenizer.mask_token")
    draw = np.random.default_rng(seed)
    texts: list[str] = []
    labels: list[int] = []
    for row in draw.permutation(len(lines)):
        if len(texts) == EXAMPLES:
            break
        line = lines[int(row)]["text"].strip()
        encoded = tokenizer(line, truncation=True, max_length=max_length, return_offsets_mapping=True)
        words = np.array([-1 if word is None else word for word in encoded.word_ids()])
        whole = [
            place
            for place, (start, end) in enumerate(encoded["offset_mapping"])
            if words[place] >= 0 and (words == words[place]).sum() == 1 and line[start:end].strip().isalpha()
        ]
        if not whole:
            continue
        place = int(draw.choice(whole))
        start, end = encoded["offset_mapping"][place]
        start += len(line[start:end]) - len(line[start:end].lstrip())
        hidden = f"{line[:start]}{tokenizer.mask_token}{line[end:]}"
        again = tokenizer(hidden, truncation=True, max_length=max_length)["input_ids"]
        if again.count(tokenizer.mask_token_id) == 1:
            texts.append(hidden)
            labels.append(encoded["input_ids"][place])
    if not texts:
        raise InputError("no held-out line has a word of one token to hide; give more text")
    features = Features({"text": Value("string"), "label": Value("int64")})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)
