"""Reading tables from files, saved folders and the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, get_dataset_split_names, load_dataset, load_from_disk

from limbeck.data.arrays import read_npz
from limbeck.errors import InputError
from limbeck.recipe.data import Data, Source
from limbeck.recipe.sections import nearest

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "val", "valid", "validation_matched"),
    "test": ("test",),
    "unlabelled": ("unsupervised", "unlabelled", "unlabeled", "train"),
}
# Empty cells and "nan" are missing; words such as "None" and "NA" are text that people write.
_CSV: dict[str, Any] = {"keep_default_na": False, "na_values": ["", "nan", "NaN"]}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t", "quoting": 3}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}


@dataclass
class RawData:
    """Tables as they were read. A part that is to be cut from `train` is a fraction."""

    train: Dataset
    validation: Dataset | float
    test: Dataset | float
    unlabelled: Dataset | None = None


def read(source: Source, use: str, objects: Mapping[str, Any] | None = None) -> Dataset:
    """Read one table.

    Args:
        source: where.
        use: `train`, `validation`, `test` or `unlabelled`: which split to take where there are several.
        objects: datasets that the caller holds in memory, by the names that stand for them as paths.

    Raises:
        InputError: nothing there, not readable, empty, or no such split.
    """
    table = _open(source, objects or {})
    if isinstance(table, DatasetDict):
        name = source.split or _split_for(use, list(table))
        if name not in table:
            wanted = source.split or use
            raise InputError(f"{source.path} has no split '{wanted}'; {nearest(wanted, list(table))} Add split=NAME.")
        table = table[name]
    if len(table) == 0:
        raise InputError(f"{source.path} holds no examples")
    return table


def read_all(data: Data, objects: Mapping[str, Any] | None = None) -> RawData:
    """Read every table that the recipe names; parts it does not name come from the source's own splits, else 0.1."""
    objects = objects or {}
    train = read(data.train, "train", objects)
    parts: dict[str, Dataset | float] = {}
    for use in ("validation", "test"):
        given, source = getattr(data, use), source_of(data, use, objects)
        table = read(source, use, objects) if source is not None else None
        if given is None and table is not None and _hides_labels(table):
            table = None
        parts[use] = table if table is not None else (given or 0.1)
    unlabelled = read(data.unlabelled, "unlabelled", objects) if data.unlabelled else None
    return RawData(train, parts["validation"], parts["test"], unlabelled)


def source_of(data: Data, use: str, objects: Mapping[str, Any]) -> Source | None:
    """Where `validation` or `test` is read from: what the recipe names, else the training source's own split.

    Returns:
        None where the part is to be cut from the training examples.
    """
    given = getattr(data, use)
    if isinstance(given, Source):
        return given
    return _own_split(data.train, use, objects) if given is None else None


def _open(source: Source, objects: Mapping[str, Any]) -> Dataset | DatasetDict:
    if source.path in objects:
        return objects[source.path]
    if source.path.startswith("memory:"):
        raise InputError(f"this recipe was run on a dataset in memory ({source.path}); pass data=DATASET again")
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _from_folder(path)
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".bz2", ".xz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    if path.is_file():
        if kind == ".npz":
            return read_npz(path)
        if kind not in _READERS:
            raise InputError(f"{path} ends in '{kind}'; readable are {', '.join(_READERS)}, .npz and folders")
        builder, options = _READERS[kind]
        try:
            return load_dataset(builder, data_files=str(path), split="train", **options)
        except Exception as error:  # pandas, pyarrow and datasets each have their own errors for a broken file
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise InputError(f"{path} cannot be read as {builder}: {reason}") from None
    if kind in _READERS or source.path.startswith((".", "/", "~")) or source.path.count("/") > 1:
        raise InputError(f"no file or folder '{source.path}'; check the path")
    return _from_hub(source)


def _from_folder(path: Path) -> Dataset | DatasetDict:
    """What datasets saved, or images."""
    try:
        return load_from_disk(str(path))
    except (FileNotFoundError, ValueError):
        return _image_folder(path)
    except IndexError:  # what datasets makes of a table without rows
        raise InputError(f"{path} holds no examples") from None


def _image_folder(path: Path) -> DatasetDict:
    """A folder of images in folders named by class, within train, validation and test where it has these."""
    if not any(file.suffix.lower() in IMAGES for file in path.glob("*/*")) and not any(
        file.suffix.lower() in IMAGES for file in path.glob("*/*/*")
    ):
        raise InputError(
            f"{path} is a folder, but neither one saved by datasets (save_to_disk) nor one of images in class folders"
        )
    try:
        return load_dataset("imagefolder", data_dir=str(path))
    except Exception as error:  # a folder that datasets cannot tell the classes of
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise InputError(f"{path} cannot be read as images in class folders: {reason}") from None


def _from_hub(source: Source) -> Dataset | DatasetDict:
    try:
        return load_dataset(source.path, source.subset, revision=source.revision)
    except Exception as error:  # the hub client raises many kinds; each is a wrong name or no connection
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"'{source.path}' is neither a file here nor a dataset that the hub gave: {reason}") from None


def _split_for(use: str, names: list[str]) -> str:
    return next((name for name in SPLIT_NAMES[use] if name in names), names[0] if len(names) == 1 else "")


def _own_split(source: Source, use: str, objects: Mapping[str, Any]) -> Source | None:
    """The source's own validation or test split, unless that is what is learnt from."""
    path = Path(source.path).expanduser()
    if path.is_file() or isinstance(objects.get(source.path), Dataset):
        return None
    local = path.is_dir() or source.path in objects
    opened = _open(source, objects) if local else None
    names = _hub_splits(source) if opened is None else list(opened) if isinstance(opened, DatasetDict) else []
    name = _split_for(use, names) if len(names) > 1 else ""
    if not name or name == (source.split or _split_for("train", names)):
        return None
    return source.model_copy(update={"split": name})


def _hides_labels(table: Dataset) -> bool:
    """Whether a split comes without labels (GLUE's tests are all -1)."""
    kinds = {column: getattr(feature, "dtype", "") for column, feature in table.features.items()}
    hidden = [column for column, kind in kinds.items() if kind in ("int64", "float32", "float64")]
    return any(set(table[column][:]) == {-1} for column in hidden)


def _hub_splits(source: Source) -> list[str]:
    return list(get_dataset_split_names(source.path, source.subset, revision=source.revision))
