"""The pool: texts that the student is aligned on beside the pairs.

The teacher can embed any text, and not only those of the training domain. A student that is aligned
on the texts of the pairs alone forgets the rest. The pool holds passages of the training texts. In
half of them some words are exchanged for others of the student's vocabulary: words of the whole
vocabulary in sentences of the domain. No text of another domain is needed.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from sentence_transformers import SentenceTransformer

from hf_distill.data.collection import Collection, Pairs, text_id, write_table
from hf_distill.data.keys import each_once
from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.stage import stage, written_whole
from hf_distill.scoring.embeddings import Vectors, embed_texts
from hf_distill.teachers.base import EmbeddingTeacher, TextKind

SHORTEST, LONGEST = 3, 40
"""Words in a passage; fewer where its text has fewer."""
MOST_EXCHANGED = 0.6
"""Half of the passages stay as they are. In each of the others, every word is exchanged with a
probability that is drawn for the passage, from 0 to this.
"""
LARGEST = 200_000
"""The most texts in a pool, unless one epoch alone draws more."""

FEATURES = Features({"text": Value("string"), "kind": Value("string")})

_LETTERS = 3
_FIRST_WORDS = ("▁", "Ġ")
_READ = 1000
_TRIES = 10
"""At most this many passages are drawn for each one that is wanted."""

_log = logging.getLogger(__name__)


def vocabulary_words(pieces: Iterable[str]) -> list[str]:
    """The words among the `pieces` of a vocabulary, sorted: whole words of at least three letters
    and nothing else.

    Where pieces are marked as the beginning of a word (by `▁` in Unigram, `Ġ` in byte-level BPE),
    only these count; else all that have no `##` (WordPiece).
    """
    every = list(pieces)
    for mark in _FIRST_WORDS:
        if any(piece.startswith(mark) for piece in every):
            every = [piece.removeprefix(mark) for piece in every if piece.startswith(mark)]
            break
    return sorted({piece for piece in every if len(piece) >= _LETTERS and piece.isalpha()})


def words_of(student: SentenceTransformer) -> list[str]:
    """`vocabulary_words` of the student's tokenizer; none if it has no vocabulary."""
    tokenizer = student.tokenizer
    return vocabulary_words(tokenizer.get_vocab()) if hasattr(tokenizer, "get_vocab") else []


def student_words(student: SentenceTransformer) -> list[str]:
    """The same for the pool.

    Raises:
        InputError: There are none.
    """
    words = words_of(student)
    if not words:
        raise InputError(
            "--texts_per_pair exchanges words for others of the student's vocabulary, but the "
            f"vocabulary of its {type(student.tokenizer).__name__} holds no whole words; set it "
            "to 0"
        )
    return words


def passage(text: str, words: Sequence[str], seed: str) -> str:
    """A passage of `text`, in which some words may be exchanged for some of `words`. The same
    arguments always give the same passage.

    Args:
        text: The text; its words are separated by white space.
        words: What they are exchanged for, each with the same probability.
        seed: Draws the passage, how many words are exchanged, and which.
    """
    draw = random.Random(seed)
    all_words = text.split()
    length = draw.randint(min(SHORTEST, len(all_words)), min(LONGEST, len(all_words)))
    start = draw.randint(0, len(all_words) - length)
    share = draw.uniform(-MOST_EXCHANGED, MOST_EXCHANGED)
    return " ".join(
        draw.choice(words) if draw.random() < share else word
        for word in all_words[start : start + length]
    )


def _endless(numbers: np.ndarray, seed: Sequence[int]) -> Iterator[int]:
    """All of `numbers` in a random order, then all of them in another one, and so on."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(numbers)


@dataclass(frozen=True)
class Drawn:
    """Texts that passages are drawn from: their numbers (n,), each once, where these are looked up,
    and whether the passages are read as queries or as documents.
    """

    numbers: np.ndarray
    look_up: Callable[[np.ndarray], list[str]]
    kind: TextKind


def texts_of_pairs(pairs: Pairs) -> list[Drawn]:
    """The queries and documents of `pairs`."""
    collection = pairs.collection
    return [
        Drawn(each_once(pairs.queries), collection.query_texts, "query"),
        Drawn(each_once(pairs.documents), collection.document_texts, "document"),
    ]


def texts_alone(collection: Collection) -> list[Drawn]:
    """The training texts, as the teacher reads them: passages of them are read as queries and as
    documents.
    """
    numbers, look_up = collection.text_numbers("train"), collection.teacher_texts
    return [Drawn(numbers, look_up, "query"), Drawn(numbers, look_up, "document")]


def make_pool(
    texts: Sequence[Drawn], size: int, words: Sequence[str], seed: int
) -> Iterator[tuple[str, TextKind]]:
    """Up to `size` different passages of texts, each with the kind of its text, in a random order.
    The `texts` take turns.

    There are fewer if the texts are so few and short that `_TRIES` passages for each one wanted do
    not give enough different ones.
    """
    numbers = [_endless(drawn.numbers, (seed, place)) for place, drawn in enumerate(texts)]
    seen: set[str] = set()

    def passages(place: int, start: int) -> list[tuple[str, TextKind]]:
        of = texts[place]
        read = of.look_up(np.fromiter(islice(numbers[place], _READ), np.int64, _READ))
        return [
            (passage(text, words, f"{seed} {of.kind} {start + i}"), of.kind)
            for i, text in enumerate(read)
        ]

    for start in range(0, math.ceil(_TRIES * size / len(texts)), _READ):
        drawn = zip(*(passages(place, start) for place in range(len(texts))), strict=True)
        for text, kind in chain.from_iterable(drawn):
            if len(seen) == size:
                return
            key = text_id(text)
            if text and key not in seen:
                seen.add(key)
                yield text, kind


def pool_size(pairs: int, config: DistillationConfig) -> int:
    """How many texts the pool of a training on `pairs` pairs holds: all that it will draw, but no
    more than `LARGEST` or what one epoch draws, whichever is more.
    """
    each = config.texts_per_pair
    step = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
    examples = (
        config.max_steps * step
        if config.max_steps > 0
        else math.ceil(config.num_train_epochs * pairs)
    )
    return each * min(examples, max(LARGEST // each, pairs)) if each else 0


def wanted_pool(pairs: int, stages: Sequence[DistillationConfig]) -> int:
    """The size of the pool that all stages of a training on `pairs` pairs share."""
    return max(pool_size(pairs, stage) for stage in stages)


def pool_places(rows: np.ndarray, epoch: int, pairs: int, each: int, size: int) -> np.ndarray:
    """Which texts of a pool of `size` go with which pair: (m, each) int64.

    The pool is drawn from front to back, epoch after epoch, and then again from the front. Its
    order is random.

    Args:
        rows: (m,) int64, which of the `pairs` pairs.
        epoch: From 0 on.
        pairs: How many the training has.
        each: Texts for each pair.
        size: Texts in the pool.
    """
    first = (epoch * pairs + rows) * each
    places: np.ndarray = (first[:, None] + np.arange(each)) % size
    return places


@dataclass(frozen=True)
class Pool:
    """Texts that are aligned beside the pairs.

    Attributes:
        texts: Columns `text` and `kind` (query or document: which prompt it gets).
        vectors: The teacher's embeddings, a row for each text.
    """

    texts: Dataset
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: np.ndarray) -> tuple[list[str], list[TextKind], np.ndarray]:
        """The texts at `places` (m,), their kinds, and their embeddings (m, D) float16."""
        rows: dict[str, Any] = self.texts[places]
        return rows["text"], rows["kind"], self.vectors[places]


@dataclass(frozen=True)
class PoolRecord:
    """`pool/manifest.json`: the key of what the pool depends on, and its texts."""

    key: str
    texts: int


@dataclass(frozen=True)
class PoolPlan:
    """What a pool is made of.

    Attributes:
        texts: What its passages are drawn from.
        key: The fingerprint of what they depend on.
        size: How many texts are wanted.
        words: What words are exchanged for.
        seed: Draws the passages.
    """

    texts: Sequence[Drawn]
    key: str
    size: int
    words: Sequence[str]
    seed: int


def load_pool(plan: PoolPlan, teacher: EmbeddingTeacher, folder: Path, shards: Path) -> Pool:
    """The planned pool, read or made, and embedded by all processes together.

    Args:
        plan: What it is made of.
        teacher: Embeds its texts.
        folder: Folder of the pool.
        shards: Folder of the embeddings, which several runs may share.

    Raises:
        InputError: The training texts hold no words.
    """
    path = folder / "texts.arrow"

    def make(key: str) -> PoolRecord:
        texts = make_pool(plan.texts, plan.size, plan.words, plan.seed)
        with written_whole(path) as temporary:
            write_table(({"text": text, "kind": kind} for text, kind in texts), FEATURES, temporary)
        count = len(Dataset.from_file(str(path)))
        if count < plan.size:
            _log.warning(
                "--texts_per_pair needs %s different texts, but the training texts are so few or "
                "so short that %s passages of them gave only %s; these are drawn more than once",
                f"{plan.size:,}", f"{_TRIES * plan.size:,}", f"{count:,}",
            )  # fmt: skip
        return PoolRecord(key, count)

    inputs = [plan.key, plan.size, plan.seed, list(plan.words)]
    record = stage(folder / "manifest.json", PoolRecord, inputs, make, [path])
    if not record.texts:
        raise InputError("--texts_per_pair: the training texts hold no words; set it to 0")
    texts = Dataset.from_file(str(path))
    return Pool(texts, embed_texts(texts, teacher, shards))
