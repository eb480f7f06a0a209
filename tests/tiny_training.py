"""A tiny teacher, a tiny student, and pairs in both forms of training rows."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import sentences
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from hf_distill.data.collection import (
    JUDGEMENT_FEATURES,
    TEXT_FEATURES,
    Collection,
    CollectionRecord,
    Source,
)
from hf_distill.recipe.config import DistillationConfig
from hf_distill.scoring.embeddings import EmbeddingTable, Vectors
from hf_distill.training.rows import Lookup
from hf_distill.training.texts import Pool
from hf_distill.training.trainer import DistillationTrainer

QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}


def tiny_collection(queries: list[str], documents: list[str], pairs: np.ndarray) -> Collection:
    """A collection of training pairs alone: `pairs` (n, 2) are numbers of query and document."""
    judgements = {
        **{name: [None] * len(pairs) for name in JUDGEMENT_FEATURES},
        "pair_id": [f"p{i}" for i in range(len(pairs))],
        "query": pairs[:, 0],
        "document": pairs[:, 1],
        "grade": [1] * len(pairs),
        "split": ["train"] * len(pairs),
    }
    split = {"train": len(pairs), "validation": 0, "test": 0, "leaked": 0}
    record = CollectionRecord("collection", Source("tiny"), {}, split, {}, 0)
    searched = {"text": documents, "searched": [False] * len(documents), "id": documents}
    return Collection(
        Dataset.from_dict(
            {"text": queries, "student_text": [None] * len(queries), "id": queries},
            features=TEXT_FEATURES["queries"],
        ),
        Dataset.from_dict(searched, features=TEXT_FEATURES["documents"]),
        Dataset.from_dict(judgements, features=JUDGEMENT_FEATURES),
        record,
    )


def vectors_of(embeddings: np.ndarray) -> Vectors:
    """`embeddings` (n, d) as rows of one table."""
    places = np.arange(len(embeddings), dtype=np.uint32)
    return Vectors((embeddings.astype(np.float16),), places, embeddings.shape[1])


@dataclass(frozen=True)
class Tiny:
    """A teacher of 32 dimensions, an untrained student of 16, and pairs of sentences.

    `texts` are training rows that carry texts and embeddings. `numbers` are the same by number,
    with two hard negatives and a row number each; `lookup` has their collection and a pool.
    """

    teacher: SentenceTransformer
    student: SentenceTransformer
    components: np.ndarray
    texts: Dataset
    numbers: Dataset
    lookup: Lookup

    def embed(self, texts: list[str]) -> np.ndarray:
        """The teacher's embeddings as the tables hold them."""
        return np.asarray(self.teacher.encode(texts), np.float16).astype(np.float32)

    def trainer(self, folder: Path, rows: Dataset | None = None, **settings: Any) -> Any:
        """A trainer of a copy of the student, on `texts` if no other `rows` are given. What is not
        a setting of the trainer is one of its config.
        """
        rows = self.texts if rows is None else rows
        names = ("components", "scale", "lookup", "eval_dataset", "callbacks")
        own = {name: settings.pop(name) for name in names if name in settings}
        defaults = {
            "per_device_train_batch_size": 8, "num_train_epochs": 1, "learning_rate": 1e-3,
            "logging_steps": 1, "seed": 3,
        }  # fmt: skip
        if settings.get("eval_strategy", "no") != "no":
            own.setdefault("eval_dataset", rows)
        config = DistillationConfig(str(folder), **{**QUIET, **defaults, **settings})
        return DistillationTrainer(copy.deepcopy(self.student), config, rows, **own)


def tiny(teacher_dir: Path, pairs: int = 32, pool: int = 64) -> Tiny:
    """Everything there is to train a student with. The teacher is read from `teacher_dir`."""
    teacher = SentenceTransformer(str(teacher_dir), device="cpu").eval()
    queries, documents = sentences(pairs), sentences(pairs, 400)
    negatives = np.stack([np.roll(np.arange(pairs), -1 - i) for i in range(2)], axis=1)
    further = sentences(pool, 900)
    q, d, f = (
        np.asarray(teacher.encode(texts), np.float16) for texts in (queries, documents, further)
    )
    exact = [x.astype(np.float32) for x in (q, d)]
    scores = (exact[0] * exact[1]).sum(1)
    numbers = np.arange(pairs)
    texts = Dataset.from_dict(
        {
            "query": queries, "document": documents, "teacher_score": scores,
            "teacher_query_embedding": exact[0], "teacher_document_embedding": exact[1],
        }
    ).with_format("numpy")  # fmt: skip
    by_number = Dataset.from_dict(
        {
            "query": numbers, "document": numbers, "teacher_score": scores, "row": numbers,
            "negatives": negatives,
            "negative_scores": np.einsum("bd,bkd->bk", exact[0], exact[1][negatives]),
        }
    ).with_format("numpy")  # fmt: skip
    kinds = ["query", "document"] * (pool // 2)
    lookup = Lookup(
        tiny_collection(queries, documents, np.stack([numbers, numbers], axis=1)),
        EmbeddingTable(vectors_of(np.concatenate([q, d])), numbers, pairs + numbers),
        Pool(Dataset.from_dict({"text": further, "kind": kinds}), vectors_of(f)),
    )
    _, _, components = np.linalg.svd(np.concatenate(exact), full_matrices=False)
    components = np.ascontiguousarray(components[:16])
    return Tiny(teacher, _student(teacher, components), components, texts, by_number, lookup)


def _student(teacher: SentenceTransformer, components: np.ndarray) -> SentenceTransformer:
    """Two of the teacher's four layers, and its principal components as the head; no dropout."""
    transformer = copy.deepcopy(teacher[0])
    backbone = transformer.auto_model
    backbone.encoder.layer = nn.ModuleList([backbone.encoder.layer[i] for i in (0, 2)])
    backbone.config.num_hidden_layers = 2
    head = Dense(32, 16, bias=False, activation_function=nn.Identity())
    head.linear.weight.data = torch.from_numpy(components.copy())
    modules = [transformer, Pooling(32, pooling_mode="mean"), head, Normalize()]
    student = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
    set_dropout(student, 0.0)
    return student


def set_dropout(model: SentenceTransformer, probability: float) -> None:
    """Set every dropout of the model, in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
