"""A student with a BERT backbone, run by numpy: one question at a time, without the seconds that
torch takes to load.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from hf_distill.release.onnx_encoder import prompts_of, tokenizer_of

_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_erf = np.vectorize(math.erf, otypes=[np.float32])

Weights = dict[str, np.ndarray]


def _gelu(x: np.ndarray) -> np.ndarray:
    """Exactly, as torch does by default (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return np.asarray(x * (0.5 + 0.5 * _erf(x / math.sqrt(2))))


def _softmax(x: np.ndarray) -> np.ndarray:
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class BertEncoder:
    """A student that is loaded.

    Attributes:
        weights: Of the backbone, by their names in transformers, without `bert.`.
        heads, layers: Of its attention, and of the backbone.
        epsilon: Of its layer normalisations.
        first: Whether the embedding is that of the first token, not the mean over tokens.
        head: (d, h) float32, the linear head.
        bias: (d,) float32, of the head; zeros if it has none.
        tokenizer: It cuts where the student does.
        prompts: Kind of text -> prompt.
    """

    weights: Weights
    heads: int
    layers: int
    epsilon: float
    first: bool
    head: np.ndarray
    bias: np.ndarray
    tokenizer: Tokenizer
    prompts: dict[str, str]

    def encode(self, texts: Sequence[str], kind: str | None = None) -> np.ndarray:
        """Embeddings (len(texts), d), float32, of unit length. The prompt of `kind` goes before
        each text.
        """
        prompt = self.prompts.get(kind or "", "")
        return np.stack([self._embed(self.tokenizer.encode(prompt + text).ids) for text in texts])

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"])

    def _normalised(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon)
        scale, shift = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return np.asarray(centred / deviation * scale + shift)

    def _layer(self, name: str, x: np.ndarray) -> np.ndarray:
        """(T, h) -> (T, h)."""
        tokens, hidden = x.shape
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", x)
            .reshape(tokens, self.heads, -1)
            .transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        share = _softmax(query @ key.transpose(0, 2, 1) / math.sqrt(hidden // self.heads))
        mixed = (share @ value).transpose(1, 0, 2).reshape(tokens, hidden)
        out = self._linear(f"{name}.attention.output.dense", mixed)
        x = self._normalised(f"{name}.attention.output.LayerNorm", x + out)
        inner = _gelu(self._linear(f"{name}.intermediate.dense", x))
        return self._normalised(
            f"{name}.output.LayerNorm", x + self._linear(f"{name}.output.dense", inner)
        )

    def _embed(self, ids: Sequence[int]) -> np.ndarray:
        """Token ids -> (d,) float32."""
        words, positions, kinds = (
            self.weights[f"embeddings.{part}_embeddings.weight"]
            for part in ("word", "position", "token_type")
        )
        x = words[list(ids)] + positions[: len(ids)] + kinds[0]
        x = self._normalised("embeddings.LayerNorm", x)
        for layer in range(self.layers):
            x = self._layer(f"encoder.layer.{layer}", x)
        embedding = self.head @ (x[0] if self.first else x.mean(axis=0)) + self.bias
        return np.asarray(embedding / max(float(np.linalg.norm(embedding)), 1e-12))


def load_bert(folder: Path) -> BertEncoder | None:
    """The student in `folder`; None if it has parts that are not computed here."""
    modules = _read(folder / "modules.json")
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds != list(_MODULES):
        return None
    config, pooling = _read(folder / "config.json"), _read(folder / "1_Pooling" / "config.json")
    activation = str(_read(folder / "2_Dense" / "config.json")["activation_function"])
    modes = [mode for mode in pooling if mode.startswith("pooling_mode_") and pooling[mode] is True]
    if (
        config["model_type"] != "bert"
        or config.get("position_embedding_type", "absolute") != "absolute"
        or config["hidden_act"] != "gelu"
        or modes not in (["pooling_mode_cls_token"], ["pooling_mode_mean_tokens"])
        or not pooling.get("include_prompt", True)
        or not activation.endswith(".Identity")
    ):
        return None
    weights = load_file(folder / "model.safetensors")
    head = load_file(folder / "2_Dense" / "model.safetensors")
    matrix = head["linear.weight"]
    return BertEncoder(
        {name.removeprefix("bert."): value for name, value in weights.items()},
        config["num_attention_heads"],
        config["num_hidden_layers"],
        config["layer_norm_eps"],
        modes == ["pooling_mode_cls_token"],
        matrix,
        head.get("linear.bias", np.zeros(len(matrix), dtype=np.float32)),
        tokenizer_of(folder),
        prompts_of(folder),
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
