"""Opening GGUF files, with what transformers leaves unread mended from the file's own metadata.

transformers reads weights and sizes. Of byte-level tokenizers it takes the vocabulary, but splits text at the digits
only where it knows the name of the splitting, and cuts some special tokens to pieces; both change the ids silently. So
these tokenizers are built here, as llama.cpp reads the same entries.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.gguf import read_gguf_metadata  # ten times as fast as the gguf package's reader

from limbeck import extras
from limbeck.errors import InputError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""GGUF's kinds of tokens."""
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Splitting:
    """How a byte-level tokenizer splits text before it merges, by the names that llama.cpp gives it.

    Attributes:
        names: the values of `tokenizer.ggml.pre`; the first is the one that is written.
        regex: the words; GPT-2's where None.
        digits: every digit is a word of its own, before the words are found.
        whole_words: a word in the vocabulary is taken as it is, whatever the merges say.
        begins: a text begins with the begin token unless the file says otherwise.
        composed: characters are composed first (NFC).
    """

    names: tuple[str, ...]
    regex: str | None = None
    digits: bool = False
    whole_words: bool = False
    begins: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The splitting as the tokenizers library does it."""
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.regex is None)
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.regex is not None:
            steps.append(pre_tokenizers.Split(Regex(self.regex), behavior="isolated"))
        return pre_tokenizers.Sequence([*steps, words]) if steps else words


SPLITTINGS = (
    Splitting(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling")),
    Splitting(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), digits=True),
    Splitting(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3, whole_words=True, begins=True),
    Splitting(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _LLAMA3.replace("{1,3}", ""), composed=True),
    Splitting(("tekken",), _TEKKEN, whole_words=True, begins=True),
)


def find_gguf(name: str) -> Path | None:
    """The GGUF file that a name means: the file itself, or the only one in a folder without a `config.json`.

    Raises:
        InputError: no such file; a folder with several.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no GGUF file '{name}'; check the path")
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise InputError(f"{name} holds {len(found)} GGUF files ({names}); give the path of one of them")
    return found[0] if found else None


def open_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32, ordinary in every way: it is cast, trained and saved like any other.

    Args:
        path: the file.

    Raises:
        InputError: the `gguf` extra is missing; no GGUF file; rotary positions or a splitting of text that could not be
            followed. What transformers raises about an architecture that it does not read is left to the caller.
    """
    extras.require("gguf", f"opening {path.name}")
    metadata, tensors = _read(path)
    kind = metadata["general.architecture"]
    scaling = metadata.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or any(name.startswith("rope_") for name in tensors):
        scaling = "by factors of each frequency" if scaling == "none" else scaling
        raise InputError(
            f"{path.name} scales its rotary positions ({scaling}), which transformers does not read from GGUF; give "
            "the model's Hugging Face folder instead"
        )
    tokenizer = _tokenizer(path, metadata)
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    config = AutoConfig.from_pretrained(**where)
    _mend(config, metadata, tokenizer)
    with redirect_stderr(StringIO()):  # a progress bar that no setting turns off
        model = AutoModelForCausalLM.from_pretrained(**where, config=config, dtype=torch.float32)
    model.hf_quantizer.remove_quantization_config(model)  # the weights are plain by now
    model.generation_config = GenerationConfig.from_model_config(model.config)
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """All entries but other lists of strings, and the names of the tensors."""
    try:
        metadata, tensors = read_gguf_metadata(str(path), ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"))
    except Exception as error:  # cut off, or another kind of file
        raise InputError(f"{path} does not open as GGUF: {' '.join(str(error).split())}") from None
    return metadata, list(tensors)


def _mend(config: PreTrainedConfig, metadata: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Entries that transformers leaves at a class's defaults, which are one checkpoint's."""
    kind = metadata["general.architecture"]
    width = metadata.get(f"{kind}.attention.key_length")
    if width is not None and width != getattr(config, "head_dim", config.hidden_size // config.num_attention_heads):
        config.head_dim = width
    if config.model_type == "mistral":
        config.sliding_window = metadata.get(f"{kind}.attention.sliding_window")
    for name in ("bos", "eos", "pad"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    for stray in ("_model_name_or_path", "unk_token_id"):
        vars(config).pop(stray, None)


def _tokenizer(path: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerBase:
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        return tokenizer_of(metadata, path.name)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def tokenizer_of(metadata: dict[str, Any], where: str) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer that a file's entries describe. Ids that the file calls unused have no token.

    Args:
        metadata: entries by name; `tokenizer.ggml.model` is gpt2.
        where: what the user calls the file, for the message.

    Raises:
        InputError: a splitting of text that is not known.
    """
    name = metadata.get("tokenizer.ggml.pre", "default")
    splitting = next((each for each in SPLITTINGS if name in each.names), None)
    if splitting is None:
        raise InputError(
            f"{where} splits text by the rules of '{name}', which are not known here, so its tokens would be "
            "wrong; give the model's Hugging Face folder instead"
        )
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    used = [(token, index, kinds[index]) for index, token in enumerate(tokens) if kinds[index] != UNUSED]
    vocabulary = {token: index for token, index, _ in used}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.whole_words))
    backend.normalizer = normalizers.NFC() if splitting.composed else None
    backend.pre_tokenizer, backend.decoder = splitting.pre_tokenizer(), decoders.ByteLevel()
    whole = [(token, kind) for token, _, kind in used if kind in (CONTROL, USER_DEFINED)]
    backend.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token, kind in whole])
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {short: metadata.get(f"tokenizer.ggml.{long}_token_id") for short, long in ids.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{short}_token": tokens[index] for short, index in found.items() if index is not None},
        add_bos_token=metadata.get("tokenizer.ggml.add_bos_token", splitting.begins),
        add_eos_token=metadata.get("tokenizer.ggml.add_eos_token", False),
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )
