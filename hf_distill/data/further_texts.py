"""Further texts, without queries and judgements (`pool_path`): passages of them stand in the pool
of a training, beside those of the run's own texts.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value

from hf_distill.data.collection import Collection, SourcePairs, text_number, write_table
from hf_distill.data.load import content_of
from hf_distill.data.near_duplicates import NearDuplicates, text_key
from hf_distill.data.read import RowPlace, counted
from hf_distill.data.sources.files import read_texts
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments, Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import stage, written_whole

HELD_OUT, NEAR = "same as a held-out text", "nearly a held-out text"

_FEATURES = Features({"text": Value("string")})
_BATCH = 1000


@dataclass(frozen=True)
class FurtherRecord:
    """`further_texts/manifest.json`.

    Attributes:
        key: The fingerprint of what they depend on.
        name: Of the data set.
        read_as: What it was recognised as.
        texts: How many are used.
        read: How many rows there were, and what became of them.
    """

    key: str
    name: str
    read_as: str
    texts: int
    read: dict[str, int]


@dataclass(frozen=True)
class FurtherTexts:
    """Texts that are kept in a table: `texts` has the column `text`."""

    record: FurtherRecord
    texts: Dataset

    def at(self, numbers: np.ndarray) -> list[str]:
        """The texts with these numbers (n,)."""
        texts: list[str] = self.texts.with_format("arrow")[numbers]["text"].to_pylist()
        return texts

    def summary(self) -> str:
        """What was read, for a terminal."""
        counts = ", ".join(f"{what} {number:,}" for what, number in self.record.read.items())
        return (
            f"Pool     holds passages of {self.record.name}, too; read as {self.record.read_as}\n"
            f"         {counts}"
        )


def check_pool_path(recipe: Recipe) -> None:
    """Check what can be checked before anything is read.

    Raises:
        InputError: There is no such path, or no stage of the training has a pool.
    """
    path = recipe.data.pool_path
    if path is None:
        return
    if not Path(path).exists():
        raise InputError(
            f"--pool_path {path}: there is no such file or folder; name your texts, or leave it out"
        )
    if not any(stage.texts_per_pair for stage in recipe.stages):
        raise InputError(
            f"--pool_path {path} has no effect: --texts_per_pair is 0, so there is no pool; set it "
            "above 0, or leave --pool_path out"
        )


def load_further_texts(
    recipe: Recipe, collection: Collection, folder: RunFolder
) -> FurtherTexts | None:
    """The texts at `pool_path`, read once; None if it is not set.

    A text is left out, and counted, if it is the same as a held-out text or nearly: a student would
    be aligned on what it is measured on.

    Args:
        recipe: Names them.
        collection: Holds the held-out texts.
        folder: Of the run.

    Raises:
        InputError: It holds no texts.
    """
    path = recipe.data.pool_path
    if path is None:
        return None
    table = folder.further_texts / "texts.arrow"
    longest = recipe.student.student_max_length

    def make(key: str) -> FurtherRecord:
        source = _source(recipe, path)
        counts: Counter[str] = Counter()
        with written_whole(table) as temporary:
            rows = _used(source, counts, _held_out(collection))
            write_table(({"text": text} for text in rows), _FEATURES, temporary)
        if not counts["kept"]:
            raise InputError(
                f"--pool_path {path}: no text of it can be used "
                f"({', '.join(f'{why} {n:,}' for why, n in counts.items()) or 'it has no rows'}); "
                "name other texts, or leave it out"
            )
        shutil.rmtree(recipe.reading, ignore_errors=True)
        read = counted(source.counts, counts)
        return FurtherRecord(key, source.about.name, source.read_as, counts["kept"], read)

    manifest = folder.further_texts / "manifest.json"
    inputs = [content_of([Path(path)]), collection.key, longest]
    record = stage(manifest, FurtherRecord, inputs, make, [table])
    return FurtherTexts(record, Dataset.from_file(str(table)))


def _source(recipe: Recipe, path: str) -> SourcePairs:
    """What `path` holds, as `--dataset texts` reads it."""
    data = dataclasses.replace(DataArguments(), dataset="texts", dataset_path=path)
    try:
        return read_texts(dataclasses.replace(recipe, data=data))
    except InputError as error:
        raise InputError(f"--pool_path {path}: {error}") from error


def _held_out(collection: Collection) -> tuple[set[int], NearDuplicates]:
    """The held-out texts, exactly (as `text_number`s of their keys) and nearly."""
    numbers: set[int] = set()
    near = NearDuplicates()
    for text in _held_out_texts(collection):
        number = text_number(text_key(text))
        if number not in numbers:
            numbers.add(number)
            near.add(text)
    return numbers, near


def _held_out_texts(collection: Collection) -> Iterator[str]:
    for split in ("test", "validation"):
        pairs, alone = collection.pairs(split), collection.text_numbers(split)
        for numbers, look_up in (
            (np.unique(pairs.queries), collection.query_texts),
            (np.unique(pairs.queries), collection.student_queries),
            (np.unique(pairs.documents), collection.document_texts),
            (alone, collection.teacher_texts),
            (alone, collection.student_texts),
        ):
            for start in range(0, len(numbers), _BATCH):
                yield from look_up(numbers[start : start + _BATCH])


def _used(
    source: SourcePairs, counts: Counter[str], held_out: tuple[set[int], NearDuplicates]
) -> Iterator[str]:
    """The texts that are used, each once. `counts` says what became of every row."""
    exactly, near = held_out
    seen: set[int] = set()
    for row_number, row in enumerate(source.rows):
        counts["rows"] += 1
        text = RowPlace(source, row_number, row).text("text")
        number = text_number(text_key(text))
        if not text:
            counts["no text"] += 1
        elif not _is_unicode(text):
            counts["invalid Unicode"] += 1
        elif number in seen:
            counts["repeated"] += 1
        elif number in exactly:
            counts[HELD_OUT] += 1
        elif near.has(text):
            counts[NEAR] += 1
        else:
            seen.add(number)
            counts["kept"] += 1
            yield text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
