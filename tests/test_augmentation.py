"""Augmented texts: the model's own words and the nearest ones, drawn by the seed alone, made once."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import LABELS, Held, both, make_model, make_reviews, make_tokenizer
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

from limbeck.checkpoints import Checkpoint
from limbeck.data import copies, word_vectors
from limbeck.data.augmentation import augment
from limbeck.data.candidates import Candidates, Slot
from limbeck.data.word_vectors import from_embeddings, from_file, nearest_words
from limbeck.data.words import read_words, whole_words
from limbeck.errors import InputError
from limbeck.recipe.data import Augmentation
from limbeck.tasks import Task

ONE = Task("classification", LABELS)
PAIR = Task("classification", LABELS, pair=True)
SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The language model computes in float32 here, so that its words can be compared with our own computation."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


def language_model(seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None) -> Checkpoint:
    torch.manual_seed(seed)
    config = AutoConfig.for_model("bert", vocab_size=200, max_position_embeddings=64, **SMALL)
    return Checkpoint(AutoModelForMaskedLM.from_config(config).eval(), tokenizer or make_tokenizer(), f"bert-{seed}")


def byte_level(padding_side: str = "right") -> Checkpoint:
    """A RoBERTa with a byte-level BPE that knows some words at their beginning and some only elsewhere."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    lines = [
        "a good film and a bad film (good) (bad) about a café",
        "films were watched, foods were cooked, words said",
    ]
    backend.train_from_iterator(lines * 20, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = ("bos", "pad", "eos", "unk", "mask")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": token for name, token in zip(names, special, strict=True)},
        model_max_length=64,
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    settings = {**SMALL, "pad_token_id": 1, "max_position_embeddings": 66, "type_vocab_size": 1}
    config = AutoConfig.for_model("roberta", vocab_size=len(tokenizer), **settings)
    return Checkpoint(AutoModelForMaskedLM.from_config(config).eval(), tokenizer, "roberta")


def table(*texts: str | tuple[str, str]) -> Dataset:
    if isinstance(texts[0], str):
        return Dataset.from_dict({"text": list(texts), "label": [0] * len(texts)})
    firsts, seconds = zip(*texts, strict=True)
    return Dataset.from_dict({"text": firsts, "text_pair": seconds, "label": [0] * len(texts)})


REVIEWS = [row["text"] for row in make_reviews(12, seed=3)]


def run(root: Path, texts: Dataset | None = None, task: Task = ONE, seed: int = 0, **changes: Any) -> Dataset:
    """`augment` with defaults."""
    model = changes.pop("model", None) or language_model()
    vectors_of = changes.pop("vectors_of", None) or teacher()
    length = changes.pop("length", 32)
    settings = Augmentation.model_validate({"model": "m", "copies": 5, **changes})
    return augment(texts or table(*REVIEWS), task, settings, model, vectors_of, root, seed, length)


def teacher(seed: int = 5) -> Checkpoint:
    return Checkpoint(make_model(seed=seed), make_tokenizer(), "teacher")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def store_of(root: Path) -> Path:
    (folder,) = (root / "augmented").iterdir()
    return folder


def slots_of(
    model: Checkpoint, text: str, neighbours: dict[str, list[str]] | None = None, **options: Any
) -> list[Slot]:
    settings = {"count": 5, "length": 64, **options}
    return Candidates(model, neighbours or {}, **settings).of([text], "")[text]


def replaced(text: str, slots: Sequence[Slot], altered: str) -> list[bool]:
    """Which slots were replaced, by matching the altered text against the original with each slot left open."""
    pattern, end = "", 0
    for slot in slots:
        options = "|".join(re.escape(word) for word in [text[slot.start : slot.end], *slot.candidates])
        pattern += re.escape(text[end : slot.start]) + f"({options})"
        end = slot.end
    match = re.fullmatch(pattern + re.escape(text[end:]), altered)
    assert match, f"{altered!r} is not {text!r} with words replaced by candidates"
    return [found != text[slot.start : slot.end] for found, slot in zip(match.groups(), slots, strict=True)]


# --- words --------------------------------------------------------------------------------------------------------


def test_words_are_the_pre_tokenizers_without_punctuation_numbers_special_tokens_and_contracted_endings() -> None:
    text = "Good  soup, isn't (the) 42 film's [MASK] ☃ Zebra!"
    ((_, words),) = read_words([text], make_tokenizer(), 64)
    assert [text[word.start : word.end] for word in words] == ["Good", "soup", "isn", "the", "film", "Zebra"]
    assert [len(word.pieces) for word in words] == [1, 1, 2, 1, 1, 5]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_word_that_is_cut_by_the_length_or_beyond_it_is_left_out(side: str) -> None:
    tokenizer = make_tokenizer(truncation_side=side)
    text = "zebra good film zebra"
    for length in range(4, 16):
        ((ids, words),) = read_words([text], tokenizer, length)
        assert len(ids) == min(length, 14)
        for word in words:
            assert text[word.start : word.end] in ("zebra", "good", "film")
            pieces = tokenizer.convert_ids_to_tokens([ids[place] for place in word.pieces])
            assert "".join(pieces).replace("##", "") == text[word.start : word.end]


def test_whole_words_of_wordpiece_have_letters_and_no_prefix() -> None:
    tokenizer = make_tokenizer()
    found = whole_words(tokenizer)
    wanted = {t: i for t, i in tokenizer.get_vocab().items() if t[0].isalpha()}
    assert {word: number for number, word in found.items()} == wanted


def test_whole_words_of_a_byte_level_tokenizer_begin_words_and_are_decoded() -> None:
    tokenizer = byte_level().tokenizer
    found = whole_words(tokenizer)
    tokens = {number: tokenizer.convert_ids_to_tokens(number) for number in found}
    assert all(token.startswith("Ġ") for token in tokens.values())
    assert {"good", "film", "café"} <= set(found.values())
    assert "Ã©" not in "".join(found.values())
    assert "good" in tokenizer.get_vocab(), "the tokenizer was meant to know it inside words too"


def test_byte_level_words_are_found_without_their_space_and_answered_by_word_initial_entries() -> None:
    model = byte_level()
    text = "a good film (bad)  café's end"
    slots = slots_of(model, text)
    assert {"good", "film", "bad", "café"} <= {text[slot.start : slot.end] for slot in slots}
    known = set(whole_words(model.tokenizer).values())
    for slot in slots:
        assert len(slot.candidates) == 5
        assert set(slot.candidates) <= known - {text[slot.start : slot.end]}


# --- the masked language model's words ----------------------------------------------------------------------------


@pytest.mark.parametrize("model", [language_model(), byte_level(), byte_level("left")], ids=["bert", "bpe", "bpe-left"])
def test_candidates_of_one_piece_are_exactly_the_models_likeliest_whole_words(model: Checkpoint) -> None:
    texts = ["a good film", "the bad film (good)", "film", "a bad film and a good film and a bad and a good one"]
    found = Candidates(model, {}, 7, 64).of(texts, "")
    vocabulary = whole_words(model.tokenizer)
    checked = 0
    for text in texts:
        ((ids, words),) = read_words([text], model.tokenizer, 64)
        single = [word for word in words if len(word.pieces) == 1]
        assert [slot[:2] for slot in found[text]] == [word[:2] for word in single]
        for word, slot in zip(single, found[text], strict=True):
            masked = torch.tensor([ids])
            masked[0, word.pieces[0]] = model.tokenizer.mask_token_id
            with torch.no_grad():
                logits = model.model(input_ids=masked).logits[0, word.pieces[0]]
            own = text[word.start : word.end]
            ranked = sorted((number for number in vocabulary if vocabulary[number] != own), key=lambda i: -logits[i])
            assert slot.candidates == [vocabulary[number] for number in ranked[:7]]
            checked += 1
    assert checked > 10


def test_a_capitalised_word_is_not_its_own_candidate() -> None:
    slots = slots_of(language_model(), "Good FILM", count=500)
    for slot, own in zip(slots, ("good", "film"), strict=True):
        assert len(slot.candidates) == len(whole_words(make_tokenizer())) - 1
        assert own not in slot.candidates


def test_words_beyond_the_cut_have_no_candidates() -> None:
    text = "good film and soup"
    assert [text[slot.start : slot.end] for slot in slots_of(language_model(), text, length=4)] == ["good", "film"]


def test_each_masked_word_is_asked_about_once() -> None:
    model = language_model()
    asked: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, inputs: asked.append(len(inputs["input_ids"])), with_kwargs=True
    )
    Candidates(model, {}, 3, 32).of(["good film", "soup", "good film", "12 !"], "")
    assert sum(asked) == 3


# --- nearest words ------------------------------------------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_neighbours_by_embeddings_are_those_of_the_pieces_mean() -> None:
    checkpoint = teacher()
    matrix = checkpoint.model.get_input_embeddings().weight.detach().numpy()
    vocabulary = whole_words(checkpoint.tokenizer)
    found = nearest_words(from_embeddings(checkpoint, ["Zebra", "gnu", "☃"]), 6)
    assert list(found) == ["Zebra", "gnu"], "an unknown piece leaves a word without a vector"
    for word, pieces in (("Zebra", ["z", "##e", "##b", "##r", "##a"]), ("gnu", ["g", "##n", "##u"])):
        own = matrix[checkpoint.tokenizer.convert_tokens_to_ids(pieces)].mean(0)
        ranked = sorted(vocabulary, key=lambda number: -cosine(own, matrix[number]))
        assert found[word] == [vocabulary[number] for number in ranked[:6]]


def write_vectors(path: Path, words: Sequence[str], width: int = 8) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    vectors = {word: draw.normal(size=width).round(4) for word in words}
    lines = "".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in vectors.items())
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else path.open("w", encoding="utf-8") as file:
        file.write(lines)
    return vectors


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
def test_neighbours_by_a_file_are_those_of_the_lower_case_word(tmp_path: Path, name: str) -> None:
    words = ["zebra", "Zebra", ",", "42", "horse", "gnu", "don't", "☃", "mule", "donkey", "okapi"]
    vectors = write_vectors(tmp_path / name, words)
    found = nearest_words(from_file(tmp_path / name, ["ZEBRA", "quagga", "gnu"]), 4)
    assert list(found) == ["ZEBRA", "gnu"], "a word that is not in the file has no neighbours"
    for word in found:
        answers = [w for w in words if w not in (",", "42", "☃") and w.lower() != word.lower()]
        ranked = sorted(answers, key=lambda w: -cosine(vectors[word.lower()], vectors[w]))
        assert found[word] == ranked[:4]


def test_only_frequent_words_of_a_file_are_proposed_but_every_one_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_vectors, "FREQUENT", 2)
    write_vectors(tmp_path / "v.txt", ["horse", "mule", "donkey", "zebra"])
    assert sorted(nearest_words(from_file(tmp_path / "v.txt", ["zebra"]), 9)["zebra"]) == ["horse", "mule"]


def test_a_line_whose_word_has_a_space_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("horse 1 2\nat name@home 1 2\nzebra 1 3\n", "utf-8")
    assert from_file(tmp_path / "v.txt", ["zebra"]).vocabulary == ["horse", "zebra"]


def test_several_pieces_take_the_neighbours_and_one_piece_the_models_words() -> None:
    slots = slots_of(language_model(), "Good zebra, gnu", {"zebra": ["horse", "mule"]})
    assert [slot.start for slot in slots] == [0, 5], "gnu has no neighbours"
    assert slots[1] == Slot(5, 10, ["horse", "mule"])


def test_neighbours_reach_the_augmented_texts(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v.txt", ["zebra", "horse", "mule"])
    texts = table("... zebra 12")
    found = run(tmp_path, texts, vectors=str(tmp_path / "v.txt"), probability=1, copies=20)
    assert sorted(found["text"]) == ["... horse 12", "... mule 12"]
    by_teacher = nearest_words(from_embeddings(teacher(), ["zebra"]), 15)["zebra"]
    found = run(tmp_path, texts, probability=1, copies=20)
    assert set(found["text"]) <= {f"... {word} 12" for word in by_teacher}


# --- draws --------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_texts(tmp_path: Path) -> None:
    first = run(tmp_path / "a")
    assert run(tmp_path / "b")["text"][:] == first["text"][:]
    assert files(store_of(tmp_path / "a")) == files(store_of(tmp_path / "b"))
    assert run(tmp_path / "c", seed=1)["text"][:] != first["text"][:]


def test_a_rows_draws_do_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    texts = table("good film", "bad soup and bread")
    other = table("long night", "bad soup and bread")
    draws = [run(tmp_path, each, copies=10)["text"][:] for each in (texts, other)]
    second = [[text for text in found if len(text.split()) == 4] for found in draws]
    assert second[0] == second[1]
    assert second[0]


def test_the_texts_do_not_depend_on_the_size_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")["text"][:]
    monkeypatch.setattr(copies, "SHARD_ROWS", 5)
    assert run(tmp_path / "parts")["text"][:] == whole


def test_certainty_replaces_every_word_and_a_tiny_chance_few(tmp_path: Path) -> None:
    model = language_model()
    slots = Candidates(model, {}, 15, 32).of(REVIEWS, "")
    always = run(tmp_path, probability=1, copies=1)
    assert len(always) == len(REVIEWS)
    for text, altered in zip(REVIEWS, always["text"], strict=True):
        assert len(slots[text]) == len(text.split())
        assert all(replaced(text, slots[text], altered))
    seldom = run(tmp_path, probability=0.01, copies=10)
    assert len(seldom) < len(REVIEWS) * 10 / 3


def test_the_share_of_replaced_words_is_the_probability_and_candidates_are_drawn_evenly(tmp_path: Path) -> None:
    text = " ".join(REVIEWS)[:150].rsplit(" ", 1)[0]
    copies, probability = 400, 0.4
    altered = run(tmp_path, table(text), copies=copies, probability=probability, candidates=3, length=64)["text"][:]
    slots = slots_of(language_model(), text, count=3)
    flags = np.array([replaced(text, slots, each) for each in altered])
    assert len(flags) == copies, "of so many words no two copies come out equal"
    spread = np.sqrt(probability * (1 - probability) / flags.size)
    assert abs(flags.mean() - probability) < 4 * spread
    by_word = np.sqrt(probability * (1 - probability) / copies)
    assert np.abs(flags.mean(0) - probability).max() < 4.5 * by_word
    words = [each.split() for each in altered]
    for place, slot in enumerate(slots):
        counts = [sum(row[place] == candidate for row in words) for candidate in slot.candidates]
        assert min(counts) > sum(counts) / 3 - 4.5 * np.sqrt(sum(counts) * 2 / 9)


def test_text_around_the_words_is_kept_exactly(tmp_path: Path) -> None:
    text = "  The\tFilm,  (a GOOD one!) cost $42.50 — 'superb' ☃; don't\nmiss  it... "
    found = run(tmp_path, table(text), copies=30, length=64)["text"][:]
    model = language_model()
    ((_, words),) = read_words([text], model.tokenizer, 64)
    several = [text[w.start : w.end] for w in words if len(w.pieces) > 1]
    neighbours = nearest_words(from_embeddings(teacher(), several), 15)
    slots = slots_of(model, text, neighbours, count=15)
    assert len(found) > 20
    assert all(any(replaced(text, slots, altered)) for altered in found)
    around = re.compile(
        re.escape(text[:2]) + r"\S+\t\S+,  \(\S+ \S+ \S+!\) \S+ \$42\.50 — '\S+' ☃; \S+'t\n\S+  \S+\.\.\. "
    )
    assert all(around.fullmatch(altered) for altered in found)


def test_there_are_no_duplicates_and_no_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "SHARD_ROWS", 2)
    texts = table("good film", "bad film", "good film", "good soup", "bad soup", "12")
    found = run(tmp_path, texts, copies=60, candidates=4)["text"][:]
    assert len(found) == len(set(found)) > 20
    assert not set(found) & set(texts["text"])


def test_the_texts_of_a_pair_are_altered_each_on_its_own(tmp_path: Path) -> None:
    texts = table(("good film", "bad soup"), ("good film", "12 ?"), ("bad soup", "good film"))
    found = run(tmp_path, texts, PAIR, copies=40)
    assert found.column_names == ["text", "text_pair"]
    rows = list(zip(found["text"], found["text_pair"], strict=True))
    assert len(rows) == len(set(rows))
    assert not set(rows) & set(zip(texts["text"], texts["text_pair"], strict=True))
    numbered = [row for row in rows if row[1] == "12 ?"]
    assert len(numbered) > 5
    model = language_model()
    firsts, seconds = slots_of(model, "good film", count=15), slots_of(model, "bad soup", count=15)
    agree = []
    for first, second in rows[:25]:
        one, two = replaced("good film", firsts, first), replaced("bad soup", seconds, second)
        agree.append(one == two)
    assert any(agree)
    assert not all(agree)


# --- keeping ------------------------------------------------------------------------------------------------------


def test_the_folder_is_a_dataset_of_text_alone(tmp_path: Path) -> None:
    found = run(tmp_path)
    opened = datasets.load_from_disk(str(store_of(tmp_path)))
    assert opened.features == found.features == datasets.Features({"text": datasets.Value("string")})
    assert opened["text"][:] == found["text"][:]
    assert json.loads((store_of(tmp_path) / "manifest.json").read_text())["rows"] == len(found)


def test_what_was_made_is_reused_without_asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path)
    assert f"augmentation: {len(first)} altered texts of 12 made in" in capsys.readouterr().err
    before = files(store_of(tmp_path))
    silent = language_model()
    silent.model.register_forward_pre_hook(partial(die, at=0, passes=[]))
    assert run(tmp_path, model=silent)["text"][:] == first["text"][:]
    assert files(store_of(tmp_path)) == before
    assert f"reused {len(first)} altered texts" in capsys.readouterr().err


def die(module: Any, args: Any, *, at: int, passes: list[int]) -> None:
    """A forward pre-hook that kills the process at its pass number `at`."""
    if len(passes) == at:
        raise Killed
    passes.append(0)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_killed_at_any_shard_the_same_call_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(copies, "SHARD_ROWS", 5)
    # Few words and candidates: later shards come out as earlier ones did, so they depend on what was made before.
    texts = table(*["good film", "bad film", "good soup", "bad soup"] * 3)
    options = {"copies": 20, "candidates": 4}
    whole = run(tmp_path / "whole", texts, **options)
    model = language_model()
    model.model.register_forward_pre_hook(partial(die, at=at, passes=[]))
    with pytest.raises(Killed):
        run(tmp_path / "killed", texts, model=model, **options)
    folder = tmp_path / "killed" / "augmented"
    assert len(list(folder.glob("*/shard-*.arrow"))) == at
    resumed = run(tmp_path / "killed", texts, **options)
    assert resumed["text"][:] == whole["text"][:]
    assert files(store_of(tmp_path / "killed")) == files(store_of(tmp_path / "whole"))


def test_of_two_runs_at_once_one_makes_them_and_the_other_waits_and_reuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held, models = Held(), [language_model(), language_model()]
    passes: list[int] = []
    models[0].model.register_forward_pre_hook(lambda *_: held())
    models[1].model.register_forward_pre_hook(lambda *_: passes.append(1))
    made, said = both(lambda: run(tmp_path, model=models[0]), lambda: run(tmp_path, model=models[1]), held, capsys)
    assert not passes
    assert said.count(f"another run is making {store_of(tmp_path)}; waiting until it is done") == 1
    assert made[0]["text"][:] == made[1]["text"][:]


@pytest.mark.parametrize("lost", ["manifest.json", "shard-00002.arrow", "shard-00001.arrow", "shard-00000.json"])
def test_lost_and_half_written_files_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    monkeypatch.setattr(copies, "SHARD_ROWS", 5)
    first = run(tmp_path)["text"][:]
    folder = store_of(tmp_path)
    before = files(folder)
    (folder / lost).unlink()
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "shard-00002.arrow").unlink(missing_ok=True)
    (folder / "shard-00002.arrow.partial").write_bytes(before["shard-00002.arrow"][:50])
    (folder / "manifest.json.partial").write_bytes(b"{")
    assert run(tmp_path)["text"][:] == first
    assert files(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"length": 10},
        {"copies": 6},
        {"probability": 0.5},
        {"candidates": 3},
        {"texts": table("good film")},
        {"model": language_model(1)},
        {"model": language_model(tokenizer=make_tokenizer(["zebra"]))},
        {"vectors_of": teacher(6)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_the_texts_depend_on_gives_another_folder(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path)
    run(tmp_path, **change)
    assert len(list((tmp_path / "augmented").iterdir())) == 2


def test_a_vectors_file_counts_by_its_content_not_its_place(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        write_vectors(tmp_path / name, ["zebra", "horse"])
        run(tmp_path, vectors=str(tmp_path / name))
    assert store_of(tmp_path)
    write_vectors(tmp_path / "a.txt", ["zebra", "mule"])
    run(tmp_path, vectors=str(tmp_path / "a.txt"))
    assert len(list((tmp_path / "augmented").iterdir())) == 2


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_named(tmp_path: Path, finished: bool) -> None:
    run(tmp_path)
    shard = store_of(tmp_path) / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(bytes(content))
    if not finished:
        (store_of(tmp_path) / "manifest.json").unlink()
    with pytest.raises(InputError, match=re.escape(str(shard)) + " is damaged"):
        run(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.json"])
@pytest.mark.parametrize("content", ['{"key": "0123"}', "[]", "{"])
def test_a_foreign_or_broken_note_is_named(tmp_path: Path, name: str, content: str) -> None:
    run(tmp_path)
    path = store_of(tmp_path) / name
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(str(path))):
        run(tmp_path)


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json"])
def test_a_broken_dataset_file_is_named(tmp_path: Path, name: str) -> None:
    run(tmp_path)
    (store_of(tmp_path) / name).write_text("{")
    with pytest.raises(InputError, match=re.escape(str(store_of(tmp_path))) + " is damaged"):
        run(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path)
    folder = store_of(tmp_path)
    for path in folder.iterdir():
        path.unlink()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=f"{re.escape(str(folder))} holds something else"):
        run(tmp_path)
    (folder / "thesis.txt").unlink()
    folder.rmdir()
    folder.write_text("a file")
    with pytest.raises(InputError, match=f"{re.escape(str(folder))} holds something else"):
        run(tmp_path)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    model = language_model(tokenizer=make_tokenizer(mask_token=None))
    with pytest.raises(InputError, match="'bert-0' has no mask token"):
        run(tmp_path, model=model)


def test_texts_without_a_replaceable_word_are_refused_each_time(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match="none of the 2 texts could be altered"):
            run(tmp_path, table("12, 13", "14!"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"zebra 1 2\nhorse 1\n", "line 2 of .* has 1 numbers, line 1 has 2"),
        (b"zebra 1 2\nhorse 1 2 3\n", "line 2 of .* has 3 numbers, line 1 has 2"),
        (b"2 300\nzebra 1 2 3\n", "line 2 of .* has 3 numbers, line 1 has 1"),
        (b"zebra\n", "line 1 of .* has 0 numbers"),
        (b"zebra 1 x\n", "'zebra' in .* has something else than finite numbers"),
        (b"zebra 1 nan\n", "'zebra' in .* has something else than finite numbers"),
        (b"horse 1 2\nmule 1 3\n", "knows none of the 2 words of several pieces in the text, such as 'gnu'"),
        (b"", "knows none of the 2 words"),
        (b"zebra \xff\xfe 1\n", "cannot be read"),
    ],
)
def test_unusable_vectors_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        run(tmp_path, table("zebra gnu good"), vectors=str(tmp_path / "v.txt"))


def test_vectors_that_are_missing_or_no_gzip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no word vectors at"):
        run(tmp_path, vectors=str(tmp_path / "none.txt"))
    (tmp_path / "v.txt.gz").write_bytes(b"zebra 1 2\n")
    with pytest.raises(InputError, match="cannot be read"):
        run(tmp_path, vectors=str(tmp_path / "v.txt.gz"))
    write_vectors(tmp_path / "cut.gz", [f"word{number}" for number in range(500)])
    (tmp_path / "cut.gz").write_bytes((tmp_path / "cut.gz").read_bytes()[:-40])
    with pytest.raises(InputError, match="cannot be read"):
        run(tmp_path, vectors=str(tmp_path / "cut.gz"))
