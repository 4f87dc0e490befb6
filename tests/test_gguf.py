"""GGUF files: opened again they are the same model with the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causal import TEMPLATE, TEXTS, make_byte_tokenizer, make_causal
from conftest import make_model, make_tokenizer
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from limbeck.checkpoints import Checkpoint, open_causal, weights_fingerprint
from limbeck.errors import InputError
from limbeck.exporting import check_gguf, export_gguf
from limbeck.gguf import SPLITTINGS

gguf = pytest.importorskip("gguf")
CONVERSATION = [{"role": "user", "content": "hi 12"}]


def checkpoint(kind: str = "llama", splitting: str = "smollm", **config: Any) -> Checkpoint:
    return Checkpoint(make_causal(kind, **config), make_byte_tokenizer(splitting), "tiny")


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    torch.manual_seed(1)
    return model.eval()(torch.randint(0, 400, (2, 24))).logits


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_float32_file_is_the_model_bit_for_bit(kind: str, tied: bool, tmp_path: Path) -> None:
    made = checkpoint(kind, tie_word_embeddings=tied)
    opened = open_causal(str(export_gguf(made, tmp_path / "a.gguf", "f32")))
    assert torch.equal(logits(opened.model), logits(made.model))
    assert opened.model.config.tie_word_embeddings == tied
    ours, theirs = made.model.state_dict(), opened.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_float16_and_8_bit_weights_are_within_their_rounding(tmp_path: Path) -> None:
    made = checkpoint(tie_word_embeddings=False)
    ours, exact = made.model.state_dict(), logits(made.model)
    distance = {}
    for kind in ("f16", "q8_0"):
        opened = open_causal(str(export_gguf(made, tmp_path / f"{kind}.gguf", kind))).model
        distance[kind] = (logits(opened) - exact).abs().max() / exact.abs().max()
        for name, weight in opened.state_dict().items():
            if weight.ndim == 1:
                assert torch.equal(weight, ours[name])
            elif kind == "f16":
                assert torch.equal(weight, ours[name].half().float())
            else:
                # Half a step of the block's 127, and the scale's own rounding to float16.
                largest = ours[name].unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
                error = (weight - ours[name]).unflatten(-1, (-1, 32)).abs()
                assert (error <= largest * (0.5 / 127 + 2**-10)).all()
    assert 0 < distance["f16"] < 2e-3
    assert distance["f16"] < distance["q8_0"] < 0.1
    assert (tmp_path / "q8_0.gguf").stat().st_size < (tmp_path / "f16.gguf").stat().st_size


def test_rows_that_are_no_whole_blocks_stay_float16(tmp_path: Path) -> None:
    made = checkpoint(hidden_size=48, head_dim=12, intermediate_size=64)
    opened = open_causal(str(export_gguf(made, tmp_path / "a.gguf", "q8_0"))).model
    up, down = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down"))
    ours, theirs = made.model.state_dict(), opened.state_dict()
    assert torch.equal(theirs[up], ours[up].half().float())
    assert not torch.equal(theirs[down], ours[down].half().float())


@pytest.mark.parametrize("splitting", [each.names[0] for each in SPLITTINGS])
def test_the_tokenizer_gives_the_same_ids_and_conversations(splitting: str, tmp_path: Path) -> None:
    made = checkpoint(splitting=splitting)
    path = export_gguf(made, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(path)
    assert reader.fields["tokenizer.ggml.pre"].contents() == splitting
    opened = open_causal(str(path)).tokenizer
    assert opened(TEXTS).input_ids == made.tokenizer(TEXTS).input_ids
    assert opened.get_vocab() == made.tokenizer.get_vocab()
    assert opened.chat_template == TEMPLATE
    assert opened.apply_chat_template(CONVERSATION) == made.tokenizer.apply_chat_template(CONVERSATION)
    assert (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id) == (1, 2, 2)
    assert opened.model_max_length == 64
    text = TEXTS[-1]
    assert opened.decode(opened(text).input_ids) == text
    assert opened.decode(opened("<think>a<|im_end|>").input_ids, skip_special_tokens=True) == "<think>a"


def test_the_splittings_differ_on_what_tells_them_apart() -> None:
    words = [tuple(each.pre_tokenizer().pre_tokenize_str("HelloWorld'S  12345\n\n1//\n")) for each in SPLITTINGS]
    assert len(set(words)) == len(SPLITTINGS)


def test_begin_tokens_that_the_tokenizer_adds_are_added_again(tmp_path: Path) -> None:
    for adds in (True, False):
        made = Checkpoint(make_causal(), make_byte_tokenizer("llama-bpe", add_bos_token=adds), "tiny")
        opened = open_causal(str(export_gguf(made, tmp_path / "a.gguf"))).tokenizer
        assert (opened("good").input_ids[0] == 1) == adds
        assert opened(TEXTS).input_ids == made.tokenizer(TEXTS).input_ids


def test_rows_without_a_token_are_no_tokens_when_opened(tmp_path: Path) -> None:
    made = checkpoint(vocabulary=448)
    opened = open_causal(str(export_gguf(made, tmp_path / "a.gguf", "f32")))
    assert opened.model.config.vocab_size == 448
    assert opened.tokenizer.get_vocab() == made.tokenizer.get_vocab()


def test_transformers_alone_opens_it(tmp_path: Path) -> None:
    made = checkpoint()
    export_gguf(made, tmp_path / "a.gguf", "f32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    assert torch.equal(logits(model), logits(made.model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    reviews = TEXTS[:60]  # no digits, which it does not split as this tokenizer does
    assert tokenizer(reviews).input_ids == made.tokenizer(reviews).input_ids


def test_what_is_opened_is_an_ordinary_model(tmp_path: Path) -> None:
    opened = open_causal(str(export_gguf(checkpoint(), tmp_path / "a.gguf")))
    opened.model.float().train()
    opened.model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    opened.model.save_pretrained(tmp_path / "saved")
    opened.tokenizer.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not [key for key in config if "quant" in key or key.startswith("_")]
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(logits(plain), logits(opened.model))
    again = open_causal(str(tmp_path / "saved"))
    assert weights_fingerprint(again.model) == weights_fingerprint(opened.model)
    assert again.tokenizer(TEXTS).input_ids == opened.tokenizer(TEXTS).input_ids
    assert again.model.generation_config.eos_token_id == 2


def test_a_folder_with_one_file_is_that_file_and_with_several_is_refused(tmp_path: Path) -> None:
    path = export_gguf(checkpoint(), tmp_path / "a.gguf")
    assert torch.equal(logits(open_causal(str(tmp_path)).model), logits(open_causal(str(path)).model))
    export_gguf(checkpoint(), tmp_path / "b.gguf")
    with pytest.raises(InputError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\)"):
        open_causal(str(tmp_path))
    with pytest.raises(InputError, match="no GGUF file"):
        open_causal(str(tmp_path / "c.gguf"))
    (tmp_path / "c.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(InputError, match="does not open as GGUF"):
        open_causal(str(tmp_path / "c.gguf"))


def write(path: Path, **entries: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"tokenizer.ggml.model": "gpt2", **entries}.items():
        writer.add_string(name, value)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_files_that_would_be_read_wrongly_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", **{"tokenizer.ggml.pre": "poro-chat"})
    with pytest.raises(InputError, match="splits text by the rules of 'poro-chat'"):
        open_causal(str(tmp_path / "a.gguf"))
    write(tmp_path / "b.gguf", **{"llama.rope.scaling.type": "yarn"})
    with pytest.raises(InputError, match=r"scales its rotary positions \(yarn\)"):
        open_causal(str(tmp_path / "b.gguf"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type linear"),
        ({"kind": "mistral", "sliding_window": 8}, "sliding_window 8"),
        ({"kind": "qwen2", "head_dim": 16}, "queries of 64 for hidden states of 32"),
        ({"kind": "gpt2"}, "a GPT2LMHeadModel .gpt2. is not exported to GGUF"),
    ],
)
def test_what_the_file_would_lose_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_gguf(checkpoint(**changes), tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_tokenizers_that_the_file_cannot_hold_are_refused() -> None:
    with pytest.raises(InputError, match="not byte-level BPE"):
        check_gguf(Checkpoint(make_causal(), make_tokenizer(), "words"))
    with pytest.raises(InputError, match="LlamaForSequenceClassification"):
        check_gguf(Checkpoint(make_model("llama", num_key_value_heads=1), make_byte_tokenizer(), "labels"))


def test_a_token_that_swallows_spaces_is_refused(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|x|>", rstrip=True)]})
    with pytest.raises(InputError, match="rules that GGUF does not keep"):
        export_gguf(Checkpoint(make_causal(), tokenizer, "tiny"), tmp_path / "a.gguf")


def test_a_run_exports_opens_and_measures_its_student(tmp_path: Path, corpus_txt: Path, command: Any) -> None:
    make_causal(vocabulary=len(make_byte_tokenizer())).save_pretrained(tmp_path / "teacher")
    make_byte_tokenizer().save_pretrained(tmp_path / "teacher")
    words = [f"teacher={tmp_path / 'teacher'}", f"data={corpus_txt}", f"output={tmp_path / 'run'}", "student.layers=2"]
    words += ["export=[gguf, gguf-q8]", "baseline=false", "training.epochs=1", "evaluation.resamples=100"]
    code, printed = command("distill", "word-kd", *words, "task.max_length=32", "evaluation.speed=false")
    assert code == 0, printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    plain = metrics["student"]["quality"]["perplexity"]["value"]
    for name, far in (("student_gguf", 1e-3), ("student_gguf_q8", 0.05)):
        assert metrics[name]["quality"]["perplexity"]["value"] == pytest.approx(plain, rel=far)
        assert metrics[name]["size"]["bytes"] < metrics["student"]["size"]["bytes"]
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").eval()
    (file,) = [path for path in (tmp_path / "run").rglob("*.gguf") if "q8" not in path.name]
    assert (logits(open_causal(str(file)).model) - logits(student)).abs().max() < 1e-2 * logits(student).abs().max()
