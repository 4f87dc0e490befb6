"""Knowledge on disk: asked once, the same bytes however often it was interrupted, and never silently wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import LABELS, PER_SHARD, STORED_ROWS, Held, both, make_model, make_tokenizer
from datasets import Dataset, List, Value

from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError, LimbeckError
from limbeck.files import full_disk_explained, require_space, write_atomic
from limbeck.knowledge import Store, describe_request, label_texts, store
from limbeck.signals import Signals
from limbeck.tasks import Task
from limbeck.teachers import Ensemble, HuggingFaceModel

TWO = Task("classification", LABELS)
PAIR = Task("classification", LABELS, pair=True)
pytestmark = pytest.mark.usefixtures("small_shards")


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


class Fake:
    """A teacher whose answer is a hash of the text, who counts what it is asked and can be killed at its work."""

    labels, parameters, precision = LABELS, 1, "float32"

    def __init__(self, dies_at_shard: int | None = None, **fingerprint: Any) -> None:
        self.asked: list[str] = []
        self.shards = 0
        self.dies_at_shard = dies_at_shard
        self.before: Callable[[], None] = lambda: None
        self.fingerprint = {"weights": "w", "tokenizer": "t", "max_length": 32, **fingerprint}

    def ask(self, texts: Dataset, features: Sequence[int] = ()) -> Signals:
        if self.shards == self.dies_at_shard:
            raise Killed
        self.before()
        self.shards += 1
        self.asked += texts["text"][:]
        return answers(texts, features)


def answers(texts: Dataset, features: Sequence[int] = ()) -> Signals:
    seeds = [int(hashlib.sha256(json.dumps(list(row.values())).encode()).hexdigest()[:8], 16) for row in texts]
    draws = [np.random.default_rng(seed) for seed in seeds]
    logits = np.stack([draw.normal(size=2) for draw in draws]).astype(np.float32)
    states = {layer: np.stack([draw.normal(size=4) for draw in draws]).astype(np.float16) for layer in features}
    return Signals(logits, states)


@pytest.fixture
def whole(tmp_path: Path, texts: Dataset) -> Store:
    """A store that was written without interruption."""
    return label_texts(Fake(), texts, TWO, tmp_path / "whole", (1, -1))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_a_store_holds_what_was_said(whole, texts):
    said = answers(texts, (1, -1))
    assert len(whole) == STORED_ROWS
    assert whole.folder.name == whole.manifest["key"][:16]
    found = whole.signals({"row": torch.arange(STORED_ROWS)})
    assert found.logits.dtype == torch.float32
    assert torch.equal(found.logits, torch.from_numpy(said.logits))
    assert set(found.features) == {1, -1}
    assert found.features[-1].dtype == torch.float16
    assert torch.equal(found.features[-1], torch.from_numpy(said.features[-1]))
    assert whole.size == sum(path.stat().st_size for path in whole.folder.glob("*.arrow"))


def test_signals_come_in_any_order_across_shards(whole, texts):
    said = answers(texts, (1, -1))
    for rows in ([22, 0, 5, 4, 10, 9], [7], [3, 3, 3], np.random.default_rng(0).permutation(STORED_ROWS).tolist()):
        found = whole.signals({"row": torch.tensor(rows)})
        np.testing.assert_array_equal(found.logits, said.logits[rows])
        np.testing.assert_array_equal(found.features[1], said.features[1][rows])
    with pytest.raises(IndexError):
        whole.signals({"row": torch.tensor([STORED_ROWS + PER_SHARD])})


def test_datasets_opens_the_folder(whole, texts):
    table = datasets.load_from_disk(str(whole.folder))
    assert table.column_names == ["text", "logits", "cls_1", "cls_-1"]
    assert table.features["logits"] == List(Value("float32"), length=2)
    assert table.features["cls_1"] == List(Value("float16"), length=4)
    assert table["text"][:] == texts["text"][:]
    np.testing.assert_array_equal(np.array(table["logits"][:], np.float32), answers(texts).logits)


def test_pairs_are_kept_with_both_texts(tmp_path, texts):
    pairs = texts.add_column("text_pair", [f"second {i}" for i in range(STORED_ROWS)])
    kept = label_texts(Fake(), pairs, PAIR, tmp_path)
    table = datasets.load_from_disk(str(kept.folder))
    assert table.column_names == ["text", "text_pair", "logits"]
    assert table["text_pair"][:] == pairs["text_pair"][:]
    np.testing.assert_array_equal(kept.signals({"row": torch.arange(STORED_ROWS)}).logits, answers(pairs).logits)


def test_the_manifest_is_inside_and_travels_with_every_shard(whole):
    manifest = json.loads((whole.folder / "manifest.json").read_text())
    assert manifest["rows"] == STORED_ROWS
    assert [shard["rows"] for shard in manifest["shards"]] == [5, 5, 5, 5, 3]
    assert hashlib.sha256(json.dumps(manifest["spec"], sort_keys=True).encode()).hexdigest() == manifest["key"]
    for shard in manifest["shards"]:
        path = whole.folder / shard["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        head = json.loads(pa.ipc.open_stream(path).schema.metadata[b"limbeck"])
        assert head == {"version": manifest["version"], "key": manifest["key"], "spec": manifest["spec"]}


def test_a_real_teacher_is_kept_as_it_answers(tmp_path, texts):
    teacher = HuggingFaceModel(Checkpoint(make_model(), make_tokenizer(), "m"), TWO, 32)
    kept = label_texts(teacher, texts, TWO, tmp_path, (2, -1)).signals({"row": torch.arange(STORED_ROWS)})
    said = teacher.ask(texts, (2, 4))
    np.testing.assert_allclose(kept.logits, said.logits, atol=1e-5)
    np.testing.assert_allclose(kept.features[2], said.features[2], atol=5e-3)
    np.testing.assert_allclose(kept.features[-1], said.features[4], atol=5e-3)


def test_a_moved_store_opens(whole, tmp_path):
    moved = Store(shutil.copytree(whole.folder, tmp_path / "elsewhere"))
    batch = {"row": torch.tensor([7])}
    assert torch.equal(moved.signals(batch).logits, whole.signals(batch).logits)


# --- asked once -----------------------------------------------------------------------------------------------------


def test_the_second_run_does_not_ask(whole, texts, tmp_path, capsys):
    before = content(whole.folder)
    capsys.readouterr()
    teacher = Fake()
    again = label_texts(teacher, texts, TWO, tmp_path / "whole", (1, -1))
    assert teacher.asked == []
    assert "reused 23 examples" in (said := capsys.readouterr().err)
    assert "the teacher was not asked" in said
    assert again.folder == whole.folder
    assert content(whole.folder) == before


def test_everything_the_answer_depends_on_is_in_the_key(texts):
    changed = texts.to_dict()["text"]
    changed[11] += "."
    split_otherwise = [changed[0][:5], changed[0][5:] + changed[1], *changed[2:]]
    pairs = texts.add_column("text_pair", texts["text"][:])
    requests = {
        "as it is": describe_request(Fake(), texts, TWO),
        "weights": describe_request(Fake(weights="other"), texts, TWO),
        "tokenizer": describe_request(Fake(tokenizer="other"), texts, TWO),
        "truncation": describe_request(Fake(max_length=16), texts, TWO),
        "precision": describe_request(Fake(precision="bfloat16"), texts, TWO),
        "features": describe_request(Fake(), texts, TWO, (1,)),
        "other features": describe_request(Fake(), texts, TWO, (2,)),
        "one character": describe_request(Fake(), Dataset.from_dict({"text": changed}), TWO),
        "boundaries": describe_request(Fake(), Dataset.from_dict({"text": split_otherwise}), TWO),
        "order": describe_request(Fake(), texts.select(range(STORED_ROWS - 1, -1, -1)), TWO),
        "fewer": describe_request(Fake(), texts.select(range(STORED_ROWS - 1)), TWO),
        "pairs": describe_request(Fake(), pairs, PAIR),
        "the same texts one after the other": describe_request(
            Fake(), Dataset.from_dict({"text": texts["text"][:] * 2}), TWO
        ),
    }
    keys = [request.key for request in requests.values()]
    assert len(set(keys)) == len(keys)
    assert describe_request(Fake(), texts, TWO).key == keys[0]
    labelled = texts.add_column("label", [0] * STORED_ROWS)
    assert describe_request(Fake(), labelled, TWO).key == keys[0]  # what the teacher never sees


def test_real_teachers_give_other_keys(texts):
    def teacher(seed: int = 0, length: int = 32, extra: Sequence[str] = (), **options: Any) -> HuggingFaceModel:
        return HuggingFaceModel(Checkpoint(make_model(seed=seed), make_tokenizer(extra), "m"), TWO, length, **options)

    def both(task: Task, combine: str) -> Ensemble:
        return Ensemble([teacher(), teacher(1)], [1, 1], combine, task)

    teachers = [
        teacher(),
        teacher(1),
        teacher(length=16),
        teacher(extra=["wine"]),
        teacher(precision="bfloat16"),
        both(TWO, "logits"),
        both(TWO, "probabilities"),
        both(Task("multi-label", LABELS), "probabilities"),
    ]
    assert len({describe_request(each, texts, TWO).key for each in teachers}) == len(teachers)
    assert describe_request(teacher(batch_size=3), texts, TWO).key == describe_request(teacher(), texts, TWO).key


def test_another_request_gets_its_own_store_and_says_why(whole, texts, tmp_path, capsys):
    before = content(whole.folder)
    other = label_texts(Fake(weights="other"), texts, TWO, tmp_path / "whole", (1, -1))
    assert other.folder != whole.folder
    said = " ".join(capsys.readouterr().err.split())
    assert "was made with other teacher; it is left alone" in said
    assert content(whole.folder) == before


def test_a_manifest_of_another_request_is_refused_with_both_keys(whole, texts, tmp_path):
    request = describe_request(Fake(weights="other"), texts, TWO, (1, -1))
    whole.folder.rename(tmp_path / "whole" / request.key[:16])
    with pytest.raises(InputError, match="other teacher") as caught:
        label_texts(Fake(weights="other"), texts, TWO, tmp_path / "whole", (1, -1))
    assert whole.manifest["key"][:16] in str(caught.value)
    assert request.key[:16] in str(caught.value)


# --- interrupted ------------------------------------------------------------------------------------------------------


def resume(whole: Store, texts: Dataset, root: Path) -> Fake:
    """Run to the end after an interruption; the result is that of a run without one."""
    teacher = Fake()
    resumed = label_texts(teacher, texts, TWO, root, (1, -1))
    assert content(resumed.folder) == content(whole.folder)
    return teacher


@pytest.mark.parametrize("shards", range(5))
def test_interrupted_while_asking(shards, whole, texts, tmp_path, capsys):
    with pytest.raises(Killed):
        label_texts(Fake(dies_at_shard=shards), texts, TWO, tmp_path / "cut", (1, -1))
    folder = tmp_path / "cut" / whole.folder.name
    assert len(list(folder.glob("*.arrow"))) == shards
    with pytest.raises(InputError, match="no finished knowledge store; run limbeck label to finish it"):
        Store(folder)
    assert resume(whole, texts, tmp_path / "cut").asked == texts["text"][PER_SHARD * shards :]
    assert (f"{shards} of 5 shards are there" in capsys.readouterr().err) == (shards > 0)


def test_interrupted_twice(whole, texts, tmp_path):
    for _ in range(2):
        with pytest.raises(Killed):
            label_texts(Fake(dies_at_shard=2), texts, TWO, tmp_path / "cut", (1, -1))
    assert resume(whole, texts, tmp_path / "cut").asked == texts["text"][PER_SHARD * 4 :]


def dying_before(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
    """A rename that is killed when it comes to the file of that name."""

    def rename(source: Any, target: Any) -> None:
        if str(target).endswith(name):
            raise Killed
        act(source, target)

    return rename


@pytest.mark.parametrize(
    "name",
    [
        "progress/shard-00002.arrow.json",  # the shard is written aside, its digest not yet noted
        "shard-00002.arrow",  # noted, not yet in place
        "dataset_info.json",
        "state.json",
        "manifest.json",
    ],
)
def test_killed_before_a_rename(name, whole, texts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying_before(name, os.replace))
        with pytest.raises(Killed):
            label_texts(Fake(), texts, TWO, tmp_path / "cut", (1, -1))
    folder = tmp_path / "cut" / whole.folder.name
    assert list(folder.rglob("*.partial"))
    rest = texts["text"][2 * PER_SHARD :] if "shard" in name else []
    assert resume(whole, texts, tmp_path / "cut").asked == rest


def test_killed_after_the_manifest(whole, texts, tmp_path, monkeypatch):
    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", die)
        with pytest.raises(Killed):
            label_texts(Fake(), texts, TWO, tmp_path / "cut", (1, -1))
    assert resume(whole, texts, tmp_path / "cut").asked == []


def test_leftovers_are_overwritten(whole, texts, tmp_path):
    with pytest.raises(Killed):
        label_texts(Fake(dies_at_shard=1), texts, TWO, tmp_path / "cut", (1, -1))
    folder = tmp_path / "cut" / whole.folder.name
    (folder / "shard-00003.arrow.partial").write_bytes(b"half a shard")
    (folder / "shard-00002.arrow").write_bytes(b"in place, but never noted")
    assert resume(whole, texts, tmp_path / "cut").asked == texts["text"][PER_SHARD:]


def test_what_a_kill_left_half_written_is_removed(whole, texts, tmp_path):
    with pytest.raises(Killed):
        label_texts(Fake(dies_at_shard=1), texts, TWO, tmp_path / "cut", (1, -1))
    folder = tmp_path / "cut" / whole.folder.name
    for name in ("shard-00007.arrow.partial", "progress/shard-00007.arrow.json.partial"):
        (folder / name).write_bytes(b"of a version with smaller shards")
    assert resume(whole, texts, tmp_path / "cut").asked == texts["text"][PER_SHARD:]
    assert not list(folder.rglob("*.partial"))


def test_of_two_runs_at_once_one_asks_and_the_other_waits_and_reuses(whole, texts, tmp_path, capsys):
    held, teachers = Held(), (Fake(), Fake())
    teachers[0].before = held

    def label(teacher: Fake) -> Store:
        return label_texts(teacher, texts, TWO, tmp_path / "shared", (1, -1))

    stores, said = both(lambda: label(teachers[0]), lambda: label(teachers[1]), held, capsys)
    assert [len(teacher.asked) for teacher in teachers] == [STORED_ROWS, 0]
    assert said.count(f"another run is making {stores[0].folder}; waiting until it is done") == 1
    assert content(stores[0].folder) == content(stores[1].folder) == content(whole.folder)


def test_a_finished_store_needs_no_lock(whole, texts):
    (whole.folder / "lock").unlink()
    label_texts(Fake(dies_at_shard=0), texts, TWO, whole.folder.parent, (1, -1))
    assert not (whole.folder / "lock").exists()


def test_a_damaged_shard_of_an_unfinished_store_is_named(whole, texts, tmp_path):
    with pytest.raises(Killed):
        label_texts(Fake(dies_at_shard=3), texts, TWO, tmp_path / "cut", (1, -1))
    shard = tmp_path / "cut" / whole.folder.name / "shard-00001.arrow"
    flip(shard, 100)
    with pytest.raises(InputError, match=r"shard-00001\.arrow is damaged"):
        label_texts(Fake(), texts, TWO, tmp_path / "cut", (1, -1))
    shard.unlink()
    expected = texts["text"][PER_SHARD : 2 * PER_SHARD] + texts["text"][3 * PER_SHARD :]
    assert resume(whole, texts, tmp_path / "cut").asked == expected


# --- damaged ----------------------------------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_byte_anywhere_is_found(whole):
    for index in (0, 4):
        shard = whole.folder / store.shard_name(index)
        size = shard.stat().st_size
        for position in {*range(0, size, 97), size - 1}:
            flip(shard, position)
            with pytest.raises(
                InputError, match=f"{shard.name} is damaged .* delete this file and run the same"
            ) as caught:
                Store(whole.folder).verify()
            assert str(shard) in str(caught.value)
            flip(shard, position)
    Store(whole.folder).verify()


def test_a_shard_is_verified_when_it_is_first_used(whole):
    flip(whole.folder / store.shard_name(1), 200)
    opened = Store(whole.folder)
    assert opened.signals({"row": torch.tensor([0, PER_SHARD - 1])}).logits.shape == (2, 2)
    with pytest.raises(InputError, match=r"shard-00001\.arrow is damaged"):
        opened.signals({"row": torch.tensor([0, PER_SHARD])})


def test_millions_of_rows_lie_in_few_shards():
    for rows in (1, PER_SHARD * store.MOST_SHARDS, PER_SHARD * store.MOST_SHARDS + 1, 10**7):
        request = store.Request({}, rows, 2)
        assert request.shards <= store.MOST_SHARDS
        assert request.shard_rows * request.shards >= rows
    assert store.Request({}, 23, 2).shard_rows == PER_SHARD


@pytest.mark.parametrize(
    ("rows", "shards"), [(0, 0), (1, 1), (1024, 1), (1025, 2), (2500, 4), (6920, 8), (9000, 16), (10**6, 512)]
)
def test_shards_are_alike_for_as_many_processes(rows, shards, monkeypatch):
    monkeypatch.undo()
    request = store.Request({}, rows, 2)
    assert request.shards == shards
    left = rows - (shards - 1) * request.shard_rows  # of the last
    assert left > 0.75 * request.shard_rows or shards < 2


@pytest.mark.parametrize("damage", ["cut", "longer", "missing", "swapped"])
def test_other_damage_is_found(damage, whole):
    shard = whole.folder / store.shard_name(2)
    raw = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "swapped":
        shard.write_bytes((whole.folder / store.shard_name(1)).read_bytes())
    else:
        shard.write_bytes(raw[:-8] if damage == "cut" else raw + b"\0")
    with pytest.raises(InputError, match=r"shard-00002\.arrow is damaged"):
        Store(whole.folder).verify()


def test_deleting_the_damaged_shard_repairs_the_store(whole, texts, tmp_path):
    before = content(whole.folder)
    flip(whole.folder / "shard-00003.arrow", 200)
    with pytest.raises(InputError, match=r"shard-00003\.arrow is damaged .* only its examples are asked again"):
        label_texts(Fake(), texts, TWO, tmp_path / "whole", (1, -1))
    (whole.folder / "shard-00003.arrow").unlink()
    teacher = Fake()
    label_texts(teacher, texts, TWO, tmp_path / "whole", (1, -1))
    assert teacher.asked == texts["text"][3 * PER_SHARD : 4 * PER_SHARD]
    assert content(whole.folder) == before


def test_a_torn_manifest_is_refused_in_a_sentence(whole):
    manifest = whole.folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*; delete it and run the same command again"):
        Store(whole.folder)


# --- files ------------------------------------------------------------------------------------------------------------


def test_too_little_disk_is_refused_before_the_teacher_is_asked(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1))
    teacher = Fake()
    with pytest.raises(InputError, match=r"labelling needs about .* MB in .*, where 0\.0 MB are free"):
        label_texts(teacher, texts, TWO, tmp_path)
    assert teacher.asked == []
    require_space(tmp_path / "not" / "yet" / "there", 1, "nothing")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying_before("file", os.replace))
        with pytest.raises(Killed):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    write_atomic(path, b"newer")
    assert path.read_text() == "newer"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_explained():
    said = r"the disk is full while writing /x; .* run the same command again"
    with pytest.raises(LimbeckError, match=said), full_disk_explained():
        raise OSError(28, "No space left on device", "/x")
    with pytest.raises(LimbeckError, match="the disk is full"), full_disk_explained():
        raise RuntimeError("safetensors: I/O error: No space left on device (os error 28)")
    with pytest.raises(KeyError), full_disk_explained():
        raise KeyError("another error stays what it is")
