"""The index that a finished run keeps of its documents, searched by the student as ONNX or in
numpy: without torch, whose libraries take seconds to load.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_distill.release.onnx_encoder import FILES, OnnxEncoder, load_onnx
from hf_distill.run.stage import key_in, read_result
from hf_distill.serving.without_torch import BertEncoder, load_bert

DEPTH = 10
"""Documents that a question gets by default."""
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Hit:
    """A document: its cosine to the question, where it is from, its text."""

    score: float
    id: str
    text: str


@dataclass(frozen=True)
class KeptRecord:
    """`search/kept.json`. Beside it, `documents.parquet` holds ids and texts, and `student.npy` the
    embeddings (N, d) float16 of unit length.

    Attributes:
        key: The fingerprint of what it depends on.
        training: The key of the training that made the student.
        conversation: Whether the student reads the turns before a question.
        documents: How many there are.
    """

    key: str
    training: str
    conversation: bool
    documents: int


@dataclass(frozen=True)
class KeptPlaces:
    """Where the parts lie in the folder of a run: as in `RunFolder`, whose module needs torch."""

    run: Path

    @property
    def record(self) -> Path:
        return self.run / "search" / "kept.json"

    @property
    def documents(self) -> Path:
        return self.run / "search" / "documents.parquet"

    @property
    def embeddings(self) -> Path:
        return self.run / "search" / "student.npy"

    @property
    def student(self) -> Path:
        return self.run / "student_model_sd"

    @property
    def training(self) -> Path:
        return self.run / "training.json"

    @property
    def onnx(self) -> Path:
        """What was measured of the exported student."""
        return self.run / "onnx.json"


def nearest(query: np.ndarray, embeddings: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` rows of `embeddings` with the largest products; of equal ones the first.

    Args:
        query: (d,) float32.
        embeddings: (N, d) float16 or float32. A block at a time is in memory in float32.
        depth: At most N.

    Returns:
        Products (depth,) float32, descending, and rows (depth,).
    """
    blocks = range(0, len(embeddings), _BLOCK)
    scores = np.concatenate(
        [embeddings[i : i + _BLOCK].astype(np.float32, copy=False) @ query for i in blocks]
    )
    rows = np.argsort(-scores, kind="stable")[:depth]
    return scores[rows], rows


@dataclass(frozen=True)
class KeptIndex:
    """A run's `documents`, a table with the columns `id` and `text`, and their `embeddings` (N, d)
    float16 of unit length.
    """

    encoder: OnnxEncoder | BertEncoder
    documents: pa.Table
    embeddings: np.ndarray

    def ask(self, question: str, depth: int = DEPTH) -> list[Hit]:
        """The `depth` documents nearest to `question`, best first."""
        query = self.encoder.encode([question], "query")[0]
        scores, rows = nearest(query, self.embeddings, depth)
        found = self.documents.take(rows).to_pylist()
        return [
            Hit(float(score), row["id"], row["text"])
            for score, row in zip(scores, found, strict=True)
        ]


def _exported(places: KeptPlaces) -> bool:
    """Whether this student is exported as ONNX, and onnxruntime is installed.

    Raises:
        InputError: A file of the export is not what was written.
    """
    if not ((places.student / FILES["float32"]).is_file() and places.onnx.is_file()):
        return False
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    return bool(key_in(places.onnx, "training") == key_in(places.training))


def kept_index(run: Path) -> tuple[KeptIndex, bool] | None:
    """The index of a run's documents, and whether its student reads the turns before a question.
    None unless the run keeps one of this student, and that is exported as ONNX or has a BERT
    backbone.

    Raises:
        InputError: A file of the student, of its export or of the index is not what was written.
    """
    places = KeptPlaces(run)
    if not (places.record.is_file() and places.training.is_file()):
        return None
    record = read_result(places.record, KeptRecord)
    if record.training != key_in(places.training):
        return None
    encoder = load_onnx(places.student) if _exported(places) else load_bert(places.student)
    if encoder is None:
        return None
    embeddings = np.load(places.embeddings, mmap_mode="r")
    return KeptIndex(encoder, pq.read_table(places.documents), embeddings), record.conversation
