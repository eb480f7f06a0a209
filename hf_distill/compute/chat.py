"""A language model behind an OpenAI-compatible chat endpoint that answers in a given form:
`POST {url}/chat/completions` with a JSON schema.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from accelerate import PartialState

from hf_distill.compute import endpoint
from hf_distill.compute.endpoint import KEY_VARIABLE, checked_url, hidden, open_client
from hf_distill.errors import InputError

if TYPE_CHECKING:
    from openai import OpenAI

CONCURRENCY = 8
"""Requests at the same time."""

ATTEMPTS = 3
"""How often a question is asked if the answer cannot be used."""

CHARACTERS_PER_TOKEN = 4
"""For estimates alone: about what English has."""

_FILTERS = ("content_filter", "content_policy_violation", "invalid_prompt")
"""Codes of an error 400 that is about the text of the request alone, at Azure and OpenAI."""

_SHOWN = 300
"""Characters of an answer that a message shows."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class AnswerError(Exception):
    """An answer that is not what was asked for. The message says why."""


class _DeclinedError(AnswerError):
    """The model refuses to answer, or a content filter stops it."""


@dataclass(frozen=True)
class Declined:
    """What stands in place of an answer that the model refuses to give, or that a content filter
    stops, also at the last attempt. Another text may well be answered.
    """


@dataclass(frozen=True)
class Question(Generic[T]):
    """What the model is asked, and how its answer is read.

    Attributes:
        about: What it is about, in a few words, for messages.
        system, user: The two messages of the request.
        properties: The JSON schema of each property of the answer, an object. All are required, and
            no others are allowed.
        read: Turns the object into a value. It raises `AnswerError`.
    """

    about: str
    system: str
    user: str
    properties: Mapping[str, Mapping[str, Any]]
    read: Callable[[dict[str, Any]], T]


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count:,} requests"


@dataclass
class Spent:
    """What the requests of this process took since `clear`, as the server reports it. Threads may
    add to it.

    Attributes:
        requests: Requests that were answered.
        again: Those of them that repeat a question, because its answer could not be used.
        read, written: Tokens.
    """

    requests: int = 0
    again: int = 0
    read: int = 0
    written: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, read: int, written: int, again: bool) -> None:
        """Add a request that took so many tokens."""
        with self._lock:
            self.requests += 1
            self.again += again
            self.read += read
            self.written += written

    def clear(self) -> None:
        """Begin anew."""
        with self._lock:
            self.requests = self.again = self.read = self.written = 0

    def __str__(self) -> str:
        again = f" ({self.again:,} of them again: an answer was unusable)" if self.again else ""
        tokens = (
            f"the server reports {self.read:,} tokens read and {self.written:,} written"
            if self.read or self.written
            else "the server reports no tokens"
        )
        return f"{_requests(self.requests)}{again}; {tokens}"


@dataclass(frozen=True, eq=False)
class Chat:
    """A model at an endpoint.

    Attributes:
        client: The client, which knows the key.
        url: The endpoint's base address.
        model: The model's name there.
        key: The recipe's key that names the address, for messages.
        spent: What was asked since the last work began.
        own_temperature: Set once the model has refused temperature 0.
    """

    client: OpenAI
    url: str
    model: str
    key: str
    spent: Spent = field(default_factory=Spent)
    own_temperature: threading.Event = field(default_factory=threading.Event)

    def ask(
        self, questions: Sequence[Question[T]], done: Callable[[int, int], None] | None = None
    ) -> list[T | Declined]:
        """The answers to `questions`, in their order. Some are asked at the same time. After an
        error no further one is asked. A question that the model still declines to answer at the
        last of `ATTEMPTS` is no error.

        Args:
            questions: What is asked.
            done: Called with the place of each question whose answer was read, in their order, and
                with the tokens that it took.

        Raises:
            InputError: The endpoint refuses, cannot be reached after `RETRIES`, or gives no usable
                answer in `ATTEMPTS`: which one, and to what.
        """
        values: list[T | Declined] = []
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            requests = [pool.submit(self._answer, question) for question in questions]
            try:
                for place, request in enumerate(requests):
                    value, tokens = request.result()
                    values.append(value)
                    if done:
                        done(place, tokens)
            finally:
                # Requests cost money, and their answers would be thrown away.
                for request in requests:
                    request.cancel()
        return values

    @contextlib.contextmanager
    def at_work(self, requests: int, read: int, written: int) -> Iterator[None]:
        """Say before some work what it will take, and after it what it took.

        Args:
            requests: About how many requests are to be made, by all processes.
            read, written: About how many characters the model will read, and write.
        """
        if PartialState().is_main_process:
            _log.warning(
                "%s at %s will be asked %s, about %s tokens to read and %s to write (%d characters "
                "a token). What was answered before is not asked again",
                self.model,
                self.url,
                _requests(requests),
                f"{read // CHARACTERS_PER_TOKEN:,}",
                f"{written // CHARACTERS_PER_TOKEN:,}",
                CHARACTERS_PER_TOKEN,
            )
        self.spent.clear()
        try:
            yield
        finally:
            _log.warning("%s at %s has answered %s", self.model, self.url, self.spent)

    def _answer(self, question: Question[T]) -> tuple[T | Declined, int]:
        """The value of one question, and the tokens that it took."""
        tokens, said = 0, ""
        why = AnswerError()
        for attempt in range(ATTEMPTS):
            try:
                body = self._post(question)
                read, written = _tokens_in(body)
                self.spent.add(read, written, again=attempt > 0)
                tokens += read + written
                message, finish = self._message_in(body)
                said = str(message.get("refusal") or message.get("content") or "")
                return question.read(_object_in(message, finish)), tokens
            except AnswerError as error:
                why = error
        if isinstance(why, _DeclinedError):
            return Declined(), tokens
        raise self._error(
            f"was asked {ATTEMPTS} times about {question.about}, and {why}. It said: "
            f"{hidden(said)[:_SHOWN]!r}",
            "Does the server support response_format json_schema with this model? If it is only "
            "this text that the model does not answer to, leave the text out",
        )

    def _post(self, question: Question[T]) -> Any:
        """The JSON that the endpoint answers.

        Raises:
            AnswerError: A content filter stops the request.
        """
        import openai  # noqa: PLC0415  (an extra: imported only where an endpoint is used)

        own_temperature = self.own_temperature.is_set()
        properties = dict(question.properties)
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        try:
            answer = self.client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[
                    {"role": "system", "content": question.system},
                    {"role": "user", "content": question.user},
                ],
                temperature=openai.omit if own_temperature else 0,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": schema},
                },
            )
            return json.loads(answer.http_response.content)
        except openai.APITimeoutError as error:
            raise self._error(
                f"gave no answer within {endpoint.TIMEOUT:g} s, {endpoint.RETRIES + 1} times",
                "Is the server too slow for as many requests at the same time?",
            ) from error
        except openai.APIConnectionError as error:
            raise self._error(
                f"cannot be reached ({error.__cause__ or error})",
                f"Check --{self.key} and that the server runs",
            ) from error
        except openai.APIStatusError as error:
            if error.status_code == 400 and error.code in _FILTERS:
                raise _DeclinedError("its content filter stopped the request") from error
            refuses = error.status_code in (400, 422) and "temperature" in error.response.text
            if refuses and not own_temperature:
                self._take_own_temperature()
                return self._post(question)
            raise self._error(
                f"answers {error.status_code}: {hidden(error.response.text)[:_SHOWN]!r}",
                self._hint(error.status_code, question),
            ) from error
        except ValueError as error:
            raise self._error(
                f"answers something that is not JSON ({error})",
                f"Is --{self.key} the base, e.g. ending in /v1?",
            ) from error

    def _take_own_temperature(self) -> None:
        if not self.own_temperature.is_set():
            self.own_temperature.set()
            _log.warning(
                "%s at %s does not take temperature 0, and is asked at its own: the same question "
                "may get another answer. What was answered is kept",
                self.model,
                self.url,
            )

    def _hint(self, status: int, question: Question[T]) -> str:
        if status in (401, 403):
            return f"Set {KEY_VARIABLE}"
        if status == 404:
            return f"Is --{self.key} the base, e.g. ending in /v1, and does it serve this model?"
        characters = len(question.system) + len(question.user)
        return (
            f"The request had {characters:,} characters and response_format json_schema, which the "
            "model has to support"
        )

    def _message_in(self, body: Any) -> tuple[dict[str, Any], str]:
        """The message of an answer, and why it ended there."""
        choices = body.get("choices") if isinstance(body, dict) else None
        first = choices[0] if isinstance(choices, list) and choices else None
        choice: dict[str, Any] = first if isinstance(first, dict) else {}
        message = choice.get("message")
        if not isinstance(message, dict):
            raise self._error(
                f"answers no message but {hidden(str(body))[:_SHOWN]!r}",
                f"Is --{self.key} a chat endpoint?",
            )
        return message, str(choice.get("finish_reason"))

    def _error(self, what: str, hint: str) -> InputError:
        message = (
            f"the endpoint {self.url} (model {self.model}) {what}. {hint}. Finished shards are "
            "kept; run again to continue"
        )
        return InputError(hidden(message))


def _object_in(message: dict[str, Any], finish: str) -> dict[str, Any]:
    """The JSON object of a message.

    Raises:
        AnswerError: It is a refusal or was stopped (`_DeclinedError`), was cut, or is no JSON
            object.
    """
    if message.get("refusal"):
        raise _DeclinedError("it refused to answer")
    if finish == "content_filter":
        raise _DeclinedError("its content filter stopped the answer")
    if finish == "length":
        raise AnswerError("its answer was cut at its limit of tokens")
    try:
        value = json.loads(message.get("content") or "", object_pairs_hook=_once)
    except (ValueError, TypeError, RecursionError) as error:
        raise AnswerError("its answer was not JSON") from error
    if not isinstance(value, dict):
        raise AnswerError(f"its answer was a JSON {type(value).__name__}, not an object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, no property of which stands there twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise AnswerError("its answer had a property twice")
    return value


def expect(answer: dict[str, Any], properties: Mapping[str, object]) -> None:
    """Check that an answer has just these properties.

    Raises:
        AnswerError: It lacks one, or has another one.
    """
    if missing := [name for name in properties if name not in answer]:
        raise AnswerError(f"its answer had no {missing[0]} ({len(missing)} were missing)")
    if others := [name for name in answer if name not in properties]:
        raise AnswerError(f"its answer had the unknown property {others[0][:40]!r}")


def _tokens_in(body: Any) -> tuple[int, int]:
    """Tokens read and written, as the server reports them; 0 where it does not."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0, 0
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)


def connect(url: str | None, model: str, kind: str, key: str, of: str) -> Chat:
    """A model at an endpoint. Nothing is asked yet.

    Args:
        url: The base address, as the recipe says it.
        model: The model's name there.
        kind, key, of: As in `hf_distill.compute.endpoint.checked_url`.

    Raises:
        InputError: No usable address, or the extra is not installed.
    """
    address = checked_url(url, kind, key=key, of=of)
    return Chat(open_client(address, kind, of), address, model, key)
