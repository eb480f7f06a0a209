"""Several sources in one training: how many pairs of each are drawn, and which batch they are in.

With `source_alpha` 1, no `source_shares` and without `one_source_per_batch`, nothing here is used:
each epoch takes every pair once.

sentence-transformers can mix data sets, too (`MultiDatasetBatchSamplers`), but not like this: its
samplers take each pair once (`proportional`) or stop with the smallest data set (`round_robin`),
all batches are of one data set, and the batches that the processes compute at the same time are of
different ones, although their negatives are shared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset
from sentence_transformers.base.sampler import BatchSamplers
from torch.utils.data import BatchSampler

from hf_distill.data.collection import Collection, Pairs
from hf_distill.data.column import Column
from hf_distill.data.keys import blocks
from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.scratch import scratch

NO_SOURCE = "(no source)"
"""The name of the pairs without a source, in shares and in records."""


def is_mixed(config: DistillationConfig) -> bool:
    """Whether the recipe says how the sources are drawn."""
    return bool(config.source_alpha != 1 or config.source_shares or config.one_source_per_batch)


def parse_shares(shares: Sequence[str]) -> dict[str, float]:
    """Share of each source, as it is written: `NAME=SHARE`. They need not add up to 1.

    Raises:
        InputError: Not of this form, a share that is not a number of at least 0, a source named
            twice, or nothing to draw.
    """
    parsed: dict[str, float] = {}
    for text in shares:
        name, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not name or not 0 <= share < math.inf:
            raise InputError(
                f"--source_shares {text}: a share is NAME=SHARE with a number of at least 0, as in "
                "faq=0.7"
            )
        if name in parsed:
            raise InputError(
                f"--source_shares {text}: {name} has the share {parsed[name]:g} already; name each "
                "source once"
            )
        parsed[name] = share
    if parsed and not any(parsed.values()):
        raise InputError(
            f"--source_shares {' '.join(shares)}: nothing would be drawn; give a source a share "
            "above 0"
        )
    return parsed


def check_mixing(config: DistillationConfig) -> None:
    """Refuse what can be refused without the pairs.

    Raises:
        InputError: Shares that cannot be read, an exponent outside its range, both together, or a
            batch sampler that forms batches by itself.
    """
    if not is_mixed(config):
        return
    parse_shares(config.source_shares)
    if not 0 <= config.source_alpha < math.inf:
        raise InputError(
            f"--source_alpha {config.source_alpha}: it must be a number of at least 0; 1 takes the "
            "sources as they are, 0 every source as often"
        )
    if config.source_shares and config.source_alpha != 1:
        raise InputError(
            f"--source_alpha {config.source_alpha}: --source_shares says how often each source is "
            "drawn already; set one of them"
        )
    if config.batch_sampler != BatchSamplers.BATCH_SAMPLER:
        name = getattr(config.batch_sampler, "value", config.batch_sampler)
        raise InputError(
            f"--batch_sampler {name}: with --source_alpha, --source_shares or "
            "--one_source_per_batch, the sources decide which pairs share a batch, and some pairs "
            "are drawn more than once. Set --batch_sampler batch_sampler: equal texts in a batch "
            "are never each other's negatives"
        )


def shares_of(pairs: Mapping[str, int], config: DistillationConfig) -> np.ndarray:
    """The share (s,) of each source, adding up to 1: as given, or p ~ n ** alpha (Conneau & Lample
    2019, arXiv:1901.07291, for languages; as in XLM-R and mT5).

    Args:
        pairs: Source -> its number of pairs.
        config: Says how they are drawn.

    Raises:
        InputError: There is only one source, `source_shares` names another one than there are or
            leaves one out, or a source is too small for batches of its own.
    """
    check_mixing(config)
    there = ", ".join(f"{name} ({number:,} pairs)" for name, number in pairs.items())
    if len(pairs) < 2:
        raise InputError(
            f"{_flags(config)}: all training pairs have the same source: {there}. Name the column "
            "that says where a pair comes from (--source_column), read several data sets "
            "(--sources), or leave this out"
        )
    given = parse_shares(config.source_shares)
    if given and (unknown := sorted(given.keys() - pairs.keys())):
        raise InputError(
            f"--source_shares {unknown[0]}={given[unknown[0]]:g}: no training pair is of this "
            f"source; there are {there}"
        )
    if given and (missing := [name for name in pairs if name not in given]):
        raise InputError(
            f"--source_shares {' '.join(config.source_shares)}: {missing[0]} has no share; there "
            f"are {there}. Add {missing[0]}=SHARE (0: none of its pairs is trained on)"
        )
    most = max(pairs.values())
    weights = [
        given[name] if given else (number / most) ** config.source_alpha
        for name, number in pairs.items()
    ]
    together = config.train_batch_size * config.world_size
    for (name, number), weight in zip(pairs.items(), weights, strict=True):
        if config.one_source_per_batch and weight and number < together:
            raise InputError(
                f"--one_source_per_batch: {name} has {number:,} training pairs, and a batch of all "
                f"{config.world_size} process(es) takes {together:,}; lower "
                "--per_device_train_batch_size, or mix the sources in a batch"
            )
    return np.array(weights, dtype=np.float64) / sum(weights)


def _flags(config: DistillationConfig) -> str:
    """What the recipe says of the sources, as flags."""
    if config.source_shares:
        return f"--source_shares {' '.join(config.source_shares)}"
    if config.source_alpha != 1:
        return f"--source_alpha {config.source_alpha}"
    return "--one_source_per_batch"


@dataclass(frozen=True)
class Sources:
    """Where pairs come from.

    Attributes:
        names: The sources, sorted; `NO_SOURCE` for pairs without one.
        codes: (n,) int32, the source of each pair: its place in `names`.
    """

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, table: Dataset, rows: np.ndarray | None = None) -> Sources:
        """By the column `source` of `table`, of all its rows or of `rows` (n,)."""
        column, places = Column(table, "source"), dict[str, int]()
        count = len(column) if rows is None else len(rows)
        codes = scratch(count, np.int32)
        for here in blocks(count):
            some = np.arange(here.start, here.stop) if rows is None else rows[here]
            values = column.array(some).dictionary_encode("encode")
            names = (NO_SOURCE if name is None else name for name in values.dictionary.to_pylist())
            own = [places.setdefault(name, len(places)) for name in names]
            codes[here] = np.array(own, dtype=np.int32)[values.indices.to_numpy()]
        ascending = sorted(places)
        rank = np.empty(len(places), dtype=np.int32)
        rank[[places[name] for name in ascending]] = np.arange(len(places))
        for here in blocks(count):
            codes[here] = rank[codes[here]]
        return cls(tuple(ascending), codes)

    @property
    def count(self) -> dict[str, int]:
        """Source -> its number of pairs."""
        counts = np.bincount(self.codes, minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    @property
    def column(self) -> pa.Array:
        """(n,) strings, the name of each pair's source."""
        names = pa.array(self.names, type=pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(self.codes), names).cast(pa.string())


def sources_of(pairs: Pairs) -> Sources:
    """Where `pairs` come from."""
    return Sources.of(pairs.collection.judgements, pairs.rows)


def check_sources(collection: Collection, config: DistillationConfig) -> None:
    """Refuse, before any scoring, what the training would refuse about the sources: see
    `shares_of`.
    """
    if is_mixed(config):
        alone = collection.record.texts is not None
        sources = (
            Sources.of(collection.texts, collection.text_numbers("train"))
            if alone
            else sources_of(collection.pairs("train"))
        )
        shares_of(sources.count, config)


def apportion(total: int, shares: np.ndarray) -> np.ndarray:
    """`total` divided by `shares` (s,) into whole numbers (s,), by largest remainder."""
    exact = total * shares / shares.sum()
    numbers = np.floor(exact).astype(np.int64)
    order = np.argsort(numbers - exact, kind="stable")
    numbers[order[: total - numbers.sum()]] += 1
    return np.asarray(numbers)


def first_steps(total: int, shares: np.ndarray) -> np.ndarray:
    """How many of the first `total` steps belong to each source (s,), by Sainte-Laguë: as `shares`
    say, and never fewer for a larger total, which `apportion` does not promise.
    """
    most = np.ceil(shares * total).astype(np.int64) + 1
    most[shares == 0] = 0
    sources = np.repeat(np.arange(len(shares)), most)
    numbers = np.arange(most.sum()) - np.repeat(np.cumsum(most) - most, most)
    order = np.argsort((numbers + 0.5) / shares[sources], kind="stable")
    counts: np.ndarray = np.bincount(sources[order[:total]], minlength=len(shares))
    return counts


@dataclass(frozen=True)
class Plan:
    """Which pairs are drawn in which epoch and batch.

    A source is an endless sequence: all of its pairs in a random order, then all of them in another
    one, and so on. An epoch takes the next ones of each. So a small source repeats within an epoch,
    and a large one goes on in the next epoch where this one stopped, until all its pairs were seen.

    Attributes:
        sources: Where the pairs come from.
        shares: (s,) of the sources, adding up to 1.
        together: Pairs of a step on all processes together.
        one_source: All pairs of a step are of one source.
        seed: Draws the orders.
    """

    sources: Sources
    shares: np.ndarray
    together: int
    one_source: bool
    seed: int

    @classmethod
    def of(cls, sources: Sources, config: DistillationConfig) -> Plan:
        """The plan of a training.

        Raises:
            InputError: As `shares_of`.
        """
        return cls(
            sources=sources,
            shares=shares_of(sources.count, config),
            together=config.train_batch_size * config.world_size,
            one_source=config.one_source_per_batch,
            seed=int(config.seed),
        )

    def __len__(self) -> int:
        """Pairs of an epoch: as many as there are, or as many as fill steps of one source."""
        number = len(self.sources.codes)
        return number - number % self.together if self.one_source else number

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """The pairs of each source."""
        return [np.flatnonzero(self.sources.codes == i) for i in range(len(self.sources.names))]

    def _sequence(self, source: int, start: int, stop: int) -> np.ndarray:
        """The pairs of a source from `start` to `stop` in its endless sequence."""
        members = self._members[source]
        if start == stop:
            return members[:0]
        rounds = range(start // len(members), (stop - 1) // len(members) + 1)
        drawn = np.concatenate(
            [np.random.default_rng((self.seed, source, i)).permutation(members) for i in rounds]
        )
        first = start - rounds.start * len(members)
        return drawn[first : first + stop - start]

    def _bounds(self, epoch: int) -> np.ndarray:
        """(s,) where the epoch begins in the sequence of each source."""
        if self.one_source:
            steps = epoch * len(self) // self.together
            return self.together * first_steps(steps, self.shares)
        return epoch * apportion(len(self), self.shares)

    def draw(self, epoch: int) -> np.ndarray:
        """(len(self),) int64: the pairs of an epoch, those of each step after one another. What is
        left of a source because it fills no step comes first in a later epoch.
        """
        bounds = zip(self._bounds(epoch).tolist(), self._bounds(epoch + 1).tolist(), strict=True)
        drawn = np.concatenate([self._sequence(i, *ends) for i, ends in enumerate(bounds)])
        rows = drawn.reshape(-1, self.together if self.one_source else 1)
        order: np.ndarray = np.random.default_rng((self.seed, epoch)).permutation(rows).ravel()
        return order

    def drawn(self, steps: int, config: DistillationConfig) -> dict[str, int]:
        """How many pairs of each source the first `steps` optimiser steps were trained on."""
        batches = len(self) / self.together
        batches = math.floor(batches) if config.dataloader_drop_last else math.ceil(batches)
        each = config.gradient_accumulation_steps
        of_epoch = math.ceil(batches / each)
        counts = np.zeros(len(self.sources.names), dtype=np.int64)
        for epoch in range(math.ceil(steps / of_epoch)):
            pairs = min((steps - epoch * of_epoch) * each, batches) * self.together
            codes = self.sources.codes[self.draw(epoch)[:pairs]]
            counts += np.bincount(codes, minlength=len(counts))
        return dict(zip(self.sources.names, counts.tolist(), strict=True))


def plan_of(rows: Dataset | IterableDataset | None, config: DistillationConfig) -> Plan | None:
    """The plan of a training on `rows`; None if it takes all pairs as they come.

    Raises:
        InputError: The rows have no column `source` or are a stream, or as `shares_of`.
    """
    if rows is None or not is_mixed(config):
        return None
    if not isinstance(rows, Dataset) or "source" not in rows.column_names:
        raise InputError(
            f"{_flags(config)}: the training rows have no column source (or are a stream, of which "
            "nobody knows how many rows a source has); name the column that says "
            "where a pair comes from (--source_column), or leave this out"
        )
    return Plan.of(Sources.of(rows), config)


def drawn_of(
    plan: Plan | None, rows: Dataset, steps: int, config: DistillationConfig
) -> dict[str, int]:
    """How many pairs of each source `steps` optimiser steps were trained on; empty if no pair of
    `rows` has a source. Without a plan all pairs are drawn as they come, and these are the expected
    numbers.
    """
    if plan is not None:
        return plan.drawn(steps, config)
    if "source" not in rows.column_names:
        return {}
    count = Sources.of(rows).count
    step = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
    numbers = apportion(steps * step, np.array(list(count.values()), dtype=np.float64))
    return dict(zip(count, numbers.tolist(), strict=True))


class SourceBatches(BatchSampler):
    """The batches of a plan, for all processes: accelerate gives each of them every N-th one, so
    the N batches of a step follow one another.

    Attributes:
        epoch: The epoch that is drawn. The Trainer tells it through a callback: its own way
            (`set_epoch`) does not reach the sampler of a training that resumes on several
            processes.
    """

    def __init__(self, plan: Plan, batch_size: int, drop_last: bool) -> None:
        super().__init__(range(len(plan)), batch_size, drop_last)
        self.plan = plan
        self.epoch = torch.zeros((), dtype=torch.int64)

    def __iter__(self) -> Iterator[list[int]]:
        drawn = self.plan.draw(int(self.epoch)).tolist()
        for number in range(len(self)):
            yield drawn[number * self.batch_size : (number + 1) * self.batch_size]
