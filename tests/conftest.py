"""Tiny models, a tokenizer and a learnable dataset, all made here: no test needs the network."""

# ruff: noqa: E402

from __future__ import annotations

import atexit
import csv
import json
import os
import shutil
import string
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Before torch and transformers are imported: they read these once. One thread, as tiny models only wait for more.
CACHE = tempfile.mkdtemp(prefix="limbeck-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=CACHE, TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets.utils.logging import disable_progress_bar
from PIL import Image as Pillow
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.utils import logging as transformers_logging

from limbeck import cli
from limbeck.checkpoints import Checkpoint, open_classifier
from limbeck.knowledge import store
from limbeck.recipe import Recipe, load
from limbeck.tasks import Task, collate, encode

disable_progress_bar()
transformers_logging.disable_progress_bar()

GOOD = ("good", "great", "lovely", "happy", "superb")
BAD = ("bad", "awful", "poor", "sad", "dreadful")
FILLER = (  # noqa: SIM905
    "the a this that film book meal hotel story was is felt seemed looked very quite rather somewhat and but with "
    "for in on at room staff actor ending chapter soup bread music light long short old new day night we they it"
).split()
LABELS = ("negative", "positive")
ARCHITECTURES = ("bert", "roberta", "distilbert", "electra", "mpnet", "modernbert")
_COMMON = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # wide, so that random models differ visibly from one another
}
_CHANGES: dict[str, dict[str, Any]] = {
    "roberta": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "mpnet": {"max_position_embeddings": 66},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {
        "local_attention": 8,
        "global_attn_every_n_layers": 3,
        "attn_implementation": "eager",
        **dict(zip(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), (2, 3, 2, 3), strict=True)),
    },
}


# --- text ---------------------------------------------------------------------------------------------------------


def make_tokenizer(extra: Sequence[str] = (), **options: Any) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that knows the words above and spells out every other lower-case word."""
    letters = [*string.ascii_lowercase, *string.digits, *".,!?'-"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *letters, *(f"##{letter}" for letter in letters), *GOOD, *BAD, *FILLER, *extra]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    settings = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "model_max_length": 64,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{**settings, **options})
    assert tokenizer.tokenize("Good soup") == ["good", "soup"]
    return tokenizer


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_chat_tokenizer(size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that writes conversations in ChatML."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" ".join([*FILLER, *GOOD, *BAD])] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=128
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def make_causal(
    tokenizer: PreTrainedTokenizerFast, kind: str = "llama", seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A causal language model with random weights."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    if kind == "gpt2":
        sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
        sizes["initializer_range"] = 0.2
    config = AutoConfig.for_model(
        kind,
        **{**sizes, "tie_word_embeddings": True, **changes},
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def make_reviews(rows: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences of filler with one to three words of one mood; the mood is the label. Learnable, and all different."""
    draw = np.random.default_rng(seed)
    seen: set[str] = set()
    out: list[dict[str, Any]] = []
    while len(out) < rows:
        label = len(out) % 2
        mood = draw.choice(GOOD if label else BAD, draw.integers(1, 4))
        words = [*draw.choice(FILLER, draw.integers(2, 10)), *mood]
        draw.shuffle(words)
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            out.append({"text": text, "label": LABELS[label]})
    return out


def make_images(count: int = 96, side: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Grey images whose left (0) or right (1) half is brighter."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    images = draw.integers(0, 120, (count, side, side))
    for image, label in zip(images, labels, strict=True):
        image[:, label * side // 2 : (label + 1) * side // 2] += 110
    return images.astype(np.uint8), labels


def write_csv(path: Path, rows: Sequence[dict[str, Any]], separator: str = ",") -> Path:
    """Rows as a csv (or tsv) file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def numbered(rows: Sequence[dict[str, Any]]) -> Dataset:
    """Reviews as the data room hands them on: `text` and an int64 `label`."""
    return Dataset.from_list([{"text": row["text"], "label": LABELS.index(row["label"])} for row in rows])


# --- models -------------------------------------------------------------------------------------------------------


def make_model(
    kind: str = "bert", labels: Sequence[str] | None = LABELS, seed: int = 0, vocabulary: int = 200, **config: Any
) -> PreTrainedModel:
    """A random sequence classifier of four layers. `labels=None` keeps LABEL_0 and LABEL_1."""
    settings = {**_COMMON, "vocab_size": vocabulary, "pad_token_id": 0, **_CHANGES.get(kind, {}), **config}
    if kind == "distilbert":
        short = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
        short["intermediate_size"] = "hidden_dim"
        settings = {short.get(name, name): value for name, value in settings.items()}
    if labels is not None:
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    torch.manual_seed(seed)
    attention = settings.pop("attn_implementation", None)
    made = AutoConfig.for_model(kind, **settings)
    return AutoModelForSequenceClassification.from_config(made, attn_implementation=attention).eval()


def save_model(
    folder: Path,
    labels: Sequence[str] | None = LABELS,
    kind: str = "bert",
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **config: Any,
) -> Path:
    """A random tiny classifier with its tokenizer as a `save_pretrained` folder."""
    make_model(kind, labels, seed, **config).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def train_quickly(checkpoint: Checkpoint, rows: Dataset, task: Task, steps: int = 60) -> None:
    """Plain training on the labels, for fixtures that need a model that knows something."""
    torch.manual_seed(0)
    model, tokenizer, _ = checkpoint
    encoded = encode(rows, tokenizer, task, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    order = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        batch = collate(encoded.__getitems__(order.choice(len(encoded), 32).tolist()), tokenizer)
        batch.pop("row")
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


# --- two runs at once ----------------------------------------------------------------------------------------------


class Held:
    """Called in the middle of a run's work, it holds it there until `both` lets it go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.go_on.wait(60)


def both(
    first: Callable[[], Any], second: Callable[[], Any], held: Held, capsys: pytest.CaptureFixture[str]
) -> tuple[tuple[Any, Any], str]:
    """A run that is held in its work, and one begun meanwhile that waits for it or does not; and what they said."""
    said = ""
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        while not held.begun.wait(0.01) and not one.done():
            pass
        two = pool.submit(second)
        while "waiting until it is done" not in said and not two.done():
            time.sleep(0.01)
            said += capsys.readouterr().err
        held.go_on.set()
        found = one.result(), two.result()
    return found, said + capsys.readouterr().err


# --- fixtures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of all tiny models. Do not change it."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def reviews() -> list[dict[str, Any]]:
    """120 reviews as rows with `text` and `label` (names)."""
    return make_reviews()


@pytest.fixture(scope="session")
def reviews_csv(tmp_path_factory: pytest.TempPathFactory, reviews: list[dict[str, Any]]) -> Path:
    """The reviews as a csv file."""
    return write_csv(tmp_path_factory.mktemp("reviews") / "reviews.csv", reviews)


@pytest.fixture(scope="session")
def reviews_jsonl(tmp_path_factory: pytest.TempPathFactory, reviews: list[dict[str, Any]]) -> Path:
    """The reviews as JSON lines."""
    return write_jsonl(tmp_path_factory.mktemp("reviews") / "reviews.jsonl", reviews)


@pytest.fixture(scope="session")
def reviews_parquet(tmp_path_factory: pytest.TempPathFactory, reviews: list[dict[str, Any]]) -> Path:
    """The reviews as parquet."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.parquet"
    Dataset.from_list(reviews).to_parquet(path)
    return path


@pytest.fixture(scope="session")
def reviews_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews as a folder saved by `datasets`, with its own train, validation and test splits."""
    path = tmp_path_factory.mktemp("reviews") / "saved"
    sizes = {"train": (80, 0), "validation": (20, 1), "test": (30, 2)}
    DatasetDict({name: Dataset.from_list(make_reviews(*size)) for name, size in sizes.items()}).save_to_disk(path)
    return path


@pytest.fixture(scope="session")
def unlabelled_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 more reviews without labels."""
    rows = [{"text": row["text"]} for row in make_reviews(50, seed=7)]
    return write_csv(tmp_path_factory.mktemp("reviews") / "unlabelled.csv", rows)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of four layers with the labels negative and positive. Do not write into it."""
    return save_model(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="session")
def tiny_teacher_dir(tmp_path_factory: pytest.TempPathFactory, reviews: list[dict[str, Any]]) -> Path:
    """The same shape, trained on the reviews until it knows them. Do not write into it."""
    folder = save_model(tmp_path_factory.mktemp("models") / "teacher", initializer_range=0.05)
    checkpoint = open_classifier(str(folder))
    task = Task("classification", LABELS)
    train_quickly(checkpoint, numbered(reviews), task)
    encoded = encode(numbered(reviews), checkpoint.tokenizer, task, 32)
    batch = collate(list(encoded), checkpoint.tokenizer)
    with torch.no_grad():
        logits = checkpoint.model(**{k: v for k, v in batch.items() if k not in ("row", "labels")}).logits
    assert (logits.argmax(-1) == batch["labels"]).float().mean() > 0.95, "the fixture's teacher did not learn"
    checkpoint.model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_teacher(tiny_teacher_dir: Path) -> Checkpoint:
    """The trained teacher, opened afresh."""
    return open_classifier(str(tiny_teacher_dir))


@pytest.fixture(scope="session")
def tiny_language_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random masked language model of the teacher's shape. Do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "language"
    torch.manual_seed(5)
    AutoModelForMaskedLM.from_config(make_model(initializer_range=0.05).config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus_txt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 lines of plain text."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(row["text"] + "\n" for row in make_reviews(300, seed=5)), "utf-8")
    return path


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel]:
    """Each architecture with a stack of layers: its name and a random model of four."""
    return request.param, make_model(request.param)


@pytest.fixture(scope="session")
def images_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and labels as arrays."""
    path = tmp_path_factory.mktemp("images") / "halves.npz"
    images, labels = make_images()
    np.savez(path, x=images, y=labels)
    return path


@pytest.fixture(scope="session")
def images_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of images as coloured files in folders by class, of several sizes."""
    root = tmp_path_factory.mktemp("folders")
    images, labels = make_images(60, seed=1)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = root / ("left", "right")[label]
        place.mkdir(exist_ok=True)
        Pillow.fromarray(image).convert("RGB").resize((8 + number % 3, 8)).save(place / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def table_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers and a name, of which the label follows."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(120):
        size, colour = draw.normal(50, 10), ("red", "green", "blue")[draw.integers(3)]
        label = "big" if size + 15 * (colour == "red") > 55 else "small"
        rows.append({"size": f"{size:.2f}", "weight": f"{draw.normal():.3f}", "colour": colour, "label": label})
    return write_csv(tmp_path_factory.mktemp("table") / "things.csv", rows)


@pytest.fixture(scope="session")
def image_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image transformer for images of 8 x 8 pixels in colour, as transformers saves it."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        id2label={0: "left", 1: "right"}, label2id={"left": 0, "right": 1},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vit") / "teacher"
    ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(size=size, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def table_teacher(tmp_path_factory: pytest.TempPathFactory, table_csv: Path) -> Path:
    """A forest over the table's columns, as skops saves it."""
    import skops.io
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    frame = Dataset.from_csv(str(table_csv)).to_pandas()
    columns = make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough")
    forest = make_pipeline(columns, RandomForestClassifier(20, random_state=0))
    forest.fit(frame[["size", "weight", "colour"]], frame["label"])
    path = tmp_path_factory.mktemp("forest") / "forest.skops"
    skops.io.dump(forest, path)
    return path


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_teacher_dir: Path, reviews_csv: Path) -> Callable[..., Recipe]:
    """Makes a small, quick recipe: `tiny_recipe("hinton", **{"training.epochs": 1})`; None drops a default override."""

    def make(method: str = "hinton", **overrides: Any) -> Recipe:
        settings: dict[str, Any] = {
            "data": str(reviews_csv),
            "teacher": str(tiny_teacher_dir),
            "output": str(tmp_path / "run"),
            "task.max_length": 32,
            "training.epochs": 2,
            "training.learning_rate": 1e-3,
            "training.batch_size": 16,
            "training.precision": "float32",
            "evaluation.speed": False,
            "evaluation.resamples": 100,
            "export": [],
            "baseline": False,
        }
        return load(method, {key: value for key, value in (settings | overrides).items() if value is not None})

    return make


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command line here: its exit code and everything that it printed."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["limbeck", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


STORED_ROWS, PER_SHARD = 23, 5  # five shards, the last of three rows


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores of knowledge in shards of a few rows."""
    monkeypatch.setattr(store, "SHARD_ROWS", PER_SHARD)
    monkeypatch.setattr(store, "ABREAST", 1)


@pytest.fixture(scope="session")
def texts() -> Dataset:
    """As many texts as make five such shards."""
    return Dataset.from_list([{"text": row["text"]} for row in make_reviews(STORED_ROWS, seed=3)])


def killed_after(step: int) -> str:
    """The beginning of a script whose training ends as by a kill, once a checkpoint of this step is written."""
    return (
        "import os\n"
        "from limbeck.training.checkpointing import Clock\n"
        "saved = Clock.on_save\n"
        "def on_save(self, args, state, control, **kwargs):\n"
        "    saved(self, args, state, control, **kwargs)\n"
        f"    if state.global_step >= {step}:\n"
        "        os._exit(9)\n"
        "Clock.on_save = on_save\n"
    )
