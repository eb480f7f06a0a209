"""A run whose training pairs hold noise. Validation, test and the documents that are searched stay
as they are, and no text is embedded again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.pipeline import Run
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import stage, written_whole
from hf_distill.scoring.embeddings import EmbeddingTable
from hf_distill.scoring.ranking import (
    POOL_SIZE,
    RankedPairs,
    document_pool,
    rank_in_pool,
    rank_pairs,
)
from hf_distill.selection.texts import text_keys
from hf_distill.study.noise import (
    FARTHEST,
    Answers,
    Injected,
    Noise,
    NoiseKind,
    inject_near,
    inject_random,
)


@dataclass(frozen=True)
class NoiseRecord:
    """`noise.json`; which pairs have which document now is in `noise.npz` beside it.

    Attributes:
        key: The fingerprint of what the noise depends on.
        kind, share: See `hf_distill.study.noise.Noise`.
        seed: Seeds the choice of pairs and documents.
        pairs: Training pairs.
        changed: Those that have another document.
    """

    key: str
    kind: NoiseKind
    share: float
    seed: int
    pairs: int
    changed: int


@dataclass(frozen=True)
class Noisy:
    """A run with noise.

    Attributes:
        run: Its collection, scores and ranking are those of the noisy pairs.
        record: What was changed.
        is_noisy: (n,) bool, which of the training pairs.
    """

    run: Run
    record: NoiseRecord
    is_noisy: np.ndarray


def check_noise(run: Run) -> None:
    """Raise InputError if no noise can be put into the pairs of `run`. Nothing is read."""
    if not run.teacher.embeds:
        raise InputError(
            f"--noise needs a teacher that embeds texts, to score the pairs that it makes; "
            f"{run.teacher.name} does not"
        )
    if run.recipe.lists.candidates:
        raise InputError(
            "--noise changes pairs, and the recipe mines lists for their queries, which would hold "
            "the right documents; set --candidates none"
        )


def _answers(collection: Collection) -> Answers:
    """What the judgements of all splits say. Texts count as the same without case, punctuation and
    spacing.
    """
    pairs = collection.every_pair()
    query_keys = np.zeros(len(collection.queries), dtype=np.uint64)
    document_keys = np.zeros(len(collection.documents), dtype=np.uint64)
    query_keys[pairs.queries] = text_keys(pairs, "query")
    document_keys[pairs.documents] = text_keys(pairs, "document")
    return Answers.of(query_keys, document_keys, pairs.queries, pairs.documents)


def _injected(run: Run, table: EmbeddingTable, noise: Noise, seed: int) -> Injected:
    train, scores = run.collection.pairs("train"), run.scores
    answers = _answers(run.collection)
    if noise.kind == "random":
        return inject_random(train.queries, train.documents, answers, noise.share, seed)
    pairs = RankedPairs(train.queries, train.documents, scores.of(train.rows))
    pool = document_pool(train.documents, POOL_SIZE, seed)
    ranking = rank_pairs(pairs, table, scores.scale.similarity, pool, FARTHEST, "")
    return inject_near(train.queries, train.documents, answers, ranking, noise.share, seed)


def _with_documents(collection: Collection, rows: np.ndarray, documents: np.ndarray) -> Dataset:
    """The judgements of `collection`, where those in `rows` (m,) have other `documents` (m,)."""
    table: pa.Table = collection.judgements.with_format("arrow")[:]
    numbers = collection.document_numbers.copy()
    numbers[rows] = documents
    place = table.schema.get_field_index("document")
    return Dataset(table.set_column(place, table.schema.field(place), pa.array(numbers)))


def noisy_run(run: Run, noise: Noise, out: Path) -> Noisy:
    """`run` with `noise` in its training pairs.

    The ranking pool still holds the documents of the clean pairs: noise changes who is said to
    answer what, and not which documents there are.

    Args:
        run: The clean one, whose teacher embeds texts.
        noise: What is injected, with the recipe's seed.
        out: The folder for the noise.

    Raises:
        InputError: The data brings candidates, or as `inject_random` and `inject_near`.
    """
    collection, scores, table = run.collection, run.scores, run.scores.embeddings
    if table is None or len(collection.candidates):
        raise InputError(
            f"--noise changes pairs, and {collection.source.name} brings "
            f"{len(collection.candidates):,} candidates, which say what is right; leave these out"
        )
    train, seed, arrays = collection.pairs("train"), run.recipe.seed, out / "noise.npz"

    def make(key: str) -> NoiseRecord:
        injected = _injected(run, table, noise, seed)
        with written_whole(arrays) as temporary:
            np.savez(temporary, places=injected.places, documents=injected.documents)
        number = len(injected.places)
        return NoiseRecord(key, noise.kind, noise.share, seed, len(train), number)

    inputs = [collection.key, scores.key, str(noise), seed, POOL_SIZE]
    record = stage(out / "noise.json", NoiseRecord, inputs, make, [arrays])
    with np.load(arrays) as held:
        places, documents = held["places"], held["documents"]

    rows, values = train.rows[places], scores.values.copy()
    values[rows] = scores.between(collection.query_numbers[rows], documents)
    other = run.with_recipe(run.recipe)
    other.collection = dataclasses.replace(
        collection,
        judgements=_with_documents(collection, rows, documents),
        record=dataclasses.replace(collection.record, key=record.key),
    )
    other.scores = dataclasses.replace(
        scores, values=values, record=dataclasses.replace(scores.record, key=record.key)
    )
    other.ranking = rank_in_pool(
        other.collection, other.scores, run.recipe, RunFolder(out), train.documents
    )
    # The students of a study share these, whatever they are trained on.
    other.initialisation, other.further_texts = run.initialisation, run.further_texts
    is_noisy = np.zeros(len(train), dtype=bool)
    is_noisy[places] = True
    return Noisy(other, record, is_noisy)
