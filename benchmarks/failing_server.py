"""A server of labels that fails in every way that servers do, and counts what it charged for: a process of its own.

    python benchmarks/failing_server.py LOG PLAN

It prints its port. It answers chat completions at /v1/chat/completions, and as other classifiers do at /scores (a
list), /named (a list of names and scores), /mapping, /label and /labels. Each request becomes a line of LOG (a file;
`-` for none); GET /stats says what was asked and charged. PLAN is JSON:

- `labels`: label names; `words`: by label, words that make a text's label, which is else drawn from the text itself.
- `rate`: requests per second that it allows, a quarter of a second's at once; all above meet 429.
- `fail`: by text, what its requests meet one after the other; `chance`: by failure, how often any request meets it.
- `seed`: of these draws. `slow`: seconds that a slow answer takes; `delay`: that any other does.
- `logprobs`: whether it gives log-probabilities; `most`: how many of each token it can be asked for.
- `key`: that must come as a bearer token, or as X-Api-Key.
- `idempotent`: whether it charges once for requests of one Idempotency-Key, and answers them alike.

Failures: `429`, `429:SECONDS` with Retry-After, or any other status; and those after which it has charged all the same:
`slow`, `cut` (the connection ends in mid-answer), `torn` (JSON that ends early), `empty` (JSON of another form), and
`wrong`, an answer that is none of the labels.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Service:
    """What the server knows."""

    def __init__(self, log: str, plan: dict[str, Any]) -> None:
        self.plan, self.lock = plan, threading.Lock()
        self.log = None if log == "-" else open(log, "a", encoding="utf-8")  # noqa: SIM115
        self.asked: Counter[str] = Counter()
        self.charged: Counter[str] = Counter()
        self.useful: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.answers: dict[str, Any] = {}
        self.first = self.last = 0.0
        self.tokens, self.at, self.under_way, self.most_under_way = 0.0, 0.0, 0, 0

    def begin(self, text: str, record: dict[str, Any]) -> str:
        """Note a request, and say how it fails."""
        with self.lock:
            now = time.monotonic()
            self.first, self.last = self.first or now, now
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            failure = self._failure(text, now)
            self.asked[text] += 1
            if failure:
                self.failures[failure] += 1
            if self.log is not None:
                self.log.write(json.dumps({"time": time.time(), "text": text, "failure": failure, **record}) + "\n")
                self.log.flush()
        return failure

    def _failure(self, text: str, now: float) -> str:
        rate = self.plan.get("rate")
        if rate:
            most = max(1.0, rate / 4)
            self.tokens = min(most, self.tokens + (now - self.at) * rate) if self.at else most
            self.at = now
            if self.tokens < 1:
                return "over the rate"
            self.tokens -= 1
        met = self.plan.get("fail", {}).get(text, [])
        if self.asked[text] < len(met):
            return str(met[self.asked[text]])
        draw = random.Random(f"{self.plan.get('seed', 0)} {text} {self.asked[text]}").random()
        for failure, chance in self.plan.get("chance", {}).items():
            draw -= chance
            if draw < 0:
                return str(failure)
        return ""

    def charge(self, text: str, token: str | None, answer: Any, useful: bool) -> Any:
        """Charge for an answer, once for each token where that is planned; the answer that goes with it."""
        with self.lock:
            if token and self.plan.get("idempotent", True):
                if token in self.answers:
                    return self.answers[token]
                self.answers[token] = answer
            self.charged[text] += 1
            self.useful[text] += useful
        return answer

    def number(self, text: str) -> int:
        """The label of a text."""
        labels = self.plan["labels"]
        for number, label in enumerate(labels):
            if set(self.plan.get("words", {}).get(label, ())) & set(text.split()):
                return number
        return hashlib.sha256(text.encode()).digest()[0] % len(labels)

    def stats(self) -> dict[str, Any]:
        """What was asked and charged."""
        with self.lock:
            return {
                "requests": self.asked.total(),
                "texts": len(self.asked),
                "failures": dict(self.failures),
                "charged": self.charged.total(),
                "useful": self.useful.total(),
                "useful twice": sum(count > 1 for count in self.useful.values()),
                "seconds": self.last - self.first,
                "most under way": self.most_under_way,
            }


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = 2**16
    disable_nagle_algorithm = True
    service: Service

    def do_GET(self) -> None:
        """What was asked and charged, at /stats."""
        self._send(200, self.service.stats() if self.path == "/stats" else {"data": []})

    def do_POST(self) -> None:
        """A label, or a failure."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/chat/completions"):
            asked = next(turn["content"] for turn in body["messages"] if turn["role"] == "user")
            text = re.split("Text: ", asked)[-1]
        else:
            text = body["inputs"] if "inputs" in body else body["text"]
        service = self.service
        failure = service.begin(text, {"path": self.path, "body": body, "headers": dict(self.headers)})
        try:
            time.sleep(service.plan.get("delay", 0))
            self._answer(body, text, failure)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with service.lock:
                service.under_way -= 1

    def _answer(self, body: dict[str, Any], text: str, failure: str) -> None:
        plan, token = self.service.plan, self.headers.get("Idempotency-Key")
        given = (self.headers.get("Authorization", "").removeprefix("Bearer "), self.headers.get("X-Api-Key"))
        if "key" in plan and plan["key"] not in given:
            self._send(401, {"error": {"message": f"wrong key {given}"}})
        elif failure == "over the rate":
            self._send(429, {"error": {"message": "too many requests"}}, after="0.5")
        elif failure[:1].isdigit():
            status, _, seconds = failure.partition(":")
            self._send(int(status), {"error": {"message": f"failed on purpose for {given[0]}"}}, after=seconds)
        elif body.get("top_logprobs", 0) > plan.get("most", 20):
            self._send(400, {"error": {"message": f"top_logprobs must be at most {plan['most']}"}})
        else:
            answer = self._wrong() if failure == "wrong" else self._right(body, text)
            answer = self.service.charge(text, token, answer, failure != "wrong")
            if failure == "slow":
                time.sleep(plan.get("slow", 3))
                self.close_connection = True
            if failure == "empty":
                self._send(200, {})
            elif failure == "torn":
                self._send(200, json.dumps(answer)[:-7])
            else:
                self._send(200, answer, cut=failure == "cut")

    def _wrong(self) -> Any:
        if self.path.endswith("/chat/completions"):
            return self._chat("No idea, sorry.", [])
        return {"label": "no idea", "labels": ["no idea"], "scores": {"no idea": 1.0}}

    def _right(self, body: dict[str, Any], text: str) -> Any:
        labels, number = self.service.plan["labels"], self.service.number(text)
        p = [0.9 if place == number else 0.1 / (len(labels) - 1) for place in range(len(labels))]
        if self.path == "/scores":
            return {"result": {"scores": p}}
        if self.path == "/named":
            order = sorted(range(len(p)), key=lambda place: -p[place])
            return [[{"label": labels[place].upper(), "score": p[place]} for place in order]]
        if self.path == "/mapping":
            return {"scores": {labels[place]: math.log(p[place]) for place in range(len(p))}}
        if self.path == "/label":
            return {"label": labels[number]}
        if self.path == "/labels":
            return {"labels": [labels[number]] if number else []}
        if "with commas between" in str(body["messages"]):
            return self._chat(labels[number] if number else "none", [])
        listed = [
            {"token": labels[place].capitalize(), "logprob": math.log(0.95 * p[place])} for place in range(len(p))
        ]
        listed = sorted([*listed, {"token": "I", "logprob": math.log(0.05)}], key=lambda each: -each["logprob"])
        shown = body.get("top_logprobs", 0) if body.get("logprobs") and self.service.plan.get("logprobs", True) else 0
        tokens = [{"token": labels[number].capitalize(), "logprob": math.log(0.95 * p[number])}] if shown else []
        for each in tokens:
            each["top_logprobs"] = listed[:shown]  # type: ignore[assignment]
        return self._chat(f"{labels[number].capitalize()}.", tokens)

    def _chat(self, text: str, tokens: list[dict[str, Any]]) -> Any:
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        choice |= {"logprobs": {"content": tokens} if tokens else None}
        return {"choices": [choice], "usage": {"prompt_tokens": 40, "completion_tokens": 2}}

    def _send(self, status: int, body: Any, after: str = "", cut: bool = False) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if after:
            self.send_header("Retry-After", after)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.wfile.flush()
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


class Server(ThreadingHTTPServer):
    """Many connections at once."""

    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever was killed in mid-request has nothing to hear."""


if __name__ == "__main__":
    Handler.service = Service(sys.argv[1], json.loads(sys.argv[2]))
    server = Server(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
