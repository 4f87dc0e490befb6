"""Teachers behind an API: a real process that answers over HTTP and fails in every way, paid once for each text."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, LABELS, make_reviews, write_csv
from datasets import Dataset
from scipy.special import log_softmax, softmax

from limbeck import api
from limbeck.errors import InputError, LimbeckError
from limbeck.knowledge import label_texts
from limbeck.recipe import load
from limbeck.recipe.teacher import Teacher, TeacherModel
from limbeck.signals import Signals
from limbeck.tasks import Task
from limbeck.teachers import ApiTeacher, Ensemble, ask_servers, open_teacher
from limbeck.teachers.said import at, find_label, find_labels, label_logs, score_logs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TWO = Task("classification", LABELS)
THREE = Task("classification", ("negative", "positive", "mixed"))
MANY = Task("multi-label", ("toxic", "insult", "threat"))
KEY = "sk-Secret-123"
WORDS = {"negative": list(BAD), "positive": list(GOOD)}


class Server:
    """The failing server's process."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.log = folder / "requests.jsonl"
        words = [sys.executable, str(BENCHMARKS / "failing_server.py"), str(self.log), json.dumps(plan)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.root = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.is_file() else []

    @property
    def stats(self) -> dict[str, Any]:
        with urlopen(f"{self.root}/stats") as answer:
            return dict(json.load(answer))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers: `serve(labels=LABELS, fail={"text": ["500"]})`."""
    servers: list[Server] = []

    def start(labels: Any = LABELS, **plan: Any) -> Server:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        servers.append(Server(folder, {"labels": labels, "words": WORDS, **plan}))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


def section(server: Server, path: str = "/v1", **settings: Any) -> TeacherModel:
    given = {"model": "teacher", "server": server.root + path, "timeout": 1.5, **settings}
    return TeacherModel.model_validate(given)


def teacher(server: Server, root: Path, task: Task = TWO, retries: int = 4, **settings: Any) -> ApiTeacher:
    return ApiTeacher(section(server, **settings), task, root / "knowledge", retries)


def table(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": list(texts)})


def many(count: int) -> Dataset:
    return table(*(f"text {number}" for number in range(count)))


SOFT = log_softmax(np.log([[0.9, 0.1], [0.1, 0.9]]), -1)


# --- what is said -------------------------------------------------------------------------------------------------


def token(written: str, **listed: float) -> dict[str, Any]:
    """A token of an answer, with probabilities of what it might have been."""
    others = [{"token": text, "logprob": float(np.log(p))} for text, p in listed.items()]
    return {"token": written, "logprob": float(np.log(listed[written])), "top_logprobs": others}


def test_tokens_count_for_the_label_that_they_begin() -> None:
    said = [token("pos", **{"pos": 0.5, " Positive": 0.2, "NEG": 0.1, "neg": 0.1, "I": 0.05})]
    p = np.exp(label_logs(said, LABELS))
    np.testing.assert_allclose(p, [0.2 / 0.9, 0.7 / 0.9], atol=1e-5)


def test_labels_that_begin_alike_share_the_mass_of_their_beginning() -> None:
    labels = ("very good", "very bad", "fair")
    said = [token("very", **{"very": 0.8, "fair": 0.15}), token(" good", **{" good": 0.6, " bad": 0.4})]
    np.testing.assert_allclose(np.exp(label_logs(said, labels)), np.array([0.48, 0.32, 0.15]) / 0.95, atol=1e-5)
    ended = [token("good", **{"good": 0.7, "bad": 0.3})]  # it might have gone on to "good enough", and did not
    assert np.argmax(label_logs(ended, ("good", "good enough", "bad"))) == 0


def test_a_label_that_is_nowhere_listed_is_no_likelier_than_what_is() -> None:
    logs = label_logs([token("a", a=0.9, b=0.06)], ("a", "b", "c", "d"))
    p = np.exp(logs)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert p[2] == p[3] == pytest.approx(0.02, abs=1e-5)  # the 0.04 that are left, shared by two
    assert np.exp(label_logs([token("a", a=0.5, b=0.01)], ("a", "b", "c")))[2] <= 0.01 / 0.51  # though 0.49 are left


def test_answers_are_labels_whatever_their_case_and_punctuation() -> None:
    assert [find_label(text, LABELS) for text in ("Positive.", ' "NEGATIVE"\n', "very positive", "")] == [
        1,
        0,
        None,
        None,
    ]
    assert find_labels("Insult, threat", MANY.labels) == [1, 2]
    assert find_labels("None.", MANY.labels) == []
    assert find_labels("insult, rude", MANY.labels) is None
    assert find_labels("", MANY.labels) is None


def test_paths_and_scores_that_are_given_in_part() -> None:
    said = [[{"label": "a", "score": 0.7}, {"label": "b", "score": 0.2}]]
    assert at(said, "0.*.score") == [0.7, 0.2]
    assert at({"x": [{"y": 3}]}, "x.0.y") == 3
    for wrong in ("1", "0.0.none", "0.label"):
        with pytest.raises((LookupError, ValueError, TypeError)):
            at(said, wrong)
    np.testing.assert_allclose(np.exp(score_logs({0: 0.7, 1: 0.2}, 4)), [0.7, 0.2, 0.05, 0.05], atol=1e-5)
    np.testing.assert_allclose(np.exp(score_logs({1: 0.6}, 2)), [0.4, 0.6], atol=1e-5)


# --- asked by chat ------------------------------------------------------------------------------------------------


def test_log_probabilities_are_learnt_from_where_the_server_gives_them(serve, tmp_path):
    server = serve()
    model = teacher(server, tmp_path)
    said = model.ask(table("a good book", "a bad book", "a good book"))
    assert not said.hard
    assert said.logits.dtype == np.float32
    np.testing.assert_allclose(said.logits, SOFT[[1, 0, 1]], atol=1e-5)
    assert len(server.requests) == 2  # equal texts are asked about once
    body = server.requests[0]["body"]
    assert body["messages"][0]["content"].endswith("nothing else: negative, positive\n\nText: a good book")
    assert (body["temperature"], body["logprobs"], body["top_logprobs"]) == (0.0, True, 20)


def test_a_server_that_lists_fewer_tokens_is_asked_for_fewer(serve, tmp_path):
    server = serve(most=5)
    np.testing.assert_allclose(teacher(server, tmp_path).ask(table("good", "bad")).logits, SOFT[[1, 0]], atol=1e-5)
    assert [each["body"].get("top_logprobs") for each in server.requests] == [20, 5, 5]


def test_without_log_probabilities_the_label_itself_is_kept_as_what_it_is(serve, tmp_path):
    server = serve(logprobs=False)
    model = teacher(server, tmp_path)
    said = model.ask(table("good", "bad", "a good one"))
    assert said.hard
    assert model.hard
    for temperature in (1, 4):
        np.testing.assert_array_equal(softmax(said.logits / temperature, -1), np.eye(2)[[1, 0, 1]])
    assert [each["body"].get("logprobs") for each in server.requests] == [True, None, None]  # one shows it
    with pytest.raises(InputError, match=r"gives no log-probabilities; give teacher.chat.probabilities=false"):
        teacher(server, tmp_path, chat={"probabilities": True}).ask(table("good"))


def test_the_prompt_the_system_and_the_body_are_the_recipes(serve, tmp_path):
    server = serve()
    chat = {
        "prompt": "Is {this} {text} of {labels}?\nText: {text}",
        "system": "You sort by {labels}.",
        "body": {"temperature": None, "structured_outputs": {"choice": ["negative", "positive"]}},
    }
    teacher(server, tmp_path, chat=chat).ask(table("good {labels}"))
    body = server.requests[0]["body"]
    assert [turn["content"] for turn in body["messages"]] == [
        "You sort by negative, positive.",
        "Is {this} good {labels} of negative, positive?\nText: good {labels}",  # a text's own braces are its own
    ]
    assert body["structured_outputs"] == {"choice": ["negative", "positive"]}
    assert "temperature" not in body


def test_several_labels_are_a_list(serve, tmp_path):
    server = serve(labels=MANY.labels)
    texts = many(12)
    said = teacher(server, tmp_path, MANY).ask(texts)
    assert said.hard
    on = said.logits > 0
    assert set(map(tuple, on.tolist())) == {(False, False, False), (False, True, False), (False, False, True)}
    assert set(np.unique(said.logits)) == {-1e4, 1e4}


def test_an_answer_that_is_no_label_is_asked_for_again_and_then_left_out(serve, tmp_path):
    server = serve(fail={"bad luck": ["wrong"] * 5, "good once": ["wrong"]})
    model, texts = teacher(server, tmp_path), table("good", "bad luck", "good once", "bad")
    assert ask_servers(model, texts) == [0, 2, 3]
    asked = Counter(each["text"] for each in server.requests)
    assert asked == {"good": 1, "bad luck": 3, "good once": 2, "bad": 1}
    turns = [each["body"]["messages"] for each in server.requests if each["text"] == "bad luck"][-1]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert turns[-1]["content"].startswith("That is none of the labels. Answer with exactly one of these")
    spent = model.spent([texts])
    assert (spent["examples"], spent["left_out"], spent["calls"]) == (4, 1, 7)
    with pytest.raises(LimbeckError, match="no usable answer to 1 of the examples"):
        model.ask(texts)
    assert ask_servers(teacher(server, tmp_path), texts) == [0, 2, 3]  # and it is not asked about ever again
    assert server.stats["requests"] == 7


def test_a_server_whose_answers_are_all_unusable_is_refused_early(serve, tmp_path):
    server = serve(labels=("red", "blue"), words={})
    with pytest.raises(InputError, match=r"none of the first \d+ answers .* is one of the labels negative, positive"):
        teacher(server, tmp_path, chat={"tries": 1}).fill(many(200))
    assert server.stats["requests"] <= 40


def test_an_example_that_the_server_refuses_is_left_out_once_it_has_answered_others(serve, tmp_path):
    server = serve(fail={"bad": ["422"]})
    assert ask_servers(teacher(server, tmp_path), table("good", "bad", "good too")) == [0, 2]
    with pytest.raises(InputError, match="refused to answer with status 400"):
        teacher(serve(fail={"good": ["400"]}), tmp_path).fill(table("good", "bad"))


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Task("classification", ("0", "1")), "the labels are 0, 1, which tells a server nothing; name them with"),
        (Task("classification", ("Good", "good.")), "differ in case or punctuation alone"),
        (Task("multi-label", ("none", "some")), "the label 'none' cannot stand in a list of labels"),
    ],
)
def test_labels_that_no_answer_could_tell_are_refused(tmp_path, task, sentence):
    with pytest.raises(InputError, match=sentence):
        ApiTeacher(TeacherModel(model="a", server="http://localhost:1/v1"), task, tmp_path)


# --- any other classifier -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "http", "hard"),
    [
        ("/scores", {"body": {"inputs": "{text}"}, "scores": "result.scores"}, False),
        ("/mapping", {"body": {"text": "{text}"}, "scores": "scores", "scale": "logits"}, False),
        (
            "/named",
            {
                "body": {"inputs": "{text}", "options": {"top": 9}},
                "scores": "0.*.score",
                "names": "0.*.label",
                "labels": {"NEGATIVE": "negative", "POSITIVE": "positive"},
            },
            False,
        ),
        ("/label", {"body": {"text": "{text}"}, "label": "label"}, True),
    ],
)
def test_a_classifier_is_asked_by_a_mapping(serve, tmp_path, path, http, hard):
    server = serve()
    model = teacher(server, tmp_path, path=path, http=http)
    said = model.ask(table("good", "bad"))
    assert said.hard == hard
    wanted = np.eye(2)[[1, 0]] if hard else np.exp(SOFT[[1, 0]])
    np.testing.assert_allclose(softmax(said.logits, -1), wanted, atol=1e-5)
    body = server.requests[0]["body"]
    assert body == {key: "good" if value == "{text}" else value for key, value in http["body"].items()}


def test_several_labels_and_keys_of_another_header(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELS_KEY", KEY)
    server = serve(labels=MANY.labels, key=KEY)
    http = {"body": {"text": "{text}"}, "label": "labels", "key_as": "X-Api-Key: {key}", "headers": {"version": "7"}}
    model = teacher(server, tmp_path, MANY, path="/labels", http=http, key="LABELS_KEY")
    said = model.ask(many(12))
    assert set(np.unique(said.logits)) == {-1e4, 1e4}
    headers = {name.lower(): value for name, value in server.requests[0]["headers"].items()}
    assert (headers["x-api-key"], headers["version"]) == (KEY, "7")
    assert "authorization" not in headers


def test_a_mapping_that_does_not_fit_is_named(serve, tmp_path):
    server = serve()
    body = {"text": "{text}"}
    with pytest.raises(LimbeckError, match=r"something else than JSON with something at 'answer.label'"):
        teacher(server, tmp_path, path="/label", http={"body": body, "label": "answer.label"}).fill(table("good"))
    with pytest.raises(InputError, match=r"a score of -2.*; give teacher.http.scale=logits"):
        teacher(server, tmp_path, path="/mapping", http={"body": body, "scores": "scores"}).fill(table("good"))
    with pytest.raises(InputError, match=r"says that NEG is 'nasty', and the labels are negative, positive"):
        teacher(server, tmp_path, path="/label", http={"body": body, "label": "x", "labels": {"NEG": "nasty"}})
    other = Task("classification", ("yes", "no"))
    with pytest.raises(InputError, match="is one of the labels yes, no; the last was 'positive'"):
        teacher(server, tmp_path, other, path="/label", http={"body": body, "label": "label"}).fill(table("good"))


# --- failures, rates and payment ----------------------------------------------------------------------------------


def test_failures_for_now_change_no_answer_and_nothing_is_paid_for_twice(serve, tmp_path):
    failures = {
        "good a": ["429"], "bad b": ["429:0.4"], "good c": ["500", "503"], "bad d": ["slow"], "good e": ["cut"],
        "bad f": ["torn"], "good g": ["empty"], "bad h": [],
    }  # fmt: skip
    server = serve(fail=failures, slow=2)
    model = teacher(server, tmp_path)
    said = model.ask(table(*failures))
    np.testing.assert_allclose(said.logits, SOFT[[1, 0] * 4], atol=1e-5)
    assert Counter(each["text"] for each in server.requests) == {text: 1 + len(f) for text, f in failures.items()}
    assert server.stats["charged"] == 8  # also for those that it answered too late, in part or torn
    assert model.client.repeated == 8


def test_a_rate_is_kept_without_meeting_the_servers(serve, tmp_path):
    server = serve(rate=40, delay=0.1)
    model = teacher(server, tmp_path, rate={"requests_per_second": 40, "at_once": 16})
    model.fill(many(80))
    stats = server.stats
    assert stats["failures"] == {}
    assert stats["seconds"] == pytest.approx(79 / 40, rel=0.15)
    assert 2 <= stats["most under way"] <= 16


def test_tokens_per_minute_are_kept(serve, tmp_path):
    server = serve()  # 42 tokens a call
    teacher(server, tmp_path, rate={"tokens_per_minute": 42 * 20 * 60}).fill(many(30))
    assert server.stats["seconds"] == pytest.approx(29 / 20, rel=0.25)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [({"calls": 7}, (7, 14)), ({"tokens": 42 * 6 + 1}, (7, 14)), ({"money": 0.69}, (7, 14))],
)
def test_a_limit_stops_cleanly_and_the_same_call_goes_on(serve, tmp_path, limit, kept):
    server, texts = serve(), many(20)
    price = {"call": 0.05, "prompt": 1000, "answer": 5000}  # 0.05 + 0.04 + 0.01 a call
    settings = {"limit": limit, "price": price, "rate": {"at_once": 1}}
    for done in kept:
        with pytest.raises(LimbeckError, match=rf"as teacher.limit.* is .*; {done} of 20 examples are answered") as e:
            teacher(server, tmp_path, **settings).fill(texts)
        assert not isinstance(e.value, InputError)
        assert server.stats["requests"] == done
    last = teacher(server, tmp_path, **settings)
    last.fill(texts)
    assert server.stats["requests"] == 20
    spent = last.spent([texts])
    assert (spent["calls"], spent["prompt_tokens"], spent["tokens"]) == (20, 800, 40)
    assert spent["money"] == pytest.approx(2.0)


def test_calls_under_way_do_not_pass_the_limit_of_calls(serve, tmp_path):
    server = serve(delay=0.05)
    with pytest.raises(LimbeckError, match=r"teacher.limit.calls is 11"):
        teacher(server, tmp_path, limit={"calls": 11}).fill(many(60))
    assert server.stats["requests"] == 11


def test_other_data_pays_for_new_texts_alone_and_another_prompt_for_all(serve, tmp_path):
    server = serve()
    first = teacher(server, tmp_path)
    label_texts(first, many(6), TWO, tmp_path / "knowledge") if ask_servers(first, many(6)) else None
    again = teacher(server, tmp_path)
    ask_servers(again, many(9))
    assert server.stats["requests"] == 9
    store = label_texts(again, many(9), TWO, tmp_path / "knowledge")
    signals = store.signals({"row": torch.arange(9)})
    np.testing.assert_array_equal(signals.logits, again.ask(many(9)).logits)
    ask_servers(teacher(server, tmp_path, chat="Another prompt. Text: {text}"), many(9))
    assert server.stats["requests"] == 18


def test_two_processes_that_ask_at_once_pay_once(serve, tmp_path):
    server, texts = serve(delay=0.02), many(40)
    models = [teacher(server, tmp_path) for _ in range(2)]
    threads = [threading.Thread(target=model.fill, args=(texts,)) for model in models]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert server.stats["requests"] == 40
    np.testing.assert_array_equal(models[0].ask(texts).logits, models[1].ask(texts).logits)


def test_a_wrong_key_and_a_server_that_is_not_there_are_refused_at_once(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELS_KEY", "another")
    server = serve(key=KEY)
    with pytest.raises(InputError, match="refused the key in LABELS_KEY with status 401") as caught:
        teacher(server, tmp_path, key="LABELS_KEY").fill(many(30))
    assert "another" not in str(caught.value).replace("another one", "")
    assert server.stats["requests"] == 1
    server.process.kill()
    server.process.wait()
    with pytest.raises(InputError, match=r"no connection to teacher.server=.* is it running"):
        teacher(server, tmp_path, retries=0).fill(many(3))


def test_a_server_that_asks_for_an_hour_ends_the_run(serve, tmp_path):
    server = serve(fail={"text 2": ["429:3600"]})
    with pytest.raises(LimbeckError, match=r"asks to be left alone for 3,600 seconds .*: the same command goes on"):
        teacher(server, tmp_path, rate={"at_once": 1}).fill(many(4))
    ask_servers(teacher(server, tmp_path), many(4))
    assert server.stats["charged"] == 4


def test_the_key_lands_in_no_file(serve, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LABELS_KEY", KEY)
    server = serve(key=KEY, fail={"text 1": ["500"], "text 2": ["422"]})
    model = teacher(server, tmp_path, key="LABELS_KEY")
    answered = ask_servers(model, many(5))
    label_texts(model, many(5).select(answered), TWO, tmp_path / "knowledge")
    files = [path for path in (tmp_path / "knowledge").rglob("*") if path.is_file()]
    assert any("***" in path.read_text() for path in files if path.name.startswith("journal"))  # what text 2 met
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in "".join(capfd.readouterr())


def test_through_failures_and_kills_every_text_is_labelled_once_and_none_paid_for_twice(tmp_path):
    script = [sys.executable, str(BENCHMARKS / "api_calls.py"), "--calls", "400", "--rate", "80", "--kills", "2"]
    done = subprocess.run([*script, "--output", str(tmp_path / "found.json")], capture_output=True, text=True)
    found = json.loads((tmp_path / "found.json").read_text()) if (tmp_path / "found.json").is_file() else done.stderr
    for name in ("whole", "killed"):
        assert found[name]["labelled right"] == found[name]["useful answers charged"] == 400, found
        assert found[name]["texts charged twice for a useful answer"] == 0
        assert found[name]["asked again by another call"] == 0
        assert found[name]["answers accounted for"] >= 400


# --- among others -------------------------------------------------------------------------------------------------


def test_a_server_and_a_model_teach_together(serve, tmp_path, tiny_teacher):
    server = serve()
    both = Teacher(models=[section(server), TeacherModel(model="here", weight=3.0)])
    ensemble = open_teacher([tiny_teacher], both, TWO, 32, "float32", tmp_path)
    assert isinstance(ensemble, Ensemble)
    texts = table("a good book", "a bad book")
    assert ask_servers(ensemble, texts) == [0, 1]
    there, here = (member.ask(texts).logits for member in ensemble.members)
    mean = 0.25 * softmax(there, -1) + 0.75 * softmax(here, -1)
    np.testing.assert_allclose(softmax(ensemble.ask(texts).logits, -1), mean, atol=1e-5)
    assert ensemble.runner(texts) is None
    assert ensemble.parameters is None
    alone = serve(logprobs=False)
    logits = Teacher(models=[section(alone), TeacherModel(model="here")], combine="logits")
    with pytest.raises(InputError, match="gives labels alone, which have no logits to combine"):
        open_teacher([tiny_teacher], logits, TWO, 32, "float32", tmp_path).ask(texts)


# --- whole runs ---------------------------------------------------------------------------------------------------


def arguments(server: Server, tmp_path: Path, student: Path, **settings: Any) -> dict[str, Any]:
    return {
        "student": {"model": str(student), "layers": 2},
        "output": tmp_path / "run",
        "task.max_length": 32,
        "training": {"epochs": 2, "learning_rate": 1e-3, "batch_size": 16, "precision": "float32"},
        "evaluation": {"resamples": 100, "speed": True},
        "export": [],
        "baseline": False,
        **settings,
    }


def test_a_student_learns_from_a_server_of_labels(serve, tmp_path, tiny_model_dir, capfd):
    rows = make_reviews(160)
    lost = [rows[3]["text"], rows[120]["text"]]
    server = serve(fail={text: ["wrong"] for text in lost})
    http = {"body": {"text": "{text}"}, "label": "label"}
    given = arguments(server, tmp_path, tiny_model_dir, data=str(write_csv(tmp_path / "reviews.csv", rows)))
    served = {"model": "big", "server": server.root + "/label", "http": http, "price": {"call": 0.01}}
    run = api.distill(teacher=served, **given)
    told = run.metrics
    assert told["asked"]["big"]["left_out"] == 2
    assert told["asked"]["big"]["money"] == pytest.approx(0.01 * told["asked"]["big"]["calls"])
    assert told["data"]["transfer"] + told["data"]["test"] == 160 - 2 - told["data"]["validation"]
    assert any("gave no usable answer to 2 of" in notice for notice in told["data"]["notices"])
    assert any("the teacher gives labels alone" in notice for notice in told["data"]["notices"])
    assert told["teacher"]["quality"]["accuracy"]["value"] == 1.0
    assert told["teacher"]["speed"] is None
    assert told["teacher"]["size"] == {"parameters": None, "bytes": None}
    assert told["student"]["fidelity"]["kl"] is None
    assert told["student"]["speed"]["latency_ms_p50"] > 0
    assert told["student"]["quality"]["accuracy"]["value"] > 0.7
    history = told["training"]["student"]["history"]["distill"]
    assert all(np.isfinite(log["loss"]) for log in history if "loss" in log)
    page = run.report.read_text()
    assert "2 left out" in page
    asked = server.stats["requests"]
    api.distill(teacher=served, **given)  # finished: nothing is asked
    api.distill(teacher=served, **{**given, "output": tmp_path / "other", "knowledge": str(tmp_path / "run/knowledge")})
    assert server.stats["requests"] == asked


def test_what_a_teacher_of_labels_alone_cannot_teach_is_refused_after_its_first_answer(serve, tmp_path, tiny_model_dir):
    server = serve(logprobs=False)
    data = str(write_csv(tmp_path / "reviews.csv", make_reviews(60)))
    given = arguments(server, tmp_path, tiny_model_dir, data=data)
    given["stages.distill.objectives.soft_targets.form"] = "mse"
    with pytest.raises(InputError, match=r"soft_targets.form=mse, which compares logits, and the teacher 'big' gives"):
        api.distill(teacher={"model": "big", "server": server.root + "/v1"}, **given)


def test_texts_without_labels_are_labelled_by_a_server(serve, tmp_path, command):
    server = serve()
    data = write_csv(tmp_path / "texts.csv", [{"text": row["text"]} for row in make_reviews(30)])
    words = ["label", f"teacher.server={server.root}/v1", "teacher.model=big", f"data={data}", "student=unused"]
    code, printed = command(*words, f"output={tmp_path / 'run'}")
    assert code == 2
    assert "give task.labels=[...]" in printed
    code, printed = command(*words, f"output={tmp_path / 'run'}", "task.labels=[negative,positive]")
    assert code == 0
    assert "30 examples in" in printed
    assert "30 calls, 1,200 tokens of prompts and 60 of answers" in printed


# --- recipes ------------------------------------------------------------------------------------------------------

SERVED = {"server": "http://localhost:8000/v1", "model": "big"}
HTTP = {"body": {"text": "{text}"}, "label": "label"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"teacher": {"model": "a", "limit": {"calls": 3}}}, "limit is about a model behind a server; drop it"),
        ({"teacher": SERVED | {"chat": {}, "http": HTTP}}, "chat and http are two ways to ask; keep one"),
        ({"teacher": SERVED | {"http": {**HTTP, "scores": "b"}}}, "give the path of either the label or the scores"),
        ({"teacher": SERVED | {"http": {"body": {"a": 1}, "label": "b"}}}, "body asks about no text; put {text} where"),
        ({"teacher": SERVED | {"http": HTTP | {"headers": {"X-Api-Key": "s"}}}}, "looks like a key's; name the env"),
        ({"teacher": SERVED | {"http": HTTP | {"key_as": "X-Api-Key: s"}}}, "key_as must look like 'X-Api-Key: {key}'"),
        ({"teacher": SERVED | {"chat": "what?"}}, "prompt asks about no text; put {text} where the example goes"),
        ({"teacher": SERVED | {"limit": {"money": 2}}}, "limit.money is 2, and no price is given; add price"),
        ({"teacher": SERVED | {"http": HTTP, "limit": {"tokens": 9}}}, "limit.tokens is 9, and a classifier asked by"),
        ({"teacher": SERVED, "student": {"layers": 2}}, "no student can be cut from 'big', which is behind a server"),
        ({"teacher": SERVED, "task.kind": "regression"}, "which says labels and no numbers; give another one"),
        ({"teacher": SERVED, "stages.distill.objectives.hidden": 1}, "learns from them by hidden; use soft_targets"),
        ({"teacher": SERVED, "stages.distill.objectives": {"hard_labels": 1}}, "no stage learns from the teacher"),
        (
            {"teacher": SERVED | {"http": HTTP}, "stages.distill.objectives.soft_targets.form": "reverse-kl"},
            "is infinite wherever the teacher says never, and the teacher 'big' gives labels alone",
        ),
        ({"teacher": {"model": "a", "queries": {"budget": 3}}}, "rounds is 5 for a budget of 3; give fewer rounds"),
        (
            {"teacher": {"model": "a", "queries": 9}, "task.kind": "regression"},
            "a regression says no probabilities to be unsure by",
        ),
        (
            {"teacher": {"model": "a", "queries": 9}, "stages.distill.objectives.attention": 1},
            "teacher.queries counts outputs that are asked for once, and stage 'distill' has attention",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load("hinton", {"data": "a.csv", "student": "small", "output": "o", **given})
    assert sentence in str(caught.value)


def test_rates_prices_and_limits_may_change_between_runs_and_stay_out_of_local_recipes(tmp_path) -> None:
    from limbeck.folder import RunFolder
    from limbeck.recipe import dump

    def recipe(**teacher: Any) -> Any:
        return load("hinton", {"data": "a", "student": "b", "output": str(tmp_path), "teacher": SERVED | teacher})

    (tmp_path / "recipe.yaml").write_text(dump(recipe(limit={"calls": 3})))
    RunFolder(tmp_path).check(recipe(limit={"calls": 9}, rate={"at_once": 2}, price={"call": 1}))
    with pytest.raises(InputError, match=r"its teacher.models.0.chat is None"):
        RunFolder(tmp_path).check(recipe(chat="{text}"))
    assert "rate" not in dump(load("hinton", {"data": "a", "teacher": "b", "output": "c"})).split("training:")[0]


def test_signals_of_models_here_are_not_hard() -> None:
    assert not Signals().hard
