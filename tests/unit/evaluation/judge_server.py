"""The other end of the judge's connection: a small OpenAI-compatible server that says what a test wants."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any], int], tuple[int, str] | tuple[int, str, dict[str, str]]]
"""(request, its number from 1) -> (HTTP status, text of the reply, more headers)."""


class JudgeServer:
    """A small OpenAI-compatible server on a free port.

    requests, headers, times: of every request so far (times: time.monotonic()).
    """

    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Message] = []
        self.times: list[float] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(request)
                server.headers.append(self.headers)
                server.times.append(time.monotonic())
                status, text, *more = answer(request, len(server.requests))
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                body = json.dumps(completion).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                for name, value in more[0].items() if more else ():
                    self.send_header(name, value)
                try:
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    """The judge has had enough."""

            def log_message(self, *_: Any) -> None:
                """Keep the test's output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def http(body: bytes, status: str = "200 OK", kind: str = "application/json", *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", *more]
    return "\r\n".join([*head, "", ""]).encode() + body


def completion(message: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": message}]}).encode()


@contextmanager
def raw_server(pieces: Callable[[], Iterable[bytes]]) -> Iterator[str]:
    """The address of a server that reads a request and sends the pieces, then hangs up."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def answer(connection: socket.socket) -> None:
            with closing(connection):
                asked = b""
                while b'"max_tokens"' not in asked and (more := connection.recv(65536)):
                    asked += more
                try:
                    for piece in pieces():
                        connection.sendall(piece)
                except OSError:
                    """The judge has had enough."""

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
