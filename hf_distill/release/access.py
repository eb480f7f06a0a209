"""Access to the Hub: who we are, where we may write, and another attempt after a passing fault."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from huggingface_hub import HfApi, get_session, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from hf_distill.errors import InputError, printable

logger = logging.getLogger(__name__)

WAITS: list[float] = [1, 2, 4, 8, 16]
"""Seconds before each further attempt, unless the Hub says how long to wait (`Retry-After`)."""

RETRIED = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
"""HTTP answers after which another attempt may succeed. 409 and 412 mean that somebody else
committed in between.
"""

TIMEOUT = 300.0
"""Seconds without a byte after which an attempt has failed. The client itself would wait for ever.
"""

HTTP_ERROR = cast("type[Exception]", HfHubHTTPError.__mro__[1])
"""What the client raises for any HTTP fault, broken connections included: the class of httpx or of
httpx2, depending on how the client was built.
"""

P = ParamSpec("P")
T = TypeVar("T")


def patiently(what: str, call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """`call(...)`, repeated after faults that may pass: broken connections, 429 (after
    `Retry-After`), 5xx, a commit by somebody else.

    The client itself repeats uploads, but not creating, validating, tagging or committing.
    """
    for wait in [*WAITS, None]:
        pause = wait
        try:
            return call(*arguments, **keywords)
        except HfHubHTTPError as error:
            if wait is None or error.response.status_code not in RETRIED:
                raise
            told = error.response.headers.get("Retry-After", "")
            pause = float(told) if told.isdecimal() else wait
            reason = f"HTTP {error.response.status_code}"
        except (HTTP_ERROR, json.JSONDecodeError) as error:  # a proxy may answer HTML for JSON
            if wait is None:
                raise
            reason = type(error).__name__
        logger.warning("%s: %s; trying again in %g s", what, reason, pause)
        time.sleep(pause or 0)
    raise AssertionError("unreachable: the last attempt returns or raises")


def token_of(api: HfApi) -> str:
    """The token that `api` uses, or an empty string."""
    return str(api.token or get_token() or "")


def shown(text: str, api: HfApi) -> str:
    """`text` from the Hub, safe to print: without the token and without control characters."""
    token = token_of(api)
    return printable(text.replace(token, "[token]") if token else text)


def _refusal(account: Mapping[str, Any], repo: str) -> str | None:
    """Why the account's token cannot write to `repo`; None if it can, as far as the Hub tells."""
    namespace = repo.partition("/")[0]
    user = account["name"]
    roles = {user: "admin"} | {
        org["name"]: org.get("roleInOrg") or "write" for org in account.get("orgs", [])
    }
    token = account.get("auth", {}).get("accessToken") or {}
    if token.get("role") == "read":
        return "the token can only read; make one that can write"
    if namespace not in roles:
        return f"you are {user}, and not a member of {namespace}"
    if roles[namespace] == "read":
        return f"you can only read in {namespace}"
    if token.get("role") == "fineGrained":
        scopes = (token.get("fineGrained") or {}).get("scoped", [])
        written = {
            scope["entity"]["name"] for scope in scopes if "repo.write" in scope["permissions"]
        }
        if not written & {namespace, repo}:
            return (
                f"the fine-grained token has no write access to {namespace}; tick it in the "
                "token's settings"
            )
    return None


def check_access(api: HfApi, repos: Sequence[str]) -> None:
    """Before any work: is there a token, does the Hub accept it, and may it write to `repos`?

    This looks at the account, because creating a repository that exists succeeds even without write
    access, and so proves nothing.

    Raises:
        InputError: Publishing there is not possible. The message never contains the token.
    """
    for repo in repos:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise InputError(f"{repo!r} does not name a repository: write OWNER/NAME, e.g. you/x")
    get_session().timeout = TIMEOUT
    try:
        account = patiently("asking the Hub who you are", api.whoami)
    except LocalTokenNotFoundError as error:
        raise InputError(
            "publishing needs a Hub token: run `hf auth login`, or set HF_TOKEN"
        ) from error
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be published; unset it") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError(
                "the Hub does not accept the token; nothing was done. Run `hf auth login`, or set "
                "HF_TOKEN"
            ) from error
        raise InputError(
            f"the Hub answers HTTP {error.response.status_code} when asked who you are; nothing "
            "was done. Try later"
        ) from error
    except (HTTP_ERROR, OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"the Hub at {api.endpoint} cannot be reached ({type(error).__name__}); nothing was "
            "done. Check the network"
        ) from error
    for repo in repos:
        if reason := _refusal(account, repo):
            raise InputError(f"cannot publish to {repo}: {reason}. Nothing was done")
