"""A server of OpenAI's chat completions for tests: standard library only, a process of its own, failures on demand.

    python chat_server.py LOG PLAN

It prints its port. PLAN is JSON: `fail` maps a prompt to what its first requests meet (`429`, `429:SECONDS` with
Retry-After, `500`, `cut`: the connection ends in mid-answer, `slow`: no answer for 3 seconds, `html`, `torn`: JSON that
ends early, `empty`: no choices, any other status); `delay` is the seconds that each answer takes; `key` must come as a
bearer token; `usage` may be false; requests after the number `hold[0]` up to `hold[1]` get no answer and wait until
whoever asks is gone; `limit` is the one name of the limit of tokens that it takes.
Each request becomes a line of LOG. An answer repeats its prompt, and is cut where the prompt says `long`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOG, PLAN = Path(sys.argv[1]), json.loads(sys.argv[2])
LOCK = threading.Lock()
SEEN: Counter[str] = Counter()
UNDER_WAY = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": []})

    def do_POST(self) -> None:
        global UNDER_WAY
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with LOCK:
            UNDER_WAY += 1
            met = PLAN.get("fail", {}).get(prompt, [])
            failure = met[SEEN[prompt]] if SEEN[prompt] < len(met) else ""
            SEEN[prompt] += 1
            first, last = PLAN.get("hold", (0, 0))
            held = first < SEEN.total() <= last
            record = {"time": time.time(), "prompt": prompt, "body": body, "headers": dict(self.headers)}
            record |= {"failure": failure, "path": self.path, "under_way": UNDER_WAY}
            with LOG.open("a") as log:
                log.write(json.dumps(record) + "\n")
        try:
            if held:
                with suppress(ConnectionError):
                    self.connection.recv(1)
                self.close_connection = True
                return
            time.sleep(PLAN.get("delay", 0))
            self._answer(body, prompt, failure)
        finally:
            with LOCK:
                UNDER_WAY -= 1

    def _answer(self, body: dict[str, Any], prompt: str, failure: str) -> None:
        limit = PLAN.get("limit", "max_tokens")
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": "no such path"}})
        elif "key" in PLAN and self.headers.get("Authorization") != f"Bearer {PLAN['key']}":
            given = self.headers.get("Authorization", "")
            self._send(401, {"error": {"message": f"wrong key: {given}"}})
        elif body["model"] != "teacher":
            self._send(404, {"error": {"message": f"the model `{body['model']}` does not exist"}})
        elif limit not in body:
            other = "max_completion_tokens" if limit == "max_completion_tokens" else "max_tokens"
            self._send(400, {"error": {"message": f"Unsupported parameter: use '{other}' instead."}})
        elif failure == "slow":
            time.sleep(3)
            self.close_connection = True
        elif failure == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif failure in ("html", "torn", "empty"):
            text = {"html": "<html>a proxy speaks</html>", "torn": '{"choices": [{"mess', "empty": '{"choices": []}'}
            self._send(200, text[failure], "text/html" if failure == "html" else "application/json")
        elif failure:
            status, _, seconds = failure.partition(":")
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            self._send(int(status), {"error": {"message": f"failed on purpose for {key}"}}, after=seconds)
        else:
            cut = "long" in prompt
            choice = {
                "message": {"role": "assistant", "content": f" You said {prompt}! "},
                "finish_reason": "length" if cut else "stop",
            }
            usage = {"prompt_tokens": 10, "completion_tokens": 5} if PLAN.get("usage", True) else None
            self._send(200, {"choices": [choice], "usage": usage})

    def _send(self, status: int, body: Any, kind: str = "application/json", after: str = "") -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if after:
            self.send_header("Retry-After", after)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
