"""Time and memory of every selection rule on synthetic pairs: `python benchmarks/selection.py
[--pairs N ...]`.

Each number of pairs has a process of its own, so that its peak memory is its own: the most
anonymous memory, because the system takes pages of mapped files back when memory is short. The
texts are in Arrow files, as in a run. A tenth of the pairs are near-copies of another, some are
echoes, and a group has ten pairs. Documents have random embeddings. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from machine import memory_mb, peak_memory, process_server

from hf_distill.data.collection import (
    JUDGEMENT_FEATURES,
    TEXT_FEATURES,
    Collection,
    CollectionRecord,
    Source,
    write_table,
)
from hf_distill.run.scratch import keep_scratch_in
from hf_distill.scoring.embeddings import EmbeddingTable, Vectors
from hf_distill.scoring.ranking import Ranking
from hf_distill.selection.rules import apply_rules, parse_rules
from hf_distill.selection.select import SelectionInputs, make_selection, rule_columns

RULES = [
    "invalid", "echo", "near_echo=0.8", "duplicate", "near_duplicate", "rank=50", "margin=-0.9",
    "threshold=-0.99", "percentile=10", "percentile=10:by=group", "percentile=10:by=source",
    "top_k=9:by=group", "stratified=0.9", "stratified=0.9:on=margin", "coverage=0.9", "random=0.9",
    "percentile=50:weight=0.5", "mismatched:weight_ranking=0", "margin=-0.8:relabel",
]  # fmt: skip
QUERY_WORDS, DOCUMENT_WORDS, VOCABULARY = 8, 30, 20_000
DIMENSION, TOPICS = 384, 300


@dataclass(frozen=True)
class Figures:
    """Of one number of pairs: seconds by the clock and of the processor for all rules with the
    audit; the processor's for each rule alone; memory (MB) before and the most while all run.
    """

    pairs: int
    seconds: float
    processor: float
    rules: dict[str, float]
    mb_before: int
    mb_peak: int
    kept: int


def synthetic_texts(pairs: int, seed: int = 0) -> Iterator[tuple[str | None, str]]:
    """Random words as query (None: the last one again) and document. Of ten documents one is the
    last one with another last word, and of a hundred one is its query.
    """
    rng = np.random.default_rng(seed)
    document = ""
    for number in range(pairs):
        if number % 10 == 9:
            document = f"{document.rsplit(' ', 1)[0]} w{rng.integers(VOCABULARY)}"
            yield None, document
            continue
        drawn = rng.integers(VOCABULARY, size=QUERY_WORDS + DOCUMENT_WORDS)
        words = [f"w{word}" for word in drawn]
        query, document = " ".join(words[:QUERY_WORDS]), " ".join(words[QUERY_WORDS:])
        yield query, query if number % 100 == 50 else document


def synthetic_embeddings(count: int, path: Path) -> EmbeddingTable:
    """So many documents around topics of which a few are frequent, in a memory-mapped file."""
    rng = np.random.default_rng(2)
    topics = rng.normal(size=(TOPICS, DIMENSION))
    values = np.lib.format.open_memmap(path, "w+", np.float16, (count, DIMENSION))
    for start in range(0, count, 8192):
        block = values[start : start + 8192]
        chosen = (TOPICS * rng.random(len(block)) ** 3).astype(int)
        block[:] = topics[chosen] + rng.normal(size=block.shape)
    values.flush()
    numbers = np.arange(count, dtype=np.uint32)
    vectors = Vectors((np.load(path, mmap_mode="r"),), numbers, DIMENSION)
    return EmbeddingTable(vectors, numbers, numbers)


def synthetic(pairs: int, folder: Path) -> SelectionInputs:
    """So many pairs, written to `folder`, with random scores, ranks and margins. A tenth
    have the rank of a random document.
    """
    numbers = range(pairs)
    queries = ({"text": q} for q, _ in synthetic_texts(pairs) if q is not None)
    documents = ({"text": d, "searched": False} for _, d in synthetic_texts(pairs))
    judgements = (
        {
            "pair_id": str(i), "query": i - i // 10 - (i % 10 == 9), "document": i, "grade": 1,
            "group": str(i // 10), "source": str(i % 7), "split": "train",
        }
        for i in numbers
    )  # fmt: skip
    paths = [folder / f"{name}-{pairs}.arrow" for name in ("queries", "documents", "judgements")]
    features = [TEXT_FEATURES["queries"], TEXT_FEATURES["documents"], JUDGEMENT_FEATURES]
    for rows, form, path in zip((queries, documents, judgements), features, paths, strict=True):
        write_table(rows, form, path)
    record = CollectionRecord("key", Source("synthetic"), {}, {"train": pairs}, {}, 0)
    collection = Collection(*(Dataset.from_file(str(path)) for path in paths), record)
    rng = np.random.default_rng(1)
    ranking = Ranking(
        key="key",
        rank=np.where(
            np.arange(pairs) % 10, rng.integers(1, 100, pairs), rng.integers(1, pairs + 1, pairs)
        ).astype(np.int32),
        margin=rng.uniform(-1, 1, pairs).astype(np.float32),
        negatives=rng.integers(pairs, size=(pairs, 4)),
        negative_scores=-np.sort(-rng.uniform(-1, 1, (pairs, 4)).astype(np.float32), axis=1),
        pool=pairs,
    )
    scores = rng.uniform(-1, 1, pairs).astype(np.float32)
    table = synthetic_embeddings(pairs, folder / f"embeddings-{pairs}.npy")
    return SelectionInputs(collection.every_pair(), scores, ranking, "key", table)


def measure(pairs: int, folder: str, each: bool, answer: Any) -> None:
    """Put the figures of one number of pairs into the queue `answer`; `each` rule's, too."""
    keep_scratch_in(Path(folder))
    inputs = synthetic(pairs, Path(folder))
    rules, seconds = parse_rules(RULES), {}
    before = round(memory_mb())
    with peak_memory() as peak:
        start, processor = time.perf_counter(), time.process_time()
        audit = make_selection(rule_columns(inputs, rules, 0), rules, 0, "key").audit
        together = time.perf_counter() - start, time.process_time() - processor
        most = before + round(peak())
    assert audit.pairs_in == pairs == audit.kept + sum(rule.dropped for rule in audit.rules)
    for rule in rules if each else ():
        start, alone = time.process_time(), dataclasses.replace(inputs)  # without columns yet
        apply_rules(rule_columns(alone, [rule], 0), [rule])
        seconds[str(rule)] = round(time.process_time() - start, 2)
    clock, used = (round(taken, 2) for taken in together)
    answer.put(Figures(pairs, clock, used, seconds, before, most, audit.kept))


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--together", action="store_true", help="do not try each rule alone")
    options = parser.parse_args()
    sizes = options.pairs
    datasets.utils.logging.disable_progress_bar()
    server = process_server("selection")
    figures: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder:
        for pairs in sizes:
            answer = server.Queue()
            process = server.Process(
                target=measure, args=(pairs, folder, not options.together, answer)
            )
            process.start()
            while answer.empty() and process.is_alive():
                time.sleep(0.1)
            if not process.is_alive() and answer.empty():
                raise SystemExit(
                    f"the process for {pairs:,} pairs ended with code {process.exitcode}"
                )
            figures.append(answer.get())
            process.join()
    print(f"{'processor seconds, alone':<32}" + "".join(f"{f.pairs:>14,}" for f in figures))
    for rule in () if options.together else RULES:
        print(f"{rule:<32}" + "".join(f"{f.rules[rule]:>14.2f}" for f in figures))
    for what, name in (("processor", "processor"), ("clock", "seconds")):
        values = "".join(f"{getattr(f, name):>14.2f}" for f in figures)
        print(f"{f'all with the audit, {what}':<32}{values}")
    mb = "".join(f"{f.mb_before:>7,} /{f.mb_peak:>5,}" for f in figures)
    print(f"{'MB before / at the peak':<32}{mb}")
    print(json.dumps({str(f.pairs): dataclasses.asdict(f) for f in figures}))


if __name__ == "__main__":
    main()
