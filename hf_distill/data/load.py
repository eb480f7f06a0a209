"""The collection of a run: `load_collection` makes it, `open_collection` reads the one that is
there.

The source's pairs are read once into working tables (`hf_distill.data.read`), split by number
(`hf_distill.data.split`), and written in the order of their split.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hf_distill.data.collection import (
    JUDGEMENT_FEATURES,
    SPLITS,
    TEXT_FEATURES,
    Collection,
    CollectionRecord,
    Pairs,
    SourcePairs,
    text_number,
    write_table,
)
from hf_distill.data.near_duplicates import text_key
from hf_distill.data.read import TABLES, open_tables, read_pairs
from hf_distill.data.split import LEAKS, TEST, Arrangement, PairNumbers, arrange
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments, Recipe
from hf_distill.recipe.kinds import SOURCES, digests_of_plugins, load_kind
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import folder_written_whole, read_json, stage

_FOR_CARDS = ("dataset_license", "language")
"""Options of the data that do not change any pair."""

_BATCH = 1000


def load_collection(recipe: Recipe, folder: RunFolder) -> Collection:
    """The collection of a run: read and split once, then kept until an input changes.

    Args:
        recipe: Names the source and says how its pairs are split.
        folder: The run's folder. It stays as it was if this raises.

    Raises:
        InputError: An unknown source, whatever the source itself raises, a row that is not a pair
            of texts, or too few pairs to train and evaluate with.
    """
    data = recipe.data
    settings = {name: value for name, value in vars(data).items() if name not in _FOR_CARDS}
    existed = folder.path.exists()

    def make(key: str) -> CollectionRecord:
        source = load_kind(data.dataset, SOURCES, "dataset")
        record = write_collection(source(recipe), data, recipe.seed, folder, key)
        shutil.rmtree(recipe.reading, ignore_errors=True)
        return record

    try:
        stage(
            folder.pairs / "manifest.json",
            CollectionRecord,
            [settings, recipe.seed, _content(data), digests_of_plugins([data.dataset])],
            make,
            files=[folder.pairs / f"{name}.arrow" for name in TABLES],
        )
    except InputError:
        if not existed:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return open_collection(folder, data.dataset_license)


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
    record = read_json(manifest, CollectionRecord)
    if dataset_license is not None:
        source = dataclasses.replace(record.source, license=dataset_license)
        record = dataclasses.replace(record, source=source)
    return open_tables(folder.pairs, record)


def _content(data: DataArguments) -> list[Any]:
    """What the pairs depend on beside the recipe: names, sizes and times of the files, or the
    installed packages.
    """
    if data.dataset_path is not None:
        path = Path(data.dataset_path)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats = [(file, file.stat()) for file in files if file.is_file()]
        return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    if data.dataset == "pydocs":
        packages = importlib.metadata.distributions()
        # A set: a package can be found at two places of the path, as an editable install is.
        return sorted({f"{package.metadata['Name']} {package.version}" for package in packages})
    return []


def write_collection(
    pairs: SourcePairs, data: DataArguments, seed: int, folder: RunFolder, key: str
) -> CollectionRecord:
    """Read a source's pairs, split them, take leaks out, and write the tables of the collection to
    `folder.pairs`: all of them or, if this raises, none.

    Raises:
        InputError: As `load_collection`.
    """
    folder.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.cache) as working:
        read = read_pairs(pairs, Path(working))
        numbers = _numbers(read)
        if numbers.held_out.all():
            reasons = ", ".join(f"{why}: {count}" for why, count in read.record.read.items())
            raise InputError(f"{pairs.about.name} has no valid (query, document) pair ({reasons})")
        arrangement = arrange(
            numbers, data, seed,
            lambda rows: _texts(read.document_texts, read.document_numbers[rows]),
        )  # fmt: skip
        with folder_written_whole(folder.pairs) as new:
            test_queries, searched = _write_tables(read, arrangement, new)
    leaked = np.bincount(arrangement.leaks[arrangement.leaks >= 0], minlength=len(LEAKS))
    sizes = np.bincount(arrangement.split, minlength=len(SPLITS))
    return CollectionRecord(
        key=key,
        source=pairs.about,
        read=read.record.read,
        split={
            "pairs": len(arrangement.rows),
            "groups": arrangement.groups,
            **dict(zip(SPLITS, sizes.tolist(), strict=True)),
            "test queries": test_queries,
            "corpus documents": searched,
        },
        leaks_removed={why: n for why, n in zip(LEAKS, leaked.tolist(), strict=True) if n},
        leaks_left=arrangement.leaks_left,
    )


def _numbers(read: Collection) -> PairNumbers:
    """All pairs as numbers."""
    pairs = read.every_pair()
    groups: dict[str, int] = {}
    group = [groups.setdefault(name, len(groups)) for name in pairs.column("group")]
    keys = (
        np.array(group, dtype=np.int64),
        _text_keys(read.query_texts, pairs.queries),
        _text_keys(read.document_texts, pairs.documents),
    )
    held_out = np.array([split == "test" for split in pairs.column("split")], dtype=bool)
    return PairNumbers(np.stack(keys, axis=1), held_out, list(groups))


def _text_keys(look_up: Callable[[np.ndarray], list[str]], numbers: np.ndarray) -> np.ndarray:
    """(n,) int64: the `text_key` of each text as a number. A text is normalised once, however many
    pairs hold it.
    """
    once, which = np.unique(numbers, return_inverse=True)
    keys = (text_number(text_key(text)) for text in _texts(look_up, once))
    return np.fromiter(keys, dtype=np.uint64).view(np.int64)[which]


def _by_appearance(numbers: np.ndarray) -> np.ndarray:
    """Each of `numbers` once, in order of appearance."""
    once, first = np.unique(numbers, return_index=True)
    return once[np.argsort(first)]


def _texts(look_up: Callable[[np.ndarray], list[str]], numbers: np.ndarray) -> Iterator[str]:
    """The texts of `numbers`, looked up some at a time."""
    for start in range(0, len(numbers), _BATCH):
        yield from look_up(numbers[start : start + _BATCH])


def _write_tables(read: Collection, arrangement: Arrangement, folder: Path) -> tuple[int, int]:
    """Write the pairs in their new order, and the texts of these and of the corpus. Searched
    documents come first, those of the corpus before others.

    Returns:
        How many queries are tested, and how many documents they search.
    """
    pairs = Pairs(read, arrangement.rows)
    tested = pairs.take(np.flatnonzero(arrangement.split == TEST))
    searched = _by_appearance(np.concatenate([read.searched, tested.documents]))
    documents = _by_appearance(np.concatenate([searched, pairs.documents]))
    queries = _by_appearance(pairs.queries)
    write_table(
        ({"text": text} for text in _texts(read.query_texts, queries)),
        TEXT_FEATURES["queries"],
        folder / "queries.arrow",
    )
    write_table(
        (
            {"text": text, "searched": number < len(searched)}
            for number, text in enumerate(_texts(read.document_texts, documents))
        ),
        TEXT_FEATURES["documents"],
        folder / "documents.arrow",
    )
    numbers = {
        "query": _places(queries)[pairs.queries],
        "document": _places(documents)[pairs.documents],
        "split": np.array(SPLITS)[arrangement.split],
        "reason": np.array([*LEAKS, None])[arrangement.leaks],
    }
    names = ("pair_id", "grade", "group", "source")
    write_table(
        (
            dict(zip((*names, *numbers), row, strict=True))
            for row in zip(
                *(pairs.column(name) for name in names),
                *(column.tolist() for column in numbers.values()),
                strict=True,
            )
        ),
        JUDGEMENT_FEATURES,
        folder / "judgements.arrow",
    )
    return len(np.unique(tested.queries)), len(searched)


def _places(order: np.ndarray) -> np.ndarray:
    """Where each number stands in `order`; -1: nowhere."""
    places = np.full(order.max() + 1, -1, dtype=np.int64)
    places[order] = np.arange(len(order))
    return places
