"""Teacher scores: every unique text is embedded once, in restartable shards; a pair's score is a cosine of two of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import Dataset, Features, Sequence, Value, concatenate_datasets
from tqdm.auto import tqdm

from hf_distill.data.contract import PairData, dataset_of, map_rows, text_id
from hf_distill.errors import InputError
from hf_distill.run_folder import RunFolder, fingerprint, read_json_if_current, write_json, written_whole
from hf_distill.teachers import Teacher

SCORED_SPLITS = ("train", "validation", "test", "leaked")
_TEXT_FEATURES = Features({"text_id": Value("string"), "text": Value("string")})


@dataclass(frozen=True)
class EmbeddingTable:
    """Teacher embeddings of unique texts, memory-mapped: `ids` (n,) uint64 ascending, `rows` (n, dimension) float16."""

    ids: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, text_ids: Iterable[str]) -> np.ndarray:
        """Embeddings (len(text_ids), dimension), float16, of texts named by `hf_distill.data.text_id`.

        Raises:
            KeyError: A text was never embedded.
        """
        wanted = np.array([int(name, 16) for name in text_ids], dtype=np.uint64)
        places = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        if (self.ids[places] != wanted).any():
            raise KeyError(f"{int((self.ids[places] != wanted).sum())} of {len(wanted)} texts have no teacher embedding")
        return np.asarray(self.rows[places])


@dataclass(frozen=True)
class ScoredPairs:
    """What the teacher said.

    Attributes:
        train, validation, test, leaked: The pairs, with `query_id` and `document_id` (ids of the prompted texts, the keys
            of `embeddings`) and `teacher_score` (float32, the cosine of the two embeddings).
        corpus_ids: For each corpus document, in order, its key in `embeddings`.
        embeddings: The teacher's embeddings.
        manifest: Which teacher, at which precision and prompts, how many texts, and how long it took.
        key: The fingerprint of what the scores depend on.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    leaked: Dataset
    corpus_ids: list[str]
    embeddings: EmbeddingTable
    manifest: Mapping[str, Any]
    key: str

    def summary(self) -> str:
        """What was scored, for a terminal."""
        m, s = self.manifest, self.manifest["score"]
        saved = m["texts_without_deduplication"] - m["texts"]
        return (
            f"Scores   {m['pairs']:,} pairs by {m['teacher']} ({m['precision']}), {m['texts']:,} texts embedded once "
            f"({saved:,} saved), {m['seconds']} s; mean {s['mean']:.3f}, sd {s['sd']:.3f}, min {s['min']:.3f}, max {s['max']:.3f}"
        )


def _unique_texts(data: PairData, teacher: Teacher) -> Iterator[dict[str, str]]:
    seen: set[str] = set()

    def texts() -> Iterator[str]:
        for name in SCORED_SPLITS:
            split: Dataset = getattr(data, name)
            yield from (teacher.prompted(text, "query") for text in split["query"])
            yield from (teacher.prompted(text, "document") for text in split["document"])
        yield from (teacher.prompted(text, "document") for text in data.corpus["document"])

    for text in texts():
        if (name := text_id(text)) not in seen:
            seen.add(name)
            yield {"text_id": name, "text": text}


def _is_whole(part: Path, rows: int) -> bool:
    """Whether a shard's file is there and complete (Parquet keeps its row count at the very end)."""
    try:
        return part.is_file() and pq.ParquetFile(part).metadata.num_rows == rows
    except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError: truncated or altered
        return False


def embed_texts(texts: Dataset, teacher: Teacher, folder: Path, shard_size: int) -> list[Path]:
    """Embed `texts` in shards of `shard_size` rows, each written whole as a Parquet part; parts that are there are kept.

    Under several processes the shards are dealt out by rank, and every process returns once all parts are there. A killed
    run loses the shard it was at.

    Args:
        texts: Columns `text_id` and `text` (prompted), no text twice.
        teacher: Who embeds.
        folder: Where the parts go. A part's name holds a hash of the teacher and of its texts.
        shard_size: Rows in a part.

    Returns:
        The parts, in the order of `texts`.
    """
    state = PartialState()
    features = Features({"text_id": Value("string"), "embedding": Sequence(Value("float16"), length=teacher.dimension)})
    shards = [texts.select(range(start, min(start + shard_size, len(texts)))) for start in range(0, len(texts), shard_size)]
    keys = [fingerprint(teacher.fingerprint, list(shard["text_id"])) for shard in shards]
    parts = [folder / f"part-{i:05d}-{key}.parquet" for i, key in enumerate(keys)]
    mine = [i for i in range(len(shards)) if i % state.num_processes == state.process_index and not _is_whole(parts[i], len(shards[i]))]
    with tqdm(
        total=sum(len(shards[i]) for i in mine), unit=" texts", desc="Teacher embeds", disable=not state.is_local_main_process or not mine
    ) as bar:

        def embed(batch: dict[str, list[str]]) -> dict[str, Any]:
            embeddings = teacher.embed(batch["text"])
            if embeddings.shape != (len(batch["text"]), teacher.dimension):
                raise InputError(
                    f"the teacher returned embeddings of shape {embeddings.shape} for {len(batch['text'])} texts, "
                    f"expected dimension {teacher.dimension}"
                )
            bar.update(len(batch["text"]))
            return {"embedding": list(embeddings.astype(np.float16))}

        for i in mine:
            # Given by hand: hashing a closure over a model is slow, and differs from process to process.
            made = shards[i].map(
                embed, batched=True, batch_size=512, remove_columns=["text"], features=features,
                keep_in_memory=True, new_fingerprint=keys[i],
            )  # fmt: skip
            with written_whole(parts[i]) as temporary:
                made.to_parquet(str(temporary))
    while not all(_is_whole(part, len(shard)) for part, shard in zip(parts, shards, strict=True)):
        time.sleep(0.5)  # another rank's shards; if that rank dies, the launcher ends this one too
    return parts


def _consolidate(parts: list[Path], count: int, dimension: int, path: Path) -> EmbeddingTable:
    """One memory-mapped table of all parts, sorted by id: a derived file, remade whenever it is missing."""
    ids_path, rows_path = path.with_suffix(".ids.npy"), path.with_suffix(".rows.npy")
    if not (ids_path.is_file() and rows_path.is_file()):
        ids = np.empty(count, dtype=np.uint64)
        start = 0
        for part in parts:
            names = pq.read_table(part, columns=["text_id"]).column("text_id").to_pylist()
            ids[start : start + len(names)] = [int(name, 16) for name in names]
            start += len(names)
        order = np.argsort(ids)
        place = np.empty(count, dtype=np.int64)
        place[order] = np.arange(count)
        with written_whole(rows_path) as temporary:
            rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(count, dimension))
            start = 0
            for part in parts:
                column = pq.read_table(part, columns=["embedding"]).column("embedding").combine_chunks()
                values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
                rows[place[start : start + len(values)]] = values
                start += len(values)
            rows.flush()
        with written_whole(ids_path) as temporary:
            np.save(temporary, ids[order])
    return EmbeddingTable(ids=np.load(ids_path, mmap_mode="r"), rows=np.load(rows_path, mmap_mode="r"))


def pair_scores(query_ids: list[str], document_ids: list[str], embeddings: EmbeddingTable) -> np.ndarray:
    """Cosines (n,), float32, of the teacher's query and document embeddings, clipped to [-1, 1] against rounding."""
    queries = embeddings.of(query_ids).astype(np.float32)
    documents = embeddings.of(document_ids).astype(np.float32)
    norms = np.linalg.norm(queries, axis=1) * np.linalg.norm(documents, axis=1)
    scores: np.ndarray = np.clip(np.einsum("nd,nd->n", queries, documents) / norms, -1.0, 1.0)
    return scores


def _score(pairs: Dataset, teacher: Teacher, embeddings: EmbeddingTable) -> Dataset:
    def score(batch: dict[str, list[str]], _: list[int]) -> dict[str, Any]:
        query_ids = [text_id(teacher.prompted(text, "query")) for text in batch["query"]]
        document_ids = [text_id(teacher.prompted(text, "document")) for text in batch["document"]]
        return {"query_id": query_ids, "document_id": document_ids, "teacher_score": pair_scores(query_ids, document_ids, embeddings)}

    features = Features({**pairs.features, "query_id": Value("string"), "document_id": Value("string"), "teacher_score": Value("float32")})
    return map_rows(pairs, score, features)


def write_soft_labels(path: Path, pairs: Dataset) -> None:
    """Write the paper's `teacher_soft_labels.json`: a list of {pair_id, query, document, teacher_score}, row by row."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, row in enumerate(pairs.select_columns(["pair_id", "query", "document", "teacher_score"])):
            row["teacher_score"] = round(row["teacher_score"], 6)
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n" if len(pairs) else "[]\n")


def score_pairs(data: PairData, teacher: Teacher, folder: RunFolder, shard_size: int) -> ScoredPairs:
    """Score every pair with the teacher; keep the result in `folder.soft_labels` until the pairs or the teacher change.

    Args:
        data: The split pairs.
        teacher: Who scores.
        folder: The run's folder.
        shard_size: Texts in one restartable shard.

    Raises:
        InputError: The teacher's embeddings are not finite or change shape.
    """
    state = PartialState()
    key = fingerprint(data.key, teacher.fingerprint, shard_size)
    start = time.perf_counter()
    texts = dataset_of(_unique_texts(data, teacher), _TEXT_FEATURES, folder.cache, "texts")
    parts = embed_texts(texts, teacher, folder.soft_labels / "texts", shard_size)
    with state.main_process_first():
        embeddings = _consolidate(parts, len(texts), teacher.dimension, folder.cache / f"embeddings-{key}")
    scored = {name: _score(getattr(data, name), teacher, embeddings) for name in SCORED_SPLITS}
    manifest_path = folder.soft_labels / "manifest.json"
    manifest = read_json_if_current(manifest_path, key)
    if manifest is None:
        total = sum(len(getattr(data, name)) for name in SCORED_SPLITS)
        scores = np.concatenate([np.asarray(split["teacher_score"], dtype=np.float64) for split in scored.values()])
        manifest = {
            "fingerprint": key,
            "teacher": teacher.name,
            "teacher_fingerprint": teacher.fingerprint,
            "precision": teacher.precision,
            "query_prompt": teacher.prompted("", "query"),
            "document_prompt": teacher.prompted("", "document"),
            "similarity": "cosine",
            "range": [-1.0, 1.0],
            "dimension": teacher.dimension,
            "pairs": total,
            "texts": len(texts),
            "texts_without_deduplication": 2 * total + len(data.corpus),
            "seconds": round(time.perf_counter() - start, 1),
            "score": {
                "mean": float(scores.mean()), "sd": float(scores.std()), "median": float(np.median(scores)),
                "min": float(scores.min()), "max": float(scores.max()),
            },
            "parts": [part.name for part in parts],
        }  # fmt: skip
        if state.is_main_process:
            for name, split in scored.items():
                with written_whole(folder.soft_labels / f"{name}.parquet") as temporary:
                    split.to_parquet(str(temporary))
            columns = ["pair_id", "query", "document", "teacher_score"]
            write_soft_labels(folder.soft_labels_json, concatenate_datasets([split.select_columns(columns) for split in scored.values()]))
            write_json(manifest_path, manifest)
    corpus_ids = [text_id(teacher.prompted(text, "document")) for text in data.corpus["document"]]
    return ScoredPairs(**scored, corpus_ids=corpus_ids, embeddings=embeddings, manifest=manifest, key=key)
