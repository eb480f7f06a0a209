"""Restartable work on many items. It is done in shards; each shard is one file that is written
whole and checked when it is opened.

A shard's file is `<worker>-<items>.<digest>.arrow`: who made it, a hash of the keys in it, and the
SHA-256 of its bytes. It is an uncompressed Arrow IPC file, so that it can be memory-mapped and
nothing has to be copied out of it.

- A killed process leaves no file with such a name, and an altered file no longer fits its name.
  Both shards are made again.
- An item is identified by its key and not by its place. If items are added, only these are worked
  on.
- A process that makes a shard holds a lock on it, which the operating system releases if the
  process dies. Several processes of one run, or several runs on one folder, share the work, and
  each takes over what a killed one left.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from hf_distill.run.scratch import scratch
from hf_distill.run.stage import sha256_of, written_whole

logger = logging.getLogger(__name__)

LEAST_ITEMS = 4096
_MOST_SHARDS = 256
_BLOCK = 1 << 16
_DIGITS = 32
_POLL_SECONDS = 0.3

Work = Callable[[np.ndarray], np.ndarray]
"""Given the keys of a shard (n,) uint64, its values in the same order: (n,) float32, (n, d)
float16, or (n,) objects that are texts.
"""


def shard_size(items: int, least: int | None = None) -> int:
    """Items in a shard: few enough that a kill loses little, and enough that there are at most
    about 256 files. `least`: how many at least, if not `LEAST_ITEMS`.
    """
    return max(least or LEAST_ITEMS, math.ceil(items / _MOST_SHARDS))


@dataclass(frozen=True)
class Part:
    """A shard that was made, memory-mapped. It holds no file open.

    Attributes:
        path: Its file.
        keys: (n,) uint64.
        values: (n,) float32, (n, d) float16, or an Arrow array of n texts.
    """

    path: Path
    keys: np.ndarray
    values: np.ndarray | pa.StringArray

    @classmethod
    def open(cls, path: Path) -> Part:
        """Map the file at `path`."""
        with pa.memory_map(str(path)) as file:  # the arrays keep the mapping, not the file
            batch = pa.ipc.open_file(file).get_batch(0)
        keys, values = batch.column("key"), batch.column("value")
        if isinstance(values, pa.FixedSizeListArray):
            rows = values.flatten().to_numpy().reshape(len(keys), -1)
            return cls(path, keys.to_numpy(), rows)
        if isinstance(values, pa.StringArray):
            return cls(path, keys.to_numpy(), values)
        return cls(path, keys.to_numpy(), values.to_numpy())


def _as_arrow(keys: np.ndarray, values: np.ndarray) -> pa.Buffer:
    """The bytes of an Arrow file of one batch."""
    column = pa.array(values.reshape(-1))
    if values.ndim > 1:
        column = pa.FixedSizeListArray.from_arrays(column, values.shape[1])
    batch = pa.record_batch({"key": pa.array(keys), "value": column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def locate(parts: Sequence[Part], keys: np.ndarray) -> tuple[list[Part], np.ndarray]:
    """Where items are stored.

    Args:
        parts: Shards of one worker. If two hold a key, the later one counts.
        keys: (n,) uint64, unique, ascending; each in one of `parts`.

    Returns:
        The parts that are needed, and the places (n,) uint32 of the items in the concatenation of
        these.
    """
    needed: list[Part] = []
    places = scratch(len(keys), np.uint32)
    start = 0
    for part in parts if len(keys) else ():
        at = np.minimum(np.searchsorted(keys, part.keys), len(keys) - 1)
        rows = np.flatnonzero(keys[at] == part.keys)
        if len(rows):
            places[at[rows]] = start + rows
            start += len(part.keys)
            needed.append(part)
    return needed, places


@dataclass
class Shards:
    """The shards of one worker (a teacher), in a folder that others may use at the same time.

    Attributes:
        folder: Where they are.
        worker: The fingerprint of what makes them.
    """

    folder: Path
    worker: str
    _opened: dict[Path, Part] = field(default_factory=dict, repr=False)

    def parts(self) -> list[Part]:
        """The complete shards, by name. Each is read once, to check it; a damaged one is removed
        with a warning.
        """
        for path in self.folder.glob(f"{self.worker}-*.arrow"):
            if path in self._opened:
                continue
            try:
                if path.name.split(".")[-2] == sha256_of(path)[:_DIGITS]:
                    self._opened[path] = Part.open(path)
                else:
                    logger.warning(
                        "%s is damaged: its bytes do not have the digest in its name. It is "
                        "removed and made again",
                        path,
                    )
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # another run removed it first
        return [self._opened[path] for path in sorted(self._opened)]

    def known(self) -> np.ndarray:
        """Keys (n,) uint64 of all items in complete shards, ascending. One may repeat."""
        parts = self.parts()
        keys, start = scratch(sum(len(part.keys) for part in parts), np.uint64), 0
        for part in parts:
            keys[start : start + len(part.keys)] = part.keys
            start += len(part.keys)
        keys.sort()
        return keys

    def _missing(self, keys: np.ndarray) -> np.ndarray:
        """Those of `keys` (n,) that are in no complete shard, in their order."""
        known, missing, count = self.known(), scratch(len(keys), keys.dtype), 0
        for start in range(0, len(keys), _BLOCK):
            block = keys[start : start + _BLOCK]
            places = np.searchsorted(known, block)
            found = known[np.minimum(places, len(known) - 1)] == block if len(known) else places < 0
            missing[count : count + len(block) - found.sum()] = block[~found]
            count += len(block) - int(found.sum())
        return missing[:count]

    def complete(
        self, keys: np.ndarray, size: int, work: Work, rank: int = 0, ranks: int = 1
    ) -> None:
        """Make what is missing of `keys`, in shards of `size`. Returns when all of it is there.

        Process `rank` of `ranks` begins with every `ranks`-th shard, then takes those that no
        living process works on. So no process waits for one that was killed.

        Args:
            keys: Unique keys (n,) uint64, in the order in which they are to be made. With the same
                keys, an interrupted call and the next one cut the same shards.
            size: Items in a shard.
            work: Makes the values of one.
            rank: Of this process.
            ranks: How many processes are given the same keys.
        """
        while len(missing := self._missing(keys)):
            self.folder.mkdir(parents=True, exist_ok=True)
            shards = [missing[start : start + size] for start in range(0, len(missing), size)]
            self._make_all(shards, work, rank, ranks)

    def _make_all(self, shards: list[np.ndarray], work: Work, rank: int, ranks: int) -> None:
        names = [hashlib.sha256(shard.astype("<u8").tobytes()).hexdigest()[:16] for shard in shards]
        mine = list(range(rank, len(shards), ranks))
        todo = mine + [i for i in reversed(range(len(shards))) if i % ranks != rank]
        while todo:
            before = len(todo)
            for i in list(todo):
                if self._is_there(names[i]) or self._make(names[i], shards[i], work):
                    todo.remove(i)
            if len(todo) == before:
                time.sleep(_POLL_SECONDS)

    def _is_there(self, name: str) -> bool:
        return any(self.folder.glob(f"{self.worker}-{name}.*.arrow"))

    def _make(self, name: str, keys: np.ndarray, work: Work) -> bool:
        """Make the shard; False if another process is making it."""
        lock = self.folder / f".{self.worker}-{name}.lock"
        try:
            with FileLock(lock, timeout=0):
                try:
                    if not self._is_there(name):  # else made while this process took the lock
                        self._write(name, keys, work)
                finally:
                    with contextlib.suppress(PermissionError):  # Windows: it stays, empty
                        lock.unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def _write(self, name: str, keys: np.ndarray, work: Work) -> None:
        # The lock is ours, so whoever began these files was killed.
        for stale in self.folder.glob(f".{self.worker}-{name}.*.arrow"):
            stale.unlink()
        content = _as_arrow(keys, work(keys))
        digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
        with written_whole(self.folder / f"{self.worker}-{name}.{digest}.arrow") as temporary:
            temporary.write_bytes(content)
