"""Texts altered word by word as in Tang et al. 2019: how often, by what, and made once."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LABELS, make_model, make_reviews, make_tokenizer
from datasets import Dataset

from limbeck.checkpoints import Checkpoint
from limbeck.data import copies, perturbation
from limbeck.data.perturbation import count_words, mask_word, perturb
from limbeck.errors import InputError
from limbeck.recipe import data as schema
from limbeck.recipe import load
from limbeck.tasks import Task

pytest.importorskip("textblob")
from textblob.en import parser

ONE = Task("classification", LABELS)
PAIR = Task("classification", LABELS, pair=True)
PAPER = {"mask": 0.1, "same_tag": 0.1, "ngram": 0.25}
REVIEWS = [row["text"] for row in make_reviews(12, seed=3)]


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def run(root: Path, *texts: str, second: list[str] | None = None, seed: int = 0, **changes: Any) -> Dataset:
    """`perturb` of texts, or of pairs."""
    settings = schema.Augmentation.model_validate({"copies": 5, **(changes or PAPER)})
    mask = "[MASK]" if settings.mask else None
    table = Dataset.from_dict({"text": list(texts), **({"text_pair": second} if second else {})})
    return perturb(table, PAIR if second else ONE, settings, mask, root, seed)


def tags(*words: str) -> list[str]:
    return [tag for _, tag in parser.find_tags(list(words))]


def near(share: float, expected: float, of: int) -> bool:
    """Whether a share of so many draws is within four standard deviations."""
    return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / of)


def files(root: Path) -> dict[str, bytes]:
    (folder,) = (root / "augmented").iterdir()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- how often ----------------------------------------------------------------------------------------------------


def test_the_papers_chances_leave_four_of_five_words_alone(tmp_path: Path) -> None:
    text = " ".join(f"noun{number}" for number in range(100))
    found = run(tmp_path, text, copies=100, mask=0.1, same_tag=0.1)["text"][:]
    assert len(found) == 100
    words = [copy.split(" ") for copy in found]
    assert all(len(copy) == 100 for copy in words)
    masked = np.mean([word == "[MASK]" for copy in words for word in copy])
    kept = np.mean([word == own for copy in words for word, own in zip(copy, text.split(" "), strict=True)])
    assert near(masked, 0.1, 10_000)
    assert near(kept, 0.8 + 0.1 / 100, 10_000)  # one swap in a hundred draws the word itself


def test_a_swapped_word_is_of_its_kind_and_drawn_as_it_is_used(tmp_path: Path) -> None:
    nouns = ["film"] * 6 + ["soup"] * 3 + ["plot"]
    assert set(tags(*nouns)) == {"NN"}
    texts = [f"{noun} {adjective}" for noun in nouns for adjective in ("good", "bad")]
    found = run(tmp_path, " ".join(texts), copies=200, same_tag=1)["text"][:]
    original = " ".join(texts).split(" ")
    drawn = Counter()
    for copy in found:
        for word, own in zip(copy.split(" "), original, strict=True):
            assert tags("x", word) == tags("x", own), "a word of another kind"
            drawn[word] += 1
    total = sum(drawn[noun] for noun in set(nouns))
    for noun, used in Counter(nouns).items():
        assert near(drawn[noun] / total, used / 10, total)


def test_ngrams_are_one_to_five_words_in_a_row(tmp_path: Path) -> None:
    text = "one, two three (four) five six-seven isn't  eight; nine ten."
    found = run(tmp_path, text, copies=3000, ngram=1)["text"][:]
    words = ["one", "two", "three", "four", "five", "six-seven", "isn't", "eight", "nine", "ten"]
    assert all(copy in text for copy in found), "what stands between words stays"
    starts = {(first, first + size) for size in range(1, 6) for first in range(10 - size + 1)}
    expected = {text[text.index(words[a]) : text.index(words[b - 1]) + len(words[b - 1])] for a, b in starts}
    assert set(found) == expected, "each one, once"


def test_a_quarter_of_the_copies_is_cut_and_all_lengths_are_as_likely(tmp_path: Path) -> None:
    text = " ".join(f"w{number}" for number in range(2000))  # so long that no two cuts are the same by chance
    found = run(tmp_path, text, copies=1200, mask=0.001, ngram=0.25)["text"][:]
    sizes = Counter(len(copy.split(" ")) for copy in found)
    cut = sum(count for size, count in sizes.items() if size <= 5)
    assert near(cut / len(found), 0.25, len(found))
    assert set(sizes) == {1, 2, 3, 4, 5, 2000}
    assert all(near(sizes[size] / cut, 0.2, cut) for size in range(1, 6))


def test_a_short_text_is_cut_to_what_there_is(tmp_path: Path) -> None:
    assert set(run(tmp_path, "good soup", copies=50, ngram=1)["text"]) == {"good", "soup"}


def test_of_a_pair_one_text_or_both_are_altered_equally_often(tmp_path: Path) -> None:
    first, second = (" ".join(f"{name}{number}" for number in range(60)) for name in "ab")
    found = run(tmp_path, first, second=[second], copies=900, mask=0.5)
    changed = Counter(zip((a != first for a in found["text"]), (b != second for b in found["text_pair"]), strict=True))
    assert set(changed) == {(True, False), (False, True), (True, True)}
    assert all(near(count / len(found), 1 / 3, len(found)) for count in changed.values())


# --- what stays ---------------------------------------------------------------------------------------------------


def test_what_stands_between_words_stays(tmp_path: Path) -> None:
    text = "  (A film's “soup” , isn't it?)\n"
    (found,) = run(tmp_path, text, copies=1, mask=1)["text"]
    assert found == "  ([MASK] [MASK] “[MASK]” , [MASK] [MASK]?)\n"


def test_there_are_no_duplicates_and_no_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "SHARD_ROWS", 2)
    texts = ["good soup", "bad soup", "good film", "bad film", "soup"]
    found = run(tmp_path, *texts, copies=60, **PAPER)["text"][:]
    assert len(set(found)) == len(found)
    assert not set(found) & set(texts)
    assert all(found)


def test_an_examples_draws_follow_from_the_seed_and_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (run(tmp_path / str(n), REVIEWS[0], copies=n, **PAPER)["text"][:] for n in (5, 40))
    assert many[: len(few)] == few
    whole = run(tmp_path / "whole", *REVIEWS)["text"][:]
    monkeypatch.setattr(copies, "SHARD_ROWS", 5)
    assert run(tmp_path / "shards", *REVIEWS)["text"][:] == whole
    assert run(tmp_path / "seed", *REVIEWS, seed=1)["text"][:] != whole


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "SHARD_ROWS", 5)
    run(tmp_path / "whole", *REVIEWS)
    write, left = copies.TextShards.write, [2]

    def killed(self: Any, *args: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        write(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(copies.TextShards, "write", killed)
        with pytest.raises(Killed):
            run(tmp_path / "parts", *REVIEWS)
    run(tmp_path / "parts", *REVIEWS)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_finished_texts_are_reused_and_other_settings_make_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path, *REVIEWS)["text"][:]
    capsys.readouterr()
    assert run(tmp_path, *REVIEWS)["text"][:] == first
    assert "reused" in "".join(capsys.readouterr())
    changes = [{**PAPER, "mask": 0.2}, {**PAPER, "same_tag": 0.2}, {**PAPER, "ngram": 0.1}, {**PAPER, "copies": 6}]
    for number, change in enumerate(changes, 2):
        run(tmp_path, *REVIEWS, **change)
        assert len(list((tmp_path / "augmented").iterdir())) == number


# --- refusals -----------------------------------------------------------------------------------------------------


def test_texts_that_nothing_alters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 1 texts could be altered: data\.augmentation's mask, same_tag"):
        run(tmp_path, "?!", **PAPER)


def test_a_mask_that_not_all_know_is_refused() -> None:
    wanted = schema.Augmentation(mask=0.1)
    model = make_model()
    one = Checkpoint(model, make_tokenizer(), "one")
    other = Checkpoint(model, make_tokenizer(extra=["<mask>"], mask_token="<mask>"), "other")
    none = Checkpoint(model, make_tokenizer(mask_token=None), "none")
    assert mask_word(wanted, [one, one]) == "[MASK]"
    with pytest.raises(InputError, match=r"\[MASK\] to 'one' and <mask> to 'other'; set data.augmentation.mask=0"):
        mask_word(wanted, [one, other])
    with pytest.raises(InputError, match=r"tokenizer of 'none' has none; set data\.augmentation\.mask=0"):
        mask_word(wanted, [one, none])
    assert mask_word(schema.Augmentation(ngram=0.1), [one, none]) is None


def test_a_missing_tagger_is_named_before_the_run_has_a_folder(
    tmp_path: Path, command: Any, reviews_csv: Path, tiny_teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textblob", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, printed = command(
        "distill",
        "bilstm",
        f"teacher={tiny_teacher_dir}",
        f"data={reviews_csv}",
        f"output={tmp_path / 'a'}",
        "export=[]",
        "student.shape.hidden_size=8",
    )
    assert code == 2
    assert "pip install 'limbeck[tags]'" in printed
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "m", "mask": 0.1}, "model and mask are two ways of altering texts; keep one"),
        ({"mask": 0.1, "probability": 0.3}, "probability is about the words of a language model, and mask is given"),
        ({"mask": 0.1, "vectors": "v"}, "vectors is about the words of a language model"),
        ({"mask": 0.6, "same_tag": 0.6}, "mask 0.6 and same_tag 0.6 are chances of the same word"),
        ({"copies": 3}, "nothing alters the texts; give model=MODEL, or some of mask, same_tag and ngram"),
    ],
)
def test_the_two_ways_exclude_each_other(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load("hinton", {"data": "d.csv", "teacher": "t", "output": "o", "data.augmentation": given})


def test_a_language_model_takes_the_place_of_the_recipes_chances() -> None:
    recipe = load("bilstm", {"data": "d.csv", "teacher": "t", "output": "o"})
    assert (recipe.data.augmentation.mask, recipe.data.augmentation.copies) == (0.1, 20)
    changed = load("bilstm", {"data": "d.csv", "teacher": "t", "output": "o", "data.augmentation": "m"})
    assert (changed.data.augmentation.model, changed.data.augmentation.mask) == ("m", 0)


def test_words_are_counted_by_their_kind() -> None:
    found = count_words(["a good film", "a film , isn't it"], lambda words: ["x" if len(w) > 3 else "y" for w in words])
    assert found["x"].words == ["film", "good", "isn't"]
    assert found["x"].sums == [2, 3, 4]
    assert [found["x"].word(chance) for chance in (0, 0.49, 0.5, 0.74, 0.75, 0.999)] == [
        "film", "film", "good", "good", "isn't", "isn't",
    ]  # fmt: skip
    assert perturbation.LONGEST == 5
