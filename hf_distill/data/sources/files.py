"""Files and data sets of the Hub in any format, and several of them in one run.

A format is recognised by its content (`recognise`), or named with `--format`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from hf_distill.data.collection import Source, SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.pydocs import read_pydocs
from hf_distill.data.sources.rows import (
    COLUMN_OPTIONS,
    columns_of,
    fitting_options,
    named,
)
from hf_distill.data.sources.texts import documents_in, read_documents
from hf_distill.data.tables.hub import hub_tables
from hf_distill.data.tables.open import READERS, open_tables
from hf_distill.data.tables.table import Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments, Recipe
from hf_distill.recipe.kinds import FORMATS, load_kind


def read_any(recipe: Recipe) -> SourcePairs:
    """What `sources`, `dataset_path` or `dataset_name` names; without any of them, pydocs. A folder
    with Python files and nothing that holds a table is a source tree, for pydocs.

    Raises:
        InputError: As what is read.
    """
    data = recipe.data
    if data.sources:
        return read_sources(recipe)
    if data.dataset_path is not None and not _is_source_tree(Path(data.dataset_path)):
        return read_files(recipe)
    return read_pydocs(recipe) if data.dataset_name is None else read_hub(recipe)


def _is_source_tree(path: Path) -> bool:
    """Whether a folder holds Python files, and no file that can be a table."""
    suffixes = (
        {file.suffix for file in path.rglob("*") if file.is_file()} if path.is_dir() else set()
    )
    return ".py" in suffixes and not suffixes & (READERS.keys() - {".txt"})


def read_files(recipe: Recipe) -> SourcePairs:
    """The file or folder `dataset_path`, in any format.

    Raises:
        InputError: As `read_path`.
    """
    data = recipe.data
    if data.dataset_path is None:
        raise InputError(f"--dataset {data.dataset} needs --dataset_path, a file or a folder")
    return read_path(Path(data.dataset_path), "dataset_path", data, recipe.reading)


def read_beir(recipe: Recipe) -> SourcePairs:
    """`dataset_path`, in the format beir."""
    return read_files(_in_format(recipe, "beir"))


def read_qrecc(recipe: Recipe) -> SourcePairs:
    """`dataset_path`, in the format qrecc."""
    return read_files(_in_format(recipe, "qrecc"))


def read_texts(recipe: Recipe) -> SourcePairs:
    """What `sources`, `dataset_path` or `dataset_name` names, as texts without queries.

    Raises:
        InputError: None of them is given; or as what is read.
    """
    recipe = _in_format(recipe, "texts")
    data = recipe.data
    if data.sources:
        return read_sources(recipe)
    if data.dataset_name is not None:
        return read_hub(recipe)
    path = Path(data.dataset_path or "")
    documents = documents_in(path) if data.dataset_path is not None else []
    if documents:
        return read_documents(path, documents, recipe.student.student_max_length)
    return read_files(recipe)


def _in_format(recipe: Recipe, name: str) -> Recipe:
    if recipe.data.format not in ("auto", name):
        raise InputError(
            f"--format {recipe.data.format} contradicts --dataset {recipe.data.dataset}; "
            "leave one of them out"
        )
    data = dataclasses.replace(recipe.data, format=name)
    return dataclasses.replace(recipe, data=data)


def read_hub(recipe: Recipe) -> SourcePairs:
    """The data set `dataset_name` on the Hub, in any format.

    Raises:
        InputError: It cannot be loaded; or as `read_path`.
    """
    data = recipe.data
    if data.dataset_name is None:
        raise InputError("--dataset hub needs --dataset_name, the id of a data set on the Hub")
    tables = hub_tables(data.dataset_name, data.dataset_config, data.dataset_split, recipe.reading)
    # The split that was named is the only one that was loaded.
    return _read(tables, dataclasses.replace(data, dataset_split=None))


def read_sources(recipe: Recipe) -> SourcePairs:
    """Each of `sources`, NAME=PATH, in its own format. The row's `source` is NAME.

    Raises:
        InputError: `source_column` is given, no source has a column that is; or as `read_path`.
    """
    data = recipe.data
    if data.source_column is not None:
        raise InputError(
            f"--source_column {data.source_column} has no effect: a row's source is its NAME of "
            "--sources; leave one of them out"
        )
    documents = {
        name: files
        for name, path in data.source_paths.items()
        if data.format == "texts" and (files := documents_in(path))
    }
    every = {
        name: open_tables(path, "sources", recipe.reading)
        for name, path in data.source_paths.items()
        if name not in documents
    }
    there = {column for tables in every.values() for t in tables.tables for column in t.columns}
    for key in COLUMN_OPTIONS:
        if (column := getattr(data, key)) is not None and column not in there:
            raise InputError(f"--{key} {column}: none of the sources has such a column")
    longest = recipe.student.student_max_length
    return _together(
        {
            name: _read(every[name], data)
            if name in every
            else read_documents(path, documents[name], longest)
            for name, path in data.source_paths.items()
        }
    )


def _together(sources: dict[str, SourcePairs]) -> SourcePairs:
    """Several sources as one. What is counted carries the source's name.

    Raises:
        InputError: Some are pairs and others are texts alone.
    """
    of_texts = [name for name, source in sources.items() if source.texts]
    if of_texts and len(of_texts) < len(sources):
        raise InputError(
            f"--sources: {', '.join(of_texts)} is texts without queries, and the others are pairs; "
            "one run trains on pairs or on texts. Leave some out, or set --dataset texts to read "
            "all of them as texts"
        )
    counts, unused = Counter[str](), Counter[str]()

    def rows() -> Iterator[dict[str, Any]]:
        for name, source in sources.items():
            handed = 0
            for row in source.rows:
                handed += 1
                group = row.get("group")
                named_group = None if group is None else f"{name}: {group}"
                yield {**row, "source": name, "group": named_group}
            total = [n for what, n in source.counts.items() if what.endswith(" found")]
            reasons = {w: n for w, n in source.counts.items() if not w.endswith(" found")}
            counts["rows found"] += total[0] if total else handed + sum(reasons.values())
            counts.update({f"{name}: {why}": count for why, count in reasons.items()})
            unused.update({f"{name}: {what}": count for what, count in source.unused.items()})

    corpora = [source.corpus for source in sources.values() if source.corpus is not None]
    return SourcePairs(
        _about(sources),
        rows(),
        corpus=chain.from_iterable(corpora) if corpora else None,
        counts=counts,
        read_as="; ".join(f"{name}: {source.read_as}" for name, source in sources.items()),
        unused=unused,
        texts=bool(of_texts),
    )


def _about(sources: dict[str, SourcePairs]) -> Source:
    licenses = {source.about.license for source in sources.values()}
    return Source(
        " + ".join(sources),
        license=licenses.pop() if len(licenses) == 1 else None,
        description=" ".join(f"{name}: {s.about.description}" for name, s in sources.items()),
    )


def read_path(path: Path, key: str, data: DataArguments, cache: Path) -> SourcePairs:
    """A file or folder in any format.

    Args:
        path: File or folder.
        key: The recipe's key that names it: `dataset_path`, `test_path`, `teacher` ... Of a test
            set with splits, only its test split is read, else its validation split.
        data: The options. Of those that choose something in the training data (`format`,
            `dataset_split`, columns), what does not apply to another key is left out.
        cache: For working files.

    Raises:
        InputError: Nothing there, a file that cannot be read, no format or one that lacks
            something, or an option that has no effect.
    """
    tables = open_tables(path, key, cache)
    if key != "dataset_path":
        data = dataclasses.replace(data, format="auto", dataset_config=None, dataset_split=None)
    elif data.dataset_config is not None:
        tables = _configuration(tables, data.dataset_config)
    pairs = _read(tables, data)
    return _for_test(pairs, tables) if key == "test_path" else pairs


def _configuration(tables: Tables, config: str) -> Tables:
    kept = tuple(table for table in tables.tables if table.config == config)
    if not kept:
        there = sorted({table.config for table in tables.tables if table.config})
        raise InputError(
            f"--dataset_config {config}: {tables.path} has no such configuration or folder; it has "
            f"{', '.join(there) or 'none'}"
        )
    return dataclasses.replace(tables, tables=kept)


def _for_test(pairs: SourcePairs, tables: Tables) -> SourcePairs:
    """The rows of the test split alone, where the data has several."""
    splits = {table.split for table in tables.tables}
    wanted = next((split for split in ("test", "validation") if split in splits), None)
    counts = pairs.counts

    def rows() -> Iterator[Any]:
        for row in pairs.rows:
            if row.get("split") in (None, wanted):
                yield row
            else:
                counts["of another split"] = counts.get("of another split", 0) + 1

    return dataclasses.replace(pairs, rows=rows())


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    data = fitting_options(tables, data)
    pairs = recognise(tables, data).read(tables, data)
    said = [f"{table.name} {table.reading}" for table in tables.tables if table.reading]
    if not said:
        return pairs
    return dataclasses.replace(pairs, read_as=f"{pairs.read_as} ({', '.join(said[:3])})")


def recognise(tables: Tables, data: DataArguments) -> Format:
    """The format that is named, else the first that fits.

    Raises:
        InputError: An unknown name, or no format fits.
    """
    named_text = [key for key in ("text_column", "student_text_column") if getattr(data, key)]
    if named_text and data.format not in ("auto", "texts"):
        raise InputError(
            f"--{named_text[0]} {getattr(data, named_text[0])} names a column of texts without "
            f"queries, and --format {data.format} has none; leave one of them out"
        )
    if data.format != "auto" or named_text:
        return _format("texts" if named_text else data.format)
    for name in FORMATS:
        format_ = _format(name)
        if format_.fits(tables, data):
            return format_
    raise InputError(
        f"{named(tables)} no format fits: {columns_of(tables)}. Name the columns of the texts with "
        f"--query_column and --document_column, or the format with --format: {', '.join(FORMATS)}"
    )


def _format(name: str) -> Format:
    found: object = load_kind(name, FORMATS, "format")
    found = found if isinstance(found, Format) else getattr(found, "FORMAT", found)
    if not isinstance(found, Format):
        raise InputError(
            f"--format {name} is a {type(found).__name__}, but it must be a "
            "hf_distill.data.format.Format, or have one as its FORMAT"
        )
    return found
