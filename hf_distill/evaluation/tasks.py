"""Retrieval tasks: a run's held-out pairs, a test set in any format, or a task of `mteb`.
`load_task` reads the one that a text names.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_distill.data.collection import Collection, SourcePairs, is_unicode, query_id, text_id
from hf_distill.data.load import open_collection
from hf_distill.data.sources.files import read_path
from hf_distill.errors import InputError
from hf_distill.evaluation.retrieval import NDCG, Qrels, Run, make_run, per_query
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run.folder import RunFolder

Answer = tuple[np.ndarray, np.ndarray]
"""What `hf_distill.compute.search.search` returns: scores and document places, both (Q, k)."""


@dataclass(frozen=True)
class RetrievalTask:
    """Queries that search a corpus, and which documents are relevant.

    Attributes:
        queries: Id -> text, in the order of `qrels`: exactly the judged queries.
        documents: Id -> text, by ascending id, so that ties are in order of id (see
            `hf_distill.compute.search`).
        qrels: The judgements.
        name: For tables.
        notes: What a reader of the results should know about the data.
        student_queries: Id -> what the student reads in place of the query. None: the query.
    """

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    qrels: Qrels
    name: str = "held-out pairs"
    notes: tuple[str, ...] = ()
    student_queries: Mapping[str, str] | None = None

    def run(self, answer: Answer) -> Run:
        """The run of a search of `documents` for `queries`, both in their order here."""
        return make_run(list(self.queries), list(self.documents), *answer)

    def ndcg(self, answer: Answer) -> np.ndarray:
        """nDCG@10 of each query (Q,) float64, from such a search at a depth of at least 10."""
        return per_query(self.run(answer), self.qrels, NDCG)["nDCG@10"]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOutTask(RetrievalTask):
    """The held-out pairs of a collection as a task. Ids are `query_id`s and `text_id`s.

    Attributes:
        query_numbers: (Q,) int64, the number in the collection of each query.
        document_numbers: (N,) int64, the number in the collection of each document.
        pair_queries: (n,) int64, the place in `queries` of each held-out pair's query.
        pair_documents: (n,) int64, the place in `documents` of each held-out pair's document.
    """

    query_numbers: np.ndarray
    document_numbers: np.ndarray
    pair_queries: np.ndarray
    pair_documents: np.ndarray


def _unique(rows: Iterable[tuple[str, str]], what: str, name: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for row, (key, text) in enumerate(rows, 1):
        if key in texts:
            raise InputError(
                f"{name}: the {what} id {key!r} appears a second time (row {row}); make ids unique"
            )
        texts[key] = text
    return texts


def make_task(
    queries: Iterable[tuple[str, str]],
    documents: Iterable[tuple[str, str]],
    judgements: Iterable[tuple[str, str, int]],
    name: str,
) -> RetrievalTask:
    """A task from (id, text) of queries and documents and (query id, document id, grade), checked.

    Queries without judgements are left out, with a note, because they cannot be measured.
    Judgements of documents outside the corpus stay, with a note: no system can find them, and a
    relevant one among them lowers recall and nDCG, as in trec_eval.

    Raises:
        InputError: An id appears twice, a pair has two grades, the corpus is empty, there are no
            judgements, or a judged query has no text.
    """
    texts, corpus = _unique(queries, "query", name), _unique(documents, "document", name)
    qrels: dict[str, dict[str, int]] = {}
    for query, document, grade in judgements:
        first = qrels.setdefault(query, {}).setdefault(document, grade)
        if first != grade:
            raise InputError(
                f"{name}: query {query!r} and document {document!r} are judged {first} and "
                f"{grade}; keep one of them"
            )
    if not corpus:
        raise InputError(f"{name}: the corpus is empty; add the documents to search")
    if not qrels:
        raise InputError(
            f"{name}: none of its {len(texts)} queries has a judgement, so nothing can be "
            "measured; add judgements"
        )
    unknown = [query for query in qrels if query not in texts]
    if unknown:
        raise InputError(
            f"{name}: {len(unknown)} of {len(qrels)} judged queries have no text (e.g. "
            f"{unknown[0]!r}). They cannot be searched, and counting them as 0 would blame the "
            "model; add their texts or remove their judgements"
        )
    return RetrievalTask(
        {query: texts[query] for query in qrels},
        dict(sorted(corpus.items())),
        qrels,
        name,
        tuple(_notes(texts, corpus, qrels)),
    )


def _notes(texts: Mapping[str, str], corpus: Mapping[str, str], qrels: Qrels) -> Iterable[str]:
    if len(texts) > len(qrels):
        unjudged = next(query for query in texts if query not in qrels)
        yield (
            f"{len(texts) - len(qrels)} of {len(texts)} queries have no judgement and are left "
            f"out, e.g. {unjudged!r}"
        )
    missing = [
        (query, document)
        for query, grades in qrels.items()
        for document in grades
        if document not in corpus
    ]
    if missing:
        query, document = missing[0]
        yield (
            f"{len(missing)} of {sum(map(len, qrels.values()))} judgements name a document that is "
            f"not in the corpus, e.g. {document!r} for query {query!r}: no system can find it"
        )
    hopeless = [
        query
        for query, grades in qrels.items()
        if not any(grade > 0 and name in corpus for name, grade in grades.items())
    ]
    if hopeless:
        yield (
            f"{len(hopeless)} of {len(qrels)} judged queries have no relevant document in the "
            f"corpus, e.g. {hopeless[0]!r}: every system gets 0 there"
        )


class _Judged:
    """What the rows of a source say, split by split: ids, and the texts of queries."""

    def __init__(self, pairs: SourcePairs, name: str) -> None:
        self.name = name
        self.queries: dict[str, str] = {}
        self.documents: dict[str, str] = {}
        self.student_queries: dict[str, str] = {}
        self.judgements: dict[str | None, list[tuple[str, str, int]]] = {}
        self.candidates: dict[str, set[str]] = {}
        self.without_text = 0
        self.in_corpus = pairs.corpus is not None
        for text, key in pairs.corpus or ():
            self._add(self.documents, key, text.strip(), "document")
        for row in pairs.rows:
            self._take(row)

    def _add(self, texts: dict[str, str], key: object, text: str, what: str) -> str:
        """The id of `text`: the data's own, else the one of its content."""
        name = text_id(text) if key is None else str(key)
        if texts.setdefault(name, text) != text:
            raise InputError(f"{self.name}: the {what} id {name!r} has two texts; make ids unique")
        return name

    def _take(self, row: Mapping[str, Any]) -> None:
        if "student_query" in row and not self._text(row, "student_query"):
            self.without_text += 1
            return
        names = []
        for what, texts in (("query", self.queries), ("document", self.documents)):
            text, key = self._text(row, what), row.get(f"{what}_id")
            if text and key is None and what == "query":
                names.append(self._add(texts, self._query_id(row, text), text, what))
            elif text:
                names.append(self._add(texts, key, text, what))
            elif key is not None:
                names.append(str(key))
            else:
                self.without_text += 1
                return
        query, document = names
        if student_query := self._text(row, "student_query"):
            self._add(self.student_queries, query, student_query, "query")
        if row.get("candidate"):
            self.candidates.setdefault(query, set()).add(document)
            return
        grade = 1 if row.get("grade") is None else row["grade"]
        if not isinstance(grade, (int, float)) or not float(grade).is_integer():
            raise InputError(
                f"{self._place(row)}: the grade is {grade!r}, but a grade is a whole number"
            )
        self.judgements.setdefault(row.get("split"), []).append((query, document, int(grade)))

    def _query_id(self, row: Mapping[str, Any], text: str) -> str:
        other = self._text(row, "student_query")
        return query_id(text, other if other and other != text else None)

    def _text(self, row: Mapping[str, Any], what: str) -> str:
        """The text, stripped; empty if it is missing or cannot be written."""
        text = row.get(what)
        if text is None:
            return ""
        if not isinstance(text, str):
            raise InputError(
                f"{self._place(row)}: the {what} is a {type(text).__name__} ({text!r:.50}), but it "
                "must be text"
            )
        return text.strip() if is_unicode(text) else ""

    def _place(self, row: Mapping[str, Any]) -> str:
        if "at" not in row:
            return self.name
        table, place = row["at"]
        return str(table.where(place))


def task_of(pairs: SourcePairs, name: str) -> RetrievalTask:
    """A source as a task: its test split, else its validation split, else all that it judges.

    Documents that are judged not relevant keep their grade of 0. The queries search the source's
    corpus; without one, all documents that the source names beside them. Ids are the data's own;
    where it has none, `text_id`s.

    Raises:
        InputError: As `make_task` and the source, or an id stands for two texts.
    """
    judged = _Judged(pairs, name)
    splits = judged.judgements
    split = next((split for split in ("test", "validation") if split in splits), None)
    chosen = list(itertools.chain(*splits.values())) if split is None else splits[split]
    if not chosen:
        raise InputError(f"{name} judges nothing, so nothing can be measured; add judgements")
    documents = judged.documents
    if not judged.in_corpus:
        beside = {document for _, document, _ in chosen}.union(
            *(judged.candidates.get(query, ()) for query, _, _ in chosen)
        )
        documents = {key: text for key, text in documents.items() if key in beside}
    queries = {query for query, _, _ in chosen}
    task = make_task(
        ((key, text) for key, text in judged.queries.items() if key in queries),
        documents.items(),
        chosen,
        name,
    )
    others = {other: len(rows) for other, rows in splits.items() if split not in (None, other)}
    notes = [
        *(
            f"{count} judgements of the split {other} are left out"
            for other, count in others.items()
        ),
        *(f"not used: {what}: {count}" for what, count in pairs.unused.items()),
    ]
    if judged.without_text:
        notes.append(f"{judged.without_text} rows without a query or a document are left out")
    if judged.student_queries:
        own = {key: judged.student_queries.get(key, text) for key, text in task.queries.items()}
        task = replace(task, student_queries=own)
    return replace(task, notes=(*task.notes, *notes))


def held_out_task(collection: Collection) -> HeldOutTask:
    """The retrieval task of the held-out pairs: their queries search every document that is marked
    as searched. Documents that were judged not relevant keep their grade of 0.
    """
    pairs = collection.pairs("test")
    numbers, first, place = np.unique(pairs.queries, return_index=True, return_inverse=True)
    order = np.argsort(first)  # by the first pair of each query
    query_numbers, pair_queries = numbers[order], np.argsort(order)[place]
    query_texts = collection.query_texts(query_numbers)
    query_ids = collection.query_ids(query_numbers)

    searched = collection.searched
    document_texts = collection.document_texts(searched)
    document_ids = [text_id(text) for text in document_texts]
    by_id = np.array(sorted(range(len(searched)), key=document_ids.__getitem__), dtype=np.int64)
    document_numbers = searched[by_id]
    place_of = np.argsort(by_id)
    pair_documents = place_of[np.searchsorted(searched, pairs.documents)]
    lists = collection.lists(query_numbers)
    zeros = lists.grades == 0
    judged_queries = np.repeat(np.arange(len(query_numbers)), np.diff(lists.starts))[zeros]
    judged_documents = place_of[np.searchsorted(searched, lists.documents[zeros])]

    grades: dict[tuple[int, int], int] = {}
    for query, document, grade in zip(
        pair_queries.tolist(), pair_documents.tolist(), pairs.column("grade"), strict=True
    ):
        grades[query, document] = max(grade, grades.get((query, document), 0))
    for pair in zip(judged_queries.tolist(), judged_documents.tolist(), strict=True):
        grades.setdefault(pair, 0)
    ids = [document_ids[i] for i in by_id]
    task = make_task(
        zip(query_ids, query_texts, strict=True),
        zip(document_ids, document_texts, strict=True),
        ((query_ids[q], ids[d], grade) for (q, d), grade in grades.items()),
        "held-out pairs",
    )
    return HeldOutTask(
        **vars(task) | {"student_queries": student_queries(collection, query_numbers)},
        query_numbers=query_numbers,
        document_numbers=document_numbers,
        pair_queries=pair_queries,
        pair_documents=pair_documents,
    )


def student_queries(collection: Collection, numbers: np.ndarray) -> dict[str, str] | None:
    """Id -> what the student reads, of the queries with these numbers; None: what the teacher
    reads.
    """
    if not collection.num_student_queries:
        return None
    names = collection.query_ids(numbers)
    return dict(zip(names, collection.student_queries(numbers), strict=True))


def run_task(folder: RunFolder) -> HeldOutTask:
    """The held-out pairs of a finished run.

    Raises:
        InputError: The run holds no pairs.
    """
    name = f"held-out pairs of {folder.path.resolve().name}"
    return replace(held_out_task(open_collection(folder)), name=name)


def mteb_task(name: str, key: str = "task") -> RetrievalTask:
    """A retrieval task of the `mteb` package: its own split and ids, title and text joined by a
    space; from the local cache or the Hub. `key` is the option that names it, for messages.

    Raises:
        InputError: `mteb` is not installed or has no such retrieval task, the data is neither in
            the cache nor on the Hub, or as `make_task`.
    """
    if importlib.util.find_spec("mteb") is None:
        raise InputError(
            f"--{key} mteb:{name} needs the package mteb; pip install 'hf_distill[mteb]'"
        )
    import mteb  # noqa: PLC0415  (an extra, and the import takes ten seconds)

    logging.getLogger("mteb").setLevel(logging.ERROR)
    try:
        task: Any = mteb.get_task(name)
    except KeyError as error:
        reason = error.args[0] if error.args else error
        raise InputError(
            f"--{key} mteb:{name} is unknown to mteb ({reason}); name one of its retrieval tasks"
        ) from error
    about = task.metadata
    if about.type != "Retrieval" or not set(about.modalities) <= {"text"}:
        raise InputError(
            f"--{key} mteb:{name} is a {about.type} task of {', '.join(about.modalities)}; name a "
            "text retrieval task"
        )
    if len(task.hf_subsets) != 1 or len(task.eval_splits) != 1:
        raise InputError(
            f"--{key} mteb:{name} has {len(task.hf_subsets)} subsets "
            f"({', '.join(task.hf_subsets[:5])}) and {len(task.eval_splits)} splits; name a task "
            "with one of each"
        )
    try:
        task.load_data()
    except (OSError, ValueError) as error:  # those of `datasets` and `huggingface_hub`, too
        reason = str(error).splitlines()[0] if str(error) else "no message"
        raise InputError(
            f"--{key} mteb:{name}: its data (data set {about.dataset['path']}, revision "
            f"{about.dataset['revision']}) is not in the local cache and could not be downloaded "
            f"({type(error).__name__}: {reason}); download it once with a network"
        ) from error
    split = task.dataset[task.hf_subsets[0]][task.eval_splits[0]]
    return make_task(
        ((str(row["id"]), row["text"]) for row in split["queries"]),
        (
            (str(row["id"]), " ".join(filter(None, (row.get("title"), row["text"]))).strip())
            for row in split["corpus"]
        ),
        (
            (str(query), str(document), int(grade))
            for query, grades in split["relevant_docs"].items()
            for document, grade in grades.items()
        ),
        name,
    )


def load_task(text: str, key: str = "task", student_query: str | None = None) -> RetrievalTask:
    """The task that `text` names: a run's folder, a BEIR folder (or a test set in any other
    format), `mteb:NAME`, or `nano:NAME` for NanoBEIR, e.g. `nano:SciFact`.

    Args:
        text: Names the task.
        key: The option that says so, for messages.
        student_query: The recipe's: what the student reads in place of the queries of a file or
            folder, where these have it.

    Raises:
        InputError: `text` is none of these, or as the readers.
    """
    kind, _, name = text.partition(":")
    if kind == "mteb" and name:
        return mteb_task(name, key)
    if kind == "nano" and name:
        return mteb_task(f"Nano{name}Retrieval", key)
    path = Path(text)
    if not path.exists():
        raise InputError(
            f"--{key} {text}: there is no such file or folder; name a run's folder, a BEIR folder, "
            "mteb:NAME or nano:NAME (e.g. nano:SciFact)"
        )
    if (run := RunFolder(path)).recipe.is_file():
        return run_task(run)
    if run.pairs.is_dir():
        raise InputError(
            f"--{key} {text}: this run's folder has no recipe.yaml yet; let its recipe come to its "
            "end"
        )
    with tempfile.TemporaryDirectory() as cache:
        data = DataArguments(student_query=student_query)
        return task_of(read_path(path, key, data, Path(cache)), path.resolve().name)
