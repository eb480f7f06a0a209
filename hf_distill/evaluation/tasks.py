"""Retrieval tasks: a run's held-out pairs, a BEIR folder, or a task of `mteb`. `load_task` reads
the one that a text names.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distill.data.collection import (
    PairData,
    text_id,
)
from hf_distill.data.sources.beir import (
    read_qrels,
    read_texts,
)
from hf_distill.errors import InputError
from hf_distill.evaluation.retrieval import Qrels
from hf_distill.run.folder import RunFolder


@dataclass(frozen=True)
class RetrievalTask:
    """Queries that search a corpus, and what is known to be relevant.

    Attributes:
        queries: Id -> text, in the order of `qrels`: every judged query, and no other.
        documents: Id -> text, by ascending id, so that ties go by id (see `hf_distill.compute.search`).
        qrels: The judgements.
        name: For tables.
        notes: What was found in the data that a reader of the figures should know.
    """

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    qrels: Qrels
    name: str = "held-out pairs"
    notes: tuple[str, ...] = ()


def _unique(rows: Iterable[tuple[str, str]], what: str, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for row, (key, text) in enumerate(rows, 1):
        if key in found:
            raise InputError(
                f"{name}: the {what} id {key!r} appears a second time (row {row}); ids must be unique"
            )
        found[key] = text
    return found


def make_task(
    queries: Iterable[tuple[str, str]],
    documents: Iterable[tuple[str, str]],
    judgements: Iterable[tuple[str, str, int]],
    name: str,
) -> RetrievalTask:
    """A task from (id, text) of queries and documents and (query id, document id, grade), checked.

    Queries without judgements are left out, with a note: nothing can be said of them. Judgements of
        documents outside the corpus stay,
    with a note: no system can find them, and a relevant one among them lowers recall and nDCG, as
        trec_eval has it.

    Raises:
        InputError: An id that appears twice, a pair that is judged twice, an empty corpus, no
            judgements, or a judged query without a text.
    """
    texts, corpus = _unique(queries, "query", name), _unique(documents, "document", name)
    qrels: dict[str, dict[str, int]] = {}
    for query, document, grade in judgements:
        grades = qrels.setdefault(query, {})
        if grades.setdefault(document, grade) != grade:
            raise InputError(
                f"{name}: query {query!r} and document {document!r} are judged {grades[document]} and {grade}; keep one of them"
            )
    if not corpus:
        raise InputError(f"{name}: the corpus is empty, so there is nothing to search")
    if not qrels:
        raise InputError(
            f"{name}: there is no judgement among {len(texts)} queries, so nothing can be measured"
        )
    unknown = [query for query in qrels if query not in texts]
    if unknown:
        raise InputError(
            f"{name}: {len(unknown)} of {len(qrels)} judged queries have no text (e.g. {unknown[0]!r}); they cannot be searched, and "
            "counting them as 0 would blame the model. Add their texts or remove their judgements"
        )
    notes = []
    if len(texts) > len(qrels):
        left_out = next(query for query in texts if query not in qrels)
        notes.append(
            f"{len(texts) - len(qrels)} of {len(texts)} queries have no judgement and are left out, e.g. {left_out!r}"
        )
    missing = [
        (query, document)
        for query, grades in qrels.items()
        for document in grades
        if document not in corpus
    ]
    if missing:
        total = sum(map(len, qrels.values()))
        notes.append(
            f"{len(missing)} of {total} judgements name a document that is not in the corpus, e.g. {missing[0][1]!r} for query "
            f"{missing[0][0]!r}: no system can find it"
        )
    hopeless = [
        query
        for query, grades in qrels.items()
        if not any(grade > 0 and name in corpus for name, grade in grades.items())
    ]
    if hopeless:
        notes.append(
            f"{len(hopeless)} of {len(qrels)} judged queries have no relevant document in the corpus, e.g. {hopeless[0]!r}: every system "
            "gets 0 there"
        )
    return RetrievalTask(
        {query: texts[query] for query in qrels},
        dict(sorted(corpus.items())),
        qrels,
        name,
        tuple(notes),
    )


def held_out_task(data: PairData) -> RetrievalTask:
    """The retrieval task of the test pairs: every test query is judged, every document of the
    corpus is searched. Ids are `text_id`.
    """
    return _pairs_task(data.test, data.corpus, "held-out pairs")


def _pairs_task(test: Dataset, corpus: Dataset, name: str) -> RetrievalTask:
    queries: dict[str, str] = {}
    grades: dict[tuple[str, str], int] = {}
    for row in test:
        query, document = text_id(row["query"]), text_id(row["document"])
        queries[query] = row["query"]
        grades[query, document] = max(row["relevance"], grades.get((query, document), 0))
    documents = {text_id(text): text for text in corpus["document"]}
    return make_task(
        queries.items(),
        documents.items(),
        ((q, d, grade) for (q, d), grade in grades.items()),
        name,
    )


def run_task(folder: RunFolder) -> RetrievalTask:
    """The held-out pairs of a finished run.

    Raises:
        InputError: The run holds no pairs.
    """
    files = [folder.pairs / f"{name}.arrow" for name in ("test", "corpus")]
    for file in files:
        if not file.is_file():
            raise InputError(
                f"{folder.path} is a run, but {file.name} is missing in its pairs/; run train.py --until score once more"
            )
    test, corpus = (Dataset.from_file(str(file)) for file in files)
    return _pairs_task(test, corpus, f"held-out pairs of {folder.path.resolve().name}")


def beir_task(folder: Path) -> RetrievalTask:
    """The whole corpus and the test judgements of a BEIR folder (Thakur et al., 2021), with its own
    ids.

    Raises:
        InputError: As `make_task`, or a file that is missing or malformed, with the line.
    """
    qrels = folder / "qrels" / "test.tsv"
    if not qrels.is_file():
        raise InputError(
            f"no test.tsv in {folder / 'qrels'}; a BEIR folder keeps the judgements it is measured by there"
        )
    queries, documents = (
        read_texts(folder / "queries.jsonl", ("text",)),
        read_texts(folder / "corpus.jsonl", ("title", "text")),
    )
    return make_task(queries.items(), documents.items(), read_qrels(qrels), folder.resolve().name)


def mteb_task(name: str) -> RetrievalTask:
    """A retrieval task of the `mteb` package: its own split and ids, title and text joined by a
    space; from the cache or the Hub.

    Raises:
        InputError: `mteb` is not installed, has no such retrieval task, the data cannot be had, or
            as `make_task`.
    """
    if importlib.util.find_spec("mteb") is None:
        raise InputError(
            f"--task mteb:{name} needs the package mteb; pip install 'hf_distill[mteb]'"
        )
    import mteb  # noqa: PLC0415  (an extra, and ten seconds)

    logging.getLogger("mteb").setLevel(logging.ERROR)
    try:
        task: Any = mteb.get_task(name)
    except KeyError as error:
        raise InputError(
            f"--task: mteb has no task {name!r}: {str(error.args[0]) if error.args else error}"
        ) from error
    if task.metadata.type != "Retrieval" or not set(task.metadata.modalities) <= {"text"}:
        raise InputError(
            f"--task: {name} is no text retrieval task of mteb but {task.metadata.type} of {', '.join(task.metadata.modalities)}"
        )
    if len(task.hf_subsets) != 1 or len(task.eval_splits) != 1:
        raise InputError(
            f"--task: {name} has {len(task.hf_subsets)} subsets ({', '.join(task.hf_subsets[:5])}) and {len(task.eval_splits)} splits; "
            "only tasks with one of each can be compared on"
        )
    where = (
        f"data set {task.metadata.dataset['path']}, revision {task.metadata.dataset['revision']}"
    )
    try:
        task.load_data()
    except (
        OSError,
        ValueError,
    ) as error:  # of `datasets` and `huggingface_hub`: their errors derive from these
        raise InputError(
            f"--task: the data of {name} ({where}) is not in the local cache and could not be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). Download it once with a network"
        ) from error
    split = task.dataset[task.hf_subsets[0]][task.eval_splits[0]]
    return make_task(
        ((str(row["id"]), row["text"]) for row in split["queries"]),
        (
            (
                str(row["id"]),
                " ".join(part for part in (row.get("title"), row["text"]) if part).strip(),
            )
            for row in split["corpus"]
        ),
        (
            (str(query), str(document), int(grade))
            for query, grades in split["relevant_docs"].items()
            for document, grade in grades.items()
        ),
        name,
    )


def load_task(text: str) -> RetrievalTask:
    """The task that `text` names: a run's folder, a BEIR folder, `mteb:NAME`, or `nano:NAME` for
    NanoBEIR, e.g. `nano:SciFact`.

    Raises:
        InputError: None of these, or as the readers.
    """
    kind, _, name = text.partition(":")
    if kind == "mteb" and name:
        return mteb_task(name)
    if kind == "nano" and name:
        return mteb_task(f"Nano{name}Retrieval")
    folder = Path(text)
    if not folder.is_dir():
        raise InputError(
            f"--task {text}: no such folder; name a run's folder, a BEIR folder, mteb:NAME or nano:NAME (e.g. nano:SciFact)"
        )
    if (run := RunFolder(folder)).recipe.is_file():
        return run_task(run)
    if (folder / "corpus.jsonl").is_file():
        return beir_task(folder)
    raise InputError(
        f"--task {text}: this folder holds neither recipe.yaml (a run) nor corpus.jsonl (a BEIR folder)"
    )
