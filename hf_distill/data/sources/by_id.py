"""Texts that rows name by id. They are kept on disk: a collection has millions of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator

from hf_distill.data.sources.rows import name_of
from hf_distill.data.tables.table import Row, Table
from hf_distill.errors import InputError


class TextsById:
    """Text and id of every row of some tables, in a file that goes with this object.

    Args:
        tables: Where the texts are.
        id_column: Their column of ids.
        text_of: The text of a row.

    Raises:
        InputError: An id has two texts, or a row has an id that is no name, or no Unicode.
    """

    def __init__(
        self, tables: Iterable[Table], id_column: str, text_of: Callable[[Row], object]
    ) -> None:
        self._texts = sqlite3.connect("")  # a temporary file, once it outgrows a few MB
        self._texts.execute("CREATE TABLE texts (id TEXT PRIMARY KEY, text) WITHOUT ROWID")
        for table in tables:
            for place, row in table.read():
                name = name_of(row.get(id_column), table, place, id_column)
                text = text_of(row)
                try:
                    if name is not None and not self._add(name, text):
                        raise InputError(
                            f"{table.where(place)}: the id {name!r} has another text further up; "
                            "give each text an id of its own"
                        )
                except (sqlite3.Error, UnicodeEncodeError) as error:
                    raise InputError(
                        f"{table.where(place)}: the text {text!r:.50} cannot be kept ({error}); "
                        "it must be text in valid Unicode"
                    ) from error

    def _add(self, name: str, text: object) -> bool:
        try:
            self._texts.execute("INSERT INTO texts VALUES (?, ?)", (name, text))
        except sqlite3.IntegrityError:
            return self[name] == text
        return True

    def __getitem__(self, name: str) -> object:
        """The text; None if there is none of that id."""
        row = self._texts.execute("SELECT text FROM texts WHERE id = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def __contains__(self, name: str) -> bool:
        query = "SELECT 1 FROM texts WHERE id = ?"
        return self._texts.execute(query, (name,)).fetchone() is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(text, id), as a corpus; without the empty ones."""
        for name, text in self._texts.execute("SELECT id, text FROM texts"):
            if text:
                yield text, name
