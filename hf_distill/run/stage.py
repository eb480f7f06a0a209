"""One way to make, keep and reuse the result of a stage, and to write a file whole or not at all.

A stage is a function of earlier results. Its result is a frozen dataclass with a `key`, a
fingerprint of everything that it depends on. `stage` reads it if a file with this key is there, and
makes it otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np

from hf_distill.errors import InputError
from hf_distill.run.full_disk import naming
from hf_distill.run.processes import check_same, expect, from_main, is_main

_POLL_SECONDS = 0.3

_log = logging.getLogger(__name__)


class Result(Protocol):
    """The result of a stage: a frozen dataclass that JSON can hold, with the key of its inputs."""

    @property
    def key(self) -> str: ...


T = TypeVar("T")
R = TypeVar("R", bound=Result)


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits over the JSON of `parts`: equal inputs give equal digits in any
    process.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.hf_distill-part(\.\w+)?")
"""Names of files and folders that are being written. Nobody else gives a file such a name."""


def temporary_of(path: Path) -> Path:
    """A new name beside `path`, for what is not whole yet."""
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex}.hf_distill-part{path.suffix}")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success flush it to disk and rename it; on an
    exception remove it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    temporary.touch(exist_ok=False)
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_whole(path: Path, own: frozenset[Path] | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`. On success it replaces `path` as a whole; on
    an exception it is removed and `path` stays as it was.

    Args:
        path: The folder.
        own: The files that the run has in the folder (see `listed`). If there are others, they are
            somebody else's: they stay, and ours are replaced one by one. None: all are ours.
    """
    with working_folder(path) as new:
        yield new
        if own is None or own.issuperset(map(_normal, _files_of([path]))):
            if path.exists():
                shutil.rmtree(path)
            new.replace(path)
            return
        written = {file.relative_to(new) for file in _files_of([new])}
        for name in written:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).replace(path / name)
        for file in _files_of([path]):
            if _normal(file) in own and file.relative_to(path) not in written:
                file.unlink()


@contextlib.contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which is removed afterwards, or by the next call if this
    one is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_of(path)
    folder.mkdir()
    try:
        with naming(path):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main_makes(
    path: Path, make: Callable[[], object], holds: Callable[[Path], bool], inputs: Sequence[Any]
) -> None:
    """Let the main process `make` the file at `path` from `inputs`, unless `holds(path)` is true
    already. The other processes wait until it is.

    A barrier would end the run after `ddp_timeout`. If the main process ends, the others do, too
    (`end_together`).

    Raises:
        InputError: In a process that would make it from other inputs than the main process.
    """
    expected = expect(f"{path.parent.name}/{path.name}", inputs)
    while not holds(path):
        if is_main():
            make()
        else:
            expected.check()
            time.sleep(_POLL_SECONDS)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _text(content: Any) -> str:
    plain = msgspec.to_builtins(content, enc_hook=_plain, str_keys=True)
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write `content` (dataclasses, dicts, lists, numbers, arrays) as indented UTF-8 JSON, whole
    or not at all.

    Raises:
        ValueError: NaN or an infinity, which JSON cannot hold.
    """
    text = _text(content)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, kind: type[T]) -> T:
    """The dataclass of `kind` that `write_json` wrote to `path`.

    Raises:
        InputError: The file is damaged, or is not of this kind.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it and run again to make a new one"
        ) from error


# --- seals: what belongs to a result, and what it was when it was written ------------------------

_SEAL = "sealed"
_UNDER_WAY = ""
"""The key of a result that is being replaced. It lists the files of the one before."""


def _normal(file: Path) -> Path:
    """A path without `..`: the same file has the same one."""
    return Path(os.path.normpath(file))


def listed(record: Path) -> frozenset[Path] | None:
    """The files that belong to a result, also if they are damaged; None: there is no list."""
    try:
        names = json.loads(record.read_bytes())[_SEAL]["files"]
        return frozenset(_normal(record.parent / name) for name in names)
    except (OSError, ValueError, TypeError, KeyError):
        return None


_State = tuple[Path, int, int]


def _state(file: Path) -> _State:
    """A file as it is: written anew, it has another one."""
    now = file.stat()
    return _normal(file), now.st_ino, now.st_mtime_ns


def strangers(record: Path, beside: Sequence[Path]) -> frozenset[_State]:
    """The files in the folders of a result that it does not list, as they are: somebody else put
    them there. Called before the result is made again.
    """
    own = listed(record)
    if own is None:
        return frozenset()
    states = (_state(file) for file in _files_of(beside))
    return frozenset(state for state in states if state[0] not in own)


def _files_of(beside: Sequence[Path]) -> list[Path]:
    """The files among `beside`, and those in the folders among them."""
    every = (sorted(p.rglob("*")) if p.is_dir() else [p] for p in beside)
    return [path for paths in every for path in paths if path.is_file()]


def _seal(
    path: Path, result: Any, beside: Sequence[Path], others: Collection[_State]
) -> dict[str, Any]:
    """`result` as JSON, with the SHA-256 of itself and of every file that belongs to it."""
    content: dict[str, Any] = json.loads(_text(result))
    own = [file for file in _files_of(beside) if file != path and _state(file) not in others]
    files = {os.path.relpath(file, path.parent): sha256_of(file) for file in own}
    return content | {_SEAL: {"sha256": _digest(content, files), "files": files}}


def _digest(content: dict[str, Any], files: dict[str, str]) -> str:
    text = json.dumps([content, files], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _content(path: Path) -> dict[str, Any]:
    """The JSON object at `path`, without its seal.

    Raises:
        InputError: It is not what `stage` wrote, or a file that belongs to it is not: which one.
    """
    again = "remove it and run again to make a new one"
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop(_SEAL)
        files: dict[str, str] = seal["files"]
        intact = seal["sha256"] == _digest(content, files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); {again}") from error
    if content.get("key") == _UNDER_WAY:
        raise InputError(f"{path} was being made again when its call was stopped; run it again")
    if not intact:
        raise InputError(f"{path} is damaged (it is not what was written); {again}")
    for name, digest in files.items():
        file = path.parent / name
        if not file.is_file():
            raise InputError(f"{file} is gone, but {path} belongs to it; {again}")
        if sha256_of(file) != digest:
            raise InputError(f"{file} is damaged (its SHA-256 is not {digest}); {again}")
    return dict(content)


def write_result(
    path: Path, result: Any, files: Sequence[Path], others: Collection[_State] = ()
) -> None:
    """Write a result to `path`, with the SHA-256 of `files` and of the files in the folders among
    them: `read_result` compares. They are all there already. `others` are not the result's (see
    `strangers`).
    """
    write_json(path, _seal(path, result, files, others))


def read_result(path: Path, kind: type[T]) -> T:
    """The result that a stage wrote to `path`. It and every file that belongs to it are compared
    with what was written.

    Raises:
        InputError: A file is gone, is damaged, or is not of this kind: which one.
    """
    try:
        return msgspec.convert(_content(path), kind, str_keys=True)
    except msgspec.MsgspecError as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it and run again to make a new one"
        ) from error


def key_in(path: Path, name: str = "key") -> Any:
    """One value of the result at `path`, of whatever kind it is: its key, or `name`.

    Raises:
        InputError: As `read_result`.
    """
    return _content(path).get(name)


def files_of(path: Path, folder: Path) -> frozenset[str]:
    """The files in `folder` that belong to the result at `path`, as paths in it. All are what was
    written.

    Raises:
        InputError: As `read_result`.
    """
    _content(path)
    inside = _normal(folder)
    return frozenset(
        file.relative_to(inside).as_posix()
        for file in listed(path) or ()
        if file.is_relative_to(inside)
    )


def _leave_the_list(path: Path) -> None:
    """Leave nothing of a result but the list of its files, if it has one."""
    if listed(path) is None:
        path.unlink()
    else:
        seal = json.loads(path.read_bytes())[_SEAL]
        write_json(path, {"key": _UNDER_WAY, _SEAL: seal})


def is_under_way(path: Path) -> bool:
    """Whether a result was being made again when its call was stopped: only the list of its files
    is left.
    """
    return listed(path) is not None and json.loads(path.read_bytes()).get("key") == _UNDER_WAY


def _key_of(path: Path) -> str | None:
    """The key of the result at `path`; None if there is none, or if it cannot be used. The rest may
    be of another form.
    """
    if not path.is_file():
        return None
    try:
        return _content(path).get("key")
    except InputError as error:
        if is_under_way(path):
            return None
        _log.warning("%s. It is made again now.", error.args[0].partition(";")[0])
        return None


def key_of(kind: type[Result], inputs: Sequence[Any]) -> str:
    """The key of a result of `kind` that was made from `inputs`."""
    return fingerprint(kind.__name__, *inputs)


def stage(
    path: Path,
    kind: type[R],
    inputs: Sequence[Any],
    make: Callable[[str], R],
    files: Sequence[Path] = (),
    together: bool = False,
) -> R:
    """The result of a stage: read from `path` if it was made from the same `inputs`, else made.

    Args:
        path: The JSON file that holds the result. It is written last, so the stage counts as done
            only when all that `make` writes is there.
        kind: The result's dataclass. Its name is part of the key.
        inputs: Everything that the result depends on: keys of earlier results, settings, the
            identity of models. JSON, or things whose `str` says what they are.
        make: Makes the result, given its key, and writes whatever belongs to it.
        files: Files that `make` writes beside `path`, or folders of them. If one of them is gone or
            is not what was written, the stage is made again, and says so.
        together: All processes call `make` at the same time, for work that they share (scoring,
            training). Otherwise the main process makes it and the others wait.

    Returns:
        The result, with `key` set.
    """
    key = key_of(kind, inputs)

    def is_current(path: Path) -> bool:
        return all(file.exists() for file in files) and _key_of(path) == key

    def replace() -> R:
        """Make it. Of the old result only the list of its files is there meanwhile, so that after a
        kill it does not stand beside new files; it is back if the input is refused, which happens
        before files are replaced.
        """
        main = is_main()
        before = path.read_bytes() if main and path.is_file() else None
        others = strangers(path, files) if main else frozenset()
        if before is not None:
            _leave_the_list(path)
        try:
            result = make(key)
        except InputError:
            if before is not None:
                path.write_bytes(before)
            raise
        if main:
            write_result(path, result, files, others)
        return result

    if together:
        check_same({path.name: [kind.__name__, *inputs]})
        if not from_main(is_current(path)):
            return replace()
    main_makes(path, replace, is_current, inputs)
    return read_result(path, kind)
