"""A corpus embedded once and searched many times: what `hf-distill search` and `hf-distill demo`
ask.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from hf_distill.compute.encode import encode
from hf_distill.compute.models import digest_of_weights
from hf_distill.compute.search import search
from hf_distill.data.collection import PairData
from hf_distill.data.sources.pydocs import read_pydocs
from hf_distill.errors import InputError
from hf_distill.finished_run import FinishedRun
from hf_distill.run.folder import (
    fingerprint,
    written_whole,
)

DEPTH = 10


@dataclass(frozen=True)
class Corpus:
    """Documents to search. `ids` say where a text is from; `key` is the fingerprint of what they
    depend on.
    """

    ids: list[str]
    texts: list[str]
    key: str


@dataclass(frozen=True)
class Hit:
    """A document that was found: its cosine to the question, where it is from, its text."""

    score: float
    id: str
    text: str


def _unique(rows: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Ids and texts, each text once."""
    first: dict[str, str] = {}
    for name, text in rows:
        first.setdefault(text, name)
    return list(first.values()), list(first)


def corpus_of_run(run: FinishedRun) -> Corpus:
    """Every document of a run's data, held out or not."""
    data: PairData = run.data

    def rows() -> Iterator[tuple[str, str]]:
        for split in (data.train, data.validation, data.test, data.leaked):
            yield from zip(split["pair_id"], split["document"], strict=True)
        yield from zip(data.corpus["document_id"], data.corpus["document"], strict=True)

    return Corpus(*_unique(rows()), key=data.key)


def python_key() -> str:
    """The fingerprint of what `corpus_of_python` depends on: the installed packages."""
    return fingerprint(
        sys.version,
        sorted(f"{d.metadata['Name']} {d.version}" for d in importlib.metadata.distributions()),
    )


def corpus_of_python() -> Corpus:
    """The documentation of the Python packages installed here, for a model without a run."""
    with tempfile.TemporaryDirectory() as cache:
        pairs = read_pydocs(None, None, 0, Path(cache)).pairs
        ids, texts = _unique(zip(pairs["pair_id"], pairs["document"], strict=True))
    return Corpus(ids, texts, python_key())


def user_cache() -> Path:
    """Where an index is kept that belongs to no run."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_distill" / "search"
    )


@dataclass(frozen=True)
class Index:
    """A corpus embedded by a model: `embeddings` (N, d) float32, memory-mapped, of unit length."""

    model: SentenceTransformer
    ids: list[str]
    texts: list[str]
    embeddings: np.ndarray

    def ask(self, question: str, depth: int = DEPTH) -> list[Hit]:
        """The `depth` documents nearest to `question`, best first."""
        asked = self.model.encode_query(
            [question], normalize_embeddings=True, show_progress_bar=False
        )
        scores, places = search(asked, self.embeddings, depth)
        return [
            Hit(float(score), self.ids[i], self.texts[i])
            for score, i in zip(scores[0], places[0], strict=True)
        ]


def index_key(model: SentenceTransformer, corpus_key: str) -> str:
    """What an index depends on: the model's weights, prompts and length, and the corpus."""
    return fingerprint(
        digest_of_weights(model), dict(model.prompts), model.max_seq_length, corpus_key
    )


def find_index(model: SentenceTransformer, corpus_key: str, folder: Path) -> Index | None:
    """The index of this model and corpus, if `build_index` has left it in `folder`."""
    path = folder / f"{index_key(model, corpus_key)}.npy"
    table = path.with_suffix(".parquet")
    if not path.is_file() or not table.is_file():
        return None
    columns = pq.read_table(table)
    embeddings = np.load(path, mmap_mode="c")
    if len(embeddings) != columns.num_rows:
        return None  # two processes made it at once, from different data: it is made again
    return Index(
        model, columns.column("id").to_pylist(), columns.column("text").to_pylist(), embeddings
    )


def build_index(model: SentenceTransformer, corpus: Corpus, folder: Path) -> Index:
    """Embed `corpus` and keep it in `folder`.

    Raises:
        InputError: An empty corpus.
    """
    if not corpus.texts:
        raise InputError("there is no document to search")
    prompt = model.prompts.get("document") or ""
    with tqdm(
        total=len(corpus.texts), desc="Embedding the corpus", unit=" documents", leave=False
    ) as bar:

        def advance(texts: int, _: int) -> None:
            bar.update(texts)

        made = encode(model, [prompt + text for text in corpus.texts], advance=advance).numpy()
    made = made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
    path = folder / f"{index_key(model, corpus.key)}.npy"
    with written_whole(path.with_suffix(".parquet")) as temporary:
        pq.write_table(pa.table({"id": corpus.ids, "text": corpus.texts}), temporary)
    with written_whole(path) as temporary:  # last: from here on it counts
        np.save(temporary, made)
    return Index(model, corpus.ids, corpus.texts, np.load(path, mmap_mode="c"))
