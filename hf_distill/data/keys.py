"""Numbers of texts and 64-bit keys, compared and sorted a block at a time. What is as long as the
data is in `scratch`.

Keys stand for texts (hashes), so a table of texts of any size is compared by 8 bytes a text. Two of
n different texts have the same key with a probability of about n ** 2 / 2 ** 65 (3e-6 for 10 ** 7),
and then count as one text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from hf_distill.run.scratch import scratch

_BLOCK = 1 << 16
_LOW = np.uint64((1 << 32) - 1)


def blocks(count: int, size: int | None = None) -> list[slice]:
    """`range(count)` in slices of `size`."""
    size = size or _BLOCK
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def filled(values: Iterable[object], count: int, dtype: npt.DTypeLike) -> np.ndarray:
    """(count,): `np.fromiter` of so many `values`."""
    result, rest = scratch(count, dtype), iter(values)
    for here in blocks(count):
        some = itertools.islice(rest, here.stop - here.start)
        result[here] = np.fromiter(some, dtype, here.stop - here.start)
    return result


def taken(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`values[places]` (m, ...), where `places` (m,) are numbers."""
    result = scratch((len(places), *values.shape[1:]), values.dtype)
    for here in blocks(len(places)):
        result[here] = values[places[here]]
    return result


def places_of(mask: np.ndarray) -> np.ndarray:
    """(m,) int64: `np.flatnonzero` of a `mask` (n,)."""
    result = scratch(int(np.count_nonzero(mask)), np.int64)
    count = 0
    for here in blocks(len(mask)):
        found = np.flatnonzero(mask[here])
        result[count : count + len(found)] = found + here.start
        count += len(found)
    return result


def numbers_from(start: int, stop: int, dtype: npt.DTypeLike = np.int64) -> np.ndarray:
    """`np.arange(start, stop)`."""
    result = scratch(stop - start, dtype)
    for here in blocks(len(result)):
        result[here] = np.arange(start + here.start, start + here.stop)
    return result


def _search(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`np.searchsorted`, which is faster for values in order."""
    order = np.argsort(values)
    places = np.empty(len(values), dtype=np.int64)
    places[order] = np.searchsorted(ascending, values[order])
    return places


def is_among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each of `values` (n,) is among some `ascending` ones (m,)."""
    result = scratch(len(values), np.bool_)
    for here in blocks(len(values)) if len(ascending) else ():
        places = np.minimum(_search(ascending, values[here]), len(ascending) - 1)
        result[here] = ascending[places] == values[here]
    return result


def each_once(values: np.ndarray) -> np.ndarray:
    """Each of `values` (n,) once, ascending (m,)."""
    ascending = scratch(len(values), values.dtype)
    ascending[:] = values
    ascending.sort()
    count, last = 0, None
    for here in blocks(len(ascending)):
        block = ascending[here]
        new = np.ones(len(block), dtype=bool)
        new[1:] = block[1:] != block[:-1]
        new[0] = last is None or block[0] != last
        last = block[-1].copy()
        kept = block[new]
        ascending[count : count + len(kept)] = kept
        count += len(kept)
    return ascending[:count]


def numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of `keys` (n,) once, ascending (m,), and which of these each key is, (n,) int32; int64
    from 2 ** 31 on. As `np.unique` with `return_inverse`.
    """
    once = each_once(keys)
    which = scratch(len(keys), np.int32 if len(keys) < 1 << 31 else np.int64)
    for here in blocks(len(keys)):
        which[here] = _search(once, keys[here])
    return once, which


def first_places(which: np.ndarray, count: int) -> np.ndarray:
    """(count,) of the type of `which` (n,): where each number below `count` first stands in it. All
    of them do.
    """
    first = scratch(count, which.dtype)
    for stop in range(len(which), 0, -_BLOCK):
        places = np.arange(stop - 1, max(stop - _BLOCK, 0) - 1, -1)
        first[which[places]] = places  # of equal numbers the last one counts: the first place
    return first


def lexsort(*keys: np.ndarray) -> np.ndarray:
    """(n,) int64: `np.lexsort` of `keys` (n,), of which the last one decides first."""
    return ordered_by(*(numbered(values)[1] for values in keys))


def ordered_by(*numbers: np.ndarray) -> np.ndarray:
    """(n,) int64: `np.lexsort` of `numbers` (n,), each from 0 to 2 ** 31 - 1. The last ones decide
    first, and what is equal in all stays in its order.
    """
    count = len(numbers[0])
    order, before, packed = (
        numbers_from(0, count), scratch(count, np.int64), scratch(count, np.uint64),
    )  # fmt: skip
    for values in numbers:
        before[:] = order
        for here in blocks(count):
            packed[here] = values[before[here]].astype(np.uint64) << np.uint64(32)
            packed[here] |= np.arange(here.start, here.stop, dtype=np.uint64)
        packed.sort()
        for here in blocks(count):
            order[here] = before[(packed[here] & _LOW).astype(np.int64)]
    return order
