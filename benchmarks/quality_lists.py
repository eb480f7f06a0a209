"""Lists as a user of sentence-transformers makes them, for the arms of `rankers.py`: mined by its
`mine_hard_negatives`, with the scores of a ranker.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

from hf_distill.run.stage import fingerprint, stage
from hf_distill.teachers.ranker import load_ranker

if TYPE_CHECKING:
    from hf_distill.pipeline import Run
    from hf_distill.teachers.base import PairTeacher

NEGATIVES = 4
MARGIN = 0.05
"""A negative scores at least this part below the query's own document (NV-Retriever,
arXiv:2407.15831), for the bi-encoder that mines.
"""


@dataclass(frozen=True)
class PeerLists:
    """The lists of n training pairs.

    Attributes:
        key: The fingerprint of what they depend on.
        seconds: How long the mining took, with the bi-encoder's time.
        pairs: (n,), numbers of the training pairs. The others have too few negatives.
        negatives: (n, `NEGATIVES`), numbers of documents.
        scores: (n, 1 + `NEGATIVES`), the ranker's, of the pair's own document first.
    """

    key: str
    seconds: float
    pairs: tuple[int, ...]
    negatives: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float, ...], ...]

    @property
    def scored(self) -> int:
        """How many scores the ranker gave."""
        return sum(map(len, self.scores))


@dataclass(frozen=True)
class PeerMiner:
    """Mines the lists of the training pairs of a run, once.

    Attributes:
        ranker: As the recipe names it.
        out: Folder of the lists.
    """

    ranker: str
    out: Path

    def load(self, run: Run) -> PairTeacher:
        """The ranker, as a recipe would load it."""
        lists = dataclasses.replace(run.recipe.lists, ranker=self.ranker)
        ranker = load_ranker(dataclasses.replace(run.recipe, lists=lists))
        assert ranker is not None
        return ranker

    def lists(self, run: Run) -> PeerLists:
        """The lists, mined or read."""
        inputs = [run.collection.key, run.selection.key, self.ranker, NEGATIVES, MARGIN]
        path = self.out / f"{fingerprint(*inputs)}.json"
        return stage(path, PeerLists, inputs, lambda key: self._mine(run, key))

    def _mine(self, run: Run, key: str) -> PeerLists:
        pairs = run.collection.pairs("train").take(run.selection.kept)
        numbers = np.unique(pairs.documents)
        corpus = run.collection.document_texts(numbers)
        queries = run.collection.query_texts(pairs.queries)
        documents = run.collection.document_texts(pairs.documents)
        backbone: Any = run.teacher.backbone
        start = time.perf_counter()
        mined = mine_hard_negatives(
            Dataset.from_dict({"query": queries, "document": documents}),
            backbone,
            corpus=corpus,
            num_negatives=NEGATIVES,
            relative_margin=MARGIN,
            output_format="n-tuple",
            verbose=False,
        )
        seconds = time.perf_counter() - start
        place = {both: row for row, both in enumerate(zip(queries, documents, strict=True))}
        number = dict(zip(corpus, numbers.tolist(), strict=True))
        names = [f"negative_{i + 1}" for i in range(NEGATIVES)]
        rows = [place[row["query"], row["document"]] for row in mined]
        negatives = [[row[name] for name in names] for row in mined]
        asked = [
            (queries[row], text)
            for row, others in zip(rows, negatives, strict=True)
            for text in (documents[row], *others)
        ]
        scores = np.asarray(self.load(run).score(asked)).reshape(len(rows), 1 + NEGATIVES)
        return PeerLists(
            key=key,
            seconds=seconds,
            pairs=tuple(rows),
            negatives=tuple(tuple(number[text] for text in others) for others in negatives),
            scores=tuple(map(tuple, scores.astype(float).round(6).tolist())),
        )
