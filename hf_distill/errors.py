"""The exceptions that mean "your input", "your disk" and "the Hub", not our code; and what may be
printed.
"""

import re


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was found (with the measured value, file and row), why the run cannot go
    on, and what to do. `train.py` prints it without a traceback and exits with code 2.
    """


class WriteError(OSError):
    """A file cannot be written: the disk, a quota or a limit on the size of files is full.

    The message names the file. `train.py` prints it without a traceback and exits with code 1.
    """


class PublishingError(RuntimeError):
    """The Hub does not accept the release, or does not return what was sent. The message never
    contains the token. `train.py` prints it without a traceback and exits with code 1.
    """


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that command a terminal or turn the direction of a text, and halves of characters."""


def printable(text: str) -> str:
    """`text` with its control characters shown (`\\x1b`), not sent. Line breaks and tabs stay."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
