"""A small server on loopback that answers JSON and fails on request; and one that embeds, in
OpenAI's format.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["_Handler"], bool]
"""Either answers the request wrongly and returns True, or leaves it to the server."""

Answer = Callable[[str, dict[str, Any]], tuple[int, bytes]]
"""The status and the body of the answer to a path and a request."""


@dataclass
class Endpoint:
    """How the server answers, the requests it got, and the faults of the next ones, in order."""

    reply: Answer
    faults: list[Fault] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    at_once: int = 0
    most_at_once: int = 0
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self) -> Fault | None:
        """The fault of the request that has just arrived, the last of `requests`."""
        return self.faults.pop(0) if self.faults else None


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections that wait; above that they are reset


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked has gone
            self.wfile.write(body)

    def do_POST(self) -> None:
        state = self.endpoint
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
            state.requests.append(
                {
                    "path": self.path,
                    "authorization": self.headers["Authorization"],
                    "headers": dict(self.headers),
                    **request,
                }
            )
            fault = state.next_fault()
        try:
            time.sleep(state.seconds)
            answered = fault is not None and fault(self)
            status, body = (0, b"") if answered else state.reply(self.path, request)
        finally:
            with state.lock:  # before the client can know, and ask again
                state.at_once -= 1
        if not answered:
            self.answer(status, body)


def embeddings_body(embeddings: list[list[float]]) -> bytes:
    """OpenAI's answer, with the items reversed: a reader has to look at their index."""
    data = [
        {"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(embeddings)
    ]
    return json.dumps(
        {"object": "list", "data": data[::-1], "usage": {"total_tokens": 7 * len(data)}}
    ).encode()


def refuse(status: int, text: str = '{"error": "no"}', **headers: str) -> Fault:
    """A status other than 200, with the advice to try again at once."""

    def fault(handler: _Handler) -> bool:
        handler.answer(status, text.encode(), {"Retry-After": "0.01", **headers})
        return True

    return fault


def say(body: bytes) -> Fault:
    """Status 200 and this body."""

    def fault(handler: _Handler) -> bool:
        handler.answer(200, body)
        return True

    return fault


def hang_up(handler: _Handler) -> bool:
    """No answer at all."""
    handler.close_connection = True
    return True


@contextlib.contextmanager
def serving(state: Endpoint, base: str) -> Iterator[Endpoint]:
    """Serve until the block ends. `base` is the path at the end of the URL."""
    handler = type("Handler", (_Handler,), {"endpoint": state})
    server = _Server(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}{base}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def running_server(reply: Answer, base: str) -> contextlib.AbstractContextManager[Endpoint]:
    """A server that answers so."""
    return serving(Endpoint(reply), base)


@contextlib.contextmanager
def running_endpoint(embed: Callable[[list[str]], list[list[float]]]) -> Iterator[Endpoint]:
    """Serve embeddings until the block ends."""
    with running_server(lambda _, r: (200, embeddings_body(embed(r["input"]))), "/v1") as state:
        yield state
