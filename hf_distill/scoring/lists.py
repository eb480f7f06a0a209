"""Lists of candidates for the queries of training and validation pairs: mined, and scored by a
ranker or by the teacher.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm

from hf_distill.candidates.mine import (
    GIVEN,
    TEACHER,
    WORDS,
    Mined,
    by_words,
    filled,
    joined,
    with_best,
)
from hf_distill.compute.bm25 import BM25, Words
from hf_distill.compute.search import search
from hf_distill.data.collection import CANDIDATE_FEATURES, Collection, Pairs, Split
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import fingerprint, read_result, stage, written_whole
from hf_distill.scoring.agreement import auc_of_lists
from hf_distill.scoring.embeddings import EmbeddingTable, embed_collection
from hf_distill.scoring.ranking import Ranking
from hf_distill.scoring.scores import Scores, ScoreStatistics, score_pairs, shards_of
from hf_distill.teachers.base import EmbeddingTeacher, PairTeacher, Scale, Teacher

_MINED = 4096
"""Queries that are mined for at a time."""
_LISTED: tuple[Split, ...] = ("train", "validation")
_BLOCK = 8192


@dataclass(frozen=True)
class MinedRecord:
    """`candidates/mined.json`.

    Attributes:
        key: The fingerprint of what the lists depend on.
        queries: Queries of training and validation pairs, each with a list.
        corpus: Documents that were searched.
        by: Miner -> how many candidates it names.
        drawn: Candidates that no miner found, drawn at random because a list was too short.
        short: Queries whose list was.
        seconds: How long the mining took, with the embeddings of other bi-encoders.
    """

    key: str
    queries: int
    corpus: int
    by: dict[str, int]
    drawn: int
    short: int
    seconds: float


@dataclass(frozen=True)
class ListsRecord:
    """`candidates/manifest.json`: how the lists were scored.

    Attributes:
        key: The fingerprint of what the scores depend on.
        ranker: What scored them.
        precision: In which it ran.
        scale: What the scores mean, as in `SoftLabels`.
        mined: How the lists were mined.
        candidates: In all lists.
        unscored: Candidates without a score.
        seconds: How long the scoring took.
        score: How the scores of the candidates are distributed.
        positive: The same of the pairs' own documents.
        first: The share of pairs whose own document is scored above every candidate of its list,
            among pairs whose own document has a score.
        collection: The key of the collection.
        auc: The probability that a pair's own document is scored above a candidate of its list (see
            `hf_distill.scoring.agreement.auc_of_lists`).
        auc_judged: The same, above a candidate that is judged not relevant; None if no list holds
            one.
        judged: Pairs whose list does.
    """

    key: str
    ranker: str
    precision: str
    scale: dict[str, Any]
    mined: MinedRecord
    candidates: int
    unscored: int
    seconds: float
    score: ScoreStatistics
    positive: ScoreStatistics
    first: float
    collection: str
    auc: float | None = None
    auc_judged: float | None = None
    judged: int = 0

    def described(self, ranker: str | None = None, miners: Mapping[str, int] | None = None) -> str:
        """How the lists were made, and what the ranker says of the pairs, in sentences.

        Args:
            ranker, miners: `ranker` and `mined.by`, with the names that are to be shown; None: as
                they are.
        """
        mined, named = self.mined, self.mined.by if miners is None else miners
        by = ", ".join(f"{name} ({count:,})" for name, count in named.items())
        several = " Several of these may name the same one." if len(named) > 1 else ""
        drawn = (
            f" {mined.drawn:,} were drawn at random, because a list was too short."
            if mined.drawn
            else ""
        )
        unscored = f"; {self.unscored:,} candidates have no score" if self.unscored else ""
        return (
            "Each query of a training or validation pair has a list of candidates, "
            f"{self.candidates:,} in all, mined among {mined.corpus:,} documents by {by}.{several}"
            f"{drawn} The ranker is {ranker or self.ranker}, run in {self.precision}{unscored}. It "
            f"scores {self.first:.1%} of the pairs' own documents above every candidate"
            f"{self.agreement()}."
        )

    def agreement(self) -> str:
        """How far the ranker agrees with the judgements, to end a sentence about the pairs' own
        documents.
        """
        said = ""
        if self.auc is not None:
            said += f", the average one above {self.auc:.1%} of its candidates"
        if self.auc_judged is not None:
            said += (
                f", and above {self.auc_judged:.1%} of those that are judged not relevant "
                f"({self.judged:,} pairs have some)"
            )
        return said


@dataclass(frozen=True)
class ScoredLists:
    """The lists of the queries, and their scores.

    Attributes:
        record: Who mined and scored them.
        queries: (Q,) int64, ascending: numbers of the queries of training and validation pairs.
        mined: Their lists.
        scores: (m,) float32, the ranker's scores of the candidates; NaN: unknown.
        own: (n,) float32, those of the pairs: of training, then of validation, in order.
        of: (n,) int64: which of `queries` each pair has.
        trained: How many of the pairs are training pairs.
    """

    record: ListsRecord
    queries: np.ndarray
    mined: Mined
    scores: np.ndarray
    own: np.ndarray
    of: np.ndarray
    trained: int

    @property
    def key(self) -> str:
        """The fingerprint of what the scores depend on."""
        return self.record.key

    @cached_property
    def scale(self) -> Scale:
        """What the scores mean."""
        return Scale.read(self.record.scale)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """The lists as rectangles (Q, k): documents int64, -1 where a list is shorter, and scores
        float32, NaN there.
        """
        sizes = np.diff(self.mined.starts)
        row = np.repeat(np.arange(len(sizes)), sizes)
        column = np.arange(len(row)) - self.mined.starts[row]
        shape = len(sizes), int(sizes.max(initial=1))
        documents = np.full(shape, -1, dtype=np.int64)
        scores = np.full(shape, np.nan, dtype=np.float32)
        documents[row, column], scores[row, column] = self.mined.documents, self.scores
        return documents, scores

    def ranking(self, keep: int) -> Ranking:
        """Where the ranker puts each training pair's own document in the list of its query, with
        the `keep` candidates that it scores highest. A pair that it has not scored is the last.
        """
        documents, scores = self.padded()
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")[:, :keep]
        best, best_scores = (
            np.take_along_axis(values, order, axis=1) for values in (documents, scores)
        )
        own, of = self.own[: self.trained], self.of[: self.trained]
        rank = np.empty(len(own), dtype=np.int32)
        for start in range(0, len(rank), _BLOCK):
            some = slice(start, start + _BLOCK)
            known = np.nan_to_num(own[some, None], nan=-np.inf)
            rank[some] = 1 + (scores[of[some]] > known).sum(axis=1)
        return Ranking(
            key=self.key,
            rank=rank,
            margin=own - best_scores[of, 0],
            negatives=best[of],
            negative_scores=best_scores[of],
            pool=scores.shape[1] + 1,
            mined=True,
        )

    def summary(self) -> str:
        """What was mined and scored, for a terminal."""
        record, mined = self.record, self.record.mined
        by = ", ".join(f"{name} {count:,}" for name, count in mined.by.items())
        drawn = (
            f"; {mined.short:,} lists were too short, and hold {mined.drawn:,} random documents"
            if mined.drawn
            else ""
        )
        unscored = f"; {record.unscored:,} without a score" if record.unscored else ""
        return (
            f"Lists    {record.candidates:,} candidates of {mined.queries:,} queries among "
            f"{mined.corpus:,} documents ({by}){drawn}\n"
            f"         scored by {record.ranker} ({record.precision}; {self.scale}), "
            f"{record.seconds} s{unscored}\n"
            f"         candidates: mean {record.score.mean:.3f}, sd {record.score.sd:.3f}; pairs: "
            f"mean {record.positive.mean:.3f}, sd {record.positive.sd:.3f}, and "
            f"{record.first:.1%} stand above their list{record.agreement()}"
        )


def pairs_of(collection: Collection) -> Pairs:
    """The training pairs, then the validation pairs."""
    rows = [np.arange(len(collection.judgements))[collection.rows(of)] for of in _LISTED]
    return Pairs(collection, np.concatenate(rows))


def corpus_of(collection: Collection) -> np.ndarray:
    """(N,) int64, ascending: the documents that candidates are mined from: all but those of
    held-out pairs.
    """
    held_out = np.concatenate(
        [collection.pairs("validation").documents, collection.pairs("test").documents]
    )
    other = np.setdiff1d(np.arange(len(collection.documents)), held_out)
    return np.union1d(other, collection.pairs("train").documents)


def _relevant(collection: Collection, queries: np.ndarray) -> list[np.ndarray]:
    """The documents that are relevant to each of `queries` (Q,), or to another one of the same
    text, in any split: also those of pairs that were taken out of the training because of a leak.
    """
    same = collection.first_of_text
    judged = same[collection.query_numbers]
    order = np.argsort(judged, kind="stable")
    first, last = (
        np.searchsorted(judged[order], same[queries], side) for side in ("left", "right")
    )
    documents = collection.document_numbers[order]
    return [documents[start:stop] for start, stop in zip(first, last, strict=True)]


def _given(collection: Collection, queries: np.ndarray, depth: int) -> np.ndarray:
    """(Q, depth) int64: the candidates that the data lists and nobody judged relevant, those with
    the highest given score first, then those without one in the order of the data; -1: no more.
    """
    lists = collection.lists(queries)
    result = np.full((len(queries), depth), -1, dtype=np.int64)
    for i, (start, stop) in enumerate(zip(lists.starts, lists.starts[1:], strict=False)):
        rows = np.arange(start, stop)[lists.grades[start:stop] <= 0]
        scores = np.nan_to_num(lists.scores[rows], nan=-np.inf)
        best = lists.documents[rows[np.argsort(-scores, kind="stable")]][:depth]
        result[i, : len(best)] = best
    return result


@dataclass(frozen=True)
class Sources:
    """What lists are mined and scored with.

    Attributes:
        recipe: `candidates` and its neighbours, `language`, `teacher_cache` and `seed` are read.
        folder: Of the run.
        collection: The queries and documents.
        scores: The teacher's.
        teacher: It scores the lists if there is no ranker.
        ranker: It does if there is one.
        miners: Bi-encoders by the name that the recipe gives them.
        place: Folder of the lists.
        texts: Folder of the miners' embeddings.
    """

    recipe: Recipe
    folder: RunFolder
    collection: Collection
    scores: Scores
    teacher: Teacher
    ranker: PairTeacher | None
    miners: Mapping[str, EmbeddingTeacher]
    place: Path
    texts: Path


_Miner = Callable[[np.ndarray, int], np.ndarray]
"""From numbers of queries (q,) and a depth to numbers of documents (q, k) int64, best first; -1: no
more.
"""


def _nearest(table: EmbeddingTable, corpus: np.ndarray, similarity: str) -> _Miner:
    documents = table.of_documents(corpus)

    def mine(queries: np.ndarray, depth: int) -> np.ndarray:
        places = search(table.of_queries(queries), documents, depth, similarity)[1]
        numbers: np.ndarray = corpus[places]
        return numbers

    return mine


def _by_words(collection: Collection, corpus: np.ndarray, language: str) -> _Miner:
    documents = collection.document_texts(corpus)
    index = BM25(documents, Words.of(documents, language))

    def mine(queries: np.ndarray, depth: int) -> np.ndarray:
        places = by_words(index, collection.query_texts(queries), depth)
        return np.where(places < 0, -1, corpus[places])

    return mine


def _miner(name: str, corpus: np.ndarray, sources: Sources) -> _Miner:
    """The miner `name` over the documents `corpus` (N,)."""
    collection, scores = sources.collection, sources.scores
    if name == GIVEN:
        return lambda queries, depth: _given(collection, queries, depth)
    if name == WORDS:
        return _by_words(collection, corpus, sources.recipe.data.language)
    if name == TEACHER:
        assert scores.embeddings is not None, "check_candidates refuses it"
        return _nearest(scores.embeddings, corpus, scores.scale.similarity)
    miner = sources.miners[name]
    table = embed_collection(collection, miner, sources.texts, sources.folder.cache)
    return _nearest(table, corpus, miner.scale.similarity)


def _named(lists: np.ndarray, of: list[np.ndarray]) -> int:
    """How many of the joined lists' documents a miner names."""
    return sum(int(np.isin(row, part).sum()) for row, part in zip(of, lists, strict=True))


def check_candidates(collection: Collection, teacher: Teacher, recipe: Recipe) -> None:
    """Raise InputError if a miner has nothing to mine with, or nothing to find, if no miner has
    ranks to begin at, or if no ranker is there to be measured. Called before the scoring.
    """
    lists = recipe.lists
    if not lists.candidates:
        return
    if "rerank_queries" in recipe.given and lists.ranker is None and teacher.embeds:
        raise InputError(
            f"--rerank_queries {lists.rerank_queries}: {teacher.name} embeds texts and scores the "
            "lists itself, so there is no ranker to measure; name a --ranker, or leave it out"
        )
    if TEACHER in lists.candidates and not teacher.embeds:
        raise InputError(
            f"--candidates {TEACHER}: {teacher.name} embeds no texts, so it finds no nearest "
            f"documents; name {WORDS} or a bi-encoder in its place"
        )
    if GIVEN in lists.candidates and not len(collection.candidates):
        raise InputError(
            f"--candidates {GIVEN}: {collection.source.name} lists no documents beside its "
            f"queries; name {TEACHER}, {WORDS} or a bi-encoder in its place"
        )
    mines_again = any(stage.mine_again for stage in recipe.further)
    if lists.candidates_from_rank > 1 and lists.candidates == [GIVEN] and not mines_again:
        raise InputError(
            f"--candidates_from_rank {lists.candidates_from_rank}: what the data lists has no "
            f"ranks of a miner, and {GIVEN} is the only one; name another miner, or leave it out"
        )
    if not (teacher.embeds or teacher.scores_pairs or lists.ranker):
        raise InputError(
            f"--candidates: {teacher.name} scores given pairs alone, and not those that are mined; "
            "name a --ranker, or set --candidates none"
        )
    corpus = corpus_of(collection)
    if len(corpus) < 2:
        raise InputError(
            f"--candidates: beside the held-out documents the data has {len(corpus)} document, so "
            "no query has another one; set --candidates none"
        )


def mine_lists(sources: Sources) -> tuple[MinedRecord, Mined]:
    """The list of each query, in the order of their numbers.

    It is kept in `mined.npz`. Several miners take turns. A list that is shorter than
    the hard negatives that a pair needs is filled up with random documents.
    """
    collection, recipe = sources.collection, sources.recipe
    options, pairs = recipe.lists, pairs_of(collection)
    arrays, skipped = sources.place / "mined.npz", options.candidates_from_rank - 1
    least = max(1, *(of.hard_negatives_per_pair for of in recipe.stages))

    def make(key: str) -> MinedRecord:
        began = time.perf_counter()
        queries = np.unique(pairs.queries)
        positives = _relevant(collection, queries)
        corpus, depth = corpus_of(collection), options.candidates_per_query
        miners = {name: _miner(name, corpus, sources) for name in options.candidates}
        by = dict.fromkeys(miners, 0)
        together: list[np.ndarray] = []
        not_candidates: list[np.ndarray] = []
        blocks = range(0, len(queries), _MINED)
        for start in tqdm(blocks, desc="Mining candidates", unit=" blocks", delay=3, leave=False):
            some = slice(start, start + _MINED)
            # what is no candidate is among what a miner finds
            most = depth + skipped * len(miners) + max(map(len, positives[some]))
            parts = {name: mine(queries[some], most) for name, mine in miners.items()}
            refused = positives[some]
            for name in miners.keys() - {GIVEN} if skipped else ():
                best = with_best(parts[name], positives[some], skipped)
                refused = [np.union1d(*both) for both in zip(refused, best, strict=True)]
            not_candidates += refused
            lists = joined(list(parts.values()), refused, depth)
            together += lists
            for name, part in parts.items():
                by[name] += _named(part, lists)
        mined = filled(together, not_candidates, corpus, least, recipe.seed)
        none = int((np.diff(mined.starts) == 0).sum())
        if none:
            or_skipped = ", or stand before --candidates_from_rank" if skipped else ""
            raise InputError(
                f"--candidates: {none:,} of {len(queries):,} queries have no candidate, because "
                f"all {len(corpus):,} documents are relevant to them{or_skipped}; set it to none"
            )
        with written_whole(arrays) as temporary:
            np.savez(temporary, starts=mined.starts, documents=mined.documents, drawn=mined.drawn)
        return MinedRecord(
            key=key,
            queries=len(queries),
            corpus=len(corpus),
            by=by,
            drawn=int(mined.drawn.sum()),
            short=sum(len(row) < least for row in together),
            seconds=round(time.perf_counter() - began, 1),
        )

    identities = [fingerprint(miner.identity) for miner in sources.miners.values()]
    inputs = [
        collection.key, options.candidates, options.candidates_per_query, least, recipe.seed,
        identities, sources.scores.key if TEACHER in options.candidates else "",
        recipe.data.language, *([skipped] if skipped else []),
    ]  # fmt: skip
    record = stage(sources.place / "mined.json", MinedRecord, inputs, make, [arrays])
    return record, _open_mined(arrays)


def _open_mined(path: Path) -> Mined:
    with np.load(path) as held:
        return Mined(held["starts"], held["documents"], held["drawn"])


def _scored(sources: Sources, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(n,) float32: the scores of pairs of numbers, by the ranker, else by the teacher."""
    if sources.ranker is None and sources.scores.embeddings is not None:
        return sources.scores.between(queries, documents)
    ranker = sources.ranker or cast(PairTeacher, sources.teacher)
    shards = shards_of(sources.folder, sources.recipe.teacher.teacher_cache, "pair")
    return score_pairs(sources.collection, queries, documents, ranker, shards).values


def score_lists(sources: Sources) -> ScoredLists:
    """Mine the lists of the queries, and score every candidate and every pair's own document. All
    processes share the work; it is kept in shards, as that of the teacher.

    Raises:
        InputError: As `check_candidates` and `score_pairs`; a query without a candidate; or a
            ranker that has no score at all.
    """
    mined_record, mined = mine_lists(sources)
    pairs = pairs_of(sources.collection)
    queries, of = np.unique(pairs.queries, return_inverse=True)
    ranker = sources.ranker or sources.teacher
    path, arrays = _files(sources.place)
    began = time.perf_counter()
    values: np.ndarray | None = None

    def make(key: str) -> ListsRecord:
        every_query = np.concatenate([np.repeat(queries, np.diff(mined.starts)), pairs.queries])
        every_document = np.concatenate([mined.documents, pairs.documents])
        nonlocal values
        values = _scored(sources, every_query, every_document)
        scores, own = np.split(values, [len(mined.documents)])
        if np.isnan(scores).all() or np.isnan(own).all():
            raise InputError(
                f"{ranker.name} has no score for any candidate or for any pair, so the lists say "
                "nothing; name another --ranker"
            )
        if PartialState().is_main_process:
            with written_whole(arrays) as temporary:
                np.save(temporary, values)
        every = np.ones(len(scores), dtype=bool)
        auc, _ = auc_of_lists(own, of, mined.starts, scores, every)
        refused = _judged_not_relevant(sources.collection, queries, mined)
        auc_judged, judged = auc_of_lists(own, of, mined.starts, scores, refused)
        lists = np.repeat(np.arange(len(queries)), np.diff(mined.starts))
        best = np.full(len(queries), -np.inf, dtype=np.float32)
        np.maximum.at(best, lists, np.nan_to_num(scores, nan=-np.inf))
        return ListsRecord(
            key=key,
            ranker=ranker.name,
            precision=ranker.precision,
            scale=ranker.scale.record(),
            mined=mined_record,
            candidates=len(scores),
            unscored=int(np.isnan(scores).sum()),
            seconds=round(time.perf_counter() - began, 1),
            score=ScoreStatistics.of(scores),
            positive=ScoreStatistics.of(own),
            first=float((own > best[of])[~np.isnan(own)].mean()),
            collection=sources.collection.key,
            auc=auc,
            auc_judged=auc_judged,
            judged=judged,
        )

    prompts, scale = dataclasses.asdict(ranker.prompts), ranker.scale.record()
    inputs = [mined_record.key, ranker.identity, prompts, scale, sources.scores.key]
    record = stage(path, ListsRecord, inputs, make, [arrays], together=True)
    return _lists(record, sources.collection, mined, np.load(arrays) if values is None else values)


def _judged_not_relevant(collection: Collection, queries: np.ndarray, mined: Mined) -> np.ndarray:
    """(m,) bool: which candidates of the lists of `queries` (Q,) the data judges not relevant."""
    given = collection.lists(queries)
    rows = np.arange(len(queries))
    refused = np.repeat(rows, np.diff(given.starts)) << 32 | given.documents
    candidates = np.repeat(rows, np.diff(mined.starts)) << 32 | mined.documents
    return np.isin(candidates, refused[given.grades == 0])


def _files(place: Path) -> tuple[Path, Path]:
    """The record of the scored lists, and their scores."""
    return place / "manifest.json", place / "scores.npy"


def _lists(
    record: ListsRecord, collection: Collection, mined: Mined, values: np.ndarray
) -> ScoredLists:
    queries, of = np.unique(pairs_of(collection).queries, return_inverse=True)
    scores, own = np.split(values, [len(mined.documents)])
    return ScoredLists(record, queries, mined, scores, own, of, len(collection.pairs("train")))


def open_lists(place: Path, collection: Collection) -> ScoredLists | None:
    """The lists that were scored in the folder `place`; None if it has none, or has them of other
    pairs.

    Raises:
        InputError: They are damaged or a part is gone, or a call was stopped while it made them
            again.
    """
    path, arrays = _files(place)
    if not path.is_file():
        return None
    record = read_result(path, ListsRecord)
    if record.collection != collection.key:
        return None
    mined = place / "mined.json"
    if not mined.is_file():
        raise InputError(
            f"{mined} is gone, but {path} belongs to it; remove {path.name}, too, and run the "
            "recipe again"
        )
    if read_result(mined, MinedRecord).key != record.mined.key:
        raise InputError(
            f"{mined} is of other lists than {path}, because a call was stopped between them; run "
            "the recipe again"
        )
    return _lists(record, collection, _open_mined(mined.with_suffix(".npz")), np.load(arrays))


def with_lists(collection: Collection, lists: ScoredLists) -> Collection:
    """The collection with mined lists in place of what the data lists beside the queries of its
    training and validation pairs: the pairs and the candidates, with the ranker's scores. What is
    judged not relevant keeps its grade. Test queries have no candidates.
    """
    pairs = pairs_of(collection)
    given = collection.lists(lists.queries)
    of_given = np.repeat(lists.queries, np.diff(given.starts))
    not_relevant = given.grades == 0
    mined = np.repeat(lists.queries, np.diff(lists.mined.starts))
    queries = np.concatenate([pairs.queries, mined, of_given[not_relevant]])
    documents = np.concatenate(
        [pairs.documents, lists.mined.documents, given.documents[not_relevant]]
    )
    unknown = np.full(int(not_relevant.sum()), np.nan, dtype=np.float32)
    scores = np.concatenate([lists.own, lists.scores, unknown])
    grades = np.concatenate(
        [
            np.array(pairs.column("grade"), dtype=np.int32),
            np.full(len(mined), -1, dtype=np.int32),
            np.zeros(len(unknown), dtype=np.int32),
        ]
    )
    judged = (of_given << 32 | given.documents)[not_relevant]
    grades[np.isin(queries << 32 | documents, judged) & (grades < 0)] = 0
    # A document stands once beside a query: with its score, where it has one.
    keys = queries << 32 | documents
    order = np.lexsort((np.isnan(scores), keys))
    first = order[np.concatenate([[True], np.diff(keys[order]) != 0])]
    table = pa.table(
        {
            "query": queries[first],
            "document": documents[first],
            "score": pa.array(scores[first], from_pandas=True),
            "grade": pa.array(grades[first], mask=grades[first] < 0),
        },
        schema=CANDIDATE_FEATURES.arrow_schema,
    )
    return dataclasses.replace(collection, candidates=Dataset(table))
