"""Language models' runs as a user gives them: padded vocabularies, other tokenizers, updates in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FILLER, GOOD, make_causal, make_chat_tokenizer, write_jsonl
from safetensors.torch import load_file

from limbeck import hardware
from limbeck.checkpoints import open_causal
from limbeck.knowledge import formats
from limbeck.knowledge import words as kept_words
from limbeck.knowledge.formats import Format
from limbeck.students.importance import block_influence

QUICK = [
    "training.batch_size=4", "training.epochs=1", "training.learning_rate=1e-3", "training.precision=float32",
    "task.max_length=32", "student.layers=2", "evaluation.resamples=100", "evaluation.speed=false", "export=[]",
    "baseline=false", "seed=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of very different lengths, a teacher, it with rows that no token has, and another tokenizer's."""
    root, tokenizer = tmp_path_factory.mktemp("word-level"), make_chat_tokenizer()
    rows = []
    for number, word in enumerate(FILLER):
        answer = " and ".join(GOOD[: 1 + number % len(GOOD)])
        rows.append({"prompt": f"how was the {word}?", "completion": f"the {word} was {answer}"})
    write_jsonl(root / "chat.jsonl", rows)
    plain, padded = make_causal(tokenizer, seed=3), make_causal(tokenizer, seed=3)
    padded.resize_token_embeddings(len(tokenizer) + 12)
    with torch.no_grad():  # far likelier than any token, if they counted
        padded.get_output_embeddings().weight[-12:] = 3 * padded.get_output_embeddings().weight[:12]
    other = make_chat_tokenizer()
    other.add_tokens(["quince"])
    for name, model, reader in (
        ("plain", plain, tokenizer), ("padded", padded, tokenizer), ("other", make_causal(other, seed=4), other),
    ):  # fmt: skip
        model.save_pretrained(root / name)
        reader.save_pretrained(root / name)
    return root


def words(places: Path, method: str, teacher: str, output: Path, *more: str) -> list[str]:
    line = ["distill", method, f"teacher={places / teacher}", f"data={places / 'chat.jsonl'}", f"output={output}"]
    return [*line, *QUICK, *more]


def student(command: Any, line: list[str], output: Path) -> dict[str, torch.Tensor]:
    code, printed = command(*line)
    assert code == 0, printed
    return load_file(output / "student" / "model.safetensors")


def test_layers_are_chosen_by_what_they_do_to_the_data(places: Path, tmp_path: Path, command: Any) -> None:
    words_of = words(places, "word-kd", "plain", tmp_path / "run", "student.pattern=influence", "student.layers=3")
    student(command, words_of, tmp_path / "run")
    made = json.loads((tmp_path / "run" / "student" / "config.json").read_text())["limbeck"]["initialisation"]
    rows = map(json.loads, (places / "chat.jsonl").read_text().splitlines())
    turns = [row[part] for row in rows for part in ("prompt", "completion")]
    turned = block_influence(open_causal(str(places / "plain")).model, make_chat_tokenizer(), turns)
    assert made["layers"] == sorted(sorted(range(4), key=lambda layer: -turned[layer])[:3])


@pytest.mark.parametrize("keep", ["head_and_tail", "top_k", "dense", "nothing"])
def test_rows_that_pad_the_teachers_vocabulary_teach_nothing(keep: str, places: Path, command: Any, tmp_path: Path):
    """The student of the padded teacher is that of the other, although padding rows would take most of its words."""
    start = f"student={{model: {places / 'plain'}, layers: 2}}"
    found = []
    for teacher in ("plain", "padded"):
        output = tmp_path / teacher
        line = words(places, "word-kd", teacher, output, start, f"teacher.words={keep}")
        found.append(student(command, line, output))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-5, rtol=1e-4)


def test_what_is_kept_of_logits_in_bfloat16_is_computed_in_float32(
    places: Path, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hardware, "pick_precision", lambda wanted="auto": "bfloat16")
    seen = []

    def pack(logits: torch.Tensor, form: Format, uniform: torch.Tensor) -> torch.Tensor:
        assert (logits == logits.bfloat16()).all()
        assert not torch.is_autocast_enabled("cpu")
        seen.append(len(logits))
        return formats.pack(logits, form, uniform)

    monkeypatch.setattr(kept_words, "pack", pack)
    student(command, words(places, "word-kd", "plain", tmp_path), tmp_path)
    assert seen


@pytest.mark.parametrize("keep", ["head_and_tail", "nothing"])
def test_an_update_in_parts_is_that_of_the_whole_though_answers_differ_in_length(
    keep: str, places: Path, command: Any, tmp_path: Path
):
    found = []
    for size, parts in ((4, 1), (1, 4)):
        output = tmp_path / str(parts)
        split = [f"training.batch_size={size}", f"training.gradient_accumulation={parts}", f"teacher.words={keep}"]
        split += ["stages.distill.objectives.next_token=1"]
        line = words(places, "word-kd", "plain", output, *split, "training.learning_rate=1e-2", "training.warmup=0")
        found.append(student(command, line, output))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-4, rtol=1e-3)


def test_words_of_another_tokenizer_are_refused_with_the_way_out(places: Path, command: Any, tmp_path: Path):
    line = words(places, "word-kd", "plain", tmp_path / "a", f"student={{model: {places / 'other'}, layers: 2}}")
    code, printed = command(*line)
    assert code == 2
    said = " ".join(printed.split())
    assert "the tokenizers of" in said
    assert "give a student with the teacher's tokenizer, or learn from the teacher's answers (seqkd)" in said
    assert not (tmp_path / "a").exists()


def test_answers_are_learnt_whatever_the_tokenizer(places: Path, command: Any, tmp_path: Path):
    start = [f"student={{model: {places / 'other'}, layers: 2}}", "data.generation.max_new_tokens=6"]
    line = words(places, "seqkd", "plain", tmp_path / "a", *start, "data.generation.cut=keep")
    weights = student(command, line, tmp_path / "a")
    assert len(weights["model.embed_tokens.weight"]) == len(make_chat_tokenizer()) + 1
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["student"]["quality"]["perplexity"]["value"] > 0
    assert "fidelity" not in metrics["student"]  # of different words there is none
