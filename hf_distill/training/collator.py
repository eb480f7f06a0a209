"""The data collator: tokenised columns, and the in-batch matrices of the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor

from hf_distill.data.collection import text_id
from hf_distill.teachers.base import similarity
from hf_distill.training.packing import pack
from hf_distill.training.texts import kind_of

SIDE_COLUMNS = (
    "teacher_score", "teacher_query_embedding", "teacher_document_embedding", "query_key", "document_key",
    "weight", "group_key", "negative_key", "negative_score", "teacher_negative_embedding",
)  # fmt: skip
"""Batch entries (B, ...) beside the tokenised texts, for `in_batch_matrices`. The last three, (B,
k, ...), only with hard negatives; `group_key` only where pairs of a group are no negatives of each
other.
"""


class InBatch(NamedTuple):
    """The teacher's view of a batch of B queries against N documents: those of all pairs, then the
    hard negatives of each pair in turn.

    teacher: (B, N) float32 teacher scores, NaN where the teacher has not scored the cell.
    positives: (B,) int64, the column of each query's own document.
    ignore: (B, N) bool, cells that are no negatives although they are not the positive.
    weight: (B,) float32, how much each query's row counts; None: all the same.
    """

    teacher: Tensor
    positives: Tensor
    ignore: Tensor
    weight: Tensor | None = None


def reversed_roles(side: dict[str, Tensor]) -> dict[str, Tensor]:
    """`SIDE_COLUMNS` with queries and documents exchanged: `in_batch_matrices` of these has a row
    for each document. Hard negatives answer no query, and are left out."""
    other = {"query_key": "document_key", "teacher_query_embedding": "teacher_document_embedding"}
    other |= {value: key for key, value in other.items()}
    return {other.get(name, name): value for name, value in side.items() if "negative" not in name}


def key_of(text: str) -> int:
    """A signed 64-bit key of a text: equal texts, equal key."""
    return int(text_id(text), 16) - 2**63


def in_batch_matrices(
    rows: dict[str, Tensor],
    columns: dict[str, Tensor] | None = None,
    offset: int = 0,
    measure: str = "cosine",
    false_negative_margin: float | None = None,
) -> InBatch:
    """Build the teacher's in-batch matrices from side columns.

    Off the diagonal the teacher's score is the similarity of its two embeddings; a teacher without
    embeddings leaves NaN there. A cell is ignored as a negative if its document's text is the row's
    own, or its query's text is the row's own (that query's document answers this one, too), or its
    pair is of the row's own group (where groups are given), or if the teacher scores it above the
    row's own document less `false_negative_margin`: it is likely an answer, too (after
    NV-Retriever, arXiv:2407.15831). Its score is still regressed on.

    Args:
        rows: `SIDE_COLUMNS` of this process's B pairs (embeddings may be absent).
        columns: The same of all N pairs, of every process in order of rank; None: `rows`.
        offset: Where this process's pairs begin among the columns.
        measure: The teacher's similarity (a key of `hf_distill.teachers.base.SCALES`).
        false_negative_margin: None: the teacher's scores make no cell ignored.
    """
    columns = rows if columns is None else columns
    count, pairs = len(rows["query_key"]), len(columns["document_key"])
    device = rows["query_key"].device
    own = torch.arange(count, device=device)
    positives = own + offset
    document_keys = columns["document_key"]
    related = rows["query_key"][:, None] == columns["query_key"][None, :]
    if "group_key" in rows:
        related = related | (rows["group_key"][:, None] == columns["group_key"][None, :])
    if "negative_key" in columns:
        negatives_each = columns["negative_key"].shape[1]
        document_keys = torch.cat([document_keys, columns["negative_key"].flatten()])
        related = F.pad(
            related, (0, pairs * negatives_each), value=False
        )  # a query's negatives are meant as such
    if "teacher_query_embedding" in rows:
        documents = columns["teacher_document_embedding"]
        if "teacher_negative_embedding" in columns:
            documents = torch.cat([documents, columns["teacher_negative_embedding"].flatten(0, 1)])
        teacher = similarity(measure, rows["teacher_query_embedding"].float(), documents.float())
    else:
        teacher = torch.full((count, len(document_keys)), torch.nan, device=device)
    teacher[own, positives] = rows["teacher_score"].float()
    if "negative_score" in rows:
        first = (
            pairs
            + positives[:, None] * negatives_each
            + torch.arange(negatives_each, device=device)
        )
        teacher[own[:, None], first] = rows["negative_score"].float()
    ignore = (rows["document_key"][:, None] == document_keys[None, :]) | related
    if false_negative_margin is not None:
        ignore |= (
            teacher > teacher.gather(1, positives[:, None]) - false_negative_margin
        )  # False where either is unknown
    ignore[own, positives] = False
    return InBatch(teacher, positives, ignore, rows.get("weight"))


@dataclass
class DistillationCollator(SentenceTransformerDataCollator):
    """Tokenises queries and documents, and puts the teacher's side columns and in-batch matrices
    beside them.

    Reads the columns `query`, `document`, `teacher_score` (float), and, where the teacher has them,
    `teacher_query_embedding` and `teacher_document_embedding` ((d,) floats, L2-normalised). With
    hard negatives also `negatives` (k texts, k the same in every row), `negative_scores` (k) and,
    where the teacher embeds, `teacher_negative_embeddings` (k, d): they are further columns of
        every row. With `false_negative_groups` also `group`, whose pairs are then no negatives of
        each other. Other columns
    are left alone: the stock collator would tokenise them.

    With `augmented` (texts, as many in every row) and `teacher_augmented_embeddings` (their number,
    d), `augmented_each` of them at a time stand beside their pair, for the alignment alone: in
    epoch 0 the first, in the next one those after them, and after the last the first.

    A column `weight` (float), if there is one, says how much each pair counts in the objective.

    The texts are sorted by length and tokenised in groups of `group_size`, each padded to its own
    longest, so that short texts are not padded to the longest of the batch (half of all tokens
    would be padding). With a `first_position`, those of a group stand one after another without
    padding (see `hf_distill.training.packing`). `place` undoes the sorting.

    Returns a batch of model inputs `texts0_*`, `texts1_*`, ..., `place` (2B + kB + aB,) int64, the
    `SIDE_COLUMNS`, and `teacher_matrix` (B, B + kB) float32, `positives` (B,) int64, `ignore` (B, B
    + kB) bool; of a augmented texts a pair also `teacher_augmented_embedding` (B, a, d) float32.
    """

    query_prompt: str = ""
    document_prompt: str = ""
    group_size: int = 16
    first_position: int | None = None
    measure: str = "cosine"
    false_negative_margin: float | None = None
    false_negative_groups: bool = False
    augmented_each: int = 0
    epoch: int = 0

    def _augmented(self, row: dict[str, Any]) -> range:
        """Which of the row's augmented texts have their turn."""
        if not self.augmented_each or "augmented" not in row:
            return range(0)
        rounds = len(row["augmented"]) // self.augmented_each
        start = self.epoch % rounds * self.augmented_each
        return range(start, start + self.augmented_each)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        if missing := {"query", "document", "teacher_score"} - set(features[0]):
            raise ValueError(
                f"the training rows have no column {', '.join(sorted(missing))}; they have {', '.join(features[0])}"
            )
        texts = [self.query_prompt + row["query"] for row in features] + [
            self.document_prompt + row["document"] for row in features
        ]
        texts += [
            self.document_prompt + str(negative)
            for row in features
            for negative in row.get("negatives", ())
        ]
        prompts = {"query": self.query_prompt, "document": self.document_prompt}
        turn = self._augmented(features[0])
        texts += [prompts[kind_of(i)] + str(row["augmented"][i]) for row in features for i in turn]
        order = torch.tensor(sorted(range(len(texts)), key=lambda i: len(texts[i])))
        batch: dict[str, Any] = {}
        for number, group in enumerate(torch.split(order, self.group_size)):
            tokens = self.preprocess_fn([texts[i] for i in group.tolist()])
            if self.first_position is not None:
                tokens, within = pack(tokens, self.first_position)
                group.copy_(group[within])
            batch |= {f"texts{number}_{key}": value for key, value in tokens.items()}
        batch["place"] = order.argsort()
        side: dict[str, Tensor] = {
            "teacher_score": torch.tensor(
                [row["teacher_score"] for row in features], dtype=torch.float32
            ),
            "query_key": torch.tensor([key_of(row["query"]) for row in features]),
            "document_key": torch.tensor([key_of(row["document"]) for row in features]),
        }
        if self.false_negative_groups:
            side["group_key"] = torch.tensor([key_of(str(row["group"])) for row in features])
        if "weight" in features[0]:
            side["weight"] = torch.tensor([row["weight"] for row in features], dtype=torch.float32)
        for name in ("teacher_query_embedding", "teacher_document_embedding"):
            if name in features[0]:
                side[name] = torch.stack(
                    [torch.as_tensor(row[name], dtype=torch.float32) for row in features]
                )
        if "negatives" in features[0]:
            side["negative_key"] = torch.tensor(
                [[key_of(str(negative)) for negative in row["negatives"]] for row in features]
            )
            side["negative_score"] = torch.stack(
                [torch.as_tensor(row["negative_scores"], dtype=torch.float32) for row in features]
            )
            if "teacher_negative_embeddings" in features[0]:
                embeddings = [
                    torch.as_tensor(row["teacher_negative_embeddings"], dtype=torch.float32)
                    for row in features
                ]
                side["teacher_negative_embedding"] = torch.stack(embeddings)
        extra: dict[str, Tensor] = {}
        if turn:
            embeddings = [
                torch.as_tensor(
                    row["teacher_augmented_embeddings"][turn.start : turn.stop], dtype=torch.float32
                )
                for row in features
            ]
            extra["teacher_augmented_embedding"] = torch.stack(embeddings)
        matrices = in_batch_matrices(
            side, measure=self.measure, false_negative_margin=self.false_negative_margin
        )
        return {
            **batch,
            **side,
            **extra,
            "teacher_matrix": matrices.teacher,
            "positives": matrices.positives,
            "ignore": matrices.ignore,
        }
