"""A corpus that is embedded once and searched many times, for `hf-distill search` and `hf-distill
demo`.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from hf_distill.compute.encode import Advance, encode
from hf_distill.compute.models import digest_of_weights, load_sentence_transformer
from hf_distill.compute.search import search
from hf_distill.data.collection import Collection, text_id
from hf_distill.data.sources.pydocs import harvest
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import CONVERSATION
from hf_distill.report.results import RunResults
from hf_distill.run.disk import MOST_INDEXED
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import files_of, stage, written_whole
from hf_distill.scoring.documents import documents_of_teacher
from hf_distill.serving.kept import DEPTH, Hit, KeptPlaces, KeptRecord


def student_of(run_or_model: str) -> str:
    """What `run_or_model` names: the student's folder of a run, or the model itself (a folder or a
    Hub id).

    Raises:
        InputError: The run has no student yet, or the student is not the one that it trained.
    """
    folder = RunFolder(Path(run_or_model))
    if not folder.recipe.is_file():
        return str(folder.student) if folder.student.is_dir() else run_or_model
    if not folder.training.is_file():
        raise InputError(
            f"the run in {run_or_model} has no student yet; run it to its end: hf-distill train "
            f"{folder.recipe} --run_dir {run_or_model} --until release"
        )
    files_of(folder.training, folder.student)
    return str(folder.student)


def load_student(run_or_model: str) -> SentenceTransformer:
    """Load what `student_of` names.

    Raises:
        InputError: There is no such model, or it cannot be loaded.
    """
    try:
        return load_sentence_transformer(student_of(run_or_model), "model")
    except InputError as error:  # the commands take it without a flag
        raise InputError(str(error).removeprefix("--model ")) from error


@dataclass(frozen=True)
class Corpus:
    """Documents to search.

    Attributes:
        ids: Where each text is from.
        texts: Each text once.
        key: The fingerprint of what they depend on.
    """

    ids: list[str]
    texts: list[str]
    key: str


def corpus_of_run(collection: Collection) -> Corpus:
    """Every document of a run's collection, held out or not. Its id is that of the first pair that
    has it, or a digest of the text if it is in no pair.
    """
    texts = collection.document_texts(np.arange(len(collection.documents)))
    numbers, rows = np.unique(collection.document_numbers, return_index=True)
    names = collection.every_pair().take(rows).column("pair_id")
    of_pairs = dict(zip(numbers.tolist(), names, strict=True))
    ids = [of_pairs.get(i) or text_id(text) for i, text in enumerate(texts)]
    return Corpus(ids, texts, collection.key)


@dataclass(frozen=True)
class PythonRecord:
    """`python.json`: how many documents the installed packages have."""

    key: str
    documents: int


def python_identity() -> list[str]:
    """What `corpus_of_python` depends on: the Python version and the installed packages."""
    packages = {f"{d.metadata['Name']} {d.version}" for d in importlib.metadata.distributions()}
    return [sys.version, *sorted(packages)]


def user_cache() -> Path:
    """The folder for an index that does not belong to a run."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hf_distill" / "search"


def corpus_of_python() -> Corpus:
    """The documentation of the installed Python packages, for a model without a run. It is read
    once, and kept in `user_cache()`.
    """
    table = user_cache() / "python.parquet"

    def make(key: str) -> PythonRecord:
        first: dict[str, str] = {}
        for row in harvest(None, None, 0).rows:
            first.setdefault(row["document"], row["pair_id"])
        with written_whole(table) as temporary:
            columns = {"id": list(first.values()), "text": list(first)}
            pq.write_table(pa.table(columns), temporary)
        return PythonRecord(key, len(first))

    path = table.with_suffix(".json")
    record = stage(path, PythonRecord, [python_identity()], make, files=[table])
    content = pq.read_table(table)
    return Corpus(content["id"].to_pylist(), content["text"].to_pylist(), record.key)


@dataclass(frozen=True)
class IndexRecord:
    """The embeddings of a corpus, (documents, dimension) in a file beside this one."""

    key: str
    documents: int
    dimension: int


def embedded(
    corpus: Corpus,
    identity: Sequence[Any],
    embed: Callable[[list[str], Advance], np.ndarray],
    path: Path,
) -> np.ndarray:
    """The embeddings (N, d) of a corpus, memory-mapped, as kept at `path` or made.

    Args:
        corpus: The documents.
        identity: What the embeddings depend on besides the corpus.
        embed: Maps texts to embeddings, and reports its progress.
        path: Files without their suffix: `.npy` holds the embeddings, `.json` an `IndexRecord`.

    Raises:
        InputError: The corpus is empty.
    """
    if not corpus.texts:
        raise InputError("there is no document to search")
    array = path.with_suffix(".npy")

    def make(key: str) -> IndexRecord:
        total = len(corpus.texts)
        with tqdm(total=total, desc="Embedding", unit=" documents", leave=False) as bar:

            def advance(texts: int, _tokens: int) -> None:
                bar.update(texts)

            vectors = embed(corpus.texts, advance)
        with written_whole(array) as temporary:
            np.save(temporary, vectors)
        return IndexRecord(key, *vectors.shape)

    inputs = [corpus.key, *identity]
    stage(path.with_suffix(".json"), IndexRecord, inputs, make, files=[array])
    embeddings: np.ndarray = np.load(array, mmap_mode="c")
    return embeddings


@dataclass(frozen=True)
class Index:
    """A corpus embedded by a model: `embeddings` (N, d) of unit length, float16 where the model
    itself has embedded them.
    """

    model: SentenceTransformer
    corpus: Corpus
    embeddings: np.ndarray

    def ask(self, question: str, depth: int = DEPTH) -> list[Hit]:
        """The `depth` documents nearest to `question`, best first."""
        query = self.model.encode_query(
            [question], normalize_embeddings=True, show_progress_bar=False
        )
        scores, places = search(query, self.embeddings, depth)
        return [
            Hit(float(score), self.corpus.ids[i], self.corpus.texts[i])
            for score, i in zip(scores[0], places[0], strict=True)
        ]


def index_of_run(results: RunResults, model: SentenceTransformer) -> Index:
    """The index that a run's student searches: its own, or, of a query encoder, the teacher's.

    Raises:
        InputError: As `index_of`, or as `documents_of_teacher`.
    """
    corpus, folder = corpus_of_run(results.collection), results.folder
    if results.recipe.training.student_space == "own":
        return index_of(model, corpus, folder.search / "student")
    documents = documents_of_teacher(
        results.recipe, folder, results.collection, results.soft_labels
    )
    return Index(model, corpus, documents)


def keep_index(results: RunResults) -> str:
    """Embed a run's documents by its student and keep them, so that the first search is quick (see
    `hf_distill.serving.kept`). More than `MOST_INDEXED` are left to that search. Returns what was
    done, for a terminal. The student embeds documents: a query encoder searches the teacher's.
    """
    number = len(results.collection.documents)
    if number > MOST_INDEXED:
        return (
            f"Index    none yet: the first hf-distill search embeds the {number:,} documents, more "
            f"than {MOST_INDEXED:,}"
        )
    places, training = KeptPlaces(results.folder.path), results.training.key
    conversation = results.recipe.data.student_query == CONVERSATION

    def make(key: str) -> KeptRecord:
        corpus = index_of_run(results, load_student(str(places.run))).corpus
        with written_whole(places.documents) as temporary:
            pq.write_table(pa.table({"id": corpus.ids, "text": corpus.texts}), temporary)
        return KeptRecord(key, training, conversation, len(corpus.texts))

    inputs = [training, results.collection.key, conversation]
    kept = stage(places.record, KeptRecord, inputs, make, [places.documents, places.embeddings])
    more = "; --python searches all that is installed" * (
        results.collection.source.name == "pydocs"
    )
    return f"Index    {kept.documents:,} documents, for hf-distill search{more}"


def index_of(model: SentenceTransformer, corpus: Corpus, path: Path) -> Index:
    """The index of `corpus` by `model`, as kept at `path` (see `embedded`) or made.

    Raises:
        InputError: The corpus is empty.
    """
    prompt = model.prompts.get("document") or ""

    def embed(texts: list[str], advance: Advance) -> np.ndarray:
        vectors = encode(model, [prompt + text for text in texts], advance=advance).numpy()
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: np.ndarray = (vectors / np.maximum(lengths, 1e-12)).astype(np.float16)
        return unit

    identity = [digest_of_weights(model), dict(model.prompts), model.max_seq_length, "float16"]
    return Index(model, corpus, embedded(corpus, identity, embed, path))
