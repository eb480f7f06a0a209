"""What a teacher is: it embeds texts or scores pairs, on a scale that it declares.

A kind of teacher is a function of the recipe that returns a `Teacher`. To add one, write the
function and its class, and give it a line in `hf_distill.recipe.kinds.TEACHERS`; or name it in the
recipe as `package.module:name`.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import SimilarityFunction
from torch import Tensor

from hf_distill.compute.encode import Advance
from hf_distill.errors import InputError
from hf_distill.run.scratch import scratch

F = TypeVar("F", bound=Callable[..., Any])

TextKind = Literal["query", "document"]

JUDGE = "judge"
"""The `Scale.similarity` of grades from 0 to 3 as thirds. Documents that answer their query have 2
or 3.
"""

TOLERANCE = 1e-3
"""How far a score may lie outside its declared range by rounding; it is then clipped."""


@dataclass(frozen=True)
class Scale:
    """What a teacher's scores mean.

    Attributes:
        similarity: How two embeddings are compared, a key of `SCALES` (distances are negated, so
            that higher is nearer); or, without embeddings, where the scores come from:
            `cross-encoder`, `rerank endpoint ...`, `given`, `judge`, `weighted mean of quantiles`.
        activation: What was applied to the raw scores; None if nothing was.
        low, high: The lowest and the highest score that is possible.
    """

    similarity: str
    activation: str | None = None
    low: float = -1.0
    high: float = 1.0

    @property
    def is_bounded(self) -> bool:
        """Whether scores lie in [-1, 1] like cosines: then a cosine can be regressed on them."""
        return self.low >= -1 and self.high <= 1

    def check(self, scores: np.ndarray, teacher: str) -> np.ndarray:
        """`scores` (n,), clipped if they leave the range by no more than `TOLERANCE`. NaN, for a
        pair without a score, stays.

        Raises:
            InputError: A score lies outside the range.
        """
        outside = (scores < self.low - TOLERANCE) | (scores > self.high + TOLERANCE)
        if outside.any():
            raise InputError(
                f"{teacher}: {int(outside.sum())} of {len(scores)} scores lie outside the declared "
                f"range [{self.low:g}, {self.high:g}], e.g. {scores[outside.argmax()]:.4f}. For "
                "logits, set --teacher_activation sigmoid; for precomputed scores or a rerank "
                "endpoint's on another scale, declare it with --score_range LOW HIGH"
            )
        inside = scratch(scores.shape, np.result_type(scores, 0.0))  # of integers, floats
        np.clip(scores, self.low, self.high, out=inside)
        return inside

    def record(self) -> dict[str, Any]:
        """As JSON, which has no infinities: a bound that does not exist is null."""
        bounds = [bound if np.isfinite(bound) else None for bound in (self.low, self.high)]
        return {"similarity": self.similarity, "activation": self.activation, "range": bounds}

    @classmethod
    def read(cls, record: dict[str, Any]) -> Scale:
        """The scale of which `record` is the record."""
        low, high = record["range"]
        return cls(
            record["similarity"],
            record["activation"],
            -np.inf if low is None else low,
            np.inf if high is None else high,
        )

    def __str__(self) -> str:
        activation = f" through {self.activation}" if self.activation else ""
        has_bounds = np.isfinite([self.low, self.high]).all()
        bounds = f"in [{self.low:g}, {self.high:g}]" if has_bounds else "unbounded"
        return f"{self.similarity}{activation}, {bounds}"


SCALES = {
    "cosine": Scale("cosine"),
    "dot": Scale("dot", low=-np.inf, high=np.inf),
    "euclidean": Scale("euclidean", low=-np.inf, high=0.0),
    "manhattan": Scale("manhattan", low=-np.inf, high=0.0),
}
"""The scale of each similarity of embeddings."""


def declared_range(bounds: list[float] | None) -> tuple[float, float] | None:
    """The recipe's `score_range`, if there is one.

    Raises:
        InputError: It is not two numbers, the lower one first.
    """
    if bounds is None:
        return None
    if not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise InputError(
            f"--score_range {' '.join(map(str, bounds))}: give two numbers, the lower one first"
        )
    return bounds[0], bounds[1]


def similarity(name: str, left: Tensor, right: Tensor) -> Tensor:
    """Similarities (n, m) of float embeddings `left` (n, d) and `right` (m, d), by the similarity
    `name`, a key of `SCALES`. For `cosine` they are L2-normalised already, as teachers return them.
    """
    if name in ("cosine", "dot"):
        return left @ right.T
    result: Tensor = SimilarityFunction.to_similarity_fn(name)(left, right)
    return result


def pair_similarity(name: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Similarities (n,), float32, of row i of `left` and row i of `right`, both (n, d) floats, by
    the similarity `name`, a key of `SCALES`.
    """
    ours, theirs = (torch.from_numpy(np.asarray(x, dtype=np.float32)) for x in (left, right))
    scores: np.ndarray = SimilarityFunction.to_similarity_pairwise_fn(name)(ours, theirs).numpy()
    return scores


@dataclass(frozen=True)
class Prompts:
    """The text before each query and each document, for the teacher and its student."""

    query: str = ""
    document: str = ""

    def of(self, kind: TextKind) -> str:
        """The prompt of a kind of text."""
        return self.query if kind == "query" else self.document


class Teacher:
    """What every teacher says of itself. Subclass `EmbeddingTeacher` or `PairTeacher`.

    Nobody looks at a teacher's class: its attributes say what it can do.

    Attributes:
        name: Hub id, folder or file, for the cards.
        identity: Everything that its scores depend on, such as digests and settings, as JSON. Equal
            identities stand for equal scores.
        precision: `float32`, `bfloat16` or `float16`; `unknown` if it runs elsewhere.
        scale: What its scores mean.
        prompts: The text before each query and document.
        instruction: The model's own instruction, which a ranker reads with each pair. A student
            does not get it.
        embeds: It embeds texts (`embed`, `dimension`), and a pair's score is the similarity of its
            two embeddings.
        embeds_new_texts: It can embed any text, and not just those it was given embeddings of.
        scores_pairs: It scores (query, document) pairs (`score`).
        backbone: The model that a student can be cut from, if there is one.
        members: The teachers that it is a weighted mean of, with their weights. Scoring lets each
            of them score.
    """

    name: str
    identity: tuple[Any, ...]
    precision: str = "unknown"
    scale: Scale = SCALES["cosine"]
    prompts: Prompts = Prompts()
    instruction: str = ""
    embeds: bool = False
    embeds_new_texts: bool = False
    scores_pairs: bool = False
    backbone: SentenceTransformer | None = None
    members: tuple[tuple[Teacher, float], ...] = ()


class EmbeddingTeacher(Teacher, abc.ABC):
    """Embeds texts. A pair's score is the similarity `scale.similarity` of its two embeddings.

    Attributes:
        dimension: Dimensions of the embeddings.
        by_kind: A text with its prompt may have one embedding as a query and another as a document:
            the model has a route for each, or leaves the prompt out of its pooling.
    """

    dimension: int
    by_kind: bool = False
    embeds = True
    embeds_new_texts = True

    @abc.abstractmethod
    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """Embeddings of `texts`, which have their prompts already: (len(texts), dimension) float32,
        L2-normalised if `scale.similarity` is `cosine`.
        """

    def embed_as(
        self, kind: TextKind, texts: list[str], advance: Advance | None = None
    ) -> np.ndarray:
        """Embeddings of `texts` as queries or as documents, which have no prompts yet; otherwise as
        `embed`. A teacher with `by_kind` overrides it.
        """
        return self.embed([self.prompts.of(kind) + text for text in texts], advance)

    def checked(self, values: np.ndarray, texts: list[str], hint: str) -> np.ndarray:
        """`values` (len(texts), d) as `embed` returns them: L2-normalised, in float32, if the
        similarity is `cosine`.

        Raises:
            InputError: One of them is NaN or infinite: how many, for which text, and `hint`.
        """
        broken = ~np.isfinite(values).all(axis=1)
        if broken.any():
            raise InputError(
                f"the teacher {self.name} returns NaN or infinite embeddings for "
                f"{int(broken.sum())} of {len(texts)} texts, e.g. for "
                f"{texts[int(broken.argmax())][:80]!r}. {hint}"
            )
        if self.scale.similarity != "cosine":
            return values
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        normalised: np.ndarray = (values / np.maximum(lengths, 1e-12)).astype(np.float32)
        return normalised


class PairTeacher(Teacher, abc.ABC):
    """Scores pairs and embeds nothing.

    Attributes:
        shard_pairs: Pairs in a shard, at least. Few, if each of them takes long or costs money: a
            kill loses the shard that is in work. None: as many as are usual.
        by_query: It works on the documents of a query together. Its pairs come in the order of
            their queries, and not the longest first.
    """

    scores_pairs = True
    shard_pairs: int | None = None
    by_query: bool = False

    @abc.abstractmethod
    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        """Scores (len(pairs),) float32 of (query, document) pairs, NaN for a pair without one. The
        texts have no prompts yet.
        """

    def working(
        self, lengths: np.ndarray, queries: np.ndarray
    ) -> contextlib.AbstractContextManager[None]:
        """Around all calls of `score` for some pairs, if there are any that no shard holds yet: a
        place to say what they will take, and what they took. Each process enters it.

        Args:
            lengths: Characters of each pair (n,), over all processes.
            queries: The number of each pair's query (n,).
        """
        return contextlib.nullcontext()

    def checked(self, scores: np.ndarray, pairs: list[tuple[str, str]], hint: str) -> np.ndarray:
        """`scores` (len(pairs),) as they are.

        Raises:
            InputError: One of them is NaN or infinite: how many, for which pair, and `hint`.
        """
        broken = ~np.isfinite(scores)
        if broken.any():
            query, document = pairs[int(broken.argmax())]
            raise InputError(
                f"the teacher {self.name} returns NaN or infinity for {int(broken.sum())} of "
                f"{len(pairs)} pairs, e.g. for {query[:60]!r} and {document[:60]!r}. {hint}"
            )
        return scores


def reads(*options: str) -> Callable[[F], F]:
    """Say which options of `TeacherArguments` a kind of teacher reads. Any other one that is set is
    then refused, and not ignored. A kind that says nothing reads them all.
    """

    def declare(kind: F) -> F:
        kind.reads = frozenset(options)  # type: ignore[attr-defined]  # functions take attributes
        return kind

    return declare
