"""Plain text: reading a corpus, cutting and packing it without loss, and masks that follow from seed, epoch and row."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FILLER, make_model, make_reviews, make_tokenizer, write_csv
from datasets import Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from limbeck import examples
from limbeck.checkpoints import Checkpoint
from limbeck.data import read_corpus, split_corpus
from limbeck.errors import InputError
from limbeck.recipe import load
from limbeck.recipe.data import Source
from limbeck.tasks.masked_lm import SPECIAL, START, WITHIN, MaskedBatches, encode_corpus


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with RoBERTa's special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([row["text"] for row in make_reviews()], trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    given = dict(zip(names, special, strict=True)) | {"cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **given)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "wordpiece": make_tokenizer,
    "bytes": make_byte_tokenizer,
    "left": lambda: make_tokenizer(padding_side="left"),
}


@pytest.fixture(params=list(TOKENIZERS))
def reader(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def corpus() -> Dataset:
    """300 lines of one to sixty words; a tenth of the words are spelt out in pieces."""
    draw = np.random.default_rng(0)
    words = [*FILLER, "zebra", "quaint", "jukebox", "don't"]
    return Dataset.from_dict({"text": [" ".join(draw.choice(words, draw.integers(1, 60))) for _ in range(300)]})


def one(text: str | list[str]) -> Dataset:
    return Dataset.from_dict({"text": [text] if isinstance(text, str) else text})


def ids_of(table: Dataset, tokenizer: Any) -> list[list[int]]:
    return [tokenizer(line, add_special_tokens=False)["input_ids"] for line in table["text"]]


def batches(tokenizer: Any, mask=0.15, whole_words=False, every=False, seed=0, epoch=0) -> MaskedBatches:
    return MaskedBatches(tokenizer, mask, whole_words, every, seed, lambda: epoch)


def tokens(batch: dict[str, torch.Tensor], name: str, row: int) -> list[int]:
    """One example of a batch without its padding."""
    return batch[name][row][batch["attention_mask"][row].bool()].tolist()


def restored(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The input ids with the true ones put back."""
    flat = batch["input_ids"].flatten().clone()
    known = batch["targets"] != -100
    flat[batch["positions"][known]] = batch["targets"][known]
    return flat.view(batch["input_ids"].shape)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz", "table.csv", "sentences.jsonl", "memory"])
def test_a_corpus_is_the_filled_lines_of_a_file_or_table(name, tmp_path):
    text = 'First, a "line".\n\n \t\n  Second line\nthe NA one\tto its end\n'
    want = ['First, a "line".', "  Second line", "the NA one\tto its end"]
    objects, path = {}, tmp_path / name
    rows = [{"text": line, "label": "x", "id": 1} for line in text.splitlines()]
    if ".txt" in name:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    elif name.endswith("csv"):
        write_csv(path, rows)
    elif name.endswith("jsonl"):
        table = Dataset.from_list([{"sentence": row["text"], "label": 1} for row in rows])
        table.to_json(path)
    else:
        table = Dataset.from_list([*rows, {"text": None, "label": None, "id": None}])
        path, objects = "memory:corpus", {"memory:corpus": DatasetDict({"train": table, "test": table})}
    found = read_corpus(Source(path=str(path)), "train", objects)
    assert found.column_names == ["text"]
    assert found["text"][:] == want


def test_sources_that_hold_no_corpus_are_refused(tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n\t\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    write_csv(tmp_path / "pairs.csv", [{"premise": "a", "hypothesis": "b", "label": 1}])
    write_csv(tmp_path / "numbers.csv", [{"text": 1}])
    for name, said in {
        "blank.txt": "blank.txt holds 3 lines, all blank; a corpus needs text",
        "empty.txt": "empty.txt",
        "latin.txt": "cannot be read as text: 'utf-8'",
        "pairs.csv": "cannot tell the text column of .*pairs.csv among premise, hypothesis, label; name it 'text'",
        "numbers.csv": "cannot tell the text column of .*numbers.csv among text; name it 'text'",
        "missing.txt": "no file or folder '.*missing.txt'",
    }.items():
        with pytest.raises(InputError, match=said):
            read_corpus(Source(path=str(tmp_path / name)))


def test_wide_strings_are_text_too():
    table = Dataset.from_dict({"body": ["a b c"]}, features=Features({"body": Value("large_string")}))
    assert read_corpus(Source(path="memory:it"), "train", {"memory:it": table})["text"][:] == ["a b c"]


def test_held_out_lines_are_seeded(corpus):
    learn, held = split_corpus(corpus, 20, 0)
    assert (len(learn), len(held)) == (280, 20)
    lines = corpus.add_column("number", list(range(300)))
    kept, out = split_corpus(lines, 20, 0)
    assert sorted([*kept["number"], *out["number"]]) == list(range(300))
    assert out["text"][:] == held["text"][:]
    assert kept["number"][:] == sorted(kept["number"])
    assert set(split_corpus(lines, 20, 1)[1]["number"]) != set(out["number"])
    with pytest.raises(InputError, match="a corpus of 1 line leaves none to hold out"):
        split_corpus(corpus.select([0]), 1, 0)


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_what_is_held_out_is_what_the_recipe_says(task, tmp_path):
    lines = [f"the soup was {word} and {other}" for word in FILLER[:10] for other in FILLER[:10]]
    for name, some in (("all", lines), ("few", lines[:5])):
        (tmp_path / f"{name}.txt").write_text("\n".join(some))
    splits = DatasetDict({name: one(lines[:n]) for name, n in (("train", 40), ("validation", 7), ("test", 9))})
    splits.save_to_disk(tmp_path / "saved")
    student = Checkpoint(make_model(vocabulary=len(make_tokenizer())), make_tokenizer(eos_token="[SEP]"), "student")

    def sizes(train, **given):
        stage = {"name": "learn", "objectives": {"masked_lm" if task == "masked-lm" else "next_token": 1}}
        source = {"train": str(tmp_path / train)} | given
        made = load({"task": task, "data": source, "student": "s", "output": "o", "stages": [stage]})
        _, found = (examples.words if task == "masked-lm" else examples.language)(made, {}, student)
        return len(found.train), len(found.validation), len(found.test)

    assert len(lines) == 100
    assert sizes("all.txt") == (81, 9, 10)
    assert sizes("few.txt") == (3, 1, 1)
    assert sizes("all.txt", test=0.3) == (63, 7, 30)
    assert sizes("all.txt", test=0.3, validation=0.2) == (50, 20, 30)
    assert sizes("all.txt", validation=str(tmp_path / "few.txt")) == (90, 5, 10)
    assert sizes("saved") == (40, 7, 9)
    assert sizes("all.txt", test=str(tmp_path / "saved"), validation=0.5) == (50, 50, 9)
    assert sizes("saved", test=0.25) == (30, 7, 10)
    with pytest.raises(InputError, match=r"no file or folder '.*missing.txt'"):
        sizes("all.txt", validation=str(tmp_path / "missing.txt"))
    with pytest.raises(InputError, match=r"5 training examples are too few to hold out 0 for test; give data.test="):
        sizes("few.txt", test=0.01)
    with pytest.raises(InputError, match=r"40 training examples are too few to hold out 60 for validation"):
        sizes("all.txt", test=0.6, validation=0.6)


# --- cutting and packing --------------------------------------------------------------------------------------------


def test_a_short_line_is_encoded_as_the_tokenizer_would(reader):
    text = "the zebra was good"
    example = encode_corpus(one(text), reader, 64, packed=False)[0]
    assert example["input_ids"] == reader(text)["input_ids"]
    assert example["length"] == len(example["input_ids"]) == len(example["words"])
    words = [None, *reader(text, add_special_tokens=False).word_ids(), None]
    begins = [now is not None and now != before for before, now in pairwise([None, *words])]
    assert example["words"] == [
        SPECIAL if word is None else START if begin else WITHIN for word, begin in zip(words, begins, strict=True)
    ]
    assert WITHIN in example["words"]


@pytest.mark.parametrize("limit", [5, 16, 61])
def test_cutting_loses_nothing_but_rests_of_two_tokens(reader, corpus, limit):
    want = []
    for ids in ids_of(corpus, reader):
        parts = [ids[k : k + limit - 2] for k in range(0, len(ids), limit - 2)]
        want += [part for part in parts if len(part) > 2]
    encoded = encode_corpus(corpus, reader, limit, packed=False)
    first, last = reader.cls_token_id, reader.sep_token_id
    assert encoded["input_ids"][:] == [[first, *part, last] for part in want]
    assert encoded["row"][:] == list(range(len(want)))
    assert all(words[0] == words[-1] == SPECIAL and words[1] == START for words in encoded["words"])


@pytest.mark.parametrize(("limit", "repeats"), [(9, 1), (64, 1), (64, 5)])  # one and several batches of `map`
def test_packed_blocks_are_full_and_lose_nothing(reader, corpus, limit, repeats):
    corpus = one(corpus["text"][:] * repeats)
    encoded = encode_corpus(corpus, reader, limit, packed=True)
    blocks, marks = encoded["input_ids"][:], encoded["words"][:]
    assert encoded["length"][:] == [len(ids) for ids in blocks]
    assert {len(ids) for ids in blocks[:-1]} == {limit}
    assert 5 <= len(blocks[-1]) <= limit
    first, last = reader.cls_token_id, reader.sep_token_id
    assert all(ids[0] == first and ids[-1] == last for ids in blocks)
    flat = [token for ids in blocks for token in ids[1:-1]]
    want = [token for ids in ids_of(corpus, reader) for token in [*ids, last]][:-1]
    assert flat == want[: len(flat)]
    assert len(want) - len(flat) < 3
    words = [word for block in marks for word in block[1:-1]]
    assert {words[k] for k, token in enumerate(flat) if token == last} == {SPECIAL}
    assert {words[k + 1] for k, token in enumerate(flat[:-1]) if token == last} == {START}


def test_the_last_block_stays_when_it_has_three_tokens(tokenizer):
    def lengths(words: int) -> list[int]:
        return encode_corpus(one("the " * words), tokenizer, 8, packed=True)["length"][:]

    assert [lengths(n) for n in (3, 6, 8, 9, 12)] == [[5], [8], [8], [8, 5], [8, 8]]
    tight = encode_corpus(one(["the", "a", "soup", "bread"]), tokenizer, 5, packed=True)
    assert tight["length"][:] == [5, 5]  # full, though with two words or one between separators
    many = encode_corpus(one(["the a the", "a the"]), tokenizer, 8, packed=True)
    assert many["length"][:] == [8]
    assert encode_corpus(one(["the a the", "\u200b", "a"]), tokenizer, 8, packed=True)["length"][:] == [7]


def test_special_tokens_in_the_text_and_unknown_words_are_marked(tokenizer):
    ids = encode_corpus(one("the 汶 [MASK] soup [SEP] zoo"), tokenizer, 32, packed=False)[0]
    pieces = tokenizer.convert_ids_to_tokens(ids["input_ids"])
    assert dict(zip(pieces, ids["words"], strict=True)) == {
        **{name: SPECIAL for name in ("[CLS]", "[UNK]", "[MASK]", "[SEP]")},
        **{"the": START, "soup": START, "z": START, "##o": WITHIN},
    }


def test_files_stay_on_disk_and_tables_in_memory(tmp_path, tokenizer, corpus):
    (tmp_path / "lines.txt").write_text("\n".join(corpus["text"]))
    table = read_corpus(Source(path=str(tmp_path / "lines.txt")))
    encoded = encode_corpus(table, tokenizer, 32, packed=False)
    assert encoded.cache_files
    inside = encode_corpus(corpus, tokenizer, 32, packed=False)
    assert not inside.cache_files
    assert encoded["input_ids"][:] == inside["input_ids"][:]
    assert encoded.features["words"].feature.dtype == "int8"


def test_a_tokenizer_without_words_and_first_token_reads_but_masks_no_whole_words():
    slow = ByT5Tokenizer(mask_token="<extra_id_0>")
    encoded = encode_corpus(one(["plain", "text"]), slow, 32, packed=False)
    assert encoded["input_ids"][:] == [slow(text)["input_ids"] for text in ("plain", "text")]
    assert encoded["words"][:] == [[*[START] * 5, SPECIAL], [*[START] * 4, SPECIAL]]
    packed = encode_corpus(one(["plain", "text"]), slow, 32, packed=True)
    assert packed["input_ids"][:] == [[token for ids in encoded["input_ids"] for token in ids]]
    assert len(batches(slow, 0.5)(list(encoded))["targets"]) > 1
    with pytest.raises(InputError, match="does not tell which pieces make a word; use whole_words=false"):
        batches(slow, whole_words=True)


def test_what_cannot_be_encoded_is_refused(tokenizer):
    with pytest.raises(
        InputError, match=r"task\.max_length 4 leaves room for 2 tokens beside the special ones; raise it to 5"
    ):
        encode_corpus(one("the soup"), tokenizer, 4, packed=False)
    with pytest.raises(InputError, match="none of the 2 lines of the corpus has 3 tokens"):
        encode_corpus(one(["the soup", "bread"]), tokenizer, 32, packed=False)
    bare = make_tokenizer(sep_token=None)
    with pytest.raises(InputError, match="has no separator to pack with; use packed=false"):
        encode_corpus(one("the soup was"), bare, 32, packed=True)


# --- masking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_shares_are_those_of_bert(reader, corpus, share, whole_words):
    examples = list(encode_corpus(one(corpus["text"][:] * 3), reader, 64, packed=True))
    batch = batches(reader, share, whole_words)(examples)
    eligible = sum(word != SPECIAL for example in examples for word in example["words"])
    count = len(batch["targets"])
    assert eligible > 20_000
    assert count / eligible == pytest.approx(share, abs=0.01)
    shown = batch["input_ids"].flatten()[batch["positions"]]
    masked = shown == reader.mask_token_id
    kept = shown == batch["targets"]
    assert masked.float().mean() == pytest.approx(0.8, abs=0.02)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.015)  # a random one is the true one once in a vocabulary
    random = shown[~masked & ~kept]
    assert not set(random.tolist()) & set(reader.all_special_ids)
    assert len(set(random.tolist())) > 0.9 * (len(reader) - len(reader.all_special_ids))
    assert set(random.tolist()) <= set(reader.get_vocab().values())


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_special_tokens_and_padding_are_never_chosen_and_the_rest_stays(reader, corpus, packed, whole_words):
    text = one([*corpus["text"][:40], "the [MASK] and [SEP] soup <mask> 汶 bread"])
    encoded = encode_corpus(text, reader, 32, packed)
    examples = list(encoded)
    batch = batches(reader, 0.5, whole_words)(examples)
    plain = batches(reader, 0)(examples)
    assert (batch["targets"] != -100).all()
    assert not torch.isin(batch["targets"], torch.tensor(reader.all_special_ids)).any()
    assert batch["attention_mask"].flatten()[batch["positions"]].all()
    assert torch.equal(restored(batch), plain["input_ids"])
    assert len(batch["positions"].unique()) == len(batch["positions"])
    untouched = torch.ones(plain["input_ids"].numel(), dtype=torch.bool)
    untouched[batch["positions"]] = False
    assert torch.equal(batch["input_ids"].flatten()[untouched], plain["input_ids"].flatten()[untouched])


def test_a_corpus_on_disk_is_tokenised_once(reader, corpus, tmp_path, monkeypatch):
    (tmp_path / "lines.txt").write_text("\n".join(corpus["text"][:]))
    source = Source(path=str(tmp_path / "lines.txt"))
    first = encode_corpus(read_corpus(source), reader, 24, packed=True)
    longer = encode_corpus(read_corpus(source), reader, 32, packed=True)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr("limbeck.tasks.masked_lm._Cutter.__call__", refuse)
    again = encode_corpus(read_corpus(source), reader, 24, packed=True)
    assert again[:] == first[:]
    assert first["length"][0] == 24
    assert longer["length"][0] == 32
    with pytest.raises(AssertionError, match="again"):
        encode_corpus(read_corpus(source), reader, 24, packed=False)


def test_words_are_chosen_with_all_their_pieces(reader, corpus):
    encoded = encode_corpus(corpus, reader, 24, packed=False)
    examples = list(encoded)
    batch = batches(reader, 0.3, whole_words=True, every=True)(examples)
    chosen = iter((batch["targets"] != -100).tolist())
    several = both = 0
    for example in examples:
        groups: list[list[bool]] = []
        for word in example["words"]:
            now = next(chosen)
            if word == START:
                groups.append([now])
            elif word == WITHIN:
                groups[-1].append(now)
        assert all(len(set(group)) == 1 for group in groups)
        several += sum(len(group) > 1 for group in groups)
        both += sum(len(group) > 1 and group[0] for group in groups)
    assert several > 100
    assert both / several == pytest.approx(0.3, abs=0.1)
    apart = batches(reader, 0.3, every=True)(examples)
    assert not torch.equal(apart["targets"], batch["targets"])


def test_masks_follow_from_seed_epoch_and_row_alone(reader, corpus):
    examples = list(encode_corpus(corpus, reader, 32, packed=False).select(range(40)))
    batch = batches(reader)(examples)
    again = batches(reader)(examples)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    for other in (batches(reader, epoch=1), batches(reader, seed=1)):
        assert not torch.equal(other(examples)["input_ids"], batch["input_ids"])
    backwards = batches(reader)(examples[::-1])
    for row, example in enumerate(examples):
        alone = batches(reader)([example])
        assert tokens(alone, "input_ids", 0) == tokens(batch, "input_ids", row)
        assert tokens(backwards, "input_ids", 39 - row) == tokens(batch, "input_ids", row)
    twins = [{**examples[0], "row": row} for row in range(8)]  # the same text elsewhere is masked otherwise
    assert len({tuple(ids) for ids in batches(reader)(twins)["input_ids"].tolist()}) > 4


def test_the_epoch_is_asked_at_every_batch(tokenizer, corpus):
    examples = list(encode_corpus(corpus, tokenizer, 32, packed=False).select(range(8)))
    now = 0
    collator = MaskedBatches(tokenizer, 0.15, False, False, 0, lambda: now)
    first = collator(examples)
    now = 1
    assert not torch.equal(collator(examples)["input_ids"], first["input_ids"])
    now = 0
    assert torch.equal(collator(examples)["input_ids"], first["input_ids"])


def test_every_example_has_a_token_to_predict_if_it_can(tokenizer):
    encoded = encode_corpus(one(["the a soup"] * 50), tokenizer, 32, packed=False)
    for whole_words in (False, True):
        batch = batches(tokenizer, 1e-6, whole_words)(list(encoded))
        assert (batch["positions"] // 5).tolist() == list(range(50))
        assert set((batch["positions"] % 5).tolist()) == {1, 2, 3}
    unknown = encode_corpus(one("汶 川 大"), tokenizer, 32, packed=False)[0]
    for whole_words in (False, True):
        batch = batches(tokenizer, 0.15, whole_words)([{**unknown, "row": 7}, encoded[0]])
        assert (batch["positions"] >= 5).all()
        empty = batches(tokenizer, 0.15, whole_words)([unknown])
        assert empty["positions"].shape == empty["targets"].shape == (0,)
        assert empty["positions"].dtype == empty["targets"].dtype == torch.int64


def test_every_gives_all_tokens_but_padding(reader, corpus):
    examples = list(encode_corpus(corpus, reader, 32, packed=False).select(range(12)))
    few, every = batches(reader)(examples), batches(reader, every=True)(examples)
    assert torch.equal(few["input_ids"], every["input_ids"])
    assert torch.equal(every["positions"], every["attention_mask"].flatten().nonzero()[:, 0])
    chosen = every["targets"] != -100
    assert torch.equal(every["positions"][chosen], few["positions"])
    assert torch.equal(every["targets"][chosen], few["targets"])
    assert 0 < chosen.sum() < len(chosen)


def test_without_a_mask_the_text_stays_as_it_is(reader, corpus):
    examples = list(encode_corpus(corpus, reader, 32, packed=False).select(range(12)))
    for every in (False, True):
        batch = batches(reader, 0, every=every)(examples)
        assert set(batch) == {"input_ids", "attention_mask", "row"}
        assert [tokens(batch, "input_ids", row) for row in range(12)] == [example["input_ids"] for example in examples]


def test_a_tokenizer_without_a_mask_token_is_refused_only_if_it_must_mask():
    bare = make_tokenizer(mask_token=None)
    assert batches(bare, 0)
    with pytest.raises(InputError, match="has no mask token"):
        batches(bare)
