"""Pairs from a table: JSONL, CSV or Parquet files, or a data set on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from hf_distill.data.collection import Source, SourcePairs
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments, Recipe

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def _files(path: Path, key: str) -> list[Path]:
    if not path.exists():
        raise InputError(f"--{key} {path}: there is no such file or folder")
    files = sorted(p for p in path.iterdir() if p.suffix in BUILDERS) if path.is_dir() else [path]
    if not files:
        raise InputError(f"--{key} {path}: the folder holds no {', '.join(BUILDERS)} file")
    kinds = {BUILDERS.get(file.suffix) for file in files}
    if None in kinds:
        raise InputError(
            f"--{key} {path}: {path.suffix or 'a name without an extension'} cannot be read; "
            f"name a {', '.join(BUILDERS)} file"
        )
    if len(kinds) > 1:
        raise InputError(
            f"--{key} {path} mixes {', '.join(sorted({file.suffix for file in files}))}; keep one "
            "kind in a folder"
        )
    return files


def _check_json_lines(file: Path) -> None:
    """Raise an error that names the broken line: pyarrow names only the block."""
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
                    f"{file}, line {number}: a {type(record).__name__}, but a row is an object "
                    "with a query and a document"
                )


def load_files(path: Path, cache: Path, key: str) -> Dataset:
    """The rows of a JSON, JSONL, CSV or Parquet file, or of a folder with one kind of them;
    memory-mapped.

    Args:
        path: File or folder.
        cache: Where `datasets` prepares them for reading.
        key: The recipe's key that names `path`, for errors.

    Raises:
        InputError: Nothing there, mixed kinds, or a file that cannot be read (with the line, where
            it is JSONL).
    """
    files = _files(path, key)
    if empty := [file for file in files if file.stat().st_size == 0]:
        raise InputError(f"--{key} {path}: {empty[0].name} is empty")
    builder = BUILDERS[files[0].suffix]
    options = {"sep": "\t"} if files[0].suffix == ".tsv" else {}
    try:
        return datasets.load_dataset(
            builder,
            data_files=[str(file) for file in files],
            split="train",
            cache_dir=str(cache),
            **options,
        )
    except (datasets.exceptions.DatasetGenerationError, ValueError, UnicodeDecodeError) as error:
        if files[0].suffix == ".jsonl":
            for file in files:
                _check_json_lines(file)
        raise InputError(
            f"--{key} {path} cannot be read as {builder}: {error.__cause__ or error}"
        ) from error


def _pairs_of(table: Dataset, about: Source, data: DataArguments) -> SourcePairs:
    """The pairs of a table, once its columns are checked."""
    keys = ("query_column", "document_column", "group_column", "source_column")
    given = {key: getattr(data, key) for key in keys if getattr(data, key) is not None}
    given = {"query_column": "query", "document_column": "document", **given}
    for key, column in given.items():
        if column not in table.column_names:
            raise InputError(
                f"--{key} {column}: {about.name} has no such column; its columns are "
                f"{', '.join(table.column_names)}"
            )
        dtype = getattr(table.features[column], "dtype", "nested")
        is_text = dtype in ("string", "large_string", "null")
        if key in ("query_column", "document_column") and not is_text:
            raise InputError(
                f"--{key} {column}: this column of {about.name} is {dtype}, but queries and "
                "documents are text"
            )
    columns = {key.removesuffix("_column"): column for key, column in given.items()}

    def rows() -> Iterator[dict[str, Any]]:
        for row in table.select_columns(list(dict.fromkeys(given.values()))):
            yield {name: row[column] for name, column in columns.items()}

    return SourcePairs(about, rows())


def read_files(recipe: Recipe) -> SourcePairs:
    """The columns `query_column` and `document_column` of the files at `dataset_path`. `group` is
    `group_column`, else the query; `source` is `source_column`.

    Raises:
        InputError: As `load_files`; a missing column, or one that is not text.
    """
    data = recipe.data
    if data.dataset_path is None:
        raise InputError(
            f"--dataset files needs --dataset_path, a {', '.join(BUILDERS)} file or a folder"
        )
    path = Path(data.dataset_path)
    table = load_files(path, recipe.reading, "dataset_path")
    return _pairs_of(table, Source(path.stem, description=f"Pairs from {path.name}."), data)


def read_hub(recipe: Recipe) -> SourcePairs:
    """The same columns of the split `dataset_split` of the data set `dataset_name` on the Hub.

    Raises:
        InputError: The data set cannot be loaded; a missing column, or one that is not text.
    """
    data = recipe.data
    if data.dataset_name is None:
        raise InputError("--dataset hub needs --dataset_name, the id of a data set on the Hub")
    try:
        table = datasets.load_dataset(
            data.dataset_name, data.dataset_config, split=data.dataset_split or "train"
        )
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(
            f"--dataset_name {data.dataset_name} (split {data.dataset_split!r}) cannot be loaded: "
            f"{error}"
        ) from error
    about = Source(
        data.dataset_name,
        url=f"https://huggingface.co/datasets/{data.dataset_name}",
        description=f"Pairs from the data set {data.dataset_name} on the Hugging Face Hub.",
    )
    return _pairs_of(table, about, data)


def read_path(path: Path, key: str, data: DataArguments, cache: Path) -> SourcePairs:
    """The pairs at `path`, in any format."""
    table = load_files(path, cache, key)
    return _pairs_of(table, Source(path.stem, description=f"Pairs from {path.name}."), data)


def read_any(recipe: Recipe) -> SourcePairs:
    """Whatever the recipe names."""
    from hf_distill.data.sources.pydocs import read_pydocs

    if recipe.data.dataset_path:
        return read_files(recipe)
    if recipe.data.dataset_name:
        return read_hub(recipe)
    return read_pydocs(recipe)


def read_beir(recipe: Recipe) -> SourcePairs:
    from hf_distill.data.sources import beir

    return beir.read_beir(recipe)


def read_qrecc(recipe: Recipe) -> SourcePairs:
    from hf_distill.data.sources import qrecc

    return qrecc.read_qrecc(recipe)
