"""Train, validation and test that share nothing: no group, no query, no document, no near-duplicate
of a document or of what the student reads in place of a query.

Pairs are numbers here. Equal numbers mean the same group, or texts with the same `text_key`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from hf_distill.data.keys import (
    blocks,
    each_once,
    filled,
    first_places,
    is_among,
    numbered,
    places_of,
    taken,
)
from hf_distill.data.near_duplicates import NearDuplicates
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run.scratch import scratch

TRAIN, VALIDATION, TEST, LEAKED = range(4)
"""Places in `hf_distill.data.collection.SPLITS`."""

NOT_SAID, ELSEWHERE = -1, 4
"""In place of a split. The data does not say for what the pair is; or the pair belongs to a test
set of its own, and is not part of the collection.
"""

LEAKS = (
    "same group", "same query", "same document", "same query of the student",
    "near-duplicate document", "near-duplicate query of the student",
)  # fmt: skip
"""What a pair can share with a held-out one. If it shares several things, the first counts. The
first ones are the columns of `PairNumbers.keys`. A conversation is nearly the one before its last
turn.
"""

_NEAR_DOCUMENT, _NEAR_QUERY = 4, 5
_QUERY, _DOCUMENT, _STUDENT_QUERY = 1, 2, 3
"""Columns of `PairNumbers.keys`."""


TextsOf = Callable[[np.ndarray], Iterable[str]]
"""Looks up a text of each of some pairs."""


@dataclass(frozen=True)
class PairNumbers:
    """The pairs of a source as numbers.

    Attributes:
        keys: (n, 3) int64: group, query and document; (n, 4) with what the student reads in place
            of the query. Equal numbers mean the same group, or texts with the same `text_key`.
            Groups are counted from 0 in the order in which they are dealt; see `seeded_groups`.
        given: (n,) int8: TRAIN, VALIDATION, TEST or NOT_SAID, as the data says, or ELSEWHERE.
    """

    keys: np.ndarray
    given: np.ndarray


@dataclass(frozen=True)
class Arrangement:
    """Which pairs are used, and for what.

    Attributes:
        rows: (m,) int64: the pairs in the order train, validation, test, leaked from train, leaked
            from validation; inside each, as the source gives them.
        split: (m,) int8: TRAIN, VALIDATION, TEST or LEAKED.
        leaks: (m,) int8: of a leaked pair the place in `LEAKS`, of others -1.
        groups: Number of groups that are split.
        beyond_limit: Pairs that `max_pairs` leaves out.
        held_out: Where the test pairs come from.
        leaks_left: Pairs of train and validation that still share something: always 0.
    """

    rows: np.ndarray
    split: np.ndarray
    leaks: np.ndarray
    groups: int
    beyond_limit: int
    held_out: str
    leaks_left: int


def given_splits(given: np.ndarray) -> tuple[np.ndarray, str]:
    """The splits that are taken from the data, and where the test comes from.

    Data with pairs for testing are tested on these alone. If the data holds no pairs for testing
    but some for validation, these are the test, because everybody measures on them; and if all that
    it holds is for one purpose, that is not a split.

    Args:
        given: (n,) int8, as in `PairNumbers`.

    Returns:
        (n,) int8: VALIDATION, TEST or ELSEWHERE; NOT_SAID for a pair that is to be split.
    """
    own = given[given != ELSEWHERE]
    free = np.where(given == TRAIN, np.int8(NOT_SAID), given)
    drawn = np.where(given == ELSEWHERE, given, np.int8(NOT_SAID))
    if len(np.unique(own)) < 2:
        return drawn, "drawn by group"
    if (own == TEST).any():
        return free, "the data's own test split"
    if (own == VALIDATION).any():
        return np.where(free == VALIDATION, np.int8(TEST), free), "the data's own validation split"
    return drawn, "drawn by group"


def arrange(
    pairs: PairNumbers,
    data: DataArguments,
    documents: TextsOf,
    student_queries: TextsOf | None = None,
    what: str = "pair",
) -> Arrangement:
    """Take at most `max_pairs` pairs, split them by group, and take leaks out.

    Args:
        pairs: The pairs of a source.
        data: `max_pairs`, `test_fraction`, `validation_fraction` and `held_out_queries`.
        documents: The texts of the documents of some pairs, given by their rows (m,).
        student_queries: The same of what the student reads in place of their queries; None: it
            reads these.
        what: What messages call a pair.

    Raises:
        InputError: Too few groups, or no pair is left to train on or to test with.
    """
    given, held_out = given_splits(pairs.given)
    free = given == NOT_SAID
    used = ~free
    used[free] = within_limit(taken(pairs.keys[:, 0], places_of(free)), data.max_pairs)
    rows = places_of(used)
    keys = pairs.keys if used.all() else _rows(pairs.keys, rows)
    given = taken(given, rows)
    split, capped = split_pairs(keys, given, data)
    if capped:
        held_out += f", {capped} with at most {data.held_out_queries:,} queries (held_out_queries)"
    leaks = find_leaks(
        keys,
        split,
        lambda places: documents(taken(rows, places)),
        student_queries and (lambda places: student_queries(taken(rows, places))),
    )
    final = np.where(leaks < 0, split, np.int8(LEAKED))
    for part, purpose in ((TRAIN, "training"), (TEST, "the evaluation")):
        if not (final == part).any():
            raise InputError(
                f"no {what} is left for {purpose} after splitting and removing leaks; add data, or "
                "remove texts that repeat each other"
            )
    places = scratch(int((final != ELSEWHERE).sum()), np.int64)
    count = 0
    for part in range(ELSEWHERE):
        for from_validation in (False, True):
            some = places_of((final == part) & ((split == VALIDATION) == from_validation))
            places[count : count + len(some)] = some
            count += len(some)
    return Arrangement(
        rows=taken(rows, places),
        split=taken(final, places),
        leaks=taken(leaks, places),
        groups=int(np.count_nonzero(_some_of(keys[:, 0], given == NOT_SAID))),
        beyond_limit=int((~used).sum()),
        held_out=held_out,
        leaks_left=leaks_left(keys, final),
    )


def seeded_groups(names: Iterable[str | None], seed: int, count: int) -> np.ndarray:
    """(count,) int32: the group of each of `count` pairs, given its name. Groups are counted from
    0, in an order that depends on `seed` and each name alone: that of their digests.
    """
    digests = (hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names)
    numbers = (int.from_bytes(digest[:8], "big") for digest in digests)
    return numbered(filled(numbers, count, np.uint64))[1]


def within_limit(groups: np.ndarray, max_pairs: int | None) -> np.ndarray:
    """Take whole groups until they hold `max_pairs` pairs.

    Args:
        groups: (n,) the group of each pair; they are taken in the order of their numbers.
        max_pairs: None takes all.

    Returns:
        (n,) bool: whether the pair's group is taken.
    """
    if max_pairs is None:
        return np.ones(len(groups), dtype=bool)
    sizes = np.bincount(groups)
    taken: np.ndarray = (np.cumsum(sizes) - sizes < max_pairs)[groups]
    return taken


def deal_groups(
    count: int,
    test_fraction: float,
    validation_fraction: float,
    queries: np.ndarray | None = None,
    most: int | None = None,
) -> tuple[np.ndarray, str]:
    """The splits of `count` groups in their order: test, validation, train, at least one group
    each. A `validation_fraction` of 0 leaves validation empty.

    Args:
        count: Number of groups.
        test_fraction, validation_fraction: Shares of the groups.
        queries: (m,) how many queries the first groups have, at least the first 2 * `most`.
        most: Test and validation have at most so many queries each, or one group. None: no limit.

    Returns:
        (count,) int8, and what `most` made smaller: `test`, `test and validation`, ....

    Raises:
        InputError: Fewer groups than splits.
    """
    test = max(1, round(test_fraction * count))
    validation = max(1, round(validation_fraction * count)) if validation_fraction else 0
    if test + validation >= count:
        raise InputError(
            f"{count} groups are too few for train, validation and test, because a group is never "
            "divided; add data, or name a --group_column with more values"
        )
    wanted = test, validation
    if most is not None and queries is not None:
        test = min(test, _fitting(queries, most))
        validation = min(validation, _fitting(queries[test:], most))
    both = zip(("test", "validation"), wanted, (test, validation), strict=True)
    sizes = [test, validation, count - test - validation]
    return (
        np.repeat(np.array([TEST, VALIDATION, TRAIN], dtype=np.int8), sizes),
        " and ".join(name for name, was, now in both if now < was),
    )


def _fitting(queries: np.ndarray, most: int) -> int:
    """How many of the first groups have at most `most` queries together, at least one group."""
    return max(1, int(np.searchsorted(np.cumsum(queries), most, side="right")))


def _queries_of(keys: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64: how many queries each of the first groups has. `places` (n,) are those of
    groups in their order, -1 for pairs that are not dealt; `keys` as in `PairNumbers`.
    """
    some = np.flatnonzero((places >= 0) & (places < count))
    once = np.unique(np.stack([places[some], keys[some, _QUERY]], axis=1), axis=0)
    return np.bincount(once[:, 0], minlength=count)


def split_pairs(keys: np.ndarray, given: np.ndarray, data: DataArguments) -> tuple[np.ndarray, str]:
    """The split of each pair. All pairs of a group that are to be split get the same one.

    If the data holds out pairs of its own for testing, only validation is drawn, and not even that
    if it has its own. A pair of a group that is held out stays in train: it is a leak.

    Args:
        keys: (n, 3 or 4), as in `PairNumbers`; groups are dealt in the order of their numbers.
        given: (n,) int8: VALIDATION, TEST or ELSEWHERE; NOT_SAID for a pair that is to be split.
        data: `test_fraction`, `validation_fraction` and `held_out_queries`: the most queries of
            test and of validation, where they are drawn.

    Returns:
        (n,) int8, and which of them `held_out_queries` made smaller.

    Raises:
        InputError: Too few groups.
    """
    groups, free, most = keys[:, 0], given == NOT_SAID, data.held_out_queries
    own = [given == TEST, given == VALIDATION]
    dealt = _some_of(groups, free) & ~_some_of(groups, ~free)
    count = int(dealt.sum())
    split = np.full(len(dealt), TRAIN, dtype=np.int8)
    capped, queries = "", None
    if most is not None:
        place = scratch(len(dealt), np.int32)
        np.cumsum(dealt, dtype=np.int32, out=place)
        place -= 1
        place[~dealt] = -1
        queries = _queries_of(keys, taken(place, groups), min(count, 2 * most))
    if not own[0].any():
        split[dealt], capped = deal_groups(
            count, data.test_fraction, data.validation_fraction, queries, most
        )
    elif not own[1].any() and data.validation_fraction and count:
        number = max(1, round(data.validation_fraction * count))
        if most is not None and queries is not None and _fitting(queries, most) < number:
            number, capped = _fitting(queries, most), "validation"
        split[np.flatnonzero(dealt)[:number]] = VALIDATION
    return np.where(free, taken(split, groups), given), capped


def _some_of(groups: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Of each of `groups` (n,), numbers from 0, whether some pair of it is `chosen` (n,)."""
    some = scratch(int(groups.max(initial=-1)) + 1, np.bool_)
    for here in blocks(len(groups)):
        some[groups[here][chosen[here]]] = True
    return some


def _rows(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`keys[rows]` (m, k) of `keys` (n, k), column by column."""
    result = scratch((keys.shape[1], len(rows)), keys.dtype).T
    for column in range(keys.shape[1]):
        for here in blocks(len(rows)):
            result[here, column] = keys[rows[here], column]
    return result


def shared(keys: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """What pairs have exactly in common with held-out ones.

    Args:
        keys: (n, 3 or 4), as in `PairNumbers`.
        held_out: (m, 3 or 4) the same of the held-out pairs.

    Returns:
        (n,) int8: the place in `LEAKS` of the first thing in common, -1 for none.
    """
    first = np.full(len(keys), -1, dtype=np.int8)
    for place in reversed(range(keys.shape[1])):
        first[is_among(keys[:, place], each_once(held_out[:, place]))] = place
    return first


def find_leaks(
    keys: np.ndarray,
    split: np.ndarray,
    documents: TextsOf,
    student_queries: TextsOf | None = None,
) -> np.ndarray:
    """What pairs of train and validation share with held-out ones.

    Validation loses what it shares with test, or with a test set of its own. Train loses what it
    shares with these or with the validation pairs that are left.

    Args:
        keys: (n, 3 or 4), as in `PairNumbers`.
        split: (n,) the split of each pair.
        documents: The texts of the documents of some pairs, given by their places (m,).
        student_queries: The same of what the student reads in place of their queries; None: it
            reads these. Only texts that differ from the query are compared.

    Returns:
        (n,) int8: the place in `LEAKS` of the first thing in common, -1 for none.
    """
    leaks = np.full(len(keys), -1, dtype=np.int8)
    held_out = new = (split == TEST) | (split == ELSEWHERE)
    every = np.ones(len(keys), dtype=bool)
    near_ones = [(_NEAR_DOCUMENT, _DOCUMENT, documents, every, NearDuplicates())]
    if student_queries is not None:
        differs = keys[:, _QUERY] != keys[:, _STUDENT_QUERY]
        near_ones.append((_NEAR_QUERY, _STUDENT_QUERY, student_queries, differs, NearDuplicates()))
    for part in (VALIDATION, TRAIN):
        pairs = places_of(split == part)
        leaks[pairs] = shared(_rows(keys, pairs), _rows(keys, places_of(held_out)))
        for leak, column, texts, compared, index in near_ones:
            pairs = places_of(new & compared)
            first, _ = _each_once(keys[:, column], pairs)
            for text in texts(taken(pairs, first)):
                index.add(text)
            pairs = places_of((split == part) & (leaks < 0) & compared)
            first, which = _each_once(keys[:, column], pairs)
            near = scratch(len(first), np.bool_)
            found = filled(index.have(texts(taken(pairs, first))), len(first), np.bool_)
            for here in blocks(len(first)):
                near[which[first[here]]] = found[here]
            leaks[pairs[taken(near, which)]] = leak
        new = (split == part) & (leaks < 0)
        held_out = held_out | new
    return leaks


def _each_once(keys: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places among `pairs` (m,) of the first ones with each text, ascending, and for each pair
    (m,) the number of its text. `keys` (n,) are those of the texts.
    """
    once, which = numbered(taken(keys, pairs))
    first = first_places(which, len(once))
    first.sort()
    return first, which


def leaks_left(keys: np.ndarray, split: np.ndarray) -> int:
    """Pairs of train and validation with a group, query or document of a held-out pair."""
    train, validation = (_rows(keys, places_of(split == part)) for part in (TRAIN, VALIDATION))
    test = _rows(keys, places_of((split == TEST) | (split == ELSEWHERE)))
    of_train = shared(train, np.concatenate([validation, test]))
    of_validation = shared(validation, test)
    return int((of_train >= 0).sum() + (of_validation >= 0).sum())
