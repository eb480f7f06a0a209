"""Restartable work on many items: done in shards, each kept as one file that is written whole and
checked when it is read.

A shard's file is `<worker>-<items>.<digest>.parquet`: who made it, a hash of the items in it, and
the SHA-256 of its bytes. So

- a part that a kill cut short has no name, and one that was altered no longer has its own: both are
  made again;
- items are known by their key, not by their place: new ones cost only themselves;
- whoever makes a part holds a lock on it, which the operating system releases if they die: several
  processes of one run, or several runs on one folder, share the work, and what one leaves another
  takes up.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from filelock import FileLock, Timeout

from hf_distill.run.folder import (
    sha256_of,
    written_whole,
)

logger = logging.getLogger(__name__)

KEY_COLUMN, VALUE_COLUMN = "key", "value"
_DIGITS = 32
_POLL_SECONDS = 0.3

Work = Callable[[np.ndarray], Dataset]
"""Given the keys of a shard (n,) uint64: a Dataset of n rows in their order, with `KEY_COLUMN` and
`VALUE_COLUMN`.
"""


@dataclass
class Shards:
    """The parts of one worker (a teacher) in a folder that others may use at the same time.

    Attributes:
        folder: Where the parts lie.
        worker: The fingerprint of what makes them.
    """

    folder: Path
    worker: str
    _whole: set[Path] = field(default_factory=set, repr=False)

    def parts(self) -> list[Path]:
        """The whole parts, by name. One that is damaged is removed, with a warning; each is read
        once to find out.
        """
        for path in sorted(self.folder.glob(f"{self.worker}-*.parquet")):
            if path in self._whole:
                continue
            try:
                if path.name.split(".")[-2] != sha256_of(path)[:_DIGITS]:
                    logger.warning(
                        "%s is damaged (its bytes do not have the digest in its name): it is made again",
                        path,
                    )
                    path.unlink(missing_ok=True)
                    continue
                self._whole.add(path)
            except FileNotFoundError:
                continue  # another run found it damaged first
        return sorted(self._whole)

    def known(self) -> np.ndarray:
        """Keys (n,) uint64 of all items in whole parts, ascending."""
        parts = self.parts()
        return (
            np.unique(np.concatenate([self._keys(part) for part in parts]))
            if parts
            else np.empty(0, dtype=np.uint64)
        )

    @staticmethod
    def _keys(part: Path) -> np.ndarray:
        keys: np.ndarray = pq.read_table(part, columns=[KEY_COLUMN]).column(KEY_COLUMN).to_numpy()
        return keys

    def complete(
        self, keys: np.ndarray, shard_size: int, work: Work, rank: int = 0, ranks: int = 1
    ) -> None:
        """Make what is missing of `keys`, in shards of `shard_size`, and return once all of it is
        there.

        Process `rank` of `ranks` begins with every `ranks`-th shard, and then takes what no living
        process is at: nobody waits for a process that was killed.

        Args:
            keys: Unique keys (n,) uint64, in the order in which they are to be made. An interrupted
                call and the one that goes on from it cut the same shards if they get the same keys.
            shard_size: Items in a shard.
            work: Makes one.
            rank: Of this process.
            ranks: How many processes are given the same keys.
        """
        missing = keys[~np.isin(keys, self.known())]
        if not len(missing):
            return
        shards = [
            missing[start : start + shard_size] for start in range(0, len(missing), shard_size)
        ]
        names = [hashlib.sha256(shard.astype("<u8").tobytes()).hexdigest()[:16] for shard in shards]
        mine = list(range(rank, len(shards), ranks))
        todo = mine + [i for i in reversed(range(len(shards))) if i % ranks != rank]
        self.folder.mkdir(parents=True, exist_ok=True)
        while todo:
            before = len(todo)
            for i in list(todo):
                if not self._is_there(names[i]):
                    lock = self.folder / f".{self.worker}-{names[i]}.lock"
                    try:
                        with FileLock(lock, timeout=0):
                            try:
                                if not self._is_there(
                                    names[i]
                                ):  # made while this process came for the lock
                                    self._make(names[i], shards[i], work)
                            finally:
                                with contextlib.suppress(
                                    PermissionError
                                ):  # Windows: it stays, empty
                                    lock.unlink(missing_ok=True)
                    except Timeout:
                        continue  # somebody is at it
                todo.remove(i)
            if len(todo) == before:
                time.sleep(_POLL_SECONDS)

    def _is_there(self, name: str) -> bool:
        return any(self.folder.glob(f"{self.worker}-{name}.*.parquet"))

    def _make(self, name: str, keys: np.ndarray, work: Work) -> None:
        for stale in self.folder.glob(
            f".{self.worker}-{name}.*.parquet"
        ):  # left by a process that was killed: its lock is ours
            stale.unlink()
        buffer = io.BytesIO()
        work(keys).to_parquet(buffer)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:_DIGITS]
        with written_whole(self.folder / f"{self.worker}-{name}.{digest}.parquet") as temporary:
            temporary.write_bytes(buffer.getvalue())

    def values(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Keys (n,) uint64 and values (n,) or (n, d) of each whole part, part by part. A key may
        come in more parts than one.
        """
        for part in self.parts():
            column = (
                pq.read_table(part, columns=[VALUE_COLUMN]).column(VALUE_COLUMN).combine_chunks()
            )
            keys = self._keys(part)
            if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
                yield keys, column.flatten().to_numpy(zero_copy_only=False).reshape(len(keys), -1)
            else:
                yield keys, column.to_numpy(zero_copy_only=False)
