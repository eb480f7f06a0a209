"""Texts made of the training texts, for the student to be aligned on beside them.

The teacher has an embedding for any text, not only for those of the training domain, and a student
that is aligned on none but these forgets what the others say. So passages of the training texts are
taken, with some of their words exchanged for others of the student's vocabulary: their words are
the whole vocabulary's, in sentences of the domain. No text of another domain is needed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from sentence_transformers import SentenceTransformer

from hf_distill.data.collection import (
    map_rows,
    text_id,
)
from hf_distill.errors import InputError
from hf_distill.teachers.base import (
    EmbeddingTeacher,
    Kind,
)

SHORTEST, LONGEST = 3, 40
"""Words in a passage; fewer where its text has fewer."""
MOST_EXCHANGED = 0.6
"""Half of the passages stay as they are. In each other one every word is exchanged with a chance,
drawn for the passage, of up to this.
"""

_LETTERS = 3
_FIRST_WORDS = ("▁", "Ġ")


def vocabulary_words(pieces: Iterable[str]) -> list[str]:
    """The words among the `pieces` of a vocabulary, sorted: of at least three letters and nothing
    else, and not the rest of a word.

    Where pieces are marked as the beginning of a word (by `▁` in Unigram, `Ġ` in byte-level BPE),
    only these are; else all that have no `##` (WordPiece).
    """
    known = list(pieces)
    for mark in _FIRST_WORDS:
        if any(piece.startswith(mark) for piece in known):
            known = [piece.removeprefix(mark) for piece in known if piece.startswith(mark)]
            break
    return sorted({piece for piece in known if len(piece) >= _LETTERS and piece.isalpha()})


def student_words(student: SentenceTransformer) -> list[str]:
    """`vocabulary_words` of the student's tokenizer.

    Raises:
        InputError: It has none, or no words.
    """
    tokenizer = student.tokenizer
    words = vocabulary_words(tokenizer.get_vocab()) if hasattr(tokenizer, "get_vocab") else []
    if not words:
        raise InputError(
            f"augmented_texts_per_pair needs words of the student's vocabulary, and its {type(tokenizer).__name__} has no piece that is "
            "a word; set augmented_texts_per_pair: 0"
        )
    return words


def passage(text: str, words: Sequence[str], seed: str) -> str:
    """A passage of `text`, some of whose words are exchanged for some of `words`; always the same
    for the same arguments.

    Args:
        text: What the passage is of. Words are what stands between its blanks.
        words: What they are exchanged for, each as likely.
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


def kind_of(number: int) -> Kind:
    """What the augmented text of this number is made of, and prompted as: by turns the document and
    the query.
    """
    return "query" if number % 2 else "document"


def with_augmented_texts(
    pairs: Dataset, number: int, words: Sequence[str], teacher: EmbeddingTeacher
) -> Dataset:
    """`pairs` with `augmented`, `number` texts a row, and `augmented_ids`, the keys of their
    embeddings by `teacher`.

    They are made of other pairs: text i of a row of the pair so many rows further on, as drawn for
        i. In a batch, which is drawn from
    all rows, they are of as many pairs as there are texts; made of the row's own pair, they would
    only say again what that says.
    """
    further_on = [random.Random(i).randrange(len(pairs)) for i in range(number)]
    source = pairs.select_columns(["pair_id", "query", "document"])

    def column(i: int, rows: list[int]) -> list[str]:
        """Text i of each of `rows`."""
        others = source[[(row + further_on[i]) % len(source) for row in rows]]
        return [
            passage(text, words, f"{name} {i}")
            for name, text in zip(others["pair_id"], others[kind_of(i)], strict=True)
        ]

    def attach(_: dict[str, Any], rows: list[int]) -> dict[str, Any]:
        made = [
            list(texts) for texts in zip(*(column(i, rows) for i in range(number)), strict=True)
        ]
        ids = [
            [text_id(teacher.prompted(text, kind_of(i))) for i, text in enumerate(texts)]
            for texts in made
        ]
        return {"augmented": made, "augmented_ids": ids}

    lists = {
        name: ListOf(Value("string"), length=number) for name in ("augmented", "augmented_ids")
    }
    return map_rows(pairs, attach, Features({**pairs.features, **lists}), batch_size=256)


def one_by_one(pairs: Dataset) -> Dataset:
    """The `augmented` texts of `pairs`, a row each: columns `text` and `kind`."""

    def flatten(batch: dict[str, Any], _: list[int]) -> dict[str, Any]:
        texts = [(text, kind_of(i)) for row in batch["augmented"] for i, text in enumerate(row)]
        return {"text": [text for text, _ in texts], "kind": [kind for _, kind in texts]}

    return map_rows(
        pairs, flatten, Features({"text": Value("string"), "kind": Value("string")}), batch_size=256
    )
