"""An exported student, run by `onnxruntime` and `tokenizers` alone: this module loads no torch."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from hf_distill.errors import InputError

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "sentence_embedding"
FILES = {"float32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}
"""Precision -> path in the model's folder. int8: weights have 8 bits, and activations are quantised
when they are computed (dynamic quantisation).
"""

_BATCH = 32


@dataclass(frozen=True)
class OnnxEncoder:
    """An exported model, loaded with `onnxruntime` and `tokenizers` alone. `session` is one of
    onnxruntime, or is called like it. `prompts` maps a kind of text (`query`, `document`) to its
    prompt.
    """

    session: Any
    tokenizer: Tokenizer
    prompts: dict[str, str]

    def encode(self, texts: Sequence[str], kind: str | None = None) -> np.ndarray:
        """Embeddings (len(texts), d), float32, of unit length, in the order of `texts`. The prompt
        of `kind` goes before each text.
        """
        prompt = self.prompts.get(kind or "", "")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        for start in range(0, len(order), _BATCH):
            tokens = self.tokenizer.encode_batch(
                [prompt + texts[i] for i in order[start : start + _BATCH]]
            )
            feed = {
                "input_ids": np.array([t.ids for t in tokens], dtype=np.int64),
                "attention_mask": np.array([t.attention_mask for t in tokens], dtype=np.int64),
            }
            parts.append(self.session.run([OUTPUT], feed)[0])
        embeddings: np.ndarray = np.concatenate(parts)[np.argsort(order)]
        return embeddings


def load_onnx(model_dir: Path, precision: str = "float32") -> OnnxEncoder:
    """Load what `export_onnx` wrote.

    Raises:
        InputError: There is no such file, or onnxruntime is not installed.
    """
    path = model_dir / FILES[precision]
    if not path.is_file():
        raise InputError(
            f"there is no {path}; write it with: hf-distill export {model_dir} --format onnx"
        )
    runtime = require("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return encoder_of(model_dir, session)


def encoder_of(model_dir: Path, session: Any) -> OnnxEncoder:
    """The student in `model_dir`, whose graph is `session`."""
    special = json.loads((model_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = tokenizer_of(model_dir)
    pad = special.get("pad_token") or "[PAD]"
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad) or 0, pad_token=pad)
    return OnnxEncoder(session, tokenizer, prompts_of(model_dir))


def tokenizer_of(model_dir: Path) -> Tokenizer:
    """A student's tokenizer, which cuts texts where the student does."""
    settings = json.loads((model_dir / "sentence_bert_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.enable_truncation(settings["max_seq_length"])
    return tokenizer


def prompts_of(model_dir: Path) -> dict[str, str]:
    """Kind of text (`query`, `document`) -> prompt."""
    path = model_dir / "config_sentence_transformers.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    return {kind: prompt or "" for kind, prompt in settings.get("prompts", {}).items()}


def require(name: str, extra: str = "onnx") -> Any:
    """A package of an extra.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{name} is not installed, and this export needs it: pip install 'hf_distill[{extra}]'"
        ) from error
