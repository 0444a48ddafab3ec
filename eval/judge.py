"""A judge: any OpenAI-compatible endpoint, asked through our recorder.

VLMEvalKit's client logs its API key, falls back to exact matching if there is no answer, and lives
in a process that checks no certificates. So it gets a local address and no key. There `Judge` asks
the real endpoint, with the experiment's model snapshot and temperature, records every request and
answer, and replays what it has. One failure ends the scoring with an error.

The record is a JSONL file with a line per answer: {"request": SHA-256 of the request, "answer":
text, "asked": the request, images as their SHA-256}. It holds no key and no address.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from merit.config import JudgeSettings
from merit.errors import MeritError
from merit.io.artifacts import read_jsonl, value_hash

WAITS = (1.0, 4.0)  # seconds before another try, if the endpoint was busy or silent
BUSY = (408, 409, 429, 500, 502, 503, 504)


class Judge:
    """Answers the kit's requests from the record, or asks the endpoint and records.

    Raises MeritError if `record`, a JSONL file, is malformed. `failure` says why the first request
    failed; None if none did.
    """

    def __init__(self, settings: JudgeSettings, record: Path) -> None:
        self.settings, self.record = settings, record
        self.failure: str | None = None
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        for number, row in enumerate(read_jsonl(record) if record.is_file() else [], start=1):
            if not isinstance(row.get("request"), str) or not isinstance(row.get("answer"), str):
                raise MeritError(f"{record}, line {number}: expected `request` and `answer`")
            self._answers[row["request"]] = row["answer"]

    @contextlib.contextmanager
    def serve(self, on_failure: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """Listen on 127.0.0.1 while the block runs; yields the arguments of the kit's client."""
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = judge.answer(body)
                if answer is None:
                    self.send_error(502)
                    on_failure()
                    return
                reply = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
                data = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield {
                "api_base": f"http://127.0.0.1:{server.server_port}/v1/chat/completions",
                "key": "none",
                "retry": 1,
                "timeout": 10 * self.settings.timeout,  # the tries are ours
                "nproc": self.settings.num_parallel,
                "verbose": False,
            }
        finally:
            server.shutdown()
            server.server_close()

    def answer(self, body: dict[str, Any]) -> str | None:
        """The judge's answer to a chat request of the kit; None, and `failure`, if it gave none."""
        request = self._request(body)
        shown = _without_images(request)
        key = value_hash(shown)
        with self._lock:
            if key in self._answers:
                return self._answers[key]
            if self.failure:
                return None
        try:
            text = self._ask(request)
        except MeritError as error:
            with self._lock:
                self.failure = self.failure or str(error)
            return None
        with self._lock:
            self._answers[key] = text
            self.record.parent.mkdir(parents=True, exist_ok=True)
            with self.record.open("a", encoding="utf-8") as file:
                row = {"request": key, "answer": text, "asked": shown}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return text

    def _request(self, body: dict[str, Any]) -> dict[str, Any]:
        """The kit's request with the experiment's model and temperature."""
        request: dict[str, Any] = {k: body[k] for k in ("messages", "max_tokens") if k in body}
        request |= {"model": self.settings.model, "temperature": body.get("temperature", 0.0)}
        if self.settings.temperature is not None:
            request["temperature"] = self.settings.temperature
        return request

    def _ask(self, request: dict[str, Any]) -> str:
        """The endpoint's answer. Raises MeritError, without the key in it, if it gives none."""
        s = self.settings
        where = f"the judge {s.model} at {s.url}"
        if s.replay_only:
            raise MeritError(
                f"{self.record}: no recorded answer to a request, and `judge.replay_only` is set; "
                "score once with the judge"
            )
        key = check_key(s)
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        found = "nothing"
        for wait in (*WAITS, None):
            call = urllib.request.Request(
                f"{s.url.rstrip('/')}/chat/completions", json.dumps(request).encode(), headers
            )
            try:
                with urllib.request.urlopen(call, timeout=s.timeout) as reply:
                    text = json.load(reply)["choices"][0]["message"]["content"]
                if isinstance(text, str) and text.strip():
                    return text.strip()
                found = "an empty answer"
            except urllib.error.HTTPError as error:
                error.close()
                found = f"HTTP status {error.code}"
                if error.code not in BUSY:
                    break
            except (OSError, TimeoutError) as error:
                found = f"no answer ({getattr(error, 'reason', error)})"
            except (ValueError, LookupError, TypeError):
                found = "an answer that is no chat completion"
                break
            if wait is not None:
                time.sleep(wait)
        raise MeritError(f"{where}: {found}; nothing was scored, and answers so far are kept")


def check_key(settings: JudgeSettings) -> str:
    """The endpoint's key, "" if it needs none. Raises MeritError if it is not set."""
    name = settings.key_variable
    key = os.environ.get(name, "") if name else ""
    if name and not key and not settings.replay_only:
        raise MeritError(
            f"the judge {settings.model} at {settings.url}: its key is missing: set the variable "
            f"{name}"
        )
    return key


def _without_images(value: Any) -> Any:
    """The value with images replaced by their hashes."""
    if isinstance(value, str) and value.startswith("data:image/"):
        return f"image:{hashlib.sha256(value.encode()).hexdigest()}"
    if isinstance(value, dict):
        return {key: _without_images(inner) for key, inner in value.items()}
    return [_without_images(inner) for inner in value] if isinstance(value, list) else value
