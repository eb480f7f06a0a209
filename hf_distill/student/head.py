"""The projection head: principal components of the teacher's embeddings."""

from __future__ import annotations

import numpy as np

from hf_distill.errors import InputError
from hf_distill.scoring.embeddings import Vectors

_BLOCK = 8192


def principal_components(embeddings: np.ndarray | Vectors, dimension: int) -> np.ndarray:
    """The `dimension` leading principal components of `embeddings`, as rows: (dimension, d)
    float32, orthonormal.

    These are eigenvectors of the uncentred second moment. Of all projections to `dimension`, they
    preserve dot products best. Each component's largest entry is positive, so that equal input
    gives equal output.

    Args:
        embeddings: (n, d), any float type. They are read in blocks, from a file or from memory.
        dimension: At most d.

    Raises:
        InputError: `dimension` is above d.
    """
    d = embeddings[:1].shape[1]
    if dimension > d:
        raise InputError(
            f"--student_dim {dimension}: the teacher's embeddings have {d} dimensions, so there "
            f"are at most {d} principal components; take --student_dim {d} or less, or "
            "--student_init random"
        )
    moment = np.zeros((d, d))
    for start in range(0, len(embeddings), _BLOCK):
        block = np.asarray(embeddings[start : start + _BLOCK], dtype=np.float64)
        moment += block.T @ block
    _, vectors = np.linalg.eigh(moment)
    components = vectors[:, ::-1][:, :dimension].T
    signs = np.sign(components[np.arange(dimension), np.abs(components).argmax(axis=1)])
    return np.ascontiguousarray(components * signs[:, None], dtype=np.float32)
