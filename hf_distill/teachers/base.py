"""What scoring needs of a teacher: texts it embeds, or pairs it scores, on a scale that it
declares.
"""

from __future__ import annotations

import abc
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import SimilarityFunction
from torch import Tensor

from hf_distill.compute.encode import Advance
from hf_distill.errors import InputError

TextKind = Literal["query", "document"]

TOLERANCE = 1e-3
"""How far a score may lie outside its declared range by rounding; it is then clipped."""


@dataclass(frozen=True)
class Scale:
    """What a teacher's scores mean.

    Attributes:
        similarity: `cosine`, `dot`, `euclidean` or `manhattan` (the last two negated: higher is
            nearer), `cross-encoder`, `given`, or how several were combined.
        activation: What was applied to the raw output of a cross-encoder, else None.
        low, high: The least and the greatest score there can be.
    """

    similarity: str
    activation: str | None = None
    low: float = -1.0
    high: float = 1.0

    @property
    def is_bounded(self) -> bool:
        """Whether the scores lie within [-1, 1], so that a cosine can be regressed on them."""
        return self.low >= -1 and self.high <= 1

    def check(self, scores: np.ndarray, teacher: str) -> np.ndarray:
        """`scores` (n,), clipped to the range where only rounding took them out of it. NaN, for a
        pair not scored, stays.

        Raises:
            InputError: A score lies outside the range.
        """
        if ((scores < self.low - TOLERANCE) | (scores > self.high + TOLERANCE)).any():
            outside = np.flatnonzero(
                (scores < self.low - TOLERANCE) | (scores > self.high + TOLERANCE)
            )
            raise InputError(
                f"{teacher}: {len(outside)} of {len(scores)} scores lie outside the declared range [{self.low:g}, {self.high:g}], e.g. "
                f"{scores[outside[0]]:.4f}. If these are a cross-encoder's logits, use --teacher_activation sigmoid; if they are on "
                "another scale, declare it with --score_range LOW HIGH"
            )
        return np.asarray(np.clip(scores, self.low, self.high))

    def record(self) -> dict[str, Any]:
        """For a manifest: JSON knows no infinities, so a missing bound is null."""
        bounds = [bound if np.isfinite(bound) else None for bound in (self.low, self.high)]
        return {"similarity": self.similarity, "activation": self.activation, "range": bounds}

    @classmethod
    def read(cls, record: dict[str, Any]) -> Scale:
        """The scale that `record` wrote."""
        low, high = record["range"]
        return cls(
            record["similarity"],
            record["activation"],
            -np.inf if low is None else low,
            np.inf if high is None else high,
        )

    def key(self) -> dict[str, Any]:
        """For a fingerprint."""
        return asdict(self)

    def __str__(self) -> str:
        through = f" through {self.activation}" if self.activation else ""
        bounds = (
            f"in [{self.low:g}, {self.high:g}]"
            if np.isfinite([self.low, self.high]).all()
            else "unbounded"
        )
        return f"{self.similarity}{through}, {bounds}"


SCALES = {
    "cosine": Scale("cosine"),
    "dot": Scale("dot", low=-np.inf, high=np.inf),
    "euclidean": Scale("euclidean", low=-np.inf, high=0.0),
    "manhattan": Scale("manhattan", low=-np.inf, high=0.0),
}
"""The scale of each similarity of embeddings."""


def similarity(measure: str, left: Tensor, right: Tensor) -> Tensor:
    """Similarities (n, m) of float embeddings `left` (n, d) and `right` (m, d); `measure` is a key
    of `SCALES`.

    For `cosine` the embeddings are L2-normalised already, as the teachers return them.
    """
    if measure in ("cosine", "dot"):
        return left @ right.T
    result: Tensor = SimilarityFunction.to_similarity_fn(measure)(left, right)
    return result


def pair_similarity(measure: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Similarities (n,), float32, of row i of `left` and row i of `right`, both (n, d) of any float
    type.
    """
    one, other = (
        torch.from_numpy(np.asarray(values, dtype=np.float32)) for values in (left, right)
    )
    function = SimilarityFunction.to_similarity_pairwise_fn(
        "cosine" if measure == "cosine" else measure
    )
    scores: np.ndarray = function(one, other).numpy()
    return scores


@dataclass(frozen=True)
class Prompts:
    """What stands before each query and each document, for the teacher and its student."""

    query: str = ""
    document: str = ""

    def of(self, kind: TextKind) -> str:
        """The prompt of a kind of text."""
        return self.query if kind == "query" else self.document


class Teacher:
    """What every teacher says of itself. Nobody asks for its class: what it can do stands here.

    Subclass `EmbeddingTeacher` or `PairTeacher`.

    Attributes:
        name: Hub id, folder or file name, for the cards.
        identity: Everything that its scores depend on: digests, settings. JSON can hold it.
        precision: float32, bfloat16, float16, or `unknown` where it runs elsewhere.
        scale: What its scores mean.
        prompts: What stands before the texts.
        embeds: It embeds texts (`embed`, `dimension`); a pair's score is the similarity of its two
            embeddings.
        embeds_new_texts: It embeds any text, and not only those that it was given.
        scores_pairs: It scores (query, document) pairs (`score`).
        backbone: A model that a student can be cut from; None if there is none.
        members: Teachers that it is a weighted mean of, and their weights; scoring lets each score.
    """

    name: str
    identity: tuple[Any, ...]
    precision: str = "unknown"
    scale: Scale = SCALES["cosine"]
    prompts: Prompts = Prompts()
    embeds: bool = False
    embeds_new_texts: bool = False
    scores_pairs: bool = False
    backbone: SentenceTransformer | None = None
    members: tuple[tuple[Teacher, float], ...] = ()


class EmbeddingTeacher(Teacher, abc.ABC):
    """Embeds texts; a pair's score is the similarity `scale.similarity` of its two embeddings.

    Attributes:
        dimension: Dimensions of the embeddings.
    """

    dimension: int
    embeds = True
    embeds_new_texts = True

    @abc.abstractmethod
    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """Embeddings of `texts`, which carry their prompts already: (len(texts), dimension)
        float32, L2-normalised if `scale.similarity` is `cosine`.
        """


class PairTeacher(Teacher, abc.ABC):
    """Scores pairs and embeds nothing."""

    scores_pairs = True

    @abc.abstractmethod
    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        """Scores (len(pairs),) float32 of (query, document) pairs; NaN where it has none."""
