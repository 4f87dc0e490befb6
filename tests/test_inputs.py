"""Images and tables of features: read, taught, measured, shown, through the command line and as parts."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_images, write_csv
from datasets import ClassLabel, Dataset, Features, Image, Value, load_from_disk
from PIL import Image as Pillow
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from limbeck.checkpoints import Checkpoint, open_classifier
from limbeck.data import find_columns, read
from limbeck.errors import InputError
from limbeck.evaluation import evaluate_models
from limbeck.examples import labelled
from limbeck.recipe import load
from limbeck.recipe.data import Data, Source
from limbeck.recipe.schema import Evaluation, ImageChanges
from limbeck.report.sections import disagreements
from limbeck.signals import Signals
from limbeck.tasks import Task
from limbeck.tasks.features import FeatureProcessor
from limbeck.tasks.images import ImageReader, as_the_teacher_reads
from limbeck.tasks.random_images import RandomImages

QUICK = [
    "training.batch_size=16",
    "training.learning_rate=1e-2",
    "training.epochs=3",
    "evaluation.resamples=100",
    "evaluation.speed=false",
    "export=[]",
]
CNN = "student.shape={model_type: small-cnn, channels: [4], kernel_size: 3, hidden_sizes: [8]}"


# --- through the command line -------------------------------------------------------------------------------------


def test_images_go_from_arrays_to_a_teacher_to_a_smaller_student(
    command: Any, images_npz: Path, tmp_path: Path
) -> None:
    code, printed = command("train", f"data={images_npz}", CNN, f"output={tmp_path}/teacher", *QUICK)
    assert code == 0, printed
    assert "image is column image" in printed
    small = "student.shape={model_type: mlp, hidden_sizes: [4]}"
    words = ["distill", "hinton", f"teacher={tmp_path}/teacher", f"data={images_npz}", small, *QUICK]
    words += ["export=[onnx, int8]"]
    code, printed = command(*words, f"output={tmp_path}/run")
    assert code == 0, printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["task"]["inputs"] == "image"
    assert metrics["teacher"]["quality"]["accuracy"]["value"] > 0.9
    assert metrics["student"]["quality"]["accuracy"]["value"] > 0.7
    assert metrics["student"]["slices"]["length"] == {}
    assert metrics["student_onnx"]["max_logit_difference"] < 1e-4
    assert metrics["student_int8"]["quality"]["accuracy"]["value"] > 0.7
    code, printed = command(*words, f"output={tmp_path}/run")
    assert "reused" in printed, "the teacher was asked again"
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "student")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "student", backend="pil")
    images, labels = make_images(64, seed=5)
    read = processor([Pillow.fromarray(image) for image in images], return_tensors="pt")
    right = (model(**read).logits.argmax(-1).numpy() == labels).mean()
    assert right > 0.7, "what is saved is not what was measured"
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "image-classification" in card
    assert "sorts images into 2 classes" in card


def test_a_folder_of_class_folders_teaches_a_transformer_without_its_own_head(
    command: Any, images_folder: Path, image_teacher: Path, tmp_path: Path
) -> None:
    words = [f"teacher={image_teacher}", f"data={images_folder}", "student.layers=1", *QUICK, "data.test=0.5"]
    code, printed = command("distill", "hinton", *words, f"output={tmp_path}/run")
    assert code == 0, printed
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "student")
    assert model.config.num_hidden_layers == 1
    assert model.config.id2label == {0: "left", 1: "right"}


def test_a_table_of_numbers_and_names_teaches_a_network(command: Any, table_csv: Path, tmp_path: Path) -> None:
    about = [f"data={table_csv}", "data.features=[size, weight, colour]"]
    wide = "student.shape={model_type: mlp, hidden_sizes: [32]}"
    code, printed = command("train", *about, wide, f"output={tmp_path}/teacher", *QUICK, "training.epochs=20")
    assert code == 0, printed
    assert "features are 3 columns" in printed
    words = [f"teacher={tmp_path}/teacher", *about, "student.shape={model_type: mlp, hidden_sizes: [8]}"]
    code, printed = command(
        "distill", "hinton", *words, f"output={tmp_path}/run", *QUICK, "training.epochs=20", "export=[onnx]"
    )
    assert code == 0, printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["student"]["quality"]["accuracy"]["value"] > 0.7
    assert metrics["student_onnx"]["max_logit_difference"] < 1e-4
    place = tmp_path / "run" / "student"
    model, processor = AutoModel.from_pretrained(place), AutoFeatureExtractor.from_pretrained(place)
    assert isinstance(processor, FeatureProcessor)
    assert processor.names == ["size", "weight", "colour=blue", "colour=green", "colour=red"]
    opened = open_classifier(str(place))
    assert opened.inputs == "features"
    rows = {"size": [20.0, 90.0], "weight": [0.0, 0.0], "colour": ["blue", "red"]}
    said = model(**processor(rows, return_tensors="pt")).logits.argmax(-1)
    assert [model.config.id2label[int(each)] for each in said] == ["small", "big"]
    knowledge = load_from_disk(str(next((tmp_path / "run" / "knowledge").glob("*/manifest.json")).parent))
    assert knowledge.column_names == ["size", "weight", "colour", "logits"]


def test_deit_learns_from_changed_images_with_a_head_for_the_teacher(
    command: Any, images_folder: Path, image_teacher: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    shape = [f"student.shape.{name}={value}" for name, value in (sizes | {"patch_size": 4}).items()]
    words = ["distill", "deit", f"teacher={image_teacher}", f"data={images_folder}", *shape, *QUICK]
    code, printed = command(*words, "baseline=false", f"output={tmp_path}/run")
    assert code == 0, printed
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "student")
    assert type(model).__name__ == "DeiTForImageClassificationWithTeacher"
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]["student"]["history"]["distill"]
    assert {"soft_targets", "hard_labels"} <= set(history[0])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.text=image"], "holds"),
        (["data.features=[image]"], "one number or name"),
        (["data.text=image", "data.image=image"], "an example is one of them"),
        (["data.image=picture"], "not in the data"),
        (["student.shape={model_type: resnett}"], "resnet"),
        (["student.shape={model_type: small-cnn, chanels: [3]}"], "channels"),
        (["student.shape={model_type: small-cnn, kernel_size: 4}"], "odd"),
        (["student.tokenizer=here"], "about text"),
        (["student.shape=null"], "student"),
    ],
)
def test_a_mistake_about_images_is_one_sentence(
    words: list[str], says: str, command: Any, images_npz: Path, tmp_path: Path
) -> None:
    code, printed = command("train", f"data={images_npz}", CNN, f"output={tmp_path}/run", *QUICK, *words)
    assert code == 2, printed
    assert says in " ".join(printed.split())
    assert "Traceback" not in printed


def test_models_and_examples_of_different_kinds_are_refused(
    command: Any, images_npz: Path, reviews_csv: Path, tiny_teacher_dir: Path, image_teacher: Path, tmp_path: Path
) -> None:
    code, printed = command(
        "distill", "hinton", f"teacher={tiny_teacher_dir}", f"data={images_npz}", CNN, f"output={tmp_path}/a"
    )
    assert code == 2
    code, printed = command(
        "distill", "hinton", f"teacher={image_teacher}", f"data={reviews_csv}", f"output={tmp_path}/b"
    )
    assert code == 2
    assert "reads images" in " ".join(printed.split()) or "labels" in printed


def test_changes_of_images_are_refused_where_there_are_none(
    command: Any, reviews_csv: Path, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    words = [f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", "training.images={flip: true}"]
    code, printed = command("distill", "hinton", *words, f"output={tmp_path}/run")
    assert code == 2
    assert "training.images=null" in " ".join(printed.split())


def test_a_network_without_layers_cannot_be_cut_and_the_way_out_is_named(
    command: Any, images_npz: Path, tmp_path: Path
) -> None:
    quick = ["training.epochs=1", "export=[]", "baseline=false", "evaluation.speed=false"]
    teacher = ["train", f"data={images_npz}", "student.shape={model_type: small-cnn, channels: [4]}", *quick]
    assert command(*teacher, f"output={tmp_path}/cnn")[0] == 0
    words = ["distill", "hinton", f"teacher={tmp_path}/cnn", f"data={images_npz}", f"output={tmp_path}/run"]
    code, printed = command(*words)
    assert code == 2
    assert "has no layers to keep; give student.shape={...} or student=MODEL" in " ".join(printed.split())
    code, printed = command("cut", str(tmp_path / "cnn" / "model"), str(tmp_path / "cut"), "layers=1")
    assert code == 2, printed
    assert "has no layers to keep" in " ".join(printed.split())
    code, printed = command(*words, "student.shape={model_type: mlp, hidden_sizes: [4]}", "teacher.features=[1]")
    assert code == 2
    assert "leave teacher.features out" in " ".join(printed.split())


@pytest.mark.parametrize("damage", ["no image at all", "half of one"])
def test_damaged_images_are_refused_with_a_sentence(
    command: Any, images_folder: Path, image_teacher: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(images_folder, tmp_path / "images")
    first = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    content = first.read_bytes()
    first.write_bytes(b"no image" if damage == "no image at all" else content[: len(content) // 2])
    words = [f"teacher={image_teacher}", f"data={folder}", "student.shape.model_type=mlp", f"output={tmp_path}/run"]
    code, printed = command("distill", "hinton", *words)
    assert code == 2, printed
    assert "remove" in printed
    assert not (tmp_path / "run" / "student").exists()


# --- parts --------------------------------------------------------------------------------------------------------


def test_the_size_of_images_is_what_the_processor_makes_of_any() -> None:
    model = ViTForImageClassification(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    for made, expected in (
        (ViTImageProcessorPil(size={"height": 12, "width": 10}), (12, 10)),
        (DeiTImageProcessorPil(size={"height": 12, "width": 12}, crop_size={"height": 8, "width": 8}), (8, 8)),
        (ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875), (32, 32)),  # crops without saying so
    ):
        assert ImageReader(Checkpoint(model, made, "tiny")).sides == expected
    varied = CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
    with pytest.raises(InputError, match="resizes all to one size"):
        _ = ImageReader(Checkpoint(model, varied, "tiny")).sides


@pytest.mark.parametrize("processor", [ViTImageProcessorPil, DeiTImageProcessorPil])
def test_what_the_reader_makes_is_what_the_processor_makes(processor: Any) -> None:
    settings = {"size": {"height": 12, "width": 12}, "crop_size": {"height": 8, "width": 8}}
    settings |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    made = processor(**settings)
    draw = np.random.default_rng(0)
    pictures = [Pillow.fromarray(draw.integers(0, 255, (9 + i, 15, 3), dtype=np.uint8)) for i in range(4)]
    model = ViTForImageClassification(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    reader = ImageReader(Checkpoint(model, made, "tiny"))
    table = Dataset.from_dict(
        {"image": pictures, "label": [0, 1, 0, 1]}, features=Features({"image": Image(), "label": Value("int64")})
    )
    batch = reader.collate(list(reader.encode(table)))
    expected = made(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reader.batch(table)["pixel_values"], batch["pixel_values"])
    assert batch["labels"].tolist() == [0, 1, 0, 1]
    other = ImageReader(
        Checkpoint(model, processor(**settings | {"image_mean": [0.1] * 3, "image_std": [0.9] * 3}), "b")
    )
    shown = as_the_teacher_reads(reader, other, batch)["pixel_values"]
    torch.testing.assert_close(shown, other.batch(table)["pixel_values"], rtol=1e-4, atol=1e-4)


def image_reader(table: Dataset) -> ImageReader:
    """A reader of 8 x 8 grey images, whose sizes it knows."""
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4, num_channels=1
    )
    made = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    return ImageReader(Checkpoint(ViTForImageClassification(config), made, "tiny"))


def test_changed_images_follow_from_seed_epoch_and_examples_alone() -> None:
    images, labels = make_images(8)
    features = Features({"image": Image(), "label": Value("int64")})
    table = Dataset.from_dict(
        {"image": [Pillow.fromarray(each) for each in images], "label": labels.tolist()}, features=features
    )
    reader = image_reader(table)
    examples = list(reader.encode(table))
    changes = ImageChanges(flip=True, crop=2, erase=0.5, mixup=0.8, cutmix=1.0, smoothing=0.1)
    made = [
        RandomImages(reader, changes, 2, seed, lambda epoch=epoch: epoch)(examples)
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert torch.equal(made[0]["pixel_values"], made[1]["pixel_values"])
    assert all(not torch.equal(made[0]["pixel_values"], each["pixel_values"]) for each in made[2:])
    assert made[0]["row"].tolist() == list(range(8))
    torch.testing.assert_close(made[0]["labels"].sum(-1), torch.ones(8))
    plain = RandomImages(reader, ImageChanges(), 2, 0, lambda: 0)(examples)
    torch.testing.assert_close(plain["pixel_values"], reader.collate(examples)["pixel_values"])
    assert plain["labels"].tolist() == labels.tolist()


def test_mixing_images_mixes_labels_in_the_same_shares() -> None:
    """All of one class are white, all of the other black: a mixed image's brightness is its label."""
    images = np.zeros((16, 8, 8), dtype=np.uint8)
    labels = np.arange(16) % 2
    images[labels == 1] = 255
    features = Features({"image": Image(), "label": Value("int64")})
    table = Dataset.from_dict(
        {"image": [Pillow.fromarray(each) for each in images], "label": labels.tolist()}, features=features
    )
    reader = image_reader(table)
    examples = list(reader.encode(table))
    for name in ("mixup", "cutmix"):
        for epoch in range(5):
            batch = RandomImages(reader, ImageChanges(**{name: 1.0}), 2, 0, lambda epoch=epoch: epoch)(examples)
            brightness = reader.bytes_of(batch["pixel_values"]).mean((1, 2, 3)) / 255
            torch.testing.assert_close(batch["labels"][:, 1], brightness, rtol=1e-4, atol=1e-4)


def test_features_are_standardised_and_names_are_one_hot() -> None:
    table = Dataset.from_dict({"a": [1.0, 3.0, 5.0], "b": ["x", "y", "x"], "c": [2.0, 2.0, 2.0]})
    processor = FeatureProcessor.fit(table, ("a", "b", "c"))
    made = processor(table)["features"]
    scaled = (np.array([1, 3, 5]) - 3) / np.std([1, 3, 5])
    np.testing.assert_allclose(made, np.stack([scaled, [1, 0, 1], [0, 1, 0], [0, 0, 0]], 1), rtol=1e-6)
    unknown = processor({"a": [3.0], "b": ["z"], "c": [2.0]})["features"]
    assert unknown.tolist() == [[0, 0, 0, 0]]
    with pytest.raises(InputError, match="column 'b'"):
        processor({"a": [3.0], "c": [2.0]})


def test_arrays_may_hold_splits_features_and_named_columns(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {f"x_{name}": draw.normal(size=(6, 3)) for name in ("train", "test")}
    arrays |= {f"y_{name}": np.arange(6) % 2 for name in ("train", "test")} | {
        "feature_names": np.array(["a", "b", "c"])
    }
    np.savez(tmp_path / "table.npz", **arrays)
    source = Source(path=str(tmp_path / "table.npz"))
    test = read(source, "test")
    assert test.column_names == ["a", "b", "c", "label"]
    np.testing.assert_allclose(test["b"][:], arrays["x_test"][:, 1])
    columns = find_columns(test, Data(train=source))
    assert (columns.kind, columns.inputs, columns.label) == ("features", ("a", "b", "c"), ("label",))


def test_the_examples_on_which_models_part_are_shown() -> None:
    class Says:
        labels, parameters, bytes, precision = ("l", "r"), 1, 1, "float32"

        def __init__(self, logits: list[list[float]]) -> None:
            self.logits = np.array(logits)

        def ask(self, texts: Dataset, features: Any = ()) -> Signals:
            return Signals(self.logits)

    models: dict[str, Any] = {"teacher": Says([[0, 1], [0, 1]]), "student": Says([[0, 1], [2, 0]])}
    images, _ = make_images(2, side=200)
    features = Features({"image": Image(), "label": Value("int64")})
    pictures = Dataset.from_dict(
        {"image": [Pillow.fromarray(each) for each in images], "label": [1, 1]}, features=features
    )
    settings = Evaluation(speed=False, resamples=100)
    found = evaluate_models(models, pictures, Task("classification", ("l", "r"), inputs="image"), settings, 0)
    (shown,) = found["disagreements"]
    data = base64.b64decode(shown["image"].removeprefix("data:image/png;base64,"))
    assert max(Pillow.open(io.BytesIO(data)).size) <= 96
    about = {"task": {"kind": "classification", "inputs": "image"}, "disagreements": [shown]}
    assert disagreements(about)["rows"][0]["image"] == shown["image"]
    table = Dataset.from_dict({"size": [1.5, 2.0], "colour": ["red", "blue"], "label": [1, 1]})
    task = Task("classification", ("l", "r"), inputs="features", features=("size", "colour"))
    (shown,) = evaluate_models(models, table, task, settings, 0)["disagreements"]
    assert shown["text"] == "size 2, colour blue"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"pixels": np.zeros((2, 4, 4), np.uint8)}, "inputs are read from"),
        ({"x": np.zeros((2, 4, 4), np.float32)}, "uint8"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8)}, "channels"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(3)}, "one for each"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
        ({"x": np.zeros((2, 3)), "feature_names": np.array(["a", "b"])}, "3 features and feature_names of shape"),
        ({"x": np.zeros((2, 2)), "feature_names": np.array(["a", "a"])}, "a name of its own"),
        ({"x": np.zeros((2, 1)), "feature_names": np.array("a")}, "1 features and feature_names of shape"),
    ],
)
def test_arrays_that_are_no_examples_are_refused(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=says):
        read(Source(path=str(tmp_path / "bad.npz")), "train")


@pytest.mark.parametrize("kept", [0, 10, 1000, 4000])
def test_a_torn_file_of_arrays_is_refused(kept: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "torn.npz", x=np.zeros((100, 8)), y=np.zeros(100))
    whole = (tmp_path / "torn.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[:kept])
    with pytest.raises(InputError, match="cannot be read as arrays"):
        read(Source(path=str(tmp_path / "torn.npz")), "train")


TRAINED = [{"a": str(n), "b": f"{n}{'xy'[n % 2]}", "label": "pq"[n % 2]} for n in range(40)]


@pytest.mark.parametrize(
    ("part", "row", "says"),
    [
        ("test", {"a": "?"}, "column 'a' of the test data holds '?' (row 2), and the training data hold numbers there"),
        ("validation", {"a": "?"}, "column 'a' of the validation data holds '?' (row 2)"),
        ("unlabelled", {"a": "?"}, "column 'a' of the unlabelled data holds '?' (row 2)"),
        ("test", {"b": "1.5"}, "column 'b' of the test data holds the number 2.0 (row 1), and the training data hold"),
    ],
)
def test_what_a_column_holds_is_what_it_holds_in_training(
    part: str, row: dict[str, str], says: str, tmp_path: Path
) -> None:
    train = write_csv(tmp_path / "train.csv", TRAINED)
    other = [{**TRAINED[0], **({"b": "2"} if "b" in row else {})}, {**TRAINED[1], **row}]
    data = {"train": str(train), "features": ["a", "b"], part: str(write_csv(tmp_path / "other.csv", other))}
    recipe = load("fine-tune", {"data": data, "student": "s", "output": "o"})
    with pytest.raises(InputError, match=re.escape(says)):
        labelled(recipe, {}, [])


def test_whole_numbers_are_names_where_the_training_data_hold_names(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", TRAINED)
    test = write_csv(tmp_path / "test.csv", [{"a": 1.5, "b": 7, "label": "p"}])
    data = {"train": str(train), "features": ["a", "b"], "test": str(test)}
    _, splits = labelled(load("fine-tune", {"data": data, "student": "s", "output": "o"}), {}, [])
    assert splits.test[0] == {"a": 1.5, "b": "7", "label": 0}


def test_a_model_names_the_value_that_is_no_number() -> None:
    read = FeatureProcessor.fit(Dataset.from_dict({"a": [1.0, 2.0]}), ("a",))
    for value in ("?", None, float("inf")):
        with pytest.raises(InputError, match=f"numbers from column 'a', which holds {re.escape(repr(value))} in row 2"):
            read({"a": [1.0, value]})


def test_missing_values_and_images_are_refused_by_row(command: Any, tmp_path: Path) -> None:
    rows = [{"a": "1", "b": "x", "label": "p"}, {"a": "", "b": "y", "label": "q"}] * 20
    path = write_csv(tmp_path / "holes.csv", rows)
    shape = "student.shape={model_type: mlp}"
    code, printed = command("train", f"data={path}", "data.features=[a,b]", shape, f"output={tmp_path}/run")
    assert code == 2
    assert "column 'a'" in " ".join(printed.split())
    assert "row 2" in " ".join(printed.split())
    images, labels = make_images(20)
    pictures = [None, *(Pillow.fromarray(each) for each in images[1:])]
    features = Features({"image": Image(), "label": ClassLabel(names=["l", "r"])})
    Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features).save_to_disk(tmp_path / "saved")
    code, printed = command("train", f"data={tmp_path}/saved", CNN, f"output={tmp_path}/run2")
    assert code == 2
    assert "image 1 in column 'image' is missing" in " ".join(printed.split())
