"""The projection head: principal components of the teacher's embeddings."""

from __future__ import annotations

import numpy as np

from hf_distill.errors import InputError
from hf_distill.scoring.scores import EmbeddingTable


def principal_components(embeddings: np.ndarray, dimension: int) -> np.ndarray:
    """The `dimension` leading principal components of `embeddings`, as rows: (dimension, d),
    float32, orthonormal.

    Eigenvectors of the uncentred second moment: of all projections to `dimension` they keep most of
        the dot products. Each
    component's sign is fixed (its largest entry is positive), so that equal input gives equal
    output.

    Args:
        embeddings: (n, d), any float type; read in blocks, so it may be memory-mapped.
        dimension: At most d.

    Raises:
        InputError: `dimension` above d.
    """
    d = embeddings.shape[1]
    if dimension > d:
        raise InputError(
            f"--student_init pca: {dimension} components of {d}-dimensional teacher embeddings; student_dim can be {d} at most"
        )
    moment = np.zeros((d, d))
    for start in range(0, len(embeddings), 8192):
        block = np.asarray(embeddings[start : start + 8192], dtype=np.float64)
        moment += block.T @ block
    _, vectors = np.linalg.eigh(moment)
    components = vectors[:, ::-1][:, :dimension].T
    signs = np.sign(components[np.arange(dimension), np.abs(components).argmax(axis=1)])
    return np.ascontiguousarray(components * signs[:, None], dtype=np.float32)


def teacher_components(embeddings: EmbeddingTable | None, student_dim: int) -> np.ndarray | None:
    """`principal_components` of the teacher's embeddings, as many as the student has dimensions or
    the teacher can give; None without.
    """
    return (
        None
        if embeddings is None
        else principal_components(embeddings.rows, min(student_dim, embeddings.rows.shape[1]))
    )
