"""Where the teacher ranks a pair's own document for its query among a pool of others.

Rank consistency is the filter of E5, which keeps a pair if its passage is among the teacher's top 2
of a million (Wang et al. 2022, arXiv:2212.03533). NV-Retriever mines its hard negatives with a
positive-aware margin (Moreira et al. 2024, arXiv:2407.15831).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad
from tqdm.auto import tqdm

from hf_distill.compute.device import exact_products, ranking_device
from hf_distill.data.collection import Collection
from hf_distill.data.keys import first_places, numbered, ordered_by, taken
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.scratch import scratch
from hf_distill.run.stage import stage, written_whole
from hf_distill.scoring.embeddings import EmbeddingTable
from hf_distill.scoring.scores import Scores
from hf_distill.teachers.base import similarity

POOL_SIZE = 100_000
LEAST_NEGATIVES = 4
"""Hard negatives that are kept for each pair, at least: the data set shows them."""
_QUERY_BLOCK, _DOCUMENT_BLOCK, _GROUP = 512, 8192, 64
"""Queries and documents whose similarities are computed at once; and documents of which the best is
found first, because most groups hold none that matters: at most 255.
"""
_CPU_BLOCK = 4096
"""On a CPU, the documents at most: their similarities stay in its cache."""
_GATHERED = 1 << 14
"""Groups that are copied at once, on a CPU."""
_ARRAYS = ("rank", "margin", "negatives", "negative_scores")


@dataclass(frozen=True)
class RankingRecord:
    """`soft_labels/ranking.json`.

    Attributes:
        key: The fingerprint of what the ranking depends on.
        pool: Documents in the pool.
        k: Hard negatives that are kept for each pair.
    """

    key: str
    pool: int
    k: int


@dataclass(frozen=True)
class Ranking:
    """For each of n training pairs, in order.

    Attributes:
        key: The fingerprint of what the ranking depends on.
        rank: (n,) int32, from 1: one more than the number of documents of the pool that the teacher
            scores above the pair's own. Other documents of the same query do not count.
        margin: (n,) float32: score of the pair's document minus that of the best other one; NaN if
            the pool has no other.
        negatives: (n, k) int64: numbers of the best other documents, best first; -1: none.
        negative_scores: (n, k) float32: their scores; NaN: none.
        pool: Documents in the pool.
        mined: Whether the pool of each query is the list that was mined for it.
    """

    key: str
    rank: np.ndarray
    margin: np.ndarray
    negatives: np.ndarray
    negative_scores: np.ndarray
    pool: int
    mined: bool = False


@dataclass(frozen=True)
class RankedPairs:
    """Pairs to rank: numbers of their queries and documents (n,) int64, and their scores (n,)."""

    queries: np.ndarray
    documents: np.ndarray
    scores: np.ndarray


def document_pool(documents: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Each of `documents` (n,) once, in order of first appearance: (m,). If there are more than
    `size`, a seeded sample of them.
    """
    once, which = numbered(documents)
    first = first_places(which, len(once))
    first.sort()
    if len(first) > size:
        drawn = np.random.default_rng(seed).choice(len(first), size, replace=False)
        first = np.sort(first[drawn])
    pool: np.ndarray = documents[first]
    return pool


class _Pool:
    """The pool's embeddings on the device, and the search in them."""

    def __init__(self, documents: np.ndarray, table: EmbeddingTable, measure: str) -> None:
        self.device = ranking_device()
        self.measure = measure
        self.rows = torch.from_numpy(table.of_documents(documents)).to(self.device)
        self.place = scratch(len(table.documents), np.int32)
        self.place[:] = -1
        self.place[documents] = np.arange(len(documents))

    def search(
        self, queries: np.ndarray, own: RankedPairs, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rank the pool for some queries, by exact search in blocks.

        Args:
            queries: Embeddings (q, d).
            own: All p pairs of these queries; they refer to a query by its place in `queries`.
            k: How many of the best other documents to keep.

        Returns:
            How many other documents are above each pair's own (p,); for each query the scores
            (q, k) and the places in the pool (q, k) of the best others, NaN and -1 where there is
            none.
        """
        left = torch.from_numpy(queries).to(self.device).float()
        scores = torch.from_numpy(own.scores).to(self.device).float()
        query = torch.from_numpy(own.queries).to(self.device)
        places = torch.from_numpy(self.place[own.documents]).to(self.device).long()
        above = torch.zeros(len(scores), dtype=torch.int64, device=self.device)
        best = torch.full((len(left), k), -torch.inf, device=self.device)
        best_places = torch.full((len(left), k), -1, dtype=torch.int64, device=self.device)
        size = min(_DOCUMENT_BLOCK, _CPU_BLOCK) if self.device == "cpu" else _DOCUMENT_BLOCK
        for first in range(0, len(self.rows), size):
            block = self.rows[first : first + size].float()
            tile = similarity(self.measure, left, block)
            _mask_own(tile, query, places - first)
            if rest := -len(block) % _GROUP:
                tile = pad(tile, (0, rest), value=-torch.inf)
            groups = tile.view(len(left), -1, _GROUP)
            highest = groups.amax(dim=2)
            rows = torch.arange(len(left), device=self.device)
            if self.device == "cpu":
                _add_above(above, groups, highest, query, scores)
                rows = rows[highest.amax(dim=1) > best[:, -1]]
            else:  # it would wait to hear which groups and rows matter
                for start in range(0, len(query), _QUERY_BLOCK):
                    some = slice(start, start + _QUERY_BLOCK)
                    above[some] += (tile[query[some]] > scores[some, None]).sum(dim=1)
            top, at = _best_of(groups, highest, rows, k)
            best[rows], chosen = torch.cat([best[rows], top], dim=1).topk(k, dim=1)
            best_places[rows] = torch.cat([best_places[rows], at + first], dim=1).gather(1, chosen)
        missing = best.isneginf()
        best, best_places = (
            best.masked_fill(missing, torch.nan),
            best_places.masked_fill(missing, -1),
        )
        return above.cpu().numpy(), best.cpu().numpy(), best_places.cpu().numpy()


def _mask_own(tile: torch.Tensor, query: torch.Tensor, place: torch.Tensor) -> None:
    """Set the pairs' own documents to -inf.

    Args:
        tile: (q, n) similarities, changed in place.
        query: (p,) int64, the query of each pair.
        place: (p,) int64, the column of its document. One outside the tile is ignored, without a
            look at where it is: an accelerator would wait for that.
    """
    width = tile.shape[1]
    value = torch.where((place >= 0) & (place < width), -torch.inf, torch.inf)
    cells = query * width + place.clamp(0, width - 1)
    tile.view(-1).scatter_reduce_(0, cells, value, "amin")


def _add_above(
    above: torch.Tensor,
    groups: torch.Tensor,
    highest: torch.Tensor,
    query: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """Add to `above` (p,) how many of a query's similarities are above a pair's own, on a CPU: only
    groups that hold one are looked at.

    Args:
        above: int64, changed in place.
        groups: (q, g, n) similarities.
        highest: (q, g) of each group.
        query: (p,) int64, the query of each pair.
        scores: (p,) of each pair.
    """
    pair, group = (highest[query] > scores[:, None]).nonzero(as_tuple=True)
    for start in range(0, len(pair), _GATHERED):
        pairs, some = pair[start : start + _GATHERED], group[start : start + _GATHERED]
        higher = groups[query[pairs], some] > scores[pairs, None]
        count = higher.view(torch.uint8).sum(dim=1, dtype=torch.uint8)  # `_GROUP` at most
        above.index_add_(0, pairs, count.long())


def _best_of(
    groups: torch.Tensor, highest: torch.Tensor, rows: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` highest of `groups` (q, g, n) for each of the queries `rows` (r,), and their places,
    both (r, <= k). They are in the k groups with the `highest` (q, g).
    """
    _, chosen = highest[rows].topk(min(k, highest.shape[1]), dim=1)
    size = groups.shape[2]
    inside = groups[rows[:, None], chosen].flatten(1)
    top, at = inside.topk(min(k, inside.shape[1]), dim=1)
    return top, chosen.gather(1, at // size) * size + at % size


def rank_pairs(
    pairs: RankedPairs,
    table: EmbeddingTable,
    measure: str,
    documents: np.ndarray,
    k: int,
    key: str,
) -> Ranking:
    """Rank the pairs' documents in a pool.

    Args:
        pairs: The n pairs.
        table: The teacher's embeddings.
        measure: The similarity that the teacher compares them with.
        documents: The pool: numbers of unique documents (m,).
        k: How many of the best other documents to keep.
        key: The key of the result.
    """
    count = len(pairs.queries)
    rank, margin = scratch(count, np.int32), scratch(count, np.float32)
    negatives, negative_scores = scratch((count, k), np.int64), scratch((count, k), np.float32)
    pool = _Pool(documents, table, measure)
    # Each query searches once, however many documents it has. Queries come in the order of their
    # embeddings, and the pairs of one stand together.
    rows, query = numbered(taken(table.queries, pairs.queries))
    order = ordered_by(query)
    ascending = taken(query, order)
    with tqdm(total=count, desc="Ranking in the pool", unit=" pairs", delay=3) as bar:
        for start in range(0, len(rows), _QUERY_BLOCK):
            stop = min(start + _QUERY_BLOCK, len(rows))
            here = order[slice(*np.searchsorted(ascending, (start, stop)))]
            places_of_queries = query[here].astype(np.int64) - start
            own = RankedPairs(places_of_queries, pairs.documents[here], pairs.scores[here])
            with exact_products():
                above, best, places = pool.search(table.vectors[rows[start:stop]], own, k)
            rank[here] = above + 1
            margin[here] = own.scores - best[own.queries, 0]
            negatives[here] = np.where(places < 0, -1, documents[places])[own.queries]
            negative_scores[here] = best[own.queries]
            bar.update(len(here))
    return Ranking(key, rank, margin, negatives, negative_scores, len(documents))


def rank_in_pool(
    collection: Collection,
    scores: Scores,
    recipe: Recipe,
    folder: RunFolder,
    documents: np.ndarray | None = None,
) -> Ranking | None:
    """Rank every training pair's document in a pool of the training pairs' documents.

    Args:
        collection: The pairs.
        scores: The teacher's scores and embeddings of them.
        recipe: `hard_negatives_per_pair` and `seed` are read.
        folder: The run's folder.
        documents: (m,) int64, numbers of the documents that the pool is drawn from, which the key
            of the scores stands for; None: those of the training pairs.

    Returns:
        The ranking; None if the teacher embeds no texts.
    """
    table = scores.embeddings
    if table is None:
        return None
    # One more than a pair needs: the best one can become its positive.
    k = max(LEAST_NEGATIVES, *(1 + stage.hard_negatives_per_pair for stage in recipe.stages))
    path = folder.soft_labels / "ranking.json"
    arrays = {name: folder.soft_labels / f"ranking_{name}.npy" for name in _ARRAYS}

    def make(key: str) -> RankingRecord:
        train = collection.pairs("train")
        pairs = RankedPairs(train.queries, train.documents, scores.of(train.rows))
        own = train.documents if documents is None else documents
        pool = document_pool(own, POOL_SIZE, recipe.seed)
        ranking = rank_pairs(pairs, table, scores.scale.similarity, pool, k, key)
        for name, array_path in arrays.items():
            with written_whole(array_path) as temporary:
                np.save(temporary, getattr(ranking, name))
        return RankingRecord(key, ranking.pool, k)

    inputs = (scores.key, POOL_SIZE, k, recipe.seed)
    record = stage(path, RankingRecord, inputs, make, [*arrays.values()])
    mapped = {name: np.load(array_path, mmap_mode="r") for name, array_path in arrays.items()}
    return Ranking(record.key, **mapped, pool=record.pool)
