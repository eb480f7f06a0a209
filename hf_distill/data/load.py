"""The collection of a run: `load_collection` makes it, `open_collection` reads the one that is
there.

The source's pairs are read once into working tables (`hf_distill.data.read`), split by number
(`hf_distill.data.split`), and written in the order of their split.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_distill.data.collection import (
    CANDIDATE_FEATURES,
    JUDGEMENT_FEATURES,
    SPLITS,
    TEXT_FEATURES,
    TEXTS_FEATURES,
    Collection,
    CollectionRecord,
    Source,
    SourcePairs,
    TableWriter,
    text_number,
    write_table,
)
from hf_distill.data.column import Column
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
from hf_distill.data.near_duplicates import text_key
from hf_distill.data.read import (
    TABLES,
    TEST_PATH,
    ReadPairs,
    Texts,
    open_tables,
    read_pairs,
)
from hf_distill.data.sources.files import read_path
from hf_distill.data.split import (
    ELSEWHERE,
    LEAKED,
    LEAKS,
    NOT_SAID,
    TEST,
    TRAIN,
    VALIDATION,
    Arrangement,
    PairNumbers,
    arrange,
    seeded_groups,
)
from hf_distill.data.texts import named_leaks, read_texts, write_texts
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments, Recipe
from hf_distill.recipe.check import check_each_stage, check_without_pairs
from hf_distill.recipe.kinds import SOURCES, digests_of_plugins, load_kind
from hf_distill.run.folder import RunFolder
from hf_distill.run.scratch import scratch
from hf_distill.run.stage import folder_written_whole, listed, read_result, stage, working_folder

_NOT_OF_PAIRS = ("dataset_license", "language", "eval_tasks", "pool_path", "chat_url")
"""Options of the data that do not change any pair."""

_GIVEN = {
    None: NOT_SAID, "train": TRAIN, "validation": VALIDATION, "test": TEST, TEST_PATH: ELSEWHERE,
}  # fmt: skip

_EMPTY = {
    **TEXT_FEATURES, "judgements": JUDGEMENT_FEATURES, "candidates": CANDIDATE_FEATURES,
}  # fmt: skip
"""The tables of a collection that a source of texts leaves empty."""

_BATCH = 1000

_KEYS = 3
"""Columns of `PairNumbers.keys` where the student reads the queries themselves."""


def load_collection(recipe: Recipe, folder: RunFolder) -> Collection:
    """The collection of a run: read and split once, then kept until an input changes.

    Args:
        recipe: Names the source and says how its pairs are split.
        folder: The run's folder. It stays as it was if this raises, but for queries that a language
            model has written.

    Raises:
        InputError: An unknown source, whatever the source itself raises, a row that is not a pair
            of texts, or too few pairs to train and evaluate with.
    """
    data = recipe.data
    settings = {name: value for name, value in vars(data).items() if name not in _NOT_OF_PAIRS}
    of_texts = data.dataset in ("texts", "generate")
    longest = recipe.student.student_max_length if of_texts else None
    existed = folder.path.exists()

    def check_texts(source: Source) -> None:
        if recipe.run.until != "read":
            check_each_stage(recipe, lambda stage: check_without_pairs(stage, source.name))

    def make(key: str) -> CollectionRecord:
        source = load_kind(data.dataset, SOURCES, "dataset")
        test_set = read_test_set(data.test_path, data, recipe.reading) if data.test_path else None
        inputs = source(recipe), test_set
        if inputs[0].texts:
            check_texts(inputs[0].about)
        record = write_collection(inputs, data, recipe.seed, folder, key)
        shutil.rmtree(recipe.reading, ignore_errors=True)
        return record

    try:
        record = stage(
            folder.pairs / "manifest.json",
            CollectionRecord,
            [settings, recipe.seed, _content(data), digests_of_plugins([data.dataset]), longest],
            make,
            files=[folder.pairs / f"{name}.arrow" for name in TABLES],
        )
        if record.texts is not None:  # of an earlier call with another recipe
            check_texts(record.source)
    except InputError:
        if not existed and not folder.generated.exists():  # that was paid for
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return open_collection(folder, data.dataset_license)


def read_test_set(path: str, data: DataArguments, cache: Path) -> SourcePairs:
    """What `test_path` names. Its format is its own, and it needs neither groups nor sources."""
    none: dict[str, Any] = dict.fromkeys(
        ("group_column", "source_column", "text_column", "student_text_column")
    )
    own = dataclasses.replace(data, format="auto", **none)
    test_set = read_path(Path(path), "test_path", own, cache)
    if test_set.texts:
        raise InputError(
            f"--test_path {path}: it holds texts without queries, and a test set needs queries and "
            "the documents that answer them; name another one, or leave it out"
        )
    return test_set


def open_collection(folder: RunFolder, dataset_license: str | None = None) -> Collection:
    """The collection that a run has read.

    Args:
        folder: The run's folder.
        dataset_license: Replaces the licence that the source states.

    Raises:
        InputError: There is none, or it is damaged.
    """
    manifest = folder.pairs / "manifest.json"
    if not manifest.is_file():
        raise InputError(f"{folder.path} holds no pairs (no {manifest}); run its recipe first")
    record = read_result(manifest, CollectionRecord)
    if dataset_license is not None:
        source = dataclasses.replace(record.source, license=dataset_license)
        record = dataclasses.replace(record, source=source)
    return open_tables(folder.pairs, record)


def _content(data: DataArguments) -> list[Any]:
    """What the pairs depend on beside the recipe: names, sizes and times of the files, or the
    installed packages.
    """
    named = [Path(name) for name in (data.dataset_path, data.test_path) if name]
    paths = [*named, *map(Path, data.source_paths.values())]
    if not paths and data.dataset_name is None and data.dataset in ("auto", "pydocs"):
        packages = importlib.metadata.distributions()
        # A set: a package can be found at two places of the path, as an editable install is.
        return sorted({f"{package.metadata['Name']} {package.version}" for package in packages})
    return content_of(paths)


def content_of(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all files at `paths`."""
    files = [
        file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
    ]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def write_collection(
    sources: tuple[SourcePairs, SourcePairs | None],
    data: DataArguments,
    seed: int,
    folder: RunFolder,
    key: str,
) -> CollectionRecord:
    """Read a source's pairs, split them, take leaks out, and write the tables of the collection to
    `folder.pairs`: all of them or, if this raises, none.

    Args:
        sources: The source, and a test set of its own with which nothing may be shared.
        data: How the pairs are split.
        seed: Of the split.
        folder: The run's folder.
        key: The collection's key.

    Raises:
        InputError: As `load_collection`.
    """
    pairs, test_set = sources
    if pairs.texts:
        return _write_texts(sources, data, seed, folder, key)
    with working_folder(folder.cache / "working") as working:
        read = read_pairs(pairs, working, test_set, data.student_query)
        numbers = _pair_numbers(read, seed)
        if (numbers.given == ELSEWHERE).all():
            raise _nothing_in(pairs, "valid (query, document) pair", read.counts)
        if data.student_query and numbers.keys.shape[1] == _KEYS:
            raise InputError(
                f"--student_query {data.student_query}: the student would read what the teacher "
                f"reads in all {len(numbers.keys):,} pairs of {pairs.about.name}; name others, "
                "or set --student_query none"
            )
        arrangement = arrange(
            numbers,
            data,
            lambda rows: _texts(read.documents, taken(read.pair_documents, rows)),
            (lambda rows: _student_queries(read.queries, taken(read.pair_queries, rows)))
            if numbers.keys.shape[1] > _KEYS
            else None,
        )
        manifest = folder.pairs / "manifest.json"
        own = listed(manifest)
        with folder_written_whole(folder.pairs, None if own is None else own | {manifest}) as new:
            writer = _Writer(read, numbers, arrangement, new)
            split, lost = writer.write()
            write_table([], TEXTS_FEATURES, new / "texts.arrow")
    leaked = np.bincount(arrangement.leaks[arrangement.leaks >= 0], minlength=len(LEAKS))
    unused = {**pairs.unused, **lost, "pairs beyond max_pairs": arrangement.beyond_limit}
    return CollectionRecord(
        key=key,
        source=pairs.about,
        read=read.counts,
        read_as=pairs.read_as,
        unused={what: number for what, number in unused.items() if number},
        split=split,
        held_out=arrangement.held_out,
        leaks_removed={why: n for why, n in zip(LEAKS, leaked.tolist(), strict=True) if n},
        leaks_left=arrangement.leaks_left,
    )


def _nothing_in(source: SourcePairs, what: str, counts: Mapping[str, int]) -> InputError:
    """The error about a source of which no row can be used."""
    reasons = ", ".join(f"{why}: {count}" for why, count in counts.items()) or "there are no rows"
    return InputError(f"{source.about.name} has no {what} ({reasons})")


def _write_texts(
    sources: tuple[SourcePairs, SourcePairs | None],
    data: DataArguments,
    seed: int,
    folder: RunFolder,
    key: str,
) -> CollectionRecord:
    """As `write_collection`, for a source of texts alone."""
    source, test_set = sources
    with working_folder(folder.cache / "working") as working:
        read = read_texts(source, working, test_set, _GIVEN, seed)
        if (read.numbers.given == ELSEWHERE).all():
            raise _nothing_in(source, "text", read.counts)
        arrangement = arrange(read.numbers, data, read.texts, what="text")
        manifest = folder.pairs / "manifest.json"
        own = listed(manifest)
        with folder_written_whole(folder.pairs, None if own is None else own | {manifest}) as new:
            record = write_texts(read, arrangement, new / "texts.arrow")
            for name, features in _EMPTY.items():
                write_table([], features, new / f"{name}.arrow")
    unused = {**source.unused, "texts beyond max_pairs": arrangement.beyond_limit}
    return CollectionRecord(
        key=key,
        source=source.about,
        read=read.counts,
        read_as=source.read_as,
        unused={what: number for what, number in unused.items() if number},
        split=dict.fromkeys(("pairs", *SPLITS, "test queries", "corpus documents"), 0)
        | {"groups": arrangement.groups},
        held_out=arrangement.held_out,
        leaks_removed=named_leaks(arrangement.leaks),
        leaks_left=arrangement.leaks_left,
        texts=record,
    )


def _pair_numbers(read: ReadPairs, seed: int) -> PairNumbers:
    """All pairs as numbers; `seed` orders their groups."""
    own = read.queries.table.data["student_text"]
    others = own.null_count < len(own)
    keys = scratch((_KEYS + others, len(read.rows)), np.int64).T
    names = Column(read.pairs, "group").each(read.rows)
    keys[:, 0] = seeded_groups(names, seed, len(read.rows))
    keys[:, 1] = _text_keys(read.queries, read.pair_queries)
    keys[:, 2] = _text_keys(read.documents, read.pair_documents)
    if others:
        keys[:, 3] = _text_keys(read.queries, read.pair_queries, _student_queries)
    given = (_GIVEN.get(split, NOT_SAID) for split in Column(read.pairs, "split").each(read.rows))
    return PairNumbers(keys, filled(given, len(read.rows), np.int8))


_Read = Callable[[Texts, np.ndarray], Iterator[str]]


def _text_keys(texts: Texts, numbers: np.ndarray, read: _Read | None = None) -> np.ndarray:
    """(n,) int64: the `text_key` of each text as a number. A text is normalised once, however many
    pairs hold it. `read` looks them up.
    """
    once, which = numbered(numbers)
    keys = (text_number(text_key(text)) for text in (read or _texts)(texts, once))
    return taken(filled(keys, len(once), np.uint64).view(np.int64), which)


def _by_appearance(*numbers: np.ndarray) -> np.ndarray:
    """Each of some `numbers`, from 0, once, in order of appearance: int32."""
    most = 1 + max(int(some.max(initial=-1)) for some in numbers)
    seen, result, count = scratch(most, np.bool_), scratch(most, np.int32), 0
    for some in numbers:
        for here in blocks(len(some)):
            block = some[here]
            new = block[np.sort(np.unique(block, return_index=True)[1])]
            new = new[~seen[new]]
            seen[new] = True
            result[count : count + len(new)] = new
            count += len(new)
    return result[:count]


def _texts(texts: Texts, numbers: np.ndarray) -> Iterator[str]:
    """The texts of `numbers`, looked up some at a time."""
    return Column(texts.table, "text").each(numbers)


def _student_queries(texts: Texts, numbers: np.ndarray) -> Iterator[str]:
    """What the student reads of the queries with these numbers."""
    both = (Column(texts.table, name).each(numbers) for name in ("text", "student_text"))
    return (text if other is None else other for text, other in zip(*both, strict=True))


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes the tables of a collection.

    Attributes:
        read: What the source handed over.
        numbers: Its pairs as numbers.
        arrangement: Which pairs are used, for what and in which order.
        folder: Where the tables go.
    """

    read: ReadPairs
    numbers: PairNumbers
    arrangement: Arrangement
    folder: Path

    def write(self) -> tuple[dict[str, int], dict[str, int]]:
        """Write the tables. Searched documents come first, those of the corpus before others.

        Returns:
            `CollectionRecord.split`, and what was left out -> how many.
        """
        read, rows, split = self.read, self.arrangement.rows, self.arrangement.split
        pair_queries, pair_documents = (
            taken(numbers, rows) for numbers in (read.pair_queries, read.pair_documents)
        )
        tested = pair_queries[split == TEST]
        candidates, lost = self._candidates()
        listed = read.candidate_documents[candidates]
        beside_test = np.isin(read.candidate_queries[candidates], tested)
        searched = _by_appearance(read.corpus, pair_documents[split == TEST], listed[beside_test])
        documents = _by_appearance(searched, pair_documents, listed)
        queries = _by_appearance(pair_queries)
        self._write_texts("queries", read.queries, queries)
        self._write_texts("documents", read.documents, documents, len(searched))
        place_of_query, place_of_document = _places(queries), _places(documents)
        self._write_pairs(
            taken(place_of_query, pair_queries), taken(place_of_document, pair_documents)
        )
        of_query = place_of_query[read.candidate_queries[candidates]]
        order = np.argsort(of_query, kind="stable")
        self._write_candidates(of_query[order], place_of_document[listed[order]], candidates[order])
        sizes = np.bincount(split, minlength=len(SPLITS))
        return {
            "pairs": len(rows),
            "groups": self.arrangement.groups,
            **dict(zip(SPLITS, sizes.tolist(), strict=True)),
            "test queries": len(np.unique(tested)),
            "corpus documents": len(searched),
            "candidates": len(candidates),
        }, lost

    def _candidates(self) -> tuple[np.ndarray, dict[str, int]]:
        """(m,) int64, the candidates that are used: those of queries that are trained on or held
        out. Beside a query that is not tested, no document of a held-out pair is one.
        """
        read, rows, split = self.read, self.arrangement.rows, self.arrangement.split
        queries, documents = read.candidate_queries, read.candidate_documents
        trained_or_held_out = taken(rows, places_of(split != LEAKED))
        used = is_among(queries, each_once(taken(read.pair_queries, trained_or_held_out)))
        tested = np.isin(queries, read.pair_queries[rows[split == TEST]])
        elsewhere = np.flatnonzero(self.numbers.given == ELSEWHERE)
        held_out = np.concatenate([rows[(split == TEST) | (split == VALIDATION)], elsewhere])
        held_out_keys = self.numbers.keys[held_out, 2]
        leaks = used & ~tested & (read.candidate_grades <= 0)
        leaks[leaks] = np.isin(_text_keys(read.documents, documents[leaks]), held_out_keys)
        return np.flatnonzero(used & ~leaks), {
            "candidates of queries that are not used": int((~used).sum()),
            "candidates that are documents of held-out pairs": int(leaks.sum()),
        }

    def _write_texts(
        self, kind: str, texts: Texts, numbers: np.ndarray, searched: int | None = None
    ) -> None:
        own = texts.table.column_names
        table = {name: Column(texts.table, name) for name in TEXT_FEATURES[kind] if name in own}
        features = TEXT_FEATURES[kind]
        with TableWriter(self.folder / f"{kind}.arrow", features) as writer:
            for start in range(0, len(numbers), _BATCH):
                rows = numbers[start : start + _BATCH]
                columns = {name: column.array(rows) for name, column in table.items()}
                if searched is not None:
                    columns["searched"] = pa.array(np.arange(start, start + len(rows)) < searched)
                writer.add_columns(*(columns[name] for name in features))

    def _write_pairs(self, queries: np.ndarray, documents: np.ndarray) -> None:
        read, arrangement = self.read, self.arrangement
        ids, groups, sources = (Column(read.pairs, name) for name in ("pair_id", "group", "source"))
        again = _repeated_ids(ids, read.rows)
        splits, reasons = np.array(SPLITS), np.array([*LEAKS, None])
        with TableWriter(self.folder / "judgements.arrow", JUDGEMENT_FEATURES) as writer:
            for start in range(0, len(queries), _BATCH):
                here = slice(start, start + _BATCH)
                taken = arrangement.rows[here]
                rows = read.rows[taken]
                names = zip(rows.tolist(), ids[rows], strict=True)
                writer.add_columns(
                    pa.array([again.get(row, name) for row, name in names]),
                    pa.array(queries[here], pa.int64()),
                    pa.array(documents[here], pa.int64()),
                    pa.array(read.grades[taken]),
                    groups.array(rows),
                    sources.array(rows),
                    pa.array(splits[arrangement.split[here]].tolist()),
                    pa.array(reasons[arrangement.leaks[here]].tolist(), pa.string()),
                )

    def _write_candidates(
        self, queries: np.ndarray, documents: np.ndarray, rows: np.ndarray
    ) -> None:
        scores, grades = self.read.candidate_scores[rows], self.read.candidate_grades[rows]
        with TableWriter(self.folder / "candidates.arrow", CANDIDATE_FEATURES) as writer:
            for start in range(0, len(rows), _BATCH):
                here = slice(start, start + _BATCH)
                writer.add_columns(
                    pa.array(queries[here], pa.int64()),
                    pa.array(documents[here], pa.int64()),
                    pa.array(scores[here], mask=np.isnan(scores[here])),
                    pa.array(grades[here], mask=grades[here] < 0),
                )


def _repeated_ids(ids: Column, rows: np.ndarray) -> dict[int, str]:
    """Row -> the id that it gets because an earlier one of `rows` (n,) has the same: a, a.2, a.3.

    Args:
        ids: The ids of all rows.
        rows: (n,) int64, the rows that need different ids.
    """
    once, which = numbered(filled(map(text_number, ids.each(rows)), len(rows), np.uint64))
    again: dict[int, str] = {}
    if len(once) == len(rows):
        return again
    first = taken(first_places(which, len(once)), which)
    repeated = {int(once[which[row]]) for row in np.flatnonzero(first != np.arange(len(rows)))}
    seen: Counter[str] = Counter()
    for row, name in zip(rows.tolist(), ids.each(rows), strict=True):
        if _is_of(name, repeated) and (new := _unique(name, seen)) != name:
            again[row] = new
    return again


def _is_of(name: str, repeated: set[int]) -> bool:
    """Whether `name` is repeated (its number is), or one that a repeated name may get: a.2."""
    if text_number(name) in repeated:
        return True
    stem, _, number = name.rpartition(".")
    return number.isdigit() and _is_of(stem, repeated)


def _unique(name: str, seen: Counter[str]) -> str:
    """`name`, or with a suffix if it was seen before: a, a.2, a.3."""
    seen[name] += 1
    return name if seen[name] == 1 else _unique(f"{name}.{seen[name]}", seen)


def _places(order: np.ndarray) -> np.ndarray:
    """Where each number stands in `order`; -1: nowhere."""
    places = scratch(int(order.max(initial=-1)) + 1, np.int32)
    places[:] = -1
    for here in blocks(len(order)):
        places[order[here]] = np.arange(here.start, here.stop)
    return places
