"""A small chat server on loopback that answers in the form that it is asked for, and fails on
request. Its faults are those of `embeddings_server`, too.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from embeddings_server import Endpoint, Fault, refuse, serving


@dataclass
class ChatServer(Endpoint):
    """What the server says, the requests it got, and the faults of the next ones, in order.

    Attributes:
        says: From the user's message and the names of the answer's properties to the answer.
        kill_after: The server refuses after so many requests; None: never.
        declines: A text, and the fault of each request that holds it; None: there is none.
    """

    says: Callable[[str, list[str]], dict[str, Any]] = lambda _, __: {}
    kill_after: int | None = None
    declines: tuple[str, Fault] | None = None

    def next_fault(self) -> Fault | None:
        if self.declines is not None and self.declines[0] in self.users()[-1]:
            return self.declines[1]
        if self.kill_after is not None and len(self.requests) > self.kill_after:
            return refuse(400, "not now")  # a status that is not asked again
        return super().next_fault()

    def users(self) -> list[str]:
        """The user's messages, in the order in which they came."""
        return [request["messages"][1]["content"] for request in self.requests]


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


def slow(seconds: float) -> Fault:
    """An answer after so many seconds."""

    def fault(_: Any) -> bool:
        time.sleep(seconds)
        return False

    return fault


@contextlib.contextmanager
def running_chat(says: Callable[[str, list[str]], dict[str, Any]]) -> Iterator[ChatServer]:
    """Serve until the block ends. `says`: from the user's message and the names of the answer's
    properties to the answer.
    """

    def reply(_: str, request: dict[str, Any]) -> tuple[int, bytes]:
        properties = request["response_format"]["json_schema"]["schema"]["properties"]
        said = state.says(request["messages"][1]["content"], list(properties))
        return 200, message(json.dumps(said))

    state = ChatServer(reply, says=says)
    with serving(state, "/v1"):
        yield state
