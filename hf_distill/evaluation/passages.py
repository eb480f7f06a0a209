"""Held-out passages: whether a student follows its teacher on texts that are not of the domain.

A specialised student can keep its scores in the domain of the pairs and lose them elsewhere. Where
no text of another domain is at hand, passages stand in for it: those of the validation documents,
in half of which some words are exchanged for others of the student's vocabulary, as in the pool
that students are trained on (`training/texts.py`). Where the vocabulary was cut down to the
training texts, those are their words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from hf_distill.data.collection import Collection
from hf_distill.evaluation.evaluate import embed_as
from hf_distill.evaluation.fidelity import pearson
from hf_distill.evaluation.results import STUDENT
from hf_distill.evaluation.texts import nearest_others
from hf_distill.scoring.embeddings import embed_texts
from hf_distill.scoring.scores import Scores
from hf_distill.teachers.base import EmbeddingTeacher, Teacher, pair_similarity
from hf_distill.training.texts import FEATURES, make_pool, texts_of_pairs, words_of

PASSAGES = 500
_OTHERS = 10
"""Nearest passages of each one, and as many random ones, whose scores are compared."""


@dataclass(frozen=True)
class Passages:
    """n passages, and the teacher's scores of m pairs of them.

    Attributes:
        texts: The n passages.
        teacher: (n, D) float32, the teacher's embeddings.
        left, right: (m,) int64, places of the passages of each pair.
        scores: (m,) float32, the teacher's score of each pair.
    """

    texts: list[str]
    teacher: np.ndarray
    left: np.ndarray
    right: np.ndarray
    scores: np.ndarray

    def closeness(self, student: SentenceTransformer, in_teachers_space: bool = False) -> float:
        """Pearson's correlation of a student's cosines with the teacher's scores; NaN if all of
        either are equal.

        Args:
            student: The student; it is then in evaluation mode.
            in_teachers_space: The right passage of each pair is as the teacher embeds it.

        Raises:
            InputError: The student returns NaN or infinite embeddings.
        """
        own = embed_as("texts", self.texts, student, STUDENT)
        others = self.teacher if in_teachers_space else own
        cosines = pair_similarity("cosine", own[self.left], others[self.right])
        return float(pearson(cosines, self.scores))


def held_out_passages(
    collection: Collection,
    scores: Scores,
    teacher: Teacher,
    student: SentenceTransformer,
    shards: Path,
    seed: int,
) -> Passages | None:
    """Passages of the validation documents, embedded by all processes together.

    Args:
        collection: Its validation pairs are read.
        scores: The scale of the teacher's scores is read.
        teacher: Embeds the passages.
        student: Words of its vocabulary are exchanged for others.
        shards: Folder of the embeddings, which several runs may share.
        seed: Draws the passages.

    Returns:
        The passages; None where the teacher embeds no new texts, the student's vocabulary holds no
        whole words, or the validation documents have fewer than three passages.
    """
    words, validation = words_of(student), collection.pairs("validation")
    if not isinstance(teacher, EmbeddingTeacher) or not teacher.embeds_new_texts:
        return None
    if not words or not len(validation):
        return None
    documents = [drawn for drawn in texts_of_pairs(validation) if drawn.kind == "document"]
    rows = [
        {"text": text, "kind": kind} for text, kind in make_pool(documents, PASSAGES, words, seed)
    ]
    if len(rows) < 3:
        return None
    table = embed_texts(Dataset.from_list(rows, features=FEATURES), teacher, shards)
    vectors = table[:].astype(np.float32)
    depth = min(_OTHERS, len(rows) - 1)
    nearest = nearest_others((vectors, vectors), depth, scores.scale.similarity)
    drawn = np.random.default_rng(seed).integers(len(rows) - 1, size=nearest.shape)
    drawn += drawn >= np.arange(len(rows))[:, None]  # never itself
    others = np.concatenate([nearest, drawn], axis=1)
    left, right = np.repeat(np.arange(len(rows)), others.shape[1]), others.ravel()
    return Passages(
        texts=[row["text"] for row in rows],
        teacher=vectors,
        left=left,
        right=right,
        scores=pair_similarity(scores.scale.similarity, vectors[left], vectors[right]),
    )
