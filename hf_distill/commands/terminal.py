"""What every program of this project does on a terminal: silence other libraries, and turn errors
into one message and an exit code.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

from hf_distill.errors import InputError, PublishingError, WriteError, printable
from hf_distill.run.full_disk import why_not_written
from hf_distill.run.processes import done, lost

_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)
"""Why the system does not take a path, whatever it is for."""

_SECRETS = re.compile(
    r"(?<=://)[^/\s@]+@|(?<=[?&])[\w-]*(?:token|key|secret|password)[\w-]*=[^&\s'\"]+|\bhf_\w{20,}",
    re.IGNORECASE,
)
"""Users and passwords of addresses, keys in their queries, and tokens of the Hub."""


def _message(text: str) -> str:
    """A message for the terminal or a log: no control characters, and no secrets that a user put
    into a path or an address.
    """
    return printable(_SECRETS.sub("[hidden]", text))


class _Line(logging.Formatter):
    """A line of the log, as `_message` shows it."""

    def format(self, record: logging.LogRecord) -> str:
        return _message(super().format(record))


class _Shown:
    """A stream for text whose control characters are shown, not sent: names and texts of the data
    may hold some.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def set_up_log() -> None:
    """Show our own log on the terminal. No library is loaded for it."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Line("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it comes set to DEBUG


def _refusal(error: Exception) -> tuple[str, int] | None:
    """What to say of an error, and the exit code; None if it is none that a user can mend."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, WriteError | PublishingError):
        return str(error), 1
    if isinstance(error, OSError) and error.errno in _NO_PATH:
        return f"{error.filename}: {error.strerror}; name another path", 2
    why = why_not_written(error)  # a library's working file
    if why is None:
        other = lost()
        return (other, 1) if other else None
    named = f" {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return f"a file{named} cannot be written: {why}", 1


def exit_code(program: str, act: Callable[[], None]) -> int:
    """Run `act` and return 0. For unusable input return 2, for a fault of the Hub, a full disk or a
    process that has ended 1, each with one message.
    """
    try:
        with contextlib.redirect_stdout(_Shown(sys.stdout)):
            act()
        done()
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        said, code = refusal
        print(f"{program}: error: {_message(said)}", file=sys.stderr)
        return code
    return 0
