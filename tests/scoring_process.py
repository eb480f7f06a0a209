"""A small collection, a teacher for it, and a scoring run in a process of its own, to be killed."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from hf_distill.compute.encode import Advance, encode
from hf_distill.data.collection import (
    JUDGEMENT_FEATURES,
    SPLITS,
    TEXT_FEATURES,
    Collection,
    CollectionRecord,
    Source,
    text_number,
    write_table,
)
from hf_distill.run import shards
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import score_collection
from hf_distill.teachers.base import EmbeddingTeacher, Prompts

NO_PROMPTS = Prompts()
TABLES = ("queries", "documents", "judgements")


def write_collection(path: Path, pairs: list[tuple[str, str, str]]) -> None:
    """Write (query, document, split) pairs, which stand in the order of their splits."""
    queries, documents = (list(dict.fromkeys(pair[i] for pair in pairs)) for i in (0, 1))
    held_out = {document for _, document, split in pairs if split == "test"}
    judgements = [
        {
            "pair_id": str(i),
            "query": queries.index(query),
            "document": documents.index(document),
            "grade": 1,
            "split": split,
        }
        for i, (query, document, split) in enumerate(pairs)
    ]
    texts = [{"text": text, "searched": text in held_out} for text in documents]
    write_table(({"text": text} for text in queries), TEXT_FEATURES["queries"], path / TABLES[0])
    write_table(texts, TEXT_FEATURES["documents"], path / TABLES[1])
    write_table(judgements, JUDGEMENT_FEATURES, path / TABLES[2])


def read_collection(path: Path) -> Collection:
    """What `write_collection` wrote; its key is its path."""
    tables = [Dataset.from_file(str(path / name)) for name in TABLES]
    splits = list(tables[2]["split"])
    counts = {split: splits.count(split) for split in SPLITS}
    record = CollectionRecord(str(path), Source("small"), {}, counts, {}, 0)
    return Collection(*tables, record)


class TinyTeacher(EmbeddingTeacher):
    """A SentenceTransformer in a folder."""

    def __init__(self, folder: Path, prompts: Prompts = NO_PROMPTS) -> None:
        self.model = SentenceTransformer(str(folder), device="cpu")
        self.name, self.identity, self.prompts = "tiny", ("tiny", "float32"), prompts
        self.dimension = int(self.model.get_embedding_dimension() or 0)
        self.calls: list[int] = []

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        self.calls.append(len(texts))
        return encode(self.model, texts, advance=advance).numpy()


class ShardTeacher(EmbeddingTeacher):
    """Embeddings are random numbers that depend on all texts of the shard: a shard that is cut
    elsewhere has other bytes.
    """

    name, identity, dimension = "shard", ("shard",), 8

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        time.sleep(self.seconds)
        rows = np.random.default_rng(text_number("\n".join(texts))).normal(size=(len(texts), 8))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def recipe(cache: Path | None = None, hard_negatives: int = 0) -> SimpleNamespace:
    """What scoring reads of a recipe."""
    return SimpleNamespace(
        teacher=SimpleNamespace(
            teacher_kind="bi-encoder", teacher_cache=str(cache) if cache else None
        ),
        stages=(SimpleNamespace(hard_negatives_per_pair=hard_negatives),),
        seed=0,
    )


def score(run: Path, data: Path, cache: Path | None, seconds: float) -> None:
    """Score a collection of 400 texts in 25 shards, each made slow enough to be killed in."""
    datasets.utils.logging.disable_progress_bar()
    shards.LEAST_ITEMS = 16
    score_collection(read_collection(data), ShardTeacher(seconds), recipe(cache), RunFolder(run))
