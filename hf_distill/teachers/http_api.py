"""What the teachers behind an HTTP API share: their requests, and the errors of answers that cannot
be used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hf_distill.compute.encode import text_length
from hf_distill.compute.endpoint import checked_url, hidden, open_client
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments

if TYPE_CHECKING:
    from openai import OpenAI

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class RefusedError(InputError):
    """The server answers with a status that is an error. `status` is that number, and `answer` what
    it says, without the key.
    """

    def __init__(self, message: str, status: int, answer: str) -> None:
        super().__init__(message)
        self.status, self.answer = status, answer


@dataclass(frozen=True, eq=False, kw_only=True)
class Api:
    """A server and the model that it is asked for.

    Attributes:
        client: Sends the requests.
        url: The recipe's `teacher_url`, without a slash at its end.
        model: The model's name there.
        key_variable: The environment variable with the key. A local server usually needs none.
    """

    client: OpenAI
    url: str
    model: str
    key_variable: str

    def ask(self, address: str, body: dict[str, Any], texts: Sequence[str]) -> Any:
        """What the server answers, as JSON, to `body` posted to `address`. `texts` are those in
        `body`, for the error.

        Raises:
            InputError: It refuses (`RefusedError`), cannot be reached after `RETRIES`, or does not
                answer JSON.
        """
        import openai  # noqa: PLC0415  (an extra: imported only where an API is used)

        try:
            return json.loads(self.client.post(address, cast_to=bytes, body=body))
        except openai.APIConnectionError as error:
            raise self.error(
                f"cannot be reached ({error.__cause__ or error})",
                "Check --teacher_url and that the server runs",
            ) from error
        except openai.APIStatusError as error:
            answer = f"{error.status_code}: {self.hidden(error.response.text)[:300]!r}"
            hint = self._hint(error.status_code, texts)
            message = str(self.error(f"answers {answer}", hint))
            raise RefusedError(message, error.status_code, answer) from error
        except ValueError as error:
            raise self.error(
                f"answers something that is not JSON ({error})", f"Is {address} its address?"
            ) from error

    def _hint(self, status: int, texts: Sequence[str]) -> str:
        if status in (401, 403):
            return f"Set {self.key_variable}"
        if status in (404, 405):
            return f"Check --teacher_url, and --teacher {self.model}, the model's name there"
        if status == 429:
            return "It limits how often it is asked; wait, or ask it for a higher limit"
        return (
            f"The request had {len(texts)} texts, the longest of "
            f"{max(map(text_length, texts)):,} characters; if that is too much, let the server "
            "truncate"
        )

    def error(self, what: str, hint: str) -> InputError:
        """The error of a server that does `what`, without the key."""
        return InputError(
            self.hidden(
                f"the endpoint {self.url} (model {self.model}) {what}. {hint}. Finished shards are "
                "kept; run again to continue"
            )
        )

    def hidden(self, text: str) -> str:
        """`text` without the key. What is cut afterwards holds no part of it."""
        return hidden(text, self.key_variable)


def connect(arguments: TeacherArguments, key_variable: str, example: str) -> Api:
    """A client for `teacher_url` and the model `teacher`. Nothing is asked yet.

    Args:
        arguments: The recipe's.
        key_variable: The environment variable with the key.
        example: A `teacher_url`, for the error.

    Raises:
        InputError: No usable `teacher_url`, a key that no header can hold, or the extra is not
            installed.
    """
    kind = arguments.teacher_kind
    url = checked_url(arguments.teacher_url, kind, variable=key_variable, example=example)
    client = open_client(url, kind, "teacher_kind", key_variable)
    return Api(client=client, url=url, model=arguments.teacher, key_variable=key_variable)


def ask_all(
    ask: Callable[[Question], Answer], questions: Sequence[Question], at_once: int
) -> Iterator[tuple[Question, Answer]]:
    """Each of `questions` with its answer, in their order. `at_once` are under way at a time. After
    an error no further one is asked: requests may cost money, and their answers would be thrown
    away.
    """
    with ThreadPoolExecutor(at_once) as pool:
        requests = [pool.submit(ask, question) for question in questions]
        try:
            for question, request in zip(questions, requests, strict=True):
                yield question, request.result()
        finally:
            for request in requests:
                request.cancel()


def tokens_in(body: Any) -> int:
    """The server's count of tokens, 0 if it does not count them."""
    usage = body.get("usage") if isinstance(body, dict) else None
    return int(usage.get("total_tokens") or 0) if isinstance(usage, dict) else 0
