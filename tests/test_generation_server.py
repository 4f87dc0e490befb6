"""A teacher behind a server: a real process that answers over HTTP, and fails in every way that servers do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from test_generation import files, recipe_file, store_of

from limbeck.data.chat import CHAT
from limbeck.errors import InputError, LimbeckError
from limbeck.generation import Answers, ServerTeacher, generate
from limbeck.recipe.data import Generation
from limbeck.recipe.teacher import TeacherModel

KEY = "sk-Secret-123"


class Server:
    """The server's process: its address and what it was asked."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.log = folder / "requests.jsonl"
        script = str(Path(__file__).parent / "chat_server.py")
        words = [sys.executable, script, str(self.log), json.dumps(plan)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.is_file() else []

    def times(self, prompt: str) -> list[float]:
        return [each["time"] for each in self.requests if each["prompt"] == prompt]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers: `serve(fail={"hello": ["500"]})`."""
    servers: list[Server] = []

    def start(**plan: Any) -> Server:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        servers.append(Server(folder, plan))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


def prompts(*texts: str) -> Dataset:
    return Dataset.from_dict({"messages": [[{"role": "user", "content": text}] for text in texts]}, features=CHAT)


def ask(
    server: Server, texts: Dataset, root: Path, model: dict[str, Any] | None = None, retries: int = 3, **settings: Any
) -> Answers:
    given = Generation(**{"max_new_tokens": 7, "batch_size": 4, **settings})
    teacher = TeacherModel(**{"model": "teacher", "server": server.address, "timeout": 1.5, **(model or {})})
    return generate(ServerTeacher(teacher, given, retries), texts, given, root, seed=3)


def said(answers: Answers) -> list[str]:
    return [messages[-1]["content"] for messages in answers.table["messages"]]


# --- answers ------------------------------------------------------------------------------------------------------


def test_each_prompt_gets_its_answer_in_the_order_of_the_prompts(serve, tmp_path):
    server, texts = serve(delay=0.02), [f"prompt {number}" for number in range(30)]
    answers = ask(server, prompts(*texts), tmp_path)
    assert said(answers) == [f"You said {text}!" for text in texts]
    assert [messages[0] for messages in answers.table["messages"]] == [{"role": "user", "content": t} for t in texts]
    assert answers.table["row"][:] == list(range(30))
    assert answers.cost() == "300 tokens of prompts and 150 of answers"
    assert 2 <= max(each["under_way"] for each in server.requests) <= 4  # batch_size, and not one after the other
    assert len(server.requests) == 30


def test_greedy_requests_say_so_and_sampled_ones_have_a_seed_each(serve, tmp_path):
    server = serve()
    ask(server, prompts("a"), tmp_path)
    body = server.requests[0]["body"]
    assert body == {
        "model": "teacher", "messages": [{"role": "user", "content": "a"}], "max_tokens": 7, "temperature": 0.0,
    }  # fmt: skip
    ask(server, prompts("a", "b"), tmp_path, temperature=0.7, top_p=0.9, samples=3)
    drawn = [each["body"] for each in server.requests[1:]]
    assert len({each["seed"] for each in drawn}) == 6
    assert all(0 <= each["seed"] < 2**31 and (each["temperature"], each["top_p"]) == (0.7, 0.9) for each in drawn)


def test_an_answer_at_the_limit_of_tokens_is_noted_as_cut(serve, tmp_path):
    answers = ask(serve(), prompts("short", "a long one"), tmp_path)
    assert answers.table["cut"][:] == [False, True]
    assert [m[-1]["content"] for m in answers.usable(cut=False)["messages"]] == ["You said short!"]


def test_a_server_that_knows_the_limit_by_its_newer_name_is_asked_with_that(serve, tmp_path):
    server = serve(limit="max_completion_tokens")
    assert len(ask(server, prompts("a", "b", "c"), tmp_path, batch_size=1).table) == 3
    names = [set(each["body"]) & {"max_tokens", "max_completion_tokens"} for each in server.requests]
    assert names == [{"max_tokens"}] + [{"max_completion_tokens"}] * 3


# --- failures for now ---------------------------------------------------------------------------------------------


def test_failures_for_now_are_tried_again_and_answers_are_as_if_there_were_none(serve, tmp_path):
    failures = {"a": ["500"], "b": ["cut"], "c": ["slow"], "d": ["503", "502"], "e": ["429"], "f": []}
    server = serve(fail=failures)
    answers = ask(server, prompts(*failures), tmp_path / "failing", batch_size=6)
    assert Counter(each["prompt"] for each in server.requests) == {p: len(f) + 1 for p, f in failures.items()}
    plain = ask(server, prompts(*failures), tmp_path / "plain", batch_size=6)
    assert files(answers.folder) == files(plain.folder)


def test_retry_after_is_honoured_and_each_wait_is_longer_than_the_last(serve, tmp_path):
    server = serve(fail={"asked to wait": ["429:1.6"], "left alone": ["500", "500", "500"]})
    ask(server, prompts("asked to wait", "left alone"), tmp_path)
    first, second = server.times("asked to wait")
    assert second - first >= 1.6  # without the header it would be at most 0.5
    times = server.times("left alone")
    waits = [b - a for a, b in pairwise(times)]
    assert waits[0] < waits[1] < waits[2]
    assert waits[0] >= 0.37


def test_a_server_that_keeps_failing_ends_the_run_in_a_sentence_and_loses_nothing(serve, tmp_path):
    texts = prompts(*(f"p{number}" for number in range(6)), "bad")
    server = serve(fail={"bad": ["500"] * 2})
    with pytest.raises(LimbeckError, match=r"failed 2 times at row 7 of the prompts .*failed on purpose") as caught:
        ask(server, texts, tmp_path, retries=1)
    assert not isinstance(caught.value, InputError)
    answers = ask(server, texts, tmp_path, retries=1)
    assert len(answers.table) == 7
    assert Counter(each["prompt"] for each in server.requests) == {**{f"p{n}": 1 for n in range(6)}, "bad": 3}


# --- failures for good --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["html", "torn", "empty"])
def test_an_answer_that_is_no_chat_completion_is_named(serve, tmp_path, failure):
    server = serve(fail={"b": [failure] * 3, "c": [failure]})  # once may be the way; three times is another server
    with pytest.raises(LimbeckError, match="answered row 2 of the prompts with something else than a chat completion"):
        ask(server, prompts("a", "b", "c"), tmp_path, batch_size=1)
    assert len(ask(server, prompts("a", "b", "c"), tmp_path, batch_size=1).table) == 3
    assert Counter(each["prompt"] for each in server.requests) == {"a": 1, "b": 4, "c": 2}


def test_a_wrong_or_missing_key_is_refused_at_once_and_never_shown(serve, tmp_path, monkeypatch):
    server = serve(key="another")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with pytest.raises(InputError, match="refused the key in TEACHER_KEY with status 401") as caught:
        ask(server, prompts("a"), tmp_path, {"key": "TEACHER_KEY"})
    assert KEY not in str(caught.value)
    with pytest.raises(InputError, match=r"refused a request without a key \(teacher.key=VARIABLE\)"):
        ask(server, prompts("a"), tmp_path)
    assert len(server.requests) == 2  # neither was tried again
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(InputError, match=r"teacher.key is TEACHER_KEY, but no such environment variable is set"):
        ask(server, prompts("a"), tmp_path, {"key": "TEACHER_KEY"})


def test_the_key_is_sent_and_kept_nowhere(serve, tmp_path, monkeypatch, capfd):
    server = serve(key=KEY, fail={"b": ["400"]})
    monkeypatch.setenv("TEACHER_KEY", KEY)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "for another server")
    with pytest.raises(InputError, match=r"refused row 2 .* status 400: .*failed on purpose for \*\*\*"):
        ask(server, prompts("a", "b"), tmp_path / "kept", {"key": "TEACHER_KEY"}, batch_size=1)
    ask(server, prompts("a", "b"), tmp_path / "kept", {"key": "TEACHER_KEY"})
    kept = b"".join(path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file())
    assert b"You said b!" in kept
    assert KEY.encode() not in kept
    assert KEY not in "".join(capfd.readouterr())
    open_server = serve()
    ask(open_server, prompts("a"), tmp_path / "open")
    assert "for another server" not in json.dumps(open_server.requests)


def test_an_unknown_model_and_a_wrong_address_are_named(serve, tmp_path):
    server = serve()
    with pytest.raises(InputError, match=r"knows no model 'other'.*the model `other` does not exist"):
        ask(server, prompts("a"), tmp_path, {"model": "other"})
    with pytest.raises(InputError, match=r"no address of chat completions, which mostly end in /v1 \(status 404"):
        ask(server, prompts("a"), tmp_path, {"server": server.address.removesuffix("/v1")})


def test_a_server_that_is_not_there_is_refused_before_anything_is_asked(serve, tmp_path):
    server = serve()
    server.process.kill()
    server.process.wait()
    with pytest.raises(InputError, match=r"no connection to teacher.server=http://127.0.0.1:.* is it running"):
        ask(server, prompts("a"), tmp_path, retries=0)


# --- stopped and killed -------------------------------------------------------------------------------------------


def test_the_limit_of_tokens_stops_and_the_same_call_goes_on_without_asking_twice(serve, tmp_path):
    server, texts = serve(), prompts(*(f"p{number}" for number in range(10)))
    for kept in (4, 8):  # 15 tokens an answer: the fourth passes 50
        with pytest.raises(LimbeckError, match=f"token_limit is 50; {kept} of 10 answers are kept"):
            ask(server, texts, tmp_path, token_limit=50, batch_size=1)
        assert len(server.requests) == kept
    answers = ask(server, texts, tmp_path, token_limit=50, batch_size=1)
    assert len(server.requests) == 10
    whole = ask(server, texts, tmp_path / "whole", batch_size=1)
    assert files(answers.folder) == files(whole.folder)


def test_a_limit_cannot_be_held_where_the_server_does_not_count(serve, tmp_path):
    server = serve(usage=False)
    with pytest.raises(InputError, match=r"does not count tokens, so data.generation.token_limit=50 cannot be held"):
        ask(server, prompts("a"), tmp_path, token_limit=50)
    assert ask(server, prompts("a"), tmp_path).cost() == "the server did not count tokens"


def test_a_killed_command_goes_on_and_pays_for_no_kept_answer_twice(serve, tmp_path, command):
    server = serve(hold=(12, 14))
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"p{number}"}) + "\n" for number in range(40)))
    words = ["generate", str(recipe_file(tmp_path)), f"teacher.server={server.address}", "teacher.model=teacher"]
    words += [f"data={data}", "data.generation.batch_size=2", f"output={tmp_path / 'run'}"]
    killed = subprocess.Popen([sys.executable, "-m", "limbeck", *words], env={**os.environ}, start_new_session=True)
    kept = tmp_path / "run" / "knowledge"
    while killed.poll() is None:  # until two requests hang and the answers to all before them are written down
        journals = [path.read_bytes().count(b"\n") for path in kept.rglob("journal-*")]
        if len(server.requests) == 14 and sum(journals) == 12:
            break
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert len(server.requests) == 14
    code, printed = command(*words)
    assert code == 0
    assert "40 answers in" in printed
    assert "cost: 400 tokens of prompts and 200 of answers" in printed
    asked = Counter(each["prompt"] for each in server.requests)
    assert len(asked) == 40
    assert sum(asked.values()) == 42  # those under way when it was killed are asked again
    assert command(*words)[0] == 0
    assert len(server.requests) == sum(asked.values())  # all is kept
    assert command(*words[:-1], f"output={tmp_path / 'whole'}")[0] == 0
    assert files(store_of(tmp_path / "run" / "knowledge")) == files(store_of(tmp_path / "whole" / "knowledge"))
