"""How the projection head starts: as principal components of the teacher's embeddings, or as the
least-squares map onto them.
"""

from __future__ import annotations

import numpy as np

from hf_distill.errors import InputError
from hf_distill.scoring.embeddings import Vectors

_BLOCK = 8192

RIDGE = 1e-4
"""How strongly a map is kept small, as a share of the features' mean square."""


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


def least_squares_map(
    features: np.ndarray, targets: np.ndarray, ridge: float = RIDGE
) -> np.ndarray:
    """The linear map `W` (D, h) float32 that leads from `features` nearest to `targets`: the least
    of |features W^T - targets|^2 + ridge m |W|^2, where m is the mean square of a feature's column
    (ridge regression, Hoerl & Kennard 1970).

    Args:
        features: (n, h), any float type.
        targets: (n, D), any float type.
        ridge: Keeps W small where there are few texts, or features that say the same.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    moment = x.T @ x
    moment[np.diag_indices_from(moment)] += ridge * np.trace(moment) / len(moment)
    solved = np.linalg.solve(moment, x.T @ y)
    return np.ascontiguousarray(solved.T, dtype=np.float32)
