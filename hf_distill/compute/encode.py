"""Forward passes without gradients, as fast as the hardware lets: batches of nearly equal token
counts, every core busy.
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

CHARACTERS_PER_TOKEN = 3.5
"""Roughly, for the sub-word vocabularies of encoders: only the sizes of batches depend on it."""

PADDING = 0.1
"""A batch ends where its next text is shorter than its longest by more than this share: at most so
much of it is padding.
"""

Advance = Callable[[int, int], None]
"""Told of progress: texts done, tokens done."""

_CHUNK_BATCHES = 16
"""Batches that are tokenised at once. While they run, the next ones are tokenised."""


def text_length(item: str | tuple[str, str]) -> int:
    """Characters of a text, or of both texts of a pair."""
    return len(item) if isinstance(item, str) else len(item[0]) + len(item[1])


def batches_by_length(
    items: Sequence[str | tuple[str, str]], batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of `items` in batches of similar length, each of about `batch_tokens` tokens once
    padded; the longest first.
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
    """The tokenised texts in batches of nearly equal token counts, each without the padding that it
    does not need.

    None if these features are no (count, length) matrices with the padding on the right, which is
    the case for unpadded attention (`unpad_inputs`) and for models without an attention mask: they
    have no padding to avoid.
    """
    mask = features.get("attention_mask")
    if (
        not isinstance(mask, Tensor)
        or mask.ndim != 2
        or len(mask) != count
        or not bool(mask[:, 0].all())
    ):
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
        batches.append(
            (
                rows,
                {
                    name: value[rows, :longest]
                    if isinstance(value, Tensor) and value.shape == mask.shape
                    else value
                    for name, value in features.items()
                },
            )
        )
        start = end
    return batches


def run_in_batches(
    model: BaseModel,
    items: Sequence[str | tuple[str, str]],
    batch_tokens: int,
    output: str,
    advance: Advance | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """`model`'s `output` for every text (or pair of texts, for a cross-encoder), in some order.

    Texts are tokenised some batches at a time, by the model's own `preprocess`, then cut into
    batches of nearly equal token counts: a fixed number of texts a batch means padding, and too
        many long texts or too few short ones for the caches. On a CPU each core
    runs batches of its own: operations on this little data do not keep several cores busy, and wait
        for each other at every one.

    Args:
        model: A SentenceTransformer or a CrossEncoder, in evaluation mode.
        items: Texts that carry their prompts already, or pairs of them.
        batch_tokens: Tokens in a forward pass, once padded.
        output: The key of the model's output, e.g. `sentence_embedding`.
        advance: Told after each batch.

    Yields:
        Indices of `items` and their outputs, float32 on the CPU, one row each.
    """
    threads = torch.get_num_threads() if model.device.type == "cpu" else 1

    @torch.inference_mode()
    def forward(features: dict[str, Any]) -> Tensor:
        moved = {
            name: value.to(model.device) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        made: Tensor = model(moved)[output]
        return made.float().cpu()

    def submit(
        chunk: list[int], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[int], int, Future[Tensor]]]:
        features = model.preprocess([items[i] for i in chunk])
        batches = _cut(features, len(chunk), batch_tokens)
        if batches is not None:
            for rows, batch in batches:
                yield (
                    [chunk[row] for row in rows.tolist()],
                    int(batch["attention_mask"].sum()),
                    pool.submit(forward, batch),
                )
            return
        if (
            "attention_mask" not in features
        ):  # a table of token vectors: nothing to pad, and no reason to tokenise again
            yield chunk, features["input_ids"].numel(), pool.submit(forward, features)
            return
        for places in batches_by_length([items[i] for i in chunk], batch_tokens):
            names = [chunk[place] for place in places]
            batch = model.preprocess([items[i] for i in names])
            yield names, batch["input_ids"].numel(), pool.submit(forward, batch)

    waiting: list[tuple[list[int], int, Future[Tensor]]] = []
    try:
        with ThreadPoolExecutor(
            threads, initializer=(lambda: torch.set_num_threads(1)) if threads > 1 else None
        ) as pool:
            for chunk in [*batches_by_length(items, _CHUNK_BATCHES * batch_tokens), []]:
                submitted = list(submit(chunk, pool)) if chunk else []
                for (
                    names,
                    tokens,
                    future,
                ) in waiting:  # those of the chunk before, while this one's are at work
                    made = future.result()
                    if advance:
                        advance(len(names), tokens)
                    yield names, made
                waiting = submitted
    finally:
        if threads > 1:
            torch.set_num_threads(
                threads
            )  # a worker's call is heard by libraries that know one number for all threads


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    batch_tokens: int | None = None,
    advance: Advance | None = None,
) -> Tensor:
    """Embeddings (len(texts), d), float32 on the CPU, of texts that carry their prompts already
    (see `run_in_batches`).

    Args:
        model: Any SentenceTransformer, in evaluation mode.
        texts: The texts.
        batch_tokens: Tokens in a forward pass. Default: what suits the device.
        advance: Told of progress.
    """
    embeddings = torch.empty(len(texts), int(model.get_embedding_dimension() or 0))
    for rows, made in run_in_batches(
        model,
        texts,
        batch_tokens or encoding_batch_tokens(model.device.type),
        "sentence_embedding",
        advance,
    ):
        if made.shape[1] != embeddings.shape[1]:
            embeddings = embeddings.new_empty(
                len(texts), made.shape[1]
            )  # a module that does not know its own dimension
        embeddings[rows] = made
    return embeddings
