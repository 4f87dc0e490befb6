"""Tiny causal language models and byte-level tokenizers, made here."""

from __future__ import annotations

from typing import Any

import torch
from conftest import make_reviews
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from limbeck.gguf import SPLITTINGS

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEXTS = [row["text"] for row in make_reviews(60, seed=3)] + [
    "a  1 and 12345, x = 2.50",
    "List:\n\n1. it's 'quoted'\n\t2. WE'LL see//ok\r\n  end ",
    "naïve ÜBER straße 你好 <|im_start|>user\nhi<|im_end|> done",
]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layer_interval": 2, "use_sliding_window": False},
}


def make_byte_tokenizer(name: str = "smollm", **options: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 tokens that splits text as GGUF's `name` does."""
    splitting = next(each for each in SPLITTINGS if name in each.names)
    backend = Tokenizer(models.BPE(ignore_merges=splitting.whole_words))
    backend.pre_tokenizer, backend.decoder = splitting.pre_tokenizer(), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=390, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS + ["  \n\n  \n\n 12 12 12 '12"] * 20, trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    if splitting.composed:
        backend.normalizer = normalizers.NFC()
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    settings |= {"chat_template": TEMPLATE, "model_max_length": 64, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**settings, **options})


def make_causal(kind: str = "llama", seed: int = 0, vocabulary: int = 400, **config: Any) -> PreTrainedModel:
    """A random causal language model of four layers with grouped queries."""
    settings = SIZES | _CHANGES.get(kind, {}) | {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    made = AutoConfig.for_model(kind, **{**settings, "pad_token_id": None, **config})
    model = AutoModelForCausalLM.from_config(made).eval()
    for name, weight in model.named_parameters():  # norms and biases that are not all alike
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, 1.0 if "norm" in name or "ln_" in name else 0.0, 0.2)
    return model
