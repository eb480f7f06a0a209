"""The student's vocabulary: cut down to what the training texts use, and a vector for each token
without any transformer.

Half of a small student's weights are rows of a table for tokens that its texts never use.
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
    """The tokenizer of a model for texts.

    Raises:
        InputError: It has none.
    """
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"the backbone reads its texts by a {type(tokenizer).__name__}, which is no tokenizer of transformers"
        )
    return tokenizer


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, batches: Iterable[list[str]], max_length: int
) -> np.ndarray:
    """How often each token occurs: (vocabulary,) int64.

    Args:
        tokenizer: Whose ids are counted.
        batches: The texts, some at a time: memory does not grow with their number.
        max_length: Tokens of each text that count.
    """
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for texts in batches:
        for ids in tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]:
            np.add.at(counts, ids, 1)
    return counts


def _pieces(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer as its `tokenizer.json` says it, and the vocabulary of its model in order of
    id.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"--student_vocabulary used: {type(tokenizer).__name__} has no tokenizer.json to be cut"
        )
    said: dict[str, Any] = json.loads(backend.to_str())
    model = said["model"]
    if model["type"] == "WordPiece":
        return said, sorted(model["vocab"], key=model["vocab"].__getitem__)
    if model["type"] == "Unigram":
        return said, [piece for piece, _ in model["vocab"]]
    raise InputError(
        f"--student_vocabulary used: the tokenizer is a {model['type']} model, whose tokens are built from each other; WordPiece and "
        "Unigram vocabularies can be cut. Leave the key out"
    )


def kept_tokens(tokenizer: PreTrainedTokenizerBase, counts: np.ndarray) -> np.ndarray:
    """Ids to keep, ascending: tokens that occur, special tokens, and single characters (and bytes),
    so that any other word can be spelled.

    Texts whose tokens all occur are tokenised as before: WordPiece takes the longest piece that
        fits, Unigram the likeliest pieces, and
    both find the same ones among fewer.

    Raises:
        InputError: A tokenizer that cannot be cut.
    """
    said, pieces = _pieces(tokenizer)
    prefix = said["model"].get("continuing_subword_prefix") or "▁"
    single = [
        len(piece.removeprefix(prefix)) <= 1 or (piece.startswith("<0x") and piece.endswith(">"))
        for piece in pieces
    ]
    keep = counts > 0
    keep[: len(pieces)] |= np.array(single)
    keep[[token["id"] for token in said["added_tokens"]]] = True
    return np.flatnonzero(keep)


def _renumbered(post_processor: Any, new: dict[int, int]) -> Any:
    """The post-processor with its special tokens' ids renumbered."""
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
    """A tokenizer with the tokens `kept` (ascending ids) alone, numbered anew in their order."""
    said, pieces = _pieces(tokenizer)
    new = {int(old): i for i, old in enumerate(kept)}
    model = said["model"]
    if model["type"] == "WordPiece":
        model["vocab"] = {pieces[old]: i for old, i in new.items() if old < len(pieces)}
    else:
        model["vocab"] = [model["vocab"][old] for old in new if old < len(pieces)]
        model["unk_id"] = None if model.get("unk_id") is None else new[model["unk_id"]]
    said["added_tokens"] = [{**token, "id": new[token["id"]]} for token in said["added_tokens"]]
    said["post_processor"] = _renumbered(said["post_processor"], new)
    said["padding"] = said["truncation"] = None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():
            if path.name not in ("tokenizer_config.json", "special_tokens_map.json"):
                path.unlink()  # vocab.txt and the like say the old vocabulary
        (Path(folder) / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
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
    """What `model` makes of each token alone, between its special tokens: (len(kept), d) float32
    (as Model2Vec begins, Minish Lab 2024).
    """
    around = tokenizer_of(model)("")["input_ids"]
    before, after = around[:1], around[1:]
    made = []
    for start in tqdm(
        range(0, len(kept), _BATCH), desc=f"Vectors of {len(kept):,} tokens", leave=False
    ):
        ids = torch.tensor(
            [[*before, int(token), *after] for token in kept[start : start + _BATCH]],
            device=model.device,
        )
        made.append(
            model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"]
            .float()
            .cpu()
            .numpy()
        )
    return np.concatenate(made)


def static_vectors(
    embeddings: np.ndarray, counts: np.ndarray, components: np.ndarray
) -> np.ndarray:
    """The first vector of each token of a static student: (V, dimension) float32.

    A text's embedding is the mean of its tokens' vectors, so frequent tokens are weighted down by
    smooth inverse frequency.

    Args:
        embeddings: (V, d) of each token alone.
        counts: (V,) how often each occurs.
        components: (dimension, d) principal components of the teacher's embeddings of texts.
    """
    share = counts / max(1, counts.sum())
    vectors: np.ndarray = (embeddings @ components.T) * (SIF / (SIF + share))[:, None]
    return vectors.astype(np.float32)
