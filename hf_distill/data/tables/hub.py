"""Data sets on the Hugging Face Hub become tables: `hub_tables`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub import DatasetCard
from huggingface_hub.errors import EntryNotFoundError

from hf_distill.data.tables.arrow import class_names, rows_of, with_names
from hf_distill.data.tables.files import split_of
from hf_distill.data.tables.table import Row, Table, Tables
from hf_distill.errors import InputError

_MOST_CONFIGS = 8
_KEY = "dataset_name"


def hub_tables(name: str, config: str | None, split: str | None, cache: Path) -> Tables:
    """The tables of the data set `name`, one for each split of each configuration.

    Args:
        name: Its id.
        config: Read this configuration alone. None: all of them.
        split: Read this split alone, where a configuration has it. A configuration of one split is
            read whatever that is called, because it may hold the texts (`corpus`).
        cache: Where `datasets` prepares the files for reading. Downloads stay in the Hub's cache.

    Raises:
        InputError: The data set, the configuration or the split is not there, the Hub cannot be
            reached, or there are more than 8 configurations and none is named.
    """
    with _refused(f"--{_KEY} {name}"):
        configs = [str(known) for known in datasets.get_dataset_config_names(name)]
    if config is not None and config not in configs:
        raise InputError(
            f"--dataset_config {config}: {name} has no such configuration; it has "
            f"{_listed(configs)}"
        )
    if config is None and len(configs) > _MOST_CONFIGS:
        raise InputError(
            f"--{_KEY} {name} has {len(configs)} configurations ({_listed(configs)}); name one "
            "with --dataset_config"
        )
    loaded = {
        part: _load(name, part, cache) for part in ([config] if config is not None else configs)
    }
    tables = tuple(
        _table(name, part, at, loaded[part][at])
        for part in sorted(loaded)
        for at in loaded[part]
        if split is None or at == split or (len(loaded) > 1 and len(loaded[part]) == 1)
    )
    splits = {at for parts in loaded.values() for at in parts}
    if split is not None and split not in splits:
        raise InputError(
            f"--dataset_split {split}: {name} has no such split; it has {_listed(sorted(splits))}"
        )
    url = f"https://huggingface.co/datasets/{name}"
    return Tables(None, name, _KEY, tables, license=_license(name), url=url)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_CONFIGS} more" if len(names) > _MOST_CONFIGS else ""
    return ", ".join(names[:_MOST_CONFIGS]) + more


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Whatever the Hub, its client or `datasets` says becomes an `InputError` of one line."""
    try:
        yield
    except ConnectionError as error:
        raise InputError(
            f"{what}: the Hub cannot be reached ({_line(error)}); connect to it, or name files "
            "with --dataset_path"
        ) from error
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(f"{what} cannot be loaded: {_line(error.__cause__ or error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _load(name: str, config: str, cache: Path) -> dict[str, Any]:
    with _refused(f"--{_KEY} {name} (configuration {config})"):
        splits = datasets.load_dataset(name, config, cache_dir=str(cache))
    return {str(split): splits[split] for split in splits}


def _license(name: str) -> str | None:
    with _refused(f"--{_KEY} {name}"):
        try:
            said = DatasetCard.load(name).data.license
        except EntryNotFoundError:
            return None
    names = [said] if isinstance(said, str) else said or []
    return ", ".join(map(str, names)) or None


def _table(name: str, config: str, split: str, data: Any) -> Table:
    """A split of a configuration. What it is for is the configuration's name, or the split's if
    that is no usual one (`corpus`), or the last part of the data set's id.
    """

    classes = class_names(data.features.arrow_schema, f"--{_KEY} {name}")

    def rows() -> Iterator[tuple[int, Row]]:
        batches = data.with_format("arrow").iter(batch_size=1000)
        yield from with_names(rows_of(batches), classes, f"--{_KEY} {name}")

    said = split_of(split)
    usual = said in ("train", "validation", "test")
    stem = config if config != "default" else name.rsplit("/", 1)[-1] if usual else split
    return Table(
        name=f"{config} (split {split})",
        stem=stem.lower(),
        config=config,
        split=said,
        columns=tuple(data.column_names),
        unit="row",
        read=rows,
        count=len(data),
    )
