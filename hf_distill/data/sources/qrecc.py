"""QReCC's own JSON format (Anantha et al., NAACL 2021), with the extraction rule of the paper that
this package implements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from hf_distill.data.collection import Source, SourcePairs, is_unicode
from hf_distill.data.format import Format
from hf_distill.data.sources.judged import check_no_columns
from hf_distill.data.sources.rows import column_of
from hf_distill.data.sources.turns import of_turn
from hf_distill.data.tables.table import Row, Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import CONVERSATION, UTTERANCE, DataArguments

MIN_QUERY_CHARACTERS = 6
MIN_DOCUMENT_CHARACTERS = 11

_NEEDED = ("Conversation_no", "Turn_no", "Answer")
_OF_TURNS = ("Question", "Context")
_USED = {*_NEEDED, "Rewrite", "Question", "Conversation_source"}


def extract_pair(turn: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """The paper's rule for one turn: (query, document, why it is not a pair or None).

    The query is `Rewrite`, or `Question` if that is empty; the document is `Answer`; both are
    stripped. A pair needs `len(query) > 5` and `len(document) > 10` characters.
    """
    query = str(turn.get("Rewrite") or "").strip() or str(turn.get("Question") or "").strip()
    document = str(turn.get("Answer") or "").strip()
    if not is_unicode(query + document):
        return query, document, "invalid Unicode"
    if not document:
        return query, document, "no answer"
    if len(document) < MIN_DOCUMENT_CHARACTERS:
        return query, document, f"answer shorter than {MIN_DOCUMENT_CHARACTERS} characters"
    if len(query) < MIN_QUERY_CHARACTERS:
        return query, document, f"query shorter than {MIN_QUERY_CHARACTERS} characters"
    return query, document, None


def _has_turns(table: Table) -> bool:
    return set(_NEEDED) <= set(table.columns)


def _fits(tables: Tables, data: DataArguments) -> bool:
    return any(_has_turns(table) for table in tables.tables)


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    """The turns of each table. `group` is the conversation, `pair_id` is conversation and turn."""
    check_no_columns(tables, data, "QReCC")
    turns = data.student_query in (CONVERSATION, UTTERANCE)
    used = _USED | ({"Context"} if turns else {column_of(data)})
    read = [table for table in tables.tables if _has_turns(table)]
    if not read:
        table = tables.tables[0]
        lacks = next(name for name in _NEEDED if name not in table.columns)
        raise InputError(
            f"{table.where(1 if table.unit == 'line' else 0)} is no turn of QReCC: it has no "
            f"{lacks!r}; its keys are {', '.join(sorted(table.columns))}"
        )
    others = [*(table.name for table in tables.tables if table not in read), *tables.others]
    unused = {f"file {name}": 1 for name in others}
    counts = Counter({"turns found": 0})

    def rows() -> Iterator[Row]:
        columns: Counter[str] = Counter()
        for table in read:
            for place, turn in table.read():
                counts["turns found"] += 1
                columns.update(key for key, value in turn.items() if key not in used and value)
                row, reason = _row(table, place, turn, data)
                if row is None:
                    counts[str(reason)] += 1
                    continue
                if len(read) > 1:  # conversations may have the same numbers in each
                    row |= {"group": f"{table.name} {row['group']}", "split": table.split}
                yield row
        unused.update({f"column {key}": count for key, count in columns.items()})

    about = Source(
        name="QReCC",
        license="cc-by-sa-4.0",
        url="https://github.com/apple/ml-qrecc",
        description="Conversational questions, rewritten to stand alone, with their answers.",
    )
    return SourcePairs(about, rows(), counts=counts, read_as="QReCC", unused=unused)


def _row(table: Table, place: int, turn: Row, data: DataArguments) -> tuple[Row | None, str | None]:
    """The pair of a turn, or why it has none."""
    turns, column = data.student_query in (CONVERSATION, UTTERANCE), column_of(data)
    for key in (*_NEEDED, *(_OF_TURNS if turns else ())):
        if key not in turn:
            why = f", which --student_query {data.student_query} needs" if key in _OF_TURNS else ""
            raise InputError(
                f"{table.where(place)}: the turn has no {key!r}{why}; its keys are "
                f"{', '.join(sorted(map(str, turn)))}"
            )
    query, document, reason = extract_pair(turn)
    if reason is not None:
        return None, reason
    row = {
        "pair_id": f"{turn['Conversation_no']}_{turn['Turn_no']}",
        "query": query,
        "document": document,
        "group": turn["Conversation_no"],
        "source": turn.get("Conversation_source"),
        "at": (table, place),
    }
    if turns:
        row["student_query"] = of_turn(data, table, place, turn, ("Context", "Question"))
    elif column in table.columns:
        row["student_query"] = turn.get(column)
    return row, None


FORMAT = Format(_fits, _read)
