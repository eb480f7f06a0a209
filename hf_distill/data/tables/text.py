"""Bytes and text of a file, in blocks: compression and encoding are found by content.

Memory holds one block and one line, whatever the size of the file.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_distill.errors import InputError

BLOCK = 1 << 20
"""Bytes read at once."""
LONGEST = 1 << 26
"""Characters of the longest line or record. What is longer is no table of texts."""

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LFS = b"version https://git-lfs.github.com/spec/"


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """What the system or Arrow says about a file that cannot be read becomes an `InputError`. A
    text of it may be no UTF-8, and a time of it outside the calendar.
    """
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied; change its mode") from error
    except (OSError, pa.ArrowException, EOFError, UnicodeDecodeError, ArithmeticError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{path} is damaged or cut off ({said:.200}); copy or download it again"
        ) from error


def compression(path: Path) -> str | None:
    """`gzip`, `zstd` or `bz2` if the file begins like one, whatever its name.

    Raises:
        InputError: The file is empty, cannot be read, or stands for a file that Git LFS has not
            fetched.
    """
    with refused(path), path.open("rb") as file:
        start = file.read(len(_LFS))
    if not start:
        raise InputError(f"{path} is empty")
    if start == _LFS:
        raise InputError(
            f"{path} is a Git LFS pointer, and the data itself is not here; run `git lfs pull` in "
            "its repository"
        )
    return next((kind for magic, kind in _COMPRESSIONS.items() if start.startswith(magic)), None)


def open_bytes(path: Path) -> Any:
    """A `pyarrow.NativeFile` of the file's content, decompressed."""
    kind = compression(path)
    with refused(path):
        return pa.input_stream(str(path), compression=kind)


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of the file's content, decompressed."""
    with open_bytes(path) as file, refused(path):
        start: bytes = file.read(count)
        return start


def encoding_of(path: Path) -> str:
    """The Unicode encoding that the file's byte order mark names; `utf-8` without one."""
    start = first_bytes(path, 4)
    return next((name for mark, name in _BOMS.items() if start.startswith(mark)), "utf-8")


def chunks(path: Path) -> Iterator[str]:
    """The text of the file, piece by piece, without a byte order mark.

    Raises:
        InputError: Bytes that are not text in this encoding, or a NUL, with line and byte. Other
            encodings are not guessed: the bytes of most are valid in several, with other letters.
    """
    encoding = encoding_of(path)
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    lines = 0
    with open_bytes(path) as file:
        while True:
            with refused(path):
                piece = file.read(BLOCK)
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(encoding, "ignore")
                raise InputError(_not_unicode(path, lines, before, error)) from error
            if "\0" in text:
                number = lines + text[: text.index("\0")].count("\n") + 1
                raise InputError(
                    f"{path}, line {number}: a NUL byte, which no text holds; if the file is "
                    f"UTF-16, convert it: iconv -f UTF-16LE -t UTF-8 {path.name} > new"
                )
            lines += text.count("\n")
            if text:
                yield text
            if not piece:
                return


def _not_unicode(path: Path, lines: int, before: str, error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    letter = bytes([byte]).decode("cp1252", "replace")
    name = "UTF-8" if error.encoding.startswith("utf-8") else error.encoding.upper()
    place = f"{path}, line {lines + before.count(chr(10)) + 1}"
    after = before.rsplit("\n", 1)[-1][-40:]
    hint = (
        f" (in Windows-1252 it is {letter!r})" if name == "UTF-8" and letter.isprintable() else ""
    )
    return (
        f"{place}: byte 0x{byte:02x}{hint} after {after!r} is not {name}; texts would be read with "
        f"wrong letters. Convert the file from its encoding, e.g. iconv -f WINDOWS-1252 -t UTF-8 "
        f"{path.name} > new"
    )


def blocks(path: Path) -> Iterator[str]:
    r"""The text in blocks of whole lines, each line ended by `\n` (the last one perhaps not). Where
    a file has `\r` alone, as from old spreadsheets, that is its line end.

    Raises:
        InputError: As `chunks`; a line longer than `LONGEST`.
    """
    rest: list[str] = []
    length, lines, old = 0, 0, None
    for text in chunks(path):
        if old is None:
            old = "\n" not in text and "\r" in text[:-1]
        piece = text.replace("\r", "\n") if old else text
        end = piece.rfind("\n") + 1
        if end:
            block = "".join([*rest, piece[:end]])
            lines += block.count("\n")
            yield block
            rest, length = [], 0
        rest.append(piece[end:])
        length += len(piece) - end
        if length > LONGEST:
            raise InputError(
                f"{path}, line {lines + 1} is longer than {LONGEST:,} characters; a table has one "
                "row a line"
            )
    if last := "".join(rest):
        yield last


def lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""The lines with their numbers, from 1, without line ends. Only `\n` and `\r\n` end a line: a
    text may hold the other characters that Python splits at.
    """
    number = 0
    for block in blocks(path):
        for line in block.removesuffix("\n").split("\n"):
            number += 1
            yield number, line.removesuffix("\r")
