"""Arrays that grow with the data, in files: the system writes their pages out when memory is short.

A run keeps such files in its `cache`, without names, so that nothing of them is left when the
process ends. Outside of a run, and below a megabyte, an array is in memory.
"""

from __future__ import annotations

import math
import os
import tempfile
from array import array
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hf_distill.run.full_disk import naming

SMALL = 1 << 20
"""Bytes of an array from which on it is in a file."""

_place: list[Path] = []


def keep_scratch_in(folder: Path) -> None:
    """From now on, arrays of `scratch` are files in `folder`, which is made when it is needed."""
    _place[:] = [folder]


def scratch(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """A new array of zeros.

    Raises:
        WriteError: The disk is full.
    """
    shape = (shape,) if isinstance(shape, int) else shape
    if not _place or np.dtype(dtype).itemsize * math.prod(shape) < SMALL:
        return np.zeros(shape, dtype)
    folder = _place[0]
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder), tempfile.TemporaryFile(dir=folder) as file:
        return in_file(file, dtype, shape)


def in_scratch(values: npt.ArrayLike) -> np.ndarray:
    """A copy of `values` that is kept for longer.

    Raises:
        WriteError: As `scratch`.
    """
    values = np.asarray(values)
    result = scratch(values.shape, values.dtype)
    result[...] = values
    return result


def in_file(file: IO[bytes], dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """A new array of zeros, mapped from `file`, an empty one. Its place on the disk is taken at
    once: if the disk were full later, writing to the array would end the process without a message.

    Raises:
        OSError: The disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, np.dtype(dtype).itemsize * math.prod(shape))
    return np.asarray(np.memmap(file, dtype=dtype, mode="w+", shape=shape))


class Numbers:
    """Numbers that come one by one, in a file from a megabyte on.

    Args:
        kind: Of a number, as in `array.array`.
    """

    def __init__(self, kind: str) -> None:
        self._some: array[Any] = array(kind)
        self._file: IO[bytes] | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, number: float) -> None:
        """Put `number` behind the others."""
        self._some.append(number)
        self._count += 1
        if _place and len(self._some) * self._some.itemsize >= SMALL:
            self._write(_place[0])

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with naming(folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # it is mapped
            self._file.write(self._some.tobytes())
            self._file.flush()
        del self._some[:]

    def read(self) -> np.ndarray:
        """All of them (n,), once no more come."""
        if self._file is None:
            return np.array(self._some)
        if self._some:
            self._write(_place[0])
        numbers = np.asarray(np.memmap(self._file, dtype=self._some.typecode, mode="r+"))
        self._file.close()
        return numbers

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()
