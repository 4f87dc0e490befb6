"""Text and conversations to tensors for causal language models: which tokens are to be predicted is decided once here.

An example is a run of tokens and the number of its first one that is to be predicted. From there on each token is the
target of the position before it; no other code shifts anything.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from limbeck import __version__
from limbeck.checkpoints import tokenizer_fingerprint
from limbeck.data.chat import prompt_text
from limbeck.errors import InputError
from limbeck.tasks.text import Batch

Array = NDArray[Any]
_FEATURES = Features({"input_ids": List(Value("int32")), "first": Value("int32"), "length": Value("int32")})
_SHORTEST = 2


def encode_text(table: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, packed: bool = True) -> Dataset:
    """Tokenise plain text.

    Args:
        table: column `text`, a line or a document a row.
        tokenizer: of the models that will read it.
        max_length: tokens of an example.
        packed: join the rows, each ended by the end-of-text token, and cut blocks of `max_length`, of which the last
            rest is dropped; else an example is a row and its end, and what is longer becomes several examples.

    Returns:
        Columns `input_ids`; `first`, 1: all tokens but the first are to be predicted; `length`; `row`.

    Raises:
        InputError: no end-of-text token; not enough text for one example.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer {tokenizer.name_or_path} has no end-of-text token; set tokenizer.eos_token")
    left = np.empty(0, dtype=np.int32)

    def cut(columns: dict[str, list[str]]) -> dict[str, list[Any]]:
        nonlocal left
        read = tokenizer(columns["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)
        rows = [np.array([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in read["input_ids"]]
        if packed:
            flat = np.concatenate([left, *rows])
            whole = len(flat) // max_length * max_length
            left = flat[whole:]
            pieces = list(flat[:whole].reshape(-1, max_length))
        else:
            pieces = [ids[k : k + max_length] for ids in rows for k in range(0, len(ids), max_length)]
        return _examples([piece for piece in pieces if len(piece) >= _SHORTEST])

    encoded = _map(table, cut, tokenizer, ("text", max_length, packed))
    if len(encoded) == 0:
        raise InputError(
            f"{len(table)} rows of text make no example of {max_length} tokens; give more text or a lower max_length"
        )
    return encoded


def encode_chat(
    table: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    prompts: bool = False,
    ends: Collection[int] = (),
) -> Dataset:
    """Tokenise conversations by the tokenizer's chat template; the last answer alone is to be predicted.

    Args:
        table: column `messages`, each a list of `role` and `content` that ends with the assistant's.
        tokenizer: of the models that will read it. Without a chat template the messages are joined by blank lines.
        max_length: longer conversations are cut at their end; those whose answer begins later are left out.
        prompts: keep what rules look at, see `prompt_text`.
        ends: the tokens that end an answer, besides the tokenizer's own; see `ends_of`.

    Returns:
        Columns `input_ids`; `first`, where the answer begins; `length`; `row`; with `prompts` also `prompt`, text.

    Raises:
        InputError: no conversation's answer begins within `max_length`.
    """

    def read(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pieces, firsts, asked = [], [], []
        for messages in columns["messages"]:
            prompt, answer = chat_tokens(messages, tokenizer, ends)
            if len(prompt) < max_length and answer:
                pieces.append(np.array([*prompt, *answer][:max_length], dtype=np.int32))
                firsts.append(len(prompt))
                asked.append(prompt_text(messages))
        return _examples(pieces, firsts) | ({"prompt": asked} if prompts else {})

    how = ("chat", max_length, tokenizer.chat_template, sorted(ends), *(["prompts"] if prompts else []))
    features = Features({**_FEATURES, "prompt": Value("string")}) if prompts else _FEATURES
    encoded = _map(table, read, tokenizer, how, features)
    if len(encoded) == 0:
        raise InputError(
            f"in none of {len(table)} conversations the answer begins within {max_length} tokens; raise task.max_length"
        )
    return encoded


def chat_tokens(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()
) -> tuple[list[int], list[int]]:
    """The tokens of a conversation up to its last answer, and those of the answer with what ends it.

    `ends` are tokens that end an answer besides the tokenizer's own.
    """
    before, answer = messages[:-1], messages[-1]["content"]
    prompt = prompt_tokens(before, tokenizer)
    if tokenizer.chat_template:
        whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        if whole[: len(prompt)] == prompt:
            return prompt, _without_tail(whole[len(prompt) :], {tokenizer.eos_token_id, *ends})
    # No template, or one that writes an earlier answer otherwise than the last (some drop its reasoning).
    tail = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return prompt, [*tokenizer(answer, add_special_tokens=False)["input_ids"], *tail]


def prompt_tokens(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that ask for the next answer of a conversation."""
    if tokenizer.chat_template:
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    else:
        found = tokenizer("".join(f"{message['content']}\n\n" for message in messages))["input_ids"]
    return list(found)


def _without_tail(answer: list[int], ends: Collection[int]) -> list[int]:
    """The answer up to the last token that ends one: what a template writes after it belongs to the next turn."""
    places = [place for place, token in enumerate(answer) if token in ends]
    return answer[: places[-1] + 1] if places else answer


class CausalBatches:
    """Collate examples of `encode_text` and `encode_chat`, padded on the right to the longest."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        """A batch.

        Returns:
            `input_ids` and `attention_mask` int64 [B, n]; `row` int64 [B]; `positions` int64 [N], the flat indices into
            B * n from which a token is to be predicted, ascending; `targets` int64 [N], those tokens.
        """
        lengths = np.array([len(example["input_ids"]) for example in examples])
        ids = np.full((len(examples), lengths.max()), self.padding, dtype=np.int64)
        mask = np.zeros_like(ids)
        positions, targets = [], []
        for place, example in enumerate(examples):
            tokens, first = np.asarray(example["input_ids"]), example["first"]
            ids[place, : len(tokens)] = tokens
            mask[place, : len(tokens)] = 1
            positions.append(place * ids.shape[1] + np.arange(first - 1, len(tokens) - 1))
            targets.append(tokens[first:])
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "row": torch.tensor([example["row"] for example in examples]),
            "positions": torch.from_numpy(np.concatenate(positions)),
            "targets": torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        }


def causal_inputs(batch: Batch) -> dict[str, Any]:
    """What a causal language model is called with in training, labelling and evaluation.

    There is no attention mask: padding stands at the end, where no token that counts looks. With one the attention of
    padded batches would take slower kernels.
    """
    return {"input_ids": batch["input_ids"], "use_cache": False}


def _examples(pieces: list[Array], firsts: list[int] | None = None) -> dict[str, list[Any]]:
    return {"input_ids": pieces, "first": firsts or [1] * len(pieces), "length": [len(piece) for piece in pieces]}


def _map(
    table: Dataset,
    function: Any,  # noqa: ANN401
    tokenizer: PreTrainedTokenizerBase,
    how: tuple[Any, ...],
    features: Features = _FEATURES,
) -> Dataset:
    rules = (tokenizer_fingerprint(tokenizer), tokenizer.eos_token_id, __version__)
    identity = (table._fingerprint, rules, how)
    encoded = table.map(
        function,
        batched=True,
        remove_columns=table.column_names,
        features=features,
        load_from_cache_file=True,  # stages and later runs read the same examples
        keep_in_memory=not table.cache_files,
        new_fingerprint=Hasher.hash(identity),
        desc="Tokenising",
    )
    numbers = np.arange(len(encoded), dtype=np.int64)
    return encoded.add_column("row", numbers, new_fingerprint=Hasher.hash((*identity, "row")))
