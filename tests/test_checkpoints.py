"""Opening checkpoints: what is refused before anything is computed, and what a fingerprint depends on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import LABELS, make_model, make_tokenizer, save_model
from transformers import AutoModel, PreTrainedTokenizerFast

from limbeck.checkpoints import (
    Checkpoint,
    check_tokenizer,
    label_names,
    max_length,
    open_classifier,
    open_config,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from limbeck.errors import InputError
from limbeck.tasks import Task

TEXTS = ["the film was good", "a sad book and a poor ending"]


def test_open_gives_back_what_was_saved(tiny_model_dir):
    model, tokenizer, name = open_classifier(str(tiny_model_dir))
    assert name == str(tiny_model_dir)
    assert label_names(model.config) == LABELS
    assert model.dtype == torch.float32
    assert tokenizer.tokenize("Good soup") == ["good", "soup"]
    expected = make_model().state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_half_precision_weights_open_in_float32(tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert open_classifier(str(tmp_path)).model.dtype == torch.float32


def test_pickles_are_refused(tmp_path):
    folder = save_model(tmp_path / "pickled")
    torch.save(make_model().state_dict(), folder / "pytorch_model.bin")
    open_classifier(str(folder))  # safetensors are beside it, and are what is read
    (folder / "model.safetensors").unlink()
    for opening in (open_config, open_classifier):
        with pytest.raises(InputError, match=r"holds pytorch_model.bin, a pickle .* convert it to safetensors"):
            opening(str(folder))


def test_folders_without_a_model_are_refused(tmp_path, tiny_model_dir):
    with pytest.raises(InputError, match=r"no model folder '.*missing'; check the path"):
        open_classifier(str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        open_classifier(str(tmp_path))
    for missing, said in (("config.json", "neither a model folder"), ("tokenizer.json", "does not open as a sequence")):
        folder = shutil.copytree(tiny_model_dir, tmp_path / missing.replace(".", "-"))
        (folder / missing).unlink()
        with pytest.raises(InputError, match=said):
            open_classifier(str(folder))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="no model folder"):
        open_classifier(str(file))
    with pytest.raises(InputError, match="'some/model' is neither a model folder nor a model that the hub gave"):
        open_classifier("some/model")


def test_torn_weights_are_refused(tmp_path, tiny_model_dir):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "torn")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="does not open as a sequence classifier"):
        open_classifier(str(folder))


def test_an_untrained_head_is_refused_unless_a_task_makes_it(tmp_path):
    base = AutoModel.from_config(make_model().config)
    base.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"was never trained to classify \(classifier.bias, .* missing\); train it first"
    ):
        open_classifier(str(tmp_path))
    task = Task("classification", ("a", "b", "c"))
    made = open_classifier(str(tmp_path), head=task.config).model
    assert label_names(made.config) == task.labels
    assert made.config.problem_type == "single_label_classification"
    assert made.classifier.weight.shape == (3, 32)
    assert torch.equal(made.bert.embeddings.word_embeddings.weight, base.embeddings.word_embeddings.weight)


def test_a_head_of_another_size_is_made_anew(tiny_model_dir):
    task = Task("multi-label", ("a", "b", "c", "d"))
    made = open_classifier(str(tiny_model_dir), head=task.config).model
    assert made.classifier.weight.shape == (4, 32)
    assert label_names(made.config) == task.labels
    same = open_classifier(str(tiny_model_dir), head=Task("classification", LABELS).config).model
    assert torch.equal(same.classifier.weight, make_model().classifier.weight)


def test_a_runs_folder_stands_for_its_model(tmp_path):
    save_model(tmp_path / "run" / "student", seed=3)
    opened = open_classifier(str(tmp_path / "run")).model
    assert torch.equal(opened.classifier.weight, make_model(seed=3).classifier.weight)


# --- tokenizers that do not fit -------------------------------------------------------------------------------------


def test_a_fitting_tokenizer_is_taken(tokenizer):
    check_tokenizer(Checkpoint(make_model(), tokenizer, "m"), TEXTS)


def test_more_tokens_than_embeddings_are_refused(tokenizer):
    checkpoint = Checkpoint(make_model(vocabulary=len(tokenizer) - 1), tokenizer, "m")
    with pytest.raises(InputError, match=rf"of 'm' has {len(tokenizer)} tokens, the model embeds {len(tokenizer) - 1}"):
        check_tokenizer(checkpoint, TEXTS)
    check_tokenizer(Checkpoint(make_model(vocabulary=len(tokenizer)), tokenizer, "m"), TEXTS)


def test_an_all_unknown_tokenizer_is_refused(tokenizer):
    checkpoint = Checkpoint(make_model(), tokenizer, "m")
    with pytest.raises(InputError, match="'m' knows 0% of the tokens of your text"):
        check_tokenizer(checkpoint, ["电影很好 没意思", "书不错"])
    check_tokenizer(checkpoint, [*TEXTS, "不"])  # a few unknown tokens are no reason


def test_a_tokenizer_without_padding_is_refused(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]")
    with pytest.raises(InputError, match=r"has no padding token; set tokenizer\.pad_token"):
        check_tokenizer(Checkpoint(make_model(), bare, "m"), TEXTS)


@pytest.mark.parametrize(("kind", "positions"), [("bert", 64), ("roberta", 64), ("mpnet", 64), ("modernbert", 64)])
def test_length_limits(kind, positions):
    model, tokenizer = make_model(kind), make_tokenizer(model_max_length=10**30)
    assert max_length(model, tokenizer, None) == positions
    assert max_length(model, tokenizer, 16) == 16
    assert max_length(model, make_tokenizer(model_max_length=40), None) == 40
    with pytest.raises(InputError, match=rf"task.max_length is 65, but {kind} reads at most 64 tokens"):
        max_length(model, tokenizer, positions + 1)
    ids = torch.full((1, positions), 7)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


# --- fingerprints -------------------------------------------------------------------------------------------------


def test_weights_fingerprint_depends_on_every_weight():
    model = make_model()
    before = weights_fingerprint(model)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            old = tensor.view(-1)[-1].item()
            tensor.view(-1)[-1] += 1e-3
            assert weights_fingerprint(model) != before, name
            tensor.view(-1)[-1] = old
    assert weights_fingerprint(model) == before


def test_weights_fingerprint_depends_on_what_the_weights_mean():
    before = weights_fingerprint(make_model())
    assert weights_fingerprint(make_model()) == before
    assert weights_fingerprint(make_model(seed=1)) != before
    assert weights_fingerprint(make_model(labels=LABELS[::-1])) != before
    assert weights_fingerprint(make_model(num_attention_heads=4)) != before  # same shapes, other attention
    assert weights_fingerprint(make_model(hidden_act="relu")) != before
    assert weights_fingerprint(make_model().half()) != before


def test_weights_fingerprint_is_blind_to_names_paths_and_notes(tmp_path, tiny_model_dir):
    before = weights_fingerprint(open_classifier(str(tiny_model_dir)).model)
    moved = open_classifier(str(shutil.copytree(tiny_model_dir, tmp_path / "elsewhere"))).model
    moved.config.limbeck = {"initialisation": {"from": "somewhere"}}
    assert weights_fingerprint(moved) == before
    moved.save_pretrained(tmp_path / "again")
    make_tokenizer().save_pretrained(tmp_path / "again")
    assert weights_fingerprint(open_classifier(str(tmp_path / "again")).model) == before
    assert weights_fingerprint(make_model()) == before


def test_tokenizer_fingerprint_is_blind_to_truncation_and_padding():
    tokenizer = make_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["good soup", "bad"], truncation=True, max_length=5, padding="max_length")
    assert tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(make_tokenizer(extra=["wine"])) != before
    lower = make_tokenizer()
    lower.add_tokens(["WINE"])
    assert tokenizer_fingerprint(lower) != before


def test_fingerprints_are_the_same_in_every_process(tiny_model_dir: Path):
    code = (
        "import sys; from limbeck.checkpoints import *; c = open_classifier(sys.argv[1]);"
        "print(weights_fingerprint(c.model), tokenizer_fingerprint(c.tokenizer))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, tiny_model_dir], capture_output=True, text=True, check=True
    ).stdout
    here = open_classifier(str(tiny_model_dir))
    assert out.split() == [weights_fingerprint(here.model), tokenizer_fingerprint(here.tokenizer)]
