"""The documents of a run as its teacher embedded them: what a query encoder searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import fingerprint, stage, written_whole
from hf_distill.scoring.embeddings import embed_collection
from hf_distill.scoring.scores import SoftLabels, shards_of
from hf_distill.teachers.base import EmbeddingTeacher
from hf_distill.teachers.load import load_teacher


@dataclass(frozen=True)
class DocumentsRecord:
    """`search/teacher_documents.json`: how many embeddings are in the array beside it."""

    key: str
    documents: int
    dimension: int


def documents_of_teacher(
    recipe: Recipe, folder: RunFolder, collection: Collection, soft_labels: SoftLabels
) -> np.ndarray:
    """The teacher's embeddings (documents, D) float32 of every document of a run, by number. They
    are kept in the run's folder as one memory-mapped array, so the teacher is loaded once.

    Args:
        recipe: Names the teacher, which embeds texts.
        folder: The run's folder.
        collection: Its documents.
        soft_labels: What the teacher did for it.

    Raises:
        InputError: The teacher cannot be loaded, or is not the one that scored this run.
    """
    path = folder.search / "teacher_documents.npy"

    def make(key: str) -> DocumentsRecord:
        teacher = cast(EmbeddingTeacher, load_teacher(recipe))
        if fingerprint(teacher.identity) != soft_labels.teacher_identity:
            raise InputError(
                f"the teacher {teacher.name} is not as it was when it scored the pairs of "
                f"{folder.path}, so it would embed the documents into another space; run it again: "
                f"hf-distill train {folder.recipe} --run_dir {folder.path} --until release"
            )
        shards = shards_of(folder, recipe.teacher.teacher_cache)
        table = embed_collection(collection, teacher, shards, folder.cache)
        vectors = table.of_documents(slice(None)).astype(np.float32)
        with written_whole(path) as temporary:
            np.save(temporary, vectors)
        return DocumentsRecord(key, *vectors.shape)

    inputs = [collection.key, soft_labels.key]
    stage(path.with_suffix(".json"), DocumentsRecord, inputs, make, [path])
    embeddings: np.ndarray = np.load(path, mmap_mode="c")
    return embeddings
