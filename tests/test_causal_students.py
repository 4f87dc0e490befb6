"""Causal language models as teachers and students: opened, cut to fewer layers and to less width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from causal import TEXTS, make_byte_tokenizer, make_causal
from conftest import make_model, make_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from limbeck.anatomy import layer_list
from limbeck.checkpoints import Checkpoint, open_causal
from limbeck.errors import InputError
from limbeck.recipe import load
from limbeck.recipe.schema import Student, Width
from limbeck.students import build_student, keep_layers
from limbeck.students.importance import block_influence, measure_importance
from limbeck.students.width import Units, _norms, check_width, choose_units, cut_width
from limbeck.tasks import Task

WORDS = Task("masked-lm", ("a", "b"))
KINDS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
IDS = torch.arange(40).reshape(2, 20) * 9


def open_saved(model: PreTrainedModel, folder: Path, **tokenizer: Any) -> Checkpoint:
    model.save_pretrained(folder)
    make_byte_tokenizer(**tokenizer).save_pretrained(folder)
    return open_causal(str(folder))


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(IDS % model.config.vocab_size).logits


def everything(model: PreTrainedModel) -> Units:
    config, depth = model.config, model.config.num_hidden_layers
    groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
    neurons = [list(range(config.intermediate_size))] * depth
    return Units(list(range(config.hidden_size)), neurons, [list(range(groups))] * depth, {})


# --- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "gpt2"])
def test_a_saved_folder_opens_and_pads_with_its_end(kind: str, tmp_path: Path) -> None:
    made = make_causal(kind)
    opened = open_saved(made, tmp_path)
    assert torch.equal(logits(opened.model), logits(made))
    assert opened.model.dtype == torch.float32
    if kind != "qwen2":  # its tokenizer's class brings a padding token
        assert opened.tokenizer.pad_token == "<|im_end|>"
    assert opened.tokenizer.pad_token_id is not None
    assert opened.name == str(tmp_path)


def test_a_padding_token_of_its_own_is_kept(tmp_path: Path) -> None:
    assert open_saved(make_causal(), tmp_path, pad_token="<|endoftext|>").tokenizer.pad_token == "<|endoftext|>"


def test_half_precision_files_open_in_float32(tmp_path: Path) -> None:
    assert open_saved(make_causal().to(torch.bfloat16), tmp_path).model.dtype == torch.float32


def test_the_model_of_a_run_is_found_in_its_folder(tmp_path: Path) -> None:
    made = make_causal()
    made.save_pretrained(tmp_path / "student")
    make_byte_tokenizer().save_pretrained(tmp_path / "student")
    assert torch.equal(logits(open_causal(str(tmp_path)).model), logits(made))


def test_models_that_do_not_write_from_left_to_right_are_refused(tmp_path: Path) -> None:
    bert = make_model("bert")
    AutoModelForMaskedLM.from_config(bert.config).save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="bert that looks ahead"):
        open_causal(str(tmp_path / "bert"))
    body = AutoModel.from_config(make_causal(tie_word_embeddings=False).config)
    body.save_pretrained(tmp_path / "body")
    make_byte_tokenizer().save_pretrained(tmp_path / "body")
    with pytest.raises(InputError, match=r"never trained to write text \(lm_head.weight missing\)"):
        open_causal(str(tmp_path / "body"))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle that could run code"):
        open_causal(str(tmp_path))
    make_causal().save_pretrained(tmp_path / "silent")
    with pytest.raises(InputError, match="does not open as a causal language model"):
        open_causal(str(tmp_path / "silent"))


# --- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "gpt2", "gemma2", "gemma3_text"])
def test_kept_layers_are_the_teachers_with_their_settings(kind: str, tmp_path: Path) -> None:
    windows: dict[str, Any] = {}
    if kind in ("qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text"):
        types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
        windows = {"layer_types": types, "sliding_window": 4, "use_sliding_window": True}
    if kind.startswith("gemma"):
        windows.pop("use_sliding_window")
        windows["head_dim"] = 8
    teacher = make_causal(kind, **windows)
    kept = [0, 2, 3]
    student = keep_layers(teacher, kept).eval()
    # The layers that go pass their input on, so the teacher does what the student does.
    layer_list(teacher)[1][1].register_forward_hook(lambda module, args, output: args[0])
    torch.testing.assert_close(logits(student), logits(teacher), atol=1e-5, rtol=1e-5)
    assert len(layer_list(student)[1]) == 3
    if windows:
        assert student.config.layer_types == [windows["layer_types"][layer] for layer in kept]
    if kind == "smollm3":
        assert student.config.no_rope_layers == [teacher.config.no_rope_layers[layer] for layer in kept]
    student.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(student))


def test_how_the_teacher_writes_goes_with_its_layers() -> None:
    teacher = make_causal()
    teacher.generation_config.eos_token_id = [2, 7]
    student = keep_layers(teacher, [0, 1])
    assert student.generation_config.eos_token_id == [2, 7]
    assert student.generation_config is not teacher.generation_config


# --- width --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_with_everything_kept_the_model_is_the_teacher_bit_for_bit(kind: str, tied: bool) -> None:
    teacher = make_causal(kind, tie_word_embeddings=tied)
    cut = cut_width(teacher, everything(teacher))
    assert torch.equal(logits(cut), logits(teacher))
    assert cut.config.to_dict() == teacher.config.to_dict()


@pytest.mark.parametrize("kind", ["bert", "bert-words"])
def test_a_whole_bert_is_the_teacher_bit_for_bit(kind: str) -> None:
    teacher = make_model("bert", hidden_size=32, num_attention_heads=4)
    if kind == "bert-words":
        teacher = AutoModelForMaskedLM.from_config(teacher.config)
    assert torch.equal(logits(cut_width(teacher, everything(teacher))), logits(teacher))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_units_that_write_nothing_can_be_cut_and_are_found_by_their_activity(kind: str, tmp_path: Path) -> None:
    teacher = make_causal(kind, attention_bias=True) if kind == "llama" else make_causal(kind)
    gone_neurons, gone_group = [3, 10, 11, 60], [0, 1, 1, 0]
    for number, layer in enumerate(layer_list(teacher)[1]):
        mlp, attention, group = layer.mlp, layer.self_attn, gone_group[number]
        mlp.up_proj.weight[gone_neurons] = 0  # silent: nothing comes out of them
        attention.v_proj.weight[group * 8 : group * 8 + 8] = 0
        if attention.v_proj.bias is not None:
            attention.v_proj.bias.zero_()
    width = Width(intermediate_size=60, num_key_value_heads=1)
    sizes = check_width(width, teacher.config)
    assert (sizes["num_attention_heads"], sizes["head_dim"]) == (2, 8)
    source = Checkpoint(teacher, make_byte_tokenizer(), "teacher")
    units, how = choose_units(source, sizes, range(4), TEXTS)
    assert how == f"importance on {len(TEXTS)} texts"
    assert units.neurons == [[n for n in range(64) if n not in gone_neurons]] * 4
    assert units.groups == [[1 - group] for group in gone_group]
    assert not units.scales
    cut = cut_width(teacher, units)
    torch.testing.assert_close(logits(cut), logits(teacher), atol=1e-5, rtol=1e-5)
    assert cut.config.head_dim == 8
    cut.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(cut))


@torch.no_grad()
def test_the_same_of_bert() -> None:
    teacher = make_model("bert", hidden_size=32, num_attention_heads=4)
    for layer in layer_list(teacher)[1]:
        layer.intermediate.dense.weight[5] = 0
        layer.intermediate.dense.bias[5] = 0
    source = Checkpoint(teacher, make_tokenizer(), "teacher")
    units, _ = choose_units(source, check_width(Width(intermediate_size=63), teacher.config), range(4), TEXTS[:60])
    assert units.neurons == [[n for n in range(64) if n != 5]] * 4
    torch.testing.assert_close(logits(cut_width(teacher, units)), logits(teacher), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_channels_that_hold_nothing_can_be_cut(kind: str) -> None:
    teacher = make_causal(kind, rms_norm_eps=1e-12)
    gone = [0, 7, 8, 30]
    teacher.get_input_embeddings().weight[:, gone] = 0
    for layer in layer_list(teacher)[1]:
        layer.self_attn.o_proj.weight[gone] = 0
        layer.mlp.down_proj.weight[gone] = 0
    source = Checkpoint(teacher, make_byte_tokenizer(), "teacher")
    units, _ = choose_units(source, check_width(Width(hidden_size=28), teacher.config), range(4), TEXTS)
    assert units.channels == [c for c in range(32) if c not in gone]
    # A norm over 28 channels divides by more than one over 32 of which 4 are nothing.
    assert units.scales.keys() >= {"model.norm", "model.layers.3.input_layernorm"}
    assert all(scale == pytest.approx((32 / 28) ** 0.5, rel=1e-5) for scale in units.scales.values())
    cut = cut_width(teacher, units)
    torch.testing.assert_close(logits(cut), logits(teacher), atol=1e-4, rtol=1e-4)
    assert cut.config.hidden_size == 28
    assert cut.config.head_dim == 8


@torch.no_grad()
def test_importance_is_the_papers_formula() -> None:
    teacher, tokenizer = make_causal(), make_byte_tokenizer()
    texts = [TEXTS[0], TEXTS[1]]
    read: dict[str, list[torch.Tensor]] = {"neurons": [], "heads": [], "norms": []}
    model = teacher.model
    layer = model.layers[2]
    layer.mlp.down_proj.register_forward_pre_hook(lambda m, a: read["neurons"].append(a[0][0]))
    layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a: read["heads"].append(a[0][0]))
    for norm in (model.norm, layer.input_layernorm, layer.post_attention_layernorm):
        norm.register_forward_hook(lambda m, a, out: read["norms"].append(out[0]))
    for text in texts:  # one by one, so without padding
        teacher(torch.tensor([tokenizer(text).input_ids]))
    expected = {
        kind: torch.stack([each.abs().mean(0) for each in seen]).square().sum(0).sqrt()
        for kind, seen in read.items()
        if kind != "norms"
    }
    found = measure_importance(teacher, tokenizer, texts, [2], _norms)
    torch.testing.assert_close(found.neurons[0], expected["neurons"], atol=1e-5, rtol=1e-4)
    heads = expected["heads"].reshape(2, 2 * 8).square().sum(1).sqrt()
    torch.testing.assert_close(found.groups[0], heads, atol=1e-5, rtol=1e-4)
    # Of each norm by itself, then the sum: they come in the order input, after attention, final, once a text.
    means = torch.stack([each.abs().mean(0) for each in read["norms"][:6]]).reshape(2, 3, -1)
    torch.testing.assert_close(found.channels, means.square().sum(0).sqrt().sum(0), atol=1e-5, rtol=1e-4)


def test_importance_leaves_the_teacher_as_it_was() -> None:
    teacher = make_causal().train()
    measure_importance(teacher, make_byte_tokenizer(), TEXTS, [0], _norms)
    assert teacher.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def test_layers_and_width_are_cut_together_and_recorded(tmp_path: Path) -> None:
    teacher = Checkpoint(make_causal(vocabulary=420), make_byte_tokenizer(), "teacher")
    width = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1}
    recipe = Student(layers=[1, 3], width=width)
    before = logits(teacher.model)
    made = build_student(recipe, None, teacher, WORDS, 0, texts=TEXTS)
    assert torch.equal(before, logits(teacher.model))
    config = made.model.config
    assert {name: getattr(config, name) for name in width} == width
    assert (config.num_hidden_layers, config.head_dim, config.vocab_size) == (2, 8, 420)
    origin = config.limbeck["initialisation"]
    assert origin["from"] == "teacher"
    assert origin["layers"] == [1, 3]
    assert origin["width"] == width | {"head_dim": 8}
    assert origin["units"] == f"importance on {len(TEXTS)} texts"
    made.model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(made.model))
    again = build_student(recipe, None, teacher, WORDS, 1, texts=TEXTS)
    assert torch.equal(logits(again.model), logits(made.model))
    blind = build_student(recipe, None, teacher, WORDS, 0)
    assert blind.model.config.limbeck["initialisation"]["units"] == "first"
    first = blind.model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(first, teacher.model.state_dict()["model.layers.3.mlp.up_proj.weight"][:40, :24])


def test_width_alone_keeps_all_layers_and_cuts_other_checkpoints_too() -> None:
    model = Checkpoint(make_causal(), make_byte_tokenizer(), "teacher")
    made = build_student(Student(width={"intermediate_size": 32}), None, model, WORDS, 0)
    assert made.model.config.num_hidden_layers == 4
    made = build_student(Student(model="memory:m", width={"intermediate_size": 32}), model, None, WORDS, 0)
    assert made.model.config.limbeck["initialisation"]["from"] == "model object"
    assert made.model.config.intermediate_size == 32


@pytest.mark.parametrize(
    ("kind", "width", "message"),
    [
        ("llama", {"hidden_size": 33}, "hidden_size is 33, and the model has 32"),
        ("llama", {"num_attention_heads": 2, "num_key_value_heads": 2}, "2 query heads share one; give num_attent"),
        ("llama", {"num_attention_heads": 3}, "give num_attention_heads=2"),
        ("llama", {"head_dim": 4}, "head_dim is 4, and the model's heads have 8"),
        ("gpt2", {"hidden_size": 16}, "this is a gpt2; leave width out"),
    ],
)
def test_widths_that_cannot_be_are_refused(kind: str, width: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_width(Width(**width), make_causal(kind).config)


def test_berts_heads_make_up_its_states() -> None:
    teacher = make_model("bert", hidden_size=32, num_attention_heads=4)
    with pytest.raises(InputError, match="give hidden_size=24"):
        check_width(Width(num_attention_heads=3), teacher.config)
    sizes = check_width(Width(num_attention_heads=3, hidden_size=24), teacher.config)
    units, _ = choose_units(Checkpoint(teacher, make_tokenizer(), "t"), sizes, range(4), TEXTS[:60])
    assert logits(cut_width(teacher, units)).isfinite().all()


def test_the_recipe_says_what_excludes_what(tmp_path: Path) -> None:
    base = {"data": "x.csv", "teacher": "t", "output": str(tmp_path)}
    with pytest.raises(InputError, match="width and shape exclude each other"):
        load("hinton", base | {"student.width.hidden_size": 3, "student.shape": {"hidden_size": 8}})
    with pytest.raises(InputError, match="gguf, which models of task classification are not exported to"):
        load("hinton", base | {"export": ["gguf"]})
    given = load("hinton", base | {"student.layers": "half", "student.width.hidden_size": 16})
    assert given.student.width == Width(hidden_size=16)
    made = Checkpoint(make_model("bert", hidden_size=32, num_attention_heads=4), make_tokenizer(), "t")
    with pytest.raises(InputError, match=r"student\.width and student\.architecture exclude each other"):
        build_student(Student(architecture="distilbert", width={"intermediate_size": 9}), None, made, WORDS, 0)


@torch.no_grad()
def test_influence_is_one_minus_the_cosine_of_what_a_layer_reads_and_writes() -> None:
    teacher, tokenizer = make_causal(), make_byte_tokenizer()
    texts = [TEXTS[0], TEXTS[1][:20]]  # of unequal lengths: padding counts as nothing
    turned, tokens = torch.zeros(4, dtype=torch.float64), 0
    for text in texts:
        ids = torch.tensor([tokenizer(text).input_ids])
        read: list[torch.Tensor] = []
        handles = [
            layer.register_forward_hook(lambda m, a, out, kept=read: kept.extend((a[0][0].double(), out[0].double())))
            for layer in teacher.model.layers
        ]
        teacher(ids)
        for handle in handles:
            handle.remove()
        for layer in range(4):
            before, after = read[2 * layer], read[2 * layer + 1]
            turned[layer] += (1 - (before * after).sum(1) / (before.norm(dim=1) * after.norm(dim=1))).sum()
        tokens += ids.shape[1]
    found = block_influence(teacher, tokenizer, texts)
    assert found == pytest.approx((turned / tokens).tolist(), abs=1e-5)


@pytest.mark.parametrize("idle", [[2], [0, 2]])
def test_layers_that_do_nothing_are_left_out_first(idle: list[int]) -> None:
    teacher = Checkpoint(make_causal(vocabulary=420), make_byte_tokenizer(), "teacher")
    for layer in (teacher.model.model.layers[number] for number in idle):
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    recipe = Student(layers=4 - len(idle), pattern="influence")
    made = build_student(recipe, None, teacher, WORDS, 0, texts=TEXTS)
    assert made.model.config.limbeck["initialisation"]["layers"] == [n for n in range(4) if n not in idle]
    torch.testing.assert_close(logits(made.model), logits(teacher.model))
    spaced = build_student(Student(layers=4 - len(idle)), None, teacher, WORDS, 0, texts=TEXTS)
    assert not torch.allclose(logits(spaced.model), logits(teacher.model))


def test_influence_needs_text_and_a_number_that_can_be() -> None:
    teacher = Checkpoint(make_causal(vocabulary=420), make_byte_tokenizer(), "teacher")
    with pytest.raises(InputError, match=r"there is none here; give pattern=spaced"):
        build_student(Student(layers=2, pattern="influence"), None, teacher, WORDS, 0)
    with pytest.raises(InputError, match=r"student\.layers is 5, but the teacher has 4 layers"):
        build_student(Student(layers=5, pattern="influence"), None, teacher, WORDS, 0, texts=TEXTS)
    whole = build_student(Student(layers="all", pattern="influence"), None, teacher, WORDS, 0)
    torch.testing.assert_close(logits(whole.model), logits(teacher.model))
