"""Reading, columns, labels and splits: what is taken as it stands, what is refused and with which words."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import LABELS, make_reviews, write_csv, write_jsonl
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from limbeck.data import RawData, Splits, find_columns, labelled_table, read, read_all, resolve_task, split
from limbeck.data.labels import encode_labels
from limbeck.errors import InputError
from limbeck.recipe.data import Data, Source
from limbeck.tasks import Task

TWO = Task("classification", LABELS)


def test_labels_stated_in_another_order_than_the_teachers_outputs_are_refused():
    names = ["negative", "positive"]
    table = texts(names)
    assert resolve(table, stated=names, teacher=tuple(names))[0].labels == tuple(names)
    assert resolve(table, stated=["positive", "negative"], teacher=("LABEL_0", "LABEL_1"))[1] == [1, 0]
    with pytest.raises(InputError, match=r"task.labels has the order .*positive.*negative.*drop task.labels"):
        resolve(table, stated=["positive", "negative"], teacher=tuple(names))


def texts(labels: list[Any], **features: Any) -> Dataset:
    """One numbered text per label."""
    kinds = Features({"text": Value("string"), **features}) if features else None
    return Dataset.from_dict({"text": [f"text {i}" for i in range(len(labels))], "label": labels}, features=kinds)


def resolve(table: Dataset, kind="classification", stated=None, teacher=None, **columns: Any) -> tuple[Task, list[Any]]:
    """The task and the encoded labels of a table."""
    found = find_columns(table, Data(train="unused", **columns))
    task = resolve_task(table, found, kind, stated, teacher)
    return task, encode_labels(table, found, task)


def prepare(data: Data, teacher=LABELS, kind="classification", seed=0) -> Splits:
    raw = read_all(data)
    columns = find_columns(raw.train, data)
    return split(raw, columns, resolve_task(raw.train, columns, kind, None, teacher), seed)


def source(path: Any, **more: Any) -> Source:
    return Source(path=str(path), **more)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["r.csv", "r.tsv", "r.jsonl", "r.json", "r.jsonl.gz", "r.csv.gz", "r.parquet", "folder"]
)
def test_every_format_gives_the_same_examples(name, tmp_path, reviews):
    rows = reviews[:20]
    path = tmp_path / name
    if name == "folder":
        Dataset.from_list(rows).save_to_disk(path)
    elif name.endswith("parquet"):
        Dataset.from_list(rows).to_parquet(path)
    else:
        plain = tmp_path / name.removesuffix(".gz")
        if "json" in name:
            write_jsonl(plain, rows)
        else:
            write_csv(plain, rows, "\t" if "tsv" in name else ",")
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(source(path), "train").to_list() == rows


def test_csv_keeps_words_that_look_missing_and_quotes(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text('text,label\nNone,NA\nNA,null\nnull,None\n"a ""b"",\nc",n/a\n')
    assert read(source(path), "train").to_dict() == {
        "text": ["None", "NA", "null", 'a "b",\nc'],
        "label": ["NA", "null", "None", "n/a"],
    }


def test_tsv_takes_quotes_as_they_are(tmp_path):
    path = tmp_path / "glue.tsv"
    path.write_text('sentence\tlabel\nan "open quote\t1\n"closed" early\t0\n')
    assert read(source(path), "train")["sentence"][:] == ['an "open quote', '"closed" early']


def test_unreadable_sources_are_refused(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"text": \n')
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "notes.doc").write_text("hello")
    (tmp_path / "folder").mkdir()
    Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "nothing")
    for name, said in {
        "missing.csv": "no file or folder '.*missing.csv'; check the path",
        "broken.jsonl": "cannot be read as json",
        "empty.csv": "cannot be read as csv",
        "header.csv": "header.csv",
        "notes.doc": r"in '.doc'; readable are .csv, .tsv, .json, .jsonl, .parquet, .txt, .npz and folders",
        "folder": "neither one saved by datasets",
        "nothing": "holds no examples",
    }.items():
        with pytest.raises(InputError, match=said):
            read(source(tmp_path / name), "train")


def test_a_saved_folder_brings_its_own_splits(reviews_folder):
    data = Data(train=str(reviews_folder))
    raw = read_all(data)
    assert [len(raw.train), len(raw.validation), len(raw.test)] == [80, 20, 30]
    assert raw.test["text"][:] == [row["text"] for row in make_reviews(30, 2)]
    assert read_all(Data(train=str(reviews_folder), test=0.2)).test == 0.2
    swapped = read_all(Data(train=str(reviews_folder), test=source(reviews_folder, split="validation")))
    assert len(swapped.test) == 20
    with pytest.raises(InputError, match="has no split 'tets'; did you mean 'test'"):
        read(source(reviews_folder, split="tets"), "train")


def test_splits_go_by_their_usual_names(tmp_path):
    DatasetDict({"train": texts([0, 1, 0]), "dev": texts([1, 0])}).save_to_disk(tmp_path / "saved")
    raw = read_all(Data(train=str(tmp_path / "saved")))
    assert len(raw.validation) == 2
    assert raw.test == 0.1


def test_own_splits_without_labels_are_not_used(tmp_path):
    names = ClassLabel(names=list(LABELS))
    hidden = {
        "numbers": (texts([0, 1] * 5), texts([-1, -1])),
        "names": (texts([0, 1] * 5, label=names), texts([-1, -1], label=names)),
        "values": (texts([0.5, 1.5] * 5), texts([-1.0, -1.0])),
    }
    for name, (train, test) in hidden.items():
        DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / name)
        assert read_all(Data(train=str(tmp_path / name))).test == 0.1, name


def test_own_splits_with_lists_of_labels_are_used(tmp_path):
    DatasetDict({"train": texts([["a"], ["b"]] * 5), "test": texts([["a"], []])}).save_to_disk(tmp_path / "saved")
    assert read_all(Data(train=str(tmp_path / "saved"))).test["label"][:] == [["a"], []]


def test_objects_in_memory_stand_for_paths():
    held = DatasetDict({"train": texts([0, 1] * 5), "test": texts([0, 1])})
    raw = read_all(Data(train="memory:x"), {"memory:x": held})
    assert len(raw.train) == 10
    assert len(raw.test) == 2
    assert read_all(Data(train="memory:y"), {"memory:y": held["train"]}).test == 0.1
    with pytest.raises(InputError, match="pass data=DATASET again"):
        read_all(Data(train="memory:x"))


# --- columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "text", "label"),
    [
        (("label", "text"), ("text",), ("label",)),
        (("id", "review", "sentiment"), ("review",), ("sentiment",)),
        (("premise", "hypothesis", "label"), ("premise", "hypothesis"), ("label",)),
        (("sentence1", "sentence2", "score"), ("sentence1", "sentence2"), ("score",)),
        (("question", "sentence", "label"), ("question", "sentence"), ("label",)),
        (("plot", "stars"), ("plot",), ("stars",)),  # the one column of strings
    ],
)
def test_columns_are_inferred(names, text, label):
    strings = {*text}
    table = Dataset.from_dict({name: ["x", "y"] if name in strings else [0, 1] for name in names})
    found = find_columns(table, Data(train="unused"))
    assert (found.inputs, found.label) == (text, label)
    assert set(found.inferred) == {*text, *label}


def test_stated_columns_win():
    table = Dataset.from_dict({"text": ["a", "b"], "other": ["c", "d"], "label": [0, 1], "mood": [1, 0]})
    found = find_columns(table, Data(train="unused", text="other", label="mood"))
    assert (found.inputs, found.label, found.inferred) == (("other",), ("mood",), ())
    found = find_columns(table, Data(train="unused", text=["other", "text"]))
    assert (found.inputs, found.label, found.inferred) == (("other", "text"), ("label",), ("label",))
    assert find_columns(table, Data(train="unused"), labelled=False).label == ()


@pytest.mark.parametrize(
    ("columns", "stated", "said"),
    [
        ({"text": ["a"], "label": [0]}, {"text": "txt"}, "data.text names column 'txt'.*did you mean 'text'"),
        ({"text": ["a"], "label": [0]}, {"label": "lable"}, "data.label names column 'lable'.*did you mean 'label'"),
        ({"text": ["a"], "label": [0]}, {"text": "xyz"}, "known here: label, text"),
        ({"text": ["a"], "mood": [0]}, {}, "cannot tell the label column among text, mood; add data.label=NAME"),
        (
            {"a": ["a"], "b": ["b"], "label": [0]},
            {},
            "cannot tell the text column among a, b, label; add data.text=NAME",
        ),
        ({"text": [1.5], "label": [0]}, {}, "text column 'text' holds float64, not text; add data.text=NAME"),
        ({"text": [["a"]], "label": [0]}, {}, "text column 'text' holds List"),
        ({"a": ["a"], "b": ["b"], "c": ["c"], "label": [0]}, {"text": ["a", "b", "c"]}, "names 3 columns.*one or two"),
    ],
)
def test_wrong_columns_are_refused(columns, stated, said):
    with pytest.raises(InputError, match=said):
        find_columns(Dataset.from_dict(columns), Data(train="unused", **stated))


# --- labels: classification -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "stated", "teacher", "names", "numbers"),
    [
        (["b", "a", "b"], None, None, ("a", "b"), [1, 0, 1]),  # names, sorted
        (["b", "a", "b"], None, ("b", "a"), ("b", "a"), [0, 1, 0]),  # the teacher's order
        (["b", "a", "b"], ["b", "a"], ("LABEL_0", "LABEL_1"), ("b", "a"), [0, 1, 0]),  # stated for an unnamed one
        ([1, 0, 1], None, ("b", "a"), ("b", "a"), [1, 0, 1]),  # numbers are places in the teacher's list
        ([1, 0, 1], None, ("LABEL_0", "LABEL_1"), ("0", "1"), [1, 0, 1]),
        ([1, 0, 1], ["no", "yes"], None, ("no", "yes"), [1, 0, 1]),
        ([3, 1, 2], None, None, ("1", "2", "3"), [2, 0, 1]),
        ([3, 1, 2], None, ("1", "2", "3"), ("1", "2", "3"), [2, 0, 1]),  # numbers that are names
        ([1, 0], None, ("1", "0"), ("1", "0"), [0, 1]),
        ([2, 0, 1], ["0", "1", "2"], ("1", "2", "3"), ("0", "1", "2"), [2, 0, 1]),  # places in spite of number names
        ([1.0, 0.0], None, None, ("0", "1"), [1, 0]),  # a csv's whole floats
        ([True, False], None, ("no", "yes"), ("no", "yes"), [1, 0]),
    ],
)
def test_class_labels(labels, stated, teacher, names, numbers):
    task, encoded = resolve(texts(labels), stated=stated, teacher=teacher)
    assert task == Task("classification", names)
    assert encoded == numbers


def test_declared_class_names_are_names():
    table = texts([0, 1, 1], label=ClassLabel(names=["neg", "pos"]))
    assert resolve(table) == (Task("classification", ("neg", "pos")), [0, 1, 1])
    assert resolve(table, teacher=("pos", "neg")) == (Task("classification", ("pos", "neg")), [1, 0, 0])


@pytest.mark.parametrize(
    ("labels", "kind", "teacher", "said"),
    [
        (["a", "c"], "classification", ("a", "b"), "the data's labels are a, c, the teacher's are a, b"),
        (["a", "b"], "classification", ("a", "b", "c"), "the data's labels are a, b, the teacher's are a, b, c"),
        (["a", "b"], "classification", ("LABEL_0", "LABEL_1"), r"unnamed \(LABEL_0, LABEL_1\); state their order with"),
        ([0, 1, 2], "classification", ("a", "b"), "the data's labels are 0, 1, 2, the teacher's are a, b"),
        ([0, 1, 2], "classification", ("1", "2", "3"), "the data's labels are 0, 1, 2, the teacher's are 1, 2, 3"),
        ([1, 2], "classification", ("LABEL_0", "LABEL_1"), "the data's labels are 1, 2"),
        (["a", "a"], "classification", None, "every label in column 'label' is 'a'; two classes are needed"),
        ([0.5, 1.0], "classification", None, "holds 0.5, not a class; is this task=regression"),
        (
            [0.0, math.nan, math.nan],
            "classification",
            None,
            r"2 of 3 labels .* missing .*first: row 2\); fill or remove",
        ),
        (["a", None, "b"], "classification", None, "1 of 3 labels in column 'label' are missing .*first: row 2"),
        ([["a"], ["b"]], "classification", None, r"column 'label' holds lists \(\['a'\]\); add task=multi-label"),
        (["a", "b"], "multi-label", None, "holds 'a'; multi-label needs a list in each row"),
        ([["a"], ["b"]], "multi-label", ("a", "c"), "the data's labels are a, b, the teacher's are a, c"),
        ([["a"], None], "multi-label", None, "1 of 2 labels"),
        ([[1, 0], [1, 1]], "multi-label", ("a", "b", "c"), "the data's labels are 0, 1, the teacher's are a, b, c"),
        (["a", "b"], "regression", None, "holds 'a'; regression needs numbers"),
        ([1.5, 1.5], "regression", None, "every label in column 'label' is 1.5; there is nothing to learn"),
        ([1.5, math.inf], "regression", None, "missing or not finite"),
        ([1.5, 2.5], "regression", ("a", "b"), r"the teacher has 2 outputs \(a, b\)"),
    ],
)
def test_wrong_labels_are_refused(labels, kind, teacher, said):
    with pytest.raises(InputError, match=said):
        resolve(texts(labels), kind, teacher=teacher)


def test_stated_labels_must_be_as_many_as_the_teachers():
    with pytest.raises(InputError, match=r"task.labels names 3 labels, the teacher has 2 \(LABEL_0, LABEL_1\)"):
        resolve(texts(["a", "b", "c"]), stated=["a", "b", "c"], teacher=("LABEL_0", "LABEL_1"))
    with pytest.raises(InputError, match=r"the data's labels are a, b, task\.labels are a, c"):
        resolve(texts(["a", "b"]), stated=["a", "c"], teacher=("LABEL_0", "LABEL_1"))


def test_a_label_that_only_another_split_has_is_refused():
    for train, test, teacher in ((["a", "b"], ["a", "c"], None), ([1, 2, 3], [1, 0], ("1", "2", "3"))):
        task, _ = resolve(texts(train), teacher=teacher)
        columns = find_columns(texts(train), Data(train="unused"))
        with pytest.raises(InputError, match=f"row 2: label {test[1]!r} in column 'label' is not among"):
            labelled_table(texts(test), columns, task, "test")


def test_many_labels_are_shortened_in_messages():
    with pytest.raises(InputError, match=r"0, 1, 2, 3, 4, 5, 6, 7, \.\.\., the teacher's"):
        resolve(texts(list(range(40))), teacher=("a", "b"))


# --- labels: multi-label and regression -------------------------------------------------------------------------------


def test_multi_label_in_three_forms_is_the_same():
    names = texts([["a"], ["c", "a"], [], ["b"]])
    hot = texts([[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]])
    columns = Dataset.from_dict(
        {"text": names["text"][:], "a": [1, 1, 0, 0], "b": [False, False, False, True], "c": [0.0, 1.0, 0.0, 0.0]}
    )
    rows = [[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert resolve(names, "multi-label") == (Task("multi-label", ("a", "b", "c")), rows)
    assert resolve(hot, "multi-label", stated=["a", "b", "c"]) == (Task("multi-label", ("a", "b", "c")), rows)
    assert resolve(columns, "multi-label", label=["a", "b", "c"]) == (Task("multi-label", ("a", "b", "c")), rows)


def test_multi_label_follows_the_teachers_order():
    teacher = ("c", "a", "b")
    in_order = [[0, 1, 0], [1, 1, 0]]
    columns = Dataset.from_dict({"text": ["x", "y"], "a": [1, 1], "b": [0, 0], "c": [0, 1]})
    assert resolve(texts([["a"], ["c", "a"]]), "multi-label", teacher=teacher)[1] == in_order
    assert resolve(columns, "multi-label", teacher=teacher, label=["a", "b", "c"])[1] == in_order
    with pytest.raises(InputError, match="the data's labels are a, b, the teacher's are c, a, b"):
        resolve(columns, "multi-label", teacher=teacher, label=["a", "b"])


@pytest.mark.parametrize(
    ("labels", "outputs", "rows"),
    [
        ([[0], [2, 1], [1]], 3, [[1, 0, 0], [0, 1, 1], [0, 1, 0]]),  # class numbers
        ([[1, 0], [0, 1]], 2, [[1, 0], [0, 1]]),  # 0/1 rows with one label each, not class numbers
        ([[0, 1, 0], [0, 1, 1], [1, 0, 0]], 3, [[0, 1, 0], [0, 1, 1], [1, 0, 0]]),
        ([[True, False], [True, True]], 2, [[1, 0], [1, 1]]),
        ([[1.0, 0.0], [1.0, 1.0]], 2, [[1, 0], [1, 1]]),
    ],
)
def test_rows_of_numbers(labels, outputs, rows):
    task, encoded = resolve(texts(labels), "multi-label")
    assert task.outputs == outputs
    assert encoded == rows


def test_class_number_lists_of_a_small_split_stay_class_numbers():
    task = Task("multi-label", ("a", "b", "c"))
    columns = find_columns(texts([[0, 1]]), Data(train="unused"))
    assert encode_labels(texts([[0, 1], [1, 0]]), columns, task) == [[1, 1, 0], [1, 1, 0]]


def test_multi_label_names_that_were_declared():
    table = texts([[1], [0, 1]], label=List(ClassLabel(names=["x", "y"])))
    assert resolve(table, "multi-label", teacher=("y", "x"))[1] == [[1, 0], [1, 1]]


def test_columns_of_anything_but_0_and_1_are_refused():
    table = Dataset.from_dict({"text": ["x", "y"], "a": [1, 0], "b": [0, 2]})
    with pytest.raises(InputError, match=r"row 2: label columns a, b hold \(0, 2\), not 0 and 1"):
        resolve(table, "multi-label", label=["a", "b"])
    with pytest.raises(InputError, match=r"data\.label names 2 columns; that is for task=multi-label"):
        resolve(table, label=["a", "b"])


def test_regression():
    assert resolve(texts([1.5, 2, -3]), "regression") == (Task("regression", ("label",)), [1.5, 2.0, -3.0])
    task, values = resolve(texts([1, 2]), "regression", teacher=("LABEL_0",))
    assert (task.outputs, values) == (1, [1.0, 2.0])


# --- splits -------------------------------------------------------------------------------------------------------


def test_splits_are_seeded_disjoint_and_proportional(tmp_path):
    rows = [{"text": f"text {i}", "label": LABELS[i % 4 == 0]} for i in range(400)]  # a quarter is positive
    data = Data(train=str(write_csv(tmp_path / "rows.csv", rows)), validation=0.1, test=0.2)
    first, same, other = prepare(data), prepare(data), prepare(data, seed=1)
    parts = {name: set(getattr(first, name)["text"]) for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 280, "validation": 40, "test": 80}
    assert set.union(*parts.values()) == {row["text"] for row in rows}
    for name in parts:
        table = getattr(first, name)
        assert np.mean(table["label"][:]) == pytest.approx(0.25, abs=0.01), name
        assert table.to_dict() == getattr(same, name).to_dict()
        assert set(getattr(other, name)["text"]) != parts[name]
    label_of = {row["text"]: LABELS.index(row["label"]) for row in rows}
    assert all(label_of[row["text"]] == row["label"] for row in first.test)


def test_without_fractions_a_tenth_is_held_out_twice(reviews_csv):
    splits = prepare(Data(train=str(reviews_csv)))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [96, 12, 12]
    assert splits.transfer.to_dict() == splits.train.to_dict()
    assert splits.notices == []


def test_rare_classes_are_split_at_random_with_a_notice(tmp_path):
    rows = [{"text": f"text {i}", "label": "rare" if i == 0 else LABELS[i % 2]} for i in range(60)]
    splits = prepare(Data(train=str(write_csv(tmp_path / "rows.csv", rows))), teacher=None)
    assert any("too rare to stratify the test split" in notice for notice in splits.notices)
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 60


def test_too_few_examples_are_refused(tmp_path):
    path = write_csv(tmp_path / "few.csv", [{"text": f"t {i}", "label": LABELS[i % 2]} for i in range(4)])
    with pytest.raises(
        InputError, match=r"4 training examples are too few to hold out 0 for test; give data.test=FILE"
    ):
        prepare(Data(train=str(path)))


def test_columns_and_types_of_the_splits(reviews_folder, tmp_path):
    splits = prepare(Data(train=str(reviews_folder)))
    assert splits.train.features == Features({"text": Value("string"), "label": Value("int64")})
    assert Counter(splits.train["label"]) == {0: 40, 1: 40}
    path = write_jsonl(
        tmp_path / "m.jsonl", [{"text": f"t {i}", "labels": [["a"], ["b", "a"]][i % 2]} for i in range(40)]
    )
    many = prepare(Data(train=str(path)), None, "multi-label")
    assert many.train.features["label"] == List(Value("float32"), length=2)
    path = write_csv(tmp_path / "v.csv", [{"text": f"t {i}", "score": i / 7} for i in range(40)])
    assert prepare(Data(train=str(path)), None, "regression").train.features["label"] == Value("float32")


def test_pairs_stay_together(tmp_path):
    rows = [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": LABELS[i % 2]} for i in range(40)]
    splits = prepare(Data(train=str(write_csv(tmp_path / "pairs.csv", rows))))
    assert splits.train.column_names == ["text", "text_pair", "label"]
    assert all(row["text"][2:] == row["text_pair"][2:] for row in splits.train)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("classification", ["a", "b"]), ("multi-label", [["a"], ["a", "b"]]), ("regression", [0.5, 1.5])],
)
def test_unlabelled_text_joins_the_transfer_set_alone(kind, labels, tmp_path):
    rows = [{"text": f"text {i}", "label": labels[i % 2]} for i in range(40)]
    more = [{"id": i, "text": f"more {i}", "label": "not read"} for i in range(7)]
    data = Data(
        train=str(write_jsonl(tmp_path / "a.jsonl", rows)), unlabelled=str(write_jsonl(tmp_path / "b.jsonl", more))
    )
    splits = prepare(data, None, kind)
    assert splits.transfer["text"][:] == splits.train["text"][:] + [row["text"] for row in more]
    assert splits.transfer["label"][: len(splits.train)] == splits.train["label"][:]
    missing = np.array(splits.transfer["label"][len(splits.train) :])
    assert missing.shape[0] == 7
    assert (missing == -100).all() if kind == "classification" else np.isnan(missing).all()
    for part in (splits.train, splits.validation, splits.test):
        assert not {row["text"] for row in more} & set(part["text"])


def test_a_leak_is_told(tmp_path, reviews):
    train = write_csv(tmp_path / "train.csv", reviews[:40])
    test = write_csv(tmp_path / "test.csv", reviews[36:50])
    splits = prepare(Data(train=str(train), test=str(test), validation=str(test)))
    assert splits.notices == ["4 of 14 test examples also stand in the training or unlabelled data"]
    more = write_csv(tmp_path / "more.csv", [{"text": reviews[45]["text"]}])
    splits = prepare(Data(train=str(train), test=str(test), validation=str(test), unlabelled=str(more)))
    assert splits.notices == ["5 of 14 test examples also stand in the training or unlabelled data"]
    pairs = [{"sentence1": "same", "sentence2": f"s {i}", "label": LABELS[i % 2]} for i in range(6)]
    train, test = write_csv(tmp_path / "a.csv", pairs[:5]), write_csv(tmp_path / "b.csv", pairs[4:])
    splits = prepare(Data(train=str(train), test=str(test), validation=str(test)))
    assert splits.notices == ["1 of 2 test examples also stand in the training or unlabelled data"]


def test_empty_text_is_refused_with_its_row(tmp_path):
    for text in ("", "  \t", "nan"):
        path = tmp_path / "rows.csv"
        path.write_text(f'text,label\nfine,a\nfine too,b\n"{text}",b\n')
        with pytest.raises(
            InputError, match=r"1 of 3 texts in column 'text' of the train data are empty .first: row 3."
        ):
            prepare(Data(train=str(path)), None)


def test_a_part_without_the_column_is_refused(tmp_path, reviews, reviews_csv):
    other = write_csv(tmp_path / "other.csv", [{"sentence": "x", "label": "negative"}])
    with pytest.raises(InputError, match="the test data has no column 'text'; it has sentence, label"):
        prepare(Data(train=str(reviews_csv), test=str(other)))
    with pytest.raises(InputError, match="the unlabelled data has no column 'text'"):
        prepare(Data(train=str(reviews_csv), unlabelled=str(other)))


def test_raw_parts_can_be_tables_and_fractions_mixed(reviews):
    table = Dataset.from_list(reviews)
    columns = find_columns(table, Data(train="unused"))
    splits = split(RawData(table, 0.25, Dataset.from_list(make_reviews(10, 5))), columns, TWO, 0)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [90, 30, 10]
