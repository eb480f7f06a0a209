"""Forward passes without gradients, as fast as the hardware allows: batches of nearly equal token
counts, and every core busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.util import truncate_embeddings
from torch import Tensor, nn

from hf_distill.compute.device import encoding_batch_tokens

Item = str | tuple[str, str]
"""What a model reads: a text, or a pair of texts for a cross-encoder."""

Advance = Callable[[int, int], None]
"""Called with progress: how many texts are done, and how many tokens they had."""

Batch = tuple[list[int], int, Future[Tensor]]
"""The indices of some items, their tokens, and their outputs to come."""

_POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")
"""What models of transformers call their table of one vector for each position."""

CHARACTERS_PER_TOKEN = 3.5
"""Roughly, for the sub-word vocabularies of encoders. Only the sizes of batches depend on it."""

PADDING = 0.1
"""The largest share of a batch that may be padding."""

_CHUNK_BATCHES, _CHUNK_BATCHES_OF_ACCELERATOR = 16, 4
"""How many batches are tokenised at a time. While they run, the next ones are tokenised. An
accelerator's batches are large, and it idles while the first ones are tokenised.
"""


@dataclass(frozen=True)
class Asked:
    """The arguments beside the texts with which sentence-transformers asks a model: prompt, task
    and whatever else.

    Attributes:
        preprocess: Those of `model.preprocess`.
        forward: Those of the forward pass.
    """

    preprocess: Mapping[str, Any] = field(default_factory=dict)
    forward: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The text that the model gets before each text, or as its instruction."""
        return self.preprocess.get("prompt") or ""


PLAIN = Asked()
"""A text as it is."""


def how_asked(model: BaseModel, call: Callable[[], Any]) -> Asked:
    """How sentence-transformers itself asks `model` in `call`, e.g. `lambda:
    model.encode_query("a")`. It is called and watched, so whatever the library does with prompts,
    default prompts, tasks and routes, the same is done here.
    """
    preprocess: dict[str, Any] = {}
    forward: dict[str, Any] = {}
    own: Callable[..., Any] = model.preprocess

    def watched(inputs: Any, **arguments: Any) -> Any:
        preprocess.update(arguments)
        return own(inputs, **arguments)

    hook = model.register_forward_pre_hook(
        lambda _, __, arguments: forward.update(arguments), with_kwargs=True
    )
    vars(model)["preprocess"] = watched
    try:
        call()
    finally:
        del vars(model)["preprocess"]
        hook.remove()
    return Asked(preprocess, forward)


def position_tables(model: nn.Module) -> list[nn.Embedding]:
    """The tables of one learned vector for each position that `model` has. A model with rotary or
    relative positions has none.
    """
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITION_TABLES
    ]


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
    features: Mapping[str, Any], count: int, batch_tokens: int, has_positions: bool = False
) -> list[tuple[Tensor, dict[str, Any]]] | None:
    """Tokenised texts in batches of nearly equal token counts, each padded only as far as it needs:
    the rows of each batch and their features.

    None unless the features are (count, length) matrices. Unpadded attention (`unpad_inputs`) and
    models without an attention mask have no padding to avoid.

    Args:
        features: What `preprocess` returned.
        count: How many texts they are.
        batch_tokens: Tokens in a batch, padding included.
        has_positions: The model has one vector for each position (`position_tables`), so padding
            on the left would move its tokens: a batch then has no padding.
    """
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != count:
        return None
    on_the_right = bool(mask[:, 0].all())
    if not on_the_right and not bool(mask[:, -1].all()):
        return None
    padding = 0.0 if has_positions and not on_the_right else PADDING
    lengths = mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    batches = []
    start = 0
    while start < count:
        longest = sizes[start]
        end = min(count, start + max(1, batch_tokens // longest))
        while sizes[end - 1] < (1 - padding) * longest:
            end -= 1
        rows = order[start:end]
        kept = slice(longest) if on_the_right else slice(mask.shape[1] - longest, None)
        batch = {
            name: value[rows, kept]
            if isinstance(value, Tensor) and value.shape == mask.shape
            else value
            for name, value in features.items()
        }
        batches.append((rows, batch))
        start = end
    return batches


def _tokens(features: Mapping[str, Any]) -> int:
    """Tokens in `features`; 0 for a model that has none."""
    ids = features.get("input_ids")
    return ids.numel() if isinstance(ids, Tensor) else 0


def run_in_batches(
    model: BaseModel,
    items: Sequence[Item],
    batch_tokens: int,
    output: str,
    advance: Advance | None = None,
    asked: Asked = PLAIN,
) -> Iterator[tuple[list[int], Tensor]]:
    """`model`'s `output` for every item, in some order.

    The model's own `preprocess` tokenises several batches at a time. They are then cut into batches
    of nearly equal token counts, because with a fixed number of texts a batch is full of padding,
    and either too big or too small for the caches. On a CPU each core runs batches of its own: one
    batch is too little work to share, and the cores would wait for each other at every operation.

    What is in a batch changes no output. Where padding on the left would (it moves the tokens of a
    model that has one vector for each position), all items of a batch have the same length.

    Args:
        model: A model of sentence-transformers, in evaluation mode.
        items: Texts or pairs of texts.
        batch_tokens: Tokens in a forward pass, padding included.
        output: The key of the model's output, e.g. `sentence_embedding`.
        advance: Called after each batch.
        asked: Prompt, task and whatever else the model gets beside the items.

    Yields:
        Indices of `items` and their outputs, one row each, float32 on the CPU.
    """
    on_cpu = model.device.type == "cpu"
    threads = torch.get_num_threads() if on_cpu else 1
    chunk_tokens = batch_tokens * (_CHUNK_BATCHES if on_cpu else _CHUNK_BATCHES_OF_ACCELERATOR)

    @torch.inference_mode()
    def forward(features: dict[str, Any]) -> Tensor:
        moved = {
            name: value.to(model.device) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        outputs: Tensor = model(moved, **asked.forward)[output]
        return outputs.float().cpu()

    def preprocess(indices: list[int]) -> dict[str, Any]:
        features: dict[str, Any] = model.preprocess([items[i] for i in indices], **asked.preprocess)
        return features

    has_positions = bool(position_tables(model))

    def submit(chunk: list[int], pool: ThreadPoolExecutor) -> Iterator[Batch]:
        features = preprocess(chunk)
        batches = _cut(features, len(chunk), batch_tokens, has_positions)
        if batches is not None:
            for rows, batch in batches:
                indices = [chunk[row] for row in rows.tolist()]
                tokens = int(batch["attention_mask"].sum())
                yield indices, tokens, pool.submit(forward, batch)
        elif "attention_mask" not in features and "cu_seq_lens_q" not in features:
            # A table of token vectors: no padding, so no smaller batches either.
            yield chunk, _tokens(features), pool.submit(forward, features)
        else:
            for places in batches_by_length([items[i] for i in chunk], batch_tokens):
                indices = [chunk[place] for place in places]
                batch = preprocess(indices)
                yield indices, _tokens(batch), pool.submit(forward, batch)

    one_thread = (lambda: torch.set_num_threads(1)) if threads > 1 else None
    waiting: list[Batch] = []
    try:
        with ThreadPoolExecutor(threads, initializer=one_thread) as pool:
            for chunk in [*batches_by_length(items, chunk_tokens), []]:
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
    asked: Asked = PLAIN,
) -> Tensor:
    """Embeddings (len(texts), d), float32 on the CPU (see `run_in_batches`), cut to the model's
    `truncate_dim` if it has one.

    Args:
        model: Any SentenceTransformer, in evaluation mode.
        texts: The texts.
        batch_tokens: Tokens in a forward pass. Default: what suits the device.
        advance: Called after each batch.
        asked: Prompt and task. By default the texts have their prompts already.
    """
    embeddings = torch.empty(len(texts), int(model.get_embedding_dimension() or 0))
    tokens = batch_tokens or encoding_batch_tokens(model.device.type)
    for rows, whole in run_in_batches(model, texts, tokens, "sentence_embedding", advance, asked):
        dimension = model.truncate_dim
        outputs = whole if dimension is None else truncate_embeddings(whole, dimension)
        if outputs.shape[1] != embeddings.shape[1]:
            # Some models do not report the dimension of their last module.
            embeddings = embeddings.new_empty(len(texts), outputs.shape[1])
        embeddings[rows] = outputs
    return embeddings
