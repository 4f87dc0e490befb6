"""GGUF, for llama.cpp and what is built on it: weights, sizes, tokenizer and chat template in one file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck import extras
from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError
from limbeck.files import sync_folder
from limbeck.gguf import CONTROL, NORMAL, SPLITTINGS, UNUSED, USER_DEFINED, Splitting, tokenizer_of

Kind = Literal["f32", "f16", "q8_0"]
GGUF_FILES: dict[str, tuple[str, Kind]] = {"gguf": ("model.gguf", "f16"), "gguf-q8": ("model_q8_0.gguf", "q8_0")}
"""By the format's name in a recipe: the file in the student's folder, and how its weights are kept."""
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Words, digits and spaces on which the known splittings differ from each other.
_PROBE = (
    "Hello HelloWorld's it'S a  1 12 12345 x=2.50\n\n1. foo/bar//\n\tIndent   \r\n  naïve cafe\u0301 ÜBER straße 你好 "
    "مرحبا 12345 👍🏽 e-mail@host.org don't WE'LL \u00a0nbsp --- ...\n \n  end "
)


def require_gguf() -> None:
    """Refuse early when the optional package is missing.

    Raises:
        InputError: names the extra.
    """
    extras.require("gguf", "export to gguf")


def check_gguf(checkpoint: Checkpoint) -> None:
    """Refuse, before anything is trained, a model whose GGUF file would not be the same model.

    Raises:
        InputError: an architecture without a place in GGUF or in what transformers reads of it; a setting that the file
            would lose; a tokenizer whose splitting of text has no name there.
    """
    model, tokenizer, _ = checkpoint
    _refuse_model(model)
    _splitting(tokenizer)


def export_gguf(checkpoint: Checkpoint, path: Path, kind: Kind = "f16") -> Path:
    """Write a causal language model as one GGUF file, which `open_causal` and transformers' `gguf_file=` open again.

    Vectors stay float32. `f32` is exact, `f16` rounds matrices to 11 significant bits, `q8_0` to 8 bits with one
    float16 scale for 32 weights of a row; a matrix whose rows are no multiple of 32 is kept in float16.

    Args:
        checkpoint: a model of llama's family with a byte-level tokenizer.
        path: the file; replaced if it is there.
        kind: how matrices are kept.

    Returns:
        `path`.

    Raises:
        InputError: see `require_gguf` and `check_gguf`; the file's tokenizer does not give the same ids.
    """
    require_gguf()
    check_gguf(checkpoint)
    import gguf

    model, tokenizer, _ = checkpoint
    partial = path.with_name(f"{path.name}.partial")
    entries = _tokenizer_entries(tokenizer, model.config.vocab_size)
    _check_ids(tokenizer, entries)
    writer = gguf.GGUFWriter(partial, _ARCHITECTURES[model.config.model_type])
    _write_sizes(writer, model.config, kind, path.stem)
    for name, value in entries.items():
        _write_entry(writer, name, value)
    _write_weights(writer, model, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)
    sync_folder(path.parent)
    return path


def _refuse_model(model: PreTrainedModel) -> None:
    config = model.config
    kind = config.model_type
    if kind not in _ARCHITECTURES or not type(model).__name__.endswith("ForCausalLM"):
        raise InputError(
            f"a {type(model).__name__} ({kind}) is not exported to GGUF; {', '.join(_ARCHITECTURES)} language models "
            "are, so leave gguf out of export"
        )
    rotary = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lost = {
        f"rope_type {rotary.get('rope_type')}": rotary.get("rope_type", "default") != "default",
        "a partial rotary_factor": rotary.get("partial_rotary_factor", 1) != 1,
        f"sliding_window {window}": window is not None and window < config.max_position_embeddings,
        f"hidden_act {config.hidden_act}": config.hidden_act != "silu",
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        f"queries of {head * config.num_attention_heads} for hidden states of {config.hidden_size}": kind == "qwen2"
        and head * config.num_attention_heads != config.hidden_size,
    }
    for what, is_lost in lost.items():
        if is_lost:
            raise InputError(
                f"this {kind} has {what}, which its GGUF form does not keep; leave gguf out of export, or give a "
                "student without it"
            )


def _splitting(tokenizer: PreTrainedTokenizerBase) -> Splitting:
    """How the tokenizer splits text, found by trying."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE" or backend.pre_tokenizer is None:
        raise InputError(
            f"a {type(tokenizer).__name__} that is not byte-level BPE is not exported to GGUF; leave gguf out of export"
        )
    words = backend.pre_tokenizer.pre_tokenize_str(_PROBE)
    normalizer = type(backend.normalizer).__name__ if backend.normalizer is not None else None
    for splitting in SPLITTINGS:
        tried: PreTokenizer = splitting.pre_tokenizer()
        fits = normalizer in (None, "NFC") and splitting.composed == (normalizer == "NFC")
        if fits and splitting.whole_words == backend.model.ignore_merges and tried.pre_tokenize_str(_PROBE) == words:
            return splitting
    known = ", ".join(each.names[0] for each in SPLITTINGS)
    raise InputError(
        f"the tokenizer splits text in a way that has no name here in GGUF (known are {known}), so llama.cpp would "
        "read other tokens; leave gguf out of export"
    )


def _tokenizer_entries(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, Any]:
    """The tokenizer as GGUF's entries, named as in the file. Rows of the embeddings without a token are unused ones."""
    backend = tokenizer.backend_tokenizer
    tokens, kinds = [f"[PAD{index}]" for index in range(rows)], [UNUSED] * rows
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    if max(vocabulary.values()) >= rows:
        raise InputError(
            f"the tokenizer's highest id is {max(vocabulary.values())}, and the model has {rows} embeddings; they do "
            "not fit"
        )
    for token, index in vocabulary.items():
        tokens[index], kinds[index] = token, NORMAL
        if index in added:
            kinds[index] = CONTROL if added[index].special else USER_DEFINED
    entries: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _splitting(tokenizer).names[0],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]],
    }
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    others = {"unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    for name, index in (ids | others).items():
        if index is not None:
            entries[f"tokenizer.ggml.{name}_token_id"] = index
    read = tokenizer("a").input_ids
    entries["tokenizer.ggml.add_bos_token"] = len(read) > 1 and read[0] == ids["bos"]
    entries["tokenizer.ggml.add_eos_token"] = len(read) > 1 and read[-1] == ids["eos"]
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if template:
        entries["tokenizer.chat_template"] = template
    return entries


def _check_ids(tokenizer: PreTrainedTokenizerBase, entries: dict[str, Any]) -> None:
    """Read the entries back and compare: whatever they cannot say of a tokenizer shows in its ids."""
    again = tokenizer_of(entries, "the GGUF file")
    special = "".join(f"{token} a{token}b" for token in tokenizer.get_added_vocab())
    for text in (_PROBE, special):
        if again(text, verbose=False).input_ids != tokenizer(text, verbose=False).input_ids:
            raise InputError(
                "the tokenizer has rules that GGUF does not keep (such as spaces that a special token swallows), so "
                "its file would read other tokens; leave gguf out of export"
            )


def _write_entry(writer: Any, name: str, value: str | bool | int | Sequence[Any]) -> None:  # noqa: ANN401
    if isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    else:
        writer.add_array(name, value)


def _write_sizes(writer: Any, config: PreTrainedConfig, kind: Kind, name: str) -> None:  # noqa: ANN401
    import gguf

    files = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    # transformers takes a llama of the name "mistral" for another architecture with a sliding window
    writer.add_name("student" if name == "mistral" else name)
    writer.add_file_type(files.get(kind, gguf.LlamaFileType.MOSTLY_Q8_0))
    if kind == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_weights(writer: Any, model: PreTrainedModel, kind: Kind) -> None:  # noqa: ANN401
    import gguf

    config, architecture = model.config, writer.arch
    (arch,) = [key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue  # readers take the embeddings where it is not there
        weight = tensor.detach().float().cpu()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = _interleaved(weight, heads)
        array, quantised = weight.numpy(), gguf.GGMLQuantizationType.F32
        if array.ndim > 1 and kind != "f32":
            whole_blocks = kind == "q8_0" and array.shape[-1] % 32 == 0
            quantised = gguf.GGMLQuantizationType.Q8_0 if whole_blocks else gguf.GGMLQuantizationType.F16
            array = gguf.quants.quantize(array, quantised)
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(new, np.ascontiguousarray(array), raw_dtype=quantised)


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in the order of llama.cpp's rotation, which pairs neighbours where transformers pairs halves of a head."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
