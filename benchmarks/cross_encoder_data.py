"""What `cross_encoder.py` trains and measures on: sets with held-out queries, what BM25 and the
bi-encoder find for these, and mined negatives.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from hf_distill.compute.encode import encode, how_asked
from hf_distill.compute.search import search
from hf_distill.data.near_duplicates import text_key
from hf_distill.data.sources.files import read_path
from hf_distill.errors import InputError
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.retrieval import Run
from hf_distill.evaluation.tasks import RetrievalTask, load_task, task_of
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run.stage import stage

FORM = 1
"""Another number whenever something else is computed: earlier results are then not used."""
BM25, BI_ENCODER = "BM25", "bi-encoder"
HELD_OUT = 0.25
"""The share of the queries that is held out where the data has no training split."""
MOST = 4000
"""Training queries of a set, at most: more than the training has time for."""
CANDIDATES = 30
"""Negatives are drawn from so many documents of each first stage."""
NEGATIVES = 14
"""Mined for each query, at most."""
SAME = 0.9
"""A document that is so similar to a relevant one (cosine) is taken for another copy of it."""


@dataclass(frozen=True)
class RankingSet:
    """A set to train and to measure on.

    Attributes:
        name: Of its folder.
        task: The held-out queries that are measured, and the documents that they search.
        training: The training queries with their judgements, over the same documents; None: nothing
            is trained on this set.
        held_out: `text_key`s of every held-out query, also of those that are not measured.
        held_documents: Ids of the documents that are relevant to a held-out query.
        notes: How it was divided.
    """

    name: str
    task: RetrievalTask
    training: RetrievalTask | None
    held_out: frozenset[str]
    held_documents: frozenset[str]
    notes: tuple[str, ...]


def relevant(grades: Mapping[str, int]) -> set[str]:
    """The documents with a grade above 0."""
    return {document for document, grade in grades.items() if grade > 0}


def some_queries(task: RetrievalTask, most: int, seed: int) -> RetrievalTask:
    """`task` with `most` of its queries, drawn with `seed`, in their order."""
    names = list(task.qrels)
    if len(names) > most:
        places = np.random.default_rng(seed).choice(len(names), most, replace=False)
        names = [names[place] for place in np.sort(places)]
    return replace(
        task,
        queries={name: task.queries[name] for name in names},
        qrels={name: task.qrels[name] for name in names},
    )


def _without(task: RetrievalTask, held_out: frozenset[str]) -> RetrievalTask:
    names = [name for name in task.qrels if text_key(task.queries[name]) not in held_out]
    return replace(
        task,
        queries={name: task.queries[name] for name in names},
        qrels={name: task.qrels[name] for name in names},
    )


def _divided(
    rows: list[Mapping[str, Any]], seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], str]:
    """Rows of training and held-out queries, and how they were told apart."""
    splits = {row.get("split") for row in rows}
    if "train" in splits and len(splits) > 1:
        held = next(name for name in ("test", "validation", None) if name in splits)
        return (
            [row for row in rows if row.get("split") == "train"],
            [row for row in rows if row.get("split") == held],
            f"divided by the data's own splits: train and {held}",
        )
    keys = sorted({text_key(str(row["query"])) for row in rows})
    order = np.random.default_rng(seed).permutation(len(keys))
    drawn = {keys[place] for place in order[: max(1, round(HELD_OUT * len(keys)))]}
    sides = [text_key(str(row["query"])) in drawn for row in rows]
    return (
        [row for row, is_held in zip(rows, sides, strict=True) if not is_held],
        [row for row, is_held in zip(rows, sides, strict=True) if is_held],
        f"the data has no training split, so {len(drawn)} of {len(keys)} queries, drawn with seed "
        f"{seed}, are held out",
    )


def read_set(path: Path, measured: int, seed: int) -> RankingSet:
    """A set to train on.

    Args:
        path: A BEIR folder, or any judged data that the project reads.
        measured: How many held-out queries are measured, at most.
        seed: Draws them, and the held-out queries where the data has no split.

    Raises:
        InputError: It cannot be read, or judges nothing.
    """
    with tempfile.TemporaryDirectory() as cache:
        pairs = read_path(path, "data", DataArguments(), Path(cache))
        corpus = list(pairs.corpus) if pairs.corpus is not None else None
        rows = list(pairs.rows)
    if not rows:
        raise InputError(
            f"--data {path} judges nothing, so nothing can be trained; name other data"
        )
    if corpus is None:  # both sides search all documents
        corpus = list(dict.fromkeys((row["document"], row.get("document_id")) for row in rows))
    learnt, held, how = _divided(rows, seed)
    name = path.resolve().name
    training = task_of(replace(pairs, rows=learnt, corpus=corpus), name)
    whole = task_of(replace(pairs, rows=held, corpus=corpus), name)
    keys = frozenset(text_key(text) for text in whole.queries.values())
    documents = frozenset(d for grades in whole.qrels.values() for d in relevant(grades))
    return RankingSet(
        name, some_queries(whole, measured, seed), training, keys, documents,
        (how, f"{len(whole.qrels)} queries are held out"),
    )  # fmt: skip


def read_other(path: Path, measured: int, seed: int) -> RankingSet:
    """A set that nothing is trained on.

    Raises:
        InputError: See `load_task`.
    """
    whole = load_task(str(path), "others")
    keys = frozenset(text_key(text) for text in whole.queries.values())
    task = some_queries(whole, measured, seed)
    return RankingSet(task.name, task, None, keys, frozenset(), ("nothing is trained on it",))


def read_sets(
    data: Iterable[Path], others: Iterable[Path], measured: int, seed: int
) -> list[RankingSet]:
    """All sets. No text of a query that any of them holds out is among the training queries; those
    that had such a text are left out and counted.

    Raises:
        InputError: See `read_set` and `read_other`; or two sets have the same name.
    """
    sets = [read_set(path, measured, seed) for path in data]
    sets += [read_other(path, measured, seed) for path in others]
    names = [one.name for one in sets]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(
            f"--data, --others: {twice[0]} is the name of two of them, and results are kept by "
            "name; rename one"
        )
    held_out = frozenset().union(*(one.held_out for one in sets))
    result = []
    for one in sets:
        if one.training is None:
            result.append(one)
            continue
        kept = _without(one.training, held_out)
        left_out = len(one.training.qrels) - len(kept.qrels)
        drawn = some_queries(kept, MOST, seed)
        notes = (
            f"{left_out} of {len(one.training.qrels)} training queries have the text of a held-out "
            "query and are left out",
            f"{len(drawn.qrels)} of the other {len(kept.qrels)} may be trained on",
        )
        result.append(replace(one, training=drawn, notes=(*one.notes, *notes)))
    return result


# --- first stages --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embeddings:
    """The bi-encoder's embeddings of some texts (n, d) float32, L2-normalised, in the `.npy` file
    beside this one.
    """

    key: str
    texts: int


@dataclass(frozen=True)
class FirstStage:
    """`first_stage.json`: for the held-out queries, the best documents of each system."""

    key: str
    runs: dict[str, Run]


@dataclass(frozen=True)
class List:
    """A training query, its relevant documents and its mined negatives: ids."""

    query: str
    relevant: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True)
class Mined:
    """`negatives.json`.

    Attributes:
        key: The fingerprint of everything that it depends on.
        lists: One for each training query that has a relevant document and a negative.
        above: The share of the negatives that the bi-encoder ranks above every relevant document.
        left_out: Reason -> how many candidates, or how many queries.
    """

    key: str
    lists: tuple[List, ...]
    above: float
    left_out: dict[str, int]


@dataclass(frozen=True)
class Stages:
    """A set, the bi-encoder, and the folder where what they give is kept.

    Attributes:
        data: The set.
        folder: Where results are kept.
        model: The bi-encoder.
        identity: What the bi-encoder computes.
        seed: Draws negatives.
    """

    data: RankingSet
    folder: Path
    model: SentenceTransformer
    identity: tuple[str, ...]
    seed: int

    def _embeddings(self, name: str) -> Embeddings:
        """Those of `held` or `training` queries, or of `documents`: read, or made."""
        task, training = self.data.task, self.data.training
        texts = list(
            {
                "held": task.queries,
                "training": training.queries if training else {},
                "documents": task.documents,
            }[name].values()
        )
        ask: Any = self.model.encode_document if name == "documents" else self.model.encode_query
        file = self.folder / f"{name}.npy"

        def make(key: str) -> Embeddings:
            values = encode(self.model, texts, asked=how_asked(self.model, lambda: ask("a")))
            vectors = torch.nn.functional.normalize(values).numpy()
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(file, vectors)
            return Embeddings(key, len(texts))

        inputs = [FORM, self.identity, texts]
        return stage(file.with_suffix(".json"), Embeddings, inputs, make, [file])

    def vectors(self, name: str) -> tuple[str, np.ndarray]:
        """The key and the embeddings (n, d) of `held` or `training` queries, or of `documents`."""
        key = self._embeddings(name).key
        vectors: np.ndarray = np.load(self.folder / f"{name}.npy")
        return key, vectors

    def first_stage(self, depth: int) -> FirstStage:
        """The best `depth` documents of both systems for every held-out query: read, or made."""
        task = self.data.task
        (of_queries, queries), (of_documents, documents) = map(self.vectors, ("held", "documents"))

        def make(key: str) -> FirstStage:
            sparse = bm25_run(task.queries, task.documents, depth)
            dense = task.run(search(queries, documents, depth))
            return FirstStage(key, {BM25: sparse, BI_ENCODER: dense})

        ids = [list(task.queries), list(task.documents)]
        inputs = [FORM, of_queries, of_documents, ids, depth]
        return stage(self.folder / "first_stage.json", FirstStage, inputs, make)

    def mined(self) -> Mined:
        """Negatives for every training query: read, or made. See `mine`.

        Raises:
            InputError: No query has one.
        """
        training = self.data.training
        assert training is not None
        names = ("training", "documents")
        (of_queries, queries), (of_documents, documents) = map(self.vectors, names)
        judged = {query: dict(grades) for query, grades in training.qrels.items()}
        settings = [self.seed, CANDIDATES, NEGATIVES, SAME]
        inputs = [FORM, of_queries, of_documents, judged, list(self.data.task.documents)]
        return stage(
            self.folder / "negatives.json",
            Mined,
            [*inputs, sorted(self.data.held_documents), *settings],
            lambda key: mine(self.data, queries, documents, self.seed, key),
        )


def training_documents(data: RankingSet) -> list[int]:
    """The places of the documents that negatives are mined from: all but those that are relevant to
    held-out queries alone.
    """
    assert data.training is not None
    own = {name for grades in data.training.qrels.values() for name in relevant(grades)}
    hidden = data.held_documents - own
    return [place for place, name in enumerate(data.task.documents) if name not in hidden]


def mine(
    data: RankingSet, queries: np.ndarray, documents: np.ndarray, seed: int, key: str
) -> Mined:
    """Negatives: documents that BM25 or the bi-encoder ranks high and nobody judged relevant.

    A document is not taken if it is relevant to a query of the same text, has the text of a
    relevant document, or is nearly the same as one (`SAME`). It is taken also if the bi-encoder
    prefers it to the relevant ones: without these, the ranker would only learn to agree with the
    bi-encoder.

    Args:
        data: The set.
        queries: (Q, d) float32, L2-normalised embeddings of its training queries.
        documents: (N, d) float32, those of its documents.
        seed: Draws `NEGATIVES` of the candidates of each query.
        key: Of the result.
    """
    training = data.training
    assert training is not None
    names, texts = list(data.task.documents), data.task.documents
    place_of = {name: place for place, name in enumerate(names)}
    pool = training_documents(data)
    by_text: dict[str, set[str]] = {}
    for query, grades in training.qrels.items():
        by_text.setdefault(text_key(training.queries[query]), set()).update(relevant(grades))
    dense = search(queries, documents[pool], CANDIDATES)[1]
    sparse = bm25_run(
        training.queries, {names[place]: texts[names[place]] for place in pool}, CANDIDATES
    )
    draw = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    lists: list[List] = []
    above = total = 0
    for row, (query, text) in enumerate(training.queries.items()):
        own = sorted(relevant(training.qrels[query]) & place_of.keys())
        if not own:
            counts["queries without a relevant document"] += 1
            continue
        judged = by_text[text_key(text)] & place_of.keys()
        relevant_texts = {text_key(texts[name]) for name in judged}
        vectors = documents[[place_of[name] for name in sorted(judged)]]
        candidates = dict.fromkeys([*sparse[query], *(names[pool[i]] for i in dense[row])])
        kept = []
        for name in candidates:
            if name in judged:
                counts["candidates that are relevant"] += 1
            elif text_key(texts[name]) in relevant_texts:
                counts["candidates with the text of a relevant document"] += 1
            elif float((vectors @ documents[place_of[name]]).max()) >= SAME:
                counts["candidates nearly the same as a relevant document"] += 1
            else:
                kept.append(name)
        if not kept:
            counts["queries without a negative"] += 1
            continue
        chosen = draw.permutation(len(kept))[:NEGATIVES]
        negatives = tuple(kept[i] for i in chosen)
        best = float((vectors @ queries[row]).max())
        cosines = documents[[place_of[name] for name in negatives]] @ queries[row]
        above, total = above + int((cosines > best).sum()), total + len(negatives)
        lists.append(List(query, tuple(own), negatives))
    if not lists:
        raise InputError(
            f"--data {data.name}: no training query has both a relevant document and a negative, "
            "so nothing can be trained; name other data"
        )
    return Mined(key, tuple(lists), above / total, dict(counts))
