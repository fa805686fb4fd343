"""The other end of the judge's connection: a small OpenAI-compatible server that says what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any], int], tuple[int, str]]
"""(request, its number from 1) -> (HTTP status, text of the reply)."""


class JudgeServer:
    """A small OpenAI-compatible server on a free port; `answer(request, number)` gives status and text."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, text = answer(server.requests[-1], len(server.requests))
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                body = json.dumps(completion).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Keep the test's output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
