"""Items that a teacher works on (texts it embeds, pairs it scores), each unique one once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm

from hf_distill.compute.device import give_back_freed_memory
from hf_distill.compute.encode import Advance, text_length
from hf_distill.data.collection import pair_number, text_number
from hf_distill.data.keys import (
    filled,
    first_places,
    is_among,
    numbered,
    ordered_by,
    places_of,
    taken,
)
from hf_distill.run.scratch import scratch
from hf_distill.run.shards import Part, Shards, locate, shard_size
from hf_distill.scoring.progress import Progress

_READ = 1000

Item = TypeVar("Item", str, tuple[str, str])
"""A text that carries its prompt, or a (query, document) pair."""


@dataclass(frozen=True)
class Items(Generic[Item]):
    """Items in tables on disk, read when they are needed.

    Attributes:
        count: How many there are; some may be equal.
        read: The items at some places (m,), in that order.
        what: `text` or `pair`.
        lists: (count,) int64: items of one number are worked on one after another. None: the
            longest items come first.
        least: How many are in a shard, at least; None: as many as are usual.
    """

    count: int
    read: Callable[[np.ndarray], list[Item]]
    what: str
    lists: np.ndarray | None = None
    least: int | None = None

    def keys(self) -> np.ndarray:
        """(count,) uint64: equal items, equal key."""
        keys = scratch(self.count, np.uint64)
        starts = range(0, self.count, _READ)
        for start in tqdm(starts, desc="Looking for equal items", unit="k", delay=3, leave=False):
            places = np.arange(start, min(start + _READ, self.count))
            keys[places] = [
                text_number(item) if isinstance(item, str) else pair_number(*item)
                for item in self.read(places)
            ]
        return keys

    def lengths(self, places: np.ndarray) -> np.ndarray:
        """(m,) int32: characters of the items at `places` (m,)."""
        blocks = (places[start : start + _READ] for start in range(0, len(places), _READ))
        lengths = (text_length(item) for block in blocks for item in self.read(block))
        return filled(lengths, len(places), np.int32)


@dataclass(frozen=True)
class Stored:
    """Where the teacher's values of some items are.

    Attributes:
        parts: The shards.
        places: (m,) uint32: place of each unique item, by ascending key, in their concatenation.
        unique: (count,) int32: which of the unique items each item is.
    """

    parts: list[Part]
    places: np.ndarray
    unique: np.ndarray


Around = Callable[[np.ndarray, np.ndarray], contextlib.AbstractContextManager[None]]
"""Given the places (n,) of items that are to be worked on and their characters (n,)."""


def work_once(
    items: Items[Item],
    keys: np.ndarray,
    shards: Shards,
    work: Callable[[list[Item], Advance], np.ndarray],
    around: Around | None = None,
) -> Stored:
    """Let the teacher work on every unique item that no shard holds yet, the longest first, or list
    by list.

    With the longest first a batch needs little padding, and if memory runs out, it does so at once.
    All processes share the work.

    Args:
        items: The items.
        keys: Their keys (count,).
        shards: What is done already, and where to put the rest.
        work: Makes the values of some items, (n,) float32 or (n, d) float16.
        around: Entered before the first item is worked on, if there is one, and left after the
            last.
    """
    state = PartialState()
    unique, inverse = numbered(keys)
    first = first_places(inverse, len(unique))
    todo = taken(first, places_of(~is_among(unique, shards.known())))
    todo.sort()
    lengths = items.lengths(todo)
    longest = int(lengths.max(initial=0))
    shorter = scratch(len(lengths), lengths.dtype)
    np.subtract(longest, lengths, out=shorter)
    by = [taken(inverse, todo), shorter]  # unique keys ascend
    order = ordered_by(*by, *([] if items.lists is None else [taken(items.lists, todo)]))
    context = around(todo, lengths) if around and len(todo) else contextlib.nullcontext()
    with context:
        progress = Progress(items.what, len(todo), int(lengths.sum(dtype=np.int64)))

        def make(shard: np.ndarray) -> np.ndarray:
            batch = items.read(first[np.searchsorted(unique, shard)])
            return work(batch, progress.shard(len(batch), sum(map(text_length, batch))))

        try:
            shards.complete(
                taken(keys, taken(todo, order)),
                shard_size(len(unique), items.least),
                make,
                state.process_index,
                state.num_processes,
            )
        finally:
            progress.close()  # else an error stands on the line of the bar
    give_back_freed_memory()
    return Stored(*locate(shards.parts(), unique), inverse)
