"""Which files hold tables, and what their names say."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import msgspec
import yaml
from fsspec.utils import glob_translate  # type: ignore[import-untyped]  # fsspec has no types

from hf_distill.data.tables.text import refused
from hf_distill.errors import InputError

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_ROLES = {"corpus", "collection", "queries", "qrels", "triples"}
"""Words that tell what a file is for, wherever in its name they stand."""
COMPRESSED = (".gz", ".zst", ".bz2")
_PART = re.compile(r"[-._](part[-._]?)?\d+([-._]of[-._]\d+)?$")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_SAVED = {"state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json"}
"""What `save_to_disk` and old repositories write beside the data."""


@dataclass(frozen=True)
class File:
    """A file that may hold a table. The other attributes are those of a `Table`.

    Attributes:
        partition: Columns that its folders name, as Spark writes them (`lang=en/part-0.parquet`),
            with the value of all its rows; None is a missing one.
    """

    path: Path
    name: str
    stem: str
    config: str | None
    split: str | None
    partition: tuple[tuple[str, str | None], ...] = ()

    @property
    def suffix(self) -> str:
        """The extension in lower case, without that of a compression."""
        return _extension(self.path.name)


@dataclass(frozen=True)
class Card:
    """What the front matter of a data set's README.md says.

    Attributes:
        license: Its licence.
        files: (configuration, split or None, pattern of paths) in order. Empty if it says nothing.
    """

    license: str | None
    files: tuple[tuple[str, str | None, re.Pattern[str]], ...]


def split_of(name: str) -> str:
    """`dev`, `val`, `valid` and `eval` are validation; other names stay."""
    return _SPLITS.get(name.lower(), name)


def _plain(name: str) -> str:
    return next((name[: -len(end)] for end in COMPRESSED if name.lower().endswith(end)), name)


def _extension(name: str) -> str:
    """A split is none: MS MARCO's `top1000.dev` has no extension."""
    suffix = PurePosixPath(_plain(name)).suffix.lower()
    return "" if suffix[1:] in _SPLITS else suffix


def _partition(folder: str) -> tuple[str, str | None] | None:
    """Column and value of a folder of the form `column=value`, as Hive and Spark write it."""
    column, equals, value = folder.partition("=")
    if not equals or not column:
        return None
    return column, None if value == _NO_VALUE else unquote(value)


def describe(path: Path, below: Path) -> File:
    """What the name of `path` says, where the data is in `below` (its folder, if it is alone)."""
    relative = PurePosixPath(path.relative_to(below).as_posix())
    name = _plain(relative.name).lower().removesuffix(_extension(relative.name))
    whole = _PART.sub("", name) or name
    words = [word for word in re.split(r"[-._\s]+", whole) if word]
    above = [part for part in relative.parts[:-1] if part.lower() != "data"]
    inside = [part for part in above if part.lower() in _SPLITS]
    columns = [pair for part in above if (pair := _partition(part)) is not None]
    folders = [part for part in above if part not in inside and _partition(part) is None]
    config = "/".join(folders) or None
    splits = {_SPLITS[word] for word in words if word in _SPLITS}
    if not splits:
        splits = {split_of(part) for part in inside}
    split = splits.pop() if len(splits) == 1 else None
    if "data" in relative.parts[:-1] and whole != name and not split:
        split = whole  # the Hub's data/<split>-00000-of-00001
    roles = {word for word in words if word in _ROLES}
    rest = [word for word in words if word not in _SPLITS and not word.isdigit()]
    stem = roles.pop() if len(roles) == 1 else "-".join(rest) or (folders or [whole])[-1]
    return File(path, str(relative), stem.lower(), config, split, tuple(columns))


def walk(folder: Path) -> Iterator[Path]:
    """The files below `folder`, in order of their paths. Hidden ones are left out; a folder that
    links to one above it is not entered again.
    """
    seen: set[str] = set()
    with refused(folder):
        for top, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            real = os.path.realpath(top)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
            yield from (Path(top) / name for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


class _Shard(msgspec.Struct, frozen=True):
    filename: str


class _Saved(msgspec.Struct, frozen=True):
    """`state.json`, as far as it is read."""

    data_files: list[_Shard] | None = msgspec.field(name="_data_files", default=None)
    split: str | None = msgspec.field(name="_split", default=None)


def saved_shards(folder: Path) -> dict[Path, str | None]:
    """The Arrow files that `Dataset.save_to_disk` wrote into `folder`, with the split that
    `state.json` names. Empty if the folder is none of its own.

    Raises:
        InputError: A file that `state.json` names is missing.
    """
    state = folder / "state.json"
    if not state.is_file():
        return {}
    try:
        saved = msgspec.convert(_json(state), _Saved)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{state} is not what save_to_disk writes ({error}); copy the whole folder again"
        ) from error
    names = [part.filename for part in saved.data_files or ()]
    for name in names:
        with refused(state):  # a name may be too long for one
            there = (folder / name).is_file()
        if not there:
            raise InputError(
                f"{state} names {name}, which is not there; copy the whole folder that "
                "save_to_disk wrote"
            )
    return {folder / name: saved.split for name in names}


def _json(path: Path) -> dict[str, Any]:
    with refused(path):
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); copy the whole folder again") from error
    return value if isinstance(value, dict) else {}


def describe_folder(folder: Path) -> tuple[list[File], list[str], str | None]:
    """The files of a folder: those that may hold tables, the names of the others, and the licence
    that a card names.

    The front matter of a README.md decides, where it names files, as on the Hub. A file that it
    names in two configurations belongs to the first.
    """
    card = _card(folder / "README.md")
    files: list[File] = []
    others: list[str] = []
    shards: dict[Path, dict[Path, str | None]] = {}
    for path in sorted(walk(folder), key=lambda path: path.relative_to(folder).parts):
        file = describe(path, folder)
        parent = path.parent
        if parent not in shards:
            shards[parent] = saved_shards(parent)
        if path.name in _SAVED:
            continue
        if shards[parent]:
            if path in shards[parent]:
                files.append(_saved(file, folder, shards[parent][path]))
            else:
                others.append(file.name)
        elif card.files:
            named = [part for part in card.files if part[2].fullmatch(file.name)]
            if named:
                config, split, _ = named[0]
                split = file.split if split is None else split_of(split)
                files.append(File(path, file.name, _role(file, config), config, split))
            else:
                others.append(file.name)
        else:
            files.append(file)
    return files, others, card.license


def _role(file: File, config: str) -> str:
    """The configuration of a Hub's data set tells more than `data` or the split does."""
    said = file.stem in _ROLES or config == "default"
    return file.stem if said else config.lower()


def _saved(file: File, top: Path, split: str | None) -> File:
    """A shard of `save_to_disk`: the folder is named after the split of a DatasetDict."""
    folder = file.path.parent
    if folder == top:
        return File(file.path, file.name, top.name.lower(), None, split and split_of(split))
    above = folder.parent.relative_to(top).as_posix()
    in_dict = (folder.parent / "dataset_dict.json").is_file()
    said = folder.name if in_dict or folder.name.lower() in _SPLITS else split
    config = None if above == "." else above
    if not in_dict and folder.name.lower() not in _SPLITS:
        config = folder.relative_to(top).as_posix()
    stem = config or top.name if folder.name.lower() in _SPLITS else folder.name
    return File(file.path, file.name, stem.lower(), config, said and split_of(said))


def _card(readme: Path) -> Card:
    if not readme.is_file():
        return Card(None, ())
    with refused(readme):
        text = readme.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff")
    match = re.match(r"---[ \t]*\r?\n(.*?)\n---[ \t]*\r?(\n|$)", text, re.DOTALL)
    try:
        says = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if match and re.search(r"^configs:", match[1], re.MULTILINE):
            raise InputError(
                f"{readme}: the front matter names files and is not YAML "
                f"({' '.join(str(error).split()):.200}); mend it"
            ) from error
        says = None
    says = says if isinstance(says, dict) else {}
    licenses, configs = says.get("license") or [], says.get("configs") or []
    names = licenses if isinstance(licenses, list) else [licenses]
    return Card(
        ", ".join(str(name) for name in names) or None,
        tuple(
            (str(config.get("config_name", "default")), split, _pattern(pattern, readme))
            for config in (configs if isinstance(configs, list) else [])
            if isinstance(config, dict)
            for split, pattern in _patterns(config)
        ),
    )


def _patterns(config: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    """(split, pattern) of the forms that `data_files` has on the Hub."""
    folder = str(config.get("data_dir") or "").strip("/")
    above = f"{folder}/" if folder else ""
    said = config.get("data_files")
    if said is None:
        if folder:
            yield None, f"{above}**"
        return
    if isinstance(said, dict):
        said = [{"split": split, "path": path} for split, path in said.items()]
    for part in said if isinstance(said, list) else [said]:
        split, paths = (
            (part.get("split"), part.get("path")) if isinstance(part, dict) else (None, part)
        )
        for path in paths if isinstance(paths, list) else [paths]:
            yield (None if split is None else str(split)), above + str(path).removeprefix("./")


def _pattern(pattern: str, readme: Path) -> re.Pattern[str]:
    """A name with brackets matches itself, too."""
    try:
        return re.compile(f"{glob_translate(pattern)}|{re.escape(pattern)}")
    except (ValueError, re.error) as error:
        raise InputError(
            f"{readme}: the front matter names the files {pattern!r:.50}, which is no pattern "
            f"({error}); mend it"
        ) from error
