"""Pairs from a table: JSONL, CSV or Parquet files, or a data set on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import Dataset

from hf_distill.data.collection import (
    PAIR_FEATURES,
    Source,
    SourcePairs,
    dataset_of,
)
from hf_distill.data.near_duplicates import text_key
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def _files(path: Path, key: str) -> list[Path]:
    if not path.exists():
        raise InputError(f"no file or folder at {path} (--{key})")
    found = sorted(p for p in path.iterdir() if p.suffix in BUILDERS) if path.is_dir() else [path]
    kinds = {BUILDERS.get(p.suffix) for p in found}
    if not found or None in kinds:
        raise InputError(
            f"{path}: --{key} is read from {', '.join(BUILDERS)} files"
            + ("; the folder holds none" if not found else f", not {path.suffix or 'this'}")
        )
    if len(kinds) > 1:
        raise InputError(
            f"{path} mixes {', '.join(sorted({p.suffix for p in found}))}; keep one kind in a folder"
        )
    return found


def _check_json_lines(file: Path) -> None:
    """pyarrow says which block of a JSONL file is broken; people need the line."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{file}, line {number}: not JSON: {error.msg} at column {error.colno}"
                ) from error
            if not isinstance(record, dict):
                raise InputError(
                    f"{file}, line {number}: a {type(record).__name__}, but a row is an object with a query and a document"
                )


def load_files(path: Path, cache: Path, key: str) -> Dataset:
    """The rows of a JSON, JSONL, CSV or Parquet file, or of a folder of one kind of them;
    memory-mapped.

    Args:
        path: File or folder.
        cache: Where they are prepared for reading.
        key: The recipe's key that names `path`, for errors.

    Raises:
        InputError: Nothing there, mixed kinds, or a file that cannot be read (with the line, where
            it is JSONL).
    """
    files = _files(path, key)
    if empty := [file for file in files if file.stat().st_size == 0]:
        raise InputError(f"{empty[0]} (--{key}) is empty")
    builder = BUILDERS[files[0].suffix]
    options = {"sep": "\t"} if files[0].suffix == ".tsv" else {}
    try:
        return datasets.load_dataset(
            builder,
            data_files=[str(f) for f in files],
            split="train",
            cache_dir=str(cache),
            **options,
        )
    except (datasets.exceptions.DatasetGenerationError, ValueError, UnicodeDecodeError) as error:
        if files[0].suffix == ".jsonl":
            for file in files:
                _check_json_lines(file)
        raise InputError(
            f"{path} cannot be read as {builder}: {error.__cause__ or error}"
        ) from error


def _load_files(arguments: DataArguments, cache: Path) -> tuple[Dataset, Source]:
    path = Path(str(arguments.dataset_path))
    return load_files(path, cache, "dataset_path"), Source(
        name=path.stem, description=f"Pairs from {path.name}."
    )


def _load_hub(arguments: DataArguments) -> tuple[Dataset, Source]:
    name = str(arguments.dataset_name)
    try:
        table = datasets.load_dataset(name, arguments.dataset_config, split=arguments.dataset_split)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(
            f"the data set {name!r} (split {arguments.dataset_split!r}) cannot be loaded: {error}"
        ) from error
    return table, Source(
        name=name,
        url=f"https://huggingface.co/datasets/{name}",
        description=f"Pairs from the data set {name} on the Hugging Face Hub.",
    )


def read_table(arguments: DataArguments, cache: Path) -> SourcePairs:
    """Read pairs from `query_column` and `document_column`. `group` is `group_column`, else the
    query itself.

    Rows without a query or a document are left out and counted.

    Raises:
        InputError: No such file or data set, an unreadable one (with the line, where it is JSONL),
            a missing column, or a column that is not text.
    """
    table, source = (
        _load_files(arguments, cache) if arguments.dataset == "files" else _load_hub(arguments)
    )
    keys = [
        key
        for key in ("query_column", "document_column", "group_column", "source_column")
        if getattr(arguments, key)
    ]
    columns = [str(getattr(arguments, key)) for key in keys]
    for key, column in zip(keys, columns, strict=True):
        if column not in table.column_names:
            raise InputError(
                f"{source.name} has no column {column!r} (--{key}); its columns are {', '.join(table.column_names)}"
            )
    for column in columns[:2]:
        dtype = getattr(table.features[column], "dtype", "a nested type")
        if dtype not in ("string", "large_string", "null"):
            raise InputError(
                f"the column {column!r} of {source.name} is {dtype}, but queries and documents are text"
            )
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, str | None]]:
        for number, row in enumerate(table.select_columns(columns)):
            counts["rows found"] += 1
            query, document = ((row[column] or "").strip() for column in columns[:2])
            reason = "no query" if not query else "no document" if not document else "kept"
            counts[reason] += 1
            if reason == "kept":
                group = (
                    str(row[arguments.group_column]) if arguments.group_column else text_key(query)
                )
                yield {
                    "pair_id": str(number),
                    "query": query,
                    "document": document,
                    "group": group,
                    "source": str(row[arguments.source_column])
                    if arguments.source_column
                    else None,
                }

    return SourcePairs(
        pairs=dataset_of(rows(), PAIR_FEATURES, cache, "pairs"), counts=dict(counts), source=source
    )
