"""OpenVINO and tokenizers, on the exported graph, on the CPU and in float32: without the hint, it
computes in bfloat16 where the CPU can.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from tokenizers import Tokenizer

_BATCH = 32


def embed(student: dict[str, Any], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
    """Embeddings of queries and of documents, a row a text."""
    folder = Path(student["folder"])
    special = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pad = special.get("pad_token") or "[PAD]"
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad) or 0, pad_token=pad)
    tokenizer.enable_truncation(student["max_length"])
    model = openvino.Core().compile_model(
        str(folder / student["file"]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def rows(texts: list[str], kind: str) -> list[Any]:
        parts = []
        for start in range(0, len(texts), _BATCH):
            tokens = tokenizer.encode_batch(
                [student["prompts"][kind] + text for text in texts[start : start + _BATCH]]
            )
            feed = {
                "input_ids": np.array([t.ids for t in tokens], dtype=np.int64),
                "attention_mask": np.array([t.attention_mask for t in tokens], dtype=np.int64),
            }
            parts += list(model(feed)["sentence_embedding"].copy())
        return parts

    return rows(queries, "query"), rows(documents, "document")
