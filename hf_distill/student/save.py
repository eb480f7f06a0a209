"""The on-disk layout that a student is served from: the portable sentence-transformers layout.

sentence-transformers >= 5.4 writes class paths and pooling settings that text-embeddings-inference
and its own older versions cannot read. The layout written here is the one they know: 3.4, 5.1 and
6.2 load it with identical embeddings (`benchmarks/layouts.py`). 2.7 does not: it reads a Dense head
from a pickle only, and none is written here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling, StaticEmbedding
from torch import nn

_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}

_KNOWN = (Transformer, StaticEmbedding, Pooling, Dense, Normalize)


def _portable_config(module: nn.Module) -> dict[str, Any] | None:
    """The module's configuration file in the portable layout; None if it has none."""
    if isinstance(module, Pooling):
        config: dict[str, Any] = {"word_embedding_dimension": module.embedding_dimension}
        config |= {key: module.pooling_mode == mode for mode, key in _POOLING_KEYS.items()}
        return config | {"include_prompt": module.include_prompt}
    if isinstance(module, Dense):
        return {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias,
            "activation_function": f"{type(module.activation_function).__module__}.{type(module.activation_function).__name__}",
        }
    return None


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_student(student: SentenceTransformer, path: str | Path) -> None:
    """Save `student` to the folder `path` in the portable layout: safetensors only, no Dropout,
    replaced as a whole.

    Raises:
        ValueError: A module other than Transformer, Pooling, Dense, Dropout, StaticEmbedding and
            Normalize.
    """
    path = Path(path)
    modules = [module for module in student if not isinstance(module, Dropout)]
    strangers = [type(module).__name__ for module in modules if not isinstance(module, _KNOWN)]
    if strangers:
        raise ValueError(
            f"a student is made of {', '.join(kind.__name__ for kind in _KNOWN)}; this one holds {', '.join(strangers)}"
        )
    plain = SentenceTransformer(
        modules=modules,
        prompts={name: prompt or "" for name, prompt in student.prompts.items()},
        similarity_fn_name="cosine",
        device="cpu",
    )
    static = isinstance(modules[0], StaticEmbedding)
    if not static:
        plain.max_seq_length = student.max_seq_length
    # Encoding leaves the last batch's padding and truncation in the tokenizer; they do not belong
    # in the saved file.
    tokenizer = getattr(plain.tokenizer, "backend_tokenizer", None)
    if tokenizer is not None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        made = Path(temporary) / path.name
        plain.save_pretrained(str(made), create_model_card=False)
        names = [
            "" if i == 0 else f"{i}_{type(module).__name__}" for i, module in enumerate(modules)
        ]
        for module, name in zip(modules, names, strict=True):
            if (config := _portable_config(module)) is not None:
                _write_json(made / name / "config.json", config)
            elif isinstance(module, Normalize):
                shutil.rmtree(made / name, ignore_errors=True)
        if not static:
            _write_json(
                made / "sentence_bert_config.json",
                {"max_seq_length": plain.max_seq_length, "do_lower_case": False},
            )
        _write_json(
            made / "modules.json",
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": name,
                    "type": f"sentence_transformers.models.{type(module).__name__}",
                }
                for i, (module, name) in enumerate(zip(modules, names, strict=True))
            ],
        )
        if path.exists():
            shutil.rmtree(path)
        made.replace(path)
