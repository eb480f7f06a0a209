"""Train, validation and test that share nothing: no group, no query, no document, no near-duplicate
of a document.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

from datasets import Dataset

from hf_distill.data.near_duplicates import (
    NearDuplicates,
    text_key,
)
from hf_distill.errors import InputError

LEAKS = ("same group", "same query", "same document", "near-duplicate document")


def seeded_order(groups: list[str], seed: int) -> list[str]:
    """`groups` without repetition, in an order that depends on `seed` and each name alone."""
    return sorted(
        set(groups),
        key=lambda group: (
            hashlib.sha256(f"{seed} {group}".encode("utf-8", "surrogatepass")).digest(),
            group,
        ),
    )


def split_groups(
    groups: list[str], test_fraction: float, validation_fraction: float, seed: int
) -> dict[str, str]:
    """Deal whole groups out to `test`, `validation` and `train`, by share of the groups, at least
    one each.

    Args:
        groups: The group of every pair.
        test_fraction: Share of the groups for `test`.
        validation_fraction: Share for `validation`; 0 leaves it empty.
        seed: Seeds the order in which groups are dealt.

    Returns:
        group -> split.

    Raises:
        InputError: Fewer groups than splits.
    """
    order = seeded_order(groups, seed)
    sizes = {"test": max(1, round(test_fraction * len(order)))}
    sizes["validation"] = (
        max(1, round(validation_fraction * len(order))) if validation_fraction else 0
    )
    sizes["train"] = len(order) - sum(sizes.values())
    if sizes["train"] < 1:
        raise InputError(
            f"{len(order)} groups cannot be split into train, validation and test without sharing one; "
            "bring more groups (see --group_column)"
        )
    names = [name for name, size in sizes.items() for _ in range(size)]
    return dict(zip(order, names, strict=True))


def limit_pairs(groups: list[str], max_pairs: int, seed: int) -> set[str]:
    """The groups to keep, in seeded order, until they hold `max_pairs` pairs or all."""
    sizes, kept, total = Counter(groups), set(), 0
    for group in seeded_order(groups, seed):
        if total >= max_pairs:
            break
        kept.add(group)
        total += sizes[group]
    return kept


class HeldOut:
    """What held-out pairs consist of, and which of it another pair shares."""

    def __init__(self) -> None:
        self._groups: set[str] = set()
        self._queries: set[str] = set()
        self._documents: set[str] = set()
        self._near = NearDuplicates()

    def add(self, pairs: Dataset) -> None:
        """Add the texts and groups of `pairs`."""
        for pair in pairs:
            self._groups.add(pair["group"])
            self._queries.add(text_key(pair["query"]))
            key = text_key(pair["document"])
            if key not in self._documents:
                self._documents.add(key)
                self._near.add(pair["document"])

    def leak(self, pair: Mapping[str, Any]) -> str | None:
        """The first of `LEAKS` that `pair` has in common with the held-out pairs, or None."""
        if pair["group"] in self._groups:
            return "same group"
        if text_key(pair["query"]) in self._queries:
            return "same query"
        if text_key(pair["document"]) in self._documents:
            return "same document"
        return "near-duplicate document" if self._near.has(pair["document"]) else None


def count_leaks(pairs: Dataset, held_out: HeldOut) -> dict[str, int]:
    """How many of `pairs` share what with the held-out pairs: {leak: count}, zeros included."""
    found = Counter(held_out.leak(pair) for pair in pairs)
    return {leak: found[leak] for leak in LEAKS}


def separate_leaks(pairs: Dataset, held_out: HeldOut) -> tuple[Dataset, Dataset, list[str]]:
    """`pairs` that share nothing with the held-out pairs, those that do, and what each of the
    latter shares.
    """
    reasons = [held_out.leak(pair) for pair in pairs]
    kept = pairs.select([i for i, reason in enumerate(reasons) if reason is None])
    leaked = pairs.select([i for i, reason in enumerate(reasons) if reason is not None])
    return kept, leaked, [reason for reason in reasons if reason is not None]


def where(pairs: Dataset, groups: Set[str]) -> Dataset:
    """The pairs whose group is one of `groups`."""
    return pairs.select([i for i, group in enumerate(pairs["group"]) if group in groups])


def check_enough(pairs: int, split: str) -> None:
    """Raise InputError if nothing is left of a split."""
    if pairs < 1:
        raise InputError(
            f"no pair is left for {split} after splitting and removing leaks; bring more data or fewer near-duplicates"
        )
