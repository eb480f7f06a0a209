"""The exceptions that mean "your input" and "your disk", not our code; and what may be printed."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was found (with the measured value, file and row), why the run cannot go
    on, and what to do. `train.py` prints it without a traceback and exits with code 2.
    """


class WriteError(OSError):
    """A file cannot be written: the disk, a quota or a limit on the size of files is full.

    The message names the file. `train.py` prints it without a traceback and exits with code 1.
    """


def printable(text: str) -> str:
    """`text` without control characters, which could command a terminal. Line breaks stay."""
    return "\n".join("".join(c for c in line if c.isprintable()) for line in text.split("\n"))
