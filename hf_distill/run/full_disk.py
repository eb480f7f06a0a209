"""A disk that fills while a run writes is one message with the file's name."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from hf_distill.errors import WriteError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_UNNAMED = ("PytorchStreamWriter failed", "iostream error")
"""What torch says, without a reason."""


def why_not_written(error: BaseException) -> str | None:
    """Why a file could not be written, if `error` or what caused it says that a disk or a limit is
    full; None for any other error.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return os.strerror(seen.errno)
        for code in _FULL:
            if os.strerror(code) in str(seen) or f"os error {code})" in str(seen):
                return os.strerror(code)
        if any(text in str(seen) for text in _UNNAMED):
            return "the disk is full, or files may not become so large"
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the context, a full disk raises a WriteError that names `path`.

    Raises:
        WriteError: Nothing more can be written.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:  # each library has its own; all others are raised again
        why = why_not_written(error)
        if why is None:
            raise
        raise WriteError(
            f"{path} cannot be written: {why}. What was complete before is kept; free some space "
            "(df), or raise the limit (ulimit -f), and run the same command again"
        ) from error
