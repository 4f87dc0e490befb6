"""A teacher behind a server that fails, asked about many texts at the rate that the server allows.

    python benchmarks/api_calls.py [--calls 10000] [--rate 100] [--kills 3] [--output FILE]

The server is a process of its own (failing_server.py). Some of its answers are 429 with and without Retry-After, 500,
503, slower than the timeout, cut off, torn, or none of the labels. It counts what it charged for, once for requests of
one Idempotency-Key, as large providers do. The asking process is killed a few times in the middle
of its work, and the same call goes on.

Every text must be labelled as the server would, exactly one useful answer be charged for each, and nothing be asked
again by another call. The wall time of a run without kills is compared with the fastest possible: so many texts at the
server's rate, as if no request failed. Writes benchmarks/results/api_calls.json; exit 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from datasets import Dataset
from failing_server import Service

from limbeck import hardware
from limbeck.knowledge import label_texts
from limbeck.recipe.teacher import TeacherModel
from limbeck.tasks import Task
from limbeck.teachers import ApiTeacher, ask_servers

LABELS = ("negative", "positive", "mixed")
CHANCE = {
    "429": 0.003,
    "429:1": 0.003,
    "500": 0.003,
    "503": 0.003,
    "slow": 0.002,
    "cut": 0.003,
    "torn": 0.003,
    "wrong": 0.003,
}
"""Failures by their share of all requests."""
TIMEOUT, SLOW = 2.0, 4.0


class Failing:
    """The failing server's process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        script = str(Path(__file__).parent / "failing_server.py")
        words = [sys.executable, script, "-", json.dumps(plan)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def stats(self) -> dict[str, Any]:
        """What it was asked and what it charged."""
        with urlopen(f"http://127.0.0.1:{self.port}/stats") as answer:
            return dict(json.load(answer))

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def texts_of(calls: int) -> Dataset:
    return Dataset.from_dict({"text": [f"example number {number}" for number in range(calls)]})


def ask(port: int, calls: int, rate: float, root: Path) -> ApiTeacher:
    """Label all texts, as a run does."""
    model = TeacherModel.model_validate(
        {
            "model": "teacher",
            "server": f"http://127.0.0.1:{port}/v1",
            "timeout": TIMEOUT,
            "rate": {"requests_per_second": rate, "at_once": 64},
            "price": {"call": 0.001, "prompt": 0.15, "answer": 0.6},
        }
    )
    task, texts = Task("classification", LABELS), texts_of(calls)
    teacher = ApiTeacher(model, task, root)
    ask_servers(teacher, texts)
    label_texts(teacher, texts, task, root)
    return teacher


def measure(calls: int, rate: float, kills: int, chance: dict[str, float], scratch: Path) -> dict[str, Any]:
    """One run: what was labelled, charged and taken."""
    plan = {"labels": LABELS, "rate": rate, "chance": chance, "slow": SLOW, "delay": 0.02}
    server = Failing(plan)
    try:
        started = time.monotonic()
        for turn in range(kills):
            child = multiprocessing.get_context("spawn").Process(target=ask, args=(server.port, calls, rate, scratch))
            child.start()
            goal = calls * (turn + 1) / (kills + 1)
            while server.stats["charged"] < goal and child.is_alive():
                time.sleep(0.05)
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)
            child.join()
        teacher = ask(server.port, calls, rate, scratch)
        seconds = time.monotonic() - started
        stats = server.stats
        ask(server.port, calls, rate, scratch)
        again = server.stats["requests"] - stats["requests"]
        said = np.asarray(teacher.ask(texts_of(calls)).logits).argmax(-1)
        spent = teacher.spent([texts_of(calls)])
    finally:
        server.stop()
    truth = [Service("-", plan).number(text) for text in texts_of(calls)["text"]]
    return {
        "calls": calls,
        "rate": rate,
        "kills": kills,
        "labelled": len(said),
        "labelled right": int((said == truth).sum()),
        "left out": spent["left_out"],
        "requests": stats["requests"],
        "failures met": stats["failures"],
        "charged": stats["charged"],
        "useful answers charged": stats["useful"],
        "texts charged twice for a useful answer": stats["useful twice"],
        "answers accounted for": spent["calls"],
        "money": spent["money"],
        "asked again by another call": again,
        "seconds": seconds,
        "fastest possible": calls / rate,
        "over the fastest": seconds / (calls / rate) - 1,
        "over what its requests take": seconds / (stats["requests"] / rate) - 1,
        "most under way": stats["most under way"],
    }


def holds(found: dict[str, Any]) -> bool:
    """Whether every text was labelled once, and none paid for twice."""
    return (
        found["labelled"] == found["labelled right"] == found["useful answers charged"] == found["calls"]
        and found["texts charged twice for a useful answer"] == 0
        and found["left out"] == 0
        and found["asked again by another call"] == 0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second that the server allows")
    parser.add_argument("--kills", type=int, default=3, help="of a second run")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/api_calls.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        whole = measure(options.calls, options.rate, 0, CHANCE, Path(name) / "whole")
        print(json.dumps(whole, indent=1), flush=True)
        killed = measure(options.calls, options.rate, options.kills, CHANCE, Path(name) / "killed")
    result = {"machine": hardware.describe(), "chance": CHANCE, "whole": whole, "killed": killed}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(not (holds(whole) and holds(killed) and whole["over the fastest"] <= 0.1))


if __name__ == "__main__":
    main()
