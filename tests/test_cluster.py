"""Labelling by workers on a Ray cluster: the bytes of one machine, whatever dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LABELS, PER_SHARD, make_model, make_tokenizer
from test_knowledge import content

from limbeck import label
from limbeck.checkpoints import Checkpoint
from limbeck.errors import InputError, LimbeckError
from limbeck.knowledge import label_texts
from limbeck.knowledge.cluster import cores_each
from limbeck.knowledge.labelling import Work
from limbeck.tasks import Task
from limbeck.teachers import HuggingFaceModel

TWO = Task("classification", LABELS)
pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - beside the other tests they would hardly run
    import ray

    yield
    ray.shutdown()


def teacher() -> HuggingFaceModel:
    return HuggingFaceModel(Checkpoint(make_model(), make_tokenizer(), None), TWO)


def test_workers_leave_the_bytes_of_one_machine_though_one_is_killed(texts, tmp_path):
    died = tmp_path / "died"

    class Dying(HuggingFaceModel):
        def ask(self, texts, features=()):
            if texts["text"][0] == third and not died.exists():
                died.touch()
                os._exit(1)  # as a kill does: nothing is cleaned up
            return super().ask(texts, features)

    third = texts["text"][2 * PER_SHARD]
    alone = label_texts(teacher(), texts, TWO, tmp_path / "alone", (1,))
    dying = Dying(Checkpoint(make_model(), make_tokenizer(), None), TWO)
    spread = label_texts(dying, texts, TWO, tmp_path / "spread", (1,), Work(ray=True, workers=2))
    assert died.exists()
    assert content(spread.folder) == content(alone.folder)
    url = f"file://{tmp_path}/there"
    label_texts(teacher(), texts, TWO, tmp_path / "driver", (1,), Work(ray=True, workers=1, url=url))
    elsewhere = label_texts(teacher(), texts, TWO, tmp_path / "elsewhere", (1,), Work(url=url))
    assert content(elsewhere.folder) == content(alone.folder)


def test_a_worker_that_fails_is_told_in_a_sentence_and_the_rest_is_kept(texts, tmp_path):
    class Failing(HuggingFaceModel):
        def ask(self, texts, features=()):
            if texts["text"][0] == last:
                raise ZeroDivisionError("a teacher's own mistake")
            return super().ask(texts, features)

    last = texts["text"][4 * PER_SHARD]
    failing = Failing(Checkpoint(make_model(), make_tokenizer(), None), TWO)
    with pytest.raises(LimbeckError, match=r"a worker failed .*a teacher's own mistake.*run the same command again"):
        label_texts(failing, texts, TWO, tmp_path / "spread", (), Work(ray=True, workers=1))
    finished = label_texts(teacher(), texts, TWO, tmp_path / "spread")
    alone = label_texts(teacher(), texts, TWO, tmp_path / "alone")
    assert content(finished.folder) == content(alone.folder)


def test_more_workers_than_the_cluster_has_room_for_are_refused(texts, tmp_path):
    with pytest.raises(InputError, match=r"labelling\.workers=4096, but the cluster has \d+ (cores|GPUs)"):
        label_texts(teacher(), texts, TWO, tmp_path, (), Work(ray=True, workers=4096))


def test_every_worker_finds_room_on_a_machine():
    assert cores_each([4, 12], 2) == 6
    assert cores_each([3, 3], 3) == 1
    assert cores_each([16], 1) == 16
    assert cores_each([2, 0, 2], 4) == 1


def test_the_command_labels_on_a_cluster(tiny_teacher_dir: Path, reviews_csv: Path, tmp_path: Path):
    from limbeck.cli import app, main

    words = [f"teacher={tiny_teacher_dir}", f"data={reviews_csv}", "student.layers=1", f"output={tmp_path}/run"]
    with pytest.raises(SystemExit) as done:
        main(lambda: app(["label", *words, "--engine", "ray", "--workers", "1"]))
    assert done.value.code == 0
    here = label(teacher=str(tiny_teacher_dir), data=str(reviews_csv), student={"layers": 1}, output=tmp_path / "here")
    (made,) = (tmp_path / "run" / "knowledge").glob("*/manifest.json")
    assert content(made.parent) == content(here.folder)


def test_an_unknown_engine_is_refused(tiny_teacher_dir: Path, reviews_csv: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"labelling\.engine.*dask"):
        label(teacher=str(tiny_teacher_dir), data=str(reviews_csv), output=tmp_path, labelling="dask")


def test_a_server_is_asked_by_one_process(tmp_path: Path, reviews_csv: Path, tiny_teacher_dir: Path):
    with pytest.raises(InputError, match=r"behind a server, which one process asks; drop labelling\.engine=ray"):
        label(
            teacher={"server": "http://localhost:1/v1", "model": "m"},
            data=str(reviews_csv),
            student=str(tiny_teacher_dir),
            output=tmp_path,
            labelling="ray",
        )
