"""Forward passes without gradients, as fast as the hardware allows: batches of nearly equal token
counts, and every core busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from torch import Tensor

from hf_distill.compute.device import encoding_batch_tokens

Item = str | tuple[str, str]
"""What a model reads: a text, or a pair of texts for a cross-encoder."""

Advance = Callable[[int, int], None]
"""Called with progress: how many texts are done, and how many tokens they had."""

Batch = tuple[list[int], int, Future[Tensor]]
"""The indices of some items, their tokens, and their outputs to come."""

CHARACTERS_PER_TOKEN = 3.5
"""Roughly, for the sub-word vocabularies of encoders. Only the sizes of batches depend on it."""

PADDING = 0.1
"""The largest share of a batch that may be padding."""

_CHUNK_BATCHES = 16
"""How many batches are tokenised at a time. While they run, the next ones are tokenised."""


def text_length(item: Item) -> int:
    """Characters of a text, or of both texts of a pair."""
    return len(item) if isinstance(item, str) else len(item[0]) + len(item[1])


def batches_by_length(items: Sequence[Item], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of `items` in batches of similar length, the longest first. Each batch has about
    `batch_tokens` tokens when padded.
    """
    order = sorted(range(len(items)), key=lambda i: (-text_length(items[i]), i))
    start = 0
    while start < len(order):
        tokens = text_length(items[order[start]]) / CHARACTERS_PER_TOKEN + 2
        size = max(1, int(batch_tokens / tokens))
        yield order[start : start + size]
        start += size


def _cut(
    features: dict[str, Any], count: int, batch_tokens: int
) -> list[tuple[Tensor, dict[str, Any]]] | None:
    """Tokenised texts in batches of nearly equal token counts, each padded only as far as it needs:
    the rows of each batch and their features.

    None unless the features are (count, length) matrices with the padding on the right. Unpadded
    attention (`unpad_inputs`) and models without an attention mask have no padding to avoid.
    """
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != count:
        return None
    if not bool(mask[:, 0].all()):
        return None
    lengths = mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    batches = []
    start = 0
    while start < count:
        longest = sizes[start]
        end = min(count, start + max(1, batch_tokens // longest))
        while sizes[end - 1] < (1 - PADDING) * longest:
            end -= 1
        rows = order[start:end]
        batch = {
            name: value[rows, :longest]
            if isinstance(value, Tensor) and value.shape == mask.shape
            else value
            for name, value in features.items()
        }
        batches.append((rows, batch))
        start = end
    return batches


def run_in_batches(
    model: BaseModel,
    items: Sequence[Item],
    batch_tokens: int,
    output: str,
    advance: Advance | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """`model`'s `output` for every item, in some order.

    The model's own `preprocess` tokenises several batches at a time. They are then cut into batches
    of nearly equal token counts, because with a fixed number of texts a batch is full of padding,
    and either too big or too small for the caches. On a CPU each core runs batches of its own: one
    batch is too little work to share, and the cores would wait for each other at every operation.

    Args:
        model: A SentenceTransformer or a CrossEncoder, in evaluation mode.
        items: Texts that have their prompts already, or pairs of them.
        batch_tokens: Tokens in a forward pass, padding included.
        output: The key of the model's output, e.g. `sentence_embedding`.
        advance: Called after each batch.

    Yields:
        Indices of `items` and their outputs, one row each, float32 on the CPU.
    """
    threads = torch.get_num_threads() if model.device.type == "cpu" else 1

    @torch.inference_mode()
    def forward(features: dict[str, Any]) -> Tensor:
        moved = {
            name: value.to(model.device) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        outputs: Tensor = model(moved)[output]
        return outputs.float().cpu()

    def submit(chunk: list[int], pool: ThreadPoolExecutor) -> Iterator[Batch]:
        features = model.preprocess([items[i] for i in chunk])
        batches = _cut(features, len(chunk), batch_tokens)
        if batches is not None:
            for rows, batch in batches:
                indices = [chunk[row] for row in rows.tolist()]
                tokens = int(batch["attention_mask"].sum())
                yield indices, tokens, pool.submit(forward, batch)
        elif "attention_mask" not in features:
            # A table of token vectors: no padding, so no smaller batches either.
            yield chunk, features["input_ids"].numel(), pool.submit(forward, features)
        else:
            for places in batches_by_length([items[i] for i in chunk], batch_tokens):
                indices = [chunk[place] for place in places]
                batch = model.preprocess([items[i] for i in indices])
                yield indices, batch["input_ids"].numel(), pool.submit(forward, batch)

    one_thread = (lambda: torch.set_num_threads(1)) if threads > 1 else None
    waiting: list[Batch] = []
    try:
        with ThreadPoolExecutor(threads, initializer=one_thread) as pool:
            for chunk in [*batches_by_length(items, _CHUNK_BATCHES * batch_tokens), []]:
                submitted = list(submit(chunk, pool)) if chunk else []
                # While the workers run this chunk, hand out the one before.
                for indices, tokens, future in waiting:
                    outputs = future.result()
                    if advance:
                        advance(len(indices), tokens)
                    yield indices, outputs
                waiting = submitted
    finally:
        if threads > 1:
            # Some libraries keep one thread count for the whole process; the workers changed it.
            torch.set_num_threads(threads)


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    batch_tokens: int | None = None,
    advance: Advance | None = None,
) -> Tensor:
    """Embeddings (len(texts), d), float32 on the CPU (see `run_in_batches`).

    Args:
        model: Any SentenceTransformer, in evaluation mode.
        texts: Texts that have their prompts already.
        batch_tokens: Tokens in a forward pass. Default: what suits the device.
        advance: Called after each batch.
    """
    embeddings = torch.empty(len(texts), int(model.get_embedding_dimension() or 0))
    tokens = batch_tokens or encoding_batch_tokens(model.device.type)
    for rows, outputs in run_in_batches(model, texts, tokens, "sentence_embedding", advance):
        if outputs.shape[1] != embeddings.shape[1]:
            # Some models do not report the dimension of their last module.
            embeddings = embeddings.new_empty(len(texts), outputs.shape[1])
        embeddings[rows] = outputs
    return embeddings
