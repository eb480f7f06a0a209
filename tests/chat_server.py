"""A small chat server on loopback that answers in the form that it is asked for, and fails on
request. Its faults are those of `embeddings_server`, too.
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

Request = dict[str, Any]
Fault = Callable[[Any], bool]
"""Given the handler, either answers wrongly and returns True, or leaves it to the server."""


@dataclass
class ChatServer:
    """What the server says to the user's message, the requests it got, and the faults of the next
    ones, in order.

    Attributes:
        says: From the user's message and the names of the answer's properties to the answer.
        kill_after: The server closes every connection after so many requests; None: never.
    """

    says: Callable[[str, list[str]], dict[str, Any]]
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    at_once: int = 0
    most_at_once: int = 0
    seconds: float = 0.0
    kill_after: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def users(self) -> list[str]:
        """The user's messages, in the order in which they came."""
        return [request["messages"][1]["content"] for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer

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
        state = self.chat
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {"path": self.path, "authorization": self.headers["Authorization"]}
        with state.lock:
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
            state.requests.append(headers | request)
            fault = state.faults.pop(0) if state.faults else None
            if state.kill_after is not None and len(state.requests) > state.kill_after:
                fault = refused
        try:
            time.sleep(state.seconds)
            if fault is None or not fault(self):
                schema = request["response_format"]["json_schema"]["schema"]
                user = request["messages"][1]["content"]
                said = state.says(user, list(schema["properties"]))
                self.answer(200, message(json.dumps(said)))
        finally:
            with state.lock:
                state.at_once -= 1


def message(content: str | None, finish: str = "stop", **more: Any) -> bytes:
    """OpenAI's answer: `content`, why it ended there, and 10 tokens read and 5 written."""
    said = {"role": "assistant", "content": content, **more}
    choice = {"index": 0, "message": said, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def says(content: str | None, finish: str = "stop", **more: Any) -> Fault:
    """Status 200 and this message."""

    def fault(handler: Any) -> bool:
        handler.answer(200, message(content, finish, **more))
        return True

    return fault


def refused(handler: Any) -> bool:
    """A status that is not asked again."""
    handler.answer(400, b"not now")
    return True


def slow(seconds: float) -> Fault:
    """An answer after so many seconds."""

    def fault(_: Any) -> bool:
        time.sleep(seconds)
        return False

    return fault


@contextlib.contextmanager
def running_chat(says: Callable[[str, list[str]], dict[str, Any]]) -> Iterator[ChatServer]:
    """Serve until the block ends."""
    state = ChatServer(says)
    handler = type("Handler", (_Handler,), {"chat": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
