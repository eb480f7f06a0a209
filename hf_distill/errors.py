"""The one exception that means "your input, not our code"."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was found (with the measured value, file and row), why the run cannot go
    on, and what to do. `train.py` prints it without a traceback and exits with code 2.
    """
