"""The benchmark against TRL, as far as it runs without TRL."""

from __future__ import annotations

import runpy
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from conftest import FILLER, make_causal, make_chat_tokenizer, write_jsonl
from datasets import load_dataset

from limbeck import hardware

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "peer_trl.py"))
TOKENIZER = make_chat_tokenizer()


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """A tiny teacher's folder."""
    make_causal(TOKENIZER).save_pretrained(tmp_path / "teacher")
    TOKENIZER.save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def table(path: Path, kind: str) -> str:
    """Text or conversations of differing lengths."""
    lines = [" ".join(FILLER[k % 7 : k % 7 + 4 + k % 9]) for k in range(60)]
    rows = [{"text": line} if kind == "plain text" else {"prompt": line, "completion": line[:20]} for line in lines]
    write_jsonl(path, rows)
    return str(path)


@pytest.mark.parametrize("kind", ["plain text", "conversations"])
def test_all_of_limbecks_sides_train_on_the_same_job(
    kind: str, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The teacher's batches are others where it is asked beforehand, and bfloat16 tells them apart.
    monkeypatch.setattr(hardware, "_cpu_has_bfloat16", lambda: False)
    data = table(tmp_path / "data.jsonl", kind)
    options = Namespace(teacher=teacher, data=data, length=24 if kind == "plain text" else 64, batch=2, steps=2, seed=1)
    place = tmp_path / "job"
    place.mkdir()
    BENCHMARK["set_up"](options, place)
    told = BENCHMARK["json"].loads((place / "job.json").read_text())
    assert told["kind"] == kind
    assert told["student"]["layers"] == 2
    assert len(told["tokens"]) == 3
    if kind == "plain text":
        assert told["tokens"] == [48] * 3
        assert told["predicted"] == 6 * 23
    else:
        assert told["predicted"] < sum(told["tokens"]) / 2
    train, held = (load_dataset("json", data_files=str(place / f"{n}.jsonl"))["train"] for n in ("train", "held"))
    column = train.column_names[0]
    if kind == "conversations":
        assert len(train) == 6
    assert len(held) >= 1
    assert column in ("text", "messages")
    found = {side: BENCHMARK["limbeck_side"](options, place, side) for side in BENCHMARK["KEPT"]}
    for side, figures in found.items():
        assert len(figures["seconds"]) == 2, side  # of three updates the first is not counted
        assert len(figures["losses"]) == 3, side
        assert ("asking_seconds" in figures) == ("along" not in side)
        if sys.platform == "linux":
            assert figures["peak_bytes"] is not None
    exact, kept = found["limbeck, teacher along"]["losses"], found["limbeck, all words kept"]["losses"]
    assert kept[0] == pytest.approx(exact[0], abs=1e-4)
    # What stands in for TRL's sides here is the exact loss, which theirs is.
    rounds = [{**found, **{name: {"losses": exact} for name in BENCHMARK["PEERS"]}}]
    assert BENCHMARK["check"](rounds, found["limbeck, all words kept"]) < 1e-4
    rounds[0]["trl"] = {"losses": [loss + 0.01 for loss in exact]}
    with pytest.raises(SystemExit, match="not the same job"):
        BENCHMARK["check"](rounds, found["limbeck, all words kept"])


def test_ratios_are_of_the_same_round_and_count_what_asking_costs() -> None:
    def side(seconds: float, peak: int, **more: Any) -> dict[str, Any]:
        return {"seconds": [seconds / 2, seconds / 2], "peak_bytes": peak, **more}

    def one(slow: float) -> dict[str, Any]:
        asked = {"asking_seconds": 3 * slow, "asking_peak_bytes": 5}
        return {
            "trl": side(4 * slow, 100),
            "trl, checkpointing": side(5 * slow, 60),
            "limbeck": side(slow, 25, **asked),
            "limbeck, checkpointing": side(2 * slow, 10),
            "limbeck, teacher along": side(2 * slow, 30),
        }

    found = BENCHMARK["summary"]([one(1.0), one(3.0)], [100, 200, 200])
    rates = found["tokens per second"]
    assert rates["limbeck"] == {"median": pytest.approx(800 / 3), "low": pytest.approx(400 / 3), "high": 400}
    assert rates["limbeck, asking"]["high"] == pytest.approx(500 / 3)
    # An epoch of the 500 tokens: 3 s of asking and 500 / 400 s of training; three epochs share the 3 s.
    assert rates["limbeck, asking and 1 epoch"]["high"] == pytest.approx(500 / (3 + 1.25))
    assert rates["limbeck, asking and 3 epochs"]["high"] == pytest.approx(1500 / (3 + 3.75))
    assert found["speed"]["limbeck over trl"] == {name: pytest.approx(4) for name in ("median", "low", "high")}
    assert found["memory"]["limbeck over trl"]["median"] == 0.25
    assert found["memory"]["limbeck, checkpointing over trl, checkpointing"]["median"] == pytest.approx(1 / 6)
    assert found["speed"]["limbeck, teacher along over trl"]["low"] == pytest.approx(2)
