"""A SentenceTransformer as teacher, as it is: enough to build students from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_distill.compute.encode import Advance, encode
from hf_distill.teachers.base import SCALES, EmbeddingTeacher, Prompts, Scale


@dataclass
class TinyTeacher(EmbeddingTeacher):
    """Embeds with `backbone`, in float32."""

    backbone: SentenceTransformer
    prompts: Prompts = field(default_factory=Prompts)
    name: str = "tiny"
    identity: tuple[Any, ...] = ("tiny",)
    precision: str = "float32"
    scale: Scale = SCALES["cosine"]

    @property
    def dimension(self) -> int:
        return int(self.backbone.get_embedding_dimension())

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        return encode(self.backbone, texts, advance=advance).numpy()


def tiny_teacher(folder: Path, query_prompt: str = "", document_prompt: str = "") -> TinyTeacher:
    """The SentenceTransformer in `folder`, which normalises its embeddings."""
    model = SentenceTransformer(str(folder), device="cpu").eval()
    return TinyTeacher(model, Prompts(query_prompt, document_prompt))
