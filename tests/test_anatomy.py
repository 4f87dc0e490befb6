"""What hooks capture, against the model's own `output_hidden_states` and eager `output_attentions`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_model
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel

from limbeck.anatomy import PARTS, Capture, WordsAt, layer_list, parts_of, shape_of
from limbeck.errors import InputError
from limbeck.signals import Wanted
from limbeck.students import ib_bert  # noqa: F401  (makes the Auto classes know it)

LAYERS, HEADS = 3, 4
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
CHANGES: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 16},
    "mobilebert": {"intra_bottleneck_size": 16, "embedding_size": 8},
    "ib-bert": {"intra_bottleneck_size": 48, "embedding_size": 8},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4}
    | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "smollm3": {"num_key_value_heads": 2, "no_rope_layer_interval": 2},
    "gemma": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "vit": {"image_size": 16, "patch_size": 4},
    "deit": {"image_size": 16, "patch_size": 4},
}
KINDS = [kind for kind in PARTS if kind not in ("xlm-roberta", "camembert")]
TEXT = [kind for kind in KINDS if kind not in ("vit", "deit")]
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
EVERY = frozenset(range(LAYERS + 1))
INNER = frozenset(range(1, LAYERS + 1))


def build(kind: str, attention: str | None = None) -> PreTrainedModel:
    """A random body of three layers."""
    settings = {k: v for k, v in (COMMON | CHANGES.get(kind, {})).items() if kind not in ("vit", "deit") or k in VISION}
    if kind == "distilbert":
        names = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
        settings = {names.get(k, k): v for k, v in settings.items()} | {"hidden_dim": 64}
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(kind, **settings), attn_implementation=attention).eval()


VISION = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "image_size", "patch_size")


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """Two examples, the second of them padded."""
    torch.manual_seed(1)
    if kind in ("vit", "deit"):
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    return {"input_ids": torch.randint(5, 100, MASK.shape), "attention_mask": MASK}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_hidden_states_and_attention_are_those_that_the_model_itself_shows(kind):
    fast, slow = build(kind), build(kind, "eager")
    slow.load_state_dict(fast.state_dict())
    given = inputs(kind)
    with Capture(fast, Wanted(hidden=EVERY, features=EVERY, scores=INNER)) as capture:
        fast(**given)
        found = capture.signals()
    shown = slow(**given, output_hidden_states=True, output_attentions=True)
    kept = given.get("attention_mask", torch.ones(shown.hidden_states[0].shape[:2])).bool()
    for layer in EVERY:
        torch.testing.assert_close(found.hidden[layer][kept], shown.hidden_states[layer][kept], atol=2e-5, rtol=1e-4)
        assert torch.equal(found.features[layer], found.hidden[layer][:, 0])
    for layer in INNER:
        scores = found.scores[layer].masked_fill(~kept[:, None, None], -torch.inf)
        assert scores.shape[1] == HEADS
        rows = kept[:, None].expand(scores.shape[:3])
        expected = shown.attentions[layer - 1][rows]
        torch.testing.assert_close(scores.softmax(-1)[rows], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attended_values_are_what_the_attention_output_reads(kind):
    model, given = build(kind), inputs(kind)
    _, layers = layer_list(model)
    read: dict[str, torch.Tensor] = {}
    layers[1].get_submodule(parts_of(model).attention_output).register_forward_pre_hook(
        lambda module, args: read.update(x=args[0])
    )
    with Capture(model, Wanted(queries=INNER, keys=INNER, values=INNER, scores=INNER)) as capture:
        model(**given)
        found = capture.signals()
    kept = given.get("attention_mask", torch.ones(found.values[2].shape[:2])).bool()
    weights = found.scores[2].masked_fill(~kept[:, None, None], -torch.inf).softmax(-1)
    values = found.values[2].unflatten(-1, (-1, found.queries[2].shape[-1] // HEADS)).transpose(1, 2)
    values = values.repeat_interleave(HEADS // values.shape[1], dim=1)
    attended = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attended[kept], read["x"][kept], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_where_the_table_says(kind):
    model = build(kind)
    parts, (_, layers) = parts_of(model), layer_list(model)
    assert model.get_submodule(parts.embeddings) is not None
    for path in (parts.attention_output, *parts.feed_forward):
        weight = layers[0].get_submodule(path).weight
        assert weight.ndim == 2
    assert shape_of(model).layers == LAYERS
    assert (shape_of(model).width, shape_of(model).heads) == (32, HEADS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("deberta-v2", "mpnet", "gemma2")])
@torch.no_grad()
def test_a_model_that_is_looked_into_keeps_its_fast_kernel(kind, monkeypatch):
    """Three architectures have none, or not for their own scores."""
    model, calls, kernel = build(kind), [], torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **more: Any) -> torch.Tensor:
        calls.append(kind)
        return kernel(*args, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with Capture(model, Wanted(hidden=EVERY, scores=INNER, queries=INNER, values=INNER)) as capture:
        model(**inputs(kind))
        assert capture.signals().scores.keys() == INNER
    assert len(calls) == LAYERS


def test_hooks_change_nothing_and_leave_nothing():
    model, given = build("bert"), inputs("bert")
    before = model(**given).last_hidden_state
    with Capture(model, Wanted(hidden=EVERY, scores=INNER)) as capture:
        during = model(**given).last_hidden_state
        capture.signals()
    assert torch.equal(before, during)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_a_pass_left_behind_is_not_taken_for_the_next():
    model = build("bert")
    with Capture(model, Wanted(queries=INNER)) as capture:
        model(**inputs("bert"))
        short = {name: tensor[:1, :4] for name, tensor in inputs("bert").items()}
        model(**short)
        assert capture.signals().queries[1].shape == (1, 4, 32)


def test_captured_signals_carry_gradients():
    model, given = build("bert"), inputs("bert")
    with Capture(model, Wanted(hidden=frozenset([1]), scores=frozenset([2]))) as capture:
        model(**given)
        found = capture.signals()
    (found.scores[2].sum() + found.hidden[1].sum()).backward()
    _, layers = layer_list(model)
    assert layers[1].attention.self.query.weight.grad is not None
    assert layers[2].attention.self.query.weight.grad is None


@pytest.mark.parametrize("kind", [kind for kind in TEXT if PARTS[kind].language_head])
@torch.no_grad()
def test_words_at_some_positions_are_those_of_the_whole_pass(kind):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(build(kind).config).eval()
    given = inputs(kind)
    whole = model(**given).logits.flatten(0, 1)
    words = WordsAt(model)
    words.positions = torch.tensor([1, 4, 12])
    some = model(**given).logits
    assert some.shape == (3, 100)
    torch.testing.assert_close(some, whole[[1, 4, 12]], atol=1e-5, rtol=1e-5)
    words.positions = None
    assert model(**given).logits.shape[:2] == MASK.shape
    words.close()


def test_what_cannot_be_looked_into_is_refused_with_the_reason():
    with pytest.raises(InputError, match="albert runs the weights of one layer again and again"):
        Capture(make_model("albert"), Wanted(hidden=frozenset([1])))
    with pytest.raises(InputError, match="where longformer keeps its layers' parts is not known"):
        parts_of(make_model("longformer", attention_window=4, max_position_embeddings=130))
    with pytest.raises(InputError, match="gpt2 has no masked language model's head"):
        WordsAt(build("gpt2"))
    assert Capture(make_model("albert"), Wanted(logits=True)).signals(torch.ones(1)).logits is not None
