"""The student's vocabulary: cutting it down to what the training texts use, and one vector for each
token instead of a transformer.

Half of a small student's weights belong to tokens that its texts never use.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_distill.errors import InputError

SIF = 1e-3
"""The `a` of smooth inverse frequency, a / (a + p(token)) (Arora, Liang & Ma, 2017)."""

_BATCH = 512


def tokenizer_of(model: SentenceTransformer | Transformer) -> PreTrainedTokenizerBase:
    """The tokenizer of `model`.

    Raises:
        InputError: The model reads texts without a tokenizer of transformers.
    """
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"--student_backbone: the model reads texts with a {type(tokenizer).__name__}, but a "
            "student needs a tokenizer of transformers; name another backbone"
        )
    return tokenizer


def count_tokens(
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[tuple[list[str], np.ndarray]],
    max_length: int,
) -> np.ndarray:
    """How often each token occurs: (vocabulary,) int64.

    Args:
        tokenizer: The tokenizer whose ids are counted.
        batches: Some texts, and how often each of them counts (n,). Memory grows with the size of
            a batch, not with the number of texts.
        max_length: Count only this many tokens of a text, its special tokens included.
    """
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for texts, times in batches:
        encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        for ids, number in zip(encoded, times, strict=True):
            np.add.at(counts, ids, number)
    return counts


def _pieces(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], list[str]]:
    """The content of `tokenizer.json`, and the vocabulary of its model in order of id."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"--student_vocabulary used: a {type(tokenizer).__name__} has no tokenizer.json that "
            "could be cut; set --student_vocabulary all"
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    model = content["model"]
    if model["type"] == "WordPiece":
        return content, sorted(model["vocab"], key=model["vocab"].__getitem__)
    if model["type"] == "Unigram":
        return content, [piece for piece, _ in model["vocab"]]
    raise InputError(
        f"--student_vocabulary used: the tokenizer is a {model['type']} model, whose tokens are "
        "merged from each other. Only WordPiece and Unigram vocabularies can be cut; set "
        "--student_vocabulary all"
    )


def kept_tokens(tokenizer: PreTrainedTokenizerBase, counts: np.ndarray) -> np.ndarray:
    """The ids to keep, ascending: tokens that occur, special tokens, and single characters and
    bytes, which spell any other word.

    Texts whose tokens all occur are tokenised as before: WordPiece takes the longest piece that
    fits, Unigram the likeliest pieces, and both choose the same pieces among fewer.

    Raises:
        InputError: The tokenizer cannot be cut.
    """
    content, pieces = _pieces(tokenizer)
    prefix = content["model"].get("continuing_subword_prefix") or "▁"
    single = [
        len(piece.removeprefix(prefix)) <= 1 or (piece.startswith("<0x") and piece.endswith(">"))
        for piece in pieces
    ]
    keep = counts > 0
    keep[: len(pieces)] |= np.array(single)
    keep[[token["id"] for token in content["added_tokens"]]] = True
    return np.flatnonzero(keep)


def _renumbered(post_processor: Any, new: dict[int, int]) -> Any:
    """The post-processor with new ids for its special tokens."""
    if not isinstance(post_processor, dict):
        return post_processor
    changed = dict(post_processor)
    for name in ("sep", "cls"):
        if isinstance(changed.get(name), list):
            changed[name] = [changed[name][0], new[changed[name][1]]]
    if isinstance(changed.get("special_tokens"), dict):
        changed["special_tokens"] = {
            name: {**token, "ids": [new[i] for i in token["ids"]]}
            for name, token in changed["special_tokens"].items()
        }
    if "processors" in changed:
        changed["processors"] = [_renumbered(part, new) for part in changed["processors"]]
    return changed


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: np.ndarray) -> PreTrainedTokenizerBase:
    """A tokenizer with only the tokens `kept` (ascending ids), numbered in this order."""
    content, pieces = _pieces(tokenizer)
    new = {int(old): i for i, old in enumerate(kept)}
    model = content["model"]
    if model["type"] == "WordPiece":
        model["vocab"] = {pieces[old]: i for old, i in new.items() if old < len(pieces)}
    else:
        model["vocab"] = [model["vocab"][old] for old in new if old < len(pieces)]
        model["unk_id"] = None if model.get("unk_id") is None else new[model["unk_id"]]
    content["added_tokens"] = [
        {**token, "id": new[token["id"]]} for token in content["added_tokens"]
    ]
    content["post_processor"] = _renumbered(content["post_processor"], new)
    content["padding"] = content["truncation"] = None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():
            if path.name not in ("tokenizer_config.json", "special_tokens_map.json"):
                path.unlink()  # vocab.txt and the like hold the old vocabulary
        (Path(folder) / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        settings = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        cut: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return cut


def trim_vocabulary(transformer: Transformer, kept: np.ndarray) -> None:
    """Cut the vocabulary of `transformer` down to the tokens `kept` (ascending ids), in tokenizer
    and embedding matrix, in place.
    """
    backbone, limit = transformer.auto_model, transformer.max_seq_length
    cut = cut_tokenizer(tokenizer_of(transformer), kept)
    table = backbone.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    padding = cut.pad_token_id
    smaller = nn.Embedding(
        len(kept), table.embedding_dim, padding_idx=None if table.padding_idx is None else padding
    )
    smaller.weight.data = table.weight.data[torch.from_numpy(kept)].clone()
    backbone.set_input_embeddings(smaller)
    backbone.config.vocab_size = len(kept)
    backbone.config.pad_token_id = padding
    transformer.processor = cut
    transformer.max_seq_length = limit


@torch.inference_mode()
def token_embeddings(model: SentenceTransformer, kept: np.ndarray) -> np.ndarray:
    """`model`'s embedding of each token alone, between special tokens: (len(kept), d) float32.
    Model2Vec begins in the same way (Minish Lab, 2024).
    """
    around = tokenizer_of(model)("")["input_ids"]
    before, after = around[:1], around[1:]
    parts = []
    starts = range(0, len(kept), _BATCH)
    for start in tqdm(starts, desc=f"Vectors of {len(kept):,} tokens", leave=False):
        rows = [[*before, int(token), *after] for token in kept[start : start + _BATCH]]
        ids = torch.tensor(rows, device=model.device)
        output = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        parts.append(output["sentence_embedding"].float().cpu().numpy())
    return np.concatenate(parts)


def static_vectors(
    embeddings: np.ndarray, counts: np.ndarray, components: np.ndarray
) -> np.ndarray:
    """The first vector of each token of a static student: (V, dimension) float32.

    A text's embedding is the mean of its tokens' vectors. Smooth inverse frequency gives frequent
    tokens a lower weight.

    Args:
        embeddings: (V, d), the embedding of each token alone.
        counts: (V,), how often each token occurs.
        components: (dimension, d), principal components of the teacher's embeddings of texts.
    """
    share = counts / max(1, counts.sum())
    vectors: np.ndarray = (embeddings @ components.T) * (SIF / (SIF + share))[:, None]
    return vectors.astype(np.float32)
