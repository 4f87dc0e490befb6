"""Knowledge behind a URL: it goes there as it is made, comes from there whole, and is asked for once."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from conftest import PER_SHARD, STORED_ROWS
from datasets import Dataset, load_from_disk
from test_knowledge import TWO, Fake, Killed, content, flip

from limbeck.errors import InputError, LimbeckError
from limbeck.knowledge import Store, label_texts, store
from limbeck.knowledge.labelling import Work
from limbeck.knowledge.mirror import Mirror

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An object server in this process that speaks S3, and a bucket's URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="limbeck")
    fsspec.config.conf["s3"] = {"key": "k", "secret": "s", "endpoint_url": endpoint}
    yield "s3://limbeck/knowledge"
    del fsspec.config.conf["s3"]
    server.stop()


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/there"
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def label(texts: Dataset, root: Path, url: str | None, teacher: Fake | None = None) -> tuple[Store, Fake]:
    teacher = teacher or Fake()
    return label_texts(teacher, texts, TWO, root, (1, -1), Work(url=url)), teacher


def test_another_machine_has_the_same_store_without_asking(texts, tmp_path, url):
    alone, _ = label(texts, tmp_path / "alone", None)
    first, asked = label(texts, tmp_path / "first", url)
    assert len(asked.asked) == STORED_ROWS
    second, not_asked = label(texts, tmp_path / "second", url)
    assert not_asked.asked == []
    assert content(first.folder) == content(second.folder) == content(alone.folder)
    fs, base = fsspec.core.url_to_fs(url)
    assert not fs.exists(f"{base}/{first.folder.name}/progress")


def test_another_machine_goes_on_where_one_was_killed(texts, tmp_path, url):
    with pytest.raises(Killed):
        label(texts, tmp_path / "first", url, Fake(dies_at_shard=2))
    finished, asked = label(texts, tmp_path / "second", url)
    assert asked.asked == texts["text"][2 * PER_SHARD :]
    alone, _ = label(texts, tmp_path / "alone", None)
    assert content(finished.folder) == content(alone.folder)
    again, _ = label(texts, tmp_path / "first", url)
    assert content(again.folder) == content(alone.folder)


def test_what_was_made_here_before_goes_there(texts, tmp_path, url):
    label(texts, tmp_path / "first", None)
    _, asked = label(texts, tmp_path / "first", url)
    assert asked.asked == []
    _, asked = label(texts, tmp_path / "second", url)
    assert asked.asked == []


def test_two_machines_share_the_work_of_one_run(texts, tmp_path):
    """Processes that share no folder: each asks about its part, and both end with the whole store."""
    texts.save_to_disk(tmp_path / "texts")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = f"file://{tmp_path}/there"
    for turn in ("made", "fetched"):
        machines = []
        for rank in range(2):
            known = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
            machine = os.environ | {name: str(value) for name, value in known.items()} | {"MASTER_ADDR": "127.0.0.1"}
            words = [sys.executable, __file__, str(tmp_path / "texts"), str(tmp_path / str(rank)), there]
            machines.append(subprocess.Popen(words, env=machine, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        said = [machine.communicate(timeout=120) for machine in machines]
        assert [machine.returncode for machine in machines] == [0, 0], said[0][1][-2000:] + said[1][1][-2000:]
        asked = [int(out.split()[-1]) for out, _ in said]
        assert sum(asked) == (STORED_ROWS if turn == "made" else 0)
        assert all(asked) == (turn == "made")
        alone, _ = label(texts, tmp_path / "alone", None)
        for rank in range(2):
            found = content(tmp_path / str(rank) / alone.folder.name)
            assert found | {"lock": b""} == content(alone.folder)
        for lost in ("1", "there"):  # the second time the first machine has the store, and nobody else
            shutil.rmtree(tmp_path / lost)


def test_a_damaged_object_is_named(texts, tmp_path):
    url = f"file://{tmp_path}/there"
    made, _ = label(texts, tmp_path / "first", url)
    flip(tmp_path / "there" / made.folder.name / store.shard_name(1), 200)
    with pytest.raises(InputError, match=r"there/.*/shard-00001\.arrow is damaged .*; delete it there and run"):
        label(texts, tmp_path / "second", url)
    (tmp_path / "there" / made.folder.name / store.shard_name(1)).unlink()
    mended, asked = label(texts, tmp_path / "second", url)
    assert asked.asked == texts["text"][PER_SHARD : 2 * PER_SHARD]
    assert content(mended.folder) == content(made.folder)
    third, not_asked = label(texts, tmp_path / "third", url)
    assert not_asked.asked == []
    assert content(third.folder) == content(made.folder)


def test_a_shard_without_a_note_is_made_again(texts, tmp_path):
    url = f"file://{tmp_path}/there"
    with pytest.raises(Killed):
        label(texts, tmp_path / "first", url, Fake(dies_at_shard=2))
    (folder,) = (tmp_path / "there").iterdir()
    (folder / "progress" / "shard-00001.arrow.json").unlink()
    _, asked = label(texts, tmp_path / "second", url)
    assert asked.asked == texts["text"][PER_SHARD:]


def test_urls_that_nothing_opens_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"knowledge=nonsense://x cannot be opened: .*nonsense"):
        Mirror("nonsense://x", "").check()
    with pytest.raises(InputError, match=r"knowledge=http://127.0.0.1:9/x can be read alone"):
        Mirror("http://127.0.0.1:9/x", "").check()


def test_a_bucket_that_is_not_there_is_refused(bucket):
    with pytest.raises(InputError, match=r"knowledge=s3://nobucket/x cannot be written to \(.*bucket"):
        Mirror("s3://nobucket/x", "").check()
    Mirror(bucket, "").check()


def test_a_connection_that_breaks_off_loses_nothing(texts, tmp_path, monkeypatch):
    url = f"file://{tmp_path}/there"
    real, sent = Mirror.push, []

    def breaking(self, folder, index):
        if index == 3:
            shutil.rmtree(tmp_path / "there")
            (tmp_path / "there").write_text("no folder any more")
        real(self, folder, index)
        sent.append(index)

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "push", breaking)
        with pytest.raises(LimbeckError, match=r"broke off .* what arrived is kept: run the same command again"):
            label(texts, tmp_path / "first", url)
    (tmp_path / "there").unlink()
    _, asked = label(texts, tmp_path / "first", url)
    assert asked.asked == texts["text"][4 * PER_SHARD :]
    second, not_asked = label(texts, tmp_path / "second", url)
    assert not_asked.asked == []
    assert len(second) == STORED_ROWS


def main(texts: str, root: str, url: str) -> None:
    """What each machine of a run does."""
    store.SHARD_ROWS, store.ABREAST = PER_SHARD, 1
    sys.stdout.write(f"{len(label(load_from_disk(texts), Path(root), url)[1].asked)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
