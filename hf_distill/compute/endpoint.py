"""What every client of an OpenAI-compatible endpoint needs: its key, which nothing shows, and its
address.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from hf_distill.errors import InputError

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable with the endpoint's key. A local server usually needs none."""


def hidden(text: str) -> str:
    """`text` without the endpoint's key. What is cut afterwards holds no part of it."""
    key = os.environ.get(KEY_VARIABLE)
    return text.replace(key, "[key]") if key else text


def checked_url(
    url: str | None, kind: str, *, key: str = "teacher_url", of: str = "teacher_kind"
) -> str:
    """The base address of an endpoint, without a slash at its end.

    Args:
        url: What the recipe says.
        kind: What needs it, the value of the recipe's key `of`, for messages.
        key: The recipe's key that names the address, for messages.
        of: The recipe's key that names the kind.

    Raises:
        InputError: There is none, it is no address of a server, or it holds a secret.
    """
    if url is None:
        raise InputError(f"--{of} {kind} needs --{key}, e.g. http://localhost:8080/v1")
    try:
        address = urlsplit(url)
    except ValueError as error:
        raise _no_address(url, key) from error
    if address.username or address.password or address.query:
        raise InputError(
            f"--{key} has a user, a password or a query, and the run's folder would show it; "
            f"put the key into the environment variable {KEY_VARIABLE}"
        )
    if address.scheme not in ("http", "https") or not address.hostname:
        raise _no_address(url, key)
    return url.rstrip("/")


def _no_address(url: str, key: str) -> InputError:
    return InputError(f"--{key} {url} is not an address; it looks like http://localhost:8080/v1")
