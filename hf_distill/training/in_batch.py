"""What the terms of the objective read of a batch. It is built here and nowhere else, in the same
way with one process and with several.

A batch is B pairs on each process. Their queries are compared with N documents: those of the pairs
of all processes, in order of rank, then the hard negatives of each of these pairs in turn. A batch
of texts alone has no pairs: B is 0, and the matrices are empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.teachers.base import similarity

Scores = TypeVar("Scores", Tensor, np.ndarray)


@dataclass(frozen=True, kw_only=True)
class TeacherView:
    """The teacher's scores of B rows (queries, or documents) against N columns.

    Attributes:
        teacher: (B, N) float32, the teacher's scores; NaN where it has not scored the cell.
        positives: (B,) int64, the column of each row's own document.
        ignore: (B, N) bool, cells that are not the positive and do not count as negatives either.
        weight: (B,) float32, how much each row counts in the terms over these matrices; None: all
            the same.
        listed: (B, 1 + k) int64, the columns of each row's list: its own document, then its hard
            negatives. None without these.
        ranker: (B, 1 + k) float32, the ranker's scores of the list, the teacher's if there is no
            ranker; NaN where there is none, or where the list repeats a document.
    """

    teacher: Tensor
    positives: Tensor
    ignore: Tensor
    weight: Tensor | None = None
    listed: Tensor | None = None
    ranker: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Matrices(TeacherView):
    """The same with the student's cosines: `student` (B, N) float32."""

    student: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(matrix.shape) for matrix in (self.student, self.teacher, self.ignore)]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"the student's matrix is {shapes[0]}, the teacher's {shapes[1]}, and the ignored "
                f"cells are {shapes[2]}"
            )


@dataclass(frozen=True, kw_only=True)
class InBatch(Matrices):
    """All that a term of the objective can read: queries against documents, and every text of this
    process.

    Attributes:
        texts: (M, d) float32, student embeddings: of the B queries, the B documents, the hard
            negatives of each pair in turn, or of texts alone (then B is 0); and the texts of the
            pool beside each pair or text in turn.
        targets: (M, d) what they are aligned to; None if the rows have no teacher embeddings.
        text_weight: (M,) float32, the weight of the pair that each text belongs to; None: all the
            same.
        reverse: Documents against the queries of all processes; None unless `contrastive_symmetric`
            is set.
    """

    texts: Tensor
    targets: Tensor | None = None
    text_weight: Tensor | None = None
    reverse: Matrices | None = None


@dataclass(frozen=True)
class Sides:
    """What belongs to the texts of B pairs with k hard negatives each. The collator makes it; the
    embeddings are the teacher's, of any float type.

    Attributes:
        teacher_score: (B,) float32.
        query_key, document_key: (B,) int64; equal texts have equal keys.
        weight: (B,) float32, how much each pair counts in the objective.
        weight_ranking: (B,) float32, the same in the terms that compare queries with documents, in
            place of `weight`. Then `weight` is that of the alignment of its texts.
        old_document_key, old_query_key: (B,) int64, a text that is no negative of each pair: the
            document that it had before it was relabelled, else its own. The first belongs to its
            query; with queries and documents exchanged, the second to its document.
        negative_key, negative_score: (B, k) int64 and float32.
        list_score: (B, 1 + k) float32, the ranker's of the document and of the hard negatives.
        query_embedding, document_embedding, negative_embedding: (B, D), (B, D) and (B, k, D).
    """

    teacher_score: Tensor
    query_key: Tensor
    document_key: Tensor
    weight: Tensor | None = None
    weight_ranking: Tensor | None = None
    old_document_key: Tensor | None = None
    old_query_key: Tensor | None = None
    negative_key: Tensor | None = None
    negative_score: Tensor | None = None
    list_score: Tensor | None = None
    query_embedding: Tensor | None = None
    document_embedding: Tensor | None = None
    negative_embedding: Tensor | None = None

    @classmethod
    def none(cls) -> Sides:
        """Those of no pairs."""
        keys = torch.empty(0, dtype=torch.int64)
        return cls(teacher_score=torch.empty(0), query_key=keys, document_key=keys)

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Sides:
        """The side columns among the entries of a batch."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: batch[name] for name in names if name in batch})

    def columns(self) -> dict[str, Tensor]:
        """The columns that exist, by name: entries of a batch."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def gathered(self) -> Sides:
        """The columns of all processes, in order of rank."""
        return Sides.of({name: gather(value) for name, value in self.columns().items()})

    def reversed(self) -> Sides:
        """Queries and documents exchanged. Hard negatives have no query and are left out."""
        return Sides(
            teacher_score=self.teacher_score,
            query_key=self.document_key,
            document_key=self.query_key,
            weight=self.weight,
            weight_ranking=self.weight_ranking,
            old_query_key=self.old_document_key,
            query_embedding=self.document_embedding,
            document_embedding=self.query_embedding,
        )

    @property
    def every_document(self) -> Tensor | None:
        """(B + B k, D) the teacher's embeddings of the documents, then of the hard negatives of
        each pair in turn; None if there are none.
        """
        if self.document_embedding is None or self.negative_embedding is None:
            return self.document_embedding
        return torch.cat([self.document_embedding, self.negative_embedding.flatten(0, 1)])

    @property
    def negatives_each(self) -> int:
        """k, hard negatives of each pair."""
        return 0 if self.negative_key is None else self.negative_key.shape[1]


class _Gather(torch.autograd.Function):
    """`gather`. A tensor's gradient is the sum of what every process finds for it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        every = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(every)
        return every.chunk(dist.get_world_size())[dist.get_rank()]


def gather(tensor: Tensor) -> Tensor:
    """`tensor` (B, ...) of every process, in order of rank. If it carries a gradient, each process
    gets its share of it.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1) or not len(tensor):
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]  # untyped
    return gathered


def truncate(embeddings: Tensor, dimension: int) -> Tensor:
    """The first `dimension` dimensions of embeddings (M, d), scaled to unit length again, as a
    Matryoshka student is used.
    """
    if dimension == embeddings.shape[1]:
        return embeddings
    return F.normalize(embeddings[:, :dimension], dim=1)


def cut_below(own: Scores, part: float) -> Scores:
    """The score that lies 1 - `part` of its size below each score of `own`: also below it where
    scores are negative, as logits are.
    """
    below: Scores = own - (1 - part) * abs(own)
    return below


def _listed(rows: Sides, columns: Tensor, teacher: Tensor) -> Tensor:
    """The scores (B, 1 + k) of each row's list, whose columns of the teacher's matrix are given."""
    scores = teacher.gather(1, columns) if rows.list_score is None else rows.list_score.float()
    assert rows.negative_key is not None
    keys = torch.cat([rows.document_key[:, None], rows.negative_key], dim=1)
    repeated = (keys[:, :, None] == keys[:, None, :]).tril(diagonal=-1).any(dim=2)
    return scores.masked_fill(repeated, torch.nan)


def teacher_view(
    rows: Sides, columns: Sides, offset: int, measure: str, config: DistillationConfig
) -> TeacherView:
    """The teacher's matrix, and which of its cells are negatives.

    Off the diagonal the teacher's score is the similarity of its two embeddings. A teacher without
    embeddings leaves NaN there. A cell does not count as a negative if

    - its document has the text of the row's own document, or
    - its document belongs to a pair whose query has the row's text (it answers this one, too), or
    - its document is the one that the row's pair had before it was relabelled, or
    - the teacher scores it above the row's own document minus `false_negative_margin`: it is
      probably an answer, too (after NV-Retriever, arXiv:2407.15831). Its score is still used.
    - it is in the row's list, and the ranker scores it above `positive_cut` of the row's own
      document, for the same reason.

    Args:
        rows: This process's B pairs.
        columns: The pairs of all processes, in order of rank.
        offset: Where this process's pairs begin among the columns.
        measure: The teacher's similarity, a key of `hf_distill.teachers.base.SCALES`.
        config: Its `false_negative_margin` and `positive_cut` are read.
    """
    pairs, each = len(columns.document_key), columns.negatives_each
    own = torch.arange(len(rows.query_key), device=rows.query_key.device)
    positives = own + offset
    keys, documents = columns.document_key, columns.every_document
    if columns.negative_key is not None:
        keys = torch.cat([keys, columns.negative_key.flatten()])

    if rows.query_embedding is None or documents is None:
        teacher = torch.full((len(own), len(keys)), torch.nan, device=own.device)
    else:
        teacher = similarity(measure, rows.query_embedding.float(), documents.float())
    teacher[own, positives] = rows.teacher_score.float()
    listed = ranker = None
    if each:
        first = pairs + positives[:, None] * each
        of_own = first + torch.arange(each, device=own.device)
        listed = torch.cat([positives[:, None], of_own], dim=1)
        if rows.negative_score is not None:
            teacher[own[:, None], of_own] = rows.negative_score.float()
        ranker = _listed(rows, listed, teacher)

    ignore = rows.document_key[:, None] == keys
    ignore[:, :pairs] |= rows.query_key[:, None] == columns.query_key
    if rows.old_document_key is not None:
        ignore |= rows.old_document_key[:, None] == keys
    if columns.old_query_key is not None:
        ignore[:, :pairs] |= rows.query_key[:, None] == columns.old_query_key
    if listed is not None and rows.list_score is not None and config.positive_cut is not None:
        above = rows.list_score > cut_below(rows.list_score[:, :1], config.positive_cut)
        ignore.scatter_(1, listed, ignore.gather(1, listed) | above)  # False where it is unknown
    if config.false_negative_margin is not None:
        near = teacher.gather(1, positives[:, None]) - config.false_negative_margin
        ignore |= teacher > near  # False where either is unknown
    ignore[own, positives] = False
    return TeacherView(
        teacher=teacher,
        positives=positives,
        ignore=ignore,
        weight=rows.weight if rows.weight_ranking is None else rows.weight_ranking,
        listed=listed,
        ranker=ranker,
    )


def in_batches(
    texts: Tensor,
    batch: Mapping[str, Tensor],
    components: Tensor | None,
    measure: str,
    config: DistillationConfig,
) -> list[InBatch]:
    """What the terms read, once for each dimension that the objective is computed at: those of
    `matryoshka_dims`, and the full one.

    Everything except the student's matrices and the cut texts is computed once.

    Args:
        texts: (M, d) student embeddings of unit length, in the order of `InBatch.texts`.
        batch: `Sides`; `text_embedding` (n, D) if there are texts alone; and `pool_embedding`
            (B, a, D) if there is a pool.
        components: (d, D) orthonormal rows: a text's target is its teacher embedding in these
            coordinates. None: the teacher embedding itself.
        measure: The teacher's similarity.
        config: The objective. With `student_space: teacher`, the queries are compared with the
            teacher's embeddings of the documents, which do not change (in both directions, if the
            contrast is symmetric); the student's are only aligned.

    Raises:
        InputError: The teacher's space is meant, and the rows hold no embeddings of documents.
    """
    rows = Sides.of(batch)
    columns = rows.gathered()
    pairs, each = len(rows.query_key), rows.negatives_each
    offset = pairs * dist.get_rank() if len(columns.query_key) > pairs else 0
    view = teacher_view(rows, columns, offset, measure, config)

    queries, documents, negatives, _ = texts.tensor_split([pairs, 2 * pairs, (2 + each) * pairs])
    if config.student_space == "teacher":
        documents, every_document = _of_teacher(rows), _of_teacher(columns)
        documents = documents[:pairs]
    else:
        # Column by column, then together: the documents of all ranks come before all negatives.
        every_document = gather(documents)
        if each:
            every_document = torch.cat([every_document, gather(negatives)])
    every_query, other_view = None, None
    if config.contrastive_symmetric:
        every_query = gather(queries)
        other_view = teacher_view(rows.reversed(), columns.reversed(), offset, measure, config)
    targets = _targets(rows, batch, components)
    text_weight = None
    if rows.weight is not None:
        further = len(texts) // pairs - 2 - each
        text_weight = torch.cat(
            [rows.weight.repeat(2)]
            + [rows.weight.repeat_interleave(number) for number in (each, further)]
        )

    def cut_to(dimension: int) -> InBatch:
        def cosines(left: Tensor, right: Tensor) -> Tensor:
            return truncate(left, dimension) @ truncate(right, dimension).T

        # Principal components are in order of size, so a cut student aligns with the first ones.
        whole = dimension == texts.shape[1]
        reverse = None
        if every_query is not None:
            reverse = Matrices(**vars(other_view), student=cosines(documents, every_query))
        return InBatch(
            **vars(view),
            student=cosines(queries, every_document),
            texts=truncate(texts, dimension),
            targets=targets if targets is None or whole else targets[:, :dimension],
            text_weight=text_weight,
            reverse=reverse,
        )

    return [cut_to(dimension) for dimension in sorted({*config.matryoshka_dims, texts.shape[1]})]


def _of_teacher(sides: Sides) -> Tensor:
    """The teacher's embeddings of all documents of `sides`, float32."""
    documents = sides.every_document
    if documents is None:
        raise InputError(
            "--student_space teacher: the training rows hold no teacher embeddings of the "
            "documents, which the student's queries are compared with; add the columns "
            "teacher_query_embedding and teacher_document_embedding, or set --student_space own"
        )
    return documents.float()


def _targets(rows: Sides, batch: Mapping[str, Tensor], components: Tensor | None) -> Tensor | None:
    """What the texts are aligned to, (M, d) float32."""
    pool = batch.get("pool_embedding")
    if "text_embedding" in batch:
        parts = [batch["text_embedding"]]
    elif rows.query_embedding is None or rows.document_embedding is None:
        return None
    else:
        parts = [rows.query_embedding, rows.document_embedding]
    parts += [part.flatten(0, 1) for part in (rows.negative_embedding, pool) if part is not None]
    teacher = torch.cat([part.float() for part in parts])
    return teacher if components is None else teacher @ components.T
