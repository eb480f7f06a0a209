"""The data collator: tokenised texts, and the side columns that the in-batch matrices are built
from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor

from hf_distill.training.packing import Packer
from hf_distill.training.rows import Examples, Lookup, examples
from hf_distill.training.texts import pool_places

_SPECIAL = 8
"""About the characters of the tokens that a model adds to a text."""


def _shared_zero() -> Tensor:
    zero = torch.zeros((), dtype=torch.int64)
    zero.share_memory_()  # type: ignore[no-untyped-call]  # torch gives it no types
    return zero


def groups_of(lengths: list[int], most: int) -> list[int]:
    """Cut texts of ascending `lengths` into groups: how many are in each. Padded to its longest
    text, a group has no more than `most` characters (one text may have more), and a text is at
    least half as long as the longest one beside it.
    """
    sizes, first = [], 0
    for text, length in enumerate(lengths):
        padded = (text + 1 - first) * length
        if text > first and (padded > most or 2 * lengths[first] < length):
            sizes.append(text - first)
            first = text
    return [*sizes, len(lengths) - first] if lengths else []


@dataclass
class DistillationCollator(SentenceTransformerDataCollator):
    """Tokenises the texts of B pairs and the texts of the pool beside them, and adds the teacher's
    scores and embeddings. `hf_distill.training.rows` says what it reads.

    The texts are sorted by length and tokenised in groups, and each group is padded to its own
    longest text. Padded to the longest of the batch, half of all tokens would be padding. With a
    `packer`, the texts of a group follow one another without padding.

    Attributes:
        query_prompt, document_prompt: Text before each query and document.
        group_size: Texts in a group.
        group_characters: Instead, the most characters of a group, padding included: few groups for
            a device that does much at once. None: groups of `group_size`.
        packer: How the texts of a group are packed; None: they are padded.
        lookup: Where the rows' numbers are looked up.
        texts_per_pair: Texts of the pool beside each pair whose row has a number.
        pairs: How many pairs the training has.
        epoch: The epoch whose texts are drawn from the pool: one number in shared memory, so that
            the workers of a data loader see it, too.

    A batch holds model inputs `texts0_*`, `texts1_*`, ...; `place` (M,) int64, which undoes the
    sorting: queries, documents, hard negatives, or texts alone; then texts of the pool; the columns
    of `Sides`; of texts alone `text_embedding`; and with a pool `pool_embedding`
    (B, texts_per_pair, D) float16.
    """

    query_prompt: str = ""
    document_prompt: str = ""
    group_size: int = 16
    group_characters: int | None = None
    packer: Packer | None = None
    lookup: Lookup = field(default_factory=Lookup)
    texts_per_pair: int = 0
    pairs: int = 0
    epoch: Tensor = field(default_factory=_shared_zero)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = examples(features, self.lookup)
        further, pool = self._drawn(batch)
        texts = [self.query_prompt + text for text in batch.queries]
        others = (*batch.documents, *batch.negatives, *batch.texts)
        texts += [self.document_prompt + text for text in others]
        alone = {} if batch.text_embedding is None else {"text_embedding": batch.text_embedding}
        tokens = self._tokenised(texts + further)
        return {**tokens, **batch.sides.columns(), **alone, **pool}

    def _drawn(self, batch: Examples) -> tuple[list[str], dict[str, Tensor]]:
        """The texts of the pool beside these pairs, with their prompts, and their embeddings."""
        pool, each = self.lookup.pool, self.texts_per_pair
        if pool is None or batch.rows is None or not each:
            return [], {}
        places = pool_places(batch.rows, int(self.epoch), self.pairs, each, len(pool))
        texts, kinds, vectors = pool.take(places.ravel())
        prompts = {"query": self.query_prompt, "document": self.document_prompt}
        prompted = [prompts[kind] + text for kind, text in zip(kinds, texts, strict=True)]
        return prompted, {"pool_embedding": torch.from_numpy(vectors).view(*places.shape, -1)}

    def _tokenised(self, texts: list[str]) -> dict[str, Any]:
        """Model inputs by group, and where each text stands in them."""
        order = torch.tensor(sorted(range(len(texts)), key=lambda i: len(texts[i])))
        sizes: int | list[int] = self.group_size
        if self.group_characters is not None:
            sizes = groups_of([_SPECIAL + len(texts[i]) for i in order], self.group_characters)
        batch: dict[str, Any] = {}
        for number, group in enumerate(torch.split(order, sizes)):
            tokens = self.preprocess_fn([texts[i] for i in group.tolist()])
            if self.packer is not None:
                tokens, within = self.packer.pack(tokens)
                group.copy_(group[within])
            batch |= {f"texts{number}_{key}": value for key, value in tokens.items()}
        return {**batch, "place": order.argsort()}
