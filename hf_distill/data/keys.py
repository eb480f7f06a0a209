"""Which of many 64-bit keys are equal: sorting and binary search, in a few bytes for each key.

Keys stand for texts (hashes), so a table of texts of any size is compared by 8 bytes a text. Two of
n different texts have the same key with a probability of about n ** 2 / 2 ** 65 (3e-6 for 10 ** 7),
and then count as one text.
"""

from __future__ import annotations

import math
import os
from typing import IO

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 16


def is_among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each of `values` (n,) is among some `ascending` ones (m,)."""
    result = np.zeros(len(values), dtype=bool)
    for start in range(0, len(values) if len(ascending) else 0, _BLOCK):
        block = values[start : start + _BLOCK]
        places = np.searchsorted(ascending, block)
        result[start : start + _BLOCK] = ascending[np.minimum(places, len(ascending) - 1)] == block
    return result


def numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of `keys` (n,) once, ascending (m,), and which of these each key is, (n,) int32; int64
    from 2 ** 31 on. As `np.unique` with `return_inverse`, in half of the memory.
    """
    once = np.unique(keys)
    which = np.empty(len(keys), dtype=np.int32 if len(keys) < 1 << 31 else np.int64)
    for start in range(0, len(keys), _BLOCK):
        which[start : start + _BLOCK] = np.searchsorted(once, keys[start : start + _BLOCK])
    return once, which


def first_places(which: np.ndarray, count: int) -> np.ndarray:
    """(count,) of the type of `which` (n,): where each number below `count` first stands in it. All
    of them do.
    """
    first = np.empty(count, dtype=which.dtype)
    for stop in range(len(which), 0, -_BLOCK):
        places = np.arange(stop - 1, max(stop - _BLOCK, 0) - 1, -1)
        first[which[places]] = places  # of equal numbers the last one counts: the first place
    return first


def in_file(file: IO[bytes], dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """A new array of zeros, mapped from `file`, an empty one. Its place on the disk is taken at
    once: if the disk were full later, writing to the array would end the process without a message.

    Raises:
        OSError: The disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, np.dtype(dtype).itemsize * math.prod(shape))
    return np.memmap(file, dtype=dtype, mode="w+", shape=shape)
