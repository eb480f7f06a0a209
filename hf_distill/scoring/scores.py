"""Teacher scores: every unique text is embedded once, or every unique pair is scored once, in
restartable shards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset, Features, Sequence, Value, concatenate_datasets
from tqdm.auto import tqdm

from hf_distill.compute.encode import (
    Advance,
    text_length,
)
from hf_distill.data.collection import (
    PairData,
    map_rows,
    pair_key,
    text_number,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.run.folder import (
    RunFolder,
    fingerprint,
    main_makes,
    read_json_if_current,
    write_json,
    written_whole,
)
from hf_distill.scoring.shards import (
    KEY_COLUMN,
    VALUE_COLUMN,
    Shards,
)
from hf_distill.teachers.base import (
    EmbeddingTeacher,
    Kind,
    PairTeacher,
    Scale,
    Teacher,
    pair_similarity,
)
from hf_distill.teachers.ensemble import (
    EnsembleTeacher,
    combine,
    normalise_scores,
)
from hf_distill.teachers.load import prompts_of

SCORED_SPLITS = ("train", "validation", "test", "leaked")
_READ = 1000


@dataclass(frozen=True)
class EmbeddingTable:
    """Teacher embeddings of unique texts, memory-mapped: `ids` (n,) uint64 ascending, `rows` (n,
    dimension) float16.
    """

    ids: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, text_ids: Iterable[str]) -> np.ndarray:
        """Embeddings (len(text_ids), dimension), float16, of texts named by
        `hf_distill.data.collection.text_id`.

        Raises:
            KeyError: A text was never embedded.
        """
        return self.of_numbers(np.array([int(name, 16) for name in text_ids], dtype=np.uint64))

    def of_numbers(self, wanted: np.ndarray) -> np.ndarray:
        """The same, by the ids (m,) uint64 as numbers."""
        places = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        if (self.ids[places] != wanted).any():
            raise KeyError(
                f"{int((self.ids[places] != wanted).sum())} of {len(wanted)} texts have no teacher embedding"
            )
        return np.asarray(self.rows[places])


@dataclass(frozen=True)
class ScoredPairs:
    """What the teacher said.

    Attributes:
        train, validation, test, leaked: The pairs, with `teacher_score` (float32, NaN where the
            teacher has none) and, of a teacher that embeds, `query_id` and `document_id` (ids of
            the prompted texts, the keys of `embeddings`).
        embeddings: The teacher's embeddings, or None if it has none.
        scale: What the scores mean.
        manifest: Which teacher, at which precision and prompts, how many texts, and how long it
            took.
        key: The fingerprint of what the scores depend on.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    leaked: Dataset
    embeddings: EmbeddingTable | None
    scale: Scale
    manifest: Mapping[str, Any]
    key: str

    def summary(self) -> str:
        """What was scored, at what cost, for a terminal."""
        m, s = self.manifest, self.manifest["score"]
        saved = m["items_without_deduplication"] - m["items"]
        speed = f", {m['pairs'] / m['seconds']:,.0f} pairs/s" if m["seconds"] > 1 else ""
        unscored = f"; {m['unscored']:,} without a score" if m["unscored"] else ""
        return (
            f"Scores   {m['pairs']:,} pairs by {m['teacher']} ({m['precision']}; {self.scale}), {m['items']:,} unique {m['item']}s "
            f"({saved:,} repeats saved), {m['seconds']} s{speed}\n"
            f"         mean {s['mean']:.3f}, sd {s['sd']:.3f}, min {s['min']:.3f}, max {s['max']:.3f}{unscored}"
        )


class _Progress:
    """A bar over characters (texts come longest first, so their number would mislead about the time
    left), with texts/s and tokens/s.
    """

    def __init__(self, what: str, items: int, characters: int) -> None:
        self._what, self._items, self._done, self._tokens = what, items, 0, 0
        self._characters, self._start = characters, time.perf_counter()
        self._bar = tqdm(
            total=characters,
            desc=f"Teacher, {items:,} {what}s",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            disable=not PartialState().is_local_main_process or not items,
        )

    def shard(self, characters: np.ndarray) -> Advance:
        """To be told of the progress in a shard whose items, in the order of their batches, have so
        many characters.
        """
        per_item = float(characters.mean())

        def advance(items: int, tokens: int) -> None:
            self._done += items
            self._tokens += tokens
            seconds = time.perf_counter() - self._start
            rates = f"{self._done:,} done, {self._done / seconds:,.0f} {self._what}s/s"
            self._bar.set_postfix_str(
                rates + (f", {self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""),
                refresh=False,
            )
            # Averages add up to a little more than the whole, of which tqdm would warn.
            self._bar.update(max(0.0, min(items * per_item, self._characters - self._bar.n)))

        return advance

    def close(self) -> None:
        self._bar.close()


Item = str | tuple[str, str]
"""What a teacher works on: a prompted text, or a (query, document) pair."""


@dataclass(frozen=True)
class _Source:
    """Items that a memory-mapped table holds: `items` makes them of some rows, given as columns."""

    table: Dataset
    items: Callable[[dict[str, list[Any]]], list[Item]]


@dataclass(frozen=True)
class _Keys:
    """Keys (n,) uint64 and lengths (n,) int32, in characters, of all items of some sources, of
    which source i holds those at `places[i]`.

    Of an item only this is held, twelve bytes: memory grows with the number of items by arrays like
        these alone.
    """

    keys: np.ndarray
    lengths: np.ndarray
    places: list[slice]


def _read_keys(sources: list[_Source]) -> _Keys:
    starts = np.cumsum([0, *(len(source.table) for source in sources)])
    keys, lengths = np.empty(starts[-1], dtype=np.uint64), np.empty(starts[-1], dtype=np.int32)
    places = [slice(int(start), int(stop)) for start, stop in pairwise(starts)]
    for source, place in tqdm(
        list(zip(sources, places, strict=True)),
        desc="Looking for equal items",
        delay=3,
        leave=False,
    ):
        for start in range(0, len(source.table), _READ):
            items = source.items(source.table[start : start + _READ])
            here = slice(place.start + start, place.start + start + len(items))
            keys[here] = [
                text_number(item) if isinstance(item, str) else pair_key(*item) for item in items
            ]
            lengths[here] = [text_length(item) for item in items]
    return _Keys(keys, lengths, places)


def _work_once(
    sources: list[_Source],
    read: _Keys,
    shards: Shards,
    shard_size: int,
    compute: Callable[[list[Item], Advance], np.ndarray],
    value: Value | Sequence,
) -> np.ndarray:
    """Let `compute` work on every unique item that no shard holds yet, the longest first.

    So batches of one length need no padding, and memory runs out at once or never.

    Returns:
        The unique keys (m,) uint64, ascending.
    """
    state = PartialState()
    unique, first = np.unique(read.keys, return_index=True)
    lengths = read.lengths[first]
    missing = ~np.isin(unique, shards.known())
    what = "text" if not isinstance(value, Value) else "pair"
    progress = _Progress(what, int(missing.sum()), int(lengths[missing].sum()))
    features = Features({KEY_COLUMN: Value("uint64"), VALUE_COLUMN: value})

    def items_of(keys: np.ndarray) -> list[Item]:
        wanted = first[np.searchsorted(unique, keys)]
        items = np.empty(len(keys), dtype=object)
        for source, place in zip(sources, read.places, strict=True):
            here = np.flatnonzero((wanted >= place.start) & (wanted < place.stop))
            if len(here):
                for i, item in zip(
                    here,
                    source.items(source.table[(wanted[here] - place.start).tolist()]),
                    strict=True,
                ):
                    items[i] = item
        return list(items)

    def shard(keys: np.ndarray) -> Dataset:
        items = items_of(keys)
        advance = progress.shard(np.array([text_length(item) for item in items]))
        return Dataset(pa.table({KEY_COLUMN: keys, "row": np.arange(len(keys))})).map(
            lambda batch: {VALUE_COLUMN: list(compute([items[i] for i in batch["row"]], advance))},
            batched=True, batch_size=len(keys), remove_columns=["row"], features=features, keep_in_memory=True,
            # By hand: hashing a closure over a model is slow, and differs from process to process.
            new_fingerprint=fingerprint(shards.worker, keys.tolist()),
        )  # fmt: skip

    shards.complete(
        unique[np.lexsort((unique, -lengths))],
        shard_size,
        shard,
        state.process_index,
        state.num_processes,
    )
    progress.close()
    return unique


@dataclass(frozen=True)
class _Scored:
    """Scores (n,) float32 of each split, and how they came about."""

    scores: Mapping[str, np.ndarray]
    items: int
    items_without_deduplication: int
    item: str
    parts: list[str]
    embeddings: EmbeddingTable | None = None
    query_numbers: Mapping[str, np.ndarray] | None = None
    document_numbers: Mapping[str, np.ndarray] | None = None


def _table(shards: Shards, wanted: np.ndarray, dimension: int, path: Path) -> EmbeddingTable:
    """One memory-mapped table of the `wanted` ids (n,) ascending: a derived file, remade whenever
    it is missing.
    """
    ids_path, rows_path = path.with_suffix(".ids.npy"), path.with_suffix(".rows.npy")

    def make() -> None:
        with written_whole(rows_path) as temporary:
            rows = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.float16, shape=(len(wanted), dimension)
            )
            for keys, values in shards.values():
                places = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
                ours = wanted[places] == keys
                rows[places[ours]] = values[ours]
            rows.flush()
        with written_whole(ids_path) as temporary:
            np.save(temporary, wanted)

    main_makes(ids_path, make)
    return EmbeddingTable(
        ids=np.load(ids_path, mmap_mode="r"), rows=np.load(rows_path, mmap_mode="r")
    )


def _embed(teacher: EmbeddingTeacher, texts: list[Item], advance: Advance) -> np.ndarray:
    """The teacher's embeddings as float16, checked."""
    values = teacher.embed([text for text in texts if isinstance(text, str)], advance)
    if values.shape != (len(texts), teacher.dimension):
        raise InputError(
            f"the teacher {teacher.name} returned embeddings of shape {values.shape} for {len(texts)} texts, "
            f"expected dimension {teacher.dimension}"
        )
    with np.errstate(over="ignore"):
        stored: np.ndarray = values.astype(np.float16)
    if not np.isfinite(stored).all():
        raise InputError(
            f"the teacher {teacher.name} returned embeddings with values up to {np.abs(values).max():.3g}, more than float16 holds "
            "(65,504); compare them by --teacher_similarity cosine"
        )
    return stored


def _cache(arguments: TeacherArguments, own: Path) -> Path:
    return Path(arguments.teacher_cache) if arguments.teacher_cache else own


def _table_of(
    sources: list[_Source],
    read: _Keys,
    teacher: EmbeddingTeacher,
    texts: Path,
    arguments: TeacherArguments,
    path: Path,
) -> EmbeddingTable:
    """The teacher's embeddings of every unique text of `sources`; what is new of them is embedded
    into the shards of the folder `texts`.
    """
    shards = Shards(texts, teacher.fingerprint)
    vector = Sequence(Value("float16"), length=teacher.dimension)
    unique = _work_once(
        sources,
        read,
        shards,
        arguments.shard_size,
        lambda items, advance: _embed(teacher, items, advance),
        vector,
    )
    return _table(shards, unique, teacher.dimension, path)


def embed_texts(
    texts: Dataset,
    teacher: EmbeddingTeacher,
    folder: RunFolder,
    arguments: TeacherArguments,
    name: str,
) -> EmbeddingTable:
    """The teacher's embeddings of texts that are not of the pairs, by the ids of the prompted
    texts; kept in `folder` under `name`.

    Args:
        texts: Columns `text` and `kind` (`query` or `document`, whose prompt the text gets).
        teacher: Who embeds.
        folder: The run's folder.
        arguments: `shard_size` and `teacher_cache`.
        name: Of the kind of texts. What was embedded under it before is not embedded again.
    """

    def prompted(rows: dict[str, list[Any]]) -> list[Item]:
        return [
            teacher.prompted(text, kind)
            for text, kind in zip(rows["text"], rows["kind"], strict=True)
        ]

    source = _Source(texts, prompted)
    read = _read_keys([source])
    key = fingerprint(teacher.fingerprint, hashlib.sha256(read.keys.tobytes()).hexdigest())
    return _table_of(
        [source],
        read,
        teacher,
        _cache(arguments, folder.cache / name),
        arguments,
        folder.cache / f"{name}-{key}",
    )


def _by_embeddings(
    data: PairData,
    teacher: EmbeddingTeacher,
    folder: RunFolder,
    arguments: TeacherArguments,
    key: str,
) -> _Scored:
    def column(table: Dataset, kind: Kind) -> _Source:
        return _Source(
            table.select_columns([kind]),
            lambda rows: [teacher.prompted(text, kind) for text in rows[kind]],
        )

    kinds: tuple[Kind, Kind] = ("query", "document")
    sources = [column(getattr(data, split), kind) for split in SCORED_SPLITS for kind in kinds]
    sources.append(column(data.corpus, "document"))
    read = _read_keys(sources)
    texts = _cache(arguments, folder.soft_labels / "texts")
    embeddings = _table_of(
        sources, read, teacher, texts, arguments, folder.cache / f"embeddings-{key}"
    )
    of_split = {
        split: (read.keys[read.places[2 * i]], read.keys[read.places[2 * i + 1]])
        for i, split in enumerate(SCORED_SPLITS)
    }
    scores = {}
    for split, (queries, documents) in of_split.items():
        scores[split] = np.empty(len(queries), dtype=np.float32)
        for start in range(0, len(queries), 8192):
            rows = slice(start, start + 8192)
            scores[split][rows] = pair_similarity(
                teacher.scale.measure,
                embeddings.of_numbers(queries[rows]),
                embeddings.of_numbers(documents[rows]),
            )
    return _Scored(
        scores=scores,
        items=len(embeddings),
        items_without_deduplication=len(read.keys),
        item="text",
        parts=[part.name for part in Shards(texts, teacher.fingerprint).parts()],
        embeddings=embeddings,
        query_numbers={split: queries for split, (queries, _) in of_split.items()},
        document_numbers={split: documents for split, (_, documents) in of_split.items()},
    )


def _by_pairs(
    data: PairData, teacher: PairTeacher, folder: RunFolder, arguments: TeacherArguments
) -> _Scored:
    columns = ["query", "document"]
    sources = [
        _Source(
            getattr(data, split).select_columns(columns),
            lambda rows: list(zip(rows["query"], rows["document"], strict=True)),
        )
        for split in SCORED_SPLITS
    ]

    def score(pairs: list[Item], advance: Advance) -> np.ndarray:
        return teacher.scale.check(
            teacher.score([pair for pair in pairs if not isinstance(pair, str)], advance),
            teacher.name,
        )

    read = _read_keys(sources)
    shards = Shards(_cache(arguments, folder.soft_labels / "scores"), teacher.fingerprint)
    unique = _work_once(sources, read, shards, arguments.shard_size, score, Value("float32"))
    values = np.full(len(unique), np.nan, dtype=np.float32)
    for keys, scores in shards.values():
        places = np.minimum(np.searchsorted(unique, keys), len(unique) - 1)
        ours = unique[places] == keys
        values[places[ours]] = scores[ours]
    return _Scored(
        scores={
            split: values[np.searchsorted(unique, read.keys[place])]
            for split, place in zip(SCORED_SPLITS, read.places, strict=True)
        },
        items=len(unique),
        items_without_deduplication=len(read.keys),
        item="pair",
        parts=[part.name for part in shards.parts()],
    )


def _by_ensemble(
    data: PairData,
    teacher: EnsembleTeacher,
    folder: RunFolder,
    arguments: TeacherArguments,
    key: str,
) -> _Scored:
    members = [
        _scores_by(data, member, folder, arguments, fingerprint(key, i))
        for i, member in enumerate(teacher.members)
    ]
    normalised = {
        split: [
            normalise_scores(
                member.scores["train"].astype(np.float64),
                member.scores[split].astype(np.float64),
                teacher.normalization,
            )
            for member in members
        ]
        for split in SCORED_SPLITS
    }
    return _Scored(
        scores={
            split: combine(scores, teacher.weights).astype(np.float32)
            for split, scores in normalised.items()
        },
        items=sum(member.items for member in members),
        items_without_deduplication=sum(member.items_without_deduplication for member in members),
        item="item",
        parts=[part for member in members for part in member.parts],
    )


def _scores_by(
    data: PairData, teacher: Teacher, folder: RunFolder, arguments: TeacherArguments, key: str
) -> _Scored:
    if isinstance(teacher, EnsembleTeacher):
        return _by_ensemble(data, teacher, folder, arguments, key)
    if isinstance(teacher, EmbeddingTeacher):
        return _by_embeddings(data, teacher, folder, arguments, key)
    if isinstance(teacher, PairTeacher):
        return _by_pairs(data, teacher, folder, arguments)
    raise TypeError(f"{type(teacher).__name__} neither embeds texts nor scores pairs")


def _with_scores(pairs: Dataset, split: str, scored: _Scored) -> Dataset:
    features = {**pairs.features, "teacher_score": Value("float32")}
    if scored.query_numbers is not None:
        features |= {"query_id": Value("string"), "document_id": Value("string")}

    def add(_: dict[str, list[Any]], indices: list[int]) -> dict[str, Any]:
        made: dict[str, Any] = {"teacher_score": scored.scores[split][indices]}
        if scored.query_numbers is not None and scored.document_numbers is not None:
            made["query_id"] = [f"{number:016x}" for number in scored.query_numbers[split][indices]]
            made["document_id"] = [
                f"{number:016x}" for number in scored.document_numbers[split][indices]
            ]
        return made

    return map_rows(pairs, add, Features(features))


def write_soft_labels(path: Path, pairs: Dataset) -> None:
    """Write the paper's `teacher_soft_labels.json`: a list of {pair_id, query, document,
    teacher_score}, row by row.

    A pair without a score has null.
    """
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, row in enumerate(
            pairs.select_columns(["pair_id", "query", "document", "teacher_score"])
        ):
            score = row["teacher_score"]
            row["teacher_score"] = None if score is None or np.isnan(score) else round(score, 6)
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n" if len(pairs) else "[]\n")


def _statistics(scores: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(scores.mean()), "sd": float(scores.std()), "median": float(np.median(scores)),
        "min": float(scores.min()), "max": float(scores.max()),
    }  # fmt: skip


def score_pairs(
    data: PairData, teacher: Teacher, folder: RunFolder, arguments: TeacherArguments
) -> ScoredPairs:
    """Score every pair with the teacher; keep the result in `folder.soft_labels` until the pairs or
    the teacher change.

    Args:
        data: The split pairs.
        teacher: Who scores.
        folder: The run's folder.
        arguments: `shard_size` and `teacher_cache`.

    Raises:
        InputError: Embeddings that are not finite or change shape, scores outside the declared
            scale, or no score at all for the pairs of a split.
    """
    state = PartialState()
    prompts = prompts_of(teacher)
    key = fingerprint(data.key, teacher.fingerprint, prompts, teacher.scale.key())
    start = time.perf_counter()
    made = _scores_by(data, teacher, folder, arguments, key)
    made = dataclasses.replace(
        made,
        scores={
            split: teacher.scale.check(values, teacher.name)
            for split, values in made.scores.items()
        },
    )
    every = np.concatenate(list(made.scores.values()))
    known = every[~np.isnan(every)].astype(np.float64)
    for split in ("train", "test"):
        if np.isnan(made.scores[split]).all():
            raise InputError(
                f"{teacher.name} has a score for none of the {len(made.scores[split])} {split} pairs; are its texts those of the pairs, "
                "letter by letter?"
            )
    scored = {name: _with_scores(getattr(data, name), name, made) for name in SCORED_SPLITS}
    manifest_path = folder.soft_labels / "manifest.json"
    manifest = read_json_if_current(manifest_path, key)
    if manifest is None:
        manifest = {
            "fingerprint": key,
            "teacher": teacher.name,
            "teacher_kind": arguments.teacher_kind,
            "teacher_fingerprint": teacher.fingerprint,
            "precision": teacher.precision,
            "query_prompt": prompts["query"],
            "document_prompt": prompts["document"],
            "scale": teacher.scale.record(),
            "dimension": teacher.dimension if isinstance(teacher, EmbeddingTeacher) else None,
            "pairs": len(every),
            "unscored": int(np.isnan(every).sum()),
            "item": made.item,
            "items": made.items,
            "items_without_deduplication": made.items_without_deduplication,
            "seconds": round(time.perf_counter() - start, 1),
            "score": _statistics(known),
            "parts": made.parts,
        }
        if state.is_main_process:
            for name, split in scored.items():
                with written_whole(folder.soft_labels / f"{name}.parquet") as temporary:
                    split.to_parquet(str(temporary))
            columns = ["pair_id", "query", "document", "teacher_score"]
            write_soft_labels(
                folder.soft_labels_json,
                concatenate_datasets([split.select_columns(columns) for split in scored.values()]),
            )
            write_json(manifest_path, manifest)
    return ScoredPairs(
        **scored, embeddings=made.embeddings, scale=teacher.scale, manifest=manifest, key=key
    )
