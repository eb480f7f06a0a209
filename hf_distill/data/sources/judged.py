"""The pairs of folders whose judgements and lists name texts by id: BEIR's and MS MARCO's."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from hf_distill.data.collection import Source, SourcePairs, pair_number, text_number
from hf_distill.data.sources.id_tables import (
    Judged,
    Named,
    Parts,
    parts_of,
    role_of,
    shape_of,
)
from hf_distill.data.sources.rows import COLUMN_OPTIONS
from hf_distill.data.sources.stored import BATCH, StoredTexts
from hf_distill.data.tables.files import split_of
from hf_distill.data.tables.table import Row, Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

_ORDER = ("test", "validation", "train", None)
"""Of the judgements: a pair that is in two splits keeps its id in the first one."""


def pairs_of(tables: Tables, data: DataArguments, kind: str, description: str) -> SourcePairs:
    """The judgements, lists and triples of a folder as pairs.

    Raises:
        InputError: A table that the others need is missing, `dataset_split` names none of its
            splits, or an option names a column.
    """
    check_no_columns(tables, data, kind)
    parts = parts_of(tables)
    about = Source(tables.name, tables.license, tables.url, description)
    _check_whole(parts, tables)
    _check_one_run(parts.runs)
    unused = dict(parts.unused)
    judgements = _of_splits(parts.judgements, data.dataset_split, unused)
    lists = [*parts.triples, *parts.runs]
    counts: Counter[str] = Counter()
    corpus = StoredTexts(parts.corpus, "document", unused)
    queries = StoredTexts(parts.queries, "query", unused)
    found = "rows found" if lists or parts.texts else "judgements found"
    by_id = bool(judgements or lists)

    def counted(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            counts[found] += 1
            yield row

    def rows() -> Iterator[Row]:
        counts[found] = 0
        positives, said = _Positives(), set[int]()
        judged = np.zeros(len(queries) if by_id else 0, dtype=bool)
        tables_of = Counter(part.split for part in judgements)
        for part in judgements:
            graded = counted(_looked_up(part, queries, corpus, judged))
            if part.split == "test" and len(judgements) > 1:
                graded = _testable(graded, part.table)
            if parts.triples or parts.texts:
                graded = positives.noted(graded)
            if tables_of[part.split] > 1:  # as MS MARCO's dev and dev.small
                graded = _once(graded, said, counts)
            yield from graded
        for part in lists:
            yield from positives.new(counted(_looked_up(part, queries, corpus, judged)), counts)
        for _, of_texts in parts.texts:
            yield from positives.new(counted(of_texts), counts)
        if by_id and (unjudged := queries.unique - int(judged.sum())):
            unused["queries without a judgement"] = unjudged

    splits = ", ".join(dict.fromkeys(part.split or "no split" for part in judgements))
    names = [*(part.table.name for part in lists), *(table.name for table, _ in parts.texts)]
    read_as = kind + (f": judgements ({splits})" if judgements else "")
    read_as += f"{' and' if judgements else ':'} lists ({', '.join(names)})" if names else ""
    return SourcePairs(about, rows(), corpus if by_id else None, counts, read_as, unused)


def check_no_columns(tables: Tables, data: DataArguments, kind: str) -> None:
    """Refuse options about columns, which this format has under fixed names. Of a test set, they
    are not meant for it.
    """
    given = [key for key in COLUMN_OPTIONS if getattr(data, key) is not None]
    if given and tables.key in ("dataset_path", "dataset_name"):
        raise InputError(
            f"--{given[0]} {getattr(data, given[0])} has no effect: {tables.name} is read as "
            f"{kind}, whose columns have fixed names; leave the option out, or name another "
            "--format"
        )


def _place(table: Table) -> str:
    """The folder or configuration beside which others of its kind lie: `en` of `en/qrels` and of
    `en-corpus`.
    """
    return re.sub(r"(^|[-_/])(corpus|queries|qrels|default)$", "", table.config or "")


def _check_whole(parts: Parts, tables: Tables) -> None:
    corpora, queries = (
        {_place(text.table) for text in texts} for texts in (parts.corpus, parts.queries)
    )
    if len(several := sorted(corpora & queries)) > 1:
        raise InputError(
            f"{tables.name} holds {len(several)} collections ({', '.join(several)}), whose ids may "
            "be the same; name one of them"
        )
    by_id = [part.table.name for part in (*parts.judgements, *parts.triples, *parts.runs)]
    triples = any(shape_of(table) == "triples" for table, _ in parts.texts)
    judged = bool(parts.judgements or parts.triples or triples)
    need_texts = bool(by_id) or not triples
    missing = {
        "judgements (qrels/train.tsv, qrels/test.tsv, or one qrels.tsv)": not judged,
        "the documents' texts (corpus.jsonl or collection.tsv)": need_texts and not parts.corpus,
        "the queries' texts (queries.jsonl or queries.tsv)": need_texts and not parts.queries,
    }
    if any(missing.values()):
        there = [*by_id, *(text.table.name for text in (*parts.corpus, *parts.queries))]
        odd = [
            f"; {table.name} has no id and text, but the columns {', '.join(table.columns)}"
            for table in tables.tables
            if role_of(table) and shape_of(table) is None
        ]
        raise InputError(
            f"{tables.name} holds {', '.join(there) or 'none of these'}, but not "
            f"{', nor '.join(what for what, lacks in missing.items() if lacks)}{''.join(odd)}; put "
            "what is missing beside it"
        )


def _check_one_run(runs: Sequence[Judged]) -> None:
    """Refuse the scores of two systems for one query, which are not on one scale."""
    scored = [part for part in runs if part.scored]
    by_query: dict[str, str] = {}
    for part in scored if len(scored) > 1 else ():
        queries = {query for _, query, *_ in part.read()}
        if both := queries & by_query.keys():
            query = min(both)
            raise InputError(
                f"{by_query[query]} and {part.table.name} both score documents for the query "
                f"{query!r}, and their scores may have different scales; keep one of them beside "
                "the data"
            )
        by_query.update(dict.fromkeys(queries, part.table.name))


def _own_name(table: Table) -> str:
    """What a table of judgements without a known split is called: `dl19` of `qrels/dl19.tsv`."""
    return "" if table.stem in ("qrels", "all", table.config) else table.stem


def _of_splits(parts: Sequence[Judged], wanted: str | None, unused: dict[str, int]) -> list[Judged]:
    """The judgements of train, validation and test, in order; or, if there are no such, those of
    the only other split; or those of the split that is wanted. What is left out is counted.
    """
    names = [part.split or _own_name(part.table) for part in parts]
    splits: tuple[str | None, ...] = ("",)
    if wanted is not None:
        splits = (split_of(wanted),)
    elif any(name in _ORDER for name in names):
        splits = _ORDER
    elif len(set(names)) == 1:
        splits = (names[0],)
    if parts and not any(name in splits for name in names):
        there = ", ".join(dict.fromkeys(name or "no split" for name in names))
        raise InputError(
            f"--dataset_split {wanted}: the judgements are for {there}; name one of these"
            if wanted is not None
            else f"the judgements are for {there}, and nothing says which of them to train on or "
            "to test with; name them qrels/train.tsv and qrels/test.tsv, or one with "
            "--dataset_split"
        )
    chosen = []
    for part, name in zip(parts, names, strict=True):
        if name in splits:
            chosen.append(part if splits is _ORDER else replace(part, split=None))
        else:
            count = part.table.count
            unused[f"judgements of {part.table.name} ({name or 'no split'})"] = (
                sum(1 for _ in part.read()) if count is None else count
            )
    return sorted(chosen, key=lambda part: _ORDER.index(part.split))


def _testable(rows: Iterable[Row], table: Table) -> Iterator[Row]:
    """The rows of the test split; refused where none of them can be tested with."""
    usable = False
    for row in rows:
        usable = usable or bool(row["grade"] > 0 and row["query"] and row["document"])
        yield row
    if not usable:
        raise InputError(
            f"{table.name} holds no judgement above 0 of a query and a document with text, so "
            "there is nothing to test with; fix it, or remove it to split the other judgements"
        )


def _once(rows: Iterable[Row], said: set[int], counts: Counter[str]) -> Iterator[Row]:
    """The judgements that `said` does not hold; they are added to it."""
    for row in rows:
        number = text_number(f"{row['split']} {row['pair_id']} {row['grade']}")
        if number in said:
            counts["repeated judgements"] += 1
        else:
            said.add(number)
            yield row


class _Positives:
    """Pairs that were said to be relevant. A triple repeats them: it is one pair, with a longer
    list.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def _add(self, row: Row) -> bool:
        """Whether the pair is new."""
        if not row["query"] or not row["document"]:
            return True
        key = pair_number(row["query"], row["document"])
        new = key not in self._seen
        if row["grade"] > 0:
            self._seen.add(key)
        return new

    def noted(self, rows: Iterable[Row]) -> Iterator[Row]:
        """All of the rows; their pairs are not new any more."""
        for row in rows:
            self._add(row)
            yield row

    def new(self, rows: Iterable[Row], counts: Counter[str]) -> Iterator[Row]:
        """Candidates, and the pairs that were not there before."""
        for row in rows:
            if row.get("candidate") or self._add(row):
                yield row
            else:
                counts["repeated positives"] += 1


def _batches(rows: Iterable[Named]) -> Iterator[list[Named]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def _looked_up(
    part: Judged, queries: StoredTexts, corpus: StoredTexts, judged: np.ndarray
) -> Iterator[Row]:
    """The rows of a table, with texts. `judged` (queries,) is set where a row says a grade."""
    names = {"query": "query id", "document": "document id"}
    for batch in _batches(part.read()):
        _, query_ids, document_ids, _ = zip(*batch, strict=True)
        query_places, document_places = queries.places(query_ids), corpus.places(document_ids)
        graded = np.array(["grade" in said for *_, said in batch])
        judged[query_places[graded & (query_places >= 0)]] = True
        texts = zip(queries.texts(query_places), corpus.texts(document_places), strict=True)
        for (place, query_id, document_id, said), (query, document) in zip(
            batch, texts, strict=True
        ):
            yield {
                "pair_id": f"{query_id}_{document_id}",
                "query": query,
                "document": document,
                "query_id": query_id,
                "document_id": document_id,
                "group": query_id,
                "split": part.split,
                "lacks": "unknown or empty document" if query else "unknown or empty query",
                "at": (part.table, place),
                "names": names,
                **said,
            }
