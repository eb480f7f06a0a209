"""What every client of an HTTP API shares: its key, which nothing shows, its address, and what
sends the requests.

The client is that of the package `openai` (the extra `endpoint`), also for routes that OpenAI does
not have: it repeats requests with back-off, reads `Retry-After`, and keeps connections.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hf_distill.errors import InputError

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable with the key of an OpenAI-compatible API. A local server usually needs
none.
"""

EXAMPLE = "http://localhost:8080/v1"

RETRIES = 6
"""How often a request is repeated (429, 408, 409, 5xx, a lost connection, no answer in time), with
back-off or after the server's `Retry-After`.
"""

TIMEOUT = 300.0
"""Seconds to wait for an answer."""


def _key(variable: str) -> str:
    return os.environ.get(variable, "").strip()


def hidden(text: str, variable: str = KEY_VARIABLE) -> str:
    """`text` without the key in an environment variable. What is cut afterwards holds no part of
    it.
    """
    key = _key(variable)
    return text.replace(key, "[key]") if key else text


def checked_url(
    url: str | None,
    kind: str,
    *,
    key: str = "teacher_url",
    of: str = "teacher_kind",
    variable: str = KEY_VARIABLE,
    example: str = EXAMPLE,
) -> str:
    """The base address of an API, without a slash at its end.

    Args:
        url: What the recipe says.
        kind: What needs it, the value of the recipe's key `of`, for messages.
        key: The recipe's key that names the address, for messages.
        of: The recipe's key that names the kind.
        variable: The environment variable with the key of the API.
        example: An address, for messages.

    Raises:
        InputError: There is none, it is no address of a server, or it holds a secret.
    """
    if url is None:
        raise InputError(f"--{of} {kind} needs --{key}, e.g. {example}")
    no_address = InputError(f"--{key} {url} is not an address; it looks like {example}")
    try:
        address = urlsplit(url)
    except ValueError as error:
        raise no_address from error
    if address.username or address.password or address.query:
        raise InputError(
            f"--{key} has a user, a password or a query, and the run's folder would show it; "
            f"put the key into the environment variable {variable}"
        )
    if address.scheme not in ("http", "https") or not address.hostname:
        raise no_address
    return url.rstrip("/")


def open_client(url: str, kind: str, of: str, variable: str = KEY_VARIABLE) -> OpenAI:
    """A client for the address `url`. Nothing is asked yet.

    Args:
        url: As from `checked_url`.
        kind, of, variable: As there.

    Raises:
        InputError: A key that no header can hold, or the extra is not installed.
    """
    key = _key(variable)
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"the environment variable {variable} holds characters that no key has, such as a "
            "line break; set it again"
        )
    try:
        from openai import OpenAI  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise InputError(
            f"--{of} {kind} needs an extra: pip install 'hf_distill[endpoint]'"
        ) from error
    return OpenAI(base_url=url, api_key=key or "none", max_retries=RETRIES, timeout=TIMEOUT)
