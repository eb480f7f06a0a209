"""Train, validation and test that share nothing: no group, no query, no document, no near-duplicate
of a document or of what the student reads in place of a query.

Pairs are numbers here. Equal numbers mean the same group, or texts with the same `text_key`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from hf_distill.data.keys import is_among, numbered
from hf_distill.data.near_duplicates import NearDuplicates
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

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
    taken = ~free
    taken[free] = within_limit(pairs.keys[free, 0], data.max_pairs)
    rows = np.flatnonzero(taken)
    keys = pairs.keys if taken.all() else pairs.keys[rows]
    given = given[rows]
    split, capped = split_pairs(keys, given, data)
    if capped:
        held_out += f", {capped} with at most {data.held_out_queries:,} queries (held_out_queries)"
    leaks = find_leaks(
        keys,
        split,
        lambda places: documents(rows[places]),
        student_queries and (lambda places: student_queries(rows[places])),
    )
    final = np.where(leaks < 0, split, np.int8(LEAKED))
    for part, purpose in ((TRAIN, "training"), (TEST, "the evaluation")):
        if not (final == part).any():
            raise InputError(
                f"no {what} is left for {purpose} after splitting and removing leaks; add data, or "
                "remove texts that repeat each other"
            )
    places = np.lexsort((split == VALIDATION, final))
    places = places[final[places] != ELSEWHERE]
    return Arrangement(
        rows=rows[places],
        split=final[places],
        leaks=leaks[places],
        groups=int(np.count_nonzero(np.bincount(keys[given == NOT_SAID, 0]))),
        beyond_limit=int((~taken).sum()),
        held_out=held_out,
        leaks_left=leaks_left(keys, final),
    )


def seeded_groups(names: Iterable[str | None], seed: int, count: int) -> np.ndarray:
    """(count,) int32: the group of each of `count` pairs, given its name. Groups are counted from
    0, in an order that depends on `seed` and each name alone: that of their digests.
    """
    digests = (hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names)
    numbers = np.fromiter(
        (int.from_bytes(digest[:8], "big") for digest in digests), dtype=np.uint64, count=count
    )
    return numbered(numbers)[1]


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
    dealt = np.zeros(groups.max(initial=-1) + 1, dtype=bool)
    dealt[groups[free]] = True
    dealt[groups[~free]] = False
    count = int(dealt.sum())
    split = np.full(len(dealt), TRAIN, dtype=np.int8)
    capped = ""
    place = np.where(dealt, np.cumsum(dealt) - 1, -1)
    queries = None if most is None else _queries_of(keys, place[groups], min(count, 2 * most))
    if not own[0].any():
        split[dealt], capped = deal_groups(
            count, data.test_fraction, data.validation_fraction, queries, most
        )
    elif not own[1].any() and data.validation_fraction and count:
        number = max(1, round(data.validation_fraction * count))
        if most is not None and queries is not None and _fitting(queries, most) < number:
            number, capped = _fitting(queries, most), "validation"
        split[np.flatnonzero(dealt)[:number]] = VALIDATION
    return np.where(free, split[groups], given), capped


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
        first[is_among(keys[:, place], np.unique(held_out[:, place]))] = place
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
        pairs = np.flatnonzero(split == part)
        leaks[pairs] = shared(keys[pairs], keys[held_out])
        for leak, column, texts, compared, index in near_ones:
            for text in texts(_each_once(keys[:, column], np.flatnonzero(new & compared))[0]):
                index.add(text)
            pairs = np.flatnonzero((split == part) & (leaks < 0) & compared)
            first, which = _each_once(keys[:, column], pairs)
            near = np.fromiter(index.have(texts(first)), dtype=bool, count=len(first))
            leaks[pairs[near[which]]] = leak
        new = (split == part) & (leaks < 0)
        held_out = held_out | new
    return leaks


def _each_once(keys: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of `pairs` (m,) with each text, and for each pair (m,) the place of its text among
    these. `keys` (n,) are those of the texts.
    """
    _, first, which = np.unique(keys[pairs], return_index=True, return_inverse=True)
    return pairs[first], which


def leaks_left(keys: np.ndarray, split: np.ndarray) -> int:
    """Pairs of train and validation with a group, query or document of a held-out pair."""
    train, validation = (keys[split == part] for part in (TRAIN, VALIDATION))
    test = keys[(split == TEST) | (split == ELSEWHERE)]
    of_train = shared(train, np.concatenate([validation, test]))
    of_validation = shared(validation, test)
    return int((of_train >= 0).sum() + (of_validation >= 0).sum())
